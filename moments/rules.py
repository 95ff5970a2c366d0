"""How each operation of torch carries moments along. To add one, see `moments.rule`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moments.functions import (
    clip_moments,
    leaky_relu_moments,
    maximum_moments,
    relu_moments,
    scalar_moments,
    std_of,
)
from moments.pair import (
    RULES,
    WAITING,
    Deferred,
    Link,
    MissingRuleError,
    Moments,
    Rule,
    Windows,
    diagonal_link,
    parts_of,
    register_each,
    rule,
    variance_of,
)
from moments.weights import bias_variance, known, known_factors


def _linear(input: Any, weight: Tensor, bias: Tensor | None = None) -> Moments:
    """A linear layer whose weight and bias may be Bayesian, and the link of its output to a vector as its input."""
    mean, variance = parts_of(input)
    of_weight = known(weight)
    out = F.linear(mean, weight, bias)
    noise = None
    if of_weight is not None:
        second = mean.square() if variance is None else mean.square() + variance
        noise = F.linear(second, of_weight.variance, bias_variance(bias))
    if variance is None:
        out_variance = noise
    else:
        inherited = _linear_variance(variance, weight, input.channels)
        out_variance = inherited if noise is None else noise + inherited
    if mean.dim() != 2 or out_variance is None:
        return Moments(out, out_variance)
    return Moments(out, out_variance, _link(input, weight, torch.zeros_like(out) if noise is None else noise))


def _link(input: Any, weight: Tensor, noise: Tensor, is_diagonal: bool = False) -> Link:
    """How an output depends on a vector, which is where the links begin if it has none."""
    mean, variance = parts_of(input)
    before, channels = (input.link, input.channels) if isinstance(input, Moments) else (None, None)
    leaf = None if before is not None or variance is None else std_of(variance)
    return Link(before, leaf, weight, noise, is_diagonal, channels or mean.shape[1])


def _convolution(operation: Callable[..., Tensor]) -> Rule:
    """The rule of a convolution whose weight and bias may be Bayesian."""

    def convolve(
        input: Any,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Moments:
        mean, variance = parts_of(input)
        of_weight, of_bias, axes = known(weight), bias_variance(bias), weight.dim() - 2
        out = operation(mean, weight, bias, stride, padding, dilation, groups)
        if of_weight is None and variance is None:
            return Moments(out)

        def out_variance(windows: Windows | None) -> Tensor:
            if of_weight is None:
                inputs, kernel = variance, weight.square()
            elif variance is None:
                inputs, kernel = mean.square(), of_weight.variance
            else:
                by_group = [each.unflatten(-1 - axes, (groups, -1)) for each in (mean.square(), variance)]
                inputs, kernel = torch.cat(by_group, -1 - axes).flatten(-2 - axes, -1 - axes), of_weight.joint
            steps = _each(stride, axes)
            is_plain = not isinstance(padding, str) and set(_each(dilation, axes)) == {1}
            if windows is not None and windows.is_inside and is_plain and of_weight is not None:
                kernel = of_weight.pooled(kernel, operation, windows.size, steps)
                steps, windows = tuple(a * b for a, b in zip(steps, windows.step, strict=True)), None
            result = operation(inputs, kernel, of_bias, steps, padding, dilation, groups)
            return result if windows is None else windows.mean(result)

        return Moments(out, Deferred(out_variance))

    return convolve


def _each(value: Any, axes: int) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else tuple(value) * (axes // len(value))


def _linear_variance(variance: Tensor, weight: Tensor, channels: int | None) -> Tensor:
    """What a fully connected layer inherits from its inputs, of which the units of one channel move together."""
    if channels in (None, variance.shape[1]):
        return F.linear(variance, weight.square())
    total = torch.zeros_like(variance[:, :1])
    for std, part in zip(std_of(variance).chunk(channels, 1), weight.chunk(channels, 1), strict=True):
        total = total + F.linear(std, part).square()
    return total


def _transposed(operation: Callable[..., Tensor]) -> Rule:
    """The rule of a transposed convolution whose weight and bias may be Bayesian."""

    def convolve(input: Any, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Moments:
        mean, variance = parts_of(input)
        of_weight = known(weight)
        out, out_variance = operation(mean, weight, bias, *args, **kwargs), None
        if variance is not None:
            second = weight.square() if of_weight is None else of_weight.second
            out_variance = operation(variance, second, None, *args, **kwargs)
        if of_weight is not None:
            noise = operation(mean.square(), of_weight.variance, bias_variance(bias), *args, **kwargs)
            out_variance = noise if out_variance is None else noise + out_variance
        return Moments(out, out_variance)

    return convolve


def _moving_together(affine: Rule, operation: Callable[..., Tensor]) -> Rule:
    """A rule, and the variance of directions that the weights share: Σ_k op(m, L_k)² + op(v, L_k²)."""

    def rule(input: Any, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Moments:
        output: Moments = affine(input, weight, bias, *args, **kwargs)
        of_weight = known(weight)
        if of_weight is None or of_weight.directions is None:
            return output
        mean, variance = parts_of(input)
        shared = torch.stack([operation(mean, each, None, *args, **kwargs) for each in of_weight.directions])
        out_variance, link = variance_of(output) + shared.square().sum(0), output.link
        if operation is F.linear and variance is not None:  # which convolutions have in μ² + σ²
            own = F.linear(variance, of_weight.directions.square().sum(0))
            out_variance = out_variance + own
            link = link and replace(link, noise=link.noise + own)
        return Moments(output.mean_value, out_variance, link and replace(link, shared=shared.movedim(0, 1)))

    return rule


def _with_factors(affine: Rule, operation: Callable[..., Tensor], inputs_axis: int) -> Rule:
    """A rule, also for op(x ⊙ s, W) ⊙ r + b with a known W and random factors r and s, one per feature.

    With op(x ⊙ s, W) = h, the variance of h is op(v, W²(μ_s² + σ_s²)) + Σ_c σ_c² op(m_c, W_c)² over the features c of
    the input, and that of r h is (μ_r² + σ_r²) Var(h) + σ_r² E[h]².

    Args:
        affine: the rule without factors.
        operation: the linear layer or convolution.
        inputs_axis: of the weight.
    """

    def rule(input: Any, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Moments:
        factors = known_factors(weight)
        if factors is None:
            return affine(input, weight, bias, *args, **kwargs)
        positions = (1,) * (weight.dim() - 2)
        of_outputs, of_inputs = (each.view(-1, *positions) for each in (factors.outputs, factors.inputs))
        scaled, added = _scaled(input, of_inputs)
        hidden: Moments = affine(scaled, weight, None, *args, **kwargs)
        if added is not None and of_inputs.variance is not None:
            mean, variance = parts_of(input)
            if positions:  # a feature moves as a whole
                added = torch.zeros_like(mean) if variance is None else of_inputs.variance * variance
            own = operation(added, weight.square(), None, *args, **kwargs)
            for c in range(len(of_inputs.variance) if positions else 0):
                feature, part = mean.narrow(-1 - len(positions), c, 1), weight.narrow(inputs_axis, c, 1)
                own = own + of_inputs.variance[c] * operation(feature, part, None, *args, **kwargs).square()
            link = hidden.link
            if link is None and scaled.link is not None:
                link = Link(scaled.link, None, weight, torch.zeros_like(own))
            hidden = Moments(hidden.mean_value, variance_of(hidden) + own, link)
        output, added = _scaled(hidden, of_outputs)
        variance = output.variance if added is None else variance_of(output) + added
        output = Moments(output.mean_value, variance, output.link)
        return output if bias is None else _plus(output, bias.view(-1, *positions))

    return rule


def _scaled(input: Any, factor: Moments) -> tuple[Moments, Tensor | None]:
    """A product with independent random factors, with the variance it inherits; and the variance that they add."""
    mean, variance = parts_of(input)
    scale, of_scale = parts_of(factor)
    added = None if of_scale is None else of_scale * (mean.square() if variance is None else mean.square() + variance)
    inherited = None if variance is None else variance * scale.square()
    link = None
    if mean.dim() == 2 and (added is not None or inherited is not None):
        link = _link(input, scale.expand_as(mean), torch.zeros_like(mean) if added is None else added, is_diagonal=True)
    channels = input.channels if isinstance(input, Moments) else None
    return Moments(mean * scale, inherited, link, channels=channels), added


def _affine(operation: Callable[..., Tensor], rule: Rule, inputs_axis: int) -> Rule:
    return _with_factors(_moving_together(rule, operation), operation, inputs_axis)


AFFINE: dict[Any, Rule] = {  # the operations that look up what is known of their weights
    F.linear: _affine(F.linear, _linear, 1),
    **{op: _affine(op, _convolution(op), 1) for op in (F.conv1d, F.conv2d, F.conv3d)},
    **{op: _affine(op, _transposed(op), 0) for op in (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)},
}
RULES.update(AFFINE)


@rule(F.relu, torch.relu, Tensor.relu, torch.relu_, Tensor.relu_)
def _relu(input: Moments, inplace: bool = False) -> Moments:
    return input.awaiting(relu_moments)


@rule(F.leaky_relu)
def _leaky_relu(input: Moments, negative_slope: float = 0.01, inplace: bool = False) -> Moments:
    return input.awaiting(lambda mean, variance: leaky_relu_moments(mean, variance, negative_slope))


@rule(F.hardtanh)
def _hardtanh(input: Moments, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Moments:
    return input.awaiting(lambda mean, variance: clip_moments(mean, variance, min_val, max_val))


@rule(F.relu6)
def _relu6(input: Moments, inplace: bool = False) -> Moments:
    return _hardtanh(input, 0.0, 6.0)


@rule(F.hardsigmoid)
def _hardsigmoid(input: Moments, inplace: bool = False) -> Moments:
    """x/6 + ½, clipped to 0 and 1."""
    return _hardtanh(_plus(_times(input, 1 / 6), 0.5), 0.0, 1.0)


def _scalar(function: Callable[..., Tensor], monotone: bool) -> Rule:
    def scalar(input: Moments, *args: Any, **kwargs: Any) -> Moments:
        def moments(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return scalar_moments(lambda x: function(x, *args, **kwargs), mean, variance)

        waiting = input.awaiting(moments)
        return waiting if monotone else waiting.settled()

    return scalar


_MONOTONE = (
    F.softplus, torch.tanh, Tensor.tanh, torch.sigmoid, Tensor.sigmoid, F.elu, F.selu, F.celu, F.softsign, F.logsigmoid,
)  # fmt: skip
register_each(partial(_scalar, monotone=True), *_MONOTONE)
register_each(partial(_scalar, monotone=False), F.silu, F.gelu, F.hardswish, F.mish)


@rule(torch.maximum, torch.max, Tensor.maximum)
def _maximum(one: Any, other: Any = None, **_: Any) -> Moments:
    """The larger of two, taken as independent."""
    if not isinstance(other, (Moments, Tensor)):
        raise MissingRuleError("moments cannot pass through a maximum over an axis: predict by draws")
    (mean1, variance1), (mean2, variance2) = parts_of(one), parts_of(other)
    variance1, variance2 = (torch.zeros_like(mean1) if v is None else v for v in (variance1, variance2))
    return Moments(*maximum_moments(mean1, variance1, mean2.expand_as(mean1), variance2))


def _max_pool(operation: Callable[..., Any]) -> Rule:
    """The largest mean of each window, and the mean variance.

    The units of a window share their weights and nearly all of their pixels, so they move together. Clark's maximum
    with the correlation of .9 that is found there costs twice as much as all the rest, and is no better; nor is the
    variance of the unit with the largest mean, for which a convolution would have to compute all variances.
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
        axes = _AXES[operation]
        if return_indices or set(_each(dilation, axes)) != {1}:
            raise MissingRuleError("moments cannot pass through max pooling with return_indices or dilation")
        size = _each(kernel_size, axes)
        windows = Windows(size, _each(stride or size, axes), _each(padding, axes), ceil_mode)
        out = operation(input.mean_value, size, windows.step, windows.padding, 1, ceil_mode)
        return Moments(out, input.variance_over(windows), waiting=input.waiting)

    return max_pool


