"""The networks, their twins, and their checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import in_one_graph
from torch import Tensor, nn

from layers import BayesianLayer, kl_divergence, sampling, weight_posteriors
from models import NETWORKS, Description, build, load_network, read_checkpoint, save_network
from support import UserError

NO_VARIANCE = {"posterior_rho_initial": (-200.0, 0.0)}


@pytest.mark.parametrize("activation_type", ["relu", "softplus"])
@pytest.mark.parametrize("layer_type", ["lrt", "bbb", "flipout"])
@pytest.mark.parametrize("net_type", NETWORKS)
def test_a_network_of_no_variance_is_its_frequentist_twin(net_type: str, layer_type: str, activation_type: str) -> None:
    bayesian = build(net_type, True, 10, 3, layer_type=layer_type, activation_type=activation_type, priors=NO_VARIANCE)
    twin = build(net_type, False, 10, 3, activation_type=activation_type)
    unexpected = twin.load_state_dict(bayesian.state_dict(), strict=False)
    assert not unexpected.missing_keys and all(".posterior." in key for key in unexpected.unexpected_keys)
    images = torch.randn(2, 3, 32, 32)
    logits, _ = bayesian(images)
    torch.testing.assert_close(logits, twin(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("net_type", "parameters"),
    [
        ("lenet", 6 * (75 + 1) + 16 * (150 + 1) + 120 * 401 + 84 * 121 + 10 * 85),
        (
            "alexnet",
            64 * (363 + 1) + 192 * (1600 + 1) + 384 * (1728 + 1) + 256 * (3456 + 1) + 128 * (2304 + 1) + 10 * 129,
        ),
        ("3conv3fc", 32 * (75 + 1) + 64 * (800 + 1) + 128 * (1600 + 1) + 1000 * 513 + 1000 * 1001 + 10 * 1001),
    ],
)
def test_parameters_are_those_of_the_architecture(net_type: str, parameters: int) -> None:
    twin = build(net_type, False, 10, 3)
    bayesian = build(net_type, True, 10, 3)
    assert sum(p.numel() for p in twin.parameters()) == parameters
    assert sum(p.numel() for p in bayesian.parameters()) == 2 * parameters
    kls = [posterior.kl(mean).item() for _, mean, posterior in weight_posteriors(bayesian)]
    assert kl_divergence(bayesian).item() == pytest.approx(sum(kls), rel=1e-6)


def test_alpha_networks_have_one_alpha_per_tensor() -> None:
    net = build("lenet", True, 10, 1, alpha_shape=(1, 1))
    twin = build("lenet", False, 10, 1)
    extra = sum(p.numel() for p in net.parameters()) - sum(p.numel() for p in twin.parameters())
    assert extra == len(list(twin.parameters()))
    _, kl = net(torch.randn(2, 1, 32, 32))
    alpha = torch.tensor(-5.0, dtype=torch.float64).exp()
    expected = 0.5 * torch.log1p(1 / alpha) * sum(p.numel() for p in twin.parameters())
    assert kl.item() == pytest.approx(expected.item(), rel=1e-5)


def test_layers_know_their_names() -> None:
    for name, layer in build("3conv3fc", True, 10, 3).named_modules():
        if isinstance(layer, BayesianLayer):
            assert layer.name == name


@in_one_graph
@pytest.mark.parametrize("alpha_shape", [None, (1, 1)])
@pytest.mark.parametrize("layer_type", ["lrt", "bbb", "flipout"])
@pytest.mark.parametrize("net_type", NETWORKS)
def test_a_network_compiles_in_one_graph(net_type: str, layer_type: str, alpha_shape: tuple[int, ...] | None) -> None:
    net = build(net_type, True, 10, 1, layer_type=layer_type, alpha_shape=alpha_shape)
    images = torch.randn(2, 1, 32, 32)
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.manual_seed(7)
    logits, kl = compiled(images)
    torch.manual_seed(7)
    expected, expected_kl = net(images)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(kl, expected_kl)


@pytest.mark.parametrize("alpha_shape", [None, (1, 1)])
@pytest.mark.parametrize("layer_type", ["lrt", "bbb", "flipout"])
@pytest.mark.parametrize("net_type", NETWORKS)
def test_under_autocast_a_step_stays_close(net_type: str, layer_type: str, alpha_shape: tuple[int, ...] | None) -> None:
    """With deviations near 0 the noise does not matter: the two differ by bfloat16's rounding alone."""
    priors = {"posterior_rho_initial": (-12.0, 0.1), "posterior_log_alpha_initial": -12.0}
    net = build(net_type, True, 10, 1, layer_type=layer_type, alpha_shape=alpha_shape, priors=priors)
    images, labels = torch.randn(8, 1, 32, 32), torch.arange(8)

    def step(half: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits, kl = net(images)
        (F.cross_entropy(logits.float(), labels) + kl / 1000).backward()
        return logits.detach(), kl.detach(), {name: p.grad for name, p in net.named_parameters() if p.grad is not None}

    logits, kl, gradients = step(False)
    half_logits, half_kl, half_gradients = step(True)
    assert half_logits.dtype == torch.bfloat16
    assert kl.dtype == torch.float32 and torch.equal(half_kl, kl)
    torch.testing.assert_close(half_logits.float(), logits, rtol=0.02, atol=0.02 * float(logits.abs().max()))
    assert half_gradients.keys() == dict(net.named_parameters()).keys()
    for name, gradient in half_gradients.items():
        assert gradient.dtype == torch.float32 and gradient.isfinite().all()
        assert F.cosine_similarity(gradient.flatten(), gradients[name].flatten(), 0) > 0.95, name


def test_an_unknown_network_and_settings_that_do_not_fit_are_one_line() -> None:
    with pytest.raises(UserError, match="unknown net_type 'lennet': .*did you mean 'lenet'"):
        build("lennet", True, 10, 1)
    with pytest.raises(UserError, match=r"alpha_shape \(7, 1\) does not broadcast"):
        build("lenet", True, 10, 1, alpha_shape=(7, 1))
    with pytest.raises(UserError, match="unknown activation_type 'tanh'"):
        build("lenet", False, 10, 1, activation_type="tanh")


def description(**changes: object) -> Description:
    values = {
        "net_type": "lenet",
        "bayesian": True,
        "architecture": {
            "layer_type": "lrt",
            "alpha_shape": None,
            "activation_type": "softplus",
            "priors": {"prior_sigma": 0.3},
        },
        "classes": ("cat", "dog", "emu"),
        "mean": (0.1, 0.2, 0.3),
        "std": (0.5, 0.6, 0.7),
    }
    return Description(**{**values, **changes})  # type: ignore[arg-type]


def test_a_checkpoint_alone_rebuilds_the_network(tmp_path: Path) -> None:
    net = description().build()
    path = tmp_path / "below" / "model.pt"
    save_network(path, net, description(), settings={"seed": 3})
    loaded, loaded_description, content = load_network(path)
    assert loaded_description == description() and content["settings"] == {"seed": 3}
    assert not loaded.training and isinstance(loaded.act1, nn.Softplus)
    assert torch.equal(kl_divergence(loaded), kl_divergence(net))
    images = torch.randn(2, 3, 32, 32)
    with sampling(net, False), sampling(loaded, False):
        assert torch.equal(loaded(images)[0], net(images)[0])
    assert [p.name for p in path.parent.iterdir()] == ["model.pt"]


def test_a_file_that_is_no_checkpoint_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with pytest.raises(UserError, match="there is no checkpoint"):
        load_network(path)
    for content in (b"", b"text", b"PK\x03\x04"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is not a readable checkpoint"):
            load_network(path)
    torch.save({"format": 99}, path)
    with pytest.raises(UserError, match="expected format 1, found 99"):
        load_network(path)
    save_network(path, description(classes=("a", "b")).build(), description())
    with pytest.raises(UserError, match="does not hold a network"):
        load_network(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="is not a readable checkpoint"):
        load_network(path)


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "run",)  # type: ignore[return-value]

    torch.save({"format": 1, "description": Evil()}, tmp_path / "model.pt")
    with pytest.raises(UserError, match="is not a readable checkpoint"):
        read_checkpoint(tmp_path / "model.pt")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("layer_type", ["lrt", "bbb", "flipout"])
def test_a_network_on_the_meta_device_gives_its_shapes(layer_type: str) -> None:
    with torch.device("meta"):
        logits, kl = build("lenet", True, 7, 2, layer_type=layer_type)(torch.zeros(3, 2, 32, 32))
    assert logits.is_meta and kl.is_meta and logits.shape == (3, 7) and kl.shape == ()
