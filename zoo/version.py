"""The version of zoo, said once."""

__version__ = "0.1.0"
