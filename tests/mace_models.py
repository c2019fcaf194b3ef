"""Small random models of MACE, of the kinds that are published, made and saved by MACE's own code."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zoo.teachers.dtypes import default_dtype
from zoo.teachers.mace_file import import_mace

NUMBERS = (1, 8, 14)
_LONE = ((-13.6, -2041.8, -7873.1), (-0.3, -1.5, -2.25))  # eV, of each head, exact in float32 or not
_SCALES = ((1.3, 0.05), (0.7, -0.1), (0.9, 0.2))  # of each head, and its shift, eV

# what differs from ``_USUAL``; the comment says of which published models it is the kind
KINDS: dict[str, dict[str, Any]] = {
    "vectors": {"correlation": 3},  # MACE-OFF23 medium, MACE-MP-0 medium
    "scalars": {"hidden_irreps": "6x0e"},  # MACE-OFF23 small, MACE-MP-0 small
    "tensors": {"hidden_irreps": "4x0e + 4x1o + 4x2e", "max_ell": 3},  # MACE-OFF23 large
    "repulsion": {  # MACE-MP-0b
        "distance_transform": "Agnesi",
        "pair_repulsion": True,
    },
    "density": {  # MACE-MP-0b2 and 0b3, MACE-MPA-0, MACE-OMAT-0
        "interaction_cls_first": "RealAgnosticDensityInteractionBlock",
        "interaction_cls": "RealAgnosticDensityResidualInteractionBlock",
        "distance_transform": "Agnesi",
        "pair_repulsion": True,
    },
    "heads": {  # MACE-MH-1
        "interaction_cls_first": "RealAgnosticResidualNonLinearInteractionBlock",
        "interaction_cls": "RealAgnosticResidualNonLinearInteractionBlock",
        "hidden_irreps": "6x0e + 6x1o",
        "edge_irreps": "3x0e + 3x1o",
        "use_edge_irreps_first": True,
        "use_agnostic_product": True,
        "apply_cutoff": False,
        "distance_transform": "Agnesi",
        "pair_repulsion": True,
        "heads": ["omat_pbe", "default"],
    },
    "three": {"num_interactions": 3, "hidden_irreps": "4x0e + 4x1o", "correlation": [2, 3, 2], "radial_MLP": [5]},
    "one": {"num_interactions": 1, "hidden_irreps": "5x0e"},
    "gaussian": {"radial_type": "gaussian", "distance_transform": "Soft", "gate": torch.tanh},
    "plain": {"class": "MACE"},
}
_USUAL: dict[str, Any] = {
    "class": "ScaleShiftMACE",
    "r_max": 4.0,
    "num_bessel": 4,
    "num_polynomial_cutoff": 5,
    "max_ell": 2,
    "interaction_cls_first": "RealAgnosticInteractionBlock",
    "interaction_cls": "RealAgnosticResidualInteractionBlock",
    "num_interactions": 2,
    "hidden_irreps": "5x0e + 5x1o",
    "MLP_irreps": "4x0e",
    "avg_num_neighbors": 6.5,
    "correlation": 2,
    "gate": torch.nn.functional.silu,
    "radial_MLP": [8, 8],
    "use_reduced_cg": False,
    "heads": ["Default"],
}


def random_model(
    kind: str = "vectors",
    *,
    numbers: Sequence[int] = NUMBERS,
    dtype: torch.dtype = torch.float64,
    seed: int = 3,
    strength: float = 1.0,
    **more: Any,
) -> Any:
    """A model of a kind, or of a kind and ``more``, its layers TorchScript as e3nn makes them.

    What its readouts say is multiplied by ``strength``; random weights say little where elements are many.
    """
    modules = import_mace()
    import e3nn.o3

    settings = _USUAL | KINDS[kind] | more
    name = settings.pop("class")
    for key in ("hidden_irreps", "MLP_irreps", "edge_irreps"):
        if key in settings:
            settings[key] = e3nn.o3.Irreps(settings[key])
    for key in ("interaction_cls", "interaction_cls_first"):
        settings[key] = modules.interaction_classes[settings[key]]
    scales, shifts = zip(*_SCALES[: len(settings["heads"])], strict=True)
    if name == "ScaleShiftMACE":
        settings |= {"atomic_inter_scale": list(scales), "atomic_inter_shift": list(shifts)}
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), default_dtype(dtype):
        warnings.simplefilter("ignore")  # of TorchScript, which e3nn makes
        torch.manual_seed(seed)
        model = getattr(modules, name)(
            num_elements=len(numbers),
            atomic_numbers=list(numbers),
            atomic_energies=_lone_atoms(numbers, len(scales)),
            **settings,
        )
    for readout in model.readouts:
        (readout.linear if hasattr(readout, "linear") else readout.linear_2).weight.data *= strength
    return model


def _lone_atoms(numbers: Sequence[int], heads: int) -> np.ndarray:
    """(heads, elements) eV"""
    if tuple(numbers) == NUMBERS:
        return np.array(_LONE[:heads])
    return np.array([[-13.6 * number**2.3 - head for number in numbers] for head in range(heads)])


def save(model: Any, path: Path) -> Path:
    """As ``mace_run_train`` does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TorchScript, which e3nn makes
        torch.save(model, path)
    return path
