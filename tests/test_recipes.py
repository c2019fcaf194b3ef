"""The recipes that come with zoo: each complete, lawful, estimated without data, and the paper's with its numbers."""

from functools import cache
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ase.data import atomic_numbers, chemical_symbols
from pydantic import TypeAdapter

from zoo.artifact import count_parameters
from zoo.data.sources import UNSTATED
from zoo.data.subsets import data_files, data_terms
from zoo.distill.label import check_teacher
from zoo.errors import MissingPackageError
from zoo.estimate import estimate, text
from zoo.gemnet_oc.network import GemNetOC
from zoo.hub.catalogue import entries
from zoo.licences import Source, check_terms
from zoo.recipe import Recipe, read_recipe, recipe_names
from zoo.run import Run
from zoo.students import StudentConfig, build_student
from zoo.teacher_facts import teacher_facts, teacher_terms, why_not
from zoo.teachers import FINE_TUNED, Teacher, load_teacher, needs_converting, stated_traits, weights_of
from zoo.teachers.jmp.config import PUBLISHED
from zoo.tensors import WithoutParameters

NAMES = recipe_names()
DESIGNS = ("gemnet-dt", "gemnet-t", "painn-dt")  # a recipe that ends with one is the paper's


def _is_brought(teacher: str) -> bool:
    """Whether no package brings the weights of a teacher, so that they are absent from an empty cache."""
    return needs_converting(teacher) or weights_of(teacher) is not None


PAPER = [name for name in NAMES if name.endswith(tuple(f"-{design}" for design in DESIGNS))]

SUBSETS = {
    "mace-off23-large": {"solvated-amino-acids", "monomers", "iodine"},
    "mace-mp-0-large": {"perovskites", "yttrium", "wide-gap"},
    "jmp-l": {"buckyball-catcher", "double-walled-nanotube"},
    "jmp-s": {"buckyball-catcher", "double-walled-nanotube"},
}

# Amin, Raja, Krishnapriyan, ICLR 2025, as their configurations have it: weights of energy, force, Hessian and gradient,
# rows a step; batch, patience, smallest learning rate, epochs; cutoff and neighbours.
GEMNET_SPICE = (5, 1e-6, 10_000, 5.0, 50)
PAINN_SPICE = (10, 5e-6, 10_000, 12.0, 50)
GEMNET_MPTRJ = (5, 1e-6, 1000, 6.0, 50)
TABLE = {
    "mace-off23-large/solvated-amino-acids-gemnet-dt": ((5, 100, 400, 5), 1, 8, *GEMNET_SPICE),
    "mace-off23-large/monomers-gemnet-dt": ((5, 100, 400, 5), 4, 8, *GEMNET_SPICE),
    "mace-off23-large/iodine-gemnet-dt": ((5, 100, 400, 5), 4, 8, *GEMNET_SPICE),
    "mace-off23-large/solvated-amino-acids-painn-dt": ((5, 100, 400, 5), 1, 4, *PAINN_SPICE),
    "mace-off23-large/monomers-painn-dt": ((5, 100, 400, 5), 4, 8, *PAINN_SPICE),
    "mace-off23-large/iodine-painn-dt": ((5, 100, 400, 5), 4, 8, *PAINN_SPICE),
    "mace-mp-0-large/perovskites-gemnet-dt": ((5, 100, 200, 0), 4, 8, *GEMNET_MPTRJ),
    "mace-mp-0-large/yttrium-gemnet-dt": ((5, 100, 200, 0), 4, 8, *GEMNET_MPTRJ),
    "mace-mp-0-large/wide-gap-gemnet-dt": ((5, 100, 200, 0), 4, 16, *GEMNET_MPTRJ),
    "mace-mp-0-large/perovskites-painn-dt": ((5, 100, 200, 0), 4, 16, 10, 5e-6, 10_000, 12.0, 20),
    "mace-mp-0-large/yttrium-painn-dt": ((5, 100, 200, 0), 4, 16, 10, 5e-6, 10_000, 12.0, 20),
    "mace-mp-0-large/wide-gap-painn-dt": ((5, 100, 200, 0), 4, 16, 10, 5e-6, 10_000, 6.0, 20),
    "jmp-l/buckyball-catcher-gemnet-dt": ((5, 100, 400, 5), 1, 1, *GEMNET_SPICE),
    "jmp-l/double-walled-nanotube-gemnet-dt": ((5, 100, 400, 5), 1, 1, *GEMNET_SPICE),
    "jmp-s/buckyball-catcher-gemnet-dt": ((5, 100, 400, 5), 1, 1, *GEMNET_SPICE),
    "jmp-s/double-walled-nanotube-gemnet-dt": ((5, 100, 400, 5), 1, 1, *GEMNET_SPICE),
    "jmp-l/buckyball-catcher-gemnet-t": ((5, 100, 400, 0), 1, 1, *GEMNET_SPICE),
    "jmp-l/double-walled-nanotube-gemnet-t": ((5, 100, 400, 0), 1, 1, *GEMNET_SPICE),
    "jmp-s/buckyball-catcher-gemnet-t": ((5, 100, 400, 0), 1, 1, *GEMNET_SPICE),
    "jmp-s/double-walled-nanotube-gemnet-t": ((5, 100, 400, 0), 1, 1, *GEMNET_SPICE),
}


