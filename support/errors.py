"""A user's mistakes, told in one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class UserError(ValueError):
    """Something that the user can put right: what was wrong, what was expected, what to do, in one line."""


class OneLineParser(argparse.ArgumentParser):
    """A parser whose complaints are `UserError`s, without the usage that argparse prints before them."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def first_line(error: Exception) -> str:
    """What an error says first; its kind if it says nothing."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@contextmanager
def report_user_errors() -> Iterator[None]:
    """Around a script's work: a `UserError` ends it with its one line on stderr and exit code 2."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
