"""From structures and a teacher to a student: labels, loss, training.

Called, the package carries out a whole recipe: ``zoo.distill(recipe)`` is ``zoo.chain.distill(recipe)``, whichever of
its modules were imported before.
"""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any


class _Distill(ModuleType):
    """A package that is a function too."""

    def __call__(self, *arguments: Any, **options: Any) -> Path:
        from zoo.chain import distill  # lazy: it is made of what is in here

        return distill(*arguments, **options)


sys.modules[__name__].__class__ = _Distill
