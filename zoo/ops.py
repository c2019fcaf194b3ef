"""Numerical building blocks, smooth under the derivatives that Hessian distillation needs.

Forces are a first derivative, Hessian products a second, the gradient of a loss over them a third. Each function here
is correct, and finite, to the third.

Sums over neighbours are PyTorch's ``scatter_add``. Of the ways that ``scripts/bench_ops.py`` sets beside it those that
are right to the third derivative take as long in a model; sums over sorted rows are not: PyTorch's ``segment_reduce``
has no second derivative, and that of torch-scatter's ``segment_csr`` is wrong (benchmarks/ops.md).
"""

import importlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor


def scatter_sum(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Sums rows of ``values`` that share an index: ``out[i] = Σ_{k: index[k]=i} values[k]``.

    values (edges, ...), index (edges,) int64, returns (size, ...). torch-scatter does it where it is installed.
    """
    if _has_torch_scatter():
        return torch_scatter_sum(values, index, size)
    return native_scatter_sum(values, index, size)


def native_scatter_sum(values: Tensor, index: Tensor, size: int) -> Tensor:
    """``scatter_sum`` in PyTorch alone."""
    out = values.new_zeros((size, *values.shape[1:]))
    expanded = index.reshape(-1, *[1] * (values.dim() - 1)).expand_as(values)
    return out.scatter_add(0, expanded, values)


def torch_scatter_sum(values: Tensor, index: Tensor, size: int) -> Tensor:
    """``scatter_sum`` by the package torch-scatter.

    For a sum it calls PyTorch's own ``scatter_add_``: the same kernel, the same bits, and no gain in speed.
    """
    import torch_scatter  # lazy: optional, and it compiles for minutes

    summed: Tensor = torch_scatter.scatter(values, index, dim=0, dim_size=size, reduce="sum")
    return summed


@contextmanager
def deterministic() -> Iterator[None]:
    """PyTorch's deterministic algorithms for the time of a block; what was set before comes back.

    With several threads, SevenNet's forces otherwise differ in their last digit from call to call, and trajectories
    and trainings grow apart from there.
    """
    before, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


@cache
def _has_torch_scatter() -> bool:
    """Whether torch-scatter works; one that was compiled for another PyTorch is there and raises when imported."""
    try:
        importlib.import_module("torch_scatter")  # lazy: as above
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def safe_norm(vectors: Tensor, epsilon: float = 1e-12) -> Tensor:
    """Length over the last axis, with derivatives of every order at zero: ``sqrt(|v|² + ε) − sqrt(ε)``."""
    return (vectors.square().sum(dim=-1) + epsilon).sqrt() - math.sqrt(epsilon)


def polynomial_envelope(fraction: Tensor, power: int = 6) -> Tensor:
    """Goes from 1 at 0 to 0 at 1 with two vanishing derivatives there, and is 0 beyond.

    ``u(x) = 1 − (p+1)(p+2)/2 xᵖ + p(p+2) xᵖ⁺¹ − p(p+1)/2 xᵖ⁺²`` with x = r/r_cut (Gasteiger, Groß, Günnemann,
    ICLR 2020, arXiv 2003.03123, eq. 8).
    """
    p = float(power)
    x = fraction.clamp(max=1.0)
    x_p = x.pow(power)
    value = 1 + x_p * (-(p + 1) * (p + 2) / 2 + x * (p * (p + 2) - x * (p * (p + 1) / 2)))
    return torch.where(fraction < 1, value, torch.zeros_like(value))


def bessel_basis(distance: Tensor, frequencies: Tensor, cutoff: float) -> Tensor:
    """Radial basis ``sqrt(2/r_cut) sin(n π r / r_cut) / r`` (the same paper, eq. 7).

    distance (edges, 1) Å, frequencies (radials,) the n·π; returns (edges, radials).
    """
    return math.sqrt(2 / cutoff) * torch.sin(frequencies * (distance / cutoff)) / distance
