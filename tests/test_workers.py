"""Several processes do what one does: the same labels, the same curve, and no wait for one that is gone."""

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich_teacher import Rich, teacher_of
from safetensors.torch import load_file
from together import CASES, LABELS, cells

import zoo.distill.label as label_module
from recipes import tiny_recipe, write_tiny
from zoo.data.labels import begin
from zoo.distill.batches import Batches
from zoo.distill.examples import make_examples
from zoo.distill.label import label_plan, label_structures
from zoo.distill.task import Task
from zoo.distill.workers import ALONE, Workers, launched_workers
from zoo.errors import LabelError, MissingPackageError
from zoo.pipeline import make_labels
from zoo.run import Run

HERE = Path(__file__).parent
PROGRAM = HERE / "together.py"
SECONDS = 240  # after which no test waits any longer
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")

together = pytest.mark.skipif(
    not shutil.which("accelerate", path=str(Path(sys.executable).parent)), reason="accelerate: pip install accelerate"
)


def environment() -> dict[str, str]:
    """That of a shell from which no launcher was started, with this source and one thread."""
    clean = {name: value for name, value in os.environ.items() if name not in LAUNCHERS}
    path = os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
    return clean | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def processes(size: int, *arguments: object) -> list[tuple[int, str]]:
    """Exit code and standard error of each of so many processes of the program; one is launched as anyone would."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    started = []
    for rank in range(size):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        own = {name: str(value) for name, value in names.items()} if size > 1 else {}
        started.append(subprocess.Popen(command, env=environment() | own, stderr=subprocess.PIPE, text=True))
    try:
        errors = [process.communicate(timeout=SECONDS)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, error) for process, error in zip(started, errors, strict=True)]


def carry_out(size: int, *arguments: object) -> Path:
    """Does it to the end, in the folder that is the second argument."""
    for code, error in processes(size, *arguments):
        assert code == 0, error[-2000:]
    return Path(str(arguments[1]))


def launch(*command: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """What a command of this installation says, in a folder."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment() | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def torchrun(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    return launch("torchrun", "--standalone", "--nproc-per-node", 2, "-m", "--", "zoo", *arguments, folder=folder)


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "train" / "metrics.jsonl").read_text().splitlines()]


