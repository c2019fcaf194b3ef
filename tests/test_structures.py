"""Structures from a recipe: the same for everyone, each in one split alone."""

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from recipes import frames_data, silicon_clusters, tiny_recipe
from zoo.calculator import ZooCalculator
from zoo.config import parse
from zoo.data import structures as made
from zoo.data.structures import (
    check_elements,
    check_splits,
    dataset_prediction,
    dataset_predictions,
    find_data,
    frames,
    perfect_crystal,
    rattled,
    read_split,
    structure_digest,
    trajectory,
    write_group,
    write_manifest,
)
from zoo.errors import ConfigError, IntegrityError, LabelError, StructureError, UnknownNameError
from zoo.files import sha256_file
from zoo.recipe import FramesGroup
from zoo.teachers import load_teacher


@pytest.fixture(scope="module")
def recipe():
    return tiny_recipe()


def group_of(recipe, kind):
    return next(group for group in recipe.structures.groups if group.kind == kind)


def test_a_frame_depends_on_seed_group_and_number_alone(recipe):
    group = group_of(recipe, "rattled")
    few = rattled(recipe.structures.crystal, group.model_copy(update={"count": 2}), recipe.seed)
    many = rattled(recipe.structures.crystal, group.model_copy(update={"count": 5}), recipe.seed)
    assert [structure_digest(atoms) for atoms in few] == [structure_digest(atoms) for atoms in many[:2]]
    other = rattled(recipe.structures.crystal, group.model_copy(update={"count": 2}), recipe.seed + 1)
    assert structure_digest(few[0]) != structure_digest(other[0])


def test_rattled_frames_are_as_violent_as_asked(recipe):
    group = group_of(recipe, "rattled").model_copy(
        update={"count": 40, "displacement": (0.1, 0.1), "strain": 0.0, "shear": 0.0, "supercell": (2, 2, 2)}
    )
    perfect = perfect_crystal(recipe.structures.crystal, group.supercell)
    frames = rattled(recipe.structures.crystal, group, 0)
    spread = np.std([atoms.positions - perfect.positions for atoms in frames])
    assert spread == pytest.approx(0.1, rel=0.03)


def test_strain_and_shear_stay_within_their_bounds(recipe):
    group = group_of(recipe, "rattled").model_copy(
        update={"count": 60, "displacement": (0.0, 0.0), "strain": 0.05, "shear": 0.02}
    )
    perfect = perfect_crystal(recipe.structures.crystal, group.supercell)
    strains = np.array(
        [
            np.linalg.solve(perfect.cell[:], atoms.cell[:]) - np.eye(3)
            for atoms in rattled(recipe.structures.crystal, group, 0)
        ]
    )
    diagonal = strains[:, range(3), range(3)]
    off = strains[:, [0, 0, 1], [1, 2, 2]]
    assert 0.04 < np.abs(diagonal).max() <= 0.05
    assert 0.015 < np.abs(off).max() <= 0.02
    np.testing.assert_allclose(strains, strains.transpose(0, 2, 1), atol=1e-12)


def test_a_trajectory_is_reproducible_and_moves(recipe):
    group = group_of(recipe, "dynamics")
    calculator = ZooCalculator(load_teacher("stillinger-weber/teacher").potential)
    one, two = (trajectory(recipe.structures.crystal, group, recipe.seed, calculator) for _ in range(2))
    assert [structure_digest(atoms) for atoms in one] == [structure_digest(atoms) for atoms in two]
    assert len({structure_digest(atoms) for atoms in one}) == group.count


def test_what_is_written_is_what_is_read(recipe, tmp_path):
    groups = [group for group in recipe.structures.groups if group.kind == "rattled"]
    for group in groups:
        write_group(tmp_path, group, rattled(recipe.structures.crystal, group, recipe.seed))
    write_manifest(tmp_path, groups)
    seen: dict[str, str] = {}
    for split in ("train", "validation", "test"):
        for atoms in read_split(tmp_path, groups, split):
            assert atoms.info["split"] == split
            assert seen.setdefault(structure_digest(atoms), split) == split
    assert set(seen.values()) == {"train", "validation", "test"}


def test_an_altered_file_is_refused(recipe, tmp_path):
    group = group_of(recipe, "rattled")
    path = write_group(tmp_path, group, rattled(recipe.structures.crystal, group, recipe.seed))
    write_manifest(tmp_path, [group])
    frames = ase.io.read(path, index=":")
    frames[0].positions[0, 0] += 1e-3
    ase.io.write(path, frames, format="extxyz")
    with pytest.raises(
        IntegrityError, match=r"was changed since it was made; delete the folder .* and run the same again"
    ):
        read_split(tmp_path, [group], group.split)


