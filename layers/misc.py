"""What networks are put together with: a wrapper that needs no `forward`, and a flatten that checks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from layers.base import cached_stds, kl_divergence


class ModuleWrapper(nn.Module):
    """A network whose children run in the order of their assignment; calling it returns (output, kl).

    A subclass assigns its layers in `__init__` and writes no `forward`; or the layers, or one whole network, are
    given as arguments, as to `nn.Sequential`. Wrappers nest, and a wrapper or
    an `nn.Sequential` may be a child: its KL counts once, as does that of a layer assigned twice. For
    another topology (skip connections, branches) write `forward` and return `output, self.kl()`.

    Example:
        >>> class Net(ModuleWrapper):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.fc1 = BBBLinear(64, 32)
        ...         self.relu = nn.ReLU()
        ...         self.fc2 = BBBLinear(32, 10)
        >>> logits, kl = Net()(torch.randn(8, 64))
    """

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        for index, layer in enumerate(layers):
            self.add_module(str(index), layer)

    def forward(self, input: Tensor) -> Any:
        if torch.compiler.is_compiling():  # the compiler finds by itself what can be shared
            return self._run(input), self.kl()
        with cached_stds(self):
            return self._run(input), self.kl()

    def _run(self, output: Tensor) -> Any:
        # Not self.children(): that leaves out the second assignment of a module used twice.
        for child in self._modules.values():
            output = _apply(child, output)
        return output

    def kl(self) -> Tensor:
        """KL(q‖p) in nats over every Bayesian layer below, each counted once: a scalar."""
        return kl_divergence(self)

    def set_flag(self, name: str, value: object) -> None:
        """Set the attribute `name` of this module and of every one below it to `value`.

        `net.set_flag("sampling", False)` turns sampling off, `net.set_flag("layer_type", "bbb")` changes
        the estimator.
        """
        for module in self.modules():
            setattr(module, name, value)


def _apply(module: nn.Module | None, input: Tensor) -> Tensor:
    """The module's output alone: a wrapper within a wrapper leaves its KL to the outermost."""
    if module is None:
        return input
    if type(module) is nn.Sequential and any(isinstance(below, ModuleWrapper) for below in module.modules()):
        for child in module._modules.values():
            input = _apply(child, input)
        return input
    output = module(input)
    return output[0] if isinstance(module, ModuleWrapper) else output


class FlattenLayer(nn.Module):
    """[n, ...] to [n, num_features].

    Raises:
        ValueError: an example has another number of features; the batch size never changes.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, input: Tensor) -> Tensor:
        flat = input.flatten(1)
        if flat.shape[1] != self.num_features:
            raise ValueError(
                f"FlattenLayer({self.num_features}) got {flat.shape[1]} features an example "
                f"(input of shape {tuple(input.shape)}): set num_features to {flat.shape[1]}"
            )
        return flat

    def extra_repr(self) -> str:
        return str(self.num_features)
