"""GemNet-OC with energies of the elements beside it."""

from collections.abc import Mapping

import torch
from ase.data import atomic_numbers
from torch import Tensor

from zoo.gemnet_oc.config import GemNetOCConfig
from zoo.gemnet_oc.network import GemNetOC


class JMP(GemNetOC):
    """The network, and ``references``: eV of an atom by its symbol, 0 for those that are not given.

    The published models come without: their energies are relative, up to a constant for each element.
    """

    def __init__(self, config: GemNetOCConfig, references: Mapping[str, float] | None = None) -> None:
        super().__init__(config)
        given = {atomic_numbers[symbol]: energy for symbol, energy in (references or {}).items()}
        self._references = tuple(given.get(number, 0.0) for number in range(config.num_elements + 1))  # no cast's prey

    def reference_energies(self, numbers: Tensor) -> Tensor:
        """(atoms,) eV, float64, whatever type the network is in."""
        return torch.tensor(self._references, dtype=torch.float64, device=numbers.device)[numbers]
