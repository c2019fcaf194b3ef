"""What a student finds: within limits, of both kinds, the same every time, and nothing from a student that explodes."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from structures import tiny_painn

from zoo.config import parse
from zoo.distill.explore import PATIENCE, SNAPSHOTS, judge, propose
from zoo.errors import DivergedError
from zoo.graph import Graph
from zoo.neighbors import build_graph
from zoo.ops import scatter_sum
from zoo.potential import AtomOutputs, Potential, Traits
from zoo.recipe import ExplorationSection
from zoo.students import Student
from zoo.teachers import Teacher, load_teacher

GOOD = load_teacher("stillinger-weber/teacher")  # as a student, one that has learned all there is


def section(kind: str, **changes: object) -> ExplorationSection:
    data = {"kind": kind, "budget": 6, "interval": 3, "temperature": 300.0, "displacement": [0.02, 0.1]}
    return parse(ExplorationSection, data | changes, "the section")


@pytest.fixture(scope="module")
def pool() -> list[Atoms]:
    cells = []
    for number in range(4):
        atoms = bulk("Si", "diamond", a=5.3 + 0.1 * number, cubic=True)
        atoms.rattle(0.02, seed=number)
        atoms.info = {"group": "cells", "split": "train"}
        cells.append(atoms)
    return cells


def same(one: Atoms, other: Atoms) -> bool:
    return np.array_equal(one.positions, other.positions) and one.info == other.info


class Springs(Potential):
    """Each pair within 3 Å pulls (stiffness > 0) or pushes without end; a planted student."""

    traits = Traits(smoothness=0)
    cutoff = 3.0

    def __init__(self, stiffness: float, *numbers: int, rest: float = 1.5) -> None:
        super().__init__()
        self.elements = numbers
        self.rest = rest
        self.stiffness = torch.nn.Parameter(torch.tensor(stiffness, dtype=torch.float64), requires_grad=False)

    def atomic_outputs(self, graph: Graph) -> AtomOutputs:
        lengths = graph.edge_vectors().square().sum(-1).sqrt()  # (edges,)
        return AtomOutputs(scatter_sum(self.stiffness * (lengths - self.rest).square(), graph.centers, graph.num_atoms))


KINDS = pytest.mark.parametrize("kind", ["rattle-relax", "dynamics"])


@KINDS
def test_the_budget_is_met_and_each_structure_says_where_it_comes_from(kind: str, pool: list[Atoms]) -> None:
    found = propose(GOOD.potential, pool, section(kind), seed=1, number=2)
    assert len(found.structures) == found.tried == 6
    assert found.left_out == {}
    for atoms in found.structures:
        assert atoms.info["round"] == 2
        assert atoms.info["kind"] == kind
        parent = pool[atoms.info["parent"]]
        assert np.array_equal(atoms.numbers, parent.numbers)
        assert np.array_equal(atoms.cell[:], parent.cell[:])
        assert np.array_equal(atoms.pbc, parent.pbc)
        assert 1e-3 < np.abs(atoms.positions - parent.positions).max() < 1.0
        assert atoms.calc is None
    assert len({atoms.positions.tobytes() for atoms in found.structures}) == 6
    assert len({atoms.info["parent"] for atoms in found.structures}) > 1


@KINDS
def test_seed_and_round_decide_all(kind: str, pool: list[Atoms]) -> None:
    first, again, other_round, other_seed = (
        propose(GOOD.potential, pool, section(kind), seed=seed, number=number).structures
        for seed, number in ((1, 1), (1, 1), (1, 2), (2, 1))
    )
    assert all(map(same, first, again))
    for other in (other_round, other_seed):
        assert not any(np.array_equal(one.positions, two.positions) for one, two in zip(first, other, strict=True))


@KINDS
def test_a_larger_budget_begins_with_the_smaller_one(kind: str, pool: list[Atoms]) -> None:
    small, large = (
        propose(GOOD.potential, pool, section(kind, budget=budget), seed=1, number=1).structures for budget in (3, 6)
    )
    assert all(map(same, small, large[:3]))


def test_the_pool_is_left_as_it_is(pool: list[Atoms]) -> None:
    before = [atoms.copy() for atoms in pool]
    for kind in ("rattle-relax", "dynamics"):
        propose(GOOD.potential, pool, section(kind), seed=1, number=1)
    assert all(map(same, pool, before))


def test_relaxed_structures_span_from_rattled_to_relaxed(pool: list[Atoms]) -> None:
    """Some are as displaced as they were, others near a minimum: steps are drawn, and the student leads down."""

    def energies(relax_steps: int) -> np.ndarray:
        limits = section("rattle-relax", budget=12, displacement=[0.15, 0.15], relax_steps=relax_steps)
        found = propose(GOOD.potential, pool, limits, seed=1, number=1).structures
        graph = build_graph(found, GOOD.potential.cutoff)
        floor = GOOD.potential.predict(build_graph([pool[a.info["parent"]] for a in found], 4.0)).energy
        return (GOOD.potential.predict(graph).energy - floor).numpy()

    above = energies(12)
    assert above.max() > 2.0
    assert above.min() < 0.3
    assert energies(1).mean() > 2 * above.mean()


def test_dynamics_is_as_warm_as_the_recipe_says(pool: list[Atoms]) -> None:
    """A hotter run takes atoms further from where they were, about as the root of the temperature."""

    def spread(temperature: float) -> float:
        limits = section("dynamics", budget=8, temperature=temperature, interval=20)
        found = propose(GOOD.potential, pool, limits, seed=1, number=1).structures
        moves = [atoms.positions - pool[atoms.info["parent"]].positions for atoms in found]
        return float(np.sqrt(np.mean(np.square(moves))))

    cold, hot = spread(100), spread(900)
    assert 1.8 < hot / cold < 4


def test_a_trajectory_gives_some_snapshots_and_then_another_starts(pool: list[Atoms]) -> None:
    found = propose(GOOD.potential, pool, section("dynamics", budget=SNAPSHOTS + 1), seed=3, number=1).structures
    parents = [atoms.info["parent"] for atoms in found]
    assert len(set(parents[:SNAPSHOTS])) == 1
    near = np.abs(found[SNAPSHOTS].positions - found[SNAPSHOTS - 1].positions).max()
    assert near > 0.05 or parents[SNAPSHOTS] != parents[0]


@KINDS
def test_a_student_that_explodes_finds_nothing_and_says_so(kind: str, pool: list[Atoms]) -> None:
    student = tiny_painn("Si")
    with torch.no_grad():
        student.scale.fill_(1e6)
    what = "displacement" if kind == "rattle-relax" else "temperature"
    with pytest.raises(DivergedError, match=rf"not one structure of 30 \(.*30 .*lower exploration\.{what}"):
        propose(student, pool, section(kind), seed=1, number=1)


@KINDS
def test_a_student_without_numbers_finds_nothing_and_says_so(kind: str, pool: list[Atoms]) -> None:
    student = tiny_painn("Si")
    with torch.no_grad():
        student.scale.fill_(float("nan"))
    with pytest.raises(DivergedError, match=r"not one structure of 30 \(30 not finite\); train longer"):
        propose(student, pool, section(kind), seed=1, number=1)


def test_a_trajectory_that_diverges_is_cut_off_and_another_is_begun(pool: list[Atoms]) -> None:
    """Only one of the starts explodes; the budget is met from the others."""

    class Moody(Springs):
        def atomic_outputs(self, graph: Graph) -> AtomOutputs:
            outputs = super().atomic_outputs(graph)
            wild = float(graph.cells[0].det()) < pool[1].get_volume() - 1
            return AtomOutputs(outputs.energies * (1e5 if wild else 1.0))

    found = propose(Moody(0.05, 14, rest=2.35), pool, section("dynamics", budget=8), seed=1, number=1)
    assert len(found.structures) == 8
    assert 0 not in {atoms.info["parent"] for atoms in found.structures}
    assert found.left_out["force too large"] >= 1
    assert found.tried == 8 + sum(found.left_out.values())


def test_a_trajectory_is_cut_off_at_once_not_at_its_next_snapshot(pool: list[Atoms]) -> None:
    """A step beyond the limit, atoms would be anywhere; a neighbour list must never see them there."""
    asked = []

    class Counting(Springs):
        def atomic_outputs(self, graph: Graph) -> AtomOutputs:
            asked.append(1)
            return super().atomic_outputs(graph)

    with pytest.raises(DivergedError, match="10 force too large"):
        propose(Counting(1e3, 14), pool, section("dynamics", budget=2, interval=500), seed=1, number=1)
    assert len(asked) < 40


def test_atoms_that_come_too_close_are_left_out(pool: list[Atoms]) -> None:
    """Weak springs leave atoms where chance has put them, some of them in each other's way."""
    student = Springs(0.02, 14, rest=2.0)
    limits = section("rattle-relax", displacement=[0.02, 0.3], relax_steps=1, closest=0.9)
    shortest = min(_shortest(atoms) for atoms in pool)
    found = propose(student, pool, limits, seed=1, number=1)
    assert found.left_out["atoms too close"] > 0
    assert all(_shortest(atoms) >= 0.9 * shortest for atoms in found.structures)
    loose = propose(student, pool, limits.model_copy(update={"closest": 0.01}), seed=1, number=1)
    assert min(_shortest(atoms) for atoms in loose.structures) < 0.9 * shortest


