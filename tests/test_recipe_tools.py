"""Recipes checked beyond their form, begun from a file of frames, and compared."""

import json
import warnings
from pathlib import Path

import ase.io
import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.build import bulk
from ase.data import chemical_symbols

from recipes import frames_data, silicon_clusters, tiny_data, write_tiny
from zoo.data.frame import Frame
from zoo.data.subsets import choose, subset_frames
from zoo.errors import ConfigError, LicenceError, UnknownNameError, ZooWarning
from zoo.files import sha256_file
from zoo.recipe import read_recipe, recipe_names
from zoo.recipe_check import check_recipe, recipe_path
from zoo.recipe_diff import diff_recipes
from zoo.recipe_new import Survey, choose_division, format_of, new_recipe
from zoo.teachers import absent, load_teacher, stated_traits, teacher_names
from zoo.teachers.weights import FACTS, weights_folder

TEACHER = "stillinger-weber/teacher"
MARKS = {"gfn2": pytest.mark.xtb, "sevennet": pytest.mark.sevennet}  # by the first part of a teacher's name
DIVISION = {"by": "molecule", "train": 0.8, "validation": 0.1, "test": 0.1}


def silicon(count: int, seed: int = 0) -> list[Atoms]:
    """Cells of eight atoms, displaced."""
    random = np.random.default_rng(seed)
    cells = [bulk("Si", "diamond", a=5.43, cubic=True) for _ in range(count)]
    for atoms in cells:
        atoms.positions += random.normal(0, 0.05, atoms.positions.shape)
    return cells


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    path = tmp_path / "si.extxyz"
    ase.io.write(path, silicon(24))
    return path


def of_subset(**subset):
    """The tiny recipe with groups of one subset."""
    groups = [
        {"name": f"{split}-frames", "kind": "subset", "split": split, "subset": "some"}
        for split in ("train", "validation", "test")
    ]
    structures = {"subsets": {"some": {"division": DIVISION} | subset}, "groups": groups}
    return {"structures": structures, "loss__stress": 0}


