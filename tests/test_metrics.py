"""Each score against a formula of its own."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from inference import summarize
from likelihoods import Predictive, bootstrap_interval, image_losses, mcnemar, metrics, paired_comparison, paired_gains
from support import UserError


@pytest.fixture
def predictions() -> tuple[torch.Tensor, torch.Tensor]:
    probs = (2 * torch.randn(500, 4)).softmax(-1)
    return probs, torch.multinomial(probs.sqrt(), 1).squeeze(1)


def test_accuracy_nll_and_brier(predictions: tuple[torch.Tensor, torch.Tensor]) -> None:
    probs, labels = predictions
    p, y = probs.double().numpy(), labels.numpy()
    assert metrics.accuracy(probs, labels) == pytest.approx((p.argmax(1) == y).mean())
    assert metrics.nll(probs, labels) == pytest.approx(-np.log(p[np.arange(500), y]).mean(), rel=1e-5)
    assert metrics.brier(probs, labels) == pytest.approx(((p - np.eye(4)[y]) ** 2).sum(1).mean(), rel=1e-5)
    assert set(metrics.scores(probs, labels)) == {"accuracy", "nll", "brier", "ece"}


def test_nll_of_an_impossible_label_is_finite() -> None:
    assert 80 < metrics.nll(torch.tensor([[1.0, 0.0]]), torch.tensor([1])) < 100


def gaps(confidence: np.ndarray, correct: np.ndarray, bins: list[np.ndarray]) -> float:
    return sum(len(i) / len(correct) * abs(confidence[i].mean() - correct[i].mean()) for i in bins if len(i))


def test_calibrated_probabilities_show_the_ece_of_the_normal_approximation() -> None:
    """With one confidence c there is one bin, and E|accuracy − c| = √(2c(1 − c)/(πn))."""
    probs = torch.tensor([[0.1, 0.7, 0.2]]).expand(2000, -1)
    expected = math.sqrt(2 * 0.7 * 0.3 / (math.pi * 2000))
    assert metrics.calibrated_ece(probs, draws=400) == pytest.approx(expected, rel=0.15)


def test_calibration_errors_and_the_diagram(predictions: tuple[torch.Tensor, torch.Tensor]) -> None:
    probs, labels = predictions
    confidence = probs.max(1).values.double().numpy()
    correct = (probs.argmax(1) == labels).double().numpy()
    wide = [np.flatnonzero((confidence > k / 15) & (confidence <= (k + 1) / 15)) for k in range(15)]
    assert metrics.ece(probs, labels) == pytest.approx(gaps(confidence, correct, wide), rel=1e-4)
    even = np.array_split(np.argsort(-confidence, kind="stable"), 15)
    assert metrics.adaptive_ece(probs, labels) == pytest.approx(gaps(confidence, correct, even), rel=1e-4)
    diagram = metrics.reliability(probs, labels)
    assert diagram.count.tolist() == [len(i) for i in wide if len(i)]
    assert diagram.confidence.tolist() == pytest.approx([confidence[i].mean() for i in wide if len(i)])
    assert diagram.accuracy.tolist() == pytest.approx([correct[i].mean() for i in wide if len(i)])
    shown = (diagram.count / 500 * (diagram.confidence - diagram.accuracy).abs()).sum().item()
    assert shown == pytest.approx(metrics.ece(probs, labels), rel=1e-4)


def test_risk_falls_when_the_uncertain_are_left_out() -> None:
    uncertainty = torch.tensor([0.1, 0.4, 0.2, 0.3])
    wrong = torch.tensor([False, True, False, True])
    coverage, risk = metrics.risk_coverage(uncertainty, wrong)
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk.tolist() == pytest.approx([0, 0, 1 / 3, 0.5])
    assert metrics.risk_coverage_area(uncertainty, wrong) == pytest.approx((1 / 3 + 0.5) / 4)


def test_a_threshold_keeps_its_risk_and_leaves_out_no_more_than_it_must() -> None:
    uncertainty = torch.randint(12, (60,)).double() / 7  # with ties, which are accepted together
    wrong = torch.rand(60) < uncertainty / 4
    for risk in (0.0, 0.05, 0.2, 1.0):
        threshold, coverage = metrics.threshold_at_risk(uncertainty, wrong, risk)
        fits = [t for t in uncertainty.tolist() if wrong[uncertainty <= t].double().mean() <= risk]
        assert threshold == max(fits, default=-math.inf)
        assert coverage == pytest.approx((uncertainty <= threshold).double().mean().item())
    assert metrics.threshold_at_risk(torch.zeros(3), torch.ones(3, dtype=torch.bool), 0.5) == (-math.inf, 0.0)


@pytest.mark.parametrize(("count", "errors"), [(400, 60), (7, 1), (5, 5), (6, 0)])
def test_selective_scores_of_the_best_order_and_of_none(count: int, errors: int) -> None:
    """AUGRC (Traub et al. 2024): m(m + 1)/2n² with all m errors last, about e²/2; e(n + 1)/2n without an order."""
    wrong = torch.arange(count) < errors
    best = metrics.selective_scores(wrong.double() + torch.arange(count).double().neg() / 1e6, wrong)
    assert best["generalized_risk_area"] == pytest.approx(errors * (errors + 1) / (2 * count**2))
    assert best["excess_risk_coverage_area"] == pytest.approx(0, abs=1e-12)
    kept = [sum(max(0, k - (count - errors)) / k for k in range(1, count + 1)) / count]
    assert best["risk_coverage_area"] == pytest.approx(kept[0])
    at_1 = max((k for k in range(count + 1) if max(0, k - (count - errors)) <= 0.01 * k), default=0) / count
    assert best["coverage_at_1%_risk"] == pytest.approx(at_1)
    none = metrics.selective_scores(torch.ones(count), wrong)
    rate = errors / count
    assert none["risk_coverage_area"] == pytest.approx(rate)
    assert none["generalized_risk_area"] == pytest.approx(rate * (count + 1) / (2 * count))
    assert none["excess_risk_coverage_area"] == pytest.approx(rate - kept[0])
    assert [none[f"coverage_at_{r}%_risk"] for r in ("0.5", "1", "5")] == [float(rate == 0)] * 3


def test_scores_below_zero_separate_as_well_as_those_above() -> None:
    """An energy is negative; torchmetrics alone would squeeze it by a sigmoid."""
    known, unknown = 3 * torch.randn(200).double(), 3 * torch.randn(150).double() + 1
    expected = metrics.novelty(known + 100, unknown + 100)
    assert metrics.novelty(known - 40, unknown - 40) == pytest.approx(expected)
    assert expected["auroc"] == pytest.approx((unknown[:, None] > known).double().mean().item(), abs=1e-5)


@pytest.mark.parametrize("scale", [1.0, 50.0, 1e-6])
def test_novelty_is_counted_pair_by_pair(scale: float) -> None:
    known = scale * torch.rand(300).square()
    unknown = scale * torch.rand(200).sqrt().round(decimals=2)
    separation = metrics.novelty(known, unknown)
    k, u = known.double().numpy(), unknown.double().numpy()
    pairs = (u[:, None] > k).mean() + (u[:, None] == k).mean() / 2
    assert separation["auroc"] == pytest.approx(pairs, abs=1e-5)
    threshold = max(t for t in u if (u >= t).mean() >= 0.95)
    assert separation["fpr95"] == pytest.approx((k >= threshold).mean(), abs=1e-5)
    precision = recall = 0.0
    area = 0.0
    for t in sorted(set(u) | set(k), reverse=True):
        hits, alarms = (u >= t).sum(), (k >= t).sum()
        precision, before, recall = hits / (hits + alarms), recall, hits / len(u)
        area += precision * (recall - before)
    assert separation["aupr"] == pytest.approx(area, abs=1e-5)


def test_a_score_without_information_is_chance() -> None:
    separation = metrics.novelty(torch.zeros(30), torch.zeros(10))
    assert separation["auroc"] == pytest.approx(0.5) and separation["fpr95"] == 1


def test_near_certain_predictions_still_differ() -> None:
    """1 − p̄ in float32 would be 0 for all of these, and leave their order to chance."""
    rest = torch.tensor([1e-9, 3e-9, 1e-8])
    probs = torch.stack([1 - rest, rest / 2, rest / 2], -1)
    assert (probs[:, 0] == 1).all()
    zero = torch.zeros(3)
    predictive = Predictive(probs, probs.log(), *[zero] * 5, probs.log(), zero, zero, zero > 0)
    torch.testing.assert_close(metrics.SCORES["max probability"](predictive), rest, rtol=1e-5, atol=0)


def test_every_score_is_higher_for_a_less_certain_prediction() -> None:
    half = torch.tensor([0.5, 0.5])

    def predictive(probs: list[list[float]], traces: tuple[float, float], expected_entropy: float) -> Predictive:
        one = torch.tensor([1.0])
        e, a = traces
        p, h = torch.tensor(probs), expected_entropy * one
        return Predictive(p, half.log(), h, e * one, a * one, e * one, a * one, p.log(), a * one, e * one, one > 0)

    sure = predictive([[0.99, 0.01]], (0.001, 0.01), 0.05)
    unsure = predictive([[0.5, 0.5]], (0.2, 0.3), 0.4)
    for name, score in metrics.SCORES.items():
        assert (score(unsure) > score(sure)).all(), name


def test_nll_comes_from_log_probabilities() -> None:
    """A gap of 200 between the logits is 200 nats, though exp(−200) is 0 in float32."""
    labels = torch.tensor([0, 0, 1])
    one = summarize([torch.tensor([[0.0, 200.0], [0.0, 1.0], [0.0, 1.0]])])
    expected = (200 + math.log1p(math.e) + math.log1p(math.exp(-1))) / 3
    assert metrics.nll(one, labels) == metrics.scores(one, labels)["nll"] == pytest.approx(expected)
    draws = torch.tensor([[[0.0, 200.0]], [[0.0, 300.0]], [[0.0, 201.0]]])
    assert metrics.nll(summarize(draws), torch.tensor([0])) == pytest.approx(
        200 - math.log((1 + math.exp(-1) + math.exp(-100)) / 3), rel=1e-6
    )
    many = 3 * torch.randn(40, 30, 4)
    predictive = summarize(many)
    torch.testing.assert_close(
        predictive.log_probs.double(), many.double().log_softmax(-1).logsumexp(0) - math.log(40), rtol=1e-5, atol=1e-6
    )
    one_hot = summarize([torch.tensor([[100.0, 0.0]])])
    assert metrics.nll(one_hot, torch.tensor([0])) == 0 and (one_hot.log_probs <= 0).all()


def test_equally_certain_predictions_have_the_mean_risk_of_their_orders() -> None:
    uncertainty = torch.tensor([0.1, 0.2, 0.2, 0.2, 0.9, 0.9])
    wrong = torch.tensor([False, True, False, False, True, True])
    orders = [
        (0, *middle, *last) for middle in itertools.permutations((1, 2, 3)) for last in itertools.permutations((4, 5))
    ]
    kept = torch.arange(1, 7)
    risks = torch.stack([wrong[list(order)].double().cumsum(0) / kept for order in orders])
    torch.testing.assert_close(metrics.risk_coverage(uncertainty, wrong)[1], risks.mean(0))
    for order in orders:
        area = metrics.risk_coverage_area(uncertainty[list(order)], wrong[list(order)])
        assert area == pytest.approx(risks.mean().item())
    assert metrics.risk_coverage_area(torch.zeros(6), wrong) == pytest.approx(0.5)


def test_the_diagram_and_the_error_have_the_same_bins_at_their_edges() -> None:
    confidence = torch.tensor([1.0, 1.0, 0.95, 0.8, 0.8, 12 / 15 + 1e-6, 0.6, 0.6, 0.59])
    probs, labels = torch.stack([confidence, 1 - confidence], 1), torch.tensor([1, 0, 0, 1, 0, 0, 0, 1, 1])
    diagram = metrics.reliability(probs, labels)
    assert diagram.count.tolist() == [3, 2, 1, 3]  # (8/15, 9/15], (11/15, 12/15], (12/15, 13/15], (14/15, 1]
    shown = (diagram.count / 9 * (diagram.confidence - diagram.accuracy).abs()).sum().item()
    assert metrics.ece(probs, labels) == pytest.approx(shown, rel=1e-6)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(broken: float) -> None:
    probs, labels = torch.full((4, 2), 0.5), torch.zeros(4, dtype=torch.int64)
    probs[2, 1] = broken
    values = torch.tensor([0.1, broken, 0.3])
    for refused in (
        lambda: metrics.scores(probs, labels),
        lambda: metrics.ece(probs, labels),
        lambda: metrics.adaptive_ece(probs, labels),
        lambda: metrics.reliability(probs, labels),
        lambda: metrics.risk_coverage_area(values, torch.tensor([True, False, True])),
        lambda: metrics.novelty(values, torch.rand(3)),
        lambda: metrics.novelty(torch.rand(3), values),
    ):
        with pytest.raises(UserError, match=r"expected finite .*, got 1 of \d that are not"):
            refused()


def test_scores_of_other_shapes_are_refused() -> None:
    for known, unknown in ((torch.rand(3, 2), torch.rand(3)), (torch.rand(3), torch.rand(0))):
        with pytest.raises(ValueError, match=r"expected scores \[n\] and \[m\]"):
            metrics.novelty(known, unknown)
    for probs, labels in ((torch.rand(3, 1), torch.zeros(3)), (torch.rand(3, 2), torch.zeros(2))):
        with pytest.raises(ValueError, match="of at least 2 classes and labels"):
            metrics.scores(probs, labels)


@pytest.mark.parametrize(("ours", "theirs"), [(3, 11), (11, 3), (0, 1), (400, 520), (7, 7)])
def test_mcnemar_is_the_binomial_test_of_the_images_on_which_two_networks_differ(ours: int, theirs: int) -> None:
    wrong = torch.zeros(2000, dtype=torch.bool)
    other = wrong.clone()
    wrong[:ours] = True
    other[ours : ours + theirs] = True
    wrong[-50:] = other[-50:] = True  # these say nothing
    assert mcnemar(wrong, other) == pytest.approx(stats.binomtest(ours, ours + theirs).pvalue, rel=1e-9)
    assert mcnemar(wrong, wrong) == 1


def test_the_bootstrap_interval_is_that_of_a_mean() -> None:
    values = torch.randn(4000, generator=torch.Generator().manual_seed(1)) * 2 + 0.3
    low, high = bootstrap_interval(values)
    mean, error = values.mean().item(), 2 / math.sqrt(4000)
    assert low == pytest.approx(mean - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.15 * error)
    assert bootstrap_interval(torch.full((10,), 0.25)) == (0.25, 0.25)


def test_a_comparison_is_of_the_same_images() -> None:
    ours, theirs = (summarize(sharpness * torch.randn(3, 500, 4)) for sharpness in (1.0, 3.0))
    labels = torch.randint(4, (500,))
    gain = paired_comparison(ours, theirs, labels)
    assert gain["accuracy_gain"] == pytest.approx(
        metrics.accuracy(ours.probs, labels) - metrics.accuracy(theirs.probs, labels), abs=1e-6
    )
    assert gain["nll_gain"] == pytest.approx(metrics.nll(theirs, labels) - metrics.nll(ours, labels), rel=1e-6)
    assert 0 < gain["nll_gain_low"] < gain["nll_gain"] < gain["nll_gain_high"]  # the other one is sure of nothing true
    assert gain["mcnemar_p"] == mcnemar(ours.labels != labels, theirs.labels != labels)


def test_gains_of_several_networks_are_means_over_them_and_their_interval_is_of_these() -> None:
    pairs = [[summarize(sharpness * torch.randn(3, 500, 4)) for sharpness in (1.0, 3.0)] for _ in range(2)]
    labels = torch.randint(4, (500,))
    ours, theirs = ([image_losses(predictive, labels) for predictive in each] for each in zip(*pairs, strict=True))
    gain, alone = paired_gains(ours, theirs), [paired_comparison(*pair, labels) for pair in pairs]
    for name in ("accuracy_gain", "nll_gain"):
        assert gain[name] == pytest.approx(sum(each[name] for each in alone) / 2, rel=1e-6)
    assert gain["mcnemar_p"] == [each["mcnemar_p"] for each in alone]
    means = (theirs[0][1] - ours[0][1] + theirs[1][1] - ours[1][1]) / 2
    assert (gain["nll_gain_low"], gain["nll_gain_high"]) == pytest.approx(bootstrap_interval(means))
