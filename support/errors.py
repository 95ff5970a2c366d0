"""A user's mistakes, reported in one line."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

LONGEST = 1000  # characters of a message; a longer one repeats a value that nobody reads to its end
INTERRUPTED, CLOSED_PIPE = 130, 141  # exit codes of a shell for SIGINT and SIGPIPE

NO_MEMORY = ("out of memory", "can't allocate memory")  # what torch says on a GPU and on a CPU


class UserError(ValueError):
    """Something that the user can correct: what was wrong, what was expected, what to do, in one line.

    Args:
        message: is shortened in the middle if it is very long; what cannot be printed in a line is escaped in it.
    """

    def __init__(self, message: object) -> None:
        super().__init__(one_line(str(message)))


class OneLineParser(argparse.ArgumentParser):
    """A parser that raises `UserError` for a wrong argument, where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        """Raise the error that argparse found."""
        raise UserError(message)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """The values of an argument; before Python 3.13, argparse makes an empty list of `--name=--`."""
        if action.option_strings and arg_strings == ["--"]:
            self.error(f"argument {'/'.join(action.option_strings)}: expected one argument")
        return super()._get_values(action, arg_strings)


def one_line(message: str) -> str:
    """The message with at most `LONGEST` characters, all of which can be printed in a line."""
    escaped = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in _shortened(message))
    return _shortened(escaped)


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 + 3 :]}"


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if there is no message."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def exit_on_interrupt() -> None:
    """Let Ctrl-C end the process at once, in one line and with code 130, except within `report_user_errors`.

    A script calls it before its other imports: in the seconds that they take, an exception would be a traceback, or be
    lost in an import that catches all. Python's own start, before the first line of the script, cannot be reached.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as in the background
        signal.signal(signal.SIGINT, _exit_interrupted)


def _exit_interrupted(signum: int, frame: FrameType | None) -> NoReturn:
    with suppress(OSError):
        os.write(2, b"interrupted\n")  # print may be at work already
    os._exit(INTERRUPTED)


@contextmanager
def report_user_errors() -> Iterator[None]:
    """For the whole work of a script: what ends it early is one line on stderr, or nothing, and an exit code.

    A `UserError` and what the system refuses (a name too long, a full disk, memory) exit with code 2, Ctrl-C with
    130; where the reader of a pipe has left, as `head` does, the script ends quietly. Characters that the terminal
    does not have are printed as escapes.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not in a notebook
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            with _interruptible():
                yield
        finally:
            sys.stdout.flush()
    except UserError as error:
        _exit(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        with suppress(ValueError, OSError):  # what is still to be printed, also when Python exits, goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(CLOSED_PIPE) from None
    except OSError as error:
        _exit(one_line(f"{error.filename}: {error.strerror}" if error.filename else first_line(error)))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(phrase in str(error).lower() for phrase in NO_MEMORY):
            raise
        _exit(one_line(f"not enough memory ({first_line(error)}): give a smaller batch_size or image_size"))


@contextmanager
def _interruptible() -> Iterator[None]:
    """Within it Ctrl-C raises KeyboardInterrupt, also after `exit_on_interrupt`."""
    exits = signal.getsignal(signal.SIGINT) is _exit_interrupted
    if exits:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if exits:
            signal.signal(signal.SIGINT, _exit_interrupted)


def _exit(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2) from None
