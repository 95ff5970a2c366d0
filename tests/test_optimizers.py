"""The optimizers of a run: what each does to which parameters, its rates, and that it resumes exactly."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, bayesian_settings, frequentist_settings, run_files, same, weights
from torch import nn

from layers import BBBLinear
from models import read_checkpoint, write_checkpoint
from support import UserError
from tests.processes import run_together
from training import Settings, build_optimizer, build_scheduler, initial_state, loop, prepare, restore, run, start

KINDS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "lr_start": 0.05, "lr_spread_factor": 0.2, "weight_decay": 1e-3},
    "ivon": {"optimizer": "ivon", "lr_start": 0.2, "curvature_decay": 0.9},
    "adam": {"weight_decay": 1e-2, "alpha_shape": (1, 1)},
}
TWINS: dict[str, dict[str, Any]] = {
    "twin by sgd": {"optimizer": "sgd", "lr_start": 0.05, "weight_decay": 1e-3},
    "twin by adam": {"weight_decay": 1e-2},
}

DISTRIBUTED = ("sgd", "ivon")


def settings_of(kind: str, pictures: Path, folder: Path, **changes: Any) -> Settings:
    changes = {"warmup_epochs": 0.5, "lr_schedule": "cosine", "n_epochs": 2, **changes}
    if kind in TWINS:
        return frequentist_settings(pictures, folder, **TWINS[kind], **changes)
    return bayesian_settings(pictures, folder, valid_ens=1, test_ens=1, **KINDS[kind], **changes)


def small_net() -> nn.Sequential:
    return nn.Sequential(BBBLinear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), BBBLinear(4, 3, alpha_shape=(1, 1)))


def gradients(net: nn.Module, step: int) -> None:
    for index, parameter in enumerate(net.parameters()):
        generator = torch.Generator().manual_seed(100 * step + index)
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def test_sgd_moves_means_and_adam_moves_deviations_as_the_two_do_alone(pictures: Path, tmp_path: Path) -> None:
    """By the formulas of both, written out."""
    settings = bayesian_settings(
        pictures, tmp_path, optimizer="sgd", lr_start=0.5, lr_spread_factor=0.02, momentum=0.8, weight_decay=0.1
    )
    net = small_net().double()
    optimizer = build_optimizer(net, settings, 100)
    expected = {name: p.detach().clone() for name, p in net.named_parameters()}
    first = {name: torch.zeros_like(p) for name, p in expected.items()}
    second = copy.deepcopy(first)
    for step in range(1, 6):
        gradients(net, step)
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None
            if name.endswith((".rho", ".log_alpha")):  # Kingma & Ba 2015, algorithm 1
                first[name] = 0.9 * first[name] + 0.1 * parameter.grad
                second[name] = 0.999 * second[name] + 0.001 * parameter.grad.square()
                corrected = (second[name] / (1 - 0.999**step)).sqrt() + 1e-8
                expected[name] -= 0.5 * 0.02 * first[name] / (1 - 0.9**step) / corrected
            else:
                decay = 0.0 if name.startswith("0.") else 0.1  # the Gaussian prior pulls on the means of layer 0
                first[name] = 0.8 * first[name] + parameter.grad + decay * expected[name]
                expected[name] -= 0.5 * first[name]
        optimizer.step()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name])


def test_weight_decay_with_adam_is_decoupled_from_its_scaling(pictures: Path, tmp_path: Path) -> None:
    """Loshchilov & Hutter 2019: with a gradient of 0, w ← (1 − lr · decay) w, which Adam's scaling would make lr."""
    net = nn.Linear(3, 2)
    before = net.weight.detach().clone()
    optimizer = build_optimizer(net, frequentist_settings(pictures, tmp_path, lr_start=0.1, weight_decay=0.2), 100)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(net.weight.detach(), 0.98 * before)


