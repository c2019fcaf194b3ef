"""A file from the web is there whole or not at all, whatever the network, the server and the user do meanwhile."""

import fcntl
import hashlib
import http.server
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from zoo.data import download as module
from zoo.data.download import WORTH, digest_of, download
from zoo.data.sources import Digest
from zoo.errors import AccessError, ConfigError, HubError, IntegrityError, MissingPackageError, ZooError

SIZE = 400_000


@dataclass
class Trouble:
    """What goes wrong with one answer."""

    status: int | None = None
    cut: int | None = None  # bytes of the body that are sent
    silent: float = 0.0  # seconds, before the cut
    headers: dict[str, str | None] = field(default_factory=dict)  # in the place of those that are right
    chunked: bool = False
    more: int = 0  # bytes beyond the end
    deaf: bool = False  # to If-Range


@dataclass
class Seen:
    """A request, and how much of the body was sent."""

    path: str
    headers: dict[str, str]
    sent: int = 0


@dataclass
class File:
    body: bytes
    etag: str | None = ""  # of the content by default
    modified: str | None = None
    ranges: bool = True

    @property
    def tag(self) -> str | None:
        return f'"{hashlib.md5(self.body).hexdigest()}"' if self.etag == "" else self.etag


class Site:
    """A server of files over loopback that fails as it is told to."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.files: dict[str, File] = {}
        self.troubles: deque[Trouble | None] = deque()  # of the answers to come
        self.always: Trouble | None = None  # where there are no more of them
        self.seen: list[Seen] = []

    def put(self, body: bytes, name: str = "file", **how: object) -> str:
        self.files[f"/{name}"] = File(body, **how)
        return f"{self.url}/{name}"

    @property
    def sent(self) -> int:
        return sum(seen.sent for seen in self.seen)

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        seen = Seen(handler.path, {name.lower(): value for name, value in handler.headers.items()})
        self.seen.append(seen)
        trouble = (self.troubles.popleft() if self.troubles else self.always) or Trouble()
        file = self.files.get(handler.path)
        status = trouble.status or (200 if file else 404)
        body, headers = b"no such file", {"Content-Type": "text/plain"}
        if file is not None and status == 200:
            status, body, headers = self._file(file, seen.headers, trouble)
        head = {**headers, "Content-Length": str(len(body)), **trouble.headers}
        if trouble.chunked:
            head |= {"Content-Length": None, "Transfer-Encoding": "chunked"}
        handler.send_response(status)
        for name, value in head.items():
            if value is not None:
                handler.send_header(name, value)
        handler.send_header("Connection", "close")
        handler.end_headers()
        self._send(handler, body + b"x" * trouble.more, seen, trouble)

    def _file(self, file: File, asked: dict[str, str], trouble: Trouble) -> tuple[int, bytes, dict[str, str]]:
        headers = {"Content-Type": "application/octet-stream"}
        headers |= {"ETag": file.tag} if file.tag else {}
        headers |= {"Last-Modified": file.modified} if file.modified else {}
        same = trouble.deaf or asked.get("if-range") in (None, file.tag, file.modified)
        if "range" not in asked or not file.ranges or not same:
            return 200, file.body, headers
        start = int(asked["range"].removeprefix("bytes=").removesuffix("-"))
        if start >= len(file.body):
            return 416, b"", headers
        part = f"bytes {start}-{len(file.body) - 1}/{len(file.body)}"
        return 206, file.body[start:], headers | {"Content-Range": part}

    def _send(self, handler: http.server.BaseHTTPRequestHandler, body: bytes, seen: Seen, trouble: Trouble) -> None:
        part = body if trouble.cut is None else body[: trouble.cut]
        with suppress(OSError):  # the client left
            for start in range(0, len(part), 10_000):
                block = part[start : start + 10_000]
                handler.wfile.write(b"%x\r\n%s\r\n" % (len(block), block) if trouble.chunked else block)
                seen.sent += len(block)
            handler.wfile.flush()
            time.sleep(trouble.silent)
            if trouble.chunked and trouble.cut is None:
                handler.wfile.write(b"0\r\n\r\n")


@contextmanager
def serving() -> Iterator[Site]:
    """A site that runs as long as the block."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            site.answer(self)
            self.close_connection = True

        def log_message(self, *what: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *where: object) -> None:
            pass  # a client that left

    with Server(("127.0.0.1", 0), Handler) as server:
        site = Site(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01))
        thread.start()
        yield site
        server.shutdown()
        thread.join()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A site, and no patience: tries follow at once, and each byte counts."""
    monkeypatch.setattr(module, "PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setattr(module, "WORTH", 1)
    with serving() as one:
        yield one


@pytest.fixture
def mirror() -> Iterator[Site]:
    with serving() as one:
        yield one


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "data" / "file.npz"


def content(size: int = SIZE, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def published(body: bytes, seen: str = "publisher") -> Digest:
    return Digest.model_validate({"algorithm": "md5", "hex": hashlib.md5(body).hexdigest(), "seen": seen})


def get(to: Path, *urls: str, **how: object) -> Path:
    return download(urls, to, progress=False, **how)


def cut_after(site: Site, to: Path, url: str, sent: int, **how: object) -> None:
    """Leaves a part of that many bytes, as a call leaves it that was given up."""
    site.always = Trouble(cut=sent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_from_any", lambda part, urls, job: module._try_once(part, urls[0], job))
        with pytest.raises(HubError, match="run the same again"):
            get(to, url, **how)
    site.always = None
    assert part_of(to).stat().st_size == sent


def part_of(to: Path) -> Path:
    return to.with_name(f"{to.name}.part")


def assert_whole(to: Path, body: bytes) -> None:
    assert to.read_bytes() == body
    assert [path.name for path in to.parent.iterdir()] == [to.name]


def assert_nothing(to: Path) -> None:
    assert list(to.parent.iterdir()) == []


def refusal(error: pytest.ExceptionInfo[ZooError]) -> str:
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_a_file_comes_whole_with_its_size_and_digest(site, to):
    body = content()
    assert get(to, site.put(body), size=SIZE, digest=published(body)) == to
    assert_whole(to, body)
    (seen,) = site.seen
    assert seen.headers["accept-encoding"] == "identity"
    assert seen.headers["user-agent"].startswith("mlff-zoo/")
    assert "range" not in seen.headers


def test_cut_at_random_places_nothing_comes_twice(site, to):
    body, random_cuts = content(), random.Random(1)
    site.troubles.extend(Trouble(cut=random_cuts.randrange(1, SIZE // 10)) for _ in range(12))
    get(to, site.put(body))
    assert_whole(to, body)
    assert len(site.seen) == 13
    assert site.sent == SIZE


@pytest.mark.parametrize("sent", [1, 9_999, 65_536, 65_537, 200_000, SIZE - 1])
def test_another_call_goes_on_where_the_last_one_stopped(site, to, sent):
    body = content()
    url = site.put(body)
    cut_after(site, to, url, sent)
    get(to, url)
    assert_whole(to, body)
    asked = site.seen[-1].headers
    assert (asked["range"], asked["if-range"]) == (f"bytes={sent}-", site.files["/file"].tag)
    assert site.sent == SIZE


def test_interrupted_by_the_user_it_goes_on(site, to, monkeypatch):
    body, url, append = content(), site.put(content()), module._Part.append
    left = iter([3, 1, 2, 10**6])

    def interrupt(part: module._Part, block: bytes) -> None:
        if part.path.stat().st_size >= stop:
            raise KeyboardInterrupt
        append(part, block)

    monkeypatch.setattr(module._Part, "append", interrupt)
    stop = 0
    for blocks in left:
        stop += blocks * 65_536
        with suppress(KeyboardInterrupt):
            get(to, url)
    assert_whole(to, body)


def test_the_newest_part_is_of_one_file_though_the_site_changed_it(site, to):
    old, new = content(), content(seed=1)
    url = site.put(old)
    cut_after(site, to, url, 100_000)
    site.put(new)
    get(to, url)
    assert_whole(to, new)


@pytest.mark.parametrize("etag", ["", None])
def test_a_server_that_goes_on_with_another_file_is_noticed(site, to, etag):
    url = site.put(content(), etag=etag, modified="Mon, 01 Jan 2024 00:00:00 GMT")
    cut_after(site, to, url, 100_000)
    new = content(seed=1)
    site.put(new, etag=etag, modified="Tue, 02 Jan 2024 00:00:00 GMT")
    site.troubles.append(Trouble(deaf=True))
    get(to, url)
    assert_whole(to, new)


@pytest.mark.parametrize("stated", ["bytes 5-9/10", f"bytes 0-{SIZE - 1}/{SIZE}", "nonsense", None])
def test_a_range_that_was_not_asked_for_is_not_pasted_in(site, to, stated):
    body = content()
    url = site.put(body)
    cut_after(site, to, url, 100_000)
    site.troubles.append(Trouble(status=206, headers={"Content-Range": stated}))  # with a body that is not of it
    get(to, url)
    assert_whole(to, body)


def test_a_file_that_became_shorter_than_its_part_comes_anew(site, to):
    url = site.put(content(), etag='"same"')
    cut_after(site, to, url, 300_000)
    site.put(content(200_000), etag='"same"')
    get(to, url)
    assert_whole(to, content(200_000))


def test_a_server_without_ranges_sends_all_of_it_again(site, to):
    body = content()
    url = site.put(body, ranges=False)
    site.troubles.append(Trouble(cut=100_000))
    get(to, url)
    assert_whole(to, body)
    assert site.sent == SIZE + 100_000


def test_a_server_that_always_cuts_is_given_up(site, to, monkeypatch):
    monkeypatch.setattr(module, "WORTH", 100_000)
    url = site.put(content(), ranges=False)
    site.troubles.extend([Trouble(cut=300_000)] * 20)
    with pytest.raises(HubError, match=r"what came is kept: run the same again"):
        get(to, url)
    assert len(site.seen) == 1 + 4  # the first brought something
    assert part_of(to).stat().st_size == 300_000


@pytest.mark.parametrize(("digest", "sent"), [(False, SIZE + 100_000), (True, SIZE)])
def test_what_no_version_tells_apart_goes_on_only_where_a_digest_would_tell(site, to, digest, sent):
    body = content()
    url = site.put(body, etag='W/"weak"')
    site.troubles.append(Trouble(cut=100_000))
    get(to, url, digest=published(body) if digest else None)
    assert_whole(to, body)
    assert site.sent == sent


def test_a_part_without_a_record_or_with_a_broken_one_is_not_trusted(site, to):
    body = content()
    url = site.put(body)
    for record in (None, "{", '{"url": 3}'):
        to.parent.mkdir(exist_ok=True)
        part_of(to).write_bytes(b"rubbish")
        if record:
            to.with_name(f"{to.name}.part.json").write_text(record)
        get(to, url)
        assert_whole(to, body)


def test_a_silent_server_is_left_and_asked_again(site, to, monkeypatch):
    monkeypatch.setattr(module, "SILENCE", 0.2)
    body = content()
    site.troubles.append(Trouble(cut=150_000, silent=2.0))
    started = time.monotonic()
    get(to, site.put(body))
    assert_whole(to, body)
    assert time.monotonic() - started < 1.5
    assert site.sent < SIZE + 2 * 65_536


@pytest.mark.parametrize("trouble", [Trouble(status=404), Trouble(status=403), Trouble(status=500), Trouble(cut=10)])
def test_mirrors_are_asked_in_turn(site, to, trouble, monkeypatch):
    monkeypatch.setattr(module, "WORTH", WORTH)
    body = content()
    first, second = site.put(content(seed=1), "first"), site.put(body, "second")
    tries = 4 if trouble.status not in (404, 403) else 1
    site.troubles.extend([trouble] * tries)
    get(to, first, second)
    assert_whole(to, body)
    assert [seen.path for seen in site.seen] == ["/first"] * tries + ["/second"]


def test_a_later_call_goes_on_with_the_mirror_that_it_had(site, to):
    body = content()
    first, second = site.put(body, "first"), site.put(body, "second")
    cut_after(site, to, second, 300_000)
    get(to, first, second)
    assert_whole(to, body)
    assert site.sent == SIZE


def broken_off(site: Site, sent: int = 300_000) -> None:
    """From now on a site sends so much, and then it is busy."""
    site.troubles.append(Trouble(cut=sent))
    site.always = Trouble(status=503)


def asked(seen: Seen) -> tuple[str | None, str | None]:
    return seen.headers.get("range"), seen.headers.get("if-range")


@pytest.mark.parametrize("etag", ["", None, '"its own"'])
def test_a_mirror_goes_on_with_what_came_where_a_published_digest_vouches(site, mirror, to, etag):
    body = content()
    first, second = site.put(body, etag=etag), mirror.put(body, etag='"another"')
    broken_off(site)
    get(to, first, second, digest=published(body))
    assert_whole(to, body)
    assert [asked(seen) for seen in mirror.seen] == [("bytes=300000-", None)]
    assert site.sent + mirror.sent == SIZE + 4 * len(b"no such file")


def test_a_part_of_two_addresses_is_gone_on_with_later(site, mirror, to):
    body = content()
    first, second = site.put(body), mirror.put(body)
    broken_off(site, 100_000)
    broken_off(mirror, 100_000)
    with pytest.raises(HubError, match="what came is kept: run the same again"):
        get(to, first, second, digest=published(body))
    assert part_of(to).stat().st_size == 200_000
    site.always = mirror.always = None
    get(to, first, second, digest=published(body))
    assert_whole(to, body)
    assert asked(mirror.seen[-1]) == ("bytes=200000-", mirror.files["/file"].tag)


def test_a_part_of_two_addresses_that_is_wrong_comes_anew_from_one(site, mirror, to):
    body = content()
    first, second = site.put(content(seed=1)), mirror.put(body)
    broken_off(site)
    get(to, first, second, digest=published(body))
    assert_whole(to, body)
    assert [asked(seen) for seen in mirror.seen] == [("bytes=300000-", None), (None, None)]


def test_from_one_address_it_comes_anew_once_and_is_then_refused(site, mirror, to):
    first, second = site.put(content()), mirror.put(content(seed=1))
    broken_off(site)
    with pytest.raises(HubError, match=r"gave a file with md5 \w{32}, expected \w{32} as published"):
        get(to, first, second, digest=published(content(seed=2)))
    assert len(mirror.seen) == 2
    assert_nothing(to)


@pytest.mark.parametrize(
    ("digest", "body", "how"),
    [
        (None, content(), {}),
        ("index", content(), {}),
        ("publisher", content(SIZE + 1), {}),
        ("publisher", content(200_000), {}),
        ("publisher", content(), {"ranges": False}),
    ],
    ids=["no digest", "from third hand", "longer", "shorter than the part", "without ranges"],
)
def test_a_mirror_that_cannot_go_on_does_not_throw_away_what_came(site, mirror, to, digest, body, how):
    right = content()
    first, second = site.put(right), mirror.put(body, **how)
    expected = published(right, digest) if digest else None
    broken_off(site)
    with pytest.raises(HubError) as error:
        get(to, first, second, digest=expected)
    assert "what came is kept: run the same again" in refusal(error)
    assert (
        f"cannot go on with the 300,000 bytes that came from {first}; to begin anew, remove {part_of(to)}"
        in refusal(error)
    )
    assert part_of(to).stat().st_size == 300_000
    site.always = None
    get(to, first, second, digest=expected)
    assert_whole(to, right)
    assert asked(site.seen[-1]) == ("bytes=300000-", site.files["/file"].tag)


@pytest.mark.parametrize("how", ["gone", "without ranges", "of another size", "no address of it now"])
def test_a_part_that_its_address_cannot_go_on_with_keeps_nobody_from_a_mirror(site, mirror, to, how):
    body = content()
    first, second = site.put(body, ranges=how != "without ranges"), mirror.put(body, "second")
    cut_after(site, to, first, 300_000)
    site.always = Trouble(status=404) if how == "gone" else Trouble(cut=200_000) if how == "without ranges" else None
    if how == "of another size":
        site.put(content(SIZE + 1))
    get(to, *([second] if how == "no address of it now" else [first, second]), size=SIZE)
    assert_whole(to, body)
    assert [asked(seen) for seen in mirror.seen] == [(None, None)]


def test_where_all_mirrors_fail_the_first_says_why(site, to):
    site.troubles.append(Trouble(status=403))
    with pytest.raises(AccessError) as error:
        get(to, f"{site.url}/first", f"{site.url}/second")
    assert "first refuses (403)" in refusal(error)
    assert "(1 more failed, the last: " in refusal(error)
    assert_nothing(to)


@pytest.mark.parametrize(
    ("trouble", "kind", "words"),
    [
        (Trouble(status=401), AccessError, r"refuses \(401\); fetch it in a browser, and put it here: "),
        (Trouble(status=403), AccessError, r"refuses \(403\); fetch it in a browser, and put it here: "),
        (Trouble(status=404), HubError, r"is gone \(404\), its site may have moved it"),
        (Trouble(status=410), HubError, r"is gone \(410\)"),
        (Trouble(status=202), HubError, r"answered 202, expected the file"),
        (Trouble(status=400), HubError, r"answered 400, expected the file"),
        (Trouble(status=206), HubError, r"answered 206, expected the file"),
        (Trouble(status=503), HubError, r"answered 503; what came is kept: run the same again later"),
        (
            Trouble(status=429, headers={"Retry-After": "3600"}),
            HubError,
            r"answered 429 and asks to wait 3600 s; what came is kept: run the same again later",
        ),
        (Trouble(headers={"Content-Encoding": "gzip"}), HubError, "sends it compressed, which zoo did not ask for"),
        (Trouble(headers={"Content-Type": "text/html; charset=utf-8"}), AccessError, "a web page in the place of"),
        (Trouble(headers={"Content-Length": None}), HubError, "does not say how long the file is"),
    ],
)
def test_an_answer_that_is_not_the_file_is_one_line_with_a_remedy(site, to, monkeypatch, trouble, kind, words):
    slept: list[float] = []
    monkeypatch.setattr(module.time, "sleep", slept.append)
    site.always = trouble
    with pytest.raises(kind, match=words) as error:
        get(to, site.put(content()))
    refusal(error)
    assert_nothing(to)
    assert len(site.seen) == (4 if trouble.status == 503 else 1)
    assert sum(slept) == 0


def test_a_server_that_asks_for_a_moment_gets_it(site, to):
    body = content()
    site.troubles.append(Trouble(status=429, headers={"Retry-After": "1"}))
    started = time.monotonic()
    get(to, site.put(body))
    assert_whole(to, body)
    assert time.monotonic() - started > 0.9


def test_no_server_at_all_is_one_line(to, site, monkeypatch):
    monkeypatch.setattr(module, "PAUSES", ())
    with pytest.raises(
        HubError, match=r"^http://127.0.0.1:1/file cannot be reached \(.*refused\); check the network.*here: "
    ) as e:
        get(to, "http://127.0.0.1:1/file")
    refusal(e)
    assert_nothing(to)


def test_without_the_package_it_is_named(site, to, monkeypatch):
    monkeypatch.setitem(sys.modules, "requests", None)
    with pytest.raises(MissingPackageError, match="run: pip install requests"):
        get(to, site.put(content()))
    assert_nothing(to)


def test_another_size_than_expected_is_refused_before_it_comes(site, to):
    with pytest.raises(IntegrityError, match=rf"announces {SIZE:,} bytes, expected 7: it has another file now"):
        get(to, site.put(content()), size=7)
    assert_nothing(to)


def test_more_than_announced_is_refused(site, to):
    site.always = Trouble(chunked=True, more=10)
    with pytest.raises(HubError, match=rf"sends more than the {SIZE:,} bytes that it announced"):
        get(to, site.put(content()), size=SIZE)
    assert_nothing(to)


def test_an_end_that_comes_too_early_is_none(site, to):
    site.always = Trouble(chunked=True)
    with pytest.raises(HubError, match=r"ended after 300,000 of 400,000 bytes; what came is kept"):
        get(to, site.put(content(300_000), ranges=False), size=SIZE)
    assert not to.exists()


@pytest.mark.parametrize("size", [None, SIZE])
def test_a_file_in_chunks_has_its_end(site, to, size):
    body = content()
    site.troubles.extend([Trouble(chunked=True, cut=100_000), Trouble(chunked=True)])
    get(to, site.put(body), size=size)
    assert_whole(to, body)


def test_a_wrong_file_of_a_publisher_is_never_there(site, to):
    right, wrong = content(), content(seed=1)
    url = site.put(wrong)
    with pytest.raises(IntegrityError, match=r"gave a file with md5 \w{32}, expected \w{32} as published; run"):
        get(to, url, digest=published(right))
    assert_nothing(to)
    get(to, url, site.put(right, "second"), digest=published(right))
    assert_whole(to, right)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_file_that_differs_at_third_hand_is_kept_until_the_user_knows(site, to, chunked):
    site.always = Trouble(chunked=chunked)
    body = content()
    url = site.put(body)
    for _ in range(2):
        with pytest.raises(IntegrityError, match=r"a digest that zoo has from third hand alone.*--accept-digest") as e:
            get(to, url, digest=published(content(seed=1), "index"))
        refusal(e)
        assert not to.exists()
    assert len(site.seen) == 1
    get(to, url)
    assert_whole(to, body)
    assert len(site.seen) == 1


def room(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12 - free, free))


@pytest.mark.parametrize("known", [True, False])
def test_no_room_is_said_before_the_file_comes(site, to, monkeypatch, known):
    room(monkeypatch, SIZE - 1)
    with pytest.raises(ConfigError, match=r"has room for 0\.0 GB, 0\.0 GB of file\.npz are to come; make room"):
        get(to, site.put(content()), size=SIZE if known else None)
    assert_nothing(to)
    assert len(site.seen) == (0 if known else 1)


def test_what_is_there_already_needs_no_room(site, to, monkeypatch):
    body = content()
    url = site.put(body)
    cut_after(site, to, url, 300_000)
    room(monkeypatch, 99_999)
    with pytest.raises(ConfigError, match="make room"):
        get(to, url)
    room(monkeypatch, 100_000)
    get(to, url)
    assert_whole(to, body)


def test_two_processes_do_not_fetch_one_file(site, to):
    body = content()
    to.parent.mkdir()
    with part_of(to).open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match=r"another process fetches .*file\.npz; wait for it"):
            get(to, site.put(body))
    get(to, site.put(body))
    assert_whole(to, body)


def test_a_server_for_browsers_is_asked_as_by_one(site, to):
    get(to, site.put(content()), browser=True)
    assert site.seen[0].headers["user-agent"].startswith("Mozilla/5.0 ")


def test_a_link_that_leads_elsewhere_is_followed_with_its_range(site, to):
    body = content()
    real = site.put(body, "real")
    url = f"{site.url}/link"
    moved = Trouble(status=302, headers={"Location": real})
    site.troubles.extend([moved, Trouble(cut=100_000), moved])
    get(to, url)
    assert_whole(to, body)
    assert site.sent < SIZE + 100


def test_the_digest_is_that_of_the_bytes(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(content(3 << 20))
    assert digest_of(path, progress=False).hex == hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest_of(path, "md5", progress=False).hex == hashlib.md5(path.read_bytes()).hexdigest()


_CHILD = """
import sys
from pathlib import Path
from zoo.data.download import download
download([sys.argv[1]], Path(sys.argv[2]), progress=False)
"""


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.002)


def test_killed_in_the_middle_it_goes_on(site, to):
    body = content()
    url = site.put(body)
    site.troubles.append(Trouble(cut=210_000, silent=20.0))
    child = subprocess.Popen([sys.executable, "-c", _CHILD, url, str(to)])
    try:
        wait_for(lambda: part_of(to).exists() and part_of(to).stat().st_size >= 3 * 65_536)
        with pytest.raises(ConfigError, match="another process fetches"):
            get(to, url)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert not to.exists()
    get(to, url)
    assert_whole(to, body)
    assert 0 < int(site.seen[-1].headers["range"].removeprefix("bytes=").removesuffix("-")) <= 210_000
    assert site.sent <= SIZE + 65_536
