"""Students compiled by PyTorch: the same numbers for all sizes from one file, which is made once and checked."""

import errno
import gc
import hashlib
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import structures as scenes
import torch
from ase import Atoms
from direct_potentials import tiny_painn_dt
from gemnets import tiny_gemnet
from torch import Tensor
from torch._inductor import config, cpp_builder

import zoo.captured as module
from zoo import native
from zoo.captured import StudentCode, captured, compiled_student, inputs_of, respond, uncompiled
from zoo.errors import CapabilityError, ZooWarning
from zoo.execution import Compiled
from zoo.files import cache_root
from zoo.graph import Graph
from zoo.neighbors import build_graph
from zoo.potential import Potential
from zoo.students import PaiNNDT, Student
from zoo.teachers import load_teacher

STUDENTS: dict[str, Callable[[], Student]] = {
    "painn": lambda: scenes.tiny_painn("Si", "O"),
    "painn-dt": lambda: tiny_painn_dt("Si", "O"),
    "painn-dt of few neighbours": lambda: tiny_painn_dt("Si", "O", max_neighbors=5),
    "gemnet-t": lambda: tiny_gemnet("Si", "O"),
    "gemnet-t of few neighbours": lambda: tiny_gemnet("Si", "O", max_neighbors=5),
    "gemnet-dt": lambda: tiny_gemnet("Si", "O", direct=True),
}


def crystals() -> list[Atoms]:
    """As large as it takes for a table to be wider than there are atoms, and the reverse."""
    small = scenes.crystal((14, 8))
    return [small, small.repeat((2, 1, 1)), small.repeat((3, 2, 2))]


def batches() -> list[list[Atoms]]:
    """One structure or many; one atom among its images; edges of one pair alone; no edges at all; a mixture."""
    single = [scenes.simple_cubic((14,)), scenes.dimer((14, 8)), scenes.linear_trimer((14, 8)), scenes.isolated((8,))]
    return [*([atoms] for atoms in (*crystals(), *single)), [*single, *crystals()], [single[3], single[3]]]


def quiet(student: Student) -> Student:
    student.requires_grad_(False)
    return student


def assert_same(code: StudentCode, potential: Potential, graph: Graph, tolerance: float) -> None:
    energies, forces, virial = code(graph)
    expected = potential.predict(graph, stress=True)
    shift = potential.reference_energies(graph.numbers)
    assert torch.allclose(energies.double() + shift, expected.atomic_energies, rtol=0, atol=tolerance)
    assert torch.allclose(forces, expected.forces, rtol=0, atol=tolerance)
    volume = torch.linalg.det(graph.cells).abs()[:, None, None]
    solid = graph.periodic.all(dim=1)
    ours, theirs = (virial / volume)[solid], expected.stress[solid]
    assert torch.allclose(ours, theirs, rtol=0, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("name", STUDENTS)
def test_one_graph_serves_all_sizes(name: str) -> None:
    student = quiet(STUDENTS[name]())
    graph_of_all = captured(student, module._example(student))
    for many in batches():
        inputs = inputs_of(student, build_graph(many, student.cutoff))
        if len(inputs[1]) < 2:
            continue
        expected = respond(student, inputs)
        for ours, theirs in zip(graph_of_all(*inputs), expected, strict=True):
            assert torch.allclose(ours, theirs, rtol=0, atol=1e-13)
        assert max(float(part.abs().max()) for part in expected) > 0


@pytest.mark.parametrize("name", STUDENTS)
def test_slopes_by_edges_are_forces_and_stress(name: str) -> None:
    student = quiet(STUDENTS[name]())
    code = uncompiled(student)
    for many in batches():
        assert_same(code, student, build_graph(many, student.cutoff), 1e-12)


def test_weights_are_frozen_into_the_graph() -> None:
    student = quiet(scenes.tiny_painn("Si", "O"))
    inputs = inputs_of(student, build_graph(crystals()[1], student.cutoff))
    graph, before = captured(student, module._example(student)), respond(student, inputs)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.5)
    assert torch.allclose(graph(*inputs)[1], before[1])
    assert not torch.allclose(respond(student, inputs)[1], before[1])


def test_parameters_that_want_a_gradient_change_nothing() -> None:
    student = scenes.tiny_painn("Si", "O")
    graph = build_graph(crystals()[0], student.cutoff)
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert not any(part.requires_grad for part in uncompiled(student)(graph))


