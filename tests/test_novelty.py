"""How new something is: the Gaussians of what was learned, errors that go with distances, and what a folder keeps."""

import json
import weakref
from dataclasses import replace
from pathlib import Path

import gemnets
import model_folders as folders
import numpy as np
import pytest
import structures as scenes
import torch
from ase import Atoms
from ase.build import bulk
from safetensors.torch import load, load_file, save_file
from scipy.stats import spearmanr
from test_card import example_context
from test_report import example_report

import zoo.novelty as novelty_module
from zoo.artifact import read_model_folder, read_novelty, write_manifest, write_model_folder
from zoo.card import render_card
from zoo.config import canonical_json, parse
from zoo.engine import Engine
from zoo.errors import CapabilityError, ConfigError, DomainError, IntegrityError, LabelError
from zoo.evaluate.novelty import novelty_figures
from zoo.evaluate.report import OLDER, NoveltyFigures, Report, table
from zoo.neighbors import build_graph
from zoo.novelty import (
    Described,
    Novelty,
    NoveltyModel,
    calibrate,
    describe,
    fit,
    fit_structures,
    force_errors,
    novelty_layout,
    rank_correlation,
    threshold,
)
from zoo.teachers import load_teacher

SILICON, OXYGEN, CARBON = 14, 8, 6


def described(features: np.ndarray, numbers: np.ndarray, forces: np.ndarray | None = None) -> Described:
    told = None if forces is None else torch.from_numpy(forces)
    return Described(torch.from_numpy(features), torch.from_numpy(numbers), (len(numbers),), told)


def drawn(count: int, number: int, seed: int = 0, shift: float = 0.0, width: float = 1.0) -> Described:
    """Atoms whose three features are correlated, and of very different sizes."""
    mixing = width * np.array([[1.0, 0.9, 0.0], [0.0, 0.3, 0.1], [0.0, 0.0, 0.02]])
    features = shift + np.random.default_rng(seed).normal(size=(count, 3)) @ mixing
    return described(features, np.full(count, number))


def joined(*parts: Described) -> Described:
    return Described(
        torch.cat([part.features for part in parts]),
        torch.cat([part.numbers for part in parts]),
        tuple(count for part in parts for count in part.counts),
    )


def model_of(structures: list[Atoms], **changes: object) -> tuple[object, NoveltyModel]:
    student = scenes.tiny_painn("Si", **changes)
    gaussians = fit(describe(student, structures), student.elements)
    scales = torch.full((1,), 10.0, dtype=torch.float64)
    return student, NoveltyModel(gaussians, scales, threshold_meV_A=100.0)


def test_a_distance_is_that_of_mahalanobis_over_the_root_of_the_features() -> None:
    train = drawn(4000, SILICON)
    gaussians = fit(train, [SILICON])
    features = train.features.numpy()
    inverse = np.linalg.inv(np.cov(features.T))
    away = np.array([[3.0, -1.0, 0.5], [0.0, 0.2, 0.3]]) - features.mean(axis=0)
    expected = np.sqrt(np.einsum("ai,ij,aj->a", away, inverse, away) / 3)
    found = gaussians.distances(torch.tensor([[3.0, -1.0, 0.5], [0.0, 0.2, 0.3]]).double(), torch.tensor([SILICON] * 2))
    np.testing.assert_allclose(found, expected, rtol=0.1)  # a ridge takes a little from the smallest direction
    typical = gaussians.distances(train.features, train.numbers)
    assert float(typical.square().mean()) == pytest.approx(1.0, abs=0.06)


def test_each_element_has_a_gaussian_of_its_own() -> None:
    train = joined(drawn(500, SILICON), drawn(500, OXYGEN, seed=1, shift=50.0))
    gaussians = fit(train, [OXYGEN, SILICON])
    found = gaussians.distances(train.features, train.numbers)
    swapped = gaussians.distances(train.features, torch.tensor([SILICON, OXYGEN]).repeat_interleave(500).flip(0))
    assert float(found.max()) < 4
    assert float(swapped.min()) > 20


