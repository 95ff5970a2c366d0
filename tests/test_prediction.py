"""The posterior predictive: its samples, its summaries, and that it leaves the network alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from inference import (
    Classifier,
    Predictor,
    decompose,
    posterior_draws,
    posterior_predictive,
    predict,
    summarize,
    uncertainty,
)
from inference.prediction import posterior_outputs
from layers import BBBConv2d, BBBLinear, FlattenLayer, ModuleWrapper, sample_parameters
from likelihoods import Predictive, entropy, normalized_softplus, softmax
from models import build
from moments import MissingRuleError
from support import UserError
from utils import calc_uncertainty_normalized, calc_uncertainty_softmax

WIDE = {"posterior_rho_initial": (-2.5, 0.1), "posterior_log_alpha_initial": -1.0}
NETWORKS: list[dict[str, Any]] = [
    {"bayesian": True, "layer_type": "lrt", "priors": WIDE},
    {"bayesian": True, "layer_type": "bbb", "priors": WIDE},
    {"bayesian": True, "layer_type": "flipout", "priors": WIDE},
    {"bayesian": True, "layer_type": "lrt", "alpha_shape": (1, 1), "priors": WIDE},
    {"bayesian": False},
]


@pytest.fixture(params=NETWORKS, ids=lambda n: "-".join(str(v) for v in n.values() if v != WIDE))
def net(request: pytest.FixtureRequest) -> nn.Module:
    return build("lenet", outputs=10, inputs=1, **request.param)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(12, 1, 32, 32)


def samples(net: nn.Module) -> int:
    return 7 if isinstance(net, ModuleWrapper) else 1


def test_the_same_seed_gives_the_same_samples_whatever_the_batch_size(net: nn.Module, images: Tensor) -> None:
    whole = predict(net, images, 7, batch_size=12, seed=3)
    assert whole.shape == (samples(net), 12, 10)
    torch.testing.assert_close(whole.sum(-1), torch.ones(samples(net), 12))
    for batch_size in (1, 5, 100):
        torch.testing.assert_close(predict(net, images, 7, batch_size, seed=3), whole, rtol=1e-4, atol=1e-6)
    if isinstance(net, ModuleWrapper):
        assert not torch.allclose(predict(net, images, 7, seed=4), whole)
        assert not torch.allclose(whole[0], whole[1])
        assert torch.equal(predict(net, images, 3, seed=3), predict(net, images, 7, seed=3)[:3])


def test_streaming_agrees_with_the_samples_it_does_not_keep(net: nn.Module, images: Tensor) -> None:
    p = predict(net, images, 7, seed=1).double()
    q = predict(net, images, 7, seed=1, link=normalized_softplus).double()
    mean = p.mean(0)
    for predictive in (
        posterior_predictive(net, images, 7, 5, seed=1),
        Predictive.concatenate([posterior_predictive(net, chunk, 7, 3, seed=1) for chunk in images.split(4)]),
    ):
        expected = {
            "probs": mean,
            "expected_log_probs": p.log().mean(0),
            "expected_entropy": -(p * p.log()).sum(-1).mean(0),
            "entropy": -(mean * mean.log()).sum(-1),
            "epistemic_softmax": (p - mean).square().sum(-1).mean(0),
            "aleatoric_softmax": (p * (1 - p)).sum(-1).mean(0),
            "epistemic_normalized": (q - q.mean(0)).square().sum(-1).mean(0),
            "aleatoric_normalized": (q * (1 - q)).sum(-1).mean(0),
        }
        for name, value in expected.items():
            torch.testing.assert_close(getattr(predictive, name).double(), value, rtol=1e-4, atol=1e-6, msg=name)
        information = predictive.entropy - predictive.expected_entropy
        torch.testing.assert_close(predictive.mutual_information, information)
        assert torch.equal(predictive.labels, predictive.probs.argmax(-1))


@pytest.mark.parametrize("kind", ["softmax", "normalized"])
def test_the_traces_add_up_and_single_batched_and_streaming_agree(net: nn.Module, images: Tensor, kind: str) -> None:
    batch = uncertainty(net, images, 7, kind, batch_size=5)
    link = softmax if kind == "softmax" else normalized_softplus
    mean = predict(net, images, 7, link=link).mean(0)
    epistemic, aleatoric = batch.traces
    torch.testing.assert_close(epistemic + aleatoric, 1 - mean.square().sum(-1), rtol=0, atol=1e-5)
    streamed = posterior_predictive(net, images, 7)
    torch.testing.assert_close(getattr(streamed, f"epistemic_{kind}"), epistemic, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(getattr(streamed, f"aleatoric_{kind}"), aleatoric, rtol=1e-4, atol=1e-6)
    single = calc_uncertainty_softmax if kind == "softmax" else calc_uncertainty_normalized
    for index in (0, 11):
        both = single(net, images[index], T=7)
        assert both == pytest.approx((epistemic[index].item(), aleatoric[index].item()), rel=1e-4, abs=1e-6)
        details = single(net, images[index], T=7, details=True)
        torch.testing.assert_close(details.epistemic, batch.epistemic[index], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(details.diagonals[1], batch.aleatoric[index].diagonal(), rtol=1e-4, atol=1e-6)
        assert details.predicted.item() == mean[index].argmax().item()


def test_the_covariances_are_those_of_the_one_hot_class() -> None:
    """Var(y) = E Var(y|w) + Var E(y|w), and their entries each sum to zero, so only a trace can be a scalar."""
    probs = torch.rand(9, 4, 5, dtype=torch.float64).softmax(-1)
    covariances = decompose(probs)
    torch.testing.assert_close(covariances.epistemic[2], torch.cov(probs[:, 2].T, correction=0))
    mean = probs.mean(0)[2]
    torch.testing.assert_close(
        (covariances.epistemic + covariances.aleatoric)[2], mean.diag() - torch.outer(mean, mean)
    )
    for matrix in (covariances.epistemic, covariances.aleatoric):
        assert matrix.sum((-1, -2)).abs().max() < 1e-15
        assert torch.linalg.eigvalsh(matrix).min() > -1e-15


def test_a_draw_is_a_draw_from_the_posterior_and_leaves_the_network_alone() -> None:
    net = nn.Sequential(FlattenLayer(2), BBBLinear(2, 1, priors={"posterior_rho_initial": (0.0, 0.5)}))
    before = copy.deepcopy(net.state_dict())
    generator = torch.get_rng_state()
    drawn = torch.stack([draw[1].weight.detach().clone() for draw in posterior_draws(net, 4000, 0)])  # type: ignore[index]
    layer = net[1]
    std = layer.posterior["weight"].std(layer.weight).detach()  # type: ignore[index, union-attr, operator, arg-type]
    assert ((drawn.mean(0) - layer.weight.detach()).abs() < 5 * std / math.sqrt(4000)).all()  # type: ignore[operator, union-attr]
    torch.testing.assert_close(drawn.std(0), std, rtol=0.06, atol=0)
    assert torch.equal(torch.get_rng_state(), generator)
    for key, value in net.state_dict().items():
        assert torch.equal(before[key], value) if isinstance(value, Tensor) else before[key] == value
    assert net.training


def test_draws_leave_gradients_on_in_the_code_that_uses_them() -> None:
    images, slopes = torch.randn(2, 2, 1), []
    for draw in posterior_draws(nn.Sequential(FlattenLayer(2), BBBLinear(2, 1)), 2, 0):
        assert torch.is_grad_enabled()
        (slope,) = torch.autograd.grad(draw(images).sum(), draw[1].weight)  # type: ignore[index]
        slopes.append(slope)
    torch.testing.assert_close(slopes, [images.sum(0).T] * 2)


def test_batch_norm_and_dropout_stay_in_evaluation() -> None:
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(), FlattenLayer(4), nn.Linear(4, 3)).train()
    images = 5 + torch.randn(6, 1, 2, 2)
    expected = copy.deepcopy(net).eval()(images).softmax(-1)
    torch.testing.assert_close(predict(net, images, 4)[0], expected)
    assert torch.equal(net[0].running_mean, torch.zeros(1)) and net.training  # type: ignore[arg-type]


def test_entropy_is_in_nats_and_zero_probability_counts_nothing() -> None:
    assert entropy(torch.full((4,), 0.25)).item() == pytest.approx(math.log(4))
    assert entropy(torch.tensor([1.0, 0.0])).item() == 0


def test_what_cannot_be_predicted_is_refused(images: Tensor) -> None:
    net = build("lenet", False, 10, 1)
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        predict(net, images, 0)
    with pytest.raises(ValueError, match="expected one image"):
        calc_uncertainty_softmax(net, images)
    with pytest.raises(ValueError, match="unknown kind 'sigmoid'"):
        uncertainty(net, images, kind="sigmoid")
    with pytest.raises(ValueError, match="there is no sample to summarize"):
        summarize([])


def test_normalized_softplus_of_very_negative_logits_is_a_distribution() -> None:
    """softplus(x) rounds to 0 below x = −104 in float32; its logarithm is x."""
    logits = torch.tensor([[-110.0, -111.0, -200.0], [-39.0, -41.0, 3.0], [-103.0, -104.0, -105.0]], requires_grad=True)
    probs = normalized_softplus(logits)
    exact = nn.functional.softplus(logits.double())
    torch.testing.assert_close(probs.double(), exact / exact.sum(-1, keepdim=True))
    (gradient,) = torch.autograd.grad(probs[:, 0].sum(), logits)
    assert gradient.isfinite().all()
    predictive = summarize([logits.detach(), logits.detach() - 5])
    assert predictive.epistemic_normalized.isfinite().all() and predictive.aleatoric_normalized.isfinite().all()


def test_a_network_that_is_not_finite_has_no_uncertainty(images: Tensor) -> None:
    net = build("lenet", True, 10, 1)
    with torch.no_grad():
        next(net.parameters())[0] = math.nan
    with pytest.raises(UserError, match="expected finite probabilities"):
        uncertainty(net, images, 2)
    with pytest.raises(UserError, match="expected finite probabilities"):
        calc_uncertainty_normalized(net, images[0], T=2)


class Residual(nn.Module):
    """Writes a random value into what came before the first random weight, if asked to, and uses it again."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.first, self.last, self.in_place = nn.Linear(4, 3), BBBLinear(3, 3), in_place

    def forward(self, input: Tensor) -> Tensor:
        hidden = F.relu(self.first(input), inplace=True)
        noise = self.last(hidden)
        if self.in_place:
            hidden += noise
            return hidden
        return hidden + noise


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("inference", [False, True])
def test_what_comes_before_the_first_random_weight_is_computed_once(in_place: bool, inference: bool) -> None:
    """And the draws are those of whole passes, also where the rest of the network writes into its result."""
    net, inputs, calls = Residual(in_place).eval(), torch.randn(7, 4), []

    class Calls(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            calls.append(func)
            return func(*args, **(kwargs or {}))

    with torch.inference_mode(inference), torch.no_grad():
        expected = torch.stack([draw(inputs) for draw in posterior_draws(net, 6, 3)])
        with Calls():
            outputs = torch.stack(list(posterior_outputs(net, inputs, 6, 4, 3)))
    torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-6)
    batches = 2
    kept = 1 if not in_place and not inference else 6
    assert calls.count(F.relu) == kept * batches


