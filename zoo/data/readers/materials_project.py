"""MPtrj's names of frames - ``mp-1028232-0-3`` is ionic step 3 of calculation 0 of task mp-1028232 - and their gaps."""

import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from zoo.data.frame import Frame

_FRAME = re.compile(r"(?P<task>.+)-(?P<calculation>\d+)-(?P<step>\d+)")
_STEPS = 10_000  # more than a calculation has
_MOST_ATOMS = 1_000_000  # of all frames of a material, more than those of MPtrj have


def of_frame_id(material: str, frame_id: str, index: int) -> tuple[str, int]:
    """The trajectory of a frame and its place in it; one of another form is frame ``index`` of its material."""
    found = _FRAME.fullmatch(frame_id)
    if found is None:
        return material, index
    return in_trajectory(material, found["task"], int(found["calculation"]), int(found["step"]))


def in_trajectory(material: str, task: str, calculation: int, step: int) -> tuple[str, int]:
    """A task is one trajectory: each of its calculations goes on where the one before it ended."""
    return f"{material}/{task}", calculation * _STEPS + step


def with_gaps(frames: Iterable[Frame], most_atoms: int = _MOST_ATOMS) -> Generator[Frame]:
    """The frames, each with the band gap of its material, which few frames of MPtrj say themselves.

    It is that of the last frame that has one in the task that the material is called after; without one there, in the
    frame's own calculation; else in any. Frames that follow one another and are of one material are in memory at once.
    Where these have more than ``most_atoms`` atoms in all, each keeps what it says itself.
    """
    for _, of_one in groupby(frames, key=lambda frame: frame.material):
        yield from _of_one_material(of_one, most_atoms)


def _of_one_material(frames: Iterator[Frame], most_atoms: int) -> Generator[Frame]:
    held: list[Frame] = []
    atoms = 0
    for frame in frames:
        held.append(frame)
        atoms += len(frame.atoms)
        if frame.material is None or atoms > most_atoms:
            yield from held
            held.clear()
    if atoms > most_atoms:
        yield from held
    else:
        yield from _with_gap(held)


def _with_gap(frames: Sequence[Frame]) -> Sequence[Frame]:
    said = sorted((frame for frame in frames if frame.band_gap is not None), key=lambda frame: frame.index)
    if not said:
        return frames
    own_task = [frame for frame in said if frame.trajectory == f"{frame.material}/{frame.material}"]
    calculations = {_calculation(frame): frame for frame in said}
    sources = [own_task[-1] if own_task else calculations.get(_calculation(frame), said[-1]) for frame in frames]
    return [replace(frame, band_gap=source.band_gap) for frame, source in zip(frames, sources, strict=True)]


def _calculation(frame: Frame) -> tuple[str | None, int]:
    return frame.trajectory, frame.index // _STEPS