@pytest.mark.parametrize("kind", [*KINDS, *TWINS])
def test_rates_of_every_group_warm_up_and_fall(kind: str, pictures: Path, tmp_path: Path) -> None:
    """With 4 steps per epoch, 1.5 of 6 epochs are 6 steps to rise and 18 to fall."""
    settings = settings_of(kind, pictures, tmp_path, warmup_epochs=1.5, n_epochs=6, lr_schedule="linear")
    net = small_net() if kind != "ivon" else nn.Sequential(BBBLinear(2, 2))
    optimizer = build_optimizer(net, settings, 100)
    scheduler = build_scheduler(optimizer, settings, batches=4)
    rates = []
    for _ in range(24):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    factors = [(step + 1) / 6 for step in range(6)] + [1 - step / 18 for step in range(18)]
    starts = [group["initial_lr"] for group in optimizer.param_groups]
    for rate, factor in zip(rates, factors, strict=True):
        assert rate == pytest.approx([start * factor for start in starts], rel=1e-12)


def stop_at_step(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    step, steps = loop.step, count(1)

    def step_with_signal(*arguments: Any) -> torch.Tensor:
        if next(steps) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    monkeypatch.setattr(loop, "step", step_with_signal)


@pytest.mark.parametrize("kind", [*KINDS, *TWINS])
def test_a_stopped_run_resumes_to_the_very_same_weights(
    kind: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = (settings_of(kind, pictures, tmp_path / name) for name in ("whole", "broken"))
    before = weights_at_start(whole)
    run(whole)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stop_at_step(patch, 2)
        run(broken)
    run(replace(broken, resume=True))
    one, other = (read_checkpoint(run_files(settings).last) for settings in (whole, broken))
    assert same(one["weights"], other["weights"]) and same(one["optimizer"], other["optimizer"])
    learned = {name: value for name, value in one["weights"].items() if value.dim() and ".prior." not in name}
    assert not any(same(value, before[name]) for name, value in learned.items())


def weights_at_start(settings: Settings) -> dict[str, Any]:
    return {name: value.clone() for name, value in initial_state(prepare(settings)).net.state_dict().items()}


def test_two_processes_resume_to_the_very_same_weights(pictures: Path, tmp_path: Path) -> None:
    """A stop reaches one process in the middle of an epoch. By Adam, tests/kills.py does it."""
    processes = run_together(2, ROOT / "tests" / "distributed_resume.py", pictures, tmp_path)
    assert [process.returncode for process in processes] == [0, 0], processes
    assert "".join(process.stdout for process in processes).count("resuming") == len(DISTRIBUTED)
    for kind in DISTRIBUTED:
        whole, broken = (settings_of(kind, pictures, tmp_path / kind / name) for name in ("whole", "broken"))
        assert same(weights(run_files(whole).last), weights(run_files(broken).last)), kind


Content = dict[str, Any]


def _state(index: int, **changes: Any) -> Callable[[Content], object]:
    return lambda content: content["optimizer"]["state"][index].update(changes)


def _group(index: int, **changes: Any) -> Callable[[Content], object]:
    return lambda content: content["optimizer"]["param_groups"][index].update(changes)


RHO = 10  # of the first layer's weight: LeNet has ten means before it
FORGED: list[tuple[str, Callable[[Content], object], str]] = [
    ("sgd", _state(0, momentum_buffer=torch.zeros(1)), "momentum_buffer of parameter 0 is not a torch.float32 tensor"),
    ("sgd", _state(0, momentum_buffer=torch.zeros(6, 1, 5, 5).double()), "momentum_buffer of parameter 0 is not"),
    ("sgd", _state(0, exp_avg=torch.zeros(6, 1, 5, 5)), "state of parameter 0 holds momentum_buffer, exp_avg"),
    ("sgd", _state(RHO, exp_avg_sq=torch.zeros(6, 1, 5)), f"exp_avg_sq of parameter {RHO} is not a torch.float32"),
    ("sgd", lambda content: content["optimizer"]["state"].update({RHO: {}}), f"state of parameter {RHO} holds"),
    ("sgd", _group(0, momentum=2.0), "its optimizer has the momentum 2.0"),
    ("sgd", _group(0, momentum=torch.zeros(2)), "cannot be resumed"),
    ("sgd", _group(0, nesterov=True), "its optimizer has the nesterov True"),
    ("sgd", _group(1, initial_lr=1e9), "its optimizer has the initial_lr 1000000000.0"),
    ("sgd", _group(1, maximize=True), "its optimizer has the maximize True"),
    ("sgd", lambda content: content["optimizer"]["param_groups"].reverse(), "its optimizer has other parameters"),
    ("twin by sgd", _group(0, weight_decay=9.0), "its optimizer has the weight_decay 9.0"),
    ("twin by sgd", _state(9, step=torch.tensor(1.0)), "state of parameter 9 holds momentum_buffer, step"),
    ("ivon", _state(0, momentum=torch.zeros(6, 1, 5)), "momentum of parameter 0 is not a torch.float32 tensor"),
    ("ivon", _state(0, start=torch.ones(6)), r"start of parameter 0 is not a torch.float32 tensor \(\)"),
    ("ivon", _state(0, step=5), "step of parameter 0 is not a torch.float32 tensor"),
    ("ivon", lambda content: content["optimizer"]["state"].update({RHO: {"step": torch.zeros(())}}), "10 holds step"),
    ("ivon", _group(0, curvature_decay=1.5), "its optimizer has the curvature_decay 1.5: expected 0.9"),
    ("ivon", _group(0, train_size=1), "its optimizer has the train_size 1: expected 180"),
    ("adam", _state(0, exp_avg=torch.zeros(6, 1, 5, 50)), "exp_avg of parameter 0 is not a torch.float32 tensor"),
]


@pytest.fixture(scope="module")
def saved(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Settings, Content]]:
    """Per kind a run of one epoch, with warm-up, and the content of its `last.pt`."""
    folder = tmp_path_factory.mktemp("saved")
    runs = {kind: settings_of(kind, pictures, folder / kind, n_epochs=1) for kind in {kind for kind, *_ in FORGED}}
    for settings in runs.values():
        run(settings)
    return {kind: (settings, read_checkpoint(run_files(settings).last)) for kind, settings in runs.items()}


@pytest.mark.parametrize(("kind", "change", "message"), FORGED)
def test_a_forged_optimizer_state_is_one_line_before_it_is_used(
    kind: str, change: Callable[[Content], object], message: str, saved: dict[str, tuple[Settings, Content]]
) -> None:
    settings, content = saved[kind]
    content = copy.deepcopy(content)
    change(content)
    state, setup = start(settings)
    with pytest.raises(UserError, match=message) as refused:
        restore(state, setup, content)
    assert "\n" not in str(refused.value)


def test_a_run_of_before_there_was_a_choice_resumes_by_adam_alone(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = (bayesian_settings(pictures, tmp_path / name, n_epochs=2) for name in ("whole", "broken"))
    run(whole)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stop_at_step(patch, 4)
        run(broken)
    content = read_checkpoint(run_files(broken).last)
    for name in ("optimizer", "momentum", "weight_decay", "warmup_epochs", "temperature"):
        del content["settings"][name]
    write_checkpoint(run_files(broken).last, content)
    for changes in ({"optimizer": "sgd"}, {"weight_decay": 0.1}, {"warmup_epochs": 1}, {"temperature": 0.5}):
        ((name, value),) = changes.items()
        with pytest.raises(UserError, match=rf"is of a run with {name} ('adam'|0\.0|1\.0), not {value!r}"):
            run(replace(broken, resume=True, **changes))
    run(replace(broken, resume=True))
    assert same(weights(run_files(whole).last), weights(run_files(broken).last))
