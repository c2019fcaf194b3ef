"""A small Hub for the tests: a real HTTP server on loopback, which the stock client publishes to and loads from.

::

    with HubServer(users={"token": "me"}) as server:
        server.order(Fault("GET", "/resolve/", "cut", size=100))
        HfApi(endpoint=server.endpoint, token="token").create_repo("me/model")

``ROUTES`` lists each request that it answers, ``FAULTS`` each way in which it can be ordered to fail. Everything is
in memory. A private repository is for its owner alone; of a gated one, all but the contents of files are public.
"""

import base64
import codecs
import hashlib
import itertools
import json
import re
import secrets
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from http.client import responses
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import yaml

LARGE = 10_000_000  # bytes; what is larger is an LFS object
SAMPLE = 512  # bytes, from which the Hub tells text from binary
_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)\r?\n---\s*$", re.DOTALL | re.MULTILINE)
_LISTED = ("private", "tags", "library_name", "pipeline_tag", "createdAt", "downloads", "likes")
_LISTED_IN_FULL = ("author", "sha", "lastModified", "gated", "siblings")


@dataclass(frozen=True)
class Request:
    """One request as it came: its path is percent-encoded, names of headers are lower case, time is monotonic."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    user: str | None
    time: float
    body: bytes = field(repr=False)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def asks(self, flag: str) -> bool:
        return self.query.get(flag, [""])[-1].lower() in ("true", "1")


@dataclass(frozen=True)
class Answer:
    """What is sent back."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def having(self, headers: Mapping[str, str | None]) -> "Answer":
        """The same with these headers in the place of those of that name; None removes one."""
        names = {name.lower() for name in headers}
        kept = {name: value for name, value in self.headers.items() if name.lower() not in names}
        return replace(self, headers=kept | {name: value for name, value in headers.items() if value is not None})

    @property
    def head(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status} {responses.get(self.status, '')}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape")


