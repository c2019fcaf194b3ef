"""SevenNet, the foundation models of the package ``sevenn`` (Park, Kim, Hwang, Han, JCTC 2024, 20, 4857).

The package carries the weights of some as pickles, and names the address of others. A digest is checked before a file
is opened, and a file is read here, as tensors, arrays and plain values: sevenn's own reader, which would run whatever a
file names, opens none.
"""

import importlib.metadata
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo.errors import ConfigError, IntegrityError
from zoo.files import sha256_file
from zoo.graph import Graph
from zoo.potential import AtomOutputs, Potential, Traits
from zoo.teachers.base import Teacher
from zoo.teachers.inputs import check_elements
from zoo.teachers.packages import importing
from zoo.teachers.pickles import read_pickle, unreadable
from zoo.teachers.theories import MATPES_R2SCAN, MPA, MPTRJ, OMAT, OMOL
from zoo.teachers.weights import Found, OwnTeacher, Weights, find_own, find_weights, own_teacher

_RELEASES = "https://github.com/MDIL-SNU/SevenNet/releases/download"

_JCTC = "Y. Park, J. Kim, S. Hwang, S. Han, J. Chem. Theory Comput. 20, 4857 (2024), doi:10.1021/acs.jctc.4c00190"
_JACS = "J. Kim et al., J. Am. Chem. Soc. 147, 1042 (2024), doi:10.1021/jacs.4c14455"
_NATURE = "J. Kim et al., Nat. Commun. 17, 3432 (2026), doi:10.1038/s41467-026-70195-8"

_MP = "PBE and PBE+U, Materials Project"
_R2SCAN = "r2SCAN, Materials Project"

_FEATURES = 128  # channels of the last convolution of all published models


@dataclass(frozen=True)
class _Model:
    """What is known of a published model before its file is here."""

    file: str  # below the package's folder of weights, or below the releases
    theory: str
    citation: str = _JCTC
    digest: str | None = None  # SHA-256 of a file that the package carries
    modal: str | None = None  # which of its training sets it follows, where it has several
    mirrors: bool = False  # whether a mirror image has the same energy
    smoothness: int = 1  # as of Traits


def _omni(file: str, modal: str, theory: str) -> _Model:
    return _Model(file, theory, _NATURE, modal=modal, mirrors=True)


_MF_0 = "SevenNet_MF_0/checkpoint_sevennet_mf_0.pth"
_MF_0_DIGEST = "81791329b37d445f46b531578c182c41792d98c7814222c9e5dde276402225fd"
_OMPA = "v0.11.0.cp/checkpoint_sevennet_mf_ompa.pth"

