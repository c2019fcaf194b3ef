"""Small SevenNet models with random numbers, in files as sevenn writes them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

_SMALL = {
    "version": "0.11.0",
    "cutoff": 4.0,
    "channel": 4,
    "lmax": 1,
    "is_parity": True,
    "num_convolution_layer": 2,
    "irreps_manual": False,
    "radial_basis": {"radial_basis_name": "bessel", "bessel_basis_num": 4},
    "cutoff_function": {"cutoff_function_name": "XPLOR", "cutoff_on": 3.5},
    "weight_nn_hidden_neurons": [8],
    "conv_denominator": 3.0,
    "self_connection_type": "nequip",
    "shift": -1.0,
    "scale": 0.5,
}


def kinds(*numbers: int) -> dict[int, int]:
    """Which number a model gives to each of some elements."""
    return {number: kind for kind, number in enumerate(numbers)}


def modal(shifts: Mapping[str, list[float]], **layers: bool) -> dict[str, Any]:
    """Of a model with several training sets: the energies of atoms in each, by atomic number from 0 to 118."""
    return {
        "use_modality": True,
        "_number_of_modalities": len(shifts),
        "_modal_map": {name: place for place, name in enumerate(shifts)},
        "use_modal_self_inter_intro": True,
        "use_modal_self_inter_outro": True,
        "use_modal_output_block": True,
        "use_modal_wise_shift": True,
        "use_modal_wise_scale": False,
        "shift": dict(shifts),
        **layers,
    }


def config_of(type_map: Mapping[int, int], **said: Any) -> dict[str, Any]:
    """The config of a model of some elements."""
    from sevenn._const import DEFAULT_E3_EQUIVARIANT_MODEL_CONFIG

    numbers = {"_type_map": dict(type_map), "_number_of_species": len(type_map)}
    return dict(DEFAULT_E3_EQUIVARIANT_MODEL_CONFIG) | _SMALL | numbers | said


def write_checkpoint(path: Path, config: Mapping[str, Any], **more: Any) -> Path:
    """A file of a model of this config."""
    from sevenn.model_build import build_E3_equivariant_model

    torch.manual_seed(3)
    model = build_E3_equivariant_model(dict(config))
    torch.save({"config": dict(config), "model_state_dict": model.state_dict(), **more}, path)
    return path
