"""What the script and the experiments compute together: known against unknown images, and images under shift."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from conftest import draw_pictures
from torch import Tensor

from experiments import running
from images import Split, gaussian_noise, read_images, rotate
from inference import (
    SHIFTS,
    Classifier,
    ImageSets,
    Predictive,
    Shift,
    batch_means,
    evaluate,
    known_scores,
    load_test_data,
    metrics,
    novelties,
    split_scores,
    under_shift,
)
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


def test_the_images_are_those_that_the_network_was_trained_to_know(tmp_path: Path) -> None:
    """The first of the test split, and the unknown ones in an order by the seed."""
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
    sets = ImageSets.read(data, tmp_path / "others", seed=3, limit=5)
    assert sets.names == ("bars test", "others") and sets.skipped == (1, 1)
    assert sets.notes[0].startswith("skipped 1 unreadable images of bars, ")
    assert sets.notes[1].startswith("skipped 1 unreadable of 8 images, ") and "003.png" in sets.notes[1]
    known, labels = next(data.test.batches(11))
    assert torch.equal(sets.known, known[:5]) and torch.equal(sets.labels, labels[:5])
    order = torch.randperm(7, generator=torch.Generator().manual_seed(3))[:5]
    assert torch.equal(sets.unknown, read_images(tmp_path / "others", 1)[0][order])
    with pytest.raises(
        UserError, match=r"False\.pt is for 2 classes of 1-channel images, MNIST5k has 10 of 1: give the"
    ):
        load_test_data(strict, "MNIST5k", "data")


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
    noisy = gaussian_noise(grey, 0.1)
    assert noisy.dtype == torch.uint8 and noisy.double().std().item() == pytest.approx(25.5, rel=0.05)
    assert torch.equal(noisy, gaussian_noise(grey, 0.1))
    extreme = gaussian_noise(grey, 3.0)
    assert (extreme == 0).any() and (extreme == 255).any()
