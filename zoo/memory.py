"""How much memory is free, how much is kept for gradients, and what it looks like when there is none left."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from zoo.errors import StructureError

_PROCESS = Path("/proc")  # what Linux says of the machine and of this process
_GROUPS = Path("/sys/fs/cgroup")
_UNTOLD = 2 << 30  # bytes that are taken to be free where the system does not say
_EXHAUSTED = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "alloc_failed", "no memory")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory is exhausted; PyTorch, its libraries and our kernels do so in many ways."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, (RuntimeError, StructureError)) and any(words in text for words in _EXHAUSTED)


@contextmanager
def until_out_of_memory() -> Iterator[None]:
    """What is within ends, without an error, where memory does."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise


class Kept:
    """Counts the bytes of tensors that are kept for gradients, but for weights; each but once."""

    def __init__(self, module: nn.Module, atoms: int, edges: int) -> None:
        self._atoms, self._edges = atoms, edges
        self._weights = {_address(tensor) for tensor in (*module.parameters(), *module.buffers())}
        self._sizes: dict[int, tuple[int, bool]] = {}  # address -> bytes, and whether they are of atoms
        self._elsewhere = (0, 0)

    def add(self, tensor: Tensor) -> Tensor:
        """Keeps a tensor as it is."""
        of_atoms = tensor.dim() > 0 and tensor.shape[0] == self._atoms != self._edges
        try:
            place, size = _address(tensor), tensor.untyped_storage().nbytes()
        except RuntimeError:  # of forward mode, which has no memory of its own to be told apart by
            place, size = -1 - len(self._sizes), tensor.numel() * tensor.element_size()
        if place not in self._weights:
            self._sizes[place] = size, of_atoms
        return tensor

    def add_elsewhere(self, of_atoms: int, of_edges: int) -> None:
        """What another process has counted."""
        self._elsewhere = self._elsewhere[0] + of_atoms, self._elsewhere[1] + of_edges

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes of what has a row for each atom, and of the rest, which is shared among edges."""
        of_atoms = sum(size for size, atomic in self._sizes.values() if atomic)
        of_edges = sum(size for size, atomic in self._sizes.values() if not atomic)
        return of_atoms + self._elsewhere[0], of_edges + self._elsewhere[1]


def free_memory(device: torch.device) -> int:
    """Bytes that may still be taken on a device: free, and within the limits of this process."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    told = [_available(), _left_of_address_space(), *_left_in_control_groups()]
    return max(min((size for size in told if size is not None), default=_UNTOLD), 0)


def _available() -> int | None:
    """Of the whole machine, before it swaps; None where the system does not say."""
    with suppress(OSError, ValueError):
        return _number_after("MemAvailable:", _PROCESS / "meminfo") << 10
    with suppress(AttributeError, OSError, ValueError):  # not Linux: a share of what is built in
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    return None


def _left_of_address_space() -> int | None:
    """Of what ``ulimit -v`` allows; None where there is no limit."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    with suppress(OSError, ValueError):
        pages = int((_PROCESS / "self" / "statm").read_text(encoding="ascii").split()[0])
        return limit - pages * os.sysconf("SC_PAGE_SIZE")
    return limit


def _left_in_control_groups() -> list[int]:
    """Of each limit that containers and job schedulers put on this process; files that may give way count as free."""
    left = []
    for folder, limit, used, files in _control_groups():
        with suppress(OSError, ValueError):  # a group without a limit has no such file, or a word in it
            most, taken = (int((folder / name).read_text(encoding="ascii")) for name in (limit, used))
            left.append(most - taken + _number_after(files, folder / "memory.stat"))
    return left


def _control_groups() -> Iterator[tuple[Path, str, str, str]]:
    """Each group of this process up to the root, of either version: its folder, and what its limit and use are called.

    The last name is that of the files in memory that nobody uses at the moment.
    """
    with suppress(OSError, ValueError):
        for line in (_PROCESS / "self" / "cgroup").read_text(encoding="utf-8").splitlines():
            number, kinds, place = line.split(":", 2)
            if number == "0":
                root, names = _GROUPS, ("memory.max", "memory.current", "inactive_file")
            elif "memory" in kinds.split(","):
                root = _GROUPS / "memory"
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            else:
                continue
            group = root / place.strip("/")
            for folder in (group, *group.parents):
                if folder.is_relative_to(root):
                    yield (folder, *names)


def _number_after(word: str, path: Path) -> int:
    """Of the line that begins with a word. Raises OSError, ValueError."""
    for line in path.read_text(encoding="ascii").splitlines():
        first, _, rest = line.partition(" ")
        if first == word:
            return int(rest.split()[0])
    raise ValueError(f"no line {word} in {path}")


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
