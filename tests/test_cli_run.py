"""``zoo relax``, ``zoo md``, ``zoo check`` and ``zoo warm``: what they print, write, refuse and exit with."""

import json
from pathlib import Path

import ase.io
import model_folders as folders
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms, FixBondLength, FixedPlane
from click.testing import CliRunner
from test_novelty import make_folder

from zoo.cli import main
from zoo.engine import Engine
from zoo.errors import OutOfMemoryError

TEACHER = "stillinger-weber/teacher"  # in closed form: relaxes as silicon does


def ask(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in (*arguments, "--device", "cpu")])


def refusal(result) -> str:
    """What was said, which must be one line, with the exit code 1."""
    assert result.exit_code == 1, result.output
    (line,) = result.output.splitlines()
    assert line.startswith("zoo: ")
    return line


def crystal() -> Atoms:
    return bulk("Si", "diamond", a=5.43, cubic=True)


def rattled(seed: int = 1) -> Atoms:
    atoms = crystal()
    atoms.rattle(0.05, seed=seed)
    return atoms


def nan() -> Atoms:
    atoms = crystal()
    atoms.positions[3, 1] = np.nan
    return atoms


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder, in which each test works."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model(here) -> Path:
    """A model folder of a tiny engine for silicon."""
    return folders.make_folder(here / "model")


def written(*structures: Atoms, name: str = "si.xyz") -> Path:
    ase.io.write(name, list(structures))
    return Path(name)


# --- check and warm ------------------------------------------------------------------------------------


