"""The correlated Gaussian prior against torch's multivariate normal, and the one of image patches."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import distributions, nn

from layers import (
    BBBConv1d,
    BBBConv2d,
    BBBLinear,
    CorrelatedGaussianPrior,
    GaussianPosterior,
    GaussianPrior,
    Prior,
    parameter_groups,
)
from training import IVON


def covariance(size: int) -> torch.Tensor:
    root = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    return root @ root.T / size + 0.3 * torch.eye(size, dtype=torch.float64)


CASES = {
    "a square kernel": (BBBConv2d, (2, 3, 3), None, 9, 0.1),
    "a mean per position": (BBBConv1d, (2, 3, 4), (4,), 4, torch.tensor([0.0, 0.1, -0.2, 0.3])),
    "the inputs of a linear layer": (BBBLinear, (6, 5), (6,), 6, 0.0),
}


@pytest.mark.parametrize("case", CASES)
def test_the_kl_to_a_correlated_prior_is_that_of_multivariate_normals(case: str) -> None:
    kind, arguments, kernel, size, center = CASES[case]
    prior = CorrelatedGaussianPrior(covariance(size), kernel, center)
    layer = kind(*arguments, dtype=torch.float64, priors={"prior": prior, "posterior_rho_initial": (-1.0, 0.5)})
    posterior = layer.posterior["weight"]
    assert isinstance(posterior, GaussianPosterior)
    rows, stds = layer.weight.reshape(-1, size), posterior.std(layer.weight).reshape(-1, size)
    q = distributions.MultivariateNormal(rows, torch.diag_embed(stds.square()))
    p = distributions.MultivariateNormal(torch.as_tensor(center).double().expand(size), covariance(size))
    expected, kl = distributions.kl_divergence(q, p).sum(), posterior.kl(layer.weight)
    torch.testing.assert_close(kl, expected)
    parameters = [layer.weight, posterior.rho]
    slopes = torch.autograd.grad(kl, parameters)
    torch.testing.assert_close(slopes, torch.autograd.grad(expected, parameters))
    pull, precision = posterior.prior.pull(layer.weight, posterior.std(layer.weight))
    torch.testing.assert_close(pull, slopes[0])
    torch.testing.assert_close(precision.flatten(), covariance(size).inverse().diagonal())
    bias = layer.posterior["bias"].prior
    assert isinstance(bias, GaussianPrior)
    assert bias.std == pytest.approx(covariance(size).diagonal().mean().sqrt().item())


def test_a_correlated_prior_is_saved_copied_and_trained_under() -> None:
    prior = CorrelatedGaussianPrior(covariance(9).float(), mean=0.2)
    layer = BBBConv2d(1, 2, 3, priors={"prior": prior, "posterior_rho_initial": (0.0, 0.2)})
    other = BBBConv2d(1, 2, 3)
    with pytest.warns(UserWarning, match="CorrelatedGaussianPrior.*replaces GaussianPrior"):
        other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other.kl(), layer.kl())
    torch.testing.assert_close(copy.deepcopy(layer).double().kl().float(), layer.kl())
    optimizer = IVON(layer, 0.2, 1, curvature_decay=0.9)  # without data it ends at the best factorized normal
    for _ in range(400):
        for parameter in layer.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), torch.full((2, 1, 3, 3), 0.2), atol=0.02, rtol=0)
    stds = layer.posterior["weight"].std(layer.weight).detach()[0, 0].flatten()
    torch.testing.assert_close(stds, covariance(9).inverse().diagonal().rsqrt().float(), rtol=0.01, atol=0)


@pytest.mark.parametrize(
    ("matrix", "kernel", "message"),
    [
        (torch.eye(8), None, r"a covariance of shape \(8, 8\) does not fit a kernel \(2, 2\)"),
        (torch.eye(9), (5,), "does not fit a kernel"),
        (torch.ones(9), None, "does not fit a kernel"),
        (torch.ones(4, 4), None, "must be symmetric and positive definite"),
        (torch.eye(4) + torch.ones(4, 4).triu(1), None, "must be symmetric and positive definite"),
        (torch.full((4, 4), torch.nan), None, "must be symmetric and positive definite"),
    ],
)
def test_a_matrix_that_is_no_covariance_is_refused(
    matrix: torch.Tensor, kernel: tuple[int, ...] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        CorrelatedGaussianPrior(matrix, kernel)


def test_a_kernel_that_does_not_fit_the_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="does not broadcast to weights"):
        BBBConv2d(1, 2, 5, priors={"prior": CorrelatedGaussianPrior(torch.eye(9))})


def test_a_prior_of_your_own_stays_when_weights_are_loaded_also_with_a_gaussians_names() -> None:
    class Own(Prior):
        def __init__(self, mean: float) -> None:
            super().__init__()
            self.register_buffer("mean", torch.tensor(mean))

        def kl(self, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
            return 7 * (mean - self.mean).square().sum()

    saved, layer = (BBBLinear(3, 2, priors={"prior": Own(mean)}) for mean in (1.0, 2.0))
    layer.load_state_dict(saved.state_dict())
    assert torch.equal(layer.kl(), saved.kl())
    layer.load_state_dict(BBBLinear(3, 2).state_dict())  # of a layer with another prior, which comes along
    assert isinstance(layer.posterior["weight"].prior, GaussianPrior)


def test_what_a_prior_of_your_own_learns_has_the_rate_of_the_means() -> None:
    class Own(Prior):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

    layer = BBBLinear(3, 2, priors={"prior": Own()})
    _, fast = parameter_groups(layer, 1e-3)
    assert {id(p) for p in fast["params"]} == {id(posterior.rho) for posterior in layer.posterior.values()}


@pytest.mark.parametrize("std", [[0.0, -1.0], [1.0, torch.nan], [1.0, torch.inf]])
def test_a_tensor_that_is_no_deviation_is_refused(std: list[float]) -> None:
    with pytest.raises(ValueError, match="a Gaussian prior needs a finite mean and a std above 0, got std="):
        GaussianPrior(0.0, torch.tensor(std))