WRONG = {
    "source": (of_subset(source="md23"), "md23", "'md23' is no data set of zoo; nearest: md22"),
    "file": (of_subset(source="md22", files=["dha", "stachose"]), "- stachose", "has no file 'stachose'"),
    "licence": (
        of_subset(source="mptrj-extxyz") | {"licence": "CC0-1.0"},
        "licence: CC0-1.0",
        "is CC0-1.0, but its data set .* is MIT, which forbids that",
    ),
    "teacher's licence": (
        of_subset(source="mptrj-extxyz") | {"teacher__name": "mace-off23-large/teacher", "student__elements": ["C"]},
        "licence: MIT",
        "is MIT, but the weights of its teacher .* are LicenseRef-ASL",
    ),
    "element of the student": ({"student__elements": ["Si", "Ge"]}, "elements:", "student.elements has Ge, which"),
    "element of a filter": (
        of_subset(source="md22", filters={"element": "I"}),
        "element: I",
        "structures.subsets.some.filters.element asks for I, which student.elements lacks",
    ),
    "formula of a filter": (of_subset(source="md22", filters={"formula": "SiO2"}), "formula: SiO2", "asks for O"),
    "small cutoff": ({"student__cutoff": 1.5}, "cutoff: 1.5", "student.cutoff is 1.5 Å, expected 3 to 12"),
    "large cutoff": ({"student__cutoff": 15.0}, "cutoff: 15.0", "student.cutoff is 15 Å"),
    "no neighbour": (
        {"structures__crystal__lattice_constant": 11.0},
        "cutoff: 4.0",
        "no atom of the crystal has a neighbour within student.cutoff, 4 Å",
    ),
    "energy": (
        {"teacher__name": "stillinger-weber/direct-teacher", "loss__stress": 0},
        "energy: 5",
        "loss.energy has a weight, but stillinger-weber/direct-teacher gives no energy; set it to 0",
    ),
    "stress": (
        {"teacher__name": "gfn2-xtb/teacher"},
        "stress: 100",
        "loss.stress has a weight, but gfn2-xtb/teacher gives no stress",
    ),
    "features": ({"labels__extras": ["features"]}, "- features", "asks for features, which stillinger-weber/teacher"),
    "side of sevennet": (
        {"teacher__name": "sevennet-0/teacher", "labels__side": "columns"},
        "side: columns",
        "the Hessian of sevennet-0/teacher is symmetric",
    ),
    "side": ({"labels__side": "columns"}, "side: columns", "the Hessian of stillinger-weber/teacher is symmetric"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_the_schema_allows_and_cannot_be_is_said_with_its_line(case, tmp_path):
    changes, where, message = WRONG[case]
    path = write_tiny(tmp_path, **changes)
    (line,) = [number for number, text in enumerate(path.read_text().splitlines(), start=1) if where in text]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZooWarning)
        found = check_recipe(path)
    (problem,) = found
    assert problem.startswith(f"{path}:{line}: ")
    with pytest.raises(ConfigError, match=message):
        raise ConfigError(problem)
    assert "\n" not in problem


def test_all_problems_are_said_at_once(tmp_path):
    path = write_tiny(tmp_path, student__cutoff=2.0, labels__extras=["features"], student__elements=["Si", "Ge"])
    found = check_recipe(path)
    assert len(found) == 3
    assert found == sorted(found, key=lambda problem: int(problem.split(":")[1]))
    path = write_tiny(tmp_path, training__steps="many", name=5, loss=...)
    assert [problem.split(": ", 1)[1] for problem in check_recipe(path)] == [
        "key 'loss' is missing",
        "'name': Input should be a valid string, got '5'",
        "'training.steps': Input should be a valid integer, got 'many'",
    ]


def test_what_is_no_recipe_is_a_problem_too(tmp_path):
    (tmp_path / "broken.yaml").write_text("name: [\n")
    for name, message in (
        (tmp_path / "broken.yaml", ":2: not valid YAML"),
        (tmp_path / "none.yaml", "no recipe file"),
        ("sevennet-0/silicone-student", "did you mean sevennet-0/silicon-student?"),
        ("../escape", "no recipe is called '../escape'"),
    ):
        (problem,) = check_recipe(name)
        assert message in problem


def test_all_shipped_recipes_pass():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZooWarning)
        problems = {name: check_recipe(name) for name in recipe_names()}
    assert len(problems) >= 4
    assert {name: found for name, found in problems.items() if found} == {}


def test_a_recipe_that_is_shipped_has_the_name_of_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.recipe_check.recipe_folder", lambda: tmp_path)
    (tmp_path / "sw").mkdir()
    path = write_tiny(tmp_path).rename(tmp_path / "sw" / "other.yaml")
    assert recipe_path("sw/other") == path
    assert check_recipe("sw/other") == [
        f"{path}:2: name is stillinger-weber/tiny-student, expected sw/other; a recipe's name is its path"
    ]


def test_unstated_terms_are_a_warning(tmp_path):
    path = write_tiny(tmp_path, **of_subset(source="md22", files=["dha"]))
    with pytest.warns(ZooWarning, match="data set md22 states no licence; ask its authors before"):
        assert check_recipe(path) == []


