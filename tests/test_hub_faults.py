"""Whatever a hub, a network or a disk does: nothing is lost, nothing half is released, and the same again ends it.

``FAULTS`` has a line for each fault and what a user does meanwhile. What he saw is written to ``hub-faults.md`` by
``ZOO_WRITE_TABLES=1 pytest tests/test_hub_faults.py``.
"""

import errno
import math
import os
import re
import shutil
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.file_download
import model_folders as folders
import pytest
from hub_server import Fault, HubServer, Request

import zoo.hub.client
from zoo.engine import Engine
from zoo.errors import (
    AccessError,
    ConfigError,
    HubError,
    IntegrityError,
    PublishError,
    UnknownNameError,
    ZooWarning,
)
from zoo.listing import listing
from zoo.load import load
from zoo.naming import Repository
from zoo.publish import publish
from zoo.pull import pull

pytestmark = pytest.mark.filterwarnings(  # the client's own, at an LFS PUT
    "ignore:Use 'content=<...>' to upload raw bytes/text content:DeprecationWarning"
)

NAME = "tiny/student"  # no name of the catalogue, which would have more to say
PLACE = Repository("me", "tiny_student")
TABLE = Path(__file__).with_name("hub-faults.md")
ALWAYS = math.inf
IMPATIENCE = 0.5  # seconds of ZOO_HUB_TIMEOUT where the fault is silence
BOUND = 20.0  # seconds that nothing here may take; only a hang does

STEPS = {  # of publish, in their order: the request of each
    "refs": ("GET", "/refs$"),
    "create": ("POST", "/repos/create"),
    "tree": ("GET", "/tree/"),
    "check of the card": ("POST", "/validate-yaml"),
    "preupload": ("POST", "/preupload/"),
    "LFS batch": ("POST", "/objects/batch"),
    "LFS put": ("PUT", "^/lfs/"),
    "LFS verify": ("POST", "/lfs/verify"),
    "commit": ("POST", "/commit/main"),
    "load back": ("GET", "/resolve/"),
    "tag": ("POST", "/tag/"),
    "settings": ("PUT", "/settings"),
    "info": ("GET", r"/api/models/[^/?]+/[^/?]+(\?|$)"),
    "versions": ("POST", "/paths-info/"),
    "list": ("GET", r"/api/models\?"),
    "manifest": ("GET", "/resolve/.*/manifest.json"),
    "weights": ("GET", "/resolve/.*/model.safetensors"),
    "weights' head": ("HEAD", "/resolve/.*/model.safetensors"),
    "head": ("HEAD", "/resolve/.*/manifest.json"),
}


@dataclass
class Scene:
    """A hub, model folders of two versions, and a user who does one thing."""

    server: HubServer
    place: Path
    folders: dict[str, Path]
    patch: pytest.MonkeyPatch
    hub: str | Path = ""
    forces: dict[str, object] = field(default_factory=dict)  # of each version
    met: list[Callable[[], object]] = field(default_factory=list)  # each says whether a fault fired
    repairs: list[Callable[[], object]] = field(default_factory=list)  # what somebody does before it can be done again
    naps: list[float] = field(default_factory=list)  # seconds that were waited between tries

    def release(self, version: str, owner: str = "me") -> str:
        """A version that somebody published before."""
        where = f"{owner}/{PLACE.name}"
        if where not in self.server.repositories:
            self.server.create(where, private=True)
        commit = self.server.commit(where, self.content(version))
        self.server.tag(where, f"v{len(self.server.repositories[where].tags) + 1}", commit)
        return commit

    def content(self, version: str) -> dict[str, bytes]:
        return {path: bytes(data) for path, data in folders.tree(self.folders[version]).items()}

    def order(self, fault: Fault) -> None:
        self.server.order(fault)
        self.met.append(lambda: self.server.faults_met[fault])

    def released(self) -> dict[str, dict[str, bytes]]:
        """What each tag leads to."""
        if isinstance(self.hub, Path):
            place = self.hub / PLACE.folder
            tags = {path.name: place / "snapshots" / path.read_text() for path in sorted(place.glob("refs/v*"))}
            return {
                tag: {path: (snapshot / path).read_bytes() for path in _files(snapshot)}
                for tag, snapshot in tags.items()
            }
        repo = self.server.repositories.get(PLACE.id)
        tags = sorted(repo.tags) if repo else ()
        return {tag: _without_extras(self.server.files(PLACE.id, tag)) for tag in tags}

    def state(self) -> object:
        """All that publishing may change."""
        if isinstance(self.hub, Path):
            return folders.tree(self.hub)
        return {
            repo.id: (dict(repo.branches), dict(repo.tags), len(repo.commits), repo.private, repo.gated)
            for repo in self.server.repositories.values()
        }

    def blob(self, path: str) -> Path:
        """The content of a file in the cache."""
        return next((self.place / "cache").glob(f"*/{PLACE.folder}/snapshots/*/{path}")).resolve()