class RefusedError(Exception):
    """Answers a request with an error."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None) -> None:
        super().__init__(message)
        headers = {"X-Error-Message": message, "X-Error-Code": code, "X-Repo-Commit": commit}
        self.answer = _json({"error": message}, status).having(headers)


@dataclass(frozen=True)
class Blob:
    """The content of a file; of an LFS object, git holds a pointer only."""

    data: bytes = field(repr=False)
    lfs: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def in_git(self) -> bytes:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n"
        return pointer.encode() if self.lfs else self.data

    @cached_property
    def oid(self) -> str:
        """The git id."""
        return hashlib.sha1(b"blob %d\0" % len(self.in_git) + self.in_git, usedforsecurity=False).hexdigest()

    @property
    def etag(self) -> str:
        """What the client takes for the digest of the content."""
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    """One version of all files."""

    parent: str | None
    files: Mapping[str, Blob]
    message: str
    time: str


@dataclass
class Repo:
    """A repository. ``granted`` are the users that may read it though it is gated; ``objects`` are those of LFS."""

    id: str
    private: bool
    gated: str | bool = False
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict, repr=False)
    granted: set[str] = field(default_factory=set)

    def find(self, revision: str) -> str:
        """The commit of a branch, tag, full ref or commit."""
        name = re.sub(r"\Arefs/(heads|tags)/", "", revision)
        commit = self.branches.get(name) or self.tags.get(name) or name
        if commit not in self.commits:
            raise RefusedError(404, f"Invalid rev id: {revision!a}", "RevisionNotFound")
        return commit


@dataclass(frozen=True, eq=False)
class Fault:
    """How the server is to fail: ``times`` times, after ``skip`` requests whose path with query holds ``path``.

    ``kind`` is one of ``FAULTS``, which says what each does, and with which of the arguments that follow.
    """

    method: str | None
    path: str
    kind: str
    times: float = 1
    skip: int = 0
    seconds: float = 3600.0
    size: int = 0
    status: int = 500
    headers: Mapping[str, str | None] = field(default_factory=dict)
    body: bytes = b""
    etag: str = ""
    url: str = ""
    files: Mapping[str, bytes | None] = field(default_factory=dict)
    call: Callable[["HubServer", Request], object] | None = None


class HubServer:
    """The server, running while it is entered. ``users`` names the user of each token, ``orgs`` their organisations.

    ``requests`` are all requests so far, ``repositories`` the state; ``faults_met`` counts how often each fault fired.
    """

    def __init__(self, users: Mapping[str, str], orgs: Mapping[str, Collection[str]] | None = None) -> None:
        self.users = dict(users)
        self.orgs = dict(orgs or {})
        self.page_size = 1000
        self.repositories: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.faults_met: Counter[Fault] = Counter()
        self.uploads: dict[str, tuple[str, str]] = {}  # token in a signed URL -> repository, digest
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self._faults_reached: Counter[Fault] = Counter()
        self._clock = itertools.count()
        self._port = 0
        self._listener: _Listener | None = None

    def __enter__(self) -> "HubServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listens, on the same port as before; what was published is still there."""
        self.closing.clear()
        self._listener = _Listener(("127.0.0.1", self._port), _Connection)
        self._listener.hub = self
        self._port = self._listener.server_address[1]
        self._listener.loop.start()

    def stop(self) -> None:
        """Closes the port and all connections, also those that hang."""
        listener, self._listener = self._listener, None
        if listener:
            self.closing.set()
            listener.close_all()

    def order(self, fault: Fault) -> Fault:
        """From now on requests meet the fault; where several are ordered, the first that is not used up."""
        if fault.kind not in FAULTS:
            raise ValueError(f"fault {fault.kind}: known are {', '.join(FAULTS)}")
        with self.lock:
            self._faults_reached[fault] = 0
        return fault

    def heal(self) -> None:
        """Takes back all orders."""
        with self.lock:
            self._faults_reached.clear()

    def create(self, repo_id: str, private: bool = False) -> Repo:
        """A new repository, with the commit that the Hub itself makes."""
        with self.lock:
            self.repositories[repo_id] = Repo(repo_id, private)
            self.commit(repo_id, {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
            return self.repositories[repo_id]

    def commit(
        self, repo_id: str, files: Mapping[str, bytes | None], branch: str = "main", message: str = "by the server"
    ) -> str:
        """Commits what it is given, without a question, on top of a branch; None removes a file."""
        blobs = {path: None if data is None else _blob(path, data) for path, data in files.items()}
        return self.commit_blobs(self.repositories[repo_id], blobs, branch, message)

    def commit_blobs(self, repo: Repo, blobs: Mapping[str, Blob | None], branch: str, message: str) -> str:
        with self.lock:
            parent = repo.branches.get(branch)
            files = {**(repo.commits[parent].files if parent else {}), **blobs}
            left = {path: files[path] for path in sorted(files) if files[path] is not None}
            content = [parent, next(self._clock), message, [(path, blob.etag) for path, blob in left.items()]]
            commit = hashlib.sha1(json.dumps(content).encode(), usedforsecurity=False).hexdigest()
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            repo.commits[commit] = Commit(parent, left, message, now)
            repo.objects.update({blob.sha256: blob.data for blob in left.values() if blob.lfs})
            repo.branches[branch] = commit
            return commit

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """The contents of all files of a revision."""
        with self.lock:
            repo = self.repositories[repo_id]
            return {path: blob.data for path, blob in repo.commits[repo.find(revision)].files.items()}

    def tag(self, repo_id: str, tag: str, sha: str) -> None:
        """Sets a tag, also one that is there."""
        with self.lock:
            self.repositories[repo_id].tags[tag] = sha

    def delete_tag(self, repo_id: str, tag: str) -> None:
        with self.lock:
            del self.repositories[repo_id].tags[tag]

    def owns(self, user: str | None, repo_id: str) -> bool:
        """Whether a user may write to a repository, and read it though it is private."""
        namespace = repo_id.partition("/")[0]
        return user is not None and (user == namespace or namespace in self.orgs.get(user, ()))

    def answer(self, request: Request) -> Answer:
        """The right answer, of a HEAD without the body but with its Content-Length."""
        with self.lock:
            try:
                answer = self._answer(request)
            except RefusedError as refused:
                answer = refused.answer
        answer = answer.having({"Content-Length": str(len(answer.body))})
        return replace(answer, body=b"") if request.method == "HEAD" else answer

    def _answer(self, request: Request) -> Answer:
        if "authorization" in request.headers and request.user is None:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        for method, path, function in ROUTES:
            if method == request.method and (match := path.fullmatch(request.path)):
                return function(self, request, **{name: unquote(text) for name, text in match.groupdict().items()})
        raise RefusedError(404, f"no such request: {request.method} {request.path}")

    def next_fault(self, method: str, target: str) -> Fault | None:
        """The fault that a request meets."""
        with self.lock:
            for fault, reached in self._faults_reached.items():
                if fault.method in (None, method) and re.search(fault.path, target):
                    self._faults_reached[fault] += 1
                    if fault.skip <= reached < fault.skip + fault.times:
                        self.faults_met[fault] += 1
                        return fault
        return None


class _Listener(ThreadingHTTPServer):
    """Accepts connections, and knows the thread of each, so that none is left when it closes."""

    hub: HubServer
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], connection: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, connection)
        self.loop = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self.connections: list[tuple[threading.Thread, socket.socket]] = []

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # that of HTTPServer asks for the name of the host

    def process_request(self, request: socket.socket, client_address: tuple[str, int]) -> None:
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        self.connections = [known for known in self.connections if known[0].is_alive()]
        self.connections.append((thread, request))
        thread.start()

    def close_all(self) -> None:
        self.shutdown()
        self.loop.join()
        self.server_close()
        for thread, connection in self.connections:
            with suppress(OSError):  # it is closed already
                connection.shutdown(socket.SHUT_RDWR)
            if thread is not threading.current_thread():
                thread.join()

    def handle_error(self, request: socket.socket, client_address: tuple[str, int]) -> None:
        try:
            raise
        except OSError:
            pass  # the client left
        except Exception:
            super().handle_error(request, client_address)


