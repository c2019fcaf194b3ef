import re
import tomllib
from pathlib import Path

import pytest
from licence_texts import save_text

from zoo.acceptance import text_path, text_to_repeat
from zoo.errors import LicenceError
from zoo.licences import (
    CODE_LICENCE,
    LICENCES,
    TERMS,
    UNSTATED,
    Source,
    check_terms,
    is_commercial,
    unstated,
)

ASL, FAIR = "LicenseRef-ASL", "LicenseRef-FAIR-Chemistry-v1"
PAIRS = [(before, after) for before, terms in TERMS.items() for after in terms.followed_by]
# Identifiers as https://huggingface.co/docs/hub/repositories-licenses lists them.
ON_THE_HUB = {
    "apache-2.0",
    "bsd-3-clause",
    "cc-by-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "cc-by-sa-4.0",
    "cc0-1.0",
    "lgpl-2.1",
    "lgpl-3.0",
    "mit",
}


def teacher(licence: str) -> Source:
    return Source("teacher", "a/teacher", licence)


def data(licence: str) -> Source:
    return Source("data", "crystals", licence)


def test_the_table_is_closed() -> None:
    assert {after for _, after in PAIRS} <= set(LICENCES)
    assert all(terms.url.startswith("https://") and spdx == terms.spdx for spdx, terms in TERMS.items())


def test_every_licence_may_follow_itself() -> None:
    assert all(spdx in terms.followed_by for spdx, terms in TERMS.items())


def test_a_student_of_a_student_is_allowed_nothing_that_its_first_teacher_forbids() -> None:
    for first, second in PAIRS:
        assert set(TERMS[second].followed_by) <= set(TERMS[first].followed_by)


def test_nothing_commercial_follows_what_is_not() -> None:
    assert not [pair for pair in PAIRS if TERMS[pair[1]].commercial and not TERMS[pair[0]].commercial]


@pytest.mark.parametrize("spdx", [spdx for spdx in LICENCES if spdx.endswith(("SA-4.0", "ASL", "v1"))])
def test_reciprocal_terms_are_followed_by_themselves_alone(spdx: str) -> None:
    assert TERMS[spdx].followed_by == (spdx,)


@pytest.mark.parametrize("spdx", LICENCES)
def test_the_hub_knows_an_identifier_or_is_given_a_name_and_a_link(spdx: str) -> None:
    terms = TERMS[spdx]
    if terms.hub == "other":
        assert terms.card_keys == {"license": "other", "license_name": terms.label, "license_link": terms.url}
        assert re.fullmatch(r"[a-z0-9.-]+", terms.label)
    else:
        assert terms.card_keys == {"license": terms.hub}
        assert terms.hub in ON_THE_HUB


def test_licences_of_their_own_have_a_name_and_their_text_is_repeated() -> None:
    assert (TERMS[ASL].label, TERMS[FAIR].label) == ("asl", "fair-chemistry-v1")
    assert {spdx for spdx, terms in TERMS.items() if terms.repeated} == {ASL, FAIR}


@pytest.mark.parametrize("spdx", [ASL, FAIR])
def test_texts_that_must_be_repeated_have_an_address_that_gives_the_file_itself(spdx: str) -> None:
    assert re.fullmatch(
        r"https://(raw\.githubusercontent\.com/[\w-]+/[\w-]+/[0-9a-f]{40}|huggingface\.co/[\w-]+/[\w-]+/resolve/main)"
        r"/LICENSE(\.md)?",
        TERMS[spdx].text or "",
    )


def test_what_must_be_repeated_is_the_text_of_the_teacher_s_terms_or_of_the_data_s() -> None:
    assert text_to_repeat([teacher("MIT"), data("CC-BY-4.0"), data(UNSTATED), data("LicenseRef-of-my-own")]) is None
    save_text(ASL, "Share it.")
    save_text(FAIR, "\n Do no harm.\n")
    assert text_to_repeat([teacher(ASL), data("MIT")]) == "Share it."
    assert text_to_repeat([teacher("MIT"), data("MIT"), data(FAIR)]) == "Do no harm."


@pytest.mark.parametrize("saved", [None, b""])
def test_text_that_is_not_here_is_asked_for_in_one_sentence(saved: bytes | None) -> None:
    path = text_path(TERMS[ASL])
    if saved is not None:
        save_text(ASL, saved)
    with pytest.raises(LicenceError) as caught:
        text_to_repeat([teacher("MIT"), teacher(ASL)])
    assert str(caught.value) == (
        f"teacher a/teacher is under {ASL}, whose text its students must repeat, and which is not here; "
        f"save {TERMS[ASL].text} as {path}, or run: zoo teachers fetch a/teacher --accept-licence"
    )
    for source in (data(ASL), Source("teacher", "own/mine", ASL)):  # nothing fetches these
        with pytest.raises(LicenceError, match=f"{source.name} is under .* as {path}$"):
            text_to_repeat([source])


