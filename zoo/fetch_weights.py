"""Weights of teachers brought here: fetched from where they are published, once their terms are accepted, or added.

A file gets its name when its size and digest are right; until then what came of it is kept, and gone on with.
"""

import fcntl
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ase.data import chemical_symbols
from tqdm import tqdm

from zoo.acceptance import check_accepted, describe_licence, keep_text
from zoo.config import write_json
from zoo.data.download import Advice, download
from zoo.errors import (
    AccessError,
    ConfigError,
    HubError,
    IntegrityError,
    UnknownNameError,
    ZooError,
)
from zoo.files import ELSEWHERE, replacing, sha256_file, writing_to_cache
from zoo.hub.cache import is_offline
from zoo.hub.catalogue import entries
from zoo.licences import LICENCES, TERMS
from zoo.naming import file_on_hub, quoted
from zoo.teachers import FAMILIES, absent, load_teacher, weights_of
from zoo.teachers.families import family_of
from zoo.teachers.weights import (
    FACTS,
    OwnTeacher,
    Record,
    Weights,
    accepting,
    check_weights,
    compare,
    copies,
    is_own,
    own_teacher,
    read_record,
    record_path,
    weights_due,
    weights_folder,
    weights_path,
)

_UNCHECKED = ".unchecked"  # after the name of a file whose digest is still to be looked at


def fetch_weights(
    name: str, *, accept_licence: bool = False, accept_digest: str | None = None, progress: bool = True
) -> Path:
    """The file of weights of a teacher, fetched unless it is here.

    Its licence is shown on stderr before, unless ``progress`` is False; one that restricts must be accepted, once.
    ``accept_digest`` (``sha256:<hex>``) is what the file must be from now on, in the place of a digest from third hand
    or of an earlier download, never of one that is published. A text that students must repeat comes with the weights;
    where it cannot be fetched, a warning says what to do. Raises UnknownNameError for a name without weights to
    fetch, AccessError where terms are not accepted or a token is missing, HubError, IntegrityError,
    MissingPackageError, ConfigError.
    """
    weights, licence = _accepted_by_user(name, _weights_of(name), accept_digest), licence_of(name)
    path = _fetch(name, weights, licence, accept_licence, progress)
    keep_text(name, licence, accept=accept_licence, progress=progress)
    return path


def _fetch(name: str, weights: Weights, licence: str, accept_licence: bool, progress: bool) -> Path:
    path = weights_path(name, weights)
    with writing_to_cache(path.parent):
        if (here := next(copies(name, weights), None)) is not None:
            return _kept(here, name, weights)
        if is_offline():
            raise HubError(
                f"HF_HUB_OFFLINE is set, and the weights of {name} are not here; unset it, or put a copy of "
                f"{weights.url} here: {path}, and run the same again"
            )
        if progress:
            tqdm.write(f"{weights.url}\n{describe_licence(licence)}", file=sys.stderr)
        check_accepted(name, licence, accept=accept_licence, command=f"zoo teachers fetch {name} --accept-licence")
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path):
            if path.is_file():  # another process has fetched it just now
                return _kept(path, name, weights)
            bring = _from_hub if weights.gated is not None else _from_web
            bring(path, name, weights_due(path, name, weights), progress)
            return path


def licence_of(name: str) -> str:
    """SPDX of the weights of a teacher of the catalogue. Raises UnknownNameError."""
    entry = entries().get(name)
    if entry is None:
        raise UnknownNameError(f"{name!r} is not in the catalogue of zoo; zoo list shows what is")
    return entry.licence_weights


