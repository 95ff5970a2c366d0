"""Any network made Bayesian, and back: the same forward, the same names, what was shared stays shared."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from inference.prediction import posterior_draws, posterior_predictive
from layers import (
    BayesianLayer,
    BBBConv2d,
    BBBLinear,
    BBBMultiheadAttention,
    ModuleWrapper,
    deterministic_layers,
    kl_divergence,
    sampling,
    to_bayesian,
    to_deterministic,
    weight_posteriors,
)

STILL = {"posterior_rho_initial": (-200.0, 0.0)}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": (lambda: models.resnet18(num_classes=5), (2, 3, 32, 32)),
    "mobilenet_v3_small": (lambda: models.mobilenet_v3_small(num_classes=5), (2, 3, 64, 64)),
    "transformer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu"), (2, 5, 8)),
    "transformers": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2), (2, 5, 8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("layer_type", ["lrt", "bbb", "flipout"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_converted_network_of_no_variance_is_the_original(name: str, layer_type: str) -> None:
    make, shape = NETWORKS[name]
    original = make().eval()
    bayesian = to_bayesian(original, layer_type=layer_type, priors=STILL)
    images = torch.randn(shape)
    with torch.inference_mode():
        expected = original(images)
        for network in (bayesian, to_deterministic(bayesian)):
            torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-5)
        output, kl = ModuleWrapper(bayesian)(images)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(kl, kl_divergence(bayesian)) and kl > 0
    assert type(bayesian) is type(original)
    weights = {key: value for key, value in bayesian.state_dict().items() if ".posterior." not in f".{key}"}
    assert weights.keys() == original.state_dict().keys()
    back = to_deterministic(bayesian)
    assert [(n, p.shape) for n, p in back.named_parameters()] == [(n, p.shape) for n, p in original.named_parameters()]
    assert not any(isinstance(layer, BayesianLayer) for layer in back.modules())
    assert not any(isinstance(layer, BayesianLayer) for layer in original.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_with_a_bayesian_form_has_one_and_the_rest_is_listed(name: str) -> None:
    bayesian = to_bayesian(NETWORKS[name][0]())
    means = {key for key, _, _ in weight_posteriors(bayesian)}
    normalized = {
        f"{path}.{key}"
        for path, layer in bayesian.named_modules()
        if isinstance(layer, (nn.BatchNorm2d, nn.LayerNorm))
        for key, _ in layer.named_parameters()
    }
    everything = {key for key, _ in bayesian.named_parameters() if ".posterior." not in f".{key}"}
    assert means | normalized == everything and not means & normalized
    listed = {line.split(" (")[0] for line in deterministic_layers(bayesian)}
    assert listed == {key.rpartition(".")[0] for key in normalized}


@pytest.mark.parametrize("name", ["transformer", "transformers"])
def test_in_evaluation_a_transformer_is_sampled(name: str) -> None:
    """Its fused path would take the means past the layers' forward."""
    make, shape = NETWORKS[name]
    bayesian = to_bayesian(make(), layer_type="bbb", priors={"posterior_rho_initial": (-1.0, 0.0)}).eval()
    inputs = torch.randn(shape)
    with torch.inference_mode():
        assert not torch.equal(bayesian(inputs), bayesian(inputs))
        with sampling(bayesian, False):
            assert torch.equal(bayesian(inputs), bayesian(inputs))
        draws = [draw(inputs) for draw in posterior_draws(bayesian, 2, seed=0)]
    assert not torch.equal(*draws)


def test_which_layers_become_bayesian() -> None:
    net = models.resnet18(num_classes=5)

    def chosen(layers: Any) -> list[str]:
        bayesian = to_bayesian(net, layers)
        return [name for name, layer in bayesian.named_modules() if isinstance(layer, BayesianLayer)]

    assert chosen("last") == ["fc"]
    assert chosen("layer4.1.*") == ["layer4.1.conv1", "layer4.1.conv2"]
    assert chosen(["conv1", "f?"]) == ["conv1", "fc"]
    assert chosen(lambda name, layer: isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)) == [
        "layer2.0.downsample.0", "layer3.0.downsample.0", "layer4.0.downsample.0",
    ]  # fmt: skip
    assert len(chosen("all")) == 21
    with pytest.raises(ValueError, match=r"layers='head' selects no layer: the network has conv1, layer1.0.conv1"):
        chosen("head")
    with pytest.raises(ValueError, match="selects no layer: the network has no layer with a Bayesian counterpart"):
        to_bayesian(nn.Sequential(nn.ReLU()))


