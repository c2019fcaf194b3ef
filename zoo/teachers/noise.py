"""How noisy forces are, and how far atoms are best displaced for differences of them.

Forces of a program are a smooth function and noise: of a self-consistency that ends early, of a grid, of numbers
rounded. Hamming's difference tables tell the two apart (Moré and Wild, SIAM J. Sci. Comput. 33, 1292 (2011)): of
values at equal spacings δ, the k-th differences of what is smooth fall as δᵏ, and those of noise with the standard
deviation σ have the mean square ``σ² (2k)!/(k!)²``. The central difference ``(F(+h) − F(−h)) / 2h`` then has the mean
square error ``σ²/2h² + (h² F‴/6)²``, which is least at ``h = (3 σ/F‴)^(1/3)`` (Moré and Wild, ACM Trans. Math. Softw.
38, 19 (2012), with the mean square in the place of a bound).
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import numpy as np
from pydantic import Field

from zoo.config import Config

SMALLEST, LARGEST = 1e-4, 5e-2  # Å, of a step
SPACINGS = (1e-2, 1e-3, 1e-4)  # Å, of the points of a table, the next where the last shows no noise
POINTS = 9  # of a table, the undisplaced structure in the middle
_AGREE = 2.0  # three levels in a row that differ by no more are those of noise, being means over many components
_ORDERS = 6  # of differences that are looked at; of higher ones there are too few
_LEAST = 1e-300


class Differences(Config):
    """How Hessian products were taken as differences of forces, and what was measured to choose that."""

    step_A: float = Field(gt=0)  # of the atom that moves most
    noise_eV_A: float = Field(ge=0)  # standard deviation of a component of a force
    third_eV_A4: float = Field(ge=0)  # third derivative of the forces along a probe, root mean square

    @property
    def noise_part(self) -> float:
        """That of noise alone, eV/Å² for a probe whose longest atom has the length 1."""
        return self.noise_eV_A / (sqrt(2) * self.step_A)


@dataclass(frozen=True)
class Table:
    """Forces at equal distances along a line through a structure."""

    spacing: float  # Å
    forces: np.ndarray  # (points, components) eV/Å, in order

    def levels(self) -> np.ndarray:
        """(orders,) eV/Å, what each order of differences, from the first on, says of the noise."""
        levels, differences, scale = [], self.forces, 1.0
        for order in range(1, len(self.forces)):
            differences = np.diff(differences, axis=0)  # (points - order, components)
            scale *= order / (2 * (2 * order - 1))  # (k!)²/(2k)!
            levels.append(sqrt(scale * np.mean(differences**2)))
        return np.array(levels)

    def noise(self) -> float | None:
        """Standard deviation of the noise of a component, eV/Å; None where what is smooth hides it."""
        levels = self.levels()
        for order in range(_ORDERS - 2):
            three = levels[order : order + 3]
            if three.max() <= _AGREE * three.min():
                return float(three[-1])  # in which least is left of what is smooth
        return None

    def bound(self) -> float:
        """What the noise does not exceed, eV/Å."""
        return float(self.levels().min())

    def third(self, noise: float) -> float:
        """Third derivative, eV/Å⁴, root mean square over components, by central differences over two and four points.

        Where noise hides it, the least that would be seen.
        """
        ends, middles = self.forces[-1] - self.forces[0], self.forces[-3] - self.forces[2]
        derivative = (ends - 2 * middles) / (16 * self.spacing**3)  # (components,)
        of_noise = 10 * (noise / (16 * self.spacing**3)) ** 2
        seen = float(np.mean(derivative**2)) - of_noise
        return sqrt(max(seen, of_noise * sqrt(2 / len(derivative))))


def measure(forces_at: Callable[[float], np.ndarray], middle: np.ndarray, step: float | None = None) -> Differences:
    """The step for differences along a line of forces (atoms, 3) eV/Å, where ``forces_at`` is told how far, in Å.

    ``middle`` are those of the undisplaced structure. 8 calls where the noise is large, else 16 or 24; with a ``step``
    only noise and error are measured.
    """
    noise, third = None, 0.0
    for spacing in SPACINGS:
        table = _table(forces_at, middle, spacing)
        noise = table.noise()
        level = table.bound() if noise is None else noise
        third = third or table.third(level)  # from the widest points, where noise matters least
        if noise is not None:
            break
    return Differences(
        step_A=best_step(level, third) if step is None else step,
        noise_eV_A=level,
        third_eV_A4=third,
    )


def best_step(noise: float, third: float) -> float:
    """Where the error is least, in Å, two digits of it, within ``SMALLEST`` and ``LARGEST``."""
    least = (3 * noise / max(third, _LEAST)) ** (1 / 3)
    return float(f"{min(max(least, SMALLEST), LARGEST):.2g}")


def _table(forces_at: Callable[[float], np.ndarray], middle: np.ndarray, spacing: float) -> Table:
    places = range(-(POINTS // 2), POINTS // 2 + 1)
    forces = [middle if place == 0 else forces_at(place * spacing) for place in places]
    return Table(spacing, np.stack([one.reshape(-1) for one in forces]))
