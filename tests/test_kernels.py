"""Closed gradients against autograd's own and finite differences, and noise against the normal distribution."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from layers import kernels
from layers.kernels import gaussian_sums, in_few_rows, noisy, normal_like, rho_to_std, rhos_to_stds, squares, std_to_rho


def plain_noisy(mean: Tensor, variance: Tensor, noise: Tensor) -> Tensor:
    return mean + variance.sqrt() * noise


@pytest.mark.parametrize("order", [1, 2])
def test_noisy_has_the_derivatives_of_plain_torch(order: int) -> None:
    mean, variance = (torch.rand(4, 3, dtype=torch.float64).add(0.1).requires_grad_() for _ in range(2))
    noise = torch.randn(4, 3, dtype=torch.float64)

    def fused(mean: Tensor, variance: Tensor) -> Tensor:
        return noisy(mean, variance, noise)

    torch.testing.assert_close(fused(mean, variance), plain_noisy(mean, variance, noise))
    check = torch.autograd.gradcheck if order == 1 else torch.autograd.gradgradcheck
    assert check(fused, (mean, variance))


def test_squares_are_those_of_plain_torch() -> None:
    input = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(squares(input), input.square())
    assert torch.autograd.gradcheck(squares, (input,)) and torch.autograd.gradgradcheck(squares, (input,))


@pytest.mark.parametrize("center", [0.0, 0.3])
def test_gaussian_sums_have_the_derivatives_of_plain_torch(center: float) -> None:
    mean, std = torch.randn(7, dtype=torch.float64), torch.rand(7, dtype=torch.float64) + 0.1
    squares, logs = gaussian_sums(mean, std, center)
    torch.testing.assert_close(squares, (std.square() + (mean - center).square()).sum())
    torch.testing.assert_close(logs, std.log().sum())
    inputs = mean.requires_grad_(), std.requires_grad_()
    assert torch.autograd.gradcheck(lambda *both: gaussian_sums(*both, center), inputs)
    assert torch.autograd.gradgradcheck(lambda *both: gaussian_sums(*both, center), inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_softplus_and_its_inverse_are_exact_to_a_few_units_in_the_last_place(dtype: torch.dtype) -> None:
    """Against the formulas in float64, in one block and in several; the inverse near 0 to an absolute error."""
    eps, lowest = torch.finfo(dtype).eps, math.log(torch.finfo(dtype).tiny)
    rho = torch.cat([torch.linspace(max(lowest, -80), 120, 50_000), torch.randn(30_000) - 4]).to(dtype)
    wide = rho.double()
    std = wide.clamp_min(0) + wide.abs().neg().exp().log1p()
    limit = 4 * eps if dtype != torch.float64 else 1e-14
    for values in (rho, rho[:1000]):
        assert len(values) == 1000 or len(values) > 2 * kernels.BLOCK
        assert ((kernels.softplus(values) - std[: len(values)]).abs() / std[: len(values)]).max() < limit
    wide = std.to(dtype).double()
    inverse = wide + torch.log(-torch.expm1(-wide))
    assert ((std_to_rho(std.to(dtype)) - inverse).abs() / inverse.abs().clamp_min(1)).max() < limit


def test_spread_is_softplus_and_its_logarithm_never_loses_its_slope() -> None:
    rho = torch.linspace(-30, 19, 50, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(rho_to_std(rho), rho.exp().log1p())
    assert torch.autograd.gradcheck(rho_to_std, (rho,)) and torch.autograd.gradgradcheck(rho_to_std, (rho,))
    deep = torch.tensor([-79.0, -100.0, -1000.0], requires_grad=True)
    rho_to_std(deep).log().sum().backward()
    torch.testing.assert_close(deep.grad, torch.ones(3))


def test_what_is_computed_in_few_rows_is_what_is_computed_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SMALL", 5)
    tensors = [torch.randn(shape) for shape in ((2, 2), (3, 2), (5,), (), (4, 4))]
    rows = in_few_rows(tensors)
    assert [row.numel() for row in rows] == [6, 16, 10]
    assert torch.equal(torch.cat(rows).sort().values, torch.cat([t.flatten() for t in tensors]).sort().values)
    for std, rho in zip(rhos_to_stds(tensors), tensors, strict=True):
        assert torch.equal(std, rho_to_std(rho))
    assert rhos_to_stds([]) == [] == in_few_rows([])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_noise_is_normal_and_laid_out_as_asked(layout: torch.memory_format) -> None:
    like = torch.empty(64, 20, 16, 16).to(memory_format=layout)
    noise = normal_like(like)
    assert noise.stride() == like.stride()
    values = noise.flatten().double().sort().values
    count = values.numel()
    distance = (torch.special.ndtr(values) - (torch.arange(count) + 0.5) / count).abs().max()
    assert distance < 1.95 / math.sqrt(count)  # Kolmogorov-Smirnov, at one in a thousand
    for power, moment in ((2, 1.0), (4, 3.0), (6, 15.0)):
        assert values.pow(power).mean().item() == pytest.approx(moment, rel=0.05)
    for axis in range(4):  # neighbours along every axis know nothing of each other
        rest = noise.shape[axis] - 1
        product = noise.narrow(axis, 0, rest) * noise.narrow(axis, 1, rest)
        assert abs(product.mean().item()) < 5 / math.sqrt(product.numel())