def test_check_recomputes_the_probe(model):
    result = ask("check", "./model", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["passed"] is True


def test_a_model_folder_that_is_cut_short_is_refused(model):
    assert ask("check", "./model").exit_code == 0
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model/model.safetensors has" in refusal(ask("check", "./model"))
    weights.unlink()
    assert "model/model.safetensors is missing" in refusal(ask("check", "./model"))
    (model / "manifest.json").unlink()
    assert "not a whole model folder; fetch the model folder again" in refusal(ask("check", "./model"))


@pytest.mark.parametrize("file", ["model.safetensors", "probe.safetensors", "config.json"])
def test_a_model_folder_with_an_altered_byte_is_refused(file, model):
    content = bytearray((model / file).read_bytes())
    content[-9] ^= 1
    (model / file).write_bytes(content)
    line = refusal(ask("check", "./model"))
    assert f"model/{file} has the digest" in line
    assert "fetch the model folder again" in line


def test_warming_goes_on_after_a_name_that_fails(model):
    result = ask("warm", "./nowhere", "./model")
    assert result.exit_code == 1
    assert result.stderr.startswith("zoo: ./nowhere: there is no folder nowhere")
    assert result.stdout == f"{folders.NAME}: PyTorch runs PaiNN in float32 on cpu: ZOO_COMPILE is never\n"


@pytest.mark.usefixtures("kernels")
def test_warming_compiles_so_that_what_comes_later_finds_it(model):
    result = ask("warm", "./model", "--dtype", "float64")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{folders.NAME}: compiled code for PaiNN in float64 on cpu is ready after")
    assert "float64, compiled" in ask("check", "./model", "--dtype", "float64").stdout


# --- dynamics ------------------------------------------------------------------------------------------


def test_dynamics_writes_a_trajectory(model):
    run = ("--steps", 20, "--every", 5, "--temperature", 50, "--output", "si.traj")
    result = ask("md", "./model", written(crystal()), *run)
    assert result.exit_code == 0, result.output
    frames = ase.io.read("si.traj", index=":")
    assert len(frames) == 5
    assert (frames[-1].positions != frames[0].positions).any()


@pytest.mark.parametrize("name", [TEACHER, "./model"])
def test_dynamics_with_a_teacher_and_with_a_folder(name, model):
    result = ask("md", name, written(crystal()), "--steps", 5, "--every", 2, "--temperature", 50)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("Engine ")
    assert [line.split()[0] for line in lines[-4:]] == ["0", "2", "4", "5"]


def test_the_options_of_dynamics_arrive():
    arguments = ("md", TEACHER, written(crystal()), "--steps", 1, "--every", 1, "--seed", 3)
    result = ask(*arguments, "--timestep", 2, "--temperature", 0, "--ensemble", "nvt")
    assert result.exit_code == 0, result.output
    first, last = (line.split() for line in result.stdout.splitlines()[-2:])
    assert float(last[1]) == 0.002
    assert float(first[2]) == 0.0


def test_dynamics_begins_with_the_last_of_many_structures():
    hot = rattled()
    hot.set_velocities(np.outer([1, -1] * 4, np.full(3, 1e-3)))
    result = ask("md", TEACHER, written(crystal(), hot, name="many.traj"), "--steps", 1, "--every", 1)
    assert result.exit_code == 0, result.output
    first = result.stdout.splitlines()[-2].split()
    assert float(first[2]) > 0
    assert float(first[3]) > -34.69


def newest_step(folder: Path, every: int) -> int:
    """Of the trajectory that was written, by the engine itself."""
    frames = ase.io.read("md.traj", index=":")
    novelty = Engine.read(folder, compile=False).novelty(frames)
    return every * int(np.argmax([found.largest for found in novelty]))


def test_dynamics_ends_with_the_newest_atom_and_its_step(here):
    folder, _ = make_folder(here / "known")
    options = ("--temperature", 20000, "--steps", 100, "--every", 5, "--output", "md.traj", "--no-check-domain")
    result = ask("md", folder, written(rattled()), *options, "--dtype", "float64", "--no-compile")
    assert result.exit_code == 0, result.output
    step = newest_step(folder, 5)
    assert 0 < step < 100
    last = result.stdout.splitlines()[-1]
    assert last.startswith(f"of all that was printed, at step {step} atom ")
    assert "is the newest, with a force error of" in last


def test_a_relaxation_that_ends_far_from_what_is_known_says_so(here):
    folder, _ = make_folder(here / "known")
    told = []
    for name, displacement in (("near.xyz", 0.01), ("far.xyz", 0.6)):
        atoms = crystal()
        atoms.rattle(displacement, seed=2)
        options = ("--no-check-domain", "--no-compile", "--steps", 1, "--json")
        told.append(ask("relax", folder, written(atoms, name=name), *options))
    near, far = (json.loads(one.stdout)["structures"][0]["novelty_meV_A"] for one in told)
    assert 0 < near < far
    assert ["do not trust it" in one.stderr for one in told] == [False, True]
    assert "structure 0 (Si8) ended where its atom " in told[1].stderr


def test_dynamics_that_leaves_the_domain_tells_what_was_newest(here):
    folder, _ = make_folder(here / "known")
    options = ("--temperature", 20000, "--steps", 500, "--every", 1, "--output", "md.traj")
    result = ask("md", folder, written(crystal()), *options, "--dtype", "float64", "--no-compile")
    assert result.exit_code == 1
    assert result.stderr.startswith("zoo: after ")
    assert result.stdout.splitlines()[-1].startswith(f"of all that was printed, at step {newest_step(folder, 1)} atom")


def bad_structures() -> dict[str, tuple[Atoms, str]]:
    """Structures that no run can start from, and what must be said."""
    cases = {
        "nan": "is not a finite number",
        "double": "0.0000 Å apart",
        "molecule": "was made for pbc=(True, True, True)",
        "no cell": "is periodic along a, b, c but has no cell there",
        "germanium": "Ge",
        "squeezed": "Å³ per atom",
    }
    made = {name: crystal() for name in cases} | {"nan": nan()}
    made["double"].positions[1] = made["double"].positions[0]
    made["molecule"].pbc = False
    made["no cell"].cell[:] = 0
    made["germanium"].symbols[:] = "Ge"
    made["squeezed"].set_cell(crystal().cell * 0.85, scale_atoms=True)
    return {name: (made[name], message) for name, message in cases.items()}


def moving() -> Atoms:
    atoms = crystal()
    atoms.set_momenta([[np.nan] * 3] * 8)
    return atoms


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("case", [*bad_structures(), "moving"])
def test_a_bad_structure_is_refused_before_a_trajectory_is_touched(case, earlier, model, here):
    cases = bad_structures() | {"moving": (moving(), "a velocity of Si8 is not a finite number")}
    atoms, message = cases[case]
    output = here / "md.traj"
    if earlier:
        output.write_bytes(b"of an earlier run")
    arguments = ("md", "./model", written(atoms, name="bad.traj"), "--output", output, "--overwrite")
    assert message in refusal(ask(*arguments))
    assert output.exists() == earlier
    assert not earlier or output.read_bytes() == b"of an earlier run"


def test_an_output_that_exists_is_kept_unless_overwrite_is_said():
    Path("si.traj").write_bytes(b"of an earlier run")
    arguments = ("md", TEACHER, written(crystal()), "--steps", 2, "--every", 1, "--output", "si.traj")
    expected = "zoo: si.traj exists; choose another --output, or pass --overwrite"
    assert refusal(ask(*arguments)) == expected
    assert Path("si.traj").read_bytes() == b"of an earlier run"
    assert ask(*arguments, "--overwrite").exit_code == 0
    assert len(ase.io.read("si.traj", index=":")) == 3


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--output", "nowhere/si.traj", "there is no folder nowhere; make it, or choose another --output"),
        ("--output", ".", ". is a folder; give --output a file"),
        ("--output", "md.xyz", "md.xyz is no name for what --output writes; name it md.traj"),
        ("--timestep", "nan", "timestep_fs is nan; give a positive number"),
        ("--timestep", "inf", "timestep_fs is inf"),
        ("--timestep", "-1", "timestep_fs is -1.0"),
        ("--temperature", "nan", "temperature_K is nan; give 0 or more"),
        ("--seed", "-1", "seed is -1; give 0 or more"),
    ],
)
def test_wrong_options_of_dynamics_are_refused_in_one_line(option, value, message, here):
    assert message in refusal(ask("md", TEACHER, written(crystal()), option, value))
    assert [path.name for path in here.iterdir()] == ["si.xyz"]


