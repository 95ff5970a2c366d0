"""What matters: the planned settings with one change at a time, on the embedded digits, scored by validation only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from experiments.running import configured
from support import locked, write_json
from training import Setup, State, start, train

SEEDS = 3
COMMON: Mapping[str, Any] = {"dataset": "MNIST5k", "valid_size": 0.25, "batch_size": 128, "lr_start": 3e-3}
AS_PLANNED = "as planned"
CHANGES: Mapping[str, Mapping[str, Any]] = {
    AS_PLANNED: {},
    "β = 1": {"beta_type": 1.0},
    "β = 1, KL warmed up (Soenderby)": {"beta_type": "Soenderby"},
    "β = 1, KL weighted by Blundell's rule": {"beta_type": "Blundell"},
    "β = 0.3": {"beta_type": 0.3},
    "β = 0.1": {"beta_type": 0.1},
    "β = 0.01": {"beta_type": 0.01},
    "β = 0.003": {"beta_type": 0.003},
    "local reparameterization": {"layer_type": "lrt"},
    "flipout": {"layer_type": "flipout"},
    "two samples per step": {"train_ens": 2},
    "alpha posterior": {"alpha_shape": (1, 1)},
    "prior σ 0.1": {"priors": {"prior_sigma": 0.1}},
    "prior σ 0.3": {"priors": {"prior_sigma": 0.3}},
    "prior σ 3": {"priors": {"prior_sigma": 3.0}},
    "ρ from −7 (σ 0.0009)": {"priors": {"posterior_rho_initial": (-7.0, 0.1)}},
    "ρ from −3 (σ 0.05)": {"priors": {"posterior_rho_initial": (-3.0, 0.1)}},
    "ρ from −2 (σ 0.13)": {"priors": {"posterior_rho_initial": (-2.0, 0.1)}},
    "ρ learns as fast as μ": {"lr_spread_factor": 1.0},
    "ρ learns 3 times as fast": {"lr_spread_factor": 3.0},
    "ρ learns 30 times as fast": {"lr_spread_factor": 30.0},
    "softplus": {"activation_type": "softplus"},
    "learning rate 1e-3": {"lr_start": 1e-3},
    "learning rate 1e-2": {"lr_start": 1e-2},
    "constant rate": {"lr_schedule": "constant"},
    "cosine rate": {"lr_schedule": "cosine"},
    "no shifts": {"random_shift": 0},
    "shifts of 1": {"random_shift": 1},
    "shifts of 4": {"random_shift": 4},
    "batches of 32": {"batch_size": 32},
    "batches of 512": {"batch_size": 512},
    "15 epochs": {"n_epochs": 15},
    "60 epochs": {"n_epochs": 60},
    "weights averaged over 100 steps": {"average_decay": 0.99},
    "constant rate, weights averaged over 100 steps": {"lr_schedule": "constant", "average_decay": 0.99},
}


def run_ablations(path: Path, checkpoints: Path) -> None:
    """Run the changes that are not in `path` yet, and add the results of each as it ends.

    Args:
        path: a JSON file of the best epochs' figures, by change.
        checkpoints: a folder whose `ablations` is locked meanwhile.

    Raises:
        UserError: another process runs them.
    """
    with locked(checkpoints / "ablations"):
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for change in [name for name in CHANGES if name not in results]:
            print(f"\n{change}", flush=True)
            best = list(_best_epochs(change))
            results[change] = {name: [row[name] for row in best] for name in ("valid_nll", "valid_accuracy")}
            write_json(path, {name: results[name] for name in CHANGES if name in results})


def _best_epochs(change: str) -> Iterator[Mapping[str, float]]:
    """The figures of the best epoch, per seed."""
    for seed in range(SEEDS):
        with TemporaryDirectory() as folder:
            state, setup, evaluated = start_changed(
                {**COMMON, **CHANGES[change], "seed": seed, "checkpoint_dir": folder}
            )
            train(state, setup, evaluated)
        yield state.progress.history[state.progress.best_epoch - 1]


def start_changed(changes: Mapping[str, Any]) -> tuple[State, Setup, nn.Module]:
    """Start a Bayesian run with these settings changed.

    Args:
        changes: of settings; besides, `average_decay` d, with which the running mean of the weights, ρ among
            them, is evaluated instead of the weights θ: new mean = d·mean + (1 − d)·θ after every step.

    Returns:
        The state, the setup, and the network to evaluate: the arguments of `train`.
    """
    settings = {name: value for name, value in changes.items() if name != "average_decay"}
    state, setup = start(configured(settings, bayesian=True))
    if "average_decay" not in changes:
        return state, setup, state.net
    averaged = AveragedModel(state.net, multi_avg_fn=get_ema_multi_avg_fn(changes["average_decay"]))
    state.optimizer.register_step_post_hook(lambda *_: averaged.update_parameters(state.net))
    return state, setup, averaged.module