@pytest.mark.parametrize(
    "teacher",
    [
        pytest.param(name, marks=MARKS.get(name.partition("-")[0], ()))
        for name in teacher_names()
        if absent(name) is None
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # by which e3nn compiles
def test_what_is_known_of_teachers_is_what_they_say(teacher):
    assert stated_traits(teacher) == load_teacher(teacher).potential.traits


def own_recipe(folder: Path) -> Path:
    return write_tiny(folder, teacher__name="own/mine", teacher__dtype="float64")


def test_a_teacher_of_one_s_own_that_nobody_knows_here_leaves_checks_out_and_says_so(tmp_path):
    with pytest.warns(ZooWarning, match="own/mine is not known here: zoo label and zoo distill check its licence"):
        assert check_recipe(own_recipe(tmp_path)) == []


def test_a_teacher_of_one_s_own_is_held_to_what_was_recorded_of_it(tmp_path, monkeypatch):
    facts = {"name": "own/mine", "family": "mace", "file": "mine.model", "sha256": "0" * 64, "elements": ["C"]}
    facts |= {"licence": "LicenseRef-ASL", "level_of_theory": "PBE"}
    path = weights_folder("own/mine") / FACTS
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(facts))
    with pytest.warns(ZooWarning, match="own/mine is opened only by zoo label and zoo distill, which then check"):
        found = check_recipe(own_recipe(tmp_path))
    assert any("is MIT, but the weights of its teacher own/mine are LicenseRef-ASL" in line for line in found)
    assert any("student.elements has Si, which own/mine does not know" in line for line in found)
    assert len(found) == 2


def test_a_recipe_may_not_have_the_name_of_its_own_teacher(tmp_path):
    found = check_recipe(write_tiny(tmp_path, teacher__name="own/mine", name="own/mine"))
    assert len(found) == 1
    assert "'own/mine' is no name for an engine" in found[0]


@pytest.mark.parametrize("name", ["own/", "own/Mine", "own/a/b", "own", "mine/teacher"])
def test_what_no_teacher_can_be_called_is_an_error_that_tells_what_can(name, tmp_path):
    (found,) = check_recipe(write_tiny(tmp_path, teacher__name=name))
    assert f"no teacher is called {name!r}" in found
    assert "zoo teachers lists them, and one of your own is called own/<engine>" in found


def test_a_recipe_is_not_begun_for_a_teacher_that_nobody_knows_here(frames, tmp_path):
    with pytest.raises(UnknownNameError, match=r"own/mine .* nobody has added it here; run: zoo teachers add own/mine"):
        new_recipe("sw/mine", frames, "own/mine", output=tmp_path / "mine.yaml")


def test_who_is_computed_in_float64_is_asked_so_and_the_others_are_not(frames, tmp_path):
    asked = {
        teacher: read_recipe(new_recipe(f"sw/a{n}", frames, teacher, output=tmp_path / f"{n}.yaml").path).teacher.dtype
        for n, teacher in enumerate((TEACHER, "gfn2-xtb/teacher", "sevennet-0/teacher"))
    }
    assert asked == {TEACHER: "float64", "gfn2-xtb/teacher": "float64", "sevennet-0/teacher": "float32"}


def test_two_recipes_differ_key_by_key(tmp_path):
    data = tiny_data(training__steps=1200, labels=...)
    groups = data["structures"]["groups"]
    groups[0]["count"] = 7
    groups[1] = groups[1] | {"name": "way"}
    one, other = write_tiny(tmp_path).rename(tmp_path / "one.yaml"), tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(data))
    found = [str(difference) for difference in diff_recipes(one, other)]
    assert found[0] == "structures.groups[cells].count: 6 -> 7"
    assert found[1].startswith('structures.groups[path]: {"kind": "dynamics", "name": "path"')
    assert found[1].endswith(" -> (absent)")
    assert found[2].startswith("structures.groups[way]: (absent) -> {")
    assert found[3:] == ["labels.shard_size: 3 -> 8", "training.steps: 40 -> 1200"]
    assert diff_recipes(one, one) == []
    back = [difference.as_dict() for difference in diff_recipes(other, one)]
    assert back[0] == {"path": "structures.groups[cells].count", "first": 7, "second": 6}
    assert {key for row in back if row["path"] == "structures.groups[way]" for key in row} == {"path", "first"}


def test_the_order_of_groups_and_what_is_null_are_differences(tmp_path):
    data = tiny_data(training__batch_atoms=100)
    data["structures"]["groups"].reverse()
    one, other = write_tiny(tmp_path).rename(tmp_path / "one.yaml"), tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(data))
    assert [str(difference) for difference in diff_recipes(one, other)] == [
        'structures.groups (order): ["cells", "path", "held", "tested"] -> ["tested", "held", "path", "cells"]',
        "training.batch_atoms: null -> 100",
    ]


