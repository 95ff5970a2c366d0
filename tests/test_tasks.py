"""Other tasks than one class per image: likelihoods, tables of labels and targets, and runs on them."""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import bayesian_settings, frequentist_settings
from PIL import Image
from torch import distributions, nn
from torchmetrics.functional.classification import multiclass_jaccard_index

from images import load_data
from inference import Classifier, Regressor, export, posterior_predictive, regression_predictive, summarize
from layers import BBBLinear, ModuleWrapper, kl_divergence
from likelihoods import (
    TASKS,
    Bernoulli,
    Categorical,
    Gaussian,
    NoisyDirichlet,
    RegressionPredictive,
    StudentT,
    confusion,
    intersection_over_union,
    parse_task,
    scores,
)
from models import load_network
from support import UserError
from training import BayesianSettings, Settings, comparison, expected_nll, read_results, run, start


def write_table(folder: Path, name: str, rows: list[list[Any]]) -> None:
    with (folder / name).open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 and 16 images in color that are reddish or not, and have a white bar or not."""
    random, root = np.random.default_rng(0), tmp_path_factory.mktemp("tasks") / "labeled"
    for split, count in (("train", 60), ("test", 16)):
        (root / split / "pictures").mkdir(parents=True)
        rows: list[list[Any]] = [["file", "red", "bar"]]
        for index in range(count):
            red, bar = index % 2, index // 2 % 2
            pixels = random.integers(0, 60, (32, 32, 3), dtype=np.uint8)
            pixels[..., 0] += np.uint8(150 * red)
            if bar:
                pixels[12:18] = 255
            Image.fromarray(pixels).save(root / split / "pictures" / f"{index}.png")
            rows.append([f"pictures/{index}.png", red, bar])
        write_table(root / split, "labels.csv", rows)
    return root


@pytest.fixture(scope="module")
def bright(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 and 16 grey images with their mean brightness, and that in thousands of something, negative."""
    random, root = np.random.default_rng(0), tmp_path_factory.mktemp("tasks") / "bright"
    for split, count in (("train", 60), ("test", 16)):
        (root / split).mkdir(parents=True)
        rows: list[list[Any]] = [["file", "brightness", "other"]]
        for index in range(count):
            pixels = (random.random() * 200 + random.integers(0, 50, (32, 32))).astype(np.uint8)
            Image.fromarray(pixels).save(root / split / f"{index}.png")
            rows.append([f"{index}.png", f"{pixels.mean():.4f}", f"{-1000 * pixels.mean():.1f}"])
        write_table(root / split, "targets.csv", rows)
    return root


def multilabel(root: Path, folder: Path, **changes: Any) -> BayesianSettings:
    changes = {"n_epochs": 6, "batch_size": 16, "lr_start": 3e-3, "random_shift": 0} | changes
    return bayesian_settings(root, folder, task="multilabel", **changes)


def regression(root: Path, folder: Path, **changes: Any) -> BayesianSettings:
    return replace(multilabel(root, folder), task="regression", **changes)


