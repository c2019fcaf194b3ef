"""A teacher in a process of its own says what it says in this one, and whatever ends that process is said in a line."""

import copy
import fcntl
import gc
import io
import json
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import sysconfig
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from contracts import CONTRACT, check_law

import zoo.distill.label as label_module
import zoo.packing
import zoo.run
import zoo.teachers.remote as remotely
import zoo.teachers.wire as wire
from recipes import tiny_recipe
from zoo.config import write_json
from zoo.engine import Engine, Provenance
from zoo.errors import (
    CapabilityError,
    DomainError,
    IntegrityError,
    MissingPackageError,
    OutOfMemoryError,
    UnknownNameError,
    WorkerError,
    ZooWarning,
)
from zoo.graph import Graph
from zoo.memory import Kept
from zoo.neighbors import build_graph
from zoo.ops import deterministic
from zoo.pipeline import distill, make_labels, train_student
from zoo.potential import Potential, Prediction
from zoo.run import Run
from zoo.teachers import Teacher, load_teacher
from zoo.teachers.environments import BOOT, STAMP, Stamp
from zoo.teachers.remote import RemotePotential, Workplace, load_remote
from zoo.teachers.wire import Message, graph_of, graph_tensors, receive, send

HERE = Path(__file__).parent
SECONDS = 60  # after which no test waits any longer
SILICON, DIRECT, XTB, SEVENNET = (
    "stillinger-weber/teacher",
    "stillinger-weber/direct-teacher",
    "gfn2-xtb/teacher",
    "sevennet-0/teacher",
)

# e3nn compiles so, and what torch imports for forward mode
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


@dataclass(frozen=True)
class OddWorkplace(Workplace):
    """With a worker of ``tests/odd_worker.py``."""

    kind: str = ""

    def command(self, *arguments: Any) -> list[str]:
        """As another worker, but for what it runs."""
        python, *options = super().command(*arguments)
        folder, *told = options[options.index("-c") + 2 :]
        run = f"{BOOT}import runpy; runpy.run_path({str(HERE / 'odd_worker.py')!r}, run_name='__main__')"
        return [python, "-u", "-c", run, folder, self.kind, *told]


def remote(name: str = SILICON, dtype: torch.dtype = torch.float64) -> Teacher:
    return load_remote(name, dtype, "cpu", Path(sys.executable))


def odd(kind: str) -> RemotePotential:
    place = OddWorkplace(SILICON, Path(sys.executable), kind)
    return RemotePotential(place, torch.float64, torch.device("cpu"))


@pytest.fixture(autouse=True)
def source_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of this Python sees what this process sees."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture(scope="module")
def silicon() -> Iterator[Teacher]:
    """One worker for the tests that leave it alive."""
    teacher = remote()
    yield teacher
    teacher.potential.close()


@pytest.fixture(scope="module")
def harmless() -> Iterator[RemotePotential]:
    """One odd worker that lives on whatever it is asked."""
    potential = odd("harmless")
    yield potential
    potential.close()


def provoke(potential: RemotePotential, kind: str) -> Prediction:
    """Has it do what the number of structures stands for."""
    kinds = ("refuses", "fails", "full", "warns", "threads", "deterministic")
    return potential.predict(build_graph([bulk("Si")] * (kinds.index(kind) + 1), potential.cutoff, dtype=torch.float64))


def pid(potential: Potential) -> int:
    assert isinstance(potential, RemotePotential)
    assert potential._worker is not None
    return potential._worker._process.pid


def lives(process: int) -> bool:
    """Whether there is such a process that is not just waiting to be counted as dead."""
    try:
        return " Z " not in Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False


def wait_for(what: Callable[[], bool]) -> None:
    for _ in range(10 * SECONDS):
        if what():
            return
        time.sleep(0.1)
    pytest.fail(f"waited {SECONDS} s in vain")


def graph_for(potential: Potential, crystals: bool = True) -> Graph:
    """Two structures, the second larger."""
    if crystals:
        small, large = bulk("Si", cubic=False), bulk("Si", cubic=True)
    else:
        small, large = molecule("H2O"), molecule("CH3OH")
    for number, atoms in enumerate((small, large)):
        atoms.rattle(0.05, seed=number)
    return build_graph([small, large], potential.cutoff, dtype=potential.dtype)


def equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To the bit; NaN where NaN was expected."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def same(found: Prediction, expected: Prediction) -> None:
    """To the bit, and nothing more or less."""
    assert {name for name, part in vars(found).items() if part is not None} == {
        name for name, part in vars(expected).items() if part is not None
    }
    for name, part in vars(expected).items():
        if part is not None:
            equal(getattr(found, name), part)


# --- the same answers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    "name",
    [
        SILICON,
        DIRECT,
        pytest.param(XTB, marks=pytest.mark.xtb),
        pytest.param(SEVENNET, marks=pytest.mark.sevennet),
    ],
)
def test_a_worker_says_what_the_same_teacher_says_here_to_the_bit(name: str, dtype: torch.dtype) -> None:
    here, there = load_teacher(name, dtype=dtype), remote(name, dtype)
    own, far = here.potential, there.potential
    assert replace(there, potential=own) == here
    assert (far.traits, far.cutoff, far.elements, far.dtype) == (own.traits, own.cutoff, own.elements, own.dtype)
    table = own.element_embeddings()
    found = far.element_embeddings()
    assert (found is None) == (table is None)
    if table is not None and found is not None:
        assert torch.equal(found, table)

    graph = graph_for(own, crystals=name != XTB)
    probes = torch.randn(2, graph.num_atoms, 3, dtype=dtype)
    direct = not own.traits.conservative
    with deterministic():
        for side in ("rows", "columns", "symmetric") if direct else ("rows",):
            options = {
                "stress": True,
                "probes": probes,
                "side": side,
                "features": own.traits.features > 0,
                "gradient": own.traits.energies and not direct,
            }
            same(far.predict(graph, **options), own.predict(graph, **options))
        same(far.predict(graph, forces=False), own.predict(graph, forces=False))
        equal(far.atomic_energies(graph), own.atomic_energies(graph).detach())
        equal(far.reference_energies(graph.numbers), own.reference_energies(graph.numbers))
        if direct:
            equal(far.force_columns(graph, probes), own.force_columns(graph, probes))
        if name != XTB:  # of which a whole Hessian is many calls
            one = build_graph(bulk("Si"), own.cutoff, dtype=dtype)
            assert torch.equal(far.hessian(one), own.hessian(one))
            rows = torch.tensor([4, 1])
            assert torch.equal(far.hessian(one, rows), own.hessian(one, rows))
    far.close()


# laws that differentiate what a potential says, which is for its own process
_DIFFERENTIATED = {"finite_to_third", "parameter_gradient"}


@pytest.mark.parametrize("law", sorted(CONTRACT.keys() - _DIFFERENTIATED))
def test_a_worker_keeps_the_law(law: str, silicon: Teacher) -> None:
    check_law(silicon.potential, law)


def test_what_it_says_cannot_be_differentiated_and_that_says_what_to_do(silicon: Teacher) -> None:
    with pytest.raises(CapabilityError, match="leave create_graph out, or install its package beside zoo"):
        silicon.potential.predict(graph_for(silicon.potential), create_graph=True)


def test_another_type_is_another_worker_with_the_numbers_of_that_type() -> None:
    far = remote().potential
    first = pid(far)
    far.to(torch.float32)
    graph = graph_for(far)
    own = load_teacher(SILICON, dtype=torch.float32).potential
    same(far.predict(graph), own.predict(graph))
    assert pid(far) != first
    assert not lives(first)
    far.close()


@pytest.mark.parametrize("how", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["copy", "pickle"])
def test_a_copy_has_a_worker_of_its_own(how: Callable[[Potential], Potential], silicon: Teacher) -> None:
    far, graph = silicon.potential, graph_for(silicon.potential)
    other = how(far)
    same(other.predict(graph), far.predict(graph))
    assert pid(other) != pid(far)
    other.close()
    assert lives(pid(far))
    far.ping()


