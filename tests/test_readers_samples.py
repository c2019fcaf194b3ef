"""Readers on genuine files: as another reading of them says, and forces downhill.

That forces are minus the derivative of the energy, in sign and in size, shows where frames lie close together: the
work of the mean force between two of them, with that of the mean stress where their cells differ, is the difference
of their energies up to the third order of the way. The frames of the other files lie too far apart, or have no forces.
"""

import gzip
import io
import lzma
import re
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import voigt_6_to_full_3x3_stress

from zoo.data.frame import Frame
from zoo.data.readers import read_frames
from zoo.data.subsets import choose, passes, subset_frames
from zoo.errors import ZooWarning
from zoo.recipe import Division, Filters, OwnData, Subset, SubsetGroup

pytestmark = pytest.mark.samples

KCAL = 4184 / (6.02214076e23 * 1.602176634e-19)  # eV
HARTREE, BOHR = 27.211386245988, 0.529177210903  # eV, Å
ETHANOL = "ethanol_ccsdt_sgdml/ethanol_ccsd_t-train.npz"
SPICE = "spice_hdf5_labelled/SPICE-1.1.4_n2.hdf5"
EIGHT = "mptrj_1k/mptrj_official_extxyz_8frames.extxyz"
OXIDES = "oxides_asedb/oxides.db"
SILICON = "si_supercell_phonopy/Si_200_dataset.yaml.xz"
SALT = "phonopy_dft/phonopy_params_NaCl-rd.yaml.xz"
KCL, FINITE = "phonopy_dft/KCl-120_params.yaml.xz", "phonopy_dft/phonopy_SrTiO3.yaml.xz"
TITANATE = "srtio3_vasp/SrTiO3_train1.extxyz.gz"
EXACT = 1e-12


def read(samples: Path, file: str, form: str) -> list[Frame]:
    return list(read_frames(samples / file, form))


def energies(frames: Sequence[Frame]) -> np.ndarray:
    return np.array([frame.atoms.get_potential_energy() for frame in frames])


def forces(frames: Sequence[Frame]) -> np.ndarray:
    return np.array([frame.atoms.get_forces() for frame in frames])


def test_ethanol_of_sgdml(samples: Path) -> None:
    frames = read(samples, ETHANOL, "sgdml")
    with np.load(samples / ETHANOL) as file:
        np.testing.assert_allclose(energies(frames), file["E"][:, 0] * KCAL, rtol=EXACT)
        np.testing.assert_allclose(forces(frames), file["F"] * KCAL, rtol=EXACT)
        np.testing.assert_array_equal([frame.atoms.positions for frame in frames], file["R"])
    assert {frame.molecule for frame in frames} == {"ethanol_ccsd"}
    assert [frame.index for frame in frames] == list(range(1000))
    assert {str(frame.atoms.symbols) for frame in frames} == {"C2OH6"}


def test_spice(samples: Path) -> None:
    h5py = pytest.importorskip("h5py")
    frames = read(samples, SPICE, "spice")
    with h5py.File(samples / SPICE) as file:
        parts = {"103147721": frames[:50], "C#C.[Na+]": frames[50:]}
        assert parts.keys() == set(file)
        for name, part in parts.items():
            group = file[name]
            np.testing.assert_allclose(energies(part), group["dft_total_energy"][:] * HARTREE, rtol=EXACT)
            gradients = group["dft_total_gradient"][:].astype(float) * (HARTREE / BOHR)
            np.testing.assert_allclose(forces(part), -gradients, rtol=EXACT)
            places = group["conformations"][:].astype(float) * BOHR
            np.testing.assert_allclose([frame.atoms.positions for frame in part], places, rtol=EXACT)
            assert {tuple(frame.atoms.numbers) for frame in part} == {tuple(group["atomic_numbers"][:])}
            assert {frame.molecule for frame in part} == {group["smiles"][0].decode()}
            assert {frame.part for frame in part} == {group["subset"][0].decode()}
            assert {frame.charge for frame in part} == {1}
            assert [frame.index for frame in part] == list(range(len(part)))