class TestLikelihoods:
    """Losses and figures in closed form."""

    def test_the_categorical_loss_is_the_cross_entropy_with_weights_and_smoothing(self) -> None:
        logits, labels = torch.randn(30, 4), torch.randint(4, (30,))
        assert torch.equal(Categorical().loss(logits, labels), F.cross_entropy(logits, labels))
        assert torch.equal(expected_nll([logits], labels), F.cross_entropy(logits, labels))
        weights = (0.5, 1.0, 2.0, 0.1)
        weighed = -(torch.tensor(weights)[labels] * logits.log_softmax(1)[torch.arange(30), labels]).mean()
        torch.testing.assert_close(Categorical(class_weights=weights).loss(logits, labels), weighed)
        smooth = 0.8 * F.cross_entropy(logits, labels) - 0.2 * logits.log_softmax(1).mean()
        torch.testing.assert_close(Categorical(label_smoothing=0.2).loss(logits, labels), smooth)
        maps, masks = torch.randn(3, 4, 5, 6), torch.randint(4, (3, 5, 6))
        flat = maps.movedim(1, -1).flatten(0, 2), masks.flatten()
        torch.testing.assert_close(Categorical().loss(maps, masks), 30 * F.cross_entropy(*flat))
        weighed_maps = Categorical(class_weights=weights).loss(maps, masks)
        torch.testing.assert_close(weighed_maps, 30 * Categorical(class_weights=weights).loss(*flat))

    def test_the_noisy_dirichlet_matches_the_moments_of_gamma_variables(self) -> None:
        """exp of a normal variable with μ̃ and σ̃² has the mean and the variance of a Gamma(α, 1) variable."""
        alpha = torch.tensor([1.05, 0.05, 0.05])
        variance = (1 / alpha).log1p()
        log_normal = distributions.LogNormal(alpha.log() - variance / 2, variance.sqrt())
        torch.testing.assert_close(log_normal.mean, alpha)
        torch.testing.assert_close(log_normal.variance, alpha)
        logits = torch.randn(7, 3)
        expected = -distributions.Normal(alpha.log() - variance / 2, variance.sqrt()).log_prob(logits).sum(1).mean()
        loss = NoisyDirichlet(alpha_epsilon=0.05).loss(logits, torch.zeros(7, dtype=torch.int64))
        torch.testing.assert_close(loss, expected)

    def test_the_bernoulli_loss_is_summed_over_the_labels(self) -> None:
        logits, targets = torch.randn(9, 3), torch.randint(2, (9, 3)).float()
        expected = -distributions.Bernoulli(logits=logits).log_prob(targets).sum(1).mean()
        torch.testing.assert_close(Bernoulli().loss(logits, targets), expected)
        weights = torch.tensor([1.0, 3.0, 0.5])
        weighed = -(torch.where(targets > 0, weights, 1.0) * distributions.Bernoulli(logits=logits).log_prob(targets))
        loss = Bernoulli(positive_weights=tuple(weights.tolist())).loss(logits, targets)
        torch.testing.assert_close(loss, weighed.sum(1).mean())

    @pytest.mark.parametrize("heavy", [False, True])
    def test_the_densities_are_in_the_units_of_the_targets(self, heavy: bool) -> None:
        center, scale = (5.0, -1000.0), (0.1, 300.0)
        likelihood = StudentT(center, scale, freedom=5.0) if heavy else Gaussian(center, scale)
        outputs, targets = torch.randn(8, 4), torch.randn(8, 2) * torch.tensor(scale) + torch.tensor(center)
        mean = outputs[:, :2] * torch.tensor(scale) + torch.tensor(center)
        std = F.softplus(outputs[:, 2:]) * torch.tensor(scale)
        density: Any = distributions.StudentT(5.0, mean, std) if heavy else distributions.Normal(mean, std)
        torch.testing.assert_close(likelihood.loss(outputs, targets), -density.log_prob(targets).sum(1).mean())
        moments = likelihood.module.moments(outputs)
        torch.testing.assert_close(moments, (density.mean, density.variance))
        squares = likelihood.progress([outputs], targets)
        torch.testing.assert_close(squares, (mean - targets).square().mean(1))

    def test_validation_is_the_score_of_the_mean_prediction(self) -> None:
        samples, labels = torch.randn(6, 40, 3), torch.randint(3, (40,))
        predictive = summarize(samples)
        figures = Categorical().validation(predictive, labels)
        expected = scores(predictive, labels)
        assert figures["nll"] == pytest.approx(expected["nll"]) and figures["accuracy"] == expected["accuracy"]
        assert figures["expected_nll"] == pytest.approx(F.cross_entropy(samples.flatten(0, 1), labels.repeat(6)).item())
        hits = Categorical().progress([*samples], labels).float().mean().item()
        assert hits == pytest.approx(figures["accuracy"])
        targets = torch.randint(2, (40, 3)).float()
        labels_predictive = summarize(samples, likelihood="bernoulli")
        figures = Bernoulli().validation(labels_predictive, targets)
        probs = samples.sigmoid().mean(0)
        assert figures["nll"] == pytest.approx(F.binary_cross_entropy(probs, targets, reduction="sum").item() / 40)
        assert figures["accuracy"] == pytest.approx(Bernoulli().progress([*samples], targets).mean().item())
        every = F.binary_cross_entropy_with_logits(samples, targets.expand(6, -1, -1), reduction="sum").item() / 240
        assert figures["expected_nll"] == pytest.approx(every)

    def test_coverage_is_calibrated_for_targets_that_are_as_predicted(self) -> None:
        mean, variance = torch.randn(20_000, 1), torch.rand(20_000, 1) + 0.1
        predictive = RegressionPredictive(mean, variance / 2, variance / 2)
        targets = mean + variance.sqrt() * torch.randn(20_000, 1)
        figures = Gaussian().scores(predictive, targets)
        assert figures["coverage_90"] == pytest.approx(0.9, abs=0.01) and figures["calibration_error"] < 0.01
        expected = -distributions.Normal(mean, variance.sqrt()).log_prob(targets).mean().item()
        assert figures["nll"] == pytest.approx(expected, rel=1e-4)
        narrow = replace(predictive, aleatoric=variance / 100, epistemic=variance / 100)
        assert Gaussian().scores(narrow, targets)["calibration_error"] > 0.4

    def test_r2_is_of_the_targets_that_vary(self) -> None:
        targets = torch.randn(30, 2)
        variance = torch.ones(30, 2)
        predictive = RegressionPredictive(targets + 0.1 * torch.randn(30, 2), variance, variance)
        errors = (predictive.mean - targets)[:, 0].double().square().sum() / (29 * targets[:, 0].double().var())
        targets[:, 1] = 0.3
        assert Gaussian().scores(predictive, targets)["r2"] == pytest.approx(1 - errors.item())
        targets[:, 0] = 2
        figures = Gaussian().scores(predictive, targets)
        assert "r2" not in figures and all(map(math.isfinite, figures.values()))

    def test_confusion_and_intersection_over_union(self) -> None:
        predicted, labels = torch.randint(4, (50,)), torch.randint(3, (50,))
        matrix = confusion(predicted, labels, 5)
        assert matrix.sum() == 50 and matrix[2, 1] == ((labels == 2) & (predicted == 1)).sum()
        unions = intersection_over_union(predicted, labels, 5)
        expected = multiclass_jaccard_index(predicted, labels, 5, average=None)
        torch.testing.assert_close(unions[:4].float(), expected[:4])
        assert unions[4].isnan()

    @pytest.mark.parametrize("task", TASKS)
    def test_a_likelihood_is_plain_values(self, task: str) -> None:
        for name in TASKS[task]:
            likelihood = parse_task({"task": task, "likelihood": name})
            assert likelihood == parse_task({"task": task} | ({"likelihood": name} if name != TASKS[task][0] else {}))
        assert parse_task({}) == Categorical()

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ({"task": "detection"}, "unknown task 'detection': did you mean"),
            ({"task": ["x"]}, "unknown task"),
            (
                {"task": "regression", "likelihood": "categorical"},
                "has no likelihood 'categorical': expected gaussian",
            ),
            ({"smoothing": 0.1}, "the likelihood categorical has no option 'smoothing': expected label_smoothing"),
            (
                {"label_smoothing": 2},
                "label_smoothing of the likelihood categorical: expected a number ≥ 0 and ≤ 1",
            ),
            ({"class_weights": [1, 0]}, "class_weights of the likelihood categorical: expected a number > 0"),
            ({"task": "regression", "likelihood": "student_t", "freedom": 2}, "expected a number > 2, got 2"),
            (
                {"likelihood": "noisy_dirichlet", "label_smoothing": 0.1},
                "the likelihood noisy_dirichlet has no option 'label_smoothing': expected class_weights, alpha_epsilon",
            ),
        ],
    )
    def test_what_is_none_is_named(self, value: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            parse_task(value)


def test_regression_by_moments_is_that_of_many_draws() -> None:
    priors = {"posterior_rho_initial": (-2.5, 0.1)}
    net = ModuleWrapper(nn.Flatten(), BBBLinear(5, 12, priors=priors), nn.ReLU(), BBBLinear(12, 2))
    module = Gaussian((3.0,), (2.0,)).module
    inputs = torch.randn(6, 5)
    drawn = regression_predictive(net, module, inputs, num_samples=4000)
    passed = regression_predictive(net, module, inputs, method="moments", batch_size=4)
    torch.testing.assert_close(passed.mean, drawn.mean, atol=0.05, rtol=0.02)
    torch.testing.assert_close(passed.epistemic.sqrt(), drawn.epistemic.sqrt(), atol=0.02, rtol=0.15)
    with pytest.raises(ValueError, match="unknown method 'guess'"):
        regression_predictive(net, module, inputs, method="guess")


def test_a_run_on_labels(labeled: Path, tmp_path: Path) -> None:
    settings = multilabel(labeled, tmp_path)
    results = run(settings)
    assert results["test"]["accuracy"] > 0.9 and results["test"]["auroc"] > 0.95
    assert results["labels"].keys() == {"red", "bar"} and results["labels"]["bar"]["frequency"] == 0.5
    assert results["class_counts"]["test"] == {"red": 8, "bar": 8}
    path = tmp_path / "labeled" / "bayesian" / "model_lenet.pt"
    classifier = Classifier.load(path)
    assert classifier.likelihood == "bernoulli" and classifier.classes == ("red", "bar")
    data = load_data(str(labeled), "data", 0.1, 0, task="multilabel")
    predictive = classifier.predict(data.test.images, 3)
    assert predictive.probs.shape == (16, 2)
    assert torch.equal(predictive.labels, data.test.labels.long()) == (results["test"]["accuracy"] == 1)
    direct = posterior_predictive(classifier.net, classifier.normalize(data.test.images), 3, likelihood="bernoulli")
    assert torch.equal(direct.probs, predictive.probs)
    with pytest.raises(UserError, match="is not for regression: load it by inference.Classifier"):
        Regressor.load(path)
    expected = results["validation"]["valid_elbo"] + kl_divergence(classifier.net).item() / len(data.train)
    assert -1.4 < expected < 0  # two coins cost 1.39 nats


def test_a_run_on_targets_resumes_and_compares_with_its_twin(
    bright: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = regression(bright, tmp_path, n_epochs=8)
    results = run(settings)
    assert results["test"]["r2"] > 0.8 and set(results["targets"]) == {"brightness", "other"}
    brightness, other = (results["targets"][name] for name in ("brightness", "other"))
    assert 100 < other["rmse"] / brightness["rmse"] < 10_000  # in their own units
    assert brightness["coverage"].keys() == {"0.5", "0.8", "0.9", "0.95"}
    path = tmp_path / "bright" / "bayesian" / "model_lenet.pt"
    regressor = Regressor.load(path)
    data = load_data(str(bright), "data", 0.1, 0, task="regression")
    assert regressor.targets == ("brightness", "other")
    torch.testing.assert_close(regressor.likelihood.center, data.train.labels.double().mean(0).float())
    predictive = regressor.predict(data.test.images, 3)
    rmse = (predictive.mean - data.test.labels).square().mean(0).sqrt()
    assert rmse[0].item() == pytest.approx(brightness["rmse"], rel=1e-3)
    single = regressor.predict(bright / "test" / "3.png", 3)
    torch.testing.assert_close(single.mean[0], predictive.mean[_index(data, bright, 3)])
    with pytest.raises(UserError, match="is for regression: load it by inference.Regressor"):
        Classifier.load(path)
    twin = frequentist_settings(bright, tmp_path, task="regression", likelihood="student_t", n_epochs=2, batch_size=16)
    run(twin)
    folder = tmp_path / "bright"
    both = (read_results(folder / family / "lenet" / "results.json") for family in ("bayesian", "frequentist"))
    assert "coverage 90" in comparison(*both)
    exported: dict[str, Any] = {}
    monkeypatch.setattr(export, "export_network", lambda net, _, size, path, **how: write_network(net, path, exported))
    export.main(["--weights_path", str(path), "--prediction", "moments"])
    by_moments = regressor.predict(data.test.images, method="moments")
    with torch.no_grad():
        outputs = exported["model_lenet.moments.onnx"](data.test.images / 255)
    for one, other in zip(outputs, (by_moments.mean, by_moments.epistemic, by_moments.aleatoric), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    resumed = run(replace(settings, n_epochs=9, resume=True))
    assert resumed["epochs"] == 9


def write_network(network: nn.Module, path: Path, exported: dict[str, Any]) -> None:
    """In place of an export, which takes seconds."""
    path.write_bytes(b"")
    exported[path.name] = network


def _index(data: Any, root: Path, number: int) -> int:
    """Where an image of the table is in the test split."""
    pixels = torch.from_numpy(np.array(Image.open(root / "test" / f"{number}.png")))
    return [torch.equal(image[0], pixels) for image in data.test.images].index(True)


def test_results_by_class_and_balanced_weights(pictures: Path, tmp_path: Path) -> None:
    balanced = {"likelihood": "categorical", "class_weights": "balanced", "label_smoothing": 0.05}
    settings = bayesian_settings(pictures, tmp_path, n_epochs=1, likelihood=balanced)
    results = run(settings)
    matrix = torch.tensor(results["confusion"])
    assert matrix.sum(1).tolist() == [20, 20]
    assert results["class_accuracy"] == {"lying": matrix[0, 0] / 20, "upright": matrix[1, 1] / 20}
    assert matrix.diagonal().sum() / 40 == pytest.approx(results["test"]["accuracy"])
    description = load_network(tmp_path / "bars" / "bayesian" / "model_lenet.pt").description
    weights = torch.tensor(description.task["class_weights"])
    counts = torch.tensor(list(results["class_counts"]["train"].values()))
    torch.testing.assert_close((weights * counts).sum() / counts.sum(), torch.tensor(1.0))
    torch.testing.assert_close(weights * counts, (weights * counts).flip(0))
    assert json.loads((tmp_path / "bars" / "bayesian" / "lenet" / "results.json").read_text())["confusion"]


@pytest.mark.draws
def test_the_confusion_matrix_is_a_picture(pictures: Path, tmp_path: Path) -> None:
    run(frequentist_settings(pictures, tmp_path, n_epochs=1))
    picture = Image.open(tmp_path / "bars" / "frequentist" / "lenet" / "confusion.png")
    assert picture.width > 200 and len(picture.convert("RGB").getcolors(2**20) or ()) > 10


def test_the_noisy_dirichlet_likelihood_trains(pictures: Path, tmp_path: Path) -> None:
    noisy = {"likelihood": "noisy_dirichlet", "alpha_epsilon": 0.1}
    settings = frequentist_settings(pictures, tmp_path, likelihood=noisy, n_epochs=8, lr_start=3e-3)
    results = run(settings)
    assert results["test"]["accuracy"] > 0.9 and math.isfinite(results["test"]["nll"])


def spoil(root: Path, split: str, table: str, line: int, row: str | None) -> None:
    path = root / split / table
    lines = path.read_text().splitlines()
    lines[line : line + 1] = [] if row is None else [row]
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("split", "line", "row", "message"),
    [
        ("train", 3, "pictures/2.png,2,0", "train/labels.csv, row 4, column red: expected 0 or 1, got '2'"),
        ("train", 3, "\n\npictures/2.png,1,two", "labels.csv, row 6, column bar: expected 0 or 1, got 'two'"),
        ("train", 3, "pictures/2.png,1", "labels.csv, row 4 has 2 cells, the first row 3: expected as many"),
        ("train", 3, "pictures/2.png,1,0,1", "labels.csv, row 4 has 4 cells, the first row 3: expected as many"),
        ("train", 3, "pictures/gone.png,0,1", "row 4: there is no image .*gone.png"),
        ("train", 3, "pictures,0,1", "row 4: .*pictures is a folder, expected an image"),
        ("train", 3, "../test/pictures/1.png,0,1", "row 4: .*test/pictures/1.png is not below .*train: move it there"),
        ("train", 3, "pictures/1.png,0,1", "labels.csv has two rows of pictures/1.png: expected one per image"),
        ("train", 0, "path,red,bar", "has the columns path, red, bar: expected file and one per label"),
        ("test", 0, "file,red,line", "must have the same columns, but only one has bar, line"),
        ("test", 0, "file,bar,red", "must have the same columns, but only one has them in this order"),
    ],
)
def test_a_wrong_table_is_one_line_with_the_place(
    split: str, line: int, row: str, message: str, labeled: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(labeled, tmp_path / "set"))
    spoil(root, split, "labels.csv", line, row)
    with pytest.raises(UserError, match=message) as error:
        load_data(str(root), "data", 0.1, 0, task="multilabel")
    assert "\n" not in str(error.value)


def test_targets_that_are_no_numbers_and_folders_without_tables(bright: Path, labeled: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(bright, tmp_path / "set"))
    spoil(root, "test", "targets.csv", 2, "1.png,much,3")
    with pytest.raises(UserError, match="test/targets.csv, row 3, column brightness: expected a number, got 'much'"):
        load_data(str(root), "data", 0.1, 0, task="regression")
    spoil(root, "test", "targets.csv", 2, "1.png,nan,3")
    with pytest.raises(UserError, match="expected a number, got 'nan'"):
        load_data(str(root), "data", 0.1, 0, task="regression")
    spoil(root, "test", "targets.csv", 2, "1.png,1,1e39")
    with pytest.raises(UserError, match="row 3, column other: expected a number that float32 can hold, got '1e39'"):
        load_data(str(root), "data", 0.1, 0, task="regression")
    spoil(root, "test", "targets.csv", 2, "1.png,3,57,3")
    with pytest.raises(UserError, match="row 3 has 4 cells, the first row 3: .*write numbers with a decimal point"):
        load_data(str(root), "data", 0.1, 0, task="regression")
    with pytest.raises(UserError, match="there is no .*targets.csv: expected a table with a column file and"):
        load_data(str(labeled), "data", 0.1, 0, task="regression")
    with pytest.raises(UserError, match="MNIST5k has classes alone: give the folder of a data set for the task regr"):
        load_data("MNIST5k", "data", 0.1, 0, task="regression")
    spoil(root, "test", "targets.csv", 2, None)
    data = load_data(str(root), "data", 0.1, 0, task="regression")
    assert data.notes == ("left out of test/: images that are not in the table: 1 (1.png)",)
    assert "test 15 (brightness: " in data.report()
    (root / "train" / "5.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="cannot read the image .*5.png"):
        load_data(str(root), "data", 0.1, 0, task="regression")
    skipping = load_data(str(root), "data", 0.1, 0, skip_broken=True, task="regression")
    assert skipping.skipped == ("train/5.png",) and len(skipping.train) + len(skipping.valid) == 59


def test_the_fingerprint_is_of_the_targets_too(bright: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(bright, tmp_path / "set"))
    before = load_data(str(bright), "data", 0.1, 0, task="regression")
    same = load_data(str(root), "data", 0.1, 0, 0, task="regression")
    assert same.fingerprint == before.fingerprint and torch.equal(same.train.labels, before.train.labels)
    spoil(root, "test", "targets.csv", 2, "1.png,100.0,3")
    assert load_data(str(root), "data", 0.1, 0, task="regression").fingerprint != before.fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "regression", "likelihood": "bernoulli"}, "the task regression has no likelihood 'bernoulli'"),
        (
            {"likelihood": {"class_weights": "balance"}},
            "class_weights of the likelihood categorical: expected a list",
        ),
        ({"task": "segmentation", "random_crop": 0.5}, "random_crop is not for segmentation"),
        ({"likelihood": 3}, "likelihood: expected None or the name of a likelihood"),
    ],
)
def test_settings_that_contradict_the_task(
    changes: dict[str, Any], message: str, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        frequentist_settings(pictures, tmp_path, **changes)


def test_weights_of_other_classes_are_refused_before_training(pictures: Path, tmp_path: Path) -> None:
    settings: Settings = frequentist_settings(pictures, tmp_path, likelihood={"class_weights": [1.0, 2.0, 3.0]})
    with pytest.raises(UserError, match="class_weights of the likelihood: expected 2 numbers, got 3"):
        start(settings)