class _Connection(BaseHTTPRequestHandler):
    """Reads requests and writes answers, right or, where a fault is ordered, wrong."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener

    def respond(self) -> None:
        hub = self.server.hub
        target = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        user = hub.users.get(headers.get("authorization", "").removeprefix("Bearer "))
        body = b"".join(self.body(headers))
        query = parse_qs(target.query, keep_blank_values=True)
        request = Request(self.command, target.path, query, headers, user, time.monotonic(), body)
        hub.requests.append(request)
        fault = hub.next_fault(self.command, self.path)
        if fault:
            FAULTS[fault.kind](self, fault, request)
        else:
            self.send(hub.answer(request))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = respond

    def body(self, headers: Mapping[str, str]) -> Iterator[bytes]:
        if headers.get("transfer-encoding") != "chunked":
            yield self.read(int(headers.get("content-length", "0")))
            return
        while size := int(self.rfile.readline() or b"0", 16):
            yield self.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def read(self, size: int) -> bytes:
        data = self.rfile.read(size)
        if len(data) < size:
            raise ConnectionError("the client left")
        return data

    def send(self, answer: Answer) -> None:
        """Sends an answer; one whose length is not what it says ends the connection."""
        if self.command == "HEAD":
            self.wfile.write(answer.head)
            return
        self.wfile.write(answer.head + answer.body)
        if answer.headers.get("Content-Length") != str(len(answer.body)):
            self.close_connection = True

    def send_slowly(self, data: bytes, seconds: float) -> None:
        for value in data:
            self.wfile.write(bytes([value]))
            if self.server.hub.closing.wait(seconds):
                raise ConnectionError("the server closes")

    def log_message(self, *_: object) -> None:
        pass


# Requests


def whoami(hub: HubServer, request: Request) -> Answer:
    user = _user(request)
    orgs = [{"type": "org", "name": name, "roleInOrg": "write"} for name in hub.orgs.get(user, ())]
    token = {"displayName": "token", "role": "write"}
    described = {"type": "user", "name": user, "fullname": user, "orgs": orgs}
    return _json({**described, "auth": {"type": "access_token", "accessToken": token}})


def create_repository(hub: HubServer, request: Request) -> Answer:
    asked = request.json
    repo_id = f"{asked.get('organization') or _user(request)}/{asked['name']}"
    answer = {"url": f"{hub.endpoint}/{repo_id}", "name": repo_id}
    if asked.get("type", "model") != "model":
        raise RefusedError(400, "there are models only")
    if not hub.owns(_user(request), repo_id):
        raise RefusedError(403, f"You don't have the rights to create a model under the namespace of {repo_id}")
    if repo_id in hub.repositories:
        return _json({**answer, "error": "You already created this model repo"}, 409)
    hub.create(repo_id, _is_private(asked))
    return _json(answer)


def delete_repository(hub: HubServer, request: Request) -> Answer:
    asked = request.json
    repo = _written(hub, request, f"{asked.get('organization') or _user(request)}/{asked['name']}")
    del hub.repositories[repo.id]
    return _json({})


def change_settings(hub: HubServer, request: Request, repo: str) -> Answer:
    changed = _written(hub, request, repo)
    changed.gated = request.json.get("gated", changed.gated)
    if {"private", "visibility"} & request.json.keys():
        changed.private = _is_private(request.json)
    return _json({"private": changed.private, "gated": changed.gated})


def validate_card(_: HubServer, request: Request) -> Answer:
    content = request.json["content"]
    try:
        metadata = _metadata(content)
    except yaml.YAMLError as error:
        return _json({"errors": [{"message": str(error)}], "warnings": []}, 400)
    warnings = [] if metadata else [{"message": "empty or missing yaml metadata in repo card"}]
    return _json({"errors": [], "warnings": warnings})


def list_models(hub: HubServer, request: Request) -> Answer:
    query = request.query
    models = [_described(repo, repo.branches["main"]) for repo in hub.repositories.values()]
    found = [
        model
        for model in models
        if (not model["private"] or hub.owns(request.user, model["id"]))
        and model["author"] in query.get("author", [model["author"]])
        and set(query.get("filter", ())) <= set(model["tags"])
        and all(text.lower() in model["id"].lower() for text in query.get("search", ()))
    ]
    names = _LISTED + _LISTED_IN_FULL * request.asks("full") + ("cardData",) * request.asks("cardData")
    return _page(hub, request, [_only(query.get("expand", names), model) for model in found])


def model_info(hub: HubServer, request: Request, repo: str, revision: str = "main") -> Answer:
    found = _read(hub, request, repo)
    model = _described(found, found.find(revision), blobs=request.asks("blobs"))
    return _json(_only(request.query.get("expand", list(model)), model))


def list_tree(hub: HubServer, request: Request, repo: str, revision: str, folder: str = "") -> Answer:
    found = _read(hub, request, repo)
    entries = _entries(found.commits[found.find(revision)])
    above = PurePosixPath(folder)
    inside = [entry for path, entry in entries.items() if above in PurePosixPath(path).parents]
    if folder and not inside:
        raise RefusedError(404, f"{folder!a} does not exist on {revision!a}", "EntryNotFound")
    direct = [entry for entry in inside if PurePosixPath(entry["path"]).parent == above]
    return _page(hub, request, inside if request.asks("recursive") else direct)


def paths_info(hub: HubServer, request: Request, repo: str, revision: str) -> Answer:
    found = _read(hub, request, repo)
    entries = _entries(found.commits[found.find(revision)])
    return _json([entries[path] for path in parse_qs(request.body.decode()).get("paths", ()) if path in entries])


def list_refs(hub: HubServer, request: Request, repo: str) -> Answer:
    found = _read(hub, request, repo)

    def references(kind: str, commits: Mapping[str, str]) -> list[dict[str, str]]:
        return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": commit} for n, commit in commits.items()]

    branches, tags = references("heads", found.branches), references("tags", found.tags)
    return _json({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})


def list_commits(hub: HubServer, request: Request, repo: str, revision: str) -> Answer:
    found = _read(hub, request, repo)
    history, commit = [], found.find(revision)
    while commit:
        what = found.commits[commit]
        told = {"id": commit, "title": what.message, "message": "", "date": what.time}
        history.append({**told, "authors": [{"user": repo.partition("/")[0]}]})
        commit = what.parent
    return _page(hub, request, history)


def create_tag(hub: HubServer, request: Request, repo: str, revision: str) -> Answer:
    written = _written(hub, request, repo)
    return _new_reference(written.tags, request.json["tag"], written.find(revision))


def delete_tag(hub: HubServer, request: Request, repo: str, tag: str) -> Answer:
    if _written(hub, request, repo).tags.pop(tag, None) is None:
        raise RefusedError(404, f"Tag {tag!a} doesn't exist", "RevisionNotFound")
    return _json({})


def create_branch(hub: HubServer, request: Request, repo: str, branch: str) -> Answer:
    written = _written(hub, request, repo)
    return _new_reference(written.branches, branch, written.find(request.json.get("startingPoint", "main")))


def preupload(hub: HubServer, request: Request, repo: str, revision: str) -> Answer:
    """Says of each file how it is to come, and what is there already, in the digest which the client compares."""
    written = _written(hub, request, repo)
    present = written.commits[written.find(revision)].files
    answers = []
    for file in request.json["files"]:
        large = _is_large(file["path"], file["size"], base64.b64decode(file["sample"]))
        there = {"oid": present[file["path"]].etag} if file["path"] in present else {}
        mode = "lfs" if large else "regular"
        answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **there})
    return _json({"files": answers})


def lfs_batch(hub: HubServer, request: Request, repo: str) -> Answer:
    written = _written(hub, request, repo)
    answers = []
    for asked in request.json["objects"]:
        answer = {"oid": asked["oid"], "size": asked["size"]}
        if asked["oid"] not in written.objects:
            token = secrets.token_hex(16)
            hub.uploads[token] = (repo, asked["oid"])
            upload = {"href": f"{hub.endpoint}/lfs/{repo}/{asked['oid']}?token={token}"}
            verify = {"href": f"{hub.endpoint}/{repo}.git/info/lfs/verify"}
            answer["actions"] = {"upload": upload, "verify": verify}
        answers.append(answer)
    return _json({"transfer": "basic", "objects": answers})


def lfs_put(hub: HubServer, request: Request, repo: str, oid: str) -> Answer:
    """Takes an object from whoever has the URL, which is good for this object alone."""
    signed = hub.uploads.get(request.query.get("token", [""])[0])
    if signed != (repo, oid) or repo not in hub.repositories:
        raise RefusedError(403, "the signature of the URL is not valid")
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise RefusedError(422, "the content has another digest")
    hub.repositories[repo].objects[oid] = request.body
    return Answer()


def lfs_verify(hub: HubServer, request: Request, repo: str) -> Answer:
    data = _written(hub, request, repo).objects.get(request.json["oid"])
    if data is None or len(data) != request.json["size"]:
        raise RefusedError(404, "there is no such object")
    return _json({})


def make_commit(hub: HubServer, request: Request, repo: str, revision: str) -> Answer:
    written = _written(hub, request, repo)
    (_, header), *operations = [(line["key"], line["value"]) for line in map(json.loads, request.body.splitlines())]
    head = written.branches.get(revision)
    if head is None or request.asks("create_pr"):
        raise RefusedError(404, f"{revision!a} is not a branch", "RevisionNotFound")
    if header.get("parentCommit", head) != head:
        raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
    blobs: dict[str, Blob | None] = {}
    for kind, what in operations:
        blobs |= _operation(written, head, kind, what)
    commit = hub.commit_blobs(written, blobs, revision, header["summary"])
    return _json({"success": True, "commitOid": commit, "commitUrl": f"{hub.endpoint}/{repo}/commit/{commit}"})


def resolve(hub: HubServer, request: Request, repo: str, revision: str, path: str) -> Answer:
    found = _read(hub, request, repo)
    if found.gated and not hub.owns(request.user, repo) and request.user not in found.granted:
        raise RefusedError(403 if request.user else 401, f"Access to model {repo} is restricted", "GatedRepo")
    commit = found.find(revision)
    blob = found.commits[commit].files.get(path)
    if blob is None:
        raise RefusedError(404, "Entry not found", "EntryNotFound", commit)
    etag, size = f'"{blob.etag}"', str(len(blob.data))
    headers = {"X-Repo-Commit": commit, "ETag": etag, "Accept-Ranges": "bytes", "Content-Type": "binary/octet-stream"}
    linked = {"X-Linked-Etag": etag, "X-Linked-Size": size} if blob.lfs else {}
    return _ranged(Answer(200, headers | linked, blob.data), request.headers.get("range", ""))


def _path(template: str) -> re.Pattern[str]:
    patterns = {"repo": "[^/]+/[^/]+?", "path": ".+"}
    return re.compile(re.sub(r"\{(\w+)\}", lambda m: f"(?P<{m[1]}>{patterns.get(m[1], '[^/]+')})", template))


ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Answer]]] = [
    (method, _path(template), function)
    for method, template, function in (
        ("GET", "/api/whoami-v2", whoami),
        ("POST", "/api/repos/create", create_repository),
        ("DELETE", "/api/repos/delete", delete_repository),
        ("PUT", "/api/models/{repo}/settings", change_settings),
        ("POST", "/api/validate-yaml", validate_card),
        ("GET", "/api/models", list_models),
        ("GET", "/api/models/{repo}", model_info),
        ("GET", "/api/models/{repo}/revision/{revision}", model_info),
        ("GET", "/api/models/{repo}/tree/{revision}", list_tree),
        ("GET", "/api/models/{repo}/tree/{revision}/{folder}", list_tree),
        ("POST", "/api/models/{repo}/paths-info/{revision}", paths_info),
        ("GET", "/api/models/{repo}/refs", list_refs),
        ("GET", "/api/models/{repo}/commits/{revision}", list_commits),
        ("POST", "/api/models/{repo}/tag/{revision}", create_tag),
        ("DELETE", "/api/models/{repo}/tag/{tag}", delete_tag),
        ("POST", "/api/models/{repo}/branch/{branch}", create_branch),
        ("POST", "/api/models/{repo}/preupload/{revision}", preupload),
        ("POST", r"/{repo}\.git/info/lfs/objects/batch", lfs_batch),
        ("PUT", "/lfs/{repo}/{oid}", lfs_put),
        ("POST", r"/{repo}\.git/info/lfs/verify", lfs_verify),
        ("POST", "/api/models/{repo}/commit/{revision}", make_commit),
        ("HEAD", "/{repo}/resolve/{revision}/{path}", resolve),
        ("GET", "/{repo}/resolve/{revision}/{path}", resolve),
    )
]


def _json(value: object, status: int = 200) -> Answer:
    return Answer(status, {"Content-Type": "application/json"}, json.dumps(value, default=str).encode())


def _page(hub: HubServer, request: Request, items: list[dict[str, Any]]) -> Answer:
    """One page of a list, with a link to the next."""
    start = int(request.query.get("cursor", ["0"])[0])
    end = start + min([hub.page_size, *map(int, request.query.get("limit", ()))])
    query = urlencode(request.query | {"cursor": [str(end)]}, doseq=True)
    link = f'<{hub.endpoint}{request.path}?{query}>; rel="next"'
    return _json(items[start:end]).having({"Link": link if end < len(items) else None})


def _user(request: Request) -> str:
    if request.user is None:
        raise RefusedError(401, "Invalid username or password.")
    return request.user


def _read(hub: HubServer, request: Request, repo_id: str) -> Repo:
    """A repository for one who may read it; one that is private looks like none."""
    repo = hub.repositories.get(repo_id)
    if repo is None or (repo.private and not hub.owns(request.user, repo_id)):
        raise RefusedError(404 if request.user else 401, "Repository not found", "RepoNotFound")
    return repo


def _written(hub: HubServer, request: Request, repo_id: str) -> Repo:
    """A repository for one who may write to it."""
    repo = _read(hub, request, repo_id)
    if not hub.owns(_user(request), repo_id):
        raise RefusedError(403, f"You don't have the rights to write to {repo_id}")
    return repo


def _is_private(asked: Mapping[str, Any]) -> bool:
    return bool(asked.get("private", asked.get("visibility") == "private"))


def _blob(path: str, data: bytes) -> Blob:
    return Blob(data, _is_large(path, len(data), data[:SAMPLE]))


def _is_large(path: str, size: int, sample: bytes) -> bool:
    """Whether a file is to be an LFS object: weights, what is large, and what is no text."""
    if path.endswith(".safetensors") or size > LARGE or b"\0" in sample:
        return True
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)  # it may end within a character
    except UnicodeDecodeError:
        return True
    return False


def _metadata(card: str) -> dict[str, Any]:
    match = _FRONT_MATTER.search(card)
    metadata = yaml.safe_load(match[1]) if match else None
    return metadata if isinstance(metadata, dict) else {}


def _described(repo: Repo, commit: str, blobs: bool = False) -> dict[str, Any]:
    files = repo.commits[commit].files
    card: dict[str, Any] = {}
    with suppress(KeyError, UnicodeDecodeError, yaml.YAMLError):
        card = _metadata(files["README.md"].data.decode())
    detailed = {path: _detail(blob, "blobId", "sha256") if blobs else {} for path, blob in files.items()}
    return {
        "id": repo.id,
        "author": repo.id.partition("/")[0],
        "sha": commit,
        "createdAt": next(iter(repo.commits.values())).time,
        "lastModified": repo.commits[commit].time,
        "private": repo.private,
        "gated": repo.gated,
        "downloads": 0,
        "likes": 0,
        "library_name": card.get("library_name"),
        "pipeline_tag": card.get("pipeline_tag"),
        "tags": _tags(card),
        "cardData": card,
        "siblings": [{"rfilename": path, **detail} for path, detail in detailed.items()],
    }


def _tags(card: Mapping[str, Any]) -> list[str]:
    """What a model is found by."""

    def all_of(name: str) -> list[str]:
        value = card.get(name) or []
        return [str(one) for one in value] if isinstance(value, list) else [str(value)]

    marked = [f"{name}:{value}" for name in ("license", "base_model") for value in all_of(name)]
    return [*all_of("tags"), *all_of("library_name"), *all_of("pipeline_tag"), *marked]


def _only(names: Collection[str], model: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in model.items() if name == "id" or name in names}


def _detail(blob: Blob, id_name: str, digest_name: str) -> dict[str, Any]:
    size = len(blob.data)
    lfs = {"lfs": {digest_name: blob.sha256, "size": size, "pointerSize": len(blob.in_git)}} if blob.lfs else {}
    return {"size": size, id_name: blob.oid, **lfs}


def _entries(commit: Commit) -> dict[str, dict[str, Any]]:
    """All files and folders of a commit, by path."""
    parents = {str(folder) for path in commit.files for folder in list(PurePosixPath(path).parents)[:-1]}
    folders = {path: {"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in parents}
    files = {path: {"type": "file", "path": path, **_detail(blob, "oid", "oid")} for path, blob in commit.files.items()}
    return dict(sorted((folders | files).items()))


def _new_reference(references: dict[str, str], name: str, commit: str) -> Answer:
    if name in references:
        raise RefusedError(409, f"Reference {name!a} exists already")
    references[name] = commit
    return _json({})


def _operation(repo: Repo, head: str, kind: str, what: Mapping[str, Any]) -> dict[str, Blob | None]:
    """What one line of a commit changes."""
    path = what["path"]
    if kind == "file":
        return {path: Blob(base64.b64decode(what["content"]), lfs=False)}
    if kind == "lfsFile":
        if what["oid"] not in repo.objects:
            raise RefusedError(422, f"LFS pointer pointed to a file that does not exist: {path!a}")
        return {path: Blob(repo.objects[what["oid"]], lfs=True)}
    folder = kind == "deletedFolder"
    gone = [name for name in repo.commits[head].files if name == path or (folder and name.startswith(path))]
    if not gone:
        raise RefusedError(404, "A file with this name doesn't exist", "EntryNotFound")
    return dict.fromkeys(gone)


def _ranged(answer: Answer, asked: str) -> Answer:
    """The part of the body that is asked for, where one is."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", asked)
    if not match or not any(match.groups()):
        return answer
    size = len(answer.body)
    start = int(match[1]) if match[1] else max(size - int(match[2]), 0)
    end = min(int(match[2]) + 1, size) if all(match.groups()) else size
    if start >= end:
        return Answer(416, {"Content-Range": f"bytes */{size}"})
    part = replace(answer, status=206, body=answer.body[start:end])
    return part.having({"Content-Range": f"bytes {start}-{end - 1}/{size}"})