def test_tensors_that_lie_within_others_are_taken_as_fresh_ones() -> None:
    student = quiet(scenes.tiny_painn("Si", "O"))
    graph = build_graph(crystals()[0], student.cutoff)
    lying = replace(
        graph,
        numbers=torch.cat([graph.numbers[:1], graph.numbers])[1:],
        centers=torch.stack([graph.centers, graph.centers], dim=1)[:, 0],
        neighbors=torch.stack([graph.neighbors, graph.neighbors])[1],
    )
    parts = inputs_of(student, lying)
    assert all(part.is_contiguous() and part.storage_offset() == 0 for part in parts)
    assert torch.equal(uncompiled(student)(lying)[1], uncompiled(student)(graph)[1])


def test_what_is_not_captured_is_refused(tmp_path: Path) -> None:
    teacher = load_teacher("stillinger-weber/teacher", dtype=torch.float64).potential
    with pytest.raises(CapabilityError, match="no compiled code for a StillingerWeber on cpu; let PyTorch run it"):
        compiled_student(teacher, build=True)


def test_nothing_is_compiled_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_compile", lambda _: pytest.fail("nobody asked for it"))
    assert compiled_student(quiet(tiny_painn_dt("Si")), build=False) is None


def test_a_key_is_of_all_that_the_code_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    student = tiny_painn_dt("Si")
    other = tiny_painn_dt("Si")
    other.messages[0].filter.bias.data[0] += 1e-9
    scaled = tiny_painn_dt("Si")
    scaled.scale.mul_(2)  # a buffer
    keys = [module._key(one) for one in (student, other, scaled, tiny_painn_dt("Si", cutoff=4.1))]
    keys.append(module._key(tiny_painn_dt("Si").float()))
    keys.append(module._key(tiny_painn_dt("Si", smooth=False)))
    monkeypatch.setattr(module, "processor", lambda: "another")
    keys.append(module._key(student))
    monkeypatch.undo()
    monkeypatch.setattr(module, "_SOURCES", module._SOURCES[:-1])
    keys.append(module._key(student))
    monkeypatch.undo()
    assert len(set(keys)) == len(keys)
    assert module._key(tiny_painn_dt("Si")) == keys[0]


def test_all_that_a_student_is_made_of_is_in_the_key() -> None:
    """Sources that ``respond`` runs through: a change of one must not be answered by code of before."""
    folder = Path(module.__file__).parent
    listed = {path.relative_to(folder).as_posix() for pattern in module._SOURCES for path in folder.glob(pattern)}
    assert {"captured.py", "graph.py", "ops.py", "rows.py", "students/gemnet_layers.py", "students/painn.py"} <= listed


def test_a_compiler_that_fails_is_quoted_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Student) -> bytes:
        raise RuntimeError("no C++ compiler\nand a long story")

    monkeypatch.setattr(module, "_compile", fail)
    with pytest.raises(
        CapabilityError, match=r"^PaiNNDT in float64 on cpu could not be compiled \(RuntimeError: no C"
    ) as caught:
        compiled_student(quiet(tiny_painn_dt("Si")), build=True)
    assert "\n" not in str(caught.value)
    assert "zoo: compiling PaiNNDT in float64 on cpu, once for these weights" in capsys.readouterr().err


def test_a_package_that_is_none_is_a_reason_and_goes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "_compile", lambda _: b"not a package")
    student = quiet(tiny_painn_dt("Si"))
    with pytest.raises(CapabilityError, match="compiled code of PaiNNDT in float64 on cpu cannot be opened"):
        compiled_student(student, build=True)
    assert compiled_student(student, build=False) is None
    assert not list(tmp_path.rglob("*.pt2"))


# --- with a package that was compiled -------------------------------------------------------------


def small_student() -> PaiNNDT:
    return quiet(tiny_painn_dt("Si", "O", channels=2, layers=1, radials=2))


@pytest.fixture(scope="session")
def package() -> bytes:
    """What the compiler makes of the small student."""
    try:
        return module._compile(small_student())
    except Exception as error:
        if "compiler" in str(error).lower():
            pytest.skip(f"no compiler: {error}")
        raise


