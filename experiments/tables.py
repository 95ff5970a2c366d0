"""One table of the results.json files of any runs: their scores, and the settings in which they differ."""

from __future__ import annotations

import glob
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import table
from support import UserError
from training import Role, names_with, read_results

Result = dict[str, Any]


def read_matching(patterns: Sequence[str]) -> list[Result]:
    """The content of all files that match a pattern, in the order of their paths.

    Args:
        patterns: paths, perhaps with * for any name and ** for any folders.

    Raises:
        UserError: nothing matches, or a file is not the results of a run.
    """
    matches = (glob.glob(pattern, recursive=True) for pattern in patterns)  # noqa: PTH207 - a Path takes no absolute one
    paths = sorted({Path(path) for paths in matches for path in paths})
    if not paths:
        raise UserError(f"nothing matches {' or '.join(patterns)}: give paths of results.json files, quoted if with **")
    return [read_results(path) for path in paths]


def render(results: Sequence[Result]) -> str:
    """The results as a Markdown table, one row for runs that differ by their seed alone: mean ± standard deviation."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(json.dumps([*_names(result), _settings(result)], sort_keys=True), []).append(result)
    rows = list(groups.values())
    scores = list(dict.fromkeys(name for result in results for name in result["test"]))
    varied = _varied([_settings(row[0]) for row in rows])
    header = ["data", "network", "method", *varied, "seeds", *scores, "parameters", "training seconds"]
    return table(header, [_cells(row, varied, scores) for row in rows])


def _names(result: Result) -> list[str]:
    return [result["dataset"], result["net_type"], result["method"]]


def _settings(result: Result) -> dict[str, Any]:
    left_out = {"seed", "dataset", "net_type"} | names_with(Role.NOT_COMPARED) | names_with(Role.LOCAL)
    return {name: value for name, value in result["settings"].items() if name not in left_out}


def _varied(settings: Sequence[dict[str, Any]]) -> list[str]:
    """The settings that have more than one value among those that have them."""
    names = dict.fromkeys(name for each in settings for name in each)
    values = {name: {json.dumps(each[name], sort_keys=True) for each in settings if name in each} for name in names}
    return [name for name in names if len(values[name]) > 1]


def _cells(row: Sequence[Result], varied: Sequence[str], scores: Sequence[str]) -> list[str]:
    settings = _settings(row[0])
    own = [json.dumps(settings[name]).strip('"') if name in settings else "" for name in varied]
    measured = [_mean([result["test"][name] for result in row]) if name in row[0]["test"] else "" for name in scores]
    seconds = f"{statistics.fmean(result['training_seconds'] for result in row):.0f}"
    return [*_names(row[0]), *own, str(len(row)), *measured, f"{row[0]['parameters']:,}", seconds]


def _mean(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.4f}"
