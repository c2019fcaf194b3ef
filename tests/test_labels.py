"""Labels on disk: exact, resumable, and refused where they do not belong."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from ase.build import bulk
from rich_teacher import Rich, teacher_of
from safetensors import safe_open

from recipes import tiny_recipe
from zoo.data.labels import Labels, draw_probes, stored_probes
from zoo.data.structures import rattled, structure_digest
from zoo.distill.label import label_plan, label_structures
from zoo.errors import ConfigError, DivergedError, DomainError, IntegrityError, LabelError
from zoo.neighbors import build_graph
from zoo.recipe import LabelsSection
from zoo.teachers import load_teacher


@pytest.fixture(scope="module")
def structures():
    recipe = tiny_recipe()
    return [
        atoms
        for group in recipe.structures.groups
        if group.kind == "rattled"
        for atoms in rattled(recipe.structures.crystal, group, recipe.seed)
    ]


@pytest.fixture(scope="module")
def teacher():
    return load_teacher("stillinger-weber/teacher", dtype=torch.float64)


def plan_of(structures, teacher, **section):
    return label_plan(structures, teacher, LabelsSection(**{"shard_size": 3} | section), 7, "float64")


def digests(structures):
    return [structure_digest(atoms) for atoms in structures]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def labelled(structures, teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    label_structures(folder, structures, teacher, plan_of(structures, teacher))
    return folder


KINDS = ["rademacher", "gaussian", "rows", "dense", "none"]


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_what_the_teacher_says(kind, structures, teacher, tmp_path):
    labels = label_structures(tmp_path, structures, teacher, plan_of(structures, teacher, probes=kind))
    assert len(labels) == len(structures)
    for atoms, label in zip(structures, labels, strict=True):
        graph = build_graph(atoms, teacher.potential.cutoff)
        answer = teacher.potential.predict(graph, stress=True)
        hessian = teacher.potential.hessian(graph)
        torch.testing.assert_close(label.energy, answer.energy[0])
        torch.testing.assert_close(label.forces, answer.forces)
        torch.testing.assert_close(label.stress, answer.stress[0])
        flat = label.probes.double().flatten(1)  # (probes, 3 * atoms)
        assert len(flat) == {"dense": 3 * len(atoms), "none": 0}.get(kind, 2)
        torch.testing.assert_close(label.hessian_products.flatten(1), flat @ hessian)
        if kind == "dense":
            torch.testing.assert_close(label.hessian_products.flatten(1), hessian)


def test_structures_of_different_sizes_share_a_shard(structures, teacher, tmp_path):
    """Each has as many rows of its dense Hessian as coordinates, and gets its own back, whatever stands before it."""
    mixed = [structures[0], structures[-1], bulk("Si", "diamond", a=5.5), structures[1]]
    assert len({len(atoms) for atoms in mixed}) == 3
    for kind in KINDS:
        plan = plan_of(mixed, teacher, probes=kind, shard_size=4)
        labels = list(label_structures(tmp_path / kind, mixed, teacher, plan))
        for atoms, label in zip(mixed, labels, strict=True):
            alone = plan_of([atoms], teacher, probes=kind)
            (expected,) = label_structures(tmp_path / kind / label_name(atoms), [atoms], teacher, alone)
            for one, two in zip(vars(label).values(), vars(expected).values(), strict=True):
                assert (one is None and two is None) or torch.equal(one, two)


def label_name(atoms):
    return structure_digest(atoms)[:8]


@pytest.mark.parametrize("extras", [("atomic_energies",), ("features",), ("atomic_energies", "features")])
def test_extras_are_stored_where_they_are_asked_for(extras, structures, tmp_path):
    teacher = teacher_of(Rich())
    mixed = [structures[0], structures[-1], structures[1]]
    labels = label_structures(tmp_path, mixed, teacher, plan_of(mixed, teacher, extras=extras, shard_size=2))
    for atoms, label in zip(mixed, labels, strict=True):
        answer = teacher.potential.predict(build_graph(atoms, teacher.potential.cutoff), features=True)
        for name in ("atomic_energies", "features"):
            if name in extras:
                assert torch.equal(getattr(label, name), getattr(answer, name))
            else:
                assert getattr(label, name) is None
        prediction = label.prediction()
        assert prediction.energy.shape == (1,)
        assert prediction.stress.shape == (1, 3, 3)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # forward mode
@pytest.mark.parametrize("side", ["rows", "columns", "symmetric"])
def test_the_side_of_a_direct_teacher_is_that_of_the_plan(side, structures, tmp_path):
    teacher = load_teacher("stillinger-weber/direct-teacher", dtype=torch.float64)
    for forward in (False, True) if side == "columns" else (False,):
        plan = plan_of(structures[:1], teacher, probes="dense", side=side)
        folder = tmp_path / str(forward)
        (label,) = label_structures(folder, structures[:1], teacher, plan, forward_mode=forward)
        rows = teacher.potential.hessian(build_graph(structures[0], teacher.potential.cutoff))
        assert (rows - rows.t()).abs().max() > 1e-3
        expected = {"rows": rows, "columns": rows.t(), "symmetric": (rows + rows.t()) / 2}[side]
        torch.testing.assert_close(label.hessian_products.flatten(1), expected)
        assert label.energy.isnan()


def test_rows_are_distinct_rows_of_the_hessian(structures, teacher):
    plan = plan_of(structures, teacher, probes="rows", probes_per_structure=24)
    probes = stored_probes(plan, plan.structures[0], len(structures[0])).flatten(1)
    assert torch.equal(probes.sum(dim=0), torch.ones(24, dtype=torch.int64))
    assert not torch.equal(probes, torch.eye(24, dtype=torch.int8))


def test_each_row_is_drawn_as_often_as_the_others():
    """2000 draws of 4 of 12 rows; five standard deviations either way."""
    random = torch.Generator().manual_seed(0)
    counts = sum(draw_probes("rows", 4, 4, random).flatten(1).sum(dim=0) for _ in range(2000)).double()
    expected = 2000 * 4 / 12
    assert (counts - expected).abs().max() < 5 * (expected * (1 - 4 / 12)) ** 0.5


def test_probes_are_random_signs_that_depend_on_the_structure_alone(structures, teacher):
    plan = plan_of(structures, teacher)
    shorter = plan_of(structures[1:], teacher)
    probes = stored_probes(plan, plan.structures[1], 8)
    assert set(probes.unique().tolist()) == {-1, 1}
    assert torch.equal(probes, stored_probes(shorter, shorter.structures[0], 8))
    assert not torch.equal(probes, stored_probes(plan, plan.structures[0], 8))


def test_gaussian_probes_are_normal_and_stored_exactly(structures, teacher, tmp_path):
    plan = plan_of(structures[:2], teacher, probes="gaussian", probes_per_structure=100)
    for structure, label in zip(
        plan.structures, label_structures(tmp_path, structures[:2], teacher, plan), strict=True
    ):
        assert label.probes.dtype == torch.float32
        assert torch.equal(label.probes, stored_probes(plan, structure, 8))
        assert abs(label.probes.mean()) < 0.1
        assert abs(label.probes.var() - 1) < 0.15


def test_too_many_rows_are_refused(structures, teacher, tmp_path):
    plan = plan_of(structures, teacher, probes="rows", probes_per_structure=25)
    with pytest.raises(LabelError, match="25 rows asked of a Hessian that has 24"):
        label_structures(tmp_path, structures, teacher, plan)


def test_labels_of_another_plan_are_refused(labelled, structures, teacher):
    with pytest.raises(LabelError, match="probes_per_structure 2, not 4"):
        label_structures(labelled, structures, teacher, plan_of(structures, teacher, probes_per_structure=4))
    with pytest.raises(LabelError, match="other structures"):
        label_structures(labelled, structures[::-1], teacher, plan_of(structures[::-1], teacher))
    other = plan_of(structures, teacher).model_copy(update={"weights_sha256": "0" * 64})
    with pytest.raises(LabelError, match="weights_sha256"):
        label_structures(labelled, structures, teacher, other)


def test_labels_of_an_older_version_are_refused(labelled, structures, teacher, tmp_path):
    shutil.copytree(labelled, tmp_path / "labels")
    plan = tmp_path / "labels" / "plan.json"
    older = json.loads(plan.read_text())
    del older["side"], older["extras"]
    plan.write_text(json.dumps(older | {"format": 1}))
    refusal = r"labels of format 1, this version of zoo reads and writes format 2; choose another --run, or pass --repl"
    with pytest.raises(LabelError, match=refusal):
        label_structures(tmp_path / "labels", structures, teacher, plan_of(structures, teacher))
    with pytest.raises(LabelError, match=refusal):
        Labels.open(tmp_path / "labels", digests(structures))
    plan.write_text("not JSON")
    with pytest.raises(ConfigError, match=r"plan\.json"):
        Labels.open(tmp_path / "labels", digests(structures))


def test_labels_are_not_joined_with_other_structures(labelled, structures):
    with pytest.raises(LabelError, match="belong to other structures"):
        Labels.open(labelled, digests(structures)[::-1])


def test_an_altered_shard_is_refused(structures, teacher, tmp_path):
    label_structures(tmp_path, structures, teacher, plan_of(structures, teacher))
    shard = tmp_path / "shard-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match=r"shard-00001\.safetensors is missing or altered"):
        Labels.open(tmp_path, digests(structures))


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: data[:-1] + b"x", lambda data: b""])
def test_a_damaged_shard_is_made_again(damage, labelled, structures, teacher, tmp_path):
    shutil.copytree(labelled, tmp_path / "labels")
    shard = tmp_path / "labels" / "shard-00001.safetensors"
    shard.write_bytes(damage(shard.read_bytes()))
    (tmp_path / "labels" / "manifest.json").unlink()
    label_structures(tmp_path / "labels", structures, teacher, plan_of(structures, teacher))
    assert content(tmp_path / "labels") == content(labelled)


def test_unfinished_labels_are_not_opened(structures, teacher, tmp_path):
    with pytest.raises(LabelError, match="not finished; run the same again"):
        Labels.open(tmp_path, digests(structures))


def test_a_shard_carries_its_plan_and_no_pickle(labelled):
    with safe_open(labelled / "shard-00000.safetensors", framework="pt") as arrays:
        assert len(arrays.metadata()["seal"]) == 64
        names = {"offsets", "product_offsets", "energy", "forces", "stress", "probes", "hessian_products"}
        assert set(arrays.keys()) == names
    plan = json.loads((labelled / "plan.json").read_text())
    assert plan["teacher"] == "stillinger-weber/teacher"
    assert plan["units"]["hessian_products"] == "eV/Å²"


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_was_done_when_it_was_stopped_is_kept(kind, structures, tmp_path, monkeypatch):
    """Stopped after every possible number of answers of the teacher, labelling ends with the same files."""
    teacher = teacher_of(Rich())
    some = [structures[index] for index in (0, -1, 1, 2, -2)]
    plan = plan_of(some, teacher, probes=kind, extras=("atomic_energies", "features"), shard_size=2)
    label_structures(tmp_path / "whole", some, teacher, plan)
    expected = content(tmp_path / "whole")
    predict = teacher.potential.predict
    for answers in range(len(some)):
        folder = tmp_path / str(answers)
        left = [answers]

        def stop(*args, _left=left, **kwargs):
            if _left[0] == 0:
                raise KeyboardInterrupt
            _left[0] -= 1
            return predict(*args, **kwargs)

        monkeypatch.setattr(teacher.potential, "predict", stop)
        with pytest.raises(KeyboardInterrupt):
            label_structures(folder, some, teacher, plan)
        monkeypatch.setattr(teacher.potential, "predict", predict)
        label_structures(folder, some, teacher, plan)
        assert content(folder) == expected


def test_an_answer_that_is_not_finite_is_named(structures, tmp_path, monkeypatch):
    teacher = teacher_of(Rich())
    predict = teacher.potential.predict

    def broken(*args, **kwargs):
        answer = predict(*args, **kwargs)
        answer.features[0, 0] = torch.inf
        return answer

    monkeypatch.setattr(teacher.potential, "predict", broken)
    with pytest.raises(DivergedError, match=r"gives a features that is not finite for structure 0 .*leave it out"):
        label_structures(tmp_path, structures, teacher, plan_of(structures, teacher, extras=("features",)))


@pytest.mark.parametrize("periodic", [True, False])
def test_a_stress_that_is_not_finite_is_named_where_there_is_a_volume(periodic, structures, tmp_path, monkeypatch):
    teacher = teacher_of(Rich())
    predict = teacher.potential.predict

    def broken(*args, **kwargs):
        answer = predict(*args, **kwargs)
        answer.stress[0, 1, 2] = torch.nan
        return answer

    monkeypatch.setattr(teacher.potential, "predict", broken)
    atoms = structures[0].copy()
    atoms.pbc = periodic
    if not periodic:
        assert len(label_structures(tmp_path, [atoms], teacher, plan_of([atoms], teacher))) == 1
        return
    with pytest.raises(DivergedError, match="gives a stress that is not finite for structure 0 "):
        label_structures(tmp_path, [atoms], teacher, plan_of([atoms], teacher))


@pytest.mark.parametrize("compared", [False, True])
def test_an_element_that_the_teacher_does_not_know_is_refused_before_anything_is_written(
    compared, structures, teacher, tmp_path
):
    frames = [atoms.copy() for atoms in structures[:4]]
    frames[3].numbers[:2] = 84, 32
    words = r"^structure 3 of .* \(.*\) has Ge, Po, which stillinger-weber/teacher does not know; take a teacher that "
    with pytest.raises(DomainError, match=words) as caught:
        label_structures(tmp_path / "labels", frames, teacher, plan_of(frames, teacher), compared=compared)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "labels").exists()


@pytest.mark.parametrize("name", ["teacher", "direct-teacher"])
def test_a_closed_form_of_silicon_takes_nothing_else_for_silicon(name):
    potential = load_teacher(f"stillinger-weber/{name}", dtype=torch.float64).potential
    with pytest.raises(DomainError, match="Stillinger-Weber's silicon was not trained on Ge; choose a teacher that"):
        potential.predict(build_graph(bulk("Ge"), potential.cutoff))
