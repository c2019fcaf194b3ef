"""Arrays of numpy, one molecule a file: MD17, MD22 and CCSD(T) as sGDML writes them, and rMD17."""

import hashlib
import io
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any, BinaryIO, cast

import numpy as np

from zoo.data.frame import Frame
from zoo.data.readers.archives import BROKEN, Stream, streams
from zoo.data.readers.base import REPAIR, Origin, bare_atoms, broken
from zoo.errors import IntegrityError
from zoo.units import ANGSTROM_PER_BOHR, ANGSTROM_PER_NM, EV_PER_HARTREE, EV_PER_KCAL_MOL, EV_PER_KJ_MOL

Arrays = dict[str, np.ndarray]
_ENERGIES = {  # what files call their unit → eV
    "kcal/mol": EV_PER_KCAL_MOL,
    "kj/mol": EV_PER_KJ_MOL,
    "ev": 1.0,
    "hartree": EV_PER_HARTREE,
    "ha": EV_PER_HARTREE,
}
_LENGTHS = {  # → Å
    "ang": 1.0,
    "angstrom": 1.0,
    "a": 1.0,
    "bohr": ANGSTROM_PER_BOHR,
    "nm": ANGSTROM_PER_NM,
}


def read_sgdml(origin: Origin) -> Generator[Frame]:
    """The frames of an sGDML data set, or of the ``*.npz`` of an archive: MD17, MD22, CCSD(T).

    Energies are in kcal/mol and lengths in Å where the file has no ``e_unit`` and ``r_unit``. Raises IntegrityError
    where the fingerprint in the file is not that of its arrays. The molecule is what the file calls itself, else the
    origin's name, else the file's; the file is its trajectory.
    """
    with closing(streams(origin, (".npz",))) as opened:
        for stream in opened:
            arrays = _arrays(stream, ("z", "R", "F"), ("E", "name", "type", "md5", "e_unit", "r_unit", "lattice"))
            if _text(arrays, "type") not in (None, "d"):
                raise IntegrityError(f"{stream.label} is no data set of sGDML but a model or a task; give the data set")
            _check_fingerprint(stream, arrays)
            energy, length = _unit(stream, arrays, "e_unit", _ENERGIES), _unit(stream, arrays, "r_unit", _LENGTHS)
            cell = arrays["lattice"].T * length if "lattice" in arrays else None  # its columns are the vectors
            molecule = _text(arrays, "name") or _name(origin, stream)
            yield from _frames(stream, molecule, arrays, ("z", "R", "E", "F"), energy, length, cell=cell)


def read_rmd17(origin: Origin) -> Generator[Frame]:
    """The frames of a molecule of rMD17, or of all in its archive; kcal/mol and Å.

    They do not stand in the order of time: their index is that in the trajectory of MD17 where the file has it.
    """
    keys = ("nuclear_charges", "coords", "energies", "forces")
    with closing(streams(origin, (".npz",))) as opened:
        for stream in opened:
            arrays = _arrays(stream, keys, ("old_indices",))
            molecule = _name(origin, stream).removeprefix("rmd17_")
            yield from _frames(stream, molecule, arrays, keys, EV_PER_KCAL_MOL, 1.0, order=arrays.get("old_indices"))


def _frames(
    stream: Stream,
    molecule: str,
    arrays: Arrays,
    keys: tuple[str, str, str, str],
    energy: float,
    length: float,
    *,
    cell: np.ndarray | None = None,
    order: np.ndarray | None = None,
) -> Iterator[Frame]:
    numbers, positions, energies, forces = (arrays.get(key) for key in keys)
    assert numbers is not None
    assert positions is not None
    assert forces is not None
    energies = _checked(stream, dict(zip(keys, (numbers, positions, energies, forces), strict=True)))
    if order is not None and (order.shape != (len(positions),) or order.dtype.kind not in "iuf"):
        raise IntegrityError(f"{stream.label}: old_indices are not {len(positions)} numbers; {REPAIR}")
    for index in range(len(positions)):
        place = f"frame {index} of {stream.label}"
        yield Frame(
            atoms=bare_atoms(
                place,
                numbers,
                positions[index].astype(np.float64) * length,
                cell=cell,
                energy=None if energies is None else energies[index].astype(np.float64) * energy,
                forces=forces[index].astype(np.float64) * (energy / length),
            ),
            place=place,
            molecule=molecule,
            trajectory=molecule,
            index=index if order is None else int(order[index]),
        )


