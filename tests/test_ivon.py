"""IVON: where it ends, that it is linear in the gradients, and that it is usable in a user's own loop."""

from __future__ import annotations

import copy
import doctest
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import bayesian_settings
from torch import nn

from layers import BBBLinear, ModuleWrapper, kl_divergence
from support import UserError
from training import IVON, ivon, loop, start

COUNT, NOISE, PRIOR, CENTER = 60, 0.5, 0.8, 0.3


@pytest.mark.parametrize(("beta", "temperature", "learned"), [(1.0, 1.0, False), (0.5, 0.4, False), (1.0, 1.0, True)])
@pytest.mark.parametrize("layer_type", ["lrt", "bbb", "flipout"])
def test_linear_regression_ends_at_the_analytic_posterior(
    layer_type: str, beta: float, temperature: float, learned: bool
) -> None:
    """The best factorized normal has the mean A⁻¹(XᵀY/s² + μ_p/σ_p²) and the variances 1/A_ii, A = XᵀX/s² + I/σ_p²;
    with β and T it minimizes E[nll] + β(−E[log p] − T·H)/N: A = XᵀX/s² + βI/σ_p², and variances βT/A_ii. A learned
    σ_p² is the mean of (mean − μ_p)² + variance of these.

    The outputs are 200 copies of one regression, each with noise of its own, and their mean is what is compared.
    """
    features = torch.randn(COUNT, 3, dtype=torch.float64)
    features[:, 1] += 0.7 * features[:, 0]
    targets = features @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)
    targets += NOISE * torch.randn(COUNT, 1, dtype=torch.float64)
    prior_variance = PRIOR**2
    for _ in range(100 if learned else 1):
        precision = features.T @ features / NOISE**2 + beta * torch.eye(3, dtype=torch.float64) / prior_variance
        mean = torch.linalg.solve(precision, features.T @ targets / NOISE**2 + beta * CENTER / prior_variance)[:, 0]
        std = (beta * temperature / precision.diagonal()).sqrt()
        prior_variance = float(((mean - CENTER).square() + std.square()).mean())

    priors = {"prior_mu": CENTER, "posterior_rho_initial": (-3.0, 0.1)}
    priors |= {"learn_prior_sigma": True} if learned else {"prior_sigma": PRIOR}
    layer = BBBLinear(3, 200, bias=False, dtype=torch.float64, layer_type=layer_type, priors=priors)
    optimizer = IVON(layer, 0.1, COUNT, beta, temperature, curvature_decay=0.99)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, 600)
    means, stds = [], []
    for step in range(900):
        optimizer.zero_grad()
        ((layer(features) - targets).square().mean(0).sum() / (2 * NOISE**2)).backward()
        optimizer.step()
        scheduler.step()
        if step >= 600:
            means.append(layer.weight.detach().mean(0))
            stds.append(layer.posterior["weight"].std(layer.weight).detach().log().mean(0))
    torch.testing.assert_close(torch.stack(means).mean(0), mean, rtol=0.02, atol=0)
    torch.testing.assert_close(torch.stack(stds).mean(0).exp(), std, rtol=0.02, atol=0)


class Net(ModuleWrapper):
    def __init__(self, layer_type: str = "bbb") -> None:
        super().__init__()
        self.fc1 = BBBLinear(4, 6, layer_type=layer_type)
        self.norm = nn.BatchNorm1d(6)
        self.relu = nn.ReLU()
        self.fc2 = BBBLinear(6, 3, layer_type=layer_type)


