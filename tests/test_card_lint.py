import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_card import FAIR, FIGURES, GATED, NAME, example_context, folder, front_matter

from zoo.card import render_card
from zoo.hub.card_lint import HUB_LICENCES, lint_card
from zoo.licences import TERMS

__all__ = ["folder"]  # the fixture


def card_of(data: dict[str, Any], body: str = "# Title\n") -> str:
    return f"---\n{yaml.safe_dump(data, sort_keys=False)}---\n\n{body}"


def changed(**keys: Any) -> str:
    """The card of the example with other values in its front matter; None takes a key away."""
    data = front_matter(render_card(example_context())) | keys
    return card_of({key: value for key, value in data.items() if value is not None})


def block(**keys: Any) -> dict[str, Any]:
    return front_matter(render_card(example_context()))["zoo"] | keys


def index(**keys: Any) -> list[dict[str, Any]]:
    (result,) = front_matter(render_card(example_context()))["model-index"][0]["results"]
    result |= keys
    return [{"name": NAME, "results": [{key: value for key, value in result.items() if value is not None}]}]


def test_a_card_has_nothing_to_complain_about(folder: Path) -> None:
    assert lint_card(render_card(example_context()), folder) == []
    assert lint_card(changed()) == []


# Text of the example's card, what stands there instead, and what the lint says of it.
EDITS = [
    ("library_name: zoo\n", "", "lacks library_name"),
    ("license: mit\n", "license: mine\n", "license is 'mine'; expected one of"),
    ("value: 63.2", "value: .nan", "model-index.0.results.0.metrics.1.value is nan; leave out what was not measured"),
    ("value: 63.2", "value: -.inf", "is -inf; leave out"),
    ("value: 63.2", "value: '63.2'", "metrics.1.value': Input should be a valid number, got '63.2'"),
    ("value: 63.2", "value: true", "metrics.1.value': Input should be a valid number"),
    ("value: 63.2", "value: !!python/name:os.system ''", "not plain YAML: a tag"),
    ("value: 63.2", "value: !!python/object/apply:numpy._core.multiarray.scalar [1]", "not plain YAML: a tag"),
    ("value: 63.2", "value: !!python/complex 1+2j", "not plain YAML: a tag"),
    ("- mlip", "- &a mlip\n- *a", "not plain YAML: an anchor"),
    ("license: mit\n", "license: mit\nlicense: mit\n", "a key is given twice"),
    ("license: mit\n", "license: [\n", "not plain YAML"),
    ("license: mit\n", "1: mit\n", "not a map from names to values"),
    ("license: mit\n", f"license: mit\nnote: {'x' * 70000}\n", "characters, over the 65536"),
    ("    force_mae_meV_A: 63.2", "    force_mae_meV_A: .inf", "zoo.metrics.force_mae_meV_A is inf"),
    ("## Limits", "## Limits\n\n${speed}", "a placeholder was left: ${speed}"),
    ("## Limits", "## Limits\n\nTODO", "a placeholder was left: TODO"),
    ("   63.20 |", "     nan |", "the text says nan"),
    ("---\nlibrary_name", "library_name", "no front matter"),
    (f"# {NAME}", NAME, "does not begin with a title"),
]
LINKS = [
    ("(figures/none.png)", "leads nowhere"),
    ("(../secret.png)", "leads out of the folder"),
    ("(figures/%2e%2e/%2e%2e/secret.png)", "leads out of the folder"),
    ("(figures\\secret.png)", "leads out of the folder"),
    ("(/etc/passwd)", "leads out of the folder"),
    ("(//evil.example/x.png)", "leads out of the folder"),
    ("(file:///etc/passwd)", "leads out of the folder"),
    ("(javascript:alert(1))", "leads out of the folder"),
    ("(data:text/html;base64,AAAA)", "leads out of the folder"),
    ('(<../a b.png> "a title")', "leads out of the folder"),
    ('(../x.png "a title")', "leads out of the folder"),
    ('(figures/force_parity.png)\n\n<img alt="x" src="../x.png">', "leads out of the folder"),
    ("(figures/force_parity.png)\n\n<a href=../x>x</a>", "leads out of the folder"),
    ("(figures/force_parity.png)\n\n[x]: ../x.md", "leads out of the folder"),
]


