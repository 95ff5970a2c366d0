"""Posteriors against torch.distributions and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import distributions

from layers.posterior import AlphaPosterior, GaussianPosterior, Priors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gaussian_kl_is_that_of_torch_distributions(dtype: torch.dtype) -> None:
    mean = torch.randn(7, 5, dtype=dtype, requires_grad=True)
    priors = Priors(prior_mu=0.3, prior_sigma=0.7, posterior_rho_initial=(-2.0, 1.5))
    posterior = GaussianPosterior(mean, priors)
    q = distributions.Normal(mean, posterior.std(mean))
    expected = distributions.kl_divergence(q, distributions.Normal(0.3, 0.7)).sum()
    kl = posterior.kl(mean)
    torch.testing.assert_close(kl, expected, rtol=2e-6, atol=0)
    for parameter in (mean, posterior.rho):
        torch.testing.assert_close(
            torch.autograd.grad(kl, parameter, retain_graph=True),
            torch.autograd.grad(expected, parameter, retain_graph=True),
            rtol=1e-5,
            atol=1e-6,
        )


def test_gaussian_kl_is_zero_at_the_prior_alone() -> None:
    mean = torch.full((4, 4), 0.1, dtype=torch.float64)
    rho = math.log(math.expm1(0.5))  # softplus(ρ) = 0.5
    posterior = GaussianPosterior(mean, Priors(prior_mu=0.1, prior_sigma=0.5, posterior_rho_initial=(rho, 0.0)))
    assert posterior.kl(mean).item() == pytest.approx(0, abs=1e-12)
    assert posterior.kl(mean + 0.01).item() > 0


@pytest.mark.parametrize("rho", [-100.0, -30.0, -20.0, 20.0, 100.0])
def test_gaussian_kl_and_its_gradient_are_right_where_softplus_leaves_float32(rho: float) -> None:
    mean = torch.zeros(3)
    posterior = GaussianPosterior(mean, Priors(prior_sigma=1.0, posterior_rho_initial=(rho, 0.0)))
    kl = posterior.kl(mean)
    kl.backward()
    sigma = math.log1p(math.exp(max(rho, -80))) if rho < 50 else rho  # σ has a floor where float32 would lose it
    assert kl.item() == pytest.approx(3 * (-math.log(sigma) + sigma**2 / 2 - 0.5), rel=1e-5)
    slope = (sigma - 1 / sigma) / (1 + math.exp(-max(rho, -80)))
    torch.testing.assert_close(posterior.rho.grad, torch.full((3,), slope), rtol=1e-4, atol=0)


@pytest.mark.parametrize("alpha_shape", [(1,), (1, 1), (6, 1), (6, 4)])
def test_alpha_kl_is_the_least_over_the_width_of_the_prior(alpha_shape: tuple[int, ...]) -> None:
    mean = torch.randn(6, 4, dtype=torch.float64)
    posterior = AlphaPosterior(mean, alpha_shape, Priors())
    torch.nn.init.normal_(posterior.log_alpha, -1, 2)
    std = posterior.std(mean)
    torch.testing.assert_close(std.square(), posterior.log_alpha.exp() * mean.square())
    width = (mean.square() + std.square()).sqrt()

    def kl_to(scale: float) -> torch.Tensor:
        return distributions.kl_divergence(
            distributions.Normal(mean, std), distributions.Normal(0, scale * width)
        ).sum()

    torch.testing.assert_close(posterior.kl(mean), kl_to(1.0))
    assert min(kl_to(0.99), kl_to(1.01)) > posterior.kl(mean)


@pytest.mark.parametrize("alpha_shape", [(2, 1), (6, 4, 1), (1, 6, 4), (0, 4)])
def test_an_alpha_shape_that_does_not_broadcast_is_refused(alpha_shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"does not broadcast to the weight's shape \(6, 4\)"):
        AlphaPosterior(torch.randn(6, 4), alpha_shape, Priors())


@pytest.mark.parametrize("alpha_shape", [None, (1, 1)])
def test_draws_have_the_mean_and_the_variance_of_the_posterior(alpha_shape: tuple[int, ...] | None) -> None:
    mean = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)
    priors = Priors(posterior_rho_initial=(-1.0, 0.5), posterior_log_alpha_initial=-1.0)
    posterior = GaussianPosterior(mean, priors) if alpha_shape is None else AlphaPosterior(mean, alpha_shape, priors)
    draws = torch.stack([posterior.sample(mean).detach() for _ in range(20_000)])
    std = posterior.std(mean).detach()
    assert ((draws.mean(0) - mean).abs() < 5 * std / math.sqrt(20_000)).all()
    torch.testing.assert_close(draws.var(0), posterior.variance(mean).detach(), rtol=0.06, atol=0)


@pytest.mark.parametrize(
    ("priors", "message"),
    [
        ({"prior_sgma": 1.0}, "did you mean 'prior_sigma'"),
        ({"prior_sigma": 0.0}, "prior_sigma must be above 0, got 0.0"),
        ({"prior_mu": math.nan}, "prior_mu must be finite"),
        ({"prior_sigma": "wide"}, "prior_sigma must be a number, got 'wide'"),
        ({"posterior_rho_initial": -3}, "posterior_rho_initial must be a pair"),
        ({"posterior_rho_initial": None}, "posterior_rho_initial must be a pair"),
        ({"posterior_mu_initial": (0, -1)}, "posterior_mu_initial must have a std of at least 0"),
        ([0, 1], "priors must be a dict"),
    ],
)
def test_bad_priors_are_refused_by_name(priors: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Priors.of(priors)  # type: ignore[arg-type]
