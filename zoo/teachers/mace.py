"""MACE, foundation models of the package ``mace-torch`` (Batatia et al., NeurIPS 2022, arXiv 2206.07697).

Its files are pickles of whole modules, of which an ordinary load runs what they hold; here nothing of them is run, and
the model is built anew from their settings and numbers (``mace_file.py``). The digest is checked before. Where upstream
says one (ids of git's blobs in the repository of MACE-OFF, tests of MACE for two others), it is that; else what others
wrote down of the files that they had downloaded.
"""

import importlib.metadata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import CapabilityError
from zoo.graph import Graph
from zoo.potential import AtomOutputs, Potential, Traits
from zoo.teachers.base import Teacher
from zoo.teachers.dtypes import default_dtype
from zoo.teachers.inputs import check_elements
from zoo.teachers.mace_file import open_model, unprotected
from zoo.teachers.theories import MATPES_R2SCAN, MPA, MPTRJ, OMAT, OMOL
from zoo.teachers.weights import OwnTeacher, Weights, Witness, find_own, find_weights, is_own, own_teacher

_MP = "https://github.com/ACEsuit/mace-mp/releases/download"
_FOUNDATIONS = "https://github.com/ACEsuit/mace-foundations/releases/download"
_OFF = "https://github.com/ACEsuit/mace-off/raw/91a78c5a9c300d1104700d9352c8bfe449227737"

_SPICE = "ωB97M-D3(BJ)/def2-TZVPPD, SPICE"

_OF_OFF = (
    "D. P. Kovács et al., J. Am. Chem. Soc. 147, 17598 (2025), doi:10.1021/jacs.4c07099, arXiv 2312.15211",
    "LicenseRef-ASL",
)
_OF_MP = ("I. Batatia et al., A foundation model for atomistic materials chemistry, arXiv 2401.00096 (2023)", "MIT")
_OF_ASL = (_OF_MP[0], "LicenseRef-ASL")
_OF_MH = ("I. Batatia et al., Cross Learning between Electronic Structure Theories, arXiv 2510.25380", "LicenseRef-ASL")


@dataclass(frozen=True)
class _Model:
    """What is known of a published model before its file is here."""

    weights: Weights
    channels: int  # of its scalars, as scripts and papers say; of MPA, MATPES and OFF24 as of what they began from
    theory: str
    source: tuple[str, str]  # citation and licence of the weights
    head: str | None = None  # of a file with several
    elements: tuple[int, ...] | None = None  # that a head was trained on, where its file has more


def _off(folder: str, file: str, blob: str, channels: int) -> _Model:
    return _Model(Weights(f"{_OFF}/{folder}/{file}", f"git:{blob}"), channels, _SPICE, _OF_OFF)


def _mp(
    address: str,
    sha256: str,
    *,
    size: int | None = None,
    base: str = _MP,
    channels: int = 128,
    theory: str = MPTRJ,
    source: tuple[str, str] = _OF_MP,
    head: str | None = None,
    elements: tuple[int, ...] | None = None,
    seen: Witness = "index",
) -> _Model:
    file = Weights(f"{base}/{address}", f"sha256:{sha256}", size, seen=seen)
    return _Model(file, channels, theory, source, head, elements)


def _mh(head: str, theory: str, elements: tuple[int, ...] | None = None) -> _Model:
    return _mp(
        "mace_mh_1/mace-mh-1.model",
        "a522eb7f59c7879963d41586528f4980baf33e086c94aa92e3eafdeccad3be47",
        size=59_208_139,
        base=_FOUNDATIONS,
        channels=512,
        theory=theory,
        source=_OF_MH,
        head=head,
        elements=elements,
    )


