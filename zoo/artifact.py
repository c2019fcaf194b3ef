"""The model folder, written and read: what a hub holds of one engine.

``config.json`` architecture, domain and lineage · ``model.safetensors`` · ``probe.safetensors`` a few
structures with what engine and teacher say of them · ``novelty.safetensors``, if there is one, what tells how
new a structure is · ``README.md`` the card · ``recipe.yaml`` · ``report.json`` · ``figures/*.png`` ·
``manifest.json`` path, size and digest of all the others.

Reading takes JSON and safetensors only, and believes neither: digests first, then the schema, then the
headers of the tensors, then their numbers.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from ase import Atoms
from pydantic import AfterValidator, FailFast, Field, model_validator
from safetensors.torch import save
from torch import Tensor

from zoo.config import MAX_CONFIG_BYTES, Config, parse, read_json, write_json
from zoo.errors import ConfigError, IntegrityError
from zoo.files import atomic_write, replacing, sha256_file
from zoo.licences import Source
from zoo.naming import quoted
from zoo.neighbors import build_graph, complete_cell
from zoo.novelty import NoveltyModel, novelty_layout
from zoo.potential import Potential, Prediction
from zoo.students import Student, StudentConfig, build_student
from zoo.tensors import Layout, WithoutParameters, read_layout, read_tensors, shown

MANIFEST = "manifest.json"
CONFIG = "config.json"
MODEL = "model.safetensors"
PROBE = "probe.safetensors"
NOVELTY = "novelty.safetensors"  # older folders lack it, and so do those of students without node features
DOCUMENTS = ("README.md", "recipe.yaml", "report.json")  # for people; an engine runs without them
DTYPES = {"float32": torch.float32, "float64": torch.float64}

_FIGURE = re.compile(r"figures/[A-Za-z0-9][A-Za-z0-9_-]*\.png")
# Of any other file it is MAX_FIGURE_BYTES or MAX_CONFIG_BYTES.
_MAX_BYTES = {MODEL: 4 << 30, PROBE: 256 << 20, NOVELTY: 256 << 20}
_MAX_FIGURE_BYTES = 32 << 20
_MAX_PAIRS = 20_000_000  # of atoms, with images, in a probe: what a machine with little memory recomputes
_REMEDY = "fetch the model folder again, or make it again with zoo distill"


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"{quoted(text)} is not one line that can be printed")
    return text


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Line = Annotated[str, Field(max_length=1000), AfterValidator(_one_line)]


class Domain(Config):
    """The structures an engine was made for.

    Their size is told and no limit: an energy is a sum over environments within a cutoff, and a larger structure is
    made of the same ones, of a molecule as of a crystal. Where its environments are others, novelty tells.
    """

    elements: Annotated[tuple[Line, ...], FailFast()] = Field(min_length=1, max_length=118)
    pbc: tuple[bool, bool, bool]
    min_distance_A: float = Field(ge=0)  # no two atoms nearer
    volume_per_atom_A3: tuple[float, float] | None = None  # least and most
    max_atoms_trained: int = Field(ge=1)  # in a training structure; larger structures are welcome
    charge: int | None = 0  # e, of each structure; None where they were of any charge
    description: Line = Field(min_length=1)

    @model_validator(mode="after")
    def _ordered(self) -> "Domain":
        if self.volume_per_atom_A3 and not 0 < self.volume_per_atom_A3[0] <= self.volume_per_atom_A3[1]:
            raise ValueError("volume_per_atom_A3 must be two positive numbers, the smaller first")
        return self


class DataSource(Config):
    """A data set that structures were taken from."""

    name: Line
    licence: Line  # SPDX


class Lineage(Config):
    """What an engine was made from: enough to make it again and to see that it is the same."""

    recipe_sha256: Sha256
    structures_sha256: Sha256
    labels_sha256: Sha256
    teacher: Line
    teacher_weights_sha256: Sha256
    teacher_licence_weights: Line  # SPDX
    teacher_terms: str | None = None  # the text that its sources oblige those to repeat who pass it on
    data: Annotated[tuple[DataSource, ...], FailFast()] = ()  # none where the structures were generated
    level_of_theory: Line
    seed: int
    steps: int = Field(ge=0)
    code_version: Line

    @property
    def sources(self) -> tuple[Source, ...]:
        """All whose terms the engine's own have to follow."""
        data = [Source("data", one.name, one.licence) for one in self.data]
        return (Source("teacher", self.teacher, self.teacher_licence_weights), *data)


class Units(Config):
    """The units of everything an engine takes and gives; there is one choice."""

    energy: Literal["eV"] = "eV"
    length: Literal["angstrom"] = "angstrom"
    force: Literal["eV/angstrom"] = "eV/angstrom"
    stress: Literal["eV/angstrom^3"] = "eV/angstrom^3"
    hessian: Literal["eV/angstrom^2"] = "eV/angstrom^2"


