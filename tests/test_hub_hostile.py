"""Input that means harm: every case ends in one line, soon, in little memory, and inside its own place."""

import gzip
import hashlib
import json
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import model_folders as folders
import numpy as np
import pytest
from click.testing import CliRunner
from hub_server import Fault, HubServer
from safetensors.numpy import load as read_tensors
from safetensors.numpy import save as tensors_of

import zoo
import zoo.hub.client
from zoo.cli import main
from zoo.errors import (
    AccessError,
    ConfigError,
    HubError,
    IntegrityError,
    NotReleasedError,
    PublishError,
    StructureError,
    UnknownNameError,
    ZooError,
)
from zoo.hub.base import Resolved
from zoo.hub.cache import parse_hub
from zoo.hub.catalogue import entries
from zoo.hub.folder import FolderHub
from zoo.listing import describe, listing
from zoo.naming import Repository

pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes/text content:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::zoo.errors.ZooWarning"),
    pytest.mark.filterwarnings("ignore:Not enough free disk space:UserWarning"),
]

NAME = folders.NAME
OWNER = "me"
REPOSITORY = Repository(OWNER, NAME.replace("/", "_"))
HERE = "/".join(["deep"] * 6)  # where all happens, so that paths that climb out land in the canary's cage
UP = "../" * 8
ESCAPE = "\x1b]0;owned\x07\x1b[31m\r\n\u202e"
LONG = "a" * 1_000_000
UNFIT = (HubError, IntegrityError, NotReleasedError)  # what an answer of no hub ends in
LONGEST_MESSAGE = 2000  # characters
PATIENCE = 20  # seconds that a case may take


