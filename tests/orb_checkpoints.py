"""Small Orb models with random weights, made by orb-models' own code, in files as it publishes them."""

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

from zoo.teachers import orb

SMALL = {
    "latent_dim": 12,
    "base_mlp_hidden_dim": 10,
    "base_mlp_depth": 1,
    "head_mlp_hidden_dim": 8,
    "num_message_passing_steps": 2,
}

SCALES = {"energy": 4.5, "forces": 15.0}  # of heads: forces of 0.1 to 3 eV/Å, and energies that float32 holds


@contextmanager
def small_architectures() -> Iterator[Any]:
    """orb-models, whose architectures are small meanwhile."""
    from orb_models.forcefield import pretrained

    with ExitStack() as changes:
        for kind in ("conservative", "direct"):
            build = f"orb_v3_{kind}_architecture"
            small = functools.partial(getattr(pretrained, build), **SMALL)
            changes.enter_context(mock.patch.object(pretrained, build, small))
        yield pretrained


def random_model(pretrained: Any, name: str) -> Any:
    """A model of the kind of a teacher; ``pretrained`` is what ``small_architectures`` gives."""
    model = orb._empty(pretrained, orb._MODELS[name], torch.float32)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if key.endswith("running_mean") and "energy" in key:
                tensor.fill_(0.37)
            elif key.endswith("running_var"):
                tensor.fill_(SCALES.get(key.split(".")[1], 1.4) ** 2)
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases and norms
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return model