# Faults


def refuse(connection: _Connection, fault: Fault, request: Request) -> None:
    """Closes the connection without an answer."""
    connection.close_connection = True


def hang(connection: _Connection, fault: Fault, request: Request) -> None:
    """Answers nothing for ``seconds``, then closes the connection."""
    connection.server.hub.closing.wait(fault.seconds)
    connection.close_connection = True


def hang_headers(connection: _Connection, fault: Fault, request: Request) -> None:
    """Sends a byte of the head every ``seconds``."""
    answer = connection.server.hub.answer(request)
    connection.send_slowly(answer.head, fault.seconds)
    connection.wfile.write(answer.body)


def drip(connection: _Connection, fault: Fault, request: Request) -> None:
    """Sends a byte of the body every ``seconds``."""
    answer = connection.server.hub.answer(request)
    connection.wfile.write(answer.head)
    connection.send_slowly(answer.body, fault.seconds)


def cut(connection: _Connection, fault: Fault, request: Request) -> None:
    """Sends the true head and the first ``size`` bytes of the body, and closes the connection."""
    answer = connection.server.hub.answer(request)
    connection.wfile.write(answer.head + answer.body[: fault.size])
    connection.close_connection = True


def status(connection: _Connection, fault: Fault, request: Request) -> None:
    """Answers with ``status``, ``headers`` and ``body``, and does nothing."""
    connection.send(_instead(fault, fault.status, {}))


