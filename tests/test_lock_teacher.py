"""The lock of a family holds what it and zoo require, for each system what that requires, and no build of PyTorch."""

from pathlib import Path
from types import ModuleType

import pytest
from packaging.markers import default_environment
from test_scripts import load_script

from zoo.teachers import FAMILIES, Family
from zoo.teachers.environments import pythons_of, read_lock

LINUX = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "python_version": "3.11"}
PACKAGES = {
    "tiny-package": ("1.0", ["torch>=2", "nvidia-solver; sys_platform == 'linux'", "hub[fast]", "old; extra == 'x'"]),
    "torch": ("2.13.0+cpu", ["jinja2", "nvidia-blas==13; platform_system == 'Linux'"]),
    "jinja2": ("3.1", ["tomli; python_version < '3.11'"]),
    "tomli": ("2.0", []),
    "nvidia-blas": ("13", []),
    "nvidia-solver": ("4.7", ["cuda-python", "jinja2"]),
    "cuda-python": ("13.4", ["nothing-here", "waves; platform_machine == 'x86_64'"]),
    "waves": ("3", []),
    "hub": ("1.0", ["quick; extra == 'fast'", "slow; extra == 'slow'"]),
    "quick": ("0.1", []),
    "slow": ("0.2", []),
    "old": ("0.3", []),
    "beside": ("9", []),
    "pip": ("26", []),
}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load_script("lock_teacher")
    monkeypatch.setattr(module, "_of_zoo", lambda: ["torch", "jinja2", "pip"])
    family = Family(key="tiny", module="", imports=("tiny",), install="tiny_package", names=(), locked=True)
    monkeypatch.setitem(FAMILIES, "tiny", family)
    return module


def text(script: ModuleType, **system: str) -> str:
    told = default_environment() | LINUX | system
    found: str = script.lock_text("tiny", script.Installed(PACKAGES, told), "3.13")
    return found


def test_what_the_build_of_torch_alone_requires_is_left_out_and_what_others_require_is_not(script: ModuleType) -> None:
    lines = text(script).splitlines()
    pinned = {line.partition("==")[0] for line in lines[1:]}
    assert pinned == {"tiny-package", "torch", "jinja2", "nvidia-solver", "cuda-python", "waves", "hub", "quick"}
    assert "torch==2.13.0" in lines


def test_what_some_systems_alone_require_is_pinned_for_them(script: ModuleType) -> None:
    lines = text(script).splitlines()
    assert 'nvidia-solver==4.7 ; sys_platform == "linux"' in lines
    assert 'cuda-python==13.4 ; sys_platform == "linux"' in lines
    assert 'waves==3 ; sys_platform == "linux" and platform_machine == "x86_64"' in lines
    assert "jinja2==3.1" in lines, "torch requires it everywhere"


def test_conditions_are_those_of_the_environment_and_not_of_the_python_that_asks(script: ModuleType) -> None:
    assert "tomli" not in text(script)
    assert "tomli==2.0" in text(script, python_version="3.10")


def test_the_lock_can_be_read_back(script: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "tiny.txt"
    path.write_text(text(script))
    assert pythons_of(path) == ((3, 11), (3, 13))
    pins = read_lock(path)
    assert pins["tiny-package"].needs == ("hub", "nvidia-solver", "torch>=2")
    assert pins["nvidia-solver"].version == "4.7"
