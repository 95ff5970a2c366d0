"""What the summaries of every kind of prediction have in common: they are tensors with one row per image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Summary = TypeVar("Summary", bound="Summaries")


@dataclass(frozen=True, eq=False)
class Summaries:
    """Tensors [n, ...] about the same n images."""

    @staticmethod
    def concatenate(predictives: Sequence[Summary]) -> Summary:
        """The predictive for all images of several predictives, in their order."""
        kind: Any = type(predictives[0])
        return kind(*(torch.cat([getattr(each, field.name) for each in predictives]) for field in fields(kind)))

    @staticmethod
    def from_shares(shares: Sequence[Summary]) -> Summary:
        """The predictive for all images, of which process r of k predicted every k-th, from index r on."""
        first = fields(shares[0])[0].name
        count = sum(len(getattr(share, first)) for share in shares)

        def interleave(name: str) -> Tensor:
            tensors = [getattr(share, name) for share in shares]
            whole = tensors[0].new_empty((count, *tensors[0].shape[1:]))
            for rank, tensor in enumerate(tensors):
                whole[rank :: len(shares)] = tensor
            return whole

        kind: Any = type(shares[0])
        return shares[0] if len(shares) == 1 else kind(*(interleave(field.name) for field in fields(kind)))

    def subset(self: Summary, indices: Tensor) -> Summary:
        """The predictive for the images at these indices, or where a mask [n] is true."""
        return replace(self, **{field.name: getattr(self, field.name)[indices] for field in fields(self)})
