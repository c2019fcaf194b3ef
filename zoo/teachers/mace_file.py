"""A model of MACE from a file, of which nothing but numbers and settings is used.

MACE's files are pickles of whole modules. An ordinary load runs what they hold: the source of each ``GraphModule`` of a
contraction is given to ``exec``, and the TorchScript of e3nn's layers to ``torch.jit.load``, whose programs may write
files. No list of trusted classes makes that safe. So the file is read as records (``records.py``), its settings are
taken from them, the installed package builds the model anew, and tensors and constants are put into it, after it was
compared with the records. What is of another kind is refused.
"""

import io
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.serialization import safe_globals

from zoo.errors import CapabilityError, IntegrityError
from zoo.teachers.dtypes import default_dtype
from zoo.teachers.packages import importing
from zoo.teachers.records import Record, read_records

SWITCH = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"  # set by mace when it is imported: it ends torch's protection everywhere
_ALLOWED = (
    "mace.modules.",
    "mace.tools.",
    "e3nn.",
    "torch.nn.",
    "torch.fx.",
    "torch._C.",
    "torch.tanh",
    "torch.abs",
    "opt_einsum_fx.",
    "builtins.slice",
    "builtins.getattr",
    "functools.partial",
    "numpy.dtype",
    "numpy.core.multiarray.",
    "numpy._core.multiarray.",
)
_CLASSES = ("ScaleShiftMACE", "MACE")
_RADIAL = {"BesselBasis": "bessel", "GaussianBasis": "gaussian", "ChebychevBasis": "chebyshev"}
_TRANSFORMS = {"AgnesiTransform": "Agnesi", "SoftTransform": "Soft"}
_NEWER = re.compile(r"\.weights_(\d+|max)_zeroed$")  # tensors that older files lack; they say what is zero anyway
_OLDER = re.compile(r"^pair_repulsion_fn\.(r_max$|cutoff\.)")  # tensors of older files that MACE reads no more
_FIRST = "node_embedding.linear.weight"  # of which every model has one: its type is that of the file
_BASIS = re.compile(
    r"\.symmetric_contractions\.contractions\.\d+\.(U_matrix_|weights)"
)  # one of two bases, of other sizes
_OPTIONS = (
    "apply_cutoff",
    "use_reduced_cg",
    "use_so3",
    "use_agnostic_product",
    "use_last_readout_only",
    "use_edge_irreps_first",
)
_GATES = {"silu": torch.nn.functional.silu, "tanh": torch.tanh, "abs": torch.abs}
_CLOSE = 1e-5  # relative, between a constant of a file and the same one computed here
_OTHERWISE = "hand over its calculator in Python with zoo.teacher_from"


def import_mace() -> ModuleType:
    """``mace.modules``, with torch's protection against pickles as it was before. Raises MissingPackageError."""
    quiet = redirect_stdout(io.StringIO())  # it prints what else could be installed
    with _switch_kept(), quiet, importing("MACE", "mace-torch", "mace"):
        with safe_globals([slice]):  # in e3nn's own table of constants
            import e3nn.o3  # noqa: F401  # lazy: an optional package
        import mace.modules  # lazy: an optional package
    modules: ModuleType = mace.modules
    return modules


@contextmanager
def _switch_kept() -> Iterator[None]:
    before = os.environ.get(SWITCH)
    try:
        yield
    finally:
        os.environ.pop(SWITCH, None)
        if before is not None:
            os.environ[SWITCH] = before


@contextmanager
def unprotected() -> Iterator[None]:
    """In which torch opens any pickle, and runs what it holds: for scripts that ask MACE's own calculator."""
    with _switch_kept():
        os.environ[SWITCH] = "1"
        yield


def open_model(path: Path, remedy: str) -> Any:
    """The model in a file, in the type of its weights, in evaluation mode, without gradients of its weights.

    Raises MissingPackageError; IntegrityError, with the remedy, where the file is no model of MACE or is damaged;
    CapabilityError where it is one of a kind that cannot be built anew.
    """
    modules = import_mace()
    tree = read_records(path, _ALLOWED, remedy)
    if not isinstance(tree, Record) or not tree.path.startswith("mace.") or "_modules" not in tree.state:
        raise IntegrityError(f"{path} holds no model of MACE; {remedy}")
    if tree.kind not in _CLASSES:
        raise CapabilityError(f"{path} holds a {tree.kind}, expected {' or '.join(_CLASSES)}; {_OTHERWISE}")
    if tree.get("joint_embedding") is not None:
        raise CapabilityError(f"{path} wants charges and spins, which structures here do not have; {_OTHERWISE}")
    tensors = tree.tensors()
    try:
        model = _build(modules, tree, tensors)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, AssertionError) as error:
        raise CapabilityError(
            f"{path} is of a kind that the installed mace-torch cannot build ({type(error).__name__}: "
            f"{str(error).partition(chr(10))[0][:120]}); install another version, or {_OTHERWISE}"
        ) from error
    _take_tensors(model, tensors, path, remedy)
    _take_constants(model, tree, path)
    return model.requires_grad_(False).eval()


