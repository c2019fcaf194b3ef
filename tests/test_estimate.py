"""What a recipe would take: counted where data are here, about where they are not, and never a guess unsaid."""

import gzip
import importlib.util
import lzma
import re
import tarfile
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase.neighborlist import neighbor_list

import zoo.estimate
from recipes import frames_data, frames_recipe, silicon_clusters, tiny_data, tiny_recipe
from zoo.config import parse
from zoo.estimate import Count, Estimate, Rate, estimate, text
from zoo.pipeline import make_labels
from zoo.recipe import Recipe, read_recipe
from zoo.run import STAGES, Run
from zoo.teachers import absent

MD22 = {"source": "md22", "files": ["buckyball-catcher"]}
DIVISION = {"by": "frame", "train": 0.5, "validation": 0.25, "test": 0.25}


@pytest.fixture(autouse=True)
def nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("socket.socket.connect", None)


def subset_recipe(folder: Path, subset: dict[str, Any], counts: tuple[Any, ...] = (None, None, None), **changes: Any):
    """The tiny recipe of molecules, of a subset."""
    groups: list[dict[str, Any]] = [
        {"name": split, "kind": "subset", "split": split, "subset": "all"} | ({} if count is None else {"count": count})
        for split, count in zip(("train", "validation", "test"), counts, strict=True)
    ]
    structures = {"subsets": {"all": {"division": DIVISION} | subset}, "groups": groups}
    data = frames_data(folder, structures=structures, **changes)
    return parse(Recipe, data, "a tiny recipe of a subset")


def own(folder: Path, count: int = 24) -> dict[str, Any]:
    """A file of the user's own, of clusters of five atoms."""
    path = folder / "data" / "own.xyz"
    path.parent.mkdir(exist_ok=True)
    ase.io.write(path, silicon_clusters(count), format="extxyz")
    return {"own": {"path": "own.xyz", "format": "extxyz"}}


def of(recipe: Recipe, folder: Path, measure: bool = False) -> Estimate:
    return estimate(Run.of(recipe, folder / "run"), measure=measure)


