"""Rules under which the stock client waits for no server for ever, and believes none.

The client has one HTTP session for the whole process. While zoo speaks to a hub, ``guarded`` puts itself between that
session and the requests of its own thread, and of no other: every request has a timeout, every phase a time and a size
that it may take, the token goes to its own hub alone, headers that become names of files must be digests. What zoo asks
of the client must therefore be asked in the thread that called.
"""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

from huggingface_hub import close_session, constants, get_session
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import _http as client_http
from huggingface_hub.utils import httpx, logging, parse_ratelimit_headers

from zoo.errors import AccessError, HubError, UnknownNameError, ZooError
from zoo.hub.cache import HUGGING_FACE, hub_title

SLOWEST = 10_000  # bytes in a second that a transfer must reach on average
ANSWER_BYTES = 32 << 20  # that an answer other than a file may have

_DIGEST = re.compile(r'(W/)?"?([0-9a-f]{40}|[0-9a-f]{64})"?')
_RESOLVE = re.compile(r"/resolve/([^/]+)/")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TRANSIENT = (408, 429, 500, 502, 503, 504)
_LOCK = threading.Lock()
_GUARDS: dict[int, "Guard"] = {}  # of each thread that speaks to a hub
_BEFORE: dict[str, Any] = {}  # what of the client is put back


