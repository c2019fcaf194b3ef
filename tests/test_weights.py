"""Files of weights are found where they belong, and opened only where they are what they should be."""

import hashlib
import re
from pathlib import Path

import pytest

from zoo.config import write_json
from zoo.errors import ConfigError, IntegrityError, MissingPackageError
from zoo.files import cache_root
from zoo.teachers.weights import (
    FACTS,
    OwnTeacher,
    Record,
    Weights,
    compare,
    copies,
    digests_of,
    find_own,
    find_weights,
    is_own,
    own_teacher,
    own_teachers,
    record_path,
    weights_folder,
    weights_path,
)

BODY = b"numbers of a network"
URL = "https://example.org/models/large.model"
NAME, SIBLING = "mace-mh-1/omol-teacher", "mace-mh-1/pbe-teacher"


def sha256(body: bytes) -> str:
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


PUBLISHED = Weights(URL, sha256(BODY))
PINNED = Weights(URL)


def put(name: str, body: bytes = BODY, weights: Weights = PUBLISHED) -> Path:
    path = weights_path(name, weights)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return path


def pin(path: Path, body: bytes = BODY, url: str = URL) -> None:
    write_json(record_path(path), Record(url=url, digest=sha256(body), size=len(body)))


def refusal(kind: type[Exception], name: str, weights: Weights) -> str:
    with pytest.raises(kind) as caught:
        find_weights(name, weights)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_file_lies_in_the_folder_of_its_teacher_under_the_name_of_its_address() -> None:
    expected = cache_root() / "teachers" / "mace-mh-1" / "omol-teacher" / "large.model"
    assert weights_path(NAME, Weights(f"{URL}?download=1")) == expected == put(NAME)
    assert find_weights(NAME, PUBLISHED) == (expected, hashlib.sha256(BODY).hexdigest())


def test_file_that_was_not_fetched_is_named_with_the_command() -> None:
    assert f"zoo teachers fetch {NAME}" in refusal(MissingPackageError, NAME, PUBLISHED)


def test_digest_of_git_is_that_which_git_says(tmp_path: Path) -> None:
    path = tmp_path / "hello"
    path.write_bytes(b"hello\n")
    assert digests_of(path, git=True)[1] == "git:ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object
    assert digests_of(path) == [sha256(b"hello\n")]


@pytest.mark.parametrize("kind", ["sha256", "git"])
def test_file_is_read_once_for_all_that_is_asked_of_it(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    path = put(NAME)
    weights = Weights(URL, digests_of(path, git=True)[kind == "git"], len(BODY))
    opened: list[str] = []
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *how, **more: opened.append(self.name) or real(self, *how, **more))
    assert find_weights(NAME, weights).sha256 == hashlib.sha256(BODY).hexdigest()
    assert opened.count("large.model") == 1


@pytest.mark.parametrize("kind", ["sha256", "git"])
def test_other_file_is_refused_with_both_digests_and_the_remedy(kind: str) -> None:
    path = put(NAME)
    place = kind == "git"
    weights = Weights(URL, digests_of(path, git=True)[place])
    assert find_weights(NAME, weights).path == path
    path.write_bytes(BODY[:-1] + b"X")
    message = refusal(IntegrityError, NAME, weights)
    assert f"{path} has {digests_of(path, git=True)[place]}, expected {weights.digest} as published" in message
    assert message.endswith(f"not opened, remove it, and run: zoo teachers fetch {NAME}")


def test_truncated_file_is_refused_by_its_size() -> None:
    put(NAME, BODY[:-3])
    assert "17 bytes, expected 20 as published" in refusal(IntegrityError, NAME, Weights(URL, sha256(BODY), size=20))


def test_digest_from_third_hand_is_called_that_and_the_user_may_know_better() -> None:
    path, weights = put(NAME, BODY[:-3]), Weights(URL, sha256(BODY), size=20, seen="index")
    message = refusal(IntegrityError, NAME, weights)
    found = sha256(BODY[:-3])
    assert f"has 17 bytes and {found}, expected 20 bytes and {sha256(BODY)}, which zoo has from third hand" in message
    assert message.endswith(f"if you know it to be right, run: zoo teachers fetch {NAME} --accept-digest {found}")
    assert "published" not in message
    path.write_bytes(BODY)
    assert find_weights(NAME, weights).path == path


def accept(path: Path, body: bytes) -> None:
    record = Record(url=URL, digest=sha256(body), size=len(body), accepted=True)
    write_json(record_path(path), record)


def test_what_the_user_accepted_counts_against_third_hands_alone() -> None:
    path = put(NAME, b"as he knows it")
    third = Weights(URL, sha256(BODY), size=20, seen="index")
    pin(path, b"as he knows it")
    assert "third hand" in refusal(IntegrityError, NAME, third), "a first download is not what he accepted"
    accept(path, b"as he knows it")
    assert find_weights(NAME, third).path == path
    assert find_weights(NAME, PINNED).path == path
    assert "as published" in refusal(IntegrityError, NAME, PUBLISHED)
    path.write_bytes(BODY)
    message = refusal(IntegrityError, NAME, third)
    assert f"expected 14 bytes and {sha256(b'as he knows it')} as you have accepted it" in message


