"""A calculator of ASE as a teacher: who it is, how it fails, its labels, and the whole chain from Python."""

import importlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator, SCFError, all_changes
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from safetensors import safe_open

import zoo
import zoo.distill.label as label_module
from recipes import tiny_data
from zoo.chain import run_recipe
from zoo.config import digest, parse, read_json
from zoo.data.labels import LabelPlan, Labels, read_plan
from zoo.distill.label import label_plan, label_structures, take_over_step
from zoo.errors import (
    CapabilityError,
    ConfigError,
    DivergedError,
    LabelError,
    LicenceError,
    UnknownNameError,
    ZooWarning,
)
from zoo.evaluate.prose import conditions
from zoo.evaluate.report import Report
from zoo.pipeline import evaluate, make_labels
from zoo.recipe import LabelsSection, Recipe, to_yaml
from zoo.run import Run
from zoo.teachers import Teacher, load_teacher

NAME = "own/copper-teacher"
ROOT = Path(__file__).parent.parent


class Copper(EMT):
    """ASE's effective medium theory without its memory: the list of neighbours, kept, decides the order of sums."""

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, all_changes)


def copper(calculator: Any = None, **changes: Any) -> Teacher:
    facts: dict[str, Any] = {
        "name": NAME,
        "elements": ("Cu",),
        "level_of_theory": "effective medium theory",
        "licence": "MIT",
    }
    return zoo.teacher_from(Copper() if calculator is None else calculator, **(facts | changes))


def copper_data(**changes: Any) -> dict[str, Any]:
    """The tiny recipe, of copper, for a teacher of one's own."""
    own = {
        "name": "emt/copper-student",
        "purpose": "A few cells of copper, for the tests of zoo.",
        "subset": "copper",
        "licence": "MIT",
        "teacher": {"name": NAME, "dtype": "float64"},
        "structures__crystal": {"formula": "Cu", "prototype": "fcc", "lattice_constant": 3.6},
        "student__elements": ["Cu"],
        "training__steps": 20,
        "evaluation__dynamics_steps": 20,
        "evaluation__teacher_dynamics_steps": 20,
    }
    return tiny_data(**(own | changes))


def copper_recipe(**changes: Any) -> Recipe:
    return parse(Recipe, copper_data(**changes), "the recipe of copper")


def cells(count: int) -> list[Atoms]:
    found = []
    for seed in range(count):
        atoms = bulk("Cu", cubic=True) * ((1, 1, 2) if seed % 2 else (1, 1, 1))
        atoms.rattle(0.03, seed=seed)
        found.append(atoms)
    return found


def plan_of(structures: Sequence[Atoms], teacher: Teacher, **section: Any) -> LabelPlan:
    return label_plan(structures, teacher, LabelsSection(**({"shard_size": 2} | section)), 7, "float64")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# --- who it is ---------------------------------------------------------------------------------------------


def test_a_calculator_is_a_teacher_with_all_that_is_said_of_it() -> None:
    teacher = copper(EMT(), citation="someone, somewhere")
    assert (teacher.name, teacher.level_of_theory, teacher.citation) == (
        NAME,
        "effective medium theory",
        "someone, somewhere",
    )
    assert teacher.licence_code == teacher.licence_weights == "MIT"
    assert teacher.package.startswith("ase ")
    assert not teacher.batched
    assert teacher.potential.elements == (29,)
    assert teacher.potential.traits.stress
    assert teacher.potential.traits.atomic_energies
    assert teacher.potential.dtype == torch.float64


def test_elements_are_each_taken_once_in_their_order() -> None:
    assert copper(elements=["Au", "Cu", "Au"]).potential.elements == (29, 79)


