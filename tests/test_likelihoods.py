"""What outputs mean: one logit, several labels, maps; and that what cannot be read is refused, not normalized."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
from torch import Tensor, nn

from inference import Classifier, decompose, ensemble_predictive, posterior_predictive, predict, summarize, uncertainty
from layers import BBBConv2d, BBBLinear, FlattenLayer
from likelihoods import BernoulliPredictive, Predictive, metrics, normalized_softplus
from utils import calc_uncertainty_normalized, calc_uncertainty_softmax

SUMMARIES = ("expected_entropy", "entropy", "mutual_information", "epistemic_softmax", "aleatoric_softmax")
WIDE = {"posterior_rho_initial": (0.0, 0.3)}


def entropy(p: Tensor) -> Tensor:
    return -p * p.log() - (1 - p) * (1 - p).log()


def labels_network(labels: int) -> nn.Module:
    return nn.Sequential(FlattenLayer(2), BBBLinear(2, labels, priors=WIDE))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 1, 1, 2)


@pytest.mark.parametrize("labels", [1, 3])
def test_bernoulli_summaries_are_their_formulas_per_label(labels: int) -> None:
    logits = 2 * torch.randn(9, 5, labels, dtype=torch.float64)
    predictive = summarize(logits, likelihood="bernoulli")
    p, q = logits.sigmoid(), normalized_softplus(torch.stack([torch.zeros_like(logits), logits], -1))[..., 1]
    mean = p.mean(0)
    expected = {
        "probs": mean,
        "expected_entropy": entropy(p).mean(0),
        "entropy": entropy(mean),
        "mutual_information": entropy(mean) - entropy(p).mean(0),
        "epistemic_softmax": p.var(0, correction=0),
        "aleatoric_softmax": (p * (1 - p)).mean(0),
        "epistemic_normalized": q.var(0, correction=0),
        "aleatoric_normalized": (q * (1 - q)).mean(0),
        "log_probs": torch.stack([(1 - mean).log(), mean.log()], -1),
        "energy": -nn.functional.softplus(logits).mean(0),
        "variation_ratio": (0.5 - ((logits > 0).double().mean(0) - 0.5).abs()).float(),
        "accepted": torch.ones(5, labels, dtype=torch.bool),
        "expected_log_probs": torch.stack([(1 - p).log(), p.log()], -1).mean(0),
    }
    for name, value in expected.items():
        torch.testing.assert_close(getattr(predictive, name), value, msg=name)
    assert torch.equal(predictive.labels, (mean > 0.5).long()) and isinstance(predictive, BernoulliPredictive)
    targets = torch.randint(2, (5, labels))
    likelihood = nn.functional.binary_cross_entropy(mean, targets.double())
    assert metrics.nll(predictive, targets) == pytest.approx(likelihood.item())


def test_many_draws_of_one_logit_have_the_moments_of_its_normal_distribution() -> None:
    """z ~ N(μx, σ²x²): E p̂, Var p̂, E p̂(1 − p̂) and E H(p̂) by quadrature."""
    net = nn.Sequential(FlattenLayer(1), BBBLinear(1, 1, bias=False, priors={"posterior_rho_initial": (0.5, 0.0)}))
    nn.init.constant_(net[1].weight, 0.7)  # type: ignore[arg-type]
    images = torch.tensor([-1.0, 0.5, 2.0]).view(3, 1, 1, 1)
    sigma = math.log1p(math.exp(0.5))
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    weight = torch.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi) * (grid[1] - grid[0])
    p = (images.view(3, 1).double() * (0.7 + sigma * grid)).sigmoid()
    mean = (weight * p).sum(1)
    predictive = posterior_predictive(net, images, 4000, likelihood="bernoulli")
    for name, value in {
        "probs": mean,
        "entropy": entropy(mean),
        "expected_entropy": (weight * entropy(p)).sum(1),
        "epistemic_softmax": (weight * (p - mean[:, None]) ** 2).sum(1),
        "aleatoric_softmax": (weight * p * (1 - p)).sum(1),
    }.items():
        torch.testing.assert_close(getattr(predictive, name)[:, 0].double(), value, rtol=0, atol=0.02, msg=name)


def test_one_label_is_two_classes(images: Tensor) -> None:
    """A logit z and the logits (0, z) are one network; a sum over two classes is twice the variance of a label."""
    logits = torch.randn(8, 6, 1)
    label, classes = summarize(logits, likelihood="bernoulli"), summarize(torch.cat([0 * logits, logits], -1))
    torch.testing.assert_close(label.probs[:, 0], classes.probs[:, 1])
    for name in SUMMARIES:
        halves = 2 if name.endswith("softmax") else 1
        torch.testing.assert_close(halves * getattr(label, name)[:, 0], getattr(classes, name), rtol=1e-4, atol=1e-6)
    assert torch.equal(label.labels[:, 0], classes.labels)


@pytest.mark.parametrize("kind", ["softmax", "normalized"])
def test_covariances_of_labels(kind: str, images: Tensor) -> None:
    net = labels_network(3)
    covariances = uncertainty(net, images, 20, kind, likelihood="bernoulli")
    predictive = posterior_predictive(net, images, 20, likelihood="bernoulli")
    for one, other in zip(covariances.diagonals, ("epistemic", "aleatoric"), strict=True):
        torch.testing.assert_close(one, getattr(predictive, f"{other}_{kind}"), rtol=1e-4, atol=1e-6)
    if kind == "softmax":
        p = predict(net, images, 20, likelihood="bernoulli").double()
        torch.testing.assert_close(covariances.epistemic[1].double(), torch.cov(p[:, 1].T, correction=0))
        assert torch.equal(covariances.aleatoric, covariances.aleatoric.diagonal(dim1=-2, dim2=-1).diag_embed())
        assert torch.equal(covariances.predicted, predictive.labels)
    single = calc_uncertainty_softmax if kind == "softmax" else calc_uncertainty_normalized
    traces = single(net, images[2], T=20, likelihood="bernoulli")
    assert traces == pytest.approx([trace[2].item() for trace in covariances.traces], rel=1e-4)


def test_maps_are_classified_pixel_by_pixel() -> None:
    net = BBBConv2d(1, 3, 3, padding=1, priors=WIDE)
    images, targets = torch.randn(2, 1, 4, 6), torch.randint(3, (2, 4, 6))
    maps = posterior_predictive(net, images, 7, likelihood="categorical")
    samples = predict(net, images, 7, likelihood="categorical")
    assert samples.shape == (7, 2, 3, 4, 6)
    pixels = summarize(samples.log().movedim(2, -1).flatten(1, 3))
    torch.testing.assert_close(maps.probs, pixels.probs.view(2, 4, 6, 3).movedim(-1, 1))
    for name in (*SUMMARIES, "labels"):
        torch.testing.assert_close(getattr(maps, name), getattr(pixels, name).view(2, 4, 6), rtol=1e-4, atol=1e-6)
    assert metrics.nll(maps, targets) == pytest.approx(metrics.nll(pixels, targets.flatten()), rel=1e-4)
    covariances = uncertainty(net, images, 7, likelihood="categorical")
    assert covariances.epistemic.shape == (2, 4, 6, 3, 3) and torch.equal(covariances.predicted, maps.labels)
    torch.testing.assert_close(covariances.traces[0], maps.epistemic_softmax, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="expected a network that classifies a whole image"):
        calc_uncertainty_softmax(net, images[0], likelihood="categorical")


@pytest.mark.parametrize("outputs", [(6, 1), (6, 3, 4), (2, 3, 8, 8), (6, 0)])
def test_outputs_that_are_not_logits_of_classes_are_refused(outputs: tuple[int, ...]) -> None:
    class Fixed(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return torch.randn(outputs)

    net, images = Fixed(1, 1), torch.randn(outputs[0], 1, 4, 4)
    for refused in (
        lambda: posterior_predictive(net, images),
        lambda: predict(net, images),
        lambda: uncertainty(net, images),
        lambda: summarize([torch.randn(outputs)]),
        lambda: decompose(torch.rand(5, *outputs)),
    ):
        with pytest.raises(ValueError, match=r"expected logits \[n, classes\] of at least 2 classes .*bernoulli.*got"):
            refused()
    if outputs[1:] == (1,):
        with pytest.raises(ValueError, match="at least 2 classes"):
            posterior_predictive(net, images, likelihood="categorical")
    with pytest.raises(ValueError, match="unknown likelihood 'sigmoid': expected 'categorical' or 'bernoulli'"):
        posterior_predictive(net, images, likelihood="sigmoid")
    if len(outputs) > 2:
        with pytest.raises(ValueError, match=r"expected one logit per label, \[n, labels\]"):
            posterior_predictive(net, images, likelihood="bernoulli")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            torch.zeros(3, 2, dtype=torch.int64),
            r"floating-point outputs \[3, outputs, ...\] for 3 inputs, got \[3, 2\] of",
        ),
        (torch.zeros(3), r"got \[3\] of torch.float32"),
        (torch.zeros(2, 3), r"for 3 inputs, got \[2, 3\]"),
        ({"out": torch.zeros(3, 2)}, "expected a network that returns a tensor, or a tuple with it, got dict"),
    ],
)
def test_what_is_no_output_is_refused(output: object, message: str) -> None:
    class Fixed(nn.Linear):
        def forward(self, input: Tensor) -> object:
            return output

    with pytest.raises(ValueError, match=message):
        posterior_predictive(Fixed(1, 1), torch.randn(3, 1, 4, 4))


def test_a_classifier_says_what_its_outputs_are() -> None:
    images = torch.randint(256, (4, 1, 32, 32), dtype=torch.uint8)

    def classifier(outputs: int, classes: int, likelihood: str | None) -> Classifier:
        net = nn.Sequential(FlattenLayer(1024), BBBLinear(1024, outputs))
        return Classifier(net, tuple("abcdef")[:classes], (0.3,), (0.25,), likelihood)

    tags = classifier(3, 3, "bernoulli")
    predictive = tags.predict(images, 5)
    assert predictive.entropy.shape == predictive.labels.shape == (4, 3)
    member = ensemble_predictive([tags], images, 5)
    assert all(torch.equal(getattr(member, f.name), getattr(predictive, f.name)) for f in fields(Predictive))
    with pytest.raises(ValueError, match="expected 2 outputs, one per class, got 3"):
        classifier(3, 2, None).predict(images)
    with pytest.raises(ValueError, match="at least 2 classes"):
        classifier(1, 1, None).predict(images)
    with pytest.raises(ValueError, match="likelihood"):
        ensemble_predictive([tags, classifier(3, 3, None)], images)
    assert metrics.nll(predictive, torch.ones(4, 3, dtype=torch.int64)) > 0
    with pytest.raises(ValueError, match=r"expected probabilities \[n, classes\] of at least 2 classes and labels"):
        metrics.scores(predictive, torch.ones(4, 3, dtype=torch.int64))


def test_the_likelihood_survives_shares_and_chunks() -> None:
    logits = torch.randn(3, 8, 2)
    whole = summarize(logits, likelihood="bernoulli")
    chunks = Predictive.concatenate(
        [summarize(logits[:, :5], likelihood="bernoulli"), summarize(logits[:, 5:], likelihood="bernoulli")]
    )
    shares = Predictive.from_shares([summarize(logits[:, rank::2], likelihood="bernoulli") for rank in (0, 1)])
    for predictive in (chunks, shares):
        assert isinstance(predictive, BernoulliPredictive)
        torch.testing.assert_close(predictive.entropy, whole.entropy)
