"""Where hubs are, and where what was fetched from each is kept: one folder a hub, never two hubs in one."""

import hashlib
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from zoo.errors import ConfigError, UnknownNameError
from zoo.files import cache_root
from zoo.naming import parse_path, quoted

HUGGING_FACE = "https://huggingface.co"
_ADDRESS = re.compile(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+(:\d+)?|[A-Za-z0-9-]+:\d+")  # of a server, without its scheme
_PORTS = {"http": 80, "https": 443}
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*|[0-9a-f:.]*:[0-9a-f:.]*")
_PATH = re.compile(r"[A-Za-z0-9._~/-]*")
_LONGEST = 300  # characters of an address


def parse_hub(text: str) -> str | Path:
    """A URL, in its one normal form, or a folder. Raises ConfigError for a URL that no hub could have."""
    if "://" not in text:
        return _parse_folder(text)
    expected = "expected https://host[:port][/path] without user, query or fragment, or a folder such as ./hub"
    try:
        url = urlsplit(text)
        host, port = url.hostname or "", url.port
    except ValueError as error:
        raise ConfigError(f"hub {quoted(text)}: {quoted(str(error))}; {expected}") from error
    plain = re.fullmatch(r"[\x21-\x7e]+", text) and not re.search(r"[@?#]|//\[[vV]", text) and len(text) <= _LONGEST
    if not plain or url.scheme not in _PORTS or port == 0 or not _is_host(host) or not _is_path(url.path):
        raise ConfigError(f"hub {quoted(text)}; {expected}")
    host = f"[{host}]" if ":" in host else host
    return f"{url.scheme}://{host}{'' if port in (None, _PORTS[url.scheme]) else f':{port}'}{url.path.rstrip('/')}"


def _parse_folder(text: str) -> Path:
    try:
        folder = parse_path(text)
    except UnknownNameError as error:
        raise ConfigError(f"hub {error}") from error
    if _ADDRESS.fullmatch(text) and not folder.exists():
        raise ConfigError(f"hub {text!r}; for a server write https://{text}, for a folder ./{text}")
    return folder


def _is_host(host: str) -> bool:
    """Whether a name or an address of a host is one; four numbers with dots in between must each fit a byte."""
    numbers = host.split(".")
    if numbers[-1].isdigit() and (len(numbers) != 4 or not all(one.isdigit() and int(one) < 256 for one in numbers)):
        return False
    return len(host) <= 253 and bool(_HOST.fullmatch(host))


def _is_path(path: str) -> bool:
    return ".." not in path and bool(_PATH.fullmatch(path))


def cache_folder(endpoint: str) -> Path:
    """The folder of what was fetched from a hub."""
    return cache_root() / _folder_name(endpoint)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE, or TRANSFORMERS_OFFLINE which the client heeds as well, forbids requests."""
    said = (os.environ.get(name, "").upper() for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(text in ("1", "ON", "YES", "TRUE") for text in said)


def hub_title(endpoint: str) -> str:
    """The hub in messages."""
    return endpoint.removeprefix("https://") if endpoint == HUGGING_FACE else endpoint


def _folder_name(endpoint: str) -> str:
    """One name an endpoint, and one endpoint a name: legible, and told apart by a digest."""
    if endpoint == HUGGING_FACE:
        return "huggingface.co"
    legible = re.sub(r"[^A-Za-z0-9.-]+", "-", endpoint.partition("://")[2])[:60]
    return f"{legible}-{hashlib.sha256(endpoint.encode()).hexdigest()[:12]}"
