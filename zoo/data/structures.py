"""Structures that a recipe asks for, made from its seed: cells strained, sheared and rattled, snapshots of dynamics,
and frames of files, as they are or displaced."""

import gzip
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress
from tqdm import tqdm

from zoo.config import canonical_json, digest
from zoo.data.frame import electrons
from zoo.data.store import DATA_FOLDERS
from zoo.errors import (
    ConfigError,
    DivergedError,
    IntegrityError,
    LabelError,
    StructureError,
    UnknownNameError,
    ZooError,
)
from zoo.files import atomic_write, sha256_file
from zoo.neighbors import check_structure
from zoo.ops import deterministic
from zoo.potential import Prediction
from zoo.recipe import Crystal, Displaced, DynamicsGroup, FramesGroup, Group, RattledGroup, Split, SubsetGroup, UnitCell
from zoo.thermal import langevin, thermal_velocities

FORMAT = 1
_LOCKS = ("lock.mdb", "data.mdb-lock")  # what LMDB leaves beside its data when they are read


def structure_digest(atoms: Atoms) -> str:
    """Hex SHA-256 of what a potential sees: elements, positions, cell, periodicity."""
    content = hashlib.sha256()
    content.update(np.ascontiguousarray(atoms.numbers, dtype="<i8").tobytes())
    content.update(np.ascontiguousarray(atoms.positions, dtype="<f8").tobytes())
    content.update(np.ascontiguousarray(atoms.cell[:], dtype="<f8").tobytes())
    content.update(np.ascontiguousarray(atoms.pbc, dtype="u1").tobytes())
    return content.hexdigest()


def written_digest(atoms: Atoms) -> str:
    """The digest that a structure has once it came back from the file of its group, which keeps 8 decimals of an Å."""
    positions = np.array([float(f"{x:.8f}") for x in atoms.positions.ravel()]).reshape(-1, 3)
    return structure_digest(Atoms(atoms.numbers, positions, cell=atoms.cell, pbc=atoms.pbc))


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
        atoms.set_cell(
            atoms.cell[:] @ (np.eye(3) + _random_strain(group.strain, group.shear, random)), scale_atoms=True
        )
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
    dynamics = langevin(atoms, group.timestep, group.temperature, group.friction, random)
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


def find_data(group: FramesGroup) -> Path:
    """The file of a group. Raises as ``find_own`` does."""
    return find_own(f"group {group.name}", group.file, group.sha256)


def find_own(whose: str, name: str, sha256: str | None) -> Path:
    """A file or folder of the user's own, sought in the folders of ``ZOO_DATA`` unless its path is absolute.

    Raises UnknownNameError where it is nowhere, IntegrityError where none of that name has its digest.
    """
    given = os.environ.get(DATA_FOLDERS, "")
    folders = [Path(folder).expanduser() for folder in given.split(os.pathsep) if folder]
    places = [Path()] if Path(name).is_absolute() else folders
    found = [path for folder in places if (path := folder / name).exists()]
    if not found:
        named = ", ".join(map(str, folders)) or "no folder"
        stated = "" if sha256 is None else f" (SHA-256 {sha256})"
        raise UnknownNameError(
            f"{whose}: no file {name}{stated}; {DATA_FOLDERS} names {named}: set it to the folder that holds the file"
        )
    if sha256 is None:
        return found[0]
    digests = [data_digest(path) for path in found]
    if sha256 not in digests:
        raise IntegrityError(
            f"{whose}: {found[0]} has the digest {digests[0]}, expected {sha256}; fetch it again, "
            "or correct sha256 in the recipe if another version of the data set is meant"
        )
    return found[digests.index(sha256)]


def data_digest(path: Path) -> str:
    """Hex SHA-256 of a file, or of the names and digests of all files of a folder but hidden ones and LMDB's locks."""
    if path.is_file():
        return _file_digest(path)
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name not in _LOCKS)
    named = {file.relative_to(path).as_posix(): file for file in files if not file.name.startswith(".")}
    return digest({name: _file_digest(file) for name, file in named.items()})


def _file_digest(path: Path) -> str:
    status = path.stat()
    return _digest_of_version(path.resolve(), status.st_ino, status.st_size, status.st_mtime_ns)


@cache
def _digest_of_version(path: Path, inode: int, size: int, modified: int) -> str:
    """A file that did not change is read once in a process, however many ask."""
    return sha256_file(path)


def frames(group: FramesGroup, seed: int) -> list[Atoms]:
    """The frames of a group, each followed by its other copies; those as they are carry the labels of the file.

    A displaced frame depends on the seed, the group's name, its place among the group's frames and the number of its
    copy alone. Periodicity stays as the file says; the cell of a molecule, which means nothing, is left out. Raises
    UnknownNameError, IntegrityError, ConfigError where the file holds too few frames or a molecule is to be strained,
    StructureError and LabelError where a frame holds what is not a number.
    """
    path = find_data(group)
    chosen = list(islice(_passing(path, group), group.start, _stop(group), group.stride))
    if len(chosen) < group.count:
        passing = sum(1 for _ in _passing(path, group))
        raise ConfigError(
            f"group {group.name} asks for {group.count} frames, one in {group.stride} from frame {group.start} on, but "
            f"{group.file} has {passing} that pass its filters, which gives {len(chosen)}; lower count, start or stride"
        )
    return [
        copy for number, (name, atoms) in enumerate(chosen) for copy in frame_copies(group, name, atoms, seed, number)
    ]


