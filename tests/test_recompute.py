"""Functions that keep their arguments alone: the same numbers in every mode, and less that is kept."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from zoo.recompute import leaf_of, recomputed

# what PyTorch imports for forward mode
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

Run = Callable[..., Any]


@dataclass(frozen=True)
class Known:
    """What layers are told: a tensor that wants a gradient, one that does not, and whole numbers, at two depths."""

    shape: Tensor
    order: Tensor
    inner: "Known | None" = None


def kept(function: Run, *arguments: Any) -> Any:
    return function(*arguments)


def layer(values: Tensor, known: Known) -> tuple[Tensor, None, Tensor]:
    assert known.inner is not None
    mixed = torch.tanh(values[known.order] @ known.inner.shape) * known.shape.sin()
    return mixed, None, (values * known.inner.shape.exp()).cumsum(0)


def network(x: Tensor, run: Run) -> Tensor:
    """Three layers, whose arguments are made of each other."""
    known = Known(x.square(), torch.tensor([2, 0, 1]), Known(x.cos() @ torch.ones_like(x).t(), torch.ones(1)))
    values = x.exp()
    for _ in range(3):
        values, nothing, told = run(layer, values, known)
        assert nothing is None
        known = Known(known.shape + 0.1 * told, known.order, known.inner)
    return (values * known.shape).sum()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()


@pytest.fixture
def direction() -> Tensor:
    return torch.randn(3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def second(x: Tensor, direction: Tensor, run: Run) -> tuple[Tensor, Tensor]:
    """The gradient, and its derivative along the direction, in reverse mode twice."""
    gradient = torch.autograd.grad(network(x, run), x, create_graph=True)[0]
    return gradient.detach(), torch.autograd.grad(gradient, x, direction)[0]


def test_derivatives_of_two_orders_are_those_of_the_function(x: Tensor, direction: Tensor) -> None:
    """In reverse over reverse, an argument that is made of another must not count twice."""
    assert torch.equal(network(x, recomputed), network(x, kept))
    for got, expected in zip(second(x, direction, recomputed), second(x, direction, kept), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradgradcheck(lambda x: network(x, recomputed), x)


def test_so_are_they_in_forward_mode_and_in_forward_over_reverse(x: Tensor, direction: Tensor) -> None:
    gradient, product = second(x, direction, kept)
    with forward_ad.dual_level():
        value = network(forward_ad.make_dual(x, direction), recomputed)
        slope = forward_ad.unpack_dual(value).tangent
        found, tangent = forward_ad.unpack_dual(torch.autograd.grad(value, x)[0])
    torch.testing.assert_close(slope.detach(), (gradient * direction).sum(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, gradient, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(tangent, product, rtol=1e-12, atol=1e-12)


def test_a_gradient_can_be_taken_again(x: Tensor) -> None:
    value = network(x, recomputed)
    first, again = (torch.autograd.grad(value, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, again)
    torch.testing.assert_close(first, torch.autograd.grad(network(x, kept), x)[0])


@pytest.mark.parametrize("dual", [False, True])
def test_the_insides_are_computed_once_and_once_more_for_the_gradient(dual: bool, x: Tensor, direction: Tensor) -> None:
    calls: list[int] = []

    def counted(values: Tensor) -> tuple[Tensor]:
        calls.append(1)
        return (values.sin(),)

    with forward_ad.dual_level():
        moved = forward_ad.make_dual(x, direction) if dual else x
        value = recomputed(counted, moved)[0].sum()
        assert len(calls) == 1
        torch.autograd.grad(value, x)
    assert len(calls) == 2


def test_nothing_is_kept_but_the_arguments(x: Tensor) -> None:
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    def long(values: Tensor) -> tuple[Tensor]:
        for _ in range(5):
            values = values.sin()
        return (values,)

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        recomputed(long, x)
        assert [tensor.data_ptr() for tensor in saved] == [x.data_ptr()]
        long(x)
    assert len(saved) == 6


def test_without_a_gradient_it_is_the_function_itself(x: Tensor) -> None:
    with torch.no_grad():
        assert recomputed(lambda values: (values,), x)[0] is x
    constant = x.detach()
    assert recomputed(lambda values: (values,), constant)[0] is constant


def test_results_that_are_not_used_or_do_not_depend_have_no_say(x: Tensor, direction: Tensor) -> None:
    def several(values: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return values.square(), other.detach(), values * other

    other = x.detach().clone().requires_grad_()
    squares, constant, _ = recomputed(several, x, other)
    gradients = torch.autograd.grad((squares + constant).sum(), [x, other], allow_unused=True)
    torch.testing.assert_close(gradients[0], 2 * x.detach())
    assert gradients[1] is None or not gradients[1].any()


def test_a_leaf_has_the_tangent_and_no_history(x: Tensor, direction: Tensor) -> None:
    leaf, same = leaf_of(x * 2)
    assert leaf is same
    assert leaf.is_leaf
    assert leaf.requires_grad
    with forward_ad.dual_level():
        leaf, moved = leaf_of(forward_ad.make_dual(x, direction) * 2)
        assert leaf.is_leaf
        assert torch.equal(forward_ad.unpack_dual(moved).tangent, 2 * direction)
        gradient = torch.autograd.grad(moved.square().sum(), leaf)[0]
        assert torch.equal(forward_ad.unpack_dual(gradient).tangent, 4 * direction)