@pytest.fixture(autouse=True)
def hang_guard() -> Iterator[None]:
    """No case hangs: it is an error after a while, whatever it waits for."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"still at it after {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for cache, temporary files and hubs; around it a cage where nothing may appear, change or go."""
    place = tmp_path / HERE
    (place / "temporary").mkdir(parents=True)
    for folder in (tmp_path, *place.relative_to(tmp_path).parents):
        at = tmp_path / folder
        for name in ("canary", "manifest.json", "blobs", "main"):
            (at / name).write_text("canary")
    monkeypatch.setenv("ZOO_CACHE", str(place / "cache"))
    monkeypatch.setenv("TMPDIR", str(place / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", str(place / "temporary"))
    before = _outside(tmp_path)
    yield place
    assert _outside(tmp_path) == before
    assert not list((place / "temporary").iterdir())


def _outside(cage: Path) -> dict[str, bytes | str]:
    """Everything in the cage but the folder in which all happens."""
    found: dict[str, bytes | str] = {}
    for folder in (cage, *[cage / part for part in Path(HERE).parents[:-1]]):
        for path in folder.iterdir():
            name = path.relative_to(cage).as_posix()
            if not HERE.startswith(name):
                found[name] = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else ""
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a good engine."""
    folder = folders.make_folder(tmp_path_factory.mktemp("good") / "model")
    return {path: content for path, content in folders.tree(folder).items() if isinstance(content, bytes)}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer(users={"secret-token": OWNER}) as server:
        _online(monkeypatch, server)
        yield server


def _online(monkeypatch: pytest.MonkeyPatch, server: HubServer) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("ZOO_HUB", server.endpoint)
    monkeypatch.setenv("ZOO_HUB_TOKEN", "secret-token")
    monkeypatch.setenv("ZOO_NAMESPACE", OWNER)
    monkeypatch.setenv("ZOO_HUB_TIMEOUT", "1")
    monkeypatch.setattr(zoo.hub.client, "PAUSES", (0.01,))


def refused(kind: type[Exception] | tuple[type[Exception], ...], call: Callable[[], object]) -> str:
    """The message of the error, which is of zoo, in one line of sane length that a terminal can show."""
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert isinstance(caught.value, ZooError)
    assert text
    assert text.isprintable()
    assert len(text) < LONGEST_MESSAGE
    return text


def command(*words: str, codes: tuple[int, ...] = (1, 2)) -> str:
    """What the command prints; it never ends in a traceback and never prints a control character."""
    result = CliRunner().invoke(main, words)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in codes
    assert result.output.replace("\n", "").isprintable()
    assert "Traceback" not in result.output
    return result.output


def sealed(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files with a manifest that fits them, so that only who reads them can refuse them."""
    kept = {path: files[path] for path in sorted(files) if path != "manifest.json"}
    return {**kept, "manifest.json": _manifest([_entry(path, data) for path, data in kept.items()])}


def _entry(path: str, data: bytes, /, **changes: object) -> dict[str, object]:
    return {"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest(), **changes}


def _manifest(entries: object) -> bytes:
    return json.dumps({"format": 1, "files": entries}).encode()


def put(server: HubServer, files: Mapping[str, bytes], tag: str = "v1", repository: str = REPOSITORY.id) -> str:
    """Puts files on the server as they are, as a version."""
    server.create(repository)
    commit = server.commit(repository, files)
    server.tag(repository, tag, commit)
    return commit


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def in_a_process(code: str, *words: str, memory: int = 0, **environment: str) -> str:
    """What Python prints in a process of its own, which may take ``memory`` MB beyond what importing zoo takes."""
    limit = (
        "import resource; peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024; base = peak()\n"
    )
    check = f"\nassert peak() - base < {memory}, peak() - base" if memory else ""
    preamble = "import sys, zoo, zoo.hub.client, zoo.listing, zoo.publish; from pathlib import Path\n"
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", preamble + limit + code + check, *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(here).parent), here]), **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# Names, revisions, namespaces, addresses

NAMES = {
    "climbs": "a/../b",
    "ends above": "a/..",
    "climbs twice": "a/b/../../c",
    "revision climbs": "a/b@../../x",
    "revision percent": "a/b@%2e%2e",
    "revision path": "a/b@v1/../..",
    "percent slash": "a%2Fb/c",
    "NUL": "a/b\0",
    "newline": "a/b\n",
    "escape": f"a/b{ESCAPE}",
    "bidi": "a/b\u202e",
    "look-alike": "\u0430/b",
    "a megabyte": LONG,
    "a long engine": f"a/{'b' * 97}",
    "a long revision": f"a/b@{LONG}",
    "two hyphens": "a--b/c",
    "git": "a/b.git",
    "dash first": "-a/b",
    "shell": "a/$(touch canary)",
    "semicolon": "a/b;id",
    "star": "a/*",
    "brackets": "a/[b]",
    "empty": "",
    "revision only": "@v1",
    "no revision": "a/b@",
    "option": "a/b@--help",
    "backslash": "a\\b/c",
    "space": "a/ b",
    "file URL": "file:///etc/passwd",
    "ftp URL": "ftp://host/x",
    "hf climbs": "hf://../..",
    "hf above": "hf://a/..",
    "hf deeper": "hf://a/../b",
    "hf revision climbs": "hf://a/b@../x",
    "hf percent": "hf://a/b%2f..",
    "hf hyphens": "hf://a--b/c",
    "hf newline": "hf://a/b@v1\n",
    "hf a megabyte": f"hf://{LONG}",
    "hf a long owner": f"hf://{'a' * 97}/b",
    "hf a long revision": f"hf://a/b@{LONG}",
    "hf NUL": "hf://a/b\0",
    "folder NUL": "./\0",
    "folder newline": "./a\nb",
    "folder escape": f"./{ESCAPE}",
    "folder bidi": "./\u202e",
    "a long folder": f"./{LONG}",
    "a long root": f"/{'a' * 300}",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_hostile_name_names_nothing(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "hub").mkdir()
    hub = str(place / "hub")
    for call in (zoo.load, describe, lambda name, hub: zoo.pull([name], place / "pulled", hub=hub)):
        refused((UnknownNameError, ConfigError), lambda call=call: call(name, hub=hub))
    if "\0" not in name:
        monkeypatch.setenv("ZOO_HUB", hub)
        for words in (["info"], ["check"], ["pull", "--to", str(place / "pulled")]):
            command(*words, "--", name)
    assert not (place / "pulled").exists()
    assert not (place / "cache").exists()


REVISIONS = [
    "../../x",
    "..",
    "/etc/passwd",
    "%2e%2e%2f",
    "v1\0",
    "v1\n",
    f"v1{ESCAPE}",
    "-v1",
    "v1 ",
    "*",
    "[a]",
    LONG,
    "",
]


@pytest.mark.parametrize("revision", REVISIONS, ids=[f"{index}" for index in range(len(REVISIONS))])
def test_a_hostile_revision_is_refused(revision: str, place: Path) -> None:
    for name in ("a/b", "hf://a/b"):
        refused(ConfigError, lambda name=name: zoo.load(name, revision=revision, hub=place))


NAMESPACES = ["..", "../..", "x/../y", "/etc", "a/b", "a/**/b", "*", "[a-z]", "?", "-a", "a-", "a--b", "a.b", ".git"]
NAMESPACES += ["a\0", "a\n", ESCAPE, "\u0430", "%2e%2e", "a b", "$HOME", "~", LONG]


@pytest.mark.parametrize("namespace", NAMESPACES, ids=[f"{index}" for index in range(len(NAMESPACES))])
def test_a_hostile_namespace_is_refused(
    namespace: str, place: Path, model: dict[str, bytes], server: HubServer
) -> None:
    files = write(place / "files", model)
    FolderHub(place / "hub").add(REPOSITORY, files, lambda _: None)
    for hub in (place / "hub", server.endpoint):
        for call in (zoo.load, describe):
            refused(ConfigError, lambda call=call, hub=hub: call(NAME, hub=hub, namespace=namespace))
        refused(ConfigError, lambda hub=hub: zoo.pull([NAME], place / "pulled", hub=hub, namespace=namespace))
        refused(ConfigError, lambda hub=hub: zoo.publish(files, hub, namespace=namespace))
        refused(ConfigError, lambda hub=hub: listing(hub, namespace=namespace))
        refused(ConfigError, lambda hub=hub: zoo.names(hub, namespace=namespace))
        if "\0" not in namespace:
            command("list", "--hub", str(hub), f"--namespace={namespace}")
    assert not server.requests


ADDRESSES = {
    "file": "file:///etc",
    "ftp": "ftp://host/x",
    "script": "javascript://x",
    "user": "http://user:password@host",
    "empty user": "http://@host",
    "climbs": "http://host/../..",
    "percent": "http://host/%2e%2e",
    "percent slash": "http://host/%2Fa",
    "semicolon": "http://host/..;/x",
    "IPv6 open": "http://[::1",
    "IPv6 zone": "http://[fe80::1%25eth0]",
    "IPv6 future": "http://[v1.x]",
    "port over": "http://host:65536",
    "port zero": "http://host:0",
    "port negative": "http://host:-1",
    "port word": "http://host:x",
    "no host": "http:///x",
    "port alone": "http://:80",
    "query": "http://host?x",
    "empty query": "http://host?",
    "fragment": "http://host#x",
    "space": "http://a b",
    "newline": "http://host/\n",
    "NUL": "http://host/\0",
    "escape": f"http://host/{ESCAPE}",
    "look-alike": "http://\u0430.com",
    "two dots": "http://a..b",
    "a dot": "http://.",
    "a hyphen": "http://-",
    "backslash": "http://good\\@evil",
    "five numbers": "http://1.2.3.4.5",
    "a large number": "http://999.1.1.1",
    "a long host": f"http://{'a' * 300}",
    "a megabyte": f"http://{LONG}",
    "a long path": f"http://host/{LONG}",
    "folder NUL": "hub\0",
    "folder newline": "hub\n",
    "folder escape": f"./{ESCAPE}",
    "a long folder": LONG,
    "nobody's home": "~nosuchuser/hub",
}


@pytest.mark.parametrize("address", ADDRESSES.values(), ids=ADDRESSES)
def test_a_hostile_address_is_no_hub(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for call in (parse_hub, lambda hub: zoo.load(NAME, hub=hub), listing, lambda hub: zoo.publish("x", hub)):
        refused(ConfigError, lambda call=call: call(address))
    if "\0" not in address:
        monkeypatch.setenv("ZOO_HUB", address)
        command("list")
        refused(ConfigError, zoo.names)


@pytest.mark.parametrize("to", ["\0", "a\nb", ESCAPE, "~nosuchuser/x", "...tar", "..tar", LONG], ids=range(7))
def test_a_hostile_place_to_pull_to_is_refused(
    to: str, place: Path, model: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    FolderHub(place / "hub").add(REPOSITORY, write(place / "files", model), lambda _: None)
    monkeypatch.chdir(place)
    refused((ConfigError, UnknownNameError), lambda: zoo.pull([NAME], to, hub=place / "hub", namespace=OWNER))


# Answers of a server

CLIMB = f'"{UP}planted"'
HEADERS: dict[str, dict[str, str | None]] = {
    "etag climbs": {"ETag": CLIMB},
    "etag absolute": {"ETag": '"/tmp/planted"'},
    "etag NUL": {"ETag": '"a\0b"'},
    "etag 10 kB": {"ETag": f'"{"a" * 10_000}"'},
    "etag empty": {"ETag": '""'},
    "etag a name": {"ETag": '"planted"'},
    "linked etag climbs": {"X-Linked-Etag": CLIMB},
    "linked etag absolute": {"X-Linked-Etag": "/tmp/planted"},
    "commit climbs": {"X-Repo-Commit": f"{UP}planted"},
    "commit absolute": {"X-Repo-Commit": "/tmp/planted"},
    "commit of another": {"X-Repo-Commit": "0" * 40},
    "commit NUL": {"X-Repo-Commit": "a\0"},
    "no commit": {"X-Repo-Commit": None},
    "length negative": {"Content-Length": "-1"},
    "length of 5000 digits": {"Content-Length": "9" * 5000},
    "length a terabyte": {"Content-Length": str(1 << 40)},
    "length no number": {"Content-Length": "\u00b2"},
    "linked size absurd": {"X-Linked-Size": "9" * 5000, "X-Linked-Etag": f'"{"0" * 64}"'},
    "gzip": {"Content-Encoding": "gzip"},
    "a coding of its own": {"Content-Encoding": "zoo, zip, br, zstd"},
}


@pytest.mark.parametrize("headers", HEADERS.values(), ids=HEADERS)
def test_hostile_headers_of_a_file(headers: dict[str, str | None], server: HubServer, model: dict[str, bytes]) -> None:
    put(server, model)
    server.order(Fault(None, "/resolve/", "headers", times=float("inf"), headers=headers))
    refused(UNFIT, lambda: zoo.load(NAME))
    refused(UNFIT, lambda: describe(NAME))
    server.heal()
    assert zoo.load(NAME).provenance.revision == "v1"  # what was done can be done again


@pytest.mark.parametrize("header", ["ETag", "X-Linked-Etag", "X-Repo-Commit"])
@pytest.mark.parametrize("target", ["/elsewhere", "/resolv%65/x", "//{host}/elsewhere", "http://{host}/elsewhere"])
def test_hostile_headers_behind_a_redirect(
    header: str, target: str, server: HubServer, model: dict[str, bytes], place: Path
) -> None:
    commit = put(server, model)
    honest = {"ETag": f'"{"0" * 40}"', "X-Repo-Commit": commit}
    url = target.format(host=server.endpoint.removeprefix("http://"))
    server.order(Fault(None, "/resolve/", "redirect", times=float("inf"), url=url))
    evil = {**honest, header: f"{UP}planted"}
    body = model["manifest.json"]
    server.order(Fault(None, "elsewhere|resolv%65", "status", times=float("inf"), status=200, headers=evil, body=body))
    refused(UNFIT, lambda: zoo.load(NAME))


XET = {
    "X-Xet-Hash": "0" * 64,
    "X-Xet-Refresh-Route": "/xet",
    "Link": '</xet>; rel="xet-auth", </x>; rel="xet-reconstruction-info"',
}


def test_files_never_come_by_another_protocol(server: HubServer, model: dict[str, bytes]) -> None:
    put(server, model)
    server.order(Fault(None, "/resolve/", "headers", times=float("inf"), headers=XET))
    assert zoo.load(NAME).name == NAME
    assert not [request for request in server.requests if "xet" in request.path]


def test_a_listing_that_names_another_protocol_names_no_files_here(server: HubServer, model: dict[str, bytes]) -> None:
    put(server, model)
    evil = {"oid": f"{UP}planted", "size": 5, "pointerSize": 100}
    entries = [
        {"type": "file", "path": path, "size": len(data), "oid": "0" * 40, "lfs": evil, "xetHash": "0" * 64}
        for path, data in model.items()
    ]
    server.order(Fault(None, "/tree/", "body", times=float("inf"), body=json.dumps(entries).encode()))
    assert zoo.load(NAME).name == NAME
    assert not [request for request in server.requests if "xet" in request.path]


REDIRECTS = [
    "file:///etc/passwd",
    "ftp://127.0.0.1/x",
    "http://",
    "http://[::1",
    "//",
    "http://127.0.0.1:1/x",
    "data:,x",
    "\u202e",
]


@pytest.mark.parametrize("url", REDIRECTS, ids=range(len(REDIRECTS)))
@pytest.mark.parametrize("path", ["/refs", "/resolve/"])
def test_a_redirect_to_nowhere(url: str, path: str, server: HubServer, model: dict[str, bytes]) -> None:
    put(server, model)
    server.order(Fault(None, path, "redirect", times=float("inf"), url=url))
    refused(UNFIT, lambda: zoo.load(NAME))


@pytest.mark.parametrize("path", ["/refs", "/resolve/", "/api/models\\?"])
def test_a_redirect_in_a_circle(path: str, server: HubServer, model: dict[str, bytes]) -> None:
    put(server, model)
    circle = {"Location": None}
    server.order(
        Fault(None, path, "status", times=float("inf"), status=307, headers={**circle, "Location": "?again=resolve"})
    )
    server.order(Fault(None, "again=", "status", times=float("inf"), status=307, headers={"Location": "?again=tree"}))
    if "?" in path:
        assert listing()
    else:
        refused(UNFIT, lambda: zoo.load(NAME))
    assert len(server.requests) < 200


def _refs(**changes: object) -> bytes:
    return json.dumps({"branches": [], "tags": [], "converts": [], "pullRequests": [], **changes}).encode()


def _ref(name: object = "v1", commit: object = "0" * 40, ref: object = "refs/tags/v1") -> dict[str, object]:
    return {"name": name, "ref": ref, "targetCommit": commit}


DEEP = b"[" * 100_000 + b"]" * 100_000
STRANGE: dict[str, Any] = {
    "null": None,
    "number": 5,
    "text": "x",
    "list": [[]],
    "map": {"a": 1},
    "true": True,
    "negative": -1,
}
ANY_BODY = {
    "empty": b"",
    "no JSON": b"<html>",
    "NaN": b"NaN",
    "10,000 digits": b"9" * 10_000,
    "deep": DEEP,
    "deep map": b'{"a":' * 100_000,
    "not UTF-8": b"\xff\xfe\0",
    "bytes 0": bytes(1000),
    "half a pair": b'"\\ud800"',
    **{name: json.dumps(value).encode() for name, value in STRANGE.items()},
}
REFS = {
    **ANY_BODY,
    **{f"branches {name}": _refs(branches=value) for name, value in STRANGE.items()},
    **{f"tag {name}": _refs(tags=[value]) for name, value in STRANGE.items()},
    **{f"name {name}": _refs(tags=[_ref(name=value)]) for name, value in STRANGE.items()},
    **{f"commit {name}": _refs(tags=[_ref(commit=value)]) for name, value in STRANGE.items()},
    "commit climbs": _refs(tags=[_ref(commit=f"{UP}planted")]),
    "commit absolute": _refs(tags=[_ref(commit="/tmp/planted")]),
    "commit escape": _refs(tags=[_ref(commit=ESCAPE)]),
    "commit upper case": _refs(tags=[_ref(commit="A" * 40)]),
    "commit newline": _refs(tags=[_ref(commit="0" * 40 + "\n")]),
    "commit a megabyte": _refs(tags=[_ref(commit=LONG)]),
    "branch climbs": _refs(branches=[_ref("main", f"{UP}planted")]),
    "tag name climbs": _refs(tags=[_ref(name=f"{UP}v1")]),
    "tag name escape": _refs(tags=[_ref(name=ESCAPE)]),
    "tag name a megabyte": _refs(tags=[_ref(name=LONG)]),
    "20,000 tags": _refs(tags=[_ref(name=f"v{number}", commit="x") for number in range(1, 20_000)]),
}


@pytest.mark.parametrize("body", REFS.values(), ids=REFS)
def test_a_hostile_answer_about_versions(body: bytes, server: HubServer, model: dict[str, bytes], place: Path) -> None:
    files = write(place / "files", model)
    put(server, model)
    server.order(Fault("GET", "/refs", "body", times=float("inf"), body=body))
    kinds = (HubError, PublishError, UnknownNameError, IntegrityError, AccessError, NotReleasedError)
    for call in (lambda: zoo.load(NAME), lambda: describe(NAME), lambda: zoo.load(f"{NAME}@v1")):
        refused(kinds, call)
    refused(kinds, lambda: zoo.publish(files))
    command("info", NAME)


FIELDS = ["id", "sha", "lastModified", "private", "gated", "tags", "cardData", "siblings", "library_name", "createdAt"]
HOSTILE_CARDS: dict[str, Any] = {
    "new version climbs": {"new_version": "../../x"},
    "new version escape": {"new_version": f"a/{ESCAPE}"},
    "tags": {"tags": [ESCAPE, 5, None, LONG]},
    "model index": {"model-index": ESCAPE},
    "model index of lists": {"model-index": [[[]]]},
    "evaluations": {"eval_results": [1], "self": 1, "ignore_metadata_errors": True},
    "zoo a list": {"zoo": [1]},
    "zoo huge": {"zoo": {"name": LONG}},
    "zoo escapes": {"zoo": {"name": NAME, "purpose": ESCAPE, "elements": [ESCAPE]}},
    "zoo deep": {"zoo": json.loads("[" * 500 + "]" * 500)},
    "licence": {"license": "other", "license_name": ESCAPE},
}


def _model(**changes: object) -> dict[str, object]:
    return {"id": REPOSITORY.id, "sha": "0" * 40, "private": False, "tags": ["zoo"], "cardData": {}, **changes}


MODELS: dict[str, object] = {
    **{f"{field} {name}": _model(**{field: value}) for field in FIELDS for name, value in STRANGE.items()},
    **{f"card with {name}": _model(cardData=card) for name, card in HOSTILE_CARDS.items()},
    "sha climbs": _model(sha=f"{UP}planted"),
    "files climb": _model(siblings=[{"rfilename": f"{UP}planted"}, {"rfilename": "/tmp/planted"}]),
    "of another": _model(id="somebody/sevennet-0_silicon-student"),
    "unlawful": _model(id=f"{OWNER}/../../x"),
    "no underscore": _model(id=f"{OWNER}/x"),
    "an escape": _model(id=f"{OWNER}/a_{ESCAPE}"),
    "a megabyte": _model(id=f"{OWNER}/a_{LONG}"),
    "nothing": {},
}


def test_hostile_answers_about_a_repository(server: HubServer, model: dict[str, bytes]) -> None:
    put(server, model)
    for name, answer in MODELS.items():
        server.heal()
        server.order(Fault("GET", f"/api/models/{REPOSITORY.id}$", "body", body=json.dumps(answer).encode()))
        assert zoo.pull([NAME]).engines, name  # an engine is no worse for what its hub says of it
    for body in ANY_BODY.values():
        server.heal()
        server.order(Fault("GET", f"/api/models/{REPOSITORY.id}$", "body", body=body))
        assert zoo.load(NAME).name == NAME


def test_hostile_lists_of_engines(server: HubServer, model: dict[str, bytes]) -> None:
    put(server, model)
    known = {row["name"] for row in listing(namespace="nobody")}
    bodies = {name: json.dumps([answer]).encode() for name, answer in MODELS.items()} | ANY_BODY
    for name, body in bodies.items():
        server.heal()
        server.order(Fault("GET", "/api/models\\?", "body", times=float("inf"), body=body))
        assert {row["name"] for row in listing()} == known, name
    for words in (["list"], ["list", "--json"]):
        command(*words, codes=(0,))


def test_a_list_of_100_000_engines_is_cut(server: HubServer) -> None:
    many = [{"id": f"{OWNER}/family_engine{number}", "tags": ["zoo"]} for number in range(100_000)]
    server.order(Fault("GET", "/api/models\\?", "body", body=json.dumps(many).encode()))
    assert len(listing()) <= 1000 + len(entries())


def test_a_list_that_goes_on_for_ever_is_left(server: HubServer, model: dict[str, bytes]) -> None:
    put(server, model)
    link = {"Link": f'<{server.endpoint}/api/models?again=yes>; rel="next"'}
    path = "/api/models\\?"
    fault = server.order(Fault("GET", path, "status", times=float("inf"), status=200, headers=link, body=b"[]"))
    assert listing()
    assert server.faults_met[fault] > 3


def test_the_next_page_of_another_host_gets_no_token(server: HubServer, model: dict[str, bytes]) -> None:
    put(server, model)
    with HubServer(users={}) as other:
        link = {"Link": f'<{other.endpoint}/api/models?page=2>; rel="next"'}
        server.order(Fault("GET", "/api/models\\?", "headers", headers=link))
        assert listing()
        assert [request.path for request in other.requests] == ["/api/models"]
        _assert_unseen("secret-token", other)


@pytest.mark.parametrize("path", ["/refs", "/resolve/", "/tree/", "/api/models\\?", "/commit/", "/preupload/", "/tag/"])
def test_a_redirect_to_another_host_gets_no_token(
    path: str, server: HubServer, model: dict[str, bytes], place: Path
) -> None:
    files = write(place / "files", model)
    server.create(REPOSITORY.id)
    commit = server.repositories[REPOSITORY.id].branches["main"]
    if path not in ("/commit/", "/preupload/", "/tag/"):
        commit = put(server, model)
    with HubServer(users={}) as other:
        for status in (302, 307, 308):
            url = {"Location": f"{other.endpoint}/x", "ETag": f'"{"0" * 40}"', "X-Repo-Commit": commit}
            server.order(Fault(None, path, "status", times=float("inf"), status=status, headers=url))
            for call in (lambda: zoo.load(NAME), listing, lambda: zoo.publish(files)):
                with suppress(ZooError):
                    call()
            server.heal()
        assert other.requests
        _assert_unseen("secret-token", other)


def _assert_unseen(secret: str, server: HubServer) -> None:
    for request in server.requests:
        assert secret not in str(request.headers)
        assert secret.encode() not in request.body
        assert secret not in f"{request.path} {request.query}"


TOKENS = """
from hub_server import HubServer
import hashlib, warnings
folder, place = sys.argv[1:]
name = "sevennet-0/silicon-student"
for users in ({"hub-secret": "me"}, {}):
    with HubServer(users=users) as hub:
        import os
        if users: os.environ["ZOO_HUB_TOKEN"] = "hub-secret"
        else: os.environ.pop("ZOO_HUB_TOKEN", None)
        for call in (lambda: zoo.publish.publish(folder, hub.endpoint), lambda: zoo.load(name, hub=hub.endpoint),
                     lambda: zoo.listing.listing(hub.endpoint), lambda: zoo.listing.describe(name, hub.endpoint),
                     lambda: zoo.pull([name], Path(place) / "x", hub=hub.endpoint)):
            try: call()
            except zoo.ZooError as error: assert not users, error
        assert len(hub.requests) > 3
        for request in hub.requests:
            assert "hf_s" not in str((request.headers, request.path, request.query)), request
            assert b"hf_s" not in request.body
print("kept")
"""


@pytest.mark.parametrize("kept", ["environment", pytest.param("file", marks=pytest.mark.slow)])
def test_the_token_of_hugging_face_is_never_sent_elsewhere(kept: str, place: Path, model: dict[str, bytes]) -> None:
    home = place / "home"
    home.mkdir()
    (home / "token").write_text("hf_" + "s" * 34)
    environment = {"HF_TOKEN": "hf_" + "s" * 34} if kept == "environment" else {}
    files = write(place / "files", model)
    words = (TOKENS.replace("zoo.publish.publish", "publish"), str(files), str(place))
    os.environ.pop("HF_HUB_OFFLINE", None)
    output = in_a_process(
        "from zoo.publish import publish\n" + words[0],
        *words[1:],
        HF_HOME=str(home),
        ZOO_NAMESPACE=OWNER,
        **environment,
    )
    assert output == "kept\n"


@pytest.mark.parametrize("token", ["a\nb", "a\r\nX-Evil: 1", "\x1b[31mtoken", "t\u00f6ken", "a" * 100_000])
def test_a_hostile_token_is_neither_sent_nor_shown(
    token: str, server: HubServer, model: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(server, model)
    monkeypatch.setenv("ZOO_HUB_TOKEN", token)
    text = refused((HubError, AccessError, ConfigError, NotReleasedError), lambda: zoo.load(NAME))
    known = ("ZOO_HUB_TOKEN", "token of that hub", "your token", "characters that no token has")
    for words in known:
        text = text.replace(words, "")
    assert "token" not in text
    assert not [request for request in server.requests if "x-evil" in request.headers]


def test_two_hubs_with_the_same_repository_never_mix(
    server: HubServer, model: dict[str, bytes], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_model = folders.tree(folders.make_folder(place / "other", seed=11))
    with HubServer(users={"other-token": OWNER}) as other:
        put(server, model)
        put(other, {path: data for path, data in other_model.items() if isinstance(data, bytes)})
        commits = {}
        for offline in (False, True):
            if offline:
                monkeypatch.setenv("HF_HUB_OFFLINE", "1")
            for hub, token, expected in ((server, "secret-token", model), (other, "other-token", other_model)) * 2:
                monkeypatch.setenv("ZOO_HUB_TOKEN", token)
                for name in (NAME, f"{NAME}@v1"):
                    assert (
                        zoo.load(name, hub=hub.endpoint).provenance.commit == hub.repositories[REPOSITORY.id].tags["v1"]
                    )
                    weights = zoo.pull([name], hub=hub.endpoint).folders[0] / "model.safetensors"
                    assert weights.read_bytes() == expected["model.safetensors"]
                commits[hub.endpoint] = zoo.load(NAME, hub=hub.endpoint).provenance.commit
        assert len(set(commits.values())) == 2
        refused(UNFIT, lambda: zoo.load(f"{NAME}@{commits[other.endpoint]}", hub=server.endpoint))
        _assert_unseen("secret-token", other)
        _assert_unseen("other-token", server)


BOMB = gzip.compress(bytes(200_000_000), 9)


@pytest.mark.parametrize("path", ["/refs", "/resolve/", "/api/models\\?", f"/api/models/{OWNER}/[^/]*$"])
def test_a_compressed_bomb_is_not_unpacked(path: str, server: HubServer, model: dict[str, bytes]) -> None:
    put(server, model)
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    server.order(Fault(None, path, "status", times=float("inf"), status=200, headers=headers, body=BOMB))
    if path in ("/refs", "/resolve/"):
        refused(UNFIT, lambda: zoo.load(NAME))
    else:
        assert listing()
        assert zoo.load(NAME).name == NAME
    assert _sent_to_nobody_unasked(server)


def _sent_to_nobody_unasked(server: HubServer) -> bool:
    return all(request.headers.get("accept-encoding") == "identity" for request in server.requests)


@pytest.mark.parametrize("path", ["/refs", "/resolve/", "/api/models\\?"])
@pytest.mark.parametrize("headers", [{}, {"Transfer-Encoding": "chunked"}], ids=["plain", "chunked"])
def test_an_answer_without_end_is_cut(
    path: str, headers: dict[str, str], server: HubServer, model: dict[str, bytes], place: Path
) -> None:
    put(server, model)
    server.order(Fault("GET", path, "endless", times=float("inf"), headers=headers))
    if "?" in path:
        assert listing()
    else:
        refused(UNFIT, lambda: zoo.load(NAME))
    assert sum(file.stat().st_size for file in place.rglob("*") if file.is_file()) < 100_000_000


TEXTS = [ESCAPE, "\x9b31m", LONG[:60_000], "a\tb\x00", "\u2028\u2029", "\xff"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 412, 416, 418, 429, 451, 500, 503, 599])
def test_what_a_server_says_of_an_error_reaches_no_terminal(
    status: int, server: HubServer, model: dict[str, bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    put(server, model)
    for text in TEXTS:
        plain = text.replace("\r\n", "").replace("\x00", "")
        headers = dict.fromkeys(
            ("X-Error-Message", "X-Error-Code", "X-HF-Warning", "X-Request-Id", "Retry-After"), plain
        )
        body = json.dumps({"error": text, "errors": [{"message": text}]}).encode()
        server.order(
            Fault(None, "/refs|/api/models\\?", "status", times=float("inf"), status=status, headers=headers, body=body)
        )
        refused((HubError, AccessError, UnknownNameError, NotReleasedError), lambda: zoo.load(NAME))
        command("list", codes=(0, 1))
        command("info", NAME)
        server.heal()
    assert "\x1b" not in "".join(capfd.readouterr())


def test_warnings_and_cookies_of_a_server_are_not_passed_on(
    server: HubServer, model: dict[str, bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    put(server, model)
    with HubServer(users={}) as other:
        cookie = {"Set-Cookie": "session=secret-token; Domain=127.0.0.1; Path=/", "X-HF-Warning": "\x1b[31mbad; x"}
        server.order(Fault(None, "", "headers", times=float("inf"), headers=cookie))
        zoo.load(NAME)
        with warnings.catch_warnings(), pytest.raises(ZooError):
            zoo.load(NAME, hub=other.endpoint, namespace="another")
        assert not [request for request in other.requests if "cookie" in request.headers]
    assert "\x1b" not in "".join(capfd.readouterr())


# Manifests that lie


def _listing(model: Mapping[str, bytes], *more: dict[str, object], without: str = "") -> bytes:
    entries = [_entry(path, data) for path, data in model.items() if path not in ("manifest.json", without)]
    return _manifest(sorted([*entries, *more], key=lambda entry: str(entry["path"])))


def _lie(path: str, **changes: object) -> Callable[[Mapping[str, bytes]], bytes]:
    return lambda model: _listing(model, _entry(path, model[path], **changes), without=path)


def _also(path: object) -> Callable[[Mapping[str, bytes]], bytes]:
    return lambda model: _listing(model, _entry("x", b"planted", path=path))


MANIFESTS: dict[str, Callable[[Mapping[str, bytes]], bytes]] = {
    "climbs": _also(f"{UP}planted"),
    "climbs inside figures": _also(f"figures/{UP}planted.png"),
    "absolute": _also("/tmp/planted"),
    "percent": _also("%2e%2e%2fplanted"),
    "backslash": _also("..\\planted"),
    "NUL": _also("README.md\0"),
    "newline": _also("figures/a.png\n"),
    "escape": _also(ESCAPE),
    "a megabyte": _also(LONG),
    "itself": _also("manifest.json"),
    "another case": _also("readme.md"),
    "a dot": _also("./README.md"),
    "a pickle": _also("model.pt"),
    "code": _also("model.py"),
    "hidden": _also(".env"),
    "a number": _also(5),
    "twice": _also("README.md"),
    "unsorted": lambda model: _manifest([_entry(path, data) for path, data in model.items()][::-1]),
    "no weights": lambda model: _listing(model, without="model.safetensors"),
    "no config": lambda model: _listing(model, without="config.json"),
    "no probe": lambda model: _listing(model, without="probe.safetensors"),
    "a file that is not there": lambda model: _listing(model, _entry("figures/none.png", b"x")),
    "size negative": _lie("config.json", size=-1),
    "size absurd": _lie("config.json", size=10**18),
    "size over 64 bits": _lie("config.json", size=10**40),
    "size of 10,000 digits": lambda model: _listing(model).replace(b'"size": ', b'"size": ' + b"9" * 10_000),
    "size zero": _lie("config.json", size=0),
    "size one more": _lie("config.json", size=10),
    "size a text": _lie("config.json", size="1"),
    "size true": _lie("config.json", size=True),
    "weights of 5 GB": _lie("model.safetensors", size=5 << 30),
    "digest wrong": _lie("model.safetensors", sha256="0" * 64),
    "digest upper case": lambda model: _listing(model).replace(b'"sha256": "', b'"sha256": "A'),
    "digest climbs": _lie("config.json", sha256=f"{UP}planted"),
    "digest null": _lie("config.json", sha256=None),
    "of no files": lambda _: _manifest([]),
    "files a map": lambda _: _manifest({}),
    "40,000 files": lambda _: _manifest([_entry(f"figures/{n:05}.png", b"") for n in range(35_000)]),
    "2 million numbers": lambda _: b'{"format": 1, "files": [' + b"0," * 2_000_000 + b"0]}",
    "a million maps": lambda _: b'{"format": 1, "files": [' + b"{}," * 1_000_000 + b"{}]}",
    "20,000 keys": lambda _: b'{"format": 1, ' + b",".join(b'"%d": 0' % n for n in range(20_000)) + b"}",
    "a hostile key": lambda _: json.dumps({"format": 1, "files": [], ESCAPE + LONG: 1}).encode(),
    "another format": lambda model: _listing(model).replace(b'"format": 1', b'"format": 2'),
    "over 4 MB": lambda model: _listing(model) + b" " * (5 << 20),
    **{f"body {name}": lambda _, body=body: body for name, body in ANY_BODY.items()},
}


@pytest.mark.parametrize("lie", MANIFESTS.values(), ids=MANIFESTS)
def test_a_manifest_that_lies(
    lie: Callable[[Mapping[str, bytes]], bytes], server: HubServer, model: dict[str, bytes], place: Path
) -> None:
    files = {**model, "manifest.json": lie(model)}
    put(server, files)
    refused((IntegrityError, HubError, ConfigError), lambda: zoo.load(NAME))
    refused((IntegrityError, HubError, ConfigError), lambda: zoo.pull([NAME], place / "pulled.tar"))
    folder = write(place / "folder", files)
    refused(IntegrityError, lambda: zoo.load(folder))
    refused(IntegrityError, lambda: zoo.publish(folder))
    assert not (place / "pulled.tar").exists()


def test_a_key_given_twice_in_a_manifest_hides_nothing(model: dict[str, bytes], place: Path) -> None:
    whole = json.loads(_listing(model))["files"]
    evil = json.dumps([{**entry, "sha256": "0" * 64} for entry in whole])
    for first, second in ((evil, json.dumps(whole)), (json.dumps(whole), evil)):
        text = f'{{"format": 1, "files": {first}, "files": {second}}}'
        folder = write(place / "folder", {**model, "manifest.json": text.encode()})
        with suppress(IntegrityError):
            assert zoo.load(folder).name == NAME  # the last one counts, for all who read it
            assert second != evil


MEMORY = """
from zoo.errors import ZooError
import time
started = time.monotonic()
try: zoo.load(Path(sys.argv[1]))
except ZooError as error: print(type(error).__name__, len(str(error)), time.monotonic() - started)
"""


def frugal(folder: Path, megabytes: int = 500) -> str:
    """Loading the folder fails in little memory and time."""
    kind, length, seconds = in_a_process(MEMORY, str(folder), memory=megabytes).split()
    assert float(seconds) < 5
    assert int(length) < LONGEST_MESSAGE
    return kind


@pytest.mark.parametrize("name", ["2 million numbers", "a million maps", "40,000 files"])
@pytest.mark.slow
def test_a_large_manifest_takes_little_memory(name: str, model: dict[str, bytes], place: Path) -> None:
    assert frugal(write(place / "folder", {**model, "manifest.json": MANIFESTS[name](model)})) == "IntegrityError"


# Model files that their manifest vouches for


def _header(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _tensor(dtype: str = "F64", shape: object = (1,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


class Payload:
    """What a pickle would do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch planted",))


def _changed(data: bytes, **changes: Callable[[Any], Any]) -> bytes:
    tensors = read_tensors(data)
    return tensors_of(
        {name: np.ascontiguousarray(changes.get(name, lambda x: x)(array)) for name, array in tensors.items()}
    )


def _renamed(data: bytes, name: str) -> bytes:
    tensors = read_tensors(data)
    return tensors_of({**tensors, name: np.zeros(1)})


WEIGHTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "7 bytes": lambda _: bytes(7),
    "header of 2^63": lambda data: struct.pack("<Q", 1 << 63) + data[8:],
    "header of 2^64 - 1": lambda data: b"\xff" * 8 + data[8:],
    "header beyond the file": lambda data: struct.pack("<Q", len(data)) + data[8:],
    "header of 100 MB": lambda data: struct.pack("<Q", 100 << 20) + data[8:],
    "header cut": lambda data: struct.pack("<Q", 50) + data[8:],
    "no JSON": lambda _: _header(b"<html></html>"),
    "deep": lambda _: _header(DEEP),
    "a list": lambda _: _header([]),
    "null": lambda _: _header(None),
    "not UTF-8": lambda _: _header(b'{"\xff": 1}'),
    "no tensors": lambda _: _header({}),
    "overlap": lambda _: _header({"a": _tensor(), "b": _tensor()}, bytes(8)),
    "out of range": lambda _: _header({"a": _tensor(offsets=(0, 1 << 40))}, bytes(8)),
    "offsets backwards": lambda _: _header({"a": _tensor(offsets=(8, 0))}, bytes(8)),
    "offsets negative": lambda _: _header({"a": _tensor(offsets=(-8, 0))}, bytes(8)),
    "offsets of 2^63": lambda _: _header({"a": _tensor(offsets=((1 << 64) - 8, 1 << 64))}, bytes(8)),
    "a hole": lambda _: _header({"a": _tensor(offsets=(8, 16))}, bytes(16)),
    "more data than said": lambda data: data + bytes(100),
    "shape huge": lambda _: _header({"a": _tensor(shape=(1 << 62, 1 << 62))}, bytes(8)),
    "shape wraps": lambda _: _header({"a": _tensor(shape=(1 << 32, 1 << 32, 1))}, bytes(8)),
    "shape empty and huge": lambda _: _header({"a": _tensor(shape=(0, 1 << 62), offsets=(0, 0))}),
    "shape negative": lambda _: _header({"a": _tensor(shape=(-1,))}, bytes(8)),
    "shape of 100,000": lambda _: _header({"a": _tensor(shape=(1,) * 100_000)}, bytes(8)),
    "dtype unknown": lambda _: _header({"a": _tensor(dtype="PICKLE")}, bytes(8)),
    "dtype of eight bits": lambda _: _header({"a": _tensor(dtype="F8_E4M3", shape=(8,))}, bytes(8)),
    "given twice": lambda data: _header(b'{"a": %b, "a": %b}' % ((json.dumps(_tensor()).encode(),) * 2), bytes(8)),
    "a hostile name": lambda data: _renamed(data, ESCAPE),
    "a long name": lambda data: _renamed(data, LONG[:900_000]),
    "an empty name": lambda data: _renamed(data, ""),
    "a name that climbs": lambda data: _renamed(data, f"{UP}planted"),
    "hostile metadata": lambda _: _header({"__metadata__": {"format": ESCAPE}, "a": _tensor()}, bytes(8)),
    "100,000 tensors": lambda _: _header({f"{n:x}": _tensor(shape=(0,), offsets=(0, 0)) for n in range(15_000)}),
    "NaN": lambda data: _changed(data, **{"readout.0.bias": lambda x: x * np.nan}),
    "infinity": lambda data: _changed(data, scale=lambda x: x + np.inf),
    "single precision": lambda data: _changed(data, **{"readout.0.bias": lambda x: x.astype(np.float32)}),
    "another shape": lambda data: _changed(data, **{"readout.0.bias": lambda x: x[None]}),
    "a pickle": lambda _: pickle.dumps(Payload()),
    "an archive of torch": lambda _: b"PK\x03\x04" + bytes(1000),
    "a pickle behind a header": lambda _: _header({}, pickle.dumps(Payload())),
    "zeros": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("file", ["model.safetensors", "probe.safetensors"])
@pytest.mark.parametrize("forge", WEIGHTS.values(), ids=WEIGHTS)
def test_forged_tensors_that_their_manifest_vouches_for(
    file: str, forge: Callable[[bytes], bytes], model: dict[str, bytes], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = forge(model[file])
    if changes == model[file] or (file == "probe.safetensors" and changes == tensors_of(read_tensors(model[file]))):
        pytest.skip("a probe has no tensor of that name")
    monkeypatch.chdir(place)
    folder = write(place / "folder", sealed({**model, file: changes}))
    refused(IntegrityError, lambda: zoo.load(folder))
    if file == "model.safetensors":
        refused((IntegrityError, PublishError), lambda: zoo.publish(folder, place / "hub", namespace=OWNER))
    assert not list(place.rglob("planted"))
    assert not (place / "hub").exists()


@pytest.mark.parametrize("name", ["header of 100 MB", "a pickle", "overlap", "NaN", "a hostile name"])
def test_forged_tensors_on_a_server(name: str, server: HubServer, model: dict[str, bytes]) -> None:
    put(server, sealed({**model, "model.safetensors": WEIGHTS[name](model["model.safetensors"])}))
    refused(IntegrityError, lambda: zoo.load(NAME))
    command("check", NAME, codes=(1,))


def _first(shape: tuple[int, ...], value: float) -> Callable[[Any], Any]:
    return lambda array: np.full_like(array, value)


PROBES: dict[str, dict[str, Callable[[Any], Any]]] = {
    "offsets back": {"offsets": lambda x: x[::-1]},
    "offsets from one": {"offsets": lambda x: x + 1},
    "offsets huge": {"offsets": lambda x: x * (1 << 58)},
    "offsets that wrap": {"offsets": lambda x: np.array([0, (1 << 63) - 1, *x[2:]])},
    "offsets negative": {"offsets": lambda x: -x},
    "offsets short": {"offsets": lambda x: x[:1]},
    "no offsets": {"offsets": lambda x: x[:0]},
    "offsets in a table": {"offsets": lambda x: x[None]},
    "an unknown element": {"numbers": lambda x: x * 0 + 92},
    "an element of 10^9": {"numbers": lambda x: x * 0 + 10**9},
    "an element of -1": {"numbers": lambda x: x * 0 - 1},
    "positions infinite": {"positions": lambda x: x * np.inf},
    "a flat cell": {"cells": lambda x: x * 0},
    "a cell of a picometre": {"cells": lambda x: x * 0 + np.eye(3) * 0.01},
    "a thin cell": {"cells": lambda x: x * np.array([1.0, 1.0, 1e-5])[:, None]},
    "no vectors": {"vectors": lambda x: x[:, :0]},
    "vectors of two numbers": {"vectors": lambda x: x[..., :2]},
    "energies short": {"engine_energy": lambda x: x[:1]},
}


@pytest.mark.parametrize("changes", PROBES.values(), ids=PROBES)
def test_forged_probes(changes: dict[str, Callable[[Any], Any]], model: dict[str, bytes], place: Path) -> None:
    files = {**model, "probe.safetensors": _changed(model["probe.safetensors"], **changes)}
    folder = write(place / "folder", sealed(files))
    refused((IntegrityError, StructureError), lambda: zoo.load(folder).check())


def test_a_probe_without_products_is_no_proof(model: dict[str, bytes], place: Path) -> None:
    none = dict.fromkeys(["vectors", "engine_hessian_products", "teacher_hessian_products"], lambda x: x[:0])
    files = {**model, "probe.safetensors": _changed(model["probe.safetensors"], **none)}
    refused((IntegrityError, PublishError), lambda: zoo.load(write(place / "folder", sealed(files))).check())


def test_a_probe_with_atoms_far_outside_its_cell_ends(model: dict[str, bytes], place: Path) -> None:
    for move in (lambda x: x * 1e12, lambda x: x * 1e200):
        files = {**model, "probe.safetensors": _changed(model["probe.safetensors"], positions=move)}
        folder = write(place / "folder", sealed(files))
        with suppress(ZooError):
            assert not zoo.load(folder).check().passed


def _config(*path: str, value: object) -> Callable[[Any], None]:
    def change(config: Any) -> None:
        *above, last = path
        for key in above:
            config = config[key]
        config[last] = value

    return change


CONFIGS: dict[str, Callable[[Any], None]] = {
    "channels 10^9": _config("architecture", "channels", value=10**9),
    "channels of 10^30": _config("architecture", "channels", value=10**30),
    "channels negative": _config("architecture", "channels", value=-1),
    "layers 10^6": _config("architecture", "layers", value=10**6),
    "radials 10^9": _config("architecture", "radials", value=10**9),
    "the largest that is allowed": lambda config: config["architecture"].update(channels=2048, layers=32, radials=512),
    "cutoff 1e308": _config("architecture", "cutoff", value=1e308),
    "cutoff 0": _config("architecture", "cutoff", value=0),
    "cutoff true": _config("architecture", "cutoff", value=True),
    "an unknown architecture": _config("architecture", "architecture", value="os.system"),
    "code": _config("architecture", "architecture", value="__import__('os').system('touch planted')"),
    "a million elements": _config("architecture", "elements", value=["Si"] * 500_000),
    "elements of numbers": _config("architecture", "elements", value=[0] * 10_000),
    "no elements": _config("architecture", "elements", value=[]),
    "a hostile element": _config("architecture", "elements", value=[ESCAPE]),
    "a hostile domain": _config("domain", "elements", value=["Si", ESCAPE]),
    "a domain of a million": _config("domain", "elements", value=["Si"] * 500_000),
    "a hostile name": _config("name", value=ESCAPE),
    "a long name": _config("name", value=LONG),
    "a hostile licence": _config("licence", value=ESCAPE),
    "a hostile teacher": _config("lineage", "teacher", value=ESCAPE),
    "a hostile theory": _config("lineage", "level_of_theory", value=ESCAPE),
    "a hostile description": _config("domain", "description", value=ESCAPE),
    "a hostile key": _config(ESCAPE, value=1),
    "a long key": _config(LONG, value=1),
    "parameters 10^30": _config("parameters", value=10**30),
    "parameters wrong": _config("parameters", value=1),
    "another dtype": _config("dtype", value="float16"),
    "another unit": _config("units", "energy", value="kcal/mol"),
    "tolerance without bound": _config("probe_tolerance", "force_meV_A", value=1e400),
    "tolerance negative": _config("probe_tolerance", "force_meV_A", value=-1),
    "seed of 10^30": _config("lineage", "steps", value=-(10**30)),
}


@pytest.mark.parametrize("change", CONFIGS.values(), ids=CONFIGS)
def test_hostile_configs(change: Callable[[Any], None], model: dict[str, bytes], place: Path) -> None:
    config = json.loads(model["config.json"])
    change(config)
    folder = write(place / "folder", sealed({**model, "config.json": json.dumps(config).encode()}))
    refused((IntegrityError, ConfigError), lambda: zoo.load(folder))
    command("check", str(folder), codes=(1,))


@pytest.mark.parametrize("body", ANY_BODY.values(), ids=ANY_BODY)
def test_configs_that_are_none(body: bytes, model: dict[str, bytes], place: Path) -> None:
    refused(
        (IntegrityError, ConfigError), lambda: zoo.load(write(place / "folder", sealed({**model, "config.json": body})))
    )


def test_a_config_of_another_engine_is_not_loaded_under_this_name(server: HubServer, model: dict[str, bytes]) -> None:
    for name in ("a/b", "../../x", f"{NAME}@v2", LONG[:900]):
        config = {**json.loads(model["config.json"]), "name": name}
        put(server, sealed({**model, "config.json": json.dumps(config).encode()}))
        refused(IntegrityError, lambda: zoo.load(NAME))


@pytest.mark.parametrize("name", ["elements", "domain", "the largest that is allowed"])
@pytest.mark.slow
def test_a_large_config_takes_little_memory(name: str, model: dict[str, bytes], place: Path) -> None:
    config = json.loads(model["config.json"])
    if name == "elements":
        config["architecture"]["elements"] = [0] * 1_300_000
    elif name == "domain":
        config["domain"]["elements"] = [0] * 1_300_000
    else:
        CONFIGS[name](config)
    text = json.dumps(config, separators=(",", ":")).encode()
    assert frugal(write(place / "folder", sealed({**model, "config.json": text}))) in ("ConfigError", "IntegrityError")


# Folders to publish, hubs that are folders, tars


def _outside_file(place: Path, data: bytes) -> Path:
    (place / "elsewhere").mkdir(exist_ok=True)
    (place / "elsewhere" / "file").write_bytes(data)
    return place / "elsewhere" / "file"


def _link_to_file(folder: Path) -> None:
    outside = _outside_file(folder.parent, (folder / "README.md").read_bytes())
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(outside)


def _link_to_folder(folder: Path) -> None:
    (folder / "figures").replace(folder.parent / "figures")
    (folder / "figures").symlink_to(folder.parent / "figures")


def _link_to(target: str, name: str = "README.md") -> Callable[[Path], object]:
    def act(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return act


def _pipe(name: str) -> Callable[[Path], object]:
    def act(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return act


def _socket(folder: Path) -> None:
    (folder / "report.json").unlink()
    here = Path.cwd()
    os.chdir(folder)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("report.json")
    os.chdir(here)


def _sparse(name: str, size: int) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / name, size)


def _named(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(b"planted")


FOLDERS: dict[str, Callable[[Path], object]] = {
    "a link to a file": _link_to_file,
    "a link to a folder": _link_to_folder,
    "a link to nothing": _link_to("/nowhere"),
    "a link to itself": _link_to("README.md"),
    "a link to a device": _link_to("/dev/zero"),
    "a link to memory": _link_to("/proc/self/mem"),
    "weights of a device": _link_to("/dev/zero", "model.safetensors"),
    "a manifest of a device": _link_to("/dev/zero", "manifest.json"),
    "a manifest of a secret": _link_to("/etc/passwd", "manifest.json"),
    "a link more": _link_to("/etc/passwd", "passwd"),
    "a pipe": _pipe("README.md"),
    "a pipe for a manifest": _pipe("manifest.json"),
    "a pipe for weights": _pipe("model.safetensors"),
    "a pipe more": _pipe("pipe"),
    "a socket": _socket,
    "10 GB of weights": _sparse("model.safetensors", 10 << 30),
    "10 GB of card": _sparse("README.md", 10 << 30),
    "10 GB of manifest": _sparse("manifest.json", 10 << 30),
    "10 GB of figure": _sparse("figures/parity.png", 10 << 30),
    "a newline": _named("a\nb"),
    "an escape": _named(ESCAPE),
    "not UTF-8": lambda folder: Path(os.fsdecode(os.fsencode(folder) + b"/\xff")).write_bytes(b""),
    "a pickle": _named("model.pt"),
    "a folder for a file": lambda folder: (((folder / "report.json").unlink(), (folder / "report.json").mkdir())),
}


@pytest.mark.parametrize("spoil", FOLDERS.values(), ids=FOLDERS)
def test_a_hostile_folder_is_not_published(
    spoil: Callable[[Path], object], model: dict[str, bytes], place: Path
) -> None:
    folder = write(place / "folder", model)
    spoil(folder)
    for dry_run in (True, False):
        refused(
            (PublishError, IntegrityError, ConfigError),
            lambda dry_run=dry_run: zoo.publish(folder, place / "hub", namespace=OWNER, dry_run=dry_run),
        )
    command("publish", str(folder), "--hub", str(place / "hub"), codes=(1,))
    assert not (place / "hub").exists()


def test_hidden_files_stay_at_home(server: HubServer, model: dict[str, bytes], place: Path) -> None:
    hidden = [".env", ".git/config", "figures/.secret.png", ".ssh/id_rsa"]
    folder = write(place / "folder", {**model, **dict.fromkeys(hidden, b"planted")})
    (folder / ".link").symlink_to("/etc/passwd")
    os.mkfifo(folder / ".pipe")
    zoo.publish(folder)
    zoo.publish(folder, place / "hub")
    assert set(server.files(REPOSITORY.id)) - {".gitattributes"} == set(model)
    published = [path.name for path in (place / "hub").rglob("*")]
    assert not {".env", ".git", ".link", ".pipe", ".ssh", ".secret.png"} & set(published)
    assert not [request for request in server.requests if b"planted" in request.body]


@pytest.fixture
def folder_hub(place: Path, model: dict[str, bytes]) -> FolderHub:
    hub = FolderHub(place / "hub")
    zoo.publish(write(place / "published", model), hub.root, namespace=OWNER)
    return hub


def _commit(hub: FolderHub) -> str:
    return hub.refs(REPOSITORY)["v1"]


def _instead(path: Path, target: Path | str) -> None:
    """A link where a file or folder was; that goes to the target, where there is none yet."""
    if isinstance(target, Path) and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    elif path.is_symlink() or path.is_file():
        path.unlink()
    path.symlink_to(target)


HUBS: dict[str, Callable[[FolderHub, Path, Path], object]] = {
    "a ref that climbs": lambda hub, place, _: (place / "refs" / "v1").write_text(f"{UP}x"),
    "an absolute ref": lambda hub, place, _: (place / "refs" / "v1").write_text("/etc"),
    "a ref of 1 GB": lambda hub, place, _: os.truncate(place / "refs" / "v1", 1 << 30),
    "an empty ref": lambda hub, place, _: os.truncate(place / "refs" / "v1", 0),
    "a ref that is a pipe": lambda hub, place, _: _pipe("v1")(place / "refs"),
    "a ref that is a device": lambda hub, place, _: _link_to("/dev/zero", "v1")(place / "refs"),
    "a ref that is a link": lambda hub, place, _: _instead(
        place / "refs" / "v1", hub.root.parent / "elsewhere" / "ref"
    ),
    "a ref that is a folder": lambda hub, place, _: (
        ((place / "refs" / "v1").unlink(), (place / "refs" / "v1").mkdir())
    ),
    "a ref to nothing": lambda hub, place, _: _link_to("/nowhere", "v1")(place / "refs"),
    "a ref in a circle": lambda hub, place, _: _link_to("v1", "v1")(place / "refs"),
    "a snapshot elsewhere": lambda hub, place, snapshot: _instead(snapshot, hub.root.parent / "elsewhere" / "s"),
    "a snapshot of /etc": lambda hub, place, snapshot: (
        (snapshot.replace(place / "gone"), snapshot.symlink_to("/etc"))
    ),
    "snapshots elsewhere": lambda hub, place, _: _instead(place / "snapshots", hub.root.parent / "elsewhere" / "s"),
    "blobs elsewhere": lambda hub, place, _: _instead(place / "blobs", hub.root.parent / "elsewhere" / "b"),
    "a blob elsewhere": lambda hub, place, snapshot: _instead(
        (snapshot / "config.json").resolve(), hub.root.parent / "elsewhere" / "b"
    ),
    "a file elsewhere": lambda hub, place, snapshot: _instead(
        snapshot / "README.md", hub.root.parent / "published" / "README.md"
    ),
    "a manifest of a pipe": lambda hub, place, snapshot: _pipe("manifest.json")(snapshot),
    "a card of a device": lambda hub, place, snapshot: _link_to("/dev/zero")(snapshot),
    "a file in a circle": lambda hub, place, snapshot: _link_to("README.md")(snapshot),
    "weights of 10 GB": lambda hub, place, snapshot: os.truncate(snapshot / "model.safetensors", 10 << 30),
    "a card of 10 GB": lambda hub, place, snapshot: os.truncate(snapshot / "README.md", 10 << 30),
    "a hidden link": lambda hub, place, snapshot: _link_to("/etc/passwd", ".hidden")(snapshot),
}


@pytest.mark.parametrize("spoil", HUBS.values(), ids=HUBS)
def test_a_hostile_hub_that_is_a_folder(
    spoil: Callable[[FolderHub, Path, Path], object], folder_hub: FolderHub, place: Path
) -> None:
    repository = folder_hub.root / REPOSITORY.folder
    spoil(folder_hub, repository, folder_hub.snapshot(REPOSITORY, _commit(folder_hub)))
    options = {"hub": folder_hub.root, "namespace": OWNER}
    unfit = (IntegrityError, UnknownNameError, NotReleasedError)
    refused(unfit, lambda: zoo.load(NAME, **options))
    refused(unfit, lambda: zoo.load(f"{NAME}@v1", **options))
    refused(unfit, lambda: zoo.pull([NAME], place / "pulled.tar", **options))
    refused(unfit, lambda: zoo.pull([NAME], place / "pulled", **options))
    with suppress(IntegrityError):
        describe(NAME, **options)
    assert listing(**options)
    command("list", "--hub", str(folder_hub.root), f"--namespace={OWNER}", codes=(0,))
    assert not (place / "pulled.tar").exists()
    assert not (place / "pulled").exists()


@pytest.mark.parametrize("spoil", HUBS.values(), ids=HUBS)
def test_publishing_to_a_hostile_folder_writes_into_it_alone(
    spoil: Callable[[FolderHub, Path, Path], object], folder_hub: FolderHub, place: Path
) -> None:
    repository = folder_hub.root / REPOSITORY.folder
    spoil(folder_hub, repository, folder_hub.snapshot(REPOSITORY, _commit(folder_hub)))
    outside = folders.tree(place / "elsewhere") if (place / "elsewhere").is_dir() else {}
    with suppress(ZooError):
        zoo.publish(place / "published", folder_hub.root, namespace=OWNER)
    assert (folders.tree(place / "elsewhere") if (place / "elsewhere").is_dir() else {}) == outside


@pytest.mark.parametrize("name", ["", "blobs", "snapshots", "refs"])
def test_pulling_into_a_folder_of_links_writes_nothing_elsewhere(name: str, folder_hub: FolderHub, place: Path) -> None:
    (place / "elsewhere").mkdir()
    target = place / "target" / REPOSITORY.folder / name
    target.parent.mkdir(parents=True)
    target.symlink_to(place / "elsewhere")
    refused(IntegrityError, lambda: zoo.pull([NAME], place / "target", hub=folder_hub.root, namespace=OWNER))
    assert not list((place / "elsewhere").iterdir())


def test_a_tar_holds_relative_names_and_links_that_stay_inside(folder_hub: FolderHub, place: Path) -> None:
    snapshot = folder_hub.snapshot(REPOSITORY, _commit(folder_hub))
    (snapshot / ".env").write_text("planted")
    zoo.pull([NAME], place / "pulled.tar", hub=folder_hub.root, namespace=OWNER)
    with tarfile.open(place / "pulled.tar") as tar:
        for member in tar.getmembers():
            assert member.isdir() or member.isreg() or member.issym()
            assert member.name.split("/")[0] == "pulled"
            assert ".." not in member.name.split("/")
            assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")
            if member.issym():
                target = os.path.normpath(Path(member.name).parent / member.linkname)
                assert target in tar.getnames()
            if member.isreg():
                stream = tar.extractfile(member)
                assert stream is not None
                assert stream.read() != b"planted"
        tar.extractall(place / "unpacked", filter="data")
    assert zoo.load(NAME, hub=place / "unpacked" / "pulled", namespace=OWNER).name == NAME


@pytest.mark.parametrize("commit", ["../../x", "/etc", "", "A" * 40, "0" * 39, "0" * 41, "0" * 40 + "\n", ESCAPE, LONG])
def test_what_is_no_commit_is_never_the_name_of_a_folder(commit: str) -> None:
    refused(HubError, lambda: Resolved(commit, None))


@pytest.mark.parametrize(
    "commit", [f"{UP}planted", "/etc", ESCAPE, "A" * 40, LONG[:5000], 5, None, ["0" * 40]], ids=range(8)
)
def test_a_commit_that_the_server_made_up(
    commit: object, server: HubServer, model: dict[str, bytes], place: Path
) -> None:
    folder = write(place / "folder", model)
    tree = json.dumps(
        [
            {
                "type": "file",
                "path": path,
                "size": len(data),
                "oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
            }
            for path, data in model.items()
        ]
    ).encode()
    server.order(Fault("GET", "/tree/", "body", times=float("inf"), body=tree, skip=1))
    server.order(Fault("GET", "/tree/", "status", times=float("inf"), status=200, body=tree, skip=1))
    answer = json.dumps({"success": True, "commitOid": commit, "commitUrl": "x"}).encode()
    server.order(Fault("POST", "/commit/", "body", times=float("inf"), body=answer))
    refused((PublishError, HubError), lambda: zoo.publish(folder))
    assert not server.repositories[REPOSITORY.id].tags


@pytest.mark.parametrize("path", [f"{UP}planted", "/etc/passwd", ESCAPE, LONG[:5000], 5, None], ids=range(6))
def test_files_that_the_server_made_up(path: object, server: HubServer, model: dict[str, bytes], place: Path) -> None:
    folder = write(place / "folder", model)
    entry = {"type": "file", "path": path, "size": 5, "oid": "0" * 40}
    for skip in (0, 1):
        server.heal()
        server.order(Fault("GET", "/tree/", "body", times=float("inf"), body=json.dumps([entry]).encode(), skip=skip))
        refused((PublishError, HubError), lambda: zoo.publish(folder))
    assert not server.repositories[REPOSITORY.id].tags


# Cards

CARDS = {
    "escapes": f"---\ntags: [zoo]\n---\n# {ESCAPE} \x9b31m\n[x](javascript:alert(1)) <script>x</script>\n",
    "no front matter": ESCAPE * 100,
    "a bomb": "---\na: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"b{n}: &b{n} [*a,*a,*a]\n" for n in range(50)) + "---\n",
    "code": "---\nx: !!python/object/apply:os.system ['touch planted']\n---\n",
    "deep": "---\nx: " + "[" * 150 + "\n---\n",
    "long": "#" + LONG,
    "a climbing figure": "![x](../../../../etc/passwd)\n![y](file:///etc/passwd)\n",
}


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_hostile_cards(
    card: str, server: HubServer, model: dict[str, bytes], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    put(server, sealed({**model, "README.md": card.encode()}))
    command("info", NAME, codes=(0,))
    command("card", NAME, codes=(0, 1))
    command("list", codes=(0,))
    command("gallery", str(place / "gallery"), codes=(0, 1))
    assert zoo.load(NAME).name == NAME
    assert not list(place.rglob("planted"))
    for page in place.glob("gallery/**/*.html"):
        text = page.read_text()
        assert "<script>x" not in text
        assert "javascript:alert" not in text.lower().replace("[x](javascript:alert(1))", "")
        assert "\x1b" not in text
