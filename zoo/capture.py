"""A function of tensors, derivatives within it included, as one graph of operations in which sizes are left open."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

# How TorchInductor compiles for a CPU. Fused loops run on one thread, matrix products on PyTorch's: sums over edges
# then need no atomic additions, are faster for networks as small as students, and the same, bit for bit, each time.
ONE_THREAD = {"cpp.threads": 1, "cpp.enable_loop_tail_vec": False}


@dataclass(frozen=True)
class Capture:
    """A graph, inputs as it was made from, without their numbers, and what was assumed of their sizes."""

    graph: GraphModule
    inputs: list[FakeTensor]
    environment: ShapeEnv


def capture(
    function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], opened: Sequence[Sequence[bool]]
) -> Capture:
    """The graph of ``function(*inputs)``, and of what it differentiates.

    ``opened`` says of each axis of each input whether its size is left open: from 2 on, and equal to those sizes that
    equal it in ``inputs``.
    """
    environment = ShapeEnv()
    mode = FakeTensorMode(shape_env=environment, allow_non_fake_inputs=True)
    fakes = [_without_numbers(tensor, axes, mode) for tensor, axes in zip(inputs, opened, strict=True)]
    with mode:
        graph = make_fx(function, tracing_mode="real")(*fakes)
    return Capture(graph, fakes, environment)


def _without_numbers(tensor: Tensor, opened: Sequence[bool], mode: FakeTensorMode) -> FakeTensor:
    sizes = [DimDynamic.DYNAMIC if is_open else DimDynamic.STATIC for is_open in opened]
    return mode.from_tensor(tensor, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))