def distance(one: Path, two: Path) -> float:
    """The largest relative difference of two trainings: of anything they wrote down, and of weights."""
    first, second = records(one), records(two)
    assert [record.keys() for record in first] == [record.keys() for record in second]
    furthest = 0.0
    for before, after in zip(first, second, strict=True):
        for key, value in before.items():
            if isinstance(value, float):
                furthest = max(furthest, abs(after[key] / value - 1))
            else:
                assert after[key] == value
    for file in ("model.safetensors", "checkpoint/last.safetensors"):
        weights, others = load_file(one / "train" / file), load_file(two / "train" / file)
        assert weights.keys() == others.keys()
        for name, tensor in weights.items():
            size = max(float(tensor.abs().max()), 1e-300) if tensor.numel() else 1.0
            furthest = max(furthest, float((others[name] - tensor).abs().sum()) / size)
    return furthest


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in ("timing.json", ".lock"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the labels of all cases, to be copied: they do not depend on who made them."""
    return carry_out(1, "labels", tmp_path_factory.mktemp("labelled"))


@pytest.fixture(scope="module")
def alone(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The trainings of one process."""
    folders = {}
    for case in CASES:
        folders[case] = shutil.copytree(labelled, tmp_path_factory.mktemp("alone") / case)
        carry_out(1, case, folders[case])
    return folders


@pytest.fixture(scope="module")
def pair(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training of two processes, with every term."""
    return carry_out(2, "conservative", shutil.copytree(labelled, tmp_path_factory.mktemp("pair") / "run"))


def test_what_is_dealt_out_is_all_there_is_and_evenly_spread():
    costs = [5.0, 1.0, 1.0, 4.0, 2.0, 3.0, 1.0]
    items = list("abcdefg")
    parts = [Workers(rank, 3).share(items, costs) for rank in range(3)]
    assert sorted("".join("".join(part) for part in parts)) == items
    assert all(part == sorted(part) for part in parts)
    loads = [sum(costs[items.index(item)] for item in part) for part in parts]
    assert max(loads) - min(loads) <= 1
    assert ALONE.share(items, costs) == items
    assert [Workers(rank, 4).share("ab") for rank in range(4)] == [["a"], ["b"], [], []]


def test_one_process_needs_no_accelerate(monkeypatch):
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    with launched_workers() as workers:
        assert workers is ALONE
    code = "import sys, zoo.cli; sys.exit(bool({'accelerate', 'torch.distributed.run'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], env=environment(), timeout=SECONDS, check=False).returncode == 0


@pytest.mark.parametrize("name", ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_several_processes_without_accelerate_are_told_what_to_install(monkeypatch, name):
    monkeypatch.setenv(name, "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingPackageError, match="pip install accelerate"), launched_workers():
        pass


def test_shards_that_cannot_be_seen_are_waited_for_and_then_named(tmp_path, monkeypatch):
    """Of a file system that is slow to show them, and of nodes that each have a folder of their own."""
    structures, teacher = cells()[:3], teacher_of(Rich())
    plan = label_plan(structures, teacher, LABELS, 5, "float64")
    label_structures(tmp_path, structures, teacher, plan)
    waits: list[float] = []
    monkeypatch.setattr(label_module.time, "sleep", waits.append)
    monkeypatch.setattr(label_module, "begin", lambda folder, plan: [1] if len(waits) < 3 else begin(folder, plan))
    label_module._finish(tmp_path, plan, {1: 1})
    assert len(waits) == 3
    monkeypatch.setattr(label_module, "begin", lambda folder, plan: [1])
    with pytest.raises(LabelError, match=r"shard-00001.safetensors was written by another process .* one --run folder"):
        label_module._finish(tmp_path, plan, {1: 1})
    assert len(waits) < 200


def test_a_case_leaves_a_process_without_a_structure(labelled):
    """Else the curves below would show less than they are to show."""
    structures, teacher = cells(), teacher_of(Rich())
    plan = label_plan(structures, teacher, LABELS, 5, "float64")
    labels = label_structures(labelled / "labels", structures, teacher, plan)
    task = Task(seed=3, data="data", **CASES["direct"])
    examples = make_examples(structures, labels, task.config.cutoff, torch.float64)[:7]
    parts = [[Batches(examples, task, workers=Workers(rank, 2)).at(step) for step in range(12)] for rank in range(2)]
    assert all(batch is not None for batch in parts[0])
    assert 2 <= sum(batch is None for batch in parts[1]) <= 10


@together
@pytest.mark.slow
def test_two_processes_follow_the_curve_of_one(alone, pair):
    """With a term of each kind that a conservative student knows, odd batches, structures of two sizes."""
    assert distance(alone["conservative"], pair) < 1e-10
    assert not list(pair.rglob(".*.tmp"))
    assert not (pair / "nobody").exists(), "another than the main process wrote something"


@together
@pytest.mark.slow
@pytest.mark.parametrize("case", ["direct", "fresh", "plateau"])
def test_so_they_do_where_one_has_nothing_to_do_or_asks_the_teacher(alone, labelled, tmp_path, case):
    folder = carry_out(2, case, shutil.copytree(labelled, tmp_path / case))
    assert distance(alone[case], folder) < 1e-10


@together
@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 2)])
def test_killed_it_goes_on_with_another_number_of_processes(alone, pair, labelled, tmp_path, before, after):
    folder = shutil.copytree(labelled, tmp_path / "run")
    codes = [code for code, _ in processes(before, "conservative", folder, "--die", 8)]
    assert codes == [-signal.SIGKILL] * before
    assert not (folder / "train" / "model.safetensors").exists()
    carry_out(after, "conservative", folder)
    assert distance(alone["conservative"], folder) < 1e-10
    if before == after:
        assert content(folder) == content(pair), "the same number of processes, the same bits"


@together
@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_the_error_of_all(alone, labelled, tmp_path):
    folder = shutil.copytree(labelled, tmp_path / "run")
    assert [code for code, _ in processes(2, "conservative", folder, "--nan", 7)] == [1, 1]
    told = [(folder / f"raised-{rank}.txt").read_text() for rank in range(2)]
    assert told[0] == told[1]
    assert told[0].startswith("DivergedError: the loss is nan at step 7; lower training.learning_rate")
    carry_out(3, "conservative", folder)  # from the last good checkpoint
    assert distance(alone["conservative"], folder) < 1e-10


@together
@pytest.mark.slow
def test_a_process_that_fails_ends_the_others(labelled, tmp_path):
    """The main one waits for the gradient of the other, which never comes; nobody is there to kill it."""
    folder = shutil.copytree(labelled, tmp_path / "run")
    assert [code for code, _ in processes(2, "conservative", folder, "--fail", 5)] == [1, 1]
    told = [(folder / f"raised-{rank}.txt").read_text() for rank in range(2)]
    assert told[1] == "LabelError: this one has had enough"
    assert told[0].startswith("WorkerError: another process of this run has ended or cannot be reached (")


@together
@pytest.mark.slow
def test_labels_of_several_processes_are_those_of_one_byte_for_byte(labelled, tmp_path):
    made = carry_out(2, "labels", tmp_path / "two")
    assert content(made) == content(labelled)
    begun = shutil.copytree(labelled, tmp_path / "begun")
    for number in (0, 3, 4):
        (begun / "labels" / f"shard-{number:05d}.safetensors").unlink()
    (begun / "labels" / "manifest.json").unlink()
    times = {path.name: path.stat().st_mtime_ns for path in (begun / "labels").glob("shard-*")}
    results = processes(3, "labels", begun)
    assert [code for code, _ in results] == [0, 0, 0]
    assert content(begun) == content(labelled)
    after = {path.name: path.stat().st_mtime_ns for path in (begun / "labels").glob("shard-*")}
    assert times.items() <= after.items(), "what was there was made again"
    assert all("structure" not in error for _, error in results[1:]), "a bar beside that of the main process"


def test_the_bar_counts_what_others_have_labelled(tmp_path):
    (tmp_path / "shard-00002.safetensors").touch()
    moved: list[int] = []
    others = {1: 8, 2: 5}
    label_module._count_arrived(tmp_path, others, type("Bar", (), {"update": staticmethod(moved.append)}))
    assert (moved, others) == ([5], {1: 8})


@together
@pytest.mark.slow
def test_a_recipe_is_carried_out_by_two_processes(tmp_path):
    """Structures and evaluation by one of them, labels and training by both; each thing is said once."""
    write_tiny(tmp_path, training__dtype="float64")
    done = torchrun("distill", "tiny.yaml", "--run", "run", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("is ready. Publish it with") == 1
    assert done.stdout.count("NVE energy drift") == 1
    one = Run.of(tiny_recipe(training__dtype="float64"), tmp_path / "one")
    make_labels(one)
    for part in ("structures", "labels"):
        assert content(tmp_path / "run" / part) == content(tmp_path / "one" / part)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    again = torchrun("distill", "tiny.yaml", "--run", "run", folder=tmp_path)
    assert again.stdout == done.stdout
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    refused = torchrun("train", write_other(tmp_path), "--run", "run", folder=tmp_path)
    assert refused.returncode == 1
    assert [line for line in refused.stderr.splitlines() if "zoo: " in line] == [
        "zoo: run/train was made from another recipe or other inputs; pass --replace (in Python replace=True) to "
        "delete it and make it anew, or --run DIR (folder=DIR) to keep it and work elsewhere"
    ]


def write_other(folder: Path) -> Path:
    (folder / "other").mkdir(exist_ok=True)
    return write_tiny(folder / "other", training__dtype="float64", training__steps=30)


@together
@pytest.mark.slow
def test_an_error_that_all_have_is_said_once(tmp_path):
    for command in (("label", "missing.yaml"), ("label", write_tiny(tmp_path, seed="seven"))):
        said = torchrun(*command, folder=tmp_path)
        assert said.returncode == 1
        assert len([line for line in said.stderr.splitlines() if line.startswith("zoo: ")]) == 1
        assert said.stdout == ""


def test_an_environment_that_lacks_something_is_named(tmp_path):
    said = launch("env", "WORLD_SIZE=2", sys.executable, "-m", "zoo", "label", write_tiny(tmp_path), folder=tmp_path)
    assert said.returncode == 1
    assert said.stderr.splitlines()[-1].startswith("zoo: the launcher's environment lacks something (")


def test_the_module_is_the_command(tmp_path):
    for name in ("zoo", "zoo.cli"):
        said = launch(sys.executable, "-m", name, "--version", folder=tmp_path)
        assert said.stdout.startswith("zoo, version "), said.stderr


def page() -> str:
    return (HERE.parent / "docs" / "scale.md").read_text()


def blocks(kind: str) -> list[str]:
    """The blocks of code of the page, of one kind."""
    return [part.split("```")[0] for part in page().split(f"```{kind}\n")[1:]]


@together
@pytest.mark.slow
def test_the_commands_of_the_page_run(tmp_path):
    """Those that are marked to be, with the tiny recipe in the place of the reader's."""
    write_tiny(tmp_path, training__steps=6).rename(tmp_path / "recipe.yaml")
    commands = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]
    assert len(commands) >= 4
    for number, command in enumerate(commands):
        assert "recipe.yaml" in command
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        done = launch("bash", "-c", command, folder=tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"
        assert done.stdout.strip(), number
        assert (tmp_path / "runs" / "stillinger-weber" / "tiny-student" / "labels" / "train" / "manifest.json").exists()


def test_the_slurm_script_is_a_script(tmp_path):
    """Its grammar, and that what it asks of SLURM and of torchrun fits together; there is no SLURM here."""
    (script,) = blocks("slurm")
    path = tmp_path / "job.sh"
    path.write_text(script)
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
    lines = script.splitlines()
    assert lines[0] == "#!/bin/bash"
    options = dict(
        line.removeprefix("#SBATCH --").split("=", 1) for line in lines if line.startswith("#SBATCH") and "=" in line
    )
    assert options["ntasks-per-node"] == "1", "srun starts a torchrun a node, which starts the processes"
    for part in (
        "srun",
        "--kill-on-bad-exit",
        "torchrun",
        "--nnodes",
        "--nproc-per-node",
        "--rdzv-endpoint",
        "scontrol requeue",
    ):
        assert part in script
    assert math.prod(int(options[key]) for key in ("nodes", "cpus-per-task")) >= 2


@together
@pytest.mark.slow
def test_the_slurm_script_runs_where_slurm_is_imitated(tmp_path):
    """``srun`` starts the same command once a node; here both nodes are this machine."""
    (script,) = blocks("slurm")
    write_tiny(tmp_path, training__steps=6).rename(tmp_path / "recipe.yaml")
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    imitate(
        bin_ / "srun", 'while [[ $1 == --* ]]; do shift; done\n"$@" & one=$!\n"$@" & two=$!\nwait $one && wait $two'
    )
    imitate(bin_ / "scontrol", "echo localhost")
    job = tmp_path / "job.sh"
    job.write_text(script)
    names = "SLURM_JOB_ID=7 SLURM_JOB_NODELIST=localhost SLURM_JOB_NUM_NODES=2 SLURM_NNODES=2 SLURM_CPUS_PER_TASK=1"
    done = launch("bash", "-c", f"PATH={bin_}:$PATH {names} bash {job}", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "runs" / "stillinger-weber" / "tiny-student" / "train" / "model.safetensors").exists()


def imitate(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)
