"""Terms of a loss, and the gradient of their weighted sum by the parameters, as one compiled function.

With Hessian products a step differentiates three times, and in eager mode its time goes into thousands of small
operations. Here everything from the energy to the gradient by the parameters is captured as one graph and compiled by
TorchInductor. Numbers of atoms, edges and structures are left open: batches of other sizes use the same code.

A compiled graph counts only after it gave, on the batch that it was made from, what eager mode gives. Where it cannot
be made or does not agree, eager mode goes on in its place, with one ZooWarning.
"""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from zoo.capture import ONE_THREAD, capture
from zoo.errors import ZooWarning

TOLERANCE = {
    torch.float32: 1e-3,
    torch.float64: 1e-9,
}  # by the type of the parameters; of a term, of a gradient's length
MOST_GRAPHS = 4  # for batches of different kinds, each a minute to compile; what comes beyond is answered eagerly
_SMALLEST_OPEN = 5  # smaller sizes belong to the kind of a batch: axes, a few probes, single structures

Terms = dict[Any, Tensor]  # by name
Answer = tuple[Terms, list[Tensor | None]]
Compiler = Callable[[GraphModule, Sequence[Tensor]], Callable[..., Sequence[Tensor]]]
B = TypeVar("B")
T = TypeVar("T", bound=Tensor)


class NotCompiledError(Exception):
    """Why a graph is not used; never leaves this file."""


def trained_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Those that a gradient is taken by; the others, such as fitted constants, are as buffers."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _fixed_tensors(module: nn.Module) -> dict[str, Tensor]:
    """By name, all in a module that is not trained."""
    fixed = {name: parameter for name, parameter in module.named_parameters() if not parameter.requires_grad}
    return {**fixed, **dict(module.named_buffers())}


def eager_gradient(module: nn.Module, terms: Terms, coefficients: Mapping[Any, float]) -> Answer:
    """The terms without their history, and the gradient of their weighted sum by each trained parameter, None where it
    has no say in it."""
    total = torch.stack([coefficients[name] * term.double() for name, term in terms.items()]).sum()
    gradients = torch.autograd.grad(total, trained_parameters(module), allow_unused=True)
    return {name: term.detach() for name, term in terms.items()}, list(gradients)