_MODELS = {
    "mace-off23-small/teacher": _off(
        "mace_off23", "MACE-OFF23_small.model", "6c1daa4a7aebf6a9ba059214ded4645774f0a1a0", 96
    ),
    "mace-off23-medium/teacher": _off(
        "mace_off23", "MACE-OFF23_medium.model", "51573784691d0bd80bc3b6278411d006db8f848a", 128
    ),
    "mace-off23-large/teacher": _off(
        "mace_off23", "MACE-OFF23_large.model", "02a50e3cfad8d263e0501f7fe522062fde9874bd", 224
    ),
    "mace-off24-medium/teacher": _off(
        "mace_off24", "MACE-OFF24_medium.model", "413df802546a6effe05b77b589ccb1d8a34b7225", 128
    ),
    "mace-mp-0-small/teacher": _mp(
        "mace_mp_0/2023-12-10-mace-128-L0_energy_epoch-249.model",
        "2ddb079cee0e131eaaf6912ba581b394551ead283e95c99cfe78c605d10b5736",
        size=32_581_838,
        seen="publisher",
    ),
    "mace-mp-0-medium/teacher": _mp(
        "mace_mp_0/2023-12-03-mace-128-L1_epoch-199.model",
        "01bfe22100139f424713cf921144e5509cbe353d67aa9fa1be9c6e1e0ed35845",
        size=44_422_970,
    ),
    "mace-mp-0-large/teacher": _mp(  # the file that mace itself calls large
        "mace_mp_0/MACE_MPtrj_2022.9.model",
        "f80e992b65ab8f88fdf26964511357c022e92704e4d9bcd086652635a8495b32",
        size=133_803_220,
        channels=256,
    ),
    "mace-mp-0b-small/teacher": _mp(
        "mace_mp_0b/mace_agnesi_small.model",
        "7e3a0abcaf41e03a80e69f778e1b11b29de1cca704783dc25917a736392f8cf0",
    ),
    "mace-mp-0b-medium/teacher": _mp(
        "mace_mp_0b/mace_agnesi_medium.model",
        "ab8baff639a8f295f3eccad3d3ccf574efb6fb63220bd52cd88664211569e521",
    ),
    "mace-mp-0b2-small/teacher": _mp(
        "mace_mp_0b2/mace-small-density-agnesi-stress.model",
        "d5773bf9440e96d6eb8c598f84bd0e6369fcfa432f626a87f890e07da3c651c9",
    ),
    "mace-mp-0b2-medium/teacher": _mp(
        "mace_mp_0b2/mace-medium-density-agnesi-stress.model",
        "a90be07c8aa6623c390fcc4653d3e319c4a356f8b4a53d323f96b2012d375caf",
    ),
    "mace-mp-0b2-large/teacher": _mp(
        "mace_mp_0b2/mace-large-density-agnesi-stress.model",
        "348390e758e1c90011c7675e864850f8e9c5b3e7c217f79a2b4bad1baaa657ad",
    ),
    "mace-mp-0b3-medium/teacher": _mp(
        "mace_mp_0b3/mace-mp-0b3-medium.model",
        "2f2be696351ac9e94fbe01cdfb6f017679acdbd2db7645209ef55fec9826b012",
    ),
    "mace-mpa-0-medium/teacher": _mp(
        "mace_mpa_0/mace-mpa-0-medium.model",
        "75428afe3a1d7d8062e19bcaabd5c433623cabf308242ec9fb493e38604fb638",
        size=79_462_305,
        seen="publisher",
        theory=MPA,
    ),
    "mace-omat-0-small/teacher": _mp(
        "mace_omat_0/mace-omat-0-small.model",
        "0abfde07862cf1e93b8b4d03cb702f29ce9c344ff2fc4de2ec0d7166d6c113a5",
        size=67_630_500,
        theory=OMAT,
        source=_OF_ASL,
    ),
    "mace-omat-0-medium/teacher": _mp(
        "mace_omat_0/mace-omat-0-medium.model",
        "d4b14be9afa294eebdbe31a0280b26a0fa29715771e978cbfd3ca24e0d90307a",
        theory=OMAT,
        source=_OF_ASL,
    ),
    "mace-matpes-pbe-0/teacher": _mp(
        "mace_matpes_0/MACE-matpes-pbe-omat-ft.model",
        "e618ad582b84239905b9c3b77ce6e9ce111b0ecd1533223a1a6aac7a696b8aa0",
        base=_FOUNDATIONS,
        theory="PBE, MatPES",
        source=_OF_ASL,
    ),
    "mace-matpes-r2scan-0/teacher": _mp(
        "mace_matpes_0/MACE-matpes-r2scan-omat-ft.model",
        "8f147ecffa1d06a696e5648b13b81abda9c96fda9d0fb3faba3cd3fb27d9bba9",
        base=_FOUNDATIONS,
        theory=MATPES_R2SCAN,
        source=_OF_ASL,
    ),
    "mace-mh-1/omat-pbe-teacher": _mh("omat_pbe", OMAT),
    "mace-mh-1/matpes-r2scan-teacher": _mh("matpes_r2scan", MATPES_R2SCAN),
    "mace-mh-1/omol-teacher": _mh("omol", OMOL, tuple(range(1, 84))),  # OMol25 has H to Bi
}