_AXES = {
    F.max_pool1d: 1, F.max_pool2d: 2, F.max_pool3d: 3, torch.max_pool1d: 1, torch.max_pool2d: 2, torch.max_pool3d: 3,
}  # fmt: skip
register_each(_max_pool, *_AXES)
WAITING |= set(_AXES)


def _average(operation: Callable[..., Tensor]) -> Rule:
    """The units of a window move together, as in `_max_pool`: the deviation of their mean is their mean deviation."""

    def average(input: Moments, *args: Any, **kwargs: Any) -> Moments:
        mean, variance = parts_of(input)
        out = operation(mean, *args, **kwargs)
        return Moments(out, None if variance is None else operation(std_of(variance), *args, **kwargs).square())

    return average


register_each(
    _average,
    F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
)  # fmt: skip


def _reduction(operation: Callable[..., Tensor]) -> Rule:
    """A sum or a mean, of positions or tokens that move together as in `_average`, or of features that do not."""

    def reduce(input: Moments, dim: Any = None, *args: Any, **kwargs: Any) -> Moments:
        axes = {axis % input.dim() for axis in ((dim,) if isinstance(dim, int) else dim or range(input.dim()))}
        moves_together = 0 not in axes and (1 not in axes or input.dim() == 3)
        if moves_together:
            return _average(operation)(input, dim, *args, **kwargs)
        mean, variance = parts_of(input)
        out = operation(mean, dim, *args, **kwargs)
        if variance is None:
            return Moments(out)
        divisor = mean.numel() / out.numel() if operation is torch.mean else 1
        return Moments(out, operation(variance, dim, *args, **kwargs) / divisor)

    return reduce


