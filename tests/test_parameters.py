"""Any parameter of any module with a posterior, by weight sampling."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from inference import posterior_draws, posterior_predictive
from layers import (
    ModuleWrapper,
    deterministic_layers,
    kl_divergence,
    parameter_groups,
    sample_parameters,
    sampling,
    start_at_means,
    to_bayesian,
    to_deterministic,
    weight_posteriors,
)
from models.torchvision_networks import torchvision_network
from moments import MissingRuleError, propagate

WIDE = {"posterior_rho_initial": (-1.0, 0.1), "prior_mu": 1.0, "prior_sigma": 0.5}


class Scaled(nn.Module):
    """A layer with a parameter of its own, which it reads twice."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((3,), 2.0))

    def forward(self, input: Tensor) -> Tensor:
        return input * self.scale / self.scale.detach()


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), Scaled(), nn.Linear(3, 2))


def test_the_posterior_is_that_of_the_parameter() -> None:
    net = sample_parameters(network(), "*.scale", priors=WIDE)
    ((name, mean, posterior),) = weight_posteriors(net)
    assert name == "3.scale" and torch.equal(mean, torch.full((3,), 2.0))
    std = posterior.std(mean)
    expected = torch.distributions.kl_divergence(Normal(mean, std), Normal(1.0, 0.5)).sum()
    torch.testing.assert_close(kl_divergence(net), expected)
    draws = torch.stack([net[3].scale.detach() for _ in range(4000)])
    torch.testing.assert_close(draws.mean(0), mean.detach(), atol=0.03, rtol=0)
    torch.testing.assert_close(draws.std(0), std.detach(), atol=0.02, rtol=0)
    with sampling(net, False):
        assert torch.equal(net[3].scale, mean)
    assert len(list(weight_posteriors(network()))) == 0


def test_a_forward_pass_has_one_draw_however_often_it_reads_it() -> None:
    """A ratio of two reads is 1 within a pass of the network."""
    net = ModuleWrapper(sample_parameters(Scaled(), "scale", priors=WIDE))
    inputs = torch.randn(5, 3)
    torch.testing.assert_close(net(inputs)[0], inputs)
    assert not torch.allclose(net.get_submodule("0")(inputs), inputs)


def test_it_trains_beside_bayesian_layers_and_is_saved_and_drawn_as_they_are() -> None:
    net = ModuleWrapper(sample_parameters(to_bayesian(network(), layer_type="bbb"), ["1.*", "*.scale"], priors=WIDE))
    names = [name for name, _, _ in weight_posteriors(net)]
    assert {"0.1.weight", "0.1.bias", "0.3.scale", "0.0.weight"} <= set(names) and not deterministic_layers(net)
    optimizer = torch.optim.Adam(parameter_groups(net, 1e-2))
    before = {name: mean.clone() for name, mean, _ in weight_posteriors(net)}
    inputs = torch.randn(16, 4)
    for _ in range(3):
        output, kl = net(inputs)
        optimizer.zero_grad()
        (output.square().mean() + kl / 100).backward()
        optimizer.step()
    assert all(not torch.equal(mean, before[name]) for name, mean, _ in weight_posteriors(net))
    again = ModuleWrapper(sample_parameters(to_bayesian(network(), layer_type="bbb"), ["1.*", "*.scale"], priors=WIDE))
    again.load_state_dict(net.state_dict())
    assert torch.equal(kl_divergence(again), kl_divergence(net))
    net.eval()
    one, other = (draw(inputs)[0].clone() for draw in posterior_draws(net, 2, seed=0))
    assert not torch.equal(one, other)
    twin = to_deterministic(net)
    assert torch.equal(
        twin.get_parameter("0.3.scale"), {name: mean for name, mean, _ in weight_posteriors(net)}["0.3.scale"]
    )
    assert kl_divergence(net) > 0 and not torch.equal(net(inputs)[0], net(inputs)[0])  # the copy's removal is its own
    with sampling(net, False), torch.no_grad():
        torch.testing.assert_close(twin(inputs)[0], net(inputs)[0])
    start_at_means(net, moped=0.1)
    for _, mean, posterior in weight_posteriors(net):
        torch.testing.assert_close(posterior.std(mean), (0.1 * mean.abs()).clamp_min(1e-6), rtol=1e-3, atol=1e-6)


def test_a_parameter_that_two_modules_share_has_one_posterior() -> None:
    """One term in the KL, and a draw of it around its mean: of deviation σ = 1 and not √2."""
    one, two = nn.LayerNorm(4000), nn.LayerNorm(4000)
    two.weight = one.weight
    net = sample_parameters(nn.Sequential(one, two), "*.weight", priors={"posterior_rho_initial": (0.5413, 0.0)})
    ((name, mean, posterior),) = weight_posteriors(net)
    assert name == "0.weight"
    torch.testing.assert_close(kl_divergence(net), posterior.kl(mean))
    draw = to_deterministic(net, sample=True)
    assert draw[0].weight is draw[1].weight
    torch.testing.assert_close((draw[0].weight - 1).std().item(), 1.0, atol=0.05, rtol=0)


def test_every_batch_norm_of_a_residual_network() -> None:
    body = to_bayesian(torchvision_network("resnet18", 4, 1, (16, 16)), layer_type="bbb", inplace=True)
    net = ModuleWrapper(sample_parameters(body, ["*bn*.weight", "*bn*.bias"], inplace=True)).eval()
    assert sum("bn" in name for name, _, _ in weight_posteriors(net)) == 2 * 17
    assert posterior_predictive(net, torch.randn(2, 1, 16, 16), 3).probs.shape == (2, 4)
    with pytest.raises(MissingRuleError, match=r"moments cannot pass through the gaussian posterior of 0\.bn1"):
        propagate(net, torch.randn(2, 1, 16, 16))


def test_statistics_of_batch_norm_are_those_over_batches_and_draws() -> None:
    """The running mean estimates the mean of the activations over the posterior, the running variance that within."""
    priors = {"posterior_rho_initial": (-1.0, 0.0)}
    net = ModuleWrapper(to_bayesian(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, momentum=None)), layer_type="bbb",
                                    priors=priors))  # fmt: skip
    inputs = torch.randn(400, 3) + 2
    with torch.no_grad():
        for _ in range(3000):
            net(inputs)
    norm, linear = net.get_submodule("0.1"), net.get_submodule("0.0")
    mean = linear.weight @ inputs.mean(0) + linear.bias
    torch.testing.assert_close(norm.running_mean, mean.detach(), atol=0.06, rtol=0)
    second = linear.weight[:, :, None] * linear.weight[:, None, :]
    second = second + torch.diag_embed(linear.posterior["weight"].std(linear.weight).square())
    within = torch.einsum("kij,ij->k", second, inputs.mT.cov())
    torch.testing.assert_close(norm.running_var, within.detach(), rtol=0.06, atol=0)


@pytest.mark.parametrize(
    ("names", "priors", "message"),
    [
        (
            "*.scales",
            None,
            r"'\*.scales' matches no parameter without a posterior: known are 0.weight, 0.b",
        ),
        (["*.scale", "num_batches"], None, "'num_batches' matches no parameter"),
        ("*.scale", {"posterior_mu_initial": (0, 1)}, "leave out posterior_mu_initial"),
    ],
)
def test_what_cannot_be_is_a_value_error(names: str, priors: dict[str, object] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_parameters(network(), names, priors=priors)