def frame_copies(group: FramesGroup | SubsetGroup, name: str, atoms: Atoms, seed: int, number: int) -> Iterator[Atoms]:
    """A frame as it is, or its displaced copies, which depend on seed, group and the frame's own number alone.

    Raises StructureError, LabelError and ConfigError, which call it ``name``, where it is not fit for that.
    """
    _check_frame(group, name, atoms)
    for copy in range(group.copies):
        random = np.random.default_rng([seed, _name_seed(group.name), number, copy])
        yield _displaced(group, atoms, random) if group.moved else atoms


def _stop(group: FramesGroup) -> int:
    return group.start + group.stride * (group.count - 1) + 1


def _passing(path: Path, group: FramesGroup) -> Iterator[tuple[str, Atoms]]:
    """The frames of a file that pass the filters of a group, bare but for their labels, and what to call each."""
    for index, atoms in enumerate(_read(path)):
        if group.element is not None and group.element not in atoms.symbols:
            continue
        if group.max_atoms is not None and len(atoms) > group.max_atoms:
            continue
        name = f"frame {index} of {group.file}"
        if group.max_force is not None and not _largest_force(group, name, atoms) < group.max_force:
            continue
        yield name, bare(atoms)


def _read(path: Path) -> Iterator[Atoms]:
    """All frames of a file, one at a time where its format allows. Raises IntegrityError for what ASE cannot read."""
    unpacked = path.name.endswith((".xyz.gz", ".extxyz.gz"))
    try:
        yield from _read_unpacked(path) if unpacked else ase.io.iread(path, index=":")
    except Exception as error:  # each format of ASE has errors of its own
        problem = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise IntegrityError(
            f"{path} cannot be read by ASE ({problem}); give a file of one of its formats, with an ending that tells it"
        ) from error


