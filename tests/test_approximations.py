"""Approximations made after training, SWAG and Laplace's: the distributions that they are, and how they predict."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from images import Split
from inference import (
    Classifier,
    LaplaceNetwork,
    MomentNetwork,
    PredictiveNetwork,
    Predictor,
    Swag,
    WeightDistribution,
    ensemble_predictive,
    laplace,
    posterior_draws,
    posterior_predictive,
    regression_predictive,
)
from inference.last_layer import evidence_precision
from layers import ModuleWrapper, to_bayesian
from likelihoods import GaussianLikelihood
from support import UserError


def small_net(outputs: int = 3) -> nn.Module:
    return nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs))


def classifier_of(net: nn.Module, likelihood: str | None = None) -> Classifier:
    return Classifier(net, ("a", "b", "c"), (0.5,), (0.25,), likelihood)


def covariance(distribution: WeightDistribution, sizes: list[int]) -> Tensor:
    """Of the draws, which are linear in the noise: from one draw per element of the noise, of these sizes."""
    total = sum(sizes)

    def with_noise(values: Tensor) -> Tensor:
        blocks = iter(values.split(sizes))
        draw = distribution.draw(lambda like: next(blocks).view(like.shape))
        return torch.cat([weight.flatten() for weight in draw])

    mean = with_noise(torch.zeros(total, dtype=torch.float64))
    jacobian = torch.stack([with_noise(row) - mean for row in torch.eye(total, dtype=torch.float64)])
    return jacobian.mT @ jacobian


def test_swag_is_the_gaussian_of_the_networks_that_it_has_collected() -> None:
    nets = [small_net().double() for _ in range(7)]
    weights = [nn.utils.parameters_to_vector(net.parameters()).detach() for net in nets]
    swag = Swag(nets[0], rank=4)
    for net in nets:
        swag.collect(net)
    mean = torch.stack(weights).mean(0)
    torch.testing.assert_close(nn.utils.parameters_to_vector(swag.net.parameters()), mean)
    deviations = [weights[i] - torch.stack(weights[: i + 1]).mean(0) for i in range(3, 7)]
    expected = (torch.stack(weights).var(0, correction=0).diag() + sum(torch.outer(d, d) for d in deviations) / 3) / 2
    torch.testing.assert_close(covariance(swag, [4, len(mean)]), expected)


def test_swag_knows_a_variance_that_is_small_beside_the_weights() -> None:
    """Of float32 weights around 1, whose mean and squares round to more than their variance."""
    net = nn.Linear(30, 30)
    swag, weights = Swag(net), []
    for _ in range(20):
        weights.append(1 + 1e-5 * torch.randn(930))
        nn.utils.vector_to_parameters(weights[-1], net.parameters())
        swag.collect(net)
    torch.testing.assert_close(swag.variance, torch.stack(weights).double().var(0, correction=0))


@pytest.mark.parametrize("likelihood", [None, "bernoulli"])
def test_laplace_has_the_precision_of_the_hessian_where_its_factors_are_exact(likelihood: str | None) -> None:
    """Copies of one image: then the Kronecker product is the Hessian of the NLL of each parameter of the layer."""
    torch.manual_seed(1)
    net = small_net().double()
    images = torch.randint(256, (1, 1, 32, 32), dtype=torch.uint8).expand(9, -1, -1, -1)
    classifier = classifier_of(net, likelihood)
    approximate = laplace(replace(classifier, net=net.float()), Split(images, torch.arange(9) % 3), precision=0.7).net
    assert isinstance(approximate, LaplaceNetwork)
    features = net[:4](classifier.normalize(images)).double().detach()
    last = net[4].double()
    targets = F.one_hot(torch.arange(9) % 3, 3).double() if likelihood else torch.arange(9) % 3

    def loss(weight: Tensor, bias: Tensor) -> Tensor:
        logits = F.linear(features, weight.view(3, 5), bias)
        if likelihood:
            nll = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
        else:
            nll = F.cross_entropy(logits, targets, reduction="sum")
        return nll + 0.35 * (weight.square().sum() + bias.square().sum())

    at = (last.weight.detach().flatten(), last.bias.detach())
    hessian = torch.autograd.functional.hessian(loss, at)
    drawn = covariance(approximate.double(), [15, 3])
    torch.testing.assert_close(drawn[:15, :15].inverse(), hessian[0][0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(drawn[15:, 15:].inverse(), hessian[1][1], rtol=1e-4, atol=1e-4)


def test_the_precision_of_the_prior_maximizes_the_evidence() -> None:
    generator = torch.Generator().manual_seed(0)
    curvatures = torch.rand(40, generator=generator, dtype=torch.float64).square() * 100
    weights = torch.randn(40, generator=generator, dtype=torch.float64)

    def evidence(precision: float) -> float:  # its logarithm, but for what does not depend on the prior
        logs = (curvatures + precision).log().sum() - 40 * torch.tensor(precision).log()
        return float(-0.5 * (precision * weights.square().sum() + logs))

    best = evidence_precision([curvatures], [weights])
    assert evidence(best) > max(evidence(best * 1.01), evidence(best / 1.01))


def collected(net: nn.Module) -> Swag:
    swag = Swag(net, rank=3)
    for _ in range(4):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
        swag.collect(net)
    return swag


def fitted(net: nn.Module) -> nn.Module:
    images = torch.randint(256, (40, 1, 32, 32), dtype=torch.uint8)
    return laplace(classifier_of(net), Split(images, torch.arange(40) % 3)).net


@pytest.mark.parametrize("approximation", [collected, fitted])
def test_a_classifier_predicts_by_draws_of_it(approximation: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(2)
    images = torch.randint(256, (6, 1, 32, 32), dtype=torch.uint8)
    distribution = approximation(small_net())
    classifier = classifier_of(distribution)
    predictive = classifier.predict(images, num_samples=5, seed=3)
    inputs = classifier.normalize(images)
    outputs = torch.stack([draw(inputs).detach() for draw in posterior_draws(distribution, 5, 3)])
    assert outputs.std(0).min() > 0  # no draw is another one
    torch.testing.assert_close(predictive.probs, outputs.softmax(-1).mean(0))
    for other in (
        ensemble_predictive([classifier], images, 5, 3),
        Predictor(distribution, 5, 3)(inputs),
        pickle.loads(pickle.dumps(classifier)).predict(images, num_samples=5, seed=3),
    ):
        torch.testing.assert_close(other.probs, predictive.probs)
    with pytest.raises(ValueError, match="predict by draws"):
        posterior_predictive(distribution, inputs, method="moments")


@pytest.mark.parametrize(
    "use",
    [
        lambda net: Predictor(net, method="moments"),
        lambda net: regression_predictive(net, GaussianLikelihood(1), torch.zeros(2, 1, 32, 32), method="moments"),
        lambda net: MomentNetwork(net, 3, (0.5,), (0.25,)),
        lambda net: PredictiveNetwork(net, 5, (0.5,), (0.25,)),
    ],
    ids=["Predictor", "regression", "MomentNetwork", "PredictiveNetwork"],
)
def test_a_distribution_is_refused_where_it_would_count_as_a_network_without_uncertainty(
    use: Callable[[nn.Module], object],
) -> None:
    with pytest.raises(UserError, match="expect Bayesian layers, got a Swag, .*: predict by draws"):
        use(Swag(small_net()))


def test_laplace_draws_the_last_layer_alone_and_leaves_the_network_as_it_was() -> None:
    net = small_net().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    first, second = (
        {name: value.clone() for name, value in draw.state_dict().items()}
        for draw in posterior_draws(fitted(net), 2, 0)
    )
    assert net.training and all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [name for name in first if not torch.equal(first[name], second[name])] == ["4.weight", "4.bias"]


def test_laplace_takes_a_wrapped_network() -> None:
    net = small_net()
    split = Split(torch.randint(256, (9, 1, 32, 32), dtype=torch.uint8), torch.arange(9) % 3)
    wrapped, plain = (laplace(classifier_of(each), split).net for each in (ModuleWrapper(net), net))
    assert isinstance(wrapped, LaplaceNetwork) and isinstance(plain, LaplaceNetwork)
    assert torch.equal(wrapped.deviations, plain.deviations)


def test_what_cannot_be_approximated_is_one_line() -> None:
    split = Split(torch.zeros(2, 1, 32, 32, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="batch norm 1"):
        Swag(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))
    with pytest.raises(ValueError, match="at least 2, got 1"):
        Swag(small_net(), rank=1)
    with pytest.raises(UserError, match="collected 0 networks: call"):
        next(posterior_draws(Swag(small_net()), 1, 0))
    with pytest.raises(UserError, match=r"nn\.Linear as the last layer, got Conv2d"):
        laplace(classifier_of(nn.Sequential(nn.Conv2d(1, 3, 32), nn.Flatten())), split)
    with pytest.raises(UserError, match=r"nn\.Linear as the last layer"):
        laplace(classifier_of(to_bayesian(small_net())), split)
    with pytest.raises(UserError, match=r"whose inputs are \[n, features\], got \[2, 1, 1, 4\]"):
        laplace(classifier_of(nn.Sequential(nn.AvgPool2d((32, 8)), nn.Linear(4, 3), nn.Flatten())), split)
    with pytest.raises(UserError, match="no image"):
        laplace(
            classifier_of(small_net()),
            Split(split.images[:0], split.labels[:0]),
        )
