"""The patches that a first layer sees: their second moments, the prior and the start that follow from them."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import bayesian_settings, frequentist_settings, run_files
from torch import Tensor, nn

from images import load_data, normalize
from layers import (
    BBBConv2d,
    BBBConvTranspose2d,
    BBBLinear,
    CorrelatedGaussianPrior,
    GaussianPrior,
    ModuleWrapper,
    Prior,
    patch_prior,
    start_as_patches,
    weight_posteriors,
)
from models import load_network
from support import UserError
from training import network, run, state
from training.state import initial_state, prepare


def test_a_patch_prior_takes_inputs_of_another_precision() -> None:
    images, layer = torch.rand(20, 1, 6, 6), BBBConv2d(1, 2, 3)
    one, other = (patch_prior(layer, inputs, 1.0) for inputs in (images, images.double()))
    torch.testing.assert_close(one.covariance, other.covariance)


def test_a_patch_prior_has_the_second_moment_of_what_the_filters_see() -> None:
    images = torch.rand(300, 2, 6, 7, generator=torch.Generator().manual_seed(0))
    patches = F.unfold(images.double(), 3, padding=1, stride=2).movedim(1, -1).flatten(0, 1)
    second = patches.mT @ patches
    expected = (second / second.diagonal().mean() + 0.01 * torch.eye(18)) / 20
    layer = BBBConv2d(2, 4, 3, padding=1, stride=2)
    prior = patch_prior(layer, images, strength=20, ridge=0.01)
    torch.testing.assert_close(prior.covariance.double(), expected, rtol=1e-4, atol=1e-6)
    layer.posterior["weight"].set_prior(prior)  # type: ignore[operator]
    assert layer.posterior["weight"].prior.shape == (2, 3, 3)  # type: ignore[union-attr]
    features = images.flatten(1)
    second = features.double().mT @ features.double()
    expected = second / second.diagonal().mean() + 1e-3 * torch.eye(84)
    linear = patch_prior(BBBLinear(84, 3), features, strength=1)
    torch.testing.assert_close(linear.covariance.double(), expected, rtol=1e-4, atol=1e-6)


def test_what_has_no_patch_prior_is_refused() -> None:
    images = torch.rand(2, 4, 6, 6)
    for layer in (BBBConv2d(4, 4, 3, groups=2), BBBConvTranspose2d(4, 4, 3)):
        with pytest.raises(ValueError, match="a linear layer or a convolution without groups, not of BBB"):
            patch_prior(layer, images, 1)
    for strength, ridge in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="must be above 0"):
            patch_prior(BBBConv2d(4, 4, 3), images, strength, ridge)
    alpha = BBBConv2d(4, 4, 3, posterior="alpha").posterior["weight"]
    with pytest.raises(ValueError, match="the alpha posterior has a prior of its own"):
        alpha.set_prior(patch_prior(BBBConv2d(4, 4, 3), images, 1))  # type: ignore[operator]


def test_a_run_under_a_patch_prior_saves_it_with_the_weights(pictures: Path, tmp_path: Path) -> None:
    settings = bayesian_settings(pictures, tmp_path, patch_prior=5.0, n_epochs=2)
    run(settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net, description, _ = load_network(run_files(settings).best)
    data = load_data(settings.dataset, "data", settings.valid_size, settings.seed)
    pixels, _ = next(data.train.batches(len(data.train)))
    expected = patch_prior(net.conv1, normalize(pixels, description.mean, description.std), 5)
    prior = net.conv1.posterior["weight"].prior
    torch.testing.assert_close(prior.covariance, expected.covariance)
    assert isinstance(net.conv2.posterior["weight"].prior, GaussianPrior)
    with pytest.raises(UserError, match="patch_prior cannot be used with this network: the alpha posterior"):
        run(replace(settings, alpha_shape=(1, 1), checkpoint_dir=str(tmp_path / "alpha")))
    network = "test_patches:head_alone"
    with pytest.raises(UserError, match="first Bayesian layer sees the images: leave it out"):
        run(replace(settings, net_type=network, checkpoint_dir=str(tmp_path / "head")))


@torch.no_grad()
def test_a_start_by_patches_has_their_second_moments_and_keeps_the_outputs_mean_square() -> None:
    """Of independent weights of variance v, E[w wᵀ] becomes a²v C, and the mean of (w·x)² stays v tr C."""
    inputs = torch.randn(500, 5) * torch.tensor([3.0, 1.0, 1.0, 0.1, 0.0])
    inputs[:, 1] += inputs[:, 0]
    layer = nn.Linear(5, 200_000)
    before = F.linear(inputs, layer.weight).square().mean()
    start_as_patches(layer, inputs)
    torch.testing.assert_close(F.linear(inputs, layer.weight).square().mean(), before, rtol=0.01, atol=0)
    expected, of_weights = inputs.mT @ inputs, layer.weight.mT @ layer.weight
    torch.testing.assert_close(of_weights / of_weights.trace(), expected / expected.trace(), rtol=0, atol=2e-3)
    assert layer.weight[:, 4].abs().max() < 1e-6  # of what is always 0


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_a_twin_starts_as_its_bayesian_network_does(padding_mode: str) -> None:
    images = torch.rand(20, 2, 8, 8)
    how: dict[str, Any] = {"stride": 2, "padding": 1, "padding_mode": padding_mode}
    bayesian, twin = BBBConv2d(2, 4, 3, **how), nn.Conv2d(2, 4, 3, **how)
    twin.load_state_dict({"weight": bayesian.weight, "bias": bayesian.bias})
    for layer in (bayesian, twin):
        start_as_patches(layer, images)
    torch.testing.assert_close(twin.weight, bayesian.weight)


def test_a_run_starts_its_first_layer_by_patches_unless_something_else_is_given(pictures: Path, tmp_path: Path) -> None:
    def first_weight(settings: Any) -> Tensor:
        setup = prepare(settings)
        net = initial_state(setup).net
        return next(net.parameters()).detach()

    for settings in (bayesian_settings(pictures, tmp_path), frequentist_settings(pictures, tmp_path)):
        at_random = first_weight(replace(settings, first_filters="random"))
        data = load_data(settings.dataset, "data", settings.valid_size, settings.seed)
        pixels, _ = next(data.train.batches(len(data.train)))
        layer = nn.Conv2d(1, 6, 5)
        with torch.no_grad():
            layer.weight.copy_(at_random)
        start_as_patches(layer, normalize(pixels, data.mean, data.std))
        torch.testing.assert_close(first_weight(settings), layer.weight.detach())
    color = bayesian_settings(pictures, tmp_path, channels=3)
    at_random, by_patches = (first_weight(replace(color, first_filters=name)) for name in ("random", "patches"))
    assert torch.equal(first_weight(color), at_random) and not torch.equal(by_patches, at_random)
    settings = bayesian_settings(pictures, tmp_path, priors={"posterior_mu_initial": (0.0, 0.1)})
    assert torch.equal(first_weight(settings), first_weight(replace(settings, first_filters="random")))
    head = replace(settings, priors={}, net_type="test_patches:head_alone")  # whose first layer sees averages
    assert torch.equal(first_weight(head), first_weight(replace(head, first_filters="random")))


def test_of_images_in_the_order_of_their_classes_those_of_all_classes_are_taken(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a folder with `val/`, whose training images are not drawn at random."""
    seen: list[Tensor] = []
    monkeypatch.setattr(network, "PATCH_IMAGES", 20)
    monkeypatch.setattr(network, "start_as_patches", lambda layer, inputs: seen.append(inputs))
    setup = prepare(bayesian_settings(pictures, tmp_path, patch_prior=0))
    train = setup.data.train
    assert isinstance(train.images, Tensor)
    mixed = torch.randperm(len(train))
    evenly = torch.linspace(0, len(train) - 1, 20).long()
    for order, expected in ((train.labels.argsort(stable=True), evenly), (mixed, torch.arange(20))):
        images = train.images[order]
        data = replace(setup.data, train=replace(train, images=images, labels=train.labels[order]))
        initial_state(replace(setup, data=data))
        torch.testing.assert_close(seen.pop(), normalize(images[expected], data.mean, data.std))


