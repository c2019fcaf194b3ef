import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from test_report import example_report

from zoo.artifact import ArtifactConfig, Domain, Lineage
from zoo.card import WIDTH, CardContext, lint_card, render_card, template_path
from zoo.config import parse
from zoo.errors import LicenceError
from zoo.recipe import Recipe
from zoo.students import PaiNNConfig

NAME = "stillinger-weber/silicon-student"
FIGURES = ("figures/energy_drift.png", "figures/force_parity.png", "figures/phonon_bands.png")
SNIPPET = f"""
import zoo
from ase.build import bulk

atoms = bulk("Si", cubic=True)
atoms.calc = zoo.load("{NAME}").calculator()
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


def example_context(**changes: Any) -> CardContext:
    recipe = parse(Recipe, RECIPE, "recipe")
    config = ArtifactConfig(
        name=NAME,
        licence=changes.pop("licence", recipe.licence),
        architecture=PaiNNConfig(elements=("Si",), channels=32),
        domain=Domain(
            elements=("Si",),
            pbc=(True, True, True),
            min_distance_A=1.7,
            volume_per_atom_A3=(17.1, 23.4),
            max_atoms_trained=16,
            description="Silicon in the diamond structure, strained by up to 3 % and rattled by up to 0.2 Å.",
        ),
        lineage=Lineage(
            recipe_sha256="a" * 64,
            structures_sha256="b" * 64,
            labels_sha256="c" * 64,
            teacher="stillinger-weber/teacher",
            teacher_weights_sha256="d" * 64,
            teacher_licence_weights="CC0-1.0",
            level_of_theory="Stillinger-Weber 1985, empirical",
            seed=1,
            steps=1500,
            code_version="0.1.0",
        ),
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


def test_the_hub_reads_the_front_matter_and_gives_it_back() -> None:
    card = render_card(example_context())
    data = ModelCard(card).data
    assert isinstance(data, ModelCardData)
    assert (data.library_name, data.pipeline_tag, data.license) == ("zoo", "graph-ml", "mit")
    assert data.model_name == NAME
    assert data.eval_results is not None
    results = {result.metric_type: result for result in data.eval_results}
    assert results["forces_mae"].metric_value == 63.2
    assert results["forces_mae"].metric_name == "Force MAE (meV/Å)"
    assert results["forces_mae"].dataset_split == "test"
    assert all(type(result.metric_value) is float for result in results.values())
    again = yaml.safe_load(data.to_yaml())
    assert again["zoo"] == front_matter(card)["zoo"]
    assert again["tags"] == front_matter(card)["tags"]


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
    assert "The student has the smaller force error, stress error and Hessian·v error." in plain
    assert "The twin has the smaller energy error." in plain


def test_prose_fits_a_terminal_and_tables_line_up() -> None:
    body = render_card(example_context()).split("---\n", 2)[2]
    prose = [line for line in body.splitlines() if not line.startswith(("|", "!"))]
    assert max(map(len, prose)) <= WIDTH
    for block in re.findall(r"(?:^\|.*\n)+", body, re.MULTILINE):
        assert len({len(line) for line in block.splitlines()}) == 1


def test_a_licence_that_the_hub_does_not_know_needs_a_link(folder: Path) -> None:
    with pytest.raises(LicenceError, match="licence_name and licence_link"):
        render_card(example_context(licence="ASL"))
    link = "https://github.com/gabor1/ASL"
    card = render_card(example_context(licence="ASL", licence_name="asl", licence_link=link))
    data = front_matter(card)
    assert (data["license"], data["license_name"], data["license_link"]) == ("other", "asl", link)
    assert f"[asl]({link})" in card
    assert lint_card(card, folder) == []


def test_the_template_is_found() -> None:
    assert template_path("student").is_file()


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("library_name: zoo\n", "", "lacks library_name"),
        ("license: mit", "license: other", "license_name and license_link must be there"),
        ("license: mit", "license: mine", "knows no license 'mine'"),
        ("pipeline_tag: graph-ml", "pipeline_tag: text-generation", "expected graph-ml"),
        ("value: 63.2", "value: .nan", "leave out what was not measured"),
        ("value: 63.2", "value: '63.2'", "expected a number"),
        ("value: 63.2", "value: !!python/name:os.system ''", "not plain YAML"),
        ("## Limits", "## Limits\n\n${speed}", "a placeholder was left: ${speed}"),
        ("## Limits", "## Limits\n\nTODO", "a placeholder was left: TODO"),
        ("   63.20 |", "     nan |", "the text says nan"),
        ("(figures/force_parity.png)", "(figures/none.png)", "figures/none.png leads nowhere"),
        ("(figures/force_parity.png)", "(../secret.png)", "leads out of the folder"),
        ("(figures/force_parity.png)", "(/etc/passwd)", "leads out of the folder"),
        ("---\nlibrary_name", "library_name", "no front matter"),
        (f"# {NAME}", NAME, "does not begin with a title"),
    ],
)
def test_the_lint_finds(folder: Path, old: str, new: str, complaint: str) -> None:
    card = render_card(example_context())
    assert old in card
    found = lint_card(card.replace(old, new, 1), folder)
    assert len(found) == 1
    assert complaint in found[0]


def test_every_number_of_the_front_matter_is_finite() -> None:
    metrics = front_matter(render_card(example_context()))["model-index"][0]["results"][0]["metrics"]
    assert all(math.isfinite(metric["value"]) for metric in metrics)