def _accepted_by_user(name: str, weights: Weights, digest: str | None) -> Weights:
    """The weights with the digest that a user accepts. Raises ConfigError where another one is published."""
    if digest is None:
        return weights
    accepted = replace(weights, digest=digest, size=None, seen="user")
    if weights.digest in (None, digest) or weights.seen != "publisher":
        return accepted
    raise ConfigError(f"--accept-digest {digest}, but {name} is published with {weights.digest}; leave it out")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other process fetches a file meanwhile, where the file system has locks. Raises ConfigError where one does."""
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another process fetches {path}; wait for it, then run the same again") from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


def _weights_of(name: str) -> Weights:
    """Raises UnknownNameError for a teacher that has no weights to fetch."""
    found, family = weights_of(name), family_of(name)
    if found is not None:
        return found
    if name in FAMILIES:
        raise UnknownNameError(f"{name} is a family; name one of its teachers: {', '.join(FAMILIES[name].names)}")
    if family is None:
        raise UnknownNameError(f"{name!r} is no teacher of zoo; zoo teachers lists them")
    if family.converted:
        raise UnknownNameError(f"{name} has no file to fetch as it is; run: zoo convert {name.partition('/')[0]}")
    if not family.install:
        raise UnknownNameError(f"{name} is a formula of zoo; it needs no file")
    why = absent(name) or "it is here, and there is nothing to fetch"
    raise UnknownNameError(f"the weights of {name} come with its package; {why}")


def _kept(path: Path, name: str, weights: Weights) -> Path:
    """A file that is here, checked; of one that is seen for the first time it is recorded what it is.

    So that others of its family find it, and that it stays what it is where no digest of it is known.
    """
    due = weights_due(path, name, weights)
    _write_record(path, due, check_weights(path, name, due))
    return path


def _write_record(path: Path, due: Weights, sha256: str, file: Path | None = None) -> None:
    """Of a file that was checked, which may still have another name. One that says the same stays."""
    size = (file or path).stat().st_size
    record = Record(url=due.url, digest=due.digest or f"sha256:{sha256}", size=size, accepted=due.seen == "user")
    if read_record(path) != record:
        write_json(record_path(path), record)


# --- what is fetched -----------------------------------------------------------------------------------


def _from_web(
    path: Path, name: str, due: Weights, progress: bool, *, token: str | None = None, refused: str | None = None
) -> None:
    """Raises what ``download`` does, IntegrityError for a file that is not what it should be.

    ``refused`` says what to do where a server wants another token.
    """
    unchecked = path.with_name(f"{path.name}{_UNCHECKED}")
    if not unchecked.is_file():
        size, advice = due.size if due.seen == "publisher" else None, Advice(path, ELSEWHERE, refused)
        download([due.url], unchecked, size=size, progress=progress, name=name, advice=advice, token=token)
    _give_its_name(unchecked, path, name, due)


def _give_its_name(unchecked: Path, path: Path, name: str, due: Weights) -> None:
    """A file that is as it should be gets its name, and its record. Raises IntegrityError for another.

    One that is not as published is removed; of what third hands say, and of what came before, the user may know better.
    """
    sha256, wrong = compare(unchecked, due)
    if wrong is None:
        _write_record(path, due, sha256, unchecked)
        unchecked.replace(path)
        return
    if due.seen != "publisher":
        raise IntegrityError(
            f"{due.url} gave a file of {wrong}; it was not opened, and is kept as {unchecked}: remove it, or, if you "
            f"know it to be right, run: {accepting(name, sha256)}"
        )
    unchecked.unlink()
    raise IntegrityError(
        f"{due.url} gave a file of {wrong}; it was removed. Run the same again, or fetch it in a browser, and put it "
        f"here: {path}"
    )


def _from_hub(path: Path, name: str, due: Weights, progress: bool) -> None:
    """With the user's token, as the hub says that the file is. Raises HubError, AccessError, IntegrityError."""
    from zoo.hub.client import Client, persistent  # lazy: it imports the stock client
    from zoo.hub.guard import remedy_of  # lazy, as above

    place = file_on_hub(due.url)
    assert place is not None
    client, login = Client(place.endpoint), remedy_of(place.endpoint)
    if client.token is None:
        raise AccessError(
            f"the weights of {name} are for those who have accepted the terms at {due.gated}; do so, and then {login}"
        )
    try:
        with client.session():
            stored = persistent(lambda: client.stored(place.repository, place.revision, place.path))
    except HubError as error:
        raise HubError(f"{error}; or put a copy of {due.url} here: {path}, and run the same again") from error
    if stored is None:
        raise IntegrityError(f"{due.gated} has no {place.path} any more; look there for the file that replaces it")
    refused = f"accept the terms at {due.gated} as the user whose token this is; to use another one, {login}"
    whole = _as_stored(due, stored.size, stored.digest)
    _from_web(path, name, whole, progress, token=client.token, refused=refused)


def _as_stored(weights: Weights, size: int, digest: str) -> Weights:
    """The weights with what a hub says of the file. Raises IntegrityError where zoo expects another file."""
    kind = "sha256" if len(digest) == 64 else "git"
    if weights.size not in (None, size):
        raise IntegrityError(
            f"{weights.url} has {size:,} bytes now, expected {weights.size:,}; it was not fetched, update zoo"
        )
    return replace(weights, digest=weights.digest or f"{kind}:{digest}", size=size)


# --- teachers of one's own -----------------------------------------------------------------------------


