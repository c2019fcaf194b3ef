"""Checkpoints of JMP, fetched or of one's own, become the weights that its teachers are loaded from."""

import hashlib
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ase.data import atomic_numbers, chemical_symbols

from zoo.config import parse
from zoo.data.download import digest_of, download
from zoo.errors import ConfigError, IntegrityError, ZooError, ZooWarning
from zoo.files import cache_root
from zoo.gemnet_oc.config import GemNetOCConfig
from zoo.teachers import FINE_TUNED
from zoo.teachers.jmp.checkpoint import check_file, open_checkpoint
from zoo.teachers.jmp.config import ELEMENTS, MOLECULAR, PARTS, PUBLISHED, JMPConfig
from zoo.teachers.jmp.layout import LARGEST, SIZES, SMALLEST, Held, Weights, shape_of, take
from zoo.teachers.jmp.weights import MODEL, check_replaceable, layout_of, without_numbers, write_tensors
from zoo.teachers.weights import weights_folder
from zoo.tensors import compare_layouts, shown

_PRE_TRAINING_CUTOFF = 8.0  # Å, on molecules; the Gaussians go to 12 Å all the same
_MD22 = "PBE+MBD, MD22"
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_REMEDY = "give the checkpoint as its authors publish it"
_KEPT = {"ema": "averaged over training", "raw": "the last of training", "trained": "of a recipe"}


@dataclass(frozen=True)
class Asked:
    """What a user wants of a checkpoint, as ``convert`` takes it."""

    family: str
    name: str | None
    head: str
    weights: Weights
    energy_scale: float | None
    force_scale: float | None
    level_of_theory: str | None
    elements: Sequence[str] | None

    def check(self) -> None:
        """Raises ConfigError for what no checkpoint can give."""
        if self.family not in PUBLISHED:
            raise ConfigError(f"no family to convert is called {self.family!r}; known are {', '.join(PUBLISHED)}")
        names = (self.teacher, self.fine_tune)
        if self.name not in (None, *names):
            raise ConfigError(f"{self.name!r} is no teacher of {self.family}; give one of {', '.join(names)}")
        if self.head not in MOLECULAR:
            raise ConfigError(f"no head to convert is called {self.head!r}; known are {', '.join(MOLECULAR)}")
        if self.weights not in ("ema", "raw"):
            raise ConfigError(f"weights are {self.weights!r}, expected ema (averaged over training) or raw (the last)")
        strange = sorted(set(self.elements or ()) - set(atomic_numbers))
        if strange or self.elements == ():
            raise ConfigError(f"elements are {', '.join(strange) or 'none'}; give symbols, such as H,C,N,O")
        for scale, unit in ((self.energy_scale, "eV"), (self.force_scale, "eV/Å")):
            if scale is not None and not SMALLEST < scale < LARGEST:
                raise ConfigError(f"a scale is {scale} {unit}; give a number between {SMALLEST:g} and {LARGEST:g}")

    @property
    def teacher(self) -> str:
        return f"{self.family}/teacher"

    @property
    def fine_tune(self) -> str:
        return next(name for name in FINE_TUNED if name.startswith(f"{self.family}/"))


@dataclass(frozen=True)
class Conversion:
    """Weights that were written, and where."""

    folder: Path
    config: JMPConfig
    assumed: str = ""  # what neither the file nor the user said of a fine-tune

    def __str__(self) -> str:
        config, network = self.config, self.config.network
        head = f", head {config.head}" if config.head else ""
        energies = "relative: without a mean, and without those of the elements" if network.energies else "none"
        return "\n".join(
            [
                f"{config.name} is in {self.folder}",
                *([f"assumed  {self.assumed}"] if self.assumed else []),
                f"weights  {_KEPT[config.kept]}{head}; forces {network.forces}",
                f"energies {energies}",
                f"theory   {config.level_of_theory}",
                f"source   {config.source}, sha256 {config.source_sha256}",
                f"licence  {config.licence}: no commercial use, of it or of what learns from it",
            ]
        )