def test_each_subset_of_the_paper_has_its_students_and_one_of_ours() -> None:
    assert set(PAPER) == set(TABLE)
    for family, subsets in SUBSETS.items():
        for subset in subsets:
            paper = [name for name in PAPER if name.startswith(f"{family}/{subset}-")]
            assert len(paper) == 2
            assert {f"{family}/{subset}-gemnet-dt", f"{family}/{subset}-student"} <= set(NAMES)
    assert "jmp-l/md22-student" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_valid_and_in_the_catalogue_under_its_path(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.name == name
    assert entries()[name].status == "recipe"
    assert recipe.teacher.name in entries()
    assert recipe.teacher.name.partition("/")[0] == name.partition("/")[0]
    for subset in recipe.structures.subsets.values():
        assert data_files(subset)


@pytest.mark.parametrize("name", NAMES)
def test_a_licence_follows_from_those_of_teacher_and_data(name: str) -> None:
    recipe = read_recipe(name)
    terms = data_terms(recipe)
    teacher = teacher_terms(recipe.teacher.name)
    assert teacher == [Source("teacher", recipe.teacher.name, entries()[recipe.teacher.name].licence_weights)]
    check_terms(name, recipe.licence, [*teacher, *(source for source in terms if source.licence != UNSTATED)])
    unstated = {subset.source for subset in recipe.structures.subsets.values()} & {"md22", "spice-mace-off"}
    assert any(source.licence == UNSTATED for source in terms) == bool(unstated)


@pytest.mark.parametrize("name", NAMES)
def test_an_estimate_needs_no_data_and_no_network(name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZOO_DATA", raising=False)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("socket.socket.connect", None)
    recipe = read_recipe(name)
    run = Run.of(recipe, tmp_path / "run")
    found = estimate(run, measure=False)
    lines = text(found).splitlines()
    assert lines[0] == f"{name}: {recipe.purpose}"
    twin = () if name in FINE_TUNED else ("twin",)
    assert run.stages == ("structures", "labels", "train", *twin, "evaluation", "model")
    assert [line.partition(" ")[0] for line in lines[-len(run.stages) :]] == list(run.stages)
    why = why_not(recipe.teacher.name)
    assert why is not None or not _is_brought(recipe.teacher.name)
    assert (f"missing     teacher {recipe.teacher.name}: {why}" in lines) == (why is not None)
    named = {file.name for subset in recipe.structures.subsets.values() for file in data_files(subset)}
    assert {need.name for need in found.needs} == named
    assert not any(need.here for need in found.needs)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", TABLE)
def test_the_paper_s_recipe_has_the_paper_s_numbers(name: str) -> None:
    weights, rows, batch, patience, least, epochs, cutoff, neighbors = TABLE[name]
    recipe = read_recipe(name)
    loss, training = recipe.loss, recipe.training
    assert (loss.energy, loss.force, loss.hessian, loss.gradient) == weights
    assert (loss.energy_from, loss.force_from, loss.hessian_from) == ("dataset", "dataset", "stored")
    assert loss.hessian_switch is not None
    assert (loss.hessian_switch.within, loss.hessian_switch.factor) == (0.05, 0.5)
    assert (loss.probes_per_step, recipe.labels.probes, recipe.labels.side) == (rows, "dense", "rows")
    assert (training.batch_size, training.plateau_patience, training.final_learning_rate) == (batch, patience, least)
    assert (training.epochs, training.schedule, training.plateau_factor) == (epochs, "plateau", 0.8)
    assert (training.learning_rate, training.weight_decay, training.epsilon) == (1e-3, 2e-6, 1e-7)
    assert (training.amsgrad, training.ema_decay, training.clip_norm) == (True, 0.999, 10)
    assert (training.warmup_steps, training.dtype) == (0, "float32")
    assert (recipe.student.cutoff, getattr(recipe.student, "max_neighbors", None)) == (cutoff, neighbors)


ELEMENTS = tuple(chemical_symbols[1:84])
PARAMETERS = {"gemnet-dt": 672_918, "gemnet-t": 565_073, "painn-dt": 1_029_639}


@cache
def _parameters(config: str) -> int:
    return count_parameters(build_student(TypeAdapter(StudentConfig).validate_json(config)))


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_s_student_has_the_paper_s_size(name: str) -> None:
    """What bounds its neighbourhood has no weights."""
    neighborhood = {"cutoff": 5.0, "max_neighbors": None}
    config = read_recipe(name).student.model_copy(update={"elements": ELEMENTS} | neighborhood)
    assert _parameters(config.model_dump_json()) == PARAMETERS[config.architecture]


@pytest.mark.parametrize("name", NAMES)
def test_the_paper_divides_by_frame_and_zoo_by_group(name: str) -> None:
    recipe = read_recipe(name)
    subsets = recipe.structures.subsets
    assert {subset.division.by == "frame" for subset in subsets.values()} <= {name in PAPER}
    if name in PAPER and name.startswith("mace-off23-large/"):
        sides = [
            (one.files, one.division.train, one.division.validation, one.division.test) for one in subsets.values()
        ]
        assert sides == [(("train",), 0.85, 0.15, 0), (("test",), 0, 0, 1)]
    if name in PAPER and name.startswith("mace-mp-0-large/"):
        (division,) = [subset.division for subset in subsets.values()]
        assert (division.train, division.validation, division.test) == (0.70, 0.15, 0.15)
    if name in PAPER and name.startswith("jmp-"):
        counts = {group.split: group.count for group in recipe.structures.groups}
        expected = (570, 30) if "buckyball" in name else (760, 40)
        assert (counts["train"], counts["validation"]) == expected


def test_the_filters_are_those_of_the_subsets() -> None:
    def filters(name: str) -> list[dict[str, Any]]:
        subsets = read_recipe(name).structures.subsets.values()
        return [one.filters.model_dump(exclude_defaults=True) for one in subsets]

    family = "mace-mp-0-large"
    assert filters(f"{family}/perovskites-gemnet-dt") == [{"space_group": "Pm-3m", "min_atoms": 2}]
    assert filters(f"{family}/yttrium-gemnet-dt") == [{"element": "Y"}]
    assert filters(f"{family}/wide-gap-gemnet-dt") == [{"min_band_gap": 5, "min_atoms": 2}]
    assert filters("mace-off23-large/iodine-gemnet-dt") == [{"element": "I"}] * 2
    assert filters("mace-off23-large/monomers-gemnet-dt") == [{"parts": ("DES370K Monomers",)}] * 2


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("gfn2-xtb/")])
def test_a_teacher_of_many_elements_gets_none_that_its_student_lacks(name: str) -> None:
    """SPICE has pairs of ions, such as LiI, which are neutral and hold iodine."""
    recipe = read_recipe(name)
    for subset in recipe.structures.subsets.values():
        if subset.source == "spice-1":
            assert set(subset.filters.elements or ()) == set(recipe.student.elements)


