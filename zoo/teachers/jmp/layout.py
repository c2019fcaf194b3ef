"""From what a checkpoint of JMP holds to the tensors of one network, under the names that ``GemNetOC`` has for them.

Pre-trained files have four pairs of heads and the prefix ``output.``, fine-tuned ones at most one of each kind. Both
keep every first layer of an output twice, constants of the Gaussians, and the weights once more, averaged over
training, in the order of their names.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo.config import parse
from zoo.errors import IntegrityError
from zoo.gemnet_oc.config import GemNetOCConfig
from zoo.teachers.jmp.config import HEADS
from zoo.tensors import Layout, shown

Weights = Literal["ema", "raw"]
SIZES = (  # that shapes of tensors tell, and that the published models have each their own of
    "num_blocks",
    "num_elements",
    "emb_size_atom",
    "emb_size_edge",
    "emb_size_trip_in",
    "emb_size_trip_out",
    "emb_size_quad_in",
    "emb_size_quad_out",
    "emb_size_aint_in",
    "emb_size_aint_out",
    "emb_size_rbf",
    "emb_size_cbf",
    "emb_size_sbf",
    "num_radial",
    "num_spherical",
    "num_before_skip",
    "num_after_skip",
    "num_concat",
    "num_atom",
    "num_output_afteratom",
    "num_atom_emb_layers",
    "num_global_out_layers",
)

_EMBEDDING = "embedding.weight"
_PRE_TRAINED = "embedding.atom_embedding.weight"  # by which the layout is known
_ALIAS, _ALIASED = ".seq_energy_pre.", ".layers."
_OFFSET, _TEMPERATURE = ".rbf.offset", ".rbf.temps"
_STEPS = "task_steps."
_ENERGY, _FORCE = ("y", "energy"), ("force", "forces")  # under either name
_CHUNK = 1 << 20  # numbers of a tensor that are compared at a time
_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LONGEST_NAME = 200  # characters, of a tensor or a task
SMALLEST, LARGEST = 1e-12, 1e12  # that a scale lies between


@dataclass(frozen=True)
class Held:
    """The tensors of one network in a checkpoint, and what its file says of how they were trained."""

    tensors: dict[str, Tensor]
    kept: Weights
    pre_trained: bool
    energy_scale: float | None  # None where the file does not say
    force_scale: float | None
    energy_mean: float | None = None  # stated, too
    force_mean: float | None = None
    cutoffs: tuple[float, ...] = ()  # Å, that the file states, of a fine-tune

    @property
    def layout(self) -> Layout:
        """Of any precision: what is written is float32."""
        return {name: (torch.float32, tuple(tensor.shape)) for name, tensor in self.tensors.items()}

    @property
    def direct(self) -> bool:
        return any(name.startswith("out_forces.") for name in self.tensors)

    @property
    def energies(self) -> bool:
        return any(name.startswith("out_energy.") for name in self.tensors)


def take(checkpoint: Mapping[Any, Any], head: str, weights: Weights) -> Held:
    """One network of a checkpoint, with that head where it has several. Raises IntegrityError.

    ``weights`` are the averaged ones or the last; a fine-tuned file without an average gives the last.
    """
    checkpoint = _mapping(checkpoint)
    state = _state(checkpoint)
    names = _without_copies(state)
    pre_trained = _PRE_TRAINED in state
    if not pre_trained and _EMBEDDING not in state:
        raise IntegrityError(f"the file has neither {_PRE_TRAINED} nor {_EMBEDDING}; give a checkpoint of JMP")
    averages = _averages(checkpoint, state, names) if weights == "ema" else None
    if averages is None and weights == "ema" and pre_trained:
        raise IntegrityError("the file has no averaged weights (ema); take the last ones with --weights raw")
    chosen = {name: (averages or {}).get(name, state[name]) for name in names}
    settings = _mapping(checkpoint.get("hyper_parameters"))
    if pre_trained:
        place = HEADS.index(head)
        _check_tasks(state, settings)
        tasks = settings.get("tasks")
        settings = _mapping(tasks[place]) if isinstance(tasks, (list, tuple)) and len(tasks) == len(HEADS) else {}
        chosen = _of_head(chosen, place)
    return Held(
        chosen,
        "raw" if averages is None else "ema",
        pre_trained,
        energy_scale=_deviation(settings, _ENERGY),
        force_scale=_deviation(settings, _FORCE),
        energy_mean=_stated(settings, _ENERGY, "mean"),
        force_mean=_stated(settings, _FORCE, "mean"),
        cutoffs=() if pre_trained else _cutoffs(settings),
    )


def shape_of(held: Held) -> GemNetOCConfig:
    """The network that has tensors of these shapes; what no shape tells is by default. Raises IntegrityError.

    ConfigError where no network can have them.
    """
    found = _of_bases(_Sizes(held.tensors)) | _of_blocks(_Sizes(held.tensors))
    shape = {name: found[name] for name in SIZES} | {
        "forces": "direct" if held.direct else "gradient",
        "energies": held.energies,
        "energy_bias": "out_energy.0.bias" in held.tensors,
        "elements": [1],  # in the place of those that are asked for
    }
    return parse(GemNetOCConfig, shape, "shapes of the tensors")


class _Sizes:
    """Shapes of tensors by name. Raises IntegrityError where one is not there."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def of(self, name: str, axis: int) -> int:
        if name not in self.tensors:
            raise IntegrityError(f"the file lacks {name}; give a checkpoint of JMP's GemNet-OC")
        shape = self.tensors[name].shape
        if axis >= len(shape):
            raise IntegrityError(f"{name} has the shape {list(shape)}; give a checkpoint of JMP's GemNet-OC")
        return shape[axis]

    def count(self, prefix: str) -> int:
        """How many there are of a list of layers."""
        return len({name[len(prefix) :].partition(".")[0] for name in self.tensors if name.startswith(prefix)})


