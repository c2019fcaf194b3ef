"""Structures beyond the data set: the student moves atoms to where its own forces lead it, and so finds where it errs.

Each way starts from a structure of the training set and leaves its cell as it is. What comes of it is judged twice:
here by limits that no label is needed for, and by the forces of the teacher before it is labelled in full.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Literal, get_args

import numpy as np
from ase import Atoms
from ase.neighborlist import natural_cutoffs, neighbor_list
from ase.optimize import LBFGS
from tqdm import tqdm

from zoo.calculator import ZooCalculator
from zoo.errors import DivergedError, StructureError
from zoo.neighbors import build_graph
from zoo.ops import deterministic
from zoo.potential import Potential, given
from zoo.recipe import ExplorationSection
from zoo.teachers import Teacher
from zoo.thermal import langevin, thermal_velocities

Reason = Literal["not finite", "force too large", "atoms too close", "come apart"]
REASONS: tuple[Reason, ...] = get_args(Reason)

PATIENCE = 5  # structures tried for each of the budget
SNAPSHOTS = 4  # of one trajectory at most, so that a budget comes from several
_STRETCHED = 1.5  # of the sum of two covalent radii; further apart, atoms are not bonded
_STREAM = 0x6578706C  # sets the draws of exploration apart from all others of the seed


@dataclass(frozen=True)
class Proposals:
    """What a student found, how many structures were tried for it, and why the others are not among them."""

    structures: list[Atoms]
    tried: int
    left_out: dict[Reason, int]


def propose(
    student: Potential, pool: Sequence[Atoms], section: ExplorationSection, seed: int, number: int
) -> Proposals:
    """Up to ``section.budget`` structures of round ``number``, each with its round, kind and parent in ``info``.

    A parent is a place in the pool. All is decided by student, pool, section, seed and round. Raises DivergedError
    where not one structure came of ``PATIENCE`` tries for each of the budget.
    """
    search = _Search(student, pool, section)
    kept: list[Atoms] = []
    left_out: Counter[Reason] = Counter()
    outcomes = islice(search.outcomes(seed, number), PATIENCE * section.budget)
    with tqdm(total=section.budget, desc=f"explore round {number}", unit="structure", delay=2) as bar, deterministic():
        for outcome in outcomes:
            if isinstance(outcome, Atoms):
                outcome.info = {"group": f"round-{number}", "split": "train", "round": number} | outcome.info
                kept.append(outcome)
                bar.update()
            else:
                left_out[outcome] += 1
            if len(kept) == section.budget:
                break
    tried = len(kept) + left_out.total()
    if not kept:
        raise DivergedError(_nothing_found(section, number, tried, left_out, "the student"))
    return Proposals(kept, tried, dict(left_out))


def judge(
    teacher: Teacher, structures: Sequence[Atoms], section: ExplorationSection, number: int
) -> tuple[list[Atoms], list[Atoms]]:
    """The structures on which the teacher's forces are within bounds, and those on which they are not, with a reason.

    It is asked for energy and forces alone, which costs a fraction of a label. Raises DivergedError where none is left.
    """
    kept, rejected = [], []
    with deterministic():
        for atoms in tqdm(structures, desc=f"judge round {number}", unit="structure", delay=2):
            verdict = _verdict(atoms, teacher.potential, section.max_force)
            if verdict is None:
                kept.append(atoms)
            else:
                reason, words = verdict
                other = _bare(atoms)
                other.info = atoms.info | {"reason": reason, "said": words}
                rejected.append(other)
    if not kept:
        counted = Counter(atoms.info["reason"] for atoms in rejected)
        raise DivergedError(_nothing_found(section, number, len(rejected), counted, "the teacher"))
    return kept, rejected


def _verdict(atoms: Atoms, potential: Potential, limit: float) -> tuple[Reason, str] | None:
    """Why a structure is not labelled, also in words; None where it is."""
    try:
        graph = build_graph(atoms, potential.cutoff, dtype=potential.dtype, device=potential.device)
        answer = potential.predict(graph).cpu()
    except (DivergedError, StructureError) as error:
        return "not finite", str(error)
    forces = given(answer.forces)  # (atoms, 3)
    if not forces.isfinite().all() or (potential.traits.energies and not answer.energy.isfinite().all()):
        return "not finite", "its energy or a force is not a number"
    largest = _largest(forces.double().numpy())
    return ("force too large", f"a force of {largest:.3g} eV/Å, above {limit:g}") if largest > limit else None


class _LeftOutError(Exception):
    """A structure is not taken."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class _Search:
    """A student on its way from the structures of a pool, and the limits of what is taken."""

    def __init__(self, student: Potential, pool: Sequence[Atoms], section: ExplorationSection) -> None:
        self.student = student
        self.pool = pool
        self.section = section
        self.closest = section.closest * min(_shortest_distance(atoms, student.cutoff) for atoms in pool)

    def outcomes(self, seed: int, number: int) -> Iterator[Atoms | Reason]:
        """Without end: structures, and why there is none. Each start has draws of its own."""
        for start in count():
            random = np.random.default_rng([seed, _STREAM, number, start])
            place = int(random.integers(len(self.pool)))
            parent = _bare(self.pool[place])
            try:
                for atoms in self._moved(parent.copy(), random):
                    self._check(atoms, parent)
                    found = _bare(atoms)
                    found.info = {"kind": self.section.kind, "parent": place}
                    yield found
            except _LeftOutError as left_out:
                yield left_out.reason
            except (DivergedError, StructureError):
                yield "not finite"

    def _moved(self, atoms: Atoms, random: np.random.Generator) -> Iterator[Atoms]:
        """The same atoms again and again, elsewhere each time."""
        atoms.calc = ZooCalculator(self.student)
        return self._relaxed(atoms, random) if self.section.kind == "rattle-relax" else self._trajectory(atoms, random)

    def _relaxed(self, atoms: Atoms, random: np.random.Generator) -> Iterator[Atoms]:
        """Displaced, then relaxed by any number of steps, so that all between the two is found."""
        sigma = random.uniform(*self.section.displacement)
        atoms.positions += random.normal(0.0, sigma, atoms.positions.shape)
        steps = int(random.integers(self.section.relax_steps + 1))
        LBFGS(atoms, logfile=None).run(fmax=0.0, steps=steps)
        yield atoms

    def _trajectory(self, atoms: Atoms, random: np.random.Generator) -> Iterator[Atoms]:
        """Snapshots of Langevin dynamics, until a force is beyond the limit: from there on it would only explode."""
        section = self.section
        atoms.set_velocities(thermal_velocities(atoms.get_masses(), section.temperature, random))
        dynamics = langevin(atoms, section.timestep, section.temperature, section.friction, random)
        dynamics.attach(self._check_forces, 1, atoms)
        for _ in range(SNAPSHOTS):
            dynamics.run(section.interval)
            yield atoms

    def _check(self, atoms: Atoms, parent: Atoms) -> None:
        """Raises _LeftOutError for a structure that is not to be learned from."""
        self._check_forces(atoms)
        if _shortest_distance(atoms, self.student.cutoff) < self.closest:
            raise _LeftOutError("atoms too close")
        if _pieces(atoms) > _pieces(parent):
            raise _LeftOutError("come apart")

    def _check_forces(self, atoms: Atoms) -> None:
        if _largest(atoms.get_forces()) > self.section.max_force:
            raise _LeftOutError("force too large")