def test_other_architectures_are_compared(tmp_path):
    one = write_tiny(tmp_path).rename(tmp_path / "one.yaml")
    other = write_tiny(tmp_path, student={"architecture": "gemnet-t", "elements": ["Si"], "cutoff": 4.0})
    paths = {difference.path: difference for difference in diff_recipes(one, other)}
    assert str(paths["student.architecture"]) == "student.architecture: painn -> gemnet-t"
    assert paths["student.channels"].absent == "second"


def test_a_recipe_of_crystals_is_begun(frames, tmp_path):
    begun = new_recipe("sw/my-student", frames, TEACHER, output=tmp_path / "my.yaml")
    assert begun.found == [
        "24 frames of 8 atoms, periodic",
        "1 composition of Si",
        "labels: none",
        "names: none, of molecules, materials or trajectories",
    ]
    assert check_recipe(begun.path) == []
    recipe = read_recipe(begun.path)
    assert (recipe.name, recipe.subset, recipe.licence) == ("sw/my-student", "my", "MIT")
    assert (recipe.student.architecture, recipe.student.elements) == ("painn", ("Si",))
    assert recipe.loss.weights == {"energy": 5, "force": 100, "stress": 500, "hessian": 20}
    assert recipe.teacher.dtype == "float64"
    subset = recipe.structures.subsets["own"]
    assert (subset.own.path, subset.own.format) == (str(frames), "extxyz")
    assert subset.own.sha256 == sha256_file(frames)
    assert (subset.expected.frames, subset.expected.atoms) == (24, 8)
    assert (subset.division.by, subset.division.block) == ("block", 2)
    chosen = choose(subset, recipe.structures.groups, recipe.seed, subset_frames(subset))
    assert [len(chosen[f"{split}-frames"]) for split in begun.sides] == list(begun.sides.values())
    assert min(begun.sides.values()) > 0
    assert sum(begun.sides.values()) == 24
    comments = [line for line in begun.path.read_text().splitlines() if "#" in line]
    assert len(comments) > 8


def test_a_recipe_of_molecules_is_begun(tmp_path, monkeypatch):
    data = tmp_path / "data" / 'some "frames".xyz.gz'
    data.parent.mkdir()
    ase.io.write(data, silicon_clusters(30), format="extxyz")
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "data"))
    begun = new_recipe("sw/yes", data, TEACHER, output=tmp_path / "my.yaml", data_licence="CC-BY-4.0")
    assert "labels: energy of 30, forces of 30" in begun.found
    assert check_recipe(begun.path) == []
    recipe = read_recipe(begun.path)
    assert recipe.structures.subsets["own"].own.path == data.name  # found through ZOO_DATA on other machines too
    assert recipe.licence == "CC-BY-4.0"  # the data do not allow MIT
    assert [one.licence for one in recipe.structures.data] == ["CC-BY-4.0"]
    assert recipe.loss.stress == 0
    assert recipe.evaluation.dynamics_steps == 10000
    assert "force_from: dataset" in begun.path.read_text()