def test_a_rare_element_has_the_width_of_the_others_rather_than_none() -> None:
    train = joined(drawn(500, SILICON), drawn(2, OXYGEN, seed=1, shift=50.0))
    gaussians = fit(train, [OXYGEN, SILICON])
    others = drawn(300, OXYGEN, seed=2, shift=50.0)
    assert float(gaussians.distances(others.features, others.numbers).median()) < 4


def test_an_element_that_training_lacked_is_infinitely_new() -> None:
    gaussians = fit(drawn(100, SILICON), [OXYGEN, SILICON])
    found = gaussians.distances(torch.zeros(2, 3, dtype=torch.float64), torch.tensor([OXYGEN, SILICON]))
    assert found.isinf().tolist() == [True, False]


def test_scales_are_those_that_errors_were_drawn_with_and_a_rare_element_has_that_of_all() -> None:
    train = joined(drawn(2000, SILICON), drawn(2000, OXYGEN, seed=1))
    gaussians = fit(train, [OXYGEN, SILICON, CARBON])
    random = np.random.default_rng(3)
    distances = gaussians.distances(train.features, train.numbers).numpy()
    true = np.where(train.numbers.numpy() == OXYGEN, 0.2, 0.05)  # eV/Å, lengths at the distance 1
    moves = random.normal(size=(4000, 3)) * (true * distances / np.sqrt(3))[:, None]
    told = replace(train, forces=torch.from_numpy(moves))
    scales = calibrate(gaussians, told, np.zeros((4000, 3)))
    np.testing.assert_allclose(scales[:2], [200.0, 50.0], rtol=0.05)
    assert float(scales[2]) == pytest.approx(np.sqrt((200**2 + 50**2) / 2), rel=0.05)
    unknown = np.zeros((4000, 3))
    unknown[::2] = np.nan
    np.testing.assert_allclose(calibrate(gaussians, told, unknown)[:2], scales[:2], rtol=0.1)
    with pytest.raises(LabelError, match="0 atoms with known forces"):
        calibrate(gaussians, told, np.full((4000, 3), np.nan))


def test_an_atom_at_a_distance_of_zero_does_not_destroy_the_scale() -> None:
    train = drawn(200, SILICON)
    gaussians = fit(train, [SILICON])
    told = replace(train, forces=torch.full((200, 3), 0.1, dtype=torch.float64))
    truth = np.zeros((200, 3))
    expected = calibrate(gaussians, told, truth)
    told.features[0] = gaussians.means[0].double()
    assert gaussians.distances(told.features, told.numbers)[0] == 0
    np.testing.assert_allclose(calibrate(gaussians, told, truth), expected, rtol=0.1)


def test_an_error_is_the_length_of_a_difference_in_mev() -> None:
    told = described(np.zeros((2, 1)), np.array([SILICON] * 2), np.array([[0.3, 0.4, 0.0], [0.0, 0.0, 0.0]]))
    np.testing.assert_allclose(force_errors(told, np.array([[0.0, 0.0, 0.0], [0.0, 0.0, -0.01]])), [500.0, 10.0])


def test_the_threshold_leaves_the_newest_structure_out_and_one_in_a_hundred() -> None:
    values = np.array([1.0, 5.0, 2.0, 900.0, 3.0])
    assert threshold(values, [2, 2, 1]) == 5.0
    assert threshold(np.arange(1000.0), [1] * 1000) == 989.0
    assert threshold(np.array([np.inf, 5.0, 4.0]), [1, 1, 1]) == 4.0


def test_the_rank_correlation_is_that_of_spearman() -> None:
    random = np.random.default_rng(0)
    first = random.normal(size=200)
    second = np.exp(first) + random.normal(size=200)
    assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second)[0], abs=1e-12)
    assert rank_correlation(first, -first) == pytest.approx(-1.0)
    tied = np.round(second)
    assert len(np.unique(tied)) < 20
    assert rank_correlation(first, tied) == pytest.approx(spearmanr(first, tied)[0], abs=1e-12)


def test_of_equal_values_there_is_no_rank_correlation_and_the_figures_say_so() -> None:
    expected, errors = np.full(12, 3.0), np.arange(12.0)
    assert rank_correlation(expected, errors) is None
    assert rank_correlation(errors, expected) is None
    figures = novelty_figures(expected, errors, 9.5, structures=4)
    assert figures.rank_correlation is None
    report = report_with(figures, None)
    for text in (table(report), render_card(example_context(report=report))):
        assert "is not defined, and" in " ".join(text.split())


