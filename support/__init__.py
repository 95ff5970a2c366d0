"""What every part stands on: one-line errors for a user's mistakes, and files that are whole or absent."""

from support.errors import OneLineParser, UserError, first_line, nearest, report_user_errors, whole_number
from support.files import LockedError, locked, set_aside, write_json, write_text, written_whole

__all__ = [
    "LockedError",
    "OneLineParser",
    "UserError",
    "first_line",
    "locked",
    "nearest",
    "report_user_errors",
    "set_aside",
    "whole_number",
    "write_json",
    "write_text",
    "written_whole",
]
