"""What every room uses: checks, one-line errors, files, figures, several processes, and the machine they run on.

Torch is imported when it is first needed: a script calls `exit_on_interrupt` before it imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from support.checks import INT64_MAX, Check, argument, either, flag, named, nearest, number, one_of, text, whole
from support.cpu import tune_cpu
from support.errors import OneLineParser, UserError, exit_on_interrupt, first_line, one_line, report_user_errors
from support.figures import BLUE, COLORS, GREEN, ORANGE, PINK, figure_style, save_figure
from support.files import (
    LockedError,
    archive,
    atomic_write,
    locked,
    remove_temporaries,
    write_json,
    write_text,
)
from support.versions import versions

if TYPE_CHECKING:
    from support.distributed import ALONE, World, process_group

__all__ = [
    "ALONE",
    "BLUE",
    "COLORS",
    "GREEN",
    "INT64_MAX",
    "ORANGE",
    "PINK",
    "Check",
    "LockedError",
    "OneLineParser",
    "UserError",
    "World",
    "archive",
    "argument",
    "atomic_write",
    "either",
    "exit_on_interrupt",
    "figure_style",
    "first_line",
    "flag",
    "locked",
    "named",
    "nearest",
    "number",
    "one_line",
    "one_of",
    "process_group",
    "remove_temporaries",
    "report_user_errors",
    "save_figure",
    "text",
    "tune_cpu",
    "versions",
    "whole",
    "write_json",
    "write_text",
]


def __getattr__(name: str) -> Any:
    """A name of a module that is imported only now (PEP 562)."""
    if name in ("ALONE", "World", "process_group"):
        return getattr(import_module(f"{__name__}.distributed"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
