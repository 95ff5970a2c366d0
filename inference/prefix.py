"""What a network computes before it meets the first of its random weights, which is the same for every draw."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class OtherCallsError(Exception):
    """A pass calls other functions of torch than the first one did, so the results of that one are not its own."""


class Prefix(TorchFunctionMode):
    """Within it, passes of one network over one batch compute what comes before the first random weight only once.

    The first pass notes what each call of torch gives until one takes a random weight; the next passes get these
    results instead. Only tensors that the rest of the network still uses are kept, and none if random numbers were
    drawn before the first random weight, as by dropout that stays on: they too differ between passes.

    Args:
        random_weights: the parameters that change between passes.

    Raises:
        OtherCallsError: in a pass that calls other functions than the first one, as that of a network which keeps a
            tensor of its first pass: forget, and compute it again.
    """

    def __init__(self, random_weights: Iterable[Tensor]) -> None:
        super().__init__()
        weights = list(random_weights)
        self._random_weights = {id(weight) for weight in weights}
        self._cuda_devices = {weight.device for weight in weights if weight.is_cuda}
        self._random_states: list[Tensor] = []  # at the start of the first pass
        self._calls: list[tuple[Callable[..., Any], Any]] = []  # functions and their results
        self._kept: list[tuple[Tensor, int]] = []  # with the version that each had
        self._is_noted = False
        self._position = 0

    @property
    def nbytes(self) -> int:
        """What the tensors that it keeps occupy."""
        return sum(tensor.nbytes for tensor, _ in self._kept)

    def forget(self) -> None:
        """Keep nothing: the next passes compute everything."""
        self._calls, self._kept = [], []

    def __enter__(self) -> Prefix:
        self._position = 0
        if not self._is_noted:
            self._random_states = self._get_random_states()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if not self._is_noted:  # the pass met no random weight
            self._note_end()
        if any(tensor.is_inference() or tensor._version != version for tensor, version in self._kept):
            self.forget()  # the rest of the network writes into them

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self._is_noted and self._position == len(self._calls):
            return func(*args, **kwargs)
        is_random = any(id(leaf) in self._random_weights for leaf in _leaves((args, kwargs)))
        if self._is_noted:
            noted, result = self._calls[self._position]
            if is_random or func != noted:
                raise OtherCallsError
            self._position += 1
            return result
        if is_random:
            self._note_end()
        result = func(*args, **kwargs)
        if not self._is_noted:
            self._calls.append((func, weakref.ref(result) if isinstance(result, Tensor) else result))
        return result

    def _note_end(self) -> None:
        """Keep the tensors that are still in use; the others are not read again, and anything may stand for them."""
        unused = torch.empty(0)
        for index, (func, result) in enumerate(self._calls):
            if isinstance(result, weakref.ref):
                tensor = result()
                result = unused if tensor is None else tensor
                self._calls[index] = func, result
            tensors = (leaf for leaf in _leaves(result) if isinstance(leaf, Tensor) and leaf is not unused)
            self._kept += [(tensor, 0 if tensor.is_inference() else tensor._version) for tensor in tensors]
        if not all(map(torch.equal, self._random_states, self._get_random_states())):
            self.forget()
        self._is_noted = True
        self._position = len(self._calls)

    def _get_random_states(self) -> list[Tensor]:
        return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self._cuda_devices)]


def _leaves(value: Any) -> Iterator[Any]:
    """What is in tuples, lists and dicts, however deep; of another value, itself."""
    if isinstance(value, (tuple, list, Mapping)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _leaves(each)
    else:
        yield value