def test_a_forked_process_has_a_worker_of_its_own_and_leaves_that_of_its_parent(silicon: Teacher) -> None:
    far = silicon.potential
    far.ping()
    first, graph = pid(far), graph_for(far)
    expected = far.predict(graph).energy
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # no assertion may leave here
        told = [torch.equal(far.predict(graph).energy, expected), pid(far) != first]
        far.close()
        os.write(writer, json.dumps(told).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        assert json.loads(stream.read()) == [True, True]
    os.waitpid(child, 0)
    far.ping()
    assert pid(far) == first


def test_a_worker_has_as_many_threads_as_the_process_that_asks(harmless: RemotePotential) -> None:
    for count in (2, 1):
        torch.set_num_threads(count)
        assert set(provoke(harmless, "threads").energy.tolist()) == {count}


def test_a_worker_computes_by_deterministic_algorithms_where_the_process_that_asks_would(
    harmless: RemotePotential,
) -> None:
    assert set(provoke(harmless, "deterministic").energy.tolist()) == {0}
    with deterministic():
        assert set(provoke(harmless, "deterministic").energy.tolist()) == {1}
    assert set(provoke(harmless, "deterministic").energy.tolist()) == {0}


def test_an_engine_around_a_worker_answers_many_structures_and_hessians(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo.packing, "_SMALL", 20)  # so that what a pass takes is measured
    structures = [bulk("Si"), bulk("Si", cubic=True), bulk("Si").repeat(2)]
    for number, atoms in enumerate(structures):
        atoms.rattle(0.03, seed=number)
    for name in (SILICON, DIRECT):
        far, own = remote(name).potential, load_teacher(name, dtype=torch.float64).potential
        engines = [Engine(one, Provenance(name, "test", "MIT", None), check_domain=False) for one in (far, own)]
        found, expected = ([one.forces for one in engine.predict(structures)] for engine in engines)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
        hessians = [engine.hessian(structures[0]) for engine in engines]
        np.testing.assert_array_equal(*hessians)
        for engine in engines:
            engine.hvp(structures, [np.ones((1, len(atoms), 3)) for atoms in structures])
        for task in ("forces", "Hessian products"):  # batches of a worker are sized by what it takes there
            there, here = (vars(engine._needs[task]) for engine in engines)
            assert there == pytest.approx(here, rel=0.05)
            assert there["edge"] > 0
        far.close()


# --- errors ---------------------------------------------------------------------------------------------


def test_an_error_of_zoo_is_raised_here_as_what_it_is(harmless: RemotePotential) -> None:
    harmless.ping()
    first = pid(harmless)
    with pytest.raises(DomainError, match=r"^Ge has no parameters; take silicon$"):
        provoke(harmless, "refuses")
    harmless.ping()
    assert pid(harmless) == first, "an error that was answered is no reason for another worker"


def test_an_error_of_a_package_is_told_in_a_line_with_its_traceback_beside_it(harmless: RemotePotential) -> None:
    words = r"stillinger-weber/teacher failed in its worker \(KeyError: 'no such key'\)"
    with pytest.raises(WorkerError, match=words) as told:
        provoke(harmless, "fails")
    assert "\n" not in str(told.value)
    assert "raise KeyError" in told.value.__notes__[0]


def test_no_memory_in_a_worker_is_no_memory_here(harmless: RemotePotential) -> None:
    with pytest.raises(
        OutOfMemoryError, match=r"can't allocate memory.*; take smaller structures, or a machine with more"
    ):
        provoke(harmless, "full")


def test_a_warning_of_zoo_is_shown_here_and_another_is_kept_among_the_words(harmless: RemotePotential) -> None:
    with pytest.warns(ZooWarning, match="it is old") as told:
        provoke(harmless, "warns")
    assert len(told) == 1
    assert harmless._worker is not None
    wait_for(lambda: any("it is deprecated" in line for line in harmless._worker._printed))


@pytest.mark.parametrize(("kind", "shown"), [("ages", 1), ("expires", 1), ("", 0)])
def test_a_warning_at_loading_is_shown_here_whether_the_teacher_is_loaded_or_not(kind: str, shown: int) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if kind == "expires":
            with pytest.raises(DomainError, match=r"^it is too old; take another$"):
                odd(kind)
        else:
            odd(kind).close()
    assert [str(one.message) for one in told] == ["it is old"] * shown


def test_a_teacher_that_nobody_knows_is_an_unknown_name() -> None:
    with pytest.raises(UnknownNameError, match="no teacher is called 'stillinger-webber/teacher'"):
        remote("stillinger-webber/teacher")


def test_a_python_that_is_gone_is_said_with_what_makes_it_anew(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"cannot be started .*zoo teachers install makes one anew"):
        load_remote(SILICON, torch.float64, "cpu", tmp_path / "python")


def test_a_worker_that_dies_before_it_is_ready_says_why() -> None:
    with pytest.raises(
        WorkerError, match=r"ended with the exit code 1; its last words: ImportError: cannot import name 'Irreps'"
    ):
        odd("early")


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """One with a stamp, whose Python has the packages of this one, and lacks what a test puts in their place."""
    folder = tmp_path / "environments" / "xtb-0123456789ab"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    packages = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "all.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    (folder / "pyvenv.cfg").write_text(f"home = {Path(sys.base_prefix) / 'bin'}\n")
    write_json(folder / STAMP, Stamp(family="xtb", lock_sha256="0" * 64, python="3.11.7"))
    return packages


@pytest.mark.parametrize(
    ("package", "kind", "words"),
    [
        (
            "torch",
            WorkerError,
            r"the worker of gfn2-xtb/teacher ended with the exit code 1; its last words: .*is gone; ",
        ),
        ("tblite", MissingPackageError, r"the environment of gfn2-xtb/teacher cannot import .*\(.*is gone\); "),
    ],
)
def test_an_environment_that_lost_a_package_is_said_with_what_makes_it_anew(
    package: str, kind: type[Exception], words: str, environment: Path
) -> None:
    (environment / f"{package}.py").write_text(f"raise ImportError('{package} is gone')\n")
    remedy = "run: zoo teachers remove xtb, then: zoo teachers install xtb$"
    with pytest.raises(kind, match=words + remedy) as told:
        load_remote(XTB, torch.float64, "cpu", environment.parents[2] / "bin" / "python")
    assert "\n" not in str(told.value)


def test_an_environment_is_not_removed_while_its_worker_lives(environment: Path) -> None:
    folder = environment.parents[2]
    potential = RemotePotential(Workplace(SILICON, folder / "bin" / "python"), torch.float64, torch.device("cpu"))
    with (folder / STAMP).open("r+b") as stamp:
        with pytest.raises(BlockingIOError):
            fcntl.flock(stamp, fcntl.LOCK_EX | fcntl.LOCK_NB)
        potential.close()
        fcntl.flock(stamp, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_what_packages_print_is_not_taken_for_an_answer_and_is_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    far = odd("prints")
    own = load_teacher(SILICON, dtype=torch.float64).potential
    same(far.predict(graph_for(far)), own.predict(graph_for(far)))
    far.close()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("garbage", r"answered amiss: b'Downloading.* came where a message was expected; "),
        ("cut", r"ended with the exit code 0|the stream was cut after 7 of 64 bytes"),
        ("old", r"speaks version 2 of zoo's messages, expected 1"),
    ],
)
def test_what_is_no_answer_ends_the_worker_and_is_said(kind: str, words: str) -> None:
    before = set(threading.enumerate())
    with pytest.raises(WorkerError, match=words) as told:
        odd(kind)
    assert "\n" not in str(told.value)
    assert set(threading.enumerate()) == before


