"""A user's mistakes, reported in one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class UserError(ValueError):
    """Something that the user can correct: what was wrong, what was expected, what to do, in one line."""


class OneLineParser(argparse.ArgumentParser):
    """A parser that raises `UserError` for a wrong argument, where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        """Raise the error that argparse found."""
        raise UserError(message)


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if there is no message."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@contextmanager
def report_user_errors() -> Iterator[None]:
    """Print a `UserError` as one line on stderr and exit with code 2; for the whole work of a script."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
