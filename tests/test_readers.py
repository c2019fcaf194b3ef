"""Readers of data sets: what each format says of three small frames, and what is refused, and how it is told."""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import pickle
import re
import sqlite3
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import ase.units
import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from zoo.data.frame import Frame
from zoo.data.readers import FORMATS, read_frames
from zoo.data.readers.base import problem
from zoo.data.readers.materials_project import with_gaps
from zoo.data.readers.smiles import formal_charge, mapped_elements
from zoo.errors import ConfigError, IntegrityError, LabelError, MissingPackageError, UnknownNameError, ZooError

h5py = pytest.importorskip("h5py")
lmdb = pytest.importorskip("lmdb")

KCAL = ase.units.kcal / ase.units.mol  # CODATA 2014: equal to ours within 1e-7
HARTREE, BOHR, GPA = ase.units.Hartree, ase.units.Bohr, ase.units.GPa
CLOSE = 1e-6

random = np.random.default_rng(5)
COUNT = 3
NUMBERS = np.array([8, 1, 1])
SITES = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
POSITIONS = SITES + random.normal(0, 0.05, (COUNT, 3, 3))
ENERGIES = np.array([-97089.070882527, -97082.304746071, -97087.700673153])  # eV; float32 would lose 4 meV
FORCES = random.normal(0, 1, (COUNT, 3, 3))
CELL = np.array([[5.0, 0.0, 0.0], [0.3, 6.0, 0.0], [0.1, 0.2, 7.0]])
STRESS = np.array([0.011, -0.022, 0.033, 0.044, 0.055, -0.066])  # eV/Å³, ASE's order and sign
MATRIX = STRESS[[0, 5, 4, 5, 1, 3, 4, 3, 2]].reshape(3, 3)
SMILES = "[O-:1]([H:2])[H:3]"

Raw = dict[str, Any]  # what stands in a file, by its own keys and in its own units


def raw_extxyz() -> Raw:
    lines = []
    for index in range(COUNT):
        stress, lattice = (" ".join(map(repr, matrix.ravel().tolist())) for matrix in (MATRIX, CELL))
        lines += [
            "3",
            f'Lattice="{lattice}" Properties=species:S:1:pos:R:3:forces:R:3:MACE_forces:R:3 '
            f'energy={float(ENERGIES[index])!r} stress="{stress}" '
            f'MACE_energy=-1.5 config_type="DES370K Monomers" smiles="{SMILES}" pbc="T T T"',
        ]
        for symbol, *columns in zip("OHH", POSITIONS[index], FORCES[index], strict=True):
            lines.append(" ".join([symbol, *(repr(float(value)) for value in np.concatenate(columns)), "9 9 9"]))
    return {"text": "\n".join(lines) + "\n"}


def raw_sgdml() -> Raw:
    return {
        "type": b"d",
        "name": b"hydroxide",
        "theory": "none",
        "z": NUMBERS.astype("u1"),
        "R": POSITIONS,
        "E": (ENERGIES / KCAL)[:, None],
        "F": FORCES / KCAL,
    }


def raw_rmd17() -> Raw:
    return {
        "nuclear_charges": NUMBERS.astype("u1"),
        "coords": POSITIONS,
        "energies": ENERGIES / KCAL,
        "forces": FORCES / KCAL,
        "old_indices": np.array([70.0, 8.0, 9.0]),
    }


def raw_spice() -> Raw:
    return {
        "subset": [b"SPICE DES Monomers"],
        "smiles": [SMILES.encode()],
        "atomic_numbers": NUMBERS.astype("i2"),
        "conformations": POSITIONS / BOHR,
        "dft_total_energy": ENERGIES / HARTREE,
        "dft_total_gradient": -FORCES / (HARTREE / BOHR),
        "units": {
            "conformations": "bohr",
            "dft_total_energy": "hartree",
            "dft_total_gradient": "hartree/bohr",
        },
    }


def raw_mptrj() -> Raw:
    def record(index: int) -> Raw:
        fractions = POSITIONS[index] @ np.linalg.inv(CELL)
        sites = [
            {"species": [{"element": symbol, "occu": 1}], "abc": row.tolist(), "xyz": [0, 0, 0], "label": symbol}
            for symbol, row in zip("OHH", fractions, strict=True)
        ]
        return {
            "structure": {"lattice": {"matrix": CELL.tolist()}, "sites": sites, "charge": None},
            "uncorrected_total_energy": 7.0,
            "corrected_total_energy": ENERGIES[index],
            "energy_per_atom": 7.0,
            "force": FORCES[index].tolist(),
            "stress": (MATRIX / (-0.1 * GPA)).tolist(),
            "magmom": None,
            "bandgap": 1.25,
            "mp_id": "mp-1",
        }

    return {"mp-1": {"mp-7-0-3": record(0), "mp-7-1-0": record(1)}, "mp-2": {"mp-2-0-0": record(2)}}


def raw_rows() -> Raw:
    return {"rows": [atoms_of(index) for index in range(COUNT)]}


def raw_lmdb() -> Raw:
    rows = {
        str(index + 1): {
            "numbers": NUMBERS.tolist(),
            "positions": {"__ndarray__": [[3, 3], "float64", POSITIONS[index].ravel().tolist()]},
            "cell": CELL.tolist(),
            "pbc": [True] * 3,
            "energy": ENERGIES[index],
            "forces": FORCES[index].tolist(),
            "stress": STRESS.tolist(),
        }
        for index in range(COUNT)
    }
    return rows | {"nextid": COUNT + 1}


def raw_deepmd() -> Raw:
    volume = np.linalg.det(CELL)
    return {
        "type.raw": "0\n1\n1\n",
        "type_map.raw": "O\nH\n",
        "coord": POSITIONS.reshape(COUNT, 9),
        "box": np.tile(CELL.ravel(), (COUNT, 1)),
        "energy": ENERGIES,
        "force": FORCES.reshape(COUNT, 9),
        "virial": np.tile(-volume * MATRIX.ravel(), (COUNT, 1)),
    }


def raw_phonopy() -> Raw:
    return {
        "phonopy": {"version": "2.24.2"},
        "supercell": {
            "lattice": CELL.tolist(),
            "points": [
                {"symbol": symbol, "coordinates": row.tolist(), "mass": 1.0}
                for symbol, row in zip("OHH", SITES @ np.linalg.inv(CELL), strict=True)
            ],
        },
        "dataset": {
            "displacements": (POSITIONS - SITES).tolist(),
            "forces": FORCES.tolist(),
            "supercell_energies": ENERGIES.tolist(),
        },
    }


def atoms_of(index: int) -> Atoms:
    atoms = Atoms(NUMBERS, POSITIONS[index], cell=CELL, pbc=True)
    atoms.calc = SinglePointCalculator(atoms, energy=ENERGIES[index], forces=FORCES[index], stress=STRESS)
    return atoms


def write_text(path: Path, raw: Raw) -> None:
    path.write_text(raw["text"], encoding="utf-8")


def write_npz(path: Path, raw: Raw) -> None:
    np.savez(path, **raw)


