"""What every adapter of a foundation model keeps; the tests of a family inherit ``TeacherContract``.

A subclass names a teacher and gives structures. Where its weights cannot be had, a fixture ``weights`` puts a small
model of the family's own code, with random numbers, where the teacher's file is sought.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.data import chemical_symbols
from contracts import CONTRACT, laws_of

from zoo.errors import DomainError
from zoo.graph import Graph
from zoo.hub.catalogue import entries
from zoo.neighbors import build_graph
from zoo.potential import Prediction, given
from zoo.teachers import Teacher, family_of, load_teacher, stated_traits

_STEP = 1e-3  # Å, of differences; their error falls with its fourth power
_TYPES = {"float64": torch.float64, "float32": torch.float32}


class TeacherContract:
    """Each test on one teacher. Tolerances are relative to the largest number, or to 1."""

    name: str
    structures: ClassVar[Callable[[], Sequence[Atoms]]]  # a staticmethod
    agreement: ClassVar[dict[str, float]] = {"float64": 1e-8, "float32": 2e-4}  # with the family's own calculator
    difference: ClassVar[float] = 1e-6  # of Hessian products from differences of forces
    laws: ClassVar[Sequence[str]] = tuple(CONTRACT)

    @pytest.fixture(autouse=True)
    def weights(self) -> None:
        """Puts the file of the teacher there, where its package does not bring it."""

    def teacher(self, dtype: str = "float64") -> Teacher:
        return load_teacher(self.name, dtype=_TYPES[dtype])

    def graph(self, teacher: Teacher, structures: Sequence[Atoms] | None = None) -> Graph:
        potential = teacher.potential
        return build_graph(list(structures or self.structures()), potential.cutoff, dtype=potential.dtype)

    def test_it_says_of_itself_what_was_known_before(self) -> None:
        entry, teacher = entries()[self.name], self.teacher()
        family = family_of(self.name)
        assert family is not None
        assert teacher.name == self.name
        assert teacher.package.split()[0] == entry.package == (family.install or "zoo").split()[0]
        assert (teacher.licence_code, teacher.licence_weights) == (entry.licence_code, entry.licence_weights)
        assert teacher.level_of_theory == entry.level_of_theory
        assert tuple(chemical_symbols[number] for number in teacher.potential.elements) == entry.elements
        assert teacher.potential.traits == stated_traits(self.name)

    def test_it_keeps_its_promises_about_features_and_embeddings(self) -> None:
        teacher = self.teacher()
        channels, embeddings = teacher.potential.traits.features, teacher.potential.element_embeddings()
        assert embeddings is None or len(embeddings) == len(teacher.potential.elements)
        if channels:
            graph = self.graph(teacher)
            assert given(teacher.potential.predict(graph, features=True).features).shape == (graph.num_atoms, channels)

    @pytest.mark.parametrize("dtype", _TYPES)
    def test_it_agrees_with_the_calculator_of_its_family(self, dtype: str) -> None:
        family, teacher = family_of(self.name), self.teacher(dtype)
        assert family is not None
        calculator = importlib.import_module(family.module).calculator(self.name, _TYPES[dtype])
        for atoms in self.structures():
            found = teacher.potential.predict(self.graph(teacher, [atoms]), stress=True)
            assert found.energy.dtype == torch.float64
            assert given(found.forces).dtype == _TYPES[dtype]
            expected = _answers(atoms, calculator, teacher)
            for key, value in expected.items():
                _assert_near(_part(found, key), value, self.agreement[dtype], key)

    def test_hessian_products_are_differences_of_its_forces(self) -> None:
        teacher = self.teacher()
        atoms = self.structures()[0]
        probe = np.random.default_rng(0).choice([-1.0, 1.0], size=(1, len(atoms), 3))  # (1, atoms, 3)
        found = teacher.potential.predict(self.graph(teacher, [atoms]), probes=torch.as_tensor(probe), side="columns")
        expected = np.zeros((len(atoms), 3))
        for steps, weight in ((1, 8), (-1, -8), (2, -1), (-2, 1)):
            moved = atoms.copy()
            moved.positions += steps * _STEP * probe[0]
            forces = given(teacher.potential.predict(self.graph(teacher, [moved])).forces)
            expected -= weight * forces.numpy() / (12 * _STEP)
        _assert_near(given(found.hessian_products)[0], expected, self.difference, "Hessian product")

    def test_a_batch_is_its_parts(self) -> None:
        teacher, structures = self.teacher(), list(self.structures())
        whole = teacher.potential.predict(self.graph(teacher, structures), stress=True)
        parts = [teacher.potential.predict(self.graph(teacher, [atoms]), stress=True) for atoms in structures]
        joined = Prediction.join(parts)
        for key in ("energy", "forces", "stress"):
            _assert_near(_part(whole, key), np.nan_to_num(_part(joined, key).numpy()), 1e-8, key)

    def test_it_refuses_an_element_that_it_does_not_know(self) -> None:
        teacher, atoms = self.teacher(), self.structures()[0].copy()
        unknown = next(number for number in range(84, 119) if number not in teacher.potential.elements)
        atoms.numbers[0] = unknown
        with pytest.raises(DomainError, match=rf"{chemical_symbols[unknown]}\b"):
            teacher.potential.predict(self.graph(teacher, [atoms]))

    def test_it_keeps_the_laws_that_its_traits_imply(self) -> None:
        potential = self.teacher().potential
        for law, check in laws_of(potential).items():
            if law in self.laws:
                check(potential)


def _answers(atoms: Atoms, calculator: Any, teacher: Teacher) -> dict[str, np.ndarray]:
    """What the family's own calculator says, as far as the teacher says it too."""
    traits, copied = teacher.potential.traits, atoms.copy()
    copied.calc = calculator
    answers = {"forces": copied.get_forces()}
    if traits.energies:
        answers["energy"] = np.array([copied.get_potential_energy()])
    if traits.stress and "stress" in calculator.implemented_properties and atoms.pbc.all():
        answers["stress"] = copied.get_stress(voigt=False)[None]
    return answers


def _part(found: Prediction, key: str) -> torch.Tensor:
    """A part of a prediction, 0 where there is none of a structure."""
    return given(getattr(found, key)).double().nan_to_num()


def _assert_near(found: torch.Tensor, expected: np.ndarray, tolerance: float, what: str) -> None:
    error = float(np.abs(found.double().numpy() - expected).max())
    assert error <= tolerance * max(1.0, float(np.abs(expected).max())), f"{what} is off by {error:.2e}"
