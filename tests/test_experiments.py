"""The experiments' runner does what is missing, once; their pages show what ran."""

from __future__ import annotations

import json
import math
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import draw_pictures, run_files
from optuna.trial import FixedTrial
from PIL import Image
from torch import nn
from torchvision import datasets

from experiments import ablations, frontier, moments, recipes, report, robustness, running, search
from experiments.__main__ import main as experiments_command
from experiments.networks import (
    Bounded,
    Noise,
    lenet_bounded,
    lenet_fan_in,
    lenet_smooth,
    resnet18,
    with_bayesian_last_layer,
    with_dropout,
    with_filter_dropout,
)
from experiments.plan import BLOCKS, METHODS, Block, Experiment, experiments
from experiments.running import ExperimentFiles, run_missing
from images import FOR_CHOOSING, corrupt, load_data, normalize
from inference import Classifier, Predictor, posterior_predictive, summarize
from layers import BayesianLayer, CorrelatedGaussianPrior, GaussianPrior, deterministic_layers, weight_posteriors
from layers.estimators import output_moments
from likelihoods import accuracy, nll
from models import build, load_network
from support import UserError, locked, write_text
from training import BayesianSettings, DivergedError, State, loop, train

NAMES = ("dropout", "mc_dropout", "ensemble", "lrt_1", "last_layer", "short_twin", "short_swag", "short_laplace")
SEEDS = {"frequentist": 5, **dict.fromkeys(NAMES, 1)}
TWIN, MOMENTS = (next(p for p in frontier.SEARCHED if p.label == label) for label in ("twin", "mean field, moments"))
BARS = Block("bars", "lenet", SEEDS, {"n_epochs": 2, "batch_size": 20, "lr_start": 3e-3})


@pytest.fixture(scope="module")
def places(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> ExperimentFiles:
    root = tmp_path_factory.mktemp("experiments")
    draw_pictures(root / "letters", 10, seed=9)
    return ExperimentFiles(root / "results", root / "checkpoints", root, root / "letters", {"bars": str(pictures)})


def planned() -> list[Experiment]:
    return [Experiment(BARS, method, seed) for method, seeds in BARS.seeds.items() for seed in range(seeds)]


@pytest.fixture(scope="module")
def results(places: ExperimentFiles) -> dict[str, dict[str, Any]]:
    run_missing(planned(), places)
    return {e.name: json.loads(places.result(e).read_text()) for e in planned()}


def test_every_experiment_of_the_plan_can_run(places: ExperimentFiles) -> None:
    plan = list(experiments())
    assert len({experiment.name for experiment in plan}) == len(plan)
    for experiment in plan:
        settings = places.settings(experiment)  # checked
        assert all(source in plan for source in experiment.sources)
        own = {} if ":" in settings.net_type else {"activation_type": settings.activation_type}
        with torch.device("meta"):
            build(settings.net_type, experiment.method.bayesian, 10, 3, **own)


def test_a_method_changes_some_of_the_priors_that_a_search_found() -> None:
    settings = next(each for each in experiments() if each.method_name == "narrow_start_of_lenet").settings()
    found = recipes.recipe("CIFAR10", "lenet", "bayesian")["priors"]
    assert settings["priors"] == {"prior_sigma": found["prior_sigma"], "posterior_rho_initial": (-7, 0.1)}


def test_an_experiment_is_done_once(
    places: ExperimentFiles, results: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in places.results.iterdir()}
    run_missing(planned(), places)
    assert {path: path.stat().st_mtime_ns for path in places.results.iterdir()} == before
    assert capsys.readouterr().out == ""


def test_cifar100_runs_as_planned_from_files_of_its_layout(
    places: ExperimentFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, names = tmp_path / "cifar-100-python", [f"class {label:02}" for label in range(100)]
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (400, 3, 32, 32), dtype=np.uint8)
    labels = [index % 100 for index in range(400)]
    for name, rows in (("train", slice(0, 300)), ("test", slice(300, 400))):
        content = {"data": pixels[rows].reshape(-1, 3072), "fine_labels": labels[rows], "coarse_labels": [0] * 400}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names, "coarse_label_names": ["all"]}))
    for name in ("train", "test"):
        monkeypatch.setattr(datasets.CIFAR100, f"{name}_list", [[name, None]])  # no checksum: these are not the real
    monkeypatch.setattr(datasets.CIFAR100, "meta", {**datasets.CIFAR100.meta, "md5": None})
    data = load_data("CIFAR100", tmp_path, 0.1, 0)
    assert data.classes == tuple(names) and data.flippable and len(data.train) == 270
    assert torch.equal(data.test.images, torch.from_numpy(pixels[300:]))  # type: ignore[arg-type]
    assert data.test.labels.tolist() == labels[300:]

    planned = next(block for block in BLOCKS if block.dataset == "CIFAR100")
    block = replace(planned, common={**planned.common, "n_epochs": 1})
    empty = replace(places, data_dir=tmp_path, results=tmp_path / "results", checkpoints=tmp_path / "checkpoints")
    run_missing([Experiment(block, method, 0) for method in block.seeds], empty)
    results = {path.stem: json.loads(path.read_text()) for path in empty.results.iterdir()}
    assert set(results) == {f"CIFAR100-lenet-{method}-0" for method in planned.seeds}
    for result in results.values():
        assert result["parameters"] > 62_006 and 0 < result["test"]["nll"] < 10
        assert result["settings"]["batch_size"] == 128


