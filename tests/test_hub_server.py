"""The Hub of the tests: the stock client publishes to it and loads from it, and each fault is what it says."""

import gc
import hashlib
import http.client
import io
import json
import math
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hub_server import FAULTS, Fault, HubServer, Request
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

REPO = "me/model"
RESOLVE = f"/{REPO}/resolve/main/a.txt"
CARD = b"---\nlicense: mit\nlibrary_name: mlff-zoo\ntags:\n- si\nbase_model:\n- org/big\n---\n# A model\n"
WEIGHTS = bytes(range(256)) * 64
FILES = {"README.md": CARD, "model.safetensors": WEIGHTS, "figures/parity.png": b"\x89PNG\0"}

pytestmark = pytest.mark.filterwarnings(  # the client's own, at an LFS PUT
    "ignore:Use 'content=<...>' to upload raw bytes/text content:DeprecationWarning"
)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture
def server() -> Iterator[HubServer]:
    users = {"token": "me", "token-of-you": "you"}
    with HubServer(users=users, orgs={"me": ["mlff-zoo"]}) as server:
        yield server


@pytest.fixture
def api(server: HubServer) -> HfApi:
    return HfApi(endpoint=server.endpoint, token="token")


@pytest.fixture
def you(server: HubServer) -> HfApi:
    return HfApi(endpoint=server.endpoint, token="token-of-you")


def publish(api: HfApi, files: dict[str, bytes] = FILES, **options: str) -> CommitInfo:
    operations = [CommitOperationAdd(path, io.BytesIO(data)) for path, data in files.items()]
    return api.create_commit(REPO, operations, commit_message="publish", **options)


def status_of(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


def test_what_is_published_is_loaded_again(api: HfApi, server: HubServer, tmp_path: Path) -> None:
    assert api.create_repo(REPO).repo_id == REPO
    commit = publish(api).oid
    api.create_tag(REPO, tag="v1", revision=commit)
    folder = Path(api.snapshot_download(REPO, revision="v1", cache_dir=tmp_path))
    assert folder.name == commit
    assert {path: (folder / path).read_bytes() for path in FILES} == FILES
    assert server.files(REPO, "v1") == {".gitattributes": (folder / ".gitattributes").read_bytes(), **FILES}


def test_open_files_are_published_with_the_signed_url_alone(api: HfApi, server: HubServer, tmp_path: Path) -> None:
    api.create_repo(REPO)
    (tmp_path / "weights").write_bytes(WEIGHTS)
    with (tmp_path / "weights").open("rb") as file:
        api.create_commit(REPO, [CommitOperationAdd("model.safetensors", file)], commit_message="publish")
    (put,) = [request for request in server.requests if request.method == "PUT"]
    assert put.user is None
    assert put.body == server.files(REPO)["model.safetensors"] == WEIGHTS
    first, *_, verify, commit = server.requests
    assert first.path == "/api/repos/create"
    assert first.headers["authorization"] == "Bearer token"
    assert verify.path == f"/{REPO}.git/info/lfs/verify"
    assert commit.path == f"/api/models/{REPO}/commit/main"
    assert first.time < put.time < commit.time


def test_a_file_is_found_by_each_kind_of_revision(api: HfApi, server: HubServer, tmp_path: Path) -> None:
    server.create(REPO)
    commit = server.commit(REPO, {"a b.txt": b"one"})
    server.tag(REPO, "v1", commit)
    for revision in ("main", "v1", commit, "refs/heads/main", "refs/tags/v1"):
        path = api.hf_hub_download(REPO, "a b.txt", revision=revision, cache_dir=tmp_path)
        assert Path(path).read_bytes() == b"one"
    (digest,) = [path.name for path in (tmp_path / "models--me--model" / "blobs").iterdir()]
    assert digest == hashlib.sha1(b"blob 3\0one").hexdigest()


def test_the_tree_has_sizes_and_digests(api: HfApi, server: HubServer) -> None:
    api.create_repo(REPO)
    commit = publish(api).oid
    server.page_size = 2
    entries = {entry.path: entry for entry in api.list_repo_tree(REPO, revision=commit, recursive=True)}
    assert entries.keys() == {".gitattributes", "figures", *FILES}
    weights = entries["model.safetensors"]
    assert weights.lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert weights.size == weights.lfs.size == len(WEIGHTS)
    assert entries["README.md"].lfs is None
    assert [entry.path for entry in api.list_repo_tree(REPO, "figures")] == ["figures/parity.png"]
    assert "figures/parity.png" not in [entry.path for entry in api.list_repo_tree(REPO)]
    (info,) = api.get_paths_info(REPO, ["README.md", "nothing"])
    assert info.blob_id == entries["README.md"].blob_id
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(REPO, "nothing"))


