"""ASE's calculator around a potential."""
# mypy: allow-subclassing-any

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.data import chemical_symbols
from ase.stress import full_3x3_to_voigt_6_stress
from torch import Tensor

from zoo.errors import DivergedError, DomainError
from zoo.graph import Graph
from zoo.neighbors import COINCIDENT, SkinList, frame_of, within
from zoo.potential import Potential, Prediction

CHARGES = ("charge", "total_charge")  # keys of atoms.info: a total charge, e
SPINS = ("spin", "multiplicity")  # likewise: a multiplicity 2S + 1
_SHOWN = 8  # elements that a message lists before it counts


class Follower(Protocol):
    """What a potential says of atoms that move, while their neighbours stay the same."""

    def __call__(self, positions: Tensor, *, stress: bool) -> tuple[Prediction, float]:
        """For positions (atoms, 3) Å in main memory; besides the length of the shortest edge, Å."""


class ZooCalculator(Calculator):
    """Energy (eV), forces (eV/Å) and stress (eV/Å³, Voigt order and sign of ASE) of a potential.

    ``check`` sees each structure with its graph, and raises where it must stop; it looks at elements, cell,
    periodicity, stated charge and spin, and the shortest distance, and so is asked again only when these have changed,
    or two atoms are nearer to each other than ``nearest`` (Å), by default than any it let pass. ``predict`` answers in
    the potential's place, of graphs in float64, and ``follow`` makes from edges what answers while they stay, as
    compiled code does, or None. Neighbours are kept while atoms move little (``SkinList``). Stress is computed from the
    first time on that it is asked for.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "forces", "stress"]
    ignored_changes: ClassVar[set[str]] = {"initial_charges", "initial_magmoms"}

    def __init__(
        self,
        potential: Potential,
        *,
        check: Callable[[Atoms, Graph], None] | None = None,
        nearest: float | None = None,
        predict: Callable[..., Prediction] | None = None,
        follow: Callable[[Graph], Follower | None] | None = None,
    ) -> None:
        super().__init__()
        self.use_cache = False  # ASE's copy of the atoms at each call; one is kept here
        self.potential = potential
        self.check = check
        self.nearest = COINCIDENT if check is None else nearest
        self.predict = predict
        self.follow = follow
        self.neighbors = SkinList(potential.cutoff)
        self._with_stress = False
        self._last: Atoms | None = None  # as they were last asked about
        self._followed: tuple[Graph, Follower] | None = None
        self._closest = float("inf")  # Å, a shorter distance is looked at

    def __getstate__(self) -> dict[str, Any]:
        """To another process, and into a copy, goes all but what follows atoms, which is made again."""
        return vars(self) | {"_followed": None}

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What of ``atoms`` is not as it was last; a faster way to ASE's answer."""
        last = self._last
        if last is None or len(last) != len(atoms):
            return list(all_changes)
        frames = zip(("numbers", "cell", "pbc"), frame_of(last), frame_of(atoms), strict=True)
        changes = [name for name, old, new in frames if old != new]
        if last.positions.tobytes() != atoms.positions.tobytes():
            changes.insert(0, "positions")
        return changes if _stated(last) == _stated(atoms) else [*changes, "initial_charges"]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """What ASE calls. Raises StructureError, DomainError, DivergedError."""
        held = self._keep(atoms, system_changes)
        self._with_stress |= "stress" in properties
        if "energy" in properties and not self.potential.traits.energies:
            raise PropertyNotImplementedError(f"{type(self.potential).__name__} gives forces alone, and no energy")
        if "stress" in properties:
            self._refuse_stress(held)
        stress = self._with_stress and self.potential.traits.stress and bool(held.pbc.all())
        self.results = self._results(self._ask(held, stress))

    def _keep(self, atoms: Atoms | None, changes: Sequence[str]) -> Atoms:
        """A copy of what was asked about, of which mostly the positions alone are new."""
        if atoms is not None and self._last is not None and list(changes) == ["positions"]:
            self._last.positions[:] = atoms.positions
        elif atoms is not None and (self._last is None or changes):
            self._last, self._followed = atoms.copy(), None
        assert self._last is not None  # ASE asks about atoms first
        self.atoms = self._last
        return self._last

    def _refuse_stress(self, atoms: Atoms) -> None:
        """Raises PropertyNotImplementedError where there is none, as ASE has it."""
        if not self.potential.traits.stress:
            raise PropertyNotImplementedError(f"{type(self.potential).__name__} gives no stress")
        if not atoms.pbc.all():
            raise PropertyNotImplementedError(
                f"{atoms.symbols} is not periodic in all three directions, so it has no stress"
            )

    def _ask(self, atoms: Atoms, stress: bool) -> Prediction:
        edges = self.neighbors.wide(atoms)
        if self._followed is None or self._followed[0] is not edges:
            self._begin(atoms, edges)
        assert self._followed is not None
        prediction, shortest = self._followed[1](torch.from_numpy(atoms.positions), stress=stress)
        if shortest < self._closest:
            self._look(atoms)
            self._closest = shortest if self.nearest is None else self.nearest
        check_finite(prediction, atoms, energies=self.potential.traits.energies)
        return prediction

    def _begin(self, atoms: Atoms, edges: Graph) -> None:
        """After a search for neighbours: lets the atoms pass, and follows them from here."""
        self._followed = None
        _, shortest = within(self._look(atoms), self.potential.cutoff)
        check_elements(atoms, self.potential)  # after the check, whose error says more
        self._closest = shortest if self.nearest is None else self.nearest
        found = None if self.follow is None else self.follow(edges)
        self._followed = edges, found or self._follow_by_filter(edges)

    def _look(self, atoms: Atoms) -> Graph:
        """Lets the atoms pass as they are now, or raises; their graph."""
        graph = self.neighbors.graph(atoms)
        if self.check is not None:
            self.check(atoms, graph)
        return graph

    def _follow_by_filter(self, edges: Graph) -> Follower:
        """By the potential, or by ``predict``, of the edges within the cutoff."""
        wide = edges.to(self.potential.device, torch.float64)

        def follower(positions: Tensor, *, stress: bool) -> tuple[Prediction, float]:
            moved = wide.with_geometry(positions.to(wide.positions.device), wide.cells)
            graph, shortest = within(moved, self.potential.cutoff)
            if self.predict is not None:
                return self.predict(graph, stress=stress).cpu(), shortest
            graph = graph.to(self.potential.device, self.potential.dtype)
            return self.potential.predict(graph, stress=stress).cpu(), shortest

        return follower

    def _results(self, prediction: Prediction) -> dict[str, Any]:
        assert prediction.forces is not None
        energy = float(prediction.energy[0])
        forces = prediction.forces.numpy().astype(np.float64)
        results: dict[str, Any] = {"forces": forces}
        if self.potential.traits.energies:
            results |= {"energy": energy, "free_energy": energy}
        if prediction.stress is not None:
            results["stress"] = full_3x3_to_voigt_6_stress(prediction.stress[0].double().numpy())
        return results


