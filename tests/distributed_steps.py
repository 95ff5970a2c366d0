"""Run by torchrun in test_distributed.py: an epoch of steps that change nothing, and what each found."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import config_bayesian
from layers import sampling
from support import ALONE, World, process_group
from training.interruption import StopRequest
from training.loop import Run
from training.settings import BayesianSettings, from_config


def epoch_of_steps(pictures: Path, folder: Path, world: World = ALONE) -> dict[str, Any]:
    """Gradients and figures of every step at a learning rate of 0, a prediction, and noise."""
    settings = replace(
        from_config(BayesianSettings, config_bayesian),
        dataset=str(pictures), checkpoint_dir=str(folder), batch_size=44, random_shift=0, n_epochs=1,
    )  # fmt: skip
    run = Run(settings, world)
    run.base_rates = [0.0, 0.0]
    gradients = []
    with sampling(run.net, False):
        for _ in run._train_epoch(StopRequest()):
            gradients.append({name: parameter.grad.clone() for name, parameter in run.net.named_parameters()})
    return {
        "gradients": gradients,
        "steps": run.progress.steps,
        "probs": run._predictive(run.net, run.data.test, 3).probs,
        "noise": world.all_gather(torch.randn(3)),
        "weights": world.all_gather(run.net.state_dict()),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    with process_group("cpu") as world:
        found = epoch_of_steps(Path(sys.argv[1]), Path(sys.argv[2]), world)
        if world.is_main:
            torch.save(found, sys.argv[3])