def crystals(count=6):
    """Crystals of several kinds and sizes with labels; the forces of each are as large as its number."""
    random = np.random.default_rng(3)
    kinds = [bulk("Si", "diamond", a=5.43), bulk("NaCl", "rocksalt", a=5.64), bulk("Cu", "fcc", a=3.6).repeat(2)]
    found = []
    for number in range(count):
        atoms = kinds[number % 3].copy()
        atoms.rattle(0.02, seed=number)
        forces = random.uniform(-1, 1, (len(atoms), 3))
        forces *= (number + 0.5) / np.abs(forces).max()
        stress = random.normal(0, 0.1, 6)
        atoms.calc = SinglePointCalculator(atoms, energy=random.normal() * 1e4, forces=forces, stress=stress)
        found.append(atoms)
    return found


def group_from(folder, structures, file="data.extxyz", **changes):
    path = folder / file
    ase.io.write(path, structures)
    data = {"kind": "frames", "name": "some", "split": "train", "file": str(path), "sha256": sha256_file(path)}
    return parse(FramesGroup, data | {"count": len(structures)} | changes, "a group")


def written(group, folder):
    """The frames of a group, once they went through the file of the run."""
    write_group(folder, group, frames(group, 1))
    write_manifest(folder, [group])
    return read_split(folder, [group], group.split)


@pytest.mark.parametrize("name", ["data.extxyz", "data.xyz.gz", "data.traj", "data.json"])
def test_frames_keep_the_labels_of_their_file_with_all_digits(name, tmp_path):
    given = crystals()
    ase.io.write(tmp_path / "plain.extxyz", given)
    source = given if name.endswith((".traj", ".json")) else ase.io.read(tmp_path / "plain.extxyz", ":")
    group = group_from(tmp_path, source, name)
    (tmp_path / "run").mkdir()
    for before, after in zip(source, written(group, tmp_path / "run"), strict=True):
        label = dataset_prediction(after)
        assert label.energy.tolist() == pytest.approx([before.get_potential_energy()], rel=1e-9)
        np.testing.assert_allclose(label.forces, before.get_forces(), atol=1e-8)
        np.testing.assert_allclose(label.stress[0], before.get_stress(voigt=False), atol=1e-12)
        assert label.energy.dtype == label.forces.dtype == label.stress.dtype
        assert str(after.symbols) == str(before.symbols)
        np.testing.assert_allclose(after.cell[:], before.cell[:], atol=1e-12)


def test_filters_come_first_then_start_stride_and_count(tmp_path):
    given = crystals(12)

    def chosen(**changes):
        group = group_from(tmp_path, given, **changes)
        energies = [atoms.get_potential_energy() for atoms in given]
        return [energies.index(atoms.get_potential_energy()) for atoms in frames(group, 1)]

    assert chosen(count=3, start=2, stride=4) == [2, 6, 10]
    assert chosen(count=2, element="Cl") == [1, 4]
    assert chosen(count=2, element="Cl", start=1, stride=2) == [4, 10]
    assert chosen(count=4, max_atoms=4) == [0, 1, 3, 4]
    assert chosen(count=4, max_force=4) == [0, 1, 2, 3]


def test_reading_stops_when_there_are_enough(tmp_path, monkeypatch):
    read = []

    def endless(path, index):
        while True:
            read.append(1)
            yield crystals(1)[0]

    group = group_from(tmp_path, crystals(3), count=2, start=1, stride=3)
    monkeypatch.setattr(made.ase.io, "iread", endless)
    assert len(frames(group, 1)) == 2
    assert len(read) == 5


def test_a_molecule_has_no_cell_and_a_slab_keeps_its_own(tmp_path):
    slab = bulk("Si", "diamond", a=5.43, cubic=True)
    slab.pbc = (True, True, False)
    (tmp_path / "run").mkdir()
    for given, cell in ((silicon_clusters(2), np.zeros((3, 3))), ([slab], slab.cell[:])):
        for atoms in written(group_from(tmp_path, given), tmp_path / "run"):
            np.testing.assert_array_equal(atoms.pbc, given[0].pbc)
            np.testing.assert_allclose(atoms.cell[:], cell)


def test_constraints_and_momenta_of_a_file_do_not_come_along(tmp_path):
    atoms = crystals(1)[0]
    atoms.set_momenta(np.ones((len(atoms), 3)))
    atoms.set_constraint(FixAtoms([0]))
    (frame,) = frames(group_from(tmp_path, [atoms], "data.traj"), 1)
    assert not frame.constraints
    assert set(frame.arrays) == {"numbers", "positions"}
    raw = atoms.calc.results["forces"]
    np.testing.assert_allclose(dataset_prediction(frame).forces, raw)
    assert np.abs(raw[0]).max() > 0  # which a constraint would have hidden


