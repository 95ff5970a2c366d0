"""Prediction in one pass: each rule against closed forms and a million draws, whole networks against many draws."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from conftest import bayesian_settings
from torch import Tensor, nn
from torchvision import models

from images import load_data, normalize
from inference import Classifier, MomentNetwork, export_network, posterior_predictive
from inference.prediction import posterior_outputs, predict
from layers import BBBConv1d, BBBConv2d, BBBConvTranspose2d, BBBLinear, ModuleWrapper, sampling, to_bayesian
from likelihoods import scores
from models import build
from moments import (
    RULES,
    Link,
    MissingRuleError,
    Moments,
    Propagation,
    cholesky,
    fixed_normals,
    known_weights,
    link_draws,
    logit_covariance,
    logit_draws,
    maximum_moments,
    propagate,
    relu_moments,
    rule,
    scalar_moments,
    weight_moments,
)
from support import UserError
from training import run

DRAWS = 1_000_000
WIDE = {"posterior_rho_initial": (-2.0, 0.3)}


def standard_normals() -> Tensor:
    """A million draws of mean 0 and variance 1 exactly."""
    noise = torch.randn(DRAWS, dtype=torch.float64)
    return (noise - noise.mean()) / noise.std()


@pytest.mark.parametrize("mean", [-1e6, -8.0, -3.0, -0.5, 0.0, 0.5, 3.0, 1e3, 1e6])
@pytest.mark.parametrize("variance", [0.0, 1e-6, 1.0, 25.0, 1e6])
@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_rectified_normals_have_the_moments_of_a_million_draws(mean: float, variance: float, slope: float) -> None:
    values = mean + math.sqrt(variance) * standard_normals()
    outputs = F.leaky_relu(values, slope)
    net = Moments(torch.tensor([mean]), torch.tensor([variance]))
    result = (F.relu(net) if slope == 0 else F.leaky_relu(net, slope)).settled()
    noise = 5 * math.sqrt(variance / DRAWS)
    assert result.mean_value.item() == pytest.approx(outputs.mean().item(), abs=noise + 1e-6 * abs(mean) + 1e-12)
    assert result.variance is not None and result.variance.item() >= 0
    tolerance = variance * 8 / math.sqrt(DRAWS) + 2e-6 * variance + 1e-12
    assert result.variance.item() == pytest.approx(outputs.var().item(), abs=tolerance)
    gate = relu_moments(torch.tensor([mean]), torch.tensor([variance]))[2].item()
    if variance:
        covariance = ((values - mean) * values.clamp_min(0)).mean().item() / variance
        assert gate == pytest.approx(covariance, abs=8 / math.sqrt(DRAWS) * (1 + abs(mean) / math.sqrt(variance)))


@pytest.mark.parametrize(
    ("one", "other", "correlation"),
    [((0.0, 1.0), (0.0, 1.0), 0.0), ((0.0, 1.0), (0.0, 1.0), 0.9), ((1.0, 4.0), (-1.0, 0.1), 0.5),
     ((1e3, 1.0), (999.0, 2.0), 0.9), ((0.0, 0.0), (1.0, 1.0), 0.0), ((5.0, 0.0), (5.0, 0.0), 0.0)],
)  # fmt: skip
def test_the_maximum_of_two_normals_is_clarks(
    one: tuple[float, float], other: tuple[float, float], correlation: float
) -> None:
    first = standard_normals()
    second = correlation * first + math.sqrt(1 - correlation**2) * torch.randn(DRAWS, dtype=torch.float64)
    values = torch.maximum(one[0] + math.sqrt(one[1]) * first, other[0] + math.sqrt(other[1]) * second)
    mean, variance = maximum_moments(*map(torch.tensor, (*one, *other)), correlation)
    scale = math.sqrt(one[1] + other[1])
    assert mean.item() == pytest.approx(values.mean().item(), abs=6e-3 * scale + 1e-6 * abs(one[0]))
    assert variance.item() == pytest.approx(values.var().item(), abs=1e-2 * scale**2)


@pytest.mark.parametrize("function", [F.softplus, torch.tanh, torch.sigmoid, F.silu, F.gelu, F.hardswish])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.3), (2.0, 0.5), (-1.0, 1.0)])
def test_any_scalar_function_is_integrated(function: Any, mean: float, std: float) -> None:
    outputs = function(mean + std * standard_normals())
    first, variance, slope = scalar_moments(function, torch.tensor(mean), torch.tensor(std**2))
    assert first.item() == pytest.approx(outputs.mean().item(), abs=4e-3 * std)
    assert math.sqrt(variance.item()) == pytest.approx(outputs.std().item(), rel=0.06, abs=4e-3 * std)
    noise = standard_normals()
    covariance = (noise * function(mean + std * noise)).mean().item() / std
    assert slope.item() == pytest.approx(covariance, rel=0.06, abs=1e-2)


@pytest.mark.parametrize(
    "function", [F.relu6, F.hardtanh, partial(F.hardtanh, min_val=-2.0, max_val=0.5), F.hardsigmoid]
)
@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.3), (1.0, 3.0), (5.0, 10.0), (-40.0, 1.0), (40.0, 1.0)])
def test_a_clipped_normal_has_the_closed_form(function: Any, mean: float, std: float) -> None:
    outputs = function(mean + std * standard_normals())
    result = function(Moments(torch.tensor([mean]), torch.tensor([std**2]))).settled()
    assert result.mean_value.item() == pytest.approx(outputs.mean().item(), abs=4e-3 * std)
    assert result.variance.item() == pytest.approx(outputs.var().item(), abs=4e-3 * std**2)


LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (BBBLinear(6, 4, priors=WIDE), (6,)),
    "alpha": (BBBLinear(6, 4, alpha_shape=(1, 1), priors={"posterior_log_alpha_initial": -1.0}), (6,)),
    "conv1d": (BBBConv1d(3, 4, 3, padding=1, stride=2, priors=WIDE), (3, 7)),
    "conv2d": (BBBConv2d(3, 4, 3, padding=1, dilation=2, priors=WIDE), (3, 7, 6)),
    "grouped": (BBBConv2d(4, 6, 3, groups=2, bias=False, priors=WIDE), (4, 5, 5)),
    "reflected": (BBBConv2d(2, 3, 3, padding=1, padding_mode="reflect", priors=WIDE), (2, 5, 5)),
    "transposed": (BBBConvTranspose2d(3, 4, 3, stride=2, output_padding=1, priors=WIDE), (3, 4, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("is_random", [True, False])
def test_a_layer_has_the_moments_of_the_closed_form(name: str, is_random: bool) -> None:
    """Of independent inputs and weights: Var Σ wx = Σ E[w²]E[x²] − E[w]²E[x]²."""
    layer, shape = LAYERS[name]
    mean, variance = torch.randn(2, *shape), torch.rand(2, *shape) * is_random
    with torch.no_grad(), sampling(layer, False), known_weights(weight_moments(layer)):
        (weight, bias), (weight_variance, bias_variance) = layer.means(), layer.variances()
        second = layer.operation(mean.square() + variance, weight.square() + weight_variance, bias_variance)
        expected = second - layer.operation(mean.square(), weight.square(), None)
        result = layer(Moments(mean, variance if is_random else None))
        torch.testing.assert_close(result.mean_value, layer.operation(mean, weight, bias))
    torch.testing.assert_close(result.variance, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("conv", "pool"),
    [({"kernel_size": 5}, {"kernel_size": 2}), ({"kernel_size": 3, "padding": 1}, {"kernel_size": 3, "stride": 2}),
     ({"kernel_size": 4, "stride": 2, "padding": 2, "groups": 2}, {"kernel_size": (2, 3), "stride": 1}),
     ({"kernel_size": 3, "dilation": 2}, {"kernel_size": 2}),
     ({"kernel_size": 3}, {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
     ({"kernel_size": 3, "padding": "same"}, {"kernel_size": 2})],
)  # fmt: skip
@pytest.mark.parametrize("is_random", [True, False])
def test_a_pooled_convolution_has_the_mean_variance_of_each_window(
    conv: dict[str, Any], pool: dict[str, Any], is_random: bool
) -> None:
    """Whether or not the variances outside of the pooling are computed."""
    layer = BBBConv2d(4, 6, priors=WIDE, **conv)
    input = Moments(torch.randn(2, 4, 12, 11), torch.rand(2, 4, 12, 11) if is_random else None)
    with torch.no_grad(), sampling(layer, False), known_weights(weight_moments(layer)):
        full, results = layer(input), [F.max_pool2d(F.relu(layer(input)), **pool) for _ in range(2)]
    for result in results:
        assert torch.equal(result.mean_value, F.max_pool2d(full.mean_value, **pool))
        expected = F.avg_pool2d(full.variance, **pool, count_include_pad=False)
        torch.testing.assert_close(result.variance, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "weights"),
    [
        (lambda x: torch.sum(x, 1), torch.ones(4)),
        (lambda x: torch.mean(x, 1), torch.full((4,), 0.25)),
        (lambda x: 1 - 2 * x[:, 1], torch.tensor([0.0, -2.0, 0.0, 0.0])),
        (lambda x: (-x).split(2, 1)[1].sum(-1), torch.tensor([0.0, 0.0, -1.0, -1.0])),
    ],
)
def test_a_weighted_sum_of_independent_numbers_has_the_closed_form(function: Any, weights: Tensor) -> None:
    mean, variance = torch.randn(3, 4), torch.rand(3, 4)
    result = function(Moments(mean, variance))
    torch.testing.assert_close(result.mean_value, function(mean))
    torch.testing.assert_close(result.variance, variance @ weights.square())
    assert function(Moments(mean)).variance is None


def test_a_linear_network_has_the_covariance_of_the_closed_form() -> None:
    """With h = W₁x independent over units, Cov(y) = M Var(h) Mᵀ + diag(Σ σ²E[h²] + σ_b²)."""
    first, last = BBBLinear(5, 7, priors=WIDE), BBBLinear(7, 4, priors=WIDE)
    net = ModuleWrapper(first, last).double()
    inputs = torch.randn(3, 5, dtype=torch.float64)
    with torch.no_grad():
        mean, covariance = propagate(net, inputs)
        hidden = first.operation(inputs, *first.means())
        variance = first.operation(inputs.square(), *first.variances())
        own = last.operation(hidden.square() + variance, *last.variances())
        expected = last.weight @ variance.diag_embed() @ last.weight.mT + own.diag_embed()
    torch.testing.assert_close(mean, last.operation(hidden, *last.means()))
    torch.testing.assert_close(covariance, expected)


class Branches(nn.Module):
    """Everything that a forward of one's own may do."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 4, 1)
        self.norm, self.groups, self.layer = nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.LayerNorm(32)
        self.fc1, self.fc2 = nn.Linear(32, 16), nn.Linear(16, 3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, input: Tensor) -> Tensor:
        left = F.leaky_relu(self.left(input))
        right = torch.sigmoid(self.right(input)) * 2 - 1.0
        both = self.norm(torch.cat([left, right], dim=1))
        both = both + F.silu(both)
        both = F.max_pool2d(F.relu(self.groups(both)), 3, 2, padding=1)
        both = F.avg_pool2d(both, 2).flatten(1)
        hidden = self.dropout(F.softplus(self.fc1(self.layer(both))))
        return self.fc2(hidden) / 2