def write_sgdml(path: Path, raw: Raw) -> None:
    """With sGDML's fingerprint, unless there is one."""
    parts = [raw[key] for key in ("z", "R", "E", "F") if key in raw and raw[key].dtype != object]
    digests = b"".join(hashlib.md5(np.ravel(part).tobytes()).digest() for part in parts)
    write_npz(path, {"md5": hashlib.md5(digests).hexdigest().encode()} | raw)


def write_spice(path: Path, raw: Raw) -> None:
    units = raw["units"]
    with h5py.File(path, "w") as file:
        group = file.create_group("water")
        for key in raw.keys() - {"units"}:
            group.create_dataset(key, data=raw[key])
            if key in units:
                group[key].attrs["units"] = units[key]


def write_json(path: Path, raw: Raw) -> None:
    path.write_text(json.dumps(raw), encoding="utf-8")


def write_db(path: Path, raw: Raw) -> None:
    path.unlink(missing_ok=True)
    with ase.db.connect(path, type="db") as base:
        for atoms in raw["rows"]:
            base.write(atoms, label="ignored", data={"also": "ignored"})


def write_lmdb(path: Path, raw: Raw) -> None:
    path.unlink(missing_ok=True)
    with lmdb.open(str(path), subdir=False, map_size=1 << 24, lock=False) as base, base.begin(write=True) as change:
        for key, value in raw.items():
            change.put(key.encode(), value if isinstance(value, bytes) else zlib.compress(json.dumps(value).encode()))


def write_deepmd(path: Path, raw: Raw) -> None:
    (path / "set.000").mkdir(parents=True, exist_ok=True)
    for key, value in raw.items():
        if isinstance(value, str):
            (path / key).write_text(value, encoding="utf-8")
        else:
            np.save(path / "set.000" / f"{key}.npy", value)


def write_yaml(path: Path, raw: Raw) -> None:
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")


@dataclass(frozen=True)
class Case:
    """A small valid file of a format."""

    file: str
    raw: Callable[[], Raw]
    write: Callable[[Path, Raw], None]
    periodic: bool = True
    stress: bool = True


CASES = {
    "extxyz": Case("water.extxyz", raw_extxyz, write_text),
    "sgdml": Case("water.npz", raw_sgdml, write_sgdml, periodic=False, stress=False),
    "rmd17": Case("rmd17_water.npz", raw_rmd17, write_npz, periodic=False, stress=False),
    "spice": Case("water.hdf5", raw_spice, write_spice, periodic=False, stress=False),
    "mptrj-json": Case("water.json", raw_mptrj, write_json),
    "ase-db": Case("water.db", raw_rows, write_db),
    "lmdb": Case("water.aselmdb", raw_lmdb, write_lmdb),
    "deepmd": Case("water", raw_deepmd, write_deepmd),
    "phonopy": Case("water.yaml", raw_phonopy, write_yaml, stress=False),
}


def made(folder: Path, form: str, change: Callable[[Raw], object] = lambda raw: None) -> Path:
    case = CASES[form]
    raw = case.raw()
    change(raw)
    path = folder / case.file
    case.write(path, raw)
    return path


def refusal(path: Path, form: str, **options: Any) -> ZooError:
    """The error of a file, which must be one of ours on one line that names the file."""
    with pytest.raises((IntegrityError, LabelError, ConfigError)) as caught:
        list(read_frames(path, form, **options))
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    assert ";" in message or ": " in message, f"no remedy in {message!r}"
    return caught.value


# What is read


def test_every_format_has_a_case() -> None:
    assert CASES.keys() == FORMATS.keys()


@pytest.mark.parametrize("form", CASES)
def test_all_formats_say_the_same_of_the_same_frames(form: str, tmp_path: Path) -> None:
    case = CASES[form]
    frames = list(read_frames(made(tmp_path, form), form))
    assert len(frames) == COUNT
    for index, frame in enumerate(frames):
        atoms = frame.atoms
        assert atoms.numbers.tolist() == NUMBERS.tolist()
        np.testing.assert_allclose(atoms.positions, POSITIONS[index], atol=1e-6)
        assert atoms.pbc.all() == atoms.pbc.any() == case.periodic
        np.testing.assert_allclose(atoms.cell[:], CELL if case.periodic else 0)
        assert atoms.get_potential_energy() == pytest.approx(ENERGIES[index], rel=1e-7, abs=0)
        np.testing.assert_allclose(atoms.get_forces(), FORCES[index], rtol=CLOSE, atol=1e-12)
        if case.stress:
            np.testing.assert_allclose(atoms.get_stress(), STRESS, rtol=CLOSE)
        assert atoms.calc.results.keys() == {"energy", "forces", *(["stress"] if case.stress else [])}
        assert type(atoms.calc.results["energy"]) is float
        assert {array.dtype for array in (atoms.positions, atoms.calc.results["forces"])} == {np.dtype("float64")}
        assert (atoms.info, set(atoms.arrays)) == ({}, {"numbers", "positions"})
        assert case.file in frame.place
        assert "frame" in frame.place
    assert len({(frame.place, frame.molecule) for frame in frames}) == COUNT
    assert len({(frame.material, frame.trajectory, frame.index) for frame in frames}) == COUNT


@pytest.mark.parametrize("form", CASES)
def test_energies_keep_the_digits_of_float64(form: str, tmp_path: Path) -> None:
    """Differences of a part in 10¹² survive, of which float32 keeps none."""
    frames = list(read_frames(made(tmp_path, form), form))
    energies = [frame.atoms.get_potential_energy() for frame in frames]
    factor = energies[0] / ENERGIES[0]
    np.testing.assert_allclose(energies, factor * ENERGIES, rtol=1e-14, atol=0)


@pytest.mark.parametrize("form", CASES)
def test_a_name_stands_for_the_files(form: str, tmp_path: Path) -> None:
    path = made(tmp_path, form)
    assert all("my data" in frame.place for frame in read_frames(path, form, name="my data"))
    assert not any(path.name in frame.place for frame in read_frames(path, form, name="my data"))


@pytest.mark.parametrize("form", ["extxyz", "mptrj-json", "ase-db", "lmdb"])
def test_frames_come_before_the_rest_is_read(form: str, tmp_path: Path) -> None:
    """The last frame is broken, and those before it are given all the same; of MPtrj, those two materials before it."""

    def spoil(raw: Raw) -> None:
        if form == "extxyz":
            raw["text"] = raw["text"].rsplit("\n", 2)[0]
        elif form == "mptrj-json":
            raw["mp-3"] = {"mp-3-0-0": raw["mp-2"]["mp-2-0-0"] | {"force": []}}
        elif form == "ase-db":
            raw["rows"][2].positions[0] = np.nan
        else:
            raw["3"]["positions"] = []

    frames = read_frames(made(tmp_path, form, spoil), form)
    assert [next(frames).atoms.positions[1, 0] for _ in range(2)] == pytest.approx(POSITIONS[:2, 1, 0])
    with pytest.raises((IntegrityError, LabelError)):
        next(frames)


def one(path: Path, form: str, **options: Any) -> Frame:
    return next(iter(read_frames(path, form, **options)))