def _stated(atoms: Atoms) -> tuple[str, ...]:
    """What is stated of the electrons, to be compared."""
    told = [atoms.info.get(key) for key in (*CHARGES, *SPINS)] if atoms.info else []
    partial = atoms.arrays.get("initial_charges")
    if partial is None and not any(value is not None for value in told):
        return ()
    return (*map(repr, told), "" if partial is None else repr(float(partial.sum())))


def check_elements(atoms: Atoms, potential: Potential) -> None:
    """Raises DomainError for an element without parameters: ``check_domain=False`` does not help there."""
    unknown = sorted(set(atoms.numbers.tolist()) - set(potential.elements))
    if unknown:
        known, strange = elements_text(symbols_of(potential.elements)), elements_text(symbols_of(unknown))
        raise DomainError(
            f"{atoms.symbols} has {strange}, and this potential has parameters for {known} alone; "
            "choose an engine that knows all elements of the structure"
        )


def check_finite(prediction: Prediction, atoms: Atoms, *, energies: bool = True) -> None:
    """Raises DivergedError where forces, stress, or energies that a potential gives, are not numbers."""
    parts = [prediction.energy if energies else None, prediction.forces, prediction.stress]
    if not all(part is None or np.isfinite(part.numpy()).all() for part in parts):
        raise DivergedError(
            f"the energy or a force of {atoms.symbols} is not finite; "
            "start from a relaxed structure, take a shorter time step, or use dtype='float64'"
        )


def symbols_of(numbers: Iterable[int]) -> list[str]:
    """Symbols of atomic numbers."""
    return [chemical_symbols[number] for number in numbers]


def elements_text(symbols: Sequence[str]) -> str:
    """A few symbols in full, many as a count."""
    if len(symbols) <= _SHOWN:
        return ", ".join(symbols)
    return f"{', '.join(symbols[:_SHOWN])}… ({len(symbols)} elements)"
