"""What people give to an engine in place of what it takes: one sentence says what was expected."""

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms, FixCartesian

from zoo.engine import Engine
from zoo.errors import ConfigError, MissingPackageError, StructureError, ZooWarning
from zoo.load import load

SI = bulk("Si", a=5.43)
ONES = np.ones((2, 3))
MANY = "ase.Atoms, one or many"
ONE = "one ase.Atoms, got list; for many ask about one after another"
READ = "read it: ase.io.read('si.xyz', ':')"
BUILD = "read or build it with ASE"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return load("stillinger-weber/teacher", dtype="float64", device="cpu")


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda e: e.predict("si.xyz"), f"predict takes {MANY}, got 'si.xyz'; {READ}"),
        (lambda e: e.predict(Path("si.xyz")), f"predict takes {MANY}, got 'si.xyz'; {READ}"),
        (lambda e: e.predict(None), f"predict takes {MANY}, got None; {BUILD}"),
        (lambda e: e.predict([SI, 3]), f"structures[1] of 2: expected ase.Atoms, got 3; {BUILD}"),
        (lambda e: e.predict([[SI]]), "structures[0] of 1: expected ase.Atoms, got list; give them in one flat list"),
        (lambda e: e.predict(iter(["x"])), "structures[0]: expected ase.Atoms, got 'x'; read it: ase.io.read('x')"),
        (lambda e: e.hessian([SI, SI]), "hessian takes one ase.Atoms, got list; for many use engine.hessians"),
        (lambda e: e.hessian("si.xyz"), "hessian takes one ase.Atoms, got 'si.xyz'; read it: ase.io.read('si.xyz')"),
        (lambda e: e.hessians(5), f"hessians takes {MANY}, got 5; {BUILD}"),
        (lambda e: e.hessians([SI, None]), f"structures[1] of 2: expected ase.Atoms, got None; {BUILD}"),
        (lambda e: e.hvp("si.xyz", ONES), f"hvp takes {MANY}, got 'si.xyz'; {READ}"),
        (lambda e: e.hvp([SI, 3], [ONES, ONES]), f"structures[1] of 2: expected ase.Atoms, got 3; {BUILD}"),
        (lambda e: e.vibrations([SI]), f"vibrations takes {ONE}"),
        (lambda e: e.phonons([SI], (1, 1, 1)), f"phonons takes {ONE}"),
    ],
)
def test_what_is_no_structure_is_told(engine: Engine, ask: Callable[[Engine], object], words: str) -> None:
    with pytest.raises(StructureError, match=f"^{re.escape(words)}$"):
        ask(engine)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda e: e.hvp(SI, "x"), "vectors of 'x'; expected numbers of shape (2, 3), or many such"),
        (lambda e: e.hvp(SI, [[1], [1, 2]]), "vectors of list; expected numbers of shape (2, 3), or many such"),
        (lambda e: e.hvp([SI, SI], None), "1 arrays of vectors for 2 structures; give one a structure"),
        (lambda e: e.hvp(SI, np.nan * ONES), "vectors of Si2 with numbers that are not finite; expected finite ones"),
        (lambda e: e.hessian(SI, rows=3), "rows 3; expected whole numbers from 0 to 5, each once"),
        (lambda e: e.hessian(SI, rows="all"), "rows all; expected whole numbers from 0 to 5, each once"),
    ],
)
def test_numbers_that_do_not_fit_are_told(engine: Engine, ask: Callable[[Engine], object], words: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(words)}$"):
        ask(engine)


def test_one_structure_has_hessians_as_it_has_predictions(engine: Engine) -> None:
    (found,) = engine.hessians(SI)
    np.testing.assert_array_equal(found, engine.hessian(SI))


def test_a_slice_stands_for_its_numbers(engine: Engine) -> None:
    whole = engine.hessian(SI)
    np.testing.assert_allclose(engine.hessian(SI, rows=slice(1, None, 2)), whole[1::2], atol=1e-12)
    np.testing.assert_allclose(engine.hessian(SI, indices=slice(1, 2)), whole[3:, 3:], atol=1e-12)


def held(*constraints: object) -> Atoms:
    atoms = SI.copy()
    atoms.set_constraint(constraints)
    return atoms


def phonons_of(engine: Engine, atoms: Atoms) -> None:
    with suppress(MissingPackageError):
        engine.phonons(atoms, (1, 1, 1), mesh=(1, 1, 1))


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda e, atoms: e.vibrations(atoms), "vibrations: FixCartesian; say by indices= which atoms vibrate"),
        (lambda e, atoms: e.hessian(atoms), "a Hessian: FixAtoms, FixCartesian; say by indices= which atoms move"),
        (lambda e, atoms: phonons_of(e, atoms), "phonons, in which all atoms move: FixAtoms, FixCartesian; "),
    ],
)
def test_constraints_that_do_not_count_are_told(
    engine: Engine, ask: Callable[[Engine, Atoms], object], words: str
) -> None:
    with pytest.warns(ZooWarning, match=f"^constraints of Si2 that do not count in {re.escape(words)}") as caught:
        ask(engine, held(FixAtoms([0]), FixCartesian([1], (True, False, False))))
    assert [warning.filename for warning in caught] == [__file__]


def test_who_says_which_atoms_move_hears_nothing_of_constraints(engine: Engine) -> None:
    atoms = held(FixCartesian([1]))
    engine.vibrations(atoms, indices=[0, 1])
    engine.hessian(atoms, indices=[0])
    engine.hessian(atoms, rows=[0])
    engine.vibrations(held(FixAtoms([0])))