rule(torch.mean, Tensor.mean)(_reduction(torch.mean))
rule(torch.sum, Tensor.sum)(_reduction(torch.sum))


def _rearranging(operation: Callable[..., Any]) -> Rule:
    """An operation that moves elements and computes nothing: it does the same to means and variances."""

    def rearrange(input: Moments, *args: Any, **kwargs: Any) -> Any:
        mean, variance = operation(input.mean_value, *args, **kwargs), None
        if input.variance is not None:
            variance = operation(input.variance, *args, **kwargs)
        if not isinstance(mean, Tensor):  # chunk, split, unbind
            variances = [None] * len(mean) if variance is None else variance
            return tuple(Moments(m, v, waiting=input.waiting) for m, v in zip(mean, variances, strict=True))
        is_vector = mean.dim() == 2 < input.dim() and mean.shape[0] == input.shape[0]
        channels = input.shape[1] if is_vector and mean.numel() == input.numel() else None
        keeps_order = mean.shape == input.shape and operation not in _REORDERING
        return Moments(mean, variance, input.link if keeps_order else None, input.waiting, channels)

    return rearrange


_REORDERING = {torch.permute, Tensor.permute, torch.transpose, Tensor.transpose, Tensor.__getitem__}  # of features
_REARRANGING = (
    torch.flatten, Tensor.flatten, Tensor.view, Tensor.reshape, torch.reshape, torch.permute, Tensor.permute,
    Tensor.contiguous, torch.transpose, Tensor.transpose, torch.squeeze, Tensor.squeeze, torch.unsqueeze,
    Tensor.unsqueeze, torch.unflatten, Tensor.unflatten, Tensor.__getitem__,
    torch.chunk, Tensor.chunk, torch.split, Tensor.split, Tensor.unbind, torch.unbind, Tensor.expand, Tensor.expand_as,
    Tensor.clone, torch.clone, Tensor.detach, Tensor.to, Tensor.float, Tensor.double, F.pixel_shuffle, Tensor.narrow,
)  # fmt: skip
register_each(_rearranging, *_REARRANGING)
WAITING |= set(_REARRANGING)


