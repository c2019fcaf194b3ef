"""What ``zoo.load`` returns: a potential with its provenance and its domain, ready to be asked."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from zoo.artifact import (
    DTYPES,
    ArtifactConfig,
    Domain,
    Probe,
    count_parameters,
    probe_predictions,
    read_model_folder,
)
from zoo.calculator import ZooCalculator, check_elements, check_finite, elements_text, symbols_of
from zoo.errors import CapabilityError, ConfigError, DomainError
from zoo.execution import Compile, Compiled, compiled
from zoo.graph import Graph, collate
from zoo.neighbors import build_graph
from zoo.potential import Potential, Prediction, given
from zoo.units import MEV_PER_EV
from zoo.vibrations import Vibrations, normal_modes

# Atoms and edges that ``predict`` puts into one pass; a larger structure goes alone. In float32 on a CPU it
# takes 0.1 GiB with a PaiNN of 64 channels and 2 layers, and 1.2 GiB with SevenNet-0.
BATCH = 10_000
_ANYWAY = "zoo.load(..., check_domain=False), or zoo md --no-check-domain, asks anyway"


@dataclass(frozen=True)
class Provenance:
    """Where an engine comes from."""

    name: str
    source: str  # the folder, repository or package that it was read from
    licence: str  # SPDX, of the weights
    level_of_theory: str
    teacher: str | None = None
    revision: str | None = None  # v1, v2, ...
    commit: str | None = None

    @property
    def title(self) -> str:
        """The name, pinned to its version where it has one."""
        revision = self.revision or (self.commit or "")[:12]
        return f"{self.name}@{revision}" if revision else self.name


@dataclass(frozen=True)
class CheckRow:
    """The largest difference of one quantity between what was published and what comes out here."""

    quantity: str
    error: float
    tolerance: float
    unit: str

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # not so for a NaN

    def __str__(self) -> str:
        verdict = "ok" if self.passed else "FAILED"
        return f"{self.quantity:18}{self.error:12.3g}{self.tolerance:12.3g}  {self.unit:9} {verdict}"


@dataclass(frozen=True)
class CheckResult:
    """Whether an engine still says on this machine what it said where it was made."""

    name: str
    device: str
    dtype: str
    code: str  # that gave energy and forces: compiled, or PyTorch
    rows: tuple[CheckRow, ...]

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = [{**vars(row), "passed": row.passed} for row in self.rows]
        return {**vars(self), "rows": rows, "passed": self.passed}

    def __str__(self) -> str:
        lines = [f"{self.name} on {self.device} in {self.dtype}, {self.code}", f"{'':18}{'error':>12}{'tolerance':>12}"]
        return "\n".join(lines + [str(row) for row in self.rows])


class Engine:
    """A force field ready to be asked, by ASE, in batches, or for its second derivatives.

    Structures outside its domain are an error, unless it was made with ``check_domain=False``; an element
    that it has no parameters for always is. What it is given is never modified.
    """

    def __init__(
        self,
        potential: Potential,
        provenance: Provenance,
        *,
        config: ArtifactConfig | None = None,
        probe: Probe | None = None,
        check_domain: bool = True,
        compiled: Compiled | None = None,
    ) -> None:
        self.potential = potential.requires_grad_(False)
        self.provenance = provenance
        self.config = config
        self.probe = probe
        self.checks_domain = check_domain
        self._compiled = compiled

    @classmethod
    def read(
        cls,
        folder: Path,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = None,
        compile: Compile = "auto",
        check_domain: bool = True,
        source: str | None = None,
        revision: str | None = None,
        commit: str | None = None,
    ) -> Self:
        """The engine in a model folder, in the type of its stored weights by default.

        ``compile`` as in ``zoo.load``.

        Raises IntegrityError, ConfigError.
        """
        place, real = resolve_device(device), None if dtype is None else resolve_dtype(dtype)
        config, student, probe = read_model_folder(folder, dtype=real)
        provenance = Provenance(
            name=config.name,
            source=source or str(folder),
            licence=config.licence,
            level_of_theory=config.lineage.level_of_theory,
            teacher=config.lineage.teacher,
            revision=revision,
            commit=commit,
        )
        student = student.to(place).requires_grad_(False)
        code = compiled(student, compile, probe.structures)
        return cls(student, provenance, config=config, probe=probe, check_domain=check_domain, compiled=code)

    @property
    def name(self) -> str:
        return self.provenance.name

    @property
    def domain(self) -> Domain | None:
        """The structures it was made for; None where nothing but its elements limits it."""
        return None if self.config is None else self.config.domain

    def calculator(self) -> ZooCalculator:
        """A calculator for ASE."""
        check = self.check_domain if self.checks_domain else None
        return ZooCalculator(self.potential, check=check, predict=self._ask)

    @property
    def compiled(self) -> bool:
        """Whether energies, forces and stress come from compiled code."""
        return self._compiled is not None and self._compiled.fits

    def predict(self, structures: Atoms | Sequence[Atoms]) -> list[Prediction]:
        """One Prediction a structure, in order, in main memory.

        Energy () eV, atomic_energies (atoms,) eV, forces (atoms, 3) eV/Å, stress (3, 3) eV/Å³, which is None
        where a structure is not periodic in all three directions. Raises StructureError, DomainError,
        DivergedError.
        """
        many = [structures] if isinstance(structures, Atoms) else list(structures)
        graphs = [self._graph(atoms) for atoms in many]
        predictions: list[Prediction] = []
        for batch in _batches(graphs):
            predictions += self._predict_batch(batch)
        for atoms, prediction in zip(many, predictions, strict=True):
            check_finite(prediction, atoms, energies=self.potential.traits.energies)
        return predictions

    def hessian(
        self, atoms: Atoms, *, indices: Sequence[int] | None = None, rows: Sequence[int] | None = None
    ) -> np.ndarray:
        """(3 * atoms, 3 * atoms) float64 eV/Å²: second derivatives of the energy, as they were computed.

        ``indices`` asks for the block of some atoms, in their order, the others standing still; ``rows``, each
        3 * atom + axis, for some rows, (rows, 3 * atoms). Raises ConfigError for both, or for one that there is not.
        """
        if indices is not None and rows is not None:
            raise ConfigError("indices and rows of a Hessian at once; give one of them")
        moving = None if indices is None else _coordinates(_known(indices, len(atoms), "atom"))
        chosen = moving if rows is None else _known(rows, 3 * len(atoms), "row")
        graph = self._graph(atoms).to(self.potential.device, self.potential.dtype)
        told = None if chosen is None else torch.from_numpy(chosen).to(self.potential.device)
        found = self.potential.hessian(graph, told).double().cpu().numpy()
        return found if moving is None else found[:, moving]

    def hvp(self, atoms: Atoms, vectors: np.ndarray) -> np.ndarray:
        """Products of the Hessian with vectors, float64 eV/Å², without the Hessian.

        vectors (atoms, 3), or (vectors, atoms, 3), dimensionless; returns the same shape. Raises ConfigError for
        another shape.
        """
        many = np.asarray(vectors, dtype=np.float64)
        expected = (len(atoms), 3)
        if many.shape[-2:] != expected or many.ndim not in (2, 3):
            raise ConfigError(
                f"vectors of shape {many.shape} for {len(atoms)} atoms; expected {expected}, or many such"
            )
        graph = self._graph(atoms).to(self.potential.device, self.potential.dtype)
        probes = torch.from_numpy(many.reshape(-1, *expected)).to(graph.positions)
        found = self.potential.predict(graph, forces=False, probes=probes)
        return given(found.hessian_products).double().cpu().numpy().reshape(many.shape)

    def vibrations(self, atoms: Atoms, *, indices: Sequence[int] | None = None) -> Vibrations:
        """Normal modes of a molecule, or of a crystal at the gamma point; relax the structure before.

        ``indices`` are the atoms that move, the others standing still, such as an adsorbate's.
        """
        masses = atoms.get_masses()
        return normal_modes(self.hessian(atoms, indices=indices), masses if indices is None else masses[list(indices)])

    def check(self) -> CheckResult:
        """Recomputes the published probe on this device, in this type. Raises CapabilityError without one."""
        if self.probe is None or self.config is None:
            raise CapabilityError(f"{self.name} has no probe to check against; only a model folder has one")
        found = self._recompute(self.probe)
        tolerance = self.config.probe_tolerance
        counts = torch.tensor([len(atoms) for atoms in self.probe.structures])
        energy, forces, products = _probe_errors(found, self.probe.engine, counts)
        rows = (
            CheckRow("energy", energy * MEV_PER_EV, tolerance.energy_meV_atom, "meV/atom"),
            CheckRow("forces", forces * MEV_PER_EV, tolerance.force_meV_A, "meV/Å"),
            CheckRow("Hessian products", products, tolerance.hessian_eV_A2, "eV/Å²"),
        )
        return CheckResult(self.provenance.title, str(self.potential.device), self._dtype_name, self._code, rows)

    def _recompute(self, probe: Probe) -> list[Prediction]:
        """What it says of the probe, as it says it to a user: products by PyTorch, the rest by compiled code."""
        found = probe_predictions(self.potential, probe.structures, probe.vectors)
        if not self.compiled:
            return found
        graph = build_graph(probe.structures, self.potential.cutoff, dtype=self.potential.dtype)
        told = self._ask(graph).split([len(atoms) for atoms in probe.structures])
        return [
            replace(old, energy=new.energy, forces=given(new.forces).double())
            for old, new in zip(found, told, strict=True)
        ]

    def check_domain(self, atoms: Atoms, graph: Graph | None = None) -> None:
        """Raises DomainError where ``atoms`` are not what this engine was made for.

        ``graph`` are the edges of the same atoms, where the caller has them.
        """
        check_elements(atoms, self.potential)
        domain, title = self.domain, self.provenance.title
        if domain is None:
            return
        _check_frame(domain, atoms, title)
        edges = build_graph(atoms, self.potential.cutoff) if graph is None else graph
        _check_distances(domain, atoms, edges, title)

    def __repr__(self) -> str:
        rows = {
            "potential": _description(self.potential),
            "runs on": f"{self.potential.device}, {self._dtype_name}, {self._code}",
            "elements": elements_text(symbols_of(self.potential.elements)),
            "domain": domain_text(self.domain) if self.checks_domain else "not checked",
            "theory": self.provenance.level_of_theory,
            "teacher": self.provenance.teacher,
            "licence": self.provenance.licence,
            "source": self.provenance.source,
        }
        lines = [f"Engine {self.provenance.title}"]
        return "\n".join(lines + [f"  {key:10} {value}" for key, value in rows.items() if value])

    def _ask(self, graph: Graph, *, stress: bool = False) -> Prediction:
        """Energies, forces and stress, of compiled code where there is some."""
        if self._compiled is not None and self._compiled.fits:
            return self._compiled.predict(graph, stress=stress)
        return self.potential.predict(graph, stress=stress)

    @property
    def _code(self) -> str:
        return "compiled" if self.compiled else "PyTorch"

    @property
    def _dtype_name(self) -> str:
        return str(self.potential.dtype).removeprefix("torch.")

    def _graph(self, atoms: Atoms) -> Graph:
        """The edges of atoms that passed the check, in float64 in main memory."""
        graph = build_graph(atoms, self.potential.cutoff)
        check_elements(atoms, self.potential)
        if self.checks_domain:
            self.check_domain(atoms, graph)
        return graph

    def _predict_batch(self, graphs: list[Graph]) -> list[Prediction]:
        batch = collate(graphs).to(self.potential.device, self.potential.dtype)
        has_volume = [bool(graph.periodic.all()) for graph in graphs]
        predicted = self._ask(batch, stress=any(has_volume)).cpu()
        by_structure = predicted.split([graph.num_atoms for graph in graphs])
        return [_of_one(one, volume) for one, volume in zip(by_structure, has_volume, strict=True)]


def resolve_device(device: str | torch.device) -> torch.device:
    """``auto`` is CUDA where there is one. Raises ConfigError."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device {device!r}; expected auto, cpu, cuda or cuda:0") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r}, but PyTorch finds no CUDA here; use device='cpu'")
    return place


