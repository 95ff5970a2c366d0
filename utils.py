"""The uncertainty of a network about a single image; for many images see `inference.uncertainty`."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor, nn

from inference import Uncertainty, uncertainty

__all__ = ["calc_uncertainty_normalized", "calc_uncertainty_softmax"]


@overload
def calc_uncertainty_softmax(
    net: nn.Module, input_image: Tensor, T: int = 15, *, details: Literal[False] = False, seed: int = 0
) -> tuple[float, float]: ...
@overload
def calc_uncertainty_softmax(
    net: nn.Module, input_image: Tensor, T: int = 15, *, details: Literal[True], seed: int = 0
) -> Uncertainty: ...
def calc_uncertainty_softmax(
    net: nn.Module, input_image: Tensor, T: int = 15, *, details: bool = False, seed: int = 0
) -> tuple[float, float] | Uncertainty:
    """Uncertainty about one image, with p̂ = softmax(logits) (Kwon et al. 2018, eq. 4).

    Args:
        net: a Bayesian or deterministic network.
        input_image: [channels, height, width], normalized as in training.
        T: posterior samples.
        details: return the covariance matrices, their diagonals and the predicted class instead of the traces.
        seed: of the posterior samples.

    Returns:
        (epistemic, aleatoric), the traces of the two covariances; with `details`, an `inference.Uncertainty`.

    Raises:
        ValueError: `input_image` is not a single image, or T is below 1.
    """
    return _single("softmax", net, input_image, T, details, seed)


@overload
def calc_uncertainty_normalized(
    net: nn.Module, input_image: Tensor, T: int = 15, *, details: Literal[False] = False, seed: int = 0
) -> tuple[float, float]: ...
@overload
def calc_uncertainty_normalized(
    net: nn.Module, input_image: Tensor, T: int = 15, *, details: Literal[True], seed: int = 0
) -> Uncertainty: ...
def calc_uncertainty_normalized(
    net: nn.Module, input_image: Tensor, T: int = 15, *, details: bool = False, seed: int = 0
) -> tuple[float, float] | Uncertainty:
    """`calc_uncertainty_softmax` with p̂ = softplus(logits) / Σ softplus(logits) (Shridhar et al. 2018, eq. 15)."""
    return _single("normalized", net, input_image, T, details, seed)


def _single(
    kind: str, net: nn.Module, input_image: Tensor, samples: int, details: bool, seed: int
) -> tuple[float, float] | Uncertainty:
    if input_image.dim() != 3:
        raise ValueError(f"expected one image [channels, height, width], got shape {tuple(input_image.shape)}")
    batch = uncertainty(net, input_image[None], samples, kind, seed=seed)
    if details:
        return Uncertainty(batch.epistemic[0], batch.aleatoric[0], batch.predicted[0])
    epistemic, aleatoric = batch.traces
    return epistemic.item(), aleatoric.item()
