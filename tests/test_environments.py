"""Environments of teachers: whole or made anew, and what keeps one from being made is one line with the remedy."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import threading
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import zoo.install_teacher as installing
import zoo.teachers.clashes as clashing
import zoo.teachers.environments as environments
from zoo.errors import ConfigError, MissingPackageError, UnknownNameError
from zoo.files import cache_root
from zoo.install_teacher import Source, install, remove
from zoo.teachers import FAMILIES, Family
from zoo.teachers.clashes import Clash, clashes, packages_of, requirements
from zoo.teachers.environments import (
    find_environment,
    folders_of,
    in_use,
    lock_path,
    locked,
    python_of,
    pythons_of,
    read_lock,
)

TINY = Family(key="tiny", module="zoo.teachers.tiny", imports=("zootiny",), install="zootiny", names=(), locked=True)


def wheel(folder: Path, name: str = "zootiny", version: str = "1.0", code: str = "value = 1\n") -> Path:
    """A package, as pip takes it."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": code,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for place, text in files.items():
            archive.writestr(place, text)
    return path


@pytest.fixture
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of locks that holds that of one tiny family."""
    folder = tmp_path / "locks"
    folder.mkdir()
    (folder / "tiny.txt").write_text("# one package\nzootiny==1.0\n")
    monkeypatch.setattr(environments, "_LOCKS", folder)
    monkeypatch.setitem(FAMILIES, "tiny", TINY)
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """A folder of wheels in the place of an index."""
    return Source((str(wheel(tmp_path / "wheels").parent),))


def made(source: Source) -> tuple[Path, list[str]]:
    said: list[str] = []
    return install("tiny", source=source, tell=said.append), said


def log() -> str:
    return (cache_root() / "environments" / "tiny.log").read_text()


@pytest.fixture
def no_venv(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Environments are made of this Python without pip's help, in no time; the commands that were to make them."""
    asked: list[list[str]] = []

    def run(steps: Any, command: Sequence[str]) -> None:
        asked.append(list(command))
        if "venv" in command:
            (steps.place.folder / "bin").mkdir(parents=True)
            steps.place.python.symlink_to(sys.executable)

    monkeypatch.setattr(installing._Steps, "run", run)
    return asked


