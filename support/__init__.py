"""What every part stands on: one-line errors for a user's mistakes, and files that are whole or absent."""

from support.checks import argument, nearest, number, one_of, whole
from support.errors import OneLineParser, UserError, first_line, report_user_errors
from support.files import LockedError, archive, atomic_write, locked, write_json, write_text

__all__ = [
    "LockedError",
    "OneLineParser",
    "UserError",
    "archive",
    "argument",
    "atomic_write",
    "first_line",
    "locked",
    "nearest",
    "number",
    "one_of",
    "report_user_errors",
    "whole",
    "write_json",
    "write_text",
]