def test_what_is_made_is_counted_and_nothing_is_written(tmp_path: Path) -> None:
    found = of(tiny_recipe(), tmp_path)
    assert found.splits["train"] == Count(9, 72, 9 * 64, exact=True)
    assert found.splits["test"] == Count(2, 32, 2 * 256, exact=True)
    assert (found.products, found.moves, found.steps) == (2 * 13, 15, 40)
    said = text(found)
    assert "train            9 structures in 2 groups, 72 atoms\n" in said
    assert "labels          26 Hessian products (rademacher), 15 steps of teacher dynamics" in said
    assert "rate unknown: not measured" in said
    assert said.count("to do") == len(STAGES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("probes", ["rademacher", "gaussian", "rows", "dense", "none"])
def test_labels_take_as_many_bytes_as_are_said(tmp_path: Path, probes: str) -> None:
    changes = {"loss__hessian": 0} if probes == "none" else {}
    recipe = tiny_recipe(labels__probes=probes, labels__shard_size=20, **changes)
    found = of(recipe, tmp_path).label_bytes
    files = list(make_labels(Run.of(recipe, tmp_path / "run")).glob("*/*.safetensors"))
    headers = sum(8 + int.from_bytes(path.read_bytes()[:8], "little") for path in files)
    ends = 16 * len(files)  # one more offset than structures, twice
    assert found == sum(path.stat().st_size for path in files) - headers - ends


def test_what_is_here_is_counted(tmp_path: Path) -> None:
    found = of(subset_recipe(tmp_path, own(tmp_path)), tmp_path)
    assert sum(count.structures or 0 for count in found.splits.values()) == 24
    assert all(count.exact and count.atoms == 5 * (count.structures or 0) for count in found.splits.values())
    (need,) = found.needs
    assert (need.name, need.here, need.bytes) == ("own.xyz", True, (tmp_path / "data" / "own.xyz").stat().st_size)
    assert "data        own.xyz, " in text(found)
    assert ": here\n" in text(found)


def test_of_what_is_not_all_taken_the_atoms_are_about(tmp_path: Path) -> None:
    count = of(subset_recipe(tmp_path, own(tmp_path), (4, 2, 2)), tmp_path).splits["train"]
    assert count == Count(4, 20, 100, exact=False)


def test_when_the_time_is_up_the_rest_is_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.estimate.counts.COUNTING_SECONDS", -1.0)
    subset = own(tmp_path) | {"expected": {"frames": 1000, "atoms": 7}}
    train = of(subset_recipe(tmp_path, subset), tmp_path).splits["train"]
    assert train == Count(500, 2500, 12500, exact=False), "the size of what was seen, the number of what is expected"


def test_what_is_not_here_is_what_the_recipe_expects(tmp_path: Path) -> None:
    subset = MD22 | {"expected": {"frames": 100, "atoms": 10}}
    found = of(subset_recipe(tmp_path, subset, (None, 7, None)), tmp_path)
    assert found.splits["train"] == Count(50, 500, 5000, exact=False)
    assert found.splits["validation"] == Count(7, 70, 700, exact=False)
    (need,) = found.needs
    assert str(need) == (
        "md22/md22_buckyball-catcher.npz, size unknown, from sgdml.org, LicenseRef-unstated: missing, "
        "zoo data fetch md22 --file buckyball-catcher"
    )
    assert re.search(r"train +50 structures in 1 groups, 500 atoms, about\n", text(found))


def test_what_the_source_states_is_expected_too(tmp_path: Path) -> None:
    assert of(subset_recipe(tmp_path, MD22), tmp_path).splits["train"] == Count(3051, 3051 * 148, 3051 * 148**2, False)
    filtered = of(subset_recipe(tmp_path, MD22 | {"filters": {"max_atoms": 200}}), tmp_path).splits["train"]
    assert filtered == Count(None, None, None, False), "nobody knows what the filter leaves"


def test_nothing_is_made_up(tmp_path: Path) -> None:
    found = of(subset_recipe(tmp_path, {"source": "mptrj-json", "filters": {"element": "Si"}}), tmp_path)
    assert (found.products, found.label_bytes, found.label_hours) == (None, None, None)
    said = text(found)
    assert re.search(r"train +\? structures in 1 groups, \? atoms\n", said)
    assert re.search(r"\? energies with forces, \? bytes on disk; rate unknown: not measured", said)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "md22_buckyball-catcher.npz").write_bytes(b"no archive")
    found = of(subset_recipe(tmp_path, MD22), tmp_path, measure=True)
    assert found.needs[0].here
    assert found.splits["train"].structures == 3051
    assert any("md22_buckyball-catcher.npz" in line for line in found.missing)


def test_frames_of_files_are_counted_and_what_is_missing_is_said(tmp_path: Path) -> None:
    data = frames_data(tmp_path, labels__probes="dense")
    recipe = parse(Recipe, data, "a tiny recipe")
    found = of(recipe, tmp_path)
    assert found.splits["train"] == Count(6, 30, 150, exact=True)
    assert found.products == 15 * 12
    (tmp_path / "clusters.xyz.gz").unlink()
    lines = text(of(recipe, tmp_path)).splitlines()
    assert "train            6 structures in 1 groups, ? atoms, about" in lines
    assert any(re.match(r"missing +group learned: no file .*clusters\.xyz\.gz", line) for line in lines)


def test_frames_that_several_groups_displace_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = frames_data(tmp_path)
    for group, copies in zip(data["structures"]["groups"], (3, 1, 2), strict=True):
        group |= {"start": 0, "count": 4, "copies": copies, "displacement": [0.01, 0.1], "shared": True}
    reads = []
    original = zoo.estimate.counts.frames
    monkeypatch.setattr("zoo.estimate.counts.frames", lambda *given: reads.append(1) or original(*given))
    counts = of(parse(Recipe, data, "a tiny recipe"), tmp_path).splits
    assert [count.structures for count in counts.values()] == [12, 4, 8]
    assert counts["train"] == Count(12, 60, 300, exact=True)
    assert len(reads) == 1


