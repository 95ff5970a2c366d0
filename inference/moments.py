"""Prediction in one pass: every activation is a mean and a variance, which the operations of the network carry along.

A `Moments` is a mean and a variance that stand for a tensor. It goes through any `forward`: torch hands each operation
that it meets to the rule registered for it, so branches, sums and reshapes need nothing special, and the network is
the user's own. The weights of Bayesian layers are random as well: for independent inputs of mean m and variance v,

    mean = op(m, μ, b)        variance = op(m², σ², σ_b²) + op(v, μ² + σ²)

which is exact. Activations treat their input as normal, and keep two moments of it.

The units of the last hidden layers are correlated, because they share uncertain inputs; their variances alone
understate that of the logits. So from the first fully connected layer on, each operation notes how its output depends
on its input (`Link`), and a backward pass over the links gives the covariance of the logits.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers import sampling, weight_posteriors

Rule = Callable[..., Any]  # takes what the operation takes, with `Moments` among it
RULES: dict[Any, Rule] = {}
TINY = 1e-30  # the least variance that is divided by
JITTER = 1e-6  # the least pivot of a covariance, relative to the variance
DRAWS = 64  # of the logits, which cost nothing: no pass of the network is behind them
NODES, WEIGHTS = (  # of 5-point Gauss–Hermite quadrature of a standard normal
    (-2.8569700138728056, -1.355626179974266, 0.0, 1.355626179974266, 2.8569700138728056),
    (0.011257411327720691, 0.2220759220056126, 8 / 15, 0.2220759220056126, 0.011257411327720691),
)


def rule(*operations: Any) -> Callable[[Rule], Rule]:
    """Register how operations carry moments along.

    Example:
        >>> @rule(torch.neg)
        ... def _negate(input: Moments) -> Moments:
        ...     return Moments(-input.mean_value, input.variance)

    Args:
        operations: functions or methods of torch, as `F.relu` or `torch.Tensor.relu`. The rule takes their arguments.
    """

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operations, function))
        return function

    return register


def _register(maker: Callable[[Any], Rule], *operations: Any) -> None:
    RULES.update({operation: maker(operation) for operation in operations})


@dataclass(frozen=True, eq=False)
class Link:
    """How a vector depends on the one before it: y = J x + noise, with independent noise.

    Attributes:
        before: the link of x; None where x is taken as independent.
        variance: [n, inputs], of x, where `before` is None.
        weight: J, [outputs, inputs] for all examples, or its diagonal [n, inputs].
        noise: [n, outputs], the variance that is not inherited from x.
        is_diagonal: whether `weight` is the diagonal of J.
    """

    before: Link | None
    variance: Tensor | None
    weight: Tensor
    noise: Tensor
    is_diagonal: bool = False


@dataclass(frozen=True)
class _Activation:
    """An activation that waits, since a maximum after a monotone function is the function of the maximum."""

    moments: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Moments:
    """A random tensor that stands for a tensor in the `forward` of a network.

    Attributes:
        mean_value: its mean.
        variance: of every element, of the mean's shape; None where it is 0 everywhere.
        link: how it depends on earlier tensors, in the fully connected head.
        waiting: an activation that is still to be applied.
    """

    mean_value: Tensor
    variance: Tensor | None = None
    link: Link | None = None
    waiting: _Activation | None = None

    def settled(self) -> Moments:
        """The same with an activation that waited applied."""
        if self.waiting is None:
            return self
        mean, variance, gate = self.waiting.moments(self.mean_value, _variance_of(self))
        return Moments(mean, variance, _diagonal_link(self, gate, variance))

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func not in RULES:
            name = getattr(func, "__name__", repr(func))
            raise NotImplementedError(
                f"moments cannot pass through {name}: register a rule by inference.moments.rule, or predict by draws"
            )
        if func not in _WAIT:
            args = tuple(a.settled() if isinstance(a, Moments) else a for a in args)
        return RULES[func](*args, **(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(Tensor, name)
        if name in _PLAIN:
            return getattr(self.mean_value, name)
        return lambda *args, **kwargs: self.__torch_function__(attribute, (Moments,), (self, *args), kwargs)


_PLAIN = {  # what asks about a tensor and not about its values
    "shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "layout", "dim", "size", "numel", "stride",
    "is_floating_point", "is_complex", "is_contiguous",
}  # fmt: skip
_OPERATORS = ("add", "radd", "iadd", "sub", "rsub", "isub", "mul", "rmul", "imul", "truediv", "neg", "getitem")


def _operator(name: str) -> Callable[..., Any]:
    def apply(self: Moments, *others: Any) -> Any:
        return self.__torch_function__(getattr(Tensor, name), (Moments,), (self, *others))

    return apply


for _name in _OPERATORS:  # Python looks them up in the class, past `__getattr__`
    setattr(Moments, f"__{_name}__", _operator(f"__{_name}__"))
_WAIT: set[Any] = set()  # operations whose rules handle an activation that waits


def _variance_of(moments: Moments) -> Tensor:
    return torch.zeros_like(moments.mean_value) if moments.variance is None else moments.variance


def _parts(value: Any) -> tuple[Any, Any]:
    """Mean and variance (None for 0) of a random tensor, a tensor or a number."""
    return (value.mean_value, value.variance) if isinstance(value, Moments) else (value, None)


def _diagonal_link(input: Moments, slope: Tensor, variance: Tensor | None) -> Link | None:
    """The link of an operation that acts on every element by itself, in the head."""
    if input.link is None or variance is None:
        return None
    noise = (variance - slope.square() * _variance_of(input)).clamp_min(0)
    return Link(input.link, None, slope, noise, is_diagonal=True)


@dataclass(frozen=True, eq=False)
class _WeightMoments:
    """Of a Bayesian weight: σ², μ² + σ², and both along the axis of its inputs, for one operation instead of two."""

    variance: Tensor
    second: Tensor
    joint: Tensor


_WEIGHTS: ContextVar[Mapping[int, _WeightMoments] | None] = ContextVar("_WEIGHTS", default=None)


@contextmanager
def known_weights(net: nn.Module) -> Iterator[None]:
    """Within it, the operations know the variances of the Bayesian weights of `net`, which are computed once."""
    weights = {}
    for _, mean, posterior in weight_posteriors(net):
        variance = posterior.variance(mean)
        second = mean.square() + variance
        joint = torch.cat([variance, second], 1) if mean.dim() > 1 else variance
        weights[id(mean)] = _WeightMoments(variance, second, joint)
    token = _WEIGHTS.set(weights)
    try:
        with sampling(net, False):
            yield
    finally:
        _WEIGHTS.reset(token)


def _affine(operation: Callable[..., Tensor], transposed: bool = False) -> Rule:
    """The rule of a linear layer or convolution, whose weight and bias may be Bayesian."""

    def affine(input: Any, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Moments:
        mean, variance = _parts(input)
        known = _WEIGHTS.get() or {}
        of_weight, of_bias = known.get(id(weight)), known.get(id(bias))
        bias_variance = None if of_bias is None else of_bias.variance
        groups = kwargs.get("groups", args[4 if transposed else 3] if len(args) > (4 if transposed else 3) else 1)
        out = operation(mean, weight, bias, *args, **kwargs)
        noise = None
        if of_weight is None:
            out_variance = (
                None if variance is None else operation(variance, weight.square(), bias_variance, *args, **kwargs)
            )
        elif variance is None:
            out_variance = noise = operation(mean.square(), of_weight.variance, bias_variance, *args, **kwargs)
        elif operation is F.linear:
            noise = operation(mean.square() + variance, of_weight.variance, bias_variance)
            out_variance = noise + operation(variance, weight.square())
        elif groups == 1 and not transposed:
            both = torch.cat([mean.square(), variance], 1 if mean.dim() == weight.dim() else 0)
            out_variance = operation(both, of_weight.joint, bias_variance, *args, **kwargs)
        else:
            out_variance = operation(mean.square(), of_weight.variance, bias_variance, *args, **kwargs)
            out_variance = out_variance + operation(variance, of_weight.second, None, *args, **kwargs)
        link = None
        if operation is F.linear and mean.dim() == 2 and out_variance is not None:
            before = input.link if isinstance(input, Moments) else None
            leaf = None if before is not None or variance is None else variance
            noise = torch.zeros_like(out) if noise is None else noise
            link = Link(before, leaf, weight, noise)
        return Moments(out, out_variance, link)

    return affine


_register(_affine, F.linear, F.conv1d, F.conv2d, F.conv3d)
_register(partial(_affine, transposed=True), F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


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
    std = variance.clamp_min(TINY).sqrt()
    upper, density, rest = _normal_parts((mean / std).clamp(-30, 30))
    return (mean * upper + std * density).clamp_min(0), variance * (upper + rest).clamp(0, 1), upper


def leaky_relu_moments(mean: Tensor, variance: Tensor, slope: float) -> tuple[Tensor, Tensor, Tensor]:
    """The same for leaky ReLU, c·x + (1 − c)·relu(x), from cov(relu(x), x) = vΦ(a)."""
    first, second, gate = relu_moments(mean, variance)
    c, d = slope, 1 - slope
    out_variance = c * c * variance + d * d * second + 2 * c * d * variance * gate
    return c * mean + d * first, out_variance, c + d * gate


def _weighted(values: Sequence[Tensor]) -> Tensor:
    return torch.stack([weight * value for weight, value in zip(WEIGHTS, values, strict=True)]).sum(0)


def scalar_moments(
    function: Callable[[Tensor], Tensor], mean: Tensor, variance: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same for any scalar function, by 5-point Gauss–Hermite quadrature (about 1e-3 of the standard deviation)."""
    std = variance.sqrt()
    values = [function(mean + node * std) for node in NODES]
    first = _weighted(values)
    centered = [value - first for value in values]
    out_variance = _weighted([value.square() for value in centered])
    covariance = _weighted([node * value for node, value in zip(NODES, centered, strict=True)])
    return first, out_variance, covariance / std.clamp_min(TINY)