@pytest.mark.parametrize("name", [name for name in PAPER if not name.startswith("mace-off23-large/iodine")])
def test_a_student_of_the_paper_is_validated_once_an_epoch(name: str) -> None:
    recipe = read_recipe(name)
    learned = next(group for group in recipe.structures.groups if group.kind == "subset" and group.split == "train")
    subset = recipe.structures.subsets[learned.subset]
    if learned.count is None and subset.expected is None:
        return  # nobody knows how many
    frames = learned.count or (subset.expected.frames * subset.division.train if subset.expected else 0)
    assert recipe.training.validate_every == pytest.approx(frames / recipe.training.batch_size, rel=0.02)


@pytest.mark.parametrize("name", [name for name in NAMES if _is_brought(read_recipe(name).teacher.name)])
def test_a_recipe_asks_no_teacher_for_what_it_is_known_to_lack(name: str) -> None:
    recipe = read_recipe(name)
    elements = [atomic_numbers[symbol] for symbol in entries()[recipe.teacher.name].elements]
    potential: Any = SimpleNamespace(
        traits=stated_traits(recipe.teacher.name), elements=elements, element_embeddings=lambda: None
    )
    if needs_converting(recipe.teacher.name):
        with WithoutParameters():
            potential = GemNetOC(PUBLISHED[recipe.teacher.name.partition("/")[0]].network)
    check_teacher(recipe, cast(Teacher, SimpleNamespace(name=recipe.teacher.name, potential=potential)))


