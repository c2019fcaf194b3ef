"""What ``zoo.load`` returns: a potential with its provenance and its domain, ready to be asked."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np
import torch
from ase import Atoms
from ase.constraints import FixAtoms
from torch import Tensor

from zoo.artifact import (
    DTYPES,
    ArtifactConfig,
    Domain,
    Probe,
    count_parameters,
    probe_predictions,
    read_model_folder,
    read_novelty,
)
from zoo.calculator import Follower, ZooCalculator, check_elements, elements_text, symbols_of
from zoo.errors import CapabilityError, ConfigError, DomainError
from zoo.execution import Compile, Compiled, compiled
from zoo.graph import Graph, collate
from zoo.guard import Lookup, check_charge, check_distances, check_frame, domain_text, with_help
from zoo.inputs import as_many, check_atoms, resolve_device, warn_of_constraints
from zoo.neighbors import build_graph
from zoo.novelty import Novelty, NoveltyModel
from zoo.packing import Item, Need, Packer, Task, divided, item, numbered
from zoo.phonons import DISPLACEMENT, MESH, Phonons, Supercell, phonons_of_forces
from zoo.potential import Potential, Prediction, given
from zoo.second_order import Numbers, SecondOrder, known, one_each
from zoo.units import MEV_PER_EV
from zoo.vibrations import Vibrations, moving_atoms, normal_modes, rigid_motions

if TYPE_CHECKING:
    from zoo.torchsim import TorchSimModel


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
        novelty: NoveltyModel | None = None,
        lookup: Lookup | None = None,
    ) -> None:
        """``lookup`` names engines that cover a structure, for the errors of those that this one does not."""
        self.potential = potential.requires_grad_(False)
        self.provenance = provenance
        self.config = config
        self.probe = probe
        self.checks_domain = check_domain
        self._compiled = compiled
        self._novelty = novelty
        self._lookup = lookup
        self._needs: dict[Task, Need] = {}  # memory that passes take, as far as it was measured

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
        lookup: Lookup | None = None,
    ) -> Self:
        """The engine in a model folder, in the type of its stored weights by default.

        ``compile`` as in ``zoo.load``, ``lookup`` as in ``Engine``.

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
        return cls(
            student,
            provenance,
            config=config,
            probe=probe,
            check_domain=check_domain,
            compiled=code,
            novelty=read_novelty(folder, student),
            lookup=lookup,
        )

    @property
    def name(self) -> str:
        return self.provenance.name

    @property
    def device(self) -> torch.device:
        return self.potential.device

    @property
    def dtype(self) -> torch.dtype:
        """The type that it computes in."""
        return self.potential.dtype

    @property
    def domain(self) -> Domain | None:
        """The structures it was made for; None where nothing but its elements limits it."""
        return None if self.config is None else self.config.domain

    def calculator(self) -> ZooCalculator:
        """A calculator for ASE."""
        return ZooCalculator(self.potential, **self._running())

    def torchsim(self, *, dtype: str | torch.dtype = torch.float64) -> "TorchSimModel":
        """A model for TorchSim: dynamics and relaxation of many systems at once; ``dtype`` is that of their states.

        Raises ConfigError, MissingPackageError, CapabilityError.
        """
        from zoo.torchsim import TorchSimModel  # lazy: needs the optional package torch-sim-atomistic

        return TorchSimModel(self.potential, dtype=resolve_dtype(dtype), **self._running())

    def _running(self) -> dict[str, Any]:
        """What guards the potential and answers in its place, for what runs it."""
        return {
            "check": self.check_domain if self.checks_domain else None,
            "nearest": None if self.domain is None else self.domain.min_distance_A,
            "predict": self._ask,
            "follow": self._follow if self._compiled is not None and self._compiled.follows else None,
        }

    @property
    def compiled(self) -> bool:
        """Whether energies, forces and stress come from compiled code."""
        return self._compiled is not None and self._compiled.fits

    def predict(self, structures: Atoms | Iterable[Atoms]) -> list[Prediction]:
        """One Prediction a structure, in order, in main memory.

        Structures may be of any number and any mix of sizes, and are taken from an iterator as they are needed: passes
        are as large as is fastest and as memory allows. Energy () eV, atomic_energies (atoms,) eV, forces (atoms, 3)
        eV/Å, stress (3, 3) eV/Å³, which is None where a structure is not periodic in all three directions, and of
        potentials that give none. Raises
        StructureError, DomainError, DivergedError, which name the place of the structure among many, OutOfMemoryError.
        """
        alone, many = isinstance(structures, Atoms), as_many(structures, "predict")
        items = iter([item(structures, self._graph)]) if alone else numbered(many, self._graph)
        packer = Packer(self.potential, "forces", self._predict_batch, self._needs, compiled=self.compiled)
        return list(packer.answers(items))

    def hessian(self, atoms: Atoms, *, indices: Numbers | None = None, rows: Numbers | None = None) -> np.ndarray:
        """(3 * atoms, 3 * atoms) float64 eV/Å²: second derivatives of the energy, as they were computed.

        ``indices`` asks for the block of some atoms, in their order, the others standing still; ``rows``, each
        3 * atom + axis, for some rows, (rows, 3 * atoms); each may be a slice. Constraints do not count, which a
        ZooWarning says. Raises ConfigError for both, or for one that there is not, OutOfMemoryError.
        """
        check_atoms(atoms, "hessian takes one ase.Atoms", "for many use engine.hessians")
        if indices is None and rows is None:
            warn_of_constraints(atoms, "a Hessian", "say by indices= which atoms move")
        return self._second_order.hessian(atoms, indices, rows)

    def hessians(self, structures: Atoms | Iterable[Atoms]) -> list[np.ndarray]:
        """The whole Hessian of each structure, in order: many small ones together take less time than one by one."""
        return self._second_order.hessians(list(as_many(structures, "hessians")))

    @overload
    def hvp(self, atoms: Atoms, vectors: np.ndarray) -> np.ndarray: ...
    @overload
    def hvp(self, atoms: Sequence[Atoms], vectors: Sequence[np.ndarray]) -> list[np.ndarray]: ...
    def hvp(
        self, atoms: Atoms | Sequence[Atoms], vectors: np.ndarray | Sequence[np.ndarray]
    ) -> np.ndarray | list[np.ndarray]:
        """Products of the Hessian with vectors, float64 eV/Å², without the Hessian.

        vectors (atoms, 3), or (vectors, atoms, 3), dimensionless; returns the same shape. Of many structures, an array
        of vectors each, and a list is returned. Raises ConfigError for another shape or NaN, OutOfMemoryError.
        """
        many = list(as_many(atoms, "hvp"))
        found = self._second_order.products(many, one_each(many, [vectors] if isinstance(atoms, Atoms) else vectors))
        return found[0] if isinstance(atoms, Atoms) else found

    def vibrations(self, atoms: Atoms, *, indices: Numbers | None = None) -> Vibrations:
        """Normal modes of a molecule, or of a crystal at the gamma point; relax the structure before.

        ``indices`` are the atoms that move, the others standing still, such as an adsorbate's; by default those that
        no ``ase.constraints.FixAtoms`` holds. Other constraints do not count, which a ZooWarning says. Raises
        ConfigError where no atom moves.
        """
        check_atoms(atoms, "vibrations takes one ase.Atoms", "for many ask about one after another")
        if indices is None:
            warn_of_constraints(atoms, "vibrations", "say by indices= which atoms vibrate", honoured=(FixAtoms,))
        moving = moving_atoms(atoms) if indices is None else known(indices, len(atoms), "atom").tolist()
        masses = atoms.get_masses() if moving is None else atoms.get_masses()[moving]
        hessian = self._second_order.hessian(atoms, moving)
        return normal_modes(hessian, masses, rigid_motions(atoms) if len(masses) == len(atoms) else 0)

    def phonons(
        self,
        atoms: Atoms,
        supercell: Supercell,
        *,
        displacement: float = DISPLACEMENT,
        mesh: tuple[int, int, int] = MESH,
    ) -> Phonons:
        """Phonons of a primitive or conventional cell by phonopy, from forces of displaced supercells.

        ``supercell`` is three counts or a (3, 3) matrix in units of the cell; relax the cell before. ``displacement``
        is in Å, and divides the noise of the forces: an engine in float64 has next to none. Constraints do not count,
        which a ZooWarning says. Raises MissingPackageError without phonopy, StructureError for a structure that is not
        a crystal, ConfigError.
        """
        check_atoms(atoms, "phonons takes one ase.Atoms", "for many ask about one after another")
        warn_of_constraints(atoms, "phonons, in which all atoms move", "atoms.set_constraint() removes them")

        def forces(structures: Iterable[Atoms]) -> list[np.ndarray]:
            return [given(one.forces).double().numpy() for one in self.predict(structures)]

        self._graph(atoms)  # refuses the cell itself, not a supercell of it
        return phonons_of_forces(forces, atoms, supercell, displacement=displacement, mesh=mesh)

    @property
    def tells_novelty(self) -> bool:
        """Whether it came with what ``novelty`` needs."""
        return self._novelty is not None

    def novelty(self, structures: Atoms | Sequence[Atoms]) -> list[Novelty]:
        """How new the surroundings of atoms are to this engine, as errors of forces to be expected, for a forward pass.

        One Novelty a structure, in order, within the domain or not. Raises CapabilityError where the engine came
        without, StructureError, DomainError.
        """
        if self._novelty is None:
            raise CapabilityError(f"{self.name} has no novelty score; make its model folder again with zoo distill")
        return self._novelty.of(self.potential, list(as_many(structures, "novelty")))

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
        graph = build_graph(probe.structures, self.potential.cutoff, dtype=Compiled.takes, device=self.potential.device)
        told = self._ask(graph).cpu().split([len(atoms) for atoms in probe.structures])
        return [
            replace(old, energy=new.energy, forces=given(new.forces).double())
            for old, new in zip(found, told, strict=True)
        ]

    def check_domain(self, atoms: Atoms, graph: Graph | None = None) -> None:
        """Raises DomainError where ``atoms`` are not what this engine was made for.

        ``graph`` are the edges of the same atoms, where the caller has them.
        """
        domain, title = self.domain, self.provenance.title
        edges = build_graph(atoms, self.potential.cutoff) if graph is None else graph
        try:
            check_elements(atoms, self.potential)
            if domain is None:
                check_charge(atoms, 0, title)
            else:
                check_frame(domain, atoms, title)
                check_distances(domain, atoms, edges, title)
        except DomainError as error:
            raise with_help(error, atoms, self._lookup) from None

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
        return self.potential.predict(graph.to(self.potential.device, self.potential.dtype), stress=stress)

    def _follow(self, edges: Graph) -> Follower | None:
        """What answers while edges stay; None where no code does."""
        return self._compiled.follow(edges) if self._compiled is not None and self._compiled.follows else None

    @property
    def _code(self) -> str:
        return self._compiled.title if self._compiled is not None and self.compiled else "PyTorch"

    @property
    def _dtype_name(self) -> str:
        return str(self.potential.dtype).removeprefix("torch.")

    def _graph(self, atoms: Atoms) -> Graph:
        """The edges of atoms that passed the check, in float64 in main memory."""
        graph = build_graph(atoms, self.potential.cutoff)
        if self.checks_domain:
            self.check_domain(atoms, graph)
        else:
            check_elements(atoms, self.potential)
        return graph

    @property
    def _second_order(self) -> SecondOrder:
        return SecondOrder(self.potential, self._graph, self._needs)

    def _predict_batch(self, batch: list[Item]) -> list[Prediction]:
        takes = Compiled.takes if self.compiled else self.potential.dtype
        graph = collate([one.graph for one in batch]).to(self.potential.device, takes)
        stress = self.potential.traits.stress and any(one.atoms.pbc.all() for one in batch)
        return divided(self._ask(graph, stress=stress).cpu(), batch, energies=self.potential.traits.energies)


def resolve_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """The type by its name or as it is. Raises ConfigError."""
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    raise ConfigError(f"dtype {dtype!r}; expected 'float32' (fast) or 'float64' (exact)")


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


def _description(potential: Potential) -> str:
    shape = getattr(potential, "config", None)
    told = getattr(shape, "TOLD", None)  # of a config that is long
    numbers = {} if shape is None else shape.model_dump(include=told, exclude={"architecture", "elements", "cutoff"})
    parts = [f"{value} {key.replace('_', ' ')}" for key, value in numbers.items() if value]
    count = count_parameters(potential)  # none of a formula, a program, and a teacher in a process of its own
    parts += [f"cutoff {potential.cutoff:g} Å", *([f"{count:,} parameters"] if count else [])]
    return f"{type(potential).__name__}, " + ", ".join(parts)
