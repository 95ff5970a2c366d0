"""A mean and a variance that stand for a tensor in the `forward` of a network, and the rules that they follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from support import UserError


class MissingRuleError(UserError, NotImplementedError):
    """A network does something that moments cannot pass through."""


Rule = Callable[..., Any]  # takes what the operation takes, with `Moments` among it
RULES: dict[Any, Rule] = {}
Activation = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""From mean and variance to those of the activation, and its slope. A monotone one may wait, since a maximum after it
is the activation of the maximum."""


def rule(*operations: Any) -> Callable[[Rule], Rule]:
    """Register how operations carry moments along.

    Example:
        >>> @rule(torch.neg)
        ... def _negate(input: Moments) -> Moments:
        ...     return Moments(-input.mean_value, input.variance)

    Args:
        operations: functions or methods of torch, as `F.relu` or `torch.Tensor.relu`. The rule takes their arguments.
    """

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operations, function))
        return function

    return register


def register_each(maker: Callable[[Any], Rule], *operations: Any) -> None:
    """Register for each operation the rule that `maker` makes of it."""
    RULES.update({operation: maker(operation) for operation in operations})


@dataclass(frozen=True, eq=False)
class Link:
    """How a vector depends on the one before it: y = J x + noise, with independent noise.

    Attributes:
        before: the link of x; None where x is taken as independent.
        std: [n, inputs], of x, where `before` is None.
        channels: how many channels x then has, in equal runs of units that move together.
        weight: J, [outputs, inputs] for all examples, or its diagonal [n, inputs].
        noise: [n, outputs], the variance that is not inherited from x.
        is_diagonal: whether `weight` is the diagonal of J.
        shared: [n, k, outputs], what of y moves together, by k independent ε ~ N(0, 1).
    """

    before: Link | None
    std: Tensor | None
    weight: Tensor
    noise: Tensor
    is_diagonal: bool = False
    channels: int | None = None
    shared: Tensor | None = None


@dataclass(frozen=True)
class Windows:
    """The windows of a pooling.

    Attributes:
        size: by axis, how many elements each window has.
        step: by axis, from one window to the next.
        padding: by axis, elements outside of the map at either end, which do not count.
        ceil_mode: whether the last window may reach beyond the padding.
    """

    size: tuple[int, ...]
    step: tuple[int, ...]
    padding: tuple[int, ...]
    ceil_mode: bool = False

    @property
    def is_inside(self) -> bool:
        """Whether every window lies in the map."""
        return not any(self.padding) and not self.ceil_mode

    def mean(self, values: Tensor) -> Tensor:
        """The mean of the values in each window."""
        pool: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(self.size) - 1]
        return pool(values, self.size, self.step, self.padding, self.ceil_mode, count_include_pad=False)


@dataclass(frozen=True)
class Deferred:
    """A variance that is computed where it is needed, because its mean over windows costs less than all of it.

    Attributes:
        compute: the mean variance of each window, or with None the variance of every element.
    """

    compute: Callable[[Windows | None], Tensor]


