"""The benchmarks' calculations, and that their page shows the measured results."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import measure, scale
from benchmarks.__main__ import BENCHMARKS
from benchmarks.measure import ratios_to_baseline, time_interleaved
from tests.processes import ROOT, run_program


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_the_page_shows_the_tables_of_the_results(benchmark: str) -> None:
    folder = ROOT / "benchmarks"
    result = json.loads((folder / "results" / f"{benchmark}.json").read_text())
    _, render = BENCHMARKS[benchmark]
    table = render(result)
    assert table == (folder / "results" / f"{benchmark}.md").read_text()
    assert table in (folder / "README.md").read_text(), f"copy benchmarks/results/{benchmark}.md into README.md"


def test_every_round_runs_each_action_in_turn() -> None:
    turns: list[str] = []
    times = time_interleaved({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, rounds=4, min_seconds=0)
    assert turns == ["a", "a", "b", "b"] + ["a", "b"] * 4
    assert [len(seconds) for seconds in times.values()] == [4, 4]


def test_ratios_are_taken_within_a_round() -> None:
    rows = ratios_to_baseline({"twin": [1.0, 10.0, 2.0], "bayesian": [2.0, 30.0, 2.0]}, "twin")
    assert rows["twin"] == {"seconds": 2.0, "ratio": 1.0, "ratio_low": 1.0, "ratio_high": 1.0}
    assert (rows["bayesian"]["seconds"], rows["bayesian"]["ratio"]) == (2.0, 2.0)


@pytest.mark.parametrize(("platform", "unit"), [("darwin", 2**20), ("freebsd14", 2**10)])
def test_peak_memory_is_in_the_unit_of_the_system(platform: str, unit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter((5 * unit, 12 * unit))
    monkeypatch.setattr(measure.sys, "platform", platform)
    monkeypatch.setattr(measure, "Path", lambda _: Path("absent"))
    monkeypatch.setattr(measure.resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=next(peaks)))
    assert measure.added_mib(lambda: None) == 7


def test_flops_are_those_of_the_architecture() -> None:
    result = scale.measure()["networks"]
    convolutions = 3 * 25 * 6 * 28**2, 6 * 25 * 16 * 10**2
    linear = 400 * 120 + 120 * 84 + 84 * 10
    # As many for the forward pass, the gradient of the weights and that of the input; the first layer skips the last.
    expected = 2 * 256 * (2 * convolutions[0] + 3 * convolutions[1] + 3 * linear)
    lenet = result["lenet"]
    assert lenet["frequentist"]["flops"] == lenet["bbb"]["flops"] == expected
    assert lenet["lrt"]["flops"] == 2 * expected
    assert lenet["lrt"]["parameters"] == 2 * lenet["frequentist"]["parameters"] == 2 * 62_006
    assert result["resnet50"]["frequentist"]["parameters"] == 25_557_032


def test_the_slowest_resource_bounds_a_step() -> None:
    flops, batch = 1e12, scale.BATCH
    arithmetic = {"flops": 1e12, "bytes": 0.0, "parameters": 0}
    assert scale.bound(arithmetic, flops, 8) == (8 * batch, "arithmetic")
    memory = {"flops": 0.0, "bytes": scale.MEMORY * 2, "parameters": 0}
    assert scale.bound(memory, flops, 1) == (batch / 2, "memory")
    exchange = {
        "flops": 1e12,
        "bytes": 0.0,
        "parameters": scale.EXCHANGE[64] / 4,
    }  # 2·63/64 seconds beside a step of one second
    rate, bottleneck = scale.bound(exchange, flops, 64)
    assert bottleneck == "exchange" and rate == pytest.approx(64 * batch / (1 / 3 + 126 / 64))


def test_an_unknown_benchmark_is_refused_in_one_line() -> None:
    process = run_program("-m", "benchmarks", "fly")
    assert process.returncode == 2
    assert (
        process.stderr.startswith("error: argument benchmark: invalid choice: 'fly'")
        and process.stderr.count("\n") == 1
    )
