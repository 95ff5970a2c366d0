"""From uncertainties to decisions: temperature, threshold, sets of classes, and the two commands that use them."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Script, draw_pictures, run_files
from torch import Tensor

from inference import (
    Classifier,
    Decisions,
    calibrate,
    classify,
    decision_scores,
    fit_decisions,
    fit_temperature,
    load_finite_network,
    posterior_predictive,
    summarize,
)
from inference.decisions import adaptive_scores
from inference.evaluation import load_training_data
from likelihoods import Predictive, conformal_quantile, metrics
from models import build, read_checkpoint, write_checkpoint
from support import UserError
from training import BayesianSettings

SETTLED = Decisions(2.0, "total entropy", 0.01, 0.4, 0.1, 0.7, 0.95, 100)


def labeled_logits(count: int, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """Logits [n, 5], and labels that are drawn from their softmax."""
    logits = scale * torch.randn(count, 5)
    return logits, torch.multinomial(logits.softmax(-1), 1).squeeze(1)


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_the_temperature_is_what_the_logits_were_multiplied_by(scale: float) -> None:
    logits, labels = labeled_logits(20_000)
    assert fit_temperature(scale * logits[None], labels) == pytest.approx(scale, rel=0.05)


def test_the_temperature_of_draws_is_that_of_their_mean_probabilities() -> None:
    logits, labels = labeled_logits(3000)
    draws = 2.5 * logits + torch.randn(6, 3000, 5)
    best = fit_temperature(draws, labels)
    at_best, *others = (metrics.nll(summarize(draws, temperature=best * f), labels) for f in (1, 0.98, 1.02, 0.5, 2))
    assert at_best < min(others) and best > 1.5
    never_wrong = torch.eye(5)[labels][None] * 9
    assert fit_temperature(never_wrong, labels) == pytest.approx(0.05, rel=0.01)  # the lowest there is


def test_the_quantile_is_the_rank_of_split_conformal_prediction() -> None:
    scores = torch.arange(1.0, 20.0)[torch.randperm(19)]
    for alpha, expected in ((0.1, 18), (0.05, 19), (0.5, 10), (0.11, 18), (0.04, math.inf)):
        assert conformal_quantile(scores, alpha) == expected


@pytest.mark.parametrize("kind", ["lac", "adaptive"])
def test_sets_hold_the_class_as_often_as_they_promise(kind: str) -> None:
    """For exchangeable images, on average over held-out ones: 1 − α = 90/100 exactly, for 99 of these without ties."""
    repeats, held_out, alpha = 400, 99, 0.1
    logits, labels = labeled_logits(repeats * 2 * held_out, scale=1.5)
    probs = (0.5 * logits).softmax(-1)  # of a network that is not calibrated
    covered, sizes = [], []
    for index in range(repeats):
        before, after = (slice((2 * index + k) * held_out, (2 * index + k + 1) * held_out) for k in (0, 1))
        predictives = [summarize(probs[part].log()[None]) for part in (before, after)]
        decisions = fit_decisions(predictives[0], labels[before], 1.0, "total entropy", 1.0, alpha)
        members = decisions.sets(predictives[1], kind)
        covered.append(members.gather(1, labels[after, None]).double().mean().item())
        sizes.append(members.sum(1).double().mean().item())
        assert kind == "lac" or members.any(1).all()
    # A coverage is Beta(90, 10), and the mean of 99 images beside it binomial.
    error = math.sqrt((0.9 * 0.1 / 101 + 0.9 * 0.1 / held_out) / repeats)
    assert sum(covered) / repeats == pytest.approx(0.9, abs=4 * error)
    assert 1 < sum(sizes) / repeats < 5


def test_sets_are_those_classes_whose_scores_fit() -> None:
    predictive = summarize(torch.tensor([[0.6, 0.3, 0.1], [0.05, 0.05, 0.9], [0.34, 0.33, 0.33]]).log()[None])
    decisions = replace(SETTLED, lac=0.65, adaptive=0.7)
    assert decisions.sets(predictive).int().tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert decisions.sets(predictive, "adaptive").int().tolist() == [[1, 1, 0], [0, 0, 1], [1, 1, 1]]
    narrow = replace(SETTLED, adaptive=0.0).sets(predictive, "adaptive")
    assert narrow.int().tolist() == [[1, 0, 0], [0, 0, 1], [1, 0, 0]]  # none is empty
    with pytest.raises(ValueError, match="unknown kind of sets 'aps': expected 'lac' or 'adaptive'"):
        decisions.sets(predictive, "aps")


def test_a_set_of_every_score_up_to_1_has_every_class() -> None:
    """Also of a thousand classes, whose probabilities add up to a little more by rounding."""
    probs = (3 * torch.randn(200, 1000)).softmax(-1)
    assert adaptive_scores(probs).max() <= 1


def test_the_threshold_keeps_the_risk_on_held_out_images_and_on_new_ones() -> None:
    logits, labels = labeled_logits(40_000, scale=6.0)
    held_out, fresh = (summarize(half[None]) for half in logits.split(20_000))
    decisions = fit_decisions(held_out, labels[:20_000], 1.0, "max probability", 0.02, 0.1)
    halves = zip((held_out, fresh), labels.split(20_000), strict=True)
    fitted, kept = (decision_scores(decisions, predictive, truth) for predictive, truth in halves)
    assert 0.0199 < fitted["accepted_risk"] <= 0.02 and 0.2 < fitted["accepted"] < 0.95
    sampling = math.sqrt(2 * 0.02 * 0.98 / (20_000 * fitted["accepted"]))
    assert kept["accepted_risk"] == pytest.approx(0.02, abs=4 * sampling)
    assert kept["lac_coverage"] == pytest.approx(0.9, abs=0.01) and kept["adaptive_coverage"] > 0.89
    unlabeled = decision_scores(decisions, fresh)
    assert unlabeled == {name: kept[name] for name in ("accepted", "lac_size", "adaptive_size")}
    wrong = (logits.argmax(-1)[:20_000] + 1) % 5
    with pytest.raises(
        UserError, match=r"at no max probability are at most 2.00% of .* 20,000 .* give a higher --risk"
    ):
        fit_decisions(held_out, wrong, 1.0, "max probability", 0.02, 0.1)


def test_a_classifier_divides_by_the_temperature_and_accepts_up_to_the_threshold() -> None:
    net = build("lenet", True, 10, 1, priors={"posterior_rho_initial": (-2.0, 0.1)})
    plain = Classifier(net, tuple("abcdefghij"), (0.3,), (0.25,))
    images = torch.randint(256, (9, 1, 32, 32), dtype=torch.uint8)
    threshold = plain.predict(images, 4).entropy.sort().values[4].item()
    calibrated = replace(plain, decisions=replace(SETTLED, temperature=0.8, threshold=threshold))
    expected = posterior_predictive(net, plain.normalize(images), 4, temperature=0.8)
    for predictive in (calibrated.predict(images, 4), calibrated.predictor(4)(images)):
        torch.testing.assert_close(predictive.probs, expected.probs)
        assert torch.equal(predictive.accepted, predictive.entropy <= threshold) and predictive.accepted.any()
    for method in ("draws", "moments"):
        one, other = (
            classifier.predict(images, 4, method=method)
            for classifier in (replace(plain, decisions=replace(SETTLED, temperature=1.0, threshold=9.0)), plain)
        )
        assert all(torch.equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(Predictive))


@pytest.fixture
def checkpoint(finished_run: BayesianSettings, tmp_path: Path) -> Path:
    """A copy of the network that the run on the bars left."""
    return Path(shutil.copy(run_files(finished_run).best, tmp_path / "model.pt"))


def test_the_command_fits_on_validation_images_and_the_file_remembers(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_checkpoint(checkpoint)
    with pytest.raises(SystemExit):
        calibrate.main([str(checkpoint), "--risk", "2"])
    assert "--risk: expected a number > 0 and < 1, got '2'" in capsys.readouterr().err
    flags = ("--num_samples", 4, "--risk", 0.2, "--alpha", 0.2, "--seed", 3)
    calibrate.main([str(flag) for flag in (checkpoint, *flags)])
    after = read_checkpoint(checkpoint)
    stored = after.pop("decisions")
    assert str(after) == str(before)  # weights, settings and scores are as they were
    classifier = Classifier.load(checkpoint)
    assert classifier.decisions == Decisions(**stored)
    valid = load_training_data(load_finite_network(checkpoint), checkpoint, "data").valid
    plain = Classifier.load(checkpoint, calibrated=False)
    assert plain.decisions is None and stored["images"] == len(valid)
    predictive = classifier.predict(valid.images, 4, 3)
    assert metrics.nll(predictive, valid.labels) <= metrics.nll(plain.predict(valid.images, 4, 3), valid.labels)
    scores = decision_scores(classifier.decisions, predictive, valid.labels)
    assert scores["accepted_risk"] <= 0.2 and scores["accepted"] == predictive.accepted.double().mean().item() > 0
    assert scores["lac_coverage"] >= 0.8


def test_broken_decisions_are_refused_in_one_line(checkpoint: Path) -> None:
    content = read_checkpoint(checkpoint)
    decisions = asdict(SETTLED)
    for broken, message in (
        ("none", "has broken decisions"),
        ({**decisions, "temperature": 0.0}, "temperature: expected a number > 0"),
        ({**decisions, "threshold": math.nan}, "threshold: expected a number"),
        ({**decisions, "score": "confidence"}, "score: expected one of .*did you mean"),
        ({**decisions, "extra": 1}, "unexpected keyword argument 'extra'"),
        ({name: value for name, value in decisions.items() if name != "lac"}, "missing 1 required .*'lac'"),
    ):
        write_checkpoint(checkpoint, {**content, "decisions": broken})
        with pytest.raises(UserError, match=message) as error:
            Classifier.load(checkpoint)
        assert str(checkpoint) in str(error.value) and "\n" not in str(error.value)
        assert Classifier.load(checkpoint, calibrated=False).decisions is None


def answers(capsys: pytest.CaptureFixture[str], *flags: object) -> tuple[str, str]:
    classify.main([str(flag) for flag in flags])
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_images_are_classified_one_per_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = draw_pictures(tmp_path / "bars, some", 2, seed=6)
    paths = [folder / name for name in ("lying/000.png", "lying/001.png", "upright/000.png", "upright/001.png")]
    plain = Classifier.load(checkpoint)
    entropies = plain.predict(paths, 3).entropy
    threshold = entropies.sort().values[1:3].mean().item()
    content = read_checkpoint(checkpoint)
    write_checkpoint(checkpoint, content | replace(SETTLED, temperature=1.0, threshold=threshold).to_content())
    predictive = Classifier.load(checkpoint).predict(paths, 3)
    assert predictive.accepted.sum() == 2
    images = (folder / "upright", folder / "lying" / "000.png")
    order = [2, 3, 0]
    rows = json.loads(answers(capsys, checkpoint, *images, "--num_samples", 3, "--json")[0])
    assert [row["path"] for row in rows] == [str(paths[index]) for index in order]
    assert [row["unsure"] for row in rows] == [not predictive.accepted[index] for index in order]
    for row, index in zip(rows, order, strict=True):
        assert row["class"] == plain.classes[predictive.labels[index]]
        assert row["probability"] == pytest.approx(predictive.probs[index].max().item(), rel=1e-5)
        assert row["uncertainty"] == pytest.approx(predictive.entropy[index].item(), rel=1e-5)
        members = predictive.probs[index] >= 0.3
        assert row["set"] == [name for name, member in zip(plain.classes, members, strict=True) if member]
    table = list(csv.DictReader(io.StringIO(answers(capsys, checkpoint, *images, "--num_samples", 3, "--csv")[0])))
    for row, other in zip(rows, table, strict=True):
        assert (row["path"], row["class"], str(row["unsure"])) == (other["path"], other["class"], other["unsure"])
        assert other["set"] == " ".join(row["set"]) and float(other["probability"]) == row["probability"]
    lines, notes = answers(capsys, checkpoint, *images, "--num_samples", 3)
    assert [line.endswith("  unsure") for line in lines.splitlines()] == [row["unsure"] for row in rows]
    assert all(f"{row['probability']:.4f}" in line for row, line in zip(rows, lines.splitlines(), strict=True))
    assert notes == ""
    _, notes = answers(capsys, checkpoint, *images, "--uncalibrated", "--json")
    assert notes == ""
    write_checkpoint(checkpoint, content)
    out, notes = answers(capsys, checkpoint, *images, "--num_samples", 3, "--json")
    assert [row["unsure"] for row in json.loads(out)] == [None] * 3
    assert "has no threshold" in notes and f"inference.calibrate {checkpoint}" in notes and notes.count("\n") == 1


def test_every_mistake_with_images_is_one_line(
    checkpoint: Path, tmp_path: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG")
    cases: tuple[tuple[tuple[Any, ...], str], ...] = (
        ((tmp_path / "none.pt", broken), "there is no checkpoint"),
        ((checkpoint,), "the following arguments are required: image"),
        ((checkpoint, broken), f"cannot read the image {broken}"),
        ((checkpoint, tmp_path / "none.png"), "cannot read the image"),
        ((checkpoint, tmp_path / "empty"), f"{tmp_path / 'empty'} holds no image"),
        ((checkpoint, broken, "--json", "--csv"), "not allowed with argument"),
        ((checkpoint, broken, "--device", "abacus"), "device 'abacus' is not available here"),
    )
    for flags, message in cases:
        with pytest.raises(SystemExit) as stopped:
            classify.main([str(flag) for flag in flags])
        stderr = capsys.readouterr().err
        assert stopped.value.code == 2 and message in stderr and stderr.count("\n") == 1, stderr
    answer = script("-m", "inference.classify", checkpoint, broken, expect=2)
    assert answer.stderr.startswith("error: cannot read the image") and answer.stdout == ""
