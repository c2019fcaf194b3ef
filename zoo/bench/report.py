"""What was measured: as a table for people, JSON for programs, and a figure."""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from zoo.bench.cases import Row
from zoo.bench.roofline import Limits, Roofline
from zoo.bench.runners import NEW_LIST, Absent, Way
from zoo.evaluate.figures import scaling
from zoo.files import atomic_write

TITLES: dict[Way, str] = {
    "ase": "Through ASE, atoms moving",
    "potential": "The potential alone, its neighbours found before",
    "batch": "Many structures in one call, neighbour lists included",
}
Line = dict[str, Any]  # a row as JSON has it

NEW_LIST_TOLD = (
    "Through ASE, zoo's calculators keep their neighbours while atoms move little, as in dynamics; new list: all are "
    "sought at each call, as by calculators without a skin."
)
_HEADS = ("ms", "quartiles", "times", "difference (meV/Å)")
_TIMES_NEW_LIST = "times (new list)"


@dataclass(frozen=True)
class Report:
    """Everything that one run of the bench found. Times are medians of energy and forces."""

    name: str
    potential: str  # what it is, in one line
    dtype: str
    device: str
    cutoff_A: float
    hardware: dict[str, Any]
    versions: dict[str, str]
    rows: tuple[Row, ...]
    absent: tuple[Absent, ...]
    limits: Limits
    rooflines: tuple[Roofline, ...]
    apart: tuple[str, ...] = ()  # what answers from a process of its own

    @property
    def timed(self) -> bool:
        """Whether the engine itself was timed at all."""
        return any(row.kind == "own" and row.timing is not None for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with units in the keys."""
        return {**asdict(self), "rows": as_lines(self.rows)}


def as_lines(rows: Sequence[Row]) -> list[Line]:
    """Rows as plain data, and in each how many times as long it takes as the engine's own first of its size.

    ``times_new_list`` is the same beside the engine that seeks all neighbours at each call.
    """
    lines = []
    for _, group in groupby(rows, key=lambda row: (row.way, row.structures, row.atoms)):
        many = list(group)
        own = {row.name: row.timing.median_ms for row in many if row.kind == "own" and row.timing is not None}
        new_list = own.pop(NEW_LIST, None)
        lines += [_line(row, next(iter(own.values()), None), new_list) for row in many]
    return lines


def write_json(report: Report, path: Path) -> None:
    """The file, whole or not at all."""
    atomic_write(path, json.dumps(report.as_dict(), indent=1, ensure_ascii=False) + "\n")


def write_figure(report: Report, path: Path) -> None:
    """Time an atom against atoms, through ASE, as a PNG. Raises MissingPackageError without matplotlib."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for row in report.rows:
        if row.way == "ase" and row.us_atom is not None:
            x, y = series.setdefault(row.name, ([], []))
            x.append(row.atoms)
            y.append(row.us_atom)
    title = f"{report.name}: energy and forces through ASE, {report.dtype}"
    scaling(path, title, series, x_label="atoms", y_label="time an atom (µs)")


def text(report: Report, width: int) -> str:
    """All of it for a terminal of ``width`` columns."""
    machine = report.hardware
    where = machine["gpu"] if report.device.startswith("cuda") else f"{machine['cpu']}, threads: {machine['threads']}"
    lines = as_lines(report.rows)
    head = [
        f"{report.name}: {report.potential}",
        f"Energy and forces in {report.dtype} on {where}; torch {report.versions['torch']}. Medians; times: as long as "
        "the first row of a size; difference: of forces, the largest, from the engine in float64 by PyTorch.",
        NEW_LIST_TOLD,
    ]
    console = Console(width=width, color_system=None, force_terminal=False, file=io.StringIO(), legacy_windows=False)
    with console.capture() as captured:
        for sentence in head:
            console.print(sentence, highlight=False, markup=False)
        for way, title in TITLES.items():
            chosen = [line for line in lines if line["way"] == way]
            if chosen:
                console.print(f"\n{title}", highlight=False)
                console.print(_table(way, chosen))
        absent = (f"{one.name} is not measured: {one.reason}" for one in report.absent)
        apart = (
            f"{name} answers from a process of its own, to which its times include the way" for name in report.apart
        )
        for sentence in (*notes(lines), *absent, *apart, *_roofline_lines(report)):
            console.print(sentence, highlight=False, markup=False)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def markdown(way: Way, lines: Sequence[Line]) -> list[str]:
    """The lines of the same table in Markdown."""
    heads = _heads(way, lines)
    cells = [row for group in _cells(way, lines) for row in group]
    return [
        f"| {' | '.join(heads)} |",
        f"|--:|--:|:--|{'--:|' * (len(heads) - 3)}",
        *(f"| {' | '.join(row)} |" for row in cells),
    ]


def notes(lines: Sequence[Line]) -> Iterator[str]:
    """What is not measured, and why."""
    for line in lines:
        if line["note"]:
            size = f"{line['structures']} x " if line["structures"] > 1 else ""
            place = f"{size}{line['atoms'] // line['structures']:,} atoms, {TITLES[line['way']].lower()}"
            yield f"{line['name']}, {place}: {line['note']}"


def _table(way: Way, lines: Sequence[Line]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
    for number, head in enumerate(_heads(way, lines)):
        table.add_column(head, justify="left" if number == 2 else "right", no_wrap=head in ("what", "quartiles"))
    for number, group in enumerate(_cells(way, lines)):
        if number:
            table.add_section()
        for cells in group:
            table.add_row(*cells)
    return table


def _heads(way: Way, lines: Sequence[Line]) -> tuple[str, ...]:
    size = ("structures", "atoms", "what", "structures/s") if way == "batch" else ("atoms", "edges", "what", "µs/atom")
    new_list = (_TIMES_NEW_LIST,) if _has_new_list(lines) else ()
    return (*size[:3], *_HEADS[:2], size[3], _HEADS[2], *new_list, _HEADS[3])


def _has_new_list(lines: Sequence[Line]) -> bool:
    return any(line["times_new_list"] is not None for line in lines)


def _cells(way: Way, lines: Sequence[Line]) -> Iterator[list[list[str]]]:
    """The text of the lines of each size; only its first says what the size is."""
    keys = ("structures", "atoms") if way == "batch" else ("atoms", "edges")
    new_list = _has_new_list(lines)
    for _, group in groupby(lines, key=lambda line: (line["structures"], line["atoms"])):
        yield [
            [*(f"{line[key]:,}" if number == 0 else "" for key in keys), line["name"], *_numbers(line, new_list)]
            for number, line in enumerate(group)
        ]


def _numbers(line: Line, new_list: bool) -> list[str]:
    times = [line["times"], line["times_new_list"]] if new_list else [line["times"]]
    if line["median_ms"] is None:
        return ["-", "", "", *("" for _ in times), ""]
    difference = line["force_difference_meV_A"]
    return [
        _short(line["median_ms"]),
        f"{_short(line['low_ms'])} to {_short(line['high_ms'])}",
        _short(1000 * line["structures"] / line["median_ms"] if line["way"] == "batch" else line["us_atom"]),
        *("-" if one is None else _short(one) for one in times),
        "-" if difference is None else f"{difference:.2g}",
    ]


def _short(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _roofline_lines(report: Report) -> Iterator[str]:
    limits = report.limits
    yield f"\nThis machine: matrix product {limits.product_GFLOP_s:.0f} GFLOP/s, copy {limits.copy_GB_s:.0f} GB/s"
    for one in report.rooflines:
        parts = [f"{one.GFLOP:.3g} GFLOP in {_short(one.ms)} ms, {one.share_of_product:.0%} of that product"]
        if one.share_of_these_products is not None:
            parts.append(f"{one.share_of_these_products:.0%} of the speed of its products by PyTorch")
        if one.share_of_copy is not None:
            parts.append(f"{one.share_of_copy:.0%} of the copy")
        yield f"{one.name}, {one.atoms:,} atoms: {', '.join(parts)}"


def _line(row: Row, own_ms: float | None, new_list_ms: float | None) -> Line:
    plain = {key: value for key, value in asdict(row).items() if key != "timing"}
    timing = dict.fromkeys(("median_ms", "low_ms", "high_ms", "repeats")) if row.timing is None else asdict(row.timing)
    times = {
        name: None if beside is None or row.timing is None else row.timing.median_ms / beside
        for name, beside in (("times", own_ms), ("times_new_list", new_list_ms))
    }
    return {**plain, **timing, "us_atom": row.us_atom, **times}
