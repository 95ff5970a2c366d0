"""What the benchmarks compute from what they measure, and that their page shows what was measured."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import ROOT, script_environment

from benchmarks import scale
from benchmarks.__main__ import BENCHMARKS
from benchmarks.measure import against, time_interleaved


@pytest.mark.parametrize("what", BENCHMARKS)
def test_the_page_shows_the_tables_of_the_results(what: str) -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / f"{what}.json").read_text())
    page = (ROOT / "benchmarks" / "README.md").read_text()
    _, render = BENCHMARKS[what]
    assert render(result) in page, f"copy benchmarks/results/{what}.md into benchmarks/README.md"


def test_every_action_has_its_turn_in_every_round() -> None:
    turns: list[str] = []
    times = time_interleaved({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, rounds=4, least=0)
    assert turns == ["a", "a", "b", "b"] + ["a", "b"] * 4
    assert [len(found) for found in times.values()] == [4, 4]


def test_ratios_are_taken_within_a_round() -> None:
    rows = against({"twin": [1.0, 10.0, 2.0], "mine": [2.0, 30.0, 2.0]}, "twin")
    assert rows["twin"] == {"seconds": 2.0, "ratio": 1.0, "ratio_low": 1.0, "ratio_high": 1.0}
    assert (rows["mine"]["seconds"], rows["mine"]["ratio"]) == (2.0, 2.0)


def test_flops_are_those_of_the_architecture() -> None:
    result = scale.measure()["networks"]
    convolutions = 3 * 25 * 6 * 28**2, 6 * 25 * 16 * 10**2
    linear = 400 * 120 + 120 * 84 + 84 * 10
    # Forward, and as much for the gradient of the weights and of the input, which the first layer does not need.
    expected = 2 * 256 * (2 * convolutions[0] + 3 * convolutions[1] + 3 * linear)
    found = result["lenet"]
    assert found["frequentist"]["flops"] == found["bbb"]["flops"] == expected
    assert found["lrt"]["flops"] == 2 * expected
    assert found["lrt"]["parameters"] == 2 * found["frequentist"]["parameters"] == 2 * 62_006
    assert result["resnet50"]["frequentist"]["parameters"] == 25_557_032


def test_what_bounds_a_step() -> None:
    flops, batch = 1e12, scale.BATCH
    arithmetic = {"flops": 1e12, "bytes": 0.0, "parameters": 0}
    assert scale.bound(arithmetic, flops, 8) == (8 * batch, "arithmetic")
    memory = {"flops": 0.0, "bytes": scale.MEMORY * 2, "parameters": 0}
    assert scale.bound(memory, flops, 1) == (batch / 2, "memory")
    exchange = {"flops": 1e12, "bytes": 0.0, "parameters": scale.EXCHANGE[64] / 4}  # 2·63/64 seconds for one of step
    rate, why = scale.bound(exchange, flops, 64)
    assert why == "exchange" and rate == pytest.approx(64 * batch / (1 / 3 + 126 / 64))


def test_an_unknown_benchmark_is_refused_in_a_line() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "benchmarks", "fly"], cwd=ROOT, env=script_environment(), capture_output=True, text=True
    )
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: argument what: invalid choice: 'fly'") and answer.stderr.count("\n") == 1