@pytest.mark.parametrize(("old", "new", "complaint"), EDITS)
def test_an_edit_that_spoils_the_card_is_found(folder: Path, old: str, new: str, complaint: str) -> None:
    card = render_card(example_context())
    assert old in card
    found = lint_card(card.replace(old, new, 1), folder)
    assert len(found) == 1, found
    assert complaint in found[0]
    assert "\n" not in found[0]


@pytest.mark.parametrize(("link", "complaint"), LINKS)
def test_a_link_that_leads_astray_is_found(folder: Path, link: str, complaint: str) -> None:
    card = render_card(example_context()).replace("(figures/force_parity.png)", link, 1)
    (found,) = lint_card(card, folder)
    assert complaint in found


@pytest.mark.parametrize(
    "link", ["https://x.example/../y", "mailto:me@x.example", "#licence", FIGURES[0], "README.md#a"]
)
def test_a_link_that_leads_somewhere_is_none_to_complain_about(folder: Path, link: str) -> None:
    (folder / "README.md").touch()
    assert lint_card(changed()[:-1] + f"\n\n[x]({link})\n", folder) == []


def test_code_holds_no_links(folder: Path) -> None:
    assert lint_card(changed()[:-1] + "\n\n```python\nf[0](../x)\n```\n\nand `f[0](../x)`\n", folder) == []


VALUES = [
    ({"pipeline_tag": "text-generation"}, "pipeline_tag is 'text-generation'; expected graph-ml"),
    ({"library_name": "transformers"}, "library_name is 'transformers'; expected zoo"),
    ({"tags": None}, "lacks tags"),
    ({"tags": "mlip"}, "tags is 'mlip'; expected a list"),
    ({"tags": ["mlip", 3]}, "expected a list of tags"),
    ({"tags": ["mlip", "mlip"]}, "expected a list of tags"),
    ({"tags": ["x" * 65]}, "expected a list of tags"),
    ({"tags": ["two\nlines"]}, "expected a list of tags"),
    ({"tags": [["nested"]]}, "expected a list of tags"),
    ({"metrics": "mae"}, "metrics is 'mae'; expected a list"),
    ({"base_model": "no-owner"}, "base_model is 'no-owner'; expected owner/repository"),
    ({"base_model": ["a/b", "https://huggingface.co/a/b"]}, "expected owner/repository"),
    ({"base_model": {"a": "b"}}, "expected owner/repository"),
    ({"new_version": "a/b@v2"}, "new_version is 'a/b@v2'; expected owner/repository"),
    ({"datasets": ["local folder"]}, "datasets is"),
    ({"language": False}, "language is 'False'; expected a code"),  # what YAML makes of Norwegian, no
    ({"language": "English"}, "language is 'English'"),
    ({"license": ["mit"]}, "license is \"['mit']\"; expected one of"),
    ({"license": "apache-2.0"}, "license is 'apache-2.0', but for zoo.licence_weights MIT it is 'mit'"),
    ({"license_name": "Two Words"}, "license_name is 'Two Words'"),
    ({"license_link": "javascript:alert(1)"}, "expected an address that begins with https://"),
    ({"extra_gated_prompt": ["x"]}, "extra_gated_prompt is"),
    ({"model-index": None}, "lacks model-index, and zoo.metrics has figures"),
    ({"model-index": []}, "model-index"),
    ({"model-index": {"name": NAME}}, "model-index"),
    ({"model-index": [{"name": NAME}]}, "'model-index.0.results' is missing"),
    ({"model-index": [{"name": NAME, "results": []}]}, "model-index.0.results"),
    ({"model-index": [{"results": index()[0]["results"]}]}, "'model-index.0.name' is missing"),
    ({"model-index": [index()[0] | {"name": "a/b"}]}, f"model-index is of a/b, zoo.name is {NAME}"),
    ({"model-index": index(task=None)}, "task' is missing"),
    ({"model-index": index(task={"name": "x"})}, "task.type' is missing"),
    ({"model-index": index(dataset={"type": "silicon"})}, "dataset.name' is missing"),
    ({"model-index": index(dataset={"name": "silicon"})}, "dataset.type' is missing"),
    ({"model-index": index(metrics=[])}, "metrics"),
    ({"model-index": index(metrics=[{"value": 1.0}])}, "metrics.0.type' is missing"),
    ({"model-index": index(metrics=[{"type": "mae"}])}, "metrics.0.value' is missing"),
    ({"model-index": index(metrics=[{"type": "mae", "value": "1 ± 2"}])}, "should be a valid number"),
    ({"model-index": index(metrics=[{"type": "mae", "value": 1.0, "verified": True}])}, "verified"),
    ({"zoo": None}, "lacks zoo"),
    ({"zoo": "yes"}, "zoo: "),
    ({"zoo": block(schema=2)}, "'schema'"),
    ({"zoo": block(colour="red")}, "unknown key 'colour'"),
    ({"zoo": block(purpose="\x1b[2J")}, "not one line"),
    ({"zoo": block(elements=["Xx"])}, "'Xx' is not an element"),
    ({"zoo": block(name="no name")}, "not family/engine"),
    ({"zoo": block(licence_weights="WTFPL")}, "zoo.licence_weights is WTFPL; expected one of"),
]


