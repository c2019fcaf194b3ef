"""A file from the web: it goes on where it was cut, is refused where it is another, and is there whole or not at all.

While it comes it is ``NAME.part``, and ``NAME.part.json`` says what it is the beginning of. The process that fetches it
holds a lock on the part. Where the publisher's digest vouches for the whole, another address can go on with the part.
"""

import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from zoo.config import Config, read_json, write_json
from zoo.data.sources import Digest
from zoo.errors import AccessError, ConfigError, HubError, IntegrityError, MissingPackageError, ZooError
from zoo.files import sync
from zoo.naming import quoted
from zoo.version import __version__

CONNECT = 10.0  # seconds until a server must have answered
SILENCE = 30.0  # seconds without a byte, after which a transfer is cut
PAUSES = (1.0, 3.0, 10.0)  # seconds before the tries that follow one that brought nothing
WORTH = 1 << 20  # bytes that a try must bring, or it brought nothing

_LONGEST_WAIT = 30.0  # seconds that a server may ask for
_BLOCK = 1 << 16
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_AGENT = f"mlff-zoo/{__version__}"
_BROWSER = f"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0 {_AGENT}"
_AGAIN = "what came is kept: run the same again"


@dataclass(frozen=True)
class Advice:
    """What a user is told to do."""

    place: Path  # of a copy that was fetched by hand
    elsewhere: str = "choose another folder with --to"
    refused: str | None = None  # where a server refuses, if a copy by hand would not help


def download(
    urls: Sequence[str],
    to: Path,
    *,
    size: int | None = None,
    digest: Digest | None = None,
    progress: bool = True,
    browser: bool = False,
    name: str = "NAME",
    advice: Advice | None = None,
    token: str | None = None,
) -> Path:
    """The file at the first of ``urls`` that gives it, as ``to``, with this size and digest where they are given.

    A part that an earlier call left is gone on with, if the server still has the same file, and is not given up for an
    address that would begin anew. ``name`` is what ``zoo data fetch`` calls the file; ``advice`` is for messages about
    files that something else fetches. A token is for the host of the address alone, wherever that leads. Raises
    HubError and AccessError where no server gives it, IntegrityError where what they give is another file, ConfigError
    where there is no room or another process fetches it.
    """
    job = _Job(to, size, digest, progress, _BROWSER if browser else _AGENT, name, advice or Advice(to), token)
    to.parent.mkdir(parents=True, exist_ok=True)
    with _claimed(job) as part:
        _check_room(part, size, job)
        _from_any(part, urls, job)
        if digest is not None and digest.seen != "publisher":
            check_digest(part.path, digest, progress=progress, name=name)
        part.finish(to)
    return to


def check_digest(path: Path, digest: Digest, *, progress: bool = True, name: str = "NAME") -> None:
    """Raises IntegrityError where a file is not what a digest says."""
    found = digest_of(path, digest.algorithm, progress=progress)
    if found.hex != digest.hex:
        remedy = _REMEDIES[digest.seen].format(path=path, name=name)
        raise IntegrityError(f"{path} has {found}, expected {digest.hex}, {remedy}")


_REMEDIES = {
    "publisher": "as published; remove {path}, and run: zoo data fetch {name}",
    "index": "a digest that zoo has from third hand alone; compare it with the one its site states, then take the file "
    "with: zoo data fetch {name} --accept-digest, or remove {path}",
    "here": "which was recorded here on first use; if its site has a new version, take it with: zoo data fetch {name} "
    "--accept-digest, else remove {path} and fetch it again",
}


def digest_of(path: Path, algorithm: str = "sha256", *, progress: bool = True) -> Digest:
    """The digest of a file, read as a stream."""
    content = hashlib.new(algorithm, usedforsecurity=False)
    total = path.stat().st_size
    with path.open("rb") as stream, _bar(f"checking {path.name}", total, 0, progress) as bar:
        while block := stream.read(1 << 20):
            content.update(block)
            bar.update(len(block))
    return Digest.model_validate({"algorithm": algorithm, "hex": content.hexdigest(), "seen": "here"})


@dataclass(frozen=True)
class _Job:
    to: Path
    size: int | None
    digest: Digest | None
    progress: bool
    agent: str
    name: str
    advice: Advice
    token: str | None


