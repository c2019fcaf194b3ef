"""Which terms may follow which: a student's licence is never weaker than that of its teacher's weights."""

from zoo.errors import LicenceError

# The licence of a teacher's weights, and those that its student may have. What is not here is refused.
TERMS = {
    "CC0-1.0": ("CC0-1.0", "MIT", "Apache-2.0", "CC-BY-4.0", "CC-BY-NC-4.0"),
    "MIT": ("MIT", "Apache-2.0", "CC-BY-4.0", "CC-BY-NC-4.0"),
    "Apache-2.0": ("Apache-2.0",),
    "CC-BY-4.0": ("CC-BY-4.0", "CC-BY-NC-4.0"),
    "CC-BY-NC-4.0": ("CC-BY-NC-4.0",),
}
LICENCES = tuple(TERMS)  # SPDX


def check_terms(name: str, licence: str, teacher: str, teacher_licence: str) -> None:
    """Raises LicenceError where ``name`` may not have this licence, or where nobody knows."""
    allowed = TERMS.get(teacher_licence)
    if allowed is None:
        raise LicenceError(
            f"the weights of {teacher} are {teacher_licence}, whose terms zoo does not know; "
            f"it knows {', '.join(TERMS)}"
        )
    if licence not in allowed:
        raise LicenceError(
            f"{name} is {licence}, but the weights of its teacher are {teacher_licence}; "
            f"set the recipe's licence to {' or '.join(allowed)}"
        )
