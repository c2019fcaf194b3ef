"""GFN2-xTB through the package tblite: a quantum-mechanical teacher of molecules that runs in milliseconds.

Bannwarth, Ehlert and Grimme, J. Chem. Theory Comput. 15, 1652 (2019). Neutral molecules, with one unpaired electron
where their number is odd, at 300 K of electronic temperature, each from the same first guess, so that an answer
depends on the positions alone. tblite takes a crystal at one k-point alone, so that a supercell has another energy than
its cells have; crystals are refused.

Hessian products are central differences of the forces. Their relative root-mean-square error on a frame of rMD17's
ethanol, for a random ±1 probe, against a difference of four points::

    step/Å         1e-2    1e-3    5e-4    2e-4    1e-4    1e-5
    accuracy 1     9e-4    1.5e-5  1e-5    9e-6    9e-6    9e-6
    accuracy 0.01  9e-4    9e-6    2e-6    5e-7    2e-7    1.5e-7
    accuracy 1e-4  9e-4    9e-6    2e-6    4e-7    9e-8    2e-9

A tight accuracy, tblite's factor on the thresholds of self-consistency, costs a quarter more time than 0.01 and keeps
differences free of noise; at the step chosen the error is below 1e-6, even if forces were a hundred times noisier.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from ase import Atoms

from zoo.errors import DivergedError, DomainError, MissingPackageError
from zoo.potential import Traits
from zoo.teachers.base import Teacher
from zoo.teachers.differences import Answer, DifferencesPotential
from zoo.units import ANGSTROM_PER_BOHR, EV_PER_HARTREE

_METHOD = "GFN2-xTB"
_SETTINGS = {"accuracy": 1e-4, "max-iter": 500, "verbosity": 0}
_STEP = 2e-4  # Å
_ELEMENTS = tuple(range(1, 87))  # H to Rn
_FORCE = EV_PER_HARTREE / ANGSTROM_PER_BOHR  # hartree/bohr → eV/Å


class Molecules:
    """tblite's answers, in zoo's units."""

    def __init__(self, name: str) -> None:
        from tblite.interface import Calculator  # lazy: an optional package
        from threadpoolctl import ThreadpoolController  # lazy: it comes with the same extra

        self.name = name
        self._calculator = Calculator
        self._threads = ThreadpoolController()  # of the libraries that are loaded now, tblite's among them

    def __reduce__(self) -> tuple[type["Molecules"], tuple[str]]:
        """A copy finds the libraries of its own process."""
        return Molecules, (self.name,)

    def __call__(
        self, numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, more: Collection[str]
    ) -> Answer:
        """All at once, whatever is wanted.

        Raises DomainError for a crystal, DivergedError where the electrons find no self-consistent state.
        """
        if pbc.any():
            raise DomainError(
                f"{Atoms(numbers).symbols} is periodic, and {self.name} is for molecules; "
                "set atoms.pbc = False for a molecule in a box, or choose a teacher of crystals"
            )
        # one thread: several add up in any order, which changes last digits, and they wait more than they work
        with self._threads.limit(limits=1, user_api="openmp"):
            found = self._ask(numbers, positions)
        return Answer(
            energy=float(found.get("energy")) * EV_PER_HARTREE,
            forces=-found.get("gradient") * _FORCE,
            energies=found.get("energies") * EV_PER_HARTREE,
        )

    def _ask(self, numbers: np.ndarray, positions: np.ndarray) -> Any:
        try:
            calculator = self._calculator(_METHOD, numbers, positions / ANGSTROM_PER_BOHR)
            for key, value in _SETTINGS.items():
                calculator.set(key, value)
            return calculator.singlepoint()
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise DivergedError(
                f"{self.name} fails for {Atoms(numbers).symbols} ({reason}); "
                "leave the structure out, or start from one with less distorted bonds"
            ) from error


def names() -> tuple[str, ...]:
    """The teacher of this file."""
    return ("gfn2-xtb/teacher",)


def traits(name: str) -> Traits:
    """What it gives."""
    return Traits(stress=False, open_shells=True)


def weights(name: str) -> None:
    """No file: its parameters are compiled into tblite."""


def load(name: str, dtype: torch.dtype, device: torch.device | str) -> Teacher:
    """The teacher ``gfn2-xtb/teacher``. Raises MissingPackageError."""
    try:
        ask, digest = Molecules(name), _digest()
    except ImportError as error:
        raise MissingPackageError(
            f"{name} needs the packages tblite and threadpoolctl ({error}); run: pip install tblite threadpoolctl"
        ) from error
    potential = DifferencesPotential(ask, _ELEMENTS, name=name, traits=traits(name), step=_STEP)
    return Teacher(
        name=name,
        potential=potential.to(device, dtype).eval(),
        weights_sha256=digest,
        package=f"tblite {importlib.metadata.version('tblite')}",
        level_of_theory="GFN2-xTB",
        licence_code="LGPL-3.0-or-later",
        licence_weights="LGPL-3.0-or-later",
        citation="C. Bannwarth, S. Ehlert, S. Grimme, J. Chem. Theory Comput. 15, 1652 (2019), "
        "doi:10.1021/acs.jctc.8b01176",
        batched=False,
    )


def calculator(name: str, dtype: torch.dtype) -> Any:
    """tblite's own calculator for ASE, which computes in float64 whatever ``dtype`` is, for comparisons."""
    from tblite.ase import TBLite  # lazy: an optional package

    settings = {"accuracy": _SETTINGS["accuracy"], "max_iterations": _SETTINGS["max-iter"]}
    return TBLite(method=_METHOD, verbosity=0, cache_api=False, **settings)


def _digest() -> str:
    """Of the parameters that tblite carries, and of what this file sets."""
    from tblite import library  # lazy: an optional package

    parameters, table = library.new_param(), library.new_table()
    library.export_gfn2_param(parameters)
    library.dump_param(parameters, table)
    numbers = {"parameters": library.table_to_dict(table), "settings": _SETTINGS, "step": _STEP}
    return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()