# --- settings ------------------------------------------------------------------------------------------


def _build(modules: ModuleType, tree: Record, tensors: dict[str, Tensor]) -> Any:
    """The model that the records describe, its weights still random. Global states of torch and e3nn stay as they were.

    Layers are modules of Python, not TorchScript: as fast here, and without the slow first calls of its compiler.
    """
    import e3nn  # lazy: an optional package

    settings = _settings(modules, tree, tensors)
    defaults = e3nn.get_optimization_defaults()
    with torch.random.fork_rng(devices=[]), default_dtype(tensors[_FIRST].dtype):
        try:
            e3nn.set_optimization_defaults(jit_script_fx=False)
            return getattr(modules, tree.kind)(**settings)
        finally:
            e3nn.set_optimization_defaults(**defaults)


def _settings(modules: ModuleType, tree: Record, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What the model is built with. Raises LookupError, TypeError and ValueError where the records lack it."""
    settings = {
        "num_elements": len(tensors["atomic_numbers"]),
        "atomic_numbers": tensors["atomic_numbers"].tolist(),
        "atomic_energies": tensors["atomic_energies_fn.atomic_energies"].numpy(),
        "heads": heads_of(tree),
        **_radial_settings(tree, tensors),
        **_layer_settings(modules, tree),
        **_readout_settings(modules, tree),
        **{option: tree.state[option] for option in _OPTIONS if option in tree.state},
    }
    settings.setdefault("use_reduced_cg", False)  # of files from before there was a choice
    edges = tree.state.get("edge_irreps")
    if edges is not None:
        settings["edge_irreps"] = _irreps(edges)
    if tree.kind == "ScaleShiftMACE":
        settings["atomic_inter_scale"] = tensors["scale_shift.scale"].numpy()
        settings["atomic_inter_shift"] = tensors["scale_shift.shift"].numpy()
    return settings


def heads_of(tree: Record) -> list[str]:
    """The names of a model's heads; older files have one, without a name."""
    heads = tree.state.get("heads") or ["Default"]
    if not all(isinstance(head, str) for head in heads):
        raise TypeError("heads without names")
    return list(heads)


def _radial_settings(tree: Record, tensors: dict[str, Tensor]) -> dict[str, Any]:
    radial = _below(tree, "radial_embedding")
    transform = radial.get("distance_transform")
    return {
        "r_max": tensors["r_max"].item(),
        "num_bessel": int(radial.get("out_dim")),
        "num_polynomial_cutoff": int(tensors["radial_embedding.cutoff_fn.p"]),
        "radial_type": _RADIAL[_below(radial, "bessel_fn").kind],
        "distance_transform": "None" if transform is None else _TRANSFORMS[transform.kind],
        "pair_repulsion": tree.get("pair_repulsion_fn") is not None,
        "radial_MLP": [int(width) for width in tree.get("interactions.0.conv_tp_weights.hs")[1:-1]],
    }


def _layer_settings(modules: ModuleType, tree: Record) -> dict[str, Any]:
    interactions = list(_below(tree, "interactions").state["_modules"].values())
    products = list(_below(tree, "products").state["_modules"].values())
    hidden, last = (_irreps(product.get("linear.irreps_out")) for product in (products[0], products[-1]))
    settings = {
        "num_interactions": len(interactions),
        "interaction_cls": modules.interaction_classes[interactions[-1].kind],
        "interaction_cls_first": modules.interaction_classes[interactions[0].kind],
        "avg_num_neighbors": _number(interactions[0].get("avg_num_neighbors")),
        "max_ell": int(tree.get("spherical_harmonics._lmax")),
        "hidden_irreps": hidden,
        "correlation": [_correlation(product) for product in products],
    }
    if len(products) > 1 and len(last) > 1:
        settings["keep_last_layer_irreps"] = True
    return settings


def _readout_settings(modules: ModuleType, tree: Record) -> dict[str, Any]:
    import e3nn.o3  # lazy: an optional package

    readout = list(_below(tree, "readouts").state["_modules"].values())[-1]
    hidden = readout.get("hidden_irreps")
    scalars = 1 if hidden is None else _irreps(hidden).count("0e") // len(heads_of(tree))
    settings = {"MLP_irreps": e3nn.o3.Irreps(f"{scalars}x0e"), "gate": _gate(readout)}
    if readout.kind not in ("NonLinearReadoutBlock", "LinearReadoutBlock"):
        settings["readout_cls"] = modules.readout_classes[readout.kind]
    return settings


def _gate(readout: Record) -> Any:
    """The activation of a readout; None of one that is linear. Raises LookupError for one that MACE does not offer."""
    act = readout.get("non_linearity.acts.0")
    if act is None:
        return torch.nn.functional.silu if readout.kind == "LinearReadoutBlock" else None
    function = act.get("f")
    named = function.args[-1] if isinstance(function, Record) else getattr(function, "path", str(function))
    return _GATES[str(named).rpartition(".")[2]]


def _correlation(product: Record) -> int:
    contraction = _below(product, "symmetric_contractions.contractions.0")
    return sum(name.startswith("U_matrix_") for name in contraction.state["_buffers"])


def _below(record: Record, path: str) -> Record:
    found = record.get(path)
    if not isinstance(found, Record):
        raise KeyError(path)
    return found


def _irreps(record: Record) -> Any:
    """e3nn's irreps of the record of them: multiplicities, degrees and parities."""
    import e3nn.o3  # lazy: an optional package

    pairs = [one.args[0] for one in record.args[0]]
    return e3nn.o3.Irreps([(count, tuple(irrep.args[0])) for count, irrep in pairs])


def _number(value: Any) -> float:
    """A number of Python, of torch, or the record of one of numpy."""
    if isinstance(value, Record) and value.kind == "scalar":
        code = value.args[0].args[0]  # "f8"
        return float(np.frombuffer(value.args[1], dtype=f"<{code}")[0])
    return float(value)


# --- numbers -------------------------------------------------------------------------------------------


def _take_tensors(model: nn.Module, tensors: dict[str, Tensor], path: Path, remedy: str) -> None:
    """Puts the file's parameters and buffers into the model, as they are. Raises IntegrityError."""
    places = _places(model)
    lacking = sorted(name for name in set(places) - set(tensors) if not _NEWER.search(name))
    strange = sorted(name for name in set(tensors) - set(places) if not _OLDER.search(name))
    if lacking or strange:
        what = f"lacks the tensor {lacking[0]}" if lacking else f"has a tensor {strange[0]}, which the model lacks"
        raise IntegrityError(f"{path} {what}; {remedy}")
    for name in set(places) & set(tensors):
        module, key = places[name]
        tensor, built = tensors[name].detach(), getattr(module, key)
        if tensor.shape != built.shape and not _BASIS.search(name):
            raise IntegrityError(f"{path} has {name} {tuple(tensor.shape)}, expected {tuple(built.shape)}; {remedy}")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise IntegrityError(f"{path} has a number in {name} that is not finite; {remedy}")
        if isinstance(built, nn.Parameter):
            module._parameters[key] = nn.Parameter(tensor, requires_grad=False)
        else:
            module._buffers[key] = tensor


def _places(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Where each parameter and buffer of a model is; not those of layers that e3nn generates, which are constants."""
    generated = tuple(
        f"{name}.{layer}." for name, module in model.named_modules() for layer in getattr(module, "__codegen__", ())
    )
    return {
        f"{name}.{key}" if name else key: (module, key)
        for name, module in model.named_modules()
        if not f"{name}.".startswith(generated)
        for key in (*module._parameters, *module._buffers)
        if getattr(module, key) is not None
    }


def _take_constants(model: nn.Module, tree: Record, path: Path) -> None:
    """Compares what numbers, names and switches the modules have beside tensors, and takes the file's numbers.

    Raises CapabilityError where they differ by more than rounding.
    """
    built = dict(model.named_modules())
    for name, record in tree.modules():
        here: dict[str, Any] = built[name].__dict__ if name in built else {}
        for key, value in record.plain().items():
            if key not in here or key.startswith("_") or key == "training" or type(here[key]) is not type(value):
                continue
            if isinstance(value, float) and math.isclose(here[key], value, rel_tol=_CLOSE):
                here[key] = value
            elif isinstance(value, (bool, int, float, str)) and here[key] != value:
                raise CapabilityError(
                    f"{path} has {name}.{key} = {value}, and the installed mace-torch builds {here[key]}; install the "
                    f"version that made the file, or {_OTHERWISE}"
                )
