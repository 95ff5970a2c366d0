"""What the script and the experiments compute together: known against unknown images, and images under shift."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import draw_pictures
from torch import Tensor

from experiments import running
from images import Split, corrupt, read_images, rotate
from inference import (
    SHIFTS,
    Classifier,
    Decisions,
    ImageSets,
    Shift,
    batch_means,
    decision_scores,
    evaluate,
    is_honest,
    known_scores,
    load_test_data,
    novelties,
    shift_summary,
    split_scores,
    under_corruptions,
    under_shift,
)
from likelihoods import Predictive, metrics, paired_comparison
from models import Description, build, load_network, save_network
from support import UserError


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
    labels, unknown = torch.arange(9) % 10, {"others": images.flip(-1)[:6], "more": images.flip(-2)[:4]}
    sets = ImageSets("digits", images, labels, trained.classes, unknown, skipped={"digits": 0, "others": 2})
    decisions = Decisions(2.0, "energy", 0.1, -1.0, 0.1, 0.8, 0.9, 50)
    twin = Classifier(build("lenet", False, 10, 1), *(trained.classes, trained.mean, trained.std), decisions=decisions)
    predictives, report = evaluate(
        {"bayesian": trained, "twin": twin}, sets, num_samples=3, seed=2, batch_size=5, shifts=["noise"],
        corruptions=["fog", "jpeg"],
    )  # fmt: skip
    assert report["known_images"] == 9 and report["unknown_images"] == {"others": 6, "more": 4}
    assert (report["samples"], report["seed"], report["skipped"]) == (3, 2, {"digits": 0, "others": 2})
    for name, classifier in (("bayesian", trained), ("twin", twin)):

        def predict(pixels: Tensor, classifier: Classifier = classifier) -> Predictive:
            return classifier.predict(pixels, 3, 2)

        known, others = predict(images), {name: predict(pixels) for name, pixels in unknown.items()}
        for each, expected in ({"digits": known} | others).items():
            assert torch.equal(predictives[name][each].probs, expected.probs)
        rows = under_corruptions(predict, images, labels, ["fog", "jpeg"], 2, classifier.decisions)
        expected_report = {
            "batches": {each: batch_means(p, 5) for each, p in ({"digits": known} | others).items()},
            "known": known_scores(known, labels),
            "novelty": {each: novelties(known, predictive) for each, predictive in others.items()},
            "shift": shift_summary(rows, 9),
        }
        if classifier.decisions:
            scores = {"digits": decision_scores(decisions, known, labels)}
            scores |= {each: decision_scores(decisions, predictive) for each, predictive in others.items()}
            expected_report["decisions"] = asdict(decisions) | {"scores": scores}
        assert report["networks"][name] == expected_report
        assert report["corruptions"][name] == rows
        assert report["noise"][name] == under_shift(predict, images, labels, SHIFTS["noise"])
    assert "rotation" not in report
    ours, theirs = predictives["bayesian"]["digits"], predictives["twin"]["digits"]
    assert report["gains"] == {"twin": paired_comparison(ours, theirs, labels)}


def test_corruptions_start_from_the_images_as_they_are(trained: Classifier, images: Tensor) -> None:
    labels = torch.arange(9) % 10
    rows = under_corruptions(lambda pixels: trained.predict(pixels, 2), images, labels, ["contrast", "scale"], seed=5)
    for kind, expected_at_5 in (("contrast", "contrast"), ("scale", "scale")):
        assert [row["shift"] for row in rows[kind]] == [0, 1, 2, 3, 4, 5]
        for severity, row in ((0, rows[kind][0]), (5, rows[kind][-1])):
            predictive = trained.predict(corrupt(images, expected_at_5, severity, 5), 2)
            assert row["nll"] == metrics.nll(predictive, labels) and row["ece"] == metrics.ece(predictive.probs, labels)
            assert row["confidence"] == predictive.probs.amax(1).mean().item()


def test_honest_is_who_is_less_certain_wherever_it_is_more_often_wrong() -> None:
    def rows(*points: tuple[float, float]) -> list[dict[str, float]]:
        return [
            {"shift": 2 * s, "accuracy": a, "entropy": h, "confidence": a + 0.1 * s, "nll": s, "ece": a}
            for s, (a, h) in enumerate(points)
        ]

    honest = rows((0.9, 0.1), (0.8, 0.2), (0.5, 0.9))
    certain = rows((0.9, 0.1), (0.8, 0.2), (0.5, 0.15))
    recovers = rows((0.9, 0.2), (0.5, 0.7), (0.9, 0.1))  # elastic: the error falls again, and so does the entropy
    harmless = rows((0.9, 0.3), (0.895, 0.2), (0.89, 0.1))  # one standard error of a difference is .013 at n = 1,000
    assert [is_honest(each, 1000) for each in (honest, certain, recovers, harmless)] == [True, False, True, None]
    assert is_honest(harmless, 100_000) is False
    summary = shift_summary({"a": honest, "b": certain, "c": harmless}, 1000)
    assert summary["harmful"] == ["a", "b"] and summary["honest"] == ["a"]
    assert summary["overconfidence"] == pytest.approx({"a": 0.2, "b": 0.2, "c": 0.2})
    six = [{"shift": s, "accuracy": s / 5, "confidence": 1, "nll": 2 * s, "ece": 3 * s, "entropy": s} for s in range(6)]
    assert shift_summary({"a": six}, 10)["mean"] == pytest.approx({"accuracy": 0.8, "nll": 8, "ece": 12, "entropy": 4})


def test_the_images_are_those_that_the_network_was_trained_to_know(tmp_path: Path) -> None:
    """Of the test split some of every class, and the unknown ones in an order by the seed."""
    draw_pictures(tmp_path / "bars" / "train", 10)
    draw_pictures(tmp_path / "bars" / "test", 6, seed=1)
    draw_pictures(tmp_path / "others", 4, seed=2)
    for broken in ("bars/test/lying/000.png", "others/upright/003.png"):
        (tmp_path / broken).write_bytes(b"")
    twin = build("lenet", False, 2, 1)
    description = Description("lenet", False, {}, ("lying", "upright"), (0.3,), (0.25,))
    for skip_broken in (True, False):
        save_network(tmp_path / f"{skip_broken}.pt", twin, description, settings={"skip_broken": skip_broken})
    strict, lenient = ({path: load_network(path)} for path in (tmp_path / "False.pt", tmp_path / "True.pt"))
    with pytest.raises(UserError, match=r"^cannot read the image .*/bars/test/lying/000\.png"):
        load_test_data(strict, str(tmp_path / "bars"), "data")
    data = load_test_data(strict | lenient, str(tmp_path / "bars"), "data")
    others = str(tmp_path / "others")
    sets = ImageSets.read(data, {others: "data"}, seed=3, limit=5)
    assert (sets.name, sets.skipped) == ("bars test", {"bars test": 1, "others": 1})
    assert sets.notes[0].startswith("skipped 1 unreadable images of bars, ")
    assert sets.notes[1].startswith("skipped 1 unreadable of 8 images, ") and "003.png" in sets.notes[1]
    known, labels = next(data.test.batches(11))
    chosen = torch.randperm(11, generator=torch.Generator().manual_seed(3))[:5].sort().values
    assert torch.equal(sets.known, known[chosen]) and torch.equal(sets.labels, labels[chosen])
    assert set(sets.labels.tolist()) == {0, 1}  # the first five are of one class
    order = torch.randperm(7, generator=torch.Generator().manual_seed(3))[:5]
    assert [*sets.unknown] == ["others"]
    assert torch.equal(sets.unknown["others"], read_images(tmp_path / "others", 1)[0][order])
    draw_pictures(tmp_path / "more" / "others", 1, seed=4)
    with pytest.raises(UserError, match="two sets of images have the same name .*others, others"):
        ImageSets.read(data, {others: "data", str(tmp_path / "more" / "others"): "data"})
    with pytest.raises(
        UserError, match=r"False\.pt is for other classes \(2\) than MNIST5k \(10\): give the dataset that it was"
    ):
        load_test_data(strict, "MNIST5k", "data")


def test_known_images_and_novelty_are_scored_by_the_metrics(trained: Classifier, images: Tensor) -> None:
    known, unknown, labels = trained.predict(images, 3), trained.predict(images[:4], 3, seed=1), torch.arange(9) % 10
    scores = known_scores(known, labels)
    assert scores["nll"] == metrics.nll(known, labels) == pytest.approx(metrics.nll(known.probs, labels))
    assert scores["adaptive_ece"] == metrics.adaptive_ece(known.probs, labels)
    wrong = known.probs.argmax(-1) != labels
    assert scores["risk_coverage_area"] == metrics.risk_coverage_area(known.entropy, wrong)
    assert metrics.selective_scores(known.entropy, wrong).items() <= scores.items()
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
        return Predictive(probs, probs.log(), zero, half, zero, half, zero, probs.log(), zero, zero, zero > 0)

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