def test_inputs_of_spice(samples: Path) -> None:
    h5py = pytest.importorskip("h5py")
    peptides = read(samples, "spice_inputs/solvated-amino-acids.hdf5", "spice")
    monomers = read(samples, "spice_inputs/des-monomers.hdf5", "spice")
    assert (len(peptides), len(monomers)) == (1300, 18900)
    assert all(frame.atoms.calc is None for frame in peptides)
    assert (neutral(peptides), neutral(monomers)) == (1000, 17950)
    assert sum(53 in frame.atoms.numbers for frame in monomers) == 250
    charges = {frame.place.split()[4]: frame.charge for frame in peptides}
    charged = {name: charge for name, charge in charges.items() if charge}
    assert charged == {"ARG": 1, "LYS": 1, "HIP": 1, "ASP": -1, "GLU": -1, "CYX": -1}
    with h5py.File(samples / "spice_inputs/solvated-amino-acids.hdf5") as file:
        places = file["ALA"]["conformations"][7].astype(float) * 10
    np.testing.assert_allclose(peptides[7].atoms.positions, places, rtol=EXACT)
    for frame in monomers[::50]:  # bonds as long as bonds are: the elements stand where they belong
        distances = frame.atoms.get_all_distances()
        hydrogens = frame.atoms.numbers == 1
        if hydrogens.any() and len(frame.atoms) > 2:
            assert np.partition(distances[hydrogens], 1, axis=1)[:, 1].max() < 1.8


def neutral(frames: Sequence[Frame]) -> int:
    return sum(frame.charge == 0 for frame in frames)


def test_the_official_extended_xyz_of_mptrj(samples: Path) -> None:
    frames = read(samples, EIGHT, "extxyz")
    lines = (samples / EIGHT).read_text().splitlines()
    assert len(frames) == 8
    for index, frame in enumerate(frames):
        comment, rows = lines[18 * index + 1], lines[18 * index + 2 : 18 * (index + 1)]
        values = dict(re.findall(r'(\w+)=("[^"]*"|\S+)', comment))
        stress = np.array(values["stress"].strip('"').split(), dtype=float).reshape(3, 3)
        assert frame.atoms.get_potential_energy() == float(values["corrected_total_energy"])
        np.testing.assert_array_equal(
            frame.atoms.get_forces(), [[float(text) for text in row.split()[4:7]] for row in rows]
        )
        np.testing.assert_array_equal(
            frame.atoms.positions, [[float(text) for text in row.split()[1:4]] for row in rows]
        )
        np.testing.assert_allclose(frame.atoms.get_stress(voigt=False), (stress + stress.T) / 2, atol=1e-9)
        assert frame.trajectory == f"{values['mp_id']}/{values['task_id']}"
        assert frame.index == 10_000 * int(values["calc_id"]) + int(values["ionic_step"])
    assert sum("bandgap=0.0" in line for line in lines) == 2
    assert {frame.band_gap for frame in frames} == {0.0}
    assert {frame.material for frame in frames} == {"mp-1028232"}


def test_a_subset_of_wide_gaps_takes_whole_materials(samples: Path, tmp_path: Path) -> None:
    """Two of the eight frames say the gap; beside their material stand one of a wide gap and one of which none does."""
    text = (samples / EIGHT).read_text()
    assert text.count(" bandgap=0.0 ") == 2
    wide, unknown = (text.replace("bandgap=0.0 ", said).replace("mp-1028232", "mp-1") for said in ("bandgap=6.0 ", ""))
    path = tmp_path / "frames.extxyz"
    path.write_text(text + wide + unknown.replace("mp-1 ", "mp-2 "))
    given = {"division": Division(by="material", train=1, validation=0, test=0)}
    subset = Subset(own=OwnData(path=str(path), format="extxyz"), filters=Filters(min_band_gap=5), **given)
    assert [passes(frame, subset.filters) for frame in subset_frames(subset)] == [False] * 8 + [True] * 8 + [False] * 8
    group = SubsetGroup(kind="subset", name="train", split="train", subset="gap")
    with pytest.warns(
        ZooWarning, match=r"are 8 frames of 1 material \(the first: frame 16 of frames\.extxyz\)$"
    ) as told:
        chosen = choose(subset, [group], 0, subset_frames(subset), ["Mg", "Al", "Sb"])["train"]
    assert len(told) == 1
    assert [atoms.positions.tolist() for atoms in chosen] == [
        frame.atoms.positions.tolist() for frame in read(samples, EIGHT, "extxyz")
    ]