def test_figures_count_what_is_within_twice_and_leave_out_what_nobody_knows() -> None:
    expected = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, np.inf])
    errors = np.array([1.9, 4.1, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 1.0])
    figures = novelty_figures(expected, errors, 9.5, structures=4)
    assert (figures.atoms, figures.structures, figures.coverage) == (10, 4, 0.9)
    assert figures.expected_rms_meV_A == pytest.approx(np.sqrt(38.5))
    with pytest.raises(LabelError, match="9 atoms with known forces"):
        novelty_figures(expected[:9], errors[:9], 9.5, structures=4)


def test_what_was_learned_is_near_and_another_phase_a_cluster_and_a_hot_frame_are_far() -> None:
    student, model = model_of(folders.cells(20))
    (near,) = model.of(student, folders.cells(1))
    assert near.largest < 40
    hot = folders.cells(1)[0]
    hot.rattle(0.3, seed=1)
    cluster = folders.cells(1)[0]
    cluster.pbc = False
    for far in (bulk("Si", "fcc", a=3.85), hot, cluster):
        (found,) = model.of(student, [far])
        assert found.largest > 5 * near.largest
    assert cluster.cell.volume > 0  # and nothing was changed


def test_many_structures_say_what_each_says_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    structures = [*folders.cells(3), *folders.cells(2, size=2), *folders.cells(1)]
    student, model = model_of(folders.cells(20))
    whole = model.of(student, structures)
    graphs = [build_graph(atoms, student.cutoff) for atoms in structures]
    small, large = (graphs[at].num_atoms + graphs[at].num_edges for at in (0, 3))
    monkeypatch.setattr(novelty_module, "_AT_ONCE", max(large, 2 * small) + 2)
    assert 16 * 6 < novelty_module._AT_ONCE < large + small  # by atoms alone, all would be one
    assert [len(batch) for batch in novelty_module._batches(student, structures)] == [2, 1, 1, 1, 1]
    assert [len(one.atoms_meV_A) for one in whole] == [len(atoms) for atoms in structures]
    for atoms, one, cut in zip(structures, whole, model.of(student, structures), strict=True):
        np.testing.assert_allclose(one.atoms_meV_A, cut.atoms_meV_A, rtol=1e-9)
        np.testing.assert_allclose(one.atoms_meV_A, model.of(student, [atoms])[0].atoms_meV_A, rtol=1e-9)
    assert model.of(student, []) == []


def test_a_fit_pass_by_pass_is_that_of_all_atoms_and_holds_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    student = scenes.tiny_painn("Si", "C", "O")
    structures = folders.cells(8)
    for seed, atoms in enumerate(structures[1:]):
        atoms.numbers[: seed + 1] = CARBON
    whole = fit(describe(student, structures), student.elements)
    passes, held = [], []

    def watched(**parts):
        held.append(sum(one() is not None for one in passes))
        found = Described(**parts)
        passes.append(weakref.ref(found))
        return found

    monkeypatch.setattr(novelty_module, "_AT_ONCE", 200)
    monkeypatch.setattr(novelty_module, "Described", watched)
    found = fit_structures(student, structures)
    assert len(passes) > 4
    assert max(held) <= 1
    assert found.elements == whole.elements
    torch.testing.assert_close(found.atoms, whole.atoms, rtol=0, atol=0)
    torch.testing.assert_close(found.means, whole.means)
    torch.testing.assert_close(found.factors, whole.factors, rtol=1e-4, atol=1e-4)


def test_the_score_of_an_atom_follows_it_and_no_rotation_changes_it() -> None:
    student, model = model_of(folders.cells(20))
    atoms = folders.cells(1)[0]
    turned = atoms.copy()
    turned.rotate(40, (1, 2, 3), rotate_cell=True)
    turned.translate([0.3, -0.1, 4.0])
    order = np.random.default_rng(0).permutation(len(atoms))
    found, other = model.of(student, [atoms, turned[order]])
    np.testing.assert_allclose(other.atoms_meV_A, found.atoms_meV_A[order], rtol=1e-6)


