"""How a network is trained: settings, objective, loop, state, reports.

Settings and objective are imported at once, the rest when a name of it is first used: a script checks the user's
settings, and answers `--help`, before the second that the loop's libraries take to import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from training.objective import SCHEDULES, expected_nll, kl_weight, negative_elbo, tempered_kl
from training.settings import BayesianSettings, Role, Settings, from_config, names_with

if TYPE_CHECKING:
    from training.alarms import Alarms
    from training.continual import (
        fit_jointly,
        fit_task,
        fitted_to_coreset,
        join_tasks,
        k_center_coreset,
        random_coreset,
    )
    from training.interruption import StopRequest, stop_requests
    from training.ivon import IVON
    from training.loop import DivergedError, compare, run, start, step, test, train, train_epoch, validate
    from training.network import build_network, build_optimizer, build_scheduler, wrap_for_training
    from training.reports import Curves, Row, comparison, read_results
    from training.state import Progress, RunFiles, Setup, State, initial_state, prepare, restore, resume, save

__all__ = [
    "IVON",
    "SCHEDULES",
    "Alarms",
    "BayesianSettings",
    "Curves",
    "DivergedError",
    "Progress",
    "Role",
    "Row",
    "RunFiles",
    "Settings",
    "Setup",
    "State",
    "StopRequest",
    "build_network",
    "build_optimizer",
    "build_scheduler",
    "compare",
    "comparison",
    "expected_nll",
    "fit_jointly",
    "fit_task",
    "fitted_to_coreset",
    "from_config",
    "initial_state",
    "join_tasks",
    "k_center_coreset",
    "kl_weight",
    "names_with",
    "negative_elbo",
    "prepare",
    "random_coreset",
    "read_results",
    "restore",
    "resume",
    "run",
    "save",
    "start",
    "step",
    "stop_requests",
    "tempered_kl",
    "test",
    "train",
    "train_epoch",
    "validate",
    "wrap_for_training",
]

_LATER = {
    "alarms": ("Alarms",),
    "continual": ("fit_task", "fit_jointly", "fitted_to_coreset", "join_tasks", "k_center_coreset", "random_coreset"),
    "interruption": ("StopRequest", "stop_requests"),
    "ivon": ("IVON",),
    "loop": ("DivergedError", "compare", "run", "start", "step", "test", "train", "train_epoch", "validate"),
    "network": ("build_network", "build_optimizer", "build_scheduler", "wrap_for_training"),
    "reports": ("Curves", "Row", "comparison", "read_results"),
    "state": ("Progress", "RunFiles", "Setup", "State", "initial_state", "prepare", "restore", "resume", "save"),
}


def __getattr__(name: str) -> Any:
    """A name of a module that is imported only now (PEP 562)."""
    for module, names in _LATER.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
