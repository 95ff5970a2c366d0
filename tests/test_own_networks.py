"""A network of the user's own, by `package.module:factory`, trained, started from and loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import bayesian_settings, frequentist_settings, run_files, same
from torch._inductor import config as inductor

from layers import BBBConv2d, ModuleWrapper, weight_posteriors
from models import build, load_network
from support import UserError
from training import initial_state, prepare, run, start, train

FACTORY = """
from torch import nn
from layers import BBBConv2d, BBBLinear, ModuleWrapper

def make(outputs, inputs):
    return nn.Sequential(
        nn.Conv2d(inputs, 4, 5, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(196, outputs)
    )

def bayesian(outputs, inputs):
    return ModuleWrapper(nn.Flatten(), BBBLinear(1024 * inputs, outputs))

def of_one_convolution(outputs, inputs):
    return ModuleWrapper(BBBConv2d(inputs, outputs, 32), nn.Flatten())

def number(outputs, inputs):
    return outputs

def of_one_argument(outputs):
    return nn.Linear(1, outputs)

def of_three_classes(outputs, inputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs * 32 * 32, 3))

def of_seven_channels(outputs, inputs):
    return nn.Conv2d(7, outputs, 32)

def of_its_own_weights(outputs, inputs):
    convolution = BBBConv2d(inputs, outputs, 32, priors={"prior_sigma": 0.1})
    nn.init.constant_(convolution.weight, 0.01)
    return ModuleWrapper(convolution, nn.Flatten())

def of_one_number(outputs, inputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(1024 * inputs, 4), nn.BatchNorm1d(4), nn.Linear(4, outputs))

def not_flat(outputs, inputs):
    return nn.Conv2d(inputs, outputs, 1)
"""


@pytest.fixture
def changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of runs with these networks, which can be imported."""
    (tmp_path / "my_networks.py").write_text(FACTORY)
    (tmp_path / "my_broken_networks.py").write_text("import absent")
    monkeypatch.syspath_prepend(str(tmp_path))
    return {"net_type": "my_networks:make", "n_epochs": 4, "batch_size": 20, "lr_start": 3e-3}


