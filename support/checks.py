"""Checks of settings, flags and arguments.

A check is a function from a value to the value that is used. It raises ValueError with a noun phrase that says what
was expected, such as 'an integer ≥ 1'; the caller puts it into a sentence.
"""

from __future__ import annotations

import argparse
import difflib
import math
from collections.abc import Callable, Iterable
from typing import Any

Check = Callable[[Any], Any]
INT64_MAX = 2**63 - 1


def nearest(word: object, known: Iterable[str]) -> str:
    """The known word that is most similar to `word`, for 'did you mean'."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    return by_lower[difflib.get_close_matches(str(word).lower(), by_lower, n=1, cutoff=0)[0]]


def whole(low: int, high: int = INT64_MAX) -> Check:
    """An integer from `low` to `high`, which True and False are not."""

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"an integer ≥ {low}" if high == INT64_MAX else f"an integer from {low} to {high}")
        return value

    return check


def is_finite(value: float) -> bool:
    """Whether a number is finite and, if it is an integer, one that a float can hold."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def number(low: float, high: float = math.inf, *, exclusive: bool = False) -> Check:
    """A finite number from `low` to `high`, returned as a float; with `exclusive`, neither of the two."""

    def check(value: Any) -> float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and is_finite(value)
        if not is_number or not (low < value < high if exclusive else low <= value <= high):
            expected = f"a number > {low:g}" if exclusive else f"a number ≥ {low:g}"
            raise ValueError(expected + (f" and {'<' if exclusive else '≤'} {high:g}" if high < math.inf else ""))
        return float(value)

    return check


def one_of(*known: str) -> Check:
    """One of the `known` words."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in known:
            raise ValueError(f"one of {', '.join(known)} (did you mean {nearest(value, known)!r}?)")
        return value

    return check


def flag(value: Any) -> bool:
    """True or False, or one of these as a string."""
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise ValueError("True or False")
    return value


def text(value: Any) -> str:
    """A string that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError("a non-empty string")
    return value


def named(value: Any) -> tuple[str, str]:
    """A name and a path, of NAME=PATH; the name can be that of a file."""
    name, _, path = str(value).partition("=")
    if not path or not name.replace("_", "").replace("-", "").isalnum():
        raise ValueError("NAME=PATH with a name of letters, digits, - and _")
    return name, path


def either(word: Any, check: Check) -> Check:
    """`word` itself, or a value that passes `check`."""

    def checked(value: Any) -> Any:
        if value == word and type(value) is type(word):
            return value
        try:
            return check(value)
        except ValueError as error:
            raise ValueError(f"{word!r} or {error}") from error

    return checked


def argument(check: Check) -> Callable[[str], Any]:
    """The `type` of an argparse argument that is a Python number and passes `check`."""

    def parse(word: str) -> Any:
        value: Any = word
        for kind in (int, float):
            try:
                value = kind(word)
                break
            except ValueError:
                continue
        try:
            return check(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"expected {error}, got {word!r}") from error

    return parse