class Joined(nn.Module):
    """Two parameters that one operation takes in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(1, 4))

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, torch.cat([self.one, self.two]))


class IntoATuple(nn.Module):
    """Writes a random value into what an operation before the first random weight gave as one of two results."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.LSTM(4, 3, batch_first=True), BBBLinear(3, 3)

    def forward(self, input: Tensor) -> Tensor:
        hidden, _ = self.first(input[:, None])
        hidden += self.last(hidden)
        return hidden[:, 0]


@pytest.mark.parametrize(
    "make", [lambda: sample_parameters(Joined(), ["one", "two"]), IntoATuple], ids=["weights in a list", "a tuple"]
)
def test_the_draws_are_those_of_whole_passes_whatever_tensors_are_in(make: Callable[[], nn.Module]) -> None:
    net, inputs = make().eval(), torch.randn(7, 4)
    with torch.no_grad():
        expected = torch.stack([draw(inputs).clone() for draw in posterior_draws(net, 4, 3)])
    torch.testing.assert_close(torch.stack(list(posterior_outputs(net, inputs, 4, 7, 3))), expected, rtol=0, atol=1e-6)
    assert expected.var(0).min() > 0


class KeepsGrid(nn.Module):
    """Computes a tensor in its first pass alone."""

    def __init__(self) -> None:
        super().__init__()
        self.last = BBBLinear(4, 3)
        self.grid: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        if self.grid is None:
            self.grid = torch.linspace(1, 2, 4)
        return self.last(input * self.grid)