class _CutError(HubError):
    """A try that was cut, or a server that was busy: the next may go on, after ``wait`` seconds if the server said."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class _GoneError(HubError):
    """An address that has the file no more."""


class Origin(Config):
    """``NAME.part.json``: what a part is the beginning of."""

    url: str  # that it goes on from
    validator: str | None  # a strong ETag, else Last-Modified, as If-Range takes it
    total: int | None  # bytes
    stitched: bool = False  # it began at another address


class _Part:
    """The beginning of a file, held by this process alone."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path = path
        self.size = path.stat().st_size
        self._stream = stream
        self._record = path.with_name(f"{path.name}.json")
        self.origin = self._read_origin()
        self.lost = False  # its address did not go on with it

    @property
    def whole(self) -> bool:
        return self.origin is not None and self.origin.total == self.size

    def begin(self, origin: Origin) -> None:
        """From nothing: the part is emptied before its origin changes, so that a kill never mixes two files."""
        self._stream.truncate(0)
        self.lost &= self.origin is not None and self.origin.url == origin.url
        self.size, self.origin = 0, origin
        write_json(self._record, origin)

    def go_on_from(self, origin: Origin) -> None:
        self.lost = False
        if origin != self.origin:
            self.origin = origin
            write_json(self._record, origin)

    def append(self, block: bytes) -> None:
        self._stream.write(block)
        self._stream.flush()
        self.size += len(block)

    def end(self) -> None:
        """Notes that all has come, where nobody had said how much it is."""
        if self.origin is not None and self.origin.total is None:
            self.origin = self.origin.model_copy(update={"total": self.size})
            write_json(self._record, self.origin)

    def discard(self) -> None:
        self._stream.truncate(0)
        self.size, self.origin = 0, None
        self._record.unlink(missing_ok=True)

    def finish(self, to: Path) -> None:
        sync(self.path)
        self.path.replace(to)
        sync(to.parent)
        self._record.unlink(missing_ok=True)

    def _read_origin(self) -> Origin | None:
        try:
            return read_json(Origin, self._record)
        except ConfigError:  # none, or not whole
            return None


@contextmanager
def _claimed(job: _Job) -> Iterator[_Part]:
    """The part of a file, which no other process writes to. Raises ConfigError where one does."""
    to = job.to
    path = to.with_name(f"{to.name}.part")
    with path.open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another process fetches {to}; wait for it, or {job.advice.elsewhere}") from error
        except OSError:  # a file system without locks
            pass
        if not path.exists() or not os.path.samestat(os.fstat(stream.fileno()), path.stat()):
            raise ConfigError(f"another process has just fetched {to}; run the same again")
        part = _Part(path, stream)
        try:
            yield part
        finally:
            if part.size == 0:
                part.discard()
                path.unlink(missing_ok=True)


def _from_any(part: _Part, urls: Sequence[str], job: _Job) -> None:
    """Brings a part to its end from the first address that can, beginning with the one it began with."""
    begun = [part.origin.url] if part.origin and part.origin.url in urls else []
    part.lost = not begun
    refusals: list[ZooError] = []
    for url in dict.fromkeys([*begun, *urls]):
        try:
            _from_one(part, url, job)
        except (HubError, AccessError, IntegrityError) as error:
            refusals.append(error)
            part.lost |= isinstance(error, _GoneError) and part.origin is not None and part.origin.url == url
        else:
            return
    last = f" ({len(refusals) - 1} more failed, the last: {refusals[-1]})" if len(refusals) > 1 else ""
    raise type(refusals[0])(f"{refusals[0]}{last}") from refusals[-1]


def _from_one(part: _Part, url: str, job: _Job) -> None:
    """Brings a part to its end from one address, in as many tries as bring something."""
    best = failures = 0
    while True:
        best = max(best, part.size)
        try:
            _try_once(part, url, job)
            break
        except _CutError as error:
            failures = 0 if part.size >= best + WORTH else failures + 1
            if failures > len(PAUSES) or error.wait > _LONGEST_WAIT:
                raise
            time.sleep(max(error.wait, PAUSES[max(failures - 1, 0)]))
    if job.digest is not None and job.digest.seen == "publisher":
        _check_whole(part, url, job, job.digest)


