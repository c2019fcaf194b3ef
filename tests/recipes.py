"""Recipes for tests: the whole chain in seconds, with the closed-form teacher."""

import copy
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import yaml
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from zoo.calculator import ZooCalculator
from zoo.config import parse
from zoo.files import sha256_file
from zoo.recipe import Recipe
from zoo.teachers import load_teacher

TINY: dict[str, Any] = {
    "format": 1,
    "name": "stillinger-weber/tiny-student",
    "purpose": "A few cells of silicon, for the tests of zoo.",
    "subset": "silicon",
    "licence": "MIT",
    "seed": 7,
    "teacher": {"name": "stillinger-weber/teacher", "dtype": "float64"},
    "structures": {
        "crystal": {"formula": "Si", "prototype": "diamond", "lattice_constant": 5.43},
        "groups": [
            {
                "name": "cells",
                "kind": "rattled",
                "split": "train",
                "supercell": [1, 1, 1],
                "count": 6,
                "displacement": [0.01, 0.1],
                "strain": 0.03,
                "shear": 0.02,
            },
            {
                "name": "path",
                "kind": "dynamics",
                "split": "train",
                "supercell": [1, 1, 1],
                "count": 3,
                "temperature": 300,
                "interval": 5,
            },
            {
                "name": "held",
                "kind": "rattled",
                "split": "validation",
                "supercell": [2, 1, 1],
                "count": 2,
                "displacement": [0.01, 0.1],
                "strain": 0.03,
                "shear": 0.02,
            },
            {
                "name": "tested",
                "kind": "rattled",
                "split": "test",
                "supercell": [1, 2, 1],
                "count": 2,
                "displacement": [0.05, 0.12],
                "strain": 0.04,
                "shear": 0.03,
            },
        ],
    },
    "labels": {"probes": "rademacher", "probes_per_structure": 2, "shard_size": 3},
    "student": {
        "architecture": "painn",
        "elements": ["Si"],
        "channels": 8,
        "layers": 2,
        "radials": 6,
        "cutoff": 4.0,
    },
    "loss": {"energy": 5, "force": 100, "stress": 100, "hessian": 20, "probes_per_step": 1},
    "training": {
        "steps": 40,
        "batch_size": 4,
        "learning_rate": 5e-3,
        "warmup_steps": 5,
        "log_every": 5,
        "validate_every": 20,
        "checkpoint_every": 7,
    },
    "evaluation": {
        "dynamics_supercell": [1, 1, 1],
        "initial_temperature": 100,
        "dynamics_steps": 450,
        "teacher_dynamics_supercell": [1, 1, 1],
        "teacher_dynamics_steps": 450,
        "phonon_supercell": [1, 1, 1],
        "timing_supercell": [1, 1, 1],
        "timing_repeats": 3,
        "timing_threads": 1,
    },
}


def tiny_recipe(**changes: Any) -> Recipe:
    """The tiny recipe; a change is named by its path, as in ``training__steps=3``."""
    return parse(Recipe, tiny_data(**changes), "the tiny recipe")


def tiny_data(**changes: Any) -> dict[str, Any]:
    """The data of the tiny recipe with changes; a value of ``...`` removes the key."""
    data = copy.deepcopy(TINY)
    for path, value in changes.items():
        *sections, key = path.split("__")
        place = data
        for section in sections:
            place = place[section]
        if value is ...:
            del place[key]
        else:
            place[key] = value
    return data


def write_tiny(folder: Path, **changes: Any) -> Path:
    """The tiny recipe as a file."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_data(**changes), sort_keys=False))
    return path


def silicon_clusters(count: int, seed: int = 0) -> list[Atoms]:
    """Molecules of five atoms, tetrahedra about a centre, with energies and forces near those of the teacher.

    Each has a cell that means nothing, as files of molecules often do.
    """
    random = np.random.default_rng(seed)
    corners = np.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) * 2.35 / np.sqrt(3)
    calculator = ZooCalculator(load_teacher("stillinger-weber/teacher").potential)
    clusters = []
    for _ in range(count):
        atoms = Atoms("Si5", [[0.0, 0.0, 0.0], *corners], cell=[50.0] * 3)
        atoms.positions = np.round(atoms.positions + random.normal(0, 0.08, (5, 3)), 8)
        atoms.calc = calculator
        energy, forces = atoms.get_potential_energy() - 100, atoms.get_forces() * 1.1
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        clusters.append(atoms)
    return clusters


def frames_data(folder: Path, clusters: list[Atoms] | None = None, **changes: Any) -> dict[str, Any]:
    """The data of a tiny recipe of molecules from a file, which is written into ``folder``."""
    path = folder / "clusters.xyz.gz"
    ase.io.write(path, silicon_clusters(12) if clusters is None else clusters, format="extxyz")
    file = {"kind": "frames", "file": str(path), "sha256": sha256_file(path)}
    groups = [
        {**file, "name": "learned", "split": "train", "count": 6},
        {**file, "name": "held", "split": "validation", "start": 6, "count": 2},
        {**file, "name": "tested", "split": "test", "start": 8, "count": 4},
    ]
    evaluation = {key: value for key, value in TINY["evaluation"].items() if "supercell" not in key}
    own = {
        "name": "stillinger-weber/tiny-molecule",
        "purpose": "Five atoms of silicon in vacuum, for the tests of zoo.",
        "subset": "silicon-clusters",
        "structures": {"groups": groups, "data": [{"name": "clusters", "licence": "CC0-1.0"}]},
        "loss__stress": 0,
        "evaluation": evaluation | {"initial_temperature": 50},
    }
    return tiny_data(**(own | changes))


def frames_recipe(folder: Path, **changes: Any) -> Recipe:
    """The tiny recipe of molecules, with changes as in ``tiny_recipe``."""
    return parse(Recipe, frames_data(folder, **changes), "the tiny recipe of molecules")
