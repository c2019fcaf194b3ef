"""Labels on disk: exact, resumable, and refused where they do not belong."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from recipes import tiny_recipe
from zoo.data.labels import Labels, draw_probes
from zoo.data.structures import rattled, structure_digest
from zoo.distill.label import label_plan, label_structures
from zoo.errors import IntegrityError, LabelError
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


@pytest.mark.parametrize("kind", ["rademacher", "rows"])
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
        torch.testing.assert_close(label.hessian_products.flatten(1), flat @ hessian)


def test_rows_are_distinct_rows_of_the_hessian(structures, teacher):
    plan = plan_of(structures, teacher, probes="rows", probes_per_structure=24)
    probes = draw_probes(plan, plan.structures[0], len(structures[0])).flatten(1)
    assert torch.equal(probes.sum(dim=0), torch.ones(24, dtype=torch.int64))


def test_probes_are_random_signs_that_depend_on_the_structure_alone(structures, teacher):
    plan = plan_of(structures, teacher)
    shorter = plan_of(structures[1:], teacher)
    probes = draw_probes(plan, plan.structures[1], 8)
    assert set(probes.unique().tolist()) == {-1, 1}
    assert torch.equal(probes, draw_probes(shorter, shorter.structures[0], 8))
    assert not torch.equal(probes, draw_probes(plan, plan.structures[0], 8))


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
        assert set(arrays.keys()) == {"offsets", "energy", "forces", "stress", "probes", "hessian_products"}
    plan = json.loads((labelled / "plan.json").read_text())
    assert plan["teacher"] == "stillinger-weber/teacher"
    assert plan["units"]["hessian_products"] == "eV/Å²"


def test_whatever_was_done_when_it_was_stopped_is_kept(labelled, structures, teacher, tmp_path, monkeypatch):
    """Stopped after every possible number of answers of the teacher, labelling ends with the same files."""
    expected = content(labelled)
    predict = teacher.potential.predict
    for answers in range(len(structures)):
        folder = tmp_path / str(answers)
        left = [answers]

        def stop(*args, _left=left, **kwargs):
            if _left[0] == 0:
                raise KeyboardInterrupt
            _left[0] -= 1
            return predict(*args, **kwargs)

        monkeypatch.setattr(teacher.potential, "predict", stop)
        with pytest.raises(KeyboardInterrupt):
            label_structures(folder, structures, teacher, plan_of(structures, teacher))
        monkeypatch.setattr(teacher.potential, "predict", predict)
        label_structures(folder, structures, teacher, plan_of(structures, teacher))
        assert content(folder) == expected