class Moments:
    """A random tensor that stands for a tensor in the `forward` of a network.

    Args:
        mean_value: its mean.
        variance: of every element, of the mean's shape; None where it is 0 everywhere.
        link: how it depends on earlier tensors, in the fully connected head.
        waiting: an activation that is still to be applied.
        channels: of a vector that was a map, [n, channels, …], how many channels it had.
    """

    def __init__(
        self,
        mean_value: Tensor,
        variance: Tensor | Deferred | None = None,
        link: Link | None = None,
        waiting: Activation | None = None,
        channels: int | None = None,
    ) -> None:
        self.mean_value = mean_value
        self._variance = variance
        self.link = link
        self.waiting = waiting
        self.channels = channels

    @property
    def variance(self) -> Tensor | None:
        """The variance of every element, of the mean's shape; None where it is 0 everywhere."""
        if isinstance(self._variance, Deferred):
            self._variance = self._variance.compute(None)
        return self._variance

    def variance_over(self, windows: Windows) -> Tensor | None:
        """The mean variance of each window; None where it is 0 everywhere."""
        if isinstance(self._variance, Deferred):
            return self._variance.compute(windows)
        return None if self._variance is None else windows.mean(self._variance)

    def awaiting(self, activation: Activation) -> Moments:
        """The same before an activation that waits."""
        return Moments(self.mean_value, self._variance, self.link, activation, self.channels)

    def settled(self) -> Moments:
        """The same with an activation that waited applied."""
        if self.waiting is None:
            return self
        mean, variance, gate = self.waiting(self.mean_value, variance_of(self))
        return Moments(mean, variance, diagonal_link(self, gate, variance), channels=self.channels)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func not in RULES:
            name = getattr(func, "__name__", repr(func))
            raise MissingRuleError(
                f"moments cannot pass through {name}: register a rule by moments.rule, or predict by draws"
            )
        target, kwargs = args[0] if args else None, dict(kwargs or {})
        if func not in WAITING:
            args = tuple(a.settled() if isinstance(a, Moments) else a for a in args)
            kwargs = {name: a.settled() if isinstance(a, Moments) else a for name, a in kwargs.items()}
        result = RULES[func](*args, **kwargs)
        if isinstance(target, Moments) and (_is_in_place(func) or kwargs.get("inplace")):
            target.__dict__.update(result.__dict__)
            return target
        return result

    def __len__(self) -> int:
        return len(self.mean_value)

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(Tensor, name)
        if name in _PLAIN:
            return getattr(self.mean_value, name)
        if not callable(attribute):
            raise MissingRuleError(f"moments have no attribute {name}: predict by draws")
        return lambda *args, **kwargs: self.__torch_function__(attribute, (Moments,), (self, *args), kwargs)


_PLAIN = {  # what asks about a tensor and not about its values
    "shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "layout", "dim", "size", "numel", "stride",
    "is_floating_point", "is_complex", "is_contiguous",
}  # fmt: skip
_OPERATORS = (
    "add", "radd", "iadd", "sub", "rsub", "isub", "mul", "rmul", "imul", "truediv", "rtruediv", "itruediv", "neg",
    "getitem", "setitem", "pow", "rpow", "matmul", "abs", "eq", "ne", "lt", "le", "gt", "ge", "bool",
)  # fmt: skip
_IN_PLACE = {Tensor.__iadd__, Tensor.__isub__, Tensor.__imul__, Tensor.__itruediv__}


def _is_in_place(operation: Any) -> bool:
    """Whether it writes into its first argument, as `Tensor.add_` and `+=` do."""
    name = getattr(operation, "__name__", "")
    return operation in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))


def _operator(name: str) -> Callable[..., Any]:
    def apply(self: Moments, *others: Any) -> Any:
        return self.__torch_function__(getattr(Tensor, name), (Moments,), (self, *others))

    return apply


for _name in _OPERATORS:  # Python looks them up in the class, past `__getattr__`
    setattr(Moments, f"__{_name}__", _operator(f"__{_name}__"))
WAITING: set[Any] = set()  # operations whose rules handle an activation that waits


def variance_of(moments: Moments) -> Tensor:
    """The variance as a tensor, also where it is 0 everywhere."""
    return torch.zeros_like(moments.mean_value) if moments.variance is None else moments.variance


def parts_of(value: Any) -> tuple[Any, Any]:
    """Mean and variance (None for 0) of a random tensor, a tensor or a number."""
    return (value.mean_value, value.variance) if isinstance(value, Moments) else (value, None)


def diagonal_link(input: Moments, slope: Tensor, variance: Tensor | None) -> Link | None:
    """The link of an operation that acts on every element by itself, in the head."""
    if input.link is None or variance is None:
        return None
    noise = (variance - slope.square() * variance_of(input)).clamp_min(0)
    return Link(input.link, None, slope, noise, is_diagonal=True)