def _files(snapshot: Path) -> list[str]:
    return sorted(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file())


def _without_extras(files: dict[str, bytes]) -> dict[str, bytes]:
    return {path: data for path, data in files.items() if path != ".gitattributes"}


# What a user does: what was there before, and the thing itself, which says what came of it.


def released_before(scene: Scene) -> None:
    scene.release("old")


def nothing_before(scene: Scene) -> None:
    pass


def loaded_before(scene: Scene) -> None:
    scene.release("old")
    load(NAME, device="cpu")


def loaded_before_and_a_new_version(scene: Scene) -> None:
    loaded_before(scene)
    scene.release("new")


def in_a_folder(scene: Scene) -> None:
    scene.hub = scene.place / "hub"
    scene.patch.setenv("ZOO_HUB", str(scene.hub))
    publish(scene.folders["old"])


def publishes(scene: Scene) -> str:
    result = publish(scene.folders["new"])
    return f"{result.tag} is released"


def publishes_openly(scene: Scene) -> str:
    result = publish(scene.folders["new"], public=True)
    return f"{result.tag} is released, public" if result.public else ""


def loads(scene: Scene) -> str:
    return _loaded(scene, NAME)


def loads_v1(scene: Scene) -> str:
    return _loaded(scene, f"{NAME}@v1")


def loads_of_somebody_else(scene: Scene) -> str:
    return _loaded(scene, f"hf://you/{PLACE.name}")


def pulls(scene: Scene) -> str:
    (title,) = pull([NAME], scene.place / "pulled").engines
    assert load(NAME, hub=scene.place / "pulled", device="cpu").provenance.revision == title.partition("@")[2]
    return f"{title.partition('@')[2]} is pulled"


def lists(scene: Scene) -> str:
    found = [row for row in listing() if row["status"] == "published"]
    return f"{len(found)} on the hub" if len(found) == 1 else "none of the hub"


def _loaded(scene: Scene, name: str) -> str:
    engine = load(name, device="cpu")
    forces = _forces(engine)
    (version,) = (version for version, known in scene.forces.items() if known == forces)
    return f"{engine.provenance.revision} is loaded, the {version} one"


def _forces(engine: Engine) -> object:
    return engine.predict(folders.cells(1))[0].forces.tolist()


Doing = tuple[Callable[[Scene], object], Callable[[Scene], str]]
DOINGS: dict[str, Doing] = {
    "publish": (released_before, publishes),
    "publish for the first time": (nothing_before, publishes),
    "publish --public": (released_before, publishes_openly),
    "load": (released_before, loads),
    "load, with v1 in the cache": (loaded_before_and_a_new_version, loads),
    "load v1, which is in the cache": (loaded_before, loads_v1),
    "load from somebody else": (lambda scene: scene.release("old", "you"), loads_of_somebody_else),
    "pull": (released_before, pulls),
    "list": (released_before, lists),
    "list, with v1 in the cache": (loaded_before, lists),
    "publish to a folder": (in_a_folder, publishes),
    "load from a folder": (in_a_folder, loads),
}


# What goes wrong.


def at(step: str, kind: str, times: float = 1, **how: object) -> Fault:
    """A fault of the server at a step."""
    method, path = STEPS[step]
    return Fault(method, path, kind, times=times, **how)


def stopped(scene: Scene, patch: pytest.MonkeyPatch) -> None:
    before = len(scene.server.requests)
    scene.server.stop()
    scene.met.append(lambda: len(scene.server.requests) == before)


def unknown_host(scene: Scene, patch: pytest.MonkeyPatch) -> None:
    """Answered here, so that it needs no network, nor a name server that knows of none."""
    asked = []

    def look_up(host: str, *_: object, **__: object) -> list[object]:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    patch.setattr(socket, "getaddrinfo", look_up)
    patch.setenv("ZOO_HUB", "http://hub.invalid")
    scene.met.append(lambda: asked)