def test_an_answer_to_another_question_is_no_answer() -> None:
    far = odd("another")
    first = pid(far)
    with pytest.raises(WorkerError, match="answered amiss: to question 0, expected to question 1; run the same again"):
        far.ping()
    assert not lives(first)


# --- threads --------------------------------------------------------------------------------------------


def test_threads_that_share_a_teacher_have_each_its_own_answers(silicon: Teacher) -> None:
    far = silicon.potential
    graphs = [build_graph(bulk("Si", a=a), far.cutoff, dtype=torch.float64) for a in (5.2, 5.4, 5.6)]
    expected = [far.predict(graph) for graph in graphs]

    def ask(graph: Graph) -> list[Prediction]:
        return [far.predict(graph) for _ in range(50)]

    with ThreadPoolExecutor(len(graphs)) as pool:
        for found, one in zip(pool.map(ask, graphs), expected, strict=True):
            for prediction in found:
                same(prediction, one)


def test_threads_that_find_no_worker_start_one_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    far = remote().potential
    far.close()
    started: list[remotely.Worker] = []

    class Counted(remotely.Worker):
        def __init__(self, *arguments: Any) -> None:
            started.append(self)
            super().__init__(*arguments)

    monkeypatch.setattr(remotely, "Worker", Counted)
    together = threading.Barrier(2)

    def ask() -> None:
        together.wait(SECONDS)
        far.ping()

    with ThreadPoolExecutor(2) as pool:
        for asked in [pool.submit(ask), pool.submit(ask)]:
            asked.result()
    assert len(started) == 1
    far.close()