_MODELS = {
    "sevennet-0/teacher": _Model(
        "SevenNet_0__11Jul2024/checkpoint_sevennet_0.pth",
        MPTRJ,
        digest="7052cb42b7b3be42b40b97fa0d21077a48c54b5548948fc4dcf346629f813c36",
    ),
    "sevennet-0/22may2024-teacher": _Model(
        "SevenNet_0__22May2024/checkpoint_sevennet_0.pth",
        "PBE and PBE+U, Materials Project (MPF.2021.2.8)",
        digest="5d389fafd512e6ae2830d74d0b66ffc49a55d3832653ff8e7bf7f1343013c1d1",
    ),
    "sevennet-l3i5/teacher": _Model(
        "SevenNet_l3i5/checkpoint_l3i5.pth",
        MPTRJ,
        digest="a7ff190d41efe5b8317a03d20a468e4036a1a3e64e0b14fdbab64ac3f4bfc09d",
        smoothness=2,
    ),
    "sevennet-mf-0/pbe-teacher": _Model(_MF_0, _MP, _JACS, _MF_0_DIGEST, "PBE"),
    "sevennet-mf-0/r2scan-teacher": _Model(_MF_0, _R2SCAN, _JACS, _MF_0_DIGEST, "R2SCAN"),
    "sevennet-omat/teacher": _Model("v0.11.0.cp/checkpoint_sevennet_omat.pth", OMAT),
    "sevennet-mf-ompa/mpa-teacher": _Model(_OMPA, MPA, _JACS, modal="mpa", mirrors=True),
    "sevennet-mf-ompa/omat24-teacher": _Model(_OMPA, OMAT, _JACS, modal="omat24", mirrors=True),
} | {
    f"sevennet-{size}/{modal.replace('_', '-')}-teacher": _omni(file, modal, theory)
    for size, file in (
        ("omni", "v0.12.0.cp/checkpoint_sevennet_omni.pth"),
        ("omni-i8", "v0.12.1.cp/checkpoint_sevennet_omni_i8.pth"),
        ("omni-i12", "v0.12.1.cp/checkpoint_sevennet_omni_i12.pth"),
    )
    for modal, theory in (("mpa", MPA), ("matpes_r2scan", MATPES_R2SCAN), ("omol25_low", OMOL))
}
_ONE_HOT = "onehot_idx_to_onehot"
_EMBEDDING = "onehot_to_feature_x"
_READOUT = "reduce_input_to_hidden"  # the first layer after the last convolution
_RESCALE = "rescale_atomic_energy"
_LAST = "last_node_features"
_OUTPUTS = ("reduce_total_enegy", "force_output")  # modules of sevenn that zoo's own derivatives replace
_ARRAYS = {  # what a checkpoint names beside tensors: the arrays of its config, by the names of NumPy 1 and 2
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    **{f"numpy.{core}.multiarray._reconstruct": np.ndarray(0).__reduce__()[0] for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": np.float64(0).__reduce__()[0] for core in ("core", "_core")},
}
_TYPES = tuple(type(np.dtype(kind)) for kind in ("f4", "f8", "i8", "?"))  # of what is in them
_CHECKPOINT = "a checkpoint of SevenNet"
_GIVE = "give a checkpoint as sevenn wrote it"
_BROKEN = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, EOFError, UnpicklingError)


class SevenNet(Potential):
    """A SevenNet model as a zoo potential: its own layers up to the atomic energies, zoo's derivatives of them.

    The layers of early models follow SO(3), not O(3): a mirror image has a slightly different energy. The XPLOR cutoff
    has one continuous derivative, the polynomial one two. The last convolution leaves scalars alone, so that all its
    node features are invariant.
    """

    traits = Traits(reflection_invariant=False, smoothness=1)

    def __init__(self, model: Any, config: dict[str, Any], modal: str | None = None) -> None:
        """``config`` is that of the checkpoint, ``modal`` one of the training sets of a model of several."""
        super().__init__()
        self.cutoff = float(model.cutoff)
        self.modal: int | None = None if modal is None else model.modal_map[modal]
        model.eval_modal_map = False  # the number is given, not the name
        self.elements = _elements(model, self.modal)
        for name in _OUTPUTS:
            model.delete_module_by_key(name)
        model.replace_module(_ONE_HOT, _InTypeOfEdges(model.get_submodule(_ONE_HOT)))
        self.traits = replace(self.traits, features=_keep_features(model), **_symmetry(config))
        model.requires_grad_(False)
        self.model = model

    def atomic_energies(self, graph: Graph) -> Tensor:
        return self.atomic_outputs(graph).energies

    def atomic_outputs(self, graph: Graph) -> AtomOutputs:
        """Raises DomainError for an element that the model lacks."""
        check_elements(graph, self.elements, "this model of SevenNet")
        data = {
            "atomic_numbers": graph.numbers,
            "edge_index": torch.stack([graph.centers, graph.neighbors]),
            "edge_vec": graph.edge_vectors(),
            "batch": graph.structure,
            "num_atoms": graph.atom_counts,
        }
        if self.modal is not None:
            data["modal_type"] = torch.full_like(graph.atom_counts, self.modal)
        found = self.model(data)
        return AtomOutputs(found["atomic_energy"][:, 0], features=found.get(_LAST))

    def element_embeddings(self) -> Tensor:
        """(elements, channels) What the first layer makes of each element, in the order of ``elements``."""
        order = [self.model.type_map[number] for number in self.elements]
        one_hot = torch.eye(len(self.model.type_map), dtype=self.dtype, device=self.device)[order]
        layer = self.model.get_submodule(_EMBEDDING)
        if layer.num_modalities > 1 and self.modal is not None:
            of_modal = torch.eye(layer.num_modalities, dtype=self.dtype, device=self.device)[self.modal]
            one_hot = torch.cat([one_hot, of_modal.expand(len(order), -1)], dim=1)  # (elements, kinds + modals)
        rows: Tensor = layer.linear(one_hot)
        return rows


