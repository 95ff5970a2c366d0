"""The moments of Bayesian weights, which the rules of linear layers and convolutions look up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from layers import weight_posteriors
from moments.pair import MissingRuleError, Moments, Rule


@dataclass(frozen=True, eq=False)
class WeightMoments:
    """Of a Bayesian weight: σ², μ² + σ², and of a kernel both along its inputs' axis, for one operation instead of two.

    `directions` are those that all of its weights share (see `Posterior`), which σ² leaves out and μ² + σ² has.
    """

    variance: Tensor
    second: Tensor
    joint: Tensor
    directions: Tensor | None = None
    _pooled: dict[Any, Tensor] = field(default_factory=dict)

    def pooled(self, kernel: Tensor, operation: Callable[..., Tensor], size: Any, strides: Any) -> Tensor:
        """The kernel of the mean over windows of a convolution's outputs: the mean of its shifts by the strides.

        It has (k + s(p − 1))² elements where the outputs of a window take (kp)² products, with k the size of the
        kernel, s the stride and p the size of the window. Computed once.

        Args:
            kernel: `variance` or `joint`.
            operation: the convolution.
            size: of the windows, by axis.
            strides: of the convolution, by axis.
        """
        key = kernel is self.joint, size, strides, torch.is_grad_enabled()
        if key in self._pooled:
            return self._pooled[key]
        box = kernel.new_full((1, 1, *size), 1 / math.prod(size))
        padding = tuple(stride * (length - 1) for stride, length in zip(strides, size, strict=True))
        pooled = operation(kernel.flatten(0, 1)[:, None], box, None, 1, padding, strides)
        pooled = pooled.unflatten(0, kernel.shape[:2]).squeeze(2)
        if not torch.compiler.is_exporting():
            self._pooled[key] = pooled
        return pooled


@dataclass(frozen=True, eq=False)
class FactorMoments:
    """Of a known matrix times r sᵀ: mean and variance of r, one per output, and of s, one per input."""

    outputs: Moments
    inputs: Moments


def component_count(net: nn.Module) -> int:
    """Of how many equally likely components the posterior of a network is the mixture.

    Raises:
        MissingRuleError: its layers have different numbers, and so choose independently.
    """
    counts = {posterior.components for _, _, posterior in weight_posteriors(net)} - {1}
    if len(counts) > 1:
        numbers = " and ".join(map(str, sorted(counts)))
        raise MissingRuleError(f"moments cannot pass through layers of {numbers} components together: predict by draws")
    return max(counts, default=1)


def weight_moments(net: nn.Module, component: int = 0) -> dict[int, WeightMoments | FactorMoments]:
    """The moments of every Bayesian weight in a network, by the identity of the layer's parameter.

    Args:
        net: the network.
        component: of a mixture, which component.
    """
    weights: dict[int, WeightMoments | FactorMoments] = {}
    for name, mean, posterior in weight_posteriors(net):
        if not posterior.goes_through_moments:
            raise MissingRuleError(
                f"moments cannot pass through the {posterior.family} posterior of {name}: predict by draws"
            )
        if (factors := posterior.factor_moments(component)) is not None:
            weights[id(mean)] = FactorMoments(*(Moments(*factor) for factor in factors))
            continue
        variance = posterior.independent_variance(mean)
        second = mean.square() + posterior.variance(mean)
        joint = torch.cat([variance, second], 1) if mean.dim() > 2 else variance
        weights[id(mean)] = WeightMoments(variance, second, joint, posterior.directions())
    return weights


_WEIGHTS: ContextVar[Mapping[int, WeightMoments | FactorMoments] | None] = ContextVar("_WEIGHTS", default=None)


@contextmanager
def known_weights(weights: Mapping[int, WeightMoments | FactorMoments]) -> Iterator[None]:
    """Within it, the rules know these moments of weights."""
    token = _WEIGHTS.set(weights)
    try:
        yield
    finally:
        _WEIGHTS.reset(token)


class WatchedWeights(TorchFunctionMode):
    """Within it, no operation takes a known weight for a point because it has no rule for one.

    Args:
        affine: the operations whose rules look weights up, by name, with their rules.
    """

    def __init__(self, affine: Mapping[Any, Rule]) -> None:
        super().__init__()
        self.affine = affine

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        values, weights = (*args, *(kwargs or {}).values()), _WEIGHTS.get() or {}
        random = any(isinstance(value, Tensor) and id(value) in weights for value in values)
        if random and function in self.affine and not any(isinstance(value, Moments) for value in values):
            return self.affine[function](*args, **(kwargs or {}))
        result = function(*args, **(kwargs or {}))
        if random and function not in self.affine and isinstance(result, Tensor):
            name = getattr(function, "__name__", repr(function))
            raise MissingRuleError(f"moments cannot pass through {name} of a random weight: predict by draws")
        return result


def known(weight: Tensor | None) -> WeightMoments | None:
    """The moments of a weight; None if it is a point, or a known matrix with random factors."""
    moments = (_WEIGHTS.get() or {}).get(id(weight))
    return moments if isinstance(moments, WeightMoments) else None


def known_factors(weight: Tensor | None) -> FactorMoments | None:
    """The moments of the factors of a matrix; None if it has none."""
    moments = (_WEIGHTS.get() or {}).get(id(weight))
    return moments if isinstance(moments, FactorMoments) else None


def bias_variance(bias: Tensor | None) -> Tensor | None:
    """The variance of a bias; None if it is a point."""
    of_bias = known(bias)
    return None if of_bias is None else of_bias.variance