def _of_bases(sizes: _Sizes) -> dict[str, int]:
    bases, atom = "backbone.bases.", sizes.of(_EMBEDDING, 1)
    return {
        "num_elements": sizes.of(_EMBEDDING, 0),
        "emb_size_atom": atom,
        "emb_size_edge": sizes.of(f"{bases}edge_emb.dense.linear.weight", 0),
        "num_radial": sizes.of(f"{bases}edge_emb.dense.linear.weight", 1) - 2 * atom,
        "num_spherical": sizes.of(f"{bases}mlp_cbf_tint.weight", 1),
        "emb_size_rbf": sizes.of(f"{bases}mlp_rbf_h.linear.weight", 0),
        "emb_size_cbf": sizes.of(f"{bases}mlp_cbf_tint.weight", 2),
        "emb_size_sbf": sizes.of(f"{bases}mlp_sbf_qint.weight", 2),
    }


def _of_blocks(sizes: _Sizes) -> dict[str, int]:
    blocks, outputs = "backbone.int_blocks.", "backbone.out_blocks."
    first = f"{blocks}0."
    channels = {
        f"emb_size_{short}_{side}": sizes.of(f"{first}{name}_interaction.{layer}.linear.weight", axis)
        for short, name, up in _INTERACTIONS
        for side, layer, axis in (("in", "down_projection", 0), ("out", up, 1))
    }
    return channels | {
        "num_blocks": sizes.count(blocks),
        "num_before_skip": sizes.count(f"{first}layers_before_skip."),
        "num_after_skip": sizes.count(f"{first}layers_after_skip."),
        "num_atom_emb_layers": sizes.count(f"{first}atom_emb_layers."),
        "num_concat": sizes.count(f"{first}residual_m."),
        "num_atom": sizes.count(f"{first}atom_update.layers.") - 1,
        "num_output_afteratom": sizes.count(f"{outputs}0.seq_energy2."),
        "num_global_out_layers": sizes.count("backbone.out_mlp_E.out_mlp.") - 1,
    }


_INTERACTIONS = (  # what the sizes are called, the module, and its last layer
    ("trip", "trip", "up_projection_ca"),
    ("quad", "quad", "up_projection_ca"),
    ("aint", "atom", "up_projection"),
)


