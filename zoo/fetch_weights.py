"""Weights of teachers brought here: fetched from where they are published, once their terms are accepted, or added.

A file gets its name when its size and digest are right; until then what came of it is kept, and gone on with.
"""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from ase.data import chemical_symbols
from pydantic import Field
from tqdm import tqdm

from zoo.config import Config, read_json, write_json
from zoo.data.download import download
from zoo.data.sources import Digest
from zoo.errors import (
    AccessError,
    ConfigError,
    HubError,
    IntegrityError,
    LicenceError,
    MissingPackageError,
    UnknownNameError,
    WorkerError,
    ZooError,
)
from zoo.files import cache_root, replacing, sha256_file
from zoo.hub.cache import is_offline
from zoo.hub.catalogue import entries
from zoo.licences import LICENCES, TERMS, Terms
from zoo.naming import Repository, quoted
from zoo.teachers import FAMILIES, load_teacher, weights_of
from zoo.teachers.families import family_of
from zoo.teachers.weights import (
    FACTS,
    OwnTeacher,
    Record,
    Weights,
    check_weights,
    copies,
    digest_of,
    is_own,
    own_teacher,
    read_record,
    record_path,
    weights_folder,
    weights_path,
)

_UNCHECKED = ".unchecked"  # after the name of a file whose digest is still to be looked at
_RESOLVE = "/resolve/"  # in the address of a file on a hub


def fetch_weights(name: str, *, accept_licence: bool = False, progress: bool = True) -> Path:
    """The file of weights of a teacher, fetched unless it is here.

    Its licence is shown on stderr before, unless ``progress`` is False; one that restricts must be accepted, once.
    Raises UnknownNameError for a name without weights to fetch, AccessError where terms are not accepted or a token is
    missing, HubError, IntegrityError, MissingPackageError, ConfigError.
    """
    weights, licence = _weights_of(name), licence_of(name)
    path, here = weights_path(name, weights), next(copies(name, weights), None)
    with _one_line(path.parent):
        if here is not None:
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
        if weights.gated is not None:
            _from_hub(path, name, weights)
        else:
            _from_web(path, name, weights, progress)
        return _kept(path, name, weights)


def _weights_of(name: str) -> Weights:
    """Raises UnknownNameError for a teacher that has no weights to fetch."""
    found, family = weights_of(name), family_of(name)
    if found is not None:
        return found
    if family is None:
        raise UnknownNameError(f"{name!r} is no teacher of zoo; zoo teachers lists them")
    if family.converted:
        raise UnknownNameError(f"{name} has no file to fetch as it is; run: zoo convert {name.partition('/')[0]}")
    how = f"run: pip install {family.install}" if family.install else "it needs no file"
    raise UnknownNameError(f"the weights of {name} come with its package; {how}")


def _kept(path: Path, name: str, weights: Weights) -> Path:
    """A file that is here, checked; of one that is seen for the first time it is recorded what it is.

    So that others of its family find it, and that it stays what it is where nobody publishes a digest.
    """
    if read_record(path) is not None:
        check_weights(path, name, weights)
        return path
    digest = weights.digest or digest_of(path)
    check_weights(path, name, replace(weights, digest=digest))
    write_json(record_path(path), Record(url=weights.url, digest=digest, size=path.stat().st_size))
    return path


@contextmanager
def _one_line(folder: Path) -> Iterator[None]:
    """What keeps this machine from writing is a ConfigError."""
    try:
        yield
    except ZooError:
        raise  # some are errors of the system, too
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written ({error.strerror or error}); make it writable, or set ZOO_CACHE to another "
            "folder"
        ) from error


# --- terms that are accepted ---------------------------------------------------------------------------


class Acceptance(Config):
    """``licences/<family>/<engine>.json``: whose terms were accepted, and when."""

    name: str
    licence: str  # SPDX
    text: str = Field(pattern=r"^[0-9a-f]{64}$")  # SHA-256 of the address of its text
    date: str


def licence_of(name: str) -> str:
    """SPDX of the weights of a teacher of the catalogue. Raises UnknownNameError."""
    entry = entries().get(name)
    if entry is None:
        raise UnknownNameError(f"{name!r} is not in the catalogue of zoo; zoo list shows what is")
    return entry.licence_weights


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

    ``command`` accepts them. What was accepted of another licence, or of another text of it, does not count.
    """
    if not restricts(licence):
        return
    terms, path = _terms(licence), cache_root() / "licences" / f"{name}.json"
    text = sha256(terms.url.encode()).hexdigest()
    if _accepted(path, name, licence, text):
        return
    if not accept:
        use = (
            "has terms of its own" if terms.commercial else "allows no commercial use, of it or of what learns from it"
        )
        raise AccessError(
            f"{name} is under {terms.spdx}, which {use}; read {terms.url}, and to accept it run: {command}"
        )
    with _one_line(path.parent):
        today = datetime.now(UTC).date().isoformat()
        write_json(path, Acceptance(name=name, licence=licence, text=text, date=today))


def _accepted(path: Path, name: str, licence: str, text: str) -> bool:
    try:
        found = read_json(Acceptance, path)
    except ConfigError:  # none, or not whole
        return False
    return (found.name, found.licence, found.text) == (name, licence, text)


def _terms(licence: str) -> Terms:
    """Raises LicenceError for a licence that zoo does not know."""
    if licence not in TERMS:
        raise LicenceError(f"licence {licence!r} is one whose terms zoo does not know; it knows {', '.join(LICENCES)}")
    return TERMS[licence]


# --- what is fetched -----------------------------------------------------------------------------------


def _from_web(path: Path, name: str, weights: Weights, progress: bool) -> None:
    """Raises what ``download`` does, IntegrityError for a file that is not what git's digest says."""
    kind, _, digits = (weights.digest or "").partition(":")
    published = Digest(algorithm="sha256", hex=digits) if kind == "sha256" else None
    to = path.with_name(f"{path.name}{_UNCHECKED}") if kind == "git" else path
    try:
        if not to.is_file():
            download([weights.url], to, size=weights.size, digest=published, progress=progress, name=name)
    except ZooError as error:
        raise type(error)(_in_words_of_teachers(str(error))) from error
    if to != path:
        _give_its_name(to, path, weights)