class ProbeTolerance(Config):
    """How far a recomputed probe may lie from the stored one, in the worst component."""

    energy_meV_atom: float = Field(0.1, gt=0)
    force_meV_A: float = Field(1.0, gt=0)
    hessian_eV_A2: float = Field(0.01, gt=0)


class ArtifactConfig(Config):
    """``config.json``: all that is needed to rebuild an engine, beside its weights."""

    format: Literal[1] = 1
    name: Line
    licence: Line  # SPDX
    architecture: StudentConfig
    units: Units = Units()
    domain: Domain
    lineage: Lineage
    dtype: Literal["float32", "float64"]  # of the stored weights
    parameters: int = Field(ge=1)
    probe_tolerance: ProbeTolerance = ProbeTolerance()

    @model_validator(mode="after")
    def _domain_within_architecture(self) -> "ArtifactConfig":
        strange = set(self.domain.elements) - set(self.architecture.elements)
        if strange:
            raise ValueError(f"domain has {', '.join(sorted(strange))}, which the architecture lacks")
        return self


class ManifestEntry(Config):
    path: str
    size: int = Field(ge=0)
    sha256: Sha256


class Manifest(Config):
    """``manifest.json``: what a model folder holds."""

    format: Literal[1] = 1
    files: Annotated[tuple[ManifestEntry, ...], FailFast()]

    @model_validator(mode="after")
    def _closed(self) -> "Manifest":
        paths = [entry.path for entry in self.files]
        if paths != sorted(set(paths)):
            raise ValueError("paths must be sorted, and none given twice")
        for entry in self.files:
            if not _is_allowed(entry.path):
                raise ValueError(f"{quoted(entry.path)} is not a file of a model folder")
            if entry.size > _max_bytes(entry.path):
                raise ValueError(f"{entry.path}: {entry.size} bytes, over the limit of {_max_bytes(entry.path)}")
        return self

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(entry.path for entry in self.files)


@dataclass(frozen=True)
class Probe:
    """A few structures with what an engine and its teacher said of them, to be asked again on any machine.

    Each prediction has energy (1,), forces (atoms, 3) and hessian_products (probes, atoms, 3), all float64.
    """

    structures: list[Atoms]
    vectors: list[Tensor]  # one (probes, atoms, 3) a structure, with as many probes in each
    engine: list[Prediction]
    teacher: list[Prediction]


def probe_predictions(potential: Potential, structures: list[Atoms], vectors: list[Tensor]) -> list[Prediction]:
    """What a potential says of the structures of a probe: its side of a Probe."""
    graph = build_graph(structures, potential.cutoff, dtype=potential.dtype, device=potential.device)
    probes = torch.cat(vectors, dim=1).to(graph.positions)  # (probes, atoms, 3)
    prediction = potential.predict(graph, probes=probes).cpu()
    return [
        Prediction(one.energy, forces=_double(one.forces), hessian_products=_double(one.hessian_products))
        for one in prediction.split([len(atoms) for atoms in structures])
    ]


def write_model_folder(
    folder: Path,
    *,
    config: ArtifactConfig,
    potential: Student,
    probe: Probe,
    files: Mapping[str, Path | bytes],
    novelty: NoveltyModel | None = None,
) -> None:
    """Writes a model folder, whole or not at all, in the place of one that is there.

    ``files`` are the documents and figures by their path in the folder. Raises ConfigError for a path that a
    model folder does not have, IntegrityError where what was written cannot be read back.
    """
    for path in files:
        if path not in DOCUMENTS and not _FIGURE.fullmatch(path):
            places = ", ".join((*DOCUMENTS, "figures/*.png"))
            raise ConfigError(f"{path!r} has no place in a model folder; it takes {places}")
    with replacing(folder) as staging:
        write_json(staging / CONFIG, config)
        atomic_write(staging / MODEL, encode_weights(potential, config))
        atomic_write(staging / PROBE, save(_probe_tensors(probe), metadata={"format": "pt"}))
        if novelty is not None:
            atomic_write(staging / NOVELTY, novelty.encode())
        for path, content in files.items():
            atomic_write(staging / path, content.read_bytes() if isinstance(content, Path) else content)
        write_manifest(staging)
        _, student, _ = read_model_folder(staging)
        read_novelty(staging, student)


def encode_weights(potential: Student, config: ArtifactConfig) -> bytes:
    """What ``model.safetensors`` holds of a student; the same bytes for the same weights."""
    layout = _model_layout(config)
    state = {name: tensor.detach().cpu() for name, tensor in potential.state_dict().items()}
    stored = {name: tensor.to(layout[name][0]).contiguous() for name, tensor in state.items()}
    return save(stored, metadata={"format": "pt"})


