"""How near an engine comes to what its machine can do: operations and bytes counted, limits measured in that run."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from zoo.evaluate.speed import time_once
from zoo.graph import Graph
from zoo.potential import Potential
from zoo.students import PaiNN, PaiNNConfig

_SQUARE = 1024  # rows and columns of the matrices whose product tells the limit
_COPIED = 32 << 20  # numbers: more than any cache holds
_SECONDS = 0.3  # that each measurement of a limit takes
_ROWS = 18  # of channels that a layer keeps of an atom: s 1, v 3, φ 3, mixed 6, gates 3, hidden ones 2
# of such a row: written and read on the way there; read, and its gradient written and read, on the way back
_PASSES = 5
_TABLE = 6  # rows of a table of filters that give a filter and its slope at one distance
_EDGE = 6  # numbers that tell an edge: its two atoms, its direction, its length


@dataclass(frozen=True)
class Product:
    """A matrix product (rows, inner) x (inner, columns), made ``times``."""

    rows: int
    inner: int
    columns: int
    times: int = 1

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.rows * self.inner * self.columns * self.times


@dataclass(frozen=True)
class Limits:
    """What a machine does at most, in one type and with PyTorch's present number of threads."""

    product_GFLOP_s: float  # of two large square matrices
    copy_GB_s: float  # read and written, of what no cache holds


@dataclass(frozen=True)
class Roofline:
    """Energy and forces of one structure beside the limits of the machine."""

    name: str
    atoms: int
    edges: int
    ms: float
    counted: str  # how operations were counted
    GFLOP: float
    GFLOP_s: float
    share_of_product: float  # of what large matrix products reach
    share_of_these_products: float | None  # of what PyTorch reaches in these very products, one after another
    least_MB: float | None  # that are moved
    share_of_copy: float | None  # over 1 where a cache holds them


def measure_limits(dtype: torch.dtype, device: torch.device) -> Limits:
    """The best of many tries: machines are shared."""
    square = Product(_SQUARE, _SQUARE, _SQUARE)
    source = torch.ones(_COPIED, dtype=dtype, device=device)
    target = torch.empty_like(source)
    copied = 2e-9 * source.numel() * source.element_size()
    return Limits(
        product_GFLOP_s=1e-9 * square.operations / _seconds_of_product(square, dtype, device),
        copy_GB_s=copied / _least_seconds(lambda: target.copy_(source)),
    )


def roofline_of(name: str, potential: Potential, graph: Graph, seconds: float, limits: Limits) -> Roofline:
    """Of a potential that takes ``seconds`` for energy and forces of ``graph``."""
    atoms, edges, these, least = graph.num_atoms, graph.num_edges, None, None
    if isinstance(potential, PaiNN):
        products = painn_products(potential.config, atoms, edges)
        operations = sum(one.operations for one in products)
        alone = [one.times * _seconds_of_product(one, potential.dtype, potential.device) for one in products]
        these = sum(alone) / seconds
        least = painn_bytes(potential.config, atoms, edges, graph.positions.element_size())
    else:
        operations = _counted(potential, graph)
    speed = 1e-9 * operations / seconds
    return Roofline(
        name=name,
        atoms=atoms,
        edges=edges,
        ms=seconds * 1000,
        counted="by PyTorch's counter" if least is None else "from the configuration",
        GFLOP=1e-9 * operations,
        GFLOP_s=speed,
        share_of_product=speed / limits.product_GFLOP_s,
        share_of_these_products=these,
        least_MB=None if least is None else 1e-6 * least,
        share_of_copy=None if least is None else 1e-9 * least / seconds / limits.copy_GB_s,
    )


def painn_products(config: PaiNNConfig, atoms: int, edges: int) -> list[Product]:
    """The matrix products that energy and forces of a PaiNN need.

    With c channels, L layers, A atoms and E edges, weights standing still, there and back: φ of all layers but the
    first, which depends on the element alone, c·c and c·3c; filters on each edge, R·2c in the first layer and R·3c in
    the others, where R is the number of radial functions, or 6, the rows that a table of filters needs, if that is
    less; mixed vectors c·2c on three axes; gates 2c·c and c·3c, without the part for vectors in the last layer; the
    readout c·(c/2 + 1) and (c/2 + 1)·1. Together 4·A·[c²·(15·L − 5) + (c + 1)·(c/2 + 1)] + 4·E·c·R·(3·L − 1)
    multiplications and additions.
    """
    c, inner, half = config.channels, config.layers - 1, config.channels // 2 + 1
    radials = min(config.radials, _TABLE)
    there = [
        Product(atoms, c, c, inner),
        Product(atoms, c, 3 * c, inner),
        Product(edges, radials, c, 3 * config.layers - 1),
        Product(3 * atoms, c, 2 * c, config.layers),
        Product(atoms, 2 * c, c, config.layers),
        Product(atoms, c, 3 * c, inner),
        Product(atoms, c, 2 * c),
        Product(atoms, c, half),
        Product(atoms, half, 1),
    ]
    back = [Product(one.rows, one.columns, one.inner, one.times) for one in there]
    return [one for one in (*there, *back) if one.times]


def painn_bytes(config: PaiNNConfig, atoms: int, edges: int, number: int) -> int:
    """The least that energy and forces of a PaiNN move, with ``number`` bytes for each number.

    18 rows of channels of an atom in a layer: s, v, φ, mixed vectors, gates, and what their two networks have between;
    each written once and read once, read once more on the way back, and its gradient written once and read once. Six
    numbers of an edge in a layer, there and back. What neighbours read twice is taken to be in a cache.
    """
    rows = atoms * config.channels * _ROWS * _PASSES
    return number * config.layers * (rows + 2 * edges * _EDGE)


def _counted(potential: Potential, graph: Graph) -> int:
    """Operations of the matrix products that PyTorch makes for energy and forces."""
    with FlopCounterMode(display=False) as counter:
        potential.predict(graph)
    return int(counter.get_total_flops())


def _seconds_of_product(product: Product, dtype: torch.dtype, device: torch.device) -> float:
    """Of one of them."""
    left = torch.randn(product.rows, product.inner, dtype=dtype, device=device)
    right = torch.randn(product.inner, product.columns, dtype=dtype, device=device)
    result = left @ right
    return _least_seconds(lambda: torch.mm(left, right, out=result))


def _least_seconds(call: Callable[[], object]) -> float:
    """The best of many calls."""
    least, end = math.inf, time.perf_counter() + _SECONDS
    while time.perf_counter() < end or least == math.inf:
        least = min(least, time_once(call) / 1000)
    return least
