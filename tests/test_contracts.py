"""Each law of the contract on each potential of the zoo."""

from collections.abc import Callable

import pytest
import structures as scenes
import torch
from contracts import CONTRACT, check_law
from gemnets import tiny_gemnet

from zoo import ops
from zoo.errors import CapabilityError
from zoo.neighbors import build_graph
from zoo.potential import Potential
from zoo.teachers import load_teacher

# e3nn compiles so, and what torch imports for forward mode
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


def _stillinger_weber() -> Potential:
    potential = load_teacher("stillinger-weber/teacher", dtype=torch.float64).potential
    return potential.requires_grad_()  # its one constant, so that laws about parameters hold too


def _sevennet(name: str) -> Callable[[], Potential]:
    return lambda: load_teacher(name, dtype=torch.float64).potential


POTENTIALS = {
    "painn": lambda: scenes.tiny_painn("Si"),
    "painn-two-elements": lambda: scenes.tiny_painn("O", "Si", seed=11),
    "painn-one-channel": lambda: scenes.tiny_painn("Si", channels=1, layers=1, seed=3),
    "painn-three-layers": lambda: scenes.tiny_painn("H", "C", cutoff=3.1, layers=3, seed=5),
    "gemnet-t": lambda: tiny_gemnet("Si"),
    "gemnet-t-two-elements": lambda: tiny_gemnet("O", "Si", blocks=1, seed=11),
    "gemnet-t-few-neighbors": lambda: tiny_gemnet("O", "Si", blocks=1, max_neighbors=6),
    "gemnet-dt": lambda: tiny_gemnet("Si", direct=True),
    "gemnet-dt-two-elements": lambda: tiny_gemnet("O", "Si", direct=True, blocks=1, cutoff=4.3, seed=11),
    "stillinger-weber": _stillinger_weber,
    "sevennet-0": _sevennet("sevennet-0/teacher"),
    "sevennet-l3i5": _sevennet("sevennet-l3i5/teacher"),
}
SLOW_TO_ASK = {"sevennet-l3i5": {"rotation", "batch", "forces_are_gradient", "hessian_products", "isolated_atom"}}


def _cases() -> list[object]:
    cases = []
    for name in POTENTIALS:
        marks = [pytest.mark.sevennet] if name.startswith("sevennet") else []
        cases += [
            pytest.param(name, law, id=f"{name}-{law}", marks=marks)
            for law in CONTRACT
            if law in SLOW_TO_ASK.get(name, CONTRACT)
        ]
    return cases


@pytest.fixture(scope="module")
def potentials() -> dict[str, Potential]:
    """Those that were built already."""
    return {}


@pytest.mark.parametrize(("name", "law"), _cases())
def test_potential_keeps_the_law(name: str, law: str, potentials: dict[str, Potential]) -> None:
    if name not in potentials:
        potentials[name] = POTENTIALS[name]()
    check_law(potentials[name], law)


def test_a_hessian_is_of_one_structure() -> None:
    potential = scenes.tiny_painn("Si")
    graph = build_graph([scenes.crystal((14,)), scenes.dimer((14,))], potential.cutoff)
    with pytest.raises(CapabilityError, match="one at a time"):
        potential.hessian(graph)


@pytest.mark.parametrize("law", ["batch", "hessian_is_gradient", "finite_to_third", "isolated_atom"])
@pytest.mark.parametrize("installed", [False, pytest.param(True, marks=pytest.mark.scatter)])
def test_painn_keeps_the_law_whichever_way_it_scatters(
    law: str, installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "_has_torch_scatter", lambda: installed)
    CONTRACT[law](scenes.tiny_painn("Si", "O"))