def test_the_digest_tells_calculators_apart_that_differ_in_what_can_be_seen() -> None:
    digests = [
        copper().weights_sha256,
        copper(LennardJones(epsilon=0.1)).weights_sha256,
        copper(LennardJones(epsilon=0.2)).weights_sha256,
        copper(step=0.01).weights_sha256,
        copper(digest="ab" * 32).weights_sha256,
    ]
    assert len(set(digests)) == len(digests)
    assert digests[-1] == "ab" * 32
    assert copper(LennardJones(epsilon=0.1)).weights_sha256 == digests[1]


class _WithoutParameters(Copper):
    """As many wrappers of networks are: what tells one from another is a file."""

    default_parameters: ClassVar[dict[str, Any]] = {}


@pytest.mark.parametrize(
    ("calculator", "words"),
    [
        (_WithoutParameters(), "is _WithoutParameters, which has no parameters: one cannot be told from another"),
        (
            Copper(asap_cutoff=Path("a")),
            r"is Copper, which has pathlib\.\w+ among its parameters, of which no text is known: one cannot",
        ),
    ],
)
def test_a_calculator_that_cannot_be_told_from_others_needs_a_digest(calculator: Calculator, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"own/copper-teacher {words}.*; give digest=, as hashlib\.sha256\("):
        copper(calculator)
    assert copper(calculator, digest="ab" * 32).weights_sha256 == "ab" * 32


