"""The card of an engine: README.md of its model folder, from what was measured and what its recipe says.

The front matter is what the Hub reads (https://huggingface.co/docs/hub/model-cards); under ``zoo`` it holds
what a program needs to know of the engine without fetching its weights. The prose is in ``cards/_templates``:
``student.md`` for those that learned from a teacher, ``from-data.md`` for those that learned from a data set alone.
Nothing here asks a network.
"""

import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any, Literal

import yaml
from ase.data import chemical_symbols

from zoo.artifact import MODEL, PROBE, ArtifactConfig
from zoo.config import parse
from zoo.data.sources import get_source
from zoo.data.subsets import data_terms, public_name
from zoo.errors import LicenceError
from zoo.evaluate.prose import (
    comparison,
    conditions,
    domain_table,
    dynamics_limit,
    markdown_table,
    novelty,
    speed,
    teacher_errors,
    verdict,
)
from zoo.evaluate.report import Report, gaps, listed
from zoo.hub.card_data import ZooBlock
from zoo.hub.catalogue import entries
from zoo.licences import CODE_LICENCE, LICENCES, TERMS, Terms, unstated
from zoo.recipe import Recipe, Term, loss_from

WIDTH = 100  # columns that prose is filled to
TAGS = ("chemistry", "materials-science", "mlip", "interatomic-potential", "molecular-dynamics")
DISTILLED_TAGS = ("distillation", "knowledge-distillation", "hessian-distillation")
FINE_TUNED_TAG = "fine-tuning"
CAPTIONS = {
    "force_parity": "Forces of the test set, engine against ${reference}, each component a point.",
    "phonon_bands": "Phonon bands of the student over those of its teacher.",
    "energy_drift": "Total energy in molecular dynamics at constant energy.",
    "training": "Error on the validation set while training.",
}
_METRICS = {  # keys of Figures that the Hub lists: the slug of the metric, and its name with the unit
    "energy_mae_meV_atom": ("energy_mae", "Energy MAE (meV/atom)"),
    "force_mae_meV_A": ("forces_mae", "Force MAE (meV/Å)"),
    "stress_mae_GPa": ("stress_mae", "Stress MAE (GPa)"),
    "hessian_mae_eV_A2": ("hessian_mae", "Hessian product MAE (eV/Å²)"),
    "mode_mae_THz": ("vibration_mae", "Vibration frequency MAE (THz)"),
    "phonon_mae_THz": ("frequency_mae", "Phonon frequency MAE (THz)"),
    "drift_meV_atom_ps": ("nve_drift", "NVE energy drift (meV/atom/ps)"),
}
_DATASET_METRICS = {  # likewise, of an engine that learned from a data set
    "dataset_energy_mae_meV_atom": ("energy_mae", "Energy MAE, less the mean of each composition (meV/atom)"),
    "dataset_force_mae_meV_A": _METRICS["force_mae_meV_A"],
    "drift_meV_atom_ps": _METRICS["drift_meV_atom_ps"],
}
_TERMS: dict[Term, str] = {
    "energy": "energy",
    "force": "forces",
    "stress": "stress",
    "teacher_force": "forces of the teacher",
    "gradient": "gradient of the energy",
    "hessian": "Hessian",
    "atomic_energy": "atomic energies",
    "feature": "node features",
}
_PARTS: tuple[Literal["energy", "force", "stress"], ...] = ("energy", "force", "stress")
_DISTILLED: dict[Term, str] = {  # what only a teacher can give, and a twin goes without
    "hessian": "Hessians",
    "teacher_force": "forces",
    "atomic_energy": "atomic energies",
    "feature": "node features",
}
_FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class CardContext:
    """All that a card says."""

    report: Report
    config: ArtifactConfig
    recipe: Recipe
    weights_sha256: str  # of model.safetensors
    snippet: str  # Python, that was run as it stands
    snippet_output: str  # what it printed
    figures: tuple[str, ...]  # paths in the model folder, figures/*.png
    teacher_citation: str


def render_card(context: CardContext) -> str:
    """The card as Markdown. Raises LicenceError for a licence that zoo does not know, ConfigError for text that a
    program could not read."""
    template = Template(template_path(template_of(context.recipe)).read_text(encoding="utf-8"))
    body = template.substitute(
        _facts(context),
        snippet=context.snippet.strip(),
        snippet_output=context.snippet_output.strip(),
        domain=domain_table(context.config.domain, context.report),
        novelty=novelty(context.report),
        verdict=verdict(context.report),
        table=comparison(context.report),
        gaps=_items(f"{gap[0].upper()}{gap[1:]}." for gap in gaps(context.report)),
        conditions=_items(conditions(context.report)),
        figures="\n\n".join(_figure(path, context.recipe) for path in context.figures),
        lineage=_lineage(context),
        licence=_licence(context),
    )
    return _front_matter(context) + _filled(body)


