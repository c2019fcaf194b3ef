"""Killed at any moment by the signal that no program can catch, publish and pull leave whole versions, and go on."""

import multiprocessing
import os
import random
import shutil
import signal
import tarfile
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import huggingface_hub.constants
import model_folders as folders
import pytest
import torch
from hub_server import Fault, HubServer, Request

from zoo.engine import Engine
from zoo.load import load
from zoo.publish import publish
from zoo.pull import pull

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(  # the client's own, at an LFS PUT
        "ignore:Use 'content=<...>' to upload raw bytes/text content:DeprecationWarning"
    ),
]

NAME = "tiny/student"
PLACE = "me/tiny_student"

CONTEXT = multiprocessing.get_context("forkserver")  # a fresh process each, but PyTorch is imported once
CONTEXT.set_forkserver_preload([__name__, "zoo.hub.client", "torch._dynamo"])  # what else each would import anew

Work = Callable[[], object]


@dataclass(frozen=True)
class Publishing:
    """``zoo publish FOLDER``."""

    folder: Path

    def __call__(self) -> object:
        return publish(self.folder)


@dataclass(frozen=True)
class Pulling:
    """``zoo pull NAME --to PLACE``."""

    to: Path

    def __call__(self) -> object:
        return pull([NAME], self.to)


@dataclass(frozen=True)
class Run:
    """How it went with one process."""

    killed: bool
    seconds: float
    requests: Sequence[str]  # the method of each


def environment(server: HubServer, cache: Path, temporary: Path) -> dict[str, str]:
    temporary.mkdir(exist_ok=True)
    return {
        "ZOO_HUB": server.endpoint,
        "ZOO_HUB_TOKEN": "token",
        "ZOO_NAMESPACE": "me",
        "ZOO_CACHE": str(cache),
        "NO_PROXY": "127.0.0.1,localhost",
        "TMPDIR": str(temporary),
    }


def carry_out(
    work: Work, around: Mapping[str, str], kill_after: float | None = None, victim: list[int] | None = None
) -> tuple[int, float]:
    """The exit code of a process that does this work, and its seconds; killed after so many of them.

    ``victim`` gets the process's id before it begins.
    """
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_in_process, args=(work, dict(around), theirs))
    process.start()
    theirs.close()
    with ours:
        assert ours.recv() == "ready"
        if victim is not None and process.pid:
            victim.append(process.pid)
        ours.send("go")
    started = time.perf_counter()
    process.join(60 if kill_after is None else kill_after)
    process.kill()
    process.join()
    assert process.exitcode is not None
    code = process.exitcode
    process.close()
    return code, time.perf_counter() - started


def _in_process(work: Work, around: Mapping[str, str], connection: Connection) -> None:
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # or tqdm's lock has a name, which a kill would leave behind
    os.environ.pop("HF_HUB_OFFLINE", None)
    huggingface_hub.constants.HF_HUB_OFFLINE = False  # read when it was imported
    os.environ.update(around)
    tempfile.tempdir = around["TMPDIR"]  # the server of processes has looked for one, once
    with connection:
        connection.send("ready")
        connection.recv()
    work()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("runs")
    return {
        version: folders.make_folder(place / version, seed=seed, name=NAME) for version, seed in (("v1", 7), ("v2", 8))
    }


@pytest.fixture(scope="module")
def forces(made: dict[str, Path]) -> dict[str, object]:
    return {version: forces_of(Engine.read(folder, device="cpu", dtype="float32")) for version, folder in made.items()}


def forces_of(engine: Engine) -> object:
    return engine.predict(folders.cells(1))[0].forces.tolist()


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")


def content(folder: Path) -> dict[str, bytes]:
    return {path: bytes(data) for path, data in folders.tree(folder).items()}


def release(server: HubServer, folder: Path, version: str) -> None:
    if PLACE not in server.repositories:
        server.create(PLACE, private=True)
    server.tag(PLACE, version, server.commit(PLACE, content(folder)))


def released(server: HubServer) -> dict[str, dict[str, bytes]]:
    tags = server.repositories[PLACE].tags
    files = {tag: server.files(PLACE, tag) for tag in tags}
    return {tag: {path: data for path, data in some.items() if path != ".gitattributes"} for tag, some in files.items()}


def check_loads(forces: Mapping[str, object], versions: set[str], **where: object) -> None:
    """Each version, and the newest by name, is what it should be."""
    names = {NAME: max(versions)} | {f"{NAME}@{version}": version for version in versions}
    for name, version in names.items():
        engine = load(name, device="cpu", **where)
        assert engine.provenance.revision == version
        assert forces_of(engine) == forces[version]