def test_molecules_of_npz_are_called_as_the_file_says_then_as_told_then_as_the_file(tmp_path: Path) -> None:
    assert one(made(tmp_path, "sgdml"), "sgdml", name="told").molecule == "hydroxide"
    nameless = made(tmp_path, "sgdml", lambda raw: raw.pop("name"))
    assert one(nameless, "sgdml", name="told").molecule == "told"
    assert one(nameless, "sgdml").molecule == one(nameless, "sgdml").trajectory == "water"
    assert one(made(tmp_path, "rmd17"), "rmd17").molecule == "water"
    assert [frame.index for frame in read_frames(made(tmp_path, "rmd17"), "rmd17")] == [70, 8, 9]


@pytest.mark.parametrize(
    ("units", "energy", "length"),
    [
        ({}, KCAL, 1.0),
        ({"e_unit": "kcal/mol", "r_unit": "Ang"}, KCAL, 1.0),
        ({"e_unit": "eV", "r_unit": "Ang"}, 1.0, 1.0),
        ({"e_unit": "kJ/mol", "r_unit": "nm"}, ase.units.kJ / ase.units.mol, 10.0),
        ({"e_unit": b"hartree", "r_unit": b"bohr"}, HARTREE, BOHR),
    ],
)
def test_units_of_sgdml_are_honoured(units: Raw, energy: float, length: float, tmp_path: Path) -> None:
    path = made(tmp_path, "sgdml", lambda raw: raw.update(units))
    atoms = one(path, "sgdml").atoms
    np.testing.assert_allclose(atoms.get_potential_energy(), ENERGIES[0] / KCAL * energy, rtol=CLOSE)
    np.testing.assert_allclose(atoms.positions, POSITIONS[0] * length, rtol=CLOSE)
    np.testing.assert_allclose(atoms.get_forces(), FORCES[0] / KCAL * energy / length, rtol=CLOSE)


def test_sgdml_without_energies_has_forces_and_with_a_lattice_a_cell(tmp_path: Path) -> None:
    atoms = one(made(tmp_path, "sgdml", lambda raw: raw.pop("E")), "sgdml").atoms
    assert set(atoms.calc.results) == {"forces"}
    atoms = one(made(tmp_path, "sgdml", lambda raw: raw.update(lattice=CELL.T)), "sgdml").atoms
    np.testing.assert_allclose(atoms.cell[:], CELL)
    assert atoms.pbc.all()


def test_spice_says_molecule_part_and_charge(tmp_path: Path) -> None:
    frame = one(made(tmp_path, "spice"), "spice")
    assert (frame.molecule, frame.part, frame.charge) == (SMILES, "SPICE DES Monomers", -1)
    assert frame.trajectory is None
    assert frame.place == "frame 0 of group water of water.hdf5"


def as_input(raw: Raw) -> None:
    """As the conformations were, before SPICE was computed on them."""
    for key in ("subset", "atomic_numbers", "dft_total_energy", "dft_total_gradient"):
        del raw[key]
    raw["conformations"] = (POSITIONS / 10).astype("f4")
    raw["units"]["conformations"] = "nanometers"


def test_inputs_of_spice_have_elements_of_their_map_and_no_labels(tmp_path: Path) -> None:
    frames = list(read_frames(made(tmp_path, "spice", as_input), "spice"))
    assert len(frames) == COUNT
    assert frames[2].atoms.numbers.tolist() == NUMBERS.tolist()
    np.testing.assert_allclose(frames[2].atoms.positions, POSITIONS[2], atol=1e-6)
    assert (frames[2].atoms.calc, frames[2].charge, frames[2].index) == (None, -1, 2)


@pytest.mark.parametrize(
    ("smiles", "charge"),
    [
        ("CCO", 0),
        ("[H:3][C:1]#[C:2][H:4].[Na+:5]", 1),
        ("[N+:9]([H:1])[O-:2]", 0),
        ("[O-:1][S:2](=[O:3])(=[O:4])[O-:5]", -2),
        ("[Ca+2:1]", 2),
        ("[Ca++:1].[Cl-:2]", 1),
        ("[Fe-3]", -3),
        ("[C@@H:1](F)[NH3+:2]", 1),
        ("C-C[13CH2-]", -1),
        ("[nH+:1]", 1),
        ("[C@:8]([H:24])([N+:9])[C@@:4]", 1),
        ("[*+:1]", None),
        ("[C:1][#6+]", None),
        ("[N+:1][C", None),
        ("[]", None),
    ],
)
def test_formal_charges_add_up(smiles: str, charge: int | None) -> None:
    assert formal_charge(smiles) == charge


def test_elements_stand_in_the_order_of_the_map() -> None:
    assert mapped_elements("here", "[Br:2][c:1]([Cl-:4])[H:3]") == [6, 35, 1, 17]


@pytest.mark.parametrize("smiles", ["CCO", "[CH3:1]", "[C:1][C:3]", "[C:1]C", "[Xx:1]", "", "[C:1][C:1]"])
def test_a_smiles_that_is_not_mapped_tells_no_elements(smiles: str) -> None:
    with pytest.raises(IntegrityError):
        mapped_elements("here", smiles)


def test_mptrj_says_material_trajectory_and_gap(tmp_path: Path) -> None:
    frames = list(read_frames(made(tmp_path, "mptrj-json"), "mptrj-json"))
    assert [frame.material for frame in frames] == ["mp-1", "mp-1", "mp-2"]
    assert [frame.trajectory for frame in frames] == ["mp-1/mp-7", "mp-1/mp-7", "mp-2/mp-2"]
    assert [frame.index for frame in frames] == [3, 10000, 0]
    assert {frame.band_gap for frame in frames} == {1.25}
    assert frames[1].place == "frame mp-7-1-0 of water.json"


@dataclass(frozen=True)
class Step:
    """A frame of MPtrj by its name, and its gap where it says one."""

    name: str
    gap: float | None = None


LAST = (Step("mp-1-0-0"), Step("mp-1-1-0", 3.0), Step("mp-9-0-0", 7.0), Step("mp-1-0-2", 2.0), Step("mp-9-1-4"))
OWN = (Step("mp-8-0-1", 4.0), Step("mp-9-0-0"), Step("mp-8-0-0"), Step("mp-9-0-1", 0.0), Step("mp-9-1-0"))
NONE = (Step("mp-1-0-0"), Step("mp-1-0-1"))
GAPS = {
    "of the task that the material is called after": (LAST, [3.0] * 5),
    "of the calculation, or of any": (OWN, [4.0, 0.0, 4.0, 0.0, 0.0]),
    "of nobody": (NONE, [None, None]),
}


def mptrj_of(steps: Sequence[Step]) -> Raw:
    """A material of these frames, between two others."""
    record = raw_mptrj()["mp-2"]["mp-2-0-0"]
    records = {step.name: record | {"bandgap": step.gap} for step in steps}
    return {"mp-0": {"mp-0-0-0": record | {"bandgap": 9.0}}, "mp-1": records, "mp-2": {"mp-2-0-0": record}}