def template_of(recipe: Recipe) -> str:
    """Which template an engine's card is made from."""
    return "student" if recipe.distils else "from-data"


def template_path(kind: str) -> Path:
    """A template of an installed wheel, or of the repository."""
    packaged = Path(__file__).parent / "_cards"
    folder = packaged if packaged.is_dir() else Path(__file__).parent.parent / "cards"
    return folder / "_templates" / f"{kind}.md"


def _front_matter(context: CardContext) -> str:
    config, recipe, block = context.config, context.recipe, _zoo_block(context)
    family = config.lineage.teacher.split("/")[0]
    teacher = entries().get(config.lineage.teacher)
    data: dict[str, Any] = {
        "library_name": "zoo",
        "pipeline_tag": "graph-ml",
        **_terms(config.licence).card_keys,
        "tags": [*TAGS, *_ways(recipe), "ase", f"teacher:{family}", f"subset:{recipe.subset}"],
    }
    if teacher is not None and teacher.base_model and (recipe.distils or _fine_tuned(recipe)):
        data["base_model"] = teacher.base_model
        if _fine_tuned(recipe):
            data["base_model_relation"] = "finetune"
    if config.lineage.teacher_terms:
        data["extra_gated_prompt"] = config.lineage.teacher_terms
    if results := _results(context):
        data |= {"metrics": ["mae"], "model-index": [{"name": config.name, "results": results}]}
    data["zoo"] = block.model_dump(mode="json", by_alias=True)
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=WIDTH)
    return f"---\n{text}---\n\n"


def _ways(recipe: Recipe) -> tuple[str, ...]:
    """The tags for how an engine learned."""
    return (*(DISTILLED_TAGS if recipe.distils else ()), *((FINE_TUNED_TAG,) if _fine_tuned(recipe) else ()))


def _fine_tuned(recipe: Recipe) -> bool:
    return recipe.training.start == "teacher"


def _terms(licence: str) -> Terms:
    if licence not in TERMS:
        raise LicenceError(f"zoo does not know the licence {licence!r}; it knows {', '.join(LICENCES)}")
    return TERMS[licence]


def _results(context: CardContext) -> list[dict[str, Any]]:
    """The student's figures as the Hub's model index takes them; what was not measured is left out."""
    recipe, lineage = context.recipe, context.config.lineage
    listed_metrics = _METRICS if recipe.distils else _DATASET_METRICS
    values = {key: getattr(context.report.student, key) for key in listed_metrics}
    metrics = [
        {"type": slug, "name": name, "value": float(values[key])}
        for key, (slug, name) in listed_metrics.items()
        if values[key] is not None
    ]
    dataset = {
        "type": recipe.subset,
        "name": f"{recipe.subset}, {f'labelled by {lineage.teacher}' if recipe.distils else 'with its own labels'}",
        "split": "test",
        "revision": lineage.structures_sha256,
    }
    task = {"type": "graph-ml", "name": "Interatomic potential"}
    return [{"task": task, "dataset": dataset, "metrics": metrics}] if metrics else []


def _zoo_block(context: CardContext) -> ZooBlock:
    config, lineage = context.config, context.config.lineage
    domain = config.domain.model_dump(mode="json")
    teacher = {
        "name": lineage.teacher,
        "weights_sha256": lineage.teacher_weights_sha256,
        "licence": lineage.teacher_licence_weights,
    }
    weights = {
        "file": MODEL,
        "sha256": context.weights_sha256,
        "dtype": config.dtype,
        "parameters": config.parameters,
    }
    data = {
        "schema": 1,
        "name": config.name,
        "purpose": _one_line(context.recipe.purpose),
        "subset": context.recipe.subset,
        "level_of_theory": lineage.level_of_theory,
        "licence_code": CODE_LICENCE,
        "licence_weights": config.licence,
        "elements": sorted(config.domain.elements, key=chemical_symbols.index),
        "teacher": teacher,
        "data": [source.model_dump(mode="json") for source in lineage.data],
        "recipe": {"sha256": lineage.recipe_sha256},
        "structures_sha256": lineage.structures_sha256,
        "labels_sha256": lineage.labels_sha256,
        "domain": domain | {"description": _one_line(config.domain.description)},
        "weights": weights,
        "probe": {"file": PROBE, "tolerance": config.probe_tolerance.model_dump(mode="json")},
        "metrics": _figures(context.report),
    }
    return parse(ZooBlock, data, "the card's block zoo")


