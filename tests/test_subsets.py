"""Subsets of data sets: filters that never drop in silence, divisions in which nobody moves, choices that stay."""

import random
import sys
from dataclasses import replace

import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from click.testing import CliRunner

from recipes import silicon_clusters, tiny_data, tiny_recipe
from zoo import pipeline
from zoo.cli import main
from zoo.config import parse
from zoo.data import subsets
from zoo.data.frame import Frame
from zoo.data.labels import Labels
from zoo.data.structures import dataset_prediction, find_own, read_split, structure_digest, write_group
from zoo.data.subsets import (
    check_subsets,
    choose,
    data_sha256,
    data_terms,
    group_key,
    known_digests,
    passes,
    split_of,
    subset_frames,
)
from zoo.distill.examples import make_examples
from zoo.errors import (
    ConfigError,
    IntegrityError,
    LabelError,
    LicenceError,
    MissingPackageError,
    UnknownNameError,
    ZooWarning,
)
from zoo.estimate import estimate
from zoo.estimate import text as estimate_text
from zoo.files import sha256_file
from zoo.licences import UNSTATED, Source, check_terms
from zoo.pipeline import make_labels, make_structures, read_data_record, read_labels
from zoo.recipe import Division, Filters, Lock, Recipe, Subset, SubsetGroup
from zoo.run import Run
from zoo.teachers import load_teacher

HALVES = {"train": 0.8, "validation": 0.1, "test": 0.1}


def frame(number=0, atoms=None, forces=None, **said):
    """A frame that no other number has; of water, without labels, unless something else is said."""
    atoms = Atoms("H2O", np.random.default_rng(number).normal(size=(3, 3))) if atoms is None else atoms.copy()
    if forces is not None:
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.full((len(atoms), 3), forces))
    return Frame(atoms, f"frame {number} of a file", **{"index": number} | said)


def frames_of(groups, each=4, key="material"):
    """So many frames of each of so many groups, mingled."""
    made = [frame(each * group + number, **{key: f"mp-{group}"}) for group in range(groups) for number in range(each)]
    random.Random(1).shuffle(made)
    return made


def filters(**given):
    return parse(Filters, given, "filters")


def division(by="material", **given):
    return parse(Division, {"by": by, **HALVES, **given}, "a division")


def subset(by="material", filters=None, **given):
    own = {"path": "frames.extxyz", "format": "extxyz"}
    cut = {"by": by, **HALVES, **given}
    return parse(Subset, {"own": own, "filters": filters or {}, "division": cut}, "a subset")


def group(split="train", **given):
    data = {"kind": "subset", "name": f"g-{split}", "split": split, "subset": "some"}
    return parse(SubsetGroup, data | given, "a group")


ROCKSALT = bulk("NaCl", "rocksalt", a=5.64)
RATTLED = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
RATTLED.rattle(0.02, seed=1)
TRICLINIC = Atoms("NaCl", [[0, 0, 0], [1.3, 1.1, 1.9]], cell=[[4, 0, 0], [1, 5, 0], [0.7, 0.4, 6]], pbc=True)
TRICLINIC += Atoms("K", [[2.9, 3.3, 0.7]])
TWICE = Atoms("Cu2", [[0, 0, 0], [0, 0, 0.001]], cell=[3, 3, 3], pbc=True)  # in which spglib finds no space group


@pytest.mark.parametrize(
    ("given", "inside", "outside"),
    [
        ({"element": "O"}, frame(), frame(atoms=Atoms("N2", [[0, 0, 0], [0, 0, 1.1]]))),
        ({"elements": ["H", "O", "C"]}, frame(), frame(atoms=ROCKSALT)),
        ({"formula": "OH2"}, frame(), frame(atoms=Atoms("HO", [[0, 0, 0], [0, 0, 1]]))),
        ({"molecules": ["water", "CCO"]}, frame(molecule="CCO"), frame(molecule="ethanol")),
        ({"parts": ["DES370K Monomers"]}, frame(part="DES370K Monomers"), frame(part="DES370K Dimers")),
        ({"charge": 0}, frame(charge=0), frame(charge=-1)),
        ({"space_group": "Fm-3m"}, frame(atoms=ROCKSALT), frame(atoms=RATTLED)),
        ({"space_group": "Fm-3m", "symprec": 0.2}, frame(atoms=RATTLED), frame(atoms=bulk("Cu", "bcc", a=2.9))),
        ({"min_band_gap": 5}, frame(band_gap=5.0), frame(band_gap=4.99)),
        ({"min_band_gap": 0}, frame(band_gap=0.0), frame()),
        ({"space_group": "P1"}, frame(atoms=TRICLINIC), frame(atoms=TWICE)),
        ({"max_band_gap": 0}, frame(band_gap=0.0), frame(band_gap=0.01)),
        ({"min_atoms": 3, "max_atoms": 3}, frame(), frame(atoms=ROCKSALT)),
        ({"max_atoms": 2}, frame(atoms=ROCKSALT), frame()),
        ({"max_force": 2}, frame(forces=-1.9), frame(forces=-2.0)),
        ({"element": "H", "charge": 1}, frame(charge=1), frame(charge=0)),
    ],
)
def test_a_filter_lets_in_what_it_says_and_nothing_else(given, inside, outside):
    if "space_group" in given:
        pytest.importorskip("spglib", reason="space groups need the extra data")
    assert passes(inside, filters(**given))
    assert not passes(outside, filters(**given))


