"""What every part stands on: one-line errors for a user's mistakes, and files that are whole or absent."""

from support.errors import OneLineParser, UserError, first_line, nearest, report_user_errors, whole_number
from support.files import LockedError, archive, atomic_write, locked, write_json, write_text

__all__ = [
    "LockedError",
    "OneLineParser",
    "UserError",
    "archive",
    "atomic_write",
    "first_line",
    "locked",
    "nearest",
    "report_user_errors",
    "whole_number",
    "write_json",
    "write_text",
]