@pytest.fixture
def compiler(package: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One that is quick, for it knows one student; it notes each compilation."""
    made: list[str] = []

    def compile_known(student: Student) -> bytes:
        made.append(type(student).__name__)
        return package

    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_compile", compile_known)
    monkeypatch.setattr(module, "_opened", {})
    return made


@pytest.mark.slow
def test_compiled_code_of_a_direct_student_is_what_pytorch_says(compiler: list[str]) -> None:
    student = small_student()
    code = compiled_student(student, build=True)
    for many in batches():
        assert_same(code, student, build_graph(many, student.cutoff), 1e-12)
    assert len(compiler) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["painn", "gemnet-t"])
def test_compiled_code_of_a_conservative_student_is_what_pytorch_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the code of one type does not answer for the other."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    student = quiet(STUDENTS[name]())
    code = compiled_student(student, build=True)
    for many in batches():
        assert_same(code, student, build_graph(many, student.cutoff), 1e-12)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("zoo: ")]
    assert len(told) == 2
    assert "takes a minute or more" in told[0]
    assert told[1].startswith(f"zoo: compiled {type(student).__name__} in float64 on cpu in ")
    assert compiled_student(student.float(), build=False) is None


@pytest.mark.slow
def test_code_is_compiled_once_and_found_by_others(compiler: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first = compiled_student(small_student(), build=True)
    assert compiled_student(small_student(), build=True).run is first.run, "opened once a process"
    monkeypatch.setattr(module, "_opened", {})
    assert compiled_student(small_student(), build=False) is not None, "as in another process"
    assert len(compiler) == 1


@pytest.mark.slow
def test_a_package_that_was_cut_short_or_exchanged_is_made_anew(
    compiler: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = compiled_student(small_student(), build=True).path
    whole, garbage = path.read_bytes(), b"not a package"
    for name, content in ((path.name, whole[:5000]), (f"{hashlib.sha256(garbage).hexdigest()}.pt2", garbage)):
        path.unlink(missing_ok=True)
        path.with_name(name).write_bytes(content)
        monkeypatch.setattr(module, "_opened", {})
        code = compiled_student(small_student(), build=True)
        assert_same(code, small_student(), build_graph(crystals()[0], 4.0), 1e-12)
        (left,) = tmp_path.rglob("*.pt2")
        assert left == code.path
    assert len(compiler) == 3


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_to_costs_a_compilation_a_process(
    compiler: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_the_way = tmp_path / "a file"
    in_the_way.write_text("not a folder")
    monkeypatch.setenv("ZOO_CACHE", str(in_the_way))
    for _ in range(2):
        code = compiled_student(small_student(), build=True)
        assert_same(code, small_student(), build_graph(crystals()[0], 4.0), 1e-12)
    assert len(compiler) == 1
    told = capsys.readouterr().err
    assert told.count("cannot be kept in") == 1
    assert "set ZOO_CACHE to a folder that can be written to" in told


@pytest.mark.slow
def test_two_processes_compile_once(package: bytes, tmp_path: Path) -> None:
    content, log = tmp_path / "package", tmp_path / "log"
    content.write_bytes(package)
    program = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
import zoo.captured as module
from test_captured import small_student
from pathlib import Path
def compile_known(student):
    with Path({str(log)!r}).open("a") as stream:
        stream.write("once ")
    time.sleep(3)
    return Path({str(content)!r}).read_bytes()
module._compile = compile_known
sys.exit(module.compiled_student(small_student(), build=True) is None)
"""
    both = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
    assert [one.wait(timeout=300) for one in both] == [0, 0]
    assert log.read_text() == "once "


def test_a_compiler_that_there_is_not_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(CapabilityError, match=r"^the compiler of CXX, no-such-compiler, is not on this machine; .*run"):
        compiled_student(small_student(), build=True)


@pytest.mark.parametrize("name", ["painn", "gemnet-t"])
def test_far_from_the_origin_edges_are_as_exact_as_the_graph(name: str) -> None:
    """In float32, positions of a large structure have too few digits for their differences."""
    student = quiet(STUDENTS[name]())
    graph = build_graph(crystals()[0], student.cutoff)
    expected = student.predict(graph).forces
    parts: tuple[Tensor, ...] = uncompiled(student.float())(graph.with_geometry(graph.positions + 1e4, graph.cells))
    assert all(part.dtype == torch.float32 for part in parts)
    assert torch.allclose(parts[1].double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", STUDENTS)
def test_no_size_is_smaller_than_the_graph_was_captured_for(name: str) -> None:
    """Of one atom, a pair, or none, whatever else compiled code would say."""
    student = quiet(STUDENTS[name]())
    asked: list[list[int]] = []

    def run(inputs: list[Tensor]) -> list[Tensor]:
        asked.append([len(part) for part in inputs])
        return respond(student, inputs)

    code = StudentCode(student, run)
    for many in batches():
        code(build_graph(many, student.cutoff))
    assert len(asked) == len(batches()) - 2, "without edges it is not asked"
    assert min(min(sizes) for sizes in asked) == 2


def test_of_too_many_edges_pytorch_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    student = quiet(scenes.tiny_painn("Si", "O"))
    graph = build_graph(crystals()[0], student.cutoff)
    monkeypatch.setattr(module, "most_rows", lambda _: graph.num_edges - 1)
    code = StudentCode(student, lambda _: pytest.fail("too many"))
    assert_same(code, student, graph, 1e-12)


class Failing:
    """Compiled code that fails, and how often it was asked."""

    def __init__(self, reason: str = "run_func_ API call failed\nand a long story") -> None:
        self.reason, self.asked = reason, 0

    def __call__(self, _: list[Tensor]) -> list[Tensor]:
        self.asked += 1
        raise RuntimeError(self.reason)


def test_where_compiled_code_fails_pytorch_goes_on_and_says_so_once() -> None:
    student, failing = quiet(scenes.tiny_painn("Si", "O")), Failing()
    code, graph = StudentCode(student, failing, Path("kept.pt2")), build_graph(crystals()[0], student.cutoff)
    told = (
        r"^compiled code of PaiNN failed \(run_func_ API call failed\); from now on PyTorch does the same, .*no more\)$"
    )
    with pytest.warns(ZooWarning, match=told):
        assert_same(code, student, graph, 1e-12)
    for _ in range(3):  # where a warning would be an error
        assert_same(code, student, graph, 1e-12)
    assert failing.asked == 1
    assert Compiled(code, student).title == "PyTorch"


def test_too_little_memory_is_the_callers_to_handle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asked may ask for less; also where compiled code says but that it failed, and PyTorch why."""
    student = quiet(scenes.tiny_painn("Si", "O"))
    graph = build_graph(crystals()[0], student.cutoff)
    failing = Failing("CUDA out of memory")
    code = StudentCode(student, failing, Path("kept.pt2"))
    silent = StudentCode(student, Failing(), Path("kept.pt2"))
    with monkeypatch.context() as patch:
        patch.setattr(module, "respond", lambda *_: pytest.fail("no second try"))
        with pytest.raises(RuntimeError, match="CUDA out of memory"):
            code(graph)
        patch.setattr(module, "respond", lambda _, inputs: Failing("not enough memory")(inputs))
        with pytest.raises(RuntimeError, match="not enough memory"):
            silent(graph)
    code.run = silent.run = lambda inputs: respond(student, inputs)
    assert (code.path, silent.path) == (Path("kept.pt2"), Path("kept.pt2")), "it is not given up"


def test_pytorch_is_not_asked_twice_where_it_fails() -> None:
    student, failing = quiet(scenes.tiny_painn("Si", "O")), Failing()
    with pytest.raises(RuntimeError, match="run_func_ API call failed"):
        StudentCode(student, failing)(build_graph(crystals()[0], student.cutoff))
    assert failing.asked == 1


# --- the cache ------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A compiler and a loader of what is no package; each compilation is noted."""
    made: list[str] = []
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_compile", lambda student: made.append(type(student).__name__) or b"a package")
    monkeypatch.setattr(module, "_open", lambda student, _: uncompiled(student).run)
    return made


def kept_file() -> Path:
    (path,) = cache_root().rglob("*.pt2")
    return path


def test_code_that_nobody_holds_goes_from_memory(made: list[str]) -> None:
    before = set(module._opened)
    code = compiled_student(small_student(), build=True)
    other = compiled_student(small_student(), build=True)
    assert code is not None
    assert len(set(module._opened) - before) == 1
    assert code.run is other.run
    del code
    gc.collect()
    assert len(set(module._opened) - before) == 1
    del other
    gc.collect()
    assert set(module._opened) == before
    assert compiled_student(small_student(), build=False) is not None, "it is in the cache"
    assert len(made) == 1


@pytest.mark.parametrize("spoil", ["group", "world", "another"])
@pytest.mark.parametrize("whose", ["file", "folder"])
def test_what_another_user_may_have_written_is_not_opened(
    made: list[str], whose: str, spoil: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled_student(small_student(), build=True)
    gc.collect()
    path = kept_file() if whose == "file" else kept_file().parent
    if spoil == "another":
        is_owned, its = native._is_owned, path.stat().st_ino
        monkeypatch.setattr(native, "_is_owned", lambda told: is_owned(told) and told.st_ino != its)
    else:
        path.chmod(path.stat().st_mode | {"group": 0o020, "world": 0o002}[spoil])
    assert compiled_student(small_student(), build=False) is None
    code = compiled_student(small_student(), build=True)
    assert code is not None
    is_closed = whose == "folder" and spoil != "another"  # to others, who could not write to the file
    assert len(made) == (1 if is_closed else 2)
    if (whose, spoil) == ("folder", "another"):
        assert not code.path.is_relative_to(cache_root()), "where others can write, nothing is kept"
    else:
        assert (
            stat.S_IMODE(code.path.stat().st_mode) & 0o022 == stat.S_IMODE(code.path.parent.stat().st_mode) & 0o022 == 0
        )


def test_who_fills_a_cache_for_all_lets_them_read_and_others_keep_theirs(
    made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(0o002)
    try:
        for user, modes in ((0, (0o755, 0o644)), (1234, (0o700, 0o600))):
            with monkeypatch.context() as patch:
                patch.setattr(native.os, "geteuid", lambda user=user: user)
                patch.setattr(native, "_is_owned", lambda _: True)
                patch.setenv("ZOO_CACHE", str(cache_root() / str(user)))
                compiled_student(small_student(), build=True)
                path = kept_file()
                assert tuple(stat.S_IMODE(one.stat().st_mode) for one in (path.parent, path)) == modes
    finally:
        os.umask(before)


def test_what_root_filled_is_read_by_all(made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be written, and code that does not open cannot be removed."""
    compiled_student(small_student(), build=True)
    gc.collect()
    refuse_to_write(monkeypatch)
    monkeypatch.setattr(native.os, "geteuid", lambda: 1234)
    told = os.stat_result((0o644, 0, 0, 1, 0, 0, 0, 0, 0, 0))
    assert native._is_owned(told), "root's"
    monkeypatch.setattr(native, "_is_owned", lambda _: True)
    assert compiled_student(small_student(), build=False) is not None
    assert len(made) == 1


def refuse_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EROFS, "Read-only file system", str(path))

    for name in ("unlink", "mkdir", "write_bytes", "chmod"):
        monkeypatch.setattr(Path, name, refuse)


def test_a_cache_that_cannot_be_written_to_may_hold_what_does_not_open(
    made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled_student(small_student(), build=True)
    gc.collect()
    refuse_to_write(monkeypatch)

    def refuse(student: Student, path: Path) -> object:
        raise RuntimeError("not a package")

    monkeypatch.setattr(module, "_open", refuse)
    assert compiled_student(small_student(), build=False) is None
    assert kept_file().is_file()


def test_a_file_that_may_not_be_read_is_passed_over(made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_student(small_student(), build=True)
    gc.collect()
    read_bytes = Path.read_bytes

    def deny(path: Path) -> bytes:
        if path.suffix == ".pt2":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", deny)
    assert compiled_student(small_student(), build=False) is None
    assert kept_file().is_file()


def test_a_system_that_refuses_is_a_reason(made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "keep", refuse)
    with pytest.raises(CapabilityError, match=r"cannot be kept in .* \(No space left on device\); let PyTorch run it$"):
        compiled_student(small_student(), build=True)


def test_a_compiler_of_several_words_is_taken_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = native.find_compiler()
    monkeypatch.setenv("CXX", f"env ZOO_WORD='two words' {real[0]}")
    command = native.find_compiler()
    assert [Path(command[0]).name, *command[1:]] == ["env", "ZOO_WORD=two words", real[0]]
    word = module._in_one_word(command, tmp_path)
    told, expected = (subprocess.check_output([one, "--version"], text=True) for one in (word, real[0]))
    assert told == expected
    assert module._in_one_word(real, tmp_path) == real[0]
    assert Path(module._in_one_word(["env", "/opt/bin/clang++-17"], tmp_path)).name == "clang++"
    with config.patch({"cpp.cxx": (None, word)}):
        assert cpp_builder.get_cpp_compiler() == word
        assert cpp_builder._is_gcc(word)


@pytest.mark.slow
def test_a_compiler_of_several_words_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = native.find_compiler()
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", f"env {real[0]}")
    code = compiled_student(small_student(), build=True)
    assert_same(code, small_student(), build_graph(crystals()[0], 4.0), 1e-12)
    assert code.path is not None
