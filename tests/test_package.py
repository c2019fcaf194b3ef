from dataclasses import replace
from pathlib import Path
from typing import Any

import model_folders as folders
import numpy as np
import pytest
import structures as scenes
import torch
from ase import Atoms
from licence_texts import TEXT, save_text

from recipes import frames_data, frames_recipe, silicon_clusters, tiny_recipe
from zoo.artifact import DataSource, Lineage
from zoo.config import parse
from zoo.data.labels import Label
from zoo.licences import Source
from zoo.neighbors import build_graph
from zoo.package import make_config, make_domain, make_probe, snippet
from zoo.recipe import Lock, Recipe
from zoo.teachers import load_teacher

OLD: dict[str, Any] = folders.lineage().model_dump(mode="json", exclude={"teacher_terms", "data"})


def test_a_config_says_what_its_teacher_obliges_its_users_to_repeat() -> None:
    digests = dict.fromkeys(("teacher_weights_sha256", "structures_sha256", "labels_sha256"), "2" * 64)
    lock = Lock(**digests, teacher_package="zoo", zoo="0.1.0", torch="2.6.0")
    recipe = tiny_recipe().model_copy(update={"lock": lock})
    student = scenes.tiny_painn("Si")
    teacher = load_teacher("stillinger-weber/teacher", dtype=torch.float64)
    samples: dict[str, Any] = {"train": (folders.cells(), None)}
    plain = make_config(recipe, student, teacher, samples, 40).lineage
    assert (plain.teacher_terms, plain.data) == (None, ())
    save_text("LicenseRef-ASL")
    bound = make_config(recipe, student, replace(teacher, licence_weights="LicenseRef-ASL"), samples, 40).lineage
    assert bound.teacher_licence_weights == "LicenseRef-ASL"
    assert bound.teacher_terms == TEXT.strip()