def test_settings_reach_the_layers() -> None:
    net = to_bayesian(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.LSTM(3, 4)), layer_type="flipout", alpha_shape=(1, 1), inplace=False
    )
    assert isinstance(net[0], BBBConv2d) and net[0].name == "0"
    assert [net[0].layer_type, net[1].layer_type] == ["flipout", "bbb"]
    assert net[0].posterior["weight"].log_alpha.shape == (1, 1)
    with pytest.raises(ValueError, match="unknown layer_type 'mc'"):
        to_bayesian(nn.Linear(2, 2), layer_type="mc")
    with pytest.raises(ValueError, match="leave out posterior_mu_initial"):
        to_bayesian(nn.Linear(2, 2), priors={"posterior_mu_initial": (0, 1)})


def test_without_a_layer_type_each_layer_has_the_first_that_works() -> None:
    plain = nn.Sequential(nn.Linear(3, 3), nn.LSTM(3, 2))
    for posterior, first in (("gaussian", "lrt"), ("radial", "bbb")):
        net = to_bayesian(plain, posterior=posterior)
        assert [layer.layer_type for layer in net] == [first, "bbb"]


def test_a_frozen_layer_stays_frozen() -> None:
    plain = nn.Sequential(nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 2))
    learning = {name for name, parameter in to_bayesian(plain).named_parameters() if parameter.requires_grad}
    assert learning == {"1.weight", "1.bias", "1.posterior.weight.rho", "1.posterior.bias.rho"}


def test_in_place_and_as_a_copy() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    weight = net[0].weight
    copied = to_bayesian(net)
    assert type(net[0]) is nn.Linear and copied[0].weight is not weight
    assert to_bayesian(net, inplace=True) is net and isinstance(net[0], BBBLinear) and net[0].weight is weight
    single = nn.Linear(3, 4)
    bayesian = to_bayesian(single, inplace=True)
    assert isinstance(bayesian, BBBLinear) and bayesian.weight is single.weight


class Tied(nn.Module):
    """A module used twice, and a tensor that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.first = self.second = nn.Linear(4, 4)
        self.decode = nn.Linear(4, 7)
        self.decode.weight = self.embed.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.decode(self.second(self.first(self.embed(words))))


def test_what_was_tied_stays_tied_and_counts_once() -> None:
    original = Tied()
    net = to_bayesian(original, layer_type="bbb", priors={"posterior_rho_initial": (-1.0, 0.3)})
    assert net.first is net.second and net.decode.weight is net.embed.weight
    assert net.decode.posterior["weight"] is net.embed.posterior["weight"]
    names = [name for name, _, _ in weight_posteriors(net)]
    assert names == ["embed.weight", "first.weight", "first.bias", "decode.bias"]
    expected = sum(posterior.kl(mean).item() for _, mean, posterior in weight_posteriors(net))
    assert kl_divergence(net).item() == pytest.approx(expected, rel=1e-6)
    words = torch.arange(7)
    with torch.no_grad():
        for draw in posterior_draws(net, 3, seed=1):
            assert draw.decode.weight is draw.embed.weight and not torch.equal(draw.embed.weight, net.embed.weight)
    back = to_deterministic(net)
    assert back.first is back.second and back.decode.weight is back.embed.weight
    torch.testing.assert_close(back(words), original(words))
    twin = copy.deepcopy(net)
    assert twin.decode.posterior["weight"] is twin.embed.posterior["weight"]


def test_one_draw_as_a_plain_network() -> None:
    net = to_bayesian(nn.Sequential(nn.Linear(3, 50), nn.Linear(50, 2)), priors={"posterior_rho_initial": (-1.0, 0.0)})
    torch.manual_seed(1)
    drawn = to_deterministic(net, sample=True)
    torch.manual_seed(1)
    for name, mean, posterior in weight_posteriors(net):
        assert torch.equal(drawn.get_parameter(name), posterior.sample(mean)) and name in dict(net.named_parameters())
    assert not any(isinstance(layer, BayesianLayer) for layer in drawn.modules())


@pytest.mark.parametrize("alpha_shape", [None, (1, 1)])
def test_moped_spreads_in_proportion_to_trained_weights(alpha_shape: tuple[int, ...] | None) -> None:
    net = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 5))
    bayesian = to_bayesian(net, moped=0.1, alpha_shape=alpha_shape)
    for _, mean, posterior in weight_posteriors(bayesian):
        torch.testing.assert_close(posterior.std(mean), 0.1 * mean.abs(), rtol=1e-3, atol=2e-6)
    if alpha_shape:
        with pytest.raises(ValueError, match="leave out alpha_shape"):
            to_bayesian(net, alpha_shape=alpha_shape, prior_at_means=True)
        return
    centred = to_bayesian(net, moped=0.1, prior_at_means=True, priors={"prior_sigma": 0.5})
    expected = 0.0
    for _, mean, posterior in weight_posteriors(centred):
        ratio = posterior.std(mean) / 0.5
        expected += (-ratio.log() + ratio.square() / 2 - 0.5).sum().item()
    assert kl_divergence(centred).item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="moped must be above 0"):
        to_bayesian(net, moped=0.0)


def test_a_converted_network_learns_and_predicts() -> None:
    torch.manual_seed(0)
    attention = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    net = ModuleWrapper(to_bayesian(nn.Sequential(attention, nn.Flatten(), nn.Linear(24, 2)), layer_type="bbb"))
    inputs = torch.randn(64, 3, 8)
    labels = (inputs[:, 0, 0] > 0).long()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        logits, kl = net(inputs)
        (F.cross_entropy(logits, labels) + 1e-3 * kl / 64).backward()
        optimizer.step()
    predictive = posterior_predictive(net, inputs, num_samples=5)
    assert (predictive.probs.argmax(-1) == labels).float().mean() > 0.95
    assert isinstance(net.get_submodule("0.0.self_attn"), BBBMultiheadAttention)


@pytest.mark.parametrize("layer_type", ["lrt", "bbb", "flipout"])
def test_in_evaluation_padding_is_masked(layer_type: str) -> None:
    plain = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    features = torch.randn(2, 5, 8)
    with torch.no_grad():
        found = to_bayesian(plain, layer_type=layer_type, priors=STILL)(features, src_key_padding_mask=padding)
        expected = plain(features, src_key_padding_mask=padding)
    torch.testing.assert_close(found[~padding], expected[~padding])


def test_in_evaluation_a_layer_within_an_encoder_layer_draws() -> None:
    """Without gradients the encoder layer of torch has a fused kernel for its children, which leaves them out."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder.linear1 = BBBLinear(8, 16, layer_type="bbb", priors={"posterior_rho_initial": (-1.0, 0.0)})
    net = ModuleWrapper(encoder).eval()
    features = torch.randn(2, 5, 8)
    with torch.inference_mode():
        outputs = [net(features)[0] for _ in range(2)]
    assert not torch.allclose(*outputs, atol=1e-3)