def test_single_precision_gives_the_same_score() -> None:
    student, model = model_of(folders.cells(20))
    exact = model.of(student, folders.cells(4))
    for one, other in zip(model.of(student.float(), folders.cells(4)), exact, strict=True):
        np.testing.assert_allclose(one.atoms_meV_A, other.atoms_meV_A, rtol=1e-3)


@pytest.mark.parametrize("direct", [False, True])
def test_gemnets_have_a_novelty_too(direct: bool) -> None:
    student = gemnets.tiny_gemnet("Si", direct=direct)
    gaussians = fit(describe(student, folders.cells(6), forces=True), student.elements)
    assert gaussians.means.shape == (1, student.traits.features)
    written = load(NoveltyModel(gaussians, torch.ones(1, dtype=torch.float64), 1.0).encode())
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in written.items()}
    assert layout == novelty_layout(student)


def test_the_newest_atom_is_named_and_only_what_is_beyond_is_called_so() -> None:
    found = Novelty(np.array([1.0, 30.0, 2.0]), threshold_meV_A=20.0)
    assert (found.atom, found.largest, found.beyond) == (1, 30.0, True)
    assert str(found).startswith("atom 1 is the newest")
    assert "beyond the 20" in str(found)
    within = Novelty(np.array([1.0, 20.0]), threshold_meV_A=20.0)
    assert not within.beyond
    assert "within the 20" in str(within)
    assert Novelty(np.array([np.nan]), threshold_meV_A=20.0).beyond


def test_of_two_the_newer_is_known_and_what_is_not_a_number_is_newer_than_all() -> None:
    old, new, infinite, broken = (Novelty(np.array([0.0, at]), 20.0) for at in (1.0, 2.0, np.inf, np.nan))
    order = [old, new, infinite, broken]
    newer = [[one.newer_than(other) for other in order] for one in order]
    assert newer == [[row > column for column in range(4)] for row in range(4)]


def test_what_gives_no_features_and_elements_without_parameters_are_refused() -> None:
    teacher = load_teacher("stillinger-weber/teacher", dtype=torch.float64).potential
    with pytest.raises(CapabilityError, match="gives no node features"):
        describe(teacher, folders.cells(1))
    student, model = model_of(folders.cells(2))
    with pytest.raises(DomainError, match="has Ge"):
        model.of(student, [bulk("Ge")])


def test_tables_that_would_be_too_large_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(novelty_module, "_LARGEST", 100)
    with pytest.raises(CapabilityError, match="3 elements with 3 features"):
        fit(drawn(10, SILICON), [OXYGEN, SILICON, CARBON])


def test_the_same_features_everywhere_do_not_stop_a_fit() -> None:
    train = described(np.ones((20, 3)), np.full(20, SILICON))
    found = fit(train, [SILICON]).distances(train.features, train.numbers)
    assert found.tolist() == [0.0] * 20


def make_folder(place: Path) -> tuple[Path, NoveltyModel]:
    student, model = model_of(folders.cells(6))
    write_model_folder(
        place,
        config=folders.config_of(student),
        potential=student,
        probe=folders.probe_of(student),
        files=folders.DOCUMENTS,
        novelty=model,
    )
    return place, model


def test_a_model_folder_keeps_it_and_one_without_reads_too(tmp_path: Path) -> None:
    folder, model = make_folder(tmp_path / "model")
    student = read_model_folder(folder)[1]
    read = read_novelty(folder, student)
    assert read is not None
    assert read.encode() == model.encode()
    structures = folders.cells(2)
    for one, other in zip(read.of(student, structures), model.of(student, structures), strict=True):
        assert one.threshold_meV_A == other.threshold_meV_A == 100.0
        np.testing.assert_array_equal(one.atoms_meV_A, other.atoms_meV_A)
    older = folders.make_folder(tmp_path / "older")
    assert read_novelty(older, read_model_folder(older)[1]) is None