def _read_unpacked(path: Path) -> Iterator[Atoms]:
    """The frames of a gzipped extended XYZ, unpacked first: ASE goes back in it, which gzip pays for."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        text = io.StringIO(file.read())
    yield from ase.io.iread(text, index=":", format="extxyz")


def _largest_force(group: FramesGroup, name: str, atoms: Atoms) -> float:
    forces = {} if atoms.calc is None else atoms.calc.results
    if forces.get("forces") is None:
        raise LabelError(f"group {group.name} has a max_force, but {name} has no forces; remove max_force")
    return float(np.abs(forces["forces"]).max())


def bare(atoms: Atoms) -> Atoms:
    """What a potential sees of a frame, its labels, and what it states of its electrons; other columns are left out."""
    cell = atoms.cell if any(atoms.pbc) else None
    bare = Atoms(atoms.numbers, atoms.positions, cell=cell, pbc=atoms.pbc, info=electrons(atoms))
    results = {} if atoms.calc is None else atoms.calc.results
    labels = {key: results[key] for key in ("energy", "forces", "stress") if results.get(key) is not None}
    if "stress" in labels and np.shape(labels["stress"]) == (3, 3):
        labels["stress"] = full_3x3_to_voigt_6_stress(labels["stress"])
    if labels:
        bare.calc = SinglePointCalculator(bare, **labels)
    return bare


def _check_frame(group: FramesGroup | SubsetGroup, name: str, atoms: Atoms) -> None:
    try:
        check_structure(atoms)
    except StructureError as error:
        raise StructureError(f"group {group.name}: {name}: {error}") from error
    labels = {} if atoms.calc is None or group.moved else atoms.calc.results
    for key, value in labels.items():
        if not np.isfinite(value).all():
            raise LabelError(
                f"group {group.name}: the {key} of {name} is not a finite number; choose other frames, or repair it"
            )
    if group.strain > 0 and not all(atoms.pbc):
        raise ConfigError(
            f"group {group.name} has a strain, but {name} ({atoms.symbols}) is not periodic in all three directions; "
            "set its strain to 0, or choose other frames"
        )


def _displaced(group: Displaced, atoms: Atoms, random: np.random.Generator) -> Atoms:
    """A copy without labels, strained, then each coordinate moved by a normal draw."""
    moved = Atoms(atoms.numbers, atoms.positions.copy(), cell=atoms.cell, pbc=atoms.pbc, info=electrons(atoms))
    if group.strain > 0:
        strain = _random_strain(group.strain, group.strain / 2, random)
        moved.set_cell(moved.cell[:] @ (np.eye(3) + strain), scale_atoms=True)
    sigma = random.uniform(*group.displacement)
    moved.positions += random.normal(0.0, sigma, moved.positions.shape)
    return moved


def check_elements(group: Group, structures: Sequence[Atoms], elements: Sequence[str]) -> None:
    """Raises ConfigError where a group holds an element that the student does not know."""
    held = {symbol for atoms in structures for symbol in atoms.get_chemical_symbols()}
    if missing := sorted(held - set(elements)):
        raise ConfigError(
            f"group {group.name} holds {', '.join(missing)}, which student.elements lacks; add what is missing there, "
            "or choose other frames"
        )


def check_splits(folder: Path, groups: Sequence[Group]) -> None:
    """Raises ConfigError where a structure stands in two splits, or where some are periodic otherwise than others."""
    splits: dict[str, Group] = {}
    first: tuple[str, Group] | None = None
    for group in groups:
        for atoms in read_group(folder, group):
            other = splits.setdefault(structure_digest(atoms), group)
            if other.split != group.split:
                raise ConfigError(
                    f"groups {other.name} and {group.name} hold the same {atoms.symbols} in two splits; choose other "
                    f"frames, {_other_way(other, group)}"
                )
            periodic = "pbc {} {} {}".format(*atoms.pbc)
            first = first or (periodic, group)
            if periodic != first[0]:
                raise ConfigError(
                    f"group {first[1].name} has {first[0]}, group {group.name} {periodic}; an engine is for one kind: "
                    "put molecules and crystals into two recipes"
                )


def _other_way(one: Group, other: Group) -> str:
    """What else can be done about a structure in two splits."""
    if one.kind == other.kind == "subset":
        return "or divide their subsets by what keeps equal frames together, as by material or by frame"
    return "or displace them"


def dataset_prediction(atoms: Atoms) -> Prediction | None:
    """The labels of a structure's own data set as a prediction of a batch of one; None where it has none.

    Energy and forces are float64, a stress that is not given is NaN. Raises LabelError for energy without forces,
    or forces without energy.
    """
    labels = {} if atoms.calc is None else atoms.calc.results
    energy, forces = labels.get("energy"), labels.get("forces")
    if energy is None and forces is None:
        return None
    if energy is None or forces is None:
        lacking = "energy" if energy is None else "forces"
        raise LabelError(
            f"{_belonging(atoms)} has labels without {lacking}; give a file whose frames have energy and forces, or "
            "set loss.*_from to teacher"
        )
    stress = np.full((3, 3), np.nan)
    if labels.get("stress") is not None and all(atoms.pbc):
        stress = voigt_6_to_full_3x3_stress(labels["stress"])
    return Prediction(
        energy=torch.tensor([float(energy)], dtype=torch.float64),
        forces=torch.from_numpy(np.array(forces, dtype=np.float64)),
        stress=torch.from_numpy(np.array(stress, dtype=np.float64))[None],
    )


def dataset_predictions(structures: Sequence[Atoms]) -> list[Prediction]:
    """The labels of the data set of each structure. Raises LabelError where one has none."""
    found = []
    for atoms in structures:
        prediction = dataset_prediction(atoms)
        if prediction is None:
            raise LabelError(
                f"{_belonging(atoms)} has no labels of its data set; give a file whose frames have energy and forces, "
                "or set loss.*_from to teacher"
            )
        found.append(prediction)
    return found


def _belonging(atoms: Atoms) -> str:
    """A structure by the group that it was written in."""
    return f"{atoms.symbols} of group {atoms.info['group']}" if "group" in atoms.info else str(atoms.symbols)


def write_group(folder: Path, group: Group, structures: Sequence[Atoms]) -> Path:
    """Writes a group as extended XYZ, whole or not at all."""
    text = io.StringIO()
    for atoms in structures:
        check_structure(atoms)
        atoms.info = {"group": group.name, "split": group.split} | electrons(atoms)
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
    return [atoms for group in groups if group.split == split for atoms in read_group(folder, group)]


def read_group(folder: Path, group: Group) -> list[Atoms]:
    """The structures of a group, with the labels that they were written with. Raises IntegrityError."""
    manifest = json.loads((folder / "manifest.json").read_text())
    path = folder / f"{group.name}.extxyz"
    if not path.is_file() or sha256_file(path) != manifest["files"].get(path.name):
        raise IntegrityError(
            f"{path} is missing or was changed since it was made; delete the folder {folder} and run the same again"
        )
    structures: list[Atoms] = ase.io.read(path, index=":", format="extxyz")
    return structures


def _random_strain(largest: float, shear: float, random: np.random.Generator) -> np.ndarray:
    """(3, 3) symmetric, dimensionless"""
    strain = np.diag(random.uniform(-largest, largest, 3))
    upper = random.uniform(-shear, shear, 3)
    for value, (row, column) in zip(upper, ((0, 1), (0, 2), (1, 2)), strict=True):
        strain[row, column] = strain[column, row] = value
    return strain


def _name_seed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