@pytest.mark.parametrize("name", ["random", "highest-stress"])
def test_a_thousand_frames_of_mptrj(name: str, samples: Path) -> None:
    file = f"mptrj_1k/mptrj-{name}-1k.xyz.gz"
    frames = read(samples, file, "extxyz")
    others = ase.io.read(io.StringIO(gzip.decompress((samples / file).read_bytes()).decode()), ":", format="extxyz")
    assert len(frames) == len(others) == 1000
    for frame, other in zip(frames, others, strict=True):
        assert frame.atoms.get_potential_energy() == other.get_potential_energy()
        np.testing.assert_array_equal(frame.atoms.get_forces(), other.get_forces())
        np.testing.assert_allclose(frame.atoms.get_stress(), other.get_stress(), rtol=1e-6, atol=1e-8)
        assert frame.material == other.info["mptrj_traj_id"]
        task, calculation, step = other.info["mptrj_snapshot_id"].rsplit("-", 2)
        assert frame.trajectory == f"{frame.material}/{task}"
        assert frame.index == 10_000 * int(calculation) + int(step)
    assert sum(39 in frame.atoms.numbers for frame in frames) == {"random": 25, "highest-stress": 17}[name]


def test_oxides_of_a_database(samples: Path) -> None:
    frames = read(samples, OXIDES, "ase-db")
    with sqlite3.connect(f"file:{samples / OXIDES}?mode=ro", uri=True) as base:
        rows = base.execute("SELECT energy, forces, positions, cell, numbers FROM systems ORDER BY id").fetchall()
    base.close()
    assert len(frames) == len(rows) == 295
    for frame, (energy, force, positions, cell, numbers) in zip(frames, rows, strict=True):
        assert frame.atoms.get_potential_energy() == energy
        np.testing.assert_array_equal(frame.atoms.get_forces().ravel(), np.frombuffer(force, "<f8"))
        np.testing.assert_array_equal(frame.atoms.positions.ravel(), np.frombuffer(positions, "<f8"))
        np.testing.assert_array_equal(frame.atoms.cell[:].ravel(), np.frombuffer(cell, "<f8"))
        np.testing.assert_array_equal(frame.atoms.numbers, np.frombuffer(numbers, "<i4"))


@pytest.mark.parametrize(
    ("file", "count"),
    [(SILICON, 200), (SALT, 10), (KCL, 120), (FINITE, 4)],
)
def test_supercells_as_phonopy_reads_them(file: str, count: int, samples: Path) -> None:
    phonopy_yaml = pytest.importorskip("phonopy.interface.phonopy_yaml")
    frames = read(samples, file, "phonopy")
    content = phonopy_yaml.PhonopyYaml().read(samples / file)
    data, supercell = content.dataset, content.supercell
    assert len(frames) == count
    if "first_atoms" in data:
        expected = [entry["forces"] for entry in data["first_atoms"]]
        moved = np.zeros((count, len(supercell), 3))
        for index, entry in enumerate(data["first_atoms"]):
            moved[index, entry["number"]] = entry["displacement"]
        assert set(frames[0].atoms.calc.results) == {"forces"}
    else:
        expected, moved = data["forces"], data["displacements"]
        np.testing.assert_array_equal(energies(frames), data["supercell_energies"])
    np.testing.assert_array_equal(forces(frames), expected)
    for frame, displacements in zip(frames, moved, strict=True):
        np.testing.assert_allclose(frame.atoms.positions, supercell.positions + displacements, atol=1e-12)
        np.testing.assert_allclose(frame.atoms.cell[:], supercell.cell, atol=1e-12)
        assert frame.atoms.get_chemical_symbols() == list(supercell.symbols)


def test_silicon_as_its_lines_say(samples: Path) -> None:
    """A reading of the text alone: 64 rows a snapshot, first all displacements, then all forces, then the energies."""
    text = lzma.decompress((samples / SILICON).read_bytes()).decode().partition("\ndataset:")[2]
    _, displacements, rest = re.split(r"  displacements:|  forces:", text)
    force_text, energy_text = rest.split("  supercell_energies:")
    frames = read(samples, SILICON, "phonopy")
    row = r"\[\s*(\S+),\s*(\S+),\s*(\S+)\s*\]"
    np.testing.assert_array_equal(forces(frames).reshape(-1, 3), np.array(re.findall(row, force_text), dtype=float))
    np.testing.assert_array_equal(energies(frames), np.array(re.findall(r"- (-\d\S+)", energy_text), dtype=float))
    way = np.array(re.findall(row, displacements), dtype=float).reshape(200, 64, 3)
    ways = np.array([frame.atoms.positions for frame in frames]) - frames[0].atoms.positions
    np.testing.assert_allclose(ways, way - way[0], atol=1e-12)


