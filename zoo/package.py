"""From a finished run to a model folder: domain, probe, config, and a card whose snippet was run as it stands."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from tqdm import tqdm

import zoo
from zoo.acceptance import text_to_repeat
from zoo.artifact import (
    ArtifactConfig,
    DataSource,
    Domain,
    Lineage,
    Probe,
    count_parameters,
    encode_weights,
    probe_predictions,
    read_novelty,
    write_model_folder,
)
from zoo.card import CardContext, render_card, template_of
from zoo.data.labels import Label, Labels
from zoo.data.sources import get_source
from zoo.data.subsets import data_terms
from zoo.errors import ConfigError
from zoo.evaluate.report import Report, listed
from zoo.hub.card_lint import lint_card
from zoo.licences import Source
from zoo.neighbors import build_graph
from zoo.potential import Prediction
from zoo.publish import publish
from zoo.recipe import Lock, Recipe, Split, loss_from, to_yaml
from zoo.students import HEAVY, Student
from zoo.teachers import Teacher
from zoo.version import __version__

Samples = Mapping[Split, tuple[list[Atoms], Labels | None]]

_CLOSER = 0.95  # of the shortest distance in the training set: still inside the domain
_MARGIN = 0.05  # of the volume an atom, to both sides
_NOT_RUN = "(not run yet)"
_PROBES = 4  # of a structure, at most, in a probe
_SPELLED_OUT = 20  # atoms, at most, of a molecule that the snippet writes out


def package(
    folder: Path, recipe: Recipe, report: Report, student: Student, teacher: Teacher, samples: Samples, run: Path
) -> None:
    """Writes the model folder of a run, whole or not at all. ``recipe`` is locked.

    Raises ConfigError where the card's snippet fails or the card is not one that a hub takes.
    """
    probe = make_probe(student, teacher, samples)
    config = make_config(recipe, student, teacher, samples, _steps_taken(run / "train"))
    novelty = read_novelty(run / "evaluation", student)
    figures = {f"figures/{path.name}": path for path in sorted((run / "evaluation" / "figures").glob("*.png"))}
    files: dict[str, Path | bytes] = {
        "recipe.yaml": to_yaml(recipe).encode(),
        "report.json": run / "evaluation" / "report.json",
        **figures,
    }
    context = CardContext(
        report=report,
        config=config,
        recipe=recipe,
        weights_sha256=sha256(encode_weights(student, config)).hexdigest(),
        snippet=snippet(recipe, samples["train"][0][0]),
        snippet_output=_NOT_RUN,
        figures=tuple(figures),
        teacher_citation=teacher.citation,
    )
    bar = tqdm(total=3, desc="model folder", unit="step", delay=2)
    with bar, tempfile.TemporaryDirectory() as scratch:
        draft = Path(scratch) / "model"
        files["README.md"] = render_card(context).encode()
        write_model_folder(draft, config=config, potential=student, probe=probe, files=files, novelty=novelty)
        bar.update()
        output = run_snippet(context.snippet, draft, Path(scratch))
        bar.update()
        files["README.md"] = _card(replace(context, snippet_output=output), draft)
        write_model_folder(folder, config=config, potential=student, probe=probe, files=files, novelty=novelty)
        bar.update()


def _card(context: CardContext, draft: Path) -> bytes:
    """The card, once it passed the lint. Raises ConfigError."""
    card = render_card(context)
    problems = lint_card(card, draft)
    if problems:
        raise ConfigError(f"the card has a fault: {problems[0]}; correct the recipe, or {_template(context)}")
    return card.encode()


def _template(context: CardContext) -> str:
    return f"cards/_templates/{template_of(context.recipe)}.md"


def make_domain(recipe: Recipe, structures: Sequence[Atoms]) -> Domain:
    """The domain that the training structures span, a little widened."""
    volumes = [atoms.get_volume() / len(atoms) for atoms in structures if all(atoms.pbc)]
    nearest = [_shortest_distance(atoms, recipe.student.cutoff) for atoms in structures]
    a, b, c = structures[0].pbc
    return Domain(
        elements=tuple(sorted({symbol for atoms in structures for symbol in atoms.get_chemical_symbols()})),
        pbc=(bool(a), bool(b), bool(c)),
        min_distance_A=round(_CLOSER * min(nearest), 3),
        volume_per_atom_A3=(round(min(volumes) * (1 - _MARGIN), 3), round(max(volumes) * (1 + _MARGIN), 3))
        if volumes
        else None,
        max_atoms_trained=max(len(atoms) for atoms in structures),
        charge=_charge(recipe),
        description=recipe.purpose,
    )


def _charge(recipe: Recipe) -> int | None:
    """That of the structures as they were learned, e: to teachers all are neutral, in data sets they may be charged."""
    if not any(loss_from(recipe.loss, part) == "dataset" for part in ("energy", "force", "stress")):
        return 0
    groups = [group for group in recipe.structures.groups if group.split == "train"]
    subsets = recipe.structures.subsets
    found = {subsets[group.subset].filters.charge if group.kind == "subset" else None for group in groups}
    return found.pop() if len(found) == 1 else None


def make_probe(student: Student, teacher: Teacher, samples: Samples) -> Probe:
    """The first structure of each split, with what teacher and student say of it; three, where one split has labels.

    Labels without Hessian products are made up for: the teacher is asked for one of each. A teacher that gives no
    energies has zeros there.
    """
    firsts = _probed(samples)
    structures = [atoms for atoms, _ in firsts]
    count = min(_PROBES, *(len(label.probes) for _, label in firsts))
    if count == 0:
        generator = torch.Generator().manual_seed(0)
        shapes = [(1, len(atoms), 3) for atoms in structures]
        vectors = [2.0 * torch.randint(0, 2, shape, generator=generator).double() - 1 for shape in shapes]
        told = probe_predictions(teacher.potential, structures, vectors)
    else:
        vectors = [label.probes[:count].double() for _, label in firsts]
        told = [_first_products(label.prediction(), count) for _, label in firsts]
    return Probe(
        structures=structures,
        vectors=vectors,
        engine=probe_predictions(student, structures, vectors),
        teacher=[replace(one, energy=one.energy.nan_to_num()) for one in told],
    )


def _probed(samples: Samples) -> list[tuple[Atoms, Label]]:
    known = [(structures, labels) for structures, labels in samples.values() if labels is not None]
    if len(known) > 1:
        return [(structures[0], next(iter(labels))) for structures, labels in known]
    ((structures, labels),) = known
    places = {0, len(labels) // 2, len(labels) - 1}
    return [(structures[place], label) for place, label in enumerate(labels) if place in places]


def _first_products(prediction: Prediction, count: int) -> Prediction:
    assert prediction.hessian_products is not None  # a label has them, be they none
    return replace(prediction, hessian_products=prediction.hessian_products[:count])


def make_config(recipe: Recipe, student: Student, teacher: Teacher, samples: Samples, steps: int) -> ArtifactConfig:
    """``config.json`` of a student that took so many steps."""
    lock = recipe.lock
    if lock is None:
        raise ConfigError("only a locked recipe is packaged; zoo distill locks it")
    return ArtifactConfig(
        name=recipe.name,
        licence=recipe.licence,
        architecture=recipe.student,
        domain=make_domain(recipe, samples["train"][0]),
        lineage=_lineage(recipe, lock, teacher, steps),
        dtype=recipe.training.dtype,
        parameters=count_parameters(student),
    )


def snippet(recipe: Recipe, example: Atoms) -> str:
    """What a user types first, in a folder that holds a hub. ``example`` is a structure of the domain."""
    imports, atoms, move = _example_lines(recipe, example)
    modes = 'print(f"highest mode  {engine.vibrations(atoms).frequencies_THz.max():.2f} THz")\n'
    return (
        f"{imports}import zoo\n\n"
        f'engine = zoo.load("{recipe.name}", hub="./hub")\n'
        f"{atoms}\n"
        "atoms.calc = engine.calculator()\n"
        'print(f"energy        {atoms.get_potential_energy():.4f} eV")\n'
        f"{'' if recipe.student.architecture in HEAVY else modes}\n"
        f"atoms.rattle({move:g}, seed=0)\n"
        'print(f"force         {abs(atoms.get_forces()).max():.3f} eV/Å at most, rattled")\n'
    )


def _example_lines(recipe: Recipe, example: Atoms) -> tuple[str, str, float]:
    """What to import, how to make atoms, and how far they are moved then (Å): not out of a narrow domain."""
    crystal = recipe.structures.crystal
    if crystal is not None:
        made = f'atoms = bulk("{crystal.formula}", "{crystal.prototype}", a={crystal.lattice_constant}, cubic=True)'
        return "from ase.build import bulk\n", made, 0.05
    if any(example.pbc) or len(example) > _SPELLED_OUT:
        return "", "atoms = engine.probe.structures[0].copy()  # one that it was trained on", 0.01
    rows = "\n".join(f"    [{x:.3f}, {y:.3f}, {z:.3f}]," for x, y, z in example.positions)
    return "from ase import Atoms\n", f'atoms = Atoms("{example.symbols}", positions=[\n{rows}\n])', 0.01


def run_snippet(code: str, model: Path, folder: Path) -> str:
    """What the snippet prints in a fresh Python, in a folder with a hub that holds the engine.

    Raises ConfigError where it fails.
    """
    publish(model, hub=folder / "hub")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONIOENCODING": "utf-8", "PYTHONPATH": str(Path(zoo.__file__).parent.parent)},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise ConfigError(f"the card's snippet failed: {' '.join(last)}; correct it in zoo/package.py")
    return done.stdout


def _steps_taken(folder: Path) -> int:
    """Of all rounds of a finished training, whose last record is of its last step."""
    steps: int = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    return steps


def _lineage(recipe: Recipe, lock: Lock, teacher: Teacher, steps: int) -> Lineage:
    data = data_terms(recipe)
    return Lineage(
        recipe_sha256=recipe.digest,
        structures_sha256=lock.structures_sha256,
        labels_sha256=lock.labels_sha256,
        teacher=teacher.name,
        teacher_weights_sha256=teacher.weights_sha256,
        teacher_licence_weights=teacher.licence_weights,
        teacher_terms=text_to_repeat([Source("teacher", teacher.name, teacher.licence_weights), *data]),
        data=tuple(DataSource(name=one.name, licence=one.licence) for one in data),
        level_of_theory=teacher.level_of_theory if recipe.distils else _level_of_data(recipe),
        seed=recipe.seed,
        steps=steps,
        code_version=__version__,
    )


def _level_of_data(recipe: Recipe) -> str:
    """That of the data sets to train on, where they are sources of zoo; of other files it is that of their labels."""
    subsets, found = recipe.structures.subsets, []
    for group in recipe.structures.groups:
        if group.split == "train":
            source = subsets[group.subset].source if group.kind == "subset" else None
            found.append("that of the frames' labels" if source is None else get_source(source).level_of_theory)
    return listed(list(dict.fromkeys(found)))


def _shortest_distance(atoms: Atoms, cutoff: float) -> float:
    lengths = np.linalg.norm(build_graph(atoms, cutoff).edge_vectors().numpy(), axis=1)
    return float(lengths.min()) if len(lengths) else cutoff