def convert(
    family: str,
    source: str | Path,
    *,
    name: str | None = None,
    head: str = "ani1x",
    weights: Weights = "ema",
    energy_scale: float | None = None,
    force_scale: float | None = None,
    level_of_theory: str | None = None,
    elements: Sequence[str] | None = None,
    to: str | Path | None = None,
    replace: bool = False,
    accept_digest: bool = False,
    any_size: bool = False,
    progress: bool = True,
) -> Conversion:
    """Takes one network out of a checkpoint of ``jmp-s`` or ``jmp-l``; ``zoo.load(name)`` then gives it.

    ``source`` is a file, which stays as it is, or an address: what is fetched is removed when all went well. A
    pre-trained file has the heads ani1x and transition1x; a fine-tuned one has its own, and ``name`` says which teacher
    it becomes. ``weights`` are those averaged over training (ema) or the last (raw). The scales (eV, eV/Å) are what
    energies and forces were divided by, where the file does not say; ``elements`` are H, C, N, O if not given. ``to``
    is a folder in the place of the one that ``zoo.load`` looks into; ``any_size`` takes other sizes than the published.

    Nothing of the file is run, and either all is written or nothing. Raises ConfigError, UnknownNameError for no such
    file, IntegrityError for one that is not what it should be, and what ``download`` raises.
    """
    asked = Asked(family, name, head, weights, energy_scale, force_scale, level_of_theory, elements)
    asked.check()
    remote = str(source).startswith(("http://", "https://"))
    if remote or name is not None or to is not None:  # before anything is fetched
        _check_free(Path(to or weights_folder(name or asked.teacher)).expanduser(), replace)
    path = _fetched(str(source), family, accept_digest, progress) if remote else Path(source).expanduser()
    check_file(path)
    with _one_line(path):
        identity, digest = _identity(path), digest_of(path, progress=progress).hex
        content = open_checkpoint(path)
        identity.check(path)  # what is cut while it is open ends the process
        held = take(content, head, weights)
        config = _config(held, asked, any_size)
        compare_layouts(path, held.layout, layout_of(without_numbers(config)), _REMEDY)
    folder = Path(to or weights_folder(config.name)).expanduser()
    _check_free(folder, replace)
    origin = shown(without_key(str(source)) if remote else path.name)
    config = config.model_copy(update={"source": origin, "source_sha256": digest, "source_bytes": identity.size})
    with _one_line(path, writing=True):
        config = write_tensors(folder, config, held.tensors, lambda: identity.check(path))
    if remote:
        path.unlink(missing_ok=True)  # another conversion may have used it, too
    return Conversion(folder, config, _assumed(config, held, asked))


@dataclass(frozen=True)
class _Identity:
    """By which a file is known to be the one that it was."""

    device: int
    inode: int
    size: int
    modified: int  # ns

    def check(self, path: Path) -> None:
        """Raises IntegrityError where the file at a path is another one."""
        if not path.is_file() or _identity(path) != self:
            raise IntegrityError(f"{path} changed while it was read; run the same again when nothing writes to it")


def _identity(path: Path) -> _Identity:
    found = path.stat()
    return _Identity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


@contextmanager
def _one_line(path: Path, *, writing: bool = False) -> Iterator[None]:
    """What a file's content makes fail is an IntegrityError of one line; what is no fault of the file stays.

    Raises IntegrityError.
    """
    try:
        yield
    except IntegrityError as error:
        raise IntegrityError(_in_file(path, error)) from error
    except ZooError:
        raise
    except Exception as error:
        if writing and isinstance(error, OSError):
            raise
        reason = shown(" ".join(str(error).split())[:150])
        raise IntegrityError(f"{path} cannot be converted ({type(error).__name__}: {reason}); {_REMEDY}") from error


def _in_file(path: Path, error: IntegrityError) -> str:
    text = str(error)
    return text if text.startswith(str(path)) else f"{path}: {text}"