def _nothing_found(section: ExplorationSection, number: int, tried: int, left_out: Counter[Reason], judge: str) -> str:
    counted = ", ".join(f"{left_out[reason]} {reason}" for reason in REASONS if left_out[reason])
    gentler = "displacement" if section.kind == "rattle-relax" else "temperature"
    return (
        f"round {number} of exploration: {judge} leaves not one structure of {tried} ({counted}); train longer "
        f"(training.steps), or lower exploration.{gentler}"
    )


def _bare(atoms: Atoms) -> Atoms:
    """What a potential sees."""
    return Atoms(atoms.numbers, atoms.positions.copy(), cell=atoms.cell, pbc=atoms.pbc)


def _largest(forces: np.ndarray) -> float:
    """The length of the longest force; forces (atoms, 3)."""
    return float(np.linalg.norm(forces, axis=1).max())


def _shortest_distance(atoms: Atoms, cutoff: float) -> float:
    """Å between the nearest two atoms, or the cutoff where none are nearer."""
    lengths = np.linalg.norm(build_graph(atoms, cutoff).edge_vectors().numpy(), axis=1)
    return float(lengths.min(initial=cutoff))


def _pieces(atoms: Atoms) -> int:
    """Groups of atoms that bonds hold together."""
    first, second = neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=_STRETCHED))
    names = np.arange(len(atoms))  # (atoms,) of pieces; each takes the lowest among its neighbours
    while len(first) and not np.array_equal(names[first], names[second]):
        np.minimum.at(names, first, names[second])
    return len(np.unique(names))