def test_a_layer_whose_weight_a_hook_makes_stays_as_it_is() -> None:
    net = nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    converted = to_bayesian(net)
    assert deterministic_layers(converted) == ["0 (Linear)"] and converted(torch.randn(3, 4)).isfinite().all()
    with pytest.raises(ValueError, match=r"selects no layer: the network has 1$"):
        to_bayesian(net, layers="0")


def test_a_second_conversion_leaves_what_is_bayesian_already() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(BBBLinear(4, 4), nn.Linear(4, 3))
    with torch.no_grad():
        net[0].posterior["weight"].rho.fill_(-1.0)
    prior = net[0].posterior["weight"].prior.description
    later = to_bayesian(net, layers="1", moped=0.1, prior_at_means=True)
    assert (later[0].posterior["weight"].rho == -1).all() and later[0].posterior["weight"].prior.description == prior
    deviations = later[1].posterior["weight"].std(later[1].weight)
    torch.testing.assert_close(deviations, 0.1 * later[1].weight.abs(), rtol=1e-3, atol=2e-6)


def test_a_refused_conversion_in_place_changes_nothing() -> None:
    net = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(ValueError, match="only the prior of a Gaussian posterior can be centered"):
        to_bayesian(net, posterior="alpha", prior_at_means=True, inplace=True)
    assert type(net[0]) is nn.Linear


class Standardized(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight / self.weight.std(), self.bias)


def test_a_layer_of_ones_own_is_the_plain_one_of_its_bayesian_counterpart() -> None:
    class BayesianStandardized(BayesianLayer, Standardized):
        estimators = ("bbb",)

        def operation(self, input: Tensor, weight: Tensor, bias: Tensor | None, *more: Any) -> Tensor:
            return F.linear(input, weight / weight.std(), bias)

    layer, x = BayesianStandardized(4, 3), torch.randn(5, 4)
    assert type(layer.plain()) is Standardized and isinstance(to_bayesian(Standardized(4, 3)), BayesianStandardized)
    with sampling(layer, False):
        torch.testing.assert_close(layer.plain()(x), layer(x))


def test_a_change_that_a_prediction_would_not_know_is_refused() -> None:
    class Scaled(BBBLinear):
        def operation(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return 10 * F.linear(input, weight, bias)

    with pytest.raises(ValueError, match="Scaled changes operation of BBBLinear, and a prediction is by Linear"):
        posterior_predictive(ModuleWrapper(Scaled(4, 3)), torch.randn(5, 4), num_samples=2)


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.spectral_norm])
def test_a_recomputed_weight_is_refused(norm: Callable[[nn.Module], nn.Module]) -> None:
    net = ModuleWrapper(norm(BBBLinear(4, 3, layer_type="bbb")))
    for use in (lambda: net(torch.randn(5, 4)), lambda: kl_divergence(net)):
        with pytest.raises(ValueError, match="^0: weight_norm, spectral_norm or prune recomputes its weights"):
            use()
