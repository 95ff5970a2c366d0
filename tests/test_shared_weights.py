"""A weight that a pass uses twice has one value in that pass, in training as in prediction; switches of threads."""

from __future__ import annotations

import copy
import math
import pickle
import threading
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from inference.prediction import posterior_draws
from layers import BBBLinear, ModuleWrapper, kl_divergence, sampling, share_draws, to_bayesian, weight_posteriors

RHO = math.log(math.expm1(0.5))  # σ = 0.5
HALF = {"posterior_rho_initial": (RHO, 0.0)}


def scalar(layer_type: str = "bbb") -> BBBLinear:
    layer = BBBLinear(1, 1, bias=False, layer_type=layer_type, priors=HALF)
    nn.init.ones_(layer.weight)
    return layer


class OwnForward(ModuleWrapper):
    """w·w·x by a layer that is called twice."""

    def __init__(self, layer_type: str) -> None:
        super().__init__()
        self.fc = scalar(layer_type)

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        return self.fc(self.fc(input)), self.kl()


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.fc.weight)

    def forward(self, input: Tensor) -> Tensor:
        return self.fc(self.fc(input))


def assigned_twice(layer_type: str) -> nn.Module:
    layer = scalar(layer_type)
    return ModuleWrapper(layer, layer)


def tied(layer_type: str) -> nn.Module:
    """Two layers with one weight, tied by hand and by the weight alone."""
    first, second = scalar(layer_type), scalar(layer_type)
    nn.init.constant_(second.posterior["weight"].rho, 7.0)  # it has one posterior, the first one's
    second.weight = first.weight
    return ModuleWrapper(first, second)


def converted(layer_type: str) -> nn.Module:
    return to_bayesian(Plain(), layer_type=layer_type, priors=HALF)


def layers_of_ones_own(layer_type: str) -> nn.Module:
    net = Plain()
    net.fc = scalar(layer_type)  # type: ignore[assignment]
    share_draws(net)
    return net


MAKERS: list[Callable[[str], nn.Module]] = [OwnForward, assigned_twice, tied, converted, layers_of_ones_own]


def output(net: nn.Module, input: Tensor) -> Tensor:
    result = net(input)
    return result[0] if isinstance(result, tuple) else result  # type: ignore[no-any-return]


@pytest.mark.parametrize("layer_type", ["bbb", "flipout"])
@pytest.mark.parametrize("make", MAKERS)
def test_a_weight_used_twice_is_drawn_once_in_training_as_in_prediction(
    make: Callable[[str], nn.Module], layer_type: str
) -> None:
    """E[w²] = μ² + σ² = 1.25, where two draws would make E[w]² = 1."""
    net = make(layer_type)
    one = torch.ones(1, 1)
    with torch.no_grad():
        trained = torch.stack([output(net, one) for _ in range(2000)])
        predicted = torch.stack([output(draw, one) for draw in posterior_draws(net, 2000, seed=0)])
    for values in (trained, predicted):  # 1 would be more than ten standard errors away
        assert values.mean().item() == pytest.approx(1.25, abs=5 * float(values.std()) / math.sqrt(2000))
    assert len(list(weight_posteriors(net))) == 1
    assert kl_divergence(net).item() == pytest.approx(math.log(2) + (0.25 + 1) / 2 - 0.5, rel=1e-5)


