"""A hub over HTTP: round trips through the real client, and what is asked, cached, pinned and kept apart."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub
import model_folders as folders
import pytest
import torch
from ase import Atoms
from hub_server import Fault, HubServer

from zoo.artifact import write_manifest
from zoo.browse import build_gallery
from zoo.config import parse
from zoo.engine import Engine
from zoo.errors import (
    AccessError,
    ConfigError,
    HubError,
    IntegrityError,
    LicenceError,
    NotReleasedError,
    PublishError,
    UnknownNameError,
    ZooWarning,
)
from zoo.files import sha256_file
from zoo.hub.cache import cache_folder, parse_hub
from zoo.hub.catalogue import Catalogue, entries
from zoo.hub.guard import ANSWER_BYTES
from zoo.hub.remote import RemoteHub
from zoo.listing import describe, listing
from zoo.load import load, names
from zoo.locate import open_hub
from zoo.publish import publish
from zoo.pull import pull

pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content=<...>' to upload raw bytes/text content:DeprecationWarning"  # within the client's uploads
)
ROOT = Path(__file__).parent.parent
REPOSITORY = "me/sevennet-0_silicon-student"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.make_folder(tmp_path_factory.mktemp("runs") / "model")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.make_folder(tmp_path_factory.mktemp("runs") / "other", seed=8)


def _forces(engine: Engine) -> torch.Tensor:
    (prediction,) = engine.predict(folders.cells(1)[0])
    assert prediction.forces is not None
    return prediction.forces


def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


# The round trip


@pytest.mark.parametrize("kind", ["server", "folder", "tar", "snapshot"])
def test_what_is_published_on_a_server_comes_back_to_the_last_bit_by_every_way(
    kind: str, server: HubServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = publish(folder)
    assert (result.repository, result.tag, result.new, result.public) == (REPOSITORY, "v1", True, False)
    assert server.files(REPOSITORY, "v1").keys() - {".gitattributes"} == folders.tree(folder).keys()
    if kind == "server":
        engine = load(folders.NAME)
    elif kind == "folder":
        pull([folders.NAME], tmp_path / "hub")
        server.stop()
        engine = load(folders.NAME, hub=tmp_path / "hub")
    elif kind == "tar":
        pull([folders.NAME], tmp_path / "hub.tar")
        server.stop()
        with tarfile.open(tmp_path / "hub.tar") as tar:
            tar.extractall(tmp_path, filter="data")
        engine = load(f"{folders.NAME}@v1", hub=tmp_path / "hub")
    else:
        (snapshot,) = pull([folders.NAME]).folders
        server.stop()
        engine = load(snapshot)
    assert torch.equal(_forces(engine), _forces(load(folder)))
    assert engine.check().passed
    if kind != "snapshot":
        assert (engine.provenance.revision, engine.provenance.commit) == ("v1", result.commit)


def test_the_same_again_is_the_same_version_and_other_content_the_next(
    server: HubServer, folder: Path, other: Path
) -> None:
    first = publish(folder)
    before = len(server.repositories[REPOSITORY].commits)
    again = publish(folder)
    assert (again.tag, again.commit, again.new) == ("v1", first.commit, False)
    assert len(server.repositories[REPOSITORY].commits) == before
    assert publish(other).tag == "v2"
    assert publish(folder).tag == "v1"
    assert list(server.repositories[REPOSITORY].tags) == ["v1", "v2"]
    assert not torch.equal(_forces(load(f"{folders.NAME}@v1")), _forces(load(folders.NAME)))


def test_what_a_version_no_longer_has_is_deleted_and_what_the_hub_added_stays(
    server: HubServer, folder: Path, tmp_path: Path
) -> None:
    publish(folder)
    server.commit(REPOSITORY, {"notes.txt": b"left by hand"})
    publish(folders.make_folder(tmp_path / "other", seed=8))
    assert "notes.txt" not in server.files(REPOSITORY, "v2")
    assert ".gitattributes" in server.files(REPOSITORY, "v2")


def test_a_pulled_engine_is_published_again_elsewhere(server: HubServer, folder: Path, tmp_path: Path) -> None:
    first = publish(folder)
    (snapshot,) = pull([folders.NAME]).folders
    assert publish(snapshot).new is False
    assert publish(snapshot, tmp_path / "hub").tag == "v1"
    pull([folders.NAME], tmp_path / "carried")
    (carried,) = (tmp_path / "carried").glob(f"*/snapshots/{first.commit}")
    assert publish(carried).new is False


def test_a_repository_is_private_until_public_is_said_and_stays_as_it_is(server: HubServer, folder: Path) -> None:
    assert publish(folder).public is False
    assert server.repositories[REPOSITORY].private
    assert publish(folder, public=True).public is True
    assert not server.repositories[REPOSITORY].private
    assert publish(folder).public is True


def test_the_terms_of_a_gated_teacher_gate_its_student(server: HubServer, tmp_path: Path) -> None:
    lineage = folders.lineage(teacher_terms="Use it for good, and tell us.")
    folder = folders.make_folder(tmp_path / "model", lineage=lineage)
    publish(folder, public=True)
    assert server.repositories[REPOSITORY].gated == "auto"
    assert b"Use it for good, and tell us." in server.files(REPOSITORY, "v1")["README.md"]
    card = folder / "README.md"
    card.write_text(card.read_text().replace("Use it for good", "Use it"))
    write_manifest(folder)
    with pytest.raises(LicenceError, match="does not repeat the terms"):
        publish(folder)


def test_a_dry_run_asks_nothing_and_needs_no_token(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ZOO_HUB_TOKEN")
    plan = str(publish(folder, dry_run=True))
    assert plan.splitlines()[-1] == f"would publish {REPOSITORY} on {server.endpoint}, private where it is new"
    assert "model.safetensors" in plan
    assert not server.requests
    with pytest.raises(AccessError, match="set ZOO_HUB_TOKEN to a token of that hub"):
        publish(folder)
    assert not server.requests


def test_the_card_is_what_the_hub_lists(server: HubServer, folder: Path) -> None:
    publish(folder)
    (row,) = [row for row in listing() if row["status"] == "published"]
    facts, card = describe(folders.NAME)
    assert card == (folder / "README.md").read_text()
    assert row["metrics"] == facts["metrics"]
    assert (facts["version"], facts["hub"]) == ("v1", server.endpoint)
    info = huggingface_hub.HfApi(endpoint=server.endpoint, token="token-of-me").model_info(REPOSITORY)
    assert (info.library_name, info.pipeline_tag) == ("zoo", "graph-ml")


# What is asked


def test_a_version_a_commit_a_folder_and_offline_mode_ask_nothing_once_they_are_there(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = publish(folder).commit
    load(folders.NAME)
    server.requests.clear()
    load(f"{folders.NAME}@v1")
    load(folders.NAME, revision=commit)
    load(f"hf://{REPOSITORY}@v1")
    assert not server.requests
    load(folders.NAME)
    assert len(server.requests) == 2
    server.requests.clear()
    _offline(monkeypatch)
    assert load(folders.NAME).provenance.revision == "v1"
    assert [row["name"] for row in listing() if row["status"] == "published"] == [folders.NAME]
    assert describe(folders.NAME)[0]["commit"] == commit
    assert not server.requests


def test_warm_and_pinned_a_read_only_cache_is_read_without_a_lock_or_a_write(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(folder)
    load(folders.NAME)
    cache = cache_folder(server.endpoint)
    directories = [cache, *(path for path in cache.rglob("*") if path.is_dir() and not path.is_symlink())]
    before, times = folders.tree(cache), [path.stat().st_mtime_ns for path in directories]
    for path in directories:
        path.chmod(0o555)
    try:
        server.requests.clear()
        assert load(f"{folders.NAME}@v1").check().passed
        assert not server.requests
        assert load(folders.NAME).check().passed
        assert [path.stat().st_mtime_ns for path in directories] == times
        assert folders.tree(cache) == before
    finally:
        for path in directories:
            path.chmod(0o755)


def test_loading_what_is_warm_and_pinned_does_without_the_client_and_without_a_socket(
    server: HubServer, folder: Path
) -> None:
    publish(folder)
    load(folders.NAME)
    program = """
