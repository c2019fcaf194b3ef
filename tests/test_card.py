import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from test_report import example_report

from zoo.artifact import ArtifactConfig, DataSource, Domain, Lineage
from zoo.card import WIDTH, CardContext, render_card, template_path
from zoo.config import parse
from zoo.errors import ConfigError, LicenceError
from zoo.evaluate.report import REFERENCE, Figures, VibrationSettings
from zoo.hub.card_data import parse_card
from zoo.hub.card_lint import lint_card
from zoo.hub.catalogue import entries
from zoo.licences import TERMS
from zoo.recipe import Recipe

NAME = "stillinger-weber/silicon-student"
FIGURES = ("figures/energy_drift.png", "figures/force_parity.png", "figures/phonon_bands.png")
SNIPPET = f"""
import zoo
from ase.build import bulk

atoms = bulk("Si", cubic=True)
atoms.calc = zoo.load("{NAME}", hub="./hub").calculator()
print(f"{{atoms.get_potential_energy():.3f}} eV")
"""
RATTLED = {
    "kind": "rattled",
    "supercell": [1, 1, 1],
    "displacement": [0.01, 0.2],
    "strain": 0.03,
    "shear": 0.03,
}
RECIPE = {
    "format": 1,
    "name": NAME,
    "purpose": "Crystalline silicon in the diamond structure, for phonons and molecular dynamics.",
    "subset": "silicon",
    "licence": "MIT",
    "seed": 1,
    "teacher": {"name": "stillinger-weber/teacher"},
    "structures": {
        "crystal": {"formula": "Si", "prototype": "diamond", "lattice_constant": 5.43},
        "groups": [
            RATTLED | {"name": "train-a", "split": "train", "count": 24},
            RATTLED | {"name": "train-b", "split": "train", "count": 16},
            RATTLED | {"name": "validation", "split": "validation", "count": 6, "supercell": [1, 1, 2]},
            RATTLED | {"name": "test", "split": "test", "count": 16, "supercell": [2, 2, 1]},
        ],
    },
    "student": {"architecture": "painn", "elements": ["Si"], "channels": 32},
    "loss": {"energy": 5, "force": 100, "stress": 500, "hessian": 20},
    "training": {"steps": 1500},
}


LINEAGE: dict[str, Any] = {
    "recipe_sha256": "a" * 64,
    "structures_sha256": "b" * 64,
    "labels_sha256": "c" * 64,
    "teacher": "stillinger-weber/teacher",
    "teacher_weights_sha256": "d" * 64,
    "teacher_licence_weights": "CC0-1.0",
    "level_of_theory": "Stillinger-Weber 1985, empirical",
    "seed": 1,
    "steps": 1500,
    "code_version": "0.1.0",
}
FAIR = "LicenseRef-FAIR-Chemistry-v1"
GATED = {
    "teacher_licence_weights": FAIR,
    "teacher_terms": '1. Do no harm, "they" said; don\'t.\n\n2. Tell ${others}: ' + "so-so " * 30,
}


def example_context(**changes: Any) -> CardContext:
    recipe = parse(Recipe, RECIPE, "recipe")
    config = ArtifactConfig(
        name=NAME,
        licence=changes.pop("licence", recipe.licence),
        architecture=recipe.student,
        domain=Domain(
            elements=("Si",),
            pbc=(True, True, True),
            min_distance_A=1.7,
            volume_per_atom_A3=(17.1, 23.4),
            max_atoms_trained=16,
            description="Silicon in the diamond structure, strained by up to 3 % and rattled by up to 0.2 Å.",
        ),
        lineage=Lineage(**(LINEAGE | changes.pop("lineage", {}))),
        dtype="float32",
        parameters=61234,
    )
    context = CardContext(
        report=example_report(),
        config=config,
        recipe=recipe,
        weights_sha256="e" * 64,
        snippet=SNIPPET,
        snippet_output="-34.693 eV\n",
        figures=FIGURES,
        teacher_citation="F. H. Stillinger, T. A. Weber, Phys. Rev. B 31, 5262 (1985)",
    )
    return replace(context, **changes)


