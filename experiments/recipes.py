"""What the searches found: the trials of a data set, network and family, and the settings of the best of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support import UserError

FOLDER = Path(__file__).parent / "searches"
SCHEDULE = {"lr_schedule": "cosine"}  # of every trial
Trial = dict[str, Any]  # params, settings, validation NLLs per seed and epoch, and value, None if it was pruned


def record_path(dataset: str, net_type: str, family: str, folder: Path = FOLDER) -> Path:
    """The file of the trials of a data set, network and family: frequentist, dropout or bayesian."""
    return folder / f"{dataset}-{net_type}-{family}.json"


def read_trials(path: Path) -> list[Trial]:
    """The trials of a record, in their order; none if there is no file.

    Raises:
        UserError: the file is not such a record.
    """
    try:
        trials = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        complete = all({"params", "settings", "valid_nll", "value"} <= trial.keys() for trial in trials)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not the record of a search: delete it to search again") from error
    if not complete:
        raise UserError(f"{path} is not the record of a search: delete it to search again")
    return trials


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """The trial of the lowest value; None if none has come to its end."""
    return min((trial for trial in trials if trial["value"] is not None), key=lambda t: t["value"], default=None)


def recipe(dataset: str, net_type: str, family: str) -> dict[str, Any]:
    """The settings that were best on validation.

    Raises:
        UserError: there has been no search.
    """
    best = best_trial(read_trials(record_path(dataset, net_type, family)))
    if best is None:
        name = f"{dataset}-{net_type}"
        raise UserError(f"there is no search for {name}: run `python -m experiments search --only {name}`")
    return {**SCHEDULE, **best["settings"]}
