"""Units: electronvolt, ångström, femtosecond, atomic mass unit. The only file that holds a conversion factor.

Values follow from the exact SI constants and, of CODATA 2018, the atomic mass unit, the hartree and the bohr.
"""

import math

_E = 1.602176634e-19  # C
_H = 6.62607015e-34  # J s
_K = 1.380649e-23  # J/K
_C = 299792458.0  # m/s
_AMU = 1.66053906660e-27  # kg
_N = 6.02214076e23  # 1/mol
_CAL = 4.184  # J, thermochemical

MEV_PER_EV = 1000.0
GPA_PER_EV_A3 = _E * 1e30 / 1e9  # eV/Å³ → GPa
EV_PER_KELVIN = _K / _E  # k_B in eV/K
THZ_PER_ROOT = math.sqrt(_E * 1e20 / _AMU) / (2 * math.pi) / 1e12  # sqrt(eV/(Å² amu)) → THz, not angular
EV_PER_THZ = _H * 1e12 / _E  # h·ν
WAVENUMBER_PER_THZ = 1e12 / (_C * 100)  # THz → cm⁻¹
EV_PER_HARTREE = 27.211386245988
ANGSTROM_PER_BOHR = 0.529177210903
ANGSTROM_PER_NM = 10.0
EV_PER_KCAL_MOL = 1000 * _CAL / _N / _E
EV_PER_KJ_MOL = 1000 / _N / _E
EV_A3_PER_KBAR = 0.1 / GPA_PER_EV_A3  # VASP's unit of stress
ASE_TIME_PER_FS = 1e-15 / math.sqrt(_AMU * 1e-20 / _E)  # fs → Å·sqrt(amu/eV), ASE's unit of time
