"""The inner loops of the layers, with gradients in closed form.

Each is a `torch.autograd.Function` because autograd, left to itself, makes a pass over memory and keeps a
tensor for every operation. What a function keeps for its backward pass are inputs and outputs alone, so
derivatives of any order, `torch.func` in reverse mode and `torch.compile` see through it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

RHO_FLOOR = -80.0  # softplus leaves float32 a little below it; float16 it leaves before
SMALL = 100_000  # elements: of a smaller tensor, an operation costs more than what it does to each


def rho_to_std(rho: Tensor) -> Tensor:
    """σ = softplus(ρ), at least 2e-35 (float16: 6e-5): there σ stays, and its logarithm keeps its slope of 1."""
    return _RhoToStd.apply(rho)


class _RhoToStd(torch.autograd.Function):
    """dσ = sigmoid(ρ) dρ."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rho: Tensor) -> Tensor:
        return F.softplus(rho.clamp_min(_floor(rho)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (rho,) = ctx.saved_tensors
        return grad * rho.clamp_min(_floor(rho)).sigmoid_()


def std_to_rho(std: Tensor) -> Tensor:
    """ρ = softplus⁻¹(σ) = σ + log(1 − e^−σ), of σ above 0."""
    return std + torch.log(-torch.expm1(-std))


def _floor(rho: Tensor) -> float:
    return max(RHO_FLOOR, math.log(torch.finfo(rho.dtype).tiny))


def rhos_to_stds(rhos: Sequence[Tensor]) -> list[Tensor]:
    """`rho_to_std` of each tensor, in few operations."""
    kinds = {(rho.dtype, rho.device) for rho in rhos}
    if len(kinds) > 1:
        return [rho_to_std(rho) for rho in rhos]
    rows = [rho_to_std(row) for row in in_few_rows(rhos)]
    small = [rho.numel() for rho in rhos if rho.numel() <= SMALL]
    parts = iter(rows.pop().split(small) if small else ())
    large = iter(rows)
    return [next(parts if rho.numel() <= SMALL else large).view_as(rho) for rho in rhos]


def in_few_rows(tensors: Sequence[Tensor]) -> list[Tensor]:
    """All elements in vectors: one for each large tensor, then one for the small ones together."""
    rows = [tensor.flatten() for tensor in tensors if tensor.numel() > SMALL]
    small = [tensor.flatten() for tensor in tensors if tensor.numel() <= SMALL]
    return [*rows, torch.cat(small)] if small else rows


def normal_like(tensor: Tensor) -> Tensor:
    """ε ~ N(0, 1) an element, laid out in memory as `tensor` is.

    `torch.randn_like` is six times as slow on a CPU where the last axis is not the innermost (channels_last):
    its fast path fills memory in order.
    """
    if tensor.is_contiguous():
        return torch.randn_like(tensor)
    strides = tensor.stride()
    inward = sorted(range(tensor.dim()), key=strides.__getitem__, reverse=True)
    outward = sorted(range(tensor.dim()), key=inward.__getitem__)
    return torch.randn_like(tensor.permute(inward)).permute(outward)


def unit_of_squares(input: Tensor) -> float:
    """The u in whose units of u² an operation on `input` adds up variances.

    Squares halve the range of a float. Half of what is left of float32's, 1e−19 to 1e19, is for inputs that no
    network has; u = 1,024 moves it to 1e−16 to 1e22. A power of two, it changes no digit. float16 has no room for it,
    and whole numbers (indices) are not squared.
    """
    kind = input.device.type
    cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)  # the meta device has none
    lowest = torch.get_autocast_dtype(kind) if cast else input.dtype
    return 1.0 if lowest == torch.float16 or not input.is_floating_point() else 1024.0


def squares(input: Tensor, unit: float = 1.0) -> Tensor:
    """(x / unit)², an element; x² itself may overflow."""
    return _Squares.apply(input, unit**-2)


class _Squares(torch.autograd.Function):
    """y = s·x·x; dy = 2s·x dx."""

    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, scale: float) -> Tensor:
        return torch.addcmul(input.new_zeros(()), input, input, value=scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.scale = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (input,) = ctx.saved_tensors
        return torch.addcmul(grad.new_zeros(()), grad, input, value=2 * ctx.scale), None


def noisy(mean: Tensor, variance: Tensor, unit: float = 1.0) -> Tensor:
    """`mean + sqrt(variance) ⊙ ε`, ε ~ N(0, 1) an element, of a variance in units of unit².

    A variance of 0 (padding, dead units) counts as the least normal float, where the square root still has
    a finite slope.
    """
    return _Noisy.apply(mean, variance, normal_like(mean), unit)[0]


class _Noisy(torch.autograd.Function):
    """(mean + u·s ⊙ ε, s) with s = sqrt(variance); ds = dvariance / 2s."""

    generate_vmap_rule = True

    @staticmethod
    def forward(mean: Tensor, variance: Tensor, noise: Tensor, unit: float) -> tuple[Tensor, Tensor]:
        wide = variance.to(torch.promote_types(variance.dtype, torch.float32))
        std = wide.clamp_min(torch.finfo(wide.dtype).tiny).sqrt_().to(variance.dtype)
        return torch.addcmul(mean, std, noise, value=unit), std

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, float], output: tuple[Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[2], output[1])
        ctx.unit = inputs[3]

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, grad_std: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        noise, std = ctx.saved_tensors
        slope = None if grad is None else grad * noise
        if grad_std is not None:  # in derivatives of higher order
            grad_std = grad_std / ctx.unit
            slope = grad_std if slope is None else slope + grad_std
        if slope is not None:
            slope = slope.div(std).mul_(0.5 * ctx.unit)
            if std.dtype == torch.float16:  # whose least number is above the least deviation
                slope = slope.masked_fill(std == 0, 0.0)
        return grad, slope, None, None


def gaussian_sums(mean: Tensor, std: Tensor, centre: float) -> tuple[Tensor, Tensor]:
    """Σ σ² + (μ − centre)² and Σ log σ of vectors μ and σ: what a Gaussian KL is made of, two scalars."""
    return _GaussianSums.apply(mean, std, centre)


class _GaussianSums(torch.autograd.Function):
    """dΣσ² = 2σ dσ; dΣ(μ − c)² = 2(μ − c) dμ; dΣ log σ = dσ / σ."""

    generate_vmap_rule = True

    @staticmethod
    def forward(mean: Tensor, std: Tensor, centre: float) -> tuple[Tensor, Tensor]:
        distance = mean - centre if centre else mean
        return torch.dot(std, std) + torch.dot(distance, distance), std.log().sum()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.centre = inputs[2]

    @staticmethod
    def backward(ctx: Any, squares: Tensor, logs: Tensor) -> tuple[Tensor, Tensor, None]:
        mean, std = ctx.saved_tensors
        distance = mean - ctx.centre if ctx.centre else mean
        return distance * (2 * squares), torch.div(logs, std).addcmul_(std, 2 * squares), None