@pytest.mark.parametrize(
    ("name", "tensor", "told"),
    [
        ("means", torch.zeros(1, 4), r"means is float32 \[1, 4\]"),
        ("factors", torch.zeros(1, 5, 5, dtype=torch.float64), "factors is float64"),
        ("scales", torch.tensor([torch.nan], dtype=torch.float64), "scales holds a number that is not finite"),
        ("extra", torch.zeros(1), "1 tensors too many"),
    ],
)
def test_a_file_of_another_student_is_refused(name: str, tensor: torch.Tensor, told: str, tmp_path: Path) -> None:
    folder, _ = make_folder(tmp_path / "model")
    path = folder / "novelty.safetensors"
    save_file(load_file(path) | {name: tensor}, path)
    student = read_model_folder(folders.make_folder(tmp_path / "older"))[1]
    with pytest.raises(IntegrityError, match=r"manifest\.json says"):
        read_model_folder(folder)  # its manifest knows another file
    write_manifest(folder)
    with pytest.raises(IntegrityError, match=told):
        read_novelty(folder, student)


FIGURES = NoveltyFigures(
    rank_correlation=0.754,
    coverage=0.94,
    expected_rms_meV_A=287.0,
    error_rms_meV_A=368.0,
    threshold_meV_A=851.0,
    structures=20,
    atoms=480,
)


def report_with(novelty: NoveltyFigures | None, reason: str | None) -> Report:
    data = json.loads(canonical_json(example_report()))
    told = None if novelty is None else novelty.model_dump()
    return parse(Report, data | {"novelty": told, "novelty_reason": reason}, "report.json")


def test_a_report_has_novelty_or_the_reason_why_not_and_older_ones_read() -> None:
    assert report_with(FIGURES, None).novelty == FIGURES
    for novelty, reason in ((FIGURES, "why"), (None, None), (None, " ")):
        with pytest.raises(ConfigError, match="novelty needs a novelty_reason where it was not measured"):
            report_with(novelty, reason)
    data = json.loads(canonical_json(example_report()))
    older = parse(Report, {key: value for key, value in data.items() if not key.startswith("novelty")}, "report.json")
    assert (older.novelty, older.novelty_reason) == (None, OLDER)


def test_the_table_and_the_card_say_what_it_is_worth_or_that_there_is_none() -> None:
    told, without = report_with(FIGURES, None), report_with(None, "PaiNN gives no node features")
    assert "the rank correlation of expected and true errors of forces is 0.75" in " ".join(table(told).split())
    assert "their root mean square is 368.0 meV/Å, where 287.0 was expected" in " ".join(table(told).split())
    assert "nothing tells (PaiNN gives no node features)" in " ".join(table(without).split())
    assert "ovelty" not in table(example_report())
    card = " ".join(render_card(example_context(report=told)).split())
    assert "the rank correlation with the true errors of 480 atoms is 0.75, and 94 % of these are within" in card
    assert "their root mean square is 368.0 meV/Å, where 287.0 was expected." in card
    assert "| novelty, tested up to | 851.0 meV/Å |" in card
    bare = " ".join(render_card(example_context(report=without)).split())
    assert "It has no novelty score" in bare
    assert "tested up to" not in bare


def test_an_engine_says_how_new_structures_are_within_its_domain_or_beyond(tmp_path: Path) -> None:
    folder, model = make_folder(tmp_path / "model")
    engine = Engine.read(folder, compile=False)
    assert engine.tells_novelty
    inside, outside = folders.cells(1)[0], bulk("Si", "fcc", a=3.2)
    found = engine.novelty([inside, outside])
    expected = model.of(engine.potential, [inside, outside])
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.atoms_meV_A, other.atoms_meV_A)
    (alone,) = engine.novelty(outside)
    np.testing.assert_allclose(alone.atoms_meV_A, found[1].atoms_meV_A)
    single = Engine.read(folder, dtype="float32", compile=False).novelty(inside)[0]
    np.testing.assert_allclose(single.atoms_meV_A, found[0].atoms_meV_A, rtol=1e-3)


def test_an_engine_without_one_says_what_to_do(tmp_path: Path) -> None:
    engine = Engine.read(folders.make_folder(tmp_path / "model"), compile=False)
    assert not engine.tells_novelty
    with pytest.raises(CapabilityError, match="has no novelty score; make its model folder again with zoo distill"):
        engine.novelty(folders.cells(1))
