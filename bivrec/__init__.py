"""Transferable multimodal sequential recommendation (BiVRec, arXiv 2402.17334)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bivrec.version import __version__

if TYPE_CHECKING:
    from bivrec.artefact import BiVRec, Tower
    from bivrec.data.domain import Domain
    from bivrec.errors import BivrecError
    from bivrec.recommender import Recommender

__all__ = ["BiVRec", "BivrecError", "Domain", "Recommender", "Tower", "__version__"]

_HOMES = {
    "BiVRec": "bivrec.artefact",
    "BivrecError": "bivrec.errors",
    "Domain": "bivrec.data.domain",
    "Recommender": "bivrec.recommender",
    "Tower": "bivrec.artefact",
}


def __getattr__(name: str) -> Any:
    # Not imported before they are asked for: the command line needs none of what they import to print its help.
    if name not in _HOMES:
        raise AttributeError(f"module 'bivrec' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