def _figures(report: Report) -> dict[str, float]:
    """What was measured of the student."""
    figures: dict[str, float] = report.student.model_dump(exclude={"reasons"}, exclude_none=True)
    return figures | ({} if report.speedup is None else {"speedup": report.speedup})


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _facts(context: CardContext) -> dict[str, str]:
    """What the template's prose names."""
    config, recipe, report = context.config, context.recipe, context.report
    signals = [word for term, word in _DISTILLED.items() if term in recipe.loss.weights]
    return {
        "name": config.name,
        "purpose": recipe.purpose,
        "architecture": config.architecture.architecture,
        "cutoff": f"{config.architecture.cutoff:g}",
        "parameters": f"{config.parameters:,}",
        "distilled": f"distilled with the {listed(signals)} of its teacher" if signals else "trained on labels alone",
        "without": f"without {listed(signals)}" if signals else "in the same way",
        "elements": listed(list(config.domain.elements)),
        "domain_description": "" if config.domain.description == recipe.purpose else config.domain.description,
        "speed": speed(report),
        "dynamics_limit": dynamics_limit(report),
        "teacher": config.lineage.teacher,
        "teacher_citation": _cited("The teacher", context.teacher_citation),
        "teacher_errors": teacher_errors(report),
        "untested": "Surfaces, defects, liquids, other phases and other pressures"
        if any(config.domain.pbc)
        else "Other molecules, reactions, and molecules that meet others",
        "level_of_theory": config.lineage.level_of_theory,
        "training_structures": _training_structures(recipe),
        "labels": _labels(recipe),
        "sources": _sources(recipe),
        "files": _needs(recipe),
        "data_citations": _data_citations(recipe),
        "steps": f"{config.lineage.steps:,}",
        "batch": str(recipe.training.batch_size),
        "weights": listed([f"{weight:g} ({_TERMS[term]})" for term, weight in recipe.loss.weights.items()]),
        "code_version": config.lineage.code_version,
        "recipe_short": config.lineage.recipe_sha256[:12],
        **({} if recipe.distils else _facts_from_data(context)),
    }


def _facts_from_data(context: CardContext) -> dict[str, str]:
    """What the template for engines that learned from a data set alone names beside the others' facts."""
    recipe, teacher = context.recipe, context.config.lineage.teacher
    data, learned = _data_sets(recipe), listed([_TERMS[term] for term in _PARTS if loss_from(recipe.loss, term)])
    fine_tuned = _fine_tuned(recipe)
    part = "from whose weights it began" if fine_tuned else "with which it is compared"
    return {
        "data_sets": data,
        "learned": learned,
        "origin": f"{f'fine-tuned from `{teacher}`' if fine_tuned else 'trained'} on the {learned} of {data}",
        "speed": "" if fine_tuned else speed(context.report),  # that of the teacher, which has the same network
        "start": f"The network began with the weights of `{teacher}`, but for its heads, which are new."
        if fine_tuned
        else "The network began with random weights.",
        "teacher_part": part,
        "teacher_citation": _cited(f"The teacher, {part}", context.teacher_citation),
        "zero": "its data set" if recipe.loss.energy_from == "dataset" else "the teacher",
    }


def _data_sets(recipe: Recipe) -> str:
    """The data sets that structures are of, as far as the recipe names them."""
    names = sorted({one.name for one in data_terms(recipe)})
    return f"the data set{'s' if len(names) > 1 else ''} {listed(names)}" if names else "its data set"


def _training_structures(recipe: Recipe) -> str:
    """How many there are; all, where a group takes whatever its subset holds."""
    total = 0
    for group in recipe.structures.groups:
        if group.split == "train":
            if group.count is None:
                return "all"
            total += group.count * (group.copies if group.kind in ("frames", "subset") else 1)
    return str(total)


def _labels(recipe: Recipe) -> str:
    """What the teacher was asked of each structure."""
    section, many = recipe.labels, recipe.labels.probes_per_structure
    products = {
        "none": [],
        "dense": ["its whole Hessian"],
        "rows": [f"{many} rows of its Hessian each"],
    }.get(section.probes, [f"{many} products of its Hessian each ({section.probes} probes)"])
    extras = [extra.replace("_", " ") for extra in section.extras]
    stress = ["stress"] if recipe.loss.stress > 0 else []
    return listed(["energy", "forces", *stress, *extras, *products])


def _sources(recipe: Recipe) -> str:
    """What the student learned that is not the teacher's, and what it found by itself."""
    sentences = []
    if own := [_TERMS[term] for term in _PARTS if loss_from(recipe.loss, term) == "dataset"]:
        sentences.append(f"Of {listed(own)}, the labels of the data set were learned in the place of the teacher's.")
    if recipe.exploration is not None:
        rounds = recipe.exploration.rounds
        times_more = "once" if rounds == 1 else f"{rounds} times"
        sentences.append(
            f"The student then went looking for structures of its own, {times_more}, of which the teacher labelled up "
            f"to {recipe.exploration.budget}."
        )
    return "".join(f" {sentence}" for sentence in sentences)


