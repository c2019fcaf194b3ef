"""The command line: help for newcomers, one line for errors, and the exit codes of the contract."""

import errno
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import ase.io
import pytest
from ase.build import bulk
from click.testing import CliRunner

from recipes import write_tiny
from zoo.cli import main
from zoo.errors import ZooWarning
from zoo.hub.catalogue import entries
from zoo.licences import is_commercial

STUDENT = "stillinger-weber/tiny-student"
COMMANDS = (
    "bench",
    "card",
    "check",
    "convert",
    "data",
    "distill",
    "evaluate",
    "gallery",
    "info",
    "label",
    "list",
    "md",
    "publish",
    "pull",
    "recipe",
    "relax",
    "reproduce",
    "seal",
    "train",
    "warm",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a recipe, its run and a hub."""
    pytest.importorskip("phonopy", reason="evaluation needs the extra train")
    folder = tmp_path_factory.mktemp("cli")
    recipe = write_tiny(folder)
    result = ask("distill", recipe, "--run", folder / "run")
    assert result.exit_code == 0, result.output
    result = ask("publish", folder / "run" / "model", "--hub", folder / "hub")
    assert result.exit_code == 0, result.output
    return folder


def ask(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refusal(result) -> str:
    """What was said, which must be one line, with the exit code 1."""
    assert result.exit_code == 1, result.output
    (line,) = result.output.splitlines()
    assert line.startswith("zoo: ")
    return line


def silicon(folder: Path) -> Path:
    atoms = bulk("Si", "diamond", a=5.43, cubic=True)
    ase.io.write(folder / "si.xyz", atoms)
    return folder / "si.xyz"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command):
    result = ask(command, "--help")
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 5
    assert command in ask("--help").output


def test_help_fits_a_terminal_and_no_summary_is_cut():
    for command in ("--help", *COMMANDS):
        output = ask(*(argument for argument in (command, "--help"))).output
        assert max(len(line) for line in output.splitlines()) <= 80
        assert "..." not in output.partition("Commands:")[2]


@pytest.mark.parametrize(
    "arguments",
    [["distil"], ["distill"], ["md", "x/y"], ["check", "x/y", "--dtype", "float16"], ["list", "--jason"]],
)
def test_wrong_usage_exits_with_two(arguments):
    assert ask(*arguments).exit_code == 2


def test_the_stages_can_run_alone(tmp_path):
    recipe = write_tiny(tmp_path)
    for command, said in (("label", "labels are in"), ("train", "weights are in")):
        result = ask(command, recipe, "--run", tmp_path / "run")
        assert result.exit_code == 0, result.output
        assert said in result.output


def test_distill_prints_the_table(made):
    result = ask("distill", made / "tiny.yaml", "--run", made / "run")
    assert "force error" in result.output
    assert "zoo publish" in result.output
    assert ask("evaluate", made / "tiny.yaml", "--run", made / "run").exit_code == 0


def test_a_dry_run_writes_nothing(tmp_path):
    recipe = write_tiny(tmp_path)
    for command in ("distill", "label", "train", "evaluate"):
        result = ask(command, recipe, "--run", tmp_path / "run", "--dry-run")
        assert result.exit_code == 0
        assert "Hessian products" in result.output
    assert not (tmp_path / "run").exists()


def test_the_dry_run_of_publish_writes_nothing(made, tmp_path):
    result = ask("publish", made / "run" / "model", "--hub", tmp_path / "hub", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "would publish mlff-zoo/stillinger-weber_tiny-student@v1" in result.output
    assert not (tmp_path / "hub").exists()


def test_list_shows_what_is_known_and_what_is_on_the_hub(made):
    rows = {row["name"]: row for row in json.loads(ask("list", "--json", "--hub", made / "hub").output)}
    assert rows["stillinger-weber/tiny-student"]["status"] == "published"
    assert rows["sevennet-0/teacher"]["status"] == "package"
    assert rows["sevennet-0/silicon-student"]["status"] == "recipe"
    assert "stillinger-weber/tiny-student" not in ask("list").output


def test_list_looks_into_one_namespace(made, monkeypatch):
    assert STUDENT in ask("list", "--hub", made / "hub").output
    assert STUDENT not in ask("list", "--hub", made / "hub", "--namespace", "other").output
    monkeypatch.setenv("ZOO_NAMESPACE", "other")
    monkeypatch.setenv("ZOO_HUB", str(made / "hub"))
    assert STUDENT not in ask("list").output


def test_an_error_of_a_hub_is_told_as_it_is(monkeypatch):
    line = refusal(ask("info", "hf://me/x"))
    assert line.endswith("HF_HUB_OFFLINE is set; where there is a network, run: zoo pull")


@pytest.mark.parametrize("command", [["check", STUDENT], ["md", STUDENT, "si.xyz"]])
def test_check_and_md_look_into_one_namespace(command, made):
    assert "has no other/stillinger-weber_tiny" in refusal(ask(*command, "--hub", made / "hub", "--namespace", "other"))


def test_the_list_is_a_table_of_100_columns(made, monkeypatch):
    rows = ask("list", "--json", "--hub", made / "hub")
    lines = ask("list", "--hub", made / "hub").output.splitlines()
    assert max(len(line) for line in lines) <= 100
    engines, _, teachers, _ = [part.splitlines() for part in "\n".join(lines).split("\n\n")]
    statuses = [row["status"] for row in json.loads(rows.output)]
    assert (len(engines), len(teachers)) == (
        1 + len(statuses) - statuses.count("package"),
        1 + statuses.count("package"),
    )
    for table, heads in ((engines, ("status", "licence", "purpose")), (teachers, ("here", "licence", "purpose"))):
        starts = [table[0].index(word) for word in heads]
        for line in table:
            assert all(line[start - 2 : start] == "  " and line[start] != " " for start in starts)


def test_what_a_hub_says_cannot_write_to_the_terminal(monkeypatch):
    row = {"name": "mine/engine", "status": "published", "licence_weights": None, "purpose": "a\nb\x1b[2Jc"}
    monkeypatch.setattr("zoo.cli.listing", lambda **_: [row])
    assert ask("list").output.splitlines()[1] == "mine/engine  published  -        a b [2Jc"


def test_list_chooses_by_element_subset_and_commercial_use(made):
    def names(*choice: str) -> set[str]:
        return {row["name"] for row in json.loads(ask("list", "--json", "--hub", made / "hub", *choice).output)}

    everything = names()
    assert {STUDENT, "sevennet-0/teacher", "stillinger-weber/teacher"} <= everything
    forbidden = {name for name, entry in entries().items() if is_commercial(entry.licence_weights) is False}
    assert {"jmp-l/teacher", "mace-off23-large/teacher"} <= forbidden
    assert names("--commercial") == everything - forbidden
    assert names("--element", "Si") == {STUDENT} | {name for name, entry in entries().items() if "Si" in entry.elements}
    copper = names("--element", "Cu")
    assert {"gfn2-xtb/teacher", "sevennet-0/teacher", "sevennet-0/yttrium-student"} <= copper
    assert "gfn2-xtb/ethanol-student" not in copper
    assert names("--element", "Cu", "--element", "Si") == copper & names("--element", "Si")
    assert names("--subset", "SILICON") == {STUDENT, "sevennet-0/silicon-student"}
    assert "zoo list shows all" in ask("list", "--subset", "unobtainium").output
    assert "'Sx' is no element" in refusal(ask("list", "--element", "Sx"))


def test_info_says_what_an_engine_is_in_text_and_json(made):
    lines = ask("info", STUDENT, "--hub", made / "hub").output.splitlines()
    assert lines[0] == STUDENT
    facts = {line[2:25].strip(): line[25:].strip() for line in lines[1:]}
    assert facts["version"] == "v1"
    assert "periodic along abc" in facts["domain"]
    assert facts["speed"].endswith("times its teacher's")
    assert facts["commercial use"] == "allowed"
    row = json.loads(ask("info", f"{STUDENT}@v1", "--hub", made / "hub", "--json").output)
    assert f"{row['metrics']['force_mae_meV_A']:.4g} meV/Å" in facts.values()
    assert row["parameters"] > 0
    here = json.loads(ask("info", made / "run" / "model", "--json").output)
    assert (here["status"], here["metrics"]) == ("folder", row["metrics"])
    assert "package" in ask("info", "sevennet-0/teacher").output


def test_card_is_shown_as_text_and_as_it_is(made):
    shown = ask("card", STUDENT, "--hub", made / "hub")
    assert shown.exit_code == 0, shown.output
    assert STUDENT in shown.output.splitlines()[0]
    assert "pipeline_tag" not in shown.output
    assert "\x1b" not in shown.output
    assert "[figure: " in shown.output
    raw = ask("card", STUDENT, "--hub", made / "hub", "--raw").output
    assert raw == (made / "run" / "model" / "README.md").read_text()
    assert "has no card; run: zoo info" in refusal(ask("card", "sevennet-0/teacher"))


@pytest.mark.parametrize("to", ["there", "there.tar"])
def test_what_was_pulled_is_a_hub_elsewhere(to, made, tmp_path, monkeypatch):
    done = ask("pull", STUDENT, "--hub", made / "hub", "--to", tmp_path / to)
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1].endswith("export ZOO_HUB=$PWD/there")
    if to.endswith(".tar"):
        subprocess.run(["tar", "-xf", to], cwd=tmp_path, check=True)
    monkeypatch.setenv("ZOO_HUB", str(tmp_path / "there"))
    check = ask("check", f"{STUDENT}@v1", "--device", "cpu")
    assert check.exit_code == 0, check.output


def test_pull_says_what_it_cannot_fetch(made, tmp_path):
    assert "pip download sevenn" in refusal(ask("pull", "sevennet-0/teacher"))
    assert "run: zoo teachers fetch mace-mp-0-small/teacher" in refusal(ask("pull", "mace-mp-0-small/teacher"))
    assert "run there: zoo convert jmp-l" in refusal(ask("pull", "jmp-l/teacher"))
    assert "is a folder" in refusal(ask("pull", "./x"))
    assert ask("pull").exit_code == 2
    (tmp_path / "file").write_text("")
    assert "is a file" in refusal(ask("pull", STUDENT, "--hub", made / "hub", "--to", tmp_path / "file"))


def test_a_tar_keeps_what_it_holds(made, tmp_path):
    first = ask("pull", STUDENT, "--hub", made / "hub", "--to", tmp_path / "a.tar")
    assert first.exit_code == 0, first.output
    before = (tmp_path / "a.tar").read_bytes()
    assert ask("pull", STUDENT, "--hub", made / "hub", "--to", tmp_path / "a.tar").exit_code == 0
    assert (tmp_path / "a.tar").read_bytes() == before
    (tmp_path / "b.tar").write_text("no tar")
    assert "cannot be read as a tar" in refusal(ask("pull", STUDENT, "--hub", made / "hub", "--to", tmp_path / "b.tar"))
    assert "ends with .tar" in refusal(ask("pull", STUDENT, "--hub", made / "hub", "--to", tmp_path / "c.tar.gz"))
    assert "is a server" in refusal(ask("pull", STUDENT, "--hub", made / "hub", "--to", "http://hub.lab"))
    assert "unpack it with tar -xf" in refusal(ask("check", STUDENT, "--hub", tmp_path / "a.tar"))


def test_a_card_that_was_corrected_is_sealed_and_published(model, tmp_path):
    card = model / "README.md"
    card.write_text(card.read_text() + "\nCorrected by hand.\n")
    assert "README.md has" in refusal(ask("publish", model, "--hub", tmp_path / "hub"))
    assert "is sealed" in ask("seal", model).output
    assert "published " in ask("publish", model, "--hub", tmp_path / "hub").output
    card.write_text(card.read_text().replace("library_name: zoo", "library_name: other"))
    ask("seal", model)
    assert "zoo seal FOLDER" in refusal(ask("publish", model, "--hub", tmp_path / "hub"))
    assert "is not a folder" in refusal(ask("seal", tmp_path / "nothing"))


@pytest.mark.parametrize("typed", ["hub.example.org", "localhost:8080", "hub.lab:80"])
def test_an_address_without_its_scheme_is_no_folder(typed, made):
    assert f"for a server write https://{typed}" in refusal(ask("publish", made / "run" / "model", "--hub", typed))


def test_a_wrong_namespace_and_a_repository_are_recognised(made):
    said = refusal(ask("check", STUDENT, "--hub", made / "hub", "--namespace", "other"))
    assert "but one of mlff-zoo: choose with --namespace" in said
    assert "a repository is hf://mlff-zoo/a_b" in refusal(ask("info", "mlff-zoo/a_b"))


def test_the_gallery_has_a_page_a_card(made, tmp_path):
    done = ask("gallery", tmp_path / "site", "--hub", made / "hub")
    assert done.exit_code == 0, done.output
    assert f"{STUDENT}.html" in (tmp_path / "site" / "index.html").read_text()
    page = (tmp_path / "site" / f"{STUDENT}.html").read_text()
    assert "stillinger-weber/teacher" in page
    assert list((tmp_path / "site").rglob("*.png"))


def test_a_note_of_zoo_is_one_line_on_stderr(monkeypatch):
    def noted(**_: object) -> list:
        warnings.warn("old news", ZooWarning, stacklevel=1)
        return []

    monkeypatch.setattr("zoo.cli.listing", noted)
    result = ask("list")
    assert result.stderr == "zoo: note: old news\n"
    assert "old news" not in result.stdout


@pytest.fixture
def model(made, tmp_path, monkeypatch) -> Path:
    """A model folder to be spoiled, in the current folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(made / "run" / "model", tmp_path / "model"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "sevennet-0/teacher"],
        ["md", "sevennet-0/teacher", "si.xyz", "--output", "si.traj"],
        ["label", "sevennet-0/silicon-student", "--run", "run"],
    ],
)
def test_a_missing_teacher_package_says_what_to_install(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    silicon(tmp_path)
    for module in ("sevenn", "sevenn.checkpoint"):
        monkeypatch.setitem(sys.modules, module, None)
    line = refusal(ask(*arguments))
    assert "run: zoo teachers install sevennet (in an environment of its own), or: pip install sevenn" in line
    assert [path.name for path in tmp_path.iterdir()] == ["si.xyz"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    recipe = write_tiny(tmp_path)
    line = refusal(ask("label", recipe, "--run", recipe / "run"))
    assert str(recipe) in line
    assert recipe.is_file()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "runs/x"),
            "runs/x: Permission denied; choose another folder",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; make room there, then run"),
        (OSError("cannot mmap"), "cannot mmap; choose another folder"),
    ],
)
def test_errors_of_the_system_are_one_line(error, line, tmp_path, monkeypatch):
    def fail(run):
        raise error

    monkeypatch.setattr("zoo.cli.make_labels", fail)
    assert refusal(ask("label", write_tiny(tmp_path), "--run", tmp_path / "run")).startswith(f"zoo: {line}")