def write_manifest(folder: Path) -> Manifest:
    """Writes the manifest of what a model folder holds. Raises IntegrityError for what has no place there."""
    paths = sorted(set(_visible_files(folder)) - {MANIFEST})
    files = [folder / path for path in paths]
    entries = [
        {"path": path, "size": file.stat().st_size, "sha256": sha256_file(file)}
        for path, file in zip(paths, files, strict=True)
    ]
    try:
        manifest = parse(Manifest, {"format": 1, "files": entries}, str(folder))
    except ConfigError as error:
        raise IntegrityError(f"{error}; remove what does not belong there") from error
    write_json(folder / MANIFEST, manifest)
    return manifest


def verify_manifest(folder: Path) -> Manifest:
    """Reads every file of a model folder against its manifest. Raises IntegrityError, naming the file.

    Hidden files are not looked at, for they are never read.
    """
    manifest = read_manifest(folder)
    extra = set(_visible_files(folder)) - set(manifest.paths) - {MANIFEST}
    if extra:
        names = ", ".join(shown(name) for name in sorted(extra)[:5])
        raise IntegrityError(f"{folder} holds {names}, which its {MANIFEST} does not list; remove it")
    for entry in manifest.files:
        verify_file(folder, entry)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """What a model folder should hold, before any of it is looked at. Raises IntegrityError."""
    if not folder.is_dir():
        raise IntegrityError(f"{folder} is not a folder; give the path of a model folder")
    if not (folder / MANIFEST).is_file():
        raise IntegrityError(f"{folder} has no {MANIFEST}, so it is not a whole model folder; {_REMEDY}")
    try:
        manifest = read_json(Manifest, folder / MANIFEST)
    except ConfigError as error:
        raise IntegrityError(f"{error}; {_REMEDY}") from error
    missing = {CONFIG, MODEL, PROBE} - set(manifest.paths)
    if missing:
        raise IntegrityError(f"{folder / MANIFEST} does not list {', '.join(sorted(missing))}; {_REMEDY}")
    return manifest


def verify_file(folder: Path, entry: ManifestEntry) -> None:
    """Raises IntegrityError where a file of a model folder is missing or is not what its manifest says."""
    path = folder / entry.path
    if not path.is_file():
        raise IntegrityError(f"{path} is missing; {_REMEDY}")
    size = path.stat().st_size
    if size != entry.size:
        raise IntegrityError(f"{path} has {size} bytes, {MANIFEST} says {entry.size}; {_REMEDY}")
    digest = sha256_file(path)
    if digest != entry.sha256:
        told = f"{MANIFEST} says {entry.sha256[:12]}…"
        raise IntegrityError(f"{path} has the digest {digest[:12]}…, {told}; {_REMEDY}")


def read_model_folder(folder: Path, *, dtype: torch.dtype | None = None) -> tuple[ArtifactConfig, Student, Probe]:
    """The engine in a model folder, on the CPU, its weights in ``dtype`` or in the type they are stored in.

    Raises IntegrityError where a file is not what the manifest, the config or its format says; ConfigError
    where the config is not what its schema says.
    """
    verify_manifest(folder)
    config = read_json(ArtifactConfig, folder / CONFIG)
    state = read_tensors(folder / MODEL, _model_layout(config), _REMEDY)
    student = build_student(config.architecture).to(dtype or DTYPES[config.dtype])
    student.load_state_dict(state, strict=True)
    count = count_parameters(student)
    if count != config.parameters:
        stated = f"{folder / CONFIG} states {config.parameters} parameters"
        raise IntegrityError(f"{stated}, the model has {count}; {_REMEDY}")
    return config, student.eval(), _read_probe(folder / PROBE, student)


def read_novelty(folder: Path, student: Student) -> NoveltyModel | None:
    """What tells the student of a model folder that was verified how new a structure is; None where it has none.

    Raises IntegrityError for a file that is not this student's.
    """
    path = folder / NOVELTY
    if not path.exists():
        return None
    return NoveltyModel.decode(read_tensors(path, novelty_layout(student), _REMEDY), student.elements)


def count_parameters(potential: Potential) -> int:
    """How many numbers training decides."""
    return sum(parameter.numel() for parameter in potential.parameters())


def _is_allowed(path: str) -> bool:
    return path in (CONFIG, MODEL, PROBE, NOVELTY, *DOCUMENTS) or bool(_FIGURE.fullmatch(path))


def _max_bytes(path: str) -> int:
    return _MAX_BYTES.get(path, _MAX_FIGURE_BYTES if path.endswith(".png") else MAX_CONFIG_BYTES)


