"""How scripts end, the lock of a folder, and the style of the pictures."""

from __future__ import annotations

import io
import multiprocessing
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE
from typing import Any

import matplotlib
import pytest
import torch
from conftest import ROOT, script_environment
from matplotlib.figure import Figure

import benchmarks.__main__
import experiments.__main__
import inference.export
import inference.prune
import main_bayesian
import main_frequentist
import uncertainty_estimation
import visualize_mean_var
from support import LockedError, OneLineParser, UserError, figure_style, locked, report_user_errors, write_text


def test_a_lock_keeps_others_out_until_its_block_ends(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    with locked(folder):
        with pytest.raises(LockedError, match=f"^another run is writing to {folder}: "), locked(folder):
            pass
        with locked(tmp_path):
            pass
    with locked(folder):
        pass
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_a_lock_outlives_the_processes_that_its_holder_forks(tmp_path: Path) -> None:
    """As the workers of a data loader are, which end after every epoch."""
    with locked(tmp_path):
        worker = multiprocessing.get_context("fork").Process(target=print)
        worker.start()
        worker.join(60)
        assert worker.exitcode == 0
        with pytest.raises(LockedError), locked(tmp_path):
            pass


def test_the_style_is_that_of_the_axes_made_within_it() -> None:
    before = dict(matplotlib.rcParams)

    @figure_style()
    def draw() -> Figure:
        figure = Figure()
        figure.subplots().plot([0, 1])
        return figure

    for _ in range(2):  # a decorated function may be called again
        figure = draw()
        assert dict(matplotlib.rcParams) == before
        figure.draw_without_rendering()  # ticks are made only now
        ax = figure.axes[0]
        assert {name for name, spine in ax.spines.items() if spine.get_visible()} == {"bottom", "left"}
        gridlines = [*ax.get_xgridlines(), *ax.get_ygridlines()]
        assert gridlines and all(line.get_visible() and line.get_alpha() == 0.3 for line in gridlines)


@pytest.mark.parametrize("name", ["x" * 300, "nul\0", "\ud800", "pipe"])
def test_what_no_file_can_be_written_to_is_one_line(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="^cannot write "):
        write_text(tmp_path / name, "")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def outcome(work: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """The exit code and the stderr of a script with this work."""
    with pytest.raises(SystemExit) as end, report_user_errors():
        work()
    return end.value.code, capsys.readouterr().err


def test_what_ends_a_script_is_one_line_and_a_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    def refuse(message: str) -> Callable[[], object]:
        return lambda: OneLineParser().error(message)

    assert outcome(interrupt, capsys) == (130, "interrupted\n")
    assert outcome(refuse("expected a number"), capsys) == (2, "error: expected a number\n")
    assert outcome(refuse("two\nlines, \x1b[31m and \udcff"), capsys) == (
        2, "error: two\\nlines, \\x1b[31m and \\udcff\n",
    )  # fmt: skip
    code, text = outcome((tmp_path / ("x" * 300)).read_bytes, capsys)
    assert code == 2 and text.endswith("x: File name too long\n")
    code, text = outcome(refuse(f"expected an integer, got {'9' * 5000!r}"), capsys)
    assert code == 2 and text.startswith("error: expected an integer, got '999") and text.endswith("9'\n")
    assert " … " in text and len(text) < 1100


def test_memory_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def on_gpu() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nOf the allocated memory …")

    for allocate in (lambda: torch.empty(2**60), lambda: bytearray(2**62), on_gpu):
        code, text = outcome(allocate, capsys)
        assert code == 2 and text.startswith("error: not enough memory (") and text.count("\n") == 1
        assert text.endswith("): give a smaller batch_size or image_size\n")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), report_user_errors():
        torch.ones(2, 3) @ torch.ones(2, 3)


@pytest.mark.parametrize(
    "script",
    [
        main_bayesian,
        main_frequentist,
        uncertainty_estimation,
        visualize_mean_var,
        inference.prune,
        inference.export,
        experiments.__main__,
        benchmarks.__main__,
    ],
)
def test_help_is_printed_on_a_terminal_that_knows_ascii_alone(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "argv", ["script", "--help"])
    monkeypatch.setattr(sys, "stdout", terminal)
    with pytest.raises(SystemExit) as end:
        script.main()
    assert end.value.code == 0 and terminal.buffer.getvalue().startswith(b"usage: ")  # type: ignore[attr-defined]


def test_a_closed_pipe_ends_a_script_quietly() -> None:
    code = (
        "from support import report_user_errors\n"
        "with report_user_errors():\n    for _ in range(100_000):\n        print('a line of some length')\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=PIPE, stderr=PIPE) as process:
        assert process.stdout and process.stderr and process.stdout.readline()
        process.stdout.close()
        assert (process.wait(60), process.stderr.read()) == (141, b"")


@pytest.mark.parametrize(
    "arguments",
    [
        ["uncertainty_estimation.py"],
        ["visualize_mean_var.py"],
        ["-m", "inference.prune"],
        ["-m", "inference.export"],
        ["-m", "experiments"],
        ["-m", "benchmarks"],
    ],
    ids=" ".join,
)
def test_ctrl_c_in_the_imports_of_a_script_is_one_line(arguments: list[str], tmp_path: Path) -> None:
    """Also where the import that it strikes catches every exception."""
    (tmp_path / "torch.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n    pass\n"
    )
    environment = {**script_environment(), "PYTHONPATH": str(tmp_path)}
    answer = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (answer.returncode, answer.stdout, answer.stderr) == (130, "", "interrupted\n")


def test_ctrl_c_is_an_exception_within_a_script_and_for_who_imports_it() -> None:
    code = (
        "import os, signal\nimport main_bayesian, inference\n"
        "from support import exit_on_interrupt, report_user_errors\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
        "exit_on_interrupt()\n"
        "with report_user_errors():\n"
        "    try:\n        os.kill(os.getpid(), signal.SIGINT)\n"
        "    except KeyboardInterrupt:\n        print('caught')\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (answer.returncode, answer.stdout, answer.stderr) == (130, "caught\n", "interrupted\n")
    code = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nfrom support import exit_on_interrupt\n" \
           "exit_on_interrupt()\nassert signal.getsignal(signal.SIGINT) is signal.SIG_IGN"  # fmt: skip
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("main", "flag"),
    [
        (visualize_mean_var.main, "--plot_time"),
        (visualize_mean_var.main, "--save_dir"),
        (uncertainty_estimation.main, "--num_samples"),
        (inference.prune.main, "--fraction"),
        (main_bayesian.main, "--n_epochs"),
    ],
)
def test_two_dashes_are_no_value(
    main: Callable[[list[str]], None], flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([f"{flag}=--"])
    assert (end.value.code, capsys.readouterr().err) == (2, f"error: argument {flag}: expected one argument\n")