@pytest.mark.parametrize(
    ("given", "lacking", "said"),
    [
        ({"molecules": ["water"]}, "molecule", "molecules"),
        ({"parts": ["monomers"]}, "part", "parts"),
        ({"charge": 0}, "charge", "charge"),
        ({"max_force": 1}, "forces", "max_force"),
    ],
)
def test_what_the_data_do_not_say_is_never_filtered_in_silence(given, lacking, said):
    with pytest.raises(ConfigError, match=rf"^frame 3 of a file has no {lacking}.*filter {said}.*; remove filters"):
        passes(frame(3), filters(**given))


def test_what_costs_least_is_asked_first(monkeypatch):
    monkeypatch.setitem(sys.modules, "spglib", None)
    wanted = filters(space_group="Pm-3m", element="Y", max_force=1)
    assert not passes(frame(atoms=ROCKSALT), wanted)  # has no yttrium, so that neither forces nor spglib are missed
    with pytest.raises(MissingPackageError, match="space group needs spglib; run: pip install spglib"):
        passes(frame(atoms=ROCKSALT), filters(space_group="Pm-3m"))


def test_what_can_have_no_space_group_is_named():
    pytest.importorskip("spglib", reason="space groups need the extra data")
    with pytest.raises(ConfigError, match=r"frame 0 of a file \(H2O\) is not periodic .* has no space group; remove"):
        passes(frame(), filters(space_group="P1"))


def test_a_space_group_that_there_is_not_is_named():
    pytest.importorskip("spglib", reason="space groups need the extra data")
    data = tiny_recipe().structures.model_copy(update={"subsets": {"some": subset(filters={"space_group": "Pm3m"})}})
    with pytest.raises(ConfigError, match=r"space_group is 'Pm3m', which no space group is called; did you mean Pm-3m"):
        check_subsets(data)


@pytest.mark.parametrize("formula", ["", "c2h6", "Xx2", "C2 H6"])
def test_a_formula_that_is_none_is_refused_by_the_schema(formula):
    with pytest.raises(ConfigError, match=r"'formula': .*(formula|element)"):
        filters(formula=formula)


# ---------------------------------------------------------------------------------------------------- who stands where

# By hand: the first 16 hex digits of sha256(b"\0mp-0") over 2**64, cut at 0.8 and at 0.9.
KNOWN = {
    **dict.fromkeys(("mp-0", "mp-2", "mp-3", "mp-4", "mp-20", "mp-59"), "train"),
    **dict.fromkeys(("mp-1", "mp-7", "mp-17", "mp-46"), "validation"),
    **dict.fromkeys(("mp-14", "mp-19", "mp-45", "mp-50"), "test"),
}


def obeys_the_laws(split):
    """The laws of a division by material. ``split`` gives the side of each frame, and is called on whole data sets."""
    frames = frames_of(300)
    before = {one.place: side for one, side in zip(frames, split(frames), strict=True)}
    sides: dict[str, set[str]] = {}
    for one in frames:
        sides.setdefault(one.material, set()).add(before[one.place])
    assert all(len(found) == 1 for found in sides.values()), "a group stands on two sides"
    shuffled = random.Random(2).sample(frames, len(frames))
    after = {one.place: side for one, side in zip(shuffled, split(shuffled), strict=True)}
    assert after == before, "frames move when their order changes"
    grown = [frame(10**6 + number, material=f"mp-{number % 400}") for number in range(800)] + shuffled
    after = {one.place: side for one, side in zip(grown, split(grown), strict=True)}
    assert before.items() <= after.items(), "frames move when data are added"
    new = {side for one, side in zip(grown, split(grown), strict=True) if one.material == "mp-7"}
    assert new == sides["mp-7"], "new frames of a group stand elsewhere"
    found = split([frame(material=name) for name in KNOWN])
    assert dict(zip(KNOWN, found, strict=True)) == KNOWN, "another process or machine divides otherwise"


def test_no_group_is_on_two_sides_and_nobody_moves():
    obeys_the_laws(lambda frames: [split_of(one, division()) for one in frames])


def by_frame(frames):
    return [split_of(one, division(by="frame")) for one in frames]


def by_hash_of_python(frames):
    return [cut(hash(one.material) % 1000 / 1000) for one in frames]


def by_order(frames):
    names = list(dict.fromkeys(one.material for one in frames))
    return [cut(names.index(one.material) / len(names)) for one in frames]


