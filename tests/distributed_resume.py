"""Run by several processes in test_optimizers.py: per optimizer a run, and one that is stopped and resumed."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from conftest import same
from test_optimizers import DISTRIBUTED, settings_of

from support import World, process_group
from training import Settings, loop, start, train


def stop_and_resume(settings: Settings, world: World) -> None:
    """Stop at the second step by a signal to process 1 alone, and resume."""
    step, steps = loop.step, count(1)

    def step_with_signal(*arguments: Any) -> torch.Tensor:
        if next(steps) == 2 and world.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    loop.step = step_with_signal
    try:
        train(*start(settings, world))
    except SystemExit as stop:
        assert stop.code == 128 + signal.SIGTERM
    else:
        raise AssertionError("the signal did not stop the run")
    finally:
        loop.step = step
    state, setup = start(replace(settings, resume=True), world)
    train(state, setup)
    one, other = world.all_gather(state.net.state_dict())
    assert same(one, other), "the processes have different weights"


if __name__ == "__main__":
    torch.set_num_threads(1)
    pictures, folder = Path(sys.argv[1]), Path(sys.argv[2])
    with process_group("cpu") as world:
        for kind in DISTRIBUTED:
            train(*start(settings_of(kind, pictures, folder / kind / "whole"), world))
            stop_and_resume(settings_of(kind, pictures, folder / kind / "broken"), world)