def redirect(connection: _Connection, fault: Fault, request: Request) -> None:
    """Sends the client to ``url``, with ``headers``."""
    connection.send(_instead(fault, 302, {"Location": fault.url}))


def corrupt(connection: _Connection, fault: Fault, request: Request) -> None:
    """Flips all bits of the byte in the middle of the body."""
    answer = connection.server.hub.answer(request)
    middle = len(answer.body) // 2
    flipped = bytes(255 - value for value in answer.body[middle : middle + 1])
    connection.send(replace(answer, body=answer.body[:middle] + flipped + answer.body[middle + 1 :]))


def wrong_etag(connection: _Connection, fault: Fault, request: Request) -> None:
    """Gives ``etag``, as it is, for the digest of the file."""
    answer = connection.server.hub.answer(request)
    names = {"ETag", "X-Linked-Etag"} & answer.headers.keys()
    connection.send(answer.having(dict.fromkeys(names, fault.etag)))


def headers(connection: _Connection, fault: Fault, request: Request) -> None:
    """Adds or replaces ``headers``, as they are; None removes one."""
    connection.send(connection.server.hub.answer(request).having(fault.headers))


def body(connection: _Connection, fault: Fault, request: Request) -> None:
    """Does as it is asked, but answers with ``body``."""
    answer = connection.server.hub.answer(request).having({"Content-Length": str(len(fault.body))})
    connection.send(replace(answer, body=fault.body))


