"""Structures that a recipe asks for, made from its seed: strained, sheared, rattled cells and snapshots of dynamics."""

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.md.langevin import Langevin
from tqdm import tqdm

from zoo.config import canonical_json
from zoo.errors import DivergedError, IntegrityError, ZooError
from zoo.files import atomic_write, sha256_file
from zoo.neighbors import check_structure
from zoo.ops import deterministic
from zoo.recipe import Crystal, DynamicsGroup, Group, RattledGroup, Split, UnitCell
from zoo.thermal import thermal_velocities
from zoo.units import ASE_TIME_PER_FS

FORMAT = 1


def structure_digest(atoms: Atoms) -> str:
    """Hex SHA-256 of what a potential sees: elements, positions, cell, periodicity."""
    content = hashlib.sha256()
    content.update(np.ascontiguousarray(atoms.numbers, dtype="<i8").tobytes())
    content.update(np.ascontiguousarray(atoms.positions, dtype="<f8").tobytes())
    content.update(np.ascontiguousarray(atoms.cell[:], dtype="<f8").tobytes())
    content.update(np.ascontiguousarray(atoms.pbc, dtype="u1").tobytes())
    return content.hexdigest()


def perfect_crystal(crystal: Crystal, supercell: Sequence[int] = (1, 1, 1), cell: UnitCell = "conventional") -> Atoms:
    """A supercell of the conventional cell, or of the primitive one."""
    conventional = cell == "conventional"
    unit = bulk(crystal.formula, crystal.prototype, a=crystal.lattice_constant, cubic=conventional)
    return unit.repeat(tuple(supercell))


def rattled(crystal: Crystal, group: RattledGroup, seed: int) -> list[Atoms]:
    """The frames of a rattled group. A frame depends on the seed, the group's name and its own number alone."""
    frames = []
    for number in range(group.count):
        random = np.random.default_rng([seed, _name_seed(group.name), number])
        atoms = perfect_crystal(crystal, group.supercell, group.cell)
        atoms.set_cell(atoms.cell[:] @ (np.eye(3) + _random_strain(group, random)), scale_atoms=True)
        sigma = random.uniform(*group.displacement)
        atoms.positions += random.normal(0.0, sigma, atoms.positions.shape)
        frames.append(atoms)
    return frames


def trajectory(crystal: Crystal, group: DynamicsGroup, seed: int, calculator: Calculator) -> list[Atoms]:
    """Snapshots of Langevin dynamics with the teacher. Raises DivergedError where it explodes."""
    random = np.random.default_rng([seed, _name_seed(group.name)])
    atoms = perfect_crystal(crystal, group.supercell, group.cell)
    atoms.set_cell(atoms.cell[:] * (1 + group.strain), scale_atoms=True)
    atoms.calc = calculator
    # from rest positions: half of the kinetic energy soon becomes potential
    atoms.set_velocities(thermal_velocities(atoms.get_masses(), 2 * group.temperature, random))
    dynamics = Langevin(
        atoms,
        group.timestep * ASE_TIME_PER_FS,
        temperature_K=group.temperature,
        friction=group.friction / ASE_TIME_PER_FS,
        rng=random,
        fixcm=False,
    )
    frames = []
    steps = [group.settle, *[group.interval] * group.count]
    for number, count in enumerate(tqdm(steps, desc=f"dynamics {group.name}", unit="frame", delay=2)):
        try:
            with deterministic():
                dynamics.run(count)
        except ZooError as error:
            raise DivergedError(
                f"group {group.name}: its dynamics exploded ({error}); lower its temperature or its timestep"
            ) from error
        if number > 0:
            frames.append(Atoms(atoms.numbers, atoms.positions.copy(), cell=atoms.cell, pbc=atoms.pbc))
    return frames


def write_group(folder: Path, group: Group, frames: Sequence[Atoms]) -> Path:
    """Writes a group as extended XYZ, whole or not at all."""
    text = io.StringIO()
    for atoms in frames:
        check_structure(atoms)
        atoms.info = {"group": group.name, "split": group.split}
        ase.io.write(text, atoms, format="extxyz")
    path = folder / f"{group.name}.extxyz"
    atomic_write(path, text.getvalue())
    return path


def write_manifest(folder: Path, groups: Sequence[Group]) -> None:
    """Ends a folder of structures: the digest of each file."""
    files = {f"{group.name}.extxyz": sha256_file(folder / f"{group.name}.extxyz") for group in groups}
    atomic_write(folder / "manifest.json", canonical_json({"format": FORMAT, "files": files}))


def read_split(folder: Path, groups: Sequence[Group], split: Split) -> list[Atoms]:
    """All structures of one split, in the order of the groups. Raises IntegrityError for an altered file."""
    manifest = json.loads((folder / "manifest.json").read_text())
    frames: list[Atoms] = []
    for group in groups:
        if group.split != split:
            continue
        path = folder / f"{group.name}.extxyz"
        if not path.is_file() or sha256_file(path) != manifest["files"].get(path.name):
            raise IntegrityError(
                f"{path} is missing or was changed since it was made; delete the folder {folder} and run the same again"
            )
        frames += ase.io.read(path, index=":", format="extxyz")
    return frames


def _random_strain(group: RattledGroup, random: np.random.Generator) -> np.ndarray:
    """(3, 3) symmetric, dimensionless"""
    strain = np.diag(random.uniform(-group.strain, group.strain, 3))
    upper = random.uniform(-group.shear, group.shear, 3)
    for value, (row, column) in zip(upper, ((0, 1), (0, 2), (1, 2)), strict=True):
        strain[row, column] = strain[column, row] = value
    return strain


def _name_seed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
