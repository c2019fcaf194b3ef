"""The bench: what it times is asked rightly, what it cannot time is told, and its operations are counted."""

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import model_folders as folders
import numpy as np
import pytest
import structures as scenes
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from click.testing import CliRunner, Result
from torch.utils.flop_counter import FlopCounterMode

import zoo
import zoo.bench as bench_module
import zoo.bench.cases as cases
import zoo.bench.peers as peers
import zoo.bench.roofline as roofline
from zoo.bench import Settings, bench, peer_names
from zoo.bench.cases import Case, Pace, measure, measure_all, repeated
from zoo.bench.peers import Wanted, peer_runner
from zoo.bench.report import Report, as_lines, markdown, text
from zoo.bench.roofline import painn_products
from zoo.bench.runners import (
    NEW_LIST,
    Absent,
    Ask,
    Kind,
    Runner,
    engine_runner,
    forces_of,
    loaded_runner,
    new_list_runner,
)
from zoo.cli_bench import bench_command
from zoo.errors import ConfigError, MissingPackageError, StructureError, UnknownNameError
from zoo.evaluate.speed import Call, Timing
from zoo.neighbors import SkinList, build_graph
from zoo.students import PaiNNConfig, build_student
from zoo.teachers import Teacher
from zoo.teachers.remote import load_remote

