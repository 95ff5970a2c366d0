"""Bayesian layers: what they share with torch.nn, what they sample, and what they survive."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from conftest import draws_of, in_one_graph
from torch import Tensor, nn

from layers import BayesianLayer, BBBConv2d, BBBLinear, kl_divergence, sampling, to_deterministic

ESTIMATORS = ["lrt", "bbb", "flipout"]
POSTERIORS = [None, (1, 1)]
WIDE = {"posterior_rho_initial": (-1.5, 0.5), "posterior_log_alpha_initial": -1.0}
STILL = {"posterior_rho_initial": (-200.0, 0.0), "posterior_log_alpha_initial": -200.0}

CONVOLUTIONS: list[dict[str, Any]] = [
    {},
    {"stride": 2, "padding": 1},
    {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
    {"kernel_size": (3, 1), "padding": "same", "dilation": 2},
    {"padding": "valid", "groups": 2, "bias": False},
    {"padding": 2, "padding_mode": "reflect"},
    {"padding": (1, 2), "padding_mode": "circular", "stride": 2},
    {"padding": "same", "padding_mode": "replicate", "groups": 4},
]


@pytest.mark.parametrize("layer_type", ESTIMATORS)
@pytest.mark.parametrize("alpha_shape", POSTERIORS)
@pytest.mark.parametrize("arguments", CONVOLUTIONS, ids=str)
def test_a_convolution_of_no_variance_is_nn_conv2d(
    arguments: dict[str, Any], alpha_shape: tuple[int, ...] | None, layer_type: str
) -> None:
    arguments = {"in_channels": 4, "out_channels": 8, "kernel_size": 3, "dtype": torch.float64, **arguments}
    torch.manual_seed(1)
    plain = nn.Conv2d(**arguments)
    torch.manual_seed(1)
    layer = BBBConv2d(**arguments, alpha_shape=alpha_shape, layer_type=layer_type, priors=STILL)
    for images in (torch.randn(5, 4, 9, 11, dtype=torch.float64), torch.randn(4, 9, 11, dtype=torch.float64)):
        torch.testing.assert_close(layer(images), plain(images), rtol=0, atol=1e-12)


@pytest.mark.parametrize("layer_type", ESTIMATORS)
@pytest.mark.parametrize("alpha_shape", POSTERIORS)
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_of_no_variance_is_nn_linear(
    bias: bool, alpha_shape: tuple[int, ...] | None, layer_type: str
) -> None:
    torch.manual_seed(1)
    plain = nn.Linear(6, 3, bias, dtype=torch.float64)
    torch.manual_seed(1)
    layer = BBBLinear(6, 3, bias, None, torch.float64, alpha_shape=alpha_shape, layer_type=layer_type, priors=STILL)
    for shape in ((6,), (5, 6), (2, 5, 6)):
        features = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(layer(features), plain(features), rtol=0, atol=1e-12)


def test_what_nn_conv2d_refuses_is_refused_alike() -> None:
    for arguments in ({"groups": 3}, {"padding": "some"}, {"padding": "same", "stride": 2}, {"padding_mode": "odd"}):
        with pytest.raises(ValueError) as plain:
            nn.Conv2d(4, 8, 3, **arguments)  # type: ignore[arg-type]
        with pytest.raises(ValueError) as bayesian:
            BBBConv2d(4, 8, 3, **arguments)  # type: ignore[arg-type]
        assert str(plain.value) == str(bayesian.value)


def test_strides_is_an_alias_of_stride() -> None:
    assert BBBConv2d(1, 1, 3, strides=(2, 1)).stride == (2, 1)
    assert BBBConv2d(1, 1, 3, 2, strides=2).stride == (2, 2)
    with pytest.raises(ValueError, match="stride=3 and its alias strides=2 disagree"):
        BBBConv2d(1, 1, 3, stride=3, strides=2)


def test_an_unknown_estimator_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown layer_type 'mc'"):
        BBBLinear(2, 2, layer_type="mc")


@pytest.mark.parametrize("alpha_shape", [None, (1, 1), (6, 1)])
@pytest.mark.parametrize("layer_type", ESTIMATORS)
def test_a_linear_layers_output_has_the_closed_mean_and_variance(
    layer_type: str, alpha_shape: tuple[int, ...] | None
) -> None:
    layer = BBBLinear(5, 6, dtype=torch.float64, alpha_shape=alpha_shape, layer_type=layer_type, priors=WIDE)
    features = torch.randn(4, 5, dtype=torch.float64)
    mean = layer.operation(features, *layer.means()).detach()
    variance = layer.operation(features.square(), *layer.variances()).detach()
    draws = draws_of(lambda: layer(features), 20_000)
    assert ((draws.mean(0) - mean).abs() < 5 * (variance / 20_000).sqrt()).all()
    torch.testing.assert_close(draws.var(0), variance, rtol=0.08, atol=0)


@pytest.mark.parametrize("alpha_shape", [None, (1, 1), (6, 1, 1, 1), (3, 3)])
@pytest.mark.parametrize("layer_type", ESTIMATORS)
def test_a_convolutions_output_has_the_closed_mean_and_variance(
    layer_type: str, alpha_shape: tuple[int, ...] | None
) -> None:
    layer = BBBConv2d(2, 6, 3, 2, 1, dtype=torch.float64, alpha_shape=alpha_shape, layer_type=layer_type, priors=WIDE)
    images = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    mean = layer.operation(images, *layer.means()).detach()
    variance = layer.operation(images.square(), *layer.variances()).detach()
    draws = draws_of(lambda: layer(images), 20_000)
    assert ((draws.mean(0) - mean).abs() < 5 * (variance / 20_000).sqrt()).all()
    torch.testing.assert_close(draws.var(0), variance, rtol=0.08, atol=0)


@pytest.mark.parametrize("layer_type", ESTIMATORS)
def test_how_an_estimators_draws_hang_together(layer_type: str) -> None:
    """Two equal examples and two equal positions: bbb shares a draw among all, flipout within an example, lrt none."""
    layer = BBBConv2d(1, 1, 1, bias=False, dtype=torch.float64, layer_type=layer_type, priors=WIDE)
    images = torch.ones(2, 1, 1, 2, dtype=torch.float64)
    draws = draws_of(lambda: layer(images).flatten(), 4000)
    correlation = torch.corrcoef(draws.T)
    within_example, between_examples = correlation[0, 1].item(), correlation[0, 2].item()
    expected = {"lrt": (0, 0), "bbb": (1, 1), "flipout": (1, 0)}[layer_type]
    assert within_example == pytest.approx(expected[0], abs=0.08)
    assert between_examples == pytest.approx(expected[1], abs=0.08)


def test_lrt_noise_is_gaussian() -> None:
    layer = BBBLinear(1, 1, bias=False, dtype=torch.float64, priors=WIDE)
    out = layer(torch.ones(200_000, 1, dtype=torch.float64)).detach().flatten()
    standard = (out - layer.weight.detach()) / layer.posterior["weight"].std(layer.weight).detach()
    for power, expected in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        assert standard.pow(power).mean().item() == pytest.approx(expected, abs=0.08)
    inside = (standard.abs() < 1).double().mean().item()
    assert inside == pytest.approx(math.erf(math.sqrt(0.5)), abs=0.01)


def test_lrt_gradients_are_finite_where_nothing_varies() -> None:
    layer = BBBConv2d(1, 2, 3, padding=2, bias=False)
    images = torch.zeros(2, 1, 4, 4, requires_grad=True)
    layer(images).sum().backward()
    assert images.grad is not None and images.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("layer_type", ESTIMATORS)
@pytest.mark.parametrize("alpha_shape", POSTERIORS)
def test_gradients_are_those_of_finite_differences(layer_type: str, alpha_shape: tuple[int, ...] | None) -> None:
    layer = BBBConv2d(1, 2, 2, dtype=torch.float64, layer_type=layer_type, alpha_shape=alpha_shape, priors=WIDE)
    images = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def output(images: Tensor, *parameters: Tensor) -> Tensor:
        torch.manual_seed(3)
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (images,))

    assert torch.autograd.gradcheck(output, (images, *parameters))


def test_means_start_as_those_of_torch_nn_and_as_asked() -> None:
    torch.manual_seed(5)
    plain = nn.Linear(30, 40)
    torch.manual_seed(5)
    layer = BBBLinear(30, 40)
    assert torch.equal(plain.weight, layer.weight)
    asked = BBBLinear(100, 400, priors={"posterior_mu_initial": (2.0, 0.1), "posterior_rho_initial": (-3.0, 0.2)})
    rho = asked.posterior["weight"].rho
    for values, mean, std in ((asked.weight, 2.0, 0.1), (rho, -3.0, 0.2)):
        assert values.mean().item() == pytest.approx(mean, abs=0.01)
        assert values.std().item() == pytest.approx(std, rel=0.05)


@pytest.mark.parametrize("layer_type", ESTIMATORS)
def test_sampling_is_a_switch_of_its_own(layer_type: str) -> None:
    net = nn.Sequential(BBBLinear(3, 4, layer_type=layer_type, priors=WIDE), nn.Dropout(), BBBLinear(4, 2, priors=WIDE))
    features = torch.randn(5, 3)
    net.eval()
    assert not torch.equal(net(features), net(features))
    net[2].sampling = False
    with sampling(net, False):
        assert torch.equal(net(features), net(features))
        with sampling(net, True):
            assert not torch.equal(net(features), net(features))
        assert torch.equal(net(features), net(features))
    assert (net[0].sampling, net[2].sampling) == (True, False)
    with pytest.raises(KeyError), sampling(net, False):
        raise KeyError
    assert net[0].sampling


@pytest.mark.parametrize("alpha_shape", POSTERIORS)
@pytest.mark.parametrize("make", [lambda **k: BBBConv2d(2, 3, 3, **k), lambda **k: BBBLinear(6, 3, **k)])
def test_a_layer_survives_copy_pickle_state_and_casts(
    make: Callable[..., BayesianLayer], alpha_shape: tuple[int, ...] | None
) -> None:
    layer = make(alpha_shape=alpha_shape, priors={**WIDE, "prior_mu": 0.25, "prior_sigma": 0.4})
    kl = layer.kl()  # before any forward
    images = torch.randn(2, 2, 5, 5) if isinstance(layer, nn.Conv2d) else torch.randn(2, 6)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = make(alpha_shape=alpha_shape)
    other.load_state_dict(torch.load(file, weights_only=True))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), other):
        assert torch.equal(twin.kl(), kl)  # the priors came along
        torch.manual_seed(2)
        expected = layer(images)
        torch.manual_seed(2)
        assert torch.equal(twin(images), expected)
        with torch.no_grad():
            twin.weight.add_(1)
        assert not torch.equal(twin.kl(), kl) or alpha_shape
        assert torch.equal(layer.kl(), kl)
    double = layer.to(torch.float64)
    torch.testing.assert_close(double.kl().float(), kl)
    assert double(images.double()).dtype == torch.float64
    half = copy.deepcopy(layer).to(torch.bfloat16)
    assert half(images.bfloat16()).isfinite().all()
    assert half.kl().item() == pytest.approx(kl.item(), rel=0.02)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("layer_type", ESTIMATORS)
def test_a_layer_moves_to_the_gpu(layer_type: str) -> None:
    layer = BBBConv2d(1, 2, 3, layer_type=layer_type)
    kl = layer.kl()
    torch.testing.assert_close(layer.to("cuda").kl().cpu(), kl)
    assert layer(torch.randn(2, 1, 5, 5, device="cuda")).device.type == "cuda"


@in_one_graph
@pytest.mark.parametrize("alpha_shape", POSTERIORS)
@pytest.mark.parametrize("layer_type", ESTIMATORS)
def test_a_layer_compiles_in_one_graph(layer_type: str, alpha_shape: tuple[int, ...] | None) -> None:
    layer = BBBConv2d(1, 2, 3, layer_type=layer_type, alpha_shape=alpha_shape, priors=STILL)
    images = torch.randn(3, 1, 6, 6)

    def both(images: Tensor) -> tuple[Tensor, Tensor]:
        return layer(images), kl_divergence(layer)

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), both(images))


def test_layers_work_under_torch_func() -> None:
    layer = BBBLinear(3, 2, priors=WIDE)
    weights = dict(layer.named_parameters())
    buffers = dict(layer.named_buffers())

    def loss(weights: dict[str, Tensor], features: Tensor) -> Tensor:
        with sampling(layer, False):
            return torch.func.functional_call(layer, (weights, buffers), (features,)).sum()

    features = torch.randn(7, 3)
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, features)
    torch.testing.assert_close(each["weight"], features[:, None].expand(7, 2, 3))
    noisy = torch.func.vmap(layer, randomness="different")(torch.ones(5, 3))
    assert noisy.unique(dim=0).shape[0] == 5


@pytest.mark.parametrize("layer_type", ESTIMATORS)
@pytest.mark.parametrize("alpha_shape", POSTERIORS)
@pytest.mark.parametrize(
    ("make", "shape"), [(partial(BBBLinear, 24, 2), (3, 24)), (partial(BBBConv2d, 3, 2, 3), (3, 3, 4, 4))]
)
def test_under_autocast_the_moments_stay_close_and_the_kl_exact(
    make: Callable[..., BayesianLayer], shape: tuple[int, ...], alpha_shape: tuple[int, ...] | None, layer_type: str
) -> None:
    layer = make(priors=WIDE, alpha_shape=alpha_shape, layer_type=layer_type)
    features = torch.randn(shape)
    mean = layer.operation(features, *layer.means()).detach()
    variance = layer.operation(features.square(), *layer.variances()).detach()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(features).dtype == torch.bfloat16
        kl = layer.kl()
        if layer_type == "lrt":
            draws = draws_of(lambda: layer(features), 5000).float()
        else:  # of a batch of weights vmap makes operations that autocast does not know
            draws = torch.stack([layer(features).float().detach() for _ in range(5000)])
    assert torch.equal(kl, layer.kl())
    assert ((draws.mean(0) - mean).abs() < 5 * (variance / 5000).sqrt() + 0.02).all()
    torch.testing.assert_close(draws.var(0), variance, rtol=0.12, atol=0)


@pytest.mark.parametrize("alpha_shape", POSTERIORS)
def test_to_deterministic_is_the_plain_network_at_the_means(alpha_shape: tuple[int, ...] | None) -> None:
    shared = BBBLinear(6, 6, alpha_shape=alpha_shape)
    net = nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared, BBBLinear(6, 2, alpha_shape=alpha_shape)))
    plain = to_deterministic(net)
    assert type(plain[0]) is nn.Linear and plain[0] is plain[2][0]
    assert [name for name, _ in plain.named_parameters()] == ["0.weight", "0.bias", "2.1.weight", "2.1.bias"]
    features = torch.randn(3, 6)
    with sampling(net, False):
        assert torch.equal(plain(features), net(features))
    assert kl_divergence(plain).item() == 0
    assert isinstance(net[0], BBBLinear) and plain[0].weight is not net[0].weight
    assert type(to_deterministic(shared)) is nn.Linear