def front_matter(card: str) -> dict[str, Any]:
    data = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(data, dict)
    return data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with all that the card links to."""
    for path in FIGURES:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"png")
    return tmp_path


def test_a_card_has_nothing_to_complain_about(folder: Path) -> None:
    assert lint_card(render_card(example_context()), folder) == []


CONTEXTS = {
    "plain": {},
    "licence of its own": {"licence": FAIR, "lineage": GATED},
    "with data": {"licence": "CC-BY-4.0", "lineage": {"data": (DataSource(name="crystals", licence="CC-BY-4.0"),)}},
}


@pytest.mark.parametrize("changes", CONTEXTS.values(), ids=CONTEXTS)
def test_the_stock_client_reads_every_card_and_gives_back_the_same_numbers(
    changes: dict[str, Any], folder: Path
) -> None:
    context = example_context(**changes)
    card = render_card(context)
    assert lint_card(card, folder) == []
    written = front_matter(card)
    data = ModelCard(card, ignore_metadata_errors=False).data
    assert isinstance(data, ModelCardData)
    assert (data.library_name, data.pipeline_tag, data.model_name) == ("zoo", "graph-ml", NAME)
    assert {key: data.get(key) for key in TERMS[context.config.licence].card_keys} == TERMS[
        context.config.licence
    ].card_keys
    assert data.eval_results is not None
    (result,) = written["model-index"][0]["results"]
    read = {(one.metric_type, one.metric_name): one.metric_value for one in data.eval_results}
    assert read == {(metric["type"], metric["name"]): metric["value"] for metric in result["metrics"]}
    assert all(type(value) is float and math.isfinite(value) for value in read.values())
    assert {one.dataset_split for one in data.eval_results} == {"test"}
    assert yaml.safe_load(data.to_yaml()) == written


def test_the_same_figures_stand_in_the_model_index_and_in_the_zoo_block() -> None:
    card = render_card(example_context())
    block = parse_card(card).zoo
    assert block is not None
    report = example_report()
    measured = report.student.model_dump(exclude={"reasons"}, exclude_none=True)
    assert block.metrics == measured | {"speedup": report.speedup}
    (result,) = front_matter(card)["model-index"][0]["results"]
    assert {metric["value"] for metric in result["metrics"]} <= set(block.metrics.values())


def test_a_program_reads_what_was_written() -> None:
    context = example_context(lineage={"data": (DataSource(name="crystals", licence="CC0-1.0"),)})
    read = parse_card(render_card(context))
    assert read.zoo is not None
    assert read.zoo.domain == context.config.domain
    assert read.zoo.probe.tolerance == context.config.probe_tolerance
    assert read.zoo.data == context.config.lineage.data
    assert (read.licence, read.base_model, read.new_version) == ("mit", (), None)
    assert "teacher:stillinger-weber" in read.tags
    assert read.body.lstrip().startswith(f"# {NAME}\n")


def test_elements_stand_in_the_order_of_their_atomic_numbers() -> None:
    context = example_context()
    domain = context.config.domain.model_copy(update={"elements": ("C", "H", "Si")})
    card = render_card(replace(context, config=context.config.model_copy(update={"domain": domain})))
    assert front_matter(card)["zoo"]["elements"] == ["H", "C", "Si"]


def test_a_purpose_over_several_lines_becomes_one() -> None:
    recipe = parse(Recipe, RECIPE | {"purpose": "One thing,\n  and\u00a0another."}, "recipe")
    assert front_matter(render_card(example_context(recipe=recipe)))["zoo"]["purpose"] == "One thing, and another."


def test_a_purpose_that_no_table_holds_is_refused() -> None:
    recipe = parse(Recipe, RECIPE | {"purpose": "long " * 1000}, "recipe")
    with pytest.raises(ConfigError, match=r"purpose.*not one line"):
        render_card(example_context(recipe=recipe))


def test_a_domain_that_is_described_by_the_purpose_is_not_described_twice() -> None:
    context = example_context()
    same = context.config.domain.model_copy(update={"description": context.recipe.purpose})
    card = render_card(replace(context, config=context.config.model_copy(update={"domain": same})))
    assert card.split("---\n", 2)[2].count(context.recipe.purpose) == 1


def test_the_teachers_own_repository_is_the_base_model(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    name = LINEAGE["teacher"]
    entry = entries()[name].model_copy(update={"base_model": "owner/model"})
    monkeypatch.setattr("zoo.card.entries", lambda: {name: entry})
    card = render_card(example_context())
    assert front_matter(card)["base_model"] == "owner/model"
    assert parse_card(card).base_model == ("owner/model",)
    assert lint_card(card, folder) == []


def test_what_a_gated_teacher_asks_for_is_repeated() -> None:
    card = render_card(example_context(licence=FAIR, lineage=GATED))
    data, body = front_matter(card), card.split("---\n", 2)[2]
    assert data["extra_gated_prompt"] == GATED["teacher_terms"]
    assert parse_card(card).terms == GATED["teacher_terms"]
    assert '> 1. Do no harm, "they" said; don\'t.\n>\n> 2. Tell ${others}: so-so so-so' in body
    quoted = [line.removeprefix(">") for line in body.splitlines() if line.startswith(">")]
    assert " ".join(" ".join(quoted).split()) == " ".join(GATED["teacher_terms"].split())
    assert "extra_gated_prompt" not in front_matter(render_card(example_context()))


def test_nothing_measured_is_no_model_index(folder: Path) -> None:
    nothing = Figures.of({}, {}, otherwise="not asked for")
    report = example_report().model_copy(update={"student": nothing, "speedup": None})
    card = render_card(example_context(report=report))
    assert "model-index" not in front_matter(card)
    assert lint_card(card, folder) == []
    assert REFERENCE not in card


def test_the_zoo_block_says_what_a_program_needs() -> None:
    block = front_matter(render_card(example_context()))["zoo"]
    assert block["schema"] == 1
    assert block["name"] == NAME
    assert block["recipe"]["sha256"] == "a" * 64
    teacher = {"name": "stillinger-weber/teacher", "weights_sha256": "d" * 64, "licence": "CC0-1.0"}
    assert block["teacher"] == teacher
    assert block["weights"]["sha256"] == "e" * 64
    assert block["weights"]["parameters"] == 61234
    assert block["domain"]["elements"] == ["Si"]
    assert block["probe"]["tolerance"]["force_meV_A"] == 1.0


def test_what_was_not_measured_is_left_out_above_and_explained_below() -> None:
    report = example_report()
    nothing = report.model_copy(update={"student": report.twin})
    card = render_card(example_context(report=nothing))
    metrics = front_matter(card)["model-index"][0]["results"][0]["metrics"]
    assert "frequency_mae" not in {metric["type"] for metric in metrics}
    plain = " ".join(card.split())
    assert "not measured (phonopy was not installed)" in plain
    assert "not measured (it exploded: 90000 K at 0.5 ps)" in plain


def test_snippet_and_output_stand_as_they_are() -> None:
    card = render_card(example_context(snippet_output="a   b\n\n\n  c ${x"))
    assert f"```python\n{SNIPPET.strip()}\n```" in card
    assert "```text\na   b\n\n\n  c ${x\n```" in card


def test_the_card_says_where_the_twin_is_better() -> None:
    plain = " ".join(render_card(example_context()).split())
    better = (
        "force error, stress error, Hessian·v error, data set energy error, data set force error and vibration error"
    )
    assert f"The student has the smaller {better}." in plain
    assert "The twin has the smaller energy error." in plain


def test_prose_fits_a_terminal_and_tables_line_up() -> None:
    body = render_card(example_context()).split("---\n", 2)[2]
    prose = [line for line in body.splitlines() if not line.startswith(("|", "!"))]
    assert max(map(len, prose)) <= WIDTH
    for block in re.findall(r"(?:^\|.*\n)+", body, re.MULTILINE):
        assert len({len(line) for line in block.splitlines()}) == 1


def test_a_licence_that_the_hub_does_not_know_is_named_and_linked() -> None:
    card = render_card(example_context(licence=FAIR, lineage=GATED))
    data, terms = front_matter(card), TERMS[FAIR]
    assert (data["license"], data["license_name"], data["license_link"]) == ("other", "fair-chemistry-v1", terms.url)
    assert f"[{terms.name}]({terms.url})" in " ".join(card.split())


def test_a_licence_that_zoo_does_not_know_is_refused() -> None:
    with pytest.raises(LicenceError, match="zoo does not know the licence 'WTFPL'"):
        render_card(example_context(licence="WTFPL"))


def test_the_licence_section_names_all_whose_terms_hold() -> None:
    data = (DataSource(name="crystals", licence="CC-BY-4.0"),)
    plain = " ".join(render_card(example_context(licence="CC-BY-4.0", lineage={"data": data})).split())
    link = "[CC-BY-4.0](https://creativecommons.org/licenses/by/4.0/)"
    assert f"The weights are under {link}; those of its teacher, `stillinger-weber/teacher`, under [CC0-1.0]" in plain
    assert f"The data set crystals is under {link}." in plain
    assert "were generated" not in plain
    silent = {"data": (*data, DataSource(name="md22", licence="LicenseRef-unstated"))}
    plain = " ".join(render_card(example_context(licence="CC-BY-4.0", lineage=silent)).split())
    told = "The data set md22 states no licence; ask its authors before you pass on what learns from it."
    assert f"The data set crystals is under {link}. {told}" in plain
    assert "The structures were generated" in " ".join(render_card(example_context()).split())


def test_the_card_says_how_to_load_from_any_hub() -> None:
    plain = " ".join(render_card(example_context()).split())
    for words in (
        "a folder, or the URL of a server",
        "`ZOO_HUB`",
        "huggingface.co",
        'zoo.load("hf://owner/repository")',
    ):
        assert words in plain


def test_the_template_is_found() -> None:
    assert template_path("student").is_file()


FRAMES = {"kind": "frames", "file": "/home/somebody/set/frames.xyz", "sha256": "f" * 64}
MOLECULES = RECIPE | {
    "structures": {
        "groups": [
            FRAMES | {"name": "learned", "split": "train", "count": 20, "copies": 2, "displacement": [0.01, 0.1]},
            FRAMES | {"name": "held", "split": "validation", "start": 20, "count": 5},
            FRAMES | {"name": "tested", "split": "test", "start": 30, "count": 5},
        ]
    },
    "loss": {"energy": 5, "force": 100, "hessian": 20},
}


def molecule_context(**changes: Any) -> CardContext:
    """A card of an engine for molecules, from frames of a file."""
    context = example_context(recipe=parse(Recipe, MOLECULES | changes, "recipe"))
    domain = context.config.domain.model_copy(update={"pbc": (False, False, False), "volume_per_atom_A3": None})
    return replace(context, config=context.config.model_copy(update={"domain": domain}))


def plain_text(context: CardContext) -> str:
    return " ".join(render_card(context).split())


def test_a_card_of_molecules_speaks_of_molecules(folder: Path) -> None:
    context = molecule_context()
    assert lint_card(render_card(context), folder) == []
    plain = plain_text(context)
    assert "nothing: molecules" in plain
    assert "Other molecules, reactions, and molecules that meet others were not tested" in plain
    assert "labelled 40 training structures with energy, forces and 2 products of its Hessian each" in plain
    assert "with weights of 5 (energy), 100 (forces) and 20 (Hessian) in the loss" in plain
    assert "Structures are of the files frames.xyz, whose terms the recipe does not state." in plain
    assert "with frames.xyz in a folder that `ZOO_DATA` names:" in plain
    assert "somebody" not in plain


def test_a_card_says_what_was_distilled_and_what_its_twin_went_without() -> None:
    loss = {"energy": 5, "force": 100, "atomic_energy": 2, "feature": 0.1}
    labels = {"probes": "none", "extras": ["atomic_energies", "features"]}
    plain = plain_text(molecule_context(loss=loss, labels=labels))
    assert "distilled with the atomic energies and node features of its teacher" in plain
    assert "for as many steps, without atomic energies and node features." in plain
    assert "with energy, forces, atomic energies and features. The student learned" in plain
    bare = plain_text(molecule_context(loss={"energy": 5, "force": 100}, labels={"probes": "none"}))
    assert "trained on labels alone." in bare
    assert "for as many steps, in the same way." in bare


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ({"probes": "dense"}, "energy, forces and its whole Hessian"),
        ({"probes": "rows", "probes_per_structure": 3}, "energy, forces and 3 rows of its Hessian each"),
    ],
)
def test_a_card_says_what_was_labelled(labels: dict[str, Any], told: str) -> None:
    assert f"training structures with {told}." in plain_text(molecule_context(labels=labels))


def test_labels_of_the_data_set_in_the_loss_are_told() -> None:
    groups = MOLECULES["structures"]["groups"]
    learned = {key: value for key, value in groups[0].items() if key not in ("copies", "displacement")}
    loss = {"energy": 5, "force": 100, "hessian": 20, "energy_from": "dataset", "force_from": "dataset"}
    plain = plain_text(molecule_context(structures={"groups": [learned, *groups[1:]]}, loss=loss))
    assert "Of energy and forces, the labels of the data set were learned in the place of the teacher's." in plain


def test_what_was_measured_against_the_data_set_and_of_vibrations_is_explained() -> None:
    report = example_report()
    errors = report.settings.accuracy.model_copy(update={"dataset_structures": 11, "teacher_asymmetry": 0.2})
    settings = report.settings.model_copy(
        update={"accuracy": errors, "vibrations": VibrationSettings(formula="C2OH6", atoms=9), "phonons": None}
    )
    teacher = Figures.of({"dataset_force_mae_meV_A": 123.4}, {}, otherwise="not asked for")
    told = report.model_copy(update={"settings": settings, "teacher": teacher, "speedup": None})
    plain = plain_text(replace(molecule_context(), report=told))
    assert "Data set: its own labels of 11 of these structures" in plain
    assert "Hessian of C2OH6 (9 atoms) as it stands in the test set" in plain
    assert "of which that of forces is 123.4 meV/Å against the labels of the data set" in plain
    assert "differs from its transpose by 20 % of its mean element" in plain
    assert "velocities drawn at 600 K in the first structure of the test set." in plain


def test_dynamics_that_came_to_an_end_is_no_test_that_was_passed() -> None:
    report = example_report()
    run = report.settings.dynamics["student"].model_copy(update={"completed": False, "steps": 120})
    settings = report.settings.model_copy(update={"dynamics": {"student": run}})
    plain = plain_text(example_context(report=report.model_copy(update={"settings": settings})))
    assert "Its dynamics came to an end of its own after 0.12 ps" in plain
    assert "Its dynamics was tested for 2 ps" in plain_text(example_context())


FINE_TUNED = {
    "structures": {
        "groups": [
            FRAMES | {"name": "learned", "split": "train", "count": 20},
            FRAMES | {"name": "held", "split": "validation", "start": 20, "count": 5},
            FRAMES | {"name": "tested", "split": "test", "start": 30, "count": 5},
        ],
        "data": [{"name": name, "licence": "CC0-1.0"} for name in ("rings", "chains")],
    },
    "student": {"architecture": "gemnet-oc", "elements": ["Si"]},
    "loss": {"energy": 5, "force": 100, "energy_from": "dataset", "force_from": "dataset"},
    "training": {"steps": 1500, "start": "teacher"},
}


def fine_tuned_context(**changes: Any) -> CardContext:
    """A card of an engine that began with its teacher's weights and learned from a data set."""
    report = example_report()
    of_data = {"dataset_energy_mae_meV_atom": 30.0, "dataset_force_mae_meV_A": 900.0, "ms_per_call": 420.0}
    teacher = Figures.of(of_data, {}, otherwise="not asked for")
    student = Figures.of(of_data | {"dataset_force_mae_meV_A": 9.0}, {}, otherwise="not asked for")
    own = {"teacher": teacher, "student": student, "twin": None, "speedup": 1.0}
    return replace(molecule_context(**(FINE_TUNED | changes)), report=report.model_copy(update=own))


