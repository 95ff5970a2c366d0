"""ModuleWrapper and FlattenLayer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layers import BBBLSTM, BBBConv2d, BBBLinear, FlattenLayer, ModuleWrapper, kl_divergence, sampling


class Net(ModuleWrapper):
    """The custom network of the README."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = BBBConv2d(3, 16, 5, strides=2, alpha_shape=(1, 1), name="conv")
        self.bn = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.flatten = FlattenLayer(800)
        self.fc = BBBLinear(800, 10, alpha_shape=(1, 1), name="fc")


def total(*layers: Any) -> float:
    return sum(layer.posterior[key].kl(getattr(layer, key)).item() for layer in layers for key in ("weight", "bias"))


def test_a_custom_network_needs_no_forward() -> None:
    net = Net()
    logits, kl = net(torch.randn(4, 3, 13, 23))
    assert logits.shape == (4, 10)
    assert kl.item() == pytest.approx(total(net.conv, net.fc), rel=1e-6)
    (logits.sum() + kl).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_wrappers_nest_and_every_kl_counts_once() -> None:
    class Inner(ModuleWrapper):
        def __init__(self) -> None:
            super().__init__()
            self.a = BBBLinear(4, 4)
            self.b = nn.Sequential(nn.Tanh(), BBBLinear(4, 4))

    class Outer(ModuleWrapper):
        def __init__(self) -> None:
            super().__init__()
            self.first = Inner()
            self.act = nn.Tanh()
            self.second = nn.Sequential(Inner(), nn.Tanh(), BBBLinear(4, 2))

    net = Outer()
    features = torch.randn(3, 4)
    with sampling(net, False):
        output, kl = net(features)
        a, b = net.first, net.second[0]
        expected = features
        for module in (a.a, a.b, net.act, b.a, b.b, net.second[1], net.second[2]):
            expected = module(expected)
    assert torch.equal(output, expected)
    assert kl.item() == pytest.approx(total(a.a, a.b[1], b.a, b.b[1], net.second[2]), rel=1e-6)


def test_a_module_assigned_twice_runs_twice_and_counts_once() -> None:
    class Twice(ModuleWrapper):
        def __init__(self) -> None:
            super().__init__()
            self.first = BBBLinear(3, 3)
            self.again = self.first

    net = Twice()
    features = torch.randn(2, 3)
    with sampling(net, False):
        output, kl = net(features)
        assert torch.equal(output, net.first(net.first(features)))
    assert kl.item() == pytest.approx(total(net.first), rel=1e-6)


def test_a_forward_of_ones_own_gets_its_kl() -> None:
    class Residual(ModuleWrapper):
        def __init__(self) -> None:
            super().__init__()
            self.fc = BBBLinear(3, 3)

        def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
            return input + self.fc(input), self.kl()

    net = Residual()
    features = torch.randn(2, 3)
    with sampling(net, False):
        output, kl = net(features)
        assert torch.equal(output, features + net.fc(features))
    assert kl.item() == pytest.approx(total(net.fc), rel=1e-6)


def test_a_tensor_shared_by_two_layers_counts_once() -> None:
    first, second = BBBLinear(3, 3, bias=False), BBBLinear(3, 3, bias=False)
    second.weight = first.weight
    assert kl_divergence(nn.ModuleList([first, second])).item() == pytest.approx(first.kl().item())


def test_a_network_without_bayesian_layers_has_no_kl() -> None:
    assert kl_divergence(nn.Linear(2, 2)).item() == 0
    assert kl_divergence(nn.ReLU()).item() == 0


def test_set_flag_reaches_every_module_below() -> None:
    net = Net().eval()
    images = torch.randn(2, 3, 13, 23)
    assert not torch.equal(net(images)[0], net(images)[0])
    net.set_flag("sampling", False)
    assert torch.equal(net(images)[0], net(images)[0])
    net.set_flag("sampling", True)
    assert not torch.equal(net(images)[0], net(images)[0])
    net.set_flag("layer_type", "bbb")
    twins = net(images[:1].repeat(2, 1, 1, 1))[0]  # one draw shared by the batch
    torch.testing.assert_close(twins[0], twins[1])


def test_a_flag_that_a_layer_refuses_changes_no_layer() -> None:
    net = ModuleWrapper(BBBLinear(3, 3, layer_type="bbb"), BBBLSTM(3, 3))
    with pytest.raises(ValueError, match="unknown layer_type 'flipout'"):
        net.set_flag("layer_type", "flipout")
    assert [layer.layer_type for layer in net.children()] == ["bbb", "bbb"]


def test_flatten_says_both_numbers_and_never_changes_the_batch() -> None:
    images = torch.randn(4, 2, 3, 3)
    assert torch.equal(FlattenLayer(18)(images), images.flatten(1))
    with pytest.raises(ValueError, match=r"FlattenLayer\(36\) got 18 features"):
        FlattenLayer(36)(images)


def test_layers_of_two_precisions_work_together() -> None:
    torch.manual_seed(0)
    layers = BBBLinear(4, 4, layer_type="bbb").bfloat16(), Upcast(), BBBLinear(4, 2, layer_type="bbb")
    features = torch.randn(3, 4).bfloat16()
    torch.manual_seed(1)
    output, kl = ModuleWrapper(*layers)(features)
    torch.manual_seed(1)
    assert torch.equal(output, nn.Sequential(*layers)(features))
    (output.sum() + kl).backward()
    assert {layers[0].posterior["weight"].rho.grad.dtype, layers[2].posterior["weight"].rho.grad.dtype} == {
        torch.bfloat16, torch.float32
    }  # fmt: skip


class Upcast(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return input.float()


def test_spreads_kept_without_gradients_are_not_taken_for_training() -> None:
    """As when another thread predicts with the network that this one trains."""
    layer = BBBLinear(4, 2)

    class Training(nn.Module):
        def forward(self, input: Tensor) -> Tensor:
            with torch.enable_grad():
                layer.kl().backward()
            return input

    net = ModuleWrapper(layer, Training())
    with torch.no_grad():
        net(torch.randn(3, 4))
    assert layer.posterior["weight"].rho.grad.abs().min() > 0