@pytest.mark.parametrize("case", GAPS)
def test_a_frame_of_mptrj_has_the_gap_of_its_material(case: str, tmp_path: Path) -> None:
    steps, gaps = GAPS[case]
    path = tmp_path / "mptrj.json"
    path.write_text(json.dumps(mptrj_of(steps)))
    frames = list(read_frames(path, "mptrj-json"))
    assert [frame.place.split()[1] for frame in frames] == ["mp-0-0-0", *(step.name for step in steps), "mp-2-0-0"]
    assert [frame.band_gap for frame in frames] == [9.0, *gaps, 1.25]


def lines_of(steps: Sequence[Step], material: str = "mp-1") -> str:
    said = [
        f"mp_id={material} mptrj_snapshot_id={step.name}" + ("" if step.gap is None else f" bandgap={step.gap}")
        for step in steps
    ]
    return "".join(f"1\n{comment}\nH 0 0 0\n" for comment in said)


@pytest.mark.parametrize("case", GAPS)
def test_extxyz_gives_the_gap_of_a_material_to_its_frames_that_follow_one_another(case: str, tmp_path: Path) -> None:
    steps, gaps = GAPS[case]
    other = lines_of([Step("mp-2-0-0", 1.0)], "mp-2")
    path = tmp_path / "mptrj.extxyz"
    path.write_text(lines_of(steps) + other)
    assert [frame.band_gap for frame in read_frames(path, "extxyz")] == [*gaps, 1.0]
    path.write_text("".join(lines_of([step]) + other for step in steps))
    assert [frame.band_gap for frame in read_frames(path, "extxyz")][::2] == [step.gap for step in steps]
    with zipfile.ZipFile(tmp_path / "mptrj.zip", "w") as archive:
        archive.writestr("mp-2.extxyz", other)
        archive.writestr("mp-1.extxyz", lines_of(steps))
    assert [frame.band_gap for frame in read_frames(tmp_path / "mptrj.zip", "extxyz")] == [1.0, *gaps]


def test_frames_of_no_material_keep_their_gap_and_wait_for_none() -> None:
    made = (Frame(Atoms("H"), str(number), band_gap=float(number) if number % 2 else None) for number in range(9))
    frames = with_gaps(made)
    assert next(frames).place == "0"
    assert next(made).place == "1"
    assert [frame.band_gap for frame in frames] == [None, 3.0, None, 5.0, None, 7.0, None]


@pytest.mark.parametrize(("most", "expected", "ahead"), [(20, [5.0] * 10, 10), (19, [None] * 9 + [5.0], 10)])
def test_no_more_of_a_material_is_in_memory_than_is_said(most: int, expected: list[float | None], ahead: int) -> None:
    drawn = []

    def made() -> Iterator[Frame]:
        for number in range(10):
            drawn.append(number)
            yield Frame(Atoms("H2"), str(number), material="mp-1", index=number, band_gap=5.0 if number == 9 else None)

    frames = with_gaps(made(), most)
    found = [next(frames).band_gap]
    assert len(drawn) == ahead
    assert [*found, *(frame.band_gap for frame in frames)] == expected
    del drawn[:]
    assert next(with_gaps(made(), 4)).band_gap is None
    assert len(drawn) == 3


MPTRJ = "mp_id=mp-1 task_id=mp-7 calc_id=1 ionic_step=3 bandgap=0.5 corrected_total_energy=-9.25"


def test_extxyz_says_what_its_comment_says(tmp_path: Path) -> None:
    frame = one(made(tmp_path, "extxyz"), "extxyz")
    assert (frame.molecule, frame.part, frame.charge) == (SMILES, "DES370K Monomers", -1)
    assert (frame.material, frame.trajectory, frame.band_gap) == (None, None, None)
    path = tmp_path / "mptrj.xyz"
    path.write_text(f"1\n{MPTRJ} energy=-9\nH 0 0 0\n")
    frame = one(path, "extxyz")
    assert (frame.material, frame.trajectory, frame.index) == ("mp-1", "mp-1/mp-7", 10003)
    assert (frame.band_gap, frame.atoms.get_potential_energy()) == (0.5, -9.25)
    path.write_text("1\nmptrj_traj_id=mp-1 mptrj_snapshot_id=mp-8-0-2 smiles=F total_charge=-1\nF 0 0 0\n\n\n")
    (frame,) = read_frames(path, "extxyz")
    assert (frame.trajectory, frame.index, frame.molecule, frame.charge) == ("mp-1/mp-8", 2, "F", -1)
    assert frame.atoms.calc is None


def test_labels_under_the_keys_of_mace(tmp_path: Path) -> None:
    path = tmp_path / "ref.xyz"
    properties = "Properties=species:S:1:pos:R:3:REF_forces:R:3"
    path.write_text(
        f'1\n{properties} REF_energy=-2.5 REF_stress="1 6 5 6 2 4 5 4 3" Lattice="9 0 0 0 9 0 0 0 9"\nH 0 0 0 1 2 3\n'
    )
    atoms = one(path, "extxyz").atoms
    assert (atoms.get_potential_energy(), atoms.get_forces().tolist()) == (-2.5, [[1, 2, 3]])
    assert atoms.get_stress().tolist() == [1, 2, 3, 4, 5, 6]
    path.write_text("1\nREF_energy=-2.5 energy=-2.5\nH 0 0 0\n")
    assert one(path, "extxyz").atoms.get_potential_energy() == -2.5
    path.write_text("1\nREF_energy=-2.5 energy=-2.4\nH 0 0 0\n")
    assert "differ" in str(refusal(path, "extxyz"))


def test_deepmd_reads_sets_in_order_systems_below_and_molecules(tmp_path: Path) -> None:
    whole = made(tmp_path, "deepmd")
    later = raw_deepmd() | {"coord": POSITIONS.reshape(COUNT, 9) + 1}
    write_deepmd(tmp_path / "other", later)
    (tmp_path / "other" / "set.000").rename(whole / "set.001")
    frames = list(read_frames(whole, "deepmd"))
    assert [frame.index for frame in frames] == list(range(2 * COUNT))
    np.testing.assert_allclose(frames[4].atoms.positions, POSITIONS[1] + 1)
    assert {frame.trajectory for frame in frames} == {"water"}
    write_deepmd(tmp_path / "systems" / "b", raw_deepmd())
    write_deepmd(tmp_path / "systems" / "a" / "deep", raw_deepmd())
    found = [frame.trajectory for frame in read_frames(tmp_path / "systems", "deepmd")]
    assert found == ["a/deep"] * COUNT + ["b"] * COUNT
    raw = raw_deepmd() | {"nopbc": ""}
    del raw["virial"]
    write_deepmd(tmp_path / "molecule", raw)
    assert not any(frame.atoms.pbc.any() for frame in read_frames(tmp_path / "molecule", "deepmd"))