def _state(checkpoint: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Tensors of numbers by name, without those of the training's own. Raises IntegrityError."""
    state = dict(_mapping(checkpoint.get("state_dict")))
    if not state:
        raise IntegrityError("the file has no state_dict, which holds the weights; give a checkpoint of JMP")
    for name, tensor in state.items():
        if not isinstance(name, str):
            raise IntegrityError(f"state_dict has a {type(name).__name__} for a name; fetch the file again")
        if len(name) > _LONGEST_NAME:
            raise IntegrityError(f"state_dict has the name {shown(name)}, too long for a weight; fetch the file again")
        if not name.startswith(_STEPS):
            _check_tensor(name, tensor)
    return state


def _check_tensor(name: str, tensor: Any) -> None:
    """Raises IntegrityError for all but numbers that lie in the file one after the other."""
    plain = type(tensor) in (Tensor, nn.Parameter) and not vars(tensor)
    if not plain or tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise IntegrityError(f"{shown(name)} is no plain tensor but a {type(tensor).__name__}; fetch the file again")
    if tensor.dtype not in _TYPES:
        raise IntegrityError(f"{shown(name)} holds {tensor.dtype}, expected real numbers; fetch the file again")
    storage = tensor.untyped_storage()
    room = storage.nbytes() // tensor.element_size() - tensor.storage_offset()
    if not tensor.is_contiguous() or tensor.numel() > room or storage.resizable():  # memory can be resized, files not
        raise IntegrityError(f"{shown(name)} does not lie in the file number by number; fetch the file again")


def _without_copies(state: Mapping[str, Tensor]) -> list[str]:
    """The names of what a network has, in order. Raises IntegrityError where a copy or a constant is another one."""
    names = []
    for name, tensor in state.items():
        if name.endswith((_OFFSET, _TEMPERATURE)):
            _check_constant(name, tensor, state)
        elif _ALIAS in name:
            _check_alias(name, tensor, state)
        elif not name.startswith(_STEPS):
            names.append(name)
    return names


def _check_constant(name: str, tensor: Tensor, state: Mapping[str, Tensor]) -> None:
    """Centres of the Gaussians are from 0 to 1, and their exponent is that of their distance."""
    offsets = tensor if name.endswith(_OFFSET) else state.get(name.removesuffix(_TEMPERATURE) + _OFFSET)
    count = 0 if offsets is None else offsets.numel()
    if count < 2:
        raise IntegrityError(f"{name} is without the centres of its Gaussians; fetch the file again")
    centres = torch.linspace(0, 1, count, dtype=torch.float64)
    expected = centres if name.endswith(_OFFSET) else torch.full((tensor.numel(),), 0.5 * (count - 1) ** 2)
    if not torch.allclose(tensor.detach().double().flatten(), expected.double(), rtol=1e-4, atol=1e-6):
        raise IntegrityError(f"{name} has other Gaussians than zoo computes; zoo cannot run this network")


def _check_alias(name: str, tensor: Tensor, state: Mapping[str, Tensor]) -> None:
    original = state.get(name.replace(_ALIAS, _ALIASED))
    same = original is not None and original.shape == tensor.shape
    if original is None or not same or (original.data_ptr() != tensor.data_ptr() and not torch.equal(original, tensor)):
        raise IntegrityError(f"{name} is not what its {_ALIASED.strip('.')} are; zoo cannot run this network")


def _averages(checkpoint: Mapping[Any, Any], state: Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor] | None:
    """The averaged weights by name, None where there are none. Raises IntegrityError where they are of other weights.

    They are without names, in the order of the state; the factors of scale are not trained, and not among them.
    """
    optimizers = checkpoint.get("optimizer_states")
    first = optimizers[0] if isinstance(optimizers, (list, tuple)) and optimizers else None
    found = first.get("ema") if isinstance(first, dict) else None
    if found is None:
        return None
    trained = [name for name in names if not name.endswith("scale_factor")]
    count = len(found) if isinstance(found, (list, tuple)) else 0
    if count != len(trained):
        raise IntegrityError(f"the file has {count} averaged weights (ema), expected {len(trained)}; {_RAW}")
    for name, average in zip(trained, found, strict=True):
        _check_tensor(name, average)
        _check_average(name, average, state[name])
    return dict(zip(trained, found, strict=True))


_RAW = "fetch the file again, or take its last weights with --weights raw"


def _check_average(name: str, average: Tensor, last: Tensor) -> None:
    """Raises IntegrityError where an average is farther from the last value than that is from zero."""
    if average.shape != last.shape:
        shapes = f"the shape {list(average.shape)}, expected {list(last.shape)}"
        raise IntegrityError(f"the averaged {name} (ema) has {shapes}; {_RAW}")
    away = norm = 0.0  # squares
    ours, its = average.detach().view(-1), last.detach().view(-1)
    for start in range(0, ours.numel(), _CHUNK):
        one, other = (tensor[start : start + _CHUNK].double() for tensor in (ours, its))
        away += float((one - other).square().sum())
        norm += float(other.square().sum())
    if away > 0 and away >= norm:  # what is not finite is refused when it is written
        raise IntegrityError(f"the averaged {name} (ema) is no average of its last value, but of another one's; {_RAW}")


def _of_head(tensors: Mapping[str, Tensor], place: int) -> dict[str, Tensor]:
    """The names of a fine-tuned network, with one pair of heads. Raises IntegrityError where there are not all."""
    heads = re.compile(r"output\.(out_energy|out_forces)\.([0-9]{1,3})\.(.+)")
    found, places = {}, set()
    for name, tensor in tensors.items():
        match = heads.fullmatch(name)
        if match is None:
            found[_EMBEDDING if name == _PRE_TRAINED else name] = tensor
            continue
        places.add(int(match[2]))
        if int(match[2]) == place:
            found[f"{match[1]}.{match[3]}"] = tensor
    if places != set(range(len(HEADS))):
        raise IntegrityError(f"the file has {len(places)} pairs of heads, expected those of {', '.join(HEADS)}")
    return found


def _check_tasks(state: Mapping[str, Tensor], settings: Mapping[Any, Any]) -> None:
    """Raises IntegrityError where a file says that its heads are in another order; some do not say."""
    steps = dict.fromkeys(name.split(".", 2)[1] for name in state if name.startswith(_STEPS))
    tasks = settings.get("tasks")
    named = [_mapping(task).get("name") for task in tasks] if isinstance(tasks, (list, tuple)) else []
    for told in (list(steps), named):
        known = [next((head for head in HEADS if head in _plain(name)), None) for name in told]
        if len(known) == len(HEADS) and None not in known and tuple(known) != HEADS:
            order = ", ".join(str(head) for head in known)
            raise IntegrityError(f"the file has heads in the order {order}, expected {', '.join(HEADS)}")


def _plain(name: object) -> str:
    """The letters and digits of a name; none of what is no name."""
    if not isinstance(name, str) or len(name) > _LONGEST_NAME:
        return ""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _deviation(settings: Mapping[Any, Any], keys: tuple[str, ...]) -> float | None:
    """The standard deviation that a quantity was divided by, None where none is stated. Raises IntegrityError."""
    value = _stated(settings, keys, "std")
    if value is not None and not SMALLEST < value < LARGEST:
        raise IntegrityError(f"the file says that {keys[0]} was divided by {value}; give a checkpoint of JMP")
    return value


def _stated(settings: Mapping[Any, Any], keys: tuple[str, ...], what: str) -> float | None:
    """The mean or the std of a quantity, None where none is stated. Raises IntegrityError for no number of eV."""
    stated = _mapping(settings.get("normalization"))
    value = next((_mapping(stated[key]).get(what) for key in keys if key in stated), None)
    if type(value) is Tensor and value.numel() == 1:
        _check_tensor(what, value)
        value = value.item()
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    if not -LARGEST < value < LARGEST:  # before it is a float: an int can be larger than any
        raise IntegrityError(
            f"the file says that the {what} of {keys[0]} is beyond {LARGEST:g}; give a checkpoint of JMP"
        )
    return float(value)


def _cutoffs(settings: Mapping[Any, Any]) -> tuple[float, ...]:
    """Each cutoff that the settings of a fine-tune state, of one kind of edges or of all."""
    found: list[object] = []
    for part in (settings, _mapping(settings.get("backbone"))):
        for key in ("cutoff", "cutoffs"):
            stated = part.get(key)
            found += _mapping(stated).values() if isinstance(stated, dict) else [stated]
    numbers = [value for value in found if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return tuple(float(value) for value in numbers if 0 < value < LARGEST)


def _mapping(value: object) -> Mapping[Any, Any]:
    """A plain dictionary, whatever attributes a pickle gave to one."""
    return dict(dict.items(value)) if isinstance(value, dict) else {}