class _ForcesMissing(Calculator):
    implemented_properties: ClassVar[list[str]] = ["energy"]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"name": "my-teacher"}, ConfigError, "name 'my-teacher' is no name .* expected own/engine"),
        ({"name": "sevennet-0/teacher"}, ConfigError, "expected own/engine"),
        ({"licence": "mine"}, ConfigError, "licence 'mine' of own/copper-teacher is unknown; known are CC0"),
        ({"elements": ("Cu", "Xy")}, ConfigError, "has 'Xy' among its elements, which is none; expected symbols"),
        ({"elements": ()}, ConfigError, "has no elements; expected symbols"),
        ({"digest": "abc"}, ConfigError, "digest 'abc' of own/copper-teacher is no SHA-256; expected 64 of 0 to 9"),
        ({"digest": "AB" * 32}, ConfigError, "expected 64 of 0 to 9 and a to f, as hashlib.sha256"),
        ({"digest": ""}, ConfigError, "is no SHA-256"),
        ({"step": 2.0}, ConfigError, r"step 2.0 .* expected 0 < step < 1, such as 0.01"),
        ({"calculator": _ForcesMissing()}, CapabilityError, "_ForcesMissing, which gives no forces; expected"),
        ({"calculator": Copper}, CapabilityError, r"the class Copper, expected a calculator; give .*: Copper\(\)$"),
        ({"calculator": 5}, CapabilityError, "is int, no calculator of ASE; expected one, as in atoms.calc"),
    ],
)
def test_what_cannot_be_a_teacher_is_refused(changes: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        copper(**changes)


# --- how it answers ----------------------------------------------------------------------------------------


class _Moody(Copper):
    """Forces that remember what was asked before, as from an old wave function; or that are not there at all."""

    def __init__(self, memory: float = 0.0, fails: Callable[[Atoms], bool] = lambda atoms: False) -> None:
        super().__init__()
        self.memory, self.fails = memory, fails
        self.before = 0.0

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        if self.fails(self.atoms):
            raise SCFError("no convergence\nafter 99 steps")
        self.results["forces"] = self.results["forces"] + self.memory * self.before
        self.before = float(np.sin(1e3 * self.atoms.positions.sum() + len(self.atoms)))


def test_a_calculator_that_remembers_is_found_out() -> None:
    structures = cells(2)
    with pytest.warns(
        ZooWarning, match=r"asked twice about Cu8.* differ by \d.\de-0\d eV/Å .*start each structure afr"
    ):
        plan_of(structures, copper(_Remembers()))


class _Remembers(Copper):
    """The last structure's number of atoms has a say in the forces."""

    before: float = 0.0

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        self.results["forces"] = self.results["forces"] + 1e-3 * self.before
        self.before = float(len(self.atoms) == 4)


def test_a_calculator_that_forgets_is_not_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan_of(cells(2), copper())
        plan_of(cells(2), copper(_Random(1e-4)))


class _Random(Copper):
    """Other noise at each call, even for the same structure: that is noise, and no memory."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.noise, self.random = noise, np.random.default_rng(0)

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        self.results["forces"] = self.results["forces"] + self.noise * self.random.normal(size=(len(self.atoms), 3))


def test_an_element_that_it_was_not_said_to_know_is_named(tmp_path: Path) -> None:
    structures = [*cells(3), bulk("Au", cubic=True)]
    teacher = copper()
    with pytest.raises(
        zoo.DomainError, match=r"structure 3 of Au4 \(Au4\) has Au, which own/copper-teacher does not kn"
    ):
        label_structures(tmp_path, structures, teacher, plan_of(structures, teacher))
    assert not list(tmp_path.iterdir()), "it is said before any is labelled"


def test_a_calculator_that_fails_is_one_sentence_and_what_was_labelled_is_kept(tmp_path: Path) -> None:
    structures = cells(5)
    fails = [structures[3]]

    def failing(atoms: Atoms) -> bool:
        return any(len(one) == len(atoms) and np.allclose(one.positions, atoms.positions, atol=1e-3) for one in fails)

    teacher = copper(_Moody(fails=failing))
    plan = plan_of(structures, teacher)
    with pytest.raises(DivergedError) as caught:
        label_structures(tmp_path, structures, teacher, plan)
    told = str(caught.value)
    assert told.startswith(
        "structure 3 of Cu8: own/copper-teacher fails for Cu8 (SCFError: no convergence after 99 ste"
    )
    assert told.endswith(f"2 of 5 structures are labelled and kept in {tmp_path}, where the same command goes on")
    assert "\n" not in told
    fails.clear()
    before = (tmp_path / "shard-00000.safetensors").stat().st_mtime_ns
    labels = label_structures(tmp_path, structures, teacher, plan_of(structures, teacher))
    assert len(labels) == 5
    assert (tmp_path / "shard-00000.safetensors").stat().st_mtime_ns == before


def test_a_failure_while_the_step_is_measured_names_the_structure() -> None:
    with pytest.raises(DivergedError, match=r"^structure 1 of Cu8: own/copper-teacher fails for Cu8 \(SCFError"):
        plan_of(cells(3), copper(_Moody(fails=lambda atoms: True)))


# --- its labels --------------------------------------------------------------------------------------------


def test_the_step_and_the_error_of_each_structure_are_kept_with_the_labels(tmp_path: Path) -> None:
    structures = cells(6)
    teacher = copper(_Random(1e-4))
    plan = plan_of(structures, teacher, probes_per_structure=3)
    assert plan.differences is not None
    assert plan.differences.noise_eV_A == pytest.approx(1e-4, rel=0.5)
    labels = label_structures(tmp_path, structures, teacher, plan)
    exact = label_structures(
        tmp_path / "exact",
        structures,
        copper(step=1e-3),
        plan_of(structures, copper(step=1e-3), probes_per_structure=3),
    )
    stated, true = [], []
    for label, reference in zip(labels, exact, strict=True):
        assert label.hessian_error.shape == ()
        assert label.hessian_error.dtype == torch.float64
        stated.append(float(label.hessian_error))
        true.append(float((label.hessian_products - reference.hessian_products).square().mean().sqrt()))
        assert true[-1] / 5 < stated[-1] < 5 * true[-1]
    assert np.sqrt(np.mean(np.square(stated))) == pytest.approx(np.sqrt(np.mean(np.square(true))), rel=0.4)
    size, error = labels.products_and_errors()
    sizes = [label.hessian_products.numel() for label in labels]
    assert error == pytest.approx(np.sqrt(np.average(np.square(stated), weights=sizes)))
    assert 0 < error < 0.05 * size


def test_one_product_in_eight_is_asked_for_once_more_for_the_error(tmp_path: Path) -> None:
    structures, calls = cells(8), [0]

    class Counted(Copper):
        def calculate(self, *given: Any, **more: Any) -> None:
            calls[0] += 1
            super().calculate(*given, **more)

    teacher = copper(Counted())
    plan = plan_of(structures, teacher, shard_size=8)
    calls[0] = 0
    label_structures(tmp_path, structures, teacher, plan)
    assert calls[0] == 8 * (1 + 2 * 2) + 2 * 2


def test_a_step_is_not_taken_over_from_labels_of_another_teacher(tmp_path: Path) -> None:
    structures, teacher = cells(2), copper()
    label_structures(tmp_path, structures, teacher, plan_of(structures, teacher))
    for other in (copper(digest="ab" * 32), copper(name="own/other", digest=teacher.weights_sha256)):
        take_over_step(other, [tmp_path])
        assert other.potential.differences is None
    take_over_step(teacher, [])
    assert teacher.potential.differences is None


def test_plans_of_other_teachers_have_the_digest_they_had_before_errors_were_kept() -> None:
    """Or labels that were made, and the locks of recipes, would hold no longer."""
    plan = LabelPlan(
        teacher="stillinger-weber/teacher",
        weights_sha256="0" * 64,
        package="zoo",
        level_of_theory="empirical",
        dtype="float64",
        probes="rademacher",
        probes_per_structure=2,
        side="rows",
        extras=("features",),
        seed=7,
        shard_size=8,
        structures=("a", "b"),
    )
    assert digest(plan) == "b56fc4681c72a16127a9ccc94436cf978e4c455f0d3bd2b41fae9cf0e641cc32"


def test_labels_of_other_teachers_have_no_error(tmp_path: Path) -> None:
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=1)
    teacher = load_teacher("stillinger-weber/teacher", dtype=torch.float64)
    plan = label_plan([atoms], teacher, LabelsSection(), 7, "float64")
    labels = label_structures(tmp_path, [atoms], teacher, plan)
    with safe_open(tmp_path / "shard-00000.safetensors", framework="pt") as arrays:
        assert "hessian_error" not in set(arrays.keys())
    assert "differences" not in json.loads((tmp_path / "plan.json").read_text())
    assert next(iter(labels)).hessian_error is None
    assert labels.products_and_errors() is None
    assert read_plan(tmp_path) == plan


def test_without_products_nothing_is_measured(tmp_path: Path) -> None:
    teacher = copper()
    plan = plan_of(cells(2), teacher, probes="none")
    assert plan.differences is None
    (first, _) = label_structures(tmp_path, cells(2), teacher, plan)
    assert first.hessian_error is None


def test_labels_that_were_stopped_go_on_with_the_step_they_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    structures = cells(5)
    whole = label_structures(tmp_path / "whole", structures, copper(), plan_of(structures, copper())).folder
    write = label_module.write_shard
    for shards in range(3):
        folder, teacher, left = tmp_path / str(shards), copper(), [shards]
        plan = plan_of(structures, teacher)

        def stops(*given: Any, _left: list[int] = left) -> None:
            if _left[0] == 0:
                raise KeyboardInterrupt
            _left[0] -= 1
            write(*given)

        monkeypatch.setattr(label_module, "write_shard", stops)
        with pytest.raises(KeyboardInterrupt):
            label_structures(folder, structures, teacher, plan)
        monkeypatch.setattr(label_module, "write_shard", write)
        again = copper()
        take_over_step(again, [tmp_path / "nothing", folder])
        assert again.potential.differences == plan.differences
        label_structures(folder, structures, again, plan_of(structures, again))
        assert content(folder) == content(whole)


def test_another_step_than_that_of_the_labels_is_refused(tmp_path: Path) -> None:
    structures = cells(2)
    teacher, other = copper(digest="cd" * 32), copper(digest="cd" * 32, step=0.02)
    label_structures(tmp_path, structures, teacher, plan_of(structures, teacher))
    take_over_step(other, [tmp_path])
    with pytest.raises(LabelError, match=r"holds labels of differences .*'step_A': 0.0001.*, not .*'step_A': 0.02"):
        label_structures(tmp_path, structures, other, plan_of(structures, other))


def test_a_batch_of_structures_is_labelled_as_each_alone(tmp_path: Path) -> None:
    structures = [bulk("Si", cubic=True) * (1, 1, number) for number in (1, 2, 1, 3)]
    for seed, atoms in enumerate(structures):
        atoms.rattle(0.05, seed=seed)
    teacher = load_teacher("stillinger-weber/teacher", dtype=torch.float64)
    calls: list[int] = []
    predict = teacher.potential.predict

    def counted(graph: Any, **asked: Any) -> Any:
        calls.append(graph.num_structures)
        return predict(graph, **asked)

    for probes in ("rademacher", "dense", "none"):
        plan = label_plan(structures, teacher, LabelsSection(probes=probes, extras=("atomic_energies",)), 7, "float64")
        alone = label_structures(tmp_path / f"{probes}-alone", structures, teacher, plan)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(teacher.potential, "predict", counted)
            together = label_structures(tmp_path / probes, structures, teacher, plan, batched=True)
        for one, other in zip(alone, together, strict=True):
            for ours, theirs in zip(vars(one).values(), vars(other).values(), strict=True):
                assert (ours is None and theirs is None) or torch.allclose(ours, theirs, rtol=1e-10, atol=1e-10)
    assert max(calls) > 1


# --- the whole chain ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of copper."""
    pytest.importorskip("phonopy", reason="evaluation needs the extra train")
    folder = tmp_path_factory.mktemp("copper") / "run"
    model = zoo.run_recipe(copper_recipe(), teacher=copper(), folder=folder)
    assert model == folder / "model"
    return folder


def test_a_calculator_teaches_a_student_from_structures_to_a_model_folder(finished: Path) -> None:
    engine = zoo.load(finished / "model")
    atoms = bulk("Cu", cubic=True)
    atoms.calc = engine.calculator()
    assert np.isfinite(atoms.get_potential_energy())
    config = json.loads((finished / "model" / "config.json").read_text())
    assert config["lineage"]["teacher"] == NAME
    assert config["lineage"]["level_of_theory"] == "effective medium theory"
    labels = Labels.open(finished / "labels" / "test", read_plan(finished / "labels" / "test").structures)
    report = read_json(Report, finished / "evaluation" / "report.json")
    assert report.settings.accuracy.label_error_eV_A2 == pytest.approx(labels.products_and_errors()[1])
    assert any("differences of its forces, with an error of about" in line for line in conditions(report))
    assert "differences of its forces" in (finished / "model" / "README.md").read_text()
    steps = [read_plan(finished / "labels" / split).differences for split in ("train", "validation", "test")]
    assert steps[0] is not None
    assert steps == [steps[0]] * 3
    assert Run.of(copper_recipe(), finished, teacher=copper()).teacher.potential.differences == steps[0]


def test_a_finished_run_is_reused_and_another_calculator_is_refused(finished: Path) -> None:
    before = content(finished / "labels" / "train")
    zoo.run_recipe(copper_recipe(), teacher=copper(), folder=finished)
    assert content(finished / "labels" / "train") == before
    other = replace(copper(), weights_sha256="ab" * 32)
    with pytest.raises(ConfigError, match=r"or other inputs; pass --replace \(in Python replace=True\) .*folder=DIR"):
        zoo.run_recipe(copper_recipe(), teacher=other, folder=finished)


def test_a_finished_run_is_read_without_its_teacher(finished: Path) -> None:
    assert evaluate(Run.of(copper_recipe(), finished)) == read_json(Report, finished / "evaluation" / "report.json")


def test_a_killed_run_goes_on_to_the_same_labels(finished: Path, tmp_path: Path) -> None:
    program = f"""
import os, sys
sys.path.insert(0, {str(ROOT / "tests")!r})
import test_own_calculator as own
import zoo.distill.label as label
write, left = label.write_shard, [2]
def dies(*given):
    if left[0] == 0:
        os.kill(os.getpid(), 9)
    left[0] -= 1
    write(*given)
label.write_shard = dies
own.make_labels(own.Run.of(own.copper_recipe(), own.Path(sys.argv[1]), teacher=own.copper()))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "run"], env=environment, check=False)
    assert done.returncode == -9
    assert not (tmp_path / "run" / "labels" / "train" / "manifest.json").exists()
    assert len(list((tmp_path / "run" / "labels" / "train").glob("shard-*"))) == 2
    make_labels(Run.of(copper_recipe(), tmp_path / "run", teacher=copper()))
    for split in ("train", "validation", "test"):
        assert content(tmp_path / "run" / "labels" / split) == content(finished / "labels" / split)


def test_without_the_calculator_the_message_says_what_to_write_in_python(tmp_path: Path) -> None:
    with pytest.raises(
        UnknownNameError, match=r"zoo\.run_recipe\(RECIPE, teacher=zoo\.teacher_from\(CALCULATOR, name='own/"
    ):
        zoo.run_recipe(copper_recipe(), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists(), "it is said before any work is done"


def test_a_teacher_of_another_name_than_the_recipe_s_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="handed over is own/other, the recipe names own/copper-teacher; hand over"):
        zoo.run_recipe(copper_recipe(), teacher=copper(name="own/other"), folder=tmp_path)


def test_a_teacher_that_the_lock_does_not_mean_is_refused(finished: Path, tmp_path: Path) -> None:
    recipe = finished / "model" / "recipe.yaml"
    with pytest.raises(
        LabelError, match=r"locked to weights .* of own/copper-teacher, those handed over are abababababab"
    ):
        zoo.run_recipe(recipe, teacher=copper(digest="ab" * 32), folder=tmp_path)


def test_the_licence_of_the_calculator_is_held_against_the_student_s(tmp_path: Path) -> None:
    with pytest.raises(LicenceError, match="own/copper-teacher"):
        zoo.run_recipe(copper_recipe(), teacher=copper(licence="CC-BY-NC-4.0"), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists(), "it is said before any work is done"


def test_the_function_that_carries_out_a_recipe_has_no_name_of_a_package() -> None:
    assert zoo.run_recipe is run_recipe
    assert not callable(importlib.import_module("zoo.distill"))
    assert {"run_recipe", "teacher_from"} <= set(zoo.__all__)
    assert "distill" not in zoo.__all__
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        _ = zoo.distil


def test_an_engine_at_work_imports_nothing_of_training() -> None:
    program = "import sys, zoo; sys.exit(sum(name.startswith(('zoo.distill', 'zoo.pipeline')) for name in sys.modules))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == 0


def test_a_teacher_that_is_handed_over_stays_as_it_is(tmp_path: Path) -> None:
    teacher = copper()
    run = Run.of(copper_recipe(teacher__dtype="float32"), tmp_path / "run", teacher=teacher)
    make_labels(run)
    assert run.teacher.potential.dtype == torch.float32
    assert run.teacher.potential.differences is not None
    assert teacher.potential.dtype == torch.float64
    assert teacher.potential.differences is None


def test_a_recipe_by_its_path_is_carried_out_too(tmp_path: Path) -> None:
    path = tmp_path / "copper.yaml"
    path.write_text(to_yaml(copper_recipe()))
    with pytest.raises(ConfigError, match="hand over that one"):
        zoo.run_recipe(str(path), teacher=copper(name="own/other"), folder=tmp_path / "run")
