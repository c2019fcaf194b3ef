"""The activation of GemNet, with derivatives that keep only what they need.

PyTorch makes the derivative of SiLU's derivative of half a dozen products and keeps what each is made of, which is most
of the memory of a Hessian. Here a product of any order keeps its two factors.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

_GAIN = 1 / 0.6  # keeps the variance of what goes through SiLU


def scaled_silu(values: Tensor) -> Tensor:
    """``f(x) = silu(x) / 0.6 = x σ(x) / 0.6``, differentiable to any order in either mode."""
    return _activate(values)


class ScaledSiLU(nn.Module):
    """``scaled_silu`` as a layer."""

    def forward(self, values: Tensor) -> Tensor:
        return scaled_silu(values)


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        ctx.save_for_forward(values)
        return nn.functional.silu(values).mul_(_GAIN)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        return _multiply(upstream[0], ctx.saved_tensors[0], 1)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return _multiply(tangents[0], ctx.saved_tensors[0], 1)


class _Product(torch.autograd.Function):
    """``g f⁽ⁿ⁾(x)``: by g the same product of what comes from above, by x one of the next order."""

    @staticmethod
    def forward(ctx: Any, factor: Tensor, values: Tensor, order: int) -> Tensor:
        ctx.save_for_backward(factor, values)
        ctx.save_for_forward(factor, values)
        ctx.order = order
        if order == 1:
            first: Tensor = torch.ops.aten.silu_backward(factor, values)
            return first.mul_(_GAIN)
        return factor * _derivative(values, order)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        factor, values = ctx.saved_tensors
        by_factor, by_values = ctx.needs_input_grad[:2]
        return (
            _multiply(upstream[0], values, ctx.order) if by_factor else None,
            _multiply(upstream[0] * factor, values, ctx.order + 1) if by_values else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        factor, values = ctx.saved_tensors
        of_factor, of_values = tangents[:2]
        parts = []
        if of_factor is not None:
            parts.append(_multiply(of_factor, values, ctx.order))
        if of_values is not None:
            parts.append(_multiply(of_values * factor, values, ctx.order + 1))
        return torch.stack(parts).sum(dim=0)


_activate: Callable[[Tensor], Tensor] = _Activation.apply
_multiply: Callable[[Tensor, Tensor, int], Tensor] = _Product.apply


def _derivative(values: Tensor, order: int) -> Tensor:
    """``f⁽ⁿ⁾(x) = (n σ⁽ⁿ⁻¹⁾(x) + x σ⁽ⁿ⁾(x)) / 0.6``"""
    sigmoid = torch.sigmoid(values)
    below, at = (_horner(_sigmoid_derivative(n), sigmoid) for n in (order - 1, order))
    return (below * order).addcmul_(values, at).mul_(_GAIN)


@cache
def _sigmoid_derivative(order: int) -> tuple[int, ...]:
    """Coefficients, of rising powers of σ, of its derivative of that order, by ``dσ/dx = σ − σ²``."""
    if order == 0:
        return (0, 1)
    before = _sigmoid_derivative(order - 1)
    after = [0] * (len(before) + 1)
    for power, coefficient in enumerate(before):
        after[power] += power * coefficient
        after[power + 1] -= power * coefficient
    return tuple(after)


def _horner(coefficients: tuple[int, ...], x: Tensor) -> Tensor:
    """The polynomial with those coefficients at x."""
    value = torch.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value.mul_(x).add_(coefficient)
    return value