class TransientError(HubError):
    """A failure that may be gone when the same is tried again, after ``wait`` seconds where the hub said so."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class ConflictError(HubError):
    """Somebody else changed the repository, or took the name, in the meantime."""


class Guard:
    """The rules for every request to one hub."""

    def __init__(self, endpoint: str, token: str | None, timeout: float) -> None:
        self.endpoint = endpoint
        self.token = token
        self.timeout = timeout
        self.title = hub_title(endpoint)
        self._origin = httpx.URL(endpoint)
        self._what = ""  # the phase, for messages
        self._seconds = float("inf")  # that it may take
        self._left = 0  # bytes that it may still take
        self._expired = False

    @contextmanager
    def phase(self, what: str, *, seconds: float, size: int = ANSWER_BYTES) -> Iterator[None]:
        """One thing that is asked of the hub: within ``seconds`` and ``size`` bytes, its errors in zoo's words."""
        self._what, self._seconds, self._left, self._expired = what, seconds, size, False
        timer = threading.Timer(seconds, self._expire)
        timer.daemon = True
        timer.start()
        try:
            yield
        except ZooError:
            raise
        except Exception as error:
            raise self.told(error) from error
        finally:
            timer.cancel()

    def told(self, error: Exception) -> Exception:
        """What to say of a request that failed."""
        return self._too_slow() if self._expired else self.in_plain_words(error)

    def _expire(self) -> None:
        self._expired = True
        close_session()  # ends what still waits, and what trickles

    def check_request(self, request: Any) -> None:
        """Timeouts for all, the token for its hub alone, nothing compressed that no limit could hold."""
        if self._expired:
            raise self._too_slow()
        patience = self.timeout * (6 if request.method in ("POST", "PUT") else 1)  # a server checks what it is sent
        limits = {"connect": self.timeout, "read": patience, "write": patience, "pool": self.timeout}
        request.extensions["timeout"] = {name: min(limit, self._seconds) for name, limit in limits.items()}
        ours = self._is_ours(request.url)
        if not ours and self.token and self.token in request.headers.get("authorization", ""):
            del request.headers["authorization"]
        request.headers.pop("cookie", None)  # which a server may have left in the session for another
        if self.endpoint != HUGGING_FACE:
            request.headers["accept-encoding"] = "identity"

    def check_response(self, response: Any) -> None:
        if response.status_code in _TRANSIENT:
            raise self._busy(response)
        if self.endpoint != HUGGING_FACE and response.headers.get("content-encoding", "identity") != "identity":
            raise HubError(f"{self._from} sent a compressed answer, which zoo did not ask for; {_NO_HUB}")
        self._check_file_headers(response)
        if response.request.method != "HEAD":
            length = response.headers.get("content-length", "0")
            self._take(int(length) if length.isdigit() else 0, only_ask=True)
            response.stream = _Counted(response.stream, self._take)

    def _check_file_headers(self, response: Any) -> None:
        """What the client makes names of files from must be digests; files come by plain HTTP, which has limits.

        The client takes such headers from any answer to a HEAD, wherever redirects led it.
        """
        url = response.request.url
        where = _RESOLVE.search(url.raw_path.decode("ascii", "replace")) if self._is_ours(url) else None
        if response.status_code >= 400 or (where is None and response.request.method != "HEAD"):
            return
        for name in [name for name in response.headers if name.lower().startswith("x-xet-")]:
            del response.headers[name]
        if "xet" in response.headers.get("link", ""):
            del response.headers["link"]
        if self.endpoint != HUGGING_FACE:
            for name in ("etag", "x-linked-etag", "x-repo-commit"):
                value = response.headers.get(name)
                if value is not None and not _DIGEST.fullmatch(value):
                    raise HubError(f"{self._from} sent {name} {value[:60]!r}, expected a digest; {_NO_HUB}")
        asked, given = unquote(where[1]) if where else "", response.headers.get("x-repo-commit", "")
        if _COMMIT.fullmatch(asked) and given and given != asked:
            raise HubError(f"{self._from} sent commit {given[:12]} for {asked[:12]}; {_NO_HUB}")

    def _take(self, size: int, only_ask: bool = False) -> None:
        if self._expired:
            raise self._too_slow()
        if size > self._left:
            raise HubError(f"{self._from} sends more than it should; {_NO_HUB}")
        self._left -= 0 if only_ask else size

    def _is_ours(self, url: Any) -> bool:
        return bool((url.scheme, url.host, url.port) == (self._origin.scheme, self._origin.host, self._origin.port))

    def _busy(self, response: Any) -> TransientError:
        limit, stated = parse_ratelimit_headers(response.headers), response.headers.get("retry-after", "")
        wait = float(stated) if stated.isdigit() and len(stated) < 10 else None
        if response.status_code == 429 and limit is not None and limit.remaining == 0:
            wait = float(limit.reset_in_seconds)
        asks = f" and asks to wait {wait:.0f} s" if wait else ""
        return TransientError(f"{self._from} answered {response.status_code}{asks}; try again later", wait)

    def _too_slow(self) -> TransientError:
        return TransientError(f"{self._from} did not finish within {self._seconds:.3g} s; {_SLOW}")

    @property
    def _from(self) -> str:
        """What is asked of whom, as messages begin."""
        return f"{self._what}: {self.title}"

    def in_plain_words(self, error: Exception) -> Exception:
        """The client's errors as zoo's; an error of this machine, such as a full disk, as it is."""
        while type(error) in (LocalEntryNotFoundError, RuntimeError) and isinstance(error.__cause__, Exception):
            error = error.__cause__  # why it was not downloaded, or not uploaded
        if isinstance(error, RevisionNotFoundError):
            return UnknownNameError(f"{self._from} has no such revision")
        if isinstance(error, GatedRepoError):
            return AccessError(
                f"{self._what}: accept the terms at {self._page(error)}; {self._login('lacks the right')}"
            )
        if isinstance(error, HfHubHTTPError):
            return self._refusal(error)
        if isinstance(error, httpx.HTTPError | httpx.InvalidURL | OfflineModeIsEnabled):
            return self._no_answer(error)
        if type(error) is ValueError and str(error).startswith("Invalid metadata"):  # of the card, says the hub
            return HubError(f"{self._from} refuses what was sent: {_one_line(error)}")
        if isinstance(error, _UNREADABLE) or (type(error) is OSError and error.errno is None):  # a wrong size
            return HubError(f"{self._from} answered what zoo cannot read ({_one_line(error)}); {_NO_HUB}")
        return error

    def _no_answer(self, error: Exception) -> TransientError:
        if isinstance(error, httpx.TimeoutException):
            return TransientError(f"{self._from} gave no answer in time; {_SLOW}")
        reason = _one_line(_root(error))
        return TransientError(f"{self._from} cannot be reached ({reason}); {_mirror() or _UNREACHABLE}")

    def _refusal(self, error: HfHubHTTPError) -> ZooError:
        status = error.response.status_code
        if status in (409, 412):
            return ConflictError(f"{self._from} answered {status}: it was changed in the meantime")
        if isinstance(error, RepositoryNotFoundError) and status == 404:
            return AccessError(f"{self._from} has no such repository, or hides it; {self._login('lacks the right')}")
        said = _one_line(error.server_message or "no reason given")
        if isinstance(error, RepositoryNotFoundError) or status in (401, 403):
            fault = "is not known there" if status == 401 else "may lack the right"
            return AccessError(f"{self._from} refuses ({status}, {said}); {self._login(fault)}")
        if status in (400, 422):
            return HubError(f"{self._from} refuses what was sent: {said}")
        return HubError(f"{self._from} answered {status} ({said}); {_NO_HUB}")

    def _page(self, error: HfHubHTTPError) -> str:
        """The address of the repository for people."""
        path = error.response.request.url.path.removeprefix(self._origin.path.rstrip("/"))
        owner_and_name = path.removeprefix("/api/models").strip("/").split("/")[:2]
        return _one_line("/".join([self.endpoint, *owner_and_name]))

    def _login(self, fault: str) -> str:
        return f"{f'your token {fault}' if self.token else 'no token is set'}; {remedy_of(self.endpoint)}"