def _check_free(folder: Path, replace: bool) -> None:
    """Raises ConfigError where weights would be replaced unasked, or anything else at all."""
    check_replaceable(folder)
    if not replace and (folder / MODEL).exists():
        raise ConfigError(f"{folder} has weights already; add --replace (replace=True) to replace them")


# --- what is fetched -----------------------------------------------------------------------------------


def _fetched(url: str, family: str, accept_digest: bool, progress: bool) -> Path:
    """The file at an address, which may be here from a conversion that failed. Raises what ``download`` does."""
    published, shortened = PUBLISHED[family], without_key(url)
    known = url == published.url and not accept_digest
    file = _UNSAFE.sub("-", shortened.rpartition("/")[2]) or "checkpoint"
    path = cache_root() / "downloads" / f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{file}"
    if not path.is_file():
        try:
            download([url], path, size=published.bytes if known else None, progress=progress)
        except ZooError as error:
            raise type(error)(_without_keys(str(error), url)) from None
    check_file(path)
    size = path.stat().st_size
    if known and published.bytes not in (None, size):
        raise IntegrityError(f"{path} has {size:,} bytes, expected {published.bytes:,}; remove it, and run this again")
    if known and published.etag is not None:
        _check_etag(path, published.etag)
    return path


def _check_etag(path: Path, expected: str) -> None:
    """Raises IntegrityError where a file is not what somebody at third hand has seen on its server."""
    found = etag_of(path, PARTS)
    if found != expected:
        raise IntegrityError(
            f"{path} has the ETag {found}, expected {expected}, which zoo has from third hand alone; compare it with "
            f"the one that its server states, then take the file with --accept-digest (accept_digest=True), or remove "
            f"it"
        )


def etag_of(path: Path, part: int) -> str:
    """What Amazon S3 calls a file that was sent in parts: the MD5 of the MD5s of these, and how many there were."""
    digests = []
    with path.open("rb") as stream:
        while block := stream.read(part):
            digests.append(hashlib.md5(block, usedforsecurity=False).digest())
    return f"{hashlib.md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{len(digests)}"


