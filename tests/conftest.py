"""What all tests share: one thread, fixed seeds, no network but loopback, and reasons for what is skipped."""

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from hub_server import HubServer

import zoo.distill.train as training
from zoo.kernels import compile_kernels

_OPTIONAL = {  # marker -> package, how to get it
    "sevennet": ("sevenn", "pip install sevenn"),
    "xtb": ("tblite", "pip install tblite threadpoolctl"),
    "reference": ("fairchem", "pip install --no-deps fairchem-core==1.10.0 torch_geometric"),
    "scatter": ("torch_scatter", "pip install --no-build-isolation torch-scatter"),
    "torchsim": ("torch_sim", "pip install torch-sim-atomistic"),
    "mace": ("mace", "pip install mace-torch"),
    "orb": ("orb_models", "pip install orb-models"),
    "aimnet2": ("aimnet", "pip install aimnet"),
    "fairchem": ("torchtnt", "pip install fairchem-core"),  # which version 1 does not need
}


def pytest_configure() -> None:
    torch.set_num_threads(1)
    os.environ["ZOO_COMPILE"] = "never"  # the kernels' own tests compile them, once
    if huggingface_hub.constants.is_offline_mode():  # the client reads the variable once, when it is imported
        raise pytest.UsageError("HF_HUB_OFFLINE is set, which keeps the client from the tests' own hub; unset it")


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


@pytest.fixture(scope="session")
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture
def kernels(no_hub: None, kernel_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines take compiled code, from one library for all tests that ask for this."""
    monkeypatch.setenv("ZOO_CACHE", str(kernel_cache))
    monkeypatch.delenv("ZOO_COMPILE")
    found = compile_kernels()
    if found.library is None:
        pytest.skip(found.reason)


@pytest.fixture(autouse=True)
def no_hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub, token or cache of this machine; a test that wants a server asks for it."""
    for name in ("ZOO_HUB", "ZOO_NAMESPACE", "ZOO_HUB_TOKEN", "ZOO_HUB_TIMEOUT", "HF_ENDPOINT", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub over HTTP that zoo publishes to and loads from, as the user me."""
    with HubServer(users={"token-of-me": "me", "token-of-you": "you"}) as hub:
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setenv("ZOO_HUB", hub.endpoint)
        monkeypatch.setenv("ZOO_HUB_TOKEN", "token-of-me")
        monkeypatch.setenv("ZOO_NAMESPACE", "me")
        monkeypatch.setattr("zoo.hub.client.PAUSES", (0.01, 0.02))
        yield hub


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    torch.manual_seed(0)


@pytest.fixture
def interrupted_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """Within it, a training is interrupted as by ctrl-C when so many steps are done, which must happen."""

    @contextmanager
    def interrupted(step: int) -> Iterator[None]:
        original = training.update_average

        def interrupt(state: Any, decay: float) -> None:
            original(state, decay)
            if state.step == step:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(training, "update_average", interrupt)
            try:
                yield
            except KeyboardInterrupt:
                return
        pytest.fail(f"the training was not interrupted at step {step}")

    return interrupted


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