def test_what_knows_many_elements_counts_them_and_no_line_is_long(tmp_path):
    many = chemical_symbols[1:95]
    cells = [Atoms(symbol, cell=[3.0 + n / 10] * 3, pbc=True) for symbol in many for n in range(2)]
    ase.io.write(tmp_path / "all.extxyz", cells)
    ase.io.write(tmp_path / "ten.extxyz", [atoms for atoms in cells if set(atoms.symbols) <= set(many[:10])] * 2)
    output = tmp_path / "my.yaml"
    with pytest.warns(ZooWarning, match="does not know"):
        begun = new_recipe("sevennet-0/my-student", tmp_path / "all.extxyz", "sevennet-0/teacher", output=output)
    recipe = read_recipe(output)
    assert check_recipe(output) == []
    count = len(recipe.student.elements)
    assert count == 89
    assert recipe.purpose == f"Crystals of {count} elements, as in the frames of all.extxyz"
    assert recipe.structures.subsets["own"].filters.elements == recipe.student.elements
    lines = [line for line in output.read_text().splitlines() if str(tmp_path) not in line]
    assert max(map(len, lines)) <= 120
    assert sum(begun.sides.values()) == 2 * count
    new_recipe("sw/ten", tmp_path / "ten.extxyz", "sevennet-0/teacher", output=tmp_path / "ten.yaml")
    assert read_recipe(tmp_path / "ten.yaml").purpose.startswith("Crystals of H, He, Li, Be, B, C, N, O, F, Ne, as")


def test_a_direct_teacher_is_not_asked_for_energies(frames, tmp_path):
    begun = new_recipe("sw/direct", frames, "stillinger-weber/direct-teacher", output=tmp_path / "my.yaml")
    assert read_recipe(begun.path).loss.weights == {"force": 100, "hessian": 20}
    assert check_recipe(begun.path) == []


def test_frames_of_elements_that_the_teacher_does_not_know_are_left_out(tmp_path):
    cells = silicon(20)
    for atoms in cells[::5]:
        atoms.symbols[0] = "Ge"
    data = tmp_path / "mixed.extxyz"
    ase.io.write(data, cells)
    with pytest.warns(ZooWarning, match="does not know Ge: 4 frames of mixed.extxyz with such atoms are left out"):
        begun = new_recipe("sw/my-student", data, TEACHER, output=tmp_path / "my.yaml")
    assert sum(begun.sides.values()) == 16
    subset = read_recipe(begun.path).structures.subsets["own"]
    assert subset.filters.elements == ("Si",)
    groups = read_recipe(begun.path).structures.groups
    chosen = choose(subset, groups, 0, subset_frames(subset))
    assert [len(chosen[f"{split}-frames"]) for split in begun.sides] == list(begun.sides.values())


def test_a_teacher_that_cannot_be_run_is_told(tmp_path):
    data = tmp_path / "molecules.extxyz"
    waters = [Atoms("OH2", np.array([[0, 0, 0], [0.96, 0, 0], [0, 0.9 + 0.01 * n, 0.2]])) for n in range(9)]
    ase.io.write(data, waters)
    with pytest.warns(
        ZooWarning, match="jmp-l/teacher cannot be run: its weights are not here; run: zoo convert jmp-l --download"
    ):
        begun = new_recipe("jmp-l/water-student", data, "jmp-l/teacher", output=tmp_path / "my.yaml")
    recipe = read_recipe(begun.path)
    assert (recipe.licence, recipe.teacher.dtype) == ("CC-BY-NC-4.0", "float32")
    assert (recipe.student.elements, recipe.evaluation.dynamics_timestep) == (("H", "O"), 0.5)


def test_nothing_is_overwritten_and_nothing_half_is_left(frames, tmp_path):
    output = tmp_path / "my.yaml"
    output.write_text("mine")
    with pytest.raises(ConfigError, match="exists and is not overwritten"):
        new_recipe("sw/my-student", frames, TEACHER, output=output)
    assert output.read_text() == "mine"
    with pytest.raises(ConfigError, match="no recipe can be made of this, for its line"):
        new_recipe(TEACHER, frames, TEACHER, output=tmp_path / "other.yaml")
    with pytest.raises(ConfigError, match="licence 'MITT' is unknown"):
        new_recipe("sw/my-student", frames, TEACHER, output=tmp_path / "other.yaml", data_licence="MITT")
    carbon = tmp_path / "carbon.xyz"
    ase.io.write(carbon, [Atoms("C2", [[0, 0, 0], [0, 0, 1.2 + n / 50]]) for n in range(9)], format="extxyz")
    with pytest.warns(ZooWarning), pytest.raises(LicenceError, match="no licence is left"):
        new_recipe("jmp-l/my", carbon, "jmp-l/teacher", output=tmp_path / "other.yaml", data_licence="Apache-2.0")
    assert not (tmp_path / "other.yaml").exists()