class Bench(ABC):
    """One process after the other is killed at its work; what it left is looked at, and the work is done again."""

    moments = 25

    def __init__(self, place: Path, made: dict[str, Path], forces: dict[str, object]) -> None:
        self.place = place
        self.made = made
        self.forces = forces
        self.versions = {version: content(folder) for version, folder in made.items()}
        self.expected: object = None
        self.count = 0

    def once(self, kill_after: float | None = None, fault: Callable[[list[int]], Fault] | None = None) -> Run:
        """In a new place, beside a server of its own with version v1."""
        self.count += 1
        mine = self.place / str(self.count)
        mine.mkdir()
        with HubServer(users={"token": "me"}) as server, pytest.MonkeyPatch.context() as patch:
            release(server, self.made["v1"], "v1")
            around = environment(server, mine / "cache", mine / "temporary")
            for name, value in around.items():
                patch.setenv(name, value)
            work = self.prepare(server, mine)
            server.requests.clear()
            victim: list[int] = []
            if fault:
                server.order(fault(victim))
            code, seconds = carry_out(work, around, kill_after, victim)
            assert code in (0, -signal.SIGKILL)
            requests = [request.method for request in server.requests]
            server.heal()
            self.check(server, mine)
            work()
            state = self.state(server, mine)
            self.expected = self.expected or state
            assert state == self.expected
        shutil.rmtree(mine)
        return Run(code != 0, seconds, requests)

    @abstractmethod
    def prepare(self, server: HubServer, mine: Path) -> Work:
        """What is to be done."""

    @abstractmethod
    def check(self, server: HubServer, mine: Path) -> None:
        """Raises AssertionError for anything half, after a kill."""

    @abstractmethod
    def state(self, server: HubServer, mine: Path) -> object:
        """What there is in the end, which no kill may change."""


class PublishBench(Bench):
    """Version v2 is published."""

    moments = 50

    def prepare(self, server: HubServer, mine: Path) -> Work:
        return Publishing(self.made["v2"])

    def check(self, server: HubServer, mine: Path) -> None:
        found = released(server)
        assert found.items() <= self.versions.items()
        assert "v1" in found, "the version of before is lost"
        check_loads(self.forces, set(found))

    def state(self, server: HubServer, mine: Path) -> object:
        repo = server.repositories[PLACE]
        assert set(repo.tags) == {"v1", "v2"}
        return released(server), server.files(PLACE), len(repo.commits), repo.private


class PullBench(Bench):
    """Version v2 is pulled to where v1 is."""

    to = "pulled"

    def prepare(self, server: HubServer, mine: Path) -> Work:
        pull([NAME], mine / self.to)
        release(server, self.made["v2"], "v2")
        return Pulling(mine / self.to)

    def check(self, server: HubServer, mine: Path) -> None:
        hub = self.unpacked(mine)
        check_loads(self.forces, {path.name for path in hub.glob("*/refs/v*")}, hub=hub)

    def state(self, server: HubServer, mine: Path) -> object:
        hub = self.unpacked(mine)
        check_loads(self.forces, {path.name for path in hub.glob("*/refs/v*")}, hub=hub)
        left = sorted(path.name for path in mine.iterdir() if path.name.startswith("."))
        return folders.tree(hub), left, (mine / self.to).read_bytes() if self.to.endswith(".tar") else b""

    def unpacked(self, mine: Path) -> Path:
        return mine / self.to


class TarBench(PullBench):
    """The same, as a tar, which has one version and is replaced."""

    to = "pulled.tar"

    def unpacked(self, mine: Path) -> Path:
        shutil.rmtree(mine / "unpacked", ignore_errors=True)
        with tarfile.open(mine / self.to) as tar:
            tar.extractall(mine / "unpacked", filter="tar")
        return mine / "unpacked" / "pulled"


BENCHES = {"publish": PublishBench, "pull": PullBench, "pull to a tar": TarBench}


@pytest.fixture(params=list(BENCHES))
def bench(request: pytest.FixtureRequest, tmp_path: Path, made: dict[str, Path], forces: dict[str, object]) -> Bench:
    return BENCHES[request.param](tmp_path, made, forces)


def test_killed_at_random_moments(bench: Bench) -> None:
    longest = min(bench.once().seconds for _ in range(2))
    moments, kills = random.Random(3), 0
    for _ in range(6 * bench.moments):  # a run may be faster than those that were timed, and end before its moment
        kills += bench.once(kill_after=moments.uniform(0, longest)).killed
        if kills == bench.moments:
            break
    assert kills == bench.moments, "too few were still at work at their moment"


def test_killed_at_each_request(bench: Bench) -> None:
    """Before the hub does as it is asked; where that changes anything, after it too."""
    for number, method in enumerate(bench.once().requests):
        for answered in (False, True) if method in ("POST", "PUT") else (False,):
            run = bench.once(fault=lambda victim, at=number, done=answered: killing(victim, at, done))
            assert run.killed, f"request {number}"


def killing(victim: list[int], number: int, answered: bool) -> Fault:
    def kill(server: HubServer, request: Request) -> None:
        if answered:
            server.answer(request)
        os.kill(victim[0], signal.SIGKILL)

    return Fault(None, "", "call", skip=number, call=kill)
