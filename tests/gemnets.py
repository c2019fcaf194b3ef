"""Tiny GemNets that the tests share."""

import structures as scenes
import torch

from zoo.students import GemNetDTConfig, GemNetT, GemNetTConfig, build_student

TINY = {
    "blocks": 2,
    "atom_channels": 5,
    "edge_channels": 6,
    "triplet_channels": 4,
    "bilinear_channels": 5,
    "radial_channels": 3,
    "circular_channels": 3,
    "radials": 4,
    "sphericals": 4,
    "atom_residuals": 1,
}


def tiny_gemnet(*symbols: str, direct: bool = False, cutoff: float = 4.0, seed: int = 7, **fields: int) -> GemNetT:
    """A float64 GemNet in which nothing is zero or one by chance, scale factors, references and scale included."""
    kind = GemNetDTConfig if direct else GemNetTConfig
    config = kind(elements=symbols, cutoff=cutoff, **(TINY | fields))
    generator = torch.Generator().manual_seed(seed)
    model = build_student(config, generator).double()
    for name, parameter in model.named_parameters():
        if name.endswith("factor"):
            parameter.data.copy_(0.5 + torch.rand((), generator=generator, dtype=torch.float64))
    model.scale.fill_(1.3)
    model.references.copy_(
        torch.tensor([scenes.REFERENCES.get(symbol, -7.0) for symbol in symbols], dtype=torch.float64)
    )
    return model.eval()