def test_what_is_counted_in_one_thread_is_not_counted_in_another(silicon: Teacher) -> None:
    far = silicon.potential
    graph = graph_for(far)
    kept = Kept(far, graph.num_atoms, graph.num_edges)
    with far.counting(kept), ThreadPoolExecutor(1) as pool:
        pool.submit(far.predict, graph).result()
        assert kept.sizes == (0, 0)
        with pytest.raises(CapabilityError, match="leave create_graph out"):
            pool.submit(far.predict, graph, create_graph=True).result()
        far.predict(graph)
    assert sum(kept.sizes) > 0


@pytest.mark.parametrize("how", ["killed", "closed"])
def test_a_worker_that_ends_is_said_to_the_threads_that_wait_for_it(how: str) -> None:
    far = odd("sleeps")
    worker, graph = far._worker, graph_for(far)
    assert worker is not None
    with ThreadPoolExecutor(2) as pool:
        asks = pool.submit(far.predict, graph)
        wait_for(worker._turn.locked)
        waits = pool.submit(worker.ask, Message({"ask": "ping"}))
        if how == "killed":
            os.kill(pid(far), signal.SIGKILL)
        else:
            far.close()
        with pytest.raises(WorkerError, match=r"killed by signal 9|exit code 0"):  # 0: before it read the question
            asks.result(SECONDS)
        with pytest.raises(WorkerError, match="was ended while another thread asked it; run the same again"):
            waits.result(SECONDS)


def test_pipes_that_another_thread_has_just_closed_are_said_as_the_end_of_the_worker() -> None:
    far = remote().potential
    assert far._worker is not None
    far._worker._out.close()
    with pytest.raises(WorkerError, match="ended with the exit code 0; run the same again"):
        far.ping()


# --- processes ------------------------------------------------------------------------------------------


def test_a_worker_that_is_killed_is_said_with_its_last_words_and_the_next_question_starts_another() -> None:
    far = odd("killed")
    graph, first = graph_for(far), pid(far)
    expected = (
        r"^the worker of stillinger-weber/teacher was killed by signal 9 \(SIGKILL\), maybe for want of memory; its "
        r"last words: something went wrong; run the same again, which starts another; if that is killed too, take "
        r"smaller structures, or a machine with more memory$"
    )
    with pytest.raises(WorkerError, match=expected):
        far.predict(graph)
    far.ping()
    assert pid(far) != first
    far.close()


def test_a_worker_that_ends_itself_is_said() -> None:
    far = odd("exits")
    with pytest.raises(WorkerError, match="ended with the exit code 7"):
        far.predict(graph_for(far))


def test_a_worker_that_was_killed_between_questions_is_said_too() -> None:
    far = remote().potential
    os.kill(pid(far), signal.SIGTERM)
    wait_for(lambda: not lives(pid(far)))
    with pytest.raises(WorkerError, match="killed by signal 15"):
        far.ping()
    far.ping()
    far.close()


def test_a_worker_whose_weights_were_changed_meanwhile_is_refused() -> None:
    far = remote().potential
    far.close()
    far.told = far.told | {"weights_sha256": "0" * 64}
    with pytest.raises(IntegrityError, match="is another one than it was"):
        far.ping()


def test_ctrl_c_ends_the_question_and_the_worker_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    far = odd("sleeps")
    graph, first = graph_for(far), pid(far)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells ignore in the background
    sender = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    sender.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            far.predict(graph)
    finally:
        sender.join()
        signal.signal(signal.SIGINT, before)
    wait_for(lambda: not lives(first))
    assert capfd.readouterr() == ("", "")
    far.ping()
    far.close()


