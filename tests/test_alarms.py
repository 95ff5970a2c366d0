"""Alarms sound when something is wrong, once, and not otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import bayesian_settings

import training.alarms
from layers import BBBLinear
from training import Alarms, run


def row(epoch: int, accuracy: float = 0.9, kl: float = 100.0) -> dict[str, float]:
    return {"epoch": epoch, "valid_accuracy": accuracy, "train_kl": kl}


def test_accuracy_at_chance_after_a_quarter_of_the_run() -> None:
    alarms = Alarms(BBBLinear(2, 10), classes=10, epochs=8)
    assert alarms.check([row(1, 0.1)], 1000) == []
    (warning,) = alarms.check([row(2, 0.11)], 1000)
    assert warning.startswith("after 2 of 8 epochs validation accuracy is 11.0%, no better than chance")
    assert alarms.check([row(3, 0.1)], 1000) == []
    assert Alarms(BBBLinear(2, 10), 10, 8).check([row(2, 0.15)], 1000) == []
    (learned,) = Alarms(BBBLinear(2, 10, priors={"learn_prior_sigma": True}), 10, 8).check([row(2, 0.11)], 1000)
    assert "Soenderby" in learned and "Soenderby" not in warning


def test_two_validation_images_say_nothing_about_chance() -> None:
    assert Alarms(BBBLinear(2, 2), 2, 8).check([row(8, 1.0)], 2) == []


def test_deviations_that_stay_where_they_started() -> None:
    """By the end of a run of 300 steps or more; a quarter of σ is a move of ρ by .22."""
    net = BBBLinear(3, 2)
    alarms = {batches: Alarms(net, 2, 100, batches) for batches in (0, 2, 3)}
    with torch.no_grad():
        net.posterior["weight"].rho += 0.2
    assert alarms[3].check([row(99)], 100) == alarms[2].check([row(100)], 100) == alarms[0].check([row(100)], 100) == []
    (warning,) = alarms[3].check([row(100)], 100)
    assert (
        warning.startswith("in 300 steps the median posterior deviation has changed by only 2")
        and "lr_spread" in warning
    )
    with torch.no_grad():
        net.posterior["weight"].rho += 0.05
    alarms[3].reported.clear()
    assert alarms[3].check([row(100)], 100) == []
    assert Alarms(torch.nn.Linear(3, 2), 2, 100, 3).check([row(100)], 100) == []


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"lr_spread_factor": 1.0}, "try a larger lr_spread_factor"),
        ({"optimizer": "ivon", "curvature_decay": 0.99999}, "try a smaller curvature_decay"),
        ({"lr_spread_factor": 100.0}, ""),
    ],
)
def test_a_run_says_that_its_deviations_have_not_moved(
    changes: dict[str, Any],
    warning: str,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training.alarms, "STEPS", 6)
    run(bayesian_settings(pictures, tmp_path, n_epochs=2, valid_ens=1, test_ens=1, **changes))
    errors = capsys.readouterr().err
    assert ("posterior deviation has changed by only" in errors) == bool(warning) and warning in errors


def test_a_kl_that_grows_without_bound() -> None:
    alarms = Alarms(BBBLinear(2, 2), classes=2, epochs=100)
    growing = [row(epoch, kl=100 * 1.3**epoch) for epoch in range(8)]
    assert [bool(alarms.check(growing[: n + 1], 100)) for n in range(8)] == [False] * 5 + [True, False, False]
    slowly = [row(epoch, kl=100 + epoch) for epoch in range(8)]
    assert not Alarms(BBBLinear(2, 2), 2, 100).check(slowly, 100)


@pytest.mark.parametrize(("rho", "word"), [(-30.0, "deterministic"), (200.0, "noise"), (-5.0, None)])
def test_deviations_that_have_collapsed_or_exploded(rho: float, word: str | None) -> None:
    net = BBBLinear(3, 2, priors={"posterior_rho_initial": (rho, 0.0)})
    warnings = Alarms(net, 2, 100).check([row(1)], 100)
    assert [word in line for line in warnings if word] == ([True] if word else [])
    with torch.no_grad():
        net.posterior["bias"].rho.fill_(-5)
    assert Alarms(net, 2, 100).check([row(1)], 100) == []


def test_a_run_reports_it_once(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(bayesian_settings(pictures, tmp_path, n_epochs=4, batch_size=128, lr_start=1e-9, valid_ens=1, test_ens=1))
    captured = capsys.readouterr()
    assert captured.err.count("warning: after 1 of 4 epochs validation accuracy is") == 1
    assert captured.out.count("epoch ") >= 4
