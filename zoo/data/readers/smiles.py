"""What readers must know of SMILES: formal charges, and the elements of a mapped one."""

import re

from zoo.data.readers.base import REPAIR, atomic_number
from zoo.errors import IntegrityError

_ATOM = re.compile(r"\[([^\[\]]*)\]")
_PARTS = re.compile(
    r"\d*(?P<symbol>[A-Z][a-z]?|[a-z][a-z]?)(?:@{1,2}(?:(?:TH|AL|SP|TB|OH)\d+)?)?(?P<hydrogens>H\d*)?"
    r"(?P<charge>\++\d*|-+\d*)?(?::(?P<number>\d+))?"
)


def formal_charge(smiles: str) -> int | None:
    """The sum of the charges in brackets, in e: ``[N+:9]``, ``[Fe+3]``, ``[O-]``, ``[Ca++]``.

    None where a bracket is not closed or holds what is no atom, as ``[*+:1]`` and ``[#6+]``: nobody knows its charge.
    """
    atoms = [_PARTS.fullmatch(text) for text in _ATOM.findall(smiles)]
    if None in atoms or re.search(r"[\[\]]", _ATOM.sub("", smiles)):
        return None
    return sum(_charge(found) for found in atoms if found is not None)


def mapped_elements(place: str, smiles: str) -> list[int]:
    """Atomic numbers in the order of the map: all atoms of such a SMILES are in brackets, numbered from 1.

    Raises IntegrityError where they are not.
    """
    numbered: dict[int, int] = {}
    texts = _ATOM.findall(smiles)
    for text in texts:
        found = _PARTS.fullmatch(text)
        if found is None or found["number"] is None or found["hydrogens"]:
            raise IntegrityError(f"{place}: {text[:40]!r} of its SMILES is not one numbered atom; {REPAIR}")
        numbered[int(found["number"])] = atomic_number(place, found["symbol"].capitalize())
    outside = re.search(r"[A-Za-z]", _ATOM.sub("", smiles))
    if not texts or outside or sorted(numbered) != list(range(1, len(texts) + 1)):
        raise IntegrityError(f"{place}: not all atoms of its SMILES are numbered, from 1 on; {REPAIR}")
    return [numbered[number] for number in range(1, len(texts) + 1)]


def _charge(found: re.Match[str]) -> int:
    text = found["charge"]
    if not text:
        return 0
    digits = text.lstrip("+-")
    size = int(digits) if digits else len(text)
    return size if text[0] == "+" else -size