def test_ctrl_c_on_a_terminal_which_goes_to_the_worker_too_does_not_end_it(silicon: Teacher) -> None:
    silicon.potential.ping()
    first = pid(silicon.potential)
    os.kill(first, signal.SIGINT)
    silicon.potential.ping()
    assert pid(silicon.potential) == first


def test_a_worker_is_given_no_token_of_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "ZOO_HUB_TOKEN")
    for name in (*tokens, "ZOO_TEST_WORD"):
        monkeypatch.setenv(name, "hf_abc")
    far = remote().potential
    given = Path(f"/proc/{pid(far)}/environ").read_text().split("\0")
    assert [one for one in given if one.endswith("=hf_abc")] == ["ZOO_TEST_WORD=hf_abc"]
    far.close()


def test_a_potential_that_nobody_holds_leaves_no_process_behind() -> None:
    far = remote().potential
    process = pid(far)
    del far
    gc.collect()
    assert not lives(process)


_PARENT = """
import sys
from pathlib import Path
import torch
from test_worker import odd, remote, graph_for, pid
far = remote().potential if sys.argv[1] == "idle" else odd("sleeps")
print(pid(far), flush=True)
if sys.argv[1] != "ends":
    far.predict(graph_for(far))
    sys.stdin.read()
"""


@pytest.mark.parametrize("state", ["idle", "busy", "ends"])
def test_a_worker_ends_with_its_parent_even_one_that_is_killed(state: str) -> None:
    path = os.pathsep.join([str(HERE), os.environ["PYTHONPATH"]])
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, state],
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        process = int(parent.stdout.readline())
        if state == "ends":
            assert parent.communicate(timeout=SECONDS) == ("", "")
            assert parent.returncode == 0
        else:
            assert lives(process)
            time.sleep(0.5)
            parent.kill()
    wait_for(lambda: not lives(process))


# --- labels and a whole recipe --------------------------------------------------------------------------


