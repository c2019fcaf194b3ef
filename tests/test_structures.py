"""Structures from a recipe: the same for everyone, each in one split alone."""

import ase.io
import numpy as np
import pytest

from recipes import tiny_recipe
from zoo.calculator import ZooCalculator
from zoo.data.structures import (
    perfect_crystal,
    rattled,
    read_split,
    structure_digest,
    trajectory,
    write_group,
    write_manifest,
)
from zoo.errors import IntegrityError
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
