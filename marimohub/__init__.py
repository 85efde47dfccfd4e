"""MarimoHub: a multi-user hub for marimo notebooks."""

from marimohub._version import __version__

__all__ = ["__version__"]