@pytest.fixture
def taught_from_afar(monkeypatch: pytest.MonkeyPatch) -> list[Teacher]:
    """Runs ask their teacher in a process of its own; the list of those that were loaded."""
    loaded: list[Teacher] = []

    def load(name: str, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Teacher:
        loaded.append(load_remote(name, dtype, device, Path(sys.executable)))
        return loaded[-1]

    monkeypatch.setattr(zoo.run, "load_teacher", load)
    return loaded


def content(folder: Path) -> dict[str, bytes]:
    """Every file, but for times and locks."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("timing.json", ".lock")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_labelling_goes_on_after_its_worker_was_killed_and_ends_with_the_same_bits(
    tmp_path: Path, taught_from_afar: list[Teacher], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(labels__extras=["atomic_energies"])
    written: list[int] = []
    write = label_module.write_shard

    def write_and_kill(folder: Path, plan: Any, shard: int, labels: Any) -> None:
        write(folder, plan, shard, labels)
        written.append(shard)
        if len(written) == 2:
            os.kill(pid(taught_from_afar[-1].potential), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(label_module, "write_shard", write_and_kill)
        with pytest.raises(WorkerError, match="killed by signal 9"):
            make_labels(Run.of(recipe, tmp_path / "far"))
    kept = {name for name in content(tmp_path / "far") if "shard-" in name}
    assert len(kept) == 2
    make_labels(Run.of(recipe, tmp_path / "far"))
    assert len(taught_from_afar) == 2
    monkeypatch.undo()
    make_labels(Run.of(recipe, tmp_path / "near"))
    assert content(tmp_path / "far") == content(tmp_path / "near")


@pytest.mark.slow
def test_a_whole_recipe_is_carried_out_with_a_teacher_in_another_process(
    tmp_path: Path, taught_from_afar: list[Teacher], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("phonopy", reason="evaluation needs the extra train")
    recipe = tiny_recipe(loss__hessian_from="teacher")
    model = distill(Run.of(recipe, tmp_path / "far"))
    assert (model / "manifest.json").is_file()
    assert len(taught_from_afar) == 1
    monkeypatch.undo()
    train_student(Run.of(recipe, tmp_path / "near"))
    weights = [(tmp_path / run / "train" / "model.safetensors").read_bytes() for run in ("far", "near")]
    assert weights[0] == weights[1]


# --- messages -------------------------------------------------------------------------------------------

ODD_TENSORS = {
    "nothing": torch.zeros(0, 3),
    "one": torch.tensor(1.5, dtype=torch.float64),
    "not a number": torch.tensor([float("nan"), float("inf"), -0.0]),
    "turned": torch.arange(6.0).reshape(2, 3).t(),
    "wide": torch.zeros(1).expand(4),
    "yes": torch.tensor([True, False]),
    "signs": torch.tensor([-1, 1], dtype=torch.int8),
}


def packed(message: Message) -> bytes:
    stream = io.BytesIO()
    send(stream, message)
    return stream.getvalue()


def test_facts_and_tensors_of_every_kind_arrive_as_they_were() -> None:
    both = torch.arange(4.0)
    shared = {"all": both, "some": both[1:]}
    stream = io.BytesIO(packed(Message({"a": [1, "å"], "b": None}, ODD_TENSORS | shared)) + packed(Message({})))
    found = receive(stream.read)
    assert found is not None
    assert found.facts == {"a": [1, "å"], "b": None}
    for name, tensor in (ODD_TENSORS | shared).items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name].nan_to_num(7.0), tensor.nan_to_num(7.0)), name
    assert receive(stream.read) == Message({})
    assert receive(stream.read) is None


def test_a_graph_arrives_as_it_was() -> None:
    graph = build_graph([bulk("Si"), Atoms("Si")], 4.0, dtype=torch.float32)
    message = receive(io.BytesIO(packed(Message({}, graph_tensors(graph)))).read)
    assert message is not None
    for name, tensor in vars(graph_of(message.tensors)).items():
        assert torch.equal(tensor, getattr(graph, name)), name
    del message.tensors["graph.shifts"]
    with pytest.raises(WorkerError, match=r"lacks 'graph\.shifts'"):
        graph_of(message.tensors)


def test_a_message_that_is_cut_anywhere_is_said_to_be_cut() -> None:
    whole = packed(Message({"a": 1}, {"b": torch.zeros(2)}))
    for length in range(1, len(whole)):
        with pytest.raises(WorkerError, match=r"the stream was cut after \d+ of \d+ bytes"):
            receive(io.BytesIO(whole[:length]).read)


@pytest.mark.parametrize(
    ("garbage", "words"),
    [
        (b"Traceback (most recent call last):", "came where a message was expected"),
        (struct.pack("<4sIQ", b"zoo!", wire.MOST_FACTS + 1, 0), "came where a message was expected"),
        (struct.pack("<4sIQ", b"zoo!", 2, wire.MOST_TENSORS + 1) + b"{}", "came where a message was expected"),
        (struct.pack("<4sIQ", b"zoo!", 2, 0) + b"[]", "the facts are no table"),
        (struct.pack("<4sIQ", b"zoo!", 3, 0) + b"{a}", "a message cannot be read"),
        (struct.pack("<4sIQ", b"zoo!", 2, 9) + b"{}" + b"\xff" * 9, "a message cannot be read"),
    ],
)
def test_what_is_no_message_is_refused_before_anything_is_made_of_it(garbage: bytes, words: str) -> None:
    with pytest.raises(WorkerError, match=rf"{words}.*end both processes"):
        receive(io.BytesIO(garbage).read)


def test_a_message_that_is_too_large_is_not_begun(monkeypatch: pytest.MonkeyPatch, silicon: Teacher) -> None:
    graph = graph_for(silicon.potential)
    monkeypatch.setattr(wire, "MOST_TENSORS", 1000)
    with pytest.raises(CapabilityError, match="ask for fewer probes"):
        silicon.potential.predict(graph)
    monkeypatch.undo()
    silicon.potential.predict(graph)


def test_all_that_is_known_of_a_teacher_can_be_said_in_a_message(silicon: Teacher) -> None:
    here = load_teacher(SILICON, dtype=torch.float64)
    assert json.loads(json.dumps(asdict(here.potential.traits))) == asdict(silicon.potential.traits)


def test_a_package_that_is_missing_there_is_a_missing_package_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By a Python that is given zoo and torch alone."""
    blocked = tmp_path / "tblite.py"
    blocked.write_text("raise ImportError('libgomp.so.1: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]))
    with pytest.raises(MissingPackageError, match="libgomp"):
        remote(XTB)
    shutil.rmtree(tmp_path)
