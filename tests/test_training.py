"""Runs from beginning to end: what they write, that they resume exactly, and how they stop."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from conftest import ROOT, Script, script_environment

import config_bayesian
import config_frequentist
from images import load_data, normalize
from inference.metrics import scores
from inference.prediction import posterior_predictive
from layers import kl_divergence
from models import load_network
from support import UserError
from training.loop import Run, run
from training.settings import BayesianSettings, Settings, from_config


def bayesian(pictures: Path, folder: Path, **changes: Any) -> BayesianSettings:
    changes = {"n_epochs": 3, "batch_size": 64, "lr_start": 3e-3, "valid_ens": 2, "test_ens": 3, **changes}
    settings = from_config(BayesianSettings, config_bayesian)
    return replace(settings, dataset=str(pictures), checkpoint_dir=str(folder), **changes)


def frequentist(pictures: Path, folder: Path, **changes: Any) -> Settings:
    settings = from_config(Settings, config_frequentist)
    changes = {"n_epochs": 3, "batch_size": 64, **changes}
    return replace(settings, dataset=str(pictures), checkpoint_dir=str(folder), **changes)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["weights"]  # type: ignore[no-any-return]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def rows(path: Path) -> list[dict[str, float]]:
    with path.open() as stream:
        return [{k: float(v) for k, v in row.items() if k != "seconds"} for row in csv.DictReader(stream)]


def test_a_bayesian_run_learns_and_leaves_all_that_it_promises(pictures: Path, tmp_path: Path) -> None:
    settings = bayesian(pictures, tmp_path, n_epochs=12, batch_size=16)
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
    one, other = Run(bayesian(pictures, tmp_path)), Run(frequentist(pictures, tmp_path))
    for split in ("train", "valid", "test"):
        assert torch.equal(getattr(one.data, split).images, getattr(other.data, split).images)
    assert torch.equal(one.net.conv1.weight, other.net.conv1.weight)  # type: ignore[union-attr]
    found = one.fit(), other.fit()
    capsys.readouterr()
    run(frequentist(pictures, tmp_path))
    table = capsys.readouterr().out
    for results in found:
        assert f"{results['test']['accuracy']:.2%}" in table and f"{results['parameters']:,}" in table
    assert "settings that differ: lr_start 0.003 and 0.001" in table
    arguments = ("--compare", "--dataset", pictures, "--checkpoint_dir", tmp_path)
    assert script("main_bayesian.py", *arguments).stdout.splitlines()[0].split() == ["test", "bayesian", "frequentist"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train_ens": 2, "layer_type": "flipout", "beta_type": "Soenderby"},
        {"alpha_shape": (1, 1), "layer_type": "bbb"},
    ],
    ids=str,
)
def test_the_same_seed_gives_the_same_weights(pictures: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    for name in ("one", "two"):
        Run(bayesian(pictures, tmp_path / name, n_epochs=1, **changes)).fit()
    last = [weights(tmp_path / name / "bars" / "bayesian" / "last.pt") for name in ("one", "two")]
    assert same(*last)
    Run(bayesian(pictures, tmp_path / "three", n_epochs=1, seed=1, **changes)).fit()
    assert not same(last[0], weights(tmp_path / "three" / "bars" / "bayesian" / "last.pt"))


class _Stop:
    """Asks a run to stop after so many steps, as a signal would."""

    def __init__(self, run: Run, steps: int, signum: int) -> None:
        self.run, self.steps, self.signum = run, steps, signum
        self.step = run._step
        run._step = self  # type: ignore[method-assign, assignment]

    def __call__(self, *arguments: torch.Tensor) -> torch.Tensor:
        self.steps -= 1
        if self.steps == 0:
            os.kill(os.getpid(), self.signum)
        return self.step(*arguments)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_a_stopped_run_resumes_to_the_very_same_weights(
    pictures: Path, tmp_path: Path, steps: int, signum: int, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = bayesian(pictures, tmp_path / "whole")  # 3 epochs of 3 steps
    broken = bayesian(pictures, tmp_path / "broken")
    Run(whole).fit()
    stopped = Run(broken)
    _Stop(stopped, steps, signum)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        stopped.fit()
    assert stop.value.code == 128 + signum
    assert f"stopped by {signal.Signals(signum).name}" in (out := capsys.readouterr().out) and "--resume" in out
    Run(replace(broken, resume=True)).fit()
    folders = [tmp_path / name / "bars" / "bayesian" for name in ("whole", "broken")]
    for name in ("last.pt", "model_lenet.pt"):
        assert same(weights(folders[0] / name), weights(folders[1] / name))
    histories = [rows(folder / "lenet" / "history.csv") for folder in folders]
    assert histories[0] == histories[1]


def test_a_killed_process_resumes_to_the_very_same_weights(pictures: Path, tmp_path: Path) -> None:
    """SIGKILL, between epochs and within them, to a real process; then SIGTERM, which saves first."""
    Run(bayesian(pictures, tmp_path / "whole", n_epochs=6)).fit()
    broken = tmp_path / "broken"
    command = [
        sys.executable, "main_bayesian.py", "--dataset", str(pictures), "--checkpoint_dir", str(broken),
        "--n_epochs", "6", "--batch_size", "64", "--lr_start", "3e-3", "--valid_ens", "2", "--test_ens", "3",
    ]  # fmt: skip
    resume: list[str] = []
    for signum, epochs in ((signal.SIGKILL, 1), (signal.SIGTERM, 2), (signal.SIGKILL, 1)):
        process = subprocess.Popen(
            [*command, *resume], cwd=ROOT, env=script_environment(), stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        seen = 0
        for line in process.stdout:
            seen += line.startswith("epoch")
            if seen == epochs:
                process.send_signal(signum)
                break
        process.stdout.read()
        process.wait(60)
        resume = ["--resume"]
    Run(bayesian(pictures, broken, n_epochs=6, resume=True)).fit()
    for name in ("last.pt", "model_lenet.pt"):
        found = [weights(folder / "bars" / "bayesian" / name) for folder in (tmp_path / "whole", broken)]
        assert same(*found)
    assert not [path for path in broken.rglob("*") if path.name.startswith(".") and path.suffix == ".csv"]


def test_resuming_with_other_settings_or_nothing_is_refused(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no checkpoint .*last.pt"):
        Run(bayesian(pictures, tmp_path, resume=True)).resume()
    Run(bayesian(pictures, tmp_path, n_epochs=1)).fit()
    with pytest.raises(UserError, match="is of a run with lr_start 0.003, not 0.5"):
        Run(bayesian(pictures, tmp_path, resume=True, lr_start=0.5)).resume()
    longer = Run(bayesian(pictures, tmp_path, resume=True, n_epochs=2, lr_schedule="linear"))
    assert longer.resume() and longer.progress.epoch == 1


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_network(
    pictures: Path, tmp_path: Path
) -> None:
    Run(bayesian(pictures, tmp_path, n_epochs=1)).fit()
    best = tmp_path / "bars" / "bayesian" / "model_lenet.pt"
    before = best.read_bytes()
    with pytest.raises(UserError, match=r"not finite at epoch \d, step \d of 3: try a smaller lr_start"):
        Run(bayesian(pictures, tmp_path, lr_start=1e30)).fit()
    assert best.read_bytes() == before


def test_patience_ends_a_run_that_gets_no_better(pictures: Path, tmp_path: Path) -> None:
    settings = frequentist(pictures, tmp_path, n_epochs=30, patience=2, lr_start=1e-12)
    results = Run(settings).fit()
    history = rows(tmp_path / "bars" / "frequentist" / "lenet" / "history.csv")
    best = min(range(len(history)), key=lambda i: history[i]["valid_nll"])
    assert results["epochs"] == len(history) == best + 3 < 30


def test_mixed_precision_trains_and_tensorboard_watches(pictures: Path, tmp_path: Path) -> None:
    run = Run(bayesian(pictures, tmp_path, n_epochs=2, amp=True, tensorboard=True))
    assert run.fit()["validation"]["valid_nll"] < 0.8
    assert all(p.dtype == torch.float32 for p in run.net.parameters())
    reports = tmp_path / "bars" / "bayesian" / "lenet"
    assert len(list((reports / "tensorboard").glob("events*"))) == 1
    Run(bayesian(pictures, tmp_path, n_epochs=1, tensorboard=True)).fit()
    assert len(list((reports / "tensorboard").glob("events*"))) == 1  # a curve of its own
    assert len(list((reports / "earlier" / "1" / "tensorboard").glob("events*"))) == 1


def test_a_compiled_run_leaves_a_network_like_any_other(pictures: Path, tmp_path: Path) -> None:
    compiled = Run(bayesian(pictures, tmp_path, n_epochs=1, compile=True))
    compiled.fit()
    net = load_network(compiled.places.best).net
    assert same(net.state_dict(), compiled.net.state_dict())


def test_a_new_run_of_another_family_leaves_the_twin_alone(pictures: Path, tmp_path: Path) -> None:
    Run(bayesian(pictures, tmp_path, n_epochs=1)).fit()
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    Run(frequentist(pictures, tmp_path, n_epochs=1)).fit()
    assert all(path.read_bytes() == content for path, content in files.items())


def test_a_run_anew_keeps_the_network_of_the_earlier_one(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = bayesian(pictures, tmp_path, n_epochs=1)
    Run(settings).fit()
    folder = tmp_path / "bars" / "bayesian"
    before = {path.name: path.read_bytes() for path in (folder / "model_lenet.pt", folder / "lenet" / "results.json")}
    assert "earlier" not in capsys.readouterr().out
    for number in (1, 2):
        Run(settings).fit()
        kept = folder / "lenet" / "earlier" / str(number)
        assert f"went to {kept}\n" in capsys.readouterr().out
        assert sorted(path.name for path in kept.iterdir()) == [
            "history.csv", "history.png", "model_lenet.pt", "results.json"
        ]  # fmt: skip
    for name, content in before.items():
        assert (folder / "lenet" / "earlier" / "1" / name).read_bytes() == content


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
        assert process.stdout and "epoch   1/500" in process.stdout.readline()
        os.killpg(process.pid, signal.SIGTERM)
        said, complaints = process.communicate(timeout=60)
    assert process.returncode == 143 and "stopped by SIGTERM" in said and "Traceback" not in complaints
    assert (tmp_path / "bars" / "bayesian" / "last.pt").exists()
