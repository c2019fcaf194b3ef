"""Killed at any moment, with no chance to tidy up, work ends with the same files as undisturbed work.

A moment is one of the processor's time, which other work on the machine neither shortens nor lengthens much: the kernel
ends the process when it has used so much of it.
"""

import multiprocessing
import random
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from recipes import TINY, tiny_recipe
from zoo.pipeline import make_labels, make_structures, train_student
from zoo.recipe import Recipe
from zoo.run import Run

Work = Callable[[Run], object]

MOMENTS = 10
NEVER_THE_SAME = {"timing.json", ".lock"}

CONTEXT = multiprocessing.get_context("forkserver")  # a fresh process each, but PyTorch is imported once
CONTEXT.set_forkserver_preload(["zoo.pipeline", "torch._inductor"])  # which deterministic algorithms import


def long_recipe() -> Recipe:
    """The tiny recipe and more, with so much to do that a random moment falls in the middle of it."""
    structures = dict(TINY["structures"])
    structures["groups"] = [group | {"count": 10 * group["count"]} for group in structures["groups"]]
    more = {"labels__extras": ["atomic_energies"], "loss__atomic_energy": 5, "loss__hessian_from": "teacher"}
    return tiny_recipe(structures=structures, training__steps=40, training__batch_atoms=40, **more)


def carry_out(work: Work, folder: Path, kill_after: float | None = None) -> tuple[int, float]:
    """The exit code of a process that does this work, and the processor's seconds that it took, if it came to its end.

    With ``kill_after`` it is killed when it has used so many of these.
    """
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_in_process, args=(work, folder, sender, kill_after))
    process.start()
    sender.close()
    with receiver:
        process.join()
        assert process.exitcode is not None
        return process.exitcode, receiver.recv() if process.exitcode == 0 else 0.0


def _in_process(work: Work, folder: Path, sender: Connection, kill_after: float | None) -> None:
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # or tqdm's lock has a name, which a kill would leave behind
    run = Run.of(long_recipe(), folder)
    started = time.process_time()
    if kill_after is not None:
        signal.setitimer(signal.ITIMER_PROF, kill_after)  # its signal ends the process, as nothing here handles it
    work(run)
    with sender:
        sender.send(time.process_time() - started)


def content(folder: Path) -> dict[Path, bytes]:
    """Every file, hidden ones too, but for the times."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name not in NEVER_THE_SAME)
    return {path.relative_to(folder): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with labels, to be copied."""
    folder = tmp_path_factory.mktemp("kills") / "labelled"
    make_labels(Run.of(long_recipe(), folder))
    return folder


def begin(folder: Path, start: Path | None) -> Path:
    if start is not None:
        shutil.copytree(start, folder)
    return folder


def check_kills(work: Work, folder: Path, start: Path | None, partial: str, last: str) -> None:
    """Kills this work at random moments, each time in a fresh folder, and lets it come to its end.

    At one of them at least there must be a file like ``partial`` and not yet the file ``last``: work to go on from.
    """
    seconds = []
    for name in ("whole", "again"):
        code, taken = carry_out(work, begin(folder / name, start))
        assert code == 0
        seconds.append(taken)
    expected = content(folder / "whole")
    assert content(folder / "again") == expected, "not even two undisturbed runs end with the same files"

    moments = random.Random(2)
    kills = resumed = 0
    for number in range(3 * MOMENTS):  # a run may be faster than those that were timed, and end before its moment
        place = begin(folder / str(number), start)
        moment = moments.uniform(0, min(seconds))
        code, _ = carry_out(work, place, kill_after=moment)
        if code != 0:
            assert code == -signal.SIGPROF
            kills += 1
            resumed += bool(list(place.rglob(partial))) and not (place / last).exists()
            code, _ = carry_out(work, place)
            assert code == 0, f"killed after {moment:.3f} s it does not go on"
        check_same(place, expected, f"killed after {moment:.3f} s")
        shutil.rmtree(place)
        if kills >= MOMENTS and resumed:
            break
    assert kills >= MOMENTS, "too few runs were still at work at their moment"
    assert resumed, "no kill left anything to go on from"


def check_same(place: Path, expected: dict[Path, bytes], when: str) -> None:
    found = content(place)
    assert not [path for path in found if path.suffix == ".tmp"]
    assert found.keys() == expected.keys(), when
    assert not [path for path in expected if found[path] != expected[path]], when


@pytest.mark.slow
def test_labelling_killed_at_ten_random_moments_ends_with_the_same_files(tmp_path: Path) -> None:
    check_kills(make_labels, tmp_path, None, partial="shard-*.safetensors", last="labels/test/manifest.json")


@pytest.mark.slow
def test_training_killed_at_ten_random_moments_ends_with_the_same_files(tmp_path: Path, labelled: Path) -> None:
    check_kills(
        train_student, tmp_path, labelled, partial="checkpoint/last.safetensors", last="train/model.safetensors"
    )


def thousand_recipe() -> Recipe:
    """A thousand structures in 50 shards."""
    counts = {"cells": 960, "held": 20, "tested": 20}
    groups = [group for group in TINY["structures"]["groups"] if group["name"] in counts]
    structures = TINY["structures"] | {"groups": [group | {"count": counts[group["name"]]} for group in groups]}
    return tiny_recipe(structures=structures, labels__shard_size=20)


def label_a_thousand(run: Run) -> None:
    """Work for a process of its own, in the folder of the run that it is given."""
    make_labels(Run.of(thousand_recipe(), run.folder))


@pytest.mark.slow
def test_a_thousand_structures_are_labelled_through_kills_and_none_is_labelled_twice(tmp_path: Path) -> None:
    """One kill after another in one folder: each start goes on from the shards of all before, which are left alone."""
    start = tmp_path / "start"
    make_structures(Run.of(thousand_recipe(), start))
    code, seconds = carry_out(label_a_thousand, begin(tmp_path / "whole", start))
    assert code == 0
    expected = content(tmp_path / "whole")
    assert sum(path.name.startswith("shard-") for path in expected) == 48 + 1 + 1

    place, moments = begin(tmp_path / "killed", start), random.Random(3)
    kept: dict[Path, int] = {}
    kills = code = 0
    for _ in range(100):
        code, _ = carry_out(label_a_thousand, place, kill_after=moments.uniform(0.1, 0.4) * seconds)
        shards = {path: path.stat().st_mtime_ns for path in place.glob("labels/*/shard-*")}
        assert kept.items() <= shards.items(), "a shard that was there is made again, or gone"
        kept, kills = shards, kills + (code != 0)
        if code == 0:
            break
    assert code == 0, "it never comes to its end"
    assert kills >= 4
    check_same(place, expected, f"after {kills} kills")
