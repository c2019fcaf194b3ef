"""A frame of a data set: atoms in eV and Å, its labels, and what the data set says of it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms

from zoo.calculator import CHARGES, SPINS

_USUAL = {**dict.fromkeys(CHARGES, (0,)), **dict.fromkeys(SPINS, (0, 1))}  # which say nothing, or the same as nothing


@dataclass(frozen=True)
class Frame:
    """One frame as a reader yields it. What a data set does not say is None."""

    atoms: Atoms  # bare; energy, forces, stress (eV, Å, ASE's signs) in a SinglePointCalculator where it has labels
    place: str  # what to call it: "frame 17 of ethanol.npz"
    molecule: str | None = None  # name or SMILES
    material: str | None = None  # its key in the data set: mp-1234
    trajectory: str | None = None
    index: int = 0  # its place in the trajectory, or in the file
    part: str | None = None  # of the data set, by its own name for it: "DES370K Monomers"
    charge: int | None = None  # e, of the whole
    band_gap: float | None = None  # eV


def electrons(atoms: Atoms) -> dict[str, Any]:
    """What a frame states of its charge and multiplicity in ``info``, or by initial charges that add up to an ion's.

    As ``info`` of atoms that are to state the same; empty where all is as in neutral structures of closed shells.
    """
    info, partial = atoms.info, atoms.arrays.get("initial_charges")
    said = {
        key: info[key] for key, usual in _USUAL.items() if info.get(key) is not None and not _is_any(info[key], usual)
    }
    if (
        partial is not None
        and not any(info.get(key) is not None for key in CHARGES)
        and (total := round(partial.sum()))
    ):
        said["charge"] = int(total)
    return said


def _is_any(value: Any, usual: tuple[int, ...]) -> bool:
    return any(np.array_equal(value, one) for one in usual)