def test_references_and_history(api: HfApi, server: HubServer) -> None:
    api.create_repo(REPO)
    commit = publish(api).oid
    api.create_tag(REPO, tag="v1")
    api.create_branch(REPO, branch="work", revision="v1")
    refs = api.list_repo_refs(REPO)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": commit, "work": commit}
    assert [(ref.name, ref.ref, ref.target_commit) for ref in refs.tags] == [("v1", "refs/tags/v1", commit)]
    assert [one.title for one in api.list_repo_commits(REPO)] == ["publish", "by the server"]
    api.delete_tag(REPO, tag="v1")
    assert server.repositories[REPO].tags == {}
    for call in (lambda: api.delete_tag(REPO, tag="v1"), lambda: api.create_tag(REPO, tag="v2", revision="v1")):
        with pytest.raises(RevisionNotFoundError):
            call()


def test_a_tag_stays_where_it_is(api: HfApi, server: HubServer) -> None:
    api.create_repo(REPO)
    first = server.repositories[REPO].branches["main"]
    api.create_tag(REPO, tag="v1")
    publish(api)
    with pytest.raises(HfHubHTTPError) as error:
        api.create_tag(REPO, tag="v1")
    assert status_of(error) == 409
    api.create_tag(REPO, tag="v1", exist_ok=True)
    assert server.repositories[REPO].tags == {"v1": first}


def test_the_same_content_makes_no_commit(api: HfApi, server: HubServer) -> None:
    api.create_repo(REPO)
    first = publish(api).oid
    assert publish(api).oid == first
    assert len(server.repositories[REPO].commits) == 2
    assert publish(api, FILES | {"model.safetensors": b"other"}).oid != first


def test_the_server_and_the_client_agree_on_what_is_large(api: HfApi, server: HubServer) -> None:
    files = {"late.txt": b"a" * 512 + b"\0", "early.txt": b"\0", "cut.txt": b"a" * 511 + "é".encode()}
    server.create(REPO)
    head = server.commit(REPO, files)
    assert {path for path, blob in server.repositories[REPO].commits[head].files.items() if blob.lfs} == {"early.txt"}
    assert publish(api, files).oid == head


def test_a_commit_onto_another_parent_is_refused(api: HfApi, server: HubServer) -> None:
    head = server.create(REPO).branches["main"]
    server.order(Fault("POST", "/commit/main", "stale_parent", files={"b.txt": b"theirs"}))
    with pytest.raises(HfHubHTTPError) as error:
        publish(api, parent_commit=head)
    assert status_of(error) == 412
    assert server.files(REPO).keys() == {".gitattributes", "b.txt"}
    assert publish(api, parent_commit=server.repositories[REPO].branches["main"])


def test_files_are_deleted(api: HfApi, server: HubServer) -> None:
    server.create(REPO)
    server.commit(REPO, {"a.txt": b"a", "folder/b.txt": b"b", "folder/c.txt": b"c", "d.txt": b"d"})
    for operations in (
        [CommitOperationDelete("a.txt"), CommitOperationDelete("folder/")],
        [CommitOperationAdd("e.txt", b"e")],
    ):
        api.create_commit(REPO, operations, commit_message="change")
    server.commit(REPO, {"d.txt": None})
    assert server.files(REPO).keys() == {".gitattributes", "e.txt"}
    with pytest.raises(EntryNotFoundError):
        api.delete_file("nothing", REPO)