def inductor(graph: GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """Compiles a captured graph of fake inputs."""
    from torch._inductor.compile_fx import compile_fx  # lazy: seconds to import

    on_cpu = all(tensor.device.type == "cpu" for tensor in inputs)
    compiled = compile_fx(graph, list(inputs), config_patches=ONE_THREAD if on_cpu else {})
    return cast(Callable[..., Sequence[Tensor]], compiled)


class CompiledGradient(Generic[B]):
    """``eager_gradient`` of the terms of a batch, compiled at the first batch of each kind.

    ``terms_of`` is a function of the batch, a data class of tensors, and of the parameters and buffers of ``module``
    alone. ``compiler`` turns a captured graph into a function.
    """

    def __init__(self, module: nn.Module, terms_of: Callable[[B], Terms], compiler: Compiler = inductor) -> None:
        self.module = module
        self.terms_of = terms_of
        self.compiler = compiler
        self.graphs: list[_Compiled] = []
        self.eager = False  # whether it was given up

    def __call__(self, batch: B, coefficients: Mapping[Any, float]) -> Answer:
        """The terms, and the gradient of their sum weighted by ``coefficients``, one for each trained parameter."""
        if self.eager:
            return self._eagerly(batch, coefficients)
        inputs = _Inputs.of(self.module, batch, coefficients)
        for compiled in self.graphs:
            if compiled.fits(inputs):
                return compiled(inputs)
        return self._first_of_its_kind(batch, coefficients, inputs)

    def _first_of_its_kind(self, batch: B, coefficients: Mapping[Any, float], inputs: "_Inputs") -> Answer:
        """Compiles for batches like this one. It too is answered by the compiled graph, so that a training that was
        killed goes on with the bits that it would have had."""
        expected = self._eagerly(batch, coefficients)
        if len(self.graphs) == MOST_GRAPHS:
            return expected
        try:
            compiled = _compile(self.module, self.terms_of, inputs, self.compiler)
            answer = compiled(inputs)
            _check_agreement(answer, expected, TOLERANCE.get(inputs.parameters[0].dtype, 1e-3))
        except Exception as error:  # whatever a compiler raises, training goes on
            self._give_up(error)
            return expected
        self.graphs.append(compiled)
        return answer

    def _eagerly(self, batch: B, coefficients: Mapping[Any, float]) -> Answer:
        return eager_gradient(self.module, self.terms_of(batch), coefficients)

    def _give_up(self, error: Exception) -> None:
        self.eager = True
        lines = str(error).strip().splitlines() or [""]
        warnings.warn(
            f"the training step could not be compiled ({type(error).__name__}: {lines[0][:200]}); it goes on in eager "
            "mode, slower but the same; set training.compile: false to be spared the attempt",
            ZooWarning,
            stacklevel=4,
        )


@dataclass(frozen=True)
class _Inputs:
    """A call's tensors in a row, and what puts them together again."""

    parameters: list[Tensor]
    buffers: list[Tensor]
    batch: list[Tensor]
    coefficients: Tensor  # (terms,)
    names: tuple[Any, ...]  # of the coefficients
    kind: Any  # of the batch: its data classes, and all in them that is no tensor

    @classmethod
    def of(cls, module: nn.Module, batch: Any, coefficients: Mapping[Any, float]) -> "_Inputs":
        leaves: list[Tensor] = []
        kind = _take_apart(batch, leaves)
        parameters = [parameter.detach() for parameter in trained_parameters(module)]
        device = parameters[0].device
        values = torch.tensor(list(coefficients.values()), dtype=torch.float64, device=device)
        buffers = [tensor.detach() for tensor in _fixed_tensors(module).values()]
        return cls(parameters, buffers, leaves, values, tuple(coefficients), kind)

    def flat(self) -> list[Tensor]:
        return [*self.parameters, *self.buffers, *self.batch, self.coefficients]

    def batch_of(self, flat: Sequence[T]) -> list[T]:
        """The batch's tensors among those in the order of ``flat``."""
        return list(flat[len(self.parameters) + len(self.buffers) : -1])


@dataclass(frozen=True)
class _Compiled:
    """A compiled graph and the inputs that it is for."""

    function: Callable[..., Sequence[Tensor]]
    terms: tuple[Any, ...]
    used: list[bool]  # whether a parameter has a gradient
    names: tuple[Any, ...]
    kind: Any
    environment: ShapeEnv
    guards: str | None  # what sizes must obey, as an expression

    def fits(self, inputs: _Inputs) -> bool:
        if (inputs.kind, inputs.names) != (self.kind, self.names):
            return False
        return self.guards is None or self.environment.evaluate_guards_expression(self.guards, inputs.batch)

    def __call__(self, inputs: _Inputs) -> Answer:
        with torch.no_grad():
            found = list(self.function(*inputs.flat()))
        terms = dict(zip(self.terms, found[: len(self.terms)], strict=True))
        gradients = iter(found[len(self.terms) :])
        return terms, [next(gradients) if used else None for used in self.used]


def _compile(module: nn.Module, terms_of: Callable[[Any], Terms], inputs: _Inputs, compiler: Compiler) -> _Compiled:
    """Captures and compiles terms and gradient for the kind of these inputs."""
    whole = _Whole(module, terms_of)
    found: dict[str, Any] = {}

    def step(*flat: Tensor) -> list[Tensor]:
        terms, gradients = _step(whole, inputs, flat)
        found["terms"] = tuple(terms)
        found["used"] = [gradient is not None for gradient in gradients]
        return [*terms.values(), *(gradient for gradient in gradients if gradient is not None)]

    captured = capture(step, inputs.flat(), _open_axes(inputs))
    environment = captured.environment
    with torch.no_grad():
        function = compiler(captured.graph, captured.inputs)
    guards = environment.produce_guards_expression(inputs.batch_of(captured.inputs), ignore_static=False)
    return _Compiled(function, found["terms"], found["used"], inputs.names, inputs.kind, environment, guards)


def _step(whole: "_Whole", inputs: _Inputs, flat: Sequence[Tensor]) -> Answer:
    """``eager_gradient`` as a function of its tensors."""
    count, more = len(inputs.parameters), len(inputs.parameters) + len(inputs.buffers)
    parameters = [tensor.detach().requires_grad_() for tensor in flat[:count]]
    names = [name for name, parameter in whole.named_parameters() if parameter.requires_grad]
    names += _fixed_tensors(whole)
    leaves = iter(flat[more:-1])
    batch = _put_together(inputs.kind, leaves)
    terms: Terms = torch.func.functional_call(
        whole, dict(zip(names, [*parameters, *flat[count:more]], strict=True)), (batch,)
    )
    weights = dict(zip(inputs.names, flat[-1].unbind(), strict=True))
    total = torch.stack([weights[name] * term.double() for name, term in terms.items()]).sum()
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    return {name: term.detach() for name, term in terms.items()}, [
        None if gradient is None else gradient.detach() for gradient in gradients
    ]


class _Whole(nn.Module):
    """A module whose forward is a loss."""

    def __init__(self, module: nn.Module, terms_of: Callable[[Any], Terms]) -> None:
        super().__init__()
        self.module = module
        self.terms_of = terms_of

    def forward(self, batch: Any) -> Terms:
        return self.terms_of(batch)


def _open_axes(inputs: _Inputs) -> list[list[bool]]:
    """Sizes of the batch are left open, those of the module are not."""
    fixed = len(inputs.parameters) + len(inputs.buffers)
    of_batch = range(fixed, fixed + len(inputs.batch))
    return [
        [place in of_batch and size >= _SMALLEST_OPEN for size in tensor.shape]
        for place, tensor in enumerate(inputs.flat())
    ]


def _take_apart(value: Any, leaves: list[Tensor]) -> Any:
    """The kind of a value, its tensors appended to ``leaves`` in order."""
    if isinstance(value, Tensor):
        leaves.append(
            value.detach().clone(memory_format=torch.contiguous_format) if _is_view(value) else value.detach()
        )
        return (Tensor, value.dtype, value.device)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return (type(value), tuple(_take_apart(getattr(value, f.name), leaves) for f in dataclasses.fields(value)))
    return (None, value)


def _is_view(tensor: Tensor) -> bool:
    """Whether it lies in memory as no fresh tensor does; the compiled code counts on that."""
    return tensor.storage_offset() != 0 or not tensor.is_contiguous()


def _put_together(kind: Any, leaves: Any) -> Any:
    """A value of this kind of those tensors."""
    what, *rest = kind
    if what is Tensor:
        return next(leaves)
    return rest[0] if what is None else what(*(_put_together(part, leaves) for part in rest[0]))


def _check_agreement(got: Answer, expected: Answer, tolerance: float) -> None:
    """Raises NotCompiledError where a compiled step is not what eager mode says."""
    for name, term in expected[0].items():
        _check_close(f"the term {name}", got[0][name], term, float(term.abs()), tolerance)
    whole = torch.stack([gradient.norm() for gradient in expected[1] if gradient is not None]).norm()
    for place, (left, right) in enumerate(zip(got[1], expected[1], strict=True)):
        if left is None or right is None:
            if left is not right:
                raise NotCompiledError(f"only one of compiled and eager has a gradient of parameter {place}")
        else:
            scale = float(right.norm() + 1e-3 * whole)
            _check_close(f"the gradient of parameter {place}", left, right, scale, tolerance)


def _check_close(what: str, got: Tensor, expected: Tensor, scale: float, tolerance: float) -> None:
    error = float((got - expected).norm())
    if not error <= tolerance * scale:
        raise NotCompiledError(f"compiled, {what} is off by {error / scale if scale else error:.1e} of its size")