class MACE(Potential):
    """A MACE model as a zoo potential: its own layers up to the energies of atoms, zoo's derivatives of them.

    Energies of lone atoms are the references. The features are the scalars of the last interaction, from which its
    readout takes the energy; the element embedding has as many channels. The polynomial cutoff, like that of the pair
    repulsion, has two continuous derivatives. Layers follow O(3), but for models made with ``use_so3``.
    """

    traits = Traits(smoothness=2)

    def __init__(self, model: Any, head: int = 0, trained: tuple[int, ...] | None = None) -> None:
        """``head`` is the number of one of the model's heads; ``trained``, if not all, the elements that it knows.

        The energies of lone atoms are taken from the model.
        """
        super().__init__()
        numbers: list[int] = model.atomic_numbers.tolist()
        lone = model.atomic_energies_fn.atomic_energies
        by_number = dict(zip(numbers, lone.reshape(-1, len(numbers))[head].double().tolist(), strict=True))
        lone.zero_()  # added in float64 instead: what they would leave of an energy in float32 is its first digits
        self.cutoff = float(model.r_max)
        self.elements = tuple(sorted(numbers if trained is None else set(numbers) & set(trained)))
        scalars = model.products[-1].linear.irreps_out.count("0e")
        self.traits = replace(self.traits, features=scalars, reflection_invariant=not getattr(model, "use_so3", False))
        self.model, self.head = model, head
        self._references = tuple(by_number.get(number, 0.0) for number in range(max(numbers) + 1))  # eV
        places = {number: place for place, number in enumerate(numbers)}
        self._kinds = len(numbers)
        self._places = tuple(places.get(number, 0) for number in range(max(numbers) + 1))
        self._behind = model.products[-1].linear.irreps_out.dim - scalars  # features of the last interaction that turn

    def atomic_energies(self, graph: Graph) -> Tensor:
        return self.atomic_outputs(graph).energies

    def atomic_outputs(self, graph: Graph) -> AtomOutputs:
        """Raises DomainError for an element that the model lacks."""
        check_elements(graph, self.elements, "this model of MACE")
        found = self.model(self._asked(graph), compute_force=False)
        features = found[
            "node_feats"
        ]  # (atoms, features of all interactions, the last one's behind, its scalars first)
        last = features.shape[1] - self._behind - self.traits.features
        return AtomOutputs(found["node_energy"], features=features[:, last : last + self.traits.features])

    def reference_energies(self, numbers: Tensor) -> Tensor:
        """(atoms,) eV, float64: the energies of lone atoms, of this head."""
        return torch.tensor(self._references, dtype=torch.float64, device=numbers.device)[numbers]

    def element_embeddings(self) -> Tensor:
        """(elements, channels) What the first layer makes of each element, in the order of ``elements``."""
        numbers = torch.tensor(self.elements, device=self.device)
        rows: Tensor = self.model.node_embedding(self._one_hot(numbers))
        return rows

    def _asked(self, graph: Graph) -> dict[str, Tensor]:
        """What the model is asked. It marks positions as wanting a gradient: those of the graph only where they do."""
        cells = graph.cells.index_select(0, graph.structure.index_select(0, graph.centers))  # (edges, 3, 3)
        positions = graph.positions if graph.positions.requires_grad else graph.positions.clone()
        return {
            "positions": positions,
            "node_attrs": self._one_hot(graph.numbers),
            "edge_index": torch.stack([graph.centers, graph.neighbors]),
            "shifts": (graph.shifts.unsqueeze(1) @ cells)[:, 0, :],  # (edges, 3) Å
            "unit_shifts": graph.shifts,
            "cell": graph.cells.reshape(-1, 3),
            "batch": graph.structure,
            "ptr": torch.cat([graph.structure.new_zeros(1), graph.atom_counts.cumsum(0)]),
            "head": graph.structure.new_full((graph.num_structures,), self.head),
        }

    def _one_hot(self, numbers: Tensor) -> Tensor:
        """(atoms, elements) in the model's own order."""
        places = torch.tensor(self._places, device=numbers.device)[numbers]
        return torch.nn.functional.one_hot(places, self._kinds).to(self.dtype)


