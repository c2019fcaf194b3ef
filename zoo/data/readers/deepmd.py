"""DeePMD's folders of npy files: ``type.raw``, ``type_map.raw``, ``set.*/coord.npy`` and so on; eV and Å."""

from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
from ase import Atoms

from zoo.data.frame import Frame
from zoo.data.readers.base import REPAIR, Origin, atomic_number, bare_atoms, broken, numeric
from zoo.errors import IntegrityError, LabelError

_COLUMNS = {"coord": 3, "force": 3}  # an atom
_WIDTHS = {"box": 9, "energy": 1, "virial": 9}  # a frame
_SMALLEST = 1e-6  # Å³, of a cell


def read_deepmd(origin: Origin) -> Generator[Frame]:
    """The frames of a system, the folder of a ``type.raw``, or of all systems below a folder, set by set.

    A file ``nopbc`` marks molecules. The stress is minus the virial over the volume. A system is one trajectory.
    """
    if not origin.path.is_dir():
        raise IntegrityError(
            f"{origin.label} is no folder, which a system of DeePMD is; give the folder of its type.raw"
        )
    systems = sorted(path.parent for path in origin.path.rglob("type.raw"))
    if not systems:
        raise IntegrityError(
            f"{origin.label} has no type.raw, which each system of DeePMD has; give its folder or format"
        )
    for system in systems:
        inside = system.relative_to(origin.path).as_posix()
        yield from _system(system, origin.label if inside == "." else f"{inside} of {origin.label}", inside)


def _system(folder: Path, label: str, inside: str) -> Iterator[Frame]:
    numbers = _numbers(folder, label)
    periodic = not (folder / "nopbc").exists()
    sets = sorted(folder.glob("set.*"))
    if not sets:
        raise IntegrityError(f"{label} has no set.*; {REPAIR}")
    index = 0
    for part in sets:
        where = f"{part.name} of {label}"
        arrays = _arrays(part, where, len(numbers), periodic)
        for row in range(len(arrays["coord"])):
            place = f"frame {row} of {where}"
            values = {key: array[row] for key, array in arrays.items()}
            trajectory = folder.resolve().name if inside == "." else inside
            yield Frame(_frame_atoms(place, numbers, values), place=place, trajectory=trajectory, index=index)
            index += 1


def _frame_atoms(place: str, numbers: np.ndarray, values: dict[str, np.ndarray]) -> Atoms:
    cell = numeric(place, "cell", values["box"].reshape(3, 3), (3, 3)) if "box" in values else None
    stress = None
    if "virial" in values:
        volume = 0.0 if cell is None else abs(float(np.linalg.det(cell)))
        if not volume > _SMALLEST:
            raise LabelError(f"{place} has a virial, but no cell of a volume; remove virial.npy, or repair box.npy")
        stress = values["virial"].astype(np.float64).reshape(3, 3) / -volume
    return bare_atoms(
        place,
        numbers,
        values["coord"].reshape(-1, 3),
        cell=cell,
        energy=values["energy"].reshape(()) if "energy" in values else None,
        forces=values["force"].reshape(-1, 3) if "force" in values else None,
        stress=stress,
    )


def _numbers(folder: Path, label: str) -> np.ndarray:
    """Atomic numbers, (atoms,)"""
    if not (folder / "type_map.raw").is_file():
        raise IntegrityError(f"{label} has no type_map.raw, so its elements are unknown; write their symbols there")
    with broken(label, "a system of DeePMD", UnicodeDecodeError):
        symbols = (folder / "type_map.raw").read_text(encoding="utf-8").split()
        types = (folder / "type.raw").read_text(encoding="utf-8").split()
    if not types or not all(text.isdigit() and int(text) < len(symbols) for text in types):
        raise IntegrityError(f"{label}: type.raw does not number the {len(symbols)} symbols of type_map.raw; {REPAIR}")
    known = [atomic_number(label, symbol) for symbol in symbols]
    return np.array([known[int(text)] for text in types])


def _arrays(part: Path, where: str, atoms: int, periodic: bool) -> dict[str, np.ndarray]:
    """The arrays of a set, (frames, columns), on disk until they are used."""
    if (part / "real_atom_types.npy").exists():
        raise IntegrityError(f"{where} is of mixed types, which are not read; write one system for each formula")
    widths = {key: columns * atoms for key, columns in _COLUMNS.items()} | _WIDTHS
    keys = [key for key in widths if (part / f"{key}.npy").is_file() and (periodic or key != "box")]
    if missing := [key for key in ("coord", *(["box"] if periodic else [])) if key not in keys]:
        remedy = "give the frames, or an empty file nopbc beside type.raw where these are molecules"
        raise IntegrityError(f"{where} has no {' and no '.join(f'{key}.npy' for key in missing)}; {remedy}")
    found = {}
    for key in keys:
        with broken(f"{key}.npy of {where}", "an npy file without pickles", ValueError, OSError, EOFError):
            found[key] = np.load(part / f"{key}.npy", mmap_mode="r", allow_pickle=False)
        _check_shape(where, key, found[key], len(found["coord"]), widths[key])
    return found


def _check_shape(where: str, key: str, array: np.ndarray, frames: int, width: int) -> None:
    if array.ndim == 0 or len(array) != frames or array.size != frames * width or array.dtype.kind not in "fiu":
        raise IntegrityError(
            f"{key}.npy of {where} is {array.dtype} of the shape {array.shape}, expected numbers of the shape "
            f"{(frames, width)}; {REPAIR}"
        )