# --- relaxation ----------------------------------------------------------------------------------------


def test_many_structures_are_relaxed_in_order(here):
    wide = rattled(2).repeat((2, 1, 1))
    fixed = rattled(3)
    fixed.set_constraint(FixAtoms([1]))
    fixed.info["name"] = "third"
    result = ask("relax", TEACHER, written(rattled(), wide, fixed), "--output", "out.xyz", "--trajectory", "way.traj")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"Engine {TEACHER}")
    lines = [line.split() for line in result.stdout.splitlines()[-3:]]
    assert [line[:2] + line[-1:] for line in lines] == [
        [str(at), n, "converged"] for at, n in enumerate(("8", "16", "8"))
    ]
    relaxed = ase.io.read("out.xyz", index=":")
    assert [len(atoms) for atoms in relaxed] == [8, 16, 8]
    assert relaxed[0].get_potential_energy() == pytest.approx(float(lines[0][3]), abs=1e-4)
    assert relaxed[0].get_potential_energy() / 8 == pytest.approx(-4.3366, abs=1e-3)
    assert np.abs(relaxed[1].get_forces()).max() < 0.01
    assert relaxed[2].info["name"] == "third"
    np.testing.assert_allclose(relaxed[2].positions[1], fixed.positions[1], atol=1e-7)
    frames = ase.io.read("way.traj", index=":")
    assert len(frames) == sum(int(line[2]) + 1 for line in lines)
    assert [len(atoms) for atoms in frames[:: int(lines[0][2]) + 1][:2]] == [8, 16]
    np.testing.assert_allclose(frames[0].positions, rattled().positions, atol=1e-7)


