"""Recipes for tests: the whole chain in seconds, with the closed-form teacher."""

import copy
from pathlib import Path
from typing import Any

import yaml

from zoo.config import parse
from zoo.recipe import Recipe

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