def test_a_model_is_described_by_its_card(api: HfApi, server: HubServer) -> None:
    api.create_repo(REPO)
    commit = publish(api).oid
    info = api.model_info(REPO, files_metadata=True)
    assert info.sha == api.model_info(REPO, revision="main").sha == commit
    assert info.card_data.license == "mit"
    assert info.tags == ["si", "mlff-zoo", "license:mit", "base_model:org/big"]
    assert (info.library_name, info.pipeline_tag, info.private, info.gated) == ("mlff-zoo", None, False, False)
    assert info.created_at < info.last_modified
    files = {sibling.rfilename: sibling for sibling in info.siblings}
    assert files["model.safetensors"].lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert files["README.md"].size == len(CARD)
    assert api.model_info(REPO).siblings[0].size is None
    assert api.model_info(REPO, expand=["sha"]).tags is None
    server.commit(REPO, {"README.md": b"---\n: [\n---\n"})
    assert api.model_info(REPO).tags == []


def test_models_are_listed_page_by_page(api: HfApi, you: HfApi, server: HubServer) -> None:
    server.page_size = 2
    for number in range(5):
        server.create(f"mlff-zoo/model-{number}", private=number == 4)
        server.commit(f"mlff-zoo/model-{number}", {"README.md": CARD})
    server.create("you/other")

    def found(api: HfApi, **options: object) -> list[str]:
        return [info.id.removeprefix("mlff-zoo/model-") for info in api.list_models(**options)]

    assert found(api, author="mlff-zoo") == ["0", "1", "2", "3", "4"]
    assert found(you, author="mlff-zoo") == ["0", "1", "2", "3"]
    assert found(you, search="OTHER") == ["you/other"]
    assert found(you, filter=["mlff-zoo", "license:mit"], limit=3) == ["0", "1", "2"]
    assert found(you, filter=["mlff-zoo", "license:apache-2.0"]) == []
    plain, full = (next(iter(api.list_models(**options))) for options in ({}, {"full": True, "cardData": True}))
    assert (plain.sha, plain.card_data, plain.siblings) == (None, None, None)
    assert full.sha == server.repositories["mlff-zoo/model-0"].branches["main"]
    assert full.card_data.license == "mit"
    assert next(iter(api.list_models(expand=["lastModified"]))).last_modified


def test_a_private_repository_is_its_owners(api: HfApi, you: HfApi, server: HubServer, tmp_path: Path) -> None:
    api.create_repo(REPO, private=True)
    assert server.repositories[REPO].private
    for stranger in (you, HfApi(endpoint=server.endpoint, token=False)):
        for call in (
            lambda api: api.model_info(REPO),
            lambda api: api.hf_hub_download(REPO, "a.txt", cache_dir=tmp_path),
            lambda api: api.snapshot_download(REPO, cache_dir=tmp_path),
            lambda api: api.model_info("me/nothing"),
            lambda api: publish(api),
        ):
            with pytest.raises(RepositoryNotFoundError):
                call(stranger)
    api.update_repo_settings(REPO, private=False)
    assert you.model_info(REPO).private is False


def test_a_gated_repository_shows_all_but_its_files(api: HfApi, you: HfApi, server: HubServer, tmp_path: Path) -> None:
    api.create_repo(REPO)
    publish(api)
    api.update_repo_settings(REPO, gated="auto")
    for stranger in (you, HfApi(endpoint=server.endpoint, token=False)):
        assert stranger.model_info(REPO).gated == "auto"
        with pytest.raises(GatedRepoError):
            stranger.hf_hub_download(REPO, "README.md", cache_dir=tmp_path)
        with pytest.raises(GatedRepoError):
            stranger.snapshot_download(REPO, cache_dir=tmp_path)
    server.repositories[REPO].granted.add("you")
    assert you.snapshot_download(REPO, cache_dir=tmp_path)
    assert api.hf_hub_download(REPO, "README.md", cache_dir=tmp_path / "mine")