def stale_parent(connection: _Connection, fault: Fault, request: Request) -> None:
    """Lets another publisher commit ``files`` on main, or what ``call`` does, before the request is answered."""
    if fault.files:
        repo_id = re.sub(r"\A/(?:api/models/)?([^/]+/[^/]+?)(?:\.git)?/.*", r"\1", request.path)
        connection.server.hub.commit(repo_id, fault.files, message="by another publisher")
    call(connection, fault, request)


def call(connection: _Connection, fault: Fault, request: Request) -> None:
    """Calls ``call`` with the server and the request, then answers."""
    if fault.call:
        fault.call(connection.server.hub, request)
    connection.send(connection.server.hub.answer(request))


def lost_answer(connection: _Connection, fault: Fault, request: Request) -> None:
    """Does as it is asked, and closes the connection without an answer."""
    connection.server.hub.answer(request)
    connection.close_connection = True


def endless(connection: _Connection, fault: Fault, request: Request) -> None:
    """Sends a body that never ends; in chunks where ``headers`` have a Transfer-Encoding."""
    answer = connection.server.hub.answer(request).having({"Content-Length": None, **fault.headers})
    piece = b"\0" * 65536
    connection.close_connection = True
    connection.wfile.write(answer.head)
    while request.method != "HEAD" and not connection.server.hub.closing.wait(0.001):
        connection.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if "Transfer-Encoding" in fault.headers else piece)


FAULTS: dict[str, Callable[[_Connection, Fault, Request], None]] = {
    function.__name__: function
    for function in (
        *(refuse, hang, hang_headers, drip, cut, endless, lost_answer),
        *(status, redirect, corrupt, wrong_etag, headers, body),
        *(stale_parent, call),
    )
}


def _instead(fault: Fault, status: int, headers: Mapping[str, str]) -> Answer:
    length = str(len(fault.body))
    return Answer(status, headers, fault.body).having({"Content-Length": length, **fault.headers})
