"""SevenNet, the foundation models of the package ``sevenn`` (Park, Kim, Hwang, Han, JCTC 2024, 20, 4857).

The package carries its weights as pickles. Their digest is checked against the one below before they are opened, so
that what runs is what was read when this file was written.
"""

import importlib.metadata
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import IntegrityError, MissingPackageError
from zoo.files import sha256_file
from zoo.graph import Graph
from zoo.potential import AtomOutputs, Potential, Traits
from zoo.teachers.base import Teacher

# name -> (folder and file within the package, digest of the file, level of theory)
_MODELS = {
    "sevennet-0/teacher": (
        "SevenNet_0__11Jul2024/checkpoint_sevennet_0.pth",
        "7052cb42b7b3be42b40b97fa0d21077a48c54b5548948fc4dcf346629f813c36",
        "PBE and PBE+U, Materials Project (MPtrj)",
    ),
    "sevennet-l3i5/teacher": (
        "SevenNet_l3i5/checkpoint_l3i5.pth",
        "a7ff190d41efe5b8317a03d20a468e4036a1a3e64e0b14fdbab64ac3f4bfc09d",
        "PBE and PBE+U, Materials Project (MPtrj)",
    ),
}
_ONE_HOT = "onehot_idx_to_onehot"
_EMBEDDING = "onehot_to_feature_x"
_READOUT = "reduce_input_to_hidden"  # the first layer after the last convolution
_FEATURES = "last_node_features"
_OUTPUTS = ("reduce_total_enegy", "force_output")  # modules of sevenn that zoo's own derivatives replace


class SevenNet(Potential):
    """A SevenNet model as a zoo potential: its own layers up to the atomic energies, zoo's derivatives of them.

    The layers follow SO(3), not O(3): a mirror image has a slightly different energy. The XPLOR cutoff has one
    continuous derivative. The last convolution leaves scalars alone, so that all its node features are invariant.
    """

    traits = Traits(reflection_invariant=False, smoothness=1)

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.cutoff = float(model.cutoff)
        self.elements = tuple(sorted(model.type_map))
        for name in _OUTPUTS:
            model.delete_module_by_key(name)
        model.replace_module(_ONE_HOT, _InTypeOfEdges(model.get_submodule(_ONE_HOT)))
        readout = model.get_submodule(_READOUT)
        self.traits = replace(self.traits, features=readout.irreps_in.count("0e"))
        model.replace_module(_READOUT, _KeepsItsInput(readout))
        model.requires_grad_(False)
        self.model = model

    def atomic_energies(self, graph: Graph) -> Tensor:
        return self.atomic_outputs(graph).energies

    def atomic_outputs(self, graph: Graph) -> AtomOutputs:
        data = {
            "atomic_numbers": graph.numbers,
            "edge_index": torch.stack([graph.centers, graph.neighbors]),
            "edge_vec": graph.edge_vectors(),
            "batch": graph.structure,
            "num_atoms": graph.atom_counts,
        }
        found = self.model(data)
        return AtomOutputs(found["atomic_energy"][:, 0], features=found[_FEATURES])

    def element_embeddings(self) -> Tensor:
        """(elements, channels) What the first layer makes of each element, in the order of ``elements``."""
        order = [self.model.type_map[number] for number in self.elements]
        one_hot = torch.eye(len(order), dtype=self.dtype, device=self.device)[order]  # (elements, elements)
        rows: Tensor = self.model.get_submodule(_EMBEDDING).linear(one_hot)
        return rows


class _KeepsItsInput(nn.Module):
    """A layer that leaves what it is given, the node features, beside what it makes of them."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        self.key: str = layer.key_input

    def forward(self, data: dict[str, Any]) -> dict[str, Any]:
        features = data[self.key]
        data = self.layer(data)
        data[_FEATURES] = features
        return data


class _InTypeOfEdges(nn.Module):
    """sevenn's one-hot embedding, which is float32 whatever the model is, in the type of the edges."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, data: dict[str, Any]) -> dict[str, Any]:
        data = self.embedding(data)
        for key in (self.embedding.key_output, self.embedding.key_additional_output):
            if isinstance(key, str):
                data[key] = data[key].to(data["edge_vec"].dtype)
        return data


def names() -> tuple[str, ...]:
    """The teachers this file can load."""
    return tuple(_MODELS)


def load(name: str, dtype: torch.dtype, device: torch.device | str) -> Teacher:
    """A SevenNet teacher. Raises MissingPackageError, and IntegrityError where the weights are not the known ones."""
    try:
        from sevenn.checkpoint import SevenNetCheckpoint  # lazy: an optional package
    except ImportError as error:
        raise MissingPackageError(f"{name} needs the package sevenn ({error}); run: pip install sevenn") from error
    file, digest, theory = _MODELS[name]
    path = _weights(file, digest)
    model = SevenNetCheckpoint(path).build_model()
    return Teacher(
        name=name,
        potential=SevenNet(model).to(device, dtype).eval(),
        weights_sha256=digest,
        package=f"sevenn {importlib.metadata.version('sevenn')}",
        level_of_theory=theory,
        licence_code="MIT",
        licence_weights="MIT",
        citation="Y. Park, J. Kim, S. Hwang, S. Han, J. Chem. Theory Comput. 20, 4857 (2024), "
        "doi:10.1021/acs.jctc.4c00190",
    )


def _weights(file: str, digest: str) -> Path:
    import sevenn  # lazy: an optional package

    path = Path(sevenn.__file__).parent / "pretrained_potentials" / file
    if not path.is_file():
        raise IntegrityError(f"the installed sevenn lacks {file}; run: pip install --force-reinstall sevenn")
    found = sha256_file(path)
    if found != digest:
        raise IntegrityError(
            f"{path} has the digest {found[:12]}…, expected {digest[:12]}…; it was not opened. "
            "Run: pip install --force-reinstall sevenn"
        )
    return path
