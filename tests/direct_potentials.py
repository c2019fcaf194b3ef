"""Small direct-force potentials that the tests share."""

from typing import Any

import structures as scenes
import torch

from zoo.potential import Potential
from zoo.students import PaiNNDT, PaiNNDTConfig, build_student
from zoo.teachers import load_teacher


def tiny_painn_dt(*symbols: str, seed: int = 7, **fields: Any) -> PaiNNDT:
    """A float64 PaiNN-dt in which nothing is zero or one by chance, biases, factors, references and scale included."""
    config = PaiNNDTConfig(elements=symbols, **({"cutoff": 4.0, "channels": 6, "layers": 2, "radials": 5} | fields))
    generator = torch.Generator().manual_seed(seed)
    model = build_student(config, generator).double()
    for name, parameter in model.named_parameters():
        noise = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if name.endswith("bias"):
            parameter.data.copy_(noise)
        elif name.endswith("norm.weight") or name == "factors":
            parameter.data.copy_(1 + noise)
    model.scale.fill_(1.3)
    model.references.copy_(torch.tensor([scenes.REFERENCES[symbol] for symbol in symbols], dtype=torch.float64))
    return model.eval()


def direct_stillinger_weber() -> Potential:
    """With its one constant as a parameter, so that laws about parameters hold too."""
    return load_teacher("stillinger-weber/direct-teacher", dtype=torch.float64).potential.requires_grad_()