def test_the_data_sets_of_a_recipe_are_in_the_lineage(tmp_path: Path) -> None:
    lock = Lock(
        **dict.fromkeys(("teacher_weights_sha256", "structures_sha256", "labels_sha256"), "2" * 64),
        teacher_package="zoo",
        zoo="0.1.0",
        torch="2.6.0",
    )
    recipe = frames_recipe(tmp_path).model_copy(update={"lock": lock})
    teacher = load_teacher("stillinger-weber/teacher", dtype=torch.float64)
    samples: dict[str, Any] = {"train": (silicon_clusters(2), None)}
    lineage = make_config(recipe, scenes.tiny_painn("Si"), teacher, samples, 40).lineage
    assert lineage.sources[1:] == (Source("data", "clusters", "CC0-1.0"),)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "Stillinger-Weber 1985, empirical"),
        ({"energy_from": "dataset"}, "Stillinger-Weber 1985, empirical"),
        ({"energy_from": "dataset", "force_from": "dataset"}, "PBE+MBD and that of the frames' labels"),
    ],
)
def test_the_level_of_theory_is_that_of_whoever_taught(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    data = frames_data(tmp_path, loss={"energy": 5, "force": 100, **changes})
    division = {"by": "block", "block": 10, "train": 0.6, "validation": 0.2, "test": 0.2}
    data["structures"]["subsets"] = {"dha": {"source": "md22", "files": ["dha"], "division": division}}
    data["structures"]["groups"].insert(0, {"kind": "subset", "name": "dha", "split": "train", "subset": "dha"})
    digests = dict.fromkeys(("teacher_weights_sha256", "structures_sha256", "labels_sha256"), "2" * 64)
    lock = Lock(**digests, teacher_package="zoo", zoo="0.1.0", torch="2.6.0")
    recipe = parse(Recipe, data, "recipe").model_copy(update={"lock": lock})
    teacher = load_teacher("stillinger-weber/teacher", dtype=torch.float64)
    samples: dict[str, Any] = {"train": (silicon_clusters(2), None)}
    assert make_config(recipe, scenes.tiny_painn("Si"), teacher, samples, 40).lineage.level_of_theory == told


def test_a_lineage_written_before_there_were_data_sources_still_reads() -> None:
    lineage = parse(Lineage, OLD, "config.json")
    assert lineage == folders.lineage()
    assert lineage.sources == (Source("teacher", "stillinger-weber/teacher", "CC0-1.0"),)


def test_the_sources_of_an_engine_are_its_teacher_and_its_data() -> None:
    lineage = folders.lineage(data=(DataSource(name="crystals", licence="MIT"),))
    assert lineage.sources[1:] == (Source("data", "crystals", "MIT"),)
    assert parse(Lineage, lineage.model_dump(mode="json"), "config.json") == lineage


def test_the_domain_of_molecules_has_no_volume(tmp_path: Path) -> None:
    clusters = silicon_clusters(4)
    domain = make_domain(frames_recipe(tmp_path), clusters)
    assert (domain.pbc, domain.volume_per_atom_A3, domain.max_atoms_trained) == ((False, False, False), None, 5)
    shortest = min(atoms.get_all_distances()[atoms.get_all_distances() > 0].min() for atoms in clusters)
    assert 0.9 * shortest < domain.min_distance_A < shortest


@pytest.mark.parametrize(
    ("source", "filters", "frames_too", "charge"),
    [
        ("teacher", {"charge": -1}, False, 0),  # which takes all structures for neutral
        ("dataset", {"charge": -1}, False, -1),
        ("dataset", {}, False, None),
        ("dataset", {"charge": -1}, True, None),
    ],
)
def test_a_domain_has_the_charge_that_was_learned(
    source: str, filters: dict[str, int], frames_too: bool, charge: int | None, tmp_path: Path
) -> None:
    data = frames_data(tmp_path, loss={"energy": 5, "force": 100, "force_from": source})
    division = {"by": "block", "block": 10, "train": 0.6, "validation": 0.2, "test": 0.2}
    data["structures"]["subsets"] = {"dha": {"source": "md22", "filters": filters, "division": division}}
    groups = [group for group in data["structures"]["groups"] if frames_too or group["split"] != "train"]
    data["structures"]["groups"] = [{"kind": "subset", "name": "dha", "split": "train", "subset": "dha"}, *groups]
    assert make_domain(parse(Recipe, data, "recipe"), silicon_clusters(2)).charge == charge


def test_the_snippet_writes_small_molecules_out_and_takes_other_structures_from_the_probe(tmp_path: Path) -> None:
    recipe, (cluster,) = frames_recipe(tmp_path), silicon_clusters(1)
    written: dict[str, Any] = {}
    code = snippet(recipe, cluster)
    exec("\n".join(line for line in code.split("atoms.calc")[0].splitlines() if "zoo" not in line), written)
    assert str(written["atoms"].symbols) == "Si5"
    np.testing.assert_allclose(written["atoms"].positions, cluster.positions, atol=6e-4)
    for other in (folders.cells(1)[0], Atoms("H21", [[0.0, 0.0, float(place)] for place in range(21)])):
        assert "atoms = engine.probe.structures[0].copy()" in snippet(recipe, other)
    assert 'bulk("Si", "diamond", a=5.43, cubic=True)' in snippet(tiny_recipe(), cluster)


def labels_of(structures: list[Atoms], counts: list[int]) -> list[Label]:
    teacher = load_teacher("stillinger-weber/teacher", dtype=torch.float64).potential
    made = []
    for atoms, count in zip(structures, counts, strict=True):
        probes = torch.randn(count, len(atoms), 3, dtype=torch.float64)
        graph = build_graph(atoms, teacher.cutoff)
        told = teacher.predict(graph, stress=True, probes=probes if count else None)
        products = torch.zeros(0, len(atoms), 3) if told.hessian_products is None else told.hessian_products
        made.append(Label(told.energy[0], told.forces, told.stress[0], probes, products))
    return made


def test_a_probe_has_as_many_products_of_each_structure_and_not_too_many() -> None:
    teacher = load_teacher("stillinger-weber/teacher", dtype=torch.float64)
    student = scenes.tiny_painn("Si")
    clusters = silicon_clusters(3)
    for counts, expected in (([15, 15, 24], 4), ([5, 2, 3], 2)):
        labels = labels_of(clusters, counts)
        samples: dict[str, Any] = {
            str(number): ([one], [label]) for number, (one, label) in enumerate(zip(clusters, labels, strict=True))
        }
        probe = make_probe(student, teacher, samples)
        assert [len(vectors) for vectors in probe.vectors] == [expected] * 3
        for label, vectors, told in zip(labels, probe.vectors, probe.teacher, strict=True):
            torch.testing.assert_close(vectors, label.probes[:expected])
            torch.testing.assert_close(told.hessian_products, label.hessian_products[:expected])


def test_a_probe_of_labels_without_products_asks_the_teacher_for_one() -> None:
    teacher = load_teacher("stillinger-weber/teacher", dtype=torch.float64)
    (cluster,) = silicon_clusters(1)
    (label,) = labels_of([cluster], [0])
    nothing = replace(label, energy=torch.tensor(torch.nan, dtype=torch.float64))
    probe = make_probe(scenes.tiny_painn("Si"), teacher, {"train": ([cluster], [nothing])})
    (vectors,), (told,) = probe.vectors, probe.teacher
    assert set(vectors.unique().tolist()) == {-1.0, 1.0}
    graph = build_graph(cluster, teacher.potential.cutoff)
    expected = teacher.potential.predict(graph, probes=vectors).hessian_products
    torch.testing.assert_close(told.hessian_products, expected)
    assert told.energy.isfinite().all()
