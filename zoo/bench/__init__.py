"""How fast an engine is, beside its teacher, other engines and other packages' models, in one run."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase import Atoms

from zoo.artifact import count_parameters
from zoo.bench.cases import Row, measure_all, plan_cases, scenes, within_free_memory
from zoo.bench.peers import Wanted, peer_names, peer_runner, peer_versions
from zoo.bench.report import Report
from zoo.bench.roofline import Limits, Roofline, measure_limits, roofline_of
from zoo.bench.runners import Absent, Runner, loaded_runner, own_runners
from zoo.engine import Engine, resolve_dtype
from zoo.errors import ConfigError, UnknownNameError
from zoo.evaluate.environment import hardware, versions
from zoo.evaluate.speed import pytorch_threads
from zoo.inputs import resolve_device
from zoo.memory import until_out_of_memory
from zoo.neighbors import build_graph
from zoo.potential import Potential
from zoo.students import PaiNNConfig
from zoo.teachers.remote import RemotePotential

_OWN_CALCULATORS = {"sevennet-0/teacher": "7net-0", "sevennet-l3i5/teacher": "7net-l3i5"}  # teacher -> peer


@dataclass(frozen=True)
class Settings:
    """What is measured, and how. Raises ConfigError for what makes no sense."""

    atoms: tuple[int, ...] = (8, 64, 216, 1000)  # about so many, of repeats of a structure
    batches: tuple[int, ...] = (1, 8, 64)  # structures
    repeats: int = 12  # timed calls of each, and more of fast ones
    patience_s: float = 10.0  # what takes longer for one call is left out
    threads: int | None = None  # PyTorch's; None leaves them

    def __post_init__(self) -> None:
        given = {"atoms": self.atoms, "batch": self.batches, "repeats": (self.repeats,), "patience": (self.patience_s,)}
        given |= {"threads": () if self.threads is None else (self.threads,)}
        for name, values in given.items():
            for value in values:
                if not (value > 0 and math.isfinite(value)):
                    raise ConfigError(f"{name} is {value}; give a positive number")


def bench(
    name: str | Path,
    *,
    against: Sequence[str] = (),
    structure: Atoms | None = None,
    settings: Settings | None = None,
    dtype: str = "float32",
    device: str = "auto",
    **hub: Any,
) -> Report:
    """Energies and forces of an engine, by compiled code and by PyTorch, timed in turns with what it is compared to.

    That is its teacher, and ``against``: names of engines, of ``peer_names()``, ``peers`` for all of these, or ``none``
    for no teacher. What cannot be loaded or made is told in the report. ``structure`` takes the place of the engine's
    own ones. ``hub`` as in ``zoo.load``. Raises what it raises, and ConfigError for an engine without structures.
    """
    chosen, options = settings or Settings(), {"dtype": dtype, "device": device, **hub}
    own, fast, exact = own_runners(name, **options)
    base = [structure] if structure is not None else _structures_of(exact)
    found = [*own, *_compared(exact, against, base, options)]
    rows = tuple(
        measure_all(
            plan_cases(base, chosen.atoms, chosen.batches, exact.potential.cutoff),
            [one for one in found if isinstance(one, Runner)],
            repeats=chosen.repeats,
            exact=exact,
            patience_s=chosen.patience_s,
            threads=chosen.threads,
        )
    )
    with pytorch_threads(chosen.threads):
        limits = measure_limits(resolve_dtype(dtype), resolve_device(device))
        return Report(
            name=fast.provenance.title,
            potential=_description(fast.potential),
            dtype=dtype,
            device=str(fast.potential.device),
            cutoff_A=fast.potential.cutoff,
            hardware=hardware(),
            versions=versions() | peer_versions(),
            rows=rows,
            absent=tuple(one for one in found if isinstance(one, Absent)),
            limits=limits,
            rooflines=tuple(_rooflines(rows, scenes(base, chosen.atoms), fast, limits)),
            apart=tuple(one.name for one in found if isinstance(one, Runner) and one.apart),
        )


def _structures_of(engine: Engine) -> list[Atoms]:
    if engine.probe is None:
        raise ConfigError(
            f"{engine.name} has no structures of its own; give one: zoo bench {engine.name} --structure FILE"
        )
    return engine.probe.structures


def _compared(
    engine: Engine, against: Sequence[str], base: Sequence[Atoms], options: dict[str, Any]
) -> Iterator[Runner | Absent]:
    """Its teacher, in zoo and in its family's own calculator; other engines; peers; each once."""
    teacher = None if "none" in against else engine.provenance.teacher
    named = {*against, _OWN_CALCULATORS.get(teacher or "")}
    peers = [name for name in peer_names() if "peers" in against or name in named]
    if teacher is not None:
        yield loaded_runner(teacher, "teacher", **options)
    for name in dict.fromkeys(against):
        if name not in ("none", "peers", teacher, *peer_names()):
            yield _other(name, options)
    config = getattr(engine.potential, "config", None)  # which a teacher does not have
    size = config if isinstance(config, PaiNNConfig) else None
    elements = tuple(sorted({symbol for atoms in base for symbol in atoms.get_chemical_symbols()}))
    wanted = Wanted(size, elements, options["dtype"], str(resolve_device(options["device"])))
    yield from (peer_runner(name, wanted) for name in peers)


def _other(name: str, options: dict[str, Any]) -> Runner | Absent:
    """Another engine. Raises UnknownNameError, which names the peers too."""
    try:
        return loaded_runner(name, "other", **options)
    except UnknownNameError as error:
        raise UnknownNameError(f"{error}; peers: {', '.join(peer_names())}") from error


def _description(potential: Potential) -> str:
    count = count_parameters(potential)
    told = f", {count:,} parameters" if count else ""
    return f"{type(potential).__name__}{told}, cutoff {potential.cutoff:g} Å"


def _rooflines(rows: Sequence[Row], sizes: Sequence[Atoms], engine: Engine, limits: Limits) -> list[Roofline]:
    """Of the engine's own rows, the potential alone; none where there is not the memory to count."""
    potential, found = engine.potential, []
    if isinstance(potential, RemotePotential):  # whose operations are another process's
        return []
    structures = {len(atoms): atoms for atoms in sizes}
    for row in rows:
        if row.way == "potential" and row.kind == "own" and row.timing is not None:
            with until_out_of_memory(), within_free_memory():
                atoms = structures[row.atoms]
                graph = build_graph(atoms, potential.cutoff, dtype=potential.dtype, device=potential.device)
                found.append(roofline_of(row.name, potential, graph, row.timing.median_ms / 1000, limits))
    return found


__all__ = ["Report", "Settings", "bench", "peer_names", "peer_versions"]