def test_displaced_copies_have_no_labels_and_move_as_asked(tmp_path):
    given = [silicon_clusters(1)[0] for _ in range(2)]
    group = group_from(tmp_path, given, copies=150, displacement=[0.1, 0.1])
    copies = frames(group, 5)
    assert len(copies) == 300
    assert all(dataset_prediction(atoms) is None for atoms in copies)
    moves = np.array([atoms.positions - given[0].positions for atoms in copies])
    assert moves.std() == pytest.approx(0.1, rel=0.03)
    assert len({structure_digest(atoms) for atoms in copies}) == 300


def test_the_spread_of_a_displacement_is_drawn_for_each_frame(tmp_path):
    large = bulk("Cu", "fcc", a=3.6, cubic=True).repeat(3)
    copies = frames(group_from(tmp_path, [large], copies=60, displacement=[0.02, 0.2]), 5)
    spreads = [np.std(atoms.positions - large.positions) for atoms in copies]
    assert 0.018 < min(spreads) < 0.04
    assert 0.17 < max(spreads) < 0.22


def test_a_displaced_frame_depends_on_seed_group_number_and_copy_alone(tmp_path):
    given = crystals(4)
    group = group_from(tmp_path, given, count=2, copies=2, displacement=[0.01, 0.1], strain=0.02)
    few = [structure_digest(atoms) for atoms in frames(group, 1)]
    more = frames(group.model_copy(update={"count": 4}), 1)
    assert [structure_digest(atoms) for atoms in more[:4]] == few
    copies = frames(group.model_copy(update={"copies": 3}), 1)
    assert [structure_digest(copies[number]) for number in (0, 1, 3, 4)] == few
    for other in (frames(group, 2), frames(group.model_copy(update={"name": "others"}), 1)):
        assert not set(few) & {structure_digest(atoms) for atoms in other}


def test_strain_of_a_frame_is_symmetric_and_within_its_bounds(tmp_path):
    cell = bulk("Cu", "fcc", a=3.6, cubic=True)
    copies = frames(group_from(tmp_path, [cell], copies=80, strain=0.06), 1)
    strains = np.array([np.linalg.solve(cell.cell[:], atoms.cell[:]) - np.eye(3) for atoms in copies])
    np.testing.assert_allclose(strains, strains.transpose(0, 2, 1), atol=1e-12)
    diagonal, off = strains[:, range(3), range(3)], strains[:, [0, 0, 1], [1, 2, 2]]
    assert 0.05 < np.abs(diagonal).max() <= 0.06
    assert 0.025 < np.abs(off).max() <= 0.03
    places = [atoms.get_scaled_positions(wrap=False) for atoms in copies]
    np.testing.assert_allclose(places, [cell.get_scaled_positions()] * 80, atol=1e-12)


def test_a_molecule_is_not_strained(tmp_path):
    group = group_from(tmp_path, silicon_clusters(1), strain=0.01)
    with pytest.raises(ConfigError, match=r"group some has a strain, but frame 0 of .* set its strain to 0"):
        frames(group, 1)


def test_a_file_is_found_in_the_folders_of_the_variable(tmp_path, monkeypatch):
    (tmp_path / "two" / "set").mkdir(parents=True)
    (tmp_path / "one").mkdir()
    group = group_from(tmp_path / "two" / "set", crystals(2)).model_copy(update={"file": "set/data.extxyz"})
    monkeypatch.delenv("ZOO_DATA", raising=False)
    with pytest.raises(
        UnknownNameError, match=rf"no file set/data.extxyz \(SHA-256 {group.sha256}\); ZOO_DATA names no"
    ):
        find_data(group)
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "one"))
    with pytest.raises(UnknownNameError, match=r"ZOO_DATA names .*one: set it to the folder that holds the file"):
        find_data(group)
    monkeypatch.setenv("ZOO_DATA", f"{tmp_path / 'one'}:{tmp_path / 'two'}")
    assert find_data(group) == tmp_path / "two" / "set" / "data.extxyz"


def test_a_file_of_another_digest_is_refused_before_it_is_read(tmp_path, monkeypatch):
    group = group_from(tmp_path, crystals(2)).model_copy(update={"sha256": "0" * 64})
    monkeypatch.setattr(made.ase.io, "iread", lambda *arguments, **options: pytest.fail("read"))
    with pytest.raises(IntegrityError, match=r"has the digest [0-9a-f]{64}, expected 0{64}; fetch it again"):
        frames(group, 1)


