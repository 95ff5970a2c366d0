"""Mean and variance of functions of normal variables, with the slope that ties the output to the input."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

TINY = 1e-30  # the least variance that is divided by
LARGEST = 13.0  # number of deviations from which on Φ is 0 or 1; the density of more would be slow, as a denormal
NODES, WEIGHTS = (  # of 5-point Gauss–Hermite quadrature of a standard normal
    (-2.8569700138728056, -1.355626179974266, 0.0, 1.355626179974266, 2.8569700138728056),
    (0.011257411327720691, 0.2220759220056126, 8 / 15, 0.2220759220056126, 0.011257411327720691),
)


def std_of(variance: Tensor) -> Tensor:
    """√v, whose gradient is 0 where v is."""
    return variance.clamp_min(TINY).sqrt()


def _normal_parts(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Φ(a), φ(a), and h(a) = a²ΦΦ̄ − aφ(Φ − Φ̄) − φ² with Φ̄ = 1 − Φ.

    The variances of a rectified normal, v(Φ + h), and of the maximum of two, v₁Φ + v₂Φ̄ + t²h, are those of the
    textbook without the difference of squares, which cancels at large |a|.
    """
    half = 0.5 * torch.erf(a / math.sqrt(2))  # Φ − ½, so that ΦΦ̄ = ¼ − half²
    square = a.square()
    density = torch.exp(-0.5 * square) / math.sqrt(2 * math.pi)
    return half + 0.5, density, square * (0.25 - half.square()) - density * (2 * a * half + density)


def relu_moments(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of max(x, 0) for x ~ N(m, v), and the slope cov(relu(x), x) / v = Φ(a) of its linear part.

    With a = m/√v the mean is mΦ + √v φ and the variance v (Φ + h), see `_normal_parts`.
    """
    std = std_of(variance)
    upper, density, rest = _normal_parts((mean / std).clamp(-LARGEST, LARGEST))
    return (mean * upper + std * density).clamp_min(0), variance * (upper + rest).clamp(0, 1), upper


def leaky_relu_moments(mean: Tensor, variance: Tensor, slope: float) -> tuple[Tensor, Tensor, Tensor]:
    """The same for leaky ReLU, c·x + (1 − c)·relu(x), from cov(relu(x), x) = vΦ(a)."""
    first, second, gate = relu_moments(mean, variance)
    c, d = slope, 1 - slope
    out_variance = c * c * variance + d * d * second + 2 * c * d * variance * gate
    return c * mean + d * first, out_variance, c + d * gate


def clip_moments(mean: Tensor, variance: Tensor, low: float, high: float) -> tuple[Tensor, Tensor, Tensor]:
    """The same for min(max(x, l), h) = l + r₁ − r₂ with r₁ = relu(x − l) and r₂ = relu(x − h).

    Where r₂ is not 0, r₁ = r₂ + h − l, so that E[r₁r₂] = E[r₂²] + (h − l) E[r₂]: the variance is
    Var(r₁) − Var(r₂) − 2 E[r₂] (E[r₂] + h − l − E[r₁]).
    """
    first, variance1, gate1 = relu_moments(mean - low, variance)
    second, variance2, gate2 = relu_moments(mean - high, variance)
    out_variance = variance1 - variance2 - 2 * second * (second + (high - low) - first)
    return low + first - second, out_variance.clamp_min(0), gate1 - gate2


def _weighted(values: Sequence[Tensor]) -> Tensor:
    return torch.stack([weight * value for weight, value in zip(WEIGHTS, values, strict=True)]).sum(0)


def scalar_moments(
    function: Callable[[Tensor], Tensor], mean: Tensor, variance: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same for any scalar function, by 5-point Gauss–Hermite quadrature.

    The mean of a function that is smooth over a deviation is right to about 1e-3 of it, that of one with a kink, such
    as selu, to 5e-2.
    """
    std = std_of(variance)
    values = [function(mean + node * std) for node in NODES]
    first = _weighted(values)
    centered = [value - first for value in values]
    out_variance = _weighted([value.square() for value in centered])
    covariance = _weighted([node * value for node, value in zip(NODES, centered, strict=True)])
    return first, out_variance, covariance / std


def maximum_moments(
    mean1: Tensor, variance1: Tensor, mean2: Tensor, variance2: Tensor, correlation: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Mean and variance of the larger of two normal variables (Clark 1961).

    With d = m₁ − m₂, t² = v₁ + v₂ − 2 cov and a = d/t: m₂ + dΦ + tφ, and v₁Φ + v₂Φ̄ + t²h, see `_normal_parts`.
    """
    total = variance1 + variance2 - 2 * correlation * (variance1 * variance2).sqrt()
    std = std_of(total)
    difference = mean1 - mean2
    upper, density, rest = _normal_parts((difference / std).clamp(-LARGEST, LARGEST))
    mean = mean2 + difference * upper + std * density
    return mean, (variance2 + (variance1 - variance2) * upper + total * rest).clamp_min(0)
