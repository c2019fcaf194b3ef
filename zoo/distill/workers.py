"""Processes that label or train together, started by torchrun, accelerate or MPI; one process alone is the rule.

Each holds the whole student. A step's batch is dealt out to them, gradients are summed, and all take the same step, so
that the loss curve is that of one process with the same batch, up to the order of sums. All of it goes over gloo, on
CPUs. A process that ends early closes its connections, at which the others end too, instead of waiting for it.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from torch import Tensor, distributed

from zoo.errors import ConfigError, MissingPackageError, WorkerError, ZooError

T = TypeVar("T")

_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # as accelerate reads them
_PATIENCE = timedelta(days=60)  # for others that label, or that wait while the main process makes structures
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Workers:
    """How many processes there are, and which of them this is."""

    rank: int = 0
    size: int = 1
    patient: Any = None  # the group of all of them for waits that last; that of steps gives up after half an hour

    @property
    def main(self) -> bool:
        """Whether this is the process that writes what there must be one of."""
        return self.rank == 0

    def share(self, items: Sequence[T], costs: Sequence[float] | None = None) -> list[T]:
        """What of a list this process does, in order; together they do all of it.

        With costs, the dearest item first goes to whoever has least to do.
        """
        costs = [1.0] * len(items) if costs is None else costs
        loads = [0.0] * self.size
        mine = []
        for index in sorted(range(len(items)), key=lambda index: -costs[index]):
            worker = loads.index(min(loads))
            loads[worker] += costs[index]
            if worker == self.rank:
                mine.append(index)
        return [items[index] for index in sorted(mine)]

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes, the same bits in each."""
        if self.size > 1:
            tensor = tensor.contiguous()
            with _others():
                distributed.all_reduce(tensor)
        return tensor

    def tell(self, value: T) -> T:
        """The main process's value, in all."""
        if self.size == 1:
            return value
        told: list[T] = [value]
        with _others():
            distributed.broadcast_object_list(told, src=0, group=self.patient)
        return told[0]

    def by_main(self, work: Callable[[], T]) -> T:
        """What the main process, alone, makes of ``work``, in all; an error of zoo that it raises, all raise."""
        if self.size == 1:
            return work()
        made: list[T] = []
        failure: ZooError | None = None
        if self.main:
            try:
                made = [work()]
            except ZooError as error:
                failure = error
        made, failure = self.tell((made, failure))
        if failure is not None:
            raise failure
        return made[0]

    def wait(self, meanwhile: Callable[[], None] | None = None) -> None:
        """Until all processes have come here; ``meanwhile`` is called now and then."""
        if self.size == 1:
            return
        with _others():
            arrival = distributed.barrier(group=self.patient, async_op=True)
            while meanwhile is not None and not arrival.is_completed():
                meanwhile()
                time.sleep(_POLL_SECONDS)
            arrival.wait()


ALONE = Workers()


@contextmanager
def launched_workers() -> Iterator[Workers]:
    """The processes that this one was launched with; alone where no launcher says otherwise.

    accelerate reads the environment of torchrun, of itself and of MPI, and is needed only where there are several.
    Raises MissingPackageError, ConfigError where the launcher left something out, WorkerError where others do not come.
    """
    if _launched() == 1:
        yield ALONE
        return
    try:
        from accelerate import PartialState  # lazy: optional
    except ImportError as error:
        raise MissingPackageError("several processes need accelerate; run: pip install accelerate") from error
    try:
        with _others():
            state = PartialState(cpu=True)
            patient = distributed.new_group(backend="gloo", timeout=_PATIENCE)
    except ValueError as error:
        raise ConfigError(f"the launcher's environment lacks something ({error}); start with torchrun") from error
    yield Workers(state.process_index, state.num_processes, patient)
    distributed.destroy_process_group()  # not after an error: others may still ask who is to tell of it


def first_to_fail() -> bool:
    """Whether this process is the first of all in which something went wrong, and so the one to say it."""
    if not distributed.is_initialized():
        return _launched() == 1 or os.environ.get("RANK", "0") == "0"
    try:
        store = distributed.distributed_c10d._get_default_store()
        return int(store.add("zoo/failed", 1)) == 1
    except RuntimeError:  # the process that keeps count has ended, and has said why
        return False


def _launched() -> int:
    """How many processes the launcher, if there is one, says that there are."""
    return next((int(os.environ[name]) for name in _SIZES if os.environ.get(name)), 1)


@contextmanager
def _others() -> Iterator[None]:
    """Where another process is needed: its end becomes an error of zoo."""
    try:
        yield
    except RuntimeError as error:
        raise WorkerError(
            f"another process of this run has ended or cannot be reached ({' '.join(str(error).split())[:200]}); see "
            "what it said, then run the same again"
        ) from error
