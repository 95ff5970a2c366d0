"""What `last.pt` says of a run, checked before it is used: whoever makes a file can write anything into it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from support import INT64_MAX, either, flag, number, whole
from training.ivon import IVON
from training.optimizers import JointOptimizer

IMPLEMENTATION = {"foreach", "fused"}  # options that change no result, and depend on the device
ADAM = {"step", "exp_avg", "exp_avg_sq"}
STATES: dict[type[torch.optim.Optimizer], set[str]] = {  # what an optimizer keeps per parameter
    torch.optim.Adam: ADAM,
    torch.optim.AdamW: ADAM,
    torch.optim.SGD: {"momentum_buffer"},
}
SCALARS = {"step", "start"}  # the other tensors have the shape of the parameter


def check_optimizer_state(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Refuse a state that is not of this optimizer's parameters: fused kernels do not check shapes themselves.

    Args:
        optimizer: one of `STATES`, several of them in a `JointOptimizer`, or `IVON`.
        saved: what its `state_dict` was.

    Raises:
        ValueError: groups, options, names, shapes or types differ; the message says where.
    """
    expected = optimizer.state_dict()["param_groups"]
    groups, states = saved["param_groups"], saved["state"]
    if [[*group["params"]] for group in groups] != [group["params"] for group in expected]:
        raise ValueError("its optimizer has other parameters")
    for group, ours in zip(groups, expected, strict=True):
        for name, value in group.items():
            try:
                _check_option(name, value, ours)
            except ValueError as error:
                raise ValueError(f"its optimizer has the {name} {value!r}: expected {error}") from error
    members = optimizer.optimizers if isinstance(optimizer, JointOptimizer) else [optimizer]
    parameters = [
        (parameter, member.state_names(parameter) if isinstance(member, IVON) else STATES[type(member)])
        for member in members
        for group in member.param_groups
        for parameter in group["params"]
    ]
    if not states.keys() <= set(range(len(parameters))):
        raise ValueError("its optimizer has the state of parameters that the network does not have")
    for index, state in states.items():
        parameter, names = parameters[index]
        if state.keys() != names:
            raise ValueError(f"the optimizer's state of parameter {index} holds {', '.join(map(str, state))}")
        for name, value in state.items():
            shape, kind = (torch.Size(), torch.float32) if name in SCALARS else (parameter.shape, parameter.dtype)
            if not isinstance(value, Tensor) or value.shape != shape or value.dtype != kind:
                raise ValueError(f"the optimizer's {name} of parameter {index} is not a {kind} tensor {tuple(shape)}")


def _check_option(name: str, value: Any, ours: Mapping[str, Any]) -> None:
    if name == "lr":
        number(0)(value)
    elif name in IMPLEMENTATION:
        either(None, flag)(value)
    elif value != ours.get(name, value):  # which an older torch may not have
        raise ValueError(repr(ours[name]))


def check_progress(saved: Mapping[str, Any], last_epoch: Any, steps: Tensor) -> None:
    """Refuse progress that a run with these steps per epoch cannot have made.

    Args:
        saved: the fields of `Progress`.
        last_epoch: the scheduler's number of steps.
        steps: those of a run that has not begun, [batches, 4].

    Raises:
        ValueError: a field has a type, a shape or a value that it cannot have; the message names it.
    """
    theirs, history = saved["steps"], saved["history"]
    if not isinstance(theirs, Tensor) or theirs.shape != steps.shape or theirs.dtype != steps.dtype:
        count = len(theirs) if isinstance(theirs, Tensor) and theirs.dim() else 0
        raise ValueError(f"it is of a run with {count} batches per epoch, not {len(steps)}")
    bounds = {"epoch": whole(0), "batch": whole(0, len(steps)), "best_epoch": whole(0), "seconds": number(0)}
    for name, check in bounds.items():
        try:
            check(saved[name])
        except (ValueError, OverflowError) as error:
            raise ValueError(f"its {name} is {saved[name]!r}: expected {error}") from error
    if type(saved["best_nll"]) is not float:
        raise ValueError(f"its best_nll is {saved['best_nll']!r}: expected a number")
    if not isinstance(history, list) or len(history) != saved["epoch"] or saved["best_epoch"] > len(history):
        raise ValueError(f"its history is not of {saved['epoch']} epochs")
    if last_epoch != saved["epoch"] * len(steps) + saved["batch"]:
        raise ValueError(f"its scheduler is at step {last_epoch!r}, its progress at another one")
    for row in history:
        if not isinstance(row, dict) or row.keys() != history[0].keys() or not all(map(_is_figure, row.values())):
            raise ValueError("its history has a row that is not of figures")


def _is_figure(value: object) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= INT64_MAX)