# Signs


def way(start: Atoms, end: Atoms) -> np.ndarray:
    """From the one's atoms to the other's, in the mean of their cells, (atoms, 3)."""
    if not all(start.pbc):
        return end.positions - start.positions
    fractions = end.positions @ np.linalg.inv(end.cell[:]) - start.positions @ np.linalg.inv(start.cell[:])
    return (fractions - np.round(fractions)) @ (start.cell[:] + end.cell[:]) / 2


def work(start: Atoms, end: Atoms) -> float:
    """What the mean force, and the mean stress where cells differ, say of the energy at the end less at the start."""
    gained = -float(((start.get_forces() + end.get_forces()) / 2 * way(start, end)).sum())
    if "stress" in start.calc.results:
        strain = np.linalg.solve(start.cell[:] + end.cell[:], end.cell[:] - start.cell[:])  # half of it
        virials = [voigt_6_to_full_3x3_stress(atoms.get_stress()) * atoms.get_volume() for atoms in (start, end)]
        gained += float((sum(virials) / 2 * (strain + strain.T)).sum())
    return gained


def agreement(frames: Sequence[Frame]) -> tuple[int, float, float]:
    """Of frames and their nearest neighbours, where these are near: number, correlation and slope of energy and work.

    Near is within 0.7 Å, over all atoms together.
    """
    found = []
    for one in (frame.atoms for frame in frames):
        ways = np.array([way(one, other.atoms) for other in frames])
        distances = np.linalg.norm(ways, axis=(1, 2))
        distances[[one is frame.atoms for frame in frames]] = np.inf
        nearest = int(distances.argmin())
        other = frames[nearest].atoms
        if distances[nearest] < 0.7:
            found.append((work(one, other), other.get_potential_energy() - one.get_potential_energy()))
    works, differences = np.array(found).T
    slope = np.dot(works, differences) / np.dot(works, works)
    return len(found), float(np.corrcoef(works, differences)[0, 1]), float(slope)


def downhill(frames: Sequence[Frame]) -> bool:
    number, correlation, slope = agreement(frames)
    return number >= 5 and correlation > 0.9 and 0.75 < slope < 1.3


CLOSE: dict[str, tuple[str, str, Callable[[Frame], bool]]] = {
    "sgdml": (ETHANOL, "sgdml", lambda frame: frame.index < 400),
    "rmd17 in extended XYZ": ("rmd17_ethanol_xyz/train.xyz.gz", "extxyz", lambda frame: frame.index < 400),
    "spice": (SPICE, "spice", lambda frame: len(frame.atoms) == 5),
    "phonopy": (SILICON, "phonopy", lambda frame: frame.index < 400),
    "phonopy before 2.24": (SALT, "phonopy", lambda frame: frame.index < 400),
    "mptrj": (EIGHT, "extxyz", lambda frame: frame.trajectory == "mp-1028232/mp-1028232"),
    "vasp": (TITANATE, "extxyz", lambda frame: frame.index < 400),
}


@pytest.mark.parametrize("name", CLOSE)
def test_forces_point_downhill(name: str, samples: Path) -> None:
    file, form, chosen = CLOSE[name]
    frames = [frame for frame in read(samples, file, form) if chosen(frame)]
    assert downhill(frames), agreement(frames)


@pytest.mark.parametrize("name", CLOSE)
def test_forces_that_point_uphill_would_be_seen(name: str, samples: Path) -> None:
    file, form, chosen = CLOSE[name]
    frames = [frame for frame in read(samples, file, form) if chosen(frame)]
    for frame in frames:
        turn(frame.atoms, "forces")
    assert not downhill(frames), agreement(frames)


def test_a_stress_of_the_other_sign_would_be_seen(samples: Path) -> None:
    file, form, chosen = CLOSE["mptrj"]
    frames = [frame for frame in read(samples, file, form) if chosen(frame)]
    for frame in frames:
        turn(frame.atoms, "stress")
    assert not downhill(frames), agreement(frames)


def turn(atoms: Atoms, label: str) -> None:
    results = atoms.calc.results
    atoms.calc = SinglePointCalculator(atoms, **(results | {label: -results[label]}))
