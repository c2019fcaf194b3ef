"""A tiny model folder as distillation would leave it, that the tests of artifact, hub and engine share."""

from pathlib import Path

import numpy as np
import structures as scenes
import torch
import yaml
from ase import Atoms
from ase.build import bulk

from zoo.artifact import (
    ArtifactConfig,
    Domain,
    Lineage,
    Probe,
    count_parameters,
    probe_predictions,
    write_model_folder,
)
from zoo.files import sha256_file
from zoo.licences import TERMS
from zoo.students import PaiNN
from zoo.teachers import load_teacher

NAME = "sevennet-0/silicon-student"
BODY = "# A tiny engine\n\n![Its forces.](figures/parity.png)\n"


def cells(count: int = 2, size: int = 1) -> list[Atoms]:
    """Rattled cubic cells of silicon."""
    cell = bulk("Si", "diamond", a=scenes.LATTICE, cubic=True).repeat((size, 1, 1))
    many = [cell.copy() for _ in range(count)]
    for seed, atoms in enumerate(many):
        atoms.rattle(0.05, seed=seed)
    return many


def domain(**changes: object) -> Domain:
    values = {
        "elements": ("Si",),
        "pbc": (True, True, True),
        "min_distance_A": 1.8,
        "volume_per_atom_A3": (16.0, 24.0),
        "max_atoms_trained": 8,
        "description": "rattled diamond silicon",
    }
    return Domain(**(values | changes))


def lineage(**changes: object) -> Lineage:
    values = {
        "recipe_sha256": "1" * 64,
        "structures_sha256": "2" * 64,
        "labels_sha256": "3" * 64,
        "teacher": "stillinger-weber/teacher",
        "teacher_weights_sha256": "4" * 64,
        "teacher_licence_weights": "CC0-1.0",
        "level_of_theory": "Stillinger-Weber",
        "seed": 0,
        "steps": 1,
        "code_version": "0.1.0",
    }
    return Lineage(**(values | changes))


def config_of(student: PaiNN, **changes: object) -> ArtifactConfig:
    values = {
        "name": NAME,
        "licence": "MIT",
        "architecture": student.config,
        "domain": domain(),
        "lineage": lineage(),
        "dtype": "float64",
        "parameters": count_parameters(student),
    }
    return ArtifactConfig(**(values | changes))


def card_of(config: ArtifactConfig, weights_sha256: str = "5" * 64) -> bytes:
    """A short card that says of an engine what its config says."""
    block = {
        "schema": 1,
        "name": config.name,
        "purpose": "To be tested",
        "subset": "silicon",
        "level_of_theory": config.lineage.level_of_theory,
        "licence_code": "MIT",
        "licence_weights": config.licence,
        "elements": list(config.domain.elements),
        "teacher": {
            "name": config.lineage.teacher,
            "weights_sha256": config.lineage.teacher_weights_sha256,
            "licence": config.lineage.teacher_licence_weights,
        },
        "data": [source.model_dump() for source in config.lineage.data],
        "recipe": {"sha256": config.lineage.recipe_sha256},
        "structures_sha256": config.lineage.structures_sha256,
        "labels_sha256": config.lineage.labels_sha256,
        "domain": config.domain.model_dump(mode="json"),
        "weights": {
            "file": "model.safetensors",
            "sha256": weights_sha256,
            "dtype": config.dtype,
            "parameters": config.parameters,
        },
        "probe": {"file": "probe.safetensors", "tolerance": config.probe_tolerance.model_dump()},
        "metrics": {},
    }
    keys = TERMS[config.licence].card_keys if config.licence in TERMS else {"license": config.licence.lower()}
    if config.lineage.teacher_terms:
        keys["extra_gated_prompt"] = config.lineage.teacher_terms
    data = {"library_name": "zoo", "pipeline_tag": "graph-ml", **keys, "tags": ["mlip"], "zoo": block}
    return f"---\n{yaml.safe_dump(data, sort_keys=False)}---\n{BODY}".encode()


CARD = card_of(config_of(scenes.tiny_painn("Si", seed=7)))
DOCUMENTS = {
    "README.md": CARD,
    "recipe.yaml": b"name: x\n",
    "report.json": b"{}\n",
    "figures/parity.png": b"\x89PNG",
}


def probe_of(student: PaiNN) -> Probe:
    structures = [*cells(1), *cells(1, size=2)]
    generator = torch.Generator().manual_seed(5)
    vectors = [torch.randn(2, len(atoms), 3, generator=generator, dtype=torch.float64) for atoms in structures]
    teacher = load_teacher("stillinger-weber/teacher", dtype=torch.float64).potential
    sides = [probe_predictions(potential, structures, vectors) for potential in (student, teacher)]
    return Probe(structures, vectors, *sides)


def make_folder(folder: Path, *, seed: int = 7, **changes: object) -> Path:
    """A whole model folder around a tiny PaiNN drawn from ``seed``."""
    student = scenes.tiny_painn("Si", seed=seed)
    config, probe, files = config_of(student, **changes), probe_of(student), dict(DOCUMENTS)
    write_model_folder(folder, config=config, potential=student, probe=probe, files=files)
    files["README.md"] = card_of(config, sha256_file(folder / "model.safetensors"))
    write_model_folder(folder, config=config, potential=student, probe=probe, files=files)
    return folder


def tree(folder: Path) -> dict[str, bytes | str]:
    """Everything below a folder: content of files, targets of links."""
    return {
        path.relative_to(folder).as_posix(): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def same(first: object, second: object) -> bool:
    return bool(np.array_equal(np.asarray(first), np.asarray(second)))