@pytest.mark.parametrize(("keys", "complaint"), VALUES)
def test_a_value_that_a_hub_or_a_program_would_refuse_is_found(keys: dict[str, Any], complaint: str) -> None:
    found = lint_card(changed(**keys))
    assert len(found) == 1, found
    assert complaint in found[0]
    assert "\n" not in found[0]


@pytest.mark.parametrize(
    "keys",
    [
        {"base_model": "a/b"},
        {"base_model": ["a/b", "c/d"]},
        {"new_version": "a/b_c"},
        {"language": "en"},
        {"language": ["en", "zh-Hant"]},
        {"datasets": ["a/b"]},
    ],
)
def test_what_a_hub_takes_is_taken(keys: dict[str, Any]) -> None:
    assert lint_card(changed(**keys)) == []


def test_other_needs_a_name_and_a_link() -> None:
    found = lint_card(changed(license="other", zoo=block(licence_weights=FAIR)))
    assert "license is other, so license_name and license_link must be there" in found


def test_the_terms_of_a_gated_teacher_must_be_repeated(folder: Path) -> None:
    card = render_card(example_context(licence=FAIR, lineage=GATED | {"teacher_terms": None}))
    (found,) = lint_card(card, folder)
    assert f"{TERMS[FAIR].name}, that of the teacher, must be repeated" in found


def test_the_terms_of_data_must_be_repeated_too() -> None:
    data = [{"name": "spectra", "licence": FAIR}]
    keys = {**TERMS[FAIR].card_keys, "zoo": block(licence_weights=FAIR, data=data)}
    (found,) = lint_card(changed(**keys))
    assert f"{TERMS[FAIR].name}, that of the data, must be repeated" in found
    assert lint_card(changed(**keys, extra_gated_prompt="Do no harm.")) == []


def test_the_text_ends_with_a_new_line() -> None:
    assert lint_card(changed().rstrip("\n")) == ["the text does not end with a new line"]


def test_a_card_that_no_folder_may_hold_is_found() -> None:
    (found,) = lint_card(changed() + "x" * (4 << 20) + "\n")
    assert "over the 4194304" in found


def test_the_licences_of_the_hub_are_those_of_the_table() -> None:
    assert set(HUB_LICENCES) == {terms.hub for terms in TERMS.values()}


LONG = [
    "---\n",
    "[",
    "](",
    "](x",
    "<",
    "<a href=",
    "`",
    "``` `",
    "```\n",
    "~~~\n",
    "[x]: ",
    "src = ",
    "%2e",
    "nan",
    "${",
    "> ",
]


@pytest.mark.parametrize("part", LONG)
def test_the_lint_does_not_hang(part: str) -> None:
    start = time.monotonic()
    lint_card(changed() + part * (100_000 // len(part)))
    assert time.monotonic() - start < 5