def _shortest(atoms: Atoms) -> float:
    return float(build_graph(atoms, 3.0).edge_vectors().norm(dim=1).min())


def test_a_molecule_that_comes_apart_is_left_out() -> None:
    ethanol = molecule("CH3CH2OH")
    limits = section("dynamics", max_force=1e4, interval=10, temperature=300.0)
    tame, wild = Springs(2.0, 1, 6, 8, rest=1.5), Springs(-20.0, 1, 6, 8, rest=0.0)
    assert propose(tame, [ethanol], limits, seed=1, number=1).left_out.get("come apart", 0) == 0
    with pytest.raises(DivergedError, match="30 come apart"):
        propose(wild, [ethanol], limits, seed=1, number=1)


def test_two_molecules_may_stay_two() -> None:
    """What was in pieces before has not come apart."""
    pair = molecule("H2O")
    pair.extend(Atoms(pair.numbers, pair.positions + np.array([0.0, 0.0, 5.0])))
    found = propose(Springs(2.0, 1, 8, rest=1.2), [pair], section("dynamics"), seed=1, number=1)
    assert len(found.structures) == 6


def planted(teacher: Teacher, wrong: Callable[[Graph, torch.Tensor], torch.Tensor]) -> Teacher:
    """A teacher whose energies of atoms are changed by a function."""

    class Planted(type(teacher.potential)):
        def atomic_outputs(self, graph: Graph) -> AtomOutputs:
            outputs = super().atomic_outputs(graph)
            return AtomOutputs(wrong(graph, outputs.energies))

    return replace(teacher, potential=Planted().to(torch.float64).eval())