@pytest.mark.parametrize("make", MAKERS)
def test_the_gradients_of_all_uses_add_up(make: Callable[[str], nn.Module]) -> None:
    """w = μ + σε twice: d(w²)/dμ = 2w and d(w²)/dρ = 2w · ε · dσ/dρ."""
    net = make("bbb")
    value = output(net, torch.ones(1, 1))
    value.sum().backward()
    ((_, mean, posterior),) = weight_posteriors(net)
    weight = value.detach().sqrt() * (1 if float(mean.grad) > 0 else -1)  # type: ignore[arg-type]
    torch.testing.assert_close(mean.grad, 2 * weight)
    noise = (weight - 1) / 0.5
    slope = 1 / (1 + math.exp(-RHO))
    torch.testing.assert_close(posterior.rho.grad, 2 * weight * noise * slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", MAKERS)
def test_local_reparameterization_warns_that_it_draws_each_use(make: Callable[[str], nn.Module]) -> None:
    with pytest.warns(UserWarning, match="uses its weight twice in one forward pass: local reparameterization"):
        make("lrt")(torch.ones(1, 1))


def test_each_pass_draws_anew_also_after_an_error_and_in_copies() -> None:
    net = OwnForward("bbb")
    for each in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert not torch.equal(output(each, torch.ones(1, 1)), output(each, torch.ones(1, 1)))
        with pytest.raises(RuntimeError):
            each(torch.ones(1, 7))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not torch.equal(output(each, torch.ones(1, 1)), output(each, torch.ones(1, 1)))


class Interrupted(nn.Module):
    """Lets its input through, or is where the user presses Ctrl-C."""

    on = False

    def forward(self, input: Tensor) -> Tensor:
        if self.on:
            raise KeyboardInterrupt
        return input


@pytest.mark.parametrize("wrap", [lambda net: net, ModuleWrapper], ids=["alone", "nested"])
def test_each_pass_draws_anew_after_an_interrupt(wrap: Callable[[nn.Module], nn.Module]) -> None:
    """Torch calls no hook at a KeyboardInterrupt, so the interrupted pass stays open until the next one begins."""
    stop = Interrupted()
    net, other = wrap(ModuleWrapper(scalar(), stop)), ModuleWrapper(scalar())
    for after in (net, other):
        stop.on = True
        with pytest.raises(KeyboardInterrupt):
            net(torch.ones(1, 1))
        stop.on = False
        values = [output(after, torch.ones(1, 1)) for _ in range(3)]
        assert len({value.item() for value in values}) == 3
        for value in values:
            value.sum().backward()
        net(torch.ones(1, 1))


def test_a_network_that_another_one_calls_without_containing_it_has_a_pass_of_its_own() -> None:
    """And the outer pass goes on after it: both uses of the outer weight have one value."""
    inner = ModuleWrapper(scalar())

    class Outer(ModuleWrapper):
        def __init__(self) -> None:
            super().__init__()
            self.fc = scalar()
            self.others = [inner]

        def forward(self, input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return self.fc(input), output(self.others[0], input), self.fc(input)

    first, other, second = Outer()(torch.ones(1, 1))
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_a_draw_that_is_first_used_without_gradients_has_one_later() -> None:
    class Net(ModuleWrapper):
        def __init__(self) -> None:
            super().__init__()
            self.fc = scalar()

        def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                target = self.fc(input)
            return self.fc(input), target

    net = Net()
    value, target = net(torch.ones(1, 1))
    assert torch.equal(value, target) and not target.requires_grad
    value.sum().backward()
    assert net.fc.weight.grad is not None and float(net.fc.weight.grad) == 1


def test_sharing_draws_twice_is_sharing_them_once() -> None:
    net = to_bayesian(ModuleWrapper(nn.Linear(1, 1)), layer_type="bbb")
    share_draws(net)
    assert len(net._forward_pre_hooks) == 1


def test_a_compiled_network_draws_once_too() -> None:
    net = OwnForward("bbb")
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    for _ in range(2):
        torch.manual_seed(3)
        expected = output(net, torch.ones(2, 1))
        torch.manual_seed(3)
        assert torch.equal(output(compiled, torch.ones(2, 1)), expected)  # type: ignore[arg-type]


def test_switches_of_two_threads_do_not_meet() -> None:
    """Enter A, enter B, leave A, leave B: each thread has its own switch, and none stays behind."""
    net = ModuleWrapper(BBBLinear(4, 3))
    features = torch.randn(2, 4)
    with sampling(net, False):
        at_means = net(features)[0]
    barrier = threading.Barrier(3, timeout=30)
    outcomes: dict[str, bool] = {}

    def is_deterministic() -> bool:
        return torch.equal(net(features)[0], at_means)

    def first() -> None:
        with sampling(net, False):
            barrier.wait()  # both are inside
            outcomes["first"] = is_deterministic()
            barrier.wait()
        barrier.wait()  # the first is outside, the second inside
        outcomes["first, outside"] = is_deterministic()
        barrier.wait()

    def second() -> None:
        with sampling(net, False):
            for _ in range(3):
                barrier.wait()
            outcomes["second"] = is_deterministic()
            barrier.wait()

    threads = [threading.Thread(target=target) for target in (first, second)]
    for thread in threads:
        thread.start()
    barrier.wait()
    outcomes["a third thread"] = is_deterministic()
    for _ in range(3):
        barrier.wait()
    for thread in threads:
        thread.join()
    outcomes["afterwards"] = is_deterministic()
    assert outcomes == {
        "first": True, "first, outside": False, "second": True, "a third thread": False, "afterwards": False
    }  # fmt: skip


def test_a_flag_or_an_estimator_that_nobody_has_is_refused() -> None:
    net = ModuleWrapper(BBBLinear(4, 3), nn.ReLU())
    with pytest.raises(ValueError, match="no module of the network has a flag 'samplng'"):
        net.set_flag("samplng", False)
    with pytest.raises(ValueError, match="unknown layer_type 'lrtt': expected one of"):
        net.set_flag("layer_type", "lrtt")
    with pytest.raises(ValueError, match=r"layers='fcc' selects no layer: the network has fc$"):
        to_bayesian(Plain(), ["fc", "fcc"])