def wrapped(net: nn.Module, rho: float) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    priors = {"posterior_rho_initial": (rho, 0.1)}
    return ModuleWrapper(to_bayesian(net, priors=priors, inplace=True)).eval()


NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "branches": (lambda: wrapped(Branches(), -4.0), (2, 8, 8)),
    "lenet": (lambda: build("lenet", True, 5, 1, priors={"posterior_rho_initial": (-3.5, 0.1)}).eval(), (1, 32, 32)),
    "many classes": (lambda: build("lenet", True, 60, 1, priors={"posterior_rho_initial": (-3.5, 0.1)}), (1, 32, 32)),
    "alpha": (lambda: build("lenet", True, 5, 1, activation_type="softplus", alpha_shape=(1, 1)).eval(), (1, 32, 32)),
    "resnet18": (lambda: wrapped(models.resnet18(num_classes=5), -6.0), (3, 32, 32)),
    "mobilenet_v3_small": (lambda: wrapped(models.mobilenet_v3_small(num_classes=5), -6.0), (3, 32, 32)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_whole_network_predicts_what_many_draws_predict(name: str) -> None:
    make, shape = NETWORKS[name]
    net, images = make(), torch.randn(4, *shape)
    with torch.no_grad():
        draws = predict(net, images, 60, seed=1)
        samples = Propagation(net).draws(images)
    probs, expected = samples.softmax(-1).mean(0), draws.mean(0)
    distance = 0.5 * (probs - expected).abs().sum(-1).mean()
    of_means = 0.5 * (predict_at_means(net, images) - expected).abs().sum(-1).mean()
    few = 0.5 * (draws[:25].mean(0) - expected).abs().sum(-1).mean()
    assert distance < max(2.5 * few, 0.02), f"{distance:.4f}, the means alone {of_means:.4f}, 25 draws {few:.4f}"


def predict_at_means(net: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad(), sampling(net, False):
        return net(images)[0].softmax(-1)


def test_extreme_numbers_stay_finite_and_covariances_positive() -> None:
    net = build("lenet", True, 10, 1, priors={"posterior_rho_initial": (-1.0, 2.0)})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.0)
        images = torch.stack([torch.full((1, 32, 32), value) for value in (0.0, 1.0, -1.0, 1e6, 1e-12)])
        mean, covariance = propagate(net.eval(), images)
        draws = logit_draws(mean, covariance)
    assert mean.isfinite().all() and covariance.isfinite().all() and draws.isfinite().all()
    assert (covariance.diagonal(dim1=-2, dim2=-1) >= 0).all()


def test_the_root_of_a_covariance_is_that_of_torch_and_exists_where_that_does_not() -> None:
    root = torch.randn(3, 6, 6, dtype=torch.float64)
    covariance = root @ root.mT
    jitter = 1e-5 * covariance.diagonal(dim1=-2, dim2=-1).diag_embed()
    torch.testing.assert_close(cholesky(covariance), torch.linalg.cholesky(covariance + jitter))
    singular = torch.ones(2, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(cholesky(singular) @ cholesky(singular).mT, singular, rtol=0, atol=2e-5)
    assert not cholesky(torch.zeros(2, 4, 4)).isnan().any()


def test_a_deterministic_network_predicts_its_softmax() -> None:
    net, images = build("lenet", False, 10, 1).eval(), torch.randn(4, 1, 32, 32)
    with torch.no_grad():
        probs = logit_draws(*propagate(net, images)).softmax(-1).mean(0)
        torch.testing.assert_close(probs, net(images).softmax(-1), rtol=1e-4, atol=1e-6)


def test_the_fixed_draws_have_the_moments_of_the_logits() -> None:
    noise = fixed_normals(64, 10)
    torch.testing.assert_close(noise.mean(0), torch.zeros(10), rtol=0, atol=1e-6)
    torch.testing.assert_close(noise.mT @ noise / 64, torch.eye(10), rtol=0, atol=1e-5)
    root = torch.randn(2, 4, 4)
    mean, covariance = torch.randn(2, 4), root @ root.mT
    draws = logit_draws(mean, covariance)
    torch.testing.assert_close(draws.mean(0), mean, rtol=1e-4, atol=1e-5)
    centered = (draws - mean).movedim(0, -1)
    torch.testing.assert_close(centered @ centered.mT / len(draws), covariance, rtol=1e-3, atol=1e-4)


def test_draws_over_the_links_have_the_covariance_of_the_logits() -> None:
    """Of a map of two channels of three units each, through a diagonal link and one that all outputs share."""
    std, slope = torch.rand(2, 6, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    weights, noises = torch.randn(2, 6, 6, dtype=torch.float64), torch.rand(3, 2, 6, dtype=torch.float64)
    link = Link(None, std, weights[0], noises[0], channels=2)
    link = Link(link, None, slope, noises[1], is_diagonal=True)
    link = Link(link, None, weights[1], noises[2], shared=torch.randn(2, 3, 6, dtype=torch.float64))
    draws = link_draws(link, 200_000)
    expected = logit_covariance(Moments(torch.zeros(2, 6), torch.ones(2, 6, dtype=torch.float64), link))
    covariance = torch.einsum("tni,tnj->nij", draws, draws) / len(draws)
    deviations = expected.diagonal(0, -2, -1).sqrt()
    errors = (covariance - expected) / (deviations[:, :, None] * deviations[:, None])
    assert errors.abs().max() < 5 * (2 / 100_000) ** 0.5
    torch.testing.assert_close(draws.mean(0), torch.zeros_like(std), rtol=0, atol=1e-9)
    leaf = Link(None, None, weights[0], noises[0])  # of a known input
    torch.testing.assert_close(link_draws(leaf).square().mean(0), noises[0])


def test_what_is_fitted_to_draws_holds_for_many_classes_too() -> None:
    net, images = build("lenet", True, 30, 1, priors=WIDE).eval(), torch.randn(8, 1, 32, 32)
    propagation = Propagation(net)
    with torch.no_grad():
        mean, covariance = propagation(images)
        before = (propagation.draws(images) - mean).flatten(0, 1)
        propagation.fit(images, torch.stack([mean + 2 * torch.randn(8, 30) for _ in range(40)]))
        after, fitted = (propagation.draws(images) - mean).flatten(0, 1), propagation(images)[1]
    change = torch.linalg.lstsq(before.double(), after.double()).solution.float()
    torch.testing.assert_close(after, before @ change, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(change.mT @ covariance @ change, fitted, rtol=1e-2, atol=1e-2)


def test_an_operation_without_a_rule_is_named_and_a_rule_is_a_few_lines() -> None:
    class Odd(ModuleWrapper):
        def __init__(self) -> None:
            super().__init__()
            self.fc = BBBLinear(4, 3, priors=WIDE)

        def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
            return torch.erfinv(self.fc(input).clamp(-0.9, 0.9)), self.kl()

    net, inputs = Odd(), 0.1 * torch.randn(2, 4)
    with pytest.raises(NotImplementedError, match="cannot pass through clamp: register a rule by moments.rule"):
        propagate(net, inputs)

    @rule(Tensor.clamp)
    def _clamp(input: Moments, low: float, high: float) -> Moments:
        mean, variance, _ = scalar_moments(lambda x: x.clamp(low, high), input.mean_value, input.variance)  # type: ignore[arg-type]
        return Moments(mean, variance)

    try:
        with pytest.raises(NotImplementedError, match="cannot pass through erfinv"):
            propagate(net, inputs)
    finally:
        RULES.pop(Tensor.clamp)


class Forward(nn.Module):
    """Random layers, and what is computed with them."""

    def __init__(self, forward: Callable[[Any, Any], Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, input: Any) -> Any:
        return self.function(self, input)


def two_layers(forward: Callable[[Any, Any], Any]) -> nn.Module:
    torch.manual_seed(0)
    return Forward(forward, a=BBBLinear(8, 6, priors=WIDE), b=BBBLinear(6, 3, priors=WIDE))


def writes(operation: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """A forward that uses what an operation has written into."""

    def forward(net: Any, input: Any) -> Any:
        hidden = net.a(input)
        alias = hidden
        operation(hidden)
        return net.b(alias)

    return forward


def add_in_place(hidden: Any) -> None:
    hidden += 2.0


def divide_in_place(hidden: Any) -> None:
    hidden /= 2.0


@pytest.mark.parametrize(
    ("forward", "same"),
    [
        (writes(lambda h: h.relu_()), lambda net, x: net.b(net.a(x).relu())),
        (writes(lambda h: F.relu(h, inplace=True)), lambda net, x: net.b(net.a(x).relu())),
        (writes(nn.ELU(0.5, inplace=True)), lambda net, x: net.b(F.elu(net.a(x), 0.5))),
        (writes(add_in_place), lambda net, x: net.b(net.a(x) + 2.0)),
        (writes(divide_in_place), lambda net, x: net.b(net.a(x) / 2.0)),
        (
            lambda net, x: torch.add(1.0 + x[:, :6], other=F.relu(net.a(x))),
            lambda net, x: F.relu(net.a(x)) + x[:, :6] + 1,
        ),
        (lambda net, x: torch.cat([net.a(x), x], axis=1), lambda net, x: torch.cat([net.a(x), x], 1)),
        (lambda net, x: net.a(x)[: len(net.a(x))], lambda net, x: net.a(x)),
    ],
)
def test_what_writes_in_place_or_names_its_arguments_has_the_same_moments(forward: Any, same: Any) -> None:
    inputs = torch.randn(2, 8)
    for one, other in zip(propagate(two_layers(forward), inputs), propagate(two_layers(same), inputs), strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one.diagonal(0, -2, -1), other.diagonal(0, -2, -1))


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: torch.max(net.a(x), 1)[0],
        lambda net, x: torch.max(net.a(x), dim=1)[0],
        lambda net, x: torch.max(net.a(x)),
        lambda net, x: net.a(x) + (net.a(x) == 0),
        lambda net, x: net.a(x) * (net.a(x) > 0),
        lambda net, x: net.a(x) ** 2,
        lambda net, x: 1 / net.a(x),
        lambda net, x: net.a(x) @ torch.ones(6, 3),
        lambda net, x: abs(net.a(x)),
        lambda net, x: net.a(x) if net.a(x) else x,
        lambda net, x: net.a(x).T,
        writes(lambda h: h.__setitem__(0, 0.0)),
    ],
)
def test_an_operator_without_a_rule_is_an_error_of_one_line(forward: Any) -> None:
    with pytest.raises(MissingRuleError, match=r"predict by draws$"):
        propagate(two_layers(forward), torch.randn(2, 8))


def test_features_in_another_order_and_multiples_have_their_own_covariance() -> None:
    inputs, order = torch.randn(2, 8), torch.tensor([2, 0, 1])
    _, covariance = propagate(two_layers(lambda net, x: net.b(F.relu(net.a(x)))), inputs)
    variances = covariance.diagonal(0, -2, -1)
    _, moved = propagate(two_layers(lambda net, x: net.b(F.relu(net.a(x)))[:, order]), inputs)
    torch.testing.assert_close(moved.diagonal(0, -2, -1), variances[:, order])
    tripled = two_layers(lambda net, x: torch.add(torch.ones(3), net.b(F.relu(net.a(x))), alpha=3))
    torch.testing.assert_close(propagate(tripled, inputs)[1].diagonal(0, -2, -1), 9 * variances)


def test_only_a_whole_map_that_becomes_a_vector_has_channels() -> None:
    maps = Moments(torch.zeros(2, 4, 9), torch.ones(2, 4, 9))
    assert maps.flatten(1).channels == F.relu(maps.flatten(1)).channels == 4
    assert maps[:, 0].channels is None and maps[0].channels is None


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"count_include_pad": False},
        {"divisor_override": 2},
        {"ceil_mode": True},
        {"ceil_mode": True, "count_include_pad": False},
    ],
)
def test_an_average_has_the_mean_deviation_of_its_window(arguments: dict[str, Any]) -> None:
    """Of elements that move together: (Σ w √v)², with the weights w by which the operation averages."""
    variances = torch.rand(1, 1, 6, 5)
    pool = partial(F.avg_pool2d, kernel_size=3, stride=2, padding=1, **arguments)
    weights = torch.autograd.functional.jacobian(pool, torch.zeros(1, 1, 6, 5))
    expected = (weights * variances.sqrt()).sum((-4, -3, -2, -1)).square()
    torch.testing.assert_close(pool(Moments(torch.zeros(1, 1, 6, 5), variances)).variance, expected)


class Averaging(nn.Module):
    """Convolution and average over the map, in one of many ways to write it, and a linear layer."""

    def __init__(self, average: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc, self.average = BBBConv2d(1, 4, 3, priors=WIDE), nn.Linear(4, 3), average

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.average(F.relu(self.conv(images))))


@pytest.mark.parametrize(
    "average",
    [
        lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
        lambda x: F.avg_pool2d(x, 6).flatten(1),
        lambda x: x.mean((2, 3)),
        lambda x: x.sum((-2, -1)) / 36,
        lambda x: x.flatten(2).transpose(1, 2).mean(1),  # tokens
        lambda x: F.linear(x.flatten(1), torch.eye(4).repeat_interleave(36, 1) / 36),
    ],
)
def test_an_average_over_a_map_has_nearly_the_variance_of_many_draws(average: Callable[[Tensor], Tensor]) -> None:
    """The positions of a channel share its kernel, so that their noise does not average out: by 1/36 if it did."""
    net, images = Averaging(average).eval(), torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        _, covariance = propagate(net, images)
        draws = torch.stack(list(posterior_outputs(net, images, 4000, 256, 0)))
    ratios = covariance.diagonal(dim1=-2, dim2=-1) / draws.var(0)
    assert ratios.min() > 0.8 and ratios.max() < 1.4


@pytest.mark.parametrize(
    ("use", "name"),
    [(lambda x, fc: F.linear(x, fc.weight * 2), "mul"), (lambda x, fc: F.linear(fc(x), fc.weight.t()), "t")],
)
def test_a_random_weight_without_a_rule_is_refused_and_not_a_point(use: Any, name: str) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = BBBLinear(5, 3, priors=WIDE)

        def forward(self, x: Tensor) -> Any:
            assert self.fc.weight.shape == (3, 5) and self.fc.weight.dim() == 2  # which asks for no value
            return use(x, self.fc)

    with pytest.raises(MissingRuleError, match=f"moments cannot pass through {name} of a random weight"):
        propagate(Own().eval(), torch.randn(4, 5))


def test_a_random_layer_of_a_constant_is_random() -> None:
    class Prompted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.prompt, self.fc = BBBLinear(2, 3, priors=WIDE), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x + self.prompt(torch.ones(1, 2)))

    net = Prompted().eval()
    _, covariance = propagate(net, torch.randn(4, 3))
    variance = net.prompt.operation(torch.ones(1, 2), *net.prompt.variances())
    expected = net.fc.weight @ variance.diag_embed() @ net.fc.weight.mT
    torch.testing.assert_close(covariance, expected.expand(4, -1, -1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_of_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    net, images = build("lenet", True, 10, 1).to(dtype).eval(), torch.randn(2, 1, 32, 32).to(dtype)
    with torch.no_grad():
        torch.testing.assert_close(propagate(net, images), propagate(copy.deepcopy(net).float(), images.float()))


def test_moments_that_were_first_used_without_gradients_have_them_later() -> None:
    net = ModuleWrapper(BBBConv2d(1, 2, 3), nn.MaxPool2d(2), nn.Flatten(), BBBLinear(18, 3)).eval()
    propagation, images = Propagation(net), torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        propagation(images)
    propagation(images)[1].sum().backward()
    rho = net.get_parameter("0.posterior.weight.rho")
    assert rho.grad is not None and rho.grad.abs().min() > 0


@pytest.mark.parametrize("classes", [10, 30])
def test_gradients_flow_through_the_prediction(classes: int) -> None:
    net = build("lenet", True, classes, 1).eval()
    Propagation(net).draws(torch.randn(2, 1, 32, 32)).log_softmax(-1).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in net.parameters())


def test_a_classifier_predicts_by_moments_as_the_library_does() -> None:
    net, images = build("lenet", True, 10, 1, priors=WIDE), torch.randint(256, (3, 1, 32, 32), dtype=torch.uint8)
    classifier = Classifier(net, tuple("0123456789"), (0.3,), (0.2,))
    expected = posterior_predictive(net, normalize(images, (0.3,), (0.2,)), method="moments")
    assert torch.equal(classifier.predict(images, method="moments").probs, expected.probs)


@pytest.mark.parametrize(
    ("classes", "alpha_shape", "suffix"), [(10, None, ".onnx"), (10, (1, 1), ".pt2"), (30, None, ".onnx")]
)
def test_it_runs_elsewhere_with_equal_outputs(
    classes: int, alpha_shape: tuple[int, ...] | None, suffix: str, tmp_path: Path
) -> None:
    """As a graph for any batch size, without random numbers, and whether or not the process predicted before."""
    net, images = build("lenet", True, classes, 1, alpha_shape=alpha_shape), torch.rand(5, 1, 32, 32)
    fixed_normals.cache_clear()
    path = export_network(MomentNetwork(net, classes, (0.3,), (0.2,)), 1, 32, tmp_path / f"network{suffix}")
    if suffix == ".onnx":
        session = onnxruntime.InferenceSession(str(path))
        outputs = [torch.from_numpy(output) for output in session.run(None, {"images": images.numpy()})]
    else:
        outputs = list(torch.export.load(path).module()(images))
    predictive = posterior_predictive(net, (images - 0.3) / 0.2, method="moments")
    expected = (predictive.probs, predictive.mutual_information, predictive.expected_entropy)
    for output, value in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, value, rtol=0, atol=1e-5)


