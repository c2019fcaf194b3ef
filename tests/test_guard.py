"""What structures state of their electrons, and engines that take what another one refuses."""

from pathlib import Path

import model_folders as folders
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

import zoo.covering as covering_module
from zoo.covering import Covering, covering
from zoo.engine import Engine
from zoo.errors import DomainError
from zoo.guard import check_charge, stated_electrons, with_help
from zoo.hub.catalogue import entries
from zoo.load import load
from zoo.publish import publish


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the silicon student, for cells of 16 to 24 Å³ an atom, no two nearer than 1.8 Å."""
    place = tmp_path_factory.mktemp("hub")
    publish(folders.make_folder(place / "model"), hub=place / "hub")
    return place / "hub"


def stating(**info: object) -> Atoms:
    atoms = bulk("Si")
    atoms.info |= info
    return atoms


@pytest.mark.parametrize(
    ("info", "told"),
    [
        ({"charge": 1}, r"a charge of \+1 e where 0 e is expected"),
        ({"charge": np.int64(-2)}, "a charge of -2 e"),
        ({"total_charge": 1.0}, r"a charge of \+1 e"),
        ({"charge": 0, "spin": 3}, "the spin multiplicity 3"),
        ({"multiplicity": 2}, "the spin multiplicity 2"),
        ({"charge": "+1"}, r"a charge of \+1 e"),
        ({"charge": np.array([-1.0])}, "a charge of -1 e"),
        ({"charge": "cation"}, "charge='cation', which is no number"),
        ({"charge": True}, "charge=True, which is no number"),
        ({"total_charge": np.nan}, "total_charge=nan, which is no number"),
    ],
)
def test_a_charge_or_a_spin_that_is_stated_is_refused_and_named(info: dict[str, object], told: str) -> None:
    with pytest.raises(DomainError, match=rf"Si2 states {told}.*which a/b@v1 has no input for; .*asks anyway"):
        check_charge(stating(**info), 0, "a/b@v1")


@pytest.mark.parametrize(
    "info",
    [
        {},
        {"charge": 0},
        {"charge": 0, "spin": 1},
        {"spin": 0},
        {"charge": None},
        {"charge": "0"},
        {"charge": np.array(0)},
    ],
)
def test_what_states_no_charge_is_neutral(info: dict[str, object]) -> None:
    check_charge(stating(**info), 0, "a/b")


def test_initial_charges_count_as_their_sum_and_moments_not_at_all() -> None:
    partial = bulk("NaCl", "rocksalt", a=5.6)
    partial.set_initial_charges([0.98, -0.93])
    partial.set_initial_magnetic_moments([2.0, 0.0])
    check_charge(partial, 0, "a/b")
    for charge in (1.0, 0.3):
        partial.set_initial_charges([charge, 0.0])
        with pytest.raises(DomainError, match=rf"charge of \+{charge:g} e"):
            check_charge(partial, 0, "a/b")
    partial.info["charge"] = 0
    check_charge(partial, 0, "a/b")  # what is said of the whole goes before the sum


def test_an_engine_of_ions_takes_these_and_one_of_any_charge_takes_all() -> None:
    assert stated_electrons(stating(charge=1), 1) is None
    assert stated_electrons(stating(), 1) is not None
    assert stated_electrons(stating(charge=5, spin=3), None) is None


def test_an_error_ends_with_who_helps() -> None:
    error = DomainError("it is wrong; ask anyway")
    assert with_help(error, bulk("Si"), None) is error
    assert str(with_help(error, bulk("Si"), lambda atoms: ["a/b"])) == "it is wrong; ask anyway; a/b covers it"
    assert str(with_help(error, bulk("Si"), lambda atoms: ["a/b", "c/d"])).endswith("; a/b and c/d cover it")
    assert str(with_help(error, bulk("Si"), lambda atoms: [])).endswith("; no engine that is known here covers it")


def test_every_teacher_of_the_catalogue_says_whether_it_is_of_crystals() -> None:
    teachers = [entry for entry in entries().values() if entry.status == "package"]
    assert len(teachers) > 5
    assert [entry.name for entry in teachers if entry.periodic is None] == []


def test_crystals_and_molecules_are_covered_by_teachers_of_their_kind_that_know_all_elements() -> None:
    assert covering(bulk("NaCl", "rocksalt", a=5.6)) == ["sevennet-0/teacher", "sevennet-l3i5/teacher"]
    assert covering(molecule("CH3CH2OH")) == ["gfn2-xtb/teacher", "mace-off23-small/teacher"]
    assert covering(molecule("SiH4")) == ["gfn2-xtb/teacher", "mace-mh-1/omol-teacher"]
    assert covering(bulk("Po", "sc", a=3.35)) == []  # gfn2-xtb knows it, but no crystals


def test_what_is_charged_or_collapsed_is_covered_by_nobody() -> None:
    ion = molecule("CH3CH2OH")
    ion.info["charge"] = 1
    assert covering(ion) == []
    collapsed = molecule("H2O")
    collapsed.positions[1] = collapsed.positions[0] + [0.0, 0.0, 0.4]
    assert covering(collapsed) == []
    collapsed.positions[1] = collapsed.positions[0]
    assert covering(collapsed) == []


def test_a_student_on_a_hub_comes_first_where_its_domain_holds_the_structure(hub: Path) -> None:
    inside = bulk("Si", "diamond", a=5.431, cubic=True)
    assert covering(inside, hub) == [folders.NAME, "sevennet-0/teacher"]
    outside = {
        "volume": bulk("Si", "diamond", a=7.0, cubic=True),
        "element": bulk("Ge", "diamond", a=5.431, cubic=True),
        "charge": stating(charge=1),
    }
    near = inside.copy()
    near.positions[1] = near.positions[0] + [1.7, 0.0, 0.0]
    slab = inside.copy()
    slab.pbc = (True, True, False)
    for atoms in (*outside.values(), near, slab):
        assert folders.NAME not in covering(atoms, hub)


def test_what_is_on_disk_is_read_once_and_only_when_asked(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []
    original = covering_module.open_hub
    monkeypatch.setattr(covering_module, "open_hub", lambda place: opened.append(place) or original(place))
    lookup = Covering(hub)
    assert opened == []
    for _ in range(3):
        assert lookup(bulk("Si"))[0] == folders.NAME
    assert opened == [hub]


def test_a_hub_that_cannot_be_read_costs_no_message(tmp_path: Path) -> None:
    teachers = ["sevennet-0/teacher", "sevennet-l3i5/teacher"]
    assert covering(bulk("Si"), tmp_path / "nothing") == teachers
    assert covering(bulk("Si"), "https://user@host") == teachers
    assert covering(bulk("Si"), namespace="--") == teachers
    assert covering(bulk("Si"), "http://127.0.0.1:9") == teachers  # nobody is asked


def outside() -> dict[str, tuple[Atoms, str]]:
    """Structures that the silicon student refuses, and what its error says of who helps."""
    teachers = "; sevennet-0/teacher and sevennet-l3i5/teacher cover it"
    near = bulk("Si", "diamond", a=5.431, cubic=True)
    near.positions[1] = near.positions[0] + [1.7, 0.0, 0.0]
    return {
        "element": (bulk("Ge"), teachers),
        "periodicity": (molecule("SiH4")[:1], "; gfn2-xtb/teacher and mace-mh-1/omol-teacher cover it"),
        "density": (bulk("Si", "diamond", a=7.0), teachers),
        "distance": (near, teachers),
        "charge": (stating(charge=1), "; no engine that is known here covers it"),
    }


@pytest.mark.parametrize("case", outside())
def test_every_error_of_a_loaded_engine_names_who_covers_the_structure(case: str, hub: Path) -> None:
    atoms, told = outside()[case]
    engine = load(folders.NAME, hub=hub, compile=False)
    with pytest.raises(DomainError) as error:
        engine.predict(atoms)
    assert str(error.value).endswith(told)
    assert "\n" not in str(error.value)
    moved = atoms.copy()
    moved.calc = engine.calculator()
    with pytest.raises(DomainError) as error:
        moved.get_forces()
    assert str(error.value).endswith(told)


def test_a_teacher_is_of_neutral_structures() -> None:
    with pytest.raises(DomainError, match=r"states a charge of \+3 e where 0 e is expected, which stillinger-weber"):
        load("stillinger-weber/teacher").predict(stating(charge=3))


def test_a_teacher_names_others_too() -> None:
    with pytest.raises(DomainError, match=r"has Ge.*; sevennet-0/teacher and sevennet-l3i5/teacher cover it"):
        load("stillinger-weber/teacher").predict(bulk("Ge"))


def test_a_stated_charge_is_let_pass_where_nobody_checks_the_domain_or_it_has_any(hub: Path, tmp_path: Path) -> None:
    ion = stating(charge=1)
    load(folders.NAME, hub=hub, compile=False, check_domain=False).predict(ion)
    anything = folders.make_folder(tmp_path / "model", domain=folders.domain(charge=None))
    Engine.read(anything, compile=False).predict(ion)


def test_nothing_is_looked_up_while_structures_are_inside(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Covering, "__call__", lambda self, atoms: pytest.fail("looked up"))
    load(folders.NAME, hub=hub, compile=False).predict(folders.cells(3))