def test_three_layouts_of_phonopy(tmp_path: Path) -> None:
    def of_all_atoms(raw: Raw) -> None:
        dataset = raw.pop("dataset")
        raw["supercell_energies"] = dataset["supercell_energies"]
        raw["displacements"] = [
            [{"displacement": moved, "force": force} for moved, force in zip(*frame, strict=True)]
            for frame in zip(dataset["displacements"], dataset["forces"], strict=True)
        ]

    def of_one_atom(raw: Raw) -> None:
        forces = raw.pop("dataset")["forces"]
        raw["displacements"] = [
            {"atom": index + 1, "displacement": [0.01, 0.0, 0.0], "forces": forces[index]} for index in range(COUNT)
        ]

    frames = list(read_frames(made(tmp_path, "phonopy", of_all_atoms), "phonopy"))
    np.testing.assert_allclose(frames[2].atoms.positions, POSITIONS[2], atol=1e-12)
    assert frames[2].atoms.get_potential_energy() == ENERGIES[2]
    frames = list(read_frames(made(tmp_path, "phonopy", of_one_atom), "phonopy"))
    np.testing.assert_allclose(frames[1].atoms.positions - SITES, [[0, 0, 0], [0.01, 0, 0], [0, 0, 0]], atol=1e-12)
    assert set(frames[1].atoms.calc.results) == {"forces"}
    np.testing.assert_allclose(frames[1].atoms.get_forces(), FORCES[1])


def test_lmdb_as_the_package_writes_it(tmp_path: Path) -> None:
    backends = pytest.importorskip("ase_db_backends.aselmdb")
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("b", "a"):
        with backends.LMDBDatabase(str(folder / f"{name}.aselmdb")) as base:
            for index in [0, 1, 2] * 4:
                base.write(atoms_of(index), data={"also": "ignored"})
            base.delete([2])
    frames = list(read_frames(folder / "a.aselmdb", "lmdb"))
    assert len(frames) == 11
    for number, frame in enumerate(frames):
        index = ([0, 2] + [0, 1, 2] * 3)[number]  # in the order of ids, not of keys, where 10 comes before 2
        np.testing.assert_array_equal(frame.atoms.positions, POSITIONS[index])
        np.testing.assert_array_equal(frame.atoms.cell[:], CELL)
        np.testing.assert_array_equal(frame.atoms.get_stress(), STRESS)
        assert frame.atoms.get_potential_energy() == ENERGIES[index]
    places = [frame.place for frame in read_frames(folder, "lmdb")]
    assert (places[0], places[11]) == ("frame 0 of a.aselmdb of data", "frame 0 of b.aselmdb of data")


def test_a_file_of_lmdb_is_read_once_at_a_time(tmp_path: Path) -> None:
    path = made(tmp_path, "lmdb")
    first = read_frames(path, "lmdb")
    next(first)
    assert "is being read already" in str(refusal(path, "lmdb"))
    assert len(list(first)) == COUNT - 1
    assert len(list(read_frames(path, "lmdb"))) == COUNT


# Archives


def packed(folder: Path, kind: str, members: dict[str, bytes]) -> Path:
    path = folder / f"all.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, f"w:{kind.partition('.')[2]}") as archive:
            for name, content in members.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return path


ARCHIVES = ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"]


@pytest.mark.parametrize("kind", ARCHIVES)
@pytest.mark.parametrize("form", ["extxyz", "sgdml", "rmd17"])
def test_members_of_archives_are_read_where_they_are(kind: str, form: str, tmp_path: Path) -> None:
    content = made(tmp_path, form).read_bytes()
    ending = CASES[form].file.partition(".")[2]
    members = {
        "__MACOSX/x/._one." + ending: b"junk",
        "x/readme.txt": b"read me",
        f"x/one.{ending}": content,
        f"y/two.{ending}.gz": gzip.compress(content),
    }
    path = packed(tmp_path, kind, members)
    before = sorted(tmp_path.rglob("*"))
    frames = list(read_frames(path, form))
    assert len(frames) == 2 * COUNT
    assert frames[0].place == f"frame 0 of one.{ending} of all.{kind}"
    chosen = list(read_frames(path, form, members="*/two.*", name="told"))
    assert [frame.place for frame in chosen] == [f"frame {index} of two.{ending}.gz of told" for index in range(COUNT)]
    np.testing.assert_allclose(chosen[2].atoms.get_forces(), FORCES[2], rtol=CLOSE)
    assert sorted(tmp_path.rglob("*")) == before
    if form == "rmd17":
        assert [frame.molecule for frame in frames] == ["one"] * COUNT + ["two"] * COUNT


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("form", ["extxyz", "mptrj-json", "phonopy"])
def test_compressed_files_are_known_by_their_bytes_and_refused_when_cut(
    compress: Callable[[bytes], bytes], form: str, tmp_path: Path
) -> None:
    content = made(tmp_path, form).read_bytes()
    path = tmp_path / "any-name"
    path.write_bytes(compress(content))
    assert len(list(read_frames(path, form))) == COUNT
    path.write_bytes(compress(content)[:-20])
    refusal(path, form)


