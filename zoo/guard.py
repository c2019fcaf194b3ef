"""Whether a structure is one that an engine was made for: errors that name what is wrong, and an engine that helps.

An engine sees elements, positions, cell and periodicity. A total charge or a spin that is stated beside them changes
forces and would be passed over in silence; where an engine is for neutral structures, it is an error instead. Size is
not looked at: energies are sums over environments within a cutoff, so a larger structure is made of the same ones, and
how new these are is what ``zoo.novelty`` tells.
"""

from collections.abc import Callable

import numpy as np
from ase import Atoms

from zoo.artifact import Domain
from zoo.calculator import CHARGES, SPINS, elements_text
from zoo.errors import DomainError
from zoo.graph import Graph

Lookup = Callable[[Atoms], list[str]]  # names of engines that cover a structure
ANYWAY = "zoo.load(..., check_domain=False), or zoo md --no-check-domain, asks anyway"
_ROUNDING = 0.1  # e; partial charges add up to a whole number but for their rounding


def check_frame(domain: Domain, atoms: Atoms, title: str) -> None:
    """Elements, periodicity, charge and density. Raises DomainError; ``title`` is the engine's."""
    strange = sorted(set(atoms.get_chemical_symbols()) - set(domain.elements))
    if strange:
        known = elements_text(domain.elements)
        raise DomainError(f"{title} was made for {known}, not for {', '.join(strange)}; {ANYWAY}")
    periodic = tuple(bool(flag) for flag in atoms.pbc)
    if periodic != domain.pbc:
        made_for = f"{title} was made for pbc={domain.pbc}"
        raise DomainError(
            f"{atoms.symbols} has pbc={periodic}; {made_for}; surfaces and molecules are outside; {ANYWAY}"
        )
    check_charge(atoms, domain.charge, title)
    if domain.volume_per_atom_A3 is None or not all(periodic):
        return
    low, high = domain.volume_per_atom_A3
    volume = atoms.get_volume() / len(atoms)
    if not low <= volume <= high:
        made_for = f"{title} was made for {low:.2f} to {high:.2f} Å³"
        raise DomainError(f"{atoms.symbols} has {volume:.2f} Å³ per atom; {made_for}; {ANYWAY}")


def check_distances(domain: Domain, atoms: Atoms, graph: Graph, title: str) -> None:
    """Raises DomainError where two atoms are nearer than in a domain; ``graph`` has the edges of the same atoms."""
    if graph.num_edges == 0:
        return
    squares = graph.edge_vectors().square().sum(dim=-1)  # (edges,) Å²
    shortest = float(squares.min()) ** 0.5
    if shortest >= domain.min_distance_A:
        return
    edge = int(squares.argmin())
    pair = f"atoms {int(graph.centers[edge])} and {int(graph.neighbors[edge])} of {atoms.symbols}"
    made_for = f"{title} was made for {domain.min_distance_A:.3f} Å and more"
    raise DomainError(f"{pair} are {shortest:.3f} Å apart; {made_for}; {ANYWAY}")


def check_charge(atoms: Atoms, charge: int | None, title: str) -> None:
    """Raises DomainError for atoms that state another total charge (e) than that of an engine's domain, or a spin."""
    problem = stated_electrons(atoms, charge)
    if problem is not None:
        raise DomainError(f"{atoms.symbols} states {problem}, which {title} has no input for; {ANYWAY}")


def stated_electrons(atoms: Atoms, charge: int | None, *, multiplicity: int = 1) -> str | None:
    """What atoms state of their electrons that is not as in structures of that total charge (e); None where all is.

    Looked at are ``info["charge"]`` or ``info["total_charge"]``, else the sum of initial charges, and the multiplicity
    ``info["spin"]`` or ``info["multiplicity"]``, of which 0 says nothing and more than ``multiplicity`` is too much.
    Initial magnetic moments do not count: they are a first guess for other programs. Where ``charge`` is None,
    structures were of any charge, and nothing is looked at.
    """
    if charge is None:
        return None
    for key in (*CHARGES, *SPINS):
        if atoms.info.get(key) is not None and not np.isfinite(_number(atoms.info[key])):
            return f"{key}={atoms.info[key]!r}, which is no number"
    stated = _stated_charge(atoms)
    if abs(stated - charge) > _ROUNDING:
        return f"a charge of {stated:+g} e where {charge} e is expected"
    spin = max((_number(atoms.info[key]) for key in SPINS if atoms.info.get(key) is not None), default=0.0)
    return f"the spin multiplicity {spin:g}" if spin > multiplicity else None


def with_help(error: DomainError, atoms: Atoms, lookup: Lookup | None) -> DomainError:
    """The same error, ended by the names of engines that cover ``atoms``; as it is without a lookup."""
    if lookup is None:
        return error
    names = lookup(atoms)
    if not names:
        return DomainError(f"{error}; no engine that is known here covers it")
    return DomainError(f"{error}; {' and '.join(names)} {'covers' if len(names) == 1 else 'cover'} it")


def domain_text(domain: Domain | None) -> str | None:
    """In one line, for people."""
    if domain is None:
        return None
    axes = "".join(axis for axis, flag in zip("abc", domain.pbc, strict=True) if flag)
    limits = [domain.description, f"periodic along {axes}" if axes else "not periodic"]
    if domain.volume_per_atom_A3:
        limits.append("{:.1f} to {:.1f} Å³ per atom".format(*domain.volume_per_atom_A3))
    return ", ".join([*limits, f"atoms {domain.min_distance_A:.2f} Å apart or more"])


def _stated_charge(atoms: Atoms) -> float:
    """In e; 0 where nothing is stated."""
    for key in CHARGES:
        if atoms.info.get(key) is not None:
            return _number(atoms.info[key])
    partial = atoms.arrays.get("initial_charges")
    return 0.0 if partial is None else float(np.sum(partial))


def _number(value: object) -> float:
    """What somebody wrote as a number, a text or an array of one; NaN for anything else."""
    try:
        return np.nan if isinstance(value, bool) else float(np.asarray(value).reshape(()).item())
    except (TypeError, ValueError):
        return np.nan
