"""Run by torchrun in test_distributed.py: an epoch of steps that change nothing, and the figures of each; then IVON."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from conftest import bayesian_settings

from inference import Classifier
from layers import sampling
from support import ALONE, World, process_group
from training import StopRequest, start, train_epoch, wrap_for_training


def epoch_of_steps(pictures: Path, folder: Path, world: World = ALONE) -> dict[str, Any]:
    """Gradients and figures of every step at a learning rate that rounds to 0, a prediction, and noise."""
    settings = bayesian_settings(pictures, folder, batch_size=44, random_shift=0, n_epochs=1, lr_start=1e-300)
    state, setup = start(settings, world)
    gradients = []

    def keep_gradients(*_: Any) -> None:
        gradients.append({name: parameter.grad.clone() for name, parameter in state.net.named_parameters()})

    state.optimizer.register_step_post_hook(keep_gradients)
    with sampling(state.net, False):
        train_epoch(state, setup, wrap_for_training(state.net, settings, world), StopRequest())
    classifier = Classifier(state.net, setup.data.classes, setup.data.mean, setup.data.std)
    return {
        "gradients": gradients,
        "steps": state.progress.steps,
        "probs": classifier.predict(setup.data.test.images, 3, world=world).probs,
        "noise": world.all_gather(torch.randn(3)),
        "weights": world.all_gather(state.net.state_dict()),
    }


def epoch_by_ivon(pictures: Path, folder: Path, world: World) -> list[list[dict[str, torch.Tensor]]]:
    """The weights of every process before and after an epoch, each with noise of its own."""
    settings = bayesian_settings(pictures, folder, batch_size=44, n_epochs=1, optimizer="ivon", lr_start=0.1)
    state, setup = start(settings, world)
    before = world.all_gather({name: value.clone() for name, value in state.net.state_dict().items()})
    train_epoch(state, setup, wrap_for_training(state.net, settings, world), StopRequest())
    return [before, world.all_gather(state.net.state_dict())]


if __name__ == "__main__":
    torch.set_num_threads(1)
    with process_group("cpu") as world:
        results = epoch_of_steps(Path(sys.argv[1]), Path(sys.argv[2]), world)
        results["ivon"] = epoch_by_ivon(Path(sys.argv[1]), Path(sys.argv[2]), world)
        if world.is_main:
            torch.save(results, sys.argv[3])
