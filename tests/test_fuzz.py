"""The first cases of the fuzzers; `python -m tests.fuzz` runs as many as time allows."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
from conftest import new_interpreter

from tests.fuzz import Outcomes, fuzz_files, fuzz_flags


@pytest.mark.parametrize(("fuzz", "cases"), [(fuzz_files, 96), (fuzz_flags, 120)])
def test_bad_files_and_flags_are_refused_in_one_line(
    fuzz: Callable[[Path, int], Outcomes], cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcomes = list(islice(fuzz(tmp_path, 1), cases))
    assert not [outcome for outcome in outcomes if outcome.startswith("FAULT")]
    assert sum(outcome.startswith("refus") for outcome in outcomes) > cases / 2
    assert any(outcome.startswith("read") for outcome in outcomes)


def test_the_command_runs_by_itself() -> None:
    result = new_interpreter("-m", "tests.fuzz", "--seconds", 0, "--what", "flags")
    assert result.returncode == 0 and result.stdout.startswith("flags: 1 cases, "), result.stderr