def _visible_files(folder: Path) -> list[str]:
    """Paths below the folder of all that is not a directory, without hidden ones."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    return [path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)]


def _model_layout(config: ArtifactConfig) -> Layout:
    """Names, types and shapes of such a student's state, without numbers: no config fills the memory."""
    with WithoutParameters():
        state = build_student(config.architecture).to(DTYPES[config.dtype]).state_dict()
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}


def _probe_tensors(probe: Probe) -> dict[str, Tensor]:
    many = probe.structures
    tensors = {
        "offsets": torch.tensor([0, *np.cumsum([len(atoms) for atoms in many])], dtype=torch.int64),
        "numbers": torch.from_numpy(np.concatenate([atoms.numbers for atoms in many]).astype(np.int64)),
        "positions": torch.from_numpy(np.concatenate([atoms.positions for atoms in many])),
        "cells": torch.from_numpy(np.stack([np.asarray(atoms.cell) for atoms in many])),
        "periodic": torch.from_numpy(np.stack([atoms.pbc for atoms in many])),
        "vectors": torch.cat(probe.vectors, dim=1).double().cpu(),
    }
    for who, predictions in (("engine", probe.engine), ("teacher", probe.teacher)):
        tensors[f"{who}_energy"] = torch.cat([one.energy.reshape(1) for one in predictions]).double().cpu()
        tensors[f"{who}_forces"] = torch.cat([_double(one.forces) for one in predictions]).cpu()
        products = [_double(one.hessian_products) for one in predictions]
        tensors[f"{who}_hessian_products"] = torch.cat(products, dim=1).cpu()
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _read_probe(path: Path, student: Student) -> Probe:
    sizes = [read_layout(path, _REMEDY).get(name, (None, ()))[1] for name in ("offsets", "vectors")]
    if [len(size) for size in sizes] != [1, 3]:
        raise IntegrityError(f"{path} is not a probe: it lacks offsets or vectors; {_REMEDY}")
    (offsets,), (probes, atoms, _) = sizes
    tensors = read_tensors(path, _probe_layout(offsets - 1, probes, atoms), _REMEDY)
    counts = tensors["offsets"].diff().tolist()
    whole = probes and counts and min(counts) > 0 and tensors["offsets"][0] == 0 and sum(counts) == atoms
    if not whole or not set(tensors["numbers"].tolist()) <= set(student.elements):
        raise IntegrityError(f"{path}: its offsets or elements make no structures of this engine; {_REMEDY}")
    probe = _probe_of(tensors, counts)
    if sum(_pairs(atoms, student.cutoff) for atoms in probe.structures) > _MAX_PAIRS:
        raise IntegrityError(f"{path}: its structures are too dense, or too large, to be recomputed; {_REMEDY}")
    return probe


def _pairs(atoms: Atoms, cutoff: float) -> float:
    """How many pairs of atoms and images of atoms a neighbour list has to look at."""
    cell = complete_cell(atoms)
    with np.errstate(all="ignore"):
        if not np.linalg.det(cell):
            return np.inf
        heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)  # (3,) Å between opposite faces
        return float(len(atoms) ** 2 * np.prod(np.where(atoms.pbc, 2 * np.ceil(cutoff / heights) + 1, 1.0)))


def _probe_layout(structures: int, probes: int, atoms: int) -> Layout:
    real, whole = torch.float64, torch.int64
    layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "offsets": (whole, (structures + 1,)),
        "numbers": (whole, (atoms,)),
        "positions": (real, (atoms, 3)),
        "cells": (real, (structures, 3, 3)),
        "periodic": (torch.bool, (structures, 3)),
        "vectors": (real, (probes, atoms, 3)),
    }
    for who in ("engine", "teacher"):
        layout[f"{who}_energy"] = (real, (structures,))
        layout[f"{who}_forces"] = (real, (atoms, 3))
        layout[f"{who}_hessian_products"] = (real, (probes, atoms, 3))
    return layout


def _probe_of(tensors: dict[str, Tensor], counts: list[int]) -> Probe:
    parts = zip(torch.split(tensors["numbers"], counts), torch.split(tensors["positions"], counts), strict=True)
    frames = zip(tensors["cells"], tensors["periodic"], strict=True)
    structures = [
        Atoms(numbers=numbers.numpy(), positions=positions.numpy(), cell=cell.numpy(), pbc=periodic.numpy())
        for (numbers, positions), (cell, periodic) in zip(parts, frames, strict=True)
    ]
    engine, teacher = (
        Prediction(
            energy=tensors[f"{who}_energy"],
            forces=tensors[f"{who}_forces"],
            hessian_products=tensors[f"{who}_hessian_products"],
        ).split(counts)
        for who in ("engine", "teacher")
    )
    return Probe(structures, list(torch.split(tensors["vectors"], counts, dim=1)), engine, teacher)


def _double(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise ConfigError("a probe needs forces and Hessian products; make its sides with probe_predictions")
    return tensor.double()