def test_what_no_recipe_can_be_made_of_is_refused(frames, tmp_path):
    output = tmp_path / "my.yaml"
    mixed, few, strange = (tmp_path / name for name in ("mixed.xyz", "few.xyz", "strange.xyz"))
    ase.io.write(mixed, [*silicon(4), *silicon_clusters(4)], format="extxyz")
    ase.io.write(few, silicon(3), format="extxyz")
    ase.io.write(strange, [Atoms("Xe", [[0, 0, 0]])], format="extxyz")
    for name, data, teacher, kind, message in (
        ("Bad Name", frames, TEACHER, ConfigError, "is no name for an engine"),
        ("sw/my", frames, "sw/teacher", UnknownNameError, "no teacher is called 'sw/teacher'"),
        ("sw/my", tmp_path / "none.xyz", TEACHER, UnknownNameError, "there is no file"),
        ("sw/my", mixed, TEACHER, ConfigError, r"frames of several kinds \(not periodic, periodic\)"),
        ("sw/my", few, TEACHER, ConfigError, "3 frames make 2 groups of what is alike, too few"),
        ("sw/my", strange, TEACHER, ConfigError, "no frames but frames with Xe, which"),
    ):
        with pytest.raises(kind, match=message):
            new_recipe(name, data, teacher, output=output)
    with pytest.raises(ConfigError, match=r"does not end with \.yaml"):
        new_recipe("sw/my", frames, TEACHER, output=tmp_path / "my.txt")
    assert not output.exists()


@pytest.mark.parametrize(
    ("key", "count", "by"),
    [
        ("molecule", 12, "molecule"),
        ("material", 12, "material"),
        ("trajectory", 6, "trajectory"),
        ("molecule", 2, "block"),
    ],
)
def test_what_is_alike_stays_together(key, count, by):
    frames = [Frame(Atoms("Si"), f"frame {n}", **{key: f"name {n % count}"}, index=n) for n in range(120)]
    division, sides = choose_division(frames)
    assert division.by == by
    assert division.block == (3 if by == "block" else None)
    assert sum(sides.values()) == 120
    assert min(sides.values()) >= 0.5 * division.test * 120


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.extxyz", "extxyz"),
        ("a.xyz.gz", "extxyz"),
        ("a.db", "ase-db"),
        ("a.aselmdb", "lmdb"),
        ("a.npz", "sgdml"),
        ("phonopy_params.yaml.xz", "phonopy"),
    ],
)
def test_names_tell_formats(name, form):
    assert format_of(Path(name)) == form


def test_a_name_that_tells_no_format_is_asked_for(tmp_path):
    with pytest.raises(ConfigError, match="give --format, one of extxyz, ase-db"):
        format_of(Path("frames.dat"))
    assert format_of(tmp_path) == "deepmd"


def test_frames_of_a_file_by_number_are_checked_too(tmp_path):
    data = frames_data(tmp_path)
    for group in data["structures"]["groups"]:
        group["element"] = "Ge"
    path = tmp_path / "frames.yaml"
    path.write_text(yaml.safe_dump(data))
    found = check_recipe(path)
    assert len(found) == 3
    assert "structures.groups.0.element asks for Ge" in found[0]


def test_what_the_file_says_of_its_frames_is_told():
    survey = Survey()
    for number in range(6):
        frame = Frame(Atoms("Si"), f"frame {number}", molecule="one", trajectory=f"path {number % 2}", index=number)
        survey.see(frame, {"Si"})
    assert survey.lines() == [
        "6 frames of 1 atom, not periodic",
        "1 composition of Si",
        "labels: none",
        "names: 1 molecule, 2 trajectories",
    ]
