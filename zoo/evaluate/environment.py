"""On what, and with what, something was measured. Names no host, no user and no path."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from zoo.version import __version__

PACKAGES = ("torch", "numpy", "ase", "vesin", "phonopy", "sevenn", "torch-scatter")
_GIB = 1 << 30


def hardware() -> dict[str, str | int | float | None]:
    """The processor, its cores that this process may use, PyTorch's threads, memory and GPU."""
    return {
        "cpu": _cpu_model(),
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "memory_GiB": _memory(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def versions() -> dict[str, str]:
    """Python, zoo, and those of the packages that decide numbers which are installed."""
    found = {"python": platform.python_version(), "zoo": __version__}
    installed = {package: _version(package) for package in PACKAGES}
    return found | {package: text for package, text in installed.items() if text is not None}


def _cpu_model() -> str:
    """As the kernel calls it; the architecture where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _cores() -> int:
    """That this process may run on, where the system tells."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else (os.cpu_count() or 1)


def _memory() -> float | None:
    """GiB of the whole machine."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