class KeepsHidden(nn.Module):
    """Calls in its first pass alone the function that later takes the random weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 3), BBBLinear(3, 3)
        self.hidden: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        if self.hidden is None:
            self.hidden = self.first(input)
        return self.last(self.hidden)


@pytest.mark.parametrize("make", [KeepsGrid, KeepsHidden])
def test_a_network_that_keeps_a_tensor_of_its_first_pass_gives_the_draws_of_whole_passes(
    make: Callable[[], nn.Module],
) -> None:
    net, inputs = make().eval(), torch.randn(7, 4)
    with torch.no_grad():
        expected = torch.stack([draw(inputs) for draw in posterior_draws(net, 4, 3)])
    torch.testing.assert_close(torch.stack(list(posterior_outputs(net, inputs, 4, 7, 3))), expected, rtol=0, atol=1e-6)


def test_dropout_that_stays_on_before_a_random_last_layer_differs_between_draws() -> None:
    """Its variance is that of masks alone: Var(Σ w x m / p) = (1 − p) / p · Σ (w x)², here with p = ½."""

    class AlwaysDrops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 6)
            self.last = BBBLinear(6, 3, priors={"posterior_rho_initial": (-20.0, 0.1)})

        def forward(self, input: Tensor) -> Tensor:
            return self.last(F.dropout(self.first(input), 0.5, training=True))

    torch.manual_seed(0)
    net, inputs = AlwaysDrops(), torch.randn(5, 4)
    outputs = torch.stack(list(posterior_outputs(net, inputs, 4000, 5, 0)))
    with torch.no_grad():
        expected = (net.first(inputs)[:, None] * net.last.weight).square().sum(-1)
    torch.testing.assert_close(outputs.var(0), expected, rtol=0.1, atol=1e-4)


@pytest.mark.parametrize("method", ["draws", "moments"])
@pytest.mark.parametrize("count", [1, 9])
def test_a_predictor_gives_what_the_library_gives(method: str, count: int) -> None:
    """Few images go through all draws at once, many through one after the other."""
    net, images = build("lenet", True, 10, 1, priors={"posterior_rho_initial": (-3.0, 0.1)}), torch.randn(9, 1, 32, 32)
    predictor, batch = Predictor(net, 6, 4, method=method), images[:count]
    expected = posterior_predictive(net, batch, 6, 16, 4, method=method)
    for _ in range(2):
        predictive = predictor(batch, 16)
        for field in fields(predictive):
            torch.testing.assert_close(
                getattr(predictive, field.name), getattr(expected, field.name), rtol=1e-4, atol=1e-6
            )
    classifier = Classifier(net, tuple("0123456789"), (0.3,), (0.2,))
    pixels = torch.randint(256, (count, 1, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(
        classifier.predictor(6, 4, method=method)(pixels).probs,
        classifier.predict(pixels, 6, 4, method=method).probs,
    )


def test_a_network_that_cannot_take_all_draws_at_once_takes_them_in_turn() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = BBBLinear(4, 3)

        def forward(self, input: Tensor) -> Tensor:
            output = self.fc(input)
            return -output if output.sum() > 0 else output

    net, inputs = Branching(), torch.randn(1, 4)
    expected = posterior_predictive(net, inputs, 5)
    torch.testing.assert_close(Predictor(net, 5)(inputs).probs, expected.probs)


def test_moments_are_fitted_to_draws() -> None:
    """The hidden units of this network share its random input, which moments do not know."""
    torch.manual_seed(0)
    net = nn.Sequential(BBBLinear(2, 1, priors=WIDE), nn.Unflatten(1, (1, 1)), nn.Conv1d(1, 6, 1), FlattenLayer(6))
    net.append(nn.Linear(6, 3))
    inputs = torch.randn(200, 2)
    kept, fitted = (Predictor(net, 400, method="moments", fit_to=images) for images in (None, inputs[:100]))
    draws = posterior_predictive(net, inputs[100:], 400, seed=1)
    errors = [
        float((predictor(inputs[100:]).mutual_information / draws.mutual_information).log().abs().mean())
        for predictor in (kept, fitted)
    ]
    assert errors[1] < 0.1 < 0.5 < errors[0]
    with pytest.raises(ValueError, match="fit_to expects the method 'moments'"):
        Predictor(net, fit_to=inputs)


def test_energies_and_votes_are_those_of_the_samples_and_logits_are_divided_by_the_temperature() -> None:
    logits = 3 * torch.randn(9, 20, 4, dtype=torch.float64)
    predictive = summarize(logits)
    torch.testing.assert_close(predictive.energy, -logits.exp().sum(-1).log().mean(0))
    votes = torch.stack([(logits.argmax(-1) == label).sum(0) for label in range(4)])
    torch.testing.assert_close(predictive.variation_ratio.double(), 1 - votes.amax(0) / 9, check_dtype=False)
    assert predictive.accepted.all()
    tempered, divided = summarize(logits, temperature=2.5), summarize(logits / 2.5)
    assert all(torch.equal(getattr(tempered, f.name), getattr(divided, f.name)) for f in fields(predictive))
    some = predictive.subset(torch.tensor([3, 1]))
    assert torch.equal(some.energy, predictive.energy[[3, 1]]) and torch.equal(some.entropy, predictive.entropy[[3, 1]])


def test_samples_with_gradients_and_in_half_precision_are_summarized_in_full_precision() -> None:
    samples = 8 * torch.randn(5, 7, 4)
    expected = summarize(samples.unbind())
    with_gradients = summarize(samples.clone().requires_grad_().unbind())
    for field in fields(Predictive):
        assert torch.equal(getattr(with_gradients, field.name), getattr(expected, field.name))
    half, wide = summarize(samples.half().unbind()), summarize(samples.half().float().unbind())
    for field in fields(Predictive):
        assert torch.equal(getattr(half, field.name), getattr(wide, field.name))


def test_draws_under_autocast_differ() -> None:
    """Autocast keeps copies of weights in lower precision; each draw has its own."""
    net = ModuleWrapper(BBBLinear(20, 4, priors={"posterior_rho_initial": (-1.0, 0.1)})).eval()
    inputs = torch.randn(8, 20)
    many = torch.randn(300, 20)  # a Predictor takes all draws of few inputs in one pass
    expected = [posterior_predictive(net, x).mutual_information.mean() for x in (inputs, many)]
    with torch.autocast("cpu", torch.bfloat16):
        found = [
            posterior_predictive(net, inputs).mutual_information.mean(),
            Predictor(net)(many).mutual_information.mean(),
        ]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=0.02, atol=0)


def test_a_network_without_parameters_predicts_where_its_inputs_are() -> None:
    inputs = torch.randn(3, 4)
    for predictive in (posterior_predictive(nn.Flatten(), inputs), Predictor(nn.Flatten())(inputs)):
        torch.testing.assert_close(predictive.probs, inputs.softmax(-1))


def test_a_predictor_of_a_few_images_takes_a_deterministic_network_too() -> None:
    net, inputs = nn.Linear(4, 3), torch.randn(5, 4)
    assert torch.equal(Predictor(net)(inputs).probs, posterior_predictive(net, inputs).probs)


def test_maps_are_not_fitted_to_draws() -> None:
    net = ModuleWrapper(BBBConv2d(1, 2, 3))
    with pytest.raises(MissingRuleError, match="maps cannot be fitted to draws: leave out the fit"):
        Predictor(net, 3, method="moments", likelihood="categorical", fit_to=torch.randn(2, 1, 5, 5))
