"""Teachers that give energies and forces and no derivatives of them: a program, or any calculator of ASE.

Products of the Hessian are central differences of their forces, ``H v ≈ −(F(r + h v) − F(r − h v)) / 2h``, two calls a
product. The error falls with h², to where noise of the forces over h takes its place: an adapter that knows its program
states the step, of others it is measured (``noise.py``).
"""

import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from zoo.derivatives import Side, one_hot_probes
from zoo.errors import CapabilityError, DivergedError, DomainError, ZooWarning
from zoo.graph import Graph
from zoo.potential import Potential, Prediction, Traits, given
from zoo.teachers.inputs import unknown_symbols
from zoo.teachers.noise import Differences, measure

# Å. Such a potential finds its own neighbours; edges are there only to catch two atoms on one spot.
CUTOFF = 1.0
_FORGETFUL = 5.0  # times the noise: so far apart may two answers about one structure be
_ROUNDING = 1e-10  # eV/Å, likewise where there is no noise


@dataclass(frozen=True)
class Answer:
    """What is said of one structure."""

    energy: float  # eV
    forces: np.ndarray  # (atoms, 3) eV/Å
    stress: np.ndarray | None = None  # (3, 3) eV/Å³, ASE's sign
    energies: np.ndarray | None = None  # (atoms,) eV


# Of numbers (atoms,), positions (atoms, 3) Å, cell (3, 3) Å, pbc (3,), and what is wanted beside energy and forces:
# "stress", "energies", or less than may be given. Nothing asked before may change an answer.
Ask = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Collection[str]], Answer]


@dataclass(frozen=True)
class _Structure:
    """One structure of a graph, in float64."""

    numbers: np.ndarray  # (atoms,)
    positions: np.ndarray  # (atoms, 3) Å
    cell: np.ndarray  # (3, 3) Å
    periodic: np.ndarray  # (3,) bool