def test_the_teacher_puts_away_what_it_finds_too_hard(pool: list[Atoms]) -> None:
    crowded = pool[1].copy()
    crowded.positions[0] += 0.4 * (crowded.positions[1] - crowded.positions[0])
    crowded.info = {"round": 1, "parent": 1}
    kept, rejected = judge(GOOD, [pool[0], crowded, pool[2]], section("dynamics"), number=1)
    assert list(map(same, kept, [pool[0], pool[2]])) == [True, True]
    assert rejected[0].info["reason"] == "force too large"
    assert rejected[0].info["parent"] == 1
    assert "eV/Å, above 30" in rejected[0].info["said"]


def test_an_answer_that_is_no_number_puts_one_structure_away_not_the_run(pool: list[Atoms]) -> None:
    small = pool[0].get_volume()

    def wrong(graph: Graph, energies: torch.Tensor) -> torch.Tensor:
        return energies * (float("nan") if abs(float(graph.cells[0].det()) - small) < 0.1 else 1.0)

    kept, rejected = judge(planted(GOOD, wrong), pool, section("dynamics"), number=1)
    assert len(kept) == 3
    assert [atoms.info["reason"] for atoms in rejected] == ["not finite"]


def test_a_teacher_without_energies_is_asked_for_forces_alone(pool: list[Atoms]) -> None:
    silent = planted(GOOD, lambda graph, energies: energies)
    silent.potential.traits = replace(silent.potential.traits, energies=False)
    kept, rejected = judge(silent, pool, section("dynamics"), number=1)
    assert len(kept) == len(pool)
    assert rejected == []


def test_a_teacher_that_leaves_nothing_says_so(pool: list[Atoms]) -> None:
    with pytest.raises(
        DivergedError, match=r"round 3 .* the teacher leaves not one structure of 4 \(4 force too large"
    ):
        judge(GOOD, pool, section("dynamics", max_force=1e-3), number=3)


def test_a_student_in_single_precision_explores_too(pool: list[Atoms]) -> None:
    student: Student = tiny_painn("Si").float()
    found = propose(student, pool, section("dynamics", max_force=1e3, closest=0.1), seed=1, number=1)
    assert len(found.structures) <= PATIENCE * 6
    assert all(np.isfinite(atoms.positions).all() for atoms in found.structures)