def test_what_cannot_be_run_has_a_recipe_of_the_same_subset_that_can() -> None:
    recipes = [read_recipe(name) for name in NAMES]
    runnable = {recipe.subset for recipe in recipes if not _is_brought(recipe.teacher.name)}
    others = {recipe.subset for recipe in recipes if _is_brought(recipe.teacher.name)}
    assert others - runnable == {"double-walled-nanotube"}  # of which GFN2-xTB labels one in minutes


OTHERS = {
    "mace-off23-large/teacher": "gfn2-xtb/teacher (GFN2-xTB; LGPL-3.0-or-later)",
    "mace-mp-0-large/teacher": "sevennet-0/teacher (PBE and PBE+U, Materials Project (MPtrj); MIT)",
}


@pytest.mark.parametrize("installed", [False, True])
@pytest.mark.parametrize("name", OTHERS)
def test_a_teacher_that_is_not_here_says_what_to_run_first_and_who_can_teach_meanwhile(
    name: str, installed: bool, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    here = {"tblite", "threadpoolctl", "sevenn", *(["mace"] if installed else [])}
    monkeypatch.setattr("zoo.teachers.families._is_found", here.__contains__)
    first = f"zoo teachers fetch {name}" if installed else "zoo teachers install mace"
    with pytest.raises(MissingPackageError) as caught:
        load_teacher(name)
    words = why_not(name)
    assert words is not None
    assert f"; run: {first}" in words
    assert words.endswith(f"; meanwhile {OTHERS[name]} can teach the same subset")
    assert str(caught.value) == f"{name} cannot be run: {words.rpartition('; meanwhile')[0]}"
    assert "\n" not in words
    here.clear()
    assert "meanwhile" not in (why_not(name) or "")


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_asks_for_no_element_that_its_teacher_does_not_know(name: str) -> None:
    recipe: Recipe = read_recipe(name)
    facts = teacher_facts(recipe.teacher.name)
    assert facts is not None
    assert set(recipe.student.elements) <= set(facts.elements)
