"""A folder of weights: ``config.json`` and ``model.safetensors``, whole or not at all, and not believed when read."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from zoo.config import read_json, write_json
from zoo.errors import ConfigError, IntegrityError
from zoo.files import replacing, sha256_file, sync
from zoo.gemnet_oc.network import GemNetOC
from zoo.teachers.jmp.config import JMPConfig
from zoo.teachers.jmp.model import JMP
from zoo.tensors import Layout, WithoutParameters, read_tensors

CONFIG = "config.json"
MODEL = "model.safetensors"
_REMEDY = "remove the folder, and run zoo convert or zoo distill again"


def check_replaceable(folder: Path) -> None:
    """Raises ConfigError where something else than a folder of weights would be lost, or none can be."""
    whole = folder.resolve()
    if Path.cwd().is_relative_to(whole):
        raise ConfigError(f"{folder} is the folder that you are in, or holds it; choose another folder")
    stop = next((parent for parent in whole.parents if parent.exists() and not parent.is_dir()), None)
    if stop is not None:
        raise ConfigError(f"{folder} cannot be made, because {stop} is a file; choose another folder")
    if not folder.exists():
        return
    strange = sorted({path.name for path in folder.iterdir()} - {CONFIG, MODEL}) if folder.is_dir() else [folder.name]
    if strange:
        raise ConfigError(f"{folder} holds {strange[0]}, which is no part of weights; choose another folder")


def write_weights(folder: Path, config: JMPConfig, network: GemNetOC) -> JMPConfig:
    """Writes a network of the shape that ``config`` says, as float32; its scales are those of ``config``.

    What the folder held is replaced when all is on the disk. Returns the config with the digest of the weights. Raises
    ConfigError where the network has another shape or the folder holds anything else, IntegrityError for numbers that
    are not finite.
    """
    return write_tensors(folder, config, network.state_dict())


def write_tensors(
    folder: Path, config: JMPConfig, tensors: Mapping[str, Tensor], check: Callable[[], None] = lambda: None
) -> JMPConfig:
    """The same from a network's tensors by name; where ``check`` raises, after all was read, nothing is replaced."""
    check_replaceable(folder)
    numbers = _apart({name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tensors.items()})
    expected = layout_of(without_numbers(config))
    if {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in numbers.items()} != expected:
        raise ConfigError(f"the weights of {config.name} have another shape than its config says; give their own")
    for name, tensor in numbers.items():
        if not bool(tensor.isfinite().all()):
            raise IntegrityError(f"{name} holds a number that is not finite; nothing was written, use other weights")
    with replacing(folder) as staging:
        save_file(numbers, staging / MODEL)
        whole = config.model_copy(update={"weights_sha256": sha256_file(staging / MODEL)})
        write_json(staging / CONFIG, whole)
        (staging / MODEL).chmod((staging / CONFIG).stat().st_mode)  # safetensors lets nobody else read its files
        sync(staging / MODEL)
        sync(staging)
        check()
    return whole


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those that share their numbers with one before as copies: safetensors writes none that do."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return found


def read_config(folder: Path) -> JMPConfig:
    """What a folder says of its weights. Raises ConfigError."""
    return read_json(JMPConfig, folder / CONFIG)


def read_weights(folder: Path, dtype: torch.dtype, device: torch.device | str) -> tuple[JMPConfig, JMP]:
    """The network in a folder, without gradients of its weights, and what is known of it.

    Digest, names, types and shapes are checked before a number is in memory. Raises ConfigError, IntegrityError.
    """
    config, path = read_config(folder), folder / MODEL
    if not path.is_file():
        raise IntegrityError(f"{path} is missing; {_REMEDY}")
    found = sha256_file(path)
    if found != config.weights_sha256:
        told = f"{config.weights_sha256[:12]}…" if config.weights_sha256 else "none"
        raise IntegrityError(f"{path} has the digest {found[:12]}…, {CONFIG} says {told}; {_REMEDY}")
    network = without_numbers(config)
    network.load_state_dict(read_tensors(path, layout_of(network), _REMEDY), strict=True, assign=True)
    return config, network.requires_grad_(False).to(device, dtype).eval()


def without_numbers(config: JMPConfig) -> JMP:
    """The network of a config, which takes no memory before it is given its weights."""
    with WithoutParameters():
        return JMP(config.network, config.references)


def layout_of(network: GemNetOC) -> Layout:
    """Names, types and shapes of its tensors."""
    return {name: (torch.float32, tuple(tensor.shape)) for name, tensor in network.state_dict().items()}