def test_what_is_not_there_is_the_clients_own_error(api: HfApi, server: HubServer, tmp_path: Path) -> None:
    commit = server.create(REPO).branches["main"]
    with pytest.raises(EntryNotFoundError) as error:
        api.hf_hub_download(REPO, "nothing", cache_dir=tmp_path)
    assert error.value.response.headers["X-Repo-Commit"] == commit
    for call in (
        lambda: api.model_info(REPO, revision="v9"),
        lambda: api.hf_hub_download(REPO, "a.txt", revision="v9", cache_dir=tmp_path),
        lambda: api.snapshot_download(REPO, revision="f" * 40, cache_dir=tmp_path),
        lambda: publish(api, revision="work"),
    ):
        with pytest.raises(RevisionNotFoundError):
            call()


def test_tokens_and_rights(api: HfApi, you: HfApi, server: HubServer) -> None:
    who = api.whoami()
    assert (who["name"], [org["name"] for org in who["orgs"]]) == ("me", ["mlff-zoo"])
    assert api.create_repo("mlff-zoo/engine").repo_id == "mlff-zoo/engine"
    with pytest.raises(HfHubHTTPError, match="Invalid user token") as error:
        HfApi(endpoint=server.endpoint, token="bad").whoami()
    assert status_of(error) == 401
    for call in (lambda: you.create_repo("mlff-zoo/new"), lambda: you.create_tag("mlff-zoo/engine", tag="v1")):
        with pytest.raises(HfHubHTTPError) as error:
            call()
        assert status_of(error) == 403


def test_a_repository_is_created_once_and_deleted(api: HfApi, server: HubServer) -> None:
    url = api.create_repo(REPO)
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo(REPO)
    assert status_of(error) == 409
    assert api.create_repo(REPO, exist_ok=True) == url
    api.delete_repo(REPO)
    assert not server.repositories
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo(REPO)


def test_a_card_that_is_no_yaml_is_refused(api: HfApi, server: HubServer) -> None:
    server.create(REPO)
    with pytest.raises(ValueError, match="Invalid metadata"):
        publish(api, {"README.md": b"---\na: [\n---\n"})
    with pytest.warns(UserWarning, match="empty or missing"):
        publish(api, {"README.md": b"# No card"})


def test_weights_are_uploaded_once_and_must_have_their_digest(api: HfApi, server: HubServer) -> None:
    server.create(REPO)
    batch = json.dumps({"objects": [{"oid": "0" * 64, "size": 3}]})
    (answer,) = json.loads(ask(server, "POST", f"/{REPO}.git/info/lfs/objects/batch", batch)[2])["objects"]
    href = answer["actions"]["upload"]["href"].removeprefix(server.endpoint)
    assert ask(server, "PUT", href, b"abc")[0] == 422
    assert ask(server, "PUT", href.partition("?")[0], b"abc")[0] == 403
    line = {"key": "lfsFile", "value": {"path": "a.bin", "algo": "sha256", "oid": "0" * 64, "size": 3}}
    lines = json.dumps({"key": "header", "value": {"summary": "x"}}) + "\n" + json.dumps(line)
    assert ask(server, "POST", f"/api/models/{REPO}/commit/main", lines)[0] == 422
    publish(api)
    publish(api, {"again.safetensors": WEIGHTS})
    assert len([request for request in server.requests if request.method == "PUT"]) == 2 + 2