def _waiting(input: Moments, moments: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]) -> Moments:
    return Moments(input.mean_value, input.variance, input.link, _Activation(moments))


@rule(F.relu, torch.relu, Tensor.relu, torch.relu_, Tensor.relu_)
def _relu(input: Moments, inplace: bool = False) -> Moments:
    return _waiting(input, relu_moments)


@rule(F.leaky_relu)
def _leaky_relu(input: Moments, negative_slope: float = 0.01, inplace: bool = False) -> Moments:
    return _waiting(input, lambda mean, variance: leaky_relu_moments(mean, variance, negative_slope))


def _scalar(function: Callable[..., Tensor], monotone: bool) -> Rule:
    def scalar(input: Moments, *args: Any, **kwargs: Any) -> Moments:
        def moments(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return scalar_moments(lambda x: function(x, *args, **kwargs), mean, variance)

        waiting = _waiting(input, moments)
        return waiting if monotone else waiting.settled()

    return scalar


_MONOTONE = (
    F.softplus, torch.tanh, Tensor.tanh, torch.sigmoid, Tensor.sigmoid, F.elu, F.selu, F.celu, F.relu6, F.hardtanh,
    F.hardsigmoid, F.softsign, F.logsigmoid,
)  # fmt: skip
_register(partial(_scalar, monotone=True), *_MONOTONE)
_register(partial(_scalar, monotone=False), F.silu, F.gelu, F.hardswish, F.mish)


def maximum_moments(
    mean1: Tensor, variance1: Tensor, mean2: Tensor, variance2: Tensor, correlation: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Mean and variance of the larger of two normal variables (Clark 1961).

    With d = m₁ − m₂, t² = v₁ + v₂ − 2 cov and a = d/t: m₂ + dΦ + tφ, and v₁Φ + v₂Φ̄ + t²h, see `_normal_parts`.
    """
    total = variance1 + variance2 - 2 * correlation * (variance1 * variance2).sqrt()
    std = total.clamp_min(TINY).sqrt()
    difference = mean1 - mean2
    upper, density, rest = _normal_parts((difference / std).clamp(-30, 30))
    mean = mean2 + difference * upper + std * density
    return mean, (variance2 + (variance1 - variance2) * upper + total * rest).clamp_min(0)


@rule(torch.maximum, torch.max, Tensor.maximum)
def _maximum(one: Any, other: Any) -> Moments:
    """The larger of two, taken as independent."""
    (mean1, variance1), (mean2, variance2) = _parts(one), _parts(other)
    variance1, variance2 = (torch.zeros_like(mean1) if v is None else v for v in (variance1, variance2))
    return Moments(*maximum_moments(mean1, variance1, torch.as_tensor(mean2).expand_as(mean1), variance2))


def _max_pool(operation: Callable[..., Any]) -> Rule:
    """The moments of the unit with the largest mean of each window.

    The units of a window share their weights and nearly all of their pixels, so they move together. Clark's maximum
    with the correlation of .9 that is found there costs twice as much as all the rest, and is no better.
    """

    def max_pool(
        input: Moments,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Moments:
        if return_indices:
            raise NotImplementedError("moments cannot pass through max pooling with return_indices")
        mean, variance = _parts(input)
        out, indices = operation(mean, kernel_size, stride, padding, dilation, ceil_mode, return_indices=True)
        if variance is not None:
            spatial = indices.dim() - 2 if indices.dim() > 2 else 1
            chosen = variance.flatten(-spatial).gather(-1, indices.flatten(-spatial))
            variance = chosen.view(out.shape)
        return Moments(out, variance, waiting=input.waiting)

    return max_pool


_POOLS = {
    F.max_pool1d: F.max_pool1d_with_indices,
    F.max_pool2d: F.max_pool2d_with_indices,
    F.max_pool3d: F.max_pool3d_with_indices,
    torch.max_pool1d: F.max_pool1d_with_indices,
    torch.max_pool2d: F.max_pool2d_with_indices,
    torch.max_pool3d: F.max_pool3d_with_indices,
}
for _pool, _with_indices in _POOLS.items():
    RULES[_pool] = _max_pool(_with_indices)
_WAIT |= set(_POOLS)


def _average(operation: Callable[..., Tensor]) -> Rule:
    """The mean of k independent elements has their mean variance, divided by k."""

    def average(input: Moments, kernel_size: Any, *args: Any, **kwargs: Any) -> Moments:
        mean, variance = _parts(input)
        axes = {F.avg_pool1d: 1, F.avg_pool2d: 2, F.avg_pool3d: 3}[operation]
        count = kernel_size**axes if isinstance(kernel_size, int) else math.prod(kernel_size)
        out = operation(mean, kernel_size, *args, **kwargs)
        return Moments(out, None if variance is None else operation(variance, kernel_size, *args, **kwargs) / count)

    return average


_register(_average, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


@rule(F.adaptive_avg_pool2d)
def _adaptive_avg_pool2d(input: Moments, output_size: Any) -> Moments:
    mean, variance = _parts(input)
    out = F.adaptive_avg_pool2d(mean, output_size)
    count = mean.shape[-2] * mean.shape[-1] / (out.shape[-2] * out.shape[-1])
    return Moments(out, None if variance is None else F.adaptive_avg_pool2d(variance, output_size) / count)


@rule(torch.mean, Tensor.mean)
def _mean(input: Moments, *args: Any, **kwargs: Any) -> Moments:
    mean, variance = _parts(input)
    out = torch.mean(mean, *args, **kwargs)
    count = mean.numel() / out.numel()
    return Moments(out, None if variance is None else torch.mean(variance, *args, **kwargs) / count)


@rule(torch.sum, Tensor.sum)
def _sum(input: Moments, *args: Any, **kwargs: Any) -> Moments:
    mean, variance = _parts(input)
    return Moments(torch.sum(mean, *args, **kwargs), None if variance is None else torch.sum(variance, *args, **kwargs))


def _rearranging(operation: Callable[..., Any]) -> Rule:
    """An operation that moves elements and computes nothing: it does the same to means and variances."""

    def rearrange(input: Moments, *args: Any, **kwargs: Any) -> Any:
        mean, variance = operation(input.mean_value, *args, **kwargs), None
        if input.variance is not None:
            variance = operation(input.variance, *args, **kwargs)
        if not isinstance(mean, Tensor):  # chunk, split, unbind
            variances = [None] * len(mean) if variance is None else variance
            return tuple(Moments(m, v, waiting=input.waiting) for m, v in zip(mean, variances, strict=True))
        return Moments(mean, variance, input.link if mean.shape == input.shape else None, input.waiting)

    return rearrange


_REARRANGING = (
    torch.flatten, Tensor.flatten, Tensor.view, Tensor.reshape, torch.reshape, torch.permute, Tensor.permute,
    Tensor.contiguous, torch.transpose, Tensor.transpose, torch.squeeze, Tensor.squeeze, torch.unsqueeze,
    Tensor.unsqueeze, Tensor.__getitem__,
    torch.chunk, Tensor.chunk, torch.split, Tensor.split, Tensor.unbind, torch.unbind, Tensor.expand, Tensor.expand_as,
    Tensor.clone, torch.clone, Tensor.detach, Tensor.to, Tensor.float, Tensor.double, F.pixel_shuffle, Tensor.narrow,
)  # fmt: skip
_register(_rearranging, *_REARRANGING)
_WAIT |= set(_REARRANGING)


def _joining(operation: Callable[..., Tensor]) -> Rule:
    def join(tensors: Any, dim: int = 0) -> Moments:
        settled = [tensor.settled() if isinstance(tensor, Moments) else tensor for tensor in tensors]
        pairs = [_parts(tensor) for tensor in settled]
        variance = None
        if any(variance is not None for _, variance in pairs):
            variance = operation([torch.zeros_like(m) if v is None else v for m, v in pairs], dim)
        return Moments(operation([m for m, _ in pairs], dim), variance)

    return join


_register(_joining, torch.cat, torch.concat, torch.stack)


@rule(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout)
def _dropout(input: Moments, p: float = 0.5, training: bool = True, inplace: bool = False) -> Moments:
    if training:
        raise NotImplementedError("moments cannot pass through dropout in training: call net.eval() first")
    return input


_WAIT |= {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout}


def _plus(one: Any, other: Any, *, alpha: float = 1.0) -> Moments:
    """A sum, its parts taken as independent."""
    (mean1, variance1), (mean2, variance2) = _parts(one), _parts(other)
    mean = torch.add(torch.as_tensor(mean1), mean2, alpha=alpha)
    variances = [v for v in (variance1, None if variance2 is None else alpha**2 * variance2) if v is not None]
    variance = sum(variances[1:], start=variances[0]).expand(mean.shape) if variances else None
    constant = variance1 is None or variance2 is None
    random = one if isinstance(one, Moments) and one.variance is not None else other
    link = random.link if constant and isinstance(random, Moments) and mean.shape == random.shape else None
    return Moments(mean, variance, link)


def _minus(one: Any, other: Any, *, alpha: float = 1.0) -> Moments:
    return _plus(one, other, alpha=-alpha)


def _times(one: Any, other: Any) -> Moments:
    """A product, its factors taken as independent: Var(xy) = v₁v₂ + v₁m₂² + v₂m₁²."""
    (mean1, variance1), (mean2, variance2) = _parts(one), _parts(other)
    mean = mean1 * mean2
    if variance1 is None and variance2 is None:
        return Moments(mean)
    if variance1 is not None and variance2 is not None:
        return Moments(mean, variance1 * variance2 + variance1 * mean2**2 + variance2 * mean1**2)
    random, factor = (one, mean2) if variance1 is not None else (other, mean1)
    variance = random.variance * torch.as_tensor(factor) ** 2
    slope = (torch.ones_like(random.mean_value) * factor).expand(mean.shape)
    return Moments(mean, variance, _diagonal_link(random, slope, variance) if mean.shape == random.shape else None)


rule(torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__, Tensor.add_)(_plus)
rule(torch.sub, Tensor.sub, Tensor.__sub__, Tensor.__isub__, Tensor.sub_)(_minus)
rule(Tensor.__rsub__)(lambda one, other: _minus(other, one))
rule(torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, Tensor.__imul__, Tensor.mul_)(_times)


@rule(torch.div, Tensor.div, Tensor.__truediv__)
def _divide(one: Moments, other: Any) -> Moments:
    if isinstance(other, Moments):
        raise NotImplementedError("moments cannot pass through a division by a random tensor")
    return _times(one, 1 / other)


@rule(torch.neg, Tensor.neg, Tensor.__neg__)
def _negate(input: Moments) -> Moments:
    return _times(input, -1.0)


@rule(F.batch_norm)
def _batch_norm(
    input: Moments,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Moments:
    """An affine map by channel, in evaluation."""
    if training or running_mean is None or running_var is None:
        raise NotImplementedError("moments cannot pass through batch norm in training: call net.eval() first")
    scale = (running_var + eps).rsqrt() * (1.0 if weight is None else weight)
    shift = (0.0 if bias is None else bias) - running_mean * scale
    shape = (-1,) + (1,) * (input.dim() - 2)
    return _plus(_times(input, scale.view(shape)), shift.view(shape))


def _normalize(input: Moments, axes: tuple[int, ...], eps: float) -> Moments:
    """(x − m̄) / √(Var(m) + mean(v) + ε) over the axes: what the mean example has for its scale."""
    mean, variance = input.mean_value, _variance_of(input)
    center = mean.mean(axes, keepdim=True)
    total = (mean - center).square().mean(axes, keepdim=True) + variance.mean(axes, keepdim=True)
    scale = (total + eps).rsqrt()
    return Moments((mean - center) * scale, None if input.variance is None else variance * scale.square())


@rule(F.layer_norm)
def _layer_norm(
    input: Moments, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Moments:
    output = _normalize(input, tuple(range(-len(normalized_shape), 0)), eps)
    output = output if weight is None else _times(output, weight)
    return output if bias is None else _plus(output, bias)


@rule(F.group_norm)
def _group_norm(
    input: Moments, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Moments:
    shape, grouped = input.shape, (input.shape[0], num_groups, -1)
    variance = None if input.variance is None else input.variance.reshape(grouped)
    output = _normalize(Moments(input.mean_value.reshape(grouped), variance), (-1,), eps)
    output = Moments(output.mean_value.view(shape), None if output.variance is None else output.variance.view(shape))
    by_channel = (-1,) + (1,) * (input.dim() - 2)
    output = output if weight is None else _times(output, weight.view(by_channel))
    return output if bias is None else _plus(output, bias.view(by_channel))


@rule(F.pad)
def _pad(input: Moments, pad: Any, mode: str = "constant", value: float | None = None) -> Moments:
    mean, variance = _parts(input)
    return Moments(F.pad(mean, pad, mode, value), None if variance is None else F.pad(variance, pad, mode))


def logit_covariance(logits: Moments) -> Tensor:
    """The covariance [n, classes, classes] of logits [n, classes], by a backward pass over the links of the head.

    With J = dlogits / dx, each link x → y adds J diag(noise) Jᵀ, and the input of the head J diag(v) Jᵀ.
    """
    link, variance = logits.link, _variance_of(logits)
    if link is None:
        return variance.diag_embed()
    jacobian = torch.eye(variance.shape[1], dtype=variance.dtype, device=variance.device).expand(
        variance.shape[0], -1, -1
    )
    covariance = torch.zeros_like(jacobian)
    while link is not None:
        covariance = covariance + (jacobian * link.noise[:, None]) @ jacobian.mT
        jacobian = jacobian * link.weight[:, None] if link.is_diagonal else jacobian @ link.weight
        if link.variance is not None:
            covariance = covariance + (jacobian * link.variance[:, None]) @ jacobian.mT
        link = link.before
    return covariance


def propagate(net: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [n, classes] and covariance [n, classes, classes] of a network's logits under its posterior, in one pass.

    Args:
        net: a Bayesian network in evaluation.
        images: [n, channels, height, width], normalized as in training.

    Raises:
        NotImplementedError: the network has an operation without a rule; the message names it.
    """
    with known_weights(net):
        return _propagate(net, images)


def _propagate(net: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    output = net(Moments(images))
    logits = output[0] if isinstance(output, tuple) else output
    if not isinstance(logits, Moments):
        raise NotImplementedError("moments were lost on the way: the network's output is an ordinary tensor")
    logits = logits.settled()
    return logits.mean_value, logit_covariance(logits)


def moment_samples(net: nn.Module, images: Tensor, batch_size: int = 256) -> Iterator[Tensor]:
    """Batch by batch, `DRAWS` fixed draws [draws, n, classes] of logits with the moments that the posterior gives them.

    Args:
        net: a Bayesian or deterministic network; a copy of it predicts, in evaluation mode.
        images: [n, channels, height, width], normalized as in training.
        batch_size: images per pass.

    Raises:
        NotImplementedError: as `propagate`.
    """
    net = copy.deepcopy(net).eval()
    device = next(net.parameters()).device
    with known_weights(net):
        for batch in images.split(batch_size):
            yield logit_draws(*_propagate(net, batch.to(device, non_blocking=True)))


@cache
def fixed_normals(count: int, size: int) -> Tensor:
    """[count, size] antithetic draws of a standard normal, always the same, of variance 1 in every direction."""
    half = torch.quasirandom.SobolEngine(size, scramble=True, seed=0).draw(count // 2, dtype=torch.float64)
    half = torch.special.ndtri(half.clamp(1e-6, 1 - 1e-6))
    if len(half) > size:
        root = torch.linalg.cholesky(half.mT @ half / len(half))
        half = torch.linalg.solve_triangular(root, half.mT, upper=False).mT
    return torch.cat([half, -half]).float()


def logit_draws(mean: Tensor, covariance: Tensor, count: int = DRAWS) -> Tensor:
    """`count` fixed draws [count, n, classes] of normal logits.

    Args:
        mean: [n, classes].
        covariance: [n, classes, classes].
        count: an even number.
    """
    noise = fixed_normals(count, mean.shape[-1]).to(mean)
    return mean + torch.einsum("nij,tj->tni", cholesky(covariance), noise)


def cholesky(covariance: Tensor) -> Tensor:
    """The lower root L of covariances [n, k, k] = L Lᵀ, also of semidefinite ones, in operations that export knows.

    A pivot below 1e-6 of its variance is taken for that much: the jitter that keeps rounding from making it negative.
    """
    columns: list[Tensor] = []
    for index in range(covariance.shape[-1]):
        column = covariance[:, :, index]
        if columns:
            root = torch.stack(columns, -1)
            column = column - (root * root[:, index : index + 1]).sum(-1)
        pivot = torch.maximum(column[:, index], JITTER * covariance[:, index, index]).clamp_min(TINY).sqrt()
        below = torch.arange(covariance.shape[-1], device=column.device) > index
        column = torch.where(below, column / pivot[:, None], 0.0)
        at_index = torch.arange(covariance.shape[-1], device=column.device) == index
        columns.append(torch.where(at_index, pivot[:, None], column))
    return torch.stack(columns, -1)
