"""For any arguments that are legal, and for any that are not."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as some
from torch import nn

import config_bayesian
from layers import BBBConv2d, BBBLinear
from models import build
from support import UserError
from training.settings import BayesianSettings, from_config

STILL = {"posterior_rho_initial": (-200.0, 0.0)}
small = some.integers(1, 3)
pair = some.one_of(small, some.tuples(small, small))


@settings(max_examples=150, deadline=None)
@given(
    arguments=some.fixed_dictionaries({
        "in_channels": some.sampled_from([2, 4]), "out_channels": some.sampled_from([2, 4]), "kernel_size": pair,
        "stride": pair, "padding": some.one_of(some.integers(0, 2), some.sampled_from(["same", "valid"])),
        "dilation": pair, "groups": some.sampled_from([1, 2]), "bias": some.booleans(),
        "padding_mode": some.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    }),
    layer_type=some.sampled_from(["lrt", "bbb", "flipout"]),
)  # fmt: skip
def test_any_convolution_of_no_variance_is_nn_conv2d(arguments: dict[str, Any], layer_type: str) -> None:
    try:
        torch.manual_seed(1)
        plain = nn.Conv2d(**arguments, dtype=torch.float64)
    except ValueError as refused:
        with pytest.raises(ValueError) as error:
            BBBConv2d(**arguments, dtype=torch.float64)
        assert str(error.value) == str(refused)
        return
    torch.manual_seed(1)
    layer = BBBConv2d(**arguments, dtype=torch.float64, layer_type=layer_type, priors=STILL)
    images = torch.randn(2, arguments["in_channels"], 9, 8, dtype=torch.float64)
    try:
        expected = plain(images)
    except RuntimeError:
        assume(False)
    torch.testing.assert_close(layer(images), expected, rtol=0, atol=1e-12)


floats = some.floats(allow_subnormal=False)  # training flushes them to 0
VALUES = some.one_of(
    some.none(), some.booleans(), some.integers(-3, 3), floats, some.text(max_size=6),
    some.lists(some.integers(-1, 2), max_size=3), some.dictionaries(some.text(max_size=12), floats, max_size=2),
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(name=some.sampled_from(list(BayesianSettings.__dataclass_fields__)), value=VALUES)
def test_any_value_of_a_setting_is_taken_or_refused_in_one_line(name: str, value: object) -> None:
    module = types.ModuleType("my_config")
    vars(module).update({k: v for k, v in vars(config_bayesian).items() if not k.startswith("__")}, **{name: value})
    try:
        from_config(BayesianSettings, module)
    except UserError as error:
        assert "\n" not in str(error).replace(repr(value), "") and name in str(error)


@pytest.mark.parametrize("layer_type", ["lrt", "bbb", "flipout"])
@pytest.mark.parametrize(
    ("rho", "log_alpha", "scale"),
    [(-100.0, -69.0, 1.0), (100.0, 69.0, 1.0), (-5.0, -5.0, 1e-20), (-5.0, -5.0, 1e18), (-5.0, -5.0, 0.0)],
)
@pytest.mark.parametrize("alpha_shape", [None, (1, 1)])
def test_extreme_numbers_give_finite_outputs_and_gradients(
    layer_type: str, rho: float, log_alpha: float, scale: float, alpha_shape: tuple[int, ...] | None
) -> None:
    priors = {"posterior_rho_initial": (rho, 0.0), "posterior_log_alpha_initial": log_alpha}
    layer = BBBLinear(4, 3, alpha_shape=alpha_shape, layer_type=layer_type, priors=priors)
    features = (scale * torch.randn(1, 4)).requires_grad_()
    output, kl = layer(features), layer.kl()
    (output.sum() / max(scale, 1.0) + kl).backward()
    assert output.isfinite().all() and kl.isfinite() and features.grad is not None and features.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("net_type", ["lenet", "alexnet", "3conv3fc"])
@pytest.mark.parametrize("layer_type", ["lrt", "bbb", "flipout"])
@pytest.mark.parametrize("scale", [1e-20, 1e17])
def test_whole_networks_take_extreme_images(net_type: str, layer_type: str, scale: float) -> None:
    net = build(net_type, True, 10, 1, layer_type=layer_type)
    logits, kl = net(scale * torch.randn(2, 1, 32, 32))
    (logits.sum() / max(scale, 1.0) + kl).backward()
    assert logits.isfinite().all() and all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e18])
def test_local_reparameterisation_is_as_exact_for_large_and_small_inputs(scale: float) -> None:
    layer = BBBConv2d(2, 3, 3, padding=1, layer_type="lrt", priors={"posterior_rho_initial": (-1.0, 0.3)})
    images = scale * torch.randn(4, 2, 5, 5)
    torch.manual_seed(5)
    found = layer(images)
    torch.manual_seed(5)
    noise = torch.randn(found.shape)
    wide = layer.double()
    images = images.double()
    mean = wide.operation(images, *wide.means())
    variance = wide.operation(images.square(), *wide.variances())
    torch.testing.assert_close(found.double() / scale, (mean + variance.sqrt() * noise) / scale, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layer_type", ["lrt", "bbb", "flipout"])
@pytest.mark.parametrize("bias", [True, False])
def test_every_precision_gives_finite_outputs_and_gradients(layer_type: str, dtype: torch.dtype, bias: bool) -> None:
    layer = BBBConv2d(1, 2, 3, dtype=dtype, layer_type=layer_type, bias=bias)
    for images in (torch.zeros(2, 1, 5, 5, dtype=dtype), torch.randn(1, 1, 5, 5, dtype=dtype)):
        layer.zero_grad()
        output = layer(images)
        (output.float().sum() + layer.kl()).backward()
        assert output.dtype == dtype and output.isfinite().all()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    assert layer(torch.zeros(0, 1, 5, 5, dtype=dtype)).shape == (0, 2, 3, 3)
