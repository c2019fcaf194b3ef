"""SPICE in HDF5, versions 1 and 2, and the conformations that it was computed on."""

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.data.frame import Frame
from zoo.data.readers.base import REPAIR, Origin, bare_atoms, broken, missing_package
from zoo.data.readers.smiles import formal_charge, mapped_elements
from zoo.errors import IntegrityError
from zoo.units import ANGSTROM_PER_BOHR, ANGSTROM_PER_NM, EV_PER_HARTREE

if TYPE_CHECKING:
    from h5py import Group

_HARTREE_PER_BOHR = EV_PER_HARTREE / ANGSTROM_PER_BOHR  # → eV/Å
_LABELS = {"dft_total_energy": "hartree", "dft_total_gradient": "hartree/bohr"}
_INPUT = "nanometers"  # the unit of the conformations that were to be computed, which have no labels


def read_spice(origin: Origin) -> Generator[Frame]:
    """The frames of SPICE, molecule by molecule: one group of the file is in memory at a time.

    Forces are minus the gradients of the file. The molecule is its mapped SMILES, whose formal charges add up to the
    frame's charge where they can be read; the group's name stands in the place of the frame. The input files of SPICE,
    in nanometres and without labels, are told by the unit of their conformations; the map of their SMILES says the
    elements.
    """
    try:
        import h5py
    except ImportError as error:
        raise missing_package("h5py", "SPICE's HDF5 files") from error
    form = "SPICE's HDF5"
    with broken(origin.label, form, OSError, RuntimeError, KeyError), h5py.File(origin.path, "r") as file:
        for name in file:
            where = f"group {name} of {origin.label}"
            with broken(where, form, OSError, RuntimeError, KeyError, ValueError, TypeError):
                group = file[name]
                if not isinstance(group, h5py.Group):
                    raise IntegrityError(f"{where} is no molecule but an array; give the format of the file")
                frames = list(_molecule(where, group))
            yield from frames


def _molecule(where: str, group: "Group") -> Iterator[Frame]:
    unit = _unit(where, group, "conformations")
    labelled = unit == "bohr"
    if not labelled and (unit != _INPUT or any(key in group for key in _LABELS)):
        raise IntegrityError(f"{where} has conformations in {unit!r}, expected bohr; {REPAIR}")
    smiles = _text(where, group, "smiles")
    positions = _array(where, group, "conformations") * (ANGSTROM_PER_BOHR if labelled else ANGSTROM_PER_NM)
    numbers = _array(where, group, "atomic_numbers") if labelled else np.array(mapped_elements(where, smiles))
    labels = _labels(where, group) if labelled else {}
    counts = {"conformations": len(positions)} | {key: len(values) for key, values in labels.items()}
    if len(set(counts.values())) != 1:
        told = ", ".join(f"{count} {key}" for key, count in counts.items())
        raise IntegrityError(f"{where} has {told}, expected as many of each; {REPAIR}")
    for index in range(len(positions)):
        place = f"frame {index} of {where}"
        frame_labels = {key: values[index] for key, values in labels.items()}
        yield Frame(
            atoms=bare_atoms(place, numbers, positions[index], **frame_labels),
            place=place,
            molecule=smiles,
            index=index,
            part=_text(where, group, "subset") if "subset" in group else None,
            charge=formal_charge(smiles),
        )


def _labels(where: str, group: "Group") -> dict[str, np.ndarray]:
    """Energies, eV, and forces, eV/Å, of all conformations."""
    for key, expected in _LABELS.items():
        if (unit := _unit(where, group, key)) != expected:
            raise IntegrityError(f"{where} has {key} in {unit!r}, expected {expected}; {REPAIR}")
    energies = _array(where, group, "dft_total_energy")
    gradients = _array(where, group, "dft_total_gradient")
    return {"energy": energies * EV_PER_HARTREE, "forces": gradients * -_HARTREE_PER_BOHR}


def _dataset(where: str, group: "Group", key: str) -> Any:
    if key not in group:
        raise IntegrityError(f"{where} has no {key}, only {', '.join(sorted(group)[:12])}; give its format")
    return group[key]


def _array(where: str, group: "Group", key: str) -> np.ndarray:
    """Numbers, in float64 unless they are whole."""
    found = np.atleast_1d(_dataset(where, group, key)[()])
    if found.dtype.kind not in "fiu":
        raise IntegrityError(f"{where}: its {key} are of the type {found.dtype}, expected real numbers; {REPAIR}")
    return found.astype(np.float64) if found.dtype.kind == "f" else found


def _unit(where: str, group: "Group", key: str) -> str:
    unit = _dataset(where, group, key).attrs.get("units", "no unit")
    return unit.decode() if isinstance(unit, bytes) else str(unit)


def _text(where: str, group: "Group", key: str) -> str:
    value = np.atleast_1d(_dataset(where, group, key)[()]).tolist()
    if len(value) != 1 or not isinstance(value[0], bytes | str):
        raise IntegrityError(f"{where}: its {key} is not one text; {REPAIR}")
    return value[0].decode() if isinstance(value[0], bytes) else value[0]
