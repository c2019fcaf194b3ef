"""Memory for time: a function of which only the arguments are kept for a gradient, and the insides computed again.

PyTorch's own ``torch.utils.checkpoint`` does so in reverse mode alone: in forward over reverse it keeps the tangents.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

Result = TypeVar("Result", bound=tuple[Tensor | None, ...])


def recomputed(function: Callable[..., Result], *arguments: Any) -> Result:
    """``function(*arguments)``, for a gradient by the arguments; it costs the function once more when that is taken.

    Arguments are tensors, data classes that hold tensors at any depth, and anything else, which is a constant. Nothing
    else may want a gradient, as parameters of a module do in training. Right in reverse mode, any number of times, in
    forward mode and in forward over reverse; in reverse over reverse also, where the insides are kept from the first
    gradient on, as without this. An argument with a tangent wants a gradient too; tangents cannot be differentiated
    backwards.
    """
    tensors = [tensor for argument in arguments for tensor in _wanting(argument)]
    if not torch.is_grad_enabled() or not tensors:
        return function(*arguments)
    with torch.no_grad():
        duals = [None if value is None else forward_ad.unpack_dual(value) for value in function(*arguments)]
    there = [dual for dual in duals if dual is not None]

    def again(*copies: Tensor) -> list[Tensor]:
        left = iter(copies)
        values = function(*[_rebuilt(argument, left) for argument in arguments])
        return [value for value in values if value is not None]

    found = iter(_recompute(again, there, *tensors))
    return cast(Result, tuple(None if dual is None else next(found) for dual in duals))


def leaf_of(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """A leaf of its value, to differentiate by, and the same with its tangent in forward mode, to compute with."""
    primal, tangent = forward_ad.unpack_dual(tensor)
    leaf = primal.detach().requires_grad_()
    return leaf, leaf if tangent is None else forward_ad.make_dual(leaf, tangent.detach())


class _Recomputed(torch.autograd.Function):
    """What a function gave, primals and tangents, as a function of its inputs."""

    @staticmethod
    def forward(
        ctx: Any,
        again: Callable[..., list[Tensor]],
        found: list[forward_ad.UnpackedDualTensor],
        *inputs: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs)
        ctx.again, ctx.tangents = again, tuple(dual.tangent for dual in found)
        return tuple(dual.primal for dual in found)

    @staticmethod
    def jvp(ctx: Any, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        tangents: tuple[Tensor | None, ...] = ctx.tangents
        del ctx.tangents  # the outputs have them now
        return tangents

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        differentiable = torch.is_grad_enabled()
        # of copies, for an input may be made of another, of which its own gradient alone is asked here
        copy = _view_of if differentiable else leaf_of
        with torch.enable_grad():
            copies = [copy(tensor) for tensor in ctx.saved_tensors]
            inputs, moved = zip(*copies, strict=True)
            values = ctx.again(*moved)
        pairs = [
            (value, slope)
            for value, slope in zip(values, upstream, strict=True)
            if slope is not None and value.requires_grad
        ]
        if not pairs:
            return None, None, *[None] * len(inputs)
        outputs, slopes = zip(*pairs, strict=True)
        gradients = torch.autograd.grad(outputs, inputs, slopes, create_graph=differentiable, allow_unused=True)
        return None, None, *gradients


_recompute: Callable[..., tuple[Tensor, ...]] = _Recomputed.apply


def _view_of(tensor: Tensor) -> tuple[Tensor, Tensor]:
    view = tensor.view_as(tensor)
    return view, view


def _wanting(value: Any) -> Iterator[Tensor]:
    """The tensors in it that want a gradient."""
    if isinstance(value, Tensor):
        if value.requires_grad:
            yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _wanting(getattr(value, field.name))


def _rebuilt(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The same with others in the place of the tensors that want a gradient, in their order."""
    if isinstance(value, Tensor):
        return next(tensors) if value.requires_grad else value
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _rebuilt(getattr(value, field.name), tensors) for field in fields(value)})
    return value
