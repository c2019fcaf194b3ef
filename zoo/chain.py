"""The whole chain from Python: a recipe, its teacher and a folder, to a model folder."""

import warnings
from pathlib import Path

from zoo.distill.workers import launched_workers
from zoo.errors import ZooWarning
from zoo.pipeline import distill
from zoo.recipe import Recipe, read_recipe
from zoo.run import Run
from zoo.teachers import Teacher


def run_recipe(
    recipe: str | Path | Recipe,
    *,
    teacher: Teacher | None = None,
    folder: str | Path | None = None,
    replace: bool = False,
) -> Path:
    """Carries out a recipe, from structures to a model folder, whose path it returns, as ``zoo distill`` does.

    ``recipe`` is a name, the path of a .yaml file, or what ``read_recipe`` gives. A recipe of a calculator names
    ``own/<engine>`` as its teacher, and is handed that as ``teacher`` (``zoo.teacher_from``), which is not changed.
    ``folder`` is that of the run, ``runs/<family>/<engine>`` by default. What is done already is reused, and what was
    interrupted goes on where it stopped; ``replace`` deletes what was made from other inputs. Raises the errors of all
    stages.
    """
    with launched_workers() as workers:
        if not workers.main:
            warnings.simplefilter("ignore", ZooWarning)
        read = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
        place = None if folder is None else Path(folder).expanduser()
        return distill(Run.of(read, place, replace=replace, workers=workers, teacher=teacher))
