"""A frame of a data set: atoms in eV and Å, its labels, and what the data set says of it."""

from dataclasses import dataclass

from ase import Atoms


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