def test_a_step_is_that_of_the_paper_and_plain_parameters_take_sgd_with_momentum() -> None:
    """Against the equations as they are printed, with h, λ and δ."""
    lr, size, beta, temperature, momentum, decay = 0.3, 50, 0.5, 0.7, 0.8, 0.95
    net = Net().double()
    optimizer = IVON(net, lr, size, beta, temperature, momentum, decay, weight_decay=0.1)
    scale, delta = size / (beta * temperature), beta / size  # λ, and δ for σ_p = 1
    mean, rho = net.fc1.weight, net.fc1.posterior["weight"].rho
    expected, plain = mean.detach().clone(), net.norm.weight.detach().clone()
    curvature = 1 / (scale * F.softplus(rho.detach()).square()) - delta
    first = 1 / (scale * F.softplus(rho.detach()).square().mean())
    running, running_plain = torch.zeros_like(expected), torch.zeros_like(plain)
    for step in range(1, 6):
        for parameter in net.parameters():
            parameter.grad = 0.1 * torch.randn_like(parameter)
        std = (1 / (scale * (curvature + delta))).sqrt()
        estimate = rho.grad / (1 - torch.exp(-std)) / std  # dσ/dρ = sigmoid(ρ) = 1 − e^−σ
        running = momentum * running + (1 - momentum) * mean.grad
        running_plain = momentum * running_plain + (1 - momentum) * net.norm.weight.grad
        correction = (1 - decay) ** 2 / 2 * (curvature - estimate).square() / (curvature + delta)
        curvature = decay * curvature + (1 - decay) * estimate + correction
        slope = running / (1 - momentum**step) + delta * expected
        expected = expected - lr * first * slope / (curvature + delta)
        plain = plain - lr * (running_plain / (1 - momentum**step) + 0.1 * plain)
        optimizer.step()
        torch.testing.assert_close(mean.detach(), expected, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(
            F.softplus(rho.detach()), (1 / (scale * (curvature + delta))).sqrt(), rtol=1e-6, atol=0
        )
        torch.testing.assert_close(net.norm.weight.detach(), plain)


def train_steps(net: Net, shares: int, samples: int, scaler: torch.amp.GradScaler | None = None) -> dict[str, Any]:
    """Three steps on the same batch with the same draws, its gradient added up over shares and samples."""
    optimizer = IVON(net, 0.1, 100, beta=0.3, curvature_decay=0.9)
    inputs, targets = torch.randn(12, 4, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 3
    net.norm.eval()  # whose batch statistics would differ between shares
    for step in range(3):
        optimizer.zero_grad()
        for sample in range(samples):
            for index in range(shares):
                torch.manual_seed(100 * step + sample)
                share = slice(index * 12 // shares, (index + 1) * 12 // shares)
                loss = F.cross_entropy(net(inputs[share])[0], targets[share]) / (shares * samples)
                (loss if scaler is None else scaler.scale(loss)).backward()
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
    return copy.deepcopy(net.state_dict())


@pytest.mark.parametrize("samples", [1, 2])
def test_accumulated_and_scaled_gradients_take_the_same_step(samples: int) -> None:
    net = Net()
    whole = train_steps(copy.deepcopy(net), 1, samples)
    accumulated = train_steps(copy.deepcopy(net), 3, samples)
    scaled = train_steps(copy.deepcopy(net), 1, samples, torch.amp.GradScaler("cpu"))
    for name, value in whole.items():
        torch.testing.assert_close(accumulated[name], value, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(scaled[name], value, rtol=1e-4, atol=1e-5)
    assert (whole["fc1.posterior.weight.rho"] - net.fc1.posterior["weight"].rho).abs().min() > 1e-4


def test_a_step_whose_gradients_overflow_is_skipped_and_what_has_no_gradient_stays() -> None:
    net = Net()
    optimizer, scaler = IVON(net, 0.1, 100), torch.amp.GradScaler("cpu")
    before = copy.deepcopy(net.state_dict())
    scaler.scale(net(torch.randn(12, 4))[0].sum()).backward()
    net.fc1.posterior["weight"].rho.grad[0, 0] = torch.inf
    before |= {name: value.clone() for name, value in net.state_dict().items() if "running" in name or "num_" in name}
    scaler.step(optimizer)
    assert not optimizer.state and all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    optimizer.zero_grad()
    net.fc2(torch.randn(5, 6)).sum().backward()
    net.fc2.posterior["bias"].rho.grad = None
    optimizer.step()
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"fc2.weight", "fc2.bias", "fc2.posterior.weight.rho"}


def test_the_example_of_its_docstring_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    inputs = torch.randn(120, 4)
    data = torch.utils.data.TensorDataset(inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long())
    net = Net("lrt")
    names = {"IVON": IVON, "net": net, "data": data, "F": F}
    names["loader"] = [(data.tensors[0][i::4], data.tensors[1][i::4]) for i in range(4)] * 50
    (example,) = doctest.DocTestFinder(recurse=False).find(IVON, "IVON", globs=names)

    def figures() -> tuple[float, float]:
        with torch.no_grad():
            return float(F.cross_entropy(net(inputs)[0], data.tensors[1])), float(kl_divergence(net))

    before = figures()
    assert doctest.DocTestRunner().run(example).failed == 0 and len(example.examples) == 2
    after = figures()
    assert after[0] + after[1] / 120 < before[0] + before[1] / 120 and after[0] < 0.6 * before[0]


def test_in_a_run_the_kl_is_reported_and_is_no_part_of_the_gradients(pictures: Path, tmp_path: Path) -> None:
    settings = bayesian_settings(pictures, tmp_path, optimizer="ivon", beta_type=0.3, lr_start=0.1, train_ens=2)
    state, setup = start(settings)
    (group, *_) = state.optimizer.param_groups
    assert (group["beta"], group["train_size"], group["lr"]) == (0.3, len(setup.data.train), 0.1)
    images, labels = torch.randn(64, 1, 32, 32), torch.arange(64) % 2
    kl = float(kl_divergence(state.net).detach())
    seen: list[torch.Tensor] = []
    hook = state.optimizer.register_step_pre_hook(
        lambda *_: seen.extend(p.grad.clone() for p in state.net.parameters() if p.grad is not None)
    )
    torch.manual_seed(5)
    reported = loop.step(state, setup, state.net, images, labels)
    hook.remove()
    assert float(reported[1]) == pytest.approx(kl, rel=1e-6)

    other, _ = start(settings)
    torch.manual_seed(5)
    losses = [F.cross_entropy(other.net(images)[0], labels) for _ in range(2)]
    ((losses[0] + losses[1]) / 2).backward()
    for gradient, parameter in zip(seen, other.net.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_a_posterior_or_a_prior_that_ivon_cannot_train_is_one_line(pictures: Path, tmp_path: Path) -> None:
    for changes, message in (
        ({"alpha_shape": (1, 1)}, "IVON needs a free σ, which conv1.weight does not have, an AlphaPosterior"),
        ({"priors": {"prior": {"family": "Laplace", "loc": 0.0, "scale": 1.0}}}, "IVON needs a Gaussian prior"),
    ):
        with pytest.raises(UserError, match=message):
            start(bayesian_settings(pictures, tmp_path, optimizer="ivon", **changes))
    for arguments in ((0.1, 0), (0.1, 10, 0.0), (0.1, 10, 1.0, -1.0), (-0.1, 10), (0.1, 10, 1.0, 1.0, 1.0)):
        with pytest.raises(ValueError, match="IVON needs"):
            ivon.IVON(BBBLinear(2, 2), *arguments)
