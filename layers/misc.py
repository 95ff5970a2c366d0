"""What networks are assembled with: a wrapper that needs no `forward`, and a flatten that checks."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .base import kl_divergence, share_draws


class ModuleWrapper(nn.Module):
    """A network whose children run in the order of their assignment; calling it returns (output, kl).

    A subclass assigns its layers in `__init__` and writes no `forward`. Alternatively, the layers, or one whole
    network, are passed as arguments, as to `nn.Sequential`. A child may itself be a wrapper or an
    `nn.Sequential`; every layer's KL counts once, also that of a layer assigned twice. For
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
        share_draws(self)
        for index, layer in enumerate(layers):
            self.add_module(str(index), layer)

    def forward(self, input: Tensor) -> Any:
        """The network's output and its KL(q‖p) in nats, a scalar."""
        return self._run(input), self.kl()

    def _run(self, output: Tensor) -> Any:
        # Not self.children(), which skips the second assignment of a module that is used twice.
        for child in self._modules.values():
            output = _apply(child, output)
        return output

    def kl(self) -> Tensor:
        """KL(q‖p) in nats, summed over every Bayesian layer below, each counted once: a scalar."""
        return kl_divergence(self)

    def set_flag(self, name: str, value: object) -> None:
        """Set the attribute `name` to `value` in every module of the network that has it.

        `net.set_flag("sampling", False)` turns sampling off, `net.set_flag("layer_type", "bbb")` changes
        the estimator.

        Raises:
            ValueError: no module has that attribute, or a layer refuses the value; no module has changed then.
        """
        modules = [module for module in self.modules() if hasattr(module, name)]
        if not modules:
            raise ValueError(f"no module of the network has a flag {name!r}: expected 'sampling' or 'layer_type'")
        before = [(module, getattr(module, name)) for module in modules]
        try:
            for module in modules:
                setattr(module, name, value)
        except ValueError:
            for module, earlier in before:
                setattr(module, name, earlier)
            raise


def _apply(module: nn.Module | None, input: Tensor) -> Tensor:
    """The module's output alone, since the outermost wrapper counts every KL."""
    if module is None:
        return input
    if type(module) is nn.Sequential and any(isinstance(inner, ModuleWrapper) for inner in module.modules()):
        for child in module._modules.values():
            input = _apply(child, input)
        return input
    output = module(input)
    return output[0] if isinstance(module, ModuleWrapper) else output


class FlattenLayer(nn.Module):
    """Flattens [n, ...] to [n, num_features].

    Args:
        num_features: features per example. Other numbers are refused, so that the batch size never changes.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, input: Tensor) -> Tensor:
        """The input as [n, num_features].

        Raises:
            ValueError: an example has another number of features.
        """
        flat = input.flatten(1)
        if flat.shape[1] != self.num_features:
            raise ValueError(
                f"FlattenLayer({self.num_features}) got {flat.shape[1]} features per example "
                f"(input of shape {tuple(input.shape)}): set num_features to {flat.shape[1]}"
            )
        return flat

    def extra_repr(self) -> str:
        """The number of features, as `print` shows it."""
        return str(self.num_features)