def resolve_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """The type by its name or as it is. Raises ConfigError."""
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    raise ConfigError(f"dtype {dtype!r}; expected 'float32' (fast) or 'float64' (exact)")


def _known(numbers: Sequence[int], count: int, what: str) -> np.ndarray:
    """As an array. Raises ConfigError where one is not among the first ``count`` whole numbers, or stands twice."""
    found = np.asarray(numbers)
    whole = found.ndim == 1 and (found.size == 0 or np.issubdtype(found.dtype, np.integer))
    if not whole or ((found < 0) | (found >= count)).any() or len(set(found.tolist())) != len(found):
        raise ConfigError(f"{what}s {list(numbers)}; expected whole numbers from 0 to {count - 1}, each once")
    return found.astype(np.int64)


def _coordinates(atoms: np.ndarray) -> np.ndarray:
    """(3 * atoms,) The places of their x, y and z among all coordinates."""
    return (3 * atoms[:, None] + np.arange(3)).ravel()


def _batches(graphs: list[Graph]) -> Iterator[list[Graph]]:
    """Runs of graphs in order that hold up to BATCH atoms and edges together."""
    batch: list[Graph] = []
    size = 0
    for graph in graphs:
        cost = graph.num_atoms + graph.num_edges
        if batch and size + cost > BATCH:
            yield batch
            batch, size = [], 0
        batch.append(graph)
        size += cost
    if batch:
        yield batch