def test_of_a_large_file_of_frames_only_a_few_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.estimate.needs._LARGE", 0)
    monkeypatch.setattr("zoo.estimate.counts._FEW", 2)
    recipe = parse(Recipe, frames_data(tmp_path), "a tiny recipe")
    assert of(recipe, tmp_path).splits["train"] == Count(6, 30, 150, exact=False)


def test_a_teacher_is_asked_about_one_structure(tmp_path: Path) -> None:
    found = of(tiny_recipe(), tmp_path, measure=True)
    rate = found.rate
    assert rate.atoms == 8
    assert rate.call is not None
    assert 0 < rate.call < 5
    assert rate.step is not None
    assert rate.memory is not None
    assert rate.memory > 2**26
    said = text(found)
    assert re.search(r"[\d.e-]+ s a call and [\d.e-]+ s a product for 8 atoms, .* in all\n", said)
    assert re.search(r"s a structure of 8 atoms, about .* in all\n", said)
    assert list(tmp_path.iterdir()) == []


RATE = Rate(atoms=8, call=0.8, product=1.6, step=0.4)


@pytest.mark.parametrize(("probes", "products"), [("rademacher", 2 * 136), ("dense", 3 * 1600), ("none", 0)])
def test_hours_are_the_rate_times_the_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probes: str, products: int
) -> None:
    """9 cells of 8 atoms and 4 of 16 are 136 atoms; 15 steps of dynamics move 8 each."""
    monkeypatch.setattr("zoo.estimate.measured", lambda run, sample, size: RATE)
    changes = {"loss__hessian": 0} if probes == "none" else {}
    found = of(tiny_recipe(labels__probes=probes, **changes), tmp_path, measure=True)
    assert found.label_hours == pytest.approx((0.1 * (136 + 15 * 8) + 0.2 * products) / 3600)
    assert found.training_hours == pytest.approx(2 * 40 * 4 * 0.4 * (136 / 13 / 8) / 3600)


def test_an_element_that_the_student_lacks_is_told(tmp_path: Path) -> None:
    """What check_elements would say of the group; the step is not measured, for the student has no place for it."""
    subset = own(tmp_path)
    clusters = silicon_clusters(24)
    for atoms in clusters:
        atoms.numbers[0] = 14 if atoms is clusters[-1] else 32
    ase.io.write(tmp_path / "data" / "own.xyz", clusters, format="extxyz")
    found = of(subset_recipe(tmp_path, subset), tmp_path, measure=True)
    assert found.rate.step is None
    assert "group train holds Ge, which student.elements lacks; add what is missing there" in "".join(found.missing)
    assert "rate unknown: student.elements lacks Ge of the structure to measure on\n" in text(found)
    assert "Ge, and this potential has parameters for Si alone)" in found.rate.unknown


@pytest.mark.parametrize("learned", [True, False])
def test_frames_that_state_a_charge_are_told_where_a_student_learns_from_them(tmp_path: Path, learned: bool) -> None:
    subset = own(tmp_path)
    clusters = silicon_clusters(24)
    for atoms in clusters:
        atoms.info["charge"] = 1
    ase.io.write(tmp_path / "data" / "own.xyz", clusters, format="extxyz")
    changes = (
        {} if learned else {"loss": {"energy": 5, "force": 100, "energy_from": "dataset", "force_from": "dataset"}}
    )
    missing = " ".join(of(subset_recipe(tmp_path, subset, **changes), tmp_path).missing)
    told = re.search(
        r"group train: of (\d+) frames that it is taken from, \1 cannot be learned from, the first", missing
    )
    assert (told is not None, "cannot be learned from" in missing) == (learned, learned)
    neutral = of(subset_recipe(tmp_path, subset | {"filters": {"charge": 0}}), tmp_path)
    assert "cannot be learned from" not in " ".join(neutral.missing)