def test_a_structure_that_is_refused_is_named_and_the_others_go_on(model):
    result = ask(
        "relax",
        "./model",
        written(rattled(), nan(), rattled(2), name="many.traj"),
        "--output",
        "out.traj",
        "--steps",
        2,
    )
    assert result.exit_code == 1
    assert "zoo: structure 1 (Si8) was refused: position 3 of Si8 is not a finite number" in result.stderr
    assert "zoo: structure 0 (Si8) has not converged in 2 steps; pass more --steps" in result.stderr
    ends = [line.rpartition("  ")[2] for line in result.stdout.splitlines()[-3:]]
    assert ends == ["not converged", "refused", "not converged"]
    assert len(ase.io.read("out.traj", index=":")) == 2


def test_what_has_no_memory_is_named_and_the_others_go_on_each_with_its_own_calculator(monkeypatch):
    made, calculator = [], Engine.calculator

    def narrow(engine):
        own = calculator(engine)
        ask_it = own.calculate
        made.append(own)

        def calculate(atoms=None, *arguments, **options):
            if len(atoms) > 8:
                raise OutOfMemoryError("no memory for 16 atoms")
            ask_it(atoms, *arguments, **options)

        own.calculate = calculate
        return own

    monkeypatch.setattr(Engine, "calculator", narrow)
    structures = (rattled(), rattled(2).repeat((2, 1, 1)), rattled(3))
    result = ask("relax", TEACHER, written(*structures), "--output", "out.xyz")
    assert result.exit_code == 1
    assert "zoo: structure 1 (Si16) was refused: no memory for 16 atoms" in result.stderr
    ends = [line.rpartition("  ")[2] for line in result.stdout.splitlines()[-3:]]
    assert ends == ["converged", "refused", "converged"]
    assert len(ase.io.read("out.xyz", index=":")) == 2
    assert len({id(own) for own in made}) == 3


def test_what_has_no_memory_on_its_way_is_kept_as_it_was(monkeypatch):
    calculator = Engine.calculator

    def narrow(engine):
        own = calculator(engine)
        ask_it, asked = own.calculate, []

        def calculate(*arguments, **options):
            asked.append(arguments)
            if len(asked) > 4:
                raise OutOfMemoryError("no memory any more")
            ask_it(*arguments, **options)

        own.calculate = calculate
        return own

    monkeypatch.setattr(Engine, "calculator", narrow)
    result = ask("relax", TEACHER, written(rattled()), "--output", "out.xyz")
    assert result.exit_code == 1
    assert "before it could not go on: no memory any more" in result.stderr
    assert len(ase.io.read("out.xyz", index=":")) == 1


def test_constraints_that_a_file_cannot_keep_are_named_once(here):
    tied, plane, fixed = rattled(), rattled(2), rattled(3)
    tied.set_constraint(FixBondLength(0, 1))
    plane.set_constraint([FixedPlane([2], (0, 0, 1)), FixBondLength(3, 4)])
    fixed.set_constraint(FixAtoms([1]))
    many = written(tied, plane, fixed, name="many.traj")
    result = ask("relax", TEACHER, many, "--output", "out.xyz", "--trajectory", "way.xyz", "--steps", 2)
    (note,) = [line for line in result.stderr.splitlines() if line.startswith("zoo: note: ")]
    assert note == (
        "zoo: note: FixBondLengths, FixedPlane of the structures hold while they relax, and out.xyz and way.xyz cannot "
        "keep them; write .traj"
    )
    assert [len(atoms.constraints) for atoms in ase.io.read("out.xyz", index=":")] == [0, 0, 1]
    for arguments in ((many, "--output", "out.traj"), (written(fixed), "--output", "fixed.xyz"), (many,)):
        assert "note" not in ask("relax", TEACHER, *arguments, "--steps", 2).stderr
    assert [len(atoms.constraints) for atoms in ase.io.read("out.traj", index=":")] == [1, 2, 1]


