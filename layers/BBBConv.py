"""Bayesian convolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from layers.base import BayesianLayer
from layers.posterior import Priors


class BBBConv2d(BayesianLayer, nn.Conv2d):
    """`nn.Conv2d` with a posterior over its weights; every argument of `nn.Conv2d` means what it means there.

    Args:
        strides: an alias of `stride`.
        alpha_shape: shape of log α for the alpha posterior N(μ, αμ²), broadcast against the weight
            [out, in / groups, height, width]; None for the Gaussian posterior N(μ, softplus(ρ)²).
        priors: a dict with any of the fields of `layers.posterior.Priors`.
        layer_type: 'lrt', 'bbb' or 'flipout' (see `layers.estimators`).
        name: what recordings call the layer.

    Shapes: input [n, in, h, w] or [in, h, w]; output as `nn.Conv2d`'s.

    Raises:
        ValueError: what `nn.Conv2d` refuses, and an `alpha_shape`, `priors` or `layer_type` that does
            not fit.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        strides: int | tuple[int, int] | None = None,
        alpha_shape: Sequence[int] | None = None,
        priors: Priors | Mapping[str, Any] | None = None,
        layer_type: str = "lrt",
        name: str | None = None,
    ) -> None:
        if strides is not None:
            if stride not in (1, (1, 1), strides):
                raise ValueError(f"stride={stride} and its alias strides={strides} disagree: give one of them")
            stride = strides
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self.make_bayesian(alpha_shape, priors, layer_type, name)

    @property
    def feature_axis(self) -> int:
        return -3

    def operation(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(input, weight, bias)