def _of_one(prediction: Prediction, has_volume: bool) -> Prediction:
    """Without the axis of structures."""
    stress = prediction.stress[0] if prediction.stress is not None and has_volume else None
    return Prediction(prediction.energy[0], prediction.atomic_energies, prediction.forces, stress)


def _probe_errors(found: list[Prediction], stored: list[Prediction], counts: Tensor) -> tuple[float, float, float]:
    """The largest difference of energies (eV/atom), force components (eV/Å) and Hessian products (eV/Å²)."""
    energy = _stack("energy", found) - _stack("energy", stored)
    forces = _stack("forces", found) - _stack("forces", stored)
    products = _stack("hessian_products", found, 1) - _stack("hessian_products", stored, 1)
    return (
        float((energy / counts).abs().max()),
        float(forces.abs().max()),
        float(products.abs().max()) if products.numel() else 0.0,
    )


def _stack(quantity: str, predictions: list[Prediction], dim: int = 0) -> Tensor:
    return torch.cat([getattr(one, quantity) for one in predictions], dim=dim)


def _check_frame(domain: Domain, atoms: Atoms, title: str) -> None:
    """Elements, periodicity and density."""
    strange = sorted(set(atoms.get_chemical_symbols()) - set(domain.elements))
    if strange:
        known = elements_text(domain.elements)
        raise DomainError(f"{title} was made for {known}, not for {', '.join(strange)}; {_ANYWAY}")
    periodic = tuple(bool(flag) for flag in atoms.pbc)
    if periodic != domain.pbc:
        made_for = f"{title} was made for pbc={domain.pbc}"
        raise DomainError(
            f"{atoms.symbols} has pbc={periodic}; {made_for}; surfaces and molecules are outside; {_ANYWAY}"
        )
    if domain.volume_per_atom_A3 is None or not all(periodic):
        return
    low, high = domain.volume_per_atom_A3
    volume = atoms.get_volume() / len(atoms)
    if not low <= volume <= high:
        made_for = f"{title} was made for {low:.2f} to {high:.2f} Å³"
        raise DomainError(f"{atoms.symbols} has {volume:.2f} Å³ per atom; {made_for}; {_ANYWAY}")


