"""Several optimizers as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch


def closure_loss(closure: Callable[[], float] | None) -> float | None:
    """What the `closure` of an optimizer's step returns, with gradients; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class JointOptimizer(torch.optim.Optimizer):
    """Takes the steps of several optimizers, each of its own parameters, as one optimizer.

    Its `param_groups` are theirs, one after the other, and its `state_dict` holds them all, so schedulers, hooks and
    checkpoints see one optimizer.

    Args:
        optimizers: of disjoint parameters.

    Attributes:
        optimizers: as given.
    """

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Make the groups and the state of every optimizer those of this one."""
        groups = iter(self.param_groups)
        for optimizer in self.optimizers:
            optimizer.param_groups = [next(groups) for _ in optimizer.param_groups]
            optimizer.state = self.state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, of the same optimizers."""
        super().load_state_dict(dict(state_dict))
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step of every optimizer; `closure`, if any, first computes the loss and the gradients."""
        loss = closure_loss(closure)
        for optimizer in self.optimizers:
            optimizer.step()
        return loss