class DifferencesPotential(Potential):
    """A function from atoms to energy and forces as a potential; its forces are the gradient of its energy."""

    place: Tensor

    def __init__(
        self,
        ask: Ask,
        elements: tuple[int, ...],
        *,
        name: str,
        traits: Traits,
        step: float = 1e-3,
        cutoff: float = CUTOFF,
    ) -> None:
        """``step`` is how far, in Å, the atom that moves most is displaced, whatever the length of a probe."""
        super().__init__()
        if not traits.conservative:
            raise CapabilityError(f"{name} has forces that are no gradient; their differences are no Hessian products")
        self.ask, self.elements, self.name = ask, elements, name
        self.traits, self.step, self.cutoff = traits, step, cutoff
        self.register_buffer("place", torch.zeros(()), persistent=False)  # where, and in which type, answers are given

    @property
    def dtype(self) -> torch.dtype:
        return self.place.dtype

    @property
    def device(self) -> torch.device:
        return self.place.device

    def atomic_energies(self, graph: Graph) -> Tensor:
        """(atoms,) eV, or equal shares of the energy where the function does not tell atoms apart."""
        energies = [_energies(self._answer(one, more=("energies",)), len(one.numbers)) for one in _structures(graph)]
        return self._tensor(np.concatenate(energies))

    def predict(
        self,
        graph: Graph,
        *,
        forces: bool = True,
        stress: bool = False,
        probes: Tensor | None = None,
        side: Side = "rows",
        features: bool = False,
        gradient: bool = False,
        create_graph: bool = False,
    ) -> Prediction:
        """Structures one by one. Raises CapabilityError for features and for derivatives of what is predicted.

        ``side`` does not matter to a gradient.
        """
        if features:
            raise CapabilityError(f"{self.name} gives no node features; ask it for energies and forces")
        if create_graph:
            raise CapabilityError(
                f"{self.name} cannot be differentiated, its Hessian products are differences of forces; "
                "leave create_graph out"
            )
        blocks = [None] * graph.num_structures if probes is None else _blocks(probes, graph)
        more = ("energies", "stress") if stress else ("energies",)
        parts = [self._predict(one, block, more) for one, block in zip(_structures(graph), blocks, strict=True)]
        found = Prediction.join(parts)
        return replace(
            found,
            forces=found.forces if forces else None,
            stress=found.stress if stress else None,
            energy_gradient=-given(found.forces) if gradient else None,
        )

    def hessian(self, graph: Graph, rows: Tensor | None = None) -> Tensor:
        """(rows, 3·atoms) eV/Å²: columns by differences, which are rows; the whole matrix is made symmetric.

        Chosen rows alone keep the error of the differences, as ``predict`` has it too. Raises CapabilityError for
        more than one structure.
        """
        if graph.num_structures != 1:
            raise CapabilityError(f"a Hessian of {graph.num_structures} structures at once; ask for one at a time")
        size = 3 * graph.num_atoms
        wanted = torch.arange(size, device=graph.positions.device) if rows is None else rows
        probes = one_hot_probes(wanted[None], graph)  # (rows, atoms, 3)
        (one,), (block,) = _structures(graph), _blocks(probes, graph)
        matrix = self._products(one, block).reshape(len(wanted), size)
        return self._tensor((matrix + matrix.T) / 2 if rows is None else matrix)

    def _predict(self, one: _Structure, probes: np.ndarray | None, more: Collection[str]) -> Prediction:
        """What is said of one structure; of what is not wanted, NaN."""
        answer = self._answer(one, more=more)
        return Prediction(
            energy=torch.tensor([answer.energy], dtype=torch.float64, device=self.device),
            atomic_energies=self._tensor(_energies(answer, len(one.numbers))),
            forces=self._tensor(answer.forces),
            stress=self._tensor(_stress(answer, one))[None],
            hessian_products=None if probes is None else self._tensor(self._products(one, probes)),
        )

    def _products(self, one: _Structure, probes: np.ndarray) -> np.ndarray:
        """(probes, atoms, 3) eV/Å²"""
        return np.stack([self._product(one, probe, self.step) for probe in probes]) if len(probes) else probes.copy()

    def _product(self, one: _Structure, probe: np.ndarray, step: float) -> np.ndarray:
        """(atoms, 3) eV/Å²; of a probe that is zero nothing, without a call."""
        longest = np.linalg.norm(probe, axis=1).max()
        if longest == 0:
            return np.zeros(probe.shape)
        shift = probe * (step / longest)  # (atoms, 3) Å
        ahead, behind = self._answer(one, shift), self._answer(one, -shift)
        return np.asarray((behind.forces - ahead.forces) * (longest / (2 * step)))

    def _answer(self, one: _Structure, shift: np.ndarray | float = 0.0, more: Collection[str] = ()) -> Answer:
        if unknown := unknown_symbols(one.numbers.tolist(), self.elements):
            raise DomainError(f"{self.name} has no parameters for {unknown}; choose a teacher that has them")
        return self.ask(one.numbers, one.positions + shift, one.cell, one.periodic, more)

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, dtype=self.dtype, device=self.device)