_UNREADABLE = (
    *(FileMetadataError, HFValidationError),
    *(ValueError, KeyError, TypeError, AttributeError, RecursionError),
)
_NO_HUB = "is it a hub, or a proxy in front of one? see the address in ZOO_HUB or --hub"
_SLOW = "try again later, or give it more time with ZOO_HUB_TIMEOUT=60 (seconds)"
_UNREACHABLE = "check the network and the address; HF_HUB_OFFLINE=1 uses what was fetched before"


@contextmanager
def guarded(guard: Guard) -> Iterator[None]:
    """Puts the requests that this thread makes in the block under the rules of ``guard``; blocks are not nested."""
    with _LOCK:
        if not _GUARDS:
            _install()
        _GUARDS[threading.get_ident()] = guard
    try:
        yield
    finally:
        with _LOCK:
            del _GUARDS[threading.get_ident()]
            if not _GUARDS:
                _remove()


def _install() -> None:
    """Between the session that there is, and those to come, and their requests. No session of others is closed."""
    factory = client_http._GLOBAL_CLIENT_FACTORY
    client_http._GLOBAL_CLIENT_FACTORY = ours = lambda: _attach(factory())
    _BEFORE.update(factory=factory, ours=ours, xet=constants.HF_HUB_DISABLE_XET, verbosity=logging.get_verbosity())
    session = get_session()
    if "send" not in vars(session):
        _attach(session)
    constants.HF_HUB_DISABLE_XET = True  # a listing of files could ask for it
    logging.set_verbosity_error()  # zoo says itself what went wrong


def _remove() -> None:
    constants.HF_HUB_DISABLE_XET = _BEFORE["xet"]
    logging.set_verbosity(_BEFORE["verbosity"])
    if client_http._GLOBAL_CLIENT_FACTORY is _BEFORE["ours"]:
        client_http._GLOBAL_CLIENT_FACTORY = _BEFORE["factory"]
    _detach(get_session())


def _attach(session: Any) -> Any:
    """A session of the client, as the user's program makes it, whose requests look for the guard of their thread."""
    hooks = session.event_hooks
    session.event_hooks = {
        "request": [*hooks.get("request", ()), _check_request],
        "response": [*hooks.get("response", ()), _check_response],
    }
    send = session.send

    def send_once(request: Any, **how: Any) -> Any:
        """The client would try five times more, with pauses, whatever the failure is."""
        guard = _GUARDS.get(threading.get_ident())
        try:
            return send(request, **how)
        except httpx.TransportError as error:
            if guard is None:
                raise
            raise guard.told(error) from error

    session.send = send_once
    return session


def _detach(session: Any) -> None:
    ours = (_check_request, _check_response)
    session.event_hooks = {
        name: [hook for hook in hooks if hook not in ours] for name, hooks in session.event_hooks.items()
    }
    vars(session).pop("send", None)


def _check_request(request: Any) -> None:
    guard = _GUARDS.get(threading.get_ident())
    if guard is not None:
        guard.check_request(request)


def _check_response(response: Any) -> None:
    guard = _GUARDS.get(threading.get_ident())
    if guard is not None:
        guard.check_response(response)


class _Counted(httpx.SyncByteStream):
    """The body of an answer, as it comes, while ``take`` allows it."""

    def __init__(self, stream: Any, take: Any) -> None:
        self._stream = stream
        self._take = take

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            self._take(len(chunk))
            yield chunk

    def close(self) -> None:
        self._stream.close()


def remedy_of(endpoint: str) -> str:
    """How to give a hub a token."""
    own = endpoint == HUGGING_FACE
    return "run: hf auth login, or set HF_TOKEN" if own else "set ZOO_HUB_TOKEN to a token of that hub"


def _mirror() -> str | None:
    """Advice for who told the client, which zoo does not ask, of another server."""
    mirror, known = os.environ.get("HF_ENDPOINT"), (None, "", HUGGING_FACE)
    ours = os.environ.get("ZOO_HUB")
    return None if ours or mirror in known else f"zoo does not read HF_ENDPOINT; for that server set ZOO_HUB={mirror}"


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _one_line(error: BaseException | str) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(letter for letter in text if letter.isprintable())[:200]
