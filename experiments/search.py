"""The search for a network's settings: every family with the same trials, seeds, epochs, optimizers and rates.

A trial trains with two seeds, each with its own validation split; its value is the mean of their best validation NLLs.
A trial whose first seed ends behind the best half of the complete trials is pruned: while the rates are still high, the
NLLs of two optimizers say little about where they end. The test split is not touched.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import BaseTrial, FixedTrial, TrialState

from experiments.plan import BLOCKS, METHODS, Block, Method, network
from experiments.recipes import FOLDER, SCHEDULE, Trial, read_trials, record_path
from experiments.running import ExperimentFiles, configured
from images import load_data
from support import LockedError, UserError, locked, write_json
from training import DivergedError, Row, start, train

SEEDS = 2
RATES = {"adam": (5e-4, 1e-2), "sgd": (0.01, 0.2), "ivon": (0.1, 2.0)}
ADAMW_DECAYS, DECAYS = (1e-4, 0.3), (1e-6, 3e-3)  # decoupled from the gradient, and in it
STARTS: Mapping[bool, Sequence[dict[str, Any]]] = {  # what was good before, by whether it is Bayesian
    False: (
        {"optimizer": "sgd", "sgd rate": 0.05, "decay": 2e-4},
        {"optimizer": "adam", "adam rate": 2e-3, "adamw decay": 1e-4},
        # The rate and the decay that were the best of the twin's twelve trials on CIFAR-10, LeNet.
        {"optimizer": "sgd", "sgd rate": 0.0557, "decay": 2.4e-3},
    ),
    True: (
        {"optimizer": "sgd", "sgd rate": 0.05, "decay": 2e-4, "temperature": 3e-3, "layer_type": "bbb", "rho": -7.0},
        {"optimizer": "adam", "adam rate": 2e-3, "decay": 2e-5, "temperature": 0.01, "layer_type": "lrt", "rho": -5.0},
        # The twin's.
        {
            "optimizer": "sgd", "sgd rate": 0.0557, "decay": 2.4e-3, "temperature": 3e-3, "layer_type": "bbb",
            "rho": -7.0,
        },
    ),
}  # fmt: skip


def suggest(trial: BaseTrial, bayesian: bool, train_size: int) -> dict[str, Any]:
    """The settings of a trial.

    A Bayesian network has the decay δ of its means by its prior, δ = 1/(Nσ_p²) at β = 1, and so a deviation σ_p, and
    the temperature T of its entropy and the ρ from which its own deviations start besides.

    Args:
        trial: what the numbers are drawn from.
        bayesian: the family.
        train_size: N, the number of training examples.
    """
    optimizer = trial.suggest_categorical("optimizer", ["adam", "sgd", "ivon"] if bayesian else ["adam", "sgd"])
    settings: dict[str, Any] = {
        "optimizer": optimizer,
        "lr_start": trial.suggest_float(f"{optimizer} rate", *RATES[optimizer], log=True),
    }
    if not bayesian:
        name, decays = ("adamw decay", ADAMW_DECAYS) if optimizer == "adam" else ("decay", DECAYS)
        return settings | {"weight_decay": trial.suggest_float(name, *decays, log=True)}
    decay = trial.suggest_float("decay", *DECAYS, log=True)
    return settings | {
        "priors": {
            "prior_sigma": 1 / math.sqrt(train_size * decay),
            "posterior_rho_initial": (trial.suggest_categorical("rho", [-7.0, -5.0]), 0.1),
        },
        "beta_type": 1.0,
        "temperature": trial.suggest_float("temperature", 1e-4, 1.0, log=True),
        "layer_type": trial.suggest_categorical("layer_type", ["bbb", "lrt"]),
        "lr_spread_factor": 0.2 if optimizer == "sgd" else 10.0,
    }


def run_searches(blocks: Sequence[Block], files: ExperimentFiles, folder: Path = FOLDER, *, trials: int) -> None:
    """Search for every family that the plan wants of these blocks, except what another process is searching.

    Args:
        blocks: data sets and networks.
        files: where data and checkpoints are.
        folder: holds one record per block and family; trials in it are not run again.
        trials: per block and family, pruned ones included.

    Raises:
        UserError: data is missing.
    """
    for block in blocks:
        methods = map(METHODS.__getitem__, block.seeds)
        families = {method.searched: method for method in methods if method.searched and not method.searched_on}
        for family, method in families.items():
            path = record_path(block.dataset, block.net_type, family, folder)
            try:
                with locked(files.checkpoints / "search" / path.stem):
                    _search(block, method, files, path, trials)
            except LockedError:
                print(f"{path.stem}: another process searches it", file=sys.stderr, flush=True)


def _search(block: Block, method: Method, files: ExperimentFiles, path: Path, trials: int) -> None:
    record, bayesian = read_trials(path), method.bayesian
    if len(record) >= trials:
        return
    common = {
        "dataset": files.folders.get(block.dataset, block.dataset),
        "data_dir": str(files.data_dir),
        "net_type": network(block, method),
        **{name: value for name, value in block.common.items() if name != "lr_start"},
        **block.searched_by,
        **SCHEDULE,
        **({"valid_ens": "moments"} if bayesian else {}),
    }
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    default = configured(common, bayesian)
    train_size = len(load_data(default.dataset, default.data_dir, default.valid_size, 0).train)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=default.n_epochs - 1)
    study = optuna.create_study(pruner=pruner)
    for earlier in record:
        study.add_trial(_as_optuna(earlier, bayesian, train_size))
    for params in STARTS[bayesian][len(record) :]:
        study.enqueue_trial(params)
    while len(record) < trials:
        # A sampler per trial, so that an interrupted search goes on as if it had not been.
        study.sampler = optuna.samplers.TPESampler(n_startup_trials=6, seed=len(record))
        trial = study.ask()
        settings = suggest(trial, bayesian, train_size)
        print(f"\n{path.stem}, trial {len(record) + 1} of {trials}: {trial.params}", flush=True)
        curve, value = _run_trial({**common, **settings}, bayesian, trial)
        state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        study.tell(trial, value, state)
        record.append({"params": trial.params, "settings": settings, "valid_nll": curve, "value": value})
        path.parent.mkdir(exist_ok=True)
        write_json(path, record)


def _run_trial(
    settings: Mapping[str, Any], bayesian: bool, trial: optuna.Trial
) -> tuple[list[list[float]], float | None]:
    """The validation NLLs per seed and epoch, and the mean over seeds of the best; None if the trial was pruned."""
    curves: list[list[float]] = []
    for seed in range(SEEDS):
        curves.append([])
        with TemporaryDirectory() as folder:
            state, setup = start(configured({**settings, "seed": seed, "checkpoint_dir": folder}, bayesian))
            try:
                train(state, setup, after_epoch=_reporter(trial, curves))
            except optuna.TrialPruned:
                return curves, None
            except DivergedError as error:
                print(error, file=sys.stderr, flush=True)
                return curves, None
    return curves, sum(map(min, curves)) / SEEDS


def _reporter(trial: optuna.Trial, curves: list[list[float]]) -> Callable[[Row], None]:
    """Notes the NLL of an epoch, and ends a trial that is behind."""

    def report(row: Row) -> None:
        curves[-1].append(row["valid_nll"])
        trial.report(min(curves[-1]), sum(map(len, curves)))
        if trial.should_prune():
            raise optuna.TrialPruned

    return report


def _as_optuna(trial: Trial, bayesian: bool, train_size: int) -> optuna.trial.FrozenTrial:
    """A trial of the record as the library knows it."""
    fixed = FixedTrial(trial["params"])
    suggest(fixed, bayesian, train_size)
    distributions: dict[str, BaseDistribution] = fixed.distributions
    bests = [min(curve[: end + 1]) for curve in trial["valid_nll"] for end in range(len(curve))]
    return optuna.trial.create_trial(
        state=TrialState.PRUNED if trial["value"] is None else TrialState.COMPLETE,
        params=dict(trial["params"]),
        distributions=distributions,
        value=trial["value"],
        intermediate_values=dict(enumerate(bests, 1)),
    )


def chosen_blocks(texts: Sequence[str]) -> list[Block]:
    """The blocks of the plan whose "dataset-network" contains one of the texts.

    Raises:
        UserError: there is none.
    """
    blocks = [block for block in BLOCKS if any(text in f"{block.dataset}-{block.net_type}" for text in texts)]
    if not blocks:
        names = ", ".join(f"{block.dataset}-{block.net_type}" for block in BLOCKS)
        raise UserError(f"nothing in the plan contains {' or '.join(texts)}: known are {names}")
    return blocks