def test_a_network_of_ones_own_trains_in_both_families(changes: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    twin = frequentist_settings(pictures, tmp_path, **changes)
    results = run(twin)
    assert results["test"]["accuracy"] > 0.8
    plain_path = run_files(twin).best
    assert plain_path == tmp_path / "bars" / "frequentist" / "model_my_networks.make.pt"
    with pytest.raises(UserError, match="holds a network that 'my_networks:make' makes: give that as net_type"):
        load_network(plain_path)
    plain = load_network(plain_path, net_type="my_networks:make").net

    moped = bayesian_settings(
        pictures, tmp_path, **changes, init_from=str(plain_path), moped=0.2, prior_at_means=True, test_ens=2
    )
    begun = initial_state(prepare(moped)).net
    weights = plain.state_dict()
    assert type(begun) is ModuleWrapper
    for name, mean, posterior in weight_posteriors(begun):
        trained = weights[name.removeprefix("0.")]
        assert torch.equal(mean, trained) and torch.equal(posterior.prior.mean, trained)
        torch.testing.assert_close(posterior.std(mean), 0.2 * trained.abs(), rtol=1e-3, atol=2e-6)
    assert torch.equal(begun.get_buffer("0.1.running_mean"), weights["1.running_mean"])
    assert run(moped)["test"]["accuracy"] >= results["test"]["accuracy"] - 0.1
    path = run_files(moped).best
    loaded, _, _ = load_network(path, net_type="my_networks:make")
    assert isinstance(loaded.get_submodule("0.0"), BBBConv2d)
    centres = [posterior.prior.mean for _, _, posterior in weight_posteriors(loaded)]
    assert all(torch.equal(c, weights[n.removeprefix("0.")])
               for c, (n, _, _) in zip(centres, weight_posteriors(loaded), strict=True))  # fmt: skip

    for wrong, message in (
        ({"net_type": "lenet"}, "holds a network that 'my_networks:make' makes"),
        ({"valid_size": 0.2}, "its mean is .*, this run needs"),
        ({"alpha_shape": (1, 1)}, "leave out alpha_shape"),
        (
            {"init_from": str(path)},
            "init_from takes a checkpoint of main_frequentist.py, and .* is Bayesian: give prior_from",
        ),
        ({"init_from": str(tmp_path / "none.pt")}, "there is no checkpoint"),
    ):
        with pytest.raises(UserError, match=message):
            initial_state(prepare(replace(moped, **wrong)))


def test_a_compiled_run_leaves_a_network_like_any_other(
    changes: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    """In 3 batches of one size: another size would be compiled too, as would each layer more."""
    changes |= {"net_type": "my_networks:of_one_convolution", "n_epochs": 1, "batch_size": 60, "compile": True}
    state, setup = start(bayesian_settings(pictures, tmp_path, **changes))
    train(state, setup)
    net, _, _ = load_network(setup.files.best, net_type=changes["net_type"])
    assert same(net.state_dict(), state.net.state_dict())


def test_a_run_that_cannot_be_compiled_says_what_is_missing(
    changes: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    changes |= {"net_type": "my_networks:of_one_convolution", "n_epochs": 1, "compile": True}
    compilers = inductor.patch({"cpp.cxx": (None, "no-compiler"), "force_disable_caches": True})
    refused = pytest.raises(UserError, match="cannot compile the network .*compiler.* leave out compile, or install")
    with compilers, refused:
        train(*start(bayesian_settings(pictures, tmp_path, **changes)))


def test_a_bayesian_network_of_ones_own_is_taken_as_it_is(changes: dict[str, Any]) -> None:
    net = build("my_networks:bayesian", True, 2, 1, layer_type="lrt")
    logits, kl = net(torch.randn(3, 1, 32, 32))
    assert logits.shape == (3, 2) and kl > 0
    with pytest.raises(UserError, match="its layers are Bayesian already"):
        build("my_networks:bayesian", False, 2, 1)
    for settings in ({"posterior": "rank1"}, {"alpha_shape": (1, 1)}, {"layers": "last"}):
        with pytest.raises(UserError, match=f"{next(iter(settings))} cannot apply, the network has Bayesian layers"):
            build("my_networks:bayesian", True, 2, 1, **settings)


def test_weights_and_prior_of_a_factory_stay_as_they_are(
    changes: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    settings = bayesian_settings(pictures, tmp_path, **changes | {"net_type": "my_networks:of_its_own_weights"})
    net = initial_state(prepare(settings)).net
    ((_, mean, posterior), _) = weight_posteriors(net)
    assert (mean == 0.01).all() and posterior.prior.std == 0.1
    by_patches = initial_state(prepare(replace(settings, first_filters="patches"))).net
    assert not torch.equal(next(by_patches.parameters()), mean)


@pytest.mark.parametrize("batch_size", [1, 59, 60])
def test_a_batch_of_one_image_is_refused_where_batch_norm_cannot_train_on_it(
    changes: dict[str, Any], pictures: Path, tmp_path: Path, batch_size: int
) -> None:
    changes |= {"net_type": "my_networks:of_one_number", "batch_size": batch_size}
    settings = bayesian_settings(pictures, tmp_path, **changes)
    setup = prepare(settings)
    count = len(setup.data.train)
    setup = prepare(replace(settings, batch_size={59: count - 1, 60: count}.get(batch_size, 1)))
    if batch_size == 60:
        assert initial_state(setup).net.training is False
        return
    with pytest.raises(
        UserError, match="cannot train on one image .Expected more than 1 value per channel.*batch_size"
    ):
        initial_state(setup)


def test_freeze_is_refused_where_every_weight_has_a_posterior(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="freeze is for layers without a posterior"):
        initial_state(prepare(bayesian_settings(pictures, tmp_path, freeze=True)))


def test_layers_to_record_are_those_of_the_network_itself(
    changes: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    """Which may not be what its factory makes of one class and one channel."""
    changes |= {"net_type": "my_networks:of_its_own_weights", "record_mean_var": True, "channels": 3}
    assert initial_state(prepare(bayesian_settings(pictures, tmp_path, **changes))).net is not None
    with pytest.raises(UserError, match="fc9"):
        initial_state(prepare(bayesian_settings(pictures, tmp_path, **changes, record_layers=["fc9"])))


@pytest.mark.parametrize(
    ("net_type", "message"),
    [
        ("my_networks:mak", "has no attribute 'mak': give it as package.module:function"),
        ("my_network:make", "No module named 'my_network': give it as package.module:function"),
        ("my_broken_networks:make", "No module named 'absent': install it"),
        ("my_networks:number", "expected an nn.Module, got 2"),
        ("my networks:make", "unknown net_type 'my networks:make': expected one of lenet"),
        ("resnet81", "did you mean 'resnet18'"),
    ],
)
def test_a_factory_that_cannot_be_imported_is_one_line(changes: dict[str, Any], net_type: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(net_type, False, 2, 1)
    assert "\n" not in str(error.value)


def test_a_network_has_its_own_activations() -> None:
    with pytest.raises(UserError, match="activation_type does not apply"):
        build("resnet18", False, 10, 3, activation_type="softplus")
    net = build("resnet18", True, 10, 1, activation_type="relu", layer_type="bbb")
    assert sum(p.numel() for _, p, _ in weight_posteriors(net)) == 11_172_810 - 2 * 4800


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("of_one_argument", r"^my_networks:of_one_argument\(.*\) failed: .*positional argument"),
        ("of_three_classes", r"returns \(2, 3\) for 2 images, expected \(logits \(2, \d+\), kl\)"),
        ("of_seven_channels", r"cannot take images of shape \(2, \d, 32, 32\): .*channels"),
        ("not_flat", r"returns \(2, \d+, 32, 32\) for 2 images"),
    ],
)
def test_a_network_that_does_not_fit_is_refused_in_one_line(
    changes: dict[str, Any], pictures: Path, tmp_path: Path, name: str, message: str
) -> None:
    settings = bayesian_settings(pictures, tmp_path, **changes | {"net_type": f"my_networks:{name}"})
    with pytest.raises(UserError, match=message):
        initial_state(prepare(settings))