def test_a_filter_that_nothing_passes_is_told(tmp_path: Path) -> None:
    subset = own(tmp_path) | {"filters": {"max_atoms": 4}, "expected": {"frames": 1000, "atoms": 7}}
    found = of(subset_recipe(tmp_path, subset), tmp_path)
    assert found.splits["train"] == Count(0, 0, 0, exact=True)
    assert found.missing == (
        "none of the 24 frames of subset all passes its filters; loosen structures.subsets.all.filters",
    )


def test_a_filter_on_what_no_frame_says_is_told(tmp_path: Path) -> None:
    recipe = subset_recipe(tmp_path, own(tmp_path) | {"filters": {"min_band_gap": 1}})
    assert "no frame of it has a band gap, which its filters ask for" in " ".join(of(recipe, tmp_path).missing)


def test_a_file_with_another_digest_is_told(tmp_path: Path) -> None:
    data = own(tmp_path)
    data["own"]["sha256"] = "0" * 64
    missing = of(subset_recipe(tmp_path, data), tmp_path).missing
    assert any("has the digest" in line and "expected 000" in line for line in missing)


def test_what_the_teacher_refuses_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "data" / "own.xyz"
    data = own(tmp_path)
    copper = silicon_clusters(24)
    for atoms in copper:
        atoms.numbers[:] = 29
    ase.io.write(path, copper, format="extxyz")
    found = of(subset_recipe(tmp_path, data, student__elements=["Cu"]), tmp_path, measure=True)
    assert any(
        line.startswith("teacher stillinger-weber/teacher: the teacher cannot run here") for line in found.missing
    )


def test_a_group_that_asks_for_more_than_there_is_is_told(tmp_path: Path) -> None:
    found = of(subset_recipe(tmp_path, own(tmp_path), (23, None, 1)), tmp_path)
    count = found.splits["train"].structures
    assert found.splits["train"].exact
    assert found.missing == (
        f"group train asks for 23 frames, but the train side of subset all has {count} of 24; lower count, or raise "
        "structures.subsets.all.division.train",
    )


def test_a_group_that_nothing_falls_to_is_told(tmp_path: Path) -> None:
    division = {"by": "block", "block": 100, "train": 0.98, "validation": 0.01, "test": 0.01}
    found = of(subset_recipe(tmp_path, own(tmp_path) | {"division": division}), tmp_path)
    assert [count.structures for count in found.splits.values()] == [24, 0, 0]
    assert [line.partition(";")[0] for line in found.missing] == [
        f"group {split} is empty: none of the 24 frames of subset all falls to {split}"
        for split in ("validation", "test")
    ]


def test_what_was_not_seen_as_a_whole_is_not_said_to_lack_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoo.estimate.counts.COUNTING_SECONDS", -1.0)
    assert of(subset_recipe(tmp_path, own(tmp_path), (900, 900, 900)), tmp_path).missing == ()


def test_without_a_structure_the_student_is_measured_on_one_that_is_made_up(tmp_path: Path) -> None:
    changes = {"teacher__name": "mace-mp-0-large/teacher", "name": "mace-mp-0-large/tiny-student"}
    subset = MD22 | {"expected": {"frames": 100, "atoms": 10}}
    found = of(subset_recipe(tmp_path, subset, **changes), tmp_path, measure=True)
    assert (found.rate.call, found.rate.made_up) == (None, 10)
    assert found.training_hours is not None
    said = text(found)
    assert "on disk; rate unknown: the teacher cannot run here\n" in said
    assert re.search(r"[\d.e-]+ s a made-up structure of 10 atoms, about .* in all\n", said)
    assert re.search(r"memory +[\d.]+ GiB for a batch of at most 512 atoms, without the teacher; larger", said)


def test_where_not_even_a_size_is_known_neither_rate_is(tmp_path: Path) -> None:
    unknown = {"source": "mptrj-json", "filters": {"element": "Si"}}
    rate = of(subset_recipe(tmp_path, unknown), tmp_path, measure=True).rate
    assert (rate.unknown, rate.no_step) == ("no structure was found here", "no structure was found here")
    assert rate.memory is None