def test_what_cannot_be_done_does_not_keep_the_rest_from_it(
    places: ExperimentFiles, results: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    lost = Experiment(replace(BARS, dataset="lost"), "frequentist", 0)
    again = Experiment(BARS, "lrt_1", 0)
    places.result(again).unlink()
    with pytest.raises(UserError, match="failed, for the reasons above: lost-lenet-frequentist-0$"):
        run_missing([lost, again], replace(places, folders={**places.folders, "lost": "no/such/folder"}))
    assert json.loads(places.result(again).read_text())["test"] == results[again.name]["test"]
    assert "lost-lenet-frequentist-0: " in capsys.readouterr().err


def test_an_ensemble_is_the_mean_of_its_members(places: ExperimentFiles, results: dict[str, Any]) -> None:
    members = [Experiment(BARS, "frequentist", seed) for seed in range(5)]
    probs = []
    for member in members:
        net, description, _ = load_network(places.run(member).best)
        data = load_data(places.dataset(member), "data", 0.1, member.seed)
        assert isinstance(data.test.images, torch.Tensor)
        # Each member normalizes by the constants of its own split.
        with torch.no_grad():
            probs.append(net(normalize(data.test.images, description.mean, description.std)).softmax(-1))
        assert results[member.name]["test"]["nll"] == pytest.approx(nll(probs[-1], data.test.labels), rel=1e-4)
    ensemble = results["bars-lenet-ensemble-0"]
    mean = torch.stack(probs).mean(0)
    assert ensemble["test"]["nll"] == pytest.approx(nll(mean, data.test.labels), rel=1e-4)
    assert ensemble["test"]["accuracy"] == pytest.approx(accuracy(mean, data.test.labels))
    assert ensemble["parameters"] == 5 * results["bars-lenet-frequentist-0"]["parameters"]


def test_what_has_one_answer_has_no_epistemic_uncertainty_and_samples_have(results: dict[str, Any]) -> None:
    area = {name: result["unknown"]["noise"]["mutual information"]["auroc"] for name, result in results.items()}
    for name in ("frequentist", "dropout", "short_twin"):
        assert area[f"bars-lenet-{name}-0"] == 0.5  # every image scores the same
    for name in ("mc_dropout", "ensemble", "lrt_1", "last_layer", "short_swag", "short_laplace"):
        assert area[f"bars-lenet-{name}-0"] != 0.5
    assert results["bars-lenet-dropout-0"]["test"] != results["bars-lenet-mc_dropout-0"]["test"]


def test_dropout_stands_before_every_layer_with_weights_but_the_first() -> None:
    net = with_dropout("lenet", 0.5)(10, 1)
    assert [name for name, child in net.named_children() if isinstance(child, nn.Dropout)] == [
        f"dropout{n}" for n in range(1, 5)
    ]


def test_whole_filters_drop_out_behind_convolutions() -> None:
    net = with_filter_dropout("lenet", 0.5)(10, 1)
    names = [name for name, _ in net.named_children() if name.endswith("dropout")]
    assert names == ["conv1_dropout", "conv2_dropout", "fc1_dropout", "fc2_dropout"]
    torch.manual_seed(0)
    filters = net[:2](torch.randn(4, 1, 32, 32))
    silent = (filters == 0).flatten(2)
    assert silent.any(-1).any() and torch.equal(silent.any(-1), silent.all(-1))


def test_only_the_last_layer_is_bayesian() -> None:
    net = with_bayesian_last_layer("lenet")(10, 1)
    names = [line.split()[0] for line in deterministic_layers(net)]
    assert names == ["0.conv1", "0.conv2", "0.fc1", "0.fc2"]


def test_noise_is_of_a_strength_of_its_own_for_every_image_and_stops_in_evaluation() -> None:
    torch.manual_seed(0)
    images, noise = torch.randn(2000, 1, 16, 16), Noise(0.5)
    std = (noise(images) - images).flatten(1).std(1)
    assert std.min() < 0.01 and 0.45 < std.max() < 0.6
    assert std.square().mean().item() == pytest.approx(0.5**2 / 3, rel=0.07)  # of a uniform standard deviation
    assert noise.eval()(images) is images


def test_neighbors_in_the_first_kernels_are_alike_under_a_smooth_prior() -> None:
    first, *others = (gaussian.prior for _, _, gaussian in weight_posteriors(lenet_smooth(10, 3)))
    assert isinstance(first, CorrelatedGaussianPrior) and {type(prior) for prior in others} == {GaussianPrior}
    covariance = first.covariance / 0.33**2  # of positions 0 and 1 in a row, and of 0 and the one below 1
    assert covariance[0, 1].item() == pytest.approx(math.exp(-0.5)) == covariance[0, 5].item()
    assert covariance[0, 6].item() == pytest.approx(math.exp(-1)) and covariance[3, 3].item() == pytest.approx(1.001)


def test_a_prior_by_fan_in_keeps_the_variance_of_its_inputs() -> None:
    """Var of Σ w_i x_i, of independent weights and inputs of second moment 1, is 1."""
    for _, mean, posterior in weight_posteriors(lenet_fan_in(10, 3)):
        assert isinstance(posterior.prior, GaussianPrior) and isinstance(posterior.prior.std, float)
        if mean.dim() > 1:
            assert mean[0].numel() * posterior.prior.std**2 == pytest.approx(1)


def test_the_small_resnet_is_bayesian_but_for_its_batch_norm() -> None:
    with torch.device("meta"):
        net = build("experiments.networks:resnet18", True, 10, 3)
        assert net(torch.randn(2, 3, 32, 32))[0].shape == (2, 10)
    assert sum(isinstance(module, BayesianLayer) for module in net.modules()) == 21
    assert all("BatchNorm" in line for line in deterministic_layers(net))
    with pytest.raises(ValueError, match="3 channels"):
        resnet18(10, 1)


@pytest.mark.parametrize(
    ("method", "function", "epoch", "place"),
    [
        ("lrt_1", "train_epoch", 1, "epoch 2, step 1"),
        ("short_swag", "train_epoch", 10, "epoch 11, step 1"),
        ("short_swag", "_save", 10, "epoch 10, step 1"),  # its snapshot is written, and the epoch's last.pt is not
    ],
)
def test_what_was_cut_off_is_gone_on_with(
    method: str,
    function: str,
    epoch: int,
    place: str,
    places: ExperimentFiles,
    results: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mine = replace(places, results=tmp_path / "results", checkpoints=tmp_path / "checkpoints")
    experiment = Experiment(BARS, method, 0)
    original = getattr(loop, function)

    def cut_off(state: State, *arguments: Any) -> Any:
        if state.progress.epoch == epoch:
            raise KeyboardInterrupt
        return original(state, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, function, cut_off)
        run_missing([experiment], mine)
    capsys.readouterr()
    run_missing([experiment], mine)
    assert f"at {place}" in capsys.readouterr().out
    assert json.loads(mine.result(experiment).read_text())["test"] == results[experiment.name]["test"]


def test_what_another_process_does_is_left_to_it(
    places: ExperimentFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = replace(places, results=tmp_path / "results", checkpoints=tmp_path / "checkpoints")
    held = Experiment(BARS, "frequentist", 0)
    ensemble = Experiment(BARS, "ensemble", 0)
    with locked(empty.checkpoints / held.name):
        run_missing([held, ensemble], empty)
    assert capsys.readouterr().out.startswith(f"left: {held.name}, {ensemble.name}")
    assert not empty.results.exists()


def test_prices_and_scores_of_what_is_trained_are_on_the_frontier(
    places: ExperimentFiles, results: dict[str, Any], tmp_path: Path
) -> None:
    measured = frontier.measure(BARS, places, corrupted=4, rounds=2)
    points = measured["points"]
    assert list(points) == ["twin", "SWAG, 25", "Laplace, last layer", "Laplace, 100"]
    for label, method in (("twin", "short_twin"), ("SWAG, 25", "short_swag"), ("Laplace, last layer", "short_laplace")):
        expected = results[f"bars-lenet-{method}-0"]["test"]
        assert points[label]["nll"] == pytest.approx(expected["nll"], rel=1e-4), label
        assert points[label]["ece"] == pytest.approx(expected["ece"], rel=1e-3, abs=1e-6), label
    assert points["twin"]["prediction"] == points["twin"]["training"] == 1 < points["SWAG, 25"]["prediction"]
    for row in points.values():
        assert math.isfinite(row["corrupted_nll"]) and 0 <= row["auroc"] <= 1
    page = frontier.render({"MNIST-lenet": measured}, "short")
    assert page.count("| MNIST-lenet | twin |") == 2  # a table of known images, one of others
    frontier.plot("bars", measured, tmp_path / "frontier.png")
    assert Image.open(tmp_path / "frontier.png").size == (1680, 840)


def test_what_helps_under_corruption_is_measured_on_validation_images_alone(
    places: ExperimentFiles, results: dict[str, Any]
) -> None:
    names = ["short_twin", "lrt_1", "mc_dropout"]
    chosen = robustness.candidates(BARS, places, names)
    rows = robustness.measure(chosen, places, 1000)
    assert list(rows) == names
    for name, row in rows.items():
        assert row["images"] == 20 and set(row["harmful"]) <= set(FOR_CHOOSING)
        if name != "mc_dropout":
            expected = results[f"bars-lenet-{name}-0"]["best_validations"][0]
            assert row["clean"]["accuracy"] == pytest.approx(expected["valid_accuracy"], abs=0.051), name
    classifier = Classifier.load(places.run(chosen[0]).best)
    valid = load_data(places.dataset(chosen[0]), places.data_dir, 0.1, 0).valid
    shifted = [
        nll(classifier.predict(corrupt(valid.images, kind, severity)).probs, valid.labels)  # type: ignore[arg-type]
        for kind in FOR_CHOOSING
        for severity in range(1, 6)
    ]
    assert rows["short_twin"]["corrupted"]["nll"] == pytest.approx(sum(shifted) / 15, rel=1e-4)
    page = robustness.render({"bars-lenet": rows})
    assert all(f"| bars-lenet | {METHODS[name].title} |" in page for name in names)


@pytest.mark.parametrize("name", ["ensemble_of_9", "bbb_1"])
def test_a_network_that_is_not_planned_or_not_trained_is_named(
    name: str, places: ExperimentFiles, results: dict[str, Any]
) -> None:
    block = replace(BARS, seeds={**SEEDS, "bbb_1": 1})
    with pytest.raises(UserError, match=name):
        robustness.candidates(block, places, [name])


def test_searched_networks_are_compared_with_their_rivals_on_the_same_images(
    places: ExperimentFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = replace(BARS, seeds={"twin_of_lenet": 2, "of_lenet": 2})
    run_missing([Experiment(block, method, seed) for method in block.seeds for seed in range(2)], places)
    points = [replace(TWIN, method="twin_of_lenet"), replace(MOMENTS, method="of_lenet")]
    monkeypatch.setitem(frontier.SERIES, "searched", points)
    measured = frontier.measure(block, places, corrupted=4, rounds=2, series="searched")
    twin, ours = measured["points"].values()
    for row in (twin, ours):
        assert row["networks"] == 2 and row["deviations"]["nll"] > 0
        assert row["scaled_nll"] < row["nll"] * 1.05 and row["auroc_mi"] >= 0
    gain = ours["against"]
    assert gain["nll_gain"] == pytest.approx(twin["nll"] - ours["nll"], rel=1e-4)
    assert gain["accuracy_gain"] == pytest.approx(ours["accuracy"] - twin["accuracy"], abs=1e-6)
    assert gain["nll_gain_low"] <= gain["nll_gain"] <= gain["nll_gain_high"] and len(gain["mcnemar_p"]) == 2
    other = {"series": "short", "points": {}}
    default = {**measured, "series": "default"}
    record = {"CIFAR10-lenet": other, "CIFAR10-lenet-searched": measured, "MNIST-lenet-default": default}
    page = frontier.render(record, *frontier.COMPLETE)
    rows = [f"| {name} | mean field, moments |" for name in ("MNIST-lenet-default", "CIFAR10-lenet-searched")]
    assert page.count(rows[1]) == 2 and -1 < page.index(rows[0]) < page.index(rows[1])  # in the order of the plan
    assert "mean field, moments against twin" in page
    assert f"{twin['nll']:.4f} ± {twin['deviations']['nll']:.4f}" in page
    frontier.plot_overview(record, tmp_path / "overview.png")
    assert Image.open(tmp_path / "overview.png").width == 1680

    one, two, two_again = ({"networks": count, "nll": nll} for count, nll in ((1, 0.1), (2, 0.2), (2, 0.3)))
    earlier = {**measured, "points": {MOMENTS.label: two, TWIN.label: two}}
    alone = {**measured, "points": {TWIN.label: two_again}}
    assert frontier.merged(earlier, alone)["points"] == {TWIN.label: two_again, MOMENTS.label: two}
    assert frontier.merged(earlier, {**measured, "points": {TWIN.label: one}})["points"][TWIN.label] == two
    assert frontier.merged({**earlier, "epochs": 99}, alone) == alone  # of another training


def test_probabilities_are_scaled_by_what_fits_the_other_half() -> None:
    """Logits that are three times too large are mended; those of calibrated probabilities stay as they are."""
    logits = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.distributions.Categorical(logits=logits).sample()
    good = nll(logits.softmax(-1), labels)
    for factor in (1, 3):
        scaled = frontier.after_scaling(summarize((factor * logits)[None]), labels)
        assert scaled["scaled_nll"] == pytest.approx(good, abs=2e-3)
    assert nll((3 * logits).softmax(-1), labels) > good + 0.3


def test_rows_are_means_over_the_seeds(results: dict[str, Any]) -> None:
    rows = [report.Row("bars", "lenet", "frequentist", tuple(results[f"bars-lenet-frequentist-{n}"] for n in range(5)))]
    (row,) = report.table(rows).splitlines()[2:]
    values = torch.tensor([result["test"]["nll"] for result in rows[0].results], dtype=torch.float64)
    assert f"| {values.mean():.4f} ± {values.std():.4f} |" in row and "| 5 |" in row


def test_the_best_temperature_is_that_of_validation() -> None:
    def result(beta: float, valid: float, test: float) -> report.Row:
        only = {"valid_nll": valid, "test": {"nll": test}}
        return report.Row("MNIST", "lenet", f"lrt_{beta:g}", (only,))

    rows = [result(1, 0.3, 0.1), result(0.1, 0.1, 0.3), result(0.01, 0.2, 0.2)]
    best = report.best_temperature(rows, "MNIST", "lenet", "lrt")
    assert best is not None and best.method == "lrt_0.1"


def test_the_table_at_one_leaves_out_what_a_twin_has_not() -> None:
    test = {"accuracy": 0.9, "nll": 0.3, "ece": 0.01}
    novelty = {score: {"auroc": 0.8} for score in ("total entropy", "mutual information")}
    results = {
        method: {"test": test, "unknown": {"notMNIST": novelty}, "best_validations": [validation]}
        for method, validation in (
            ("one_sgd_learned_plain", {"train_nll": 0.4, "train_kl": 12_345.6, "valid_elbo": -1.25}),
            ("one_twin", {"train_nll": 0.2, "valid_elbo": -0.3}),
            ("lrt_1", {}),
        )
    }
    rows = [report.Row("MNIST", "lenet", method, (result,)) for method, result in results.items()]
    _, _, bayesian, twin = report.at_one_table(rows).splitlines()
    assert bayesian == (
        "| LeNet, MNIST | sgd, learned prior, plain images | 90.00 | 0.3000 | 0.0100 | 0.4000 | 12,346 | -1.250 | "
        "0.8000 | 0.8000 |"
    )
    assert twin == "| LeNet, MNIST | control: twin by sgd | 90.00 | 0.3000 | 0.0100 | 0.2000 |  |  | 0.8000 | 0.8000 |"
    assert report.at_one_table(rows[2:]) == "None of these networks has been trained yet."


@pytest.mark.parametrize("page", report.PAGES, ids=lambda page: page.parent.name)
def test_the_pages_show_the_results(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.search("<!-- (results|ablations) -->", text)
    assert report.with_tables(text, report.read(running_results())) == text, "run `python -m experiments report`"


def test_ablations_are_done_once_and_compared_seed_by_seed(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ablations, "COMMON", {"dataset": str(pictures), "batch_size": 20, "n_epochs": 2})
    monkeypatch.setattr(ablations, "CHANGES", {ablations.AS_PLANNED: {}, "faster": {"lr_start": 3e-3}})
    path = tmp_path / "ablations.json"
    ablations.run_ablations(path, tmp_path)
    ablated = json.loads(path.read_text())
    assert list(ablated) == [ablations.AS_PLANNED, "faster"] and capsys.readouterr().out.count("epoch 2/2") == 6
    differences = torch.tensor(ablated["faster"]["valid_nll"]) - torch.tensor(
        ablated[ablations.AS_PLANNED]["valid_nll"]
    )
    assert f"| {differences.mean():+.4f} ± {differences.std():.4f} |" in report.ablations_table(ablated)
    del ablated["faster"]
    path.write_text(json.dumps(ablated))
    ablations.run_ablations(path, tmp_path)
    assert capsys.readouterr().out.count("epoch 2/2") == 3


def test_an_averaged_run_keeps_the_running_mean_of_its_weights(pictures: Path, tmp_path: Path) -> None:
    common = {"dataset": str(pictures), "batch_size": 60, "n_epochs": 2, "checkpoint_dir": str(tmp_path)}
    state, setup, averaged = ablations.start_changed({**common, "average_decay": 0.6})
    seen: list[list[torch.Tensor]] = []
    state.optimizer.register_step_post_hook(
        lambda *_: seen.append([p.detach().clone() for p in state.net.parameters()])
    )
    train(state, setup, averaged)
    mean = seen[0]
    for weights in seen[1:]:
        mean = [0.6 * old + 0.4 * new for old, new in zip(mean, weights, strict=True)]
    assert len(seen) == 6 and state.progress.best_epoch == 2
    kept, _, _ = load_network(setup.files.best)
    for found, wanted in zip(kept.parameters(), mean, strict=True):
        torch.testing.assert_close(found.detach(), wanted)


def test_every_ablation_is_of_settings_that_are_taken_and_has_run() -> None:
    for changes in ablations.CHANGES.values():
        settings = {name: value for name, value in changes.items() if name != "average_decay"}
        running.configured({**ablations.COMMON, **settings}, bayesian=True)
    assert list(json.loads(report.ABLATIONS.read_text())) == list(ablations.CHANGES)


def running_results() -> Path:
    return Path(running.__file__).parent / "results"


def test_a_bounded_last_layer_is_trained_by_a_bound_of_its_expected_nll() -> None:
    net = lenet_bounded(3, 1)
    last = net.get_submodule("0.fc3")
    assert isinstance(last, Bounded)
    head = last.head
    with torch.no_grad():
        head.posterior["weight"].rho.fill_(-0.5)  # wide, so that the bound is far from the mean's NLL
    features, labels = torch.rand(6, 84), torch.tensor([0, 1, 2, 0, 1, 2])
    bound = F.cross_entropy(last(features), labels, reduction="none")
    mean, variance = output_moments(head, features)
    torch.testing.assert_close(bound, (mean + variance / 2).logsumexp(1) - mean.gather(1, labels[:, None])[:, 0])
    draws = mean + variance.sqrt() * torch.randn(20_000, 6, 3)
    expected = -draws.log_softmax(-1).mean(0).gather(1, labels[:, None])[:, 0]
    of_mean = F.cross_entropy(mean, labels, reduction="none")
    assert (bound > expected).all() and bool((expected > of_mean).float().mean() > 0.5)
    probs = posterior_predictive(net, torch.rand(4, 1, 32, 32), 2).probs
    torch.testing.assert_close(probs.sum(1), torch.ones(4))
    assert probs.shape == (4, 3) and net(torch.rand(4, 1, 32, 32))[1] > 0  # as many as the classes where it predicts


def test_every_method_has_a_title_of_its_own() -> None:
    assert len({method.title for method in METHODS.values()}) == len(METHODS)


def test_moments_are_compared_with_draws_and_the_page_shows_it(
    finished_run: BayesianSettings, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments, "REFERENCE", 30)
    result = moments.measure(run_files(finished_run).best, pictures / "test", 8, finished_run.data_dir)
    classifier = Classifier.load(run_files(finished_run).best)
    images = torch.randint(256, (4, 1, 32, 32), dtype=torch.uint8)
    rows, predictives = moments.compare(classifier, images, {"moments": Predictor(classifier.net, method="moments")})
    draws, one_pass = classifier.predict(images, 30), classifier.predict(images, method="moments")
    assert rows["moments"] == pytest.approx(0.5 * float((draws.probs - one_pass.probs).abs().sum(1).mean()), rel=1e-4)
    torch.testing.assert_close(predictives["draws"].entropy, draws.entropy)
    assert all(0 < row[way] < 0.5 for row in result["total_variation"].values() for way in ("100 draws", "fitted"))
    assert result["scores"]["moments"]["nll"] == pytest.approx(result["scores"]["draws"]["nll"], rel=0.2)
    record = json.loads(moments.RECORD.read_text(encoding="utf-8"))
    assert moments.render(record) in (moments.RECORD.parent / "README.md").read_text(encoding="utf-8")


def test_a_search_that_was_interrupted_goes_on_as_if_it_had_not_been(places: ExperimentFiles, tmp_path: Path) -> None:
    seeds = dict.fromkeys(("twin_searched", "dropout_searched", "mc_dropout_searched", "searched"), 1)
    block = replace(BARS, seeds=seeds, searched_by={"n_epochs": 1})
    for family in ("frequentist", "dropout", "bayesian"):
        whole, rest = (recipes.record_path("bars", "lenet", family, tmp_path / name) for name in ("whole", "rest"))
        if not whole.exists():
            search.run_searches([block], places, tmp_path / "whole", trials=3)
        trials = recipes.read_trials(whole)
        assert [trial["params"]["optimizer"] for trial in trials[:2]] == ["sgd", "adam"]
        for trial in trials:
            assert trial["value"] is None or trial["value"] == pytest.approx(
                sum(min(curve) for curve in trial["valid_nll"]) / search.SEEDS
            )
        best = recipes.best_trial(trials)
        assert best is not None and best["value"] == min(t["value"] for t in trials if t["value"] is not None)
        rest.parent.mkdir(exist_ok=True)
        rest.write_text(json.dumps(trials[:2]))
    search.run_searches([block], places, tmp_path / "rest", trials=3)
    assert len(list((tmp_path / "whole").iterdir())) == 3
    for path in (tmp_path / "whole").iterdir():
        assert json.loads(path.read_text()) == json.loads((tmp_path / "rest" / path.name).read_text())
    search.run_searches([replace(BARS, seeds={"of_lenet": 1})], places, tmp_path / "none", trials=1)
    assert not (tmp_path / "none").exists()  # its settings are those of another search


def test_a_trial_that_diverges_is_pruned_and_a_full_disk_ends_the_search(
    places: ExperimentFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **how: object) -> None:
        raise error

    monkeypatch.setattr(search, "train", fail)
    block, path = (
        replace(BARS, seeds={"twin_searched": 1}, searched_by={"n_epochs": 1}),
        recipes.record_path("bars", "lenet", "frequentist", tmp_path),
    )
    error: UserError = DivergedError("the loss is not finite")
    search.run_searches([block], places, tmp_path, trials=1)
    assert [trial["value"] for trial in recipes.read_trials(path)] == [None]
    error = UserError("cannot write: No space left on device")
    with pytest.raises(UserError, match="No space left"):
        search.run_searches([block], places, tmp_path, trials=2)
    assert len(recipes.read_trials(path)) == 1


def test_a_temperature_and_a_decay_are_those_of_the_objective() -> None:
    """The pull of the prior on a mean, per example, is δμ."""
    trial = FixedTrial(
        {"optimizer": "sgd", "sgd rate": 0.05, "decay": 2e-4, "temperature": 0.1, "layer_type": "bbb", "rho": -7.0}
    )
    settings = search.suggest(trial, bayesian=True, train_size=500)
    mean, std = torch.tensor([0.3], dtype=torch.float64), torch.tensor([0.1], dtype=torch.float64)
    pull, _ = GaussianPrior(0.0, settings["priors"]["prior_sigma"]).pull(mean, std)
    assert (settings["beta_type"] * pull / 500).item() == pytest.approx(2e-4 * 0.3)
    assert settings["temperature"] == 0.1


def test_what_is_no_record_of_a_search_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    for content in ("[{}]", "{", "[1]", '{"a": 1}'):
        path.write_text(content)
        with pytest.raises(UserError, match="is not the record of a search: delete it"):
            recipes.read_trials(path)
    with pytest.raises(UserError, match="nothing in the plan contains XY: known are MNIST-lenet"):
        search.chosen_blocks(["XY"])


def test_a_table_of_any_runs_has_a_row_per_method_and_a_column_per_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = {
        "dataset": "MNIST",
        "net_type": "lenet",
        "method": "bayesian",
        "parameters": 1234,
        "training_seconds": 7.6,
    }
    result |= {"epochs": 3, "test_seconds": 1.0}
    for index, (seed, rate, loss) in enumerate(((0, 1e-3, 0.1), (1, 1e-3, 0.3), (0, 2e-3, 0.5))):
        settings = {"lr_start": rate, "seed": seed, "checkpoint_dir": str(index), "task": "classification"}
        path = tmp_path / str(index) / "lenet" / "results.json"
        write_text(path, json.dumps({**result, "test": {"nll": loss}, "settings": settings}))
    monkeypatch.setattr("sys.argv", ["experiments", "table", str(tmp_path / "**" / "results.json")])
    experiments_command()
    assert capsys.readouterr().out == (
        "| data | network | method | lr_start | seeds | nll | parameters | training seconds |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| MNIST | lenet | bayesian | 0.001 | 2 | 0.2000 ± 0.1414 | 1,234 | 8 |\n"
        "| MNIST | lenet | bayesian | 0.002 | 1 | 0.5000 | 1,234 | 8 |\n"
    )
    for arguments in (["table"], ["table", str(tmp_path / "none")], ["list", "some"]):
        monkeypatch.setattr("sys.argv", ["experiments", *arguments])
        with pytest.raises(SystemExit, match="2"):
            experiments_command()
        assert capsys.readouterr().err.count("\n") == 1
