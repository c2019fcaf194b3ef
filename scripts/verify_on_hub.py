"""The round trip of an engine through a real hub, which no test can reach: publish, list, load, pull, delete.

Not tried are --public, gated repositories, and what happens when a connection breaks.

Run it with scripts/verify_on_hub. It uses a private scratch repository of the one whose token is set, and deletes it at
the end. What it found is in verified-on-hub.json; put its date into the README when all of it passed.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import huggingface_hub
import torch

import zoo
from zoo.artifact import CONFIG, ArtifactConfig, write_manifest
from zoo.config import canonical_json, read_json, write_json
from zoo.files import atomic_write
from zoo.hub.card_data import parse_card
from zoo.hub.remote import RemoteHub
from zoo.listing import describe, listing
from zoo.locate import open_hub
from zoo.naming import EngineName, parse_name
from zoo.version import __version__

MODEL = Path("runs/sevennet-0/silicon-student/model")
RESULT = Path("verified-on-hub.json")


@dataclass
class Journey:
    """One engine under a scratch name, and what each step took."""

    folder: Path
    name: str
    hub: RemoteHub
    namespace: str
    workspace: Path
    seconds: dict[str, float] = field(default_factory=dict)

    def step(self, title: str, action: Callable[[], None]) -> None:
        """Carries out one step, and says so. What it asserts must hold."""
        started = time.perf_counter()
        action()
        self.seconds[title] = round(time.perf_counter() - started, 2)
        print(f"  ok  {self.seconds[title]:6.1f} s  {title}", flush=True)

    def load(self, revision: str | None = None, hub: Path | None = None) -> zoo.Engine:
        return zoo.load(
            self.name, hub=hub or self.hub.endpoint, namespace=self.namespace, revision=revision, device="cpu"
        )

    def publish(self) -> zoo.PublishResult:
        return zoo.publish(self.folder, self.hub.endpoint, namespace=self.namespace)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=MODEL, help=f"a model folder  [default: {MODEL}]")
    parser.add_argument("--hub", help="a URL  [default: ZOO_HUB, else huggingface.co]")
    options = parser.parse_args()
    if not options.model.is_dir():
        sys.exit(f"verify_on_hub: there is no folder {options.model}; run ./scripts/quickstart, or name a model folder")
    hub = open_hub(options.hub)
    if not isinstance(hub, RemoteHub):
        sys.exit(f"verify_on_hub: {hub.title} is a folder; name a hub with --hub https://...")
    try:
        verify(options.model, hub)
    except zoo.ZooError as error:
        sys.exit(f"verify_on_hub: {error}")


def verify(model: Path, hub: RemoteHub) -> None:
    """All steps; the scratch repository is deleted however they end. Raises ZooError, AssertionError."""
    client = hub.client()
    client.require_token()
    with client.session():
        owner = client.whoami()
    with tempfile.TemporaryDirectory(prefix="zoo-verify-") as temporary, _environment(Path(temporary) / "cache"):
        name = f"zoo-scratch/verify-{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}"
        journey = Journey(_renamed(model, Path(temporary) / "model", name), name, hub, owner, Path(temporary))
        parsed = parse_name(name)
        assert isinstance(parsed, EngineName)
        print(f"{name} on {hub.title}, as {owner}, with huggingface_hub {huggingface_hub.__version__}")
        try:
            travel(journey)
        finally:
            with client.session():
                client.delete(parsed.repository(owner))
    result = {
        "hub": hub.title,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "zoo": __version__,
        "huggingface_hub": huggingface_hub.__version__,
        "seconds": journey.seconds,
    }
    atomic_write(RESULT, canonical_json(result))
    print(f"all of it holds; the scratch repository is deleted, and {RESULT} is written")


def travel(journey: Journey) -> None:
    """Each step in the order in which a user takes them."""
    journey.step("a dry run asks nothing", lambda: _dry_run(journey))
    journey.step("published, private", lambda: _first(journey))
    journey.step("published again: nothing new", lambda: _again(journey))
    journey.step("listed, with the numbers of its card", lambda: _listed(journey))
    journey.step("loaded, the same to the last bit", lambda: _loaded(journey))
    journey.step("loaded without a network, warm and pinned", lambda: _offline(journey))
    journey.step("a second version, and the first as it was", lambda: _second(journey))
    journey.step("pulled into a folder, and loaded there", lambda: _pulled(journey))


def _dry_run(journey: Journey) -> None:
    plan = zoo.publish(journey.folder, journey.hub.endpoint, namespace=journey.namespace, dry_run=True)
    assert plan.dry_run
    assert plan.commit is None


def _first(journey: Journey) -> None:
    result = journey.publish()
    assert (result.tag, result.new, result.public) == ("v1", True, False), result


def _again(journey: Journey) -> None:
    result = journey.publish()
    assert (result.tag, result.new) == ("v1", False), result


def _listed(journey: Journey) -> None:
    for _ in range(12):  # the index that a hub searches may lag
        rows = {row["name"]: row for row in listing(journey.hub.endpoint, namespace=journey.namespace)}
        if journey.name in rows:
            break
        time.sleep(10)
    block = parse_card((journey.folder / "README.md").read_text(encoding="utf-8")).zoo
    assert block is not None
    assert rows[journey.name]["metrics"] == block.metrics
    row, _ = describe(journey.name, journey.hub.endpoint, namespace=journey.namespace)
    assert row["version"] == "v1"


def _loaded(journey: Journey) -> None:
    engine = journey.load()
    assert engine.check().passed
    assert torch.equal(_forces(engine), _forces(zoo.load(journey.folder, device="cpu")))


def _offline(journey: Journey) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        assert journey.load("v1").provenance.revision == "v1"
    finally:
        del os.environ["HF_HUB_OFFLINE"]


def _second(journey: Journey) -> None:
    recipe = journey.folder / "recipe.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8") + "# the second version\n", encoding="utf-8")
    write_manifest(journey.folder)
    assert journey.publish().tag == "v2"
    assert journey.load().provenance.revision == "v2"
    assert journey.load("v1").provenance.revision == "v1"


def _pulled(journey: Journey) -> None:
    there = journey.workspace / "there"
    zoo.pull([journey.name], there, hub=journey.hub.endpoint, namespace=journey.namespace)
    assert torch.equal(_forces(journey.load(hub=there)), _forces(zoo.load(journey.folder, device="cpu")))


def _renamed(model: Path, copy: Path, name: str) -> Path:
    """The model folder under a name that nobody will look for."""
    shutil.copytree(model, copy)
    config = read_json(ArtifactConfig, copy / CONFIG)
    write_json(copy / CONFIG, config.model_copy(update={"name": name}))
    card = copy / "README.md"
    card.write_text(card.read_text(encoding="utf-8").replace(config.name, name), encoding="utf-8")
    write_manifest(copy)
    return copy


def _forces(engine: zoo.Engine) -> torch.Tensor:
    """On the first structure of its probe."""
    assert engine.probe is not None
    forces = engine.predict(engine.probe.structures[0])[0].forces
    assert forces is not None
    return forces


@contextmanager
def _environment(cache: Path) -> Iterator[None]:
    """A cache of its own, for which nothing was fetched before."""
    before = os.environ.get("ZOO_CACHE")
    os.environ["ZOO_CACHE"] = str(cache)
    try:
        yield
    finally:
        if before is None:
            del os.environ["ZOO_CACHE"]
        else:
            os.environ["ZOO_CACHE"] = before


if __name__ == "__main__":
    main()