import sys, zoo
seen = []
sys.addaudithook(lambda event, _: seen.append(event) if event.startswith("socket.") else None)
zoo.load(sys.argv[1] + "@v1").check()
print([name for name in ("huggingface_hub", "httpx", "httpx2", "requests") if name in sys.modules], seen)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, folders.NAME]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"


def test_a_hub_that_is_down_gives_what_was_fetched_and_says_so(server: HubServer, folder: Path, other: Path) -> None:
    publish(folder)
    load(folders.NAME)
    publish(other)  # v2, which was not fetched
    server.stop()
    with pytest.warns(ZooWarning, match=r"cannot be reached.*Taking v1, which was fetched before"):
        assert load(folders.NAME).provenance.revision == "v1"
    with pytest.warns(ZooWarning, match="Showing what was fetched before"):
        assert folders.NAME in names()
    with pytest.raises(HubError, match="cannot be reached"):
        load(f"{folders.NAME}@v2")
    with pytest.raises(HubError, match="cannot be reached"):
        load("hf://me/another")


def test_a_newer_version_is_found_at_once(server: HubServer, folder: Path, other: Path) -> None:
    publish(folder)
    assert load(folders.NAME).provenance.revision == "v1"
    publish(other)
    assert load(folders.NAME).provenance.revision == "v2"
    with pytest.raises(UnknownNameError, match=r"has no me/.*@v7; it has main, v1, v2"):
        load(f"{folders.NAME}@v7")