def names() -> tuple[str, ...]:
    """The teachers this file can load."""
    return tuple(_MODELS)


def weights(name: str) -> Weights | None:
    """The file of a teacher."""
    return _MODELS[name].weights


def traits(name: str) -> Traits:
    """What a published teacher gives, known without its package and its file."""
    return replace(MACE.traits, features=_MODELS[name].channels)


def load(name: str, dtype: torch.dtype, device: torch.device | str) -> Teacher:
    """A published teacher whose file is here. Raises MissingPackageError, IntegrityError and CapabilityError."""
    known = _MODELS[name]
    path, sha256 = find_weights(name, known.weights)
    citation, licence = known.source
    remedy = f"remove it, and run: zoo teachers fetch {name}"
    return Teacher(
        name=name,
        potential=_potential(path, name, known.head, remedy, known.elements).to(device, dtype),
        weights_sha256=sha256,
        package=_package(),
        level_of_theory=known.theory,
        licence_code="MIT",
        licence_weights=licence,
        citation=citation,
    )


def load_file(path: Path, name: str, facts: OwnTeacher, dtype: torch.dtype, device: torch.device | str) -> Teacher:
    """A teacher of the user's own, from a file as ``mace_run_train`` writes it. Raises as ``load`` does."""
    remedy = f"give the file as mace_run_train wrote it: zoo teachers add {name} FILE"
    return facts.teacher(_potential(path, name, facts.head, remedy).to(device, dtype), package=_package())


def calculator(name: str, dtype: torch.dtype) -> Any:
    """MACE's own calculator of the same file, which it opens as MACE does, and so runs what it holds.

    For comparisons, of files that are trusted: their digest is checked.
    """
    own = own_teacher(name)
    path = find_weights(name, _MODELS[name].weights).path if own is None else find_own(own)
    head = _MODELS[name].head if own is None else own.head
    with unprotected(), default_dtype(dtype):  # which the calculator sets, and leaves so
        from mace.calculators import MACECalculator  # lazy: an optional package

        chosen = {} if head is None else {"head": head}
        return MACECalculator(
            model_paths=str(path), device="cpu", default_dtype=str(dtype).removeprefix("torch."), **chosen
        )


def _potential(path: Path, name: str, head: str | None, remedy: str, trained: tuple[int, ...] | None = None) -> MACE:
    model = open_model(path, remedy)
    return MACE(model, _head(list(getattr(model, "heads", ["Default"])), head, path, name), trained).eval()


def _head(heads: list[str], wanted: str | None, path: Path, name: str) -> int:
    """Which head answers: the one that is wanted, the only one, or, of a published file, the one called default.

    Raises CapabilityError.
    """
    if wanted is None:
        default = [] if is_own(name) else [head for head in heads if head.lower() == "default"]
        usual = heads if len(heads) == 1 else default
        if len(usual) == 1:
            return heads.index(usual[0])
    elif wanted in heads:
        return heads.index(wanted)
    asked = "none was chosen" if wanted is None else f"{wanted!r} is none of them"
    raise CapabilityError(
        f"{path} has the heads {', '.join(heads)}, and {asked}; choose one: zoo teachers add {name} FILE ... "
        "--head HEAD"
    )


def _package() -> str:
    return f"mace-torch {importlib.metadata.version('mace-torch')}"
