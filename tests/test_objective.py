"""The objective and the schedules of its KL."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import bayesian_settings
from torch import distributions, nn

from layers import BBBLinear, GaussianPrior, entropy, kl_divergence
from support import UserError
from training import expected_nll, kl_weight, loop, negative_elbo, start, tempered_kl


@pytest.mark.parametrize("batches", [1, 2, 7, 100, 5000])
def test_standard_and_blundell_average_to_one_over_an_epoch(batches: int) -> None:
    for beta_type in ("Standard", "Blundell"):
        for epoch in (0, 3):
            weights = [kl_weight(beta_type, epoch * batches + i, batches, 5) for i in range(batches)]
            assert math.fsum(weights) / batches == pytest.approx(1, rel=1e-12)


def test_blundell_halves_from_batch_to_batch() -> None:
    weights = [kl_weight("Blundell", i, 10, 1) for i in range(10)]
    assert weights == pytest.approx([10 * 2 ** (10 - i) / (2**10 - 1) for i in range(1, 11)], rel=1e-12)


def test_soenderby_rises_over_the_first_quarter_and_stays() -> None:
    weights = [kl_weight("Soenderby", step, 10, 8) for step in range(80)]
    assert weights[0] == 0 and weights[10] == pytest.approx(0.5) and set(weights[20:]) == {1.0}
    assert weights == sorted(weights)
    assert kl_weight("Soenderby", 0, 1, 1) == 0 and kl_weight("Soenderby", 1, 1, 1) == 1


def test_a_number_is_the_temperature() -> None:
    assert {kl_weight(0.3, step, 4, 4) for step in range(16)} == {0.3}


def test_an_unknown_schedule_is_one_line() -> None:
    with pytest.raises(UserError, match="unknown beta_type 'blundel': did you mean 'Blundell'"):
        kl_weight("blundel", 0, 1, 1)


def test_the_objective_is_the_mean_log_likelihood_not_the_log_of_the_mean() -> None:
    labels = torch.tensor([0, 2])
    samples = [torch.randn(2, 3, dtype=torch.float64) for _ in range(4)]
    log_likelihoods = [s.log_softmax(-1)[torch.arange(2), labels] for s in samples]
    expected = -torch.stack(log_likelihoods).mean()
    torch.testing.assert_close(expected_nll(samples, labels), expected)
    mixture = -torch.stack([s.softmax(-1) for s in samples]).mean(0)[torch.arange(2), labels].log().mean()
    assert mixture < expected
    torch.testing.assert_close(expected_nll(samples[:1], labels), F.cross_entropy(samples[0], labels))


def test_the_kl_is_shared_by_the_training_examples() -> None:
    loss = negative_elbo(torch.tensor(0.5), torch.tensor(300.0), 0.1, 60)
    assert loss.item() == pytest.approx(0.5 + 0.1 * 300 / 60)


FIXED = {
    "Gaussian": (GaussianPrior(0.3, 0.7), distributions.Normal(0.3, 0.7)),
    "Gaussian of tensors": (GaussianPrior(torch.randn(3), torch.rand(4, 1) + 0.5), None),
    "Laplace": (distributions.Laplace(0.1, 0.7), distributions.Laplace(0.1, 0.7)),
}


@pytest.mark.parametrize("kind", FIXED)
def test_a_temperature_scales_the_entropy_alone(kind: str) -> None:
    """−E[log p] by 400,000 draws, H by torch."""
    prior, p = FIXED[kind]
    p = distributions.Normal(prior.mean, prior.std) if p is None else p
    layer = BBBLinear(3, 4, bias=False, priors={"prior": prior, "posterior_rho_initial": (-1.0, 0.3)})
    net = nn.Sequential(layer, nn.ReLU())
    q = distributions.Normal(layer.weight.detach(), layer.posterior["weight"].std(layer.weight).detach())
    torch.testing.assert_close(entropy(net), q.entropy().sum())
    log_probs = p.log_prob(q.sample((400_000,))).sum((1, 2))
    for temperature in (0.01, 0.5, 2.0):
        expected = -log_probs.mean() - temperature * q.entropy().sum()
        tempered = tempered_kl(kl_divergence(net), net, temperature)
        assert abs(tempered - expected) < 5 * log_probs.std() / math.sqrt(400_000) + 1e-4
    kl = kl_divergence(net)
    assert tempered_kl(kl, net, 1.0) is kl
    assert entropy(nn.Linear(2, 2)) == 0


def test_a_temperature_is_a_beta_with_a_prior_variance_scaled_by_it() -> None:
    """T·KL(q‖N(μ_p, Tσ_p²)) = −E[log p] − T·H + n(T log(2πTσ_p²) − log(2πσ_p²))/2, with the same gradients."""
    temperature, center, width = 0.3, 0.2, 0.6
    layer = BBBLinear(5, 4, dtype=torch.float64, priors={"prior_mu": center, "prior_sigma": width})
    scaled = BBBLinear(
        5, 4, dtype=torch.float64, priors={"prior_mu": center, "prior_sigma": math.sqrt(temperature) * width}
    )
    scaled.load_state_dict({name: value for name, value in layer.state_dict().items() if "prior" not in name}, False)
    tempered, cold = tempered_kl(layer.kl(), layer, temperature), temperature * scaled.kl()
    constant = temperature * math.log(2 * math.pi * temperature * width**2) - math.log(2 * math.pi * width**2)
    assert (cold - tempered).item() == pytest.approx(24 * constant / 2)
    slopes = [
        torch.autograd.grad(loss, [each.weight, each.posterior["weight"].rho])
        for loss, each in ((tempered, layer), (cold, scaled))
    ]
    torch.testing.assert_close(*slopes)


def test_a_run_trains_at_its_temperature_and_reports_the_kl(pictures: Path, tmp_path: Path) -> None:
    state, setup = start(bayesian_settings(pictures, tmp_path, beta_type=0.5, temperature=0.1, lr_start=1e-30))
    images, labels = torch.randn(64, 1, 32, 32), torch.arange(64) % 2
    parameters = list(state.net.parameters())
    torch.manual_seed(5)
    logits, kl = state.net(images)
    loss = F.cross_entropy(logits, labels) + 0.5 / len(setup.data.train) * (kl + 0.9 * entropy(state.net))
    expected = torch.autograd.grad(loss, parameters)
    seen: list[torch.Tensor] = []
    state.optimizer.register_step_pre_hook(lambda *_: seen.extend(p.grad.clone() for p in parameters))
    torch.manual_seed(5)
    reported = loop.step(state, setup, state.net, images, labels)
    torch.testing.assert_close(seen, list(expected), rtol=1e-4, atol=1e-7)
    assert reported[1] == kl.detach()


@pytest.mark.parametrize("changes", [{"alpha_shape": (1, 1)}, {"priors": {"learn_prior_sigma": True}}], ids=str)
def test_a_temperature_needs_a_fixed_prior(changes: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"needs a fixed prior, and that of conv1\.weight follows the weight: leave out"
    ):
        start(bayesian_settings(pictures, tmp_path, temperature=0.5, **changes))


def test_with_a_prior_that_follows_the_weights_the_tempered_objective_has_no_least_value() -> None:
    """Scaled by c, a weight adds (1 − T) log c to ½ log(μ² + σ²) − T log σ."""
    layer = BBBLinear(6, 5, bias=False, dtype=torch.float64, alpha_shape=(1, 1))
    before = tempered_kl(layer.kl(), layer, 0.3)
    with torch.no_grad():
        layer.weight *= 1e-3
    after = tempered_kl(layer.kl(), layer, 0.3)
    assert (after - before).item() == pytest.approx(30 * 0.7 * math.log(1e-3))