def _check_distances(domain: Domain, atoms: Atoms, graph: Graph, title: str) -> None:
    if graph.num_edges == 0:
        return
    squares = graph.edge_vectors().square().sum(dim=-1)  # (edges,) Å²
    shortest = float(squares.min()) ** 0.5
    if shortest >= domain.min_distance_A:
        return
    edge = int(squares.argmin())
    pair = f"atoms {int(graph.centers[edge])} and {int(graph.neighbors[edge])} of {atoms.symbols}"
    made_for = f"{title} was made for {domain.min_distance_A:.3f} Å and more"
    raise DomainError(f"{pair} are {shortest:.3f} Å apart; {made_for}; {_ANYWAY}")


def _description(potential: Potential) -> str:
    shape = getattr(potential, "config", None)
    told = getattr(shape, "TOLD", None)  # of a config that is long
    numbers = {} if shape is None else shape.model_dump(include=told, exclude={"architecture", "elements", "cutoff"})
    parts = [f"{value} {key.replace('_', ' ')}" for key, value in numbers.items() if value]
    parts += [f"cutoff {potential.cutoff:g} Å", f"{count_parameters(potential):,} parameters"]
    return f"{type(potential).__name__}, " + ", ".join(parts)


def domain_text(domain: Domain | None) -> str | None:
    """In one line, for people."""
    if domain is None:
        return None
    axes = "".join(axis for axis, flag in zip("abc", domain.pbc, strict=True) if flag)
    limits = [domain.description, f"periodic along {axes}" if axes else "not periodic"]
    if domain.volume_per_atom_A3:
        limits.append("{:.1f} to {:.1f} Å³ per atom".format(*domain.volume_per_atom_A3))
    return ", ".join([*limits, f"atoms {domain.min_distance_A:.2f} Å apart or more"])