LIMITS = roofline.Limits(product_GFLOP_s=100.0, copy_GB_s=10.0)
SILICON = bulk("Si", "diamond", a=scenes.LATTICE, cubic=True)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is measured well here."""
    monkeypatch.setattr(roofline, "_SECONDS", 0.0)
    monkeypatch.setattr(roofline, "_COPIED", 1 << 10)
    monkeypatch.setattr(cases, "TURN_S", 0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.make_folder(tmp_path_factory.mktemp("engine") / "model")


def case(way: str = "ase", *structures: Atoms) -> Case:
    return Case(way, structures or (SILICON,), 28)


def runner(name: str, answer: object = None, *, kind: Kind = "peer", error: Exception | None = None) -> Runner:
    """Answers at once, or raises."""

    def ready(structures: Sequence[Atoms]) -> Call:
        def ask() -> object:
            if error is not None:
                raise error
            return answer

        return ask

    ways: dict[str, Ask] = {"ase": ready, "potential": ready, "batch": ready}
    return Runner(name, kind, ways)


# --- structures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "atoms"), [(1, 8), (8, 8), (64, 64), (216, 216), (100, 96), (1000, 1000)])
def test_a_crystal_is_repeated_to_about_a_cube(count: int, atoms: int) -> None:
    found = repeated(SILICON, count)
    assert len(found) == atoms
    lengths = found.cell.lengths()
    assert lengths.max() <= 2 * lengths.min()
    assert found.get_volume() / len(found) == pytest.approx(SILICON.get_volume() / 8)


def test_a_slab_is_repeated_along_its_periodic_axes_alone() -> None:
    slab = fcc111("Al", (1, 1, 3), vacuum=1.0)
    found = repeated(slab, 100)
    assert 80 <= len(found) <= 125
    assert found.cell.lengths()[2] == pytest.approx(slab.cell.lengths()[2])


def test_molecules_are_measured_as_they_are() -> None:
    water, methane = molecule("H2O"), molecule("CH4")
    found = list(cases.plan_cases([methane, water, methane], (8, 64), (2,), 5.0))
    assert [(one.way, one.atoms) for one in found] == [
        ("ase", 3),
        ("potential", 3),
        ("ase", 5),
        ("potential", 5),
        ("batch", 6),
    ]
    assert [one.edges for one in found] == [6, 6, 20, 20, 12]


# --- what is timed -------------------------------------------------------------------------------------


def test_every_way_of_an_engine_gives_its_forces(folder: Path) -> None:
    engine = zoo.load(folder, dtype="float64")
    many = folders.cells(2)
    ways = engine_runner(engine, "it", "own").ways
    expected = [one.forces.numpy() for one in engine.predict(many)]
    assert np.allclose(forces_of(ways["ase"](many[:1])()), expected[0], atol=1e-12)
    assert np.allclose(forces_of(ways["potential"](many[:1])()), expected[0], atol=1e-12)
    assert np.allclose(forces_of(ways["batch"](many)()), np.concatenate(expected), atol=1e-12)


def test_a_variant_that_is_wrong_is_seen(folder: Path) -> None:
    exact = zoo.load(folder, dtype="float64")

    def shifted(name: str, by: float, kind: Kind = "own") -> Runner:
        error = np.zeros((8, 3))
        error[3, 1] = by
        return Runner(name, kind, {"ase": lambda structures: lambda: forces_of(exact.predict(structures)) - error})

    many = [shifted("right", 0.0), shifted("wrong", 0.002), runner("none", np.zeros((8, 3)), kind="own")]
    rows = measure(case(), [*many, shifted("peer", 0.0, "peer")], repeats=1, exact=exact)
    found = [row.force_difference_meV_A for row in rows]
    assert found[:2] == [pytest.approx(0.0, abs=1e-9), pytest.approx(2.0)]
    assert found[2] > 10  # in the perfect crystal that is timed, no forces would be right
    assert found[3] is None


def test_a_new_list_is_sought_at_each_call_and_the_engines_own_is_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches, search = [], SkinList._search
    monkeypatch.setattr(SkinList, "_search", lambda self, atoms: searches.append(self) or search(self, atoms))
    engine = zoo.load(folder, dtype="float64")
    for made, expected in ((engine_runner(engine, "it", "own"), 1), (new_list_runner(engine), 2 + 1 + 4)):
        searches.clear()
        (row,) = measure(case(), [made], repeats=4)
        assert row.timing is not None
        assert len(searches) == expected  # tried twice, then a turn: one call that is not timed, and four
    asked = new_list_runner(engine).ways["ase"]
    (one,) = folders.cells(1)
    assert np.allclose(asked([one])(), engine.predict(one)[0].forces.numpy(), atol=1e-12)


def test_what_fails_while_it_is_timed_is_a_row_that_says_so() -> None:
    def late(kind: Kind, error: Exception) -> Runner:
        answers = iter([None, None, None, error])

        def ask() -> None:
            if (raised := next(answers)) is not None:
                raise raised

        return Runner(f"late {kind}", kind, {"ase": lambda structures: ask})

    many = [late("own", StructureError("too near")), late("peer", KeyError("edge")), runner("whole")]
    rows = measure(case(), many, repeats=2)
    assert [(row.note, row.timing is None) for row in rows] == [
        ("too near", True),
        ("KeyError: 'edge'", True),
        (None, False),
    ]
    with pytest.raises(KeyError):
        measure(case(), [late("own", KeyError("ours"))], repeats=2)


def test_what_can_be_made_ready_once_but_not_again_is_a_row_that_says_so() -> None:
    calls = iter([lambda: None])

    def ready(structures: Sequence[Atoms]) -> Call:
        if (call := next(calls, None)) is None:
            raise KeyError("gone")
        return call

    rows = measure(case("potential"), [Runner("late", "peer", {"potential": ready}), runner("whole")], repeats=1)
    assert [row.note for row in rows] == ["KeyError: 'gone'", None]
    assert [row.timing is None for row in rows] == [True, False]


def test_memory_that_ends_while_it_is_timed_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "free_memory", lambda device: 64 << 20)
    sizes = iter([1, 1, 1, 8 << 30])
    greedy = Runner(
        "greedy", "peer", {"ase": lambda structures: lambda: torch.empty(next(sizes, 1), dtype=torch.uint8)}
    )
    (row,) = measure(case(), [greedy], repeats=2)
    assert (row.note, row.timing) == ("out of memory", None)


def test_structures_that_the_engine_refuses_once_moved_have_no_difference(folder: Path) -> None:
    near = Atoms("Si2", positions=[[0, 0, 0], [0, 0, 2.35]], cell=[9, 9, 9], pbc=True)
    rows = measure(case("ase", near), [runner("it", np.zeros((2, 3)), kind="own")], repeats=1, exact=zoo.load(folder))
    assert [(row.note, row.force_difference_meV_A) for row in rows] == [(None, None)]


def test_what_fails_is_a_row_that_says_so() -> None:
    many = [
        runner("whole"),
        runner("out", error=RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")),
        runner("broken", error=KeyError("edge\nindex")),
        runner("outside", kind="own", error=StructureError("too near")),
    ]
    rows = {row.name: row for row in measure(case(), many, repeats=2)}
    assert rows["whole"].timing is not None
    assert {name: row.note for name, row in rows.items()} == {
        "whole": None,
        "out": "out of memory",
        "broken": "KeyError: 'edge\\nindex'",
        "outside": "too near",
    }
    assert rows["out"].timing is None


def test_a_fault_of_our_own_is_not_hidden_in_a_row() -> None:
    with pytest.raises(KeyError):
        measure(case(), [runner("ours", kind="own", error=KeyError("x"))], repeats=1)


def test_what_takes_more_memory_than_is_free_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "free_memory", lambda device: 64 << 20)
    before = cases.getrlimit(cases.RLIMIT_AS)
    greedy = Runner("greedy", "peer", {"ase": lambda structures: lambda: torch.empty(8 << 30, dtype=torch.uint8)})
    (row,) = measure(case(), [greedy], repeats=1)
    assert row.note == "out of memory"
    assert cases.getrlimit(cases.RLIMIT_AS) == before


def test_what_was_slow_on_few_atoms_is_left_out_on_many(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    slow = Runner("slow", "peer", {"ase": lambda structures: lambda: asked.append(len(structures[0]))})
    monkeypatch.setattr(cases, "time_once", lambda call: call() or 2000.0)
    (row,) = measure(case(), [slow], repeats=1, patience_s=1.5)
    assert row.note == "left out: a call took 2 s"
    monkeypatch.undo()
    asked.clear()
    paces = {"slow": Pace(2.0, 1)}
    (row,) = measure(case(), [slow], repeats=1, patience_s=10.0, paces=paces)
    assert (row.note, asked) == ("left out: a call would take more than 10 s", [])
    (row,) = measure(case("ase", SILICON.repeat(5)), [slow], repeats=1, patience_s=10.0, paces=paces)
    assert (row.note, asked) == ("left out: a call would take more than 10 s", [])  # eight atoms were too many


def test_paces_go_from_size_to_size(monkeypatch: pytest.MonkeyPatch) -> None:
    timing = Timing(8.0, 8.0, 8.0, 1)  # 1 ms an atom
    monkeypatch.setattr(cases, "time_in_turns", lambda ready, **_: dict.fromkeys(ready, timing))
    many = [case(), case("ase", SILICON.repeat(2)), case("ase", SILICON.repeat(5))]
    rows = list(measure_all(many, [runner("it")], repeats=1, exact=None, patience_s=0.05, threads=None))
    told = "left out: a call would take more than 0.05 s"
    assert [(row.atoms, row.timing, row.note) for row in rows] == [
        (8, timing, None),
        (64, None, told),
        (1000, None, told),
    ]


def test_what_was_fast_is_tried_on_more_than_eight_times_as_many_atoms(monkeypatch: pytest.MonkeyPatch) -> None:
    timing = Timing(8.0, 8.0, 8.0, 1)  # most of it, maybe, what any call costs
    monkeypatch.setattr(cases, "time_in_turns", lambda ready, **_: dict.fromkeys(ready, timing))
    many = [case(), case("ase", SILICON.repeat(5))]
    rows = list(measure_all(many, [runner("it")], repeats=1, exact=None, patience_s=0.5, threads=None))
    assert [(row.atoms, row.timing, row.note) for row in rows] == [(8, timing, None), (1000, timing, None)]


# --- operations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "layers"), [(8, 1), (6, 2), (5, 3)])
def test_the_operations_of_a_painn_are_those_that_pytorch_makes(channels: int, layers: int) -> None:
    config = PaiNNConfig(elements=("Si",), channels=channels, layers=layers, radials=4, cutoff=4.0)
    graph = build_graph(folders.cells(1)[0], 4.0, dtype=torch.float32)
    student = build_student(config, torch.Generator().manual_seed(0)).requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        student.predict(graph)
    # PyTorch computes φ of the first layer on each atom, there, the gates of the last layer's vectors, and the edges
    needless = graph.num_atoms * channels**2 * (6 + 4) + graph.num_edges * 2 * 3 * 3
    counted = sum(one.operations for one in painn_products(config, graph.num_atoms, graph.num_edges))
    assert counted == counter.get_total_flops() - needless


def test_the_sum_of_the_operations_is_the_one_that_is_stated() -> None:
    c, layers, atoms, edges = 64, 2, 64, 1792
    config = PaiNNConfig(elements=("Si",), channels=c, layers=layers, radials=16)
    stated = 4 * atoms * (c**2 * (15 * layers - 5) + (c + 1) * (c // 2 + 1)) + 4 * edges * c * 6 * (3 * layers - 1)
    assert sum(one.operations for one in painn_products(config, atoms, edges)) == stated


def test_operations_of_other_students_are_counted_by_pytorch() -> None:
    student = scenes.tiny_painn("Si")
    graph = build_graph(SILICON, student.cutoff)
    ours = roofline.roofline_of("it", student, graph, 0.01, LIMITS)
    assert ours.share_of_product == pytest.approx(ours.GFLOP / 0.01 / 100.0)
    assert ours.share_of_copy == pytest.approx(ours.least_MB / 1000 / 0.01 / 10.0)
    other = zoo.load("stillinger-weber/teacher").potential
    graph = build_graph(SILICON, other.cutoff, dtype=other.dtype)
    counted = roofline.roofline_of("it", other, graph, 0.01, LIMITS)
    assert (counted.counted, counted.least_MB) == ("by PyTorch's counter", None)
    assert round(1e9 * counted.GFLOP) == graph.num_edges * 2 * 3 * 3  # edges are its only matrix product


# --- what it is compared with --------------------------------------------------------------------------


def wanted(**changes: object) -> Wanted:
    size = PaiNNConfig(elements=("Si",), channels=16, layers=2, radials=8, cutoff=4.0)
    return Wanted(**({"size": size, "elements": ("Si",), "dtype": "float32", "device": "cpu"} | changes))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Puts a package of this text in schnetpack's place."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "schnetpack", raising=False)
    return lambda source: (tmp_path / "schnetpack.py").write_text(source) and None


def test_a_peer_that_is_not_installed_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = replace(peers._PEERS["schnetpack-painn"], package="not_there_at_all.models")
    monkeypatch.setitem(peers._PEERS, "schnetpack-painn", absent)
    found = peer_runner("schnetpack-painn", wanted())
    assert found == Absent("schnetpack-painn", "it is not installed; run: pip install schnetpack")


def test_a_peer_that_does_not_import_is_one_sentence_without_a_path(installed: Callable[[str], None]) -> None:
    installed('raise ImportError("no T_co in torch\\n(/home/me/torch.py)")')
    found = peer_runner("schnetpack-painn", wanted())
    assert found == Absent("schnetpack-painn", "schnetpack does not import: ImportError: no T_co in torch")


def test_a_peer_whose_package_needs_another_says_which(installed: Callable[[str], None]) -> None:
    installed("import not_there_at_all")
    assert peer_runner("schnetpack-painn", wanted()).reason == "it needs not_there_at_all; run: pip install schnetpack"


def test_a_peer_that_has_changed_is_one_sentence(installed: Callable[[str], None]) -> None:
    installed("print('welcome')")
    assert peer_runner("schnetpack-painn", wanted()).reason.startswith("ModuleNotFoundError: No module named")
    assert "float32 alone" in peer_runner("schnetpack-painn", wanted(dtype="float64")).reason


def test_an_engine_that_is_no_painn_has_no_painn_of_its_size(installed: Callable[[str], None]) -> None:
    installed("")
    assert "no PaiNN" in peer_runner("schnetpack-painn", wanted(size=None)).reason


@pytest.mark.filterwarnings("ignore")
def test_a_painn_of_graph_pes_is_of_the_size_that_is_wanted() -> None:
    pytest.importorskip("graph_pes.models", reason="needs graph-pes")
    found = peer_runner("graph-pes-painn", wanted())
    assert isinstance(found, Runner)
    alone = found.ways["potential"]([SILICON])()
    asked = found.ways["ase"]([SILICON])()
    many = found.ways["batch"]([SILICON, SILICON])()
    assert np.allclose(asked, alone["forces"].numpy(), atol=1e-5)
    assert np.allclose(asked, many[1]["forces"], atol=1e-5)


@pytest.mark.sevennet
@pytest.mark.filterwarnings("ignore")
def test_sevennets_own_calculator_is_the_teacher_by_another_way() -> None:
    own, ours = peer_runner("7net-0", wanted()), loaded_runner("sevennet-0/teacher", "teacher", device="cpu")
    atoms = folders.cells(1)[0]
    assert np.allclose(own.ways["ase"]([atoms])(), forces_of(ours.ways["ase"]([atoms])()), atol=1e-3)


def test_a_teacher_that_is_not_here_is_told_and_an_unknown_engine_refused() -> None:
    assert "zoo convert" in loaded_runner("jmp-l/teacher", "teacher").reason
    with pytest.raises(UnknownNameError):
        loaded_runner("./nowhere", "other")


def test_another_engine_that_nobody_knows_is_told_with_the_peers(folder: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"^'mace' names nothing; .*; peers: .*mace-off-small") as error:
        bench(folder, against=["mace"], device="cpu")
    assert len(str(error.value)) < 500


# --- all together --------------------------------------------------------------------------------------


def test_a_report_has_every_size_in_every_way(folder: Path) -> None:
    settings = Settings(atoms=(8, 64), batches=(2,), repeats=1)
    report = bench(folder, structure=SILICON, settings=settings, dtype="float64")
    rows = [(row.name, row.way, row.structures, row.atoms) for row in report.rows]
    many = [("ase", 1, 8), ("potential", 1, 8), ("ase", 1, 64), ("potential", 1, 64), ("batch", 2, 16)]
    assert rows == [(name, *one) for one in many for name in ("PyTorch", "stillinger-weber/teacher")]
    assert all(row.timing is not None for row in report.rows)
    assert all(row.force_difference_meV_A < 1e-9 for row in report.rows if row.kind == "own")  # the same code
    assert all(row.force_difference_meV_A is None for row in report.rows if row.kind != "own")
    assert report.absent == (Absent("compiled", "ZOO_COMPILE is never"),)
    assert [(one.name, one.atoms) for one in report.rooflines] == [("PyTorch", 8), ("PyTorch", 64)]
    edges = {row.edges for row in report.rows if row.structures == 1 and row.atoms == 64}
    assert edges == {build_graph(repeated(SILICON, 64), 4.0).num_edges}


def test_compiled_code_is_measured_where_there_is_some(folder: Path, kernels: None) -> None:
    report = bench(folder, against=["none"], settings=Settings(atoms=(8,), batches=(1,), repeats=1))
    alone = ["compiled", "PyTorch"]
    assert [row.name for row in report.rows] == ["compiled", NEW_LIST, "PyTorch", *alone, *alone]
    assert report.absent == ()
    differences = [row.force_difference_meV_A for row in report.rows]
    assert all(0 < difference < 1 for difference in differences)
    assert differences[0] == differences[1] != differences[2]  # not the same code
    assert differences[3] != differences[4]
    assert differences[5] != differences[6]


def test_a_float32_engine_differs_from_float64_by_little_but_not_by_nothing(folder: Path) -> None:
    settings = Settings(atoms=(8,), batches=(2,), repeats=1)
    report = bench(folder, against=["none"], structure=SILICON, settings=settings)
    assert all(1e-5 < row.force_difference_meV_A < 0.1 for row in report.rows)


def test_rooflines_are_of_what_was_timed_and_fits_the_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, built = zoo.load(folder), []
    monkeypatch.setattr(
        bench_module, "build_graph", lambda atoms, *_, **__: built.append(len(atoms)) or build_graph(atoms, 4.0)
    )
    monkeypatch.setattr(bench_module, "roofline_of", lambda name, potential, graph, *_: f"{name} {graph.num_atoms}")
    timing = Timing(1.0, 1.0, 1.0, 1)
    rows = [
        cases.Row("PyTorch", "own", "potential", 1, 8, 28, timing),
        cases.Row("PyTorch", "own", "potential", 1, 64, 224, note="out of memory"),
    ]
    sizes = [SILICON, SILICON.repeat(2)]
    assert bench_module._rooflines(rows, sizes, engine, LIMITS) == ["PyTorch 8"]
    assert built == [8]
    monkeypatch.undo()
    monkeypatch.setattr(cases, "free_memory", lambda device: 64 << 20)
    monkeypatch.setattr(bench_module, "roofline_of", lambda *_: torch.empty(8 << 30, dtype=torch.uint8))
    assert bench_module._rooflines(rows[:1], sizes, engine, LIMITS) == []


def test_a_teacher_has_no_structures_of_its_own() -> None:
    with pytest.raises(ConfigError, match="stillinger-weber/teacher has no structures of its own; give one: zoo bench"):
        bench("stillinger-weber/teacher")


def test_a_teacher_is_timed_itself_and_one_in_a_process_of_its_own_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_apart(name: str, *, dtype: torch.dtype, device: str) -> Teacher:
        return load_remote(name, dtype, device, Path(sys.executable))

    settings = Settings(atoms=(8,), batches=(2,), repeats=2)
    here = bench("stillinger-weber/teacher", structure=SILICON, settings=settings)
    assert (here.apart, len(here.rooflines)) == ((), 1)
    monkeypatch.setattr(importlib.import_module("zoo.load"), "load_teacher", load_apart)
    there = bench("stillinger-weber/teacher", structure=SILICON, settings=settings)
    assert there.apart == ("PyTorch",)
    assert there.rooflines == ()
    assert {row.way for row in there.rows if row.timing is not None} == {"ase", "potential", "batch"}
    told = " ".join(text(there, 100).split())
    assert told.startswith("stillinger-weber/teacher: RemotePotential, cutoff 3.77118 Å Energy"), "no parameters here"
    assert "PyTorch answers from a process of its own, to which its times include the way" in told


def test_times_are_as_long_as_the_first_own_row_of_a_size() -> None:
    rows = [
        cases.Row("PyTorch", "own", "ase", 1, 8, 28, Timing(2.0, 1.0, 3.0, 4), force_difference_meV_A=0.5),
        cases.Row("peer", "peer", "ase", 1, 8, 28, Timing(5.0, 4.0, 6.0, 4)),
        cases.Row("late", "peer", "ase", 1, 8, 28, note="out of memory"),
        cases.Row("compiled", "own", "ase", 1, 64, 224, note="out of memory"),
        cases.Row("peer", "peer", "ase", 1, 64, 224, Timing(40.0, 30.0, 50.0, 4)),
        cases.Row("PyTorch", "own", "ase", 1, 64, 224, Timing(10.0, 9.0, 11.0, 4)),
    ]
    lines = as_lines(rows)
    assert [line["times"] for line in lines] == [1.0, 2.5, None, None, 4.0, 1.0]
    assert [line["us_atom"] for line in lines] == [250.0, 625.0, None, None, 625.0, 156.25]
    assert json.loads(json.dumps(lines)) == lines
    table = markdown("ase", lines)
    assert table[2] == "| 8 | 28 | PyTorch | 2 | 1 to 3 | 250 | 1 | 0.5 |"
    assert table[3] == "|  |  | peer | 5 | 4 to 6 | 625 | 2.5 | - |"
    assert table[4] == "|  |  | late | - |  |  |  |  |"
    assert len({line.count("|") for line in table}) == 1


def test_both_ratios_are_told_where_neighbours_are_kept_and_where_they_are_sought() -> None:
    rows = [
        cases.Row("compiled", "own", "ase", 1, 8, 28, Timing(2.0, 1.0, 3.0, 4)),
        cases.Row(NEW_LIST, "own", "ase", 1, 8, 28, Timing(4.0, 3.0, 5.0, 4)),
        cases.Row("peer", "peer", "ase", 1, 8, 28, Timing(20.0, 19.0, 21.0, 4)),
        cases.Row("late", "peer", "ase", 1, 8, 28, note="out of memory"),
    ]
    lines = as_lines(rows)
    assert [line["times"] for line in lines] == [1.0, 2.0, 10.0, None]
    assert [line["times_new_list"] for line in lines] == [0.5, 1.0, 5.0, None]
    table = markdown("ase", lines)
    assert "| times | times (new list) |" in table[0]
    assert table[4] == "|  |  | peer | 20 | 19 to 21 | 2,500 | 10 | 5 | - |"
    assert len({line.count("|") for line in table}) == 1
    assert as_lines(rows[1:2])[0]["times"] is None  # it is not the engine as it is used


def test_the_table_of_a_terminal_shows_every_number_in_full() -> None:
    names = ("compiled", NEW_LIST, "PyTorch", "sevennet-0/teacher")
    rows = [
        cases.Row(name, "own", way, 1, 1000, 28_000, Timing(ms, 0.98 * ms, 1.04 * ms, 9), None, 0.00344)
        for way in ("ase", "potential", "batch")
        for name, ms in zip(names, (7.85, 42.8, 126.0, 1500.0), strict=True)
    ]
    machine = {"cpu": "one", "threads": 1}
    report = Report("it", "PaiNN", "float32", "cpu", 5.0, machine, {"torch": "2"}, tuple(rows), (), LIMITS, ())
    lines = text(report, 100).splitlines()
    assert max(len(line) for line in lines) <= 100
    assert sum(line.endswith(" 0.0034") for line in lines) == len(rows)
    assert sum("1,470 to 1,560" in line for line in lines) == 3


# --- the command ---------------------------------------------------------------------------------------


def ask(*arguments: object) -> Result:
    quick = ("--repeats", 1, "--atoms", "8", "--batch", "2", "--against", "none")
    return CliRunner().invoke(bench_command, [str(argument) for argument in (*arguments, *quick)])


def test_the_command_prints_a_table_that_fits(folder: Path) -> None:
    result = ask(folder)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert max(len(line) for line in lines) <= 100
    assert any(line.split()[:3] == ["8", "128", "PyTorch"] for line in lines), result.output
    assert "compiled is not measured: ZOO_COMPILE is never" in result.output
    assert "This machine: matrix product" in result.output


def test_the_command_prints_or_writes_json(folder: Path, tmp_path: Path) -> None:
    printed = json.loads(ask(folder, "--json", "-").stdout)
    result = ask(folder, "--json", tmp_path / "speed.json")
    assert result.exit_code == 0
    written = json.loads((tmp_path / "speed.json").read_text())
    assert written.keys() == printed.keys()
    assert {row["way"] for row in written["rows"]} == {"ase", "potential", "batch"}
    keys = {"median_ms", "low_ms", "high_ms", "repeats", "us_atom", "times", "force_difference_meV_A", "note"}
    assert keys <= written["rows"][0].keys()
    assert str(tmp_path.parent) not in json.dumps(written)


def test_the_command_draws(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="figures need the extra train")
    assert ask(folder, "--figure", tmp_path / "speed.png").exit_code == 0
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json", "{}/none/x.json"], "there is no folder {}/none; make it, or choose another place"),
        (["--json", "{}/x.txt"], "ends with .json; name it x.json"),
        (["--figure", "{}"], "ends with .png"),
        (["--figure", "-"], "- is to be a file that ends with .png"),
        (["--threads", "0"], "threads is 0; give a positive number"),
        (["--structure", "{}/no.xyz"], "no file {}/no.xyz"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_measured(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr(cases, "time_in_turns", lambda *_, **__: pytest.fail("it was measured"))
    result = ask(folder, *(argument.replace("{}", str(tmp_path)) for argument in arguments))
    assert result.exit_code == 1
    assert message.replace("{}", str(tmp_path)) in str(result.exception)


def test_a_figure_without_matplotlib_is_refused_before_anything_is_measured(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cases, "time_in_turns", lambda *_, **__: pytest.fail("it was measured"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = ask(folder, "--figure", tmp_path / "speed.png")
    assert isinstance(result.exception, MissingPackageError), result.exception
    assert "pip install matplotlib" in str(result.exception)


def test_numbers_that_are_none_are_wrong_usage(folder: Path) -> None:
    result = CliRunner().invoke(bench_command, [str(folder), "--atoms", "8;64"])
    assert result.exit_code == 2
    assert "expected whole numbers with commas between, such as 8,64" in result.output


def test_an_engine_that_could_not_be_timed_exits_with_one(folder: Path, tmp_path: Path) -> None:
    atoms = SILICON.copy()
    atoms.symbols[0] = "Ge"
    atoms.write(tmp_path / "alloy.xyz")
    result = ask(folder, "--structure", tmp_path / "alloy.xyz")
    assert result.exit_code == 1
    assert "Ge" in result.output
    assert isinstance(result.exception, SystemExit)


def test_all_peers_can_be_asked_for_by_the_help() -> None:
    output = " ".join(CliRunner().invoke(bench_command, ["--help"]).output.split())
    assert all(name in output.replace("- ", "-") for name in peer_names())