@pytest.mark.parametrize("size", [1, 2, 13, 64, 370])
def test_what_is_made_up_is_a_structure(size: int) -> None:
    atoms = zoo.estimate.rates._made_up(["H", "C"], size)
    assert len(atoms) == min(size, 64)
    assert atoms.pbc.all() == (size == 370)
    assert set(atoms.symbols) <= {"H", "C"}
    lengths = neighbor_list("d", atoms, 3.5)
    assert size == 1 or len(lengths) >= len(atoms)
    assert lengths.min(initial=np.inf) > 0.9


def test_of_a_large_structure_no_step_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of GemNet on hundreds of atoms takes all memory; a made-up structure takes its place."""
    monkeypatch.setattr("zoo.estimate.rates._STEP_ATOMS", 4)
    monkeypatch.setattr("zoo.estimate.rates._MADE_SIDE", 1)
    found = of(frames_recipe(tmp_path), tmp_path, measure=True)
    rate = found.rate
    assert (rate.atoms, rate.made_up) == (5, 1)
    assert rate.call is not None
    assert rate.step is not None
    assert found.training_hours == pytest.approx(2 * 40 * 4 * rate.step * 5 / 3600)


@pytest.mark.parametrize("name", ["mace-off23-large/monomers-gemnet-dt", "mace-off23-large/monomers-painn-dt"])
def test_students_with_parameters_that_are_not_trained_are_measured(tmp_path: Path, name: str) -> None:
    recipe = read_recipe(name)
    assert zoo.estimate.rates._time_step(recipe, zoo.estimate.rates._made_up(recipe.student.elements, 4)) > 0


def test_data_that_are_not_here_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = {"source": "md22", "files": ["dha", "buckyball-catcher"]}
    assert (
        "data md22: zoo data fetch md22 --file dha --file buckyball-catcher"
        in of(subset_recipe(tmp_path, two), tmp_path).missing
    )
    assert of(subset_recipe(tmp_path, {"source": "md22"}), tmp_path).missing == ("data md22: zoo data fetch md22",)
    mine = {"own": {"path": "mine.xyz", "format": "extxyz"}}
    original = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "requests" else original(name))
    assert of(subset_recipe(tmp_path, mine), tmp_path).missing == (
        "data mine.xyz: correct its path, or set ZOO_DATA to the folder that holds it",
    )
    package = "data: package requests is not installed; run: pip install requests"
    assert package in of(subset_recipe(tmp_path, MD22), tmp_path).missing
    assert package not in of(subset_recipe(tmp_path, own(tmp_path)), tmp_path).missing


def test_a_large_archive_is_left_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of extended XYZ that is compressed the first frame comes at once; of an archive what lies before it, first."""
    monkeypatch.setattr("zoo.estimate.needs._LARGE", 0)
    subset = own(tmp_path)
    plain = tmp_path / "data" / "own.xyz"
    for mode, seen, said in (("gz", 24, "here"), ("tar", 0, "here, too large an archive to be counted")):
        place = tmp_path / "data" / f"own.{mode}"
        if mode == "gz":
            place.write_bytes(gzip.compress(plain.read_bytes()))
        else:
            with tarfile.open(place, "w:bz2") as archive:
                archive.add(plain, "own.xyz")
        found = of(subset_recipe(tmp_path, {"own": subset["own"] | {"path": place.name}}), tmp_path)
        assert sum(count.structures or 0 for count in found.splits.values()) == seen
        assert str(found.needs[0]).endswith(f": {said}")
    (tmp_path / "arrays.npz.xz").write_bytes(lzma.compress(b"arrays"))
    assert zoo.estimate.needs.is_slow(tmp_path / "arrays.npz.xz", "sgdml")


