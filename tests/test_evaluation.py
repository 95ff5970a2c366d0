"""What the script and the experiments compute together: known against unknown images, and images under shift."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from experiments import running
from images import Split, rotate
from inference import (
    SHIFTS,
    Classifier,
    ImageSets,
    Predictive,
    Shift,
    batch_means,
    evaluate,
    known_scores,
    metrics,
    novelties,
    split_scores,
    under_shift,
)
from models import build


@pytest.fixture
def trained() -> Classifier:
    net = build("lenet", True, 10, 1, priors={"posterior_rho_initial": (-2.0, 0.1)})
    return Classifier(net, tuple("abcdefghij"), (0.3,), (0.25,))


@pytest.fixture
def images() -> Tensor:
    return torch.randint(256, (9, 1, 32, 32), dtype=torch.uint8)


def test_the_mean_of_each_mini_batch_is_over_its_own_images(trained: Classifier, images: Tensor) -> None:
    predictive = trained.predict(images, 3)
    rows = batch_means(predictive, 4)
    assert len(rows) == 3
    for row, batch in zip(rows, (slice(0, 4), slice(4, 8), slice(8, 9)), strict=True):
        for name, value in row.items():
            assert value == pytest.approx(getattr(predictive, name)[batch].mean().item())


def test_an_evaluation_has_all_scores_of_every_network(trained: Classifier, images: Tensor) -> None:
    labels, unknown = torch.arange(9) % 10, images.flip(-1)[:6]
    sets = ImageSets(("digits", "others"), images, labels, trained.classes, unknown, skipped=(0, 2))
    twin = Classifier(build("lenet", False, 10, 1), trained.classes, trained.mean, trained.std)
    predictives, report = evaluate(
        {"bayesian": trained, "twin": twin}, sets, num_samples=3, seed=2, batch_size=5, shifts=["noise"]
    )
    assert (report["known_images"], report["unknown_images"], report["samples"], report["seed"]) == (9, 6, 3, 2)
    for name, classifier in (("bayesian", trained), ("twin", twin)):
        known, other = classifier.predict(images, 3, 2), classifier.predict(unknown, 3, 2)
        assert all(torch.equal(predictives[name][index].probs, p.probs) for index, p in enumerate((known, other)))
        assert report["networks"][name] == {
            "batches": {"digits": batch_means(known, 5), "others": batch_means(other, 5)},
            "known": known_scores(known, labels),
            "novelty": novelties(known, other),
        }
        assert report["noise"][name] == under_shift(
            lambda shifted, classifier=classifier: classifier.predict(shifted, 3, 2),  # type: ignore[misc]
            images, labels, SHIFTS["noise"],
        )  # fmt: skip
    assert "rotation" not in report and (report["skipped_known"], report["skipped"]) == (0, 2)


def test_known_images_and_novelty_are_scored_by_the_metrics(trained: Classifier, images: Tensor) -> None:
    known, unknown, labels = trained.predict(images, 3), trained.predict(images[:4], 3, seed=1), torch.arange(9) % 10
    scores = known_scores(known, labels)
    assert scores["nll"] == metrics.nll(known, labels) == pytest.approx(metrics.nll(known.probs, labels))
    assert scores["adaptive_ece"] == metrics.adaptive_ece(known.probs, labels)
    wrong = known.probs.argmax(-1) != labels
    assert scores["risk_coverage_area"] == metrics.risk_coverage_area(known.entropy, wrong)
    assert split_scores(trained, Split(images, labels), 3) == metrics.scores(known, labels)
    assert list(novelties(known, unknown)) == list(metrics.SCORES)
    some = novelties(known, unknown, running.SCORES)  # as the experiments call it
    assert some == {
        "total entropy": metrics.novelty(known.entropy, unknown.entropy),
        "mutual information": metrics.novelty(known.mutual_information, unknown.mutual_information),
    }


def test_a_shift_is_applied_at_each_of_its_severities(images: Tensor) -> None:
    seen: list[Tensor] = []

    def predict(shifted: Tensor) -> Predictive:
        seen.append(shifted)
        probs = torch.full((len(shifted), 2), 0.5)
        half, zero = torch.full((len(shifted),), 0.25), torch.zeros(len(shifted))
        return Predictive(probs, probs.log(), zero, half, zero, half, zero, probs.log())

    shift = Shift((0, 3), lambda images, severity: images + int(severity), "")
    rows = under_shift(predict, images // 2, torch.zeros(9, dtype=torch.int64), shift)
    assert [row["shift"] for row in rows] == [0, 3] and torch.equal(seen[1], images // 2 + 3)
    for row in rows:
        assert row["accuracy"] == 1 and row["epistemic"] == 0.25 and row["aleatoric"] == 0
        assert row["entropy"] == row["mutual_information"] == pytest.approx(math.log(2))


def test_no_shift_changes_nothing_and_a_quarter_turn_is_exact(images: Tensor) -> None:
    for shift in SHIFTS.values():
        assert torch.equal(shift.corrupt(images, shift.severities[0]), images)
    assert torch.equal(rotate(images, 180), images.flip(-1, -2))


def test_noise_has_its_standard_deviation_and_stays_within_bytes() -> None:
    grey = torch.full((8, 1, 32, 32), 128, dtype=torch.uint8)
    noisy = SHIFTS["noise"].corrupt(grey, 0.1)
    assert noisy.dtype == torch.uint8 and noisy.double().std().item() == pytest.approx(25.5, rel=0.05)
    assert torch.equal(noisy, SHIFTS["noise"].corrupt(grey, 0.1))
    extreme = SHIFTS["noise"].corrupt(grey, 3.0)
    assert (extreme == 0).any() and (extreme == 255).any()