def _joining(operation: Callable[..., Tensor]) -> Rule:
    def join(tensors: Any, dim: int = 0, axis: int | None = None) -> Moments:
        dim = dim if axis is None else axis
        settled = [tensor.settled() if isinstance(tensor, Moments) else tensor for tensor in tensors]
        pairs = [parts_of(tensor) for tensor in settled]
        variance = None
        if any(variance is not None for _, variance in pairs):
            variance = operation([torch.zeros_like(m) if v is None else v for m, v in pairs], dim)
        return Moments(operation([m for m, _ in pairs], dim), variance)

    return join


register_each(_joining, torch.cat, torch.concat, torch.stack)


@rule(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout)
def _dropout(input: Moments, p: float = 0.5, training: bool = True, inplace: bool = False) -> Moments:
    if training:
        raise MissingRuleError("moments cannot pass through dropout in training: call net.eval() first")
    return input


WAITING |= {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout}


def _plus(one: Any, other: Any, *, alpha: float = 1.0) -> Moments:
    """A sum, its parts taken as independent."""
    (mean1, variance1), (mean2, variance2) = parts_of(one), parts_of(other)
    mean = torch.add(torch.as_tensor(mean1), mean2, alpha=alpha)
    variances = [v for v in (variance1, None if variance2 is None else alpha**2 * variance2) if v is not None]
    variance = sum(variances[1:], start=variances[0]).expand(mean.shape) if variances else None
    constant = variance1 is None or variance2 is None
    random = one if isinstance(one, Moments) and one.variance is not None else other
    is_scaled = random is other and abs(alpha) != 1
    keeps_link = constant and isinstance(random, Moments) and mean.shape == random.shape and not is_scaled
    link = random.link if keeps_link else None
    return Moments(mean, variance, link)


