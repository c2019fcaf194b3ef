"""Small AIMNet2 models with random weights, made by aimnet's own code, in the format that it exports."""

from collections.abc import Sequence
from typing import Any

import torch

SPECIES = [1, 6, 7, 8, 14]
SHIFTS = {1: -13.6, 6: -1035.2, 7: -1485.3, 8: -2042.6, 14: -7873.1}  # eV

_YAML = """
class: aimnet.models.AIMNet2
kwargs:
    nfeature: 4
    d2features: true
    ncomb_v: 3
    hidden: [[12], [10], [14]]
    aim_size: 256
    num_charge_channels: {channels}
    aev: {{rc_s: 5.0, nshifts_s: 4}}
    outputs:
        energy_mlp:
            class: aimnet.modules.Output
            kwargs:
                n_in: 256
                n_out: 1
                key_in: aim
                key_out: energy
                mlp: {{activation_fn: torch.nn.GELU, last_linear: true, hidden: [8]}}
        atomic_shift: {{class: aimnet.modules.AtomicShift, kwargs: {{key_in: energy, key_out: energy}}}}
        atomic_sum: {{class: aimnet.modules.AtomicSum, kwargs: {{key_in: energy, key_out: energy}}}}
        srcoulomb: {{class: aimnet.modules.SRCoulomb, kwargs: {{rc: 4.6, key_in: charges, key_out: energy}}}}
"""


def artifact(name: str, species: Sequence[int] = SPECIES) -> dict[str, Any]:
    """What ``aimnet export`` writes, of a small model of the kind of a teacher."""
    import yaml
    from aimnet.config import build_module
    from aimnet.models.utils import convert_atomic_shifts_to_float64

    described = _YAML.format(channels=2 if "nse" in name else 1)
    model = build_module(yaml.safe_load(described))
    convert_atomic_shifts_to_float64(model)
    shifts = model.outputs["atomic_shift"].shifts.weight
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape))
        for number in species:
            shifts[number] = SHIFTS.get(number, -13.6 * number**2.3)
        for number in set(range(1, 64)) - set(species):
            model.afv.weight[number] = torch.nan
    return {
        "format_version": 2,
        "model_yaml": described,
        "cutoff": 5.0,
        "needs_coulomb": True,
        "needs_dispersion": "rxn" not in name,
        "coulomb_mode": "sr_embedded",
        "coulomb_sr_rc": 4.6,
        "coulomb_sr_envelope": "exp",
        "d3_params": None if "rxn" in name else {"s8": 0.3908, "a1": 0.566, "a2": 3.128, "s6": 1.0},
        "has_embedded_lr": True,
        "implemented_species": list(species),
        "state_dict": model.state_dict(),
    }