@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives_that_are_cut_or_lack_a_member_are_refused(kind: str, tmp_path: Path) -> None:
    content = made(tmp_path, "extxyz").read_bytes()
    path = packed(tmp_path, kind, {"x/one.extxyz": content})
    assert "it has x/one.extxyz" in str(refusal(path, "extxyz", members="*.xyz"))
    assert "no member *.npz" in str(refusal(path, "sgdml").args[0])
    whole = path.read_bytes()
    path.write_bytes(whole[: min(len(whole), len(content)) // 2])
    refusal(path, "extxyz")


def test_members_are_refused_where_there_is_no_archive(tmp_path: Path) -> None:
    assert "no archive" in str(refusal(made(tmp_path, "extxyz"), "extxyz", members="*"))
    with pytest.raises(ConfigError, match="not read from archives"):
        read_frames(made(tmp_path, "spice"), "spice", members="*")


# What is refused


def test_what_is_not_there_is_told_before_a_frame_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="known are extxyz, sgdml"):
        read_frames(tmp_path, "xyz")
    with pytest.raises(UnknownNameError, match="there is no file"):
        read_frames(tmp_path / "absent", "extxyz")
    with pytest.raises(ConfigError, match="is a folder"):
        read_frames(tmp_path, "extxyz")


@pytest.mark.parametrize("form", CASES)
def test_what_is_not_that_format_at_all_is_refused(form: str, tmp_path: Path) -> None:
    for content in (b"", b"\n\n", b"hello\nworld\n" * 200, bytes(range(256)) * 64, b"[1, 2, 3]", b"{}"):
        path = tmp_path / "strange"
        path.write_bytes(content)
        refusal(path, form)
    for other in CASES.keys() - {form}:
        path = made(tmp_path, other)
        if path.is_file() and not {form, other} <= {"sgdml", "rmd17"}:
            refusal(path, form)


@pytest.mark.parametrize("form", sorted(CASES.keys() - {"deepmd"}))
def test_a_file_cut_short_is_refused(form: str, tmp_path: Path) -> None:
    whole = made(tmp_path, form).read_bytes()
    path = tmp_path / "cut"
    for part in (0.02, 0.3, 0.5, 0.7, 0.85, 0.97):
        path.write_bytes(whole[: int(part * len(whole))])
        refusal(path, form)


def test_a_cut_extended_xyz_is_told_by_its_frame(tmp_path: Path) -> None:
    lines = raw_extxyz()["text"].splitlines(keepends=True)
    path = tmp_path / "cut.xyz"
    for kept in range(1, 15):
        path.write_text("".join(lines[:kept]))
        if kept % 5 == 0:
            assert len(list(read_frames(path, "extxyz"))) == kept // 5
        else:
            there = max(kept % 5 - 2, 0)
            assert f"frame {kept // 5} of cut.xyz is cut short: {there} of its 3" in str(refusal(path, "extxyz"))


def test_an_npy_file_cut_short_is_refused(tmp_path: Path) -> None:
    for key in ("coord", "box", "energy", "force", "virial"):
        path = made(tmp_path, "deepmd")
        array = path / "set.000" / f"{key}.npy"
        array.write_bytes(array.read_bytes()[:-8])
        assert f"{key}.npy of set.000" in str(refusal(path, "deepmd"))


Change = Callable[[Raw], object]


def replaced(old: str, new: str) -> Change:
    def change(raw: Raw) -> None:
        before, found, after = raw["text"].rpartition(old)
        assert found
        raw["text"] = before + new + after

    return change


def without(*keys: str) -> Change:
    def change(raw: Raw) -> None:
        for key in keys[:-1]:
            raw = raw[key]
        del raw[keys[-1]]

    return change


def put(*keys: Any, value: Any) -> Change:
    """The value at a place, in a copy of an array."""

    def change(raw: Any) -> None:
        for place, key in enumerate(keys[:-1]):
            if isinstance(raw[key], np.ndarray):
                raw[key] = raw[key].copy()
                raw[key][keys[place + 1 :] if len(keys) > place + 2 else keys[-1]] = value
                return
            raw = raw[key]
        raw[keys[-1]] = value

    return change


def row_put(key: str, value: Any) -> Change:
    def change(raw: Raw) -> None:
        atoms = raw["rows"][1]
        if key == "positions":
            atoms.positions[2, 0] = value
        else:
            atoms.calc.results[key] = value

    return change


NAN, INF = float("nan"), float("inf")
NAN_FORCES, INF_FORCES = FORCES[1].copy(), FORCES[1].copy()
NAN_FORCES[1, 1], INF_FORCES[1, 1] = NAN, INF
RECORD = ("mp-1", "mp-7-1-0")
SITE = ("structure", "sites", 0)
LAST = float(POSITIONS[2][2][0])

DAMAGES: dict[str, tuple[str, Change, type[ZooError], str]] = {
    # title -> format, what is done, the error, a part of its message
    "extxyz: nan position": ("extxyz", replaced(repr(LAST), "nan"), IntegrityError, "frame 2 .*positions hold NaN"),
    "extxyz: inf position": ("extxyz", replaced(repr(LAST), "-inf"), IntegrityError, "frame 2 .*positions hold NaN or"),
    "extxyz: nan force": ("extxyz", replaced(repr(float(FORCES[2][0][0])), "nan"), LabelError, "frame 2 .*forces"),
    "extxyz: nan energy": ("extxyz", replaced(repr(float(ENERGIES[2])), "NaN"), LabelError, "frame 2 .*energy"),
    "extxyz: text energy": ("extxyz", replaced(repr(float(ENERGIES[2])), "low"), LabelError, "frame 2 .*energy"),
    "extxyz: short stress": ("extxyz", replaced('stress="', 'stress="1 '), IntegrityError, "frame 2"),
    "extxyz: missing column": ("extxyz", replaced(" 9 9 9\n", "\n"), IntegrityError, "frame 2"),
    "extxyz: word in a column": ("extxyz", replaced(repr(LAST), "x"), IntegrityError, "frame 2"),
    "extxyz: no element": ("extxyz", replaced("H ", "Qq "), IntegrityError, "frame 2"),
    "extxyz: number of atoms": ("extxyz", replaced("3\nL", "2\nL"), IntegrityError, "frame 3 .* expected the number"),
    "extxyz: no number": ("extxyz", replaced("3\nL", "three\nL"), IntegrityError, "frame 2 .*'three'"),
    "extxyz: no atoms": ("extxyz", replaced("3\nL", "0\nL"), IntegrityError, "frame 2"),
    "extxyz: too many": ("extxyz", replaced("3\nL", "99999999999\nL"), IntegrityError, "frame 2"),
    "extxyz: forces of a column": (
        "extxyz",
        replaced("forces:R:3:MACE_forces:R:3", "forces:R:2:MACE_forces:R:3"),
        LabelError,
        r"frame 2 .*forces have the shape \(3, 2\)",
    ),
    "extxyz: charge": ("extxyz", replaced("MACE_energy=-1.5", "charge=0.5"), IntegrityError, "charge is"),
    "sgdml: fingerprint": ("sgdml", put("md5", value=b"0" * 32), IntegrityError, "fingerprint"),
    "sgdml: unit": ("sgdml", put("e_unit", value="mRy"), IntegrityError, "e_unit 'mRy'; known are kcal/mol"),
    "sgdml: length": ("sgdml", put("r_unit", value="furlong"), IntegrityError, "r_unit 'furlong'"),
    "sgdml: model": ("sgdml", put("type", value=b"m"), IntegrityError, "no data set"),
    "sgdml: keys": ("sgdml", without("R"), IntegrityError, "has no R, only"),
    "sgdml: shape": ("sgdml", put("F", value=FORCES[:2]), IntegrityError, "shapes"),
    "sgdml: energies": ("sgdml", put("E", value=ENERGIES[:2]), IntegrityError, "expected 3 energies"),
    "sgdml: atoms": ("sgdml", put("z", value=NUMBERS[:2]), IntegrityError, "shapes"),
    "sgdml: element": ("sgdml", put("z", value=NUMBERS * 0), IntegrityError, "atomic numbers"),
    "sgdml: nan position": ("sgdml", put("R", 1, 0, 0, value=NAN), IntegrityError, "frame 1 .*positions"),
    "sgdml: nan energy": ("sgdml", put("E", 1, 0, value=NAN), LabelError, "frame 1 .*energy"),
    "sgdml: inf force": ("sgdml", put("F", 2, 0, 0, value=INF), LabelError, "frame 2 .*forces"),
    "rmd17: keys": ("rmd17", without("forces"), IntegrityError, "has no forces, only"),
    "rmd17: shape": ("rmd17", put("coords", value=POSITIONS[:, :2]), IntegrityError, "shapes"),
    "rmd17: text": ("rmd17", put("energies", value=np.array(["a", "b", "c"])), IntegrityError, "shapes"),
    "rmd17: nan force": ("rmd17", put("forces", 0, 0, 0, value=NAN), LabelError, "frame 0 .*forces"),
    "rmd17: nan position": ("rmd17", put("coords", 2, 0, 0, value=NAN), IntegrityError, "frame 2 .*positions"),
    "rmd17: inf energy": ("rmd17", put("energies", 2, value=INF), LabelError, "frame 2 .*energy"),
    "rmd17: indices": ("rmd17", put("old_indices", value=np.arange(2)), IntegrityError, "old_indices"),
    "spice: length": (
        "spice",
        put("units", "conformations", value="angstrom"),
        IntegrityError,
        "water .*'angstrom', expected bohr",
    ),
    "spice: labelled in nm": (
        "spice",
        put("units", "conformations", value="nanometers"),
        IntegrityError,
        "water .*'nanometers', expected bohr",
    ),
    "spice: energy unit": ("spice", put("units", "dft_total_energy", value="eV"), IntegrityError, "expected hartree"),
    "spice: gradient unit": (
        "spice",
        put("units", "dft_total_gradient", value="hartree/angstrom"),
        IntegrityError,
        "expected hartree/bohr",
    ),
    "spice: no unit": ("spice", without("units", "conformations"), IntegrityError, "'no unit', expected bohr"),
    "spice: keys": ("spice", without("dft_total_gradient"), IntegrityError, "water .*has no dft_total_gradient"),
    "spice: no smiles": ("spice", without("smiles"), IntegrityError, "has no smiles"),
    "spice: two smiles": ("spice", put("smiles", value=[b"C", b"C"]), IntegrityError, "not one text"),
    "spice: counts": ("spice", put("dft_total_energy", value=ENERGIES[:2]), IntegrityError, "2 dft|2 energy|as many"),
    "spice: shape": ("spice", put("dft_total_gradient", value=FORCES[:, :2]), LabelError, "frame 0 .*forces"),
    "spice: atoms": ("spice", put("atomic_numbers", value=NUMBERS[:2]), IntegrityError, "frame 0 .*positions"),
    "spice: nan position": ("spice", put("conformations", 1, 0, 0, value=NAN), IntegrityError, "frame 1 .*positions"),
    "spice: nan energy": ("spice", put("dft_total_energy", 1, value=NAN), LabelError, "frame 1 .*energy"),
    "spice: inf gradient": ("spice", put("dft_total_gradient", 1, 0, 0, value=INF), LabelError, "frame 1 .*forces"),
    "spice: text": ("spice", put("conformations", value=[b"a"]), IntegrityError, "real numbers"),
    "mptrj: keys": ("mptrj-json", without(*RECORD, "force"), IntegrityError, "mp-7-1-0 .*has no force, only"),
    "mptrj: structure": ("mptrj-json", without(*RECORD, "structure", "sites"), IntegrityError, "mp-7-1-0.*sites"),
    "mptrj: null energy": (
        "mptrj-json",
        put(*RECORD, "corrected_total_energy", value=None),
        LabelError,
        "mp-7-1-0 .*null",
    ),
    "mptrj: null force": ("mptrj-json", put(*RECORD, "force", value=None), LabelError, "mp-7-1-0 .*null"),
    "mptrj: shape": (
        "mptrj-json",
        put(*RECORD, "force", value=[[0.0] * 3]),
        LabelError,
        r"shape \(1, 3",
    ),
    "mptrj: ragged": ("mptrj-json", put(*RECORD, "force", 0, value=[1.0]), LabelError, "mp-7-1-0"),
    "mptrj: stress": ("mptrj-json", put(*RECORD, "stress", value=[1.0] * 6), LabelError, "mp-7-1-0 .*stress"),
    "mptrj: nan force": ("mptrj-json", put(*RECORD, "force", 0, 0, value=NAN), LabelError, "mp-7-1-0 .*NaN"),
    "mptrj: text energy": (
        "mptrj-json",
        put(*RECORD, "corrected_total_energy", value="-1"),
        LabelError,
        "mp-7-1-0 .*energy",
    ),
    "mptrj: null position": ("mptrj-json", put(*RECORD, *SITE, "abc", 0, value=None), IntegrityError, "fractional"),
    "mptrj: shared site": (
        "mptrj-json",
        put(*RECORD, *SITE, "species", 0, "occu", value=0.5),
        IntegrityError,
        "whole atom",
    ),
    "mptrj: element": (
        "mptrj-json",
        put(*RECORD, *SITE, "species", 0, "element", value="Qq"),
        IntegrityError,
        "'Qq' is not an element",
    ),
    "mptrj: list": ("mptrj-json", put("mp-2", value=[1]), IntegrityError, "after frame mp-7-1-0.* expected {"),
    "mptrj: number": ("mptrj-json", put(*RECORD, value=3), IntegrityError, "after frame mp-7-0-3.* expected an object"),
    "ase-db: nan position": ("ase-db", row_put("positions", NAN), IntegrityError, "frame 1 .*positions"),
    "ase-db: nan force": ("ase-db", row_put("forces", NAN_FORCES), LabelError, "frame 1 .*forces"),
    "ase-db: inf force": ("ase-db", row_put("forces", INF_FORCES), LabelError, "frame 1 .*forces"),
    "ase-db: inf energy": ("ase-db", row_put("energy", INF), LabelError, "frame 1 .*energy"),
    "lmdb: keys": ("lmdb", without("2", "positions"), IntegrityError, "frame 1 .*no numbers and positions"),
    "lmdb: lost row": ("lmdb", without("2"), IntegrityError, "frame 1 .*no row 2"),
    "lmdb: nextid": ("lmdb", without("nextid"), IntegrityError, "no nextid"),
    "lmdb: text nextid": ("lmdb", put("nextid", value="x"), IntegrityError, "nextid"),
    "lmdb: shape": ("lmdb", put("2", "forces", value=[[1.0] * 3]), LabelError, r"frame 1 .*shape \(1, 3\)"),
    "lmdb: ragged": ("lmdb", put("2", "forces", value=[[1.0], [1.0, 2.0]]), IntegrityError, "frame 1"),
    "lmdb: nan force": ("lmdb", put("2", "forces", 0, 0, value=NAN), LabelError, "frame 1 .*forces"),
    "lmdb: nan energy": ("lmdb", put("2", "energy", value=NAN), LabelError, "frame 1 .*energy"),
    "lmdb: inf position": (
        "lmdb",
        put("2", "positions", "__ndarray__", 2, 0, value=INF),
        IntegrityError,
        "frame 1 .*pos",
    ),
    "lmdb: text": ("lmdb", put("2", "energy", value="low"), LabelError, "frame 1 .*energy"),
    "lmdb: list": ("lmdb", put("2", value=[1]), IntegrityError, "frame 1"),
    "lmdb: not compressed": ("lmdb", put("2", value=b"{}"), IntegrityError, "frame 1 .*no compressed JSON"),
    "lmdb: half a row": ("lmdb", put("2", value=zlib.compress(b"{" * 99)[:-9]), IntegrityError, "frame 1"),
    "lmdb: pickle": ("lmdb", put("2", value=pickle.dumps({})), IntegrityError, "frame 1 .*pickle.*convert it to"),
    "deepmd: types": ("deepmd", put("type.raw", value="0 1 2"), IntegrityError, "type.raw does not number"),
    "deepmd: element": ("deepmd", put("type_map.raw", value="O Qq"), IntegrityError, "'Qq' is not an element"),
    "deepmd: no map": ("deepmd", without("type_map.raw"), IntegrityError, "no type_map.raw"),
    "deepmd: keys": ("deepmd", without("coord"), IntegrityError, "no coord.npy"),
    "deepmd: no cell": ("deepmd", without("box"), IntegrityError, "no box.npy; .*nopbc"),
    "deepmd: atoms": ("deepmd", put("type.raw", value="0 1"), IntegrityError, "coord.npy of set.000"),
    "deepmd: frames": ("deepmd", put("energy", value=ENERGIES[:2]), IntegrityError, "energy.npy of set.000"),
    "deepmd: nan position": ("deepmd", put("coord", 1, 2, value=NAN), IntegrityError, "frame 1 .*positions"),
    "deepmd: nan energy": ("deepmd", put("energy", 1, value=NAN), LabelError, "frame 1 .*energy"),
    "deepmd: nan virial": ("deepmd", put("virial", 1, 2, value=NAN), LabelError, "frame 1 .*stress"),
    "deepmd: inf cell": ("deepmd", put("box", 1, 2, value=INF), ZooError, "frame 1"),
    "deepmd: flat cell": ("deepmd", put("box", value=np.zeros((3, 9))), LabelError, "frame 0 .*volume"),
    "deepmd: mixed": ("deepmd", put("real_atom_types", value=NUMBERS), IntegrityError, "mixed types"),
    "phonopy: keys": ("phonopy", without("dataset"), IntegrityError, "no displacements"),
    "phonopy: supercell": ("phonopy", without("supercell"), IntegrityError, "no supercell"),
    "phonopy: lattice": ("phonopy", without("supercell", "lattice"), IntegrityError, "lattice"),
    "phonopy: calculator": (
        "phonopy",
        put("phonopy", "calculator", value="qe"),
        IntegrityError,
        "calculator qe, not in eV",
    ),
    "phonopy: unit": ("phonopy", put("physical_unit", value={"length": "au"}), IntegrityError, "length in 'au'"),
    "phonopy: counts": ("phonopy", put("dataset", "forces", value=FORCES[:2].tolist()), IntegrityError, "2 forces"),
    "phonopy: shape": ("phonopy", put("dataset", "forces", 1, value=[[1.0] * 3]), LabelError, "frame 1 .*forces"),
    "phonopy: displacements": ("phonopy", put("dataset", "displacements", 1, value=[]), IntegrityError, "frame 1"),
    "phonopy: nan": ("phonopy", put("dataset", "displacements", 1, 0, 0, value=NAN), IntegrityError, "frame 1 .*NaN"),
    "phonopy: nan force": ("phonopy", put("dataset", "forces", 1, 0, 0, value=NAN), LabelError, "frame 1 .*forces"),
    "phonopy: inf energy": (
        "phonopy",
        put("dataset", "supercell_energies", 1, value=INF),
        LabelError,
        "frame 1 .*energy",
    ),
    "phonopy: element": ("phonopy", put("supercell", "points", 0, "symbol", value="Qq"), IntegrityError, "'Qq'"),
}


@pytest.mark.parametrize("title", DAMAGES)
def test_a_damaged_file_is_refused_where_it_is_damaged(title: str, tmp_path: Path) -> None:
    form, change, kind, words = DAMAGES[title]
    path = made(tmp_path, form, change)
    error = refusal(path, form)
    assert isinstance(error, kind), repr(error)
    assert re.search(words, str(error)), str(error)


def test_every_format_is_damaged_in_each_way() -> None:
    for form in CASES:
        titles = " ".join(title for title, damage in DAMAGES.items() if damage[0] == form)
        assert "nan" in titles
        assert form == "ase-db" or "keys" in titles or form == "extxyz"


def test_a_row_of_another_shape_is_refused(tmp_path: Path) -> None:
    path = made(tmp_path, "ase-db")
    with sqlite3.connect(path) as base:
        base.execute("UPDATE systems SET positions = ? WHERE id = 2", (POSITIONS[0][:2].tobytes(),))
    base.close()
    assert "frame 1" in str(refusal(path, "ase-db"))
    with sqlite3.connect(path) as base:
        base.execute("DROP TABLE systems")
    base.close()
    refusal(path, "ase-db")


def test_fractions_of_a_file_of_lmdb_never_end_the_process(tmp_path: Path) -> None:
    """A page that is mapped but not there would."""
    whole = made(tmp_path, "lmdb").read_bytes()
    path = tmp_path / "cut.aselmdb"
    for size in range(0, len(whole), 1024):
        path.write_bytes(whole[:size])
        refusal(path, "lmdb")


# Pickles


class Trap:
    """Writes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("form", ["sgdml", "rmd17", "deepmd", "lmdb"])
def test_no_pickle_is_opened(form: str, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    trap = np.array([Trap(sprung)], dtype=object)
    change = {
        "sgdml": put("R", value=trap),
        "rmd17": put("old_indices", value=trap),
        "deepmd": put("coord", value=trap),
        "lmdb": lambda raw: (raw.clear(), raw.update({"0": pickle.dumps(Trap(sprung)), "length": pickle.dumps(1)})),
    }[form]
    error = refusal(made(tmp_path, form, change), form)
    assert "pickle" in str(error)
    assert not sprung.exists()


def test_no_yaml_runs_what_it_says(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    path = tmp_path / "trap.yaml"
    path.write_text(f"supercell: !!python/object/apply:os.mkdir ['{sprung}']\n")
    refusal(path, "phonopy")
    assert not sprung.exists()


def test_long_json_is_read_in_small_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the blocks end, in a key, a number, a character of two bytes, the frames are the same."""

    def strange(raw: Raw) -> None:
        raw["mp-1"]["mp-7-1-0"]["comment"] = 'Å \\" } { , ": {"'
        raw['mp "3" Å'] = raw.pop("mp-2")

    path = made(tmp_path, "mptrj-json", strange)
    path.write_text(json.dumps(json.loads(path.read_text()), ensure_ascii=False, indent=1), encoding="utf-8")
    whole = list(read_frames(path, "mptrj-json"))
    assert whole[2].material == 'mp "3" Å'
    monkeypatch.setattr("zoo.data.readers.json_stream._LONGEST", 64)
    for size in (1, 7, 100):
        monkeypatch.setattr("zoo.data.readers.json_stream._BLOCK", size)
        frames = list(read_frames(path, "mptrj-json"))
        assert [frame.place for frame in frames] == [frame.place for frame in whole]
        for frame, other in zip(frames, whole, strict=True):
            np.testing.assert_array_equal(frame.atoms.get_forces(), other.atoms.get_forces())
    path.write_text(path.read_text().replace('"force"', "force", 1) + "\n" * 100)
    assert "Expecting property name" in str(refusal(path, "mptrj-json"))
    path.write_text(json.dumps(raw_mptrj()) + "}")
    assert "follows the last brace" in str(refusal(path, "mptrj-json"))


@pytest.mark.parametrize(("form", "package"), [("spice", "h5py"), ("lmdb", "lmdb")])
def test_a_missing_package_is_named(form: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made(tmp_path, form)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=f"pip install {package}"):
        list(read_frames(path, form))


def test_a_reason_of_somebody_else_gives_no_bad_advice() -> None:
    said = problem(ValueError("This file contains pickled (object) data. If you trust the file use allow_pickle="))
    assert said == "it holds pickled objects, or is no NumPy file"
    assert "cut short" in problem(zipfile.BadZipFile("File is not a zip file"))