def _files(recipe: Recipe) -> list[str]:
    """What structures were taken from; of a path on the machine of the author, the name alone."""
    files = {group.file for group in recipe.structures.groups if group.kind == "frames"}
    own = {subset.own.path for subset in recipe.structures.subsets.values() if subset.own is not None}
    return sorted({public_name(path) for path in files | own})


def _data_citations(recipe: Recipe) -> str:
    """A line for each data set of zoo that structures are of."""
    named = {subset.source for subset in recipe.structures.subsets.values() if subset.source is not None}
    return "".join(_cited(f"The data set {name}", get_source(name).citation) for name in sorted(named))


def _cited(what: str, citation: str) -> str:
    """A line that says how to cite it; none where nobody has said that."""
    return f"- {what}: {_one_line(citation)}\n" if citation.strip() else ""


def _needs(recipe: Recipe) -> str:
    """What must be there before the recipe can run, as the end of a sentence."""
    sources = sorted({subset.source for subset in recipe.structures.subsets.values() if subset.source is not None})
    parts = [f"{listed(_files(recipe))} in a folder that `ZOO_DATA` names"] if _files(recipe) else []
    parts += [f"the data that `zoo data fetch {source}` brings" for source in sources]
    return f", with {listed(parts)}" if parts else ""


def _figure(path: str, recipe: Recipe) -> str:
    stem = Path(path).stem
    caption = Template(CAPTIONS.get(stem, stem.replace("_", " ")))
    return f"![{caption.substitute(reference='teacher' if recipe.distils else 'data set')}]({path})"


def _lineage(context: CardContext) -> str:
    lineage = context.config.lineage
    seconds = context.report.training_seconds.get("student")
    rows = [
        ("SHA-256 of the recipe", f"`{lineage.recipe_sha256}`"),
        ("of the structures", f"`{lineage.structures_sha256}`"),
        ("of the labels", f"`{lineage.labels_sha256}`"),
        ("of the teacher's weights", f"`{lineage.teacher_weights_sha256}`"),
        ("of this engine's weights", f"`{context.weights_sha256}`"),
        ("seed", str(lineage.seed)),
        ("zoo", lineage.code_version),
        ("training", "not measured (its time was not recorded)" if seconds is None else f"{seconds:.0f} s"),
    ]
    return markdown_table(("lineage", ""), rows)


def _licence(context: CardContext) -> str:
    """Whose terms hold, each with a link to its text, and the text that must be repeated."""
    lineage = context.config.lineage
    teacher = f"those of its teacher, `{lineage.teacher}`, under {_licence_link(lineage.teacher_licence_weights)}"
    parts = [f"The weights are under {_licence_link(context.config.licence)}; {teacher}."]
    for source in lineage.sources:
        if source.what == "data":
            silent = unstated([source]).get(source.name)
            parts.append(f"The {silent or f'data set {source.name} is under {_licence_link(source.licence)}'}.")
    if not lineage.data:
        parts.append(_unstated_terms(context.recipe))
    sentences = " ".join([*parts, f"The code that runs it, zoo, is under {_licence_link(CODE_LICENCE)}."])
    if lineage.teacher_terms is None:
        return sentences
    return f"{sentences}\n\nWhoever passes the weights on must pass on these terms:\n\n{_quoted(lineage.teacher_terms)}"


def _unstated_terms(recipe: Recipe) -> str:
    """Of structures without a data set that states its terms."""
    files = _files(recipe)
    if not files:
        return "The structures were generated and bring no terms of their own."
    return f"Structures are of the files {listed(files)}, whose terms the recipe does not state."


def _licence_link(licence: str) -> str:
    terms = _terms(licence)
    return f"[{terms.spdx if terms.hub != 'other' else terms.name}]({terms.url})"


def _quoted(text: str) -> str:
    """A text of others, word for word, as a quotation."""
    wrapper = textwrap.TextWrapper(WIDTH - 2, break_long_words=False, break_on_hyphens=False)
    lines = [line for part in text.strip().splitlines() for line in wrapper.wrap(part) or [""]]
    return "\n".join(f"> {line}".rstrip() for line in lines)


def _items(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _filled(body: str) -> str:
    """Paragraphs and items broken at a terminal's width; code, tables, titles and pictures as they are."""
    parts = _FENCE.split(body)
    for index in range(0, len(parts), 2):  # the odd ones are code
        blocks = re.split(r"\n{2,}", parts[index].strip())
        parts[index] = "\n\n".join(_filled_block(block) for block in blocks if block)
    return "\n\n".join(part for part in parts if part) + "\n"


def _filled_block(block: str) -> str:
    if block.startswith(("#", "|", "!", ">")):
        return block
    if block.startswith("- "):
        return "\n".join(_fill(item, indent="  ") for item in block.split("\n"))
    return _fill(block, indent="")


def _fill(text: str, indent: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)