def _checked(stream: Stream, named: dict[str, np.ndarray | None]) -> np.ndarray | None:
    """The energies, (frames,). Raises IntegrityError where the arrays do not belong together."""
    (_, numbers), (_, positions), (key, energies), (_, forces) = named.items()
    assert numbers is not None
    assert positions is not None
    shapes = ", ".join(f"{name} {array.shape}" for name, array in named.items() if array is not None)
    kinds = {array.dtype.kind for array in named.values() if array is not None}
    fits = positions.ndim == 3 and positions.shape[1:] == (len(np.atleast_1d(numbers)), 3)
    if not fits or forces is None or forces.shape != positions.shape or not kinds <= set("fiu"):
        raise IntegrityError(
            f"{stream.label} has the shapes {shapes}, expected numbers of the shapes (atoms,), (frames, atoms, 3), "
            f"(frames,), (frames, atoms, 3); {REPAIR}"
        )
    if energies is None:
        return None
    if energies.shape not in ((len(positions),), (len(positions), 1)):
        raise IntegrityError(
            f"{stream.label} has {key} of the shape {energies.shape}, expected {len(positions)} energies; {REPAIR}"
        )
    return energies.reshape(len(positions))


def _arrays(stream: Stream, needed: tuple[str, ...], known: tuple[str, ...]) -> Arrays:
    """The arrays by these names. Raises IntegrityError where a needed one is missing or holds pickled objects."""
    form = "an npz file without pickles"
    with broken(stream.label, form, ValueError, KeyError, MemoryError, *BROKEN):
        content: Any = np.load(cast(BinaryIO, io.BytesIO(stream.bytes.read())), allow_pickle=False)
        if not isinstance(content, np.lib.npyio.NpzFile):
            raise IntegrityError(f"{stream.label} is one array, expected an npz file of several; give that")
        if missing := [key for key in needed if key not in content]:
            raise IntegrityError(
                f"{stream.label} has no {', '.join(missing)}, only {', '.join(sorted(content.files)[:12])}; "
                "give its format, or another file"
            )
        return {key: content[key] for key in (*needed, *known) if key in content}


def _check_fingerprint(stream: Stream, arrays: Arrays) -> None:
    """sGDML's: the MD5 of the MD5 of each array, as it is stored."""
    stored = _text(arrays, "md5")
    if stored is None:
        return
    whole = hashlib.md5(usedforsecurity=False)
    for key in ("z", "R", "E", "F"):
        if key in arrays:
            content = np.ascontiguousarray(arrays[key]).tobytes()
            whole.update(hashlib.md5(content, usedforsecurity=False).digest())
    if whole.hexdigest() != stored:
        raise IntegrityError(
            f"{stream.label} has the fingerprint {stored[:40]}, but that of its arrays is {whole.hexdigest()}; it was "
            "changed or damaged: fetch it again"
        )


def _unit(stream: Stream, arrays: Arrays, key: str, known: dict[str, float]) -> float:
    """The factor of the unit that the file names, of its first one where it names none."""
    text = _text(arrays, key)
    if text is None:
        return next(iter(known.values()))
    if text.lower() not in known:
        raise IntegrityError(
            f"{stream.label} has the {key} {text[:40]!r}; known are {', '.join(known)}: convert it to one of them"
        )
    return known[text.lower()]


def _text(arrays: Arrays, key: str) -> str | None:
    if key not in arrays or arrays[key].size != 1:
        return None
    value = arrays[key].reshape(-1)[0]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _name(origin: Origin, stream: Stream) -> str:
    """Of the molecule, where its file does not name it; members of an archive are called after themselves."""
    return stream.stem if stream.member or origin.name is None else origin.name