def _check_whole(part: _Part, url: str, job: _Job, digest: Digest) -> None:
    """A part of two addresses that is wrong comes anew from one. Raises IntegrityError where that is wrong, too."""
    found = digest_of(part.path, digest.algorithm, progress=job.progress)
    if found.hex == digest.hex:
        return
    stitched = part.origin is not None and part.origin.stitched
    part.discard()
    if not stitched:
        raise IntegrityError(
            f"{url} gave a file with {found}, expected {digest.hex} as published; run the same again, or "
            f"{_by_hand(job)}"
        )
    _from_one(part, url, job)


def _try_once(part: _Part, url: str, job: _Job) -> None:
    if part.whole and part.origin is not None and part.origin.url == url and job.size in (None, part.size):
        return
    offset = _resumable(part, url, job)
    if not offset:
        _check_kept(part, url, job)
    headers = {"User-Agent": job.agent, "Accept": "*/*", "Accept-Encoding": "identity"}
    if job.token is not None:
        headers["Authorization"] = f"Bearer {job.token}"
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if part.origin is not None and part.origin.url == url and part.origin.validator is not None:
            headers["If-Range"] = part.origin.validator
    with _asked(url, headers, job) as response:
        if response.status_code == 416:  # the file is shorter than the part
            _check_kept(part, url, job)
            part.discard()
        _check_answer(response, url, job)
        if response.status_code == 206:
            _go_on(part, response, url, job)
        else:
            part.lost |= offset > 0 and part.origin is not None and part.origin.url == url
            _begin(part, response, url, job)
        _check_room(part, part.origin.total if part.origin else None, job)
        _receive(part, response, url, job)


def _resumable(part: _Part, url: str, job: _Job) -> int:
    """Bytes that need not come again; none where nobody could tell whether the rest is of the same file."""
    origin = part.origin
    if origin is None or (origin.validator is None and job.digest is None):
        return 0
    if origin.url != url and (job.digest is None or job.digest.seen != "publisher"):
        return 0
    return part.size if origin.total is None or part.size < origin.total else 0


def _begin(part: _Part, response: Any, url: str, job: _Job) -> None:
    """A whole file is announced. Raises IntegrityError where it is of another size, HubError where a part is kept."""
    stated = response.headers.get("Content-Length", "")
    total = int(stated) if stated.isdigit() else None
    if total is not None and job.size not in (None, total):
        raise IntegrityError(
            f"{url} announces {total:,} bytes, expected {job.size:,}: it has another file now; fetch the right one by "
            f"hand to {job.advice.place}"
        )
    total = total or job.size
    if total is None and response.headers.get("Transfer-Encoding", "").lower() != "chunked":
        raise HubError(f"{url} does not say how long the file is, so that nobody would see it cut; {_by_hand(job)}")
    _check_kept(part, url, job)
    part.begin(Origin(url=url, validator=_validator(response), total=total))


def _check_kept(part: _Part, url: str, job: _Job) -> None:
    """Raises HubError where to begin at this address throws away what another one can go on with."""
    origin = part.origin
    if origin is None or origin.url == url or part.lost or part.size < WORTH:
        return
    if (origin.validator is not None or job.digest is not None) and job.size in (None, origin.total):
        raise HubError(
            f"{url} cannot go on with the {part.size:,} bytes that came from {origin.url}; to begin anew, remove "
            f"{part.path}"
        )


def _go_on(part: _Part, response: Any, url: str, job: _Job) -> None:
    """The rest of a file is announced. Raises _CutError, without the part, where it is of another file.

    HubError, with it, where another address can go on.
    """
    found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    origin, validator = part.origin, _validator(response)
    start, total = (int(found[1]), found[2]) if found else (-1, "*")
    other = origin is not None and origin.url != url
    same = origin is not None and (other or validator is None or validator == origin.validator)
    fits = origin is not None and (total == "*" or origin.total in (None, int(total)))
    if origin is None or not same or not fits or start != part.size:
        _check_kept(part, url, job)
        part.discard()
        raise _CutError(f"{url} goes on with another file than what came is of; run the same again")
    whole = origin.total if total == "*" else int(total)
    part.go_on_from(Origin(url=url, validator=validator, total=whole, stitched=True) if other else origin)


