"""What all tests share: one thread, fixed seeds, and reasons for what is skipped."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

_OPTIONAL = {  # marker -> package, how to get it
    "sevennet": ("sevenn", "pip install sevenn"),
    "scatter": ("torch_scatter", "pip install --no-build-isolation torch-scatter"),
}


def pytest_configure() -> None:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    required = _required()
    for marker, (package, remedy) in _OPTIONAL.items():
        if importlib.util.find_spec(package) is None:
            reason = f"{package} is not installed: {remedy}"
            if marker in required:
                raise pytest.UsageError(f"ZOO_REQUIRE asks for {marker}, but {reason}")
            for item in items:
                if item.get_closest_marker(marker):
                    item.add_marker(pytest.mark.skip(reason=reason))


def _required() -> set[str]:
    """The markers that ZOO_REQUIRE names: their tests must not be skipped."""
    required = {name.strip() for name in os.environ.get("ZOO_REQUIRE", "").split(",")} - {""}
    if unknown := required - set(_OPTIONAL):
        raise pytest.UsageError(f"ZOO_REQUIRE names {', '.join(sorted(unknown))}; known are {', '.join(_OPTIONAL)}")
    return required


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