@pytest.mark.parametrize(("changes", "times"), [({}, 1), ({"channels": 3}, 0), ({"channels": 3, "patch_prior": 1}, 1)])
def test_images_are_read_once_where_they_are_needed(
    changes: dict[str, Any], times: int, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[object] = []
    of_run = state.images_for_patches
    monkeypatch.setattr(state, "images_for_patches", lambda data: (read.append(data), of_run(data))[1])
    initial_state(prepare(bayesian_settings(pictures, tmp_path, **changes)))
    assert len(read) == times


def test_grey_images_have_a_patch_prior_unless_something_else_is_given(pictures: Path, tmp_path: Path) -> None:
    """Its pull on the weights, β s/N times their distance in units of (C + εI), is 1/180 whatever β and N are."""

    def first_prior(**changes: Any) -> Prior | None:
        setup = prepare(bayesian_settings(pictures, tmp_path, **changes))
        return getattr(next(weight_posteriors(initial_state(setup).net))[2], "prior", None)  # alpha has none

    strength = 160 / (180 * 0.5)  # of 200 images a fifth is for validation
    prior, expected = first_prior(beta_type=0.5, valid_size=0.2), first_prior(patch_prior=strength, valid_size=0.2)
    assert isinstance(prior, CorrelatedGaussianPrior) and isinstance(expected, CorrelatedGaussianPrior)
    torch.testing.assert_close(prior.covariance, expected.covariance)
    otherwise: list[dict[str, Any]] = [
        {"patch_prior": 0},
        {"channels": 3},
        {"beta_type": 0},
        {"priors": {"prior_sigma": 0.3}},
        {"priors": {"learn_prior_sigma": True}},
        {"priors": {"posterior_mu_initial": (0.0, 0.1)}},
        {"alpha_shape": (1, 1)},
        {"posterior": "rank1"},
        {"net_type": "test_patches:head_alone"},
    ]
    for changes in otherwise:
        assert not isinstance(first_prior(**changes), CorrelatedGaussianPrior), changes


def head_alone(outputs: int, inputs: int) -> nn.Module:
    return ModuleWrapper(nn.AvgPool2d(8), nn.Flatten(), BBBLinear(16 * inputs, outputs))
