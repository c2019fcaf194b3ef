"""A teacher's predictions on disk: safetensors shards, hashed, and resumable after a kill at any moment.

A folder of labels starts with ``plan.json``, which says whose labels of what these are, grows by shards, each renamed
into place when complete, and ends with ``manifest.json``, the digests of the shards. Labels of another plan are
refused, never joined by position.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt, SerializerFunctionWrapHandler, model_serializer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from zoo.config import Config, digest, read_json, write_json
from zoo.derivatives import Side
from zoo.errors import IntegrityError, LabelError
from zoo.files import atomic_write, sha256_file
from zoo.potential import Prediction
from zoo.teachers.noise import Differences

Probes = Literal["rademacher", "gaussian", "rows", "dense", "none"]

_UNITS = {"energy": "eV", "forces": "eV/Å", "stress": "eV/Å³", "hessian_products": "eV/Å²", "atomic_energies": "eV"}


_FORMAT: Literal[2] = 2


class LabelPlan(Config):
    """Whose labels of what: everything that decides the numbers in a folder of labels."""

    format: Literal[2] = _FORMAT
    teacher: str
    weights_sha256: str
    package: str
    level_of_theory: str
    dtype: Literal["float32", "float64"]
    probes: Probes
    probes_per_structure: PositiveInt | None  # None is as many as a structure has coordinates, or none at all
    side: Side
    extras: tuple[Literal["atomic_energies", "features"], ...]
    seed: int
    shard_size: PositiveInt
    units: dict[str, str] = Field(default_factory=lambda: dict(_UNITS))
    structures: tuple[str, ...]  # the digest of each, in order
    differences: Differences | None = None  # of a teacher whose products are differences by a measured step

    @model_serializer(mode="wrap")
    def _without_what_is_not(self, told: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Plans of all other teachers are what they were before there were differences in them."""
        found: dict[str, Any] = told(self)
        return {key: value for key, value in found.items() if key != "differences" or value is not None}

    @property
    def has_errors(self) -> bool:
        """Whether the error of the products is kept with them."""
        return self.differences is not None and self.probes != "none"

    @property
    def num_shards(self) -> int:
        return -(-len(self.structures) // self.shard_size)


class LabelManifest(Config):
    """The shards of a finished folder of labels."""

    plan_sha256: str
    shards: dict[str, str]  # file -> digest


@dataclass(frozen=True)
class Label:
    """What a teacher says of one structure. A probe of products is what the Hessian was multiplied with."""

    energy: Tensor  # () eV, float64; NaN of a teacher without energies
    forces: Tensor  # (atoms, 3) eV/Å
    stress: Tensor  # (3, 3) eV/Å³; NaN where there is no volume
    probes: Tensor  # (probes, atoms, 3)
    hessian_products: Tensor  # (probes, atoms, 3) eV/Å²
    atomic_energies: Tensor | None = None  # (atoms,) eV
    features: Tensor | None = None  # (atoms, features)
    hessian_error: Tensor | None = None  # () eV/Å², expected of the products, root mean square over their components

    def prediction(self) -> Prediction:
        """The label as what it is: a teacher's prediction of a batch of one."""
        return Prediction(
            energy=self.energy.reshape(1),
            forces=self.forces,
            stress=self.stress[None],
            hessian_products=self.hessian_products,
            atomic_energies=self.atomic_energies,
            features=self.features,
        )


def draw_probes(kind: Probes, count: int | None, atoms: int, generator: torch.Generator) -> Tensor:
    """(probes, atoms, 3) Random signs, normal numbers, distinct one-hot vectors, all of these in order, or none.

    int8 but for normal numbers, which are float32. Raises LabelError where a Hessian has fewer rows than are asked for.
    """
    if kind == "none":
        return torch.zeros(0, atoms, 3, dtype=torch.int8)
    if kind == "dense" or count is None:
        return torch.eye(3 * atoms, dtype=torch.int8).reshape(3 * atoms, atoms, 3)
    if kind == "gaussian":
        return torch.randn(count, atoms, 3, generator=generator)
    if kind == "rademacher":
        return (2 * torch.randint(0, 2, (count, atoms, 3), generator=generator) - 1).to(torch.int8)
    if count > 3 * atoms:
        raise LabelError(
            f"{count} rows asked of a Hessian that has {3 * atoms}; "
            "lower labels.probes_per_structure, or set labels.probes to dense"
        )
    probes = torch.zeros(count, 3 * atoms, dtype=torch.int8)
    probes[torch.arange(count), torch.randperm(3 * atoms, generator=generator)[:count]] = 1
    return probes.reshape(count, atoms, 3)


def stored_probes(plan: LabelPlan, structure: str, atoms: int) -> Tensor:
    """(probes, atoms, 3) The probes of a structure, decided by seed and structure alone."""
    key = hashlib.sha256(f"{plan.seed} {plan.probes} {structure}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
    return draw_probes(plan.probes, plan.probes_per_structure, atoms, generator)


def begin(folder: Path, plan: LabelPlan) -> list[int]:
    """Opens a folder for these labels and tells which shards are still to be made.

    Raises LabelError where the folder holds labels of another teacher, of other structures, of other probes or of
    another version's format.
    """
    path = folder / "plan.json"
    if path.exists():
        _refuse_other(read_plan(folder), plan, folder)
    else:
        write_json(path, plan)
    return [shard for shard in range(plan.num_shards) if not _is_complete(folder, plan, shard)]


def write_shard(folder: Path, plan: LabelPlan, shard: int, labels: Sequence[Label]) -> None:
    """Writes one shard, whole or not at all."""
    arrays = {
        "offsets": _offsets([len(label.forces) for label in labels]),  # (structures + 1,) atoms
        "product_offsets": _offsets([label.hessian_products[..., 0].numel() for label in labels]),  # (structures + 1,)
        "energy": torch.stack([label.energy for label in labels]),  # (structures,)
        "forces": torch.cat([label.forces for label in labels]),  # (atoms, 3)
        "stress": torch.stack([label.stress for label in labels]),  # (structures, 3, 3)
        "hessian_products": torch.cat([label.hessian_products.reshape(-1, 3) for label in labels]),
    }
    if plan.probes != "dense":  # all one-hot vectors in order need no place
        arrays["probes"] = torch.cat([label.probes.reshape(-1, 3) for label in labels])
    for extra in plan.extras:
        arrays[extra] = torch.cat([getattr(label, extra) for label in labels])  # (atoms, ...)
    if plan.has_errors:
        arrays["hessian_error"] = torch.stack([_error(label) for label in labels])  # (structures,)
    contiguous = {name: array.contiguous() for name, array in arrays.items()}
    atomic_write(shard_path(folder, shard), save(contiguous, metadata={"seal": _seal(plan, contiguous)}))


def _error(label: Label) -> Tensor:
    assert label.hessian_error is not None  # the plan says so
    return label.hessian_error


def _offsets(counts: list[int]) -> Tensor:
    return torch.tensor([0, *counts]).cumsum(0)


def finish(folder: Path, plan: LabelPlan) -> None:
    """Ends a folder: the digest of each shard."""
    files = [shard_path(folder, shard) for shard in range(plan.num_shards)]
    shards = {path.name: sha256_file(path) for path in files}
    write_json(folder / "manifest.json", LabelManifest(plan_sha256=digest(plan), shards=shards))


class Labels:
    """A finished folder of labels, memory-mapped."""

    def __init__(self, folder: Path, plan: LabelPlan) -> None:
        self.folder = folder
        self.plan = plan

    @classmethod
    def open(cls, folder: Path, structures: Sequence[str]) -> "Labels":
        """Opens the labels of these structures (digests, in order).

        Raises LabelError where they are not finished or belong to other structures, IntegrityError where a shard was
        altered.
        """
        if not (folder / "manifest.json").is_file():
            raise LabelError(f"the labels in {folder} are not finished; run the same again, or zoo label RECIPE")
        plan = read_plan(folder)
        if plan.structures != tuple(structures):
            raise LabelError(f"the labels in {folder} belong to other structures; label these with another --run")
        manifest = read_json(LabelManifest, folder / "manifest.json")
        if manifest.plan_sha256 != digest(plan):
            raise IntegrityError(
                f"{folder / 'plan.json'} was changed since the labels were made; "
                f"delete the folder {folder} and run the same again"
            )
        for name, expected in manifest.shards.items():
            if not (folder / name).is_file() or sha256_file(folder / name) != expected:
                raise IntegrityError(
                    f"{folder / name} is missing or altered; delete {folder / 'manifest.json'} and run the same again"
                )
        return cls(folder, plan)

    def __len__(self) -> int:
        return len(self.plan.structures)

    def __iter__(self) -> Iterator[Label]:
        for shard in range(self.plan.num_shards):
            with safe_open(shard_path(self.folder, shard), framework="pt") as arrays:
                atoms = pairwise(arrays.get_tensor("offsets").tolist())
                products = pairwise(arrays.get_tensor("product_offsets").tolist())
                for number, (own, rows) in enumerate(zip(atoms, products, strict=True)):
                    yield self._read(arrays, number, slice(*own), slice(*rows))

    def products_and_errors(self) -> tuple[float, float] | None:
        """Root mean squares over all components of the Hessian products and of their errors, eV/Å²; None without."""
        squares, errors, count = 0.0, 0.0, 0
        for label in self if self.plan.has_errors else ():
            size = label.hessian_products.numel()
            squares += float(label.hessian_products.double().square().sum())
            errors += float(_error(label)) ** 2 * size
            count += size
        return (sqrt(squares / count), sqrt(errors / count)) if count else None

    def _read(self, arrays: Any, number: int, atoms: slice, products: slice) -> Label:
        count = atoms.stop - atoms.start
        errors = arrays.get_slice("hessian_error") if self.plan.has_errors else None
        if self.plan.probes == "dense":
            probes = draw_probes("dense", None, count, torch.Generator())
        else:
            probes = arrays.get_slice("probes")[products].reshape(-1, count, 3)
        return Label(
            energy=arrays.get_slice("energy")[number : number + 1][0],
            forces=arrays.get_slice("forces")[atoms],
            stress=arrays.get_slice("stress")[number : number + 1][0],
            probes=probes,
            hessian_products=arrays.get_slice("hessian_products")[products].reshape(-1, count, 3),
            hessian_error=None if errors is None else errors[number : number + 1][0],
            **{extra: arrays.get_slice(extra)[atoms] for extra in self.plan.extras},
        )


def shard_path(folder: Path, shard: int) -> Path:
    """The file of a shard."""
    return folder / f"shard-{shard:05d}.safetensors"


def _is_complete(folder: Path, plan: LabelPlan, shard: int) -> bool:
    """Whether this shard was written whole, for this plan, and is as it was written."""
    path = shard_path(folder, shard)
    if not path.exists():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            arrays = {name: file.get_tensor(name) for name in sorted(file.keys())}
            return bool((file.metadata() or {}).get("seal") == _seal(plan, arrays))
    except (SafetensorError, OSError):
        return False


def _seal(plan: LabelPlan, arrays: dict[str, Tensor]) -> str:
    """Hex SHA-256 over the plan and the numbers of a shard."""
    content = hashlib.sha256(digest(plan).encode())
    for name, array in sorted(arrays.items()):
        content.update(name.encode() + array.numpy().tobytes())
    return content.hexdigest()


def read_plan(folder: Path) -> LabelPlan:
    """What a folder of labels says of itself. Raises LabelError for another version's, ConfigError for no plan."""
    path = folder / "plan.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("format")
    except (OSError, ValueError, AttributeError):
        found = _FORMAT  # no plan at all, of which the reader says more
    if found != _FORMAT:
        raise LabelError(
            f"{folder} holds labels of format {found}, this version of zoo reads and writes format {_FORMAT}; "
            "choose another --run, or pass --replace to make them anew"
        )
    return read_json(LabelPlan, path)


def _refuse_other(found: LabelPlan, wanted: LabelPlan, folder: Path) -> None:
    before, after = found.model_dump(), wanted.model_dump()
    for key in {**after, **before}:
        if before.get(key) != after.get(key):
            what = "other structures" if key == "structures" else f"{key} {before.get(key)}, not {after.get(key)}"
            raise LabelError(
                f"{folder} holds labels of {what}; choose another --run, or pass --replace to make them anew"
            )