@pytest.mark.parametrize(("error", "said"), [(KeyboardInterrupt(), "Aborted!"), (BrokenPipeError(errno.EPIPE, ""), "")])
def test_what_click_ends_is_left_to_it(error, said, tmp_path, monkeypatch):
    def fail(run):
        raise error

    monkeypatch.setattr("zoo.cli.make_labels", fail)
    result = ask("label", write_tiny(tmp_path), "--run", tmp_path / "run")
    assert result.exit_code == 1
    assert result.output.strip() == said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["distill", "sevennet-0/silicone-student"], "did you mean sevennet-0/silicon-student?"),
        (["distill", "nowhere.yaml"], "no recipe file nowhere.yaml"),
        (["check", "sevennet-0/silicon-student"], "zoo distill sevennet-0/silicon-student"),
        (["check", "./nowhere"], "no folder"),
        (["md", "sevennet-0/silicon-student", "nowhere.xyz"], "zoo distill sevennet-0/silicon-student"),
        (["publish", "nowhere", "--hub", "hub"], "nowhere is not a folder"),
    ],
)
def test_errors_are_one_line_with_the_remedy(arguments, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert message in refusal(ask(*arguments))
    assert not list(tmp_path.iterdir())


def test_a_typo_in_a_recipe_leaves_nothing_behind(tmp_path):
    recipe = write_tiny(tmp_path, training__stepz=3)
    result = ask("distill", recipe, "--run", tmp_path / "run")
    assert result.exit_code == 1
    assert "unknown key 'training.stepz'" in result.output
    assert not (tmp_path / "run").exists()