def test_offline_what_was_not_fetched_says_what_to_run(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(folder)
    describe(folders.NAME)  # the card alone
    _offline(monkeypatch)
    commit = server.repositories[REPOSITORY].tags["v1"]
    with pytest.raises(HubError, match="where there is a network, run: zoo pull"):
        load(folders.NAME)
    with pytest.raises(NotReleasedError, match=r"huggingface\.co was not fetched.*run: zoo distill"):
        load(folders.NAME, hub="https://huggingface.co", namespace="mlff-zoo")
    with pytest.raises(HubError, match=r"was not fetched whole.*zoo pull"):
        load(folders.NAME, revision=commit)


def test_a_version_that_moved_is_announced_and_the_cached_one_kept(
    server: HubServer, folder: Path, other: Path
) -> None:
    publish(folder)
    load(folders.NAME)
    publish(other)
    second = server.repositories[REPOSITORY].tags["v2"]
    server.delete_tag(REPOSITORY, "v1")
    server.delete_tag(REPOSITORY, "v2")
    server.tag(REPOSITORY, "v1", second)
    assert torch.equal(_forces(load(f"{folders.NAME}@v1")), _forces(load(folder)))
    with pytest.warns(ZooWarning, match=r"@v1 was .* on http.* now\. Taking what was fetched before"):
        assert torch.equal(_forces(load(folders.NAME)), _forces(load(folder)))
    assert torch.equal(_forces(load(f"{folders.NAME}@v1")), _forces(load(folder)))


def test_a_repository_that_is_gone_still_loads_what_was_fetched_of_it(server: HubServer, folder: Path) -> None:
    publish(folder)
    load(folders.NAME)
    del server.repositories[REPOSITORY]
    with pytest.raises(UnknownNameError, match=f"v1 was fetched before: load {folders.NAME}@v1"):
        load(folders.NAME)
    assert load(f"{folders.NAME}@v1").check().passed


def test_a_damaged_name_in_the_cache_is_asked_again(server: HubServer, folder: Path) -> None:
    publish(folder)
    load(folders.NAME)
    (ref,) = cache_folder(server.endpoint).glob("*/refs/v1")
    ref.write_text("../../etc")
    assert load(f"{folders.NAME}@v1").provenance.revision == "v1"
    assert ref.read_text() == server.repositories[REPOSITORY].tags["v1"]


def test_without_a_version_a_name_is_not_released_and_main_is_as_it_is(server: HubServer, folder: Path) -> None:
    publish(folder)
    server.delete_tag(REPOSITORY, "v1")
    with pytest.raises(NotReleasedError, match="nobody finished publishing it"):
        load(folders.NAME)
    assert load(f"{folders.NAME}@main").provenance.revision is None
    assert load(f"hf://{REPOSITORY}").name == folders.NAME


def test_a_successor_is_announced(server: HubServer, folder: Path) -> None:
    publish(folder)
    card = (folder / "README.md").read_text().replace("---\n", "---\nnew_version: me/better_engine\n", 1)
    server.commit(REPOSITORY, {"README.md": card.encode()})
    with pytest.warns(ZooWarning, match="has a successor: hf://me/better_engine"):
        assert load(folders.NAME).provenance.revision == "v1"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(f"{folders.NAME}@v1")


# Names


def _with_entry(monkeypatch: pytest.MonkeyPatch, server: HubServer, **changes: object) -> None:
    """The catalogue of a zoo that has released its silicon student on this server."""
    release = {
        "hub": server.endpoint,
        "repository": "zoo/sevennet-0_silicon-student",
        "version": "v1",
        "commit": server.repositories["zoo/sevennet-0_silicon-student"].tags["v1"],
        "manifest_sha256": "0" * 64,
    }
    entry = entries()[folders.NAME].model_dump(mode="json")
    entry |= {"status": "published", "aliases": ["sevennet-0/si"], "new_version": changes.pop("new_version", None)}
    entry |= {"release": release | changes}
    catalogue = parse(Catalogue, {"engines": [entry]}, "test")
    for place in ("zoo.locate", "zoo.listing", "zoo.hub.catalogue"):
        monkeypatch.setattr(f"{place}.entries", lambda: {one.name: one for one in catalogue.engines})


@pytest.fixture
def released(server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """A server with an engine of the project, which anybody may read, and one of the same name of the user's own."""
    with monkeypatch.context() as patch:
        patch.setenv("ZOO_HUB_TOKEN", "token-of-zoo")
        server.users["token-of-zoo"] = "zoo"
        publish(folder, namespace="zoo", public=True)
    _with_entry(monkeypatch, server, manifest_sha256=sha256_file(folder / "manifest.json"))
    return server


def test_the_catalogue_pins_its_engines_and_is_never_shadowed(released: HubServer, folder: Path, other: Path) -> None:
    publish(other)  # me/sevennet-0_silicon-student
    released.requests.clear()
    engine = load(folders.NAME)
    assert torch.equal(_forces(engine), _forces(load(folder)))
    assert engine.provenance.source.startswith("zoo/sevennet-0_silicon-student on ")
    assert not any("/refs" in request.path for request in released.requests)
    released.requests.clear()
    load(folders.NAME)
    assert not released.requests
    assert torch.equal(_forces(load(f"hf://{REPOSITORY}")), _forces(load(other)))
    (row,) = [row for row in listing() if row["name"] == folders.NAME]
    assert (row["repository"], row["status"]) == ("zoo/sevennet-0_silicon-student", "published")


def test_a_pin_counts_only_on_the_hub_where_it_was_recorded(released: HubServer, other: Path, tmp_path: Path) -> None:
    publish(other, tmp_path / "hub", namespace="me")
    assert torch.equal(_forces(load(folders.NAME, hub=tmp_path / "hub")), _forces(load(other)))


def test_a_pinned_commit_with_another_manifest_is_refused(released: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    _with_entry(monkeypatch, released)
    with pytest.raises(IntegrityError, match="is not what the catalogue of zoo recorded"):
        load(folders.NAME)


def test_an_alias_leads_to_its_engine_with_a_warning(released: HubServer) -> None:
    with pytest.warns(ZooWarning, match="sevennet-0/si is called sevennet-0/silicon-student now"):
        assert load("sevennet-0/si@v1").name == folders.NAME


def test_a_stranger_who_takes_the_tag_of_zoo_is_not_listed(server: HubServer, folder: Path) -> None:
    card = {"README.md": b"---\nlibrary_name: zoo\n---\n# x\n"}
    for repository in ("you/evil_engine", "me/my_engine"):
        server.create(repository)
        server.tag(repository, "v1", server.commit(repository, card))
    assert "my/engine" in names()
    assert "evil/engine" not in names()
    with pytest.raises(UnknownNameError, match="no engine is called 'evil/engine'"):
        load("evil/engine")


def test_a_repository_that_is_private_to_another_is_as_if_it_were_not_there(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(folder)
    monkeypatch.setenv("ZOO_HUB_TOKEN", "token-of-you")
    with pytest.raises(
        UnknownNameError, match=f"has no {REPOSITORY}, or your token may not see it; check owner and name"
    ):
        load(f"hf://{REPOSITORY}")
    monkeypatch.delenv("ZOO_HUB_TOKEN")
    with pytest.raises(UnknownNameError, match="or it is private and no token is set"):
        load(f"hf://{REPOSITORY}")
    monkeypatch.setenv("ZOO_HUB_TOKEN", "token-of-you")
    with pytest.raises((AccessError, PublishError), match="refuses"):
        publish(folder)


def test_a_version_that_nobody_finished_is_not_listed_as_one(server: HubServer, folder: Path, other: Path) -> None:
    publish(folder)
    card = other / "README.md"
    server.commit(REPOSITORY, {"README.md": card.read_bytes().replace(b"To be tested", b"Not released")})
    server.create("me/half_engine")
    server.commit("me/half_engine", {"README.md": card.read_bytes()})
    rows = {row["name"]: row for row in listing()}
    assert (rows[folders.NAME]["purpose"], rows[folders.NAME]["version"]) == ("To be tested", "v1")
    assert (rows["half/engine"]["status"], rows["half/engine"]["licence_weights"]) == ("unfinished", None)
    assert "half/engine" not in names()


def test_one_engine_that_cannot_be_read_does_not_hide_the_gallery(
    server: HubServer, folder: Path, tmp_path: Path
) -> None:
    publish(folder)
    server.create("me/half_engine")
    server.create("me/bad_engine")
    server.tag("me/bad_engine", "v1", server.commit("me/bad_engine", {"README.md": b"---\nlibrary_name: zoo\n---\n"}))
    server.requests.clear()
    with pytest.warns(ZooWarning, match="bad/engine has no page"):
        index = build_gallery(tmp_path / "site")
    assert (index.parent / f"{folders.NAME}.html").is_file()
    assert not any("model.safetensors" in request.path for request in server.requests)


def test_what_was_pulled_keeps_the_names_that_were_asked_for(
    server: HubServer, folder: Path, other: Path, tmp_path: Path
) -> None:
    publish(folder)
    publish(other)
    second = server.repositories[REPOSITORY].tags.pop("v2")
    server.repositories[REPOSITORY].branches["dev"] = second
    there = tmp_path / "there"
    pull([folders.NAME], there)
    pull([f"{folders.NAME}@dev"], there)
    pull([f"{folders.NAME}@main"], there)
    for revision, expected in {None: folder, "v1": folder, "dev": other, "main": other}.items():
        assert torch.equal(_forces(load(folders.NAME, hub=there, revision=revision)), _forces(load(expected)))


def test_what_the_catalogue_released_loads_from_where_it_was_carried_in_any_namespace(
    released: HubServer, folder: Path, tmp_path: Path
) -> None:
    pull([folders.NAME], tmp_path / "there")
    released.stop()
    engine = load(folders.NAME, hub=tmp_path / "there", namespace="me")
    assert torch.equal(_forces(engine), _forces(load(folder)))


def test_the_successor_of_what_the_catalogue_released_is_announced(
    released: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = sha256_file(folder / "manifest.json")
    _with_entry(monkeypatch, released, manifest_sha256=digest, new_version="zoo/better_engine")
    with pytest.warns(ZooWarning, match="has a successor: hf://zoo/better_engine"):
        load(folders.NAME)


# Rights


def test_an_expired_token_leaves_what_was_fetched(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(folder)
    load(folders.NAME)
    monkeypatch.setenv("ZOO_HUB_TOKEN", "expired")
    with pytest.warns(ZooWarning, match=r"refuses \(401.*your token is not known there.*Taking v1"):
        assert load(folders.NAME).check().passed
    with pytest.warns(ZooWarning, match="Showing what was fetched before"):
        assert folders.NAME in names()


def test_readers_who_are_let_in_by_hand_stay_so(server: HubServer, tmp_path: Path) -> None:
    lineage = folders.lineage(teacher_terms="Ask first.")
    folder = folders.make_folder(tmp_path / "model", lineage=lineage)
    publish(folder)
    server.repositories[REPOSITORY].gated = "manual"
    publish(folder, public=True)
    assert server.repositories[REPOSITORY].gated == "manual"


def test_terms_that_must_be_repeated_are_asked_for(server: HubServer, tmp_path: Path) -> None:
    lineage = folders.lineage(teacher="me/teacher", teacher_licence_weights="LicenseRef-ASL")
    folder = folders.make_folder(tmp_path / "model", licence="LicenseRef-ASL", lineage=lineage)
    with pytest.raises(LicenceError, match=r"whose text must be passed on; config\.json has no teacher_terms"):
        publish(folder)


def test_a_stored_login_is_never_renewed_at_another_server(tmp_path: Path) -> None:
    """The client sends the secret that renews a login to HF_ENDPOINT, which zoo does not read."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "token").write_text("hf_stored")
    program = "from zoo.hub.client import Client; print(Client('https://huggingface.co').token)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(home)}
    expected = {"https://huggingface.co": "hf_stored", "http://mirror.invalid": "None"}
    for endpoint, token in expected.items():
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment | {"HF_ENDPOINT": endpoint},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == token


@pytest.mark.parametrize("token", ["secret 123", "sec\nret123", "s\u00e4cret123"])
def test_a_token_that_cannot_be_one_is_never_shown(
    token: str, server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_HUB_TOKEN", token)
    with pytest.raises(AccessError, match="ZOO_HUB_TOKEN holds characters that no token has") as refusal:
        publish(folder)
    assert "123" not in str(refusal.value)
    monkeypatch.setenv("ZOO_HUB_TOKEN", "token-of-me\n")
    assert publish(folder).tag == "v1"


def test_a_hub_that_counts_requests_is_given_the_time_that_it_asks_for(server: HubServer, folder: Path) -> None:
    publish(folder)
    limit = {"RateLimit": '"api";r=0;t=600'}
    server.order(Fault("GET", "/refs", "status", status=429, headers=limit))
    with pytest.raises(HubError, match="answered 429 and asks to wait 600 s"):
        load(f"hf://{REPOSITORY}")


def test_the_offline_mode_of_transformers_is_offline_mode_too(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(folder)
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    server.requests.clear()
    with pytest.raises(HubError, match="was not fetched before"):
        load(f"hf://{REPOSITORY}")
    assert not server.requests


# The tag


def test_a_tag_that_the_hub_does_not_show_at_once_is_waited_for(server: HubServer, folder: Path) -> None:
    """Hubs are not always of one mind: what was written a moment ago may not be read yet."""
    stale = (
        b'{"branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": "%s"}], "tags": [], "converts": []}'
    )
    tagged: list[bool] = []

    def show_no_tag(hub: HubServer, _: object) -> None:
        main = hub.repositories[REPOSITORY].branches["main"]
        hub.order(Fault("GET", "/refs", "body", body=stale % main.encode()))
        tagged.append(True)

    server.order(Fault("POST", "/tag/", "call", call=show_no_tag))
    assert publish(folder).tag == "v1"
    assert tagged
    assert list(server.repositories[REPOSITORY].tags) == ["v1"]


def test_a_tag_that_stands_for_another_commit_is_told_and_no_other_is_made(server: HubServer, folder: Path) -> None:
    other = (
        b'{"branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": "%s"}], "converts": [], "tags": ['
    )
    other += b'{"name": "v1", "ref": "refs/tags/v1", "targetCommit": "' + b"9" * 40 + b'"}]}'

    def show_another(hub: HubServer, _: object) -> None:
        main = hub.repositories[REPOSITORY].branches["main"]
        hub.order(Fault("GET", "/refs", "body", body=other % main.encode()))

    server.order(Fault("POST", "/tag/", "call", call=show_another))
    with pytest.raises(PublishError, match=r"took .*@v1, and it stands for '9999"):
        publish(folder)
    assert list(server.repositories[REPOSITORY].tags) == ["v1"]


# Hubs, and threads, apart


def test_other_threads_keep_the_client_as_it_is(server: HubServer, folder: Path, tmp_path: Path) -> None:
    """Their downloads from another server are neither cut nor under zoo's limits, whatever zoo does meanwhile."""
    publish(folder)
    size = ANSWER_BYTES + 10_000_000
    with HubServer(users={}) as second:
        second.create("you/large")
        second.commit("you/large", {"large.bin": bytes(size)})
        failures: list[Exception] = []

        def download() -> None:
            try:
                cache = tmp_path / "cache"
                huggingface_hub.hf_hub_download("you/large", "large.bin", endpoint=second.endpoint, cache_dir=cache)
            except Exception as error:
                failures.append(error)

        thread = threading.Thread(target=download)
        thread.start()
        for _ in range(5):
            load(folders.NAME)
            shutil.rmtree(cache_folder(server.endpoint))
        thread.join()
    assert not failures
    assert next((tmp_path / "cache").rglob("large.bin")).stat().st_size == size


def test_two_threads_load_from_two_hubs(server: HubServer, folder: Path, other: Path) -> None:
    with HubServer(users={"token-of-me": "me"}) as second:
        publish(folder)
        publish(other, second.endpoint)
        hubs = [server.endpoint, second.endpoint] * 3
        with ThreadPoolExecutor(len(hubs)) as pool:
            engines = list(pool.map(lambda hub: load(folders.NAME, hub=hub), hubs))
        for engine, expected in zip(engines, [folder, other] * 3, strict=True):
            assert torch.equal(_forces(engine), _forces(load(expected)))


def test_all_that_zoo_asks_is_asked_in_its_own_thread(server: HubServer, folder: Path) -> None:
    """Requests of other threads are not under zoo's rules."""
    asked: set[int] = set()

    def factory() -> object:
        hooks = {"request": [lambda _: asked.add(threading.get_ident())]}
        return huggingface_hub.utils.httpx.Client(event_hooks=hooks)

    huggingface_hub.set_client_factory(factory)
    try:
        publish(folder)
        load(folders.NAME)
    finally:
        huggingface_hub.set_client_factory(huggingface_hub.utils._http.default_client_factory)
    assert asked == {threading.get_ident()}


def test_two_hubs_with_the_same_repository_never_mix(
    server: HubServer, folder: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HubServer(users={"token-of-me": "me"}) as second:
        publish(folder)
        publish(other, second.endpoint)
        for _ in range(2):
            assert torch.equal(_forces(load(folders.NAME)), _forces(load(folder)))
            assert torch.equal(_forces(load(folders.NAME, hub=second.endpoint)), _forces(load(other)))
        _offline(monkeypatch)
        assert torch.equal(_forces(load(f"{folders.NAME}@v1")), _forces(load(folder)))
        assert torch.equal(_forces(load(f"{folders.NAME}@v1", hub=second.endpoint)), _forces(load(other)))


@pytest.mark.parametrize("address", ["publish", "load", "list"])
def test_a_token_for_huggingface_is_never_sent_elsewhere(
    address: str, server: HubServer, folder: Path, tmp_path: Path
) -> None:
    """In a process of its own, for the client reads where tokens are stored when it is imported."""
    publish(folder)
    server.requests.clear()
    home = tmp_path / "home"
    home.mkdir()
    (home / "token").write_text("hf_stored")
    program = {
        "publish": "zoo.publish(sys.argv[1])",
        "load": "zoo.load(sys.argv[2])",
        "list": "zoo.names()",
    }[address]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(home), "HF_TOKEN": "hf_secret"}
    environment |= {"ZOO_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0"}
    command = [sys.executable, "-W", "ignore", "-c", f"import sys, zoo; {program}", str(folder), folders.NAME]
    for token in ("token-of-me", None):
        if token is None:
            environment.pop("ZOO_HUB_TOKEN")
        subprocess.run(command, env=environment, capture_output=True, check=False)
        sent = json.dumps([request.headers for request in server.requests])
        assert "hf_" not in sent.replace("hf_hub", "")
        assert ("token-of-me" in sent) == (token is not None)
        assert server.requests or token is None
        server.requests.clear()


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("https://HuggingFace.co/", "https://huggingface.co"),
        ("https://hub.lab:443", "https://hub.lab"),
        ("http://hub.lab:8080/team/", "http://hub.lab:8080/team"),
        ("http://[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_an_address_has_one_normal_form(text: str, normal: str) -> None:
    assert parse_hub(text) == normal
    assert parse_hub(normal) == normal


@pytest.mark.parametrize(
    "text",
    [
        "ftp://hub",
        "https://",
        "https://me:pw@hub",
        "https://hub/?a",
        "https://hub#a",
        "https://hub/../x",
        "https://h b",
    ],
)
def test_an_address_that_no_hub_has_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="expected https://host"):
        parse_hub(text)


def test_each_hub_has_a_cache_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    many = ["https://huggingface.co", "http://huggingface.co", "https://huggingface.co:444", "https://huggingface.co/x"]
    assert len({cache_folder(one) for one in many}) == 4
    monkeypatch.delenv("ZOO_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert cache_folder(many[0]) == tmp_path / "zoo" / "huggingface.co"
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(many[0]) == tmp_path / "huggingface" / "zoo" / "huggingface.co"


def test_a_hub_is_named_by_the_argument_or_the_environment_or_is_huggingface(monkeypatch: pytest.MonkeyPatch) -> None:
    default = open_hub()
    assert isinstance(default, RemoteHub)
    assert (default.endpoint, default.title) == ("https://huggingface.co", "huggingface.co")
    monkeypatch.setenv("ZOO_HUB", "~/there")
    assert open_hub().title == str(Path("~/there").expanduser())
    assert open_hub("./here").title == "./here"
    assert open_hub("http://hub.lab/").title == "http://hub.lab"


def test_the_session_of_the_client_is_put_back(server: HubServer, folder: Path) -> None:
    """What else in the process uses the client keeps its own session, tokens and progress bars."""
    made: list[object] = []

    def factory() -> object:
        client = huggingface_hub.utils.httpx.Client()
        made.append(client)
        return client

    huggingface_hub.set_client_factory(factory)
    try:
        publish(folder)
        load(folders.NAME)
        assert made  # zoo asked through the user's factory
        mine = huggingface_hub.get_session()
        assert mine is made[-1]
        assert mine.event_hooks == {"request": [], "response": []}
    finally:
        huggingface_hub.close_session()
        huggingface_hub.set_client_factory(huggingface_hub.utils._http.default_client_factory)


def test_what_was_asked_of_an_engine_does_not_depend_on_the_hub(
    server: HubServer, folder: Path, tmp_path: Path
) -> None:
    publish(folder)
    publish(folder, tmp_path / "hub", namespace="me")
    atoms: Atoms = folders.cells(1)[0]
    for hub in (server.endpoint, tmp_path / "hub"):
        for name in (folders.NAME, f"{folders.NAME}@v1", f"hf://{REPOSITORY}", f"hf://{REPOSITORY}@v1"):
            atoms.calc = load(name, hub=hub, namespace="me").calculator()
            assert folders.same(atoms.get_forces(), _forces(load(folder)))


def test_who_set_a_mirror_for_the_client_alone_is_told_which_variable_zoo_reads(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.stop()
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    with pytest.raises(HubError, match="check the network"):
        load("hf://me/thing")
    monkeypatch.delenv("ZOO_HUB")
    with pytest.raises(HubError, match=r"set ZOO_HUB=https://mirror\.example"):
        load("hf://me/thing", hub=server.endpoint)