def refusing_proxy(scene: Scene, patch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{taken.getsockname()[1]}"
    for name in ("NO_PROXY", "no_proxy"):
        patch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy"):
        patch.setenv(name, closed)
    before = len(scene.server.requests)
    scene.met.append(lambda: len(scene.server.requests) == before)


def offline(scene: Scene, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    before = len(scene.server.requests)
    scene.met.append(lambda: len(scene.server.requests) == before)


def no_token(scene: Scene, patch: pytest.MonkeyPatch) -> None:
    patch.delenv("ZOO_HUB_TOKEN")
    scene.met.append(lambda: True)


def wrong_token(scene: Scene, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("ZOO_HUB_TOKEN", "wrong")
    scene.met.append(lambda: any("wrong" in one.headers.get("authorization", "") for one in scene.server.requests))


def of_somebody_else(scene: Scene, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("ZOO_NAMESPACE", "you")
    scene.met.append(lambda: any("/repos/create" in one.path for one in scene.server.requests))


def private(scene: Scene, patch: pytest.MonkeyPatch) -> None:
    repo = scene.server.repositories[f"you/{PLACE.name}"]
    scene.met.append(lambda: repo.private)
    scene.repairs.append(lambda: setattr(repo, "private", False))


def gated(scene: Scene, patch: pytest.MonkeyPatch) -> None:
    repo = scene.server.repositories[f"you/{PLACE.name}"]
    repo.private, repo.gated = False, "auto"
    scene.met.append(lambda: repo.gated)
    scene.repairs.append(lambda: repo.granted.add("me"))


def other_publisher(scene: Scene, patch: pytest.MonkeyPatch) -> None:
    scene.order(at("commit", "stale_parent", files={"README.md": b"# Of another\n"}))


def same_publisher(scene: Scene, patch: pytest.MonkeyPatch) -> None:
    scene.order(at("commit", "stale_parent", files=scene.content("new")))


def tag_taken(scene: Scene, patch: pytest.MonkeyPatch) -> None:
    """Another publisher's v2 is the old one again."""
    commit = scene.server.repositories[PLACE.id].tags["v1"]
    scene.order(at("tag", "call", call=lambda server, request: server.tag(PLACE.id, "v2", commit)))


def tag_moved(scene: Scene, patch: pytest.MonkeyPatch) -> None:
    repo = scene.server.repositories[PLACE.id]
    kept, repo.tags = repo.tags, {"v1": repo.branches["main"]}
    scene.met.append(lambda: any("/refs" in request.path for request in scene.server.requests))
    scene.repairs.append(lambda: setattr(repo, "tags", kept))


def deleted(scene: Scene, patch: pytest.MonkeyPatch) -> None:
    """Taken away, and brought back before it is done again."""
    kept = dict(scene.server.repositories)
    scene.server.repositories.clear()
    scene.met.append(lambda: not scene.server.repositories)
    scene.repairs.append(lambda: scene.server.repositories.update(kept))


def deleted_at(step: str) -> Callable[[Scene, pytest.MonkeyPatch], None]:
    def delete(scene: Scene, patch: pytest.MonkeyPatch) -> None:
        kept = dict(scene.server.repositories)
        scene.order(at(step, "call", call=lambda server, request: server.repositories.clear()))
        scene.repairs.append(lambda: scene.server.repositories.update(kept))

    return delete


def spoilt_object(scene: Scene, patch: pytest.MonkeyPatch) -> None:
    """A hub that keeps the weights otherwise than it got them."""
    weights = scene.content("new")["model.safetensors"]

    def spoil(server: HubServer, request: Request) -> None:
        objects = server.repositories[PLACE.id].objects
        objects.update({oid: bytes(len(data)) for oid, data in objects.items() if data == weights})

    scene.order(at("commit", "call", call=spoil))
    scene.repairs.append(lambda: scene.server.repositories[PLACE.id].objects.clear())


def full_disk(scene: Scene, patch: pytest.MonkeyPatch) -> None:
    asked = []

    def usage(path: Path) -> object:
        asked.append(path)
        return shutil._ntuple_diskusage(10**9, 10**9, 1000)

    patch.setattr(shutil, "disk_usage", usage)
    scene.met.append(lambda: asked)


def full_while_fetching(scene: Scene, patch: pytest.MonkeyPatch) -> None:
    _failing(scene, patch, huggingface_hub.file_download, "http_get", errno.ENOSPC)


def full_while_publishing(scene: Scene, patch: pytest.MonkeyPatch) -> None:
    _failing(scene, patch, shutil, "copyfile", errno.ENOSPC)


def read_only_cache(scene: Scene, patch: pytest.MonkeyPatch) -> None:
    _failing(scene, patch, os, "mkdir", errno.EROFS, only=str(scene.place / "cache"))


def _failing(
    scene: Scene, patch: pytest.MonkeyPatch, module: object, name: str, code: int, only: str | None = None
) -> None:
    """A function that fails with an error of the operating system, perhaps for paths below a folder only."""
    met, real = [], getattr(module, name)

    def fail(*given: object, **named: object) -> object:
        if only is None or str(given[0]).startswith(only):
            met.append(given)
            raise OSError(code, os.strerror(code))
        return real(*given, **named)

    patch.setattr(module, name, fail)
    scene.met.append(lambda: met)


def read_only_warm_cache(scene: Scene, patch: pytest.MonkeyPatch) -> None:
    """Nothing may be written, and nothing is tried."""
    read_only_cache(scene, patch)
    tried = scene.met.pop()
    scene.met.append(lambda: not tried())


def damaged_blob(scene: Scene, patch: pytest.MonkeyPatch) -> None:
    blob = scene.blob("model.safetensors")
    data = bytearray(blob.read_bytes())
    data[-1] ^= 255
    blob.write_bytes(data)
    scene.met.append(lambda: True)


def deleted_blob(scene: Scene, patch: pytest.MonkeyPatch) -> None:
    scene.blob("model.safetensors").unlink()
    scene.met.append(lambda: True)


def half_snapshot(scene: Scene, patch: pytest.MonkeyPatch) -> None:
    snapshot = next((scene.place / "cache").glob(f"*/{PLACE.folder}/snapshots/*"))
    for path in _files(snapshot)[1:]:
        (snapshot / path).unlink()
    scene.met.append(lambda: True)


def damaged_blob_and_stopped(scene: Scene, patch: pytest.MonkeyPatch) -> None:
    damaged_blob(scene, patch)
    stopped(scene, patch)


def damaged_blob_offline(scene: Scene, patch: pytest.MonkeyPatch) -> None:
    damaged_blob(scene, patch)
    offline(scene, patch)


def stale_incomplete(scene: Scene, patch: pytest.MonkeyPatch) -> None:
    """What a download that was killed long ago left, and one that may be at work."""
    blobs = next((scene.place / "cache").glob(f"*/{PLACE.folder}/blobs"))
    stale, fresh = blobs / f"{'0' * 64}.incomplete", blobs / f"{'1' * 64}.incomplete"
    for path in (stale, fresh):
        path.write_bytes(b"half")
    os.utime(stale, (0, 0))
    scene.met.append(lambda: fresh.exists() and not stale.exists())


def broken_ref_in_the_cache(scene: Scene, patch: pytest.MonkeyPatch) -> None:
    ref = next((scene.place / "cache").glob(f"*/{PLACE.folder}/refs/v1"))
    ref.write_text("half")
    scene.met.append(lambda: ref.read_text() != "half")  # it was written anew


def broken_ref(scene: Scene, patch: pytest.MonkeyPatch) -> None:
    ref = scene.place / "hub" / PLACE.folder / "refs" / "v1"
    ref.write_text(ref.read_text()[:20])
    scene.met.append(lambda: True)
    scene.repairs += [ref.unlink, lambda: publish(scene.folders["old"])]


@dataclass(frozen=True)
class Case:
    """A fault, what is done meanwhile, and what comes of it: an error, or None where it succeeds all the same."""

    fault: str  # for readers
    doing: str
    breaks: Fault | Callable[[Scene, pytest.MonkeyPatch], None]
    error: type[Exception] | None
    says: str = ""  # that the error, or the warning, has among its words; "" for neither
    lost: bool = False  # whether the fault is that somebody takes away what was released


PAGE = b"<!doctype html>\n<title>Sign in</title>"
SLOW, DOWN, NO_HUB = "ZOO_HUB_TIMEOUT=60", "check the network", "is it a hub, or a proxy"
LATER, TOKEN, AGAIN = "try again later", "set ZOO_HUB_TOKEN", "un the same again"
CACHED, MADE = "load, with v1 in the cache", "load v1, which is in the cache"
NO_ENTRY = {"X-Error-Code": "EntryNotFound"}
NO_ETAG = {"ETag": None, "X-Linked-Etag": None}
DAY = {"Retry-After": "86400"}
NETWORK = [
    Case("connection refused", "publish", stopped, PublishError, DOWN),
    Case("connection refused", "load", stopped, HubError, DOWN),
    Case("connection refused", CACHED, stopped, None, "Taking v1, which was fetched before"),
    Case("connection refused", MADE, stopped, None),
    Case("connection refused", "pull", stopped, HubError, DOWN),
    Case("connection refused", "list", stopped, None, "Showing what was fetched before"),
    Case("connection refused", "list, with v1 in the cache", stopped, None, "Showing what was fetched before"),
    Case("host that does not exist", "load", unknown_host, HubError, DOWN),
    Case("host that does not exist", "publish", unknown_host, PublishError, DOWN),
    Case("proxy that refuses", "load", refusing_proxy, HubError, DOWN),
    Case("offline mode", "publish", offline, PublishError, "unset it"),
    Case("offline mode", "load", offline, HubError, "run: zoo pull"),
    Case("offline mode", CACHED, offline, None),
    Case("offline mode", "list", offline, None),
    *(
        Case(f"connection closed at {step}, once", "publish", at(step, "refuse"), None)
        for step in ("refs", "tree", "preupload", "LFS put", "commit", "tag", "load back")
    ),
    *(
        Case(f"answer lost at {step}", "publish", at(step, "lost_answer"), None)
        for step in ("LFS put", "LFS verify", "commit", "tag")
    ),
    Case("answer lost at create", "publish for the first time", at("create", "lost_answer"), None),
    Case("answer lost at settings", "publish --public", at("settings", "lost_answer"), None),
    Case("silence at refs", "publish", at("refs", "hang", ALWAYS), PublishError, SLOW),
    Case("silence at LFS put, once", "publish", at("LFS put", "hang"), None),
    Case("silence at commit", "publish", at("commit", "hang", ALWAYS), PublishError, SLOW),
    Case("silence at load back", "publish", at("load back", "hang", ALWAYS), PublishError, SLOW),
    *(
        Case(f"silence at {step}", "load", at(step, "hang", ALWAYS), HubError, SLOW)
        for step in ("refs", "manifest", "weights", "weights' head")
    ),
    Case("silence at info", "load", at("info", "hang", ALWAYS), None),
    Case("silence at refs", CACHED, at("refs", "hang", ALWAYS), None, "Taking v1, which was fetched before"),
    Case("silence at list", "list", at("list", "hang", ALWAYS), None, SLOW),
    Case("headers that drip", "load", at("refs", "hang_headers", ALWAYS, seconds=0.1), HubError, SLOW),
    Case("headers that drip", "publish", at("commit", "hang_headers", seconds=0.1), None),
    Case("body that drips", "load", at("weights", "drip", ALWAYS, seconds=0.1), HubError, SLOW),
    Case("body that drips", "list", at("list", "drip", ALWAYS, seconds=0.1), None, SLOW),
    Case("download cut, once", "load", at("weights", "cut", size=3000), None),
    Case("download cut, always", "load", at("weights", "cut", ALWAYS, size=100), HubError, DOWN),
    Case("answer cut, once", "publish", at("refs", "cut", size=20), None),
    Case("body without end", "load", at("manifest", "endless", ALWAYS), HubError, NO_HUB),
    Case("body without end", "list", at("list", "endless", ALWAYS), None, NO_HUB),
]
ANSWERS = [
    *(
        Case(f"500 at {step}, always", "publish", at(step, "status", ALWAYS), PublishError, AGAIN)
        for step in (
            *("refs", "versions", "tree", "check of the card", "preupload", "LFS batch", "LFS put"),
            *("commit", "load back", "tag", "info"),
        )
    ),
    Case("500 at LFS verify, always", "publish", at("LFS verify", "status", ALWAYS), None),
    Case("500 at create, always", "publish for the first time", at("create", "status", ALWAYS), PublishError, AGAIN),
    Case("500 at settings, always", "publish --public", at("settings", "status", ALWAYS), PublishError, AGAIN),
    *(
        Case(f"{code}, once", "load", at("weights", "status", status=code), None)
        for code in (408, 429, 500, 502, 503, 504)
    ),
    Case("408, always", "load", at("weights", "status", ALWAYS, status=408), HubError, LATER),
    Case("429, always", "load", at("weights", "status", ALWAYS, status=429), HubError, LATER),
    Case("503, always", "load", at("weights", "status", ALWAYS, status=503), HubError, LATER),
    Case("429 with Retry-After: 7", "publish", at("commit", "status", status=429, headers={"Retry-After": "7"}), None),
    Case("503 with Retry-After: 86400", "load", at("refs", "status", status=503, headers=DAY), HubError, "86400 s"),
    Case("503 with Retry-After: 86400", "publish", at("tag", "status", status=503, headers=DAY), PublishError, AGAIN),
    Case("a web page instead of an answer", "load", at("refs", "body", ALWAYS, body=PAGE), HubError, NO_HUB),
    Case("a web page instead of an answer", "publish", at("commit", "body", ALWAYS, body=PAGE), PublishError, NO_HUB),
    Case("a web page instead of an answer", "list", at("list", "body", ALWAYS, body=PAGE), None, NO_HUB),
    Case("half an answer", "load", at("refs", "body", ALWAYS, body=b'{"branches": [{'), HubError, NO_HUB),
    Case("half an answer", "publish", at("preupload", "body", ALWAYS, body=b'{"files": [{'), PublishError, NO_HUB),
    Case(
        "404 for a file", "load", at("weights' head", "status", status=404, headers=NO_ENTRY), IntegrityError, "lacks"
    ),
    Case("404 for the manifest", "load", at("head", "status", status=404, headers=NO_ENTRY), IntegrityError, "lacks"),
    Case("404 without a reason", "load", at("head", "status", status=404), HubError, NO_HUB),
]
RIGHTS = [
    Case("no token", "publish", no_token, AccessError, TOKEN),
    Case("no token, private repository", "load", no_token, UnknownNameError, "it is private and no token is set"),
    Case("wrong token", "publish", wrong_token, AccessError, TOKEN),
    Case("wrong token", "load", wrong_token, AccessError, TOKEN),
    Case("wrong token", "list", wrong_token, None, TOKEN),
    Case("token that may only read", "publish", at("preupload", "status", status=403), AccessError, TOKEN),
    Case("namespace of somebody else", "publish", of_somebody_else, AccessError, TOKEN),
    Case("private repository", "load from somebody else", private, UnknownNameError, "check owner and name"),
    Case("gated repository", "load from somebody else", gated, AccessError, "accept the terms"),
]
CONTENTS = [
    Case("weights damaged once", "load", at("weights", "corrupt"), None),
    Case("weights damaged once", "publish", at("weights", "corrupt"), None),
    Case("weights damaged always", "load", at("weights", "corrupt", ALWAYS), IntegrityError, "arrived damaged twice"),
    Case("weights damaged always", "pull", at("weights", "corrupt", ALWAYS), IntegrityError, "arrived damaged twice"),
    Case("weights damaged always", "publish", at("weights", "corrupt", ALWAYS), IntegrityError, "damaged twice"),
    Case("manifest damaged once", "load", at("manifest", "corrupt"), None),
    Case("manifest damaged always", "load", at("manifest", "corrupt", ALWAYS), IntegrityError, "damaged twice"),
    Case("weights kept otherwise by the hub", "publish", spoilt_object, PublishError, "otherwise than it was sent"),
    Case("ETag of another file", "load", at("weights' head", "wrong_etag", etag=f'"{"0" * 64}"'), None),
    Case("ETag that is no digest", "load", at("weights' head", "wrong_etag", etag='"../../x"'), HubError, NO_HUB),
    Case("no ETag", "load", at("weights' head", "headers", headers=NO_ETAG), HubError, NO_HUB),
    Case("wrong size", "load", at("weights' head", "headers", headers={"X-Linked-Size": "77"}), HubError, NO_HUB),
    Case("wrong commit", "load", at("weights' head", "headers", headers={"X-Repo-Commit": "0" * 40}), HubError, NO_HUB),
]
OTHERS = [
    Case("another publisher, other content", "publish", other_publisher, PublishError, "somebody else published"),
    Case("another publisher, same content", "publish", same_publisher, None),
    Case("another publisher takes the tag", "publish", tag_taken, None),
    Case("tag said to be made, and not", "publish", at("tag", "status", ALWAYS, status=200), PublishError, AGAIN),
    Case("tag that moved", CACHED, tag_moved, None, "Taking what was fetched before"),
    Case("repository deleted meanwhile", "publish", deleted_at("commit"), AccessError, "has no such", lost=True),
    Case("repository deleted meanwhile", "load", deleted_at("head"), AccessError, "has no such", lost=True),
    Case("repository deleted", CACHED, deleted, UnknownNameError, "has no me/tiny_student", lost=True),
    Case("repository deleted", MADE, deleted, None, lost=True),
]
DISKS = [
    Case("full disk", "load", full_disk, ConfigError, "make room"),
    Case("disk that fills up", "pull", full_while_fetching, ConfigError, "with room"),
    Case("disk that fills up", "publish", full_while_publishing, PublishError, AGAIN),
    Case("disk that fills up", "publish to a folder", full_while_publishing, PublishError, AGAIN),
    Case("read-only cache", "load", read_only_cache, ConfigError, "set ZOO_CACHE"),
    Case("read-only cache", MADE, read_only_warm_cache, None),
    Case("damaged file in the cache", MADE, damaged_blob, None),
    Case("damaged file in the cache, connection refused", MADE, damaged_blob_and_stopped, HubError, DOWN),
    Case("damaged file in the cache, offline mode", MADE, damaged_blob_offline, HubError, "run: zoo pull"),
    Case("file missing in the cache", MADE, deleted_blob, None),
    Case("half a snapshot in the cache", MADE, half_snapshot, None),
    Case("half downloads in the cache", CACHED, stale_incomplete, None),
    Case("broken ref in the cache", MADE, broken_ref_in_the_cache, None),
    Case("broken ref in a folder", "load from a folder", broken_ref, IntegrityError, "remove it", lost=True),
    Case("broken ref in a folder", "publish to a folder", broken_ref, IntegrityError, "remove it", lost=True),
]
AFTER_THE_TAG = ("500 at settings", "500 at info")
FAULTS = [*NETWORK, *ANSWERS, *RIGHTS, *CONTENTS, *OTHERS, *DISKS]

SEEN: dict[int, tuple[str, str]] = {}  # number of a case: what the user saw, and what came of it


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("runs")
    return {
        version: folders.make_folder(place / version, seed=seed, name=NAME)
        for version, seed in (("old", 7), ("new", 8))
    }


@pytest.fixture(scope="module")
def forces(made: dict[str, Path]) -> dict[str, object]:
    return {version: _forces(Engine.read(folder, device="cpu", dtype="float32")) for version, folder in made.items()}


@pytest.fixture
def scene(
    made: dict[str, Path], forces: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Scene]:
    before = set(threading.enumerate())
    with HubServer(users={"token": "me", "token of you": "you"}) as server:
        monkeypatch.delenv("HF_HUB_OFFLINE")
        for name, value in {"HUB": server.endpoint, "HUB_TOKEN": "token", "NAMESPACE": "me"}.items():
            monkeypatch.setenv(f"ZOO_{name}", value)
        monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
        naps: list[float] = []
        nap = time.sleep
        monkeypatch.setattr(time, "sleep", lambda seconds: (naps.append(seconds), nap(min(seconds, 0.01))))
        yield Scene(server, tmp_path, made, monkeypatch, server.endpoint, forces, naps=naps)
    for _ in range(500):
        left = {thread for thread in threading.enumerate() if thread.name != "tqdm_monitor"} - before
        if not left:
            break
        nap(0.01)
    assert not left


@pytest.mark.parametrize(
    "number", range(len(FAULTS)), ids=[f"{case.fault} - {case.doing}".replace(" ", "_") for case in FAULTS]
)
def test_fault(number: int, scene: Scene) -> None:
    case = FAULTS[number]
    prepare, do = DOINGS[case.doing]
    prepare(scene)
    folder, before = folders.tree(scene.folders["new"]), scene.released()
    result, words = suffer(scene, case, do)
    after = scene.released()
    if case.error is not None and not case.fault.startswith(AFTER_THE_TAG):
        assert after.keys() <= before.keys(), "released, though it failed"
    for repair in scene.repairs:
        repair()
    check_nothing_lost(scene, case, before, folder)
    final = do(scene)
    state = scene.state()
    assert do(scene) == final
    assert scene.state() == state, "done once more it changed something"
    check_nothing_lost(scene, case, before, folder)
    SEEN[number] = (words, _outcome(case, sorted(after.keys() - before.keys()), result, final))


def suffer(scene: Scene, case: Case, do: Callable[[Scene], str]) -> tuple[str, str]:
    """What comes of it and what the user sees while the fault lasts, after which all is well again."""
    started, result, words = time.monotonic(), "", []
    huggingface_hub.close_session()  # an open one does not see another proxy
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", ZooWarning)
        begin(scene, case, patch)
        if case.error is None:
            result = do(scene)
        else:
            with pytest.raises(case.error) as caught:
                do(scene)
            words = [f"{case.error.__name__}: {caught.value}"]
        assert all(met() for met in scene.met), "the fault never came"
    huggingface_hub.close_session()
    assert time.monotonic() - started + sum(scene.naps) < BOUND
    scene.server.heal()
    if case.breaks in (stopped, damaged_blob_and_stopped):
        scene.server.start()
    words += [f"{one.category.__name__}: {one.message}" for one in warned]
    check_words(case, words)
    return result, " ".join(words)


def begin(scene: Scene, case: Case, patch: pytest.MonkeyPatch) -> None:
    if not isinstance(case.breaks, Fault):
        case.breaks(scene, patch)
        return
    if case.breaks.kind in ("hang", "hang_headers", "drip"):
        patch.setenv("ZOO_HUB_TIMEOUT", str(IMPATIENCE))
        patch.setattr(zoo.hub.client, "SLOWEST", 10**6)  # a small file has no time beyond that of an answer
        patch.setattr(zoo.hub.client, "PAUSES", (0.01,))
    scene.order(case.breaks)


def check_words(case: Case, words: Sequence[str]) -> None:
    """One line, which says what is expected, and what to do."""
    assert bool(words) == bool(case.says)
    for line in words:
        assert case.says in line
        assert line.isprintable()
        assert "Traceback" not in line
        assert len(line) < 600


def check_nothing_lost(scene: Scene, case: Case, before: dict[str, dict[str, bytes]], folder: object) -> None:
    """The folder of the user is as it was; each version is a whole one, and those of before are what they were."""
    assert folders.tree(scene.folders["new"]) == folder
    released = scene.released()
    known = [scene.content(version) for version in scene.folders]
    assert all(content in known for content in released.values()), "a version that nobody published"
    if not case.lost:
        assert {tag: released[tag] for tag in before} == before
    if released and case.doing.startswith("publish"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ZOO_CACHE", str(scene.place / f"fresh-{len(list(scene.place.iterdir()))}"))
            newest = _loaded(scene, NAME)
        assert newest.startswith(f"{sorted(released)[-1]} is loaded")


def test_a_short_retry_after_is_waited_for_and_a_long_one_is_not(scene: Scene) -> None:
    released_before(scene)
    scene.order(at("commit", "status", status=429, headers={"Retry-After": "7"}))
    publishes(scene)
    assert 7 in scene.naps
    scene.order(at("refs", "status", status=503, headers=DAY))
    with pytest.raises(HubError):
        loads(scene)
    assert sum(scene.naps) < 30


def _outcome(case: Case, new: Sequence[str], result: str, final: str) -> str:
    if case.error is None:
        return result
    if not case.doing.startswith("publish"):
        return f"again: {final}"
    return f"{new[0] if new else 'nothing'} is released; again: {final}"


def test_the_table_says_what_was_seen() -> None:
    """``ZOO_WRITE_TABLES=1 pytest tests/test_hub_faults.py`` writes it anew."""
    if len(SEEN) < len(FAULTS):
        pytest.skip("not all faults were tried, or not all passed")
    text = table()
    if os.environ.get("ZOO_WRITE_TABLES"):
        TABLE.write_text(text, encoding="utf-8")
    assert TABLE.read_text(encoding="utf-8") == text, "run: ZOO_WRITE_TABLES=1 pytest tests/test_hub_faults.py"


def table() -> str:
    """For readers: first what is mended without a word, then what is said."""
    kinds = {re.sub(r",? (once|always)$| at .*", "", case.fault) for case in FAULTS}
    lines = [
        "# What a user sees when a hub, a network or a disk fails",
        "",
        f"{len(FAULTS)} cases of {len(kinds)} kinds, tried and written by",
        "`ZOO_WRITE_TABLES=1 pytest tests/test_hub_faults.py`.",
        "After each, the model folder is as it was, what was released before loads with the same forces, and every",
        "version on the hub is whole. The same command again ends the work, and once more changes nothing.",
        "",
        "## Without a word",
        "",
        "| doing | fault | afterwards |",
        "|---|---|---|",
    ]
    silent: dict[tuple[str, str], list[str]] = {}
    for number, (words, after) in sorted(SEEN.items()):
        if not words:
            silent.setdefault((FAULTS[number].doing, after), []).append(FAULTS[number].fault)
    lines += [f"| {doing} | {'; '.join(faults)} | {after} |" for (doing, after), faults in sorted(silent.items())]
    lines += ["", "## With these words", "", "| fault | doing | what the user sees | afterwards |", "|---|---|---|---|"]
    for number, (words, after) in sorted(SEEN.items()):
        if words:
            lines.append(f"| {FAULTS[number].fault} | {FAULTS[number].doing} | {_for_readers(words)} | {after} |")
    return "\n".join([*lines, ""])


def _for_readers(words: str) -> str:
    """Without what is of one run, one machine or one version of the client."""
    for pattern, placeholder in (
        (r"http://127\.0\.0\.1:\d+", "HUB"),
        (r"/\S*/(?=models--)", "CACHE/"),
        (r"/\S*/zoo-publish-\w+", "TEMPORARY"),
        (r"/\S*/cache/[^\s:;,]+", "CACHE"),
        (r"models--\S*?/(?=refs|blobs|snapshots)", ""),
        (r"\b[0-9a-f]{40}\b|\b[0-9a-f]{12}\b(?!…)", "COMMIT"),
        (r"\b[0-9a-f]{12}…", "DIGEST"),
        (r"(cannot be reached|cannot read) \(.*\);", r"\1 (REASON);"),
        (r"nearest: [a-z0-9./-]+(, [a-z0-9./-]+)*", "nearest: NAME"),
        (r"did not finish within [\d.]+ s", "gave no answer in time"),  # whichever of two clocks was first
    ):
        words = re.sub(pattern, placeholder, words)
    return words.replace("|", "\\|")