def by_seeded_shuffle(frames):
    names = sorted({one.material for one in frames})
    random.Random(0).shuffle(names)
    return [cut(names.index(one.material) / len(names)) for one in frames]


def cut(number):
    return "train" if number < 0.8 else "validation" if number < 0.9 else "test"


@pytest.mark.parametrize(
    ("planted", "caught"),
    [
        (by_frame, "two sides"),
        (by_hash_of_python, "another process"),
        (by_order, "order changes"),
        (by_seeded_shuffle, "data are added"),
    ],
)
def test_the_laws_catch_what_breaks_them(planted, caught):
    with pytest.raises(AssertionError, match=caught):
        obeys_the_laws(planted)


@pytest.mark.parametrize("parts", [(0.8, 0.1, 0.1), (0.7, 0.15, 0.15), (0.5, 0.5, 0.0), (0.0, 0.3, 0.7)])
def test_the_parts_of_a_thousand_groups_are_as_asked(parts):
    cut = division(**dict(zip(HALVES, parts, strict=True)), by="molecule")
    sides = [split_of(frame(molecule=f"molecule {number}"), cut) for number in range(1000)]
    for side, part in zip(HALVES, parts, strict=True):
        spread = (1000 * part * (1 - part)) ** 0.5
        assert abs(sides.count(side) - 1000 * part) <= 3 * spread


def test_the_last_side_takes_what_rounding_leaves(monkeypatch):
    monkeypatch.setattr(subsets, "_hash", lambda *words: 2**64 - 1)
    assert split_of(frame(), division(by="frame", train=0.7, validation=0.3 - 1e-10, test=0.0)) == "validation"


def test_another_salt_divides_otherwise():
    names = [frame(molecule=str(number)) for number in range(200)]
    one, two = ([split_of(name, division(by="molecule", salt=salt)) for name in names] for salt in ("", "two"))
    assert 0.5 < np.mean([first == second for first, second in zip(one, two, strict=True)]) < 0.9


def test_frames_are_divided_by_what_they_are_not_by_their_place():
    """The paper's way: each structure for itself, wherever it stands in a file; neighbours fall on both sides."""
    path = [frame(number, trajectory="one") for number in range(400)]
    sides = by_frame(path)
    assert set(sides) == {"train", "validation", "test"}
    assert {sides[number] == sides[number + 1] for number in range(399)} == {True, False}
    assert by_frame(path[::-1]) == sides[::-1]
    assert by_frame([frame(7, trajectory="other", index=90)]) == sides[7:8]


def test_frames_that_become_equal_in_the_files_of_groups_stand_together(tmp_path):
    """Two calculations of one structure differ in digits that extended XYZ does not keep."""
    one, other = frame(5), frame(5)
    one.atoms.positions = np.round(one.atoms.positions, 8)
    other.atoms.positions = one.atoms.positions + 3e-10
    assert structure_digest(one.atoms) != structure_digest(other.atoms)
    ase.io.write(tmp_path / "frames.extxyz", [one.atoms, other.atoms], format="extxyz")
    assert group_key(one, division(by="frame")) == group_key(other, division(by="frame"))
    for atoms in ase.io.read(tmp_path / "frames.extxyz", ":"):
        assert group_key(one, division(by="frame")) == structure_digest(atoms)


