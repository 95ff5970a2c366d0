"""The front door: what most programs need, and the rooms behind it (`bayesian_cnn.layers`, `.inference`, …).

A room is imported when a name of it is first used, so that the layers need torch alone. In a checkout the rooms are
top-level packages; an installed `bayesian_cnn` holds them (see setup.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inference import Classifier, Predictor, ensemble_predictive, export_network, posterior_predictive
    from layers import (
        BBBConv2d,
        BBBLinear,
        FlattenLayer,
        ModuleWrapper,
        deterministic_layers,
        kl_divergence,
        parameter_groups,
        sampling,
        to_bayesian,
        to_deterministic,
    )
    from models import load_network

__version__ = "0.2.0"

__all__ = [
    "BBBConv2d",
    "BBBLinear",
    "Classifier",
    "FlattenLayer",
    "ModuleWrapper",
    "Predictor",
    "__version__",
    "deterministic_layers",
    "ensemble_predictive",
    "export_network",
    "kl_divergence",
    "load_network",
    "parameter_groups",
    "posterior_predictive",
    "sampling",
    "to_bayesian",
    "to_deterministic",
]


def __getattr__(name: str) -> Any:
    """A name of a room, which is imported only now (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import layers

    if hasattr(layers, name):
        return getattr(layers, name)
    import inference
    import models

    return getattr(models if name == "load_network" else inference, name)


def __dir__() -> list[str]:
    return __all__
