"""Where the true posterior is known, variational inference finds it."""

from __future__ import annotations

import pytest
import torch

from layers import BBBLinear
from training.objective import negative_elbo


@pytest.mark.parametrize("layer_type", ["lrt", "bbb", "flipout"])
def test_linear_regression_recovers_the_analytic_posterior(layer_type: str) -> None:
    """y = Xw + noise, known noise s², prior N(0, σ_p²): the posterior is normal with precision
    A = XᵀX/s² + I/σ_p² and mean A⁻¹Xᵀy/s²; the best factorised normal has that mean and variances 1/A_ii
    (Bishop 2006, 3.49 and 10.1.2)."""
    count, noise, prior = 60, 0.5, 0.8
    features = torch.randn(count, 3, dtype=torch.float64)
    features[:, 1] += 0.7 * features[:, 0]  # correlated, so that mean field differs from the marginals
    targets = features @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)
    targets += noise * torch.randn(count, 1, dtype=torch.float64)
    precision = features.T @ features / noise**2 + torch.eye(3, dtype=torch.float64) / prior**2
    mean = torch.linalg.solve(precision, features.T @ targets / noise**2).T
    std = precision.diagonal().rsqrt()[None]

    layer = BBBLinear(
        3, 1, bias=False, dtype=torch.float64, layer_type=layer_type,
        priors={"prior_sigma": prior, "posterior_rho_initial": (-2.0, 0.0)},
    )  # fmt: skip
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.03)
    steps, averaged = 3000, 1000
    means, stds = torch.zeros_like(mean), torch.zeros_like(std)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.03 * (1 - step / steps)
        nll = (layer(features) - targets).square().mean() / (2 * noise**2)
        optimizer.zero_grad()
        negative_elbo(nll, layer.kl(), 1.0, count).backward()
        optimizer.step()
        if step >= steps - averaged:
            means += layer.weight.detach() / averaged
            stds += layer.posterior["weight"].std(layer.weight).detach() / averaged
    assert ((means - mean).abs() < 0.2 * std).all()
    torch.testing.assert_close(stds, std, rtol=0.06, atol=0)
