"""``python -m zoo``: the command ``zoo``, for launchers that start a module."""

from zoo.cli import main

if __name__ == "__main__":
    main(prog_name="zoo")