def test_size_without_a_digest_is_held_to() -> None:
    assert compare(put(NAME), Weights(URL, size=20))[1] is None
    assert compare(put(NAME), Weights(URL, size=21, seen="index"))[1] == (
        "20 bytes, expected 21, which zoo has from third hand, not from its publisher"
    )


def test_without_a_published_digest_the_first_download_counts() -> None:
    path = put(NAME)
    assert f"to take it as it is, run: zoo teachers fetch {NAME}" in refusal(IntegrityError, NAME, PINNED)
    pin(path)
    assert find_weights(NAME, PINNED).path == path
    path.write_bytes(BODY + b"!")
    message = refusal(IntegrityError, NAME, PINNED)
    assert f"{sha256(BODY)}, which was recorded at its first download" in message
    assert f"run: zoo teachers fetch {NAME} --accept-digest {sha256(BODY + b'!')}" in message


def test_record_of_another_address_pins_nothing() -> None:
    pin(put(NAME), url="https://example.org/other/large.model")
    assert "came from https://example.org/other/large.model" in refusal(IntegrityError, NAME, PINNED)


def test_one_file_serves_all_teachers_that_are_made_from_it() -> None:
    path = put(NAME)
    assert not list(copies(SIBLING, PUBLISHED)), "without a record nobody knows where it came from"
    pin(path)
    assert find_weights(SIBLING, PUBLISHED).path == path
    assert find_weights(SIBLING, PINNED).path == path
    elsewhere = Weights("https://example.org/v2/large.model", sha256(BODY))
    refusal(MissingPackageError, SIBLING, elsewhere)
    refusal(MissingPackageError, "mace-mp-0/teacher", PUBLISHED)
    own = put(SIBLING)
    assert find_weights(SIBLING, PUBLISHED).path == own


def test_file_of_a_sibling_is_checked_too() -> None:
    path = put(NAME)
    pin(path)
    path.write_bytes(b"something else")
    assert "expected" in refusal(IntegrityError, SIBLING, PUBLISHED)
    assert "expected" in refusal(IntegrityError, SIBLING, PINNED)


@pytest.mark.parametrize(
    ("url", "digest"),
    [
        ("ftp://example.org/file", None),
        ("https://example.org/", None),
        (URL, "md5:d41d8cd98f00b204e9800998ecf8427e"),
        (URL, "sha256:" + "0" * 40),
        (URL, "git:" + "0" * 64),
        (URL, "sha256:" + "0" * 64 + "\n"),
    ],
)
def test_weights_that_no_file_can_be_are_refused(url: str, digest: str | None) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Weights(url, digest)


# --- teachers of one's own -------------------------------------------------------------------------


def add(name: str = "own/mine", body: bytes = BODY, **facts: object) -> OwnTeacher:
    told = {
        "name": name,
        "family": "mace",
        "file": "my model.pt",
        "sha256": hashlib.sha256(body).hexdigest(),
        "elements": ("H", "O"),
        "licence": "MIT",
        "level_of_theory": "PBE",
    }
    own = OwnTeacher.model_validate(told | facts)
    folder = weights_folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / own.file).write_bytes(body)
    write_json(folder / FACTS, own)
    return own


def test_own_teacher_is_what_was_recorded() -> None:
    facts = add(head="omol", citation="me")
    assert own_teacher("own/mine") == facts
    assert find_own(facts).read_bytes() == BODY
    assert own_teacher("own/yours") is None


def test_heads_of_one_file_are_teachers_of_their_own() -> None:
    files = [add(body=body, head=head) for body in (BODY, b"another") for head in (None, "omol", "omat")]
    assert len({facts.digest for facts in files}) == len(files)
    assert all(re.fullmatch("[0-9a-f]{64}", facts.digest) for facts in files)
    assert files[0].digest == files[0].sha256
    assert find_own(files[-1]).is_file(), "what is checked is the file alone"


def test_own_teachers_are_listed_by_name() -> None:
    assert own_teachers() == ()
    second, first = add("own/b-teacher"), add("own/a-teacher")
    assert own_teachers() == (first, second)


def test_changed_or_missing_file_of_ones_own_is_refused() -> None:
    facts = add()
    path = find_own(facts)
    path.write_bytes(b"another")
    with pytest.raises(IntegrityError, match=r"digest .*not opened.*zoo teachers add own/mine FILE"):
        find_own(facts)
    path.unlink()
    with pytest.raises(IntegrityError, match=r"is missing; .*zoo teachers add own/mine FILE"):
        find_own(facts)


def test_record_of_another_name_is_refused() -> None:
    add("own/mine")
    weights_folder("own/mine").rename(weights_folder("own/yours"))
    with pytest.raises(ConfigError, match="is of own/mine, expected own/yours"):
        own_teacher("own/yours")


@pytest.mark.parametrize("wrong", [{"file": "../../etc/passwd"}, {"elements": ("H", "Xx")}, {"sha256": "0"}])
def test_record_that_could_mislead_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        add(**wrong)


@pytest.mark.parametrize(
    ("name", "own"), [("own/mine", True), ("mace/mine", False), ("own/", False), ("own/../x", False), ("own", False)]
)
def test_names_of_ones_own_begin_so_and_follow_the_law(name: str, own: bool) -> None:
    assert is_own(name) is own
    assert own_teacher(name) is None
