"""Programs as a user runs them, in processes that start with the libraries imported.

A new interpreter spends five seconds of processor time on the imports of a training script. Each process here is forked
from a server that has imported them: it has a memory, signals, files and an exit code of its own. What proves the
imports themselves, or how an interpreter ends, runs `sys.executable` instead.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = [
    "training.loop", "inference.plots", "matplotlib.backends.backend_agg", "torch.distributed.run",
    "torchmetrics.functional.classification",
]  # fmt: skip


def forkserver() -> ForkServerContext:
    """The context whose processes are forked from the server, which has no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    return context


class Program:
    """A running program, which is used as `subprocess.Popen` is.

    Args:
        words: what a user writes after `python`: a script, `-m` and a module, or `-c` and code; then its arguments.
        prepare: called in the process before the program.
        environment: variables besides those of this process.
        merged: whether its errors go to its output.
    """

    def __init__(
        self,
        *words: object,
        prepare: Callable[[], object] | None = None,
        environment: Mapping[str, str] | None = None,
        merged: bool = False,
    ) -> None:
        reader, writer = multiprocessing.Pipe(duplex=False)
        with reader, writer:
            self.args = [str(word) for word in words]
            self._errors = Path(tempfile.mkstemp()[1])
            arguments = (
                self.args,
                {**os.environ, **(environment or {})},
                prepare,
                writer,
                None if merged else str(self._errors),
            )
            self._process = forkserver().Process(target=_run, args=arguments)
            self._process.start()
            self.stdout = os.fdopen(os.dup(reader.fileno()))

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, signum: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """The rest of its output and all of its errors, once it has ended; it is killed when the time is over."""
        timer = threading.Timer(timeout, self.kill)
        timer.start()
        output = self.stdout.read()
        self._process.join()
        timer.cancel()
        return output, self._errors.read_text()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        self._process.join()
        self.stdout.close()
        self._errors.unlink()


def run_program(
    *words: object, prepare: Callable[[], object] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a program (see `Program`) to its end."""
    with Program(*words, prepare=prepare) as running:
        return _finish(running, timeout)


def run_together(
    size: int, *words: object, prepare: Callable[[], object] | None = None
) -> list[subprocess.CompletedProcess[str]]:
    """Run a program (see `Program`) in several processes that work together, to their ends."""
    with ExitStack() as stack:
        group = [stack.enter_context(Program(*words, prepare=prepare, environment=each)) for each in ranks(size)]
        return [_finish(running, 200) for running in group]


def ranks(size: int) -> list[dict[str, str]]:
    """The variables by which torchrun would tell each of several processes what it is."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        place = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(listener.getsockname()[1])}
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), **place} for rank in range(size)]


def _finish(running: Program, timeout: float) -> subprocess.CompletedProcess[str]:
    output, errors = running.communicate(timeout)
    assert running.returncode is not None
    return subprocess.CompletedProcess(running.args, running.returncode, output, errors)


def _run(
    words: list[str], environment: dict[str, str], prepare: Callable[[], object] | None, output: Connection,
    errors: str | None,
) -> None:  # fmt: skip
    os.dup2(output.fileno(), 1)
    output.close()
    descriptor = 1 if errors is None else os.open(errors, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    if prepare:
        prepare()
    option, sys.argv = (words[0], words[1:]) if words[0] in ("-m", "-c") else ("", words)
    if option == "-m":
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    elif option == "-c":
        exec(sys.argv[0], {"__name__": "__main__"})
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")