def test_an_older_file_in_an_earlier_folder_does_not_hide_the_right_one(tmp_path, monkeypatch):
    for name, count in (("old", 1), ("new", 2)):
        (tmp_path / name).mkdir()
        group = group_from(tmp_path / name, crystals(count)).model_copy(update={"file": "data.extxyz"})
    monkeypatch.setenv("ZOO_DATA", f"{tmp_path / 'old'}:{tmp_path / 'new'}")
    assert find_data(group) == tmp_path / "new" / "data.extxyz"


def test_too_few_frames_are_counted(tmp_path):
    group = group_from(tmp_path, crystals(12), count=4, element="Cl", start=1, stride=2)
    with pytest.raises(ConfigError, match=r"asks for 4 frames.*has 4 that pass its filters, which gives 2; lower"):
        frames(group, 1)


def test_a_file_that_is_broken_or_of_no_format_is_named(tmp_path):
    group = group_from(tmp_path, crystals(3))
    path = tmp_path / "data.extxyz"
    for text in (path.read_text()[:-200], "not a structure at all"):
        path.write_text(text)
        broken = group.model_copy(update={"sha256": sha256_file(path)})
        with pytest.raises(IntegrityError, match=r"data\.extxyz cannot be read by ASE"):
            frames(broken, 1)


def test_what_is_not_a_number_is_named(tmp_path):
    given = crystals(3)
    given[1].calc.results["forces"][0, 0] = np.nan
    with pytest.raises(LabelError, match=r"group some: the forces of frame 1 of .* not a finite number"):
        frames(group_from(tmp_path, given), 1)
    with pytest.raises(ConfigError, match="has 2 that pass its filters"):
        frames(group_from(tmp_path, given, max_force=100), 1)
    assert len(frames(group_from(tmp_path, given, displacement=[0.1, 0.1]), 1)) == 3
    given[2].positions[1, 1] = np.nan
    with pytest.raises(StructureError, match=r"group some: frame 2 of .*position 1 of Cu8 is not a finite number"):
        frames(group_from(tmp_path, given, displacement=[0.1, 0.1]), 1)


def test_a_largest_force_needs_forces(tmp_path):
    with pytest.raises(LabelError, match=r"has a max_force, but frame 0 of .* has no forces; remove max_force"):
        frames(group_from(tmp_path, [bulk("Si")], max_force=1.0), 1)


def test_an_element_that_the_student_lacks_is_named(tmp_path):
    group = group_from(tmp_path, crystals(3))
    check_elements(group, frames(group, 1), ["Si", "Na", "Cl", "Cu"])
    with pytest.raises(ConfigError, match=r"group some holds Cl, Na, which student\.elements lacks"):
        check_elements(group, frames(group, 1), ["Si", "Cu"])


def test_labels_without_energy_or_forces_name_the_group():
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.74]], info={"group": "scan"})
    assert dataset_prediction(atoms) is None
    with pytest.raises(LabelError, match=r"H2 of group scan has no labels of its data set.*loss\.\*_from to teacher"):
        dataset_predictions([atoms])
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0)
    with pytest.raises(LabelError, match="H2 of group scan has labels without forces"):
        dataset_predictions([atoms])
    atoms.calc = SinglePointCalculator(atoms, forces=np.zeros((2, 3)))
    with pytest.raises(LabelError, match="H2 of group scan has labels without energy"):
        dataset_prediction(atoms)
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.zeros((2, 3)))
    assert dataset_prediction(atoms).stress.isnan().all()


def test_a_structure_stands_in_one_split_alone(tmp_path):
    data = frames_data(tmp_path)["structures"]["groups"]
    groups = [parse(FramesGroup, group | {"shared": True}, "a group") for group in data]
    groups[2] = groups[2].model_copy(update={"start": 5, "count": 1})
    for group in groups:
        write_group(tmp_path, group, frames(group, 1))
    write_manifest(tmp_path, groups)
    with pytest.raises(ConfigError, match="groups learned and tested hold the same Si5 in two splits"):
        check_splits(tmp_path, groups)
    check_splits(tmp_path, groups[:2])


def test_molecules_and_crystals_do_not_mix(tmp_path):
    groups = [
        group_from(tmp_path, given, f"{name}.extxyz", name=name)
        for name, given in (("clusters", silicon_clusters(1)), ("cells", crystals(1)))
    ]
    for group in groups:
        write_group(tmp_path / "run", group, frames(group, 1))
    write_manifest(tmp_path / "run", groups)
    with pytest.raises(ConfigError, match=r"group clusters has pbc False False False, group cells pbc True True True"):
        check_splits(tmp_path / "run", groups)