def test_the_cell_follows_where_it_may_and_json_says_how_far():
    arguments = ("relax", TEACHER, written(rattled()), "--cell", "volume", "--pressure", 2, "--optimizer", "lbfgs")
    result = ask(*arguments, "--fmax", 0.001, "--json", "--dtype", "float64", "--output", "out.traj")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["engine"] == TEACHER
    assert (told["cell"], told["pressure_GPa"], told["optimizer"], told["fmax_eV_A"]) == ("volume", 2.0, "lbfgs", 0.001)
    (row,) = told["structures"]
    assert row["converged"]
    assert (row["structure"], row["formula"], row["atoms"], row["stopped"]) == (0, "Si8", 8, None)
    assert row["stress_GPa"] < 0.05
    relaxed = ase.io.read("out.traj")
    assert relaxed.get_volume() < crystal().get_volume()
    assert relaxed.get_potential_energy() == row["energy_eV"]


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("case", list(bad_structures()))
def test_structures_that_are_all_refused_touch_no_file(case, earlier, model, here):
    atoms, message = bad_structures()[case]
    outputs = [here / "out.xyz", here / "way.traj"]
    for path in outputs if earlier else ():
        path.write_bytes(b"of an earlier run")
    options = ("--output", outputs[0], "--trajectory", outputs[1], "--overwrite")
    result = ask("relax", "./model", written(atoms, name="bad.traj"), *options)
    assert result.exit_code == 1
    assert message in result.stderr
    assert [path.exists() for path in outputs] == [earlier] * 2
    assert not earlier or {path.read_bytes() for path in outputs} == {b"of an earlier run"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--output", "out.cif"),
            "out.cif is no name for what --output writes; name it out.xyz or out.extxyz or out.traj",
        ),
        (("--trajectory", "nowhere/a.traj"), "there is no folder nowhere; make it, or choose another --trajectory"),
        (("--output", "a.xyz", "--trajectory", "./a.xyz"), "--output and --trajectory are the same file"),
        (("--fmax", "0"), "fmax_eV_A is 0.0; give a positive number"),
        (("--pressure", "1"), "choose --cell volume or full"),
        (("--output", "si.xyz", "--overwrite"), "si.xyz is the structure to start from; choose another --output"),
    ],
)
def test_wrong_options_of_relaxation_are_refused_in_one_line(options, message, here):
    before = written(crystal()).read_bytes()
    assert message in refusal(ask("relax", TEACHER, "si.xyz", *options))
    assert [path.name for path in here.iterdir()] == ["si.xyz"]
    assert Path("si.xyz").read_bytes() == before


def test_forces_alone_relax_nothing():
    line = refusal(ask("relax", "stillinger-weber/direct-teacher", written(crystal()), "--output", "out.xyz"))
    assert "gives forces alone" in line


# --- files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["md", "relax"])
def test_a_file_that_holds_no_structure_is_refused(command):
    Path("si.xyz").write_text("this is\nnot\n\na structure\n")
    line = refusal(ask(command, TEACHER, "si.xyz"))
    assert "cannot be read as a structure" in line
    assert "a format that ASE reads" in line
    assert "no file nowhere.xyz" in refusal(ask(command, TEACHER, "nowhere.xyz"))


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize("command", ["md", "relax"])
def test_the_structure_itself_is_never_overwritten(command, overwrite):
    before = written(crystal()).read_bytes()
    Path("link.traj").symlink_to("si.xyz")
    for output in ("./si.xyz", "link.traj"):
        line = refusal(ask(command, TEACHER, "si.xyz", "--output", output, *overwrite))
        assert "is the structure to start from; choose another --output" in line
    assert Path("si.xyz").read_bytes() == before
