"""The inner loops of the layers, with gradients in closed form.

Each is a `torch.autograd.Function`, because autograd on its own passes over memory and keeps a tensor for
every elementary operation. Each saves nothing but inputs and outputs for its backward pass, so derivatives of
any order, `torch.func` in reverse mode and `torch.compile` work through it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

RHO_FLOOR = -80.0  # a little above the ρ at which softplus underflows in float32
BLOCK = 2**15  # elements that a core's cache holds while one operation after the other works on them
SMALL = 100_000  # elements: below it, launching an operation costs more than its arithmetic


def rho_to_std(rho: Tensor) -> Tensor:
    """σ = softplus(ρ), at least 2e-35 (float16: 6e-5): below that σ is clamped, and d log σ/dρ stays 1."""
    return _RhoToStd.apply(rho)


class _RhoToStd(torch.autograd.Function):
    """dσ = sigmoid(ρ) dρ."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rho: Tensor) -> Tensor:
        return softplus(rho.clamp_min(_floor(rho)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (rho,) = ctx.saved_tensors
        return grad * rho.clamp_min(_floor(rho)).sigmoid_()


def softplus(input: Tensor) -> Tensor:
    """log(1 + eˣ), to about 2 units in the last place.

    On a CPU torch's log1p and expm1 take ten times as long as its exp and log. With u = e^−|x| and w = 1 + u as it is
    rounded, log(1 + eˣ) = max(x, 0) + log w + log(1 + (u − (w − 1))/w), of which the last is u − (w − 1) to rounding.
    """
    if input.device.type != "cpu":
        return F.softplus(input)
    if input.numel() > BLOCK and input.is_contiguous() and not torch.compiler.is_compiling():
        return torch.cat([softplus(block) for block in input.view(-1).split(BLOCK)]).view_as(input)
    exp = input.abs().neg_().exp_()
    one_more = exp + 1
    log = one_more.log()
    return log.add_(exp).sub_(one_more.sub_(1)).add_(input.clamp_min(0))


def std_to_rho(std: Tensor) -> Tensor:
    """ρ = softplus⁻¹(σ) = σ + log(1 − e^−σ), for σ > 0.

    On a CPU, without expm1 as in `softplus`: with u = e^−σ as it is rounded, 1 − e^−σ = 1 − u + u(σ + log u).
    """
    if std.device.type != "cpu":
        return std + torch.log(-torch.expm1(-std))
    small = std.clamp_max(-_floor(std))  # beyond, u may be 0
    exp = torch.neg(small).exp_()
    return exp.log().add_(small).mul_(exp).add_(1 - exp).log_().add_(std)


def _floor(rho: Tensor) -> float:
    return max(RHO_FLOOR, math.log(torch.finfo(rho.dtype).tiny))


def rhos_to_stds(rhos: Sequence[Tensor]) -> list[Tensor]:
    """`rho_to_std` of each tensor; the small ones are joined, so that all of them take few operations."""
    if len({(rho.dtype, rho.device) for rho in rhos}) > 1:  # which no vector can join
        return [rho_to_std(rho) for rho in rhos]
    stds = [rho_to_std(row) for row in in_few_rows(rhos)]
    small_sizes = [rho.numel() for rho in rhos if rho.numel() <= SMALL]
    small = iter(stds.pop().split(small_sizes) if small_sizes else ())
    large = iter(stds)
    return [next(small if rho.numel() <= SMALL else large).view_as(rho) for rho in rhos]


def in_few_rows(tensors: Sequence[Tensor]) -> list[Tensor]:
    """All elements as vectors: one vector per large tensor, then one for all small tensors together."""
    rows = [tensor.flatten() for tensor in tensors if tensor.numel() > SMALL]
    small = [tensor.flatten() for tensor in tensors if tensor.numel() <= SMALL]
    return [*rows, torch.cat(small)] if small else rows


def normal_like(tensor: Tensor) -> Tensor:
    """ε ~ N(0, 1) per element, with the memory layout of `tensor`.

    On a CPU `torch.randn_like` is six times slower where the last axis is not the innermost one (channels_last),
    since its fast path fills memory in order. So the axes are put in the order of memory first.
    """
    if tensor.is_contiguous():
        return torch.randn_like(tensor)
    strides = tensor.stride()
    memory_order = sorted(range(tensor.dim()), key=strides.__getitem__, reverse=True)
    inverse = sorted(range(tensor.dim()), key=memory_order.__getitem__)
    return torch.randn_like(tensor.permute(memory_order)).permute(inverse)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32 or its own wider type: sums over many half-precision numbers would lose digits."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def squares(input: Tensor) -> Tensor:
    """x², element by element."""
    return _Squares.apply(input)


class _Squares(torch.autograd.Function):
    """y = x²; dy = 2x dx."""

    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor) -> Tensor:
        return input * input

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return torch.addcmul(grad.new_zeros(()), grad, input, value=2)


def noisy(mean: Tensor, variance: Tensor, noise: Tensor | None = None) -> Tensor:
    """`mean + sqrt(variance) ⊙ ε`, with ε ~ N(0, 1) per element unless `noise` gives it.

    A variance of 0 (padding, dead units) counts as the smallest normal float, where the square root still has
    a finite slope.
    """
    return _Noisy.apply(mean, variance, normal_like(mean) if noise is None else noise)[0]


class _Noisy(torch.autograd.Function):
    """(mean + s ⊙ ε, s) with s = sqrt(variance); ds = dvariance / 2s."""

    generate_vmap_rule = True

    @staticmethod
    def forward(mean: Tensor, variance: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        wide = at_least_float32(variance)
        std = wide.clamp_min(torch.finfo(wide.dtype).tiny).sqrt_().to(variance.dtype)
        return torch.addcmul(mean, std, noise), std

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[2], output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_std: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        noise, std = ctx.saved_tensors
        slope = None if grad is None else grad * noise
        if grad_std is not None:  # in derivatives of higher order
            slope = grad_std if slope is None else slope + grad_std
        if slope is not None:
            slope = slope.div(std).mul_(0.5)
            if std.dtype == torch.float16:  # whose smallest number is above the smallest deviation
                slope = slope.masked_fill(std == 0, 0.0)
        return grad, slope, None


def gaussian_sums(mean: Tensor, std: Tensor, center: float) -> tuple[Tensor, Tensor]:
    """Σ σ² + (μ − center)² and Σ log σ for vectors μ and σ: the two scalars that make a Gaussian KL."""
    return _GaussianSums.apply(mean, std, center)


class _GaussianSums(torch.autograd.Function):
    """dΣσ² = 2σ dσ; dΣ(μ − c)² = 2(μ − c) dμ; dΣ log σ = dσ / σ."""

    generate_vmap_rule = True

    @staticmethod
    def forward(mean: Tensor, std: Tensor, center: float) -> tuple[Tensor, Tensor]:
        distance = mean - center if center else mean
        return torch.dot(std, std) + torch.dot(distance, distance), std.log().sum()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.center = inputs[2]

    @staticmethod
    def backward(ctx: Any, squares: Tensor, logs: Tensor) -> tuple[Tensor, Tensor, None]:
        mean, std = ctx.saved_tensors
        distance = mean - ctx.center if ctx.center else mean
        return distance * (2 * squares), torch.div(logs, std).addcmul_(std, 2 * squares), None
