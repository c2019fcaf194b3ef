"""Compiled engines: the same numbers as PyTorch's, or PyTorch's."""

import copy
import pickle
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import model_folders as folders
import numpy as np
import pytest
import structures as scenes
import torch
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet
from click.testing import CliRunner
from direct_potentials import tiny_painn_dt
from gemnets import tiny_gemnet
from torch import Tensor

import zoo
import zoo.captured as captured
import zoo.execution as execution
import zoo.kernels.build as build
from zoo.calculator import ZooCalculator
from zoo.captured import StudentCode, uncompiled
from zoo.cli import main
from zoo.cuda_graphs import Replay
from zoo.engine import Engine
from zoo.errors import ConfigError, ZooWarning
from zoo.execution import Compiled, compiled, warm
from zoo.files import cache_root
from zoo.graph import Graph
from zoo.kernels import PaiNNKernel, compile_kernels
from zoo.native import keep
from zoo.neighbors import build_graph
from zoo.potential import Prediction, given
from zoo.students import Student, build_student
from zoo.teachers import load_teacher


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.make_folder(tmp_path_factory.mktemp("runs") / "model")


def read(folder: Path, **options: Any) -> Engine:
    return Engine.read(folder, device="cpu", **options)


def verdicts() -> list[Path]:
    place = compile_kernels().folder
    assert place is not None
    return sorted((place / "verdicts").glob("*.json"))


@pytest.fixture(autouse=True)
def no_verdicts(request: pytest.FixtureRequest) -> Iterator[None]:
    """None of an earlier test's, and none for a later one: the library is everybody's."""
    if "kernels" not in request.fixturenames:
        yield
        return
    request.getfixturevalue("kernels")
    for path in verdicts():
        path.unlink()
    place = compile_kernels().folder
    yield
    assert place is not None
    for path in (place / "verdicts").glob("*.json"):
        path.unlink()


def same(one: Engine, other: Engine, structures: list[Atoms], tolerance: float) -> None:
    for ours, theirs in zip(one.predict(structures), other.predict(structures), strict=True):
        assert float(ours.energy) == pytest.approx(float(theirs.energy), abs=tolerance)
        for part in ("atomic_energies", "forces", "stress"):
            assert np.allclose(getattr(ours, part), getattr(theirs, part), rtol=0, atol=tolerance), part


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 2e-4)])
def test_compiled_is_what_pytorch_says(folder: Path, dtype: str, tolerance: float) -> None:
    fast, plain = read(folder, dtype=dtype), read(folder, dtype=dtype, compile=False)
    assert (fast.compiled, plain.compiled) == (True, False)
    assert ("compiled" in repr(fast), "PyTorch" in repr(plain)) == (True, True)
    same(fast, plain, [*folders.cells(3), *folders.cells(1, size=2)], tolerance)
    assert fast.check().passed
    atoms = folders.cells(1)[0]
    assert np.array_equal(fast.hessian(atoms), plain.hessian(atoms)), "second derivatives are PyTorch's"