@pytest.fixture
def borrowed_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Environments are made without a pip of their own, which takes seconds, and see that of this Python."""
    run = installing._Steps.run

    def run_without_pip(steps: Any, command: Sequence[str]) -> None:
        if "venv" not in command:
            run(steps, command)
            return
        run(steps, [*command, "--without-pip"])
        packages = next(steps.place.folder.glob("lib/python*/site-packages"))
        (packages / "all.pth").write_text(f"{sysconfig.get_path('purelib')}\n")

    monkeypatch.setattr(installing._Steps, "run", run_without_pip)


# --- made -----------------------------------------------------------------------------------------------


def test_an_environment_has_what_the_lock_says_and_is_found_from_then_on(locks: Path, source: Source) -> None:
    assert find_environment("tiny").state == "none"
    assert python_of("tiny") is None
    folder, said = made(source)
    digest = hashlib.sha256((locks / "tiny.txt").read_bytes()).hexdigest()
    assert folder == cache_root() / "environments" / f"tiny-{digest[:12]}"
    python = python_of("tiny")
    assert python is not None
    code = "import sys, zootiny; print(zootiny.value, sys.prefix)"
    told = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.split() == ["1", str(folder)]
    assert "zootiny==1.0" in (folder / "installed.txt").read_text().splitlines()
    stamp = json.loads((folder / "zoo.json").read_text())
    assert (stamp["family"], stamp["lock_sha256"]) == ("tiny", digest)
    assert any(line.startswith("Successfully installed zootiny-1.0") for line in said), said
    assert "Successfully installed zootiny-1.0" in log()

    again, said = made(source)
    assert again == folder
    assert said == ["tiny has its environment already"]
    assert remove("tiny") == [folder]
    assert not folder.exists()
    assert remove("tiny") == []


def test_what_was_killed_half_way_is_made_anew_and_that_is_said(
    locks: Path, source: Source, no_venv: list[list[str]]
) -> None:
    folder = find_environment("tiny").folder
    (folder / "bin").mkdir(parents=True)
    (folder / "half").touch()
    assert find_environment("tiny").state == "broken"
    assert python_of("tiny") is None
    again, said = made(source)
    assert again == folder
    assert said[0] == f"{folder} was left half made; it is made anew"
    assert not (folder / "half").exists()
    assert find_environment("tiny").state == "made"


@pytest.mark.parametrize("moment", ["venv", "install"])
def test_an_install_that_is_interrupted_leaves_nothing_that_is_taken_for_whole(
    moment: str, locks: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(steps: Any, command: Sequence[str]) -> None:
        (steps.place.folder / "bin").mkdir(parents=True, exist_ok=True)
        if moment in command:
            raise KeyboardInterrupt

    monkeypatch.setattr(installing._Steps, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        made(source)
    assert python_of("tiny") is None


def test_an_environment_whose_python_is_on_another_machine_is_neither_taken_nor_removed_unasked(
    locks: Path, source: Source, no_venv: list[list[str]]
) -> None:
    folder, _ = made(source)
    (folder / "bin" / "python").unlink()
    (folder / "bin" / "python").symlink_to("/nowhere/bin/python3.11")
    assert find_environment("tiny").state == "no python"
    assert python_of("tiny") is None
    with pytest.raises(ConfigError, match=r"made with /nowhere/bin/python3\.11, which is not on this machine") as told:
        made(source)
    assert "run: zoo teachers remove tiny" in str(told.value)
    assert (folder / "zoo.json").is_file()
    assert remove("tiny") == [folder]
    assert made(source)[0] == folder


def test_an_environment_of_another_lock_is_not_taken(locks: Path, source: Source, no_venv: list[list[str]]) -> None:
    folder, _ = made(source)
    assert python_of("tiny") == folder / "bin" / "python"
    (locks / "tiny.txt").write_text("zootiny==1.1\n")
    assert find_environment("tiny").state == "outdated"
    assert python_of("tiny") is None
    other, said = made(source)
    assert folders_of("tiny") == sorted([folder, other])
    assert said[-1] == f"{folder} is of another lock and stays; where no other zoo uses it, run: rm -r {folder}"
    assert made(source)[1] == ["tiny has its environment already", said[-1]]
    assert remove("tiny") == sorted([folder, other])


def test_torch_comes_first_with_what_it_needs_and_all_else_is_the_lock_alone(
    locks: Path, no_venv: list[list[str]]
) -> None:
    (locks / "tiny.txt").write_text("zootiny==1.0\ntorch==2.13.0\n")
    install("tiny", source=Source(("wheels",), "https://example.org/simple"), tell=lambda line: None)
    venv, torch, rest, imports = no_venv
    assert venv[-2:] == ["venv", str(find_environment("tiny").folder)]
    options = ["--find-links", "wheels", "--index-url", "https://example.org/simple"]
    assert torch[-7:] == [*options, "-c", str(locks / "tiny.txt"), "torch==2.13.0"]
    assert rest[-7:] == [*options, "--no-deps", "-r", str(locks / "tiny.txt")]
    assert "import zoo.teachers.worker" in imports[3]
    assert "import zootiny" in imports[3]


def test_builds_of_torch_may_come_from_an_index_of_their_own_and_all_else_does_not(
    locks: Path, no_venv: list[list[str]]
) -> None:
    (locks / "tiny.txt").write_text("zootiny==1.0\ntorch==2.13.0\n")
    install("tiny", source=Source(torch_index_url="https://example.org/cpu"), tell=lambda line: None)
    _, torch, rest, _ = no_venv
    assert torch[-5:-3] == ["--extra-index-url", "https://example.org/cpu"]
    assert not any("example.org" in word for word in rest)
    from_folders = Source(("wheels",), torch_index_url="https://example.org/cpu").options_for_torch()
    assert from_folders == ["--find-links", "wheels", "--index-url", "https://example.org/cpu"]


@pytest.mark.parametrize("variable", ["PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_PYTHON", "settings"])
def test_packages_go_into_the_environment_wherever_its_user_has_pip_install(
    variable: str, locks: Path, source: Source, tmp_path: Path, borrowed_pip: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    if variable == "settings":
        (tmp_path / "pip.conf").write_text("[global]\nuser = true\n")
        monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    else:
        monkeypatch.setenv(variable, "1" if variable == "PIP_USER" else str(elsewhere))
    folder, _ = made(source)
    assert (next(folder.glob("lib/python*/site-packages")) / "zootiny.py").is_file()
    assert "zootiny==1.0" in (folder / "installed.txt").read_text().splitlines()
    assert not elsewhere.exists()


def test_what_an_environment_is_made_of_is_given_no_token_of_a_hub(
    locks: Path, tmp_path: Path, borrowed_pip: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abc")
    wheel(tmp_path / "wheels", code="import os\nassert 'HF_TOKEN' not in os.environ\n")
    made(Source((str(tmp_path / "wheels"),)))


def test_folders_alone_are_asked_alone() -> None:
    assert Source(("a", "b")).options() == ["--find-links", "a", "--find-links", "b", "--no-index"]
    assert Source().options() == []


# --- two processes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["install", "remove"])
def test_what_waits_for_another_process_says_so_and_goes_on_when_that_has_ended(
    what: str, locks: Path, source: Source, no_venv: list[list[str]]
) -> None:
    folder, _ = made(source)
    if what == "install":
        shutil.rmtree(folder)
    said: list[str] = []
    waits = threading.Event()

    def tell(line: str) -> None:
        said.append(line)
        waits.set()

    with (cache_root() / "environments" / "tiny.log").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        job = threading.Thread(
            target=lambda: install("tiny", tell=tell) if what == "install" else remove("tiny", tell=tell)
        )
        job.start()
        assert waits.wait(60)
        assert "another process is at the environment of tiny; waiting for it" in said[0]
        assert len(said) == 1
        assert folder.exists() == (what == "remove")
    job.join()
    assert folder.exists() == (what == "install")


def test_what_another_process_made_meanwhile_is_not_made_again(
    locks: Path, source: Source, no_venv: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = made(source)
    no_venv.clear()
    found, seen = find_environment("tiny"), iter(["none", "made"])
    monkeypatch.setattr(installing, "find_environment", lambda family: replace(found, state=next(seen)))
    assert made(source)[0] == folder
    assert no_venv == []


def test_an_environment_that_a_process_answers_from_is_not_removed(
    locks: Path, source: Source, no_venv: list[list[str]]
) -> None:
    folder, _ = made(source)
    with in_use(folder / "bin" / "python") as held:
        assert len(held) == 1
        worker = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=held)
    try:
        with pytest.raises(ConfigError, match=r"a teacher answers from .*run: zoo teachers remove tiny$"):
            remove("tiny")
        assert find_environment("tiny").state == "made"
    finally:
        worker.communicate()
    assert remove("tiny") == [folder]


def test_what_is_half_removed_is_not_taken_for_whole(
    locks: Path, source: Source, no_venv: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = made(source)

    def fail(path: Path) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", fail)
        with pytest.raises(ConfigError, match="Device or resource busy"):
            remove("tiny")
    assert find_environment("tiny").state == "broken"
    assert made(source)[0] == folder


# --- not made -------------------------------------------------------------------------------------------


def test_a_package_that_cannot_be_had_is_one_line_with_a_way_to_carry_it(
    locks: Path, tmp_path: Path, borrowed_pip: None
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingPackageError, match=r"No matching distribution found for zootiny==1\.0") as told:
        made(Source((str(tmp_path / "empty"),)))
    text = str(told.value)
    assert "\n" not in text
    assert f"pip wheel -r {locks / 'tiny.txt'} -w DIR, then here zoo teachers install tiny --find-links DIR" in text
    assert str(cache_root() / "environments" / "tiny.log") in text
    assert "No matching distribution" in log()
    assert folders_of("tiny") == []


def test_a_source_that_lacks_what_builds_it_is_told_with_the_command_that_carries_wheels(
    locks: Path, tmp_path: Path, borrowed_pip: None
) -> None:
    build = "[build-system]\nrequires = ['zoobuilder']\n[project]\nname = 'zootiny'\nversion = '1.0'\n"
    with tarfile.open(tmp_path / "zootiny-1.0.tar.gz", "w:gz") as archive:
        for name, text in {"pyproject.toml": build, "PKG-INFO": "Name: zootiny\nVersion: 1.0\n"}.items():
            (tmp_path / name).write_text(text)
            archive.add(tmp_path / name, f"zootiny-1.0/{name}")
    with pytest.raises(MissingPackageError, match=r"\(No matching distribution found for zoobuilder;.*pip wheel -r "):
        made(Source((str(tmp_path),)))


def test_a_package_that_cannot_be_imported_leaves_no_environment(
    locks: Path, tmp_path: Path, borrowed_pip: None
) -> None:
    wheel(tmp_path / "wheels", code="raise ImportError('libfoo.so is missing')\n")
    with pytest.raises(ConfigError, match=r"libfoo\.so is missing"):
        made(Source((str(tmp_path / "wheels"),)))
    assert folders_of("tiny") == []


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            ConfigError,
            "set ZOO_CACHE to a folder with room, and run: zoo teachers install tiny",
        ),
        (
            "WARNING: Retrying after connection broken by NewConnectionError\nERROR: no torch",
            MissingPackageError,
            "where there is a network",
        ),
        (
            "ERROR: Cannot install torch==2.13.0 because these package versions have conflicting dependencies.\n"
            "    torch 2.13.0 depends on filelock\n    The user requested (constraint) filelock==4.2.12\n"
            "ERROR: ResolutionImpossible: for help visit https://pip.pypa.io",
            MissingPackageError,
            r"\(pip finds no filelock==4\.2\.12;.* pip wheel -r ",
        ),
        ("ERROR: Failed building wheel for zootiny", ConfigError, "maybe with another --python"),
        ("", ConfigError, "it says nothing"),
    ],
)
def test_what_pip_says_last_is_told_with_what_helps(
    said: str, kind: type[Exception], words: str, locks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speaker = tmp_path / "python"
    speaker.write_text(
        f"#!/bin/sh\ncase \"$*\" in *ensurepip*) echo '[3, 11, 9]'; exit 0;; esac\ncat <<'X'\n{said}\nX\nexit 1\n"
    )
    speaker.chmod(0o755)
    with pytest.raises(kind, match=words) as told:
        install("tiny", python=str(speaker), tell=lambda line: None)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo '[3, 8, 10]'", "is Python 3.8.10, expected 3.11 or newer"),
        ("echo \"ModuleNotFoundError: No module named 'ensurepip'\" >&2; exit 1", "No module named 'ensurepip'"),
        ("printf 'Traceback (most recent):\\n  File\\nImportError: no venv\\n' >&2; exit 1", "no venv"),
        ("printf 'python3.10: command not found\\n\\nNote: tips\\n' >&2; exit 127", "not found"),
        ("echo hello", "cannot make an environment"),
    ],
)
def test_a_python_that_cannot_make_one_is_refused_before_anything_is_made(
    script: str, words: str, locks: Path, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    with pytest.raises(ConfigError, match=words) as told:
        install("tiny", python=str(python))
    assert "--python" in str(told.value)
    with pytest.raises(ConfigError, match="cannot make an environment"):
        install("tiny", python=str(tmp_path / "nowhere"))
    assert not (cache_root() / "environments").exists()


def test_a_python_that_the_lock_is_not_for_is_refused_before_anything_is_fetched(locks: Path, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho '[3, 13, 0]'\n")
    python.chmod(0o755)
    (locks / "tiny.txt").write_text("# python 3.11-3.12\nzootiny==1.0\n")
    assert pythons_of(locks / "tiny.txt") == ((3, 11), (3, 12))
    with pytest.raises(
        ConfigError, match=r"is Python 3\.13\.0, expected 3\.11 to 3\.12, which the lock of tiny is for"
    ):
        install("tiny", python=str(python))
    (locks / "tiny.txt").write_text("zootiny==1.0\n")
    assert pythons_of(locks / "tiny.txt") is None


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.EROFS, "cannot be written to"), (errno.EACCES, "cannot be written to"), (errno.ENOSPC, "is full")],
)
def test_a_cache_that_takes_nothing_is_said_with_the_variable_that_moves_it(
    number: int, words: str, locks: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number), str(cache_root()))

    monkeypatch.setattr(installing, "_make", fail)
    with pytest.raises(ConfigError, match=rf"{words}.*ZOO_CACHE"):
        made(source)


def test_a_cache_below_a_file_is_said_too(
    locks: Path, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"cannot be written to .*ZOO_CACHE"):
        made(source)


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("mice", "no family of teachers is called 'mice'; known are"),
        ("stillinger-weber", "needs no package"),
        ("jmp", "needs no package"),
        ("gfn2-xtb/teacher", "is a teacher, expected the family that serves it: xtb"),
    ],
)
def test_a_family_without_an_environment_is_refused(family: str, words: str) -> None:
    with pytest.raises(UnknownNameError, match=words):
        install(family)
    with pytest.raises(UnknownNameError, match=words):
        remove(family)


# --- locks ----------------------------------------------------------------------------------------------


def test_a_lock_is_read_to_the_last_line_and_a_line_that_pins_nothing_is_refused(locks: Path) -> None:
    path = locks / "other.txt"
    path.write_text("# made by hand\n\nA_b.c==1.0+cpu  # needs e3nn==0.4.4, torch<3,>=2\nd==2 ; python_version > '3'\n")
    pins = read_lock(path)
    assert {pin.name: (pin.version, pin.needs) for pin in pins.values()} == {
        "a-b-c": ("1.0+cpu", ("e3nn==0.4.4", "torch<3,>=2")),
        "d": ("2", ()),
    }
    path.write_text("a==1\nb>=2\n")
    with pytest.raises(ConfigError, match=r"line 2: 'b>=2' is no pin"):
        read_lock(path)


@pytest.mark.parametrize("family", locked())
def test_each_lock_pins_what_zoo_and_the_package_of_its_family_need(family: str) -> None:
    pins = read_lock(lock_path(family))
    assert pythons_of(lock_path(family)) is not None
    needed = {"torch", "numpy", "ase", "safetensors", "pydantic", "pyyaml", "vesin", "huggingface-hub"}
    assert needed <= pins.keys()
    own = [pins[environments.normal_name(package)] for package in FAMILIES[family].install.split()]
    assert any(pin.needs for pin in own), "what it needs: write the lock with scripts/lock_teacher.py"


def test_families_that_are_locked_are_those_with_a_lock() -> None:
    assert {key for key, family in FAMILIES.items() if family.locked} == set(locked())


def test_a_clash_is_found_from_what_is_required_and_not_from_versions_that_merely_differ(
    locks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, lock in {
        "one": "one-package==1  # needs zoo-e3nn==0.4.4, zoo-numpy\nzoo-e3nn==0.4.4\nzoo-numpy==1.26\n",
        "two": "two-package==1  # needs zoo-e3nn>=0.5, zoo-numpy>=1.20\nzoo-e3nn==0.6.0\nzoo-numpy==2.4\n",
        "three": "three-package==1  # needs zoo-numpy<2\nzoo-e3nn==0.5.1\nzoo-numpy==1.26\n",
    }.items():
        (locks / f"{key}.txt").write_text(lock)
        family = Family(key=key, module="", imports=("zoo_nowhere",), install=f"{key}-package", names=(), locked=True)
        monkeypatch.setitem(FAMILIES, key, family)
    assert clashes() == [Clash(("one", "two"), "zoo-e3nn", ("==0.4.4", ">=0.5"))]
    # what is here counts more than what the lock has noted of it
    monkeypatch.setattr(
        clashing, "requirements", lambda package: ("zoo-e3nn>=0.4",) if package == "two-package" else None
    )
    assert clashes() == []


def test_requirements_are_those_of_this_machine_without_extras() -> None:
    found = requirements("pytest")
    assert found is not None
    assert any(one.startswith("pluggy") for one in found)
    assert not any(one.startswith(("colorama", "hypothesis")) for one in found)
    assert requirements("zoo-nowhere") is None
    assert packages_of(FAMILIES["stillinger-weber"]) == {}


def test_another_python_is_given_zoo_and_nothing_else_of_what_lies_beside_it(tmp_path: Path) -> None:
    place = tmp_path / "site-packages"
    shutil.copytree(Path(environments.__file__).parents[1], place / "zoo", ignore=shutil.ignore_patterns("__pycache__"))
    (place / "beside.py").touch()
    code = environments.BOOT + "import zoo.errors; print(zoo.errors.__file__)\nimport beside"
    told = subprocess.run(
        [sys.executable, "-I", "-c", code, str(place / "zoo")], capture_output=True, text=True, check=False
    )
    assert told.stdout.strip() == str(place / "zoo" / "errors.py")
    assert "No module named 'beside'" in told.stderr