def _receive(part: _Part, response: Any, url: str, job: _Job) -> None:
    total = part.origin.total if part.origin else None
    with _bar(job.advice.place.name, total, part.size, job.progress) as bar:
        for block in _blocks(response, url):
            if total is not None and part.size + len(block) > total:
                part.discard()
                raise HubError(f"{url} sends more than the {total:,} bytes that it announced; {_by_hand(job)}")
            part.append(block)
            bar.update(len(block))
    if total is not None and part.size < total:
        raise _CutError(f"{url} ended after {part.size:,} of {total:,} bytes; {_AGAIN}")
    part.end()


@contextmanager
def _asked(url: str, headers: dict[str, str], job: _Job) -> Iterator[Any]:
    """The answer of a server, whose body is still to come. Raises MissingPackageError, HubError."""
    try:
        import requests  # optional: what reads data that are here needs no network
    except ImportError as error:
        raise MissingPackageError("files are fetched with requests; run: pip install requests") from error
    with requests.Session() as session:
        session.auth = (lambda asked: asked) if "Authorization" in headers else None  # else a .netrc would replace it
        try:
            response = session.get(url, headers=headers, stream=True, timeout=(CONNECT, SILENCE))
        except (requests.ConnectionError, requests.Timeout) as error:
            hint = f"{_AGAIN}, or first put a copy of it here: {job.advice.place}"
            raise _CutError(f"{url} cannot be reached ({_reason(error)}); check the network, {hint}") from error
        except requests.RequestException as error:
            raise HubError(f"{url} cannot be asked ({_reason(error)})") from error
        with response:
            yield response


def _blocks(response: Any, url: str) -> Iterator[bytes]:
    """The body as it comes. Raises _CutError where the connection breaks or is silent."""
    from urllib3.exceptions import HTTPError  # comes with requests

    try:
        yield from response.raw.stream(_BLOCK, decode_content=False)
    except HTTPError as error:
        raise _CutError(f"{url} was cut ({_reason(error)}); {_AGAIN}") from error


def _check_answer(response: Any, url: str, job: _Job) -> None:
    """Raises HubError and AccessError for any answer that is not the file as it is."""
    status, headers = response.status_code, response.headers
    if status in (401, 403):
        raise AccessError(f"{url} refuses ({status}); {job.advice.refused or _by_hand(job)}")
    if status in (404, 410):
        raise _GoneError(f"{url} is gone ({status}), its site may have moved it; {_by_hand(job)}")
    if status in (408, 416, 429) or status >= 500:
        stated = headers.get("Retry-After", "")
        wait = float(stated) if stated.isdigit() and len(stated) < 10 else 0.0
        asks = f" and asks to wait {wait:.0f} s" if wait else ""
        raise _CutError(f"{url} answered {status}{asks}; {_AGAIN} later", wait)
    if status not in (200, 206) or (status == 206 and "Range" not in response.request.headers):
        raise HubError(f"{url} answered {status}, expected the file; {_by_hand(job)}")
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise HubError(f"{url} sends it compressed, which zoo did not ask for; {_by_hand(job)}")
    if headers.get("Content-Type", "").lower().startswith("text/html"):
        raise AccessError(f"{url} gives a web page in the place of the file; {_by_hand(job)}")


def _by_hand(job: _Job) -> str:
    return f"fetch it in a browser, and put it here: {job.advice.place}"


def _validator(response: Any) -> str | None:
    """What tells one version of a file from another; a weak ETag cannot."""
    etag = response.headers.get("ETag", "")
    found = etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
    return found if found.isprintable() and 0 < len(found) < 200 else None


def _check_room(part: _Part, total: int | None, job: _Job) -> None:
    """Raises ConfigError where what is still to come does not fit on the disk."""
    missing, free = (total or 0) - part.size, shutil.disk_usage(part.path.parent).free
    if missing > free:
        raise ConfigError(
            f"{part.path.parent} has room for {free / 1e9:.1f} GB, {missing / 1e9:.1f} GB of "
            f"{job.advice.place.name} are to come; make room there, or {job.advice.elsewhere}"
        )


def _bar(what: str, total: int | None, done: int, progress: bool) -> Any:
    return tqdm(total=total, initial=done, desc=what, unit="B", unit_scale=True, delay=1, disable=not progress)


def _reason(error: BaseException) -> str:
    """The innermost reason of a failure, without the objects that its message names."""
    while error.__context__ is not None:
        error = error.__context__
    text = " ".join(str(error).split()) or type(error).__name__
    return quoted(text)[1:-1]