def _minus(one: Any, other: Any, *, alpha: float = 1.0) -> Moments:
    return _plus(one, other, alpha=-alpha)


def _times(one: Any, other: Any) -> Moments:
    """A product, its factors taken as independent: Var(xy) = v₁v₂ + v₁m₂² + v₂m₁²."""
    (mean1, variance1), (mean2, variance2) = parts_of(one), parts_of(other)
    mean = mean1 * mean2
    if variance1 is None and variance2 is None:
        return Moments(mean)
    if variance1 is not None and variance2 is not None:
        return Moments(mean, variance1 * variance2 + variance1 * mean2**2 + variance2 * mean1**2)
    random, factor = (one, mean2) if variance1 is not None else (other, mean1)
    variance = random.variance * torch.as_tensor(factor) ** 2
    slope = (torch.ones_like(random.mean_value) * factor).expand(mean.shape)
    return Moments(mean, variance, diagonal_link(random, slope, variance) if mean.shape == random.shape else None)


rule(torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__, Tensor.add_)(_plus)
rule(torch.sub, Tensor.sub, Tensor.__sub__, Tensor.__isub__, Tensor.sub_)(_minus)
rule(Tensor.__rsub__)(lambda one, other: _minus(other, one))
rule(torch.neg, Tensor.neg, Tensor.__neg__)(lambda input: _times(input, -1.0))
rule(torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, Tensor.__imul__, Tensor.mul_)(_times)


@rule(torch.div, Tensor.div, Tensor.__truediv__, Tensor.__itruediv__, Tensor.div_)
def _divide(one: Moments, other: Any) -> Moments:
    if isinstance(other, Moments):
        raise MissingRuleError("moments cannot pass through a division by a random tensor")
    return _times(one, 1 / other)


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
    if running_mean is None or running_var is None:
        raise MissingRuleError("moments cannot pass through batch norm without running statistics: predict by draws")
    if training:
        raise MissingRuleError("moments cannot pass through batch norm in training: call net.eval() first")
    scale = (running_var + eps).rsqrt() * (1.0 if weight is None else weight)
    shift = (0.0 if bias is None else bias) - running_mean * scale
    shape = (-1,) + (1,) * (input.dim() - 2)
    return _plus(_times(input, scale.view(shape)), shift.view(shape))


def _normalize(input: Moments, axes: tuple[int, ...], eps: float) -> Moments:
    """(x − m̄) / √(Var(m) + mean(v) + ε) over the axes: what the mean example has for its scale."""
    mean, variance = input.mean_value, variance_of(input)
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
    mean, variance = parts_of(input)
    return Moments(F.pad(mean, pad, mode, value), None if variance is None else F.pad(variance, pad, mode))