@pytest.mark.parametrize("saved", [b" \n", b"<!DOCTYPE html><html>", b"\xff\xfe\x00", b"word " * 12_000])
def test_what_is_no_text_in_the_place_of_one_is_said(saved: bytes) -> None:
    path = save_text(ASL, saved)
    with pytest.raises(LicenceError) as caught:
        text_to_repeat([teacher("MIT"), teacher(ASL)])
    assert str(caught.value) == (
        f"teacher a/teacher is under {ASL}, whose text its students must repeat, and {path} is no text of {ASL} (it is "
        f"blank, not UTF-8, a web page, or more than 48 KiB); mend it, or save {TERMS[ASL].text} in its place"
    )


@pytest.mark.parametrize(
    ("licence", "sources"),
    [
        ("MIT", [teacher("MIT")]),
        ("MIT", [teacher("CC0-1.0"), data("CC0-1.0")]),
        ("CC-BY-4.0", [teacher("MIT"), data("CC-BY-4.0")]),
        ("CC-BY-NC-SA-4.0", [teacher("CC-BY-NC-4.0"), data("CC-BY-4.0")]),
        (ASL, [teacher(ASL), data("CC-BY-4.0")]),
        (FAIR, [teacher(FAIR), data("CC-BY-4.0")]),
        ("MIT", [teacher("LGPL-3.0-or-later"), data("CC0-1.0")]),
        ("CC-BY-4.0", [teacher("LGPL-3.0-or-later"), data("CC-BY-4.0")]),
        ("MIT", [teacher("LGPL-2.1-or-later")]),
        ("LGPL-3.0-or-later", [teacher("LGPL-2.1-or-later")]),
    ],
)
def test_allowed(licence: str, sources: list[Source]) -> None:
    check_terms("a/student", licence, sources)


@pytest.mark.parametrize(
    ("licence", "sources", "words"),
    [
        (
            "MIT",
            [teacher("CC-BY-NC-4.0")],
            "a/student is MIT, but the weights of its teacher a/teacher are CC-BY-NC-4.0, which forbids that; "
            "set the recipe's licence to CC-BY-NC-4.0 or CC-BY-NC-SA-4.0",
        ),
        (
            "MIT",
            [teacher("MIT"), data("CC-BY-4.0"), data("CC-BY-NC-4.0")],
            "a/student is MIT, but its data set crystals is CC-BY-4.0, which forbids that; "
            "set the recipe's licence to CC-BY-NC-4.0 or CC-BY-NC-SA-4.0",
        ),
        (
            "CC-BY-SA-4.0",
            [teacher("CC-BY-SA-4.0"), data("CC-BY-NC-4.0")],
            "no licence is left that all its sources allow (a/teacher CC-BY-SA-4.0, crystals CC-BY-NC-4.0)",
        ),
        ("MIT", [teacher("Apache-2.0")], "set the recipe's licence to Apache-2.0"),
        ("CC-BY-NC-4.0", [teacher(ASL)], f"set the recipe's licence to {ASL}"),
        ("Apache-2.0", [teacher(FAIR)], f"set the recipe's licence to {FAIR}"),
        ("LGPL-3.0-or-later", [teacher("MIT")], "a/student is LGPL-3.0-or-later, but"),
        ("LGPL-2.1-or-later", [teacher("LGPL-3.0-or-later")], "a/student is LGPL-2.1-or-later, but"),
        ("proprietary", [teacher("CC0-1.0")], "a/student is proprietary, but"),
        ("MIT", [teacher("WTFPL")], "the weights of its teacher a/teacher are WTFPL, whose terms zoo does not know"),
        ("MIT", [teacher("MIT"), data("")], "its data set crystals is , whose terms zoo does not know"),
    ],
)
def test_forbidden(licence: str, sources: list[Source], words: str) -> None:
    with pytest.raises(LicenceError) as error:
        check_terms("a/student", licence, sources)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_of_data_without_terms_there_is_something_to_say_and_nothing_is_forbidden() -> None:
    silent = Source("data", "md22", UNSTATED)
    check_terms("a/student", "MIT", [teacher("MIT"), silent])
    text = "data set md22 states no licence; ask its authors before you pass on what learns from it"
    assert unstated([teacher(UNSTATED), data("MIT"), silent, silent]) == {"md22": text}


def test_whether_commercial_use_is_allowed() -> None:
    assert is_commercial("MIT") is True
    assert is_commercial(ASL) is False
    assert is_commercial("WTFPL") is None
    assert is_commercial(None) is None


def test_the_licence_of_the_code_is_that_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    assert project["project"]["license"] == CODE_LICENCE
