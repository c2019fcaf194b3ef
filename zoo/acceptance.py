"""Whose terms were accepted, and the texts of those that must be passed on with a student.

No text comes with zoo: it is fetched into the cache with the weights that are under it, or saved there by the user.
"""

import warnings
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field

from zoo.config import Config, read_json, write_json
from zoo.data.download import Advice, download
from zoo.errors import AccessError, ConfigError, HubError, LicenceError, ZooError, ZooWarning
from zoo.files import ELSEWHERE, cache_root, sha256_file, writing_to_cache
from zoo.hub.cache import is_offline
from zoo.licences import LICENCES, TERMS, Source, Terms
from zoo.naming import file_on_hub
from zoo.teachers import is_own

_LONGEST = 48 << 10  # bytes of a text: what a card has room for


class Acceptance(Config):
    """``licences/<family>/<engine>.json``: whose terms were accepted, and when."""

    name: str
    licence: str  # SPDX
    address: str  # of the page that describes it
    date: str
    text_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")  # of its text, where that was here


def restricts(licence: str) -> bool:
    """Whether terms must be accepted before a download: no commercial use, or terms that nobody else has."""
    terms = _terms(licence)
    return not terms.commercial or terms.hub == "other"


def describe_licence(licence: str) -> str:
    """What a licence is, for who is about to fetch."""
    terms = _terms(licence)
    use = "" if terms.commercial else ", no commercial use"
    return f"licence: {terms.spdx}, {terms.name}{use}: {terms.url}"


def check_accepted(name: str, licence: str, *, accept: bool, command: str) -> None:
    """Records that terms that restrict are accepted. Raises AccessError where they are not, and were not before.

    ``command`` accepts them. What was accepted of a licence of another name, or with another address, does not count.
    """
    if not restricts(licence) or _accepted(name, licence) is not None:
        return
    terms = _terms(licence)
    if not accept:
        use = (
            "has terms of its own" if terms.commercial else "allows no commercial use, of it or of what learns from it"
        )
        raise AccessError(
            f"{name} is under {terms.spdx}, which {use}; read {terms.url}, and to accept it run: {command}"
        )
    today = datetime.now(UTC).date().isoformat()
    _record(Acceptance(name=name, licence=licence, address=terms.url, date=today))


def _accepted(name: str, licence: str) -> Acceptance | None:
    """What is on record of a teacher under this licence; None where nothing is, or nothing that can be read."""
    try:
        found = read_json(Acceptance, _record_path(name))
    except ConfigError:
        return None
    return found if (found.name, found.licence, found.address) == (name, licence, _terms(licence).url) else None


def _record(accepted: Acceptance) -> None:
    path = _record_path(accepted.name)
    with writing_to_cache(path.parent):
        write_json(path, accepted)


def _record_path(name: str) -> Path:
    return cache_root() / "licences" / f"{name}.json"


def _terms(licence: str) -> Terms:
    """Raises LicenceError for a licence that zoo does not know."""
    if licence not in TERMS:
        raise LicenceError(f"licence {licence!r} is one whose terms zoo does not know; it knows {', '.join(LICENCES)}")
    return TERMS[licence]


# --- texts that students must repeat -------------------------------------------------------------------


def text_path(terms: Terms) -> Path:
    """Where the text of a licence is kept."""
    return cache_root() / "licences" / f"{terms.label}.txt"


def text_to_repeat(sources: Iterable[Source]) -> str | None:
    """The text that whoever passes on what came of these sources must pass on with it; None where there is none.

    It is one at most: terms that oblige to that are followed by themselves alone. Raises LicenceError where it is not
    here, or is another than was accepted.
    """
    texts = [_text_of(source) for source in sources if source.licence in TERMS and TERMS[source.licence].repeated]
    return texts[0] if texts else None


def _text_of(source: Source) -> str:
    terms = TERMS[source.licence]
    path, text = text_path(terms), _read_text(text_path(terms))
    fetch = f"run: zoo teachers fetch {source.name} --accept-licence"
    if text is None:
        what, fetched = ("teacher", not is_own(source.name)) if source.what == "teacher" else ("data set", False)
        lacking = f"which is not here; save {terms.text} as {path}{f', or {fetch}' if fetched else ''}"
        raise LicenceError(
            f"{what} {source.name} is under {terms.spdx}, whose text its students must repeat, and "
            f"{_no_text(terms) or lacking}"
        )
    accepted = _accepted(source.name, terms.spdx)
    if accepted is not None and accepted.text_sha256 not in (None, sha256_file(path)):
        raise LicenceError(
            f"{path} is not the text of {terms.spdx} that was accepted for {source.name}; remove it, and {fetch}"
        )
    return text


def _no_text(terms: Terms) -> str | None:
    """For a message: that another thing than a text was saved in its place; None where there is none, or nothing."""
    path = text_path(terms)
    if not path.is_file() or path.stat().st_size == 0 or _read_text(path) is not None:
        return None
    return (
        f"{path} is no text of {terms.spdx} (it is blank, not UTF-8, a web page, or more than {_LONGEST >> 10} KiB); "
        f"mend it, or save {terms.text} in its place"
    )


def _read_text(path: Path) -> str | None:
    """None where it is absent or empty, or where another thing than a text was saved in its place."""
    if not path.is_file() or path.stat().st_size > _LONGEST:
        return None
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError:
        return None
    return None if text.startswith("<") else text or None  # that would be a web page


def keep_text(name: str, licence: str, *, accept: bool, progress: bool) -> None:
    """The text of an accepted licence that students must repeat, fetched unless it is here; its digest is recorded.

    One that differs from what is on record takes its place where the user accepts it. Nothing that was saved is written
    over. Warns where that is no text, and where none can be fetched.
    """
    terms = _terms(licence)
    if accept:  # of weights that were put here by hand, too
        check_accepted(name, licence, accept=True, command="")
    accepted = _accepted(name, licence)
    if not terms.repeated or accepted is None:
        return
    problem = _no_text(terms) or _unfetched(terms, progress)
    if problem is not None:
        warnings.warn(f"the weights of {name} are here, but {problem}", ZooWarning, stacklevel=3)
        return
    if accept or accepted.text_sha256 is None:
        _record(accepted.model_copy(update={"text_sha256": sha256_file(text_path(terms))}))


def _unfetched(terms: Terms, progress: bool) -> str | None:
    """For a message: why a text cannot be fetched; None where it is here now."""
    path = text_path(terms)
    try:
        if _read_text(path) is None:
            _fetch_text(terms, path, progress)
    except ZooError as error:
        reason = str(error).partition("; ")[0]  # not its advice: the weights are here
        return f"not the text of {terms.spdx}, which students must repeat ({reason}); save {terms.text} as {path}"
    return None


def _fetch_text(terms: Terms, path: Path, progress: bool) -> None:
    """With the user's token where it is on a hub. Raises what ``download`` does, HubError for what is no text."""
    if is_offline():
        raise HubError("HF_HUB_OFFLINE is set")
    url, token = str(terms.text), None
    if (place := file_on_hub(url)) is not None:
        from zoo.hub.client import Client  # lazy: it imports the stock client

        token = Client(place.endpoint).token
    came = path.with_name(f"{path.name}.unchecked")
    with writing_to_cache(path.parent):
        download([url], came, progress=progress, name=terms.spdx, advice=Advice(path, ELSEWHERE), token=token)
        if _read_text(came) is None:
            came.unlink()
            raise HubError(f"{url} gave no text")
        came.replace(path)