def test_a_block_stays_together_and_belongs_to_its_trajectory():
    cut = division(by="block", block=10)
    keys = [group_key(frame(number, trajectory="one"), cut) for number in range(40)]
    assert [keys.index(key) for key in keys] == [10 * (number // 10) for number in range(40)]
    assert group_key(frame(3, trajectory="two"), cut) not in keys
    assert len({group_key(frame(number), cut) for number in range(40)}) == 4  # of a file that is one trajectory


@pytest.mark.parametrize("by", ["molecule", "material", "trajectory"])
def test_a_key_that_is_not_said_is_named_with_those_that_are(by):
    said = {"molecule": "CCO", "material": "mp-1", "trajectory": "t"}
    others = {key: value for key, value in said.items() if key != by}
    with pytest.raises(ConfigError, match=rf"has no {by}.* to {', '.join(others)}, block or frame"):
        split_of(frame(**others), division(by=by))


# ------------------------------------------------------------------------------------------------------ what is chosen


def digests(structures):
    return [structure_digest(atoms) for atoms in structures]


def places(chosen, frames):
    """The numbers of the chosen structures in a list of frames."""
    known = {structure_digest(one.atoms): number for number, one in enumerate(frames)}
    return {name: [known[found] for found in digests(structures)] for name, structures in chosen.items()}


SIDES = [group(split) for split in HALVES]


def test_one_pass_serves_all_groups_in_the_order_of_the_data():
    frames = frames_of(100)
    chosen = places(choose(subset(), SIDES, 0, iter(frames)), frames)
    assert sorted(number for numbers in chosen.values() for number in numbers) == list(range(400))
    for one in SIDES:
        assert chosen[one.name] == [n for n, each in enumerate(frames) if split_of(each, division()) == one.split]


def test_only_what_passes_is_chosen():
    frames = [*frames_of(60), *(frame(number, atoms=ROCKSALT, material=f"na-{number}") for number in range(9))]
    chosen = choose(subset(filters={"elements": ["H", "O"]}), SIDES, 0, frames)
    assert sum(map(len, chosen.values())) == 240


def test_a_count_takes_the_same_frames_whatever_their_order_and_few_leave_when_data_grow():
    frames = frames_of(100)
    taken = choose(subset(), [group(count=40)], 0, frames)["g-train"]
    again = choose(subset(), [group(count=40)], 0, frames[::-1])["g-train"]
    assert digests(again) == digests(taken)[::-1]
    fewer = choose(subset(), [group(count=10)], 0, frames)["g-train"]
    assert set(digests(fewer)) < set(digests(taken))
    more = [frame(10**6 + number, material=f"new-{number}") for number in range(100)]
    grown = set(digests(choose(subset(), [group(count=40)], 0, more + frames)["g-train"]))
    old = {structure_digest(one.atoms) for one in frames}
    assert grown & old < set(digests(taken))
    assert 20 < len(grown & old) < 40
    assert len({one.material for one in frames if structure_digest(one.atoms) in digests(taken)}) > 25


def test_no_more_frames_are_kept_than_are_wanted(monkeypatch):
    most = 0

    class Watched(subsets._Share):
        def take(self, *arguments):
            nonlocal most
            super().take(*arguments)
            most = max(most, len(self.kept))

    monkeypatch.setattr(subsets, "_Share", Watched)
    choose(subset(), [group(count=7)], 0, frames_of(100))
    assert most == 7


def test_too_few_frames_are_counted():
    with pytest.raises(
        ConfigError,
        match=r"group g-train asks for 400 frames, but the train side of subset some has 296 of 400 that pass its "
        r"filters \(100 materials in all, a part of 0\.8\); lower count, or raise structures\.subsets\.some\.division",
    ):
        choose(subset(), [group(count=400)], 0, frames_of(100))


@pytest.mark.parametrize(
    ("by", "said", "groups"),
    [
        ("molecule", {"molecule": "CCO"}, "1 molecule,"),
        ("trajectory", {"trajectory": "t"}, "1 trajectory,"),
        ("block", {}, r"2 blocks,"),
    ],
)
def test_an_empty_side_says_of_how_many_groups_the_subset_is(by, said, groups):
    frames = [frame(number, **said) for number in range(20)]
    block = {"block": 10} if by == "block" else {}
    with pytest.raises(ConfigError, match=rf"is empty: the 20 frames of subset some are of {groups} none of which"):
        choose(subset(by, **block), SIDES, 0, frames)


def test_filters_that_let_nothing_through_are_named():
    with pytest.raises(
        ConfigError,
        match=r"none of the 40 frames of subset some passes its filters; loosen structures",
    ):
        choose(subset(filters={"element": "Y"}), SIDES, 0, frames_of(10))


def warned(one, frames, **given):
    """What is chosen for the training, and the one warning."""
    with pytest.warns(ZooWarning) as caught:
        chosen = choose(one, [group()], 0, frames, **given)["g-train"]
    (warning,) = caught
    return chosen, str(warning.message)


def test_materials_without_a_band_gap_are_left_out_and_counted_once():
    gaps = {f"mp-{number}": (None, 1.0, 6.0)[number % 3] for number in range(60)}
    frames = [replace(one, band_gap=gaps[one.material]) for one in frames_of(60)]
    wanted = [one for one in frames if one.band_gap == 6 and split_of(one, division()) == "train"]
    chosen, words = warned(subset(filters={"min_band_gap": 5}), frames)
    assert digests(chosen) == [structure_digest(one.atoms) for one in wanted]
    first = next(one.place for one in frames if one.band_gap is None)
    assert words == (
        "subset some leaves out what cannot be known: without a band gap, which filters.min_band_gap asks for, are 80 "
        f"frames of 20 materials (the first: {first})"
    )


@pytest.mark.parametrize("name", ["min_band_gap", "max_band_gap"])
def test_data_without_any_band_gap_are_refused(name):
    frames = frames_of(10)
    expected = rf"^{frames[0].place} has no band gap, which the filter {name} asks for; remove filters.{name}, or take"
    with pytest.raises(ConfigError, match=expected):
        choose(subset(filters={name: 1}), SIDES, 0, frames)


def test_frames_in_which_spglib_finds_no_group_are_left_out_and_counted_once():
    pytest.importorskip("spglib", reason="space groups need the extra data")
    frames = [frame(number, atoms=(ROCKSALT, TWICE)[number % 2], material=f"mp-{number}") for number in range(20)]
    _, words = warned(subset(filters={"space_group": "Fm-3m"}), frames)
    assert words == (
        "subset some leaves out what cannot be known: of no space group that spglib finds within 0.01 Å are 10 frames "
        "of 10 materials (the first: frame 1 of a file)"
    )


def test_an_element_that_the_student_lacks_is_named_before_the_rest_is_read():
    frames = [frame(number, atoms=ROCKSALT if number == 7 else None, material="mp-0") for number in range(20)]
    read = iter(frames)
    for one in (group(), group(count=1)):  # whether the frame is kept in the end or not
        read = iter(frames)
        with pytest.raises(ConfigError, match=r"group g-train holds Cl, Na, which student\.elements lacks"):
            choose(subset(), [one], 0, read, ["H", "O"])
        assert len(list(read)) == 12
    choose(subset(), [group()], 0, frames, ["H", "O", "Na", "Cl"])
    choose(subset(filters={"elements": ["H", "O"]}), [group()], 0, frames, ["H", "O"])


def test_a_run_names_such_an_element_before_the_rest_is_read(tmp_path, monkeypatch):
    recipe = tiny_recipe()
    read = []

    def frames(_):
        for number in range(100):
            read.append(number)
            yield frame(number, atoms=TRICLINIC, material="mp-0")

    section = recipe.structures.model_copy(update={"subsets": {"some": subset()}, "groups": (group(),)})
    run = Run.of(recipe.model_copy(update={"structures": section}), tmp_path / "run")
    monkeypatch.setattr(pipeline, "subset_frames", frames)
    with pytest.raises(ConfigError, match=r"holds Cl, K, Na, which student\.elements lacks"):
        pipeline._make_subset(run, "some")
    assert read == [0]


def test_a_name_that_the_data_do_not_have_is_named_though_others_are_there():
    frames = frames_of(100, key="molecule")
    wanted = {"molecules": [f"mp-{number}" for number in range(50)] + ["mp_99"]}
    with pytest.raises(ConfigError, match=r"no frame of subset some has the molecule 'mp_99'; did you mean mp-99\?"):
        choose(subset("molecule", filters=wanted), SIDES, 0, frames)
    frames = [frame(number, part="Monomers") for number in range(50)]
    with pytest.raises(ConfigError, match=r"has the part 'Iodine'; it has 1: Monomers"):
        choose(subset("frame", filters={"parts": ["Iodine"]}), SIDES, 0, frames)


def test_a_displaced_frame_depends_on_seed_group_itself_and_its_copy_alone():
    frames = frames_of(30)
    moved = group(copies=2, displacement=[0.01, 0.1])
    made = choose(subset(), [moved], 5, frames)["g-train"]
    assert len(made) == 2 * len(choose(subset(), [group()], 5, frames)["g-train"])
    assert len(set(digests(made))) == len(made)
    assert all(dataset_prediction(atoms) is None for atoms in made)
    grown = [frame(10**6 + number, material=f"new-{number}") for number in range(50)] + frames[::-1]
    assert set(digests(made)) < set(digests(choose(subset(), [moved], 5, grown)["g-train"]))
    for seed, other in ((6, moved), (5, moved.model_copy(update={"name": "other"}))):
        assert not set(digests(made)) & set(digests(choose(subset(), [other], seed, frames)[other.name]))


def test_what_a_molecule_or_a_label_cannot_be_is_said_with_its_place():
    molecules = [frame(number) for number in range(50)]
    with pytest.raises(ConfigError, match=r"group g-train has a strain, but frame \d+ of a file .* not periodic"):
        choose(subset("frame"), [group(strain=0.01)], 0, molecules)
    broken = [frame(number, forces=np.inf) for number in range(50)]
    with pytest.raises(LabelError, match=r"group g-train: the forces of frame \d+ of a file is not a finite number"):
        choose(subset("frame"), [group()], 0, broken)


# --------------------------------------------------------------------------------------------------- files and recipes


def subset_data(folder, clusters, subset=None, group=None, **changes):
    """The data of a tiny recipe of a file of the user's own, divided into three groups."""
    path = folder / "clusters.extxyz"
    ase.io.write(path, clusters, format="extxyz")
    own = {
        "own": {"path": str(path), "format": "extxyz"},
        "division": {"by": "frame", "train": 0.5, "validation": 0.25, "test": 0.25},
    }
    groups = [{"kind": "subset", "name": name, "split": name, "subset": "clusters", **(group or {})} for name in HALVES]
    structures = {"subsets": {"clusters": own | (subset or {})}, "groups": groups}
    structures["data"] = [{"name": "clusters", "licence": "CC0-1.0"}]
    evaluation = {"initial_temperature": 50}
    return tiny_data(**({"structures": structures, "loss__stress": 0, "evaluation": evaluation} | changes))


def subset_recipe(folder, clusters=None, **changes):
    clusters = silicon_clusters(24) if clusters is None else clusters
    return parse(Recipe, subset_data(folder, clusters, **changes), "a recipe of a subset")


def test_label_makes_the_groups_of_a_subset_and_their_labels(tmp_path):
    clusters = silicon_clusters(24)
    for cluster in clusters:
        cluster.info["smiles"] = "[Si]"
        cluster.calc.results["energy"] -= 123456.7890123
    data = subset_data(tmp_path, clusters, loss__force_from="dataset", loss__energy_from="dataset")
    recipe = tmp_path / "subset.yaml"
    recipe.write_text(yaml.safe_dump(data))
    for _ in range(2):
        done = CliRunner().invoke(main, ["label", str(recipe), "--run", str(tmp_path / "run")])
        assert done.exit_code == 0, done.output
    run = Run.of(subset_recipe(tmp_path, clusters), tmp_path / "run")
    given = {round(atoms.get_potential_energy(), 6): atoms for atoms in clusters}
    seen = 0
    for split in HALVES:
        structures = read_split(tmp_path / "run" / "structures", run.recipe.structures.groups, split)
        labels = Labels.open(tmp_path / "run" / "labels" / split, digests(structures))
        for atoms, label in zip(structures, labels, strict=True):
            own, before = dataset_prediction(atoms), given.pop(round(atoms.get_potential_energy(), 6))
            assert own.energy.item() == pytest.approx(before.get_potential_energy(), rel=1e-14)
            np.testing.assert_allclose(own.forces, before.get_forces(), atol=5.1e-9)
            np.testing.assert_allclose(atoms.positions, before.positions, atol=5.1e-9)
            np.testing.assert_allclose(label.forces, before.get_forces() / 1.1, atol=1e-5)
            seen += 1
    assert seen == 24
    assert not given


def test_a_student_learns_forces_of_the_data_set_from_a_subset(tmp_path):
    """The whole way into examples: what is learned is the label of the file, not the teacher's."""
    changes = {f"loss__{part}_from": "dataset" for part in ("energy", "force")}
    run = Run.of(subset_recipe(tmp_path, **changes), tmp_path / "run")
    make_labels(run)
    task_examples = make_examples(*read_labels(run, "train"), run.recipe.student.cutoff, torch.float64)
    structures = read_split(run.folder / "structures", run.recipe.structures.groups, "train")
    for example, atoms in zip(task_examples, structures, strict=True):
        np.testing.assert_allclose(example.dataset.forces, atoms.get_forces(), atol=1e-7)
        np.testing.assert_allclose(example.teacher.forces, atoms.get_forces() / 1.1, atol=1e-5)


def test_what_a_killed_run_left_is_kept_and_the_rest_is_the_same(tmp_path, monkeypatch):
    recipe = subset_recipe(tmp_path)
    whole = make_structures(Run.of(recipe, tmp_path / "whole"))
    run = Run.of(recipe, tmp_path / "killed")
    written = []

    def stop(folder, group, structures):
        if written:
            raise KeyboardInterrupt
        written.append(group.name)
        return write_group(folder, group, structures)

    with monkeypatch.context() as patch:
        patch.setattr("zoo.pipeline.write_group", stop)
        with pytest.raises(KeyboardInterrupt):
            make_structures(run)
    first = (run.folder / "structures" / "train.extxyz").stat().st_mtime_ns
    make_structures(run)
    assert (run.folder / "structures" / "train.extxyz").stat().st_mtime_ns == first
    for path in whole.iterdir():
        assert (run.folder / "structures" / path.name).read_bytes() == path.read_bytes()


def test_the_data_are_read_once_for_all_groups(tmp_path, monkeypatch):
    calls = []

    def counted(*arguments, **options):
        calls.append(arguments)
        return original(*arguments, **options)

    original = subsets.read_frames
    monkeypatch.setattr(subsets, "read_frames", counted)
    make_structures(Run.of(subset_recipe(tmp_path), tmp_path / "run"))
    assert len(calls) == 2  # the first frame alone, to see that it can be read, before anything is written


def test_a_finished_stage_needs_its_data_no_more_and_notices_others(tmp_path):
    recipe = subset_recipe(tmp_path)
    path = tmp_path / "clusters.extxyz"
    before = make_structures(Run.of(recipe, tmp_path / "run"))
    assert read_data_record(Run.of(recipe, tmp_path / "run")) == {"clusters.extxyz": sha256_file(path)}
    text = path.read_text()
    path.unlink()
    assert make_structures(Run.of(recipe, tmp_path / "run")) == before
    path.write_text(text + text)
    with pytest.raises(ConfigError, match="structures was made from another recipe or other inputs; pass --replace"):
        make_structures(Run.of(recipe, tmp_path / "run"))


def test_missing_data_leave_nothing_behind(tmp_path):
    recipe = subset_recipe(tmp_path)
    (tmp_path / "clusters.extxyz").unlink()
    with pytest.raises(UnknownNameError, match=r"no file .*clusters\.extxyz; ZOO_DATA names no folder: set it"):
        make_structures(Run.of(recipe, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_own_data_are_found_by_path_and_digest(tmp_path, monkeypatch):
    ase.io.write(tmp_path / "frames.extxyz", silicon_clusters(2), format="extxyz")
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    assert [one.place for one in subset_frames(subset())] == [f"frame {n} of frames.extxyz" for n in (0, 1)]
    own = {"path": "frames.extxyz", "format": "extxyz", "sha256": "0" * 64}
    wrong = parse(Subset, {"own": own, "division": {"by": "frame", **HALVES}}, "a subset")
    with pytest.raises(IntegrityError, match=r"frames\.extxyz has the digest [0-9a-f]{64}, expected 0{64}; fetch it"):
        next(subset_frames(wrong))


def test_the_digest_of_a_folder_is_of_its_names_and_files_but_not_of_locks(tmp_path):
    (tmp_path / "set.000").mkdir()
    (tmp_path / "set.000" / "energy.npy").write_bytes(b"energy")
    found = subsets.data_digest(tmp_path)
    (tmp_path / "lock.mdb").write_bytes(b"a reader was here")
    (tmp_path / ".hidden").write_bytes(b"")
    assert subsets.data_digest(tmp_path) == found
    (tmp_path / "set.000" / "energy.npy").rename(tmp_path / "set.000" / "force.npy")
    moved = subsets.data_digest(tmp_path)
    (tmp_path / "set.000" / "force.npy").write_bytes(b"other")
    assert len({found, moved, subsets.data_digest(tmp_path)}) == 3
    assert find_own("somebody", str(tmp_path), subsets.data_digest(tmp_path)) == tmp_path


def test_an_element_that_the_student_lacks_is_named(tmp_path):
    clusters = silicon_clusters(24)
    for cluster in clusters:
        cluster.symbols[0] = "Ge"
    with pytest.raises(ConfigError, match=r"group train holds Ge, which student\.elements lacks"):
        make_structures(Run.of(subset_recipe(tmp_path, clusters), tmp_path / "run"))


def test_equal_structures_in_two_groups_of_frames_are_refused(tmp_path):
    clusters = silicon_clusters(24)
    for number, cluster in enumerate(clusters):
        cluster.positions = clusters[0].positions
        cluster.info["smiles"] = f"{number}"
    cut = {"by": "molecule", "train": 0.5, "validation": 0.25, "test": 0.25}
    recipe = subset_recipe(tmp_path, clusters, subset={"division": cut})
    with pytest.raises(ConfigError, match=r"hold the same Si5 in two splits.*by frame"):
        make_structures(Run.of(recipe, tmp_path / "run"))


def test_a_source_is_opened_through_the_store_file_by_file(tmp_path, monkeypatch):
    for key in ("ethanol", "aspirin"):
        ase.io.write(tmp_path / f"{key}.extxyz", silicon_clusters(1), format="extxyz")
    source = subsets.get_source("rmd17").model_copy(update={"format": "extxyz"})
    monkeypatch.setattr(subsets, "get_source", lambda name: source)
    monkeypatch.setattr(subsets, "locate", lambda source, key: tmp_path / f"{key}.extxyz")
    given = {"source": "rmd17", "files": ["ethanol", "aspirin"], "division": {"by": "frame", **HALVES}}
    opened = []

    def read(path, format, *, members=None, name=None):
        opened.append((path.name, format, members))
        yield frame()

    monkeypatch.setattr(subsets, "read_frames", read)
    assert len(list(subset_frames(parse(Subset, given, "a subset")))) == 2
    assert opened == [
        ("ethanol.extxyz", "extxyz", "*/rmd17_ethanol.npz"),
        ("aspirin.extxyz", "extxyz", "*/rmd17_aspirin.npz"),
    ]
    with pytest.raises(UnknownNameError, match="rmd17 has no file 'etanol'; nearest: ethanol"):
        list(subset_frames(parse(Subset, given | {"files": ["etanol"]}, "a subset")))


def of_source(folder, name, **changes):
    """A recipe of a source in the place of the own file."""
    data = subset_data(folder, silicon_clusters(1), **changes)
    (data["structures"]["subsets"]["clusters"]).pop("own")
    data["structures"]["subsets"]["clusters"]["source"] = name
    return parse(Recipe, data, "a recipe of a source")


def test_the_terms_of_a_source_bind_without_being_asked(tmp_path, monkeypatch):
    recipe = of_source(tmp_path, "spice-2")
    assert [(one.name, one.licence) for one in data_terms(recipe)] == [
        ("clusters", "CC0-1.0"),
        ("spice-2", "CC0-1.0"),
    ]
    shared = subsets.get_source("spice-2").model_copy(update={"licence": "CC-BY-SA-4.0"})
    monkeypatch.setattr(subsets, "get_source", lambda name: shared)
    with pytest.raises(LicenceError, match=r"its data set spice-2 is CC-BY-SA-4\.0, which forbids that"):
        make_labels(Run.of(recipe, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_of_data_that_state_no_licence_a_warning_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.pipeline.make_structures", lambda run: pytest.fail("allowed"))
    with (
        pytest.warns(ZooWarning, match="data set md22 states no licence; ask its authors before"),
        pytest.raises(pytest.fail.Exception, match="allowed"),
    ):
        make_labels(Run.of(of_source(tmp_path, "md22"), tmp_path / "run"))


def test_digests_that_are_stated_need_no_data(tmp_path):
    recipe = of_source(tmp_path, "spice-2")
    known = known_digests(recipe.structures, {})
    assert known == {"spice-2/SPICE-2.0.1.hdf5": "md5:bfba2224b6540e1390a579569b475510"}
    own = subset_recipe(tmp_path).structures
    digest = sha256_file(tmp_path / "clusters.extxyz")
    assert known_digests(own, {}) == {"clusters.extxyz": f"sha256:{digest}"}
    assert data_sha256(own) == {"clusters.extxyz": digest}
    (tmp_path / "clusters.extxyz").unlink()
    assert known_digests(own, {"clusters.extxyz": digest}) == {"clusters.extxyz": f"sha256:{digest}"}
    assert known_digests(own, {}) == {"clusters.extxyz": None}


def test_a_dry_run_says_what_is_to_be_expected(tmp_path):
    def said(**changes):
        recipe = subset_recipe(tmp_path, **changes)
        (tmp_path / "clusters.extxyz").unlink()
        return estimate_text(estimate(Run.of(recipe, tmp_path / "run"), measure=False))

    assert "train          500 structures in 1 groups, 4500 atoms, about" in said(
        subset={"expected": {"frames": 1000, "atoms": 9}}
    )
    assert "train            ? structures in 1 groups, ? atoms" in said()
    group = {"count": 3, "copies": 2, "displacement": [0.1, 0.1]}
    assert "train            6 structures in 1 groups, ? atoms" in said(group=group)


def test_a_recipe_locked_to_other_data_is_refused(tmp_path):
    recipe = subset_recipe(tmp_path)
    digest = sha256_file(tmp_path / "clusters.extxyz")
    known = dict.fromkeys(("teacher_package", "structures_sha256", "labels_sha256", "zoo", "torch"), "")
    sha256 = load_teacher("stillinger-weber/teacher").weights_sha256
    lock = Lock(teacher_weights_sha256=sha256, data_sha256={"clusters.extxyz": "0" * 64}, **known)
    with pytest.raises(LabelError, match=rf"clusters\.extxyz has the digest {digest[:12]}.* locked to 0{{12}}"):
        make_structures(Run.of(recipe.model_copy(update={"lock": lock}), tmp_path / "run"))


def test_data_that_state_no_licence_forbid_nothing_and_a_teacher_that_does_not_forbids_all():
    check_terms("an/engine", "MIT", [Source("data", "md22", UNSTATED)])
    with pytest.raises(LicenceError, match="whose terms zoo does not know"):
        check_terms("an/engine", "MIT", [Source("teacher", "some/teacher", UNSTATED)])


# ------------------------------------------------------------------------------------------------------------- samples

MPTRJ = ("mptrj-random-1k", "mptrj-highest-stress-1k")


@pytest.mark.samples
@pytest.mark.parametrize(
    ("given", "counts"),
    [
        ({"space_group": "Pm-3m", "symprec": 0.01}, (8, 81)),
        ({"element": "Y"}, (25, 17)),
        ({"element": "I"}, (38, 5)),
        ({"space_group": "Pm-3m", "symprec": 0.01, "element": "Y", "max_atoms": 5}, (0, 1)),
    ],
)
def test_subsets_of_the_paper_have_their_counts_on_real_frames(given, counts, samples):
    if "space_group" in given:
        pytest.importorskip("spglib", reason="space groups need the extra data")
    for name, count in zip(MPTRJ, counts, strict=True):
        own = {"path": str(samples / "mptrj_1k" / f"{name}.xyz.gz"), "format": "extxyz"}
        data = {"own": own, "filters": given, "division": {"by": "material", **HALVES}}
        whole = parse(Subset, data, "a subset")
        assert sum(passes(one, whole.filters) for one in subset_frames(whole)) == count


@pytest.mark.samples
def test_real_frames_are_divided_by_material_and_by_molecule(samples, tmp_path):
    own = {"path": str(samples / "mptrj_1k" / "mptrj-highest-stress-1k.xyz.gz"), "format": "extxyz"}
    frames = list(subset_frames(parse(Subset, {"own": own, "division": division().model_dump()}, "a subset")))
    chosen = places(choose(subset(), SIDES, 0, frames), frames)
    materials = [{frames[number].material for number in numbers} for numbers in chosen.values()]
    assert sum(map(len, materials)) == len(set.union(*materials)) == len({one.material for one in frames})
    assert sum(map(len, chosen.values())) == 1000
    assert len(chosen["g-train"]) == pytest.approx(800, abs=60)
    paper = choose(subset("frame"), SIDES, 0, frames)
    assert len(paper["g-train"]) == pytest.approx(800, abs=40)
