"""The Gaussian likelihood and its predictive, against torch.distributions and the law of total variance."""

from __future__ import annotations

import math

import pytest
import torch
from torch import distributions, nn

from inference import posterior_draws, regression_predictive
from layers import BBBLinear, ModuleWrapper
from likelihoods import Gaussian, GaussianLikelihood, RegressionPredictive


@pytest.mark.parametrize("predicted", [False, True])
def test_the_likelihood_is_that_of_torch_distributions(predicted: bool) -> None:
    likelihood = GaussianLikelihood(2, predicted, noise=0.7)
    output, targets = torch.randn(9, 4 if predicted else 2), torch.randn(9, 2)
    mean, variance = likelihood.moments(output)
    expected = -distributions.Normal(mean, variance.sqrt()).log_prob(targets).sum(-1).mean()
    torch.testing.assert_close(likelihood(output, targets), expected)
    if predicted:
        torch.testing.assert_close(variance.sqrt(), nn.functional.softplus(output[:, 2:]))
        assert not list(likelihood.parameters())
    else:
        torch.testing.assert_close(variance, torch.full((9, 2), 0.49))
    with pytest.raises(ValueError, match=f"expected {4 if predicted else 2} outputs per example, got 3"):
        likelihood(torch.randn(9, 3), targets)


def test_learnt_noise_finds_the_deviation_of_the_residuals() -> None:
    likelihood = GaussianLikelihood(noise=2.0)
    targets = 0.3 * torch.randn(500, 1)
    optimizer = torch.optim.Adam(likelihood.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        likelihood(torch.zeros(500, 1), targets).backward()
        optimizer.step()
    assert likelihood.moments(torch.zeros(1, 1))[1].sqrt().item() == pytest.approx(
        targets.square().mean().sqrt().item(), rel=1e-3
    )


def test_the_variances_are_those_of_the_draws() -> None:
    net = ModuleWrapper(BBBLinear(3, 2, priors={"posterior_rho_initial": (-1.0, 0.3)}))
    likelihood = GaussianLikelihood(1, predicted=True)
    inputs = torch.randn(6, 3)
    predictive = regression_predictive(net, likelihood, inputs, num_samples=40, batch_size=4, seed=5)
    with torch.no_grad():
        outputs = torch.stack([draw(inputs)[0] for draw in posterior_draws(net, 40, seed=5)])
    variances = nn.functional.softplus(outputs[..., 1:]).square()
    torch.testing.assert_close(predictive.mean, outputs[..., :1].mean(0))
    torch.testing.assert_close(predictive.aleatoric, variances.mean(0))
    torch.testing.assert_close(predictive.epistemic, outputs[..., :1].var(0, correction=0))
    torch.testing.assert_close(predictive.std.square(), predictive.aleatoric + predictive.epistemic)


def test_the_epistemic_variance_is_that_of_a_linear_layer() -> None:
    """Var f(x) = Σ σ_w² x² + σ_b², in closed form."""
    layer = BBBLinear(3, 1, priors={"posterior_rho_initial": (-1.0, 0.3)})
    inputs = torch.randn(5, 3)
    predictive = regression_predictive(layer, GaussianLikelihood(), inputs, num_samples=4000)
    variance = layer.operation(inputs.square(), *layer.variances()).detach()
    torch.testing.assert_close(predictive.epistemic, variance, rtol=0.12, atol=0)
    assert ((predictive.mean - layer.operation(inputs, *layer.means())).abs() < 5 * (variance / 4000).sqrt()).all()
    assert predictive.aleatoric.mean().item() == pytest.approx(1.0, abs=1e-5) and math.isfinite(
        predictive.std.sum().item()
    )


def test_targets_in_small_units_and_outputs_in_half_precision_have_their_noise() -> None:
    """A change of units adds log(scale) to the NLL; the least noise is relative to the scale."""
    task, unit = Gaussian(center=(0.0,), scale=(1e-7,)), Gaussian()
    output, targets = torch.randn(5, 2), torch.randn(5, 1)
    expected = unit.loss(output, targets).item() + math.log(1e-7)
    assert task.loss(output, 1e-7 * targets).item() == pytest.approx(expected, abs=1e-4)
    predictives = [each.module.summarize([output]) for each in (unit, task)]
    nll, small = (
        each.validation(predictive, each.scale[0] * targets)["nll"]
        for each, predictive in zip((unit, task), predictives, strict=True)
    )
    assert small == pytest.approx(nll + math.log(1e-7), abs=1e-4)
    for one, other in zip(task.module.moments(output.half()), task.module.moments(output.half().float()), strict=True):
        assert torch.equal(one, other)


def test_targets_of_another_shape_and_an_impossible_noise_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected targets of shape \(9, 1\), got \(9,\)"):
        GaussianLikelihood()(torch.randn(9, 1), torch.randn(9))
    for noise in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="noise must be above 0 and finite"):
            GaussianLikelihood(noise=noise)
    assert GaussianLikelihood(noise=1000.0).moments(torch.zeros(1, 1))[1].item() == pytest.approx(1e6)


def test_intervals_have_their_coverage_and_a_wrong_deviation_is_corrected() -> None:
    """y ~ N(mean, s²) of two targets; the first's deviation is told as it is, the second's as half of it."""
    held_out, fresh, level = 4000, 40_000, 0.8
    std = torch.rand(held_out + fresh, 2) + 0.5
    targets = std * torch.randn(held_out + fresh, 2)
    told = std * torch.tensor([1.0, 0.5])
    parts = [
        RegressionPredictive(torch.zeros(len(s), 2), 0.36 * s.square(), 0.64 * s.square())
        for s in told.split([held_out, fresh])
    ]
    before, after = targets.split([held_out, fresh])
    low, high = parts[1].interval(level)
    expected = torch.special.ndtri(torch.tensor((1 + level) / 2)) * told[held_out:]
    torch.testing.assert_close(high, expected)
    torch.testing.assert_close(low, -expected)
    sampling = 4 * math.sqrt(level * (1 - level) * (1 / held_out + 1 / fresh))
    half = torch.special.erf(torch.special.ndtri(torch.tensor((1 + level) / 2)) / 2 / math.sqrt(2))
    covered = parts[1].coverage(after, level)
    torch.testing.assert_close(covered, torch.tensor([level, half]).double(), rtol=0, atol=sampling)
    scale = parts[0].conformal_scale(before, level)
    torch.testing.assert_close(scale, torch.tensor([1.0, 2.0]), rtol=0.06, atol=0)
    corrected = parts[1].coverage(after, level, scale)
    torch.testing.assert_close(corrected, torch.full((2,), level).double(), rtol=0, atol=sampling)
    few = RegressionPredictive(torch.zeros(3, 1), torch.ones(3, 1), torch.ones(3, 1))
    assert few.conformal_scale(torch.zeros(3, 1), 0.9).tolist() == [math.inf]
    for broken in (0.0, 1.0, -0.5, math.nan):
        with pytest.raises(ValueError, match="level must be between 0 and 1"):
            few.interval(broken)