def without_key(url: str) -> str:
    """An address without what might be a key to it: user, query and fragment. Raises ConfigError for no address."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigError(f"{shown(url[:8])}… is no address ({error}); give one such as https://host/file") from error
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _without_keys(text: str, url: str) -> str:
    """A message of what fetches, without what might be a key."""
    parts = urlsplit(url)
    user, _, _ = parts.netloc.rpartition("@")
    secrets = ([f"{user}@"] if user else []) + [part for part in (f"?{parts.query}", f"#{parts.fragment}") if part[1:]]
    for secret in secrets:
        text = text.replace(secret, "")
    return text


# --- what is made of it --------------------------------------------------------------------------------


def _config(held: Held, asked: Asked, any_size: bool) -> JMPConfig:
    """What is written beside the weights, but where they come from. Raises ConfigError, IntegrityError."""
    shape = shape_of(held)
    if not any_size:
        _check_size(shape, asked.family)
    name = _name(held, asked)
    if held.kept != asked.weights:
        text = f"{name}: the file has no averaged weights (ema), so that the last ones were taken"
        warnings.warn(text, ZooWarning, stacklevel=3)
    numbers = sorted({atomic_numbers[symbol] for symbol in asked.elements}) if asked.elements else ELEMENTS
    settings = {"cutoff": _PRE_TRAINING_CUTOFF} if held.pre_trained else {}
    _check_cutoff(held, shape)
    network = shape.model_dump(mode="json") | settings | _scales(held, asked) | {"elements": list(numbers)}
    told = {
        "name": name,
        "network": parse(GemNetOCConfig, network, asked.family).model_dump(mode="json"),
        "level_of_theory": asked.level_of_theory or (MOLECULAR[asked.head] if held.pre_trained else _MD22),
        "source": "-",
        "kept": held.kept,
        "head": asked.head if held.pre_trained else None,
        "normalization": _normalization(held),
    }
    return parse(JMPConfig, told, name)


def _normalization(held: Held) -> dict[str, float | None] | None:
    stated = {
        "energy_mean": held.energy_mean,
        "energy_std": held.energy_scale,
        "force_mean": held.force_mean,
        "force_std": held.force_scale,
    }
    return stated if any(value is not None for value in stated.values()) else None


def _check_cutoff(held: Held, shape: GemNetOCConfig) -> None:
    """Raises ConfigError where a fine-tune states another cutoff than zoo would run it with."""
    other = next((cutoff for cutoff in held.cutoffs if cutoff != shape.cutoff), None)
    if other is not None:
        raise ConfigError(
            f"the file states a cutoff of {other:g} Å, and zoo runs fine-tunes with {shape.cutoff:g} Å alone; give a "
            "fine-tune of that cutoff"
        )


def _assumed(config: JMPConfig, held: Held, asked: Asked) -> str:
    """What nobody said of a fine-tune, and a user should look at."""
    if held.pre_trained:
        return ""
    network = config.network
    near = [network.max_neighbors, network.max_neighbors_aeaint, network.max_neighbors_qint, network.max_neighbors_aint]
    return "; ".join(
        ([] if asked.level_of_theory else [f"theory {config.level_of_theory}"])
        + ([] if asked.elements else [f"elements {', '.join(chemical_symbols[one] for one in network.elements)}"])
        + ([] if held.cutoffs else [f"cutoff {network.cutoff:g} Å"])
        + [f"neighbours {', '.join(map(str, near))}"]
    )


def _check_size(shape: GemNetOCConfig, family: str) -> None:
    """Raises ConfigError where a network is not of the family that its file was said to be of."""
    for size in SIZES:
        found, expected = getattr(shape, size), getattr(PUBLISHED[family].network, size)
        if found != expected:
            fits = [
                other
                for other, published in PUBLISHED.items()
                if all(getattr(shape, one) == getattr(published.network, one) for one in SIZES)
            ]
            remedy = f"it is of {fits[0]}: run zoo convert {fits[0]}" if fits else "give a checkpoint of JMP"
            raise ConfigError(f"the network has {size} {found}, {family} has {expected}; {remedy}")


def _name(held: Held, asked: Asked) -> str:
    """Raises ConfigError where a pre-trained file is to become a fine-tune, or the reverse."""
    if held.pre_trained:
        if asked.name == asked.fine_tune:
            raise ConfigError(
                f"the file is pre-trained, and {asked.name} is a fine-tune; leave --name out, or make it with: "
                f"zoo distill {asked.name}"
            )
        return asked.teacher
    if asked.name != asked.fine_tune:
        raise ConfigError(f"the file is a fine-tune; say what it becomes with --name {asked.fine_tune}")
    return asked.fine_tune


def _scales(held: Held, asked: Asked) -> dict[str, float]:
    """By what the outputs are multiplied.

    Where forces are the gradient, it is they that were compared with forces: the energy that they are the gradient of
    has their scale, not the one that energies were divided by.
    """
    force = asked.force_scale or held.force_scale
    energy = asked.energy_scale or held.energy_scale
    if force is None:
        raise ConfigError(f"the file does not say what forces were divided by; {_give(held)}")
    if not held.direct:
        if asked.energy_scale is not None:
            raise ConfigError("forces are the gradient of the energy and give it their scale; leave --energy-scale out")
        return {"energy_scale": force}
    if not held.energies:
        return {"force_scale": force}
    if energy is None:
        raise ConfigError(f"the file does not say what energies were divided by; {_give(held)}")
    return {"energy_scale": energy, "force_scale": force}


def _give(held: Held) -> str:
    energy = "--energy-scale (eV) and " if held.direct and held.energies else ""
    return f"give {energy}--force-scale (eV/Å), the standard deviations of its training data"
