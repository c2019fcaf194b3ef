"""MPtrj as one JSON file of 12 GB: ``{mp_id: {frame_id: {structure, energies, force, stress, …}}}``."""

from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any

import numpy as np

from zoo.data.frame import Frame
from zoo.data.readers.archives import BROKEN, Stream, streams
from zoo.data.readers.base import (
    REPAIR,
    Origin,
    atomic_number,
    bare_atoms,
    broken,
    numeric,
    whole_number,
)
from zoo.data.readers.json_stream import records
from zoo.data.readers.materials_project import of_frame_id, with_gaps
from zoo.errors import IntegrityError, LabelError
from zoo.units import EV_A3_PER_KBAR


def read_mptrj_json(origin: Origin) -> Generator[Frame]:
    """The frames of MPtrj; those of one material are in memory at a time.

    The energy is ``corrected_total_energy``, with the Materials Project's corrections of PBE and PBE+U: models of
    MPtrj learn it, and Amin et al. compare with it. The stress of the file is VASP's, in kBar, of the sign that is
    opposite to ASE's. A task is one trajectory. The band gap is that of the material, as ``with_gaps`` finds it.
    """
    with closing(streams(origin, (".json",))) as opened:
        for stream in opened:
            yield from with_gaps(_frames(stream))


def _frames(stream: Stream) -> Iterator[Frame]:
    counts: dict[str, int] = {}
    for material, name, record in _records(stream):
        index = counts.get(material, 0)
        counts = {material: index + 1}
        place = f"frame {name} of {stream.label}"
        with broken(place, "a frame of MPtrj", KeyError, TypeError, ValueError, IndexError, AttributeError):
            frame = _frame(place, material, name, index, record)
        yield frame


def _records(stream: Stream) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Material, name and record of each frame, as they are parsed."""
    found = records(stream.bytes)
    place = stream.label
    while True:
        with broken(place, "the JSON of MPtrj", ValueError, RecursionError, *BROKEN):
            item = next(found, None)
        if item is None:
            return
        place = f"{stream.label}, after frame {item[1]},"
        yield item


def _frame(place: str, material: str, name: str, index: int, record: dict[str, Any]) -> Frame:
    if missing := [key for key in ("structure", "corrected_total_energy", "force", "stress") if key not in record]:
        raise IntegrityError(
            f"{place} has no {', '.join(missing)}, only {', '.join(sorted(record)[:12])}; {REPAIR}, or give its format"
        )
    trajectory, index = of_frame_id(material, name, index)
    numbers, positions, cell = _structure(place, record["structure"])
    stress = numeric(place, "stress", record["stress"], (3, 3), LabelError) * -EV_A3_PER_KBAR
    gap, charge = record.get("bandgap"), record["structure"].get("charge")
    return Frame(
        atoms=bare_atoms(
            place,
            numbers,
            positions,
            cell=cell,
            energy=_given(place, record, "corrected_total_energy"),
            forces=_given(place, record, "force"),
            stress=stress,
        ),
        place=place,
        material=material,
        trajectory=trajectory,
        index=index,
        charge=None if charge is None else whole_number(place, "charge", charge),
        band_gap=None if gap is None else float(numeric(place, "bandgap", gap, ())),
    )


def _given(place: str, record: dict[str, Any], key: str) -> Any:
    if record[key] is None:
        raise LabelError(f"{place} has null for its {key}; leave the frame out, or repair it")
    return record[key]


def _structure(place: str, structure: dict[str, Any]) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Atomic numbers, positions and lattice vectors (Å) of pymatgen's dictionary."""
    cell = numeric(place, "lattice", structure["lattice"]["matrix"], (3, 3))
    sites = structure["sites"]
    numbers = [_element(place, site["species"]) for site in sites]
    fractions = numeric(place, "fractional coordinates", [site["abc"] for site in sites], (len(sites), 3))
    return numbers, fractions @ cell, cell


def _element(place: str, species: list[dict[str, Any]]) -> int:
    """Raises IntegrityError for a site that several elements share."""
    if len(species) != 1 or species[0]["occu"] != 1:
        raise IntegrityError(f"{place} has a site that is not one whole atom; leave the frame out")
    return atomic_number(place, species[0]["element"])
