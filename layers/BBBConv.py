"""Bayesian convolutions and transposed convolutions.

Every argument of the `torch.nn` layer keeps its meaning, and `strides` is an alias of `stride`; for the other
arguments see `BayesianLayer`. Inputs, outputs and weights have the shapes of the `torch.nn` layer: a weight, to which
`alpha_shape` broadcasts, is [out, in / groups, …], or [in, out / groups, …] if transposed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from .base import BayesianLayer


class _Convolution(BayesianLayer):
    """Common to convolutions over any number of axes."""

    kernel_size: tuple[int, ...]

    def __init__(self, *arguments: Any, strides: int | tuple[int, ...] | None = None, **settings: Any) -> None:
        if strides is not None:
            stride = arguments[3] if len(arguments) > 3 else settings.get("stride", 1)
            if stride != strides and any(size != 1 for size in (stride if isinstance(stride, tuple) else (stride,))):
                raise ValueError(f"stride={stride} and its alias strides={strides} disagree: give one of them")
            if len(arguments) > 3:
                arguments = (*arguments[:3], strides, *arguments[4:])
            else:
                settings["stride"] = strides
        super().__init__(*arguments, **settings)

    @property
    def feature_axis(self) -> int:
        return -1 - len(self.kernel_size)

    def operation(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(input, weight, bias)  # type: ignore[operator]


class BBBConv1d(_Convolution, nn.Conv1d):
    """`nn.Conv1d` with a posterior over its weights. Input [n, in, length] or [in, length]."""


class BBBConv2d(_Convolution, nn.Conv2d):
    """`nn.Conv2d` with a posterior over its weights. Input [n, in, height, width] or [in, height, width]."""


class BBBConv3d(_Convolution, nn.Conv3d):
    """`nn.Conv3d` with a posterior over its weights. Input [n, in, depth, height, width], or without n."""


class _Transposed(_Convolution):
    """Common to transposed convolutions."""

    outputs_axis = 1
    function: ClassVar[Callable[..., Tensor]]

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """A sample of the layer's output; `output_size` as in `torch.nn`."""
        return super().forward(input, output_size)

    def operation(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, output_size: Sequence[int] | None = None
    ) -> Tensor:
        settings: Any = self
        padding = settings._output_padding(
            input,
            output_size,
            settings.stride,
            settings.padding,
            settings.kernel_size,
            len(settings.kernel_size),
            settings.dilation,
        )
        return type(self).function(
            input, weight, bias, settings.stride, settings.padding, padding, settings.groups, settings.dilation
        )


class BBBConvTranspose1d(_Transposed, nn.ConvTranspose1d):
    """`nn.ConvTranspose1d` with a posterior over its weights. Input [n, in, length] or [in, length]."""

    function = staticmethod(F.conv_transpose1d)


class BBBConvTranspose2d(_Transposed, nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` with a posterior over its weights. Input [n, in, height, width], or without n."""

    function = staticmethod(F.conv_transpose2d)


class BBBConvTranspose3d(_Transposed, nn.ConvTranspose3d):
    """`nn.ConvTranspose3d` with a posterior over its weights. Input [n, in, depth, height, width], or without n."""

    function = staticmethod(F.conv_transpose3d)
