"""Runs from beginning to end: what they write, that they resume exactly, and how they stop."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from conftest import (
    ROOT,
    Script,
    bayesian_settings,
    frequentist_settings,
    run_files,
    same,
    script_environment,
    weights,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import nn

import main_frequentist
from images import load_data, normalize
from inference.prediction import posterior_predictive
from layers import BBBLinear, kl_divergence, parameter_groups
from likelihoods import scores
from models import load_network, read_checkpoint, write_checkpoint
from support import UserError
from tests.processes import Program
from training import (
    BayesianSettings,
    DivergedError,
    State,
    compare,
    initial_state,
    loop,
    prepare,
    resume,
    run,
    start,
    train,
)
from training.interruption import stop_requests


def rows(path: Path) -> list[dict[str, float]]:
    with path.open() as stream:
        return [{k: float(v) for k, v in row.items() if k != "seconds"} for row in csv.DictReader(stream)]


@pytest.mark.draws
def test_a_bayesian_run_learns_and_leaves_all_that_it_promises(pictures: Path, tmp_path: Path) -> None:
    settings = bayesian_settings(pictures, tmp_path, n_epochs=12, batch_size=16)
    results = run(settings)
    folder = tmp_path / "bars" / "bayesian"
    assert json.loads(json.dumps(results)) == json.loads((folder / "lenet" / "results.json").read_text())
    assert results["test"]["accuracy"] > 0.9
    history = rows(folder / "lenet" / "history.csv")
    assert [row["epoch"] for row in history] == list(range(1, 13))
    assert history[-1]["train_kl"] < history[0]["train_kl"]
    assert matplotlib.image.imread(folder / "lenet" / "history.png").shape[0] > 200

    net, description, content = load_network(folder / "model_lenet.pt")
    best = min(history, key=lambda row: row["valid_nll"])
    assert content["validation"]["epoch"] == best["epoch"] and content["settings"] == asdict(settings)
    data = load_data(str(pictures), "data", settings.valid_size, settings.seed)
    assert (description.classes, description.mean, description.std) == (data.classes, data.mean, data.std)
    for split, samples, reported in ((data.test, 3, results["test"]), (data.valid, 2, None)):
        images = normalize(split.images, data.mean, data.std)  # type: ignore[arg-type]
        predictive = posterior_predictive(net, images, samples, seed=settings.seed)
        if reported is not None:
            assert scores(predictive.probs, split.labels) == pytest.approx(reported, rel=1e-5)
        else:
            log_p = predictive.expected_log_probs.gather(1, split.labels[:, None]).mean()
            elbo = float(log_p - kl_divergence(net).detach() / len(data.train))
            assert elbo == pytest.approx(content["validation"]["valid_elbo"], rel=1e-5)
            nll = float(-predictive.probs.gather(1, split.labels[:, None]).log().mean())
            assert nll == pytest.approx(content["validation"]["valid_nll"], rel=1e-4)


def test_the_twins_share_splits_and_are_compared(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], script: Script
) -> None:
    both = bayesian_settings(pictures, tmp_path), frequentist_settings(pictures, tmp_path)
    one, other = map(prepare, both)
    for split in ("train", "valid", "test"):
        assert torch.equal(getattr(one.data, split).images, getattr(other.data, split).images)
    nets = [initial_state(setup).net for setup in (one, other)]
    assert torch.equal(nets[0].conv1.weight, nets[1].conv1.weight)  # type: ignore[union-attr]
    bayesian = run(both[0])
    assert "frequentist" not in capsys.readouterr().out
    frequentist = run(both[1])
    table = capsys.readouterr().out
    for results in (bayesian, frequentist):
        assert f"{results['test']['accuracy']:.2%}" in table and f"{results['parameters']:,}" in table
    assert "settings that differ: lr_start 0.003 and 0.001" in table
    arguments = ("--compare", "--dataset", pictures, "--checkpoint_dir", tmp_path)
    assert script("main_bayesian.py", *arguments).stdout.splitlines()[0].split() == ["test", "bayesian", "frequentist"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train_ens": 2, "layer_type": "flipout", "beta_type": "Soenderby", "n_epochs": 2},
        {"alpha_shape": (1, 1), "layer_type": "bbb"},
    ],
    ids=str,
)
def test_the_same_seed_gives_the_same_weights(pictures: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    changes = {"n_epochs": 1, **changes}
    runs = [bayesian_settings(pictures, tmp_path / str(n), seed=seed, **changes) for n, seed in enumerate((0, 0, 1))]
    for settings in runs:
        run(settings)
    first, again, other = (weights(run_files(settings).last) for settings in runs)
    assert same(first, again)
    assert not same(first, other)


def denormals_count() -> bool:
    return float(torch.tensor(1e-39) * 0.5) > 0


def test_a_state_and_its_training_leave_the_process_as_it_is(pictures: Path, tmp_path: Path) -> None:
    """Denormals, deterministic algorithms and the seed belong to `start`, and so to `run`."""
    settings = bayesian_settings(pictures, tmp_path, n_epochs=1, deterministic=True, record_mean_var=True)
    torch.set_flush_denormal(False)
    generator = torch.get_rng_state()
    setup = prepare(settings)
    state = initial_state(setup)
    assert torch.equal(torch.get_rng_state(), generator)
    train(state, setup)
    assert denormals_count() and not torch.are_deterministic_algorithms_enabled()
    try:
        start(settings)
        assert not denormals_count() and torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def signal_at_step(monkeypatch: pytest.MonkeyPatch, number: int, signum: int) -> None:
    """Send this process the signal in the step of that number, counted from 1."""
    step, steps = loop.step, count(1)

    def step_with_signal(*arguments: Any) -> torch.Tensor:
        if next(steps) == number:
            os.kill(os.getpid(), signum)
        return step(*arguments)

    monkeypatch.setattr(loop, "step", step_with_signal)


@pytest.fixture(scope="module")
def uninterrupted(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> BayesianSettings:
    """Settings of a finished run of 3 epochs of 3 steps."""
    settings = bayesian_settings(pictures, tmp_path_factory.mktemp("uninterrupted"))
    run(settings)
    return settings


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_a_stopped_run_resumes_to_the_very_same_weights(
    uninterrupted: BayesianSettings,
    pictures: Path,
    tmp_path: Path,
    steps: int,
    signum: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = bayesian_settings(pictures, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        signal_at_step(patch, steps, signum)
        run(broken)
    assert stop.value.code == 128 + signum
    assert f"stopped by {signal.Signals(signum).name}" in (out := capsys.readouterr().out) and "--resume" in out
    run(replace(broken, resume=True))
    one, other = run_files(uninterrupted), run_files(broken)
    assert same(weights(one.last), weights(other.last)) and same(weights(one.best), weights(other.best))
    assert rows(one.reports / "history.csv") == rows(other.reports / "history.csv")
    progress = read_checkpoint(other.last)["progress"]
    assert progress["seconds"] == pytest.approx(sum(row["seconds"] for row in progress["history"]), rel=1e-9)


def test_a_killed_process_resumes_to_the_very_same_weights(pictures: Path, tmp_path: Path) -> None:
    """SIGKILL, between epochs and within them, to a real process; then SIGTERM, which saves first."""
    whole = bayesian_settings(pictures, tmp_path / "whole", n_epochs=6)
    run(whole)
    broken = tmp_path / "broken"
    command = [
        "main_bayesian.py", "--dataset", str(pictures), "--checkpoint_dir", str(broken),
        "--n_epochs", "6", "--batch_size", "64", "--lr_start", "3e-3", "--valid_ens", "2", "--test_ens", "3",
    ]  # fmt: skip
    resume: list[str] = []
    for signum, epochs in ((signal.SIGKILL, 1), (signal.SIGTERM, 2), (signal.SIGKILL, 1)):
        with Program(*command, *resume) as process:
            seen = 0
            for line in process.stdout:
                seen += line.startswith("epoch")
                if seen == epochs:
                    process.send_signal(signum)
                    break
            process.communicate(60)
        resume = ["--resume"]
    resumed = bayesian_settings(pictures, broken, n_epochs=6, resume=True)
    run(resumed)
    one, other = run_files(whole), run_files(resumed)
    assert same(weights(one.last), weights(other.last)) and same(weights(one.best), weights(other.best))
    assert not [path for path in broken.rglob("*") if path.name.startswith(".") and path.suffix == ".csv"]


def test_resuming_with_other_settings_or_nothing_is_refused(
    finished_run: BayesianSettings, pictures: Path, tmp_path: Path
) -> None:
    def resumed(**changes: Any) -> State | None:
        setup = prepare(replace(finished_run, resume=True, **changes))
        state = initial_state(setup)
        return state if resume(state, setup) else None

    with pytest.raises(UserError, match="there is no checkpoint .*last.pt"):
        resumed(checkpoint_dir=str(tmp_path))
    with pytest.raises(UserError, match="is of a run with lr_start 0.003, not 0.5"):
        resumed(lr_start=0.5)
    longer = resumed(n_epochs=2, lr_schedule="linear")
    assert longer is not None and longer.progress.epoch == 1


@pytest.mark.parametrize("lr_schedule", ["constant", "linear", "cosine"])
def test_rates_are_those_of_the_schedule_and_of_the_epochs_to_come(
    pictures: Path, tmp_path: Path, lr_schedule: str
) -> None:
    """Of 2 epochs of 3 steps, and of 4 from the middle on."""
    factor = {
        "constant": lambda done: 1.0,
        "linear": lambda done: 1 - done,
        "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    }[lr_schedule]
    settings = bayesian_settings(pictures, tmp_path, n_epochs=2, lr_schedule=lr_schedule)
    rates: list[list[float]] = []
    for changes in ({}, {"n_epochs": 4, "resume": True}):
        state, setup = start(replace(settings, **changes))
        state.optimizer.register_step_post_hook(
            lambda optimizer, *_: rates.append([group["lr"] for group in optimizer.param_groups])
        )
        train(state, setup)
    done = [step / 6 for step in range(6)] + [step / 12 for step in range(6, 12)]
    assert rates == [[3e-3 * factor(each), 3e-3 * 10.0 * factor(each)] for each in done]


@pytest.mark.parametrize("steps", [3, 4, 5])
def test_a_checkpoint_of_an_older_version_resumes_to_the_very_same_weights(
    uninterrupted: BayesianSettings, pictures: Path, tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has 'optimiser', whose groups hold no 'initial_lr', no scheduler, and no identity of its run and data."""
    broken = bayesian_settings(pictures, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        signal_at_step(patch, steps, signal.SIGTERM)
        run(broken)
    content = read_checkpoint(run_files(broken).last)
    del content["scheduler"], content["data"], content["progress"]["run"]
    content["optimiser"] = content.pop("optimizer")
    for group in content["optimiser"]["param_groups"]:
        del group["initial_lr"]
    write_checkpoint(run_files(broken).last, content)
    if run_files(broken).best.exists():
        best = read_checkpoint(run_files(broken).best)
        del best["run"], best["data"]
        write_checkpoint(run_files(broken).best, best)
    run(replace(broken, resume=True))
    assert same(weights(run_files(uninterrupted).last), weights(run_files(broken).last))
    assert same(weights(run_files(uninterrupted).best), weights(run_files(broken).best))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_network(
    finished_run: BayesianSettings, pictures: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished_run.checkpoint_dir, tmp_path, dirs_exist_ok=True)
    settings = bayesian_settings(pictures, tmp_path, lr_start=1e30)
    best = run_files(settings).best
    before = best.read_bytes()
    with pytest.raises(DivergedError, match=r"not finite at epoch \d, step \d of 3: try a smaller lr_start"):
        run(settings)
    assert (run_files(settings).reports / "earlier" / "1" / best.name).read_bytes() == before and not best.exists()


def test_patience_ends_a_run_that_gets_no_better(pictures: Path, tmp_path: Path) -> None:
    settings = frequentist_settings(pictures, tmp_path, n_epochs=30, patience=2, lr_start=1e-12)
    results = run(settings)
    history = rows(run_files(settings).reports / "history.csv")
    best = min(range(len(history)), key=lambda i: history[i]["valid_nll"])
    assert results["epochs"] == len(history) == best + 3 < 30


def test_mixed_precision_trains_and_tensorboard_watches(pictures: Path, tmp_path: Path) -> None:
    settings = bayesian_settings(pictures, tmp_path, n_epochs=2, amp=True, tensorboard=True)
    state, setup = start(settings)
    train(state, setup)
    results = loop.test(state, setup)
    assert results["validation"]["valid_nll"] < 0.8
    assert all(p.dtype == torch.float32 for p in state.net.parameters())
    reports = run_files(settings).reports
    events = EventAccumulator(str(reports / "tensorboard")).Reload()
    nlls = [row["valid_nll"] for row in rows(reports / "history.csv")]
    assert [event.step for event in events.Scalars("valid/nll")] == [1, 2]
    assert [event.value for event in events.Scalars("valid/nll")] == pytest.approx(nlls)
    assert [event.value for event in events.Scalars("test/nll")] == pytest.approx([results["test"]["nll"]])
    plugin = events.SummaryMetadata("_hparams_/session_start_info").plugin_data
    hparams = HParamsPluginData.FromString(plugin.content).session_start_info.hparams
    assert hparams["amp"].number_value == 1 and hparams["lr_start"].number_value == settings.lr_start
    assert hparams["priors"].string_value == json.dumps(settings.priors)
    run(replace(settings, n_epochs=1, amp=False))
    for folder in (reports, reports / "earlier" / "1"):  # curves of its own, and its test
        assert len(list((folder / "tensorboard").glob("events*"))) == 2


def test_a_new_run_of_another_family_leaves_the_twin_alone(
    finished_run: BayesianSettings, pictures: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished_run.checkpoint_dir, tmp_path, dirs_exist_ok=True)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    run(frequentist_settings(pictures, tmp_path, n_epochs=1))
    assert all(path.read_bytes() == content for path, content in files.items())


def test_a_new_run_keeps_the_network_of_the_earlier_one(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = bayesian_settings(pictures, tmp_path, n_epochs=1)
    run(settings)
    folder = tmp_path / "bars" / "bayesian"
    before = {path.name: path.read_bytes() for path in (folder / "model_lenet.pt", folder / "lenet" / "results.json")}
    assert "earlier" not in capsys.readouterr().out
    for number in (1, 2):
        run(settings)
        kept = folder / "lenet" / "earlier" / str(number)
        assert f"went to {kept}\n" in capsys.readouterr().out
        assert sorted(path.name for path in kept.iterdir()) == [
            "confusion.png", "history.csv", "history.png", "last.pt", "model_lenet.pt", "results.json"
        ]  # fmt: skip
    for name, content in before.items():
        assert (folder / "lenet" / "earlier" / "1" / name).read_bytes() == content


def test_a_prior_that_leaves_the_weights_no_room_is_told_from_a_learning_rate(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the KL is not finite at epoch 1, step 1 of 3: try a wider prior"):
        run(bayesian_settings(pictures, tmp_path, priors={"prior_sigma": 1e-300}))


def test_means_and_spreads_learn_at_rates_of_their_own() -> None:
    net = nn.Sequential(BBBLinear(3, 2), nn.Linear(2, 2))
    means, deviations = parameter_groups(net, lr=0.5, lr_spread_factor=4.0)
    assert (means["lr"], means["weight_decay"], deviations["lr"], deviations["weight_decay"]) == (0.5, 0.0, 2.0, 0.0)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    assert [names[id(p)] for p in means["params"]] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert [names[id(p)].split(".", 3)[3] for p in deviations["params"]] == 2 * ["rho"]
    (group,) = parameter_groups(nn.Linear(2, 2), lr=0.5)
    assert len(group["params"]) == 2
    assert len(parameter_groups(BBBLinear(3, 2), lr=0.5)[1]["params"]) == 2


def test_only_what_no_prior_pulls_on_decays() -> None:
    net = nn.Sequential(BBBLinear(3, 2), nn.BatchNorm1d(2), BBBLinear(2, 2, alpha_shape=(1, 1)))
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    groups = parameter_groups(net, lr=0.5, lr_spread_factor=4.0, weight_decay=0.1)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.5, 0.0), (0.5, 0.1), (2.0, 0.0)]
    means, others, deviations = ([names[id(p)] for p in group["params"]] for group in groups)
    assert means == ["0.weight", "0.bias"] and others == ["1.weight", "1.bias", "2.weight", "2.bias"]
    assert sorted(name.rpartition(".")[2] for name in deviations) == ["log_alpha", "log_alpha", "rho", "rho"]


@pytest.mark.parametrize(
    "content", ["{}", '{"test": {"accuracy": 1}, "settings": {"seed": 0}}', "[", "[" * 100_000, None]
)
def test_a_damaged_twin_does_not_end_a_run_that_is_done(
    content: str | None, finished_run: BayesianSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished_run.checkpoint_dir, tmp_path, dirs_exist_ok=True)
    settings = replace(finished_run, checkpoint_dir=str(tmp_path), resume=True)
    twin = tmp_path / "bars" / "frequentist" / "lenet" / "results.json"
    twin.parent.mkdir(parents=True)
    twin.write_text(content) if content is not None else twin.mkdir()
    assert run(settings)["epochs"] == 1
    message = f"{twin} is not the results of a run: delete it and train again"
    assert capsys.readouterr().err == f"not compared with the twin: {message}\n"
    with pytest.raises(UserError, match=message):
        compare(settings)


@pytest.mark.parametrize("place", ["training.state.load_data", "training.loop.versions"])
def test_ctrl_c_outside_of_training_is_one_line(
    place: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While data are read, and in the final test."""

    def interrupt(*arguments: Any, **settings: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(place, interrupt)
    with pytest.raises(SystemExit) as stop:
        main_frequentist.main([f"--dataset={pictures}", f"--checkpoint_dir={tmp_path}", "--n_epochs=1"])
    assert stop.value.code == 130 and capsys.readouterr().err == "interrupted\n"


def test_ctrl_c_in_imports_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)")
    for name in ("main_bayesian.py", "main_frequentist.py"):
        answer = subprocess.run(
            [sys.executable, name], cwd=ROOT, env={**script_environment(), "PYTHONPATH": str(tmp_path)},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert (answer.returncode, answer.stdout, answer.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_is_ignored_stays_so(signum: signal.Signals) -> None:
    before = signal.signal(signum, signal.SIG_IGN)
    try:
        with stop_requests() as request:
            os.kill(os.getpid(), signum)
            assert request.signum == 0
        assert signal.getsignal(signum) is signal.SIG_IGN
    finally:
        signal.signal(signum, before)


@pytest.mark.parametrize(("number", "signum"), [(1, signal.SIGINT), (3, signal.SIGTERM)])
def test_a_signal_during_validation_stops_the_run(
    number: int,
    signum: int,
    uninterrupted: BayesianSettings,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = bayesian_settings(pictures, tmp_path)
    validate, validations = loop.validate, count(1)

    def validate_with_signal(*arguments: Any) -> dict[str, float]:
        if next(validations) == number:
            os.kill(os.getpid(), signum)
        return validate(*arguments)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(loop, "validate", validate_with_signal)
        run(settings)
    assert stop.value.code == 128 + signum
    output = capsys.readouterr().out
    assert f"stopped by {signal.Signals(signum).name} after epoch {number}; " in output and "\ntest " not in output
    run(replace(settings, resume=True))
    assert same(weights(run_files(uninterrupted).last), weights(run_files(settings).last))


class Killed(BaseException):
    """As SIGKILL for a run's files: nothing after it is written."""


def kill_at_step(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    step, steps = loop.step, count(1)

    def step_or_die(*arguments: Any) -> torch.Tensor:
        if next(steps) == number:
            raise Killed
        return step(*arguments)

    monkeypatch.setattr(loop, "step", step_or_die)


def test_what_a_killed_run_has_not_written_is_not_taken_from_an_earlier_run(
    finished_run: BayesianSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished_run.checkpoint_dir, tmp_path, dirs_exist_ok=True)
    settings = replace(finished_run, checkpoint_dir=str(tmp_path))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_step(patch, 2)
        run(settings)
    with pytest.raises(UserError, match=r"there is no checkpoint .*last\.pt"):
        run(replace(settings, resume=True))


def test_a_run_without_a_finite_validation_is_not_tested_on_an_earlier_network(
    finished_run: BayesianSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished_run.checkpoint_dir, tmp_path, dirs_exist_ok=True)
    validate = loop.validate
    monkeypatch.setattr(loop, "validate", lambda *arguments: validate(*arguments) | {"valid_nll": math.inf})
    with pytest.raises(UserError, match="the validation NLL is inf after epoch 1: try a smaller lr_start"):
        run(replace(finished_run, checkpoint_dir=str(tmp_path)))


def test_files_of_one_run_have_one_identity_and_the_network_of_another_is_not_tested(
    finished_run: BayesianSettings, uninterrupted: BayesianSettings, tmp_path: Path
) -> None:
    files, other = run_files(finished_run), run_files(uninterrupted)
    last, best = read_checkpoint(files.last), read_checkpoint(files.best)
    results = json.loads((files.reports / "results.json").read_text())
    assert last["progress"]["run"] == best["run"] == results["run"] != read_checkpoint(other.best)["run"]
    assert last["data"] == best["data"] == results["data"] == read_checkpoint(other.best)["data"]

    shutil.copytree(finished_run.checkpoint_dir, tmp_path, dirs_exist_ok=True)
    settings = replace(finished_run, checkpoint_dir=str(tmp_path), resume=True)
    shutil.copy(other.best, run_files(settings).best)
    with pytest.raises(UserError, match=r"model_lenet\.pt is the network of another run than .*last\.pt"):
        run(settings)


@pytest.mark.parametrize("with_identity", [True, False])
def test_a_run_is_not_resumed_on_other_images(
    finished_run: BayesianSettings, pictures: Path, tmp_path: Path, with_identity: bool
) -> None:
    """With the class that came last renamed, so that it comes first; a file of an older version shows only that."""
    folder, last, best = (
        tmp_path / "bars",
        tmp_path / "bars/bayesian/last.pt",
        tmp_path / "bars/bayesian/model_lenet.pt",
    )
    shutil.copytree(pictures, folder)
    shutil.copytree(finished_run.checkpoint_dir, tmp_path, dirs_exist_ok=True)
    for split in ("train", "test"):
        (folder / split / "upright").rename(folder / split / "a bar")
    for path in (last, best):
        content = read_checkpoint(path)
        content["settings"]["dataset"] = str(folder)
        if not with_identity:
            content.pop("run", None), content.pop("data"), content.get("progress", {}).pop("run", None)
        write_checkpoint(path, content)
    message = "is of a run on other images" if with_identity else "is the network of another run"
    with pytest.raises(UserError, match=message):
        run(replace(finished_run, dataset=str(folder), checkpoint_dir=str(tmp_path), resume=True))


@pytest.mark.parametrize(("batches", "epochs"), [(3, 1), (4, 2)])
def test_fewer_epochs_than_a_run_has_begun_are_refused(
    pictures: Path, tmp_path: Path, batches: int, epochs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = bayesian_settings(pictures, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        signal_at_step(patch, batches, signal.SIGTERM)
        run(settings)
    if epochs > 1:
        with pytest.raises(UserError, match=f"in epoch {epochs}, beyond n_epochs {epochs - 1}: give at least {epochs}"):
            run(replace(settings, n_epochs=epochs - 1, resume=True))
    assert run(replace(settings, n_epochs=epochs, resume=True))["epochs"] == epochs


def test_a_forgotten_resume_loses_no_interrupted_run(
    uninterrupted: BayesianSettings,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = bayesian_settings(pictures, tmp_path)
    files = run_files(settings)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        signal_at_step(patch, 4, signal.SIGTERM)
        run(settings)
    run(replace(settings, net_type="3conv3fc", n_epochs=1))  # whose last.pt is in the same place
    kept = run_files(replace(settings, net_type="3conv3fc")).reports / "earlier" / "1"
    assert f"last.pt of an earlier run went to {kept}\n" in capsys.readouterr().out
    (kept / "last.pt").rename(files.last)
    run(replace(settings, resume=True))
    assert same(weights(files.last), weights(run_files(uninterrupted).last))


def test_a_signal_to_the_whole_group_ends_workers_after_the_step_is_saved(pictures: Path, tmp_path: Path) -> None:
    code = (
        "import sys, images; images.folders.free_memory = lambda: 0.0; import main_bayesian; "
        "main_bayesian.main(sys.argv[1:])"
    )
    words = [f"--dataset={pictures}", f"--checkpoint_dir={tmp_path}", "--batch_size=20", "--n_epochs=500",
             "--num_workers=2", "--valid_ens=1"]  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], cwd=ROOT, env=script_environment(), start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout and any("epoch   1/500" in line for line in process.stdout)
        os.killpg(process.pid, signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 143 and "stopped by SIGTERM" in output and "Traceback" not in errors
    assert (tmp_path / "bars" / "bayesian" / "last.pt").exists()
