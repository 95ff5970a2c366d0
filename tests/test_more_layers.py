"""The layers beside Conv2d and Linear: what they share with torch.nn, and what they sample."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import draws_of
from torch import Tensor, nn

import layers
from layers import BayesianLayer, kl_divergence, sampling, to_deterministic, weight_posteriors
from layers.base import COUNTERPARTS

STILL = {"posterior_rho_initial": (-200.0, 0.0), "posterior_log_alpha_initial": -200.0}
WIDE = {"posterior_rho_initial": (-1.5, 0.5), "posterior_log_alpha_initial": -1.0}
DOUBLE: dict[str, Any] = {"dtype": torch.float64}


def real(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


CASES: dict[str, tuple[type[nn.Module], dict[str, Any], Callable[[], tuple[Any, ...]]]] = {
    "Conv1d": (nn.Conv1d, {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "stride": 2, "padding": 1,
                           "groups": 2, "padding_mode": "circular"}, lambda: (real(2, 4, 9),)),
    "Conv3d": (nn.Conv3d, {"in_channels": 2, "out_channels": 3, "kernel_size": (2, 3, 1), "dilation": (1, 2, 1),
                           "bias": False}, lambda: (real(2, 2, 4, 7, 3),)),
    "ConvTranspose1d": (nn.ConvTranspose1d, {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "stride": 2,
                                             "groups": 2}, lambda: (real(2, 4, 5), [12])),
    "ConvTranspose2d": (nn.ConvTranspose2d, {"in_channels": 3, "out_channels": 2, "kernel_size": 3, "stride": (2, 1),
                                             "padding": 1, "output_padding": (1, 0)}, lambda: (real(2, 3, 4, 5),)),
    "ConvTranspose3d": (nn.ConvTranspose3d, {"in_channels": 2, "out_channels": 3, "kernel_size": 2, "dilation": 2},
                        lambda: (real(2, 2, 3, 3, 3),)),
    "Embedding": (nn.Embedding, {"num_embeddings": 5, "embedding_dim": 3}, lambda: (torch.randint(5, (2, 4)),)),
    "LSTM": (nn.LSTM, {"input_size": 3, "hidden_size": 4, "num_layers": 2, "bidirectional": True, "proj_size": 2},
             lambda: (real(5, 2, 3),)),
    "GRU": (nn.GRU, {"input_size": 3, "hidden_size": 4, "batch_first": True}, lambda: (real(2, 5, 3), real(1, 2, 4))),
    "MultiheadAttention": (nn.MultiheadAttention, {"embed_dim": 4, "num_heads": 2, "add_bias_kv": True, "kdim": 3,
                                                   "batch_first": True},
                           lambda: (real(2, 5, 4), real(2, 6, 3), real(2, 6, 4))),
}  # fmt: skip
OPERATIONS = ["Conv1d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Embedding"]


def made(case: str, **settings: Any) -> BayesianLayer:
    kind, arguments, _ = CASES[case]
    layer = COUNTERPARTS[kind](**arguments, **DOUBLE, **settings)
    assert type(layer) is getattr(layers, f"BBB{case}")
    return layer


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("alpha_shape", [None, (1, 1)])
@pytest.mark.parametrize("layer_type", ["lrt", "bbb", "flipout"])
@pytest.mark.parametrize("case", CASES)
def test_a_layer_of_no_variance_is_that_of_torch_nn(
    case: str, layer_type: str, alpha_shape: tuple[int, ...] | None
) -> None:
    kind, arguments, inputs = CASES[case]
    if layer_type not in COUNTERPARTS[kind].estimators:
        with pytest.raises(ValueError, match=f"unknown layer_type '{layer_type}': expected one of \\['bbb'\\]"):
            made(case, layer_type=layer_type)
        return
    torch.manual_seed(1)
    plain = kind(**arguments, **DOUBLE)
    torch.manual_seed(1)
    layer = made(case, layer_type=layer_type, alpha_shape=alpha_shape, priors=STILL)
    given = inputs()
    expected, found = plain(*given), layer(*given)
    if not isinstance(expected, tuple):
        expected, found = (expected,), (found,)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    with sampling(layer, False):
        torch.testing.assert_close(first(layer(*given)), first(expected), rtol=0, atol=1e-12)
    torch.testing.assert_close(first(to_deterministic(layer)(*given)), first(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("alpha_shape", [None, (1, 1)])
@pytest.mark.parametrize("layer_type", ["lrt", "bbb", "flipout"])
@pytest.mark.parametrize("case", OPERATIONS)
def test_outputs_have_the_closed_mean_and_variance(
    case: str, layer_type: str, alpha_shape: tuple[int, ...] | None
) -> None:
    layer = made(case, layer_type=layer_type, alpha_shape=alpha_shape, priors=WIDE)
    input, *more = CASES[case][2]()
    mean = layer.operation(input, *layer.means(), *more).detach()
    variance = layer.operation(layer.squared(input), *layer.variances(), *more).detach()
    draws = draws_of(lambda: layer(input, *more), 8000)
    assert ((draws.mean(0) - mean).abs() < 5.5 * (variance / 8000).sqrt()).all()
    torch.testing.assert_close(draws.var(0), variance, rtol=0.12, atol=0)


def test_an_embeddings_output_has_the_variance_of_its_row() -> None:
    layer = made("Embedding", priors=WIDE)
    variance = layer.operation(layer.squared(torch.tensor([3])), *layer.variances())
    assert torch.equal(variance[0], layer.posterior["weight"].std(layer.weight)[3].square())


@pytest.mark.parametrize("case", ["LSTM", "GRU", "MultiheadAttention"])
def test_a_pass_is_the_torch_nn_layer_at_one_draw_of_all_weights(case: str) -> None:
    layer = made(case, priors=WIDE)
    given = CASES[case][2]()
    torch.manual_seed(3)
    found = layer(*given)
    torch.manual_seed(3)
    plain = to_deterministic(layer)
    for name, mean, posterior in weight_posteriors(layer):  # in the order in which the pass draws them
        plain.get_parameter(name).data = posterior.sample(mean).detach()
    torch.testing.assert_close(first(found), first(plain(*given)), rtol=0, atol=1e-12)
    first(found).sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
    assert not torch.equal(first(layer(*given)), first(layer(*given)))


def test_a_sequence_shares_one_draw_of_the_weights() -> None:
    """Fed zeros from a zero state with no recurrence, every step has the same output; another pass has another."""
    layer = layers.BBBGRU(1, 2, batch_first=True, dtype=torch.float64, priors=WIDE)
    with torch.no_grad():
        layer.weight_hh_l0.zero_()
        layer.posterior["weight_hh_l0"].rho.fill_(-200)
        layer.bias_ih_l0[2:4] = -50  # the update gate: the state is always the candidate
        layer.posterior["bias_ih_l0"].rho[2:4] = -200
        layer.posterior["bias_hh_l0"].rho[2:4] = -200
    steps, _ = layer(torch.zeros(3, 6, 1, dtype=torch.float64))
    assert torch.equal(steps, steps[:1, :1].expand_as(steps))
    assert not torch.equal(layer(torch.zeros(3, 6, 1, dtype=torch.float64))[0], steps)


@pytest.mark.parametrize("case", CASES)
def test_the_kl_is_that_of_torch_distributions(case: str) -> None:
    layer = made(case, priors={**WIDE, "prior_mu": 0.2, "prior_sigma": 0.6})
    prior = torch.distributions.Normal(torch.tensor(0.2, **DOUBLE), torch.tensor(0.6, **DOUBLE))
    expected, count = 0.0, 0
    for _, mean, posterior in weight_posteriors(layer):
        q = torch.distributions.Normal(mean, posterior.std(mean))
        expected += torch.distributions.kl_divergence(q, prior).sum().item()
        count += mean.numel()
    assert count == sum(p.numel() for p in CASES[case][0](**CASES[case][1]).parameters())
    assert layer.kl().item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_a_layer_survives_copy_pickle_and_state(case: str) -> None:
    layer = made(case, priors={**WIDE, "prior_sigma": 0.3})
    other = made(case)
    other.load_state_dict(layer.state_dict())
    given = CASES[case][2]()
    torch.manual_seed(4)
    expected = first(layer(*given))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), other):
        torch.manual_seed(4)
        assert torch.equal(first(twin(*given)), expected)
        assert torch.equal(twin.kl(), layer.kl())


@pytest.mark.parametrize(
    ("case", "alpha_shape", "bias"),
    [
        ("Conv1d", (6, 1, 1), (6,)),
        ("Conv1d", (6, 2, 3), (6,)),
        ("Conv1d", (2, 3), (1,)),
        ("ConvTranspose2d", (1, 2, 1, 1), (2,)),
        ("ConvTranspose2d", (3, 1, 1, 1), (1,)),
        ("ConvTranspose1d", (4, 3, 1), (1,)),  # in groups a weight's outputs are not the layer's
    ],
)
def test_a_bias_has_the_alphas_that_the_weight_has_along_its_outputs(
    case: str, alpha_shape: tuple[int, ...], bias: tuple[int, ...]
) -> None:
    layer = made(case, alpha_shape=alpha_shape)
    assert layer.posterior["weight"].log_alpha.shape == alpha_shape
    assert layer.posterior["bias"].log_alpha.shape == bias


def test_an_embedding_with_constant_rows_is_refused() -> None:
    for settings in ({"padding_idx": 0}, {"max_norm": 1.0}):
        with pytest.raises(ValueError, match="no padding_idx and no max_norm"):
            layers.BBBEmbedding(4, 2, **settings)


def test_help_shows_the_arguments_of_torch_nn_and_the_bayesian_ones() -> None:
    shown = list(inspect.signature(layers.BBBConvTranspose2d).parameters)
    added = ["posterior", "alpha_shape", "priors", "layer_type", "name", "strides"]
    assert shown == [*inspect.signature(nn.ConvTranspose2d).parameters, *added]


def test_the_kl_of_several_kinds_is_their_sum() -> None:
    parts = [made(case, priors=WIDE) for case in CASES]
    assert kl_divergence(nn.ModuleList(parts)).item() == pytest.approx(sum(p.kl().item() for p in parts), rel=1e-9)


def test_hooks_run_once_a_pass() -> None:
    layer = layers.BBBLSTM(3, 4, priors=STILL, **DOUBLE)
    plain, features = to_deterministic(layer), real(2, 5, 3)
    layer.register_forward_pre_hook(lambda module, given: (2 * given[0],))
    torch.testing.assert_close(layer(features)[0], plain(2 * features)[0])


def test_attention_at_its_means_has_no_noise_left() -> None:
    attention, features = layers.BBBMultiheadAttention(4, 2, priors=WIDE, **DOUBLE), real(3, 2, 4)
    attention.sampling = False
    assert torch.equal(attention(features, features, features)[0], attention(features, features, features)[0])
    attention.sampling = True
    assert not torch.equal(attention(features, features, features)[0], attention(features, features, features)[0])


def test_what_a_layer_does_not_take_is_refused_as_by_torch_nn() -> None:
    with pytest.raises(TypeError):
        layers.BBBLinear(3, 2)(torch.randn(1, 3), "more")
