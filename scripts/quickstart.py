"""The main job, start to end: distil a silicon student, publish it, load it back by name, run dynamics, compare.

Run it with ./scripts/quickstart. A second run reuses what the first one made.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

from ase.build import bulk
from tqdm import tqdm

import zoo
from zoo.config import canonical_json
from zoo.evaluate.report import Report, table
from zoo.files import atomic_write
from zoo.md import Sample, Settings, energy_drift, run_dynamics
from zoo.pipeline import distill, evaluate
from zoo.recipe import read_recipe
from zoo.run import Run

NAME = "sevennet-0/silicon-student"
HUB = Path("hub")
RESULT = Path("quickstart.json")
DYNAMICS = Settings(ensemble="nve", temperature_K=600, timestep_fs=1.0, steps=2000, every=20, seed=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replace", action="store_true", help="make anew what an older recipe made")
    try:
        quickstart(replace=parser.parse_args().replace)
    except zoo.ZooError as error:
        sys.exit(f"quickstart: {error}")


def quickstart(*, replace: bool) -> None:
    """All of it. Raises ZooError."""
    started = time.perf_counter()
    run = Run.of(read_recipe(NAME), replace=replace)
    print(f"recipe {NAME}: from structures to a model folder in {run.folder}", flush=True)
    model = distill(run)
    published = zoo.publish(model, hub=HUB)
    print(f"published {published.repository}@{published.tag} in ./{HUB}", flush=True)
    engine = zoo.load(NAME, hub=HUB)
    print(f"\n{engine!r}\n")
    check = engine.check()
    print(check)
    if not check.passed:
        raise zoo.IntegrityError(f"{NAME} does not say here what it said when it was published; see the table above")
    dynamics(engine)
    report = evaluate(run)
    atomic_write(RESULT, canonical_json(summary(report)))
    print(table(report))
    print(f"all of it in {time.perf_counter() - started:.0f} s, with {_peak_memory():.1f} GiB of memory at most")
    print(f"the numbers are in {RESULT}, the card is {model}/README.md")


def _peak_memory() -> float:
    """GiB, of this process and of its largest child."""
    used = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used) / 2**20


def dynamics(engine: zoo.Engine) -> None:
    """2 ps of molecular dynamics at constant energy, 64 atoms."""
    atoms = bulk("Si", "diamond", a=5.46, cubic=True).repeat(2)
    with tqdm(total=DYNAMICS.steps, desc="NVE dynamics", unit="step", delay=2) as bar:

        def advance(sample: Sample) -> None:
            bar.update(sample.step - bar.n)

        samples = run_dynamics(atoms, engine.calculator(), DYNAMICS, on_sample=advance)
    drift = energy_drift(samples, len(atoms))
    last = samples[-1]
    print(f"\n{last.time_ps:.1f} ps of NVE dynamics, {len(atoms)} atoms at {last.temperature_K:.0f} K: ", end="")
    print(f"the total energy drifts by {drift:.4f} meV/atom/ps\n")


def summary(report: Report) -> dict[str, object]:
    """What quickstart.json holds."""
    whole = json.loads(report.model_dump_json())
    return {key: whole[key] for key in ("teacher", "student", "twin", "hardware", "versions", "speedup")}


if __name__ == "__main__":
    main()