@pytest.mark.usefixtures("kernels")
def test_a_probe_is_recomputed_by_the_code_that_users_get(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, run = read(folder), PaiNNKernel.__call__
    monkeypatch.setattr(PaiNNKernel, "__call__", lambda self, graph: [1.01 * part for part in run(self, graph)])
    assert [row.passed for row in engine.check().rows] == [False, False, True]


@pytest.mark.usefixtures("kernels")
def test_dynamics_goes_the_same_way(folder: Path) -> None:
    paths = []
    options = {"dtype": "float64", "check_domain": False}
    for engine in (read(folder, **options), read(folder, compile=False, **options)):
        atoms = folders.cells(1)[0]
        atoms.calc = engine.calculator()
        atoms.set_velocities(0.002 * np.random.default_rng(0).normal(size=(len(atoms), 3)))
        VelocityVerlet(atoms, 1.0 * units.fs).run(100)
        paths.append(atoms.positions)
    assert np.allclose(*paths, atol=1e-9)


@pytest.mark.usefixtures("kernels")
def test_a_calculator_looks_for_neighbours_again_only_when_it_must(folder: Path) -> None:
    calculator = read(folder).calculator()
    atoms = folders.cells(1)[0]
    atoms.calc = calculator
    for _ in range(20):
        atoms.positions += 0.001
        atoms.get_forces()
    assert calculator.neighbors.searches == 1


@pytest.mark.usefixtures("kernels")
def test_code_that_disagrees_is_not_used_and_the_verdict_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = PaiNNKernel.__call__
    refusal = "compiled code differs by .* meV/Å from PyTorch; PyTorch does the same"
    with monkeypatch.context() as planted:
        planted.setattr(PaiNNKernel, "__call__", lambda self, graph: [1.001 * part for part in run(self, graph)])
        with pytest.warns(ZooWarning, match=refusal):
            assert not read(folder).compiled
    with pytest.warns(ZooWarning, match=refusal):
        assert not read(folder).compiled


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("part", range(3))
def test_energies_forces_and_stress_have_to_agree(folder: Path, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run = PaiNNKernel.__call__

    def doubled(self: PaiNNKernel, graph: Graph) -> list[Tensor]:
        return [value * (2 if index == part else 1) for index, value in enumerate(run(self, graph))]

    monkeypatch.setattr(PaiNNKernel, "__call__", doubled)
    with pytest.warns(ZooWarning, match="compiled code differs by .* from PyTorch; PyTorch does the same"):
        assert not read(folder).compiled


@pytest.mark.usefixtures("kernels")
def test_a_molecule_has_no_virial_to_agree_on(monkeypatch: pytest.MonkeyPatch) -> None:
    potential = scenes.tiny_painn("Si", "O").requires_grad_(False)
    code = compiled(potential, True, [scenes.molecule((14, 8)), scenes.crystal((14, 8))])
    assert code is not None
    assert execution.try_out(code, [scenes.molecule((14, 8))]).virial_meV == 0
    run = PaiNNKernel.__call__
    monkeypatch.setattr(PaiNNKernel, "__call__", lambda self, graph: (*run(self, graph)[:2], run(self, graph)[2] + 1))
    found = execution.try_out(code, [scenes.molecule((14, 8)), scenes.crystal((14, 8)).repeat((2, 1, 1))])
    assert found.virial_meV == pytest.approx(1000 / len(scenes.crystal((14, 8))) / 2)
    assert not found.agrees


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_code_whose_numbers_are_not_finite_is_not_used(
    folder: Path, wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = PaiNNKernel.__call__
    monkeypatch.setattr(PaiNNKernel, "__call__", lambda self, graph: [wrong * part for part in run(self, graph)])
    with pytest.warns(ZooWarning, match="^compiled code gives numbers that are not finite; PyTorch does the same"):
        engine = read(folder)
    assert engine.check().passed


@pytest.mark.usefixtures("kernels")
def test_a_verdict_is_asked_for_once_for_each_type(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(folder, dtype="float64")
    read(folder, dtype="float32")
    assert len(verdicts()) == 2
    monkeypatch.setattr(execution, "try_out", lambda *_: pytest.fail("it is known"))
    assert read(folder, dtype="float32").compiled


@pytest.mark.usefixtures("kernels")
def test_a_verdict_is_of_the_whole_potential_and_of_the_code_it_was_passed_on(folder: Path) -> None:
    """The cutoff is no weight; and another compiler may have made the library of the same name."""
    potential = read(folder, compile=False).potential
    nearer = build_student(potential.config.model_copy(update={"cutoff": 3.9})).to(potential.dtype)
    nearer.load_state_dict(potential.state_dict())
    keys = {execution._key(one, library) for one in (potential, nearer) for library in ("a", "b")}
    assert len(keys) == 4


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("source", ["kernels/painn.py", "students/painn.py", "captured.py", "execution.py"])
def test_a_verdict_is_of_the_sources_of_both_sides(folder: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    potential, read_bytes = read(folder, compile=False).potential, Path.read_bytes
    before = execution._key(potential, "a")
    assert execution._key(potential, "a") == before
    changed = Path(execution.__file__).parent / source
    monkeypatch.setattr(Path, "read_bytes", lambda path: read_bytes(path) + b"#" * (path == changed))
    assert execution._key(potential, "a") != before


@pytest.mark.usefixtures("kernels")
def test_a_verdict_is_of_the_tolerances_it_was_passed_with(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(folder).compiled
    monkeypatch.setattr(execution, "TOLERANCES", dict.fromkeys(execution.TOLERANCES, 1e-30))
    with pytest.warns(ZooWarning, match="compiled code differs"):
        assert not read(folder).compiled


@pytest.mark.usefixtures("kernels")
def test_a_verdict_that_is_not_whole_is_made_anew(folder: Path) -> None:
    read(folder)
    (path,) = verdicts()
    path.write_text('{"agrees": tr')
    assert read(folder).compiled
    assert '"agrees": true' in path.read_text()


@pytest.mark.usefixtures("kernels")
def test_a_cache_that_cannot_be_written_to_is_no_obstacle(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(execution, "write_json", refuse)
    assert read(folder).compiled


@pytest.mark.usefixtures("kernels")
def test_an_engine_that_was_moved_is_asked_as_it_is_now(folder: Path) -> None:
    engine = read(folder, dtype="float32")
    engine.potential.to(torch.float64)
    assert not engine.compiled
    same(engine, read(folder, dtype="float64", compile=False), folders.cells(1), 1e-5)


@pytest.mark.usefixtures("kernels")
def test_a_calculator_follows_a_potential_that_was_moved_as_it_is_now(folder: Path) -> None:
    engine, atoms = read(folder, dtype="float32"), folders.cells(1)[0]
    atoms.calc = engine.calculator()
    atoms.get_forces()
    engine.potential.to(torch.float64)
    with torch.no_grad():
        engine.potential.readout[0].weight.mul_(1.5)
    atoms.rattle(0.01, seed=5)
    (expected,) = engine.predict(atoms)
    assert atoms.calc.neighbors.searches == 1
    assert np.allclose(atoms.get_forces(), given(expected.forces), rtol=0, atol=1e-12)
    assert np.allclose(atoms.get_stress(voigt=False), given(expected.stress), rtol=0, atol=1e-12)
    assert atoms.calc.neighbors.searches == 1
    atoms.positions += 0.4
    assert np.allclose(atoms.get_forces(), given(engine.predict(atoms)[0].forces), rtol=0, atol=1e-12)
    assert atoms.calc.neighbors.searches == 2


def once_more(function: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """A plain call in the place of a CUDA graph."""
    answer = function()
    return lambda: answer.copy_(function()), answer


@pytest.mark.parametrize("recorded", [False, True])
def test_all_code_is_asked_with_edges_that_were_measured_in_float64(
    folder: Path, recorded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far from the origin float32 has too few digits for the differences of positions."""
    engine, atoms = read(folder, dtype="float32"), folders.cells(1)[0]
    expected = read(folder, dtype="float64").predict(atoms)[0].forces
    plain = uncompiled(engine.potential)
    engine._compiled = Compiled(Replay(plain, once_more) if recorded else plain, engine.potential)
    atoms.positions += 1e4
    assert np.allclose(engine.predict(atoms)[0].forces, expected, rtol=0, atol=1e-5)
    atoms.calc = engine.calculator()
    assert np.allclose(atoms.get_forces(), expected, rtol=0, atol=1e-5)
    asked, predict = [], Compiled.predict
    monkeypatch.setattr(
        Compiled, "predict", lambda self, graph, **more: (asked.append(graph.positions.dtype), predict(self, graph))[1]
    )
    assert engine.check().passed
    assert asked == [torch.float64]


def test_without_a_compiler_pytorch_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZOO_COMPILE")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.warns(ZooWarning, match=r"no-such-compiler.* PyTorch does the same, .*ZOO_COMPILE=never"):
        engine = read(folder)
    assert not engine.compiled
    assert engine.check().passed


def test_zoo_compile_never_is_obeyed_and_nonsense_is_not(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not read(folder).compiled  # conftest sets never
    with pytest.warns(ZooWarning, match=r"^ZOO_COMPILE is never; unset it for compile=True to compile$"):
        assert not read(folder, compile=True).compiled
    monkeypatch.setenv("ZOO_COMPILE", "sometimes")
    with pytest.raises(ConfigError, match="ZOO_COMPILE is 'sometimes'; expected auto or never"):
        read(folder)


@pytest.mark.usefixtures("kernels")
def test_an_architecture_without_compiled_code_says_so_where_it_was_asked() -> None:
    potential = load_teacher("stillinger-weber/teacher", dtype=torch.float64).potential
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compiled(potential, "auto", folders.cells(1)) is None
    with pytest.warns(ZooWarning, match="no compiled code for a StillingerWeber on cpu; PyTorch does the same"):
        assert compiled(potential, True, folders.cells(1)) is None


def test_a_calculator_of_a_potential_alone_asks_it(folder: Path) -> None:
    engine, atoms = read(folder), folders.cells(1)[0]
    expected = engine.predict(atoms)[0].forces
    atoms.calc = ZooCalculator(engine.potential)
    assert np.allclose(atoms.get_forces(), expected)


@pytest.mark.usefixtures("kernels")
def test_an_engine_and_its_calculator_can_be_copied_and_sent(folder: Path) -> None:
    engine, atoms = read(folder), folders.cells(1)[0]
    atoms.calc = engine.calculator()
    expected = atoms.get_forces()
    for other in (copy.deepcopy(engine), pickle.loads(pickle.dumps(engine))):
        assert other.compiled
        assert np.array_equal(other.predict(atoms)[0].forces, expected)
    again = copy.deepcopy(atoms)
    again.calc.reset()
    assert np.array_equal(again.get_forces(), expected)


@pytest.mark.usefixtures("kernels")
def test_a_calculator_can_be_sent_to_where_nothing_can_be_compiled(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    atoms = folders.cells(1)[0]
    atoms.calc = read(folder, dtype="float64").calculator()
    expected, sent = atoms.get_forces(), pickle.dumps(atoms.calc)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(build, "_loaded", {})
    atoms.calc = pickle.loads(sent)
    atoms.calc.reset()
    monkeypatch.setattr(PaiNNKernel, "__call__", lambda *_: pytest.fail("there is none"))
    assert np.allclose(atoms.get_forces(), expected, rtol=0, atol=1e-12)
    atoms.rattle(0.001, seed=1)
    assert not np.allclose(atoms.get_forces(), expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("kernels")
def test_a_library_that_others_can_write_to_is_built_anew(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a cache that was copied there, one process after another."""
    shutil.copytree(cache_root(), tmp_path / "cache")
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "_loaded", {})
    (path,) = tmp_path.rglob("*.so")
    built: list[Path] = []
    monkeypatch.setattr(build, "_build", lambda _, place: (built.append(place), keep(content, place, ".so", "it"))[1])
    content = path.read_bytes()
    assert read(folder).compiled
    path.chmod(0o664)
    assert (read(folder).compiled, len(built)) == (True, 0), "opened already"
    build._loaded.clear()
    assert (read(folder).compiled, len(built)) == (True, 1)
    build._loaded.clear()
    assert (read(folder).compiled, len(built)) == (True, 1), "what was built is safe"


@pytest.mark.usefixtures("kernels")
def test_what_was_compiled_runs_without_a_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(build, "_loaded", {})
    assert read(folder).compiled


def test_teachers_have_no_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZOO_COMPILE")
    with pytest.warns(ZooWarning, match="no compiled code for a StillingerWeber"):
        assert not zoo.load("stillinger-weber/teacher", compile=True).compiled


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("option", "code"), [("--compile", "compiled"), ("--no-compile", "PyTorch")])
def test_the_command_line_says_which_code_was_checked(folder: Path, option: str, code: str) -> None:
    told = CliRunner().invoke(main, ["check", str(folder), option])
    assert told.exit_code == 0, told.output
    assert f" on cpu in float32, {code}\n" in told.output


# --- what PyTorch compiles ------------------------------------------------------------------------


def a_student() -> Student:
    return tiny_painn_dt("Si", channels=2, layers=1, radials=2).requires_grad_(False)


@pytest.fixture
def known(kernels: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A compiler that is quick, for what it makes is PyTorch's own operations; it notes each compilation."""
    made: list[str] = []

    def compile_known(student: Student) -> bytes:
        made.append(type(student).__name__)
        return b"a package"

    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    monkeypatch.setattr(captured, "_opened", {})
    monkeypatch.setattr(captured, "_compile", compile_known)
    monkeypatch.setattr(captured, "_open", lambda student, path: uncompiled(student).run)
    return made


def verdicts_of_captured() -> list[Path]:
    return sorted((cache_root() / "captured").rglob("verdicts/*.json"))


def test_what_takes_a_minute_is_compiled_only_where_it_was_asked_for(known: list[str]) -> None:
    student, structures = a_student(), folders.cells(1)
    assert compiled(student, "auto", structures) is None
    assert not known
    assert compiled(student, True, structures) is not None
    assert compiled(student, "auto", structures) is not None, "it is in the cache now"
    assert compiled(student, False, structures) is None
    assert len(known) == 1
    assert len(verdicts_of_captured()) == 1


def test_captured_code_that_disagrees_is_not_used_and_the_verdict_is_kept(
    known: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    student, structures, run = a_student(), folders.cells(1), StudentCode.__call__
    refusal = "compiled code differs by .* meV/Å from PyTorch; PyTorch does the same"
    with monkeypatch.context() as planted:
        planted.setattr(StudentCode, "__call__", lambda self, graph: [1.001 * part for part in run(self, graph)])
        with pytest.warns(ZooWarning, match=refusal):
            assert compiled(student, True, structures) is None
    for compile in (True, "auto"):
        with pytest.warns(ZooWarning, match=refusal):
            assert compiled(student, compile, structures) is None
    assert warm(student, structures).startswith("PyTorch runs PaiNNDT in float64 on cpu: compiled code differs by ")


def test_captured_code_can_be_copied_and_sent_and_is_not_compiled_there(known: list[str]) -> None:
    student, graph = a_student(), build_graph(folders.cells(2), 4.0)
    code = compiled(student, True, folders.cells(1))
    assert code is not None
    assert code.title == "compiled"
    assert not code.follows
    expected = given(code.predict(graph).forces)
    for other in (copy.deepcopy(code), pickle.loads(pickle.dumps(code))):
        assert torch.equal(given(other.predict(graph).forces), expected)
    sent = pickle.dumps(code)
    for path in cache_root().rglob("*.pt2"):
        path.unlink()
    captured._opened.clear()
    assert pickle.loads(sent) is None, "PyTorch does it there"
    assert len(known) == 1


def test_captured_code_of_a_student_that_was_moved_does_not_fit(known: list[str]) -> None:
    code = compiled(a_student(), True, folders.cells(1))
    assert code is not None
    assert code.fits
    code.potential.to(torch.float32)
    assert not code.fits


def test_warming_says_what_is_ready(known: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    student, structures = a_student(), folders.cells(1)
    for _ in range(2):
        told = warm(student, structures)
        assert re.fullmatch(
            r"compiled code for PaiNNDT in float64 on cpu is ready after \d+\.\d s, within \S+ meV/Å of PyTorch", told
        )
    assert len(known) == 1
    teacher = load_teacher("stillinger-weber/teacher", dtype=torch.float64).potential
    assert warm(teacher, []) == (
        "PyTorch runs StillingerWeber in float64 on cpu: there is no compiled code for a StillingerWeber on cpu"
    )
    monkeypatch.setenv("ZOO_COMPILE", "never")
    assert warm(student, structures) == "PyTorch runs PaiNNDT in float64 on cpu: ZOO_COMPILE is never"


@pytest.mark.usefixtures("kernels")
def test_warming_a_painn_compiles_its_kernel(folder: Path) -> None:
    told = warm(read(folder, compile=False).potential, folders.cells(1))
    assert told.startswith("compiled code for PaiNN in float64 on cpu is ready after ")
    assert len(verdicts()) == 1


def test_zoo_compile_never_keeps_what_is_in_the_cache_from_being_used(
    known: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compiled(a_student(), True, folders.cells(1)) is not None
    monkeypatch.setenv("ZOO_COMPILE", "never")
    assert compiled(a_student(), "auto", folders.cells(1)) is None


@pytest.mark.usefixtures("kernels")
def test_atoms_are_followed_as_they_are_predicted(folder: Path) -> None:
    """From edges up to a skin, of which those within the cutoff count; references and stress included."""
    potential = read(folder, dtype="float64", compile=False).potential
    code = compiled(potential, "auto", folders.cells(1))
    assert code is not None
    assert code.follows
    atoms = folders.cells(1)[0]
    follower = code.follow(build_graph(atoms, potential.cutoff + 0.5))
    for seed in range(3):
        atoms.rattle(0.02, seed=seed)
        graph = build_graph(atoms, potential.cutoff)
        found, shortest = follower(graph.positions, stress=True)
        assert_predicts(found, potential.predict(graph, stress=True))
        assert shortest == pytest.approx(float(graph.edge_vectors().norm(dim=1).min()))
    assert follower(graph.positions, stress=False)[0].stress is None


def test_on_a_gpu_what_is_not_compiled_is_recorded(known: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU is pretended to, by what the student says of its device; a plain call stands in the graph's place."""
    student, graph = scenes.tiny_painn("Si").requires_grad_(False), build_graph(folders.cells(1), 4.0)
    code = execution._recorded(uncompiled(student), student)
    assert isinstance(code, StudentCode), "on a CPU there is nothing to record"
    plain = uncompiled(student)
    plain.device = torch.device("cuda")
    recorded = execution._recorded(plain, student)
    assert isinstance(recorded, Replay)
    assert (Compiled(recorded, student).title, Compiled(code, student).title) == ("recorded", "PyTorch")
    direct = tiny_gemnet("Si", direct=True).requires_grad_(False)
    plain = uncompiled(direct)
    plain.device = torch.device("cuda")
    assert isinstance(execution._recorded(plain, direct), StudentCode), "its edges are found anew each time"
    assert_predicts(Compiled(code, student).predict(graph), student.predict(graph))


def assert_predicts(found: Prediction, expected: Prediction) -> None:
    for part in ("energy", "atomic_energies", "forces", "stress"):
        ours, theirs = getattr(found, part), getattr(expected, part)
        assert (ours is None) == (theirs is None), part
        if ours is not None:
            assert torch.allclose(ours, theirs, rtol=0, atol=1e-10), part
