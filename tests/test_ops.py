"""The numerical building blocks, to the third derivative."""

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_scripts import load_script
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.function import once_differentiable

from zoo import ops


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _derivatives(function: object, at: Tensor, orders: int) -> list[Tensor]:
    """The function's values at scalars, and their derivatives up to an order."""
    at = at.clone().requires_grad_()
    values = [function(at)]
    for _ in range(orders):
        values.append(torch.autograd.grad(values[-1].sum(), at, create_graph=True)[0])
    return [value.detach() for value in values]


INDEX = torch.tensor([3, 0, 0, 3, 1])


@pytest.mark.parametrize("shape", [(5,), (5, 2), (5, 3, 2)])
def test_scatter_sums_rows_that_share_an_index(shape: tuple[int, ...]) -> None:
    values = _draw(*shape)
    expected = values.new_zeros(5, *shape[1:])
    for row, index in zip(values, INDEX, strict=True):
        expected[index] += row
    torch.testing.assert_close(ops.scatter_sum(values, INDEX, 5), expected)
    torch.testing.assert_close(ops.native_scatter_sum(values, INDEX, 5), expected)


def test_scatter_of_nothing_is_zero() -> None:
    nothing = torch.zeros(0, 3, dtype=torch.float64)
    for scatter in (ops.scatter_sum, ops.native_scatter_sum):
        torch.testing.assert_close(scatter(nothing, INDEX[:0], 2), torch.zeros(2, 3, dtype=torch.float64))


def test_native_scatter_differentiates_twice() -> None:
    values = _draw(5, 2).requires_grad_()
    assert gradcheck(lambda v: ops.native_scatter_sum(v.square(), INDEX, 4), values)
    assert gradgradcheck(lambda v: ops.native_scatter_sum(v.pow(3), INDEX, 4), values)


def _to_third_order(scatter: object, values: Tensor) -> list[Tensor]:
    """Sum, gradient, a Hessian product and the gradient of its square, of a function that is not linear."""
    values = values.clone().requires_grad_()
    summed = scatter(values.sin() * values, INDEX, 4)
    first = torch.autograd.grad(summed.pow(3).sum(), values, create_graph=True)[0]
    second = torch.autograd.grad((first * _draw(*values.shape, seed=1)).sum(), values, create_graph=True)[0]
    third = torch.autograd.grad(second.square().sum(), values)[0]
    return [summed.detach(), first.detach(), second.detach(), third]


@pytest.mark.scatter
@pytest.mark.parametrize("shape", [(5,), (5, 2), (5, 3, 2)])
def test_torch_scatter_agrees_with_native_to_third_order(shape: tuple[int, ...]) -> None:
    values = _draw(*shape)
    for native, other in zip(
        _to_third_order(ops.native_scatter_sum, values),
        _to_third_order(ops.torch_scatter_sum, values),
        strict=True,
    ):
        torch.testing.assert_close(native, other, rtol=1e-12, atol=1e-12)


@pytest.mark.scatter
@pytest.mark.parametrize("shape", [(5,), (5, 2), (5, 3, 2)])
def test_scatter_agrees_with_another_kernel(shape: tuple[int, ...]) -> None:
    """torch-scatter's ``scatter`` is PyTorch's ``scatter_add_`` underneath; its ``segment_csr`` has C++ of its own."""
    import torch_scatter  # optional

    order = INDEX.argsort(stable=True)
    bounds = torch.tensor([0, 2, 3, 3, 5])  # where the rows of 0, 1, 2 and 3 begin and end once sorted
    direction = _draw(4, *shape[1:], seed=1)
    values = _draw(*shape).requires_grad_()
    other = torch_scatter.segment_csr(values.sin()[order], bounds, reduce="sum")
    (other_gradient,) = torch.autograd.grad((other * direction).sum(), values)
    for scatter in (ops.native_scatter_sum, ops.torch_scatter_sum):
        summed = scatter(values.sin(), INDEX, 4)
        (gradient,) = torch.autograd.grad((summed * direction).sum(), values)
        torch.testing.assert_close(summed, other, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, other_gradient, rtol=1e-12, atol=1e-12)


