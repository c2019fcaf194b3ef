"""The families of teachers: which names each serves, and what must be installed for them."""

import importlib.util
from dataclasses import dataclass
from importlib.machinery import PathFinder


@dataclass(frozen=True)
class Family:
    """One adapter, and the package that it is for."""

    key: str  # "mace", by which commands name it
    module: str  # of the adapter, imported only when a teacher of the family is asked for
    imports: tuple[str, ...]  # modules that must be importable; none where zoo itself computes
    install: str  # what pip is given to install them; "" for none
    names: tuple[str, ...]  # of its teachers, as ``names()`` of the adapter says
    locked: bool = False  # whether zoo has a lock for an environment of its own
    own_files: bool = False  # whether a file of one's own can be added
    converted: bool = False  # its weights are made here of what its authors publish, by ``zoo convert`` or a recipe

    @property
    def is_importable(self) -> bool:
        """Whether its modules are found here. Nothing is imported."""
        return all(_is_found(module) for module in self.imports)


def _is_found(module: str) -> bool:
    """Whether there is a file of this module; a folder that is called so is none."""
    name, *inner = module.split(".")
    try:
        spec = importlib.util.find_spec(name)
        for part in inner:
            if spec is None:
                return False
            name = f"{name}.{part}"
            spec = PathFinder.find_spec(name, spec.submodule_search_locations or ())
    except (ImportError, ValueError, KeyError):  # a module without a spec, a folder alone within a package
        return False
    return spec is not None and spec.origin is not None


_ALL = (
    Family(
        key="sevennet",
        module="zoo.teachers.sevennet",
        imports=("sevenn",),
        install="sevenn",
        names=(
            "sevennet-0/teacher",
            "sevennet-0/22may2024-teacher",
            "sevennet-l3i5/teacher",
            "sevennet-mf-0/pbe-teacher",
            "sevennet-mf-0/r2scan-teacher",
            "sevennet-omat/teacher",
            "sevennet-mf-ompa/mpa-teacher",
            "sevennet-mf-ompa/omat24-teacher",
            "sevennet-omni/mpa-teacher",
            "sevennet-omni/matpes-r2scan-teacher",
            "sevennet-omni/omol25-low-teacher",
            "sevennet-omni-i8/mpa-teacher",
            "sevennet-omni-i8/matpes-r2scan-teacher",
            "sevennet-omni-i8/omol25-low-teacher",
            "sevennet-omni-i12/mpa-teacher",
            "sevennet-omni-i12/matpes-r2scan-teacher",
            "sevennet-omni-i12/omol25-low-teacher",
        ),
        locked=True,
        own_files=True,
    ),
    Family(
        key="stillinger-weber",
        module="zoo.teachers.stillinger_weber",
        imports=(),
        install="",
        names=("stillinger-weber/teacher", "stillinger-weber/direct-teacher"),
    ),
    Family(
        key="xtb",
        module="zoo.teachers.xtb",
        imports=("tblite", "threadpoolctl"),
        install="tblite threadpoolctl",
        names=("gfn2-xtb/teacher",),
        locked=True,
    ),
    Family(
        key="mace",
        module="zoo.teachers.mace",
        imports=("mace",),
        install="mace-torch",
        names=(
            "mace-off23-small/teacher",
            "mace-off23-medium/teacher",
            "mace-off23-large/teacher",
            "mace-off24-medium/teacher",
            "mace-mp-0-small/teacher",
            "mace-mp-0-medium/teacher",
            "mace-mp-0-large/teacher",
            "mace-mp-0b-small/teacher",
            "mace-mp-0b-medium/teacher",
            "mace-mp-0b2-small/teacher",
            "mace-mp-0b2-medium/teacher",
            "mace-mp-0b2-large/teacher",
            "mace-mp-0b3-medium/teacher",
            "mace-mpa-0-medium/teacher",
            "mace-omat-0-small/teacher",
            "mace-omat-0-medium/teacher",
            "mace-matpes-pbe-0/teacher",
            "mace-matpes-r2scan-0/teacher",
            "mace-mh-1/omat-pbe-teacher",
            "mace-mh-1/matpes-r2scan-teacher",
            "mace-mh-1/omol-teacher",
        ),
        locked=True,
        own_files=True,
    ),
    Family(
        key="fairchem",
        module="zoo.teachers.fairchem",
        imports=("fairchem.core.units.mlip_unit", "torchtnt"),  # version 1 has neither
        install="fairchem-core",
        names=(
            "uma-s-1p2p1/omol-teacher",
            "uma-s-1p2p1/omat-teacher",
            "uma-s-1p1/omol-teacher",
            "uma-s-1p1/omat-teacher",
            "uma-m-1p1/omol-teacher",
            "uma-m-1p1/omat-teacher",
            "esen-sm-conserving-all-omol/teacher",
            "esen-sm-direct-all-omol/teacher",
            "esen-md-direct-all-omol/teacher",
        ),
        locked=True,
        own_files=True,
    ),
    Family(
        key="orb",
        module="zoo.teachers.orb",
        imports=("orb_models",),
        install="orb-models",
        names=(
            "orb-v3-conservative-20-omat/teacher",
            "orb-v3-conservative-inf-omat/teacher",
            "orb-v3-conservative-20-mpa/teacher",
            "orb-v3-conservative-inf-mpa/teacher",
            "orb-v3-conservative-omol/teacher",
            "orb-v3-direct-20-omat/teacher",
            "orb-v3-direct-inf-omat/teacher",
            "orb-v3-direct-20-mpa/teacher",
            "orb-v3-direct-inf-mpa/teacher",
            "orb-v3-direct-omol/teacher",
        ),
        locked=True,
    ),
    Family(
        key="aimnet2",
        module="zoo.teachers.aimnet2",
        imports=("aimnet",),
        install="aimnet",
        names=(
            "aimnet2/teacher",
            "aimnet2-b973c/teacher",
            "aimnet2-2025/teacher",
            "aimnet2-nse/teacher",
            "aimnet2-pd/teacher",
            "aimnet2-rxn/teacher",
        ),
        locked=True,
        own_files=True,
    ),
    Family(
        key="jmp",
        module="zoo.teachers.jmp",
        imports=(),
        install="",
        names=("jmp-l/teacher", "jmp-s/teacher", "jmp-l/md22-teacher", "jmp-s/md22-teacher"),
        converted=True,
    ),
)
FAMILIES: dict[str, Family] = {family.key: family for family in _ALL}
FINE_TUNED = ("jmp-l/md22-teacher", "jmp-s/md22-teacher")  # nobody has published them: made here, or converted

_BY_NAME = {name: family for family in _ALL for name in family.names}


def family_of(name: str) -> Family | None:
    """The family that serves a teacher of the table; None for other names, teachers of one's own among them."""
    return _BY_NAME.get(name)


def table_names() -> tuple[str, ...]:
    """All teachers of the table."""
    return tuple(_BY_NAME)
