"""Which engines take a structure that another one refused: known without a request, and looked up only then."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import covalent_radii

from zoo.artifact import Domain
from zoo.errors import StructureError, ZooError
from zoo.guard import stated_electrons
from zoo.hub.catalogue import entries
from zoo.hub.folder import FolderHub
from zoo.locate import open_hub
from zoo.naming import default_namespace
from zoo.neighbors import build_graph

_MOST = 2  # names that a message has room for
_BONDED = 0.7  # of the sum of two covalent radii: atoms nearer than this are a mistake, which no teacher mends


@dataclass(frozen=True)
class Covering:
    """The engines of the catalogue, and those of a hub that is a folder, or that were fetched before.

    What is on disk is read once, when it is first asked for.
    """

    hub: str | Path | None = None  # as in ``zoo.load``
    namespace: str | None = None

    def __call__(self, atoms: Atoms) -> list[str]:
        """At most two names: first students whose stated domain holds ``atoms``, then teachers of such structures.

        A student that nobody has released or made here is not named, for what it would take is not known.
        """
        students = [name for name, domain in self._domains.items() if _holds(domain, atoms)]
        return [*students, *_teachers_of(atoms)][:_MOST]

    @cached_property
    def _domains(self) -> dict[str, Domain]:
        """Of the released students whose cards are at hand, by name."""
        found: dict[str, Domain] = {}
        with suppress(ZooError, OSError):  # a message must not fail for want of them
            target = open_hub(self.hub)
            shelf = target if isinstance(target, FolderHub) else target.cache
            for listed in shelf.engines(default_namespace(self.namespace)):
                block = listed.card.zoo if listed.card and listed.tag else None
                if block is not None and block.name == listed.name:
                    found[listed.name] = block.domain
        return found


def covering(atoms: Atoms, hub: str | Path | None = None, *, namespace: str | None = None) -> list[str]:
    """At most two engines that take ``atoms``, of the catalogue and of what is on disk; see ``Covering``."""
    return Covering(hub, namespace)(atoms)


def _holds(domain: Domain, atoms: Atoms) -> bool:
    """Whether atoms are within all limits of a domain."""
    known = set(atoms.get_chemical_symbols()) <= set(domain.elements)
    if not known or tuple(map(bool, atoms.pbc)) != domain.pbc or stated_electrons(atoms, domain.charge):
        return False
    if domain.volume_per_atom_A3 is not None and all(domain.pbc):
        low, high = domain.volume_per_atom_A3
        if not low <= atoms.get_volume() / len(atoms) <= high:
            return False
    return not _has_nearer(atoms, np.full(len(atoms), domain.min_distance_A / 2))


def _teachers_of(atoms: Atoms) -> Iterator[str]:
    """Those of the catalogue that can be had and know such structures, which are neutral to all of them."""
    if stated_electrons(atoms, 0) or _has_nearer(atoms, _BONDED * covalent_radii[atoms.numbers]):
        return
    symbols = set(atoms.get_chemical_symbols())
    for entry in entries().values():
        kind = entry.status == "package" and entry.periodic == any(atoms.pbc)
        if kind and symbols <= set(entry.elements):
            yield entry.name


def _has_nearer(atoms: Atoms, radii: np.ndarray) -> bool:
    """Whether two atoms are nearer to each other than the sum of their radii (atoms,) Å."""
    widest = float(2 * radii.max())
    if widest == 0:
        return False
    try:
        graph = build_graph(atoms, widest)
    except StructureError:  # two on one spot
        return True
    lengths = graph.edge_vectors().norm(dim=1).numpy()  # (edges,) Å
    return bool((lengths < radii[graph.centers.numpy()] + radii[graph.neighbors.numpy()]).any())