def test_a_chunked_body_is_read(server: HubServer) -> None:
    content = json.dumps({"content": CARD.decode(), "repoType": "model"}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", port(server), timeout=5)
    connection.request("POST", "/api/validate-yaml", body=iter([content[:9], content[9:]]), encode_chunked=True)
    assert json.loads(connection.getresponse().read()) == {"errors": [], "warnings": []}
    connection.close()


def test_ranges(server: HubServer) -> None:
    server.create(REPO)
    server.commit(REPO, {"a.txt": b"0123456789"})
    for asked, answer in (("2-4", b"234"), ("7-", b"789"), ("-3", b"789"), ("8-99", b"89")):
        status, headers, body = ask(server, "GET", RESOLVE, range=f"bytes={asked}")
        assert (status, body, headers["content-length"]) == (206, answer, str(len(answer)))
    assert headers["content-range"] == "bytes 8-9/10"
    assert ask(server, "GET", RESOLVE, range="bytes=10-")[0] == 416
    status, headers, body = ask(server, "HEAD", RESOLVE)
    assert (status, headers["content-length"], headers["accept-ranges"], body) == (200, "10", "bytes", b"")


def test_only_lfs_files_have_a_linked_etag(server: HubServer) -> None:
    server.create(REPO)
    server.commit(REPO, {"a.txt": b"a", "a.txt.safetensors": b"a"})
    _, regular, _ = ask(server, "HEAD", RESOLVE)
    _, large, _ = ask(server, "HEAD", RESOLVE + ".safetensors")
    assert "x-linked-etag" not in regular
    assert regular["etag"] == f'"{hashlib.sha1(b"blob 1" + bytes(1) + b"a").hexdigest()}"'
    assert large["etag"] == large["x-linked-etag"] == f'"{hashlib.sha256(b"a").hexdigest()}"'
    assert large["x-linked-size"] == "1"


# Faults, seen without the client

BODY = b"0123456789"


@pytest.fixture
def text(server: HubServer) -> HubServer:
    """A server with one file."""
    server.create(REPO)
    server.commit(REPO, {"a.txt": BODY})
    return server


def port(server: HubServer) -> int:
    return int(server.endpoint.rpartition(":")[2])


def ask(
    server: HubServer, method: str, path: str, body: str | bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port(server), timeout=5)
    try:
        authorization = {} if method == "PUT" else {"Authorization": "Bearer token"}
        connection.request(method, path, body, authorization | headers)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def get(server: HubServer) -> tuple[int, dict[str, str], bytes]:
    return ask(server, "GET", RESOLVE)


def pieces(server: HubServer, timeout: float = 5.0, path: str = RESOLVE) -> Iterator[bytes]:
    """What comes, as it comes, until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", port(server)), timeout=timeout) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        while piece := connection.recv(65536):
            yield piece


def test_a_fault_fires_as_often_as_ordered_where_it_is_ordered(text: HubServer) -> None:
    fault = text.order(Fault("GET", r"/resolve/main/.*\?x=1", "status", times=2, skip=1, status=503))
    met = [ask(text, "GET", f"{RESOLVE}?x=1")[0] for _ in range(4)]
    assert met == [200, 503, 503, 200]
    assert get(text)[0] == ask(text, "HEAD", f"{RESOLVE}?x=1")[0] == 200
    assert text.faults_met[fault] == 2


def test_faults_are_met_in_order_until_they_are_taken_back(text: HubServer) -> None:
    first = text.order(Fault(None, "/resolve/", "status", status=429))
    second = text.order(Fault(None, "/resolve/", "status", times=math.inf, status=503))
    assert [get(text)[0] for _ in range(3)] == [429, 503, 503]
    text.heal()
    assert get(text)[0] == 200
    assert text.faults_met == {first: 1, second: 2}
    with pytest.raises(ValueError, match="fault explode: known are refuse, hang,"):
        text.order(Fault(None, "", "explode"))


def test_each_fault_says_what_it_does() -> None:
    assert all(function.__doc__ for function in FAULTS.values())


def test_refuse(text: HubServer) -> None:
    text.order(Fault("GET", "/resolve/", "refuse"))
    assert list(pieces(text)) == []
    assert get(text)[2] == BODY


def test_hang(text: HubServer) -> None:
    text.order(Fault("GET", "/resolve/", "hang"))
    with pytest.raises(TimeoutError):
        list(pieces(text, timeout=0.1))
    text.order(Fault("GET", "/resolve/", "hang", seconds=0.1))
    started = time.monotonic()
    assert list(pieces(text)) == []
    assert time.monotonic() - started >= 0.1


def test_hang_headers(text: HubServer) -> None:
    text.order(Fault("GET", "/resolve/", "hang_headers", seconds=0.05))
    came = pieces(text)
    assert [next(came) for _ in range(3)] == [b"H", b"T", b"T"]
    text.order(Fault("GET", "/resolve/", "hang_headers", seconds=0.0))
    assert get(text)[2] == BODY


def test_drip(text: HubServer) -> None:
    text.order(Fault("GET", "/resolve/", "drip", seconds=0.02))
    started = time.monotonic()
    assert get(text)[2] == BODY
    assert time.monotonic() - started >= 0.02 * (len(BODY) - 1)


def test_cut(text: HubServer) -> None:
    text.order(Fault("GET", "/resolve/", "cut", size=4))
    with pytest.raises(http.client.IncompleteRead) as error:
        get(text)
    assert (error.value.partial, error.value.expected) == (BODY[:4], 6)


def test_status(text: HubServer) -> None:
    headers = {"Retry-After": "1", "X-Error-Code": "GatedRepo"}
    text.order(Fault("GET", "/resolve/", "status", status=503, headers=headers, body=b"later"))
    status, got, body = get(text)
    assert (status, got["retry-after"], got["x-error-code"], body) == (503, "1", "GatedRepo", b"later")


def test_an_error_to_a_head_has_no_body(text: HubServer) -> None:
    text.order(Fault("HEAD", "/resolve/", "status", status=503, body=b"later"))
    connection = http.client.HTTPConnection("127.0.0.1", port(text), timeout=5)
    for method, status, body in (("HEAD", 503, b""), ("GET", 200, BODY)):
        connection.request(method, RESOLVE)
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (status, body)
    connection.close()


def test_redirect(text: HubServer) -> None:
    text.order(Fault("GET", "/resolve/", "redirect", url="http://127.0.0.1:1/x", headers={"X-Linked-Size": "9"}))
    status, headers, body = get(text)
    assert (status, headers["location"], headers["x-linked-size"], body) == (302, "http://127.0.0.1:1/x", "9", b"")


def test_corrupt(text: HubServer) -> None:
    whole = get(text)
    text.order(Fault("GET", "/resolve/", "corrupt"))
    status, headers, body = get(text)
    assert (status, headers) == whole[:2]
    assert body == b"01234\xca6789"


def test_wrong_etag(text: HubServer) -> None:
    text.commit(REPO, {"a.txt.safetensors": BODY})
    text.order(Fault("GET", "/resolve/", "wrong_etag", times=2, etag='W/"x"'))
    _, headers, body = get(text)
    assert (headers["etag"], "x-linked-etag" in headers, body) == ('W/"x"', False, BODY)
    _, headers, _ = ask(text, "GET", RESOLVE + ".safetensors")
    assert headers["etag"] == headers["x-linked-etag"] == 'W/"x"'


def test_headers(text: HubServer) -> None:
    hostile = {"X-Repo-Commit": "../../x", "etag": None, "X-Xet-Hash": "é", "Content-Length": "20"}
    text.order(Fault("GET", "/resolve/", "headers", headers=hostile))
    head, _, body = b"".join(pieces(text)).partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert {b"X-Repo-Commit: ../../x", "X-Xet-Hash: é".encode(), b"Content-Length: 20"} < set(lines)
    assert b"etag" not in head.lower()
    assert b"Content-Length: 10" not in lines
    assert body == BODY


def test_body(text: HubServer) -> None:
    text.order(Fault(None, "/refs", "body", body=b"[1"))
    status, headers, body = ask(text, "GET", f"/api/models/{REPO}/refs")
    assert (status, headers["content-length"], body) == (200, "2", b"[1")


def test_stale_parent(text: HubServer) -> None:
    def tag(server: HubServer, request: Request) -> None:
        server.tag(REPO, request.json["tag"], server.repositories[REPO].branches["main"])

    text.order(Fault("POST", "/tag/", "stale_parent", files={"b.txt": b"b"}, call=tag))
    assert ask(text, "POST", f"/api/models/{REPO}/tag/main", '{"tag": "v1"}')[0] == 409
    assert text.files(REPO, "v1")["b.txt"] == b"b"


def test_call(text: HubServer) -> None:
    text.order(Fault("GET", "/resolve/", "call", call=lambda server, _: server.commit(REPO, {"a.txt": b"new"})))
    assert get(text)[2] == b"new"


def test_lost_answer(text: HubServer) -> None:
    text.order(Fault("POST", "/tag/", "lost_answer"))
    with pytest.raises(http.client.RemoteDisconnected):
        ask(text, "POST", f"/api/models/{REPO}/tag/main", '{"tag": "v1"}')
    assert text.repositories[REPO].tags.keys() == {"v1"}
    text.delete_tag(REPO, "v1")
    assert not text.repositories[REPO].tags


@pytest.mark.parametrize(("coding", "first"), [(None, b"\0" * 5), ("chunked", b"10000")])
def test_endless(text: HubServer, coding: str | None, first: bytes) -> None:
    headers = {"Transfer-Encoding": coding} if coding else {}
    text.order(Fault("GET", "/resolve/", "endless", headers=headers))
    came = b""
    for piece in pieces(text):
        came += piece
        if len(came) > 1_000_000:
            break
    head, _, body = came.partition(b"\r\n\r\n")
    assert b"Content-Length" not in head
    assert body.startswith(first)


# The server itself


def test_a_server_that_closes_releases_all_that_hang(text: HubServer) -> None:
    kinds = ("hang", "drip", "hang_headers", "endless")
    for kind in kinds:
        text.order(Fault("GET", f"x={kind}$", kind))
    ends: list[float] = []

    def wait(path: str) -> None:
        with suppress(ConnectionResetError):  # some of what was sent is not read
            list(pieces(text, timeout=20, path=path))
        ends.append(time.monotonic())

    clients = [threading.Thread(target=wait, args=(f"{RESOLVE}?x={kind}",)) for kind in kinds]
    for client in clients:
        client.start()
    started = time.monotonic()
    while len(text.faults_met) < len(kinds) and time.monotonic() - started < 10:
        time.sleep(0.01)
    with socket.create_connection(("127.0.0.1", port(text))):  # one that asks nothing
        text.stop()
    closed = time.monotonic()
    for client in clients:
        client.join()
    assert len(text.faults_met) == len(kinds)
    assert max(ends) - closed < 1
    gc.collect()  # a socket left open warns


def test_no_thread_is_left() -> None:
    before = threading.active_count()
    with HubServer(users={}) as server:
        connection = http.client.HTTPConnection("127.0.0.1", port(server), timeout=5)
        connection.request("GET", "/api/models")
        assert connection.getresponse().read() == b"[]"
        assert threading.active_count() == before + 2
    assert threading.active_count() == before
    connection.close()


def test_a_server_goes_down_and_comes_back(text: HubServer) -> None:
    endpoint = text.endpoint
    text.stop()
    text.stop()
    with pytest.raises(ConnectionRefusedError):
        get(text)
    text.start()
    assert text.endpoint == endpoint
    assert get(text)[2] == BODY
    text.order(Fault("GET", "/resolve/", "call", call=lambda server, _: server.stop()))
    assert list(pieces(text)) == []
    text.start()
    assert get(text)[2] == BODY


def test_what_the_server_does_not_know_is_not_found(server: HubServer) -> None:
    status, headers, body = ask(server, "GET", "/api/collections")
    assert (status, "x-error-code" in headers) == (404, False)
    assert json.loads(body) == {"error": "no such request: GET /api/collections"}
    server.requests.clear()
    assert server.requests == []


def test_pull_requests_are_refused_and_other_types_too(api: HfApi, server: HubServer) -> None:
    server.create(REPO)
    with pytest.raises(RevisionNotFoundError):
        publish(api, create_pr=True)
    with pytest.raises(BadRequestError):
        api.create_repo("me/data", repo_type="dataset")