class MeasuredDifferences(DifferencesPotential):
    """One whose step follows from the noise of its forces, and that knows the error of its products.

    The step is measured once, by ``measure`` or with the first product that is asked for, or is taken over from where
    it was written down (``differences``).
    """

    def __init__(
        self, ask: Ask, elements: tuple[int, ...], *, name: str, traits: Traits, step: float | None = None
    ) -> None:
        """With a ``step``, in Å, only its error is measured."""
        super().__init__(ask, elements, name=name, traits=traits)
        self.fixed_step = step
        self.differences: Differences | None = None

    def measure(self, graph: Graph, probe: Tensor) -> Differences:
        """Sets the step, by the noise of the first structure's forces along ``probe`` (its atoms, 3).

        The structure is asked once more, after the last of ``graph``: a ZooWarning says where it is answered otherwise.
        Raises DivergedError where forces are not finite.
        """
        structures = list(_structures(graph))
        self.differences = self._measure(structures[0], probe.detach().double().cpu().numpy(), structures[-1])
        return self.differences

    def truncation(self, graph: Graph, probe: Tensor, product: Tensor) -> float:
        """What the third derivative adds to a ``product`` with a ``probe``, each (atoms, 3), in one structure.

        eV/Å², root mean square over components, for a probe whose longest atom has the length 1: a third of the
        difference from a product at twice the step, two calls more.
        """
        (one,), vector = _structures(graph), probe.detach().double().cpu().numpy()
        found = self._known(one, vector)
        longest = float(np.linalg.norm(vector, axis=1).max())
        twice = self._product(one, vector / longest, 2 * found.step_A)
        differences = twice - product.detach().double().cpu().numpy() / longest
        of_noise = 1.25 * found.noise_part**2  # that of a difference at h, and a quarter of it at 2h
        return sqrt(max(float(np.mean(differences**2)) - of_noise, 0.0)) / 3

    def error(self, truncation: float) -> float:
        """Of a product, with that of noise, for a probe whose longest atom has the length 1, eV/Å²."""
        assert self.differences is not None  # there are no products before
        return sqrt(self.differences.noise_part**2 + truncation**2)

    def _products(self, one: _Structure, probes: np.ndarray) -> np.ndarray:
        if len(probes):
            self.step = self._known(one, probes[0]).step_A
        return super()._products(one, probes)

    def _known(self, one: _Structure, probe: np.ndarray) -> Differences:
        if self.differences is None:
            self.differences = self._measure(one, probe, one)
        return self.differences

    def _measure(self, one: _Structure, probe: np.ndarray, other: _Structure) -> Differences:
        direction = probe / np.linalg.norm(probe, axis=1).max()
        first = self._finite_forces(one)
        found = measure(lambda distance: self._finite_forces(one, distance * direction), first, self.fixed_step)
        if other is not one:
            self._finite_forces(other)
        again = self._finite_forces(one)
        drift = sqrt(float(np.mean((again - first) ** 2)))
        if drift > _FORGETFUL * max(found.noise_eV_A, _ROUNDING):
            warnings.warn(
                f"{self.name} was asked twice about {Atoms(one.numbers).symbols}, with other structures in between, "
                f"and its forces differ by {drift:.1e} eV/Å (root mean square), more than their noise of "
                f"{found.noise_eV_A:.1e}; have it start each structure afresh, not from what it computed last",
                ZooWarning,
                stacklevel=4,
            )
        return found

    def _finite_forces(self, one: _Structure, shift: np.ndarray | float = 0.0) -> np.ndarray:
        """(atoms, 3) eV/Å"""
        forces = self._answer(one, shift).forces
        if not np.isfinite(forces).all():
            raise DivergedError(
                f"{self.name} gives forces that are not finite for {Atoms(one.numbers).symbols}; "
                "leave the structure out, or start from one with less distorted bonds"
            )
        return forces


def _structures(graph: Graph) -> Iterator[_Structure]:
    """The structures of a graph, in order."""
    counts = graph.atom_counts.tolist()
    columns = (
        torch.split(graph.numbers, counts),
        torch.split(graph.positions.detach().double(), counts),
        graph.cells.detach().double(),
        graph.periodic,
    )
    for parts in zip(*columns, strict=True):
        yield _Structure(*(part.cpu().numpy() for part in parts))


def _blocks(probes: Tensor, graph: Graph) -> list[np.ndarray]:
    """The (probes, atoms, 3) of each structure."""
    parts = torch.split(probes.detach().double().cpu(), graph.atom_counts.tolist(), dim=1)
    return [part.numpy() for part in parts]


def _energies(answer: Answer, count: int) -> np.ndarray:
    """(atoms,) eV"""
    return np.full(count, answer.energy / count) if answer.energies is None else answer.energies


def _stress(answer: Answer, one: _Structure) -> np.ndarray:
    """(3, 3) eV/Å³, NaN where there is no volume and where none is given."""
    return answer.stress if answer.stress is not None and one.periodic.all() else np.full((3, 3), np.nan)