def test_a_card_of_a_fine_tuned_engine_says_from_what_it_began(folder: Path) -> None:
    context = fine_tuned_context()
    card, plain = render_card(context), plain_text(context)
    assert lint_card(card, folder) == []
    data = "the data sets chains and rings"
    assert f"fine-tuned from `stillinger-weber/teacher` on the energy and forces of {data}. ## Use it" in plain
    assert "the teacher is `stillinger-weber/teacher`, from whose weights it began." in plain
    assert "The student has the smaller data set force error. | |" in plain  # of energies, neither has
    assert f"but for its heads, which are new. It learned energy and forces of 20 structures of {data}" in plain
    assert "their zero is that of its data set." in plain
    assert "- The teacher, from whose weights it began: F. H. Stillinger" in plain
    for word in ("twin", "distilled", "Hessians", "Amin"):
        assert word not in plain
    assert "fine-tuning" in front_matter(card)["tags"]
    assert not [tag for tag in front_matter(card)["tags"] if "distillation" in tag]


@pytest.mark.parametrize("make", [example_context, fine_tuned_context])
def test_a_teacher_that_nobody_says_how_to_cite_has_no_line_among_the_citations(
    make: Callable[[], CardContext], folder: Path
) -> None:
    told, silent = render_card(make()), render_card(replace(make(), teacher_citation=" "))
    before, line, after = told.partition("- The teacher")
    assert line
    assert silent == f"{before}- {after.partition(f'{chr(10)}- ')[2]}"
    assert lint_card(silent, folder) == []


def test_the_relation_to_the_base_model_is_that_of_its_weights(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    name = LINEAGE["teacher"]
    entry = entries()[name].model_copy(update={"base_model": "owner/model"})
    monkeypatch.setattr("zoo.card.entries", lambda: {name: entry})
    tuned = render_card(fine_tuned_context())
    assert lint_card(tuned, folder) == []
    fresh = {"student": RECIPE["student"], "training": RECIPE["training"]}
    told = [front_matter(card) for card in (tuned, render_card(fine_tuned_context(**fresh)))]
    assert [data.get("base_model") for data in told] == ["owner/model", None]
    assert [data.get("base_model_relation") for data in told] == ["finetune", None]
    assert "base_model_relation" not in front_matter(render_card(example_context()))
    wrong = tuned.replace("base_model_relation: finetune", "base_model_relation: distilled")
    assert any("base_model_relation is 'distilled'" in problem for problem in lint_card(wrong, folder))
    with_it = ModelCard(tuned, ignore_metadata_errors=False).data
    assert with_it.get("base_model_relation") == "finetune"