def test_a_prediction_in_inference_mode_leaves_later_gradients_possible() -> None:
    fixed_normals.cache_clear()
    net, images = build("lenet", True, 10, 1).eval(), torch.randn(1, 1, 32, 32)
    with torch.inference_mode():
        posterior_predictive(net, images, method="moments")
    logit_draws(*propagate(net, images)).sum().backward()


def test_every_way_of_asking_gives_the_same_prediction() -> None:
    net, images = build("lenet", True, 10, 1), torch.randn(5, 1, 32, 32)
    whole = posterior_predictive(net, images, method="moments")
    parts = posterior_predictive(net, images, method="moments", batch_size=2, seed=9)
    torch.testing.assert_close(whole.probs, parts.probs)
    torch.testing.assert_close(whole.mutual_information, parts.mutual_information, rtol=1e-3, atol=1e-6)
    assert net.training
    with pytest.raises(ValueError, match="unknown method 'moment': expected 'draws' or 'moments'"):
        posterior_predictive(net, images, method="moment")


def test_the_units_of_a_channel_move_together_where_maps_enter_the_head() -> None:
    """A bias of the convolution is one noise in all positions: what it adds up to is squared, not its parts."""
    net = nn.Sequential(BBBConv2d(1, 3, 2, priors=WIDE), nn.Flatten(), nn.Linear(12, 2, bias=False)).eval()
    conv, last = net[0], net[2]
    with torch.no_grad():
        covariance = propagate(net, torch.zeros(1, 1, 3, 3))[1][0]
        shared = last.weight.view(2, 3, 4).sum(-1)  # type: ignore[operator, union-attr]
        variance = conv.posterior["bias"].variance(conv.bias)  # type: ignore[index, union-attr, operator]
        torch.testing.assert_close(covariance, shared * variance @ shared.T, rtol=1e-4, atol=1e-7)


def test_a_network_without_rules_is_one_line_before_training(tmp_path: Path) -> None:
    settings = bayesian_settings("MNIST5k", tmp_path, net_type="test_moments:odd_network", valid_ens="moments")
    with pytest.raises(UserError, match="moments cannot pass through erfinv: register a rule"):
        run(settings)


def odd_network(outputs: int, inputs: int) -> nn.Module:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(inputs * 32 * 32, outputs)

        def forward(self, input: Tensor) -> Tensor:
            return torch.erfinv(torch.tanh(self.fc(input.flatten(1))))

    return Odd()


def test_a_run_is_validated_and_tested_by_moments(tmp_path: Path) -> None:
    results = run(bayesian_settings("MNIST5k", tmp_path, n_epochs=1, valid_ens="moments", test_ens="moments"))
    data = load_data("MNIST5k", "data", 0.1, results["seed"])
    classifier = Classifier.load(tmp_path / "MNIST5k" / "bayesian" / "model_lenet.pt")
    expected = scores(classifier.predict(data.test.images, method="moments"), data.test.labels)
    assert results["test_samples"] == "moments" and results["test"] == pytest.approx(expected)
