"""What all tests share: one thread, fixed seeds, and reasons for what is skipped."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

_PACKAGES = {"sevennet": "sevenn", "scatter": "torch_scatter"}


def pytest_configure() -> None:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for marker, package in _PACKAGES.items():
        if importlib.util.find_spec(package) is None:
            absent = pytest.mark.skip(reason=f"{package} is not installed: pip install 'mlff-zoo[{marker}]'")
            for item in items:
                if item.get_closest_marker(marker):
                    item.add_marker(absent)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder of real samples."""
    folder = os.environ.get("ZOO_TEST_DATA")
    if not folder:
        pytest.skip("real samples: set ZOO_TEST_DATA to their folder")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"ZOO_TEST_DATA is {folder}, which is not a folder")
    return path
