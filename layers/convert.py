"""From Bayesian layers back to plain `torch.nn` ones."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

from layers.base import BayesianLayer

Network = TypeVar("Network", bound=nn.Module)


def to_deterministic(module: Network) -> Network:
    """A copy of `module` in which every Bayesian layer is the `torch.nn` layer it extends, at its posterior means.

    Parameters keep their dotted names, and modules and tensors that were shared stay shared. The KL of
    the copy is 0.
    """
    twin = copy.deepcopy(module)
    plain = {layer: _plain(layer) for layer in twin.modules() if isinstance(layer, BayesianLayer)}
    for parent in list(twin.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, BayesianLayer):
                parent._modules[name] = plain[child]
    return plain.get(twin, twin)  # type: ignore[call-overload]


def _plain(layer: BayesianLayer) -> nn.Module:
    kind = next(base for base in type(layer).__mro__ if base.__module__.startswith("torch.nn.modules"))
    plain: nn.Module = object.__new__(kind)
    plain.__dict__.update(layer.__dict__)
    plain._modules = {name: child for name, child in layer._modules.items() if name != "posterior"}
    for name in ("sampling", "layer_type", "name"):
        del plain.__dict__[name]
    return plain