def add_teacher(
    name: str,
    file: str | Path,
    *,
    family: str,
    licence: str,
    level_of_theory: str,
    sha256: str | None = None,
    citation: str = "",
    head: str | None = None,
) -> OwnTeacher:
    """Makes a file of weights the teacher ``own/<engine>``: a copy is kept in the cache, and opened once.

    ``family`` is that of the adapter that opens it, ``licence`` the SPDX of the weights, ``head`` which of several
    heads, modalities or tasks. Raises ConfigError for what the arguments lack, and where a folder of that name holds
    something else, UnknownNameError for no such file, IntegrityError where it has another digest than ``sha256`` (64
    hex digits) or cannot be opened; then nothing stays.
    """
    source, stated = Path(file).expanduser(), None if sha256 is None else _hex(sha256)
    facts = _described(name, source, family, licence, level_of_theory, citation, head)
    folder = weights_folder(name)
    with writing_to_cache(folder), replacing(folder) as staging:
        shutil.copyfile(source, staging / facts.file)
        found = sha256_file(staging / facts.file)
        if stated not in (None, found):
            raise IntegrityError(f"{source} has the sha256 {found}, expected {stated}; give the file that has it")
        facts = facts.model_copy(update={"sha256": found})
        write_json(staging / FACTS, facts)
    try:
        facts = facts.model_copy(update={"elements": _elements(facts, source)})
        with writing_to_cache(folder):
            write_json(folder / FACTS, facts)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return facts


def remove_teacher(name: str) -> Path | None:
    """Removes a teacher ``own/<engine>`` with the copy of its file, and says what; None where there is none.

    Raises ConfigError.
    """
    folder = weights_folder(name)
    if not is_own(name) or not folder.is_dir():
        return None
    with writing_to_cache(folder):
        shutil.rmtree(folder)
    return folder


def _hex(sha256: str) -> str:
    """The 64 digits of a digest, however it is written. Raises ConfigError."""
    digits = sha256.strip().lower().removeprefix("sha256:")
    if not re.fullmatch("[0-9a-f]{64}", digits):
        raise ConfigError(f"sha256 {quoted(sha256)}; expected 64 hex digits, as sha256sum FILE prints them")
    return digits


def _described(
    name: str, source: Path, family: str, licence: str, level_of_theory: str, citation: str, head: str | None
) -> OwnTeacher:
    """Raises ConfigError, UnknownNameError."""
    able = [one.key for one in FAMILIES.values() if one.own_files]
    if not is_own(name):
        raise ConfigError(
            f"{quoted(name)} cannot be added; a teacher of your own is called own/<engine>: own/my-teacher"
        )
    if family not in able:
        raise ConfigError(
            f"no family that opens files of one's own is called {quoted(family)}; one of {', '.join(able)}"
        )
    if licence not in TERMS:
        raise ConfigError(f"licence {quoted(licence)} is not known; give the SPDX of one of {', '.join(LICENCES)}")
    if not level_of_theory.strip():
        raise ConfigError(f"{name} lacks a level of theory; say what its training data were computed with")
    if not source.is_file():
        raise UnknownNameError(f"{source} is no file; give the file of weights")
    _check_free(name)
    if source.name == FACTS:
        raise ConfigError(f"{source} is called as what zoo keeps beside it; give it another name")
    return OwnTeacher(
        name=name,
        family=family,
        file=source.name,
        sha256="0" * 64,
        elements=(),
        licence=licence,
        level_of_theory=level_of_theory,
        citation=citation,
        head=head,
    )


def _check_free(name: str) -> None:
    """Raises ConfigError where a teacher of this name is here, and where its place holds what no teacher is."""
    before, folder = own_teacher(name), weights_folder(name)
    if before is not None and before.elements:
        raise ConfigError(f"{name} is here already; choose another name, or run: zoo teachers remove {name}")
    if before is None and folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder} holds files, and no record of a teacher; choose another name, or move them away")


def _elements(facts: OwnTeacher, source: Path) -> tuple[str, ...]:
    """The symbols that a file knows, which is opened for that. Raises what loading it does, of the user's own file."""
    try:
        potential = load_teacher(facts.name).potential
    except ZooError as error:
        told = str(error).replace(str(weights_folder(facts.name) / facts.file), str(source))
        other = "; or another --family wrote it" if isinstance(error, IntegrityError) else ""
        error.args = (f"{told}{other}",)
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise IntegrityError(
            f"{source} cannot be opened as a teacher of {facts.family} ({type(error).__name__}: {reason}); give a file "
            "of that family"
        ) from error
    return tuple(chemical_symbols[number] for number in potential.elements)
