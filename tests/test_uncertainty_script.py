"""uncertainty_estimation.py as a user runs it: a real process, real files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import pytest
import torch
from conftest import Script, draw_pictures

import config_bayesian
import config_frequentist
from inference.prediction import posterior_predictive
from models.checkpoint import load_network
from training.data import load_data, normalise
from training.loop import Run
from training.settings import BayesianSettings, Settings, from_config


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of both families, trained on the bars."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for kind, config in ((BayesianSettings, config_bayesian), (Settings, config_frequentist)):
        settings = from_config(kind, config)
        Run(replace(settings, dataset=str(pictures), checkpoint_dir=str(folder), n_epochs=6, batch_size=16)).fit()
    return folder / "bars"


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    """A small notMNIST: folders A to J, with one broken picture among them."""
    root = tmp_path / "data" / "notMNIST_small"
    for seed, letter in enumerate("ABCDEFGHIJ"):
        draw_pictures(tmp_path / letter, 2, seed=seed)
        (root / letter).mkdir(parents=True)
        for name in ("lying", "upright"):
            for picture in (tmp_path / letter / name).iterdir():
                picture.rename(root / letter / f"{name}{picture.name}")
    (root / "C" / "broken.png").write_bytes(b"\x89PNG")
    (root / "C" / "notes.txt").write_text("no picture")
    return tmp_path / "data"


def test_the_whole_report(script: Script, trained: Path, pictures: Path, letters: Path, tmp_path: Path) -> None:
    weights = trained / "bayesian" / "model_lenet.pt"
    out = tmp_path / "out"
    answer = script(
        "uncertainty_estimation.py", "--weights_path", weights, "--dataset", pictures, "--not_mnist_dir", letters,
        "--frequentist_weights", trained / "frequentist" / "model_lenet.pt", "--num_samples", 4, "--batch_size", 16,
        "--save_dir", out, "--rotate", "--noise",
    ).stdout  # fmt: skip
    assert "passed over 1 unreadable of 41 images" in answer and "broken.png" in answer
    report = json.loads((out / "uncertainty.json").read_text())
    assert (report["known_images"], report["unknown_images"], report["skipped"]) == (40, 40, 1)
    net, description, _ = load_network(weights)
    test = load_data(str(pictures), "data", 0.1, 0).test
    predictive = posterior_predictive(net, normalise(test.images, description.mean, description.std), 4)  # type: ignore[arg-type]
    rows = report["networks"]["bayesian"]["batches"]["bars test"]
    assert [row["epistemic_softmax"] for row in rows] == pytest.approx(
        [part.mean().item() for part in predictive.epistemic_softmax.split(16)], rel=1e-3
    )
    accuracy = (predictive.probs.argmax(-1) == test.labels).double().mean().item()
    assert report["networks"]["bayesian"]["known"]["accuracy"] == pytest.approx(accuracy)
    for network in ("bayesian", "frequentist"):
        assert len(report["networks"][network]["novelty"]) == 7
        assert report["rotation"][network][0]["accuracy"] == report["noise"][network][0]["accuracy"]
        assert f"{report['networks'][network]['novelty']['total entropy']['auroc']:.4f}" in answer
    named = ["scores_bayesian", "scores_frequentist", "reliability", "risk_coverage", "rotation", "noise"]
    for name in [*named, "images_bayesian", "images_frequentist"]:
        assert matplotlib.image.imread(out / f"{name}.png")[..., :3].std() > 0.05  # not an empty page
        assert f"{name}.png" in answer


def test_a_number_of_batches_and_any_other_unknown_set(
    script: Script, trained: Path, pictures: Path, tmp_path: Path
) -> None:
    draw_pictures(tmp_path / "others", 15, seed=9)
    arguments = (
        "--weights_path", trained / "bayesian" / "model_lenet.pt", "--dataset", pictures,
        "--ood_dir", tmp_path / "others", "--num_samples", 2, "--batch_size", 10, "--num_batches", 2,
    )  # fmt: skip
    script("uncertainty_estimation.py", *arguments)
    beside = trained / "bayesian" / "lenet" / "uncertainty" / "uncertainty.json"
    first = json.loads(beside.read_text())
    assert [len(b) for b in first["networks"]["bayesian"]["batches"].values()] == [2, 2]
    script("uncertainty_estimation.py", *arguments)
    second = json.loads(beside.read_text())
    assert first["networks"] == second["networks"]  # the same seed, the same figures


def test_a_users_mistake_is_one_line(
    script: Script, trained: Path, pictures: Path, letters: Path, tmp_path: Path
) -> None:
    weights = trained / "bayesian" / "model_lenet.pt"
    text = tmp_path / "text.pt"
    text.write_text("no network")
    nothing = tmp_path / "nothing"
    (nothing / "A").mkdir(parents=True)
    shutil.copy(text, nothing / "A" / "a.png")
    torch.manual_seed(0)
    for arguments, message in (
        (["--weights_path", tmp_path / "none.pt"], "there is no checkpoint"),
        (["--weights_path", text], "is not a readable checkpoint"),
        (["--weights_path", weights, "--net_type", "alexnet"], "holds a lenet, not a alexnet: give --net_type lenet"),
        (["--weights_path", weights, "--net_type", "lennet"], "did you mean 'lenet'"),
        (["--weights_path", weights, "--dataset", "MNIST5k"], "MNIST5k has 10 of 1: give the --dataset"),
        (["--weights_path", weights, "--dataset", pictures, "--not_mnist_dir", nothing], "has no notMNIST_small"),
        (["--weights_path", weights, "--dataset", pictures, "--ood_dir", tmp_path / "none"], "there is no folder"),
        (["--weights_path", weights, "--dataset", pictures, "--ood_dir", nothing], "holds no readable image"),
    ):
        answer = script("uncertainty_estimation.py", *arguments, expect=2)
        assert message in answer.stderr and answer.stderr.count("\n") == 1, answer.stderr
