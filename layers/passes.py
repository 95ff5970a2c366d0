"""What the layers of a network share: in a forward pass, the deviations and the draws; in a thread, the switch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn


class ForwardPass:
    """One pass of a network, in which every weight is drawn once, however often it is used.

    Args:
        stds: standard deviations that are computed already, by their posterior.
        network: the network, and those inside of it take part in its pass.
        outer: the pass of another network, which calls this one without containing it.

    Attributes:
        stds: as given.
        network: as given.
        outer: as given.
        depth: how many networks, one inside the other, the pass is in.
        takes_gradients: whether the pass began with gradients enabled.
    """

    def __init__(self, stds: Mapping[nn.Module, Tensor], network: nn.Module, outer: ForwardPass | None = None) -> None:
        self.stds = stds
        self.network = network
        self.outer = outer
        self.depth = 1
        self.takes_gradients = torch.is_grad_enabled()
        self._draws: dict[Hashable, Tensor] = {}
        self._outputs: set[int] = set()

    def draw(self, key: Hashable, make: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """What `make(*arguments)` gave at the first call with this key in the pass.

        It has a gradient if the pass takes gradients, also where the first call is within `torch.no_grad`.
        """
        if key not in self._draws:
            if self.takes_gradients and not torch.is_grad_enabled():
                with torch.enable_grad():
                    return self.draw(key, make, *arguments)
            self._draws[key] = make(*arguments)
        return self._draws[key]

    def note_output_noise(self, weight: Tensor, name: str) -> None:
        """Warn where outputs of one weight get noise twice, which is more than one draw of the weight would give."""
        if id(weight) in self._outputs and not torch.compiler.is_compiling():
            warnings.warn(
                f"{name} uses its weight twice in one forward pass: local reparameterization draws both outputs "
                f"independently, as if they were two weights; give it layer_type='bbb' or 'flipout'",
                stacklevel=2,
            )
        self._outputs.add(id(weight))


_CURRENT: ContextVar[ForwardPass | None] = ContextVar("_CURRENT", default=None)
_TRACED: list[ForwardPass] = []  # in place of _CURRENT while torch.compile traces, which cannot set a ContextVar

SWITCHES: ContextVar[Mapping[nn.Module, bool] | None] = ContextVar("SWITCHES", default=None)


def current_pass() -> ForwardPass | None:
    """The forward pass that is under way in this thread."""
    if torch.compiler.is_compiling():
        return _TRACED[-1] if _TRACED else None
    return _CURRENT.get()


def set_current_pass(current: ForwardPass | None) -> None:
    """Begin a pass in this thread, or end it."""
    if not torch.compiler.is_compiling():
        _CURRENT.set(current)
    elif current is None:
        _TRACED.pop()
    else:
        _TRACED.append(current)


@contextmanager
def one_pass(network: nn.Module) -> Iterator[None]:
    """Within it, in this thread, what is drawn is of a pass of its own."""
    token = _CURRENT.set(ForwardPass({}, network))
    try:
        yield
    finally:
        _CURRENT.reset(token)
