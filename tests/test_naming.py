"""The naming law: what a string means is told by its form alone."""

from pathlib import Path

import pytest
from huggingface_hub.utils import validate_repo_id

from zoo.errors import ConfigError, UnknownNameError
from zoo.naming import (
    EngineName,
    Repository,
    default_namespace,
    engine_name_of,
    file_on_hub,
    is_engine_name,
    parse_name,
)

LAWFUL = ["jmp-l/md22-student", "sevennet-0/teacher", "a/b", "x1.5/y-2.0-z", "0/0"]
UNLAWFUL = [
    "",
    "sevennet-0",
    "a/b/c",
    "A/b",
    "a/B",
    "a_b/c",
    "a--b/c",
    "-a/b",
    "a-/b",
    "a..b/c",
    ".a/b",
    "a./b",
    "a/b.",
    "a/b.git",
    "a /b",
    "a/b\n",
    "é/b",
    "a/" + "b" * 96,
    "runs/a/model",
    "http://x/y",
    "a/b@",
    "a/b@../c",
    "a/b@v1/x",
]


@pytest.mark.parametrize("text", LAWFUL)
def test_a_lawful_name_is_read_and_can_be_read_back_from_its_repository(text: str) -> None:
    name = parse_name(text)
    assert isinstance(name, EngineName)
    assert name.name == text
    assert is_engine_name(text)
    repository = name.repository("mlff-zoo")
    validate_repo_id(repository.id)
    assert engine_name_of(repository.name) == text


@pytest.mark.parametrize("text", UNLAWFUL)
def test_any_other_string_names_nothing_and_the_error_lists_the_forms(text: str) -> None:
    with pytest.raises(UnknownNameError, match=r"family/engine.*hf://owner/repo.*\./folder"):
        parse_name(text)


def test_a_name_can_be_pinned() -> None:
    assert parse_name("a/b@v12") == EngineName("a", "b", "v12")
    assert parse_name("a/b@v1").repository("me") == Repository("me", "a_b", "v1")


def test_a_repository_is_named_by_its_address() -> None:
    assert parse_name("hf://Me-2/some_Model.v2") == Repository("Me-2", "some_Model.v2")
    assert parse_name("hf://me/x@v1") == Repository("me", "x", "v1")
    assert Repository("me", "x").folder == "models--me--x"


@pytest.mark.parametrize(
    "text",
    ["hf://me", "hf://me/", "hf:///x", "hf://me/x@", "hf://me/a--b", "hf://../x", "hf://me/..", "hf://a/b/c"],
)
def test_a_bad_address_is_an_error(text: str) -> None:
    with pytest.raises(UnknownNameError, match="hf://owner/repo"):
        parse_name(text)


@pytest.mark.parametrize("text", ["./a", "../a/b", "/a/b", "~/a", ".", "..", "~", "./a/b@v1"])
def test_a_path_is_told_by_its_beginning(text: str) -> None:
    assert parse_name(text) == Path(text).expanduser()


def test_a_path_object_is_a_folder_whatever_it_looks_like() -> None:
    assert parse_name(Path("a/b")) == Path("a/b")


def test_a_folder_that_lacks_its_dot_is_pointed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/a/model").mkdir(parents=True)
    with pytest.raises(UnknownNameError, match=r"called \./runs/a/model"):
        parse_name("runs/a/model")


def test_namespaces_come_from_the_argument_the_environment_or_zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZOO_NAMESPACE", raising=False)
    assert default_namespace(None) == "mlff-zoo"
    monkeypatch.setenv("ZOO_NAMESPACE", "us")
    assert default_namespace(None) == "us"
    assert default_namespace("me") == "me"


@pytest.mark.parametrize("namespace", ["a--b", "../x", "a/b", "-a", "a b"])
def test_a_namespace_that_no_hub_takes_is_an_error(namespace: str) -> None:
    with pytest.raises(ConfigError, match="namespace"):
        EngineName("a", "b").repository(namespace)


def test_a_revision_cannot_leave_the_hub() -> None:
    with pytest.raises(ConfigError, match="revision"):
        Repository("me", "x", "../../etc")


@pytest.mark.parametrize("repository", ["x", "A_b", "a_b_c", "_b", "a_"])
def test_a_repository_of_another_form_holds_no_engine_of_the_zoo(repository: str) -> None:
    assert engine_name_of(repository) is None


def test_address_of_a_file_on_a_hub_says_where_it_is() -> None:
    at = file_on_hub("https://huggingface.co/facebook/UMA/resolve/main/checkpoints/uma%2Bs.pt")
    assert at == ("https://huggingface.co", Repository("facebook", "UMA"), "main", "checkpoints/uma+s.pt")
    deep = file_on_hub("http://127.0.0.1:80/hub/lab/a/resolve/refs%2Fpr%2F1/resolve/b.pt")
    assert deep == ("http://127.0.0.1:80/hub", Repository("lab", "a"), "refs%2Fpr%2F1", "resolve/b.pt")


@pytest.mark.parametrize(
    "url",
    [
        "https://raw.githubusercontent.com/a/b/main/LICENSE",
        "https://huggingface.co/resolve/main/x",
        "https://huggingface.co/a/b/resolve/main/",
        "https://huggingface.co/a/b/blob/main/x",
    ],
)
def test_address_of_another_form_is_on_no_hub(url: str) -> None:
    assert file_on_hub(url) is None
