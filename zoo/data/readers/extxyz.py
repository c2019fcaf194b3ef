"""Extended XYZ, also compressed or in archives; the splits of MACE-OFF and the extended XYZ of MPtrj among them."""

import io
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import count, islice
from typing import Any

import numpy as np
from ase import Atoms
from ase.io.extxyz import read_xyz

from zoo.data.frame import Frame, electrons
from zoo.data.readers.archives import BROKEN, Stream, streams
from zoo.data.readers.base import REPAIR, Origin, bare_atoms, broken, numeric, whole_number
from zoo.data.readers.materials_project import in_trajectory, of_frame_id, with_gaps
from zoo.data.readers.smiles import formal_charge
from zoo.errors import IntegrityError, LabelError

_MOST_ATOMS = 10_000_000  # a larger number is not a number of atoms


def read_extxyz(origin: Origin) -> Generator[Frame]:
    """The frames of a file, or of the ``*.xyz`` and ``*.extxyz`` of an archive, in order.

    Labels stand under ASE's keys, energy, forces and stress, or as ``REF_energy``, ``REF_forces`` and ``REF_stress``.
    A frame that has a ``corrected_total_energy``, as in MPtrj, has that for its energy: models of MPtrj learn it, and
    Amin et al. compare with it. The band gap is that of the material, as ``with_gaps`` finds it among the frames of it
    that follow one another in a file: among all in the archive of MPtrj, which has a file a material. Other columns and
    keys, such as ``MACE_energy``, are left out. A cut between two frames, or within the last number of a file, cannot
    be seen; that is what digests are for.
    """
    with closing(streams(origin, (".xyz", ".extxyz"))) as opened:
        for stream in opened:
            yield from with_gaps(_frames(stream))


def _frames(stream: Stream) -> Iterator[Frame]:
    for index, place, text in _chunks(stream):
        with broken(place, "extended XYZ", Exception):  # ASE raises whatever its columns and keys raise
            atoms = next(read_xyz(io.StringIO(text), 0))
        yield _frame(place, index, atoms)


def _chunks(stream: Stream) -> Iterator[tuple[int, str, str]]:
    """The text of each frame: a line with the number of atoms, the comment, a line for each atom."""
    lines = (line.decode("utf-8") for line in stream.bytes)
    for index in count():
        place = f"frame {index} of {stream.label}"
        with broken(place, "extended XYZ", UnicodeDecodeError, *BROKEN):
            first = next((line for line in lines if line.strip()), None)
            if first is None:
                return
            number = _atom_count(place, first)
            chunk = list(islice(lines, number + 1))
        if len(chunk) <= number:
            raise IntegrityError(
                f"{place} is cut short: {max(len(chunk) - 1, 0)} of its {number} atoms are there; fetch the file again"
            )
        yield index, place, "".join([first, *chunk])


def _atom_count(place: str, line: str) -> int:
    text = line.strip()
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:20]) <= _MOST_ATOMS:
        raise IntegrityError(
            f"{place} begins with {text[:40]!r}, expected the number of its atoms; {REPAIR}, or give its format"
        )
    return int(text)


def _frame(place: str, index: int, atoms: Atoms) -> Frame:
    info = atoms.info
    material, trajectory, index = _trajectory(place, info, index)
    smiles = _text(info, "smiles")
    energy = _either(place, atoms, "energy")
    if "corrected_total_energy" in info:
        energy = info["corrected_total_energy"]
    bare = bare_atoms(
        place,
        atoms.numbers,
        atoms.positions,
        cell=atoms.cell[:],
        pbc=atoms.pbc,
        energy=energy,
        forces=_either(place, atoms, "forces"),
        stress=_matrix(_either(place, atoms, "stress")),
    )
    bare.info = electrons(atoms)
    return Frame(
        atoms=bare,
        place=place,
        molecule=smiles,
        material=material,
        trajectory=trajectory,
        index=index,
        part=_text(info, "config_type"),
        charge=_charge(place, info, smiles),
        band_gap=_band_gap(place, info),
    )


def _either(place: str, atoms: Atoms, key: str) -> Any:
    """A label under ASE's key or MACE's. Raises LabelError where they differ."""
    results = {} if atoms.calc is None else atoms.calc.results
    own = results.get(key)
    other = atoms.arrays.get(f"REF_{key}", atoms.info.get(f"REF_{key}"))
    if own is not None and other is not None and not np.array_equal(own, other):
        raise LabelError(f"{place} has both {key} and REF_{key}, and they differ; remove the one that is not meant")
    return other if own is None else own


def _matrix(stress: Any) -> Any:
    """(3, 3) of nine numbers, which are read as they stand; a stress is symmetric."""
    return np.reshape(stress, (3, 3)) if np.shape(stress) == (9,) else stress


def _trajectory(place: str, info: dict[str, Any], index: int) -> tuple[str | None, str | None, int]:
    """Material, trajectory and place in it, where the frame says so as MPtrj's files do."""
    keys = ("mp_id", "mptrj_traj_id", "material_id")
    material = next((text for key in keys if (text := _text(info, key)) is not None), None)
    if material is None:
        return None, None, index
    if (snapshot := _text(info, "mptrj_snapshot_id")) is not None:
        return material, *of_frame_id(material, snapshot, index)
    if {"task_id", "calc_id", "ionic_step"} <= info.keys():
        calculation, step = (whole_number(place, key, info[key]) for key in ("calc_id", "ionic_step"))
        return material, *in_trajectory(material, str(info["task_id"]), calculation, step)
    return material, None, index


def _charge(place: str, info: dict[str, Any], smiles: str | None) -> int | None:
    for key in ("charge", "total_charge"):
        if key in info:
            return whole_number(place, key, info[key])
    return None if smiles is None else formal_charge(smiles)


def _band_gap(place: str, info: dict[str, Any]) -> float | None:
    key = next((key for key in ("bandgap", "band_gap") if key in info), None)
    return None if key is None else float(numeric(place, key, info[key], ()))


def _text(info: dict[str, Any], key: str) -> str | None:
    """A text of the comment line; what ASE took for a number or a truth is text again: F is fluorine."""
    value = info.get(key)
    if isinstance(value, bool | np.bool_):
        return "T" if value else "F"
    return None if value is None else str(value)
