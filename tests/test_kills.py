"""Killed at any moment by the signal that no program can catch, work ends with the same files as undisturbed work."""

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
from zoo.pipeline import make_labels, train_student
from zoo.recipe import Recipe
from zoo.run import Run

Work = Callable[[Run], object]

MOMENTS = 10
NEVER_THE_SAME = {"timing.json", ".lock"}

CONTEXT = multiprocessing.get_context("forkserver")  # a fresh process each, but PyTorch is imported once
CONTEXT.set_forkserver_preload(["zoo.pipeline"])


def long_recipe() -> Recipe:
    """The tiny recipe and more, with so much to do that a random moment falls in the middle of it."""
    structures = dict(TINY["structures"])
    structures["groups"] = [group | {"count": 10 * group["count"]} for group in structures["groups"]]
    more = {"labels__extras": ["atomic_energies"], "loss__atomic_energy": 5, "loss__hessian_from": "teacher"}
    return tiny_recipe(structures=structures, training__steps=40, training__batch_atoms=40, **more)


def carry_out(work: Work, folder: Path, kill_after: float | None = None) -> tuple[int, float]:
    """The exit code of a process that does this work, and its seconds; killed after so many of them."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_in_process, args=(work, folder, sender))
    process.start()
    sender.close()
    with receiver:
        assert receiver.recv() == "ready"
    started = time.perf_counter()
    process.join(kill_after)
    process.kill()
    process.join()
    assert process.exitcode is not None
    return process.exitcode, time.perf_counter() - started


def _in_process(work: Work, folder: Path, sender: Connection) -> None:
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # or tqdm's lock has a name, which a kill would leave behind
    run = Run.of(long_recipe(), folder)
    with sender:
        sender.send("ready")
    work(run)


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
    for number in range(2 * MOMENTS):  # a run may be faster than those that were timed, and end before its moment
        place = begin(folder / str(number), start)
        moment = moments.uniform(0, min(seconds))
        code, _ = carry_out(work, place, kill_after=moment)
        if code != 0:
            assert code == -signal.SIGKILL
            kills += 1
            resumed += bool(list(place.rglob(partial))) and not (place / last).exists()
            code, _ = carry_out(work, place)
            assert code == 0, f"killed after {moment:.3f} s it does not go on"
        found = content(place)
        assert not [path for path in found if path.suffix == ".tmp"]
        assert found.keys() == expected.keys(), f"killed after {moment:.3f} s"
        assert not [path for path in expected if found[path] != expected[path]], f"killed after {moment:.3f} s"
        shutil.rmtree(place)
        if kills == MOMENTS:
            break
    assert kills == MOMENTS, "too few runs were still at work at their moment"
    assert resumed, "no kill left anything to go on from"


@pytest.mark.slow
def test_labelling_killed_at_ten_random_moments_ends_with_the_same_files(tmp_path: Path) -> None:
    check_kills(make_labels, tmp_path, None, partial="shard-*.safetensors", last="labels/test/manifest.json")


@pytest.mark.slow
def test_training_killed_at_ten_random_moments_ends_with_the_same_files(tmp_path: Path, labelled: Path) -> None:
    check_kills(
        train_student, tmp_path, labelled, partial="checkpoint/last.safetensors", last="train/model.safetensors"
    )