class _Once(torch.autograd.Function):
    """A sum that can be differentiated once."""

    @staticmethod
    def forward(context: Any, values: Tensor, index: Tensor, size: int) -> Tensor:
        context.save_for_backward(index)
        return ops.native_scatter_sum(values, index, size)

    @staticmethod
    @once_differentiable
    def backward(context: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        return slope[context.saved_tensors[0]], None, None


def test_the_bench_finds_what_is_wrong_with_a_way_to_sum() -> None:
    bench = load_script("bench_ops")
    right = ("scatter_add", "index_add", "axis of equal rows")
    assert {bench.fault(bench.WAYS[name]) for name in right} == {None}
    assert bench.fault(lambda values, edges: 1.001 * bench.scatter_add(values, edges)) == "a wrong sum"
    once = bench.fault(lambda values, edges: _Once.apply(values, edges.centers, edges.atoms))
    assert once == "a wrong second derivative"
    refused = bench.fault(lambda values, edges: values.reshape(edges.atoms + 1, -1, 3).sum(dim=1))
    assert refused.startswith("no sum: ")


@pytest.fixture
def asked_anew() -> Iterator[None]:
    """Forgets whether torch-scatter works, before and after."""
    ops._has_torch_scatter.cache_clear()
    yield
    ops._has_torch_scatter.cache_clear()


@pytest.mark.usefixtures("asked_anew")
@pytest.mark.parametrize("error", ["ImportError('no module')", "OSError('undefined symbol')", "RuntimeError('CUDA')"])
def test_a_broken_torch_scatter_is_as_good_as_none(
    error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "torch_scatter.py").write_text(f"print('tried')\nraise {error}\n")
    monkeypatch.delitem(sys.modules, "torch_scatter", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    for _ in range(2):
        assert ops.scatter_sum(torch.ones(5), INDEX, 4).tolist() == [2, 1, 0, 2]
    assert capsys.readouterr().out == "tried\n", "it is tried once"


@pytest.mark.parametrize("installed", [True, False])
def test_scatter_takes_the_path_that_is_installed(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(ops, "_has_torch_scatter", lambda: installed)
    monkeypatch.setattr(ops, "torch_scatter_sum", lambda *given: taken.append(True))
    monkeypatch.setattr(ops, "native_scatter_sum", lambda *given: taken.append(False))
    ops.scatter_sum(_draw(5), INDEX, 4)
    assert taken == [installed]


def test_safe_norm_is_the_length() -> None:
    vectors = _draw(6, 3)
    torch.testing.assert_close(ops.safe_norm(vectors), vectors.norm(dim=1), rtol=0, atol=2e-6)
    assert ops.safe_norm(torch.zeros(2, 3, dtype=torch.float64)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("epsilon", [1.0, 1e-4])
def test_safe_norm_at_zero_has_its_analytic_derivatives(epsilon: float) -> None:
    """Along a line through zero, ``sqrt(x² + ε)`` has the derivatives 0, 1/√ε and 0."""
    at_zero = torch.zeros(1, dtype=torch.float64)
    got = _derivatives(lambda x: ops.safe_norm(torch.stack([x, 0 * x, 0 * x], dim=1), epsilon), at_zero, 3)
    torch.testing.assert_close(torch.cat(got), torch.tensor([0, 0, epsilon**-0.5, 0], dtype=torch.float64))


def test_safe_norm_differentiates_twice_away_from_zero() -> None:
    vectors = _draw(4, 3).requires_grad_()
    assert gradcheck(ops.safe_norm, vectors)
    assert gradgradcheck(ops.safe_norm, vectors)


@pytest.mark.parametrize("power", [3, 6])
def test_envelope_vanishes_with_two_derivatives_at_the_cutoff(power: int) -> None:
    def envelope(x: Tensor) -> Tensor:
        return ops.polynomial_envelope(x, power)

    inside = _derivatives(envelope, torch.tensor([1 - 1e-9], dtype=torch.float64), 3)
    for order in range(3):
        assert abs(inside[order].item()) < 1e-5, f"derivative {order} jumps at the cutoff"
    third = -power * (power + 1) * (power + 2)  # the first that jumps: u‴(1) of equation 8
    assert inside[3].item() == pytest.approx(third, rel=1e-6)
    beyond = _derivatives(envelope, torch.tensor([1.0, 1.2, 7.0], dtype=torch.float64), 3)
    assert torch.stack(beyond).abs().max() == 0


def test_envelope_follows_its_formula_inside() -> None:
    x = torch.linspace(0, 0.999, 17, dtype=torch.float64)
    p = 6
    formula = 1 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)
    torch.testing.assert_close(ops.polynomial_envelope(x), formula)
    assert (ops.polynomial_envelope(x).diff() <= 1e-12).all(), "the envelope never rises"


def test_bessel_basis_follows_its_formula_and_is_orthonormal() -> None:
    cutoff, count = 5.0, 4
    frequencies = math.pi * torch.arange(1, count + 1, dtype=torch.float64)
    distance = ((torch.arange(4000, dtype=torch.float64) + 0.5) * cutoff / 4000)[:, None]
    basis = ops.bessel_basis(distance, frequencies, cutoff)
    expected = math.sqrt(2 / cutoff) * torch.sin(frequencies * distance / cutoff) / distance
    torch.testing.assert_close(basis, expected)
    overlap = (basis.T * distance[:, 0] ** 2) @ basis * cutoff / 4000
    torch.testing.assert_close(overlap, torch.eye(count, dtype=torch.float64), atol=1e-6, rtol=0)


def test_bessel_basis_differentiates_twice() -> None:
    frequencies = math.pi * torch.arange(1, 4, dtype=torch.float64)
    distance = torch.tensor([[0.9], [2.3], [4.99]], dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda r: ops.bessel_basis(r, frequencies, 5.0), distance)
    assert gradgradcheck(lambda r: ops.bessel_basis(r, frequencies, 5.0), distance)