def test_epochs_are_steps_of_the_structures_there_are(tmp_path: Path) -> None:
    recipe = tiny_recipe(training__steps=..., training__epochs=10, training__warmup_steps=0)
    assert of(recipe, tmp_path).steps == 10 * (9 // 4)
    unknown = {"source": "mptrj-json", "filters": {"element": "Si"}}
    changes = {"training__steps": ..., "training__epochs": 10, "training__warmup_steps": 0}
    assert of(subset_recipe(tmp_path, unknown, **changes), tmp_path).steps is None


def test_a_teacher_that_cannot_run_here_has_no_rate(tmp_path: Path) -> None:
    recipe = subset_recipe(
        tmp_path, own(tmp_path), teacher__name="mace-mp-0-large/teacher", name="mace-mp-0-large/tiny-student"
    )
    found = of(recipe, tmp_path, measure=True)
    assert found.label_hours is None
    assert found.training_hours is not None
    said = text(found)
    told = absent("mace-mp-0-large/teacher")
    assert told is not None
    first = told.partition(";")[0]
    assert f"rate unknown: the teacher cannot run here (mace-mp-0-large/teacher cannot be run: {first})" in said
    assert f"missing     teacher mace-mp-0-large/teacher: {told}" in said


def test_packages_that_are_not_installed_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    missing = of(read_recipe("sevennet-0/perovskites-student"), tmp_path).missing
    assert f"teacher sevennet-0/teacher: {absent('sevennet-0/teacher')}" in missing
    assert any("the package sevenn is not installed; run: zoo teachers install sevennet" in line for line in missing)
    assert "subset perovskites: package spglib is not installed; run: pip install spglib" in missing
    missing = of(read_recipe("gfn2-xtb/monomers-student"), tmp_path).missing
    assert "subset monomers: package h5py is not installed; run: pip install h5py" in missing


def test_terms_that_forbid_the_licence_are_missing(tmp_path: Path) -> None:
    data = tiny_data(name="jmp-l/tiny-student", teacher__name="jmp-l/teacher", licence="MIT")
    (line,) = [line for line in of(parse(Recipe, data, "a recipe"), tmp_path).missing if "forbids" in line]
    assert line.startswith("jmp-l/tiny-student is MIT, but the weights of its teacher jmp-l/teacher are CC-BY-NC-4.0")


def test_a_source_that_there_is_not_is_missing(tmp_path: Path) -> None:
    for subset, words in (
        ({"source": "md23"}, "'md23' is no data set of zoo; nearest: md22"),
        ({"source": "md22", "files": ["nanotube"]}, "md22 has no file 'nanotube'"),
    ):
        found = of(subset_recipe(tmp_path, subset), tmp_path)
        assert any(words in line for line in found.missing)
        assert found.splits["train"].structures is None


def test_exploration_is_told(tmp_path: Path) -> None:
    recipe = tiny_recipe(exploration={"kind": "dynamics", "rounds": 2, "budget": 5})
    assert "exploration     10 structures at most, 5 in each of 2 rounds of dynamics" in text(of(recipe, tmp_path))


def test_the_standing_of_stages_is_told(tmp_path: Path) -> None:
    make_labels(Run.of(tiny_recipe(), tmp_path / "run"))
    lines = text(of(tiny_recipe(), tmp_path)).splitlines()
    assert "labels      done" in lines
    assert "train       to do" in lines
    other = tiny_recipe(labels__probes_per_structure=3)
    lines = text(of(other, tmp_path)).splitlines()
    assert "structures  done" in lines
    assert "labels      made from another recipe: refused, see --replace" in lines
    replaced = zoo.estimate.estimate(Run.of(other, tmp_path / "run", replace=True), measure=False)
    assert "labels      made from another recipe: will be deleted and made anew" in replaced.standing


@pytest.mark.samples
def test_yttrium_of_the_sample_is_counted(samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_DATA", str(samples))
    monkeypatch.setattr("zoo.estimate.counts.COUNTING_SECONDS", 60.0)
    subset = {"own": {"path": "mptrj_1k/mptrj-random-1k.xyz.gz", "format": "extxyz"}, "filters": {"element": "Y"}}
    counts = of(subset_recipe(tmp_path, subset), tmp_path).splits.values()
    assert sum(count.structures or 0 for count in counts) == 25
    assert all(count.exact for count in counts)
