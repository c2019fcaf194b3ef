"""What says energies and forces, and the ways in which it is asked."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator

from zoo.calculator import check_elements
from zoo.engine import Engine
from zoo.errors import UnknownNameError, ZooError, ZooWarning
from zoo.evaluate.speed import Call
from zoo.load import load
from zoo.neighbors import SkinList, build_graph
from zoo.potential import Prediction, given
from zoo.teachers.remote import RemotePotential

Way = Literal["ase", "potential", "batch"]
Kind = Literal["own", "teacher", "other", "peer"]
Ask = Callable[[Sequence[Atoms]], Call]  # from structures to what is timed
NEW_LIST = "compiled, new list"


@dataclass(frozen=True)
class Runner:
    """An engine, a teacher or a peer, and what it can be asked.

    A way takes structures, of which ``ase`` and ``potential`` take one, and gives what is timed: energies and forces.
    What it does before, such as finding the neighbours for ``potential``, is not timed.
    """

    name: str
    kind: Kind
    ways: Mapping[Way, Ask]
    apart: bool = False  # it answers from a process of its own


@dataclass(frozen=True)
class Absent:
    """What was asked for and is not measured, and in one sentence why."""

    name: str
    reason: str


def engine_runner(engine: Engine, name: str, kind: Kind) -> Runner:
    """An engine of zoo as its users ask it."""
    ways: dict[Way, Ask] = {"potential": _alone(engine), "batch": _batch(engine)}
    if engine.potential.traits.energies:  # which ASE asks for
        ways = {"ase": ask_calculator(engine.calculator()), **ways}
    return Runner(name, kind, ways, isinstance(engine.potential, RemotePotential))


def new_list_runner(engine: Engine) -> Runner:
    """A compiled engine through ASE that seeks all neighbours at each call, as calculators without a skin do."""
    if not engine.potential.traits.energies:
        return Runner(NEW_LIST, "own", {})
    calculator = engine.calculator()
    ask = ask_calculator(calculator)

    def ready(structures: Sequence[Atoms]) -> Call:
        calculator.neighbors = SkinList(engine.potential.cutoff)
        return ask(structures)

    return Runner(NEW_LIST, "own", {"ase": ready})


def own_runners(name: str | Path, **options: Any) -> tuple[list[Runner | Absent], Engine, Engine]:
    """An engine by compiled code and by PyTorch; it as it is loaded, and in float64 by PyTorch, to compare with.

    Compiled code is also asked with a new neighbour list at each call. ``options`` are those of ``zoo.load``. Raises
    what it raises.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ZooWarning)
        fast = load(name, compile=True, **options)
    told = [str(warning.message).partition(";")[0] for warning in caught if warning.category is ZooWarning]
    plain = load(name, compile=False, **options)
    exact = load(name, compile=False, **(options | {"dtype": "float64"}))
    compiled: list[Runner | Absent] = [Absent("compiled", "; ".join(told))]
    if fast.compiled:
        compiled = [engine_runner(fast, "compiled", "own"), new_list_runner(fast)]
    return [*compiled, engine_runner(plain, "PyTorch", "own")], fast, exact


def loaded_runner(name: str, kind: Kind, **options: Any) -> Runner | Absent:
    """An engine or a teacher by name, asked outside its domain too. Raises UnknownNameError for another engine."""
    try:
        return engine_runner(load(name, check_domain=False, **options), name, kind)
    except ZooError as error:
        if kind == "other" and isinstance(error, UnknownNameError):
            raise
        return Absent(name, str(error))


def ask_calculator(calculator: Calculator) -> Ask:
    """Energy and forces of one structure through ASE.

    Both are asked for at once: there are calculators that compute again what they were not asked for.
    """

    def ready(structures: Sequence[Atoms]) -> Call:
        (atoms,) = structures

        def ask() -> np.ndarray:
            changes = calculator.check_state(atoms)
            calculator.reset()
            calculator.calculate(atoms, ["energy", "forces"], changes)
            forces: np.ndarray = calculator.results["forces"]
            return forces

        return ask

    return ready


def forces_of(answer: object) -> np.ndarray:
    """(atoms, 3) eV/Å, of all structures one after the other, of what an engine of zoo answers."""
    if isinstance(answer, Prediction):
        return given(answer.forces).double().cpu().numpy()
    if isinstance(answer, list):
        return np.concatenate([forces_of(one) for one in answer])
    return np.asarray(answer)


def _alone(engine: Engine) -> Ask:
    def ready(structures: Sequence[Atoms]) -> Call:
        potential, calculator = engine.potential, engine.calculator()
        for atoms in structures:
            check_elements(atoms, potential)
        graph = build_graph(structures, potential.cutoff, dtype=potential.dtype, device=potential.device)
        predict = calculator.predict or potential.predict
        return lambda: predict(graph)

    return ready


def _batch(engine: Engine) -> Ask:
    return lambda structures: lambda: engine.predict(structures)