def _in_words_of_teachers(text: str) -> str:
    """A message of what fetches data, about a file of weights."""
    advice = {f"{_UNCHECKED}": "", "choose another folder with --to": "set ZOO_CACHE to another folder"}
    for old, new in advice.items():
        text = text.replace(old, new)
    return text.replace("data sets are fetched with", "weights are fetched with")


def _give_its_name(arrived: Path, path: Path, weights: Weights) -> None:
    """A file that is what its publisher says gets its name; another is removed. Raises IntegrityError."""
    size, expected = arrived.stat().st_size, weights.digest
    wrong = f"{size:,} bytes, expected {weights.size:,}" if weights.size not in (None, size) else ""
    if not wrong and expected is not None and (found := digest_of(arrived, expected)) != expected:
        wrong = f"{found}, expected {expected} as published"
    if wrong:
        arrived.unlink()
        raise IntegrityError(
            f"{weights.url} gave a file with {wrong}; it was removed. Run the same again, or fetch it in a "
            f"browser, and put it here: {path}"
        )
    arrived.replace(path)


def _from_hub(path: Path, name: str, weights: Weights) -> None:
    """By the stock client, with the user's token. Raises HubError, AccessError, IntegrityError."""
    from zoo.hub.client import Client, persistent  # lazy: it imports the stock client
    from zoo.hub.guard import remedy_of  # lazy, as above

    endpoint, repository, commit, file = _on_hub(weights.url)
    client, staging = Client(endpoint), path.parent / ".hub"
    if client.token is None:
        raise AccessError(
            f"the weights of {name} are for those who have accepted the terms at {weights.gated}; do so, and then "
            f"{remedy_of(endpoint)}"
        )
    with client.session():
        stored = persistent(lambda: client.stored(repository, commit, file))
        if stored is None:
            raise IntegrityError(f"{weights.gated} has no {file} any more; look there for the file that replaces it")
        whole = _as_stored(weights, stored.size, stored.digest)
        persistent(lambda: client.download(repository, commit, [file], staging, size=stored.size))
    arrived = next((found.resolve() for found in staging.glob(f"models--*/snapshots/*/{file}")), None)
    if arrived is None:
        raise IntegrityError(f"{staging} lacks {file} after it was fetched; remove it, and run the same again")
    try:
        _give_its_name(arrived, path, whole)
    finally:
        shutil.rmtree(staging)


def _as_stored(weights: Weights, size: int, digest: str) -> Weights:
    """The weights with what a hub says of the file. Raises IntegrityError where zoo expects another file."""
    kind = "sha256" if len(digest) == 64 else "git"
    if weights.size not in (None, size):
        raise IntegrityError(
            f"{weights.url} has {size:,} bytes now, expected {weights.size:,}; it was not fetched, update zoo"
        )
    return replace(weights, digest=weights.digest or f"{kind}:{digest}", size=size)


def _on_hub(url: str) -> tuple[str, Repository, str, str]:
    """Endpoint, repository, revision and path of ``https://hub/owner/name/resolve/revision/path``."""
    address, _, rest = url.partition(_RESOLVE)
    endpoint, owner, repository = address.rsplit("/", 2)
    revision, _, file = rest.partition("/")
    return endpoint, Repository(owner, repository), revision, str(PurePosixPath(unquote(file)))


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
    heads, modalities or tasks. Raises ConfigError for what the arguments lack, UnknownNameError for no such file,
    IntegrityError where it has another digest than ``sha256`` or cannot be opened; then nothing stays.
    """
    source = Path(file).expanduser()
    facts = _described(name, source, family, licence, level_of_theory, citation, head)
    folder = weights_folder(name)
    with _one_line(folder), replacing(folder) as staging:
        shutil.copyfile(source, staging / facts.file)
        found = sha256_file(staging / facts.file)
        if sha256 not in (None, found):
            raise IntegrityError(f"{source} has the sha256 {found}, expected {sha256}; give the file that has it")
        facts = facts.model_copy(update={"sha256": found})
        write_json(staging / FACTS, facts)
    try:
        facts = facts.model_copy(update={"elements": _elements(facts, source)})
        with _one_line(folder):
            write_json(folder / FACTS, facts)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return facts


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
    before = own_teacher(name)
    if before is not None and before.elements:
        raise ConfigError(f"{name} is here already; choose another name, or remove {weights_folder(name)}")
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


def _elements(facts: OwnTeacher, source: Path) -> tuple[str, ...]:
    """The symbols that a file knows, which is opened for that. Raises what loading it does."""
    try:
        potential = load_teacher(facts.name).potential
    except (MissingPackageError, IntegrityError, ConfigError, WorkerError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise IntegrityError(
            f"{source} cannot be opened as a teacher of {facts.family} ({type(error).__name__}: {reason}); give a file "
            "of that family"
        ) from error
    return tuple(chemical_symbols[number] for number in potential.elements)
