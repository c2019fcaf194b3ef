"""Displaced supercells and their forces, as phonopy saves them in YAML.

The file is read here and not by phonopy, whose loader of YAML runs what a file tells it to.
"""

from collections.abc import Generator
from contextlib import closing
from typing import Any

import numpy as np
import yaml

from zoo.data.frame import Frame
from zoo.data.readers.archives import BROKEN, streams
from zoo.data.readers.base import REPAIR, Origin, atomic_number, bare_atoms, broken, numeric
from zoo.errors import IntegrityError

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it
_IN_EV_AND_ANGSTROM = (None, "vasp", "aims", "lammps", "pwmat", "crystal", "castep")  # calculators by phonopy's names
_UNITS = {"length": "angstrom", "force": "eV/angstrom", "energy": "eV"}
Snapshot = dict[str, Any]  # displacements, and the forces and the energy where they are known


def read_phonopy(origin: Origin) -> Generator[Frame]:
    """The supercells of a file of phonopy, also compressed, each displaced as its data set says; three layouts of it.

    Frames without an energy have forces alone. Raises IntegrityError for files of calculators in other units than eV
    and Å. The frames are independent, of no trajectory.
    """
    with closing(streams(origin, (".yaml", ".yml"))) as opened:
        for stream in opened:
            with broken(stream.label, "YAML of phonopy", yaml.YAMLError, UnicodeDecodeError, ValueError, *BROKEN):
                content = yaml.load(stream.bytes, Loader=_LOADER)
            with broken(stream.label, "YAML of phonopy", KeyError, TypeError, ValueError, IndexError, AttributeError):
                _check_units(stream.label, content)
                numbers, positions, cell = _supercell(stream.label, content)
                snapshots = _snapshots(stream.label, content, len(numbers))
            for index, snapshot in enumerate(snapshots):
                place = f"frame {index} of {stream.label}"
                moved = positions + numeric(place, "displacements", snapshot.pop("displacements"), positions.shape)
                yield Frame(bare_atoms(place, numbers, moved, cell=cell, **snapshot), place=place, index=index)


def _check_units(label: str, content: Any) -> None:
    if not isinstance(content, dict) or "supercell" not in content:
        raise IntegrityError(f"{label} has no supercell; give a file that phonopy saved, or the format of this one")
    calculator = (content.get("phonopy") or {}).get("calculator")
    if calculator not in _IN_EV_AND_ANGSTROM:
        raise IntegrityError(
            f"{label} is of the calculator {calculator}, not in eV and Å; convert it, to extended XYZ say"
        )
    stated = content.get("physical_unit") or {}
    for key, expected in _UNITS.items():
        if stated.get(key, expected) != expected:
            raise IntegrityError(f"{label} has its {key} in {stated[key]!r}, expected {expected}; convert it")


def _supercell(label: str, content: dict[str, Any]) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Atomic numbers, positions and lattice vectors, in Å."""
    supercell = content["supercell"]
    cell = numeric(label, "lattice", supercell["lattice"], (3, 3))
    points = supercell["points"]
    if any("mixture" in point or "weight" in point for point in points):
        raise IntegrityError(f"{label} has sites that several elements share; give a supercell of whole atoms")
    numbers = [atomic_number(label, point["symbol"]) for point in points]
    fractions = numeric(label, "coordinates", [point["coordinates"] for point in points], (len(points), 3))
    return numbers, fractions @ cell, cell


def _snapshots(label: str, content: dict[str, Any], atoms: int) -> list[Snapshot]:
    """By the layout: a data set since phonopy 2.24, single atoms, all atoms before that."""
    if "dataset" in content:
        found = _of_dataset(content["dataset"])
    elif not content.get("displacements"):
        raise IntegrityError(f"{label} has no displacements; give a file that phonopy saved with its data set")
    elif isinstance(content["displacements"][0], dict):
        return [_of_one_atom(entry, atoms) for entry in content["displacements"]]
    else:
        found = _of_all_atoms(content)
    return _joined(label, found)


def _joined(label: str, found: dict[str, Any]) -> list[Snapshot]:
    counts = {key: len(values) for key, values in found.items()}
    if len(set(counts.values())) != 1:
        told = ", ".join(f"{count} {key}" for key, count in counts.items())
        raise IntegrityError(f"{label} has {told}, expected as many of each; {REPAIR}")
    return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]


def _of_dataset(dataset: dict[str, Any]) -> dict[str, Any]:
    names = {"displacements": "displacements", "forces": "forces", "supercell_energies": "energy"}
    return {name: dataset[key] for key, name in names.items() if key in dataset or key == "displacements"}


def _of_one_atom(entry: dict[str, Any], atoms: int) -> Snapshot:
    displacements = np.zeros((atoms, 3))
    if not 1 <= entry["atom"] <= atoms:
        raise ValueError(f"atom {entry['atom']} of {atoms}")
    displacements[entry["atom"] - 1] = entry["displacement"]
    labels = {"forces": entry.get("forces"), "energy": entry.get("supercell_energy")}
    return {"displacements": displacements} | labels


def _of_all_atoms(content: dict[str, Any]) -> dict[str, Any]:
    frames = content["displacements"]
    found = {"displacements": [[atom["displacement"] for atom in frame] for frame in frames]}
    if "force" in frames[0][0]:
        found["forces"] = [[atom["force"] for atom in frame] for frame in frames]
    if "supercell_energies" in content:
        found["energy"] = content["supercell_energies"]
    return found