def _elements(model: Any, modal: int | None) -> tuple[int, ...]:
    """The elements that a model was trained on: those that have an energy of their own, where it could take more.

    A model of all elements that there are counts from 0. One of several training sets knows those of all of them.
    """
    kinds = {number: kind for number, kind in sorted(model.type_map.items()) if number > 0}
    shift = model.get_submodule(_RESCALE).shift
    shift = shift if shift.ndim == 1 or modal is None else shift[modal]
    narrower = modal is not None or 0 in model.type_map
    if not narrower or len(shift) != len(model.type_map) or not bool(shift.any()):
        return tuple(kinds)
    return tuple(number for number, kind in kinds.items() if shift[kind] != 0)


def _keep_features(model: Any) -> int:
    """Has the readout keep the node features that it is given. Returns how many; 0 where some are no scalars."""
    readout = model._modules.get(_READOUT)
    if readout is None:
        return 0
    scalars, channels = readout.irreps_in.count("0e"), readout.irreps_in.dim
    if scalars != channels:
        return 0
    model.replace_module(_READOUT, _KeepsItsInput(readout))
    return int(scalars - (readout.num_modalities if readout.num_modalities > 1 else 0))


def _symmetry(config: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint's config says of its traits."""
    smooth = 1 if config["cutoff_function"]["cutoff_function_name"] == "XPLOR" else 2
    return {"reflection_invariant": bool(config["is_parity"]), "smoothness": smooth}


class _KeepsItsInput(nn.Module):
    """A layer that leaves what it is given, the node features, beside what it makes of them."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        self.key: str = layer.key_input

    def forward(self, data: dict[str, Any]) -> dict[str, Any]:
        features = data[self.key]
        data = self.layer(data)
        data[_LAST] = features
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


def traits(name: str) -> Traits:
    """What a published teacher gives, known without its package and its file."""
    model = _MODELS[name]
    return Traits(reflection_invariant=model.mirrors, smoothness=model.smoothness, features=_FEATURES)


def weights(name: str) -> Weights | None:
    """The file that is fetched for a teacher; None where the package carries it."""
    model = _MODELS[name]
    return Weights(f"{_RELEASES}/{model.file}") if model.digest is None else None


def load(name: str, dtype: torch.dtype, device: torch.device | str) -> Teacher:
    """A SevenNet teacher. Raises MissingPackageError, and IntegrityError where the weights are not the known ones."""
    _check_package(name)
    model, (path, sha256) = _MODELS[name], _find(name)
    remedy = "pip install --force-reinstall sevenn" if model.digest else f"zoo teachers fetch {name}"
    return Teacher(
        name=name,
        potential=_opened(path, name, model.modal, f"remove it, and run: {remedy}").to(device, dtype).eval(),
        weights_sha256=sha256,
        package=_package(),
        level_of_theory=model.theory,
        licence_code="MIT",
        licence_weights="MIT",
        citation=model.citation,
    )


def load_file(path: Path, name: str, facts: OwnTeacher, dtype: torch.dtype, device: torch.device | str) -> Teacher:
    """A teacher of the user's own, from a checkpoint as sevenn writes it. Raises as ``load`` does, and ConfigError."""
    _check_package(name)
    return facts.teacher(_opened(path, name, facts.head, _GIVE).to(device, dtype).eval(), package=_package())


def calculator(name: str, dtype: torch.dtype) -> Any:
    """sevenn's own calculator of the same file, in main memory, for comparisons. Raises as ``load`` does."""
    _check_package(name)
    from sevenn.calculator import SevenNetCalculator  # lazy: an optional package

    own = own_teacher(name)
    path = _find(name).path if own is None else find_own(own)
    model = _checkpoint(path, _GIVE).build_model()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No tensor product accelerator", category=UserWarning)
        modal = _MODELS[name].modal if own is None else own.head or next(iter(model.modal_map or ()), None)
        found = SevenNetCalculator(model, file_type="model_instance", device="cpu", modal=modal)
    return found if dtype == torch.float32 else _in_double(found)


def _in_double(calculator: Any) -> Any:
    """The same calculator in float64: sevenn makes float32 of what it is given, whatever its model is."""
    from sevenn.train.dataload import unlabeled_atoms_to_graph  # lazy: an optional package

    model = calculator.model.double()
    model.replace_module(_ONE_HOT, _InTypeOfEdges(model.get_submodule(_ONE_HOT)))

    def exactly(_: nn.Module, given: tuple[Any]) -> None:
        for key, value in unlabeled_atoms_to_graph(calculator.atoms, calculator.cutoff).items():
            if getattr(value, "dtype", None) == "float64":
                given[0][key] = torch.as_tensor(value)

    model.register_forward_pre_hook(exactly)
    return calculator


def _check_package(name: str) -> None:
    """Raises MissingPackageError."""
    with importing(name, "sevenn", "sevennet"):
        import sevenn.checkpoint  # noqa: F401  # lazy: an optional package


def _package() -> str:
    return f"sevenn {importlib.metadata.version('sevenn')}"


def _find(name: str) -> Found:
    """The file of a published teacher, its digest checked. Raises MissingPackageError, IntegrityError."""
    model, fetched = _MODELS[name], weights(name)
    if fetched is not None:
        return find_weights(name, fetched)
    import sevenn  # lazy: an optional package

    path = Path(sevenn.__file__).parent / "pretrained_potentials" / model.file
    if not path.is_file():
        raise IntegrityError(f"the installed sevenn lacks {model.file}; run: pip install --force-reinstall sevenn")
    found = sha256_file(path)
    if found != model.digest:
        raise IntegrityError(
            f"{path} has the digest {found[:12]}…, expected {str(model.digest)[:12]}…; it was not opened. "
            "Run: pip install --force-reinstall sevenn"
        )
    return Found(path, found)


def _opened(path: Path, name: str, modal: str | None, remedy: str) -> SevenNet:
    """The potential of a checkpoint, of its only modality where it has one. Raises IntegrityError, and ConfigError for
    a modality that it lacks, and where none of several was chosen."""
    checkpoint = _checkpoint(path, remedy)
    try:
        model, config = checkpoint.build_model(), checkpoint.config
        known = list(model.modal_map or ())
    except _BROKEN as error:
        raise unreadable(path, error, remedy, _CHECKPOINT) from error
    modal = known[0] if modal is None and len(known) == 1 else modal
    if (modal is None) != (not known) or (modal is not None and modal not in known):
        which = f"has the modalities {', '.join(known)}" if known else "has no modalities"
        asked = "none was chosen" if modal is None else f"{modal!r} is none of them"
        choice = f"choose one: zoo teachers add {name} FILE ... --head MODALITY" if known else "leave --head out"
        raise ConfigError(f"{path} {which}, and {asked}; {choice}")
    return SevenNet(model, config, modal)


def _checkpoint(path: Path, remedy: str) -> Any:
    """sevenn's checkpoint of what a file holds, which sevenn does not open. Raises IntegrityError."""
    from sevenn import checkpoint as theirs  # lazy: an optional package

    content = read_pickle(path, _ARRAYS.get, remedy, made=_TYPES)
    found = theirs.SevenNetCheckpoint(path)
    try:
        found._config = theirs._config_cp_routine(content["config"])
        found._model_state_dict = content["model_state_dict"]
    except _BROKEN as error:
        raise unreadable(path, error, remedy, _CHECKPOINT) from error
    found._loaded = True
    return found
