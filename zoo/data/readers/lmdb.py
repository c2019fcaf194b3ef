"""ASE's databases in LMDB, as fairchem has its data sets: JSON, compressed; no pickles."""

import json
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms

from zoo.data.frame import Frame
from zoo.data.readers.base import REPAIR, Origin, bare_atoms, broken, missing_package, problem, whole_number
from zoo.errors import IntegrityError

if TYPE_CHECKING:
    from lmdb import Environment, Transaction

_MOST_BYTES = 1 << 30  # of one row, decompressed
_PICKLE = b"\x80"


def read_lmdb(origin: Origin) -> Generator[Frame]:
    """The rows of an LMDB file, or of the ``*.aselmdb`` and ``*.lmdb`` files of a folder, in the order of their ids.

    Raises IntegrityError for the pickled graphs of older data sets, which are not opened: opening a pickle runs code.
    """
    if not origin.path.is_dir():
        yield from _file(origin.path, origin.label)
        return
    files = sorted(path for ending in ("aselmdb", "lmdb") for path in origin.path.glob(f"*.{ending}"))
    if not files:
        raise IntegrityError(f"{origin.label} has no file *.aselmdb or *.lmdb; give the file, or the folder of such")
    for path in files:
        yield from _file(path, f"{path.name} of {origin.label}")


def _file(path: Path, label: str) -> Iterator[Frame]:
    try:
        import lmdb
    except ImportError as error:
        raise missing_package("lmdb", "LMDB files") from error
    with broken(label, "LMDB", lmdb.Error, OSError):
        try:
            environment = lmdb.open(str(path), subdir=False, readonly=True, lock=False, max_spare_txns=1)
        except lmdb.Error as error:
            if "already open" in str(error):  # LMDB maps a file once in a process
                raise IntegrityError(f"{label} is being read already; finish that, or close it, first") from error
            raise
    with environment:
        _check_length(environment, path, label)
        with broken(label, "LMDB", lmdb.Error), environment.begin() as transaction:
            for index, row in enumerate(_ids(transaction, label)):
                place = f"frame {index} of {label}"
                value = transaction.get(str(row).encode())
                if value is None:
                    raise IntegrityError(f"{place}: there is no row {row}, which the file counts; {REPAIR}")
                yield Frame(atoms=_atoms(place, _decoded(place, bytes(value))), place=place, index=index)


def _check_length(environment: "Environment", path: Path, label: str) -> None:
    """A page beyond the end of the file would end the process, so a file that is cut short is not read."""
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    there = path.stat().st_size
    if there < needed:
        raise IntegrityError(
            f"{label} is cut short: it has {there} of {needed} bytes; fetch it again, or copy the whole by mdb_copy -c"
        )


def _ids(transaction: "Transaction", label: str) -> Iterator[int]:
    """The ids of the rows, ascending, without those that were deleted."""
    value = transaction.get(b"nextid")
    if value is None:
        first = next(iter(transaction.cursor()), (b"", b""))
        if bytes(first[1])[:1] == _PICKLE:
            raise _pickled(label)
        raise IntegrityError(f"{label} has no nextid, which ASE's databases have; {REPAIR}, or give its format")
    gone_value = transaction.get(b"deleted_ids")
    gone = _decoded(label, bytes(gone_value)) if gone_value is not None else []
    if not isinstance(gone, list):
        raise IntegrityError(f"{label}: its deleted_ids are no list; {REPAIR}")
    deleted = {whole_number(label, "deleted id", row) for row in gone}
    last = whole_number(label, "nextid", _decoded(label, bytes(value)))
    return (row for row in range(1, last) if row not in deleted)


def _pickled(place: str) -> IntegrityError:
    return IntegrityError(
        f"{place} holds a pickle, which would run code when it is opened; convert it to extended XYZ, or to ASE's LMDB "
        "(*.aselmdb, by the package ase-db-backends), where you trust it"
    )


def _decoded(place: str, value: bytes) -> Any:
    """What a compressed JSON text says. Raises IntegrityError for a pickle, and for what is neither."""
    if value[:1] == _PICKLE:
        raise _pickled(place)
    try:
        reader = zlib.decompressobj()
        text = reader.decompress(value, _MOST_BYTES)
        if not reader.eof:
            raise IntegrityError(f"{place} is cut short, or over {_MOST_BYTES >> 30} GiB; {REPAIR}")
        return json.loads(text)
    except (zlib.error, ValueError, RecursionError) as error:
        raise IntegrityError(
            f"{place} is no compressed JSON ({problem(error)}); {REPAIR}, or give its format"
        ) from error


def _atoms(place: str, row: Any) -> Atoms:
    if not isinstance(row, dict) or not {"numbers", "positions"} <= row.keys():
        held = ", ".join(sorted(row)[:12]) if isinstance(row, dict) else type(row).__name__
        raise IntegrityError(f"{place} has no numbers and positions, only {held}; {REPAIR}, or give its format")
    with broken(place, "a row of ASE's database", KeyError, TypeError, ValueError, IndexError):
        values = {key: _array(row.get(key)) for key in ("numbers", "positions", "energy", "forces", "stress", "cell")}
        pbc = _array(row.get("pbc", [False] * 3)).astype(bool)
    numbers, positions = values.pop("numbers"), values.pop("positions")
    return bare_atoms(place, numbers, positions, pbc=pbc, **values)


def _array(value: Any) -> Any:
    """An array as ASE writes it, ``{"__ndarray__": [shape, type, numbers]}``, or as lists; None stays None."""
    if isinstance(value, dict) and "__ndarray__" in value:
        shape, _, numbers = value["__ndarray__"]
        return np.asarray(numbers).reshape(shape)
    if isinstance(value, dict) and value.get("__ase_objtype__") == "cell":
        return _array(value["array"])
    return None if value is None else np.asarray(value)
