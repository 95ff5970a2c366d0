"""The uncertainty of a network about a single image; for many images see `inference.uncertainty`."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor, nn

from inference import Uncertainty, uncertainty

__all__ = ["calc_uncertainty_normalized", "calc_uncertainty_softmax"]


@overload
def calc_uncertainty_softmax(
    net: nn.Module,
    input_image: Tensor,
    T: int = 15,
    *,
    details: Literal[False] = False,
    seed: int = 0,
    likelihood: str | None = None,
) -> tuple[float, float]: ...
@overload
def calc_uncertainty_softmax(
    net: nn.Module,
    input_image: Tensor,
    T: int = 15,
    *,
    details: Literal[True],
    seed: int = 0,
    likelihood: str | None = None,
) -> Uncertainty: ...
def calc_uncertainty_softmax(
    net: nn.Module,
    input_image: Tensor,
    T: int = 15,
    *,
    details: bool = False,
    seed: int = 0,
    likelihood: str | None = None,
) -> tuple[float, float] | Uncertainty:
    """Uncertainty about one image, with p̂ = softmax(logits) (Kwon et al. 2018, eq. 4).

    Args:
        net: a Bayesian or deterministic network.
        input_image: [channels, height, width], normalized as in training.
        T: posterior samples.
        details: return the covariance matrices, their diagonals and the predicted class instead of the traces.
        seed: of the posterior samples.
        likelihood: what the outputs are: None for the logits of at least 2 classes, 'bernoulli' for one logit per label
            that applies or not; p̂ is then sigmoid(logit).

    Returns:
        (epistemic, aleatoric), the traces of the two covariances: sums over the classes or labels. With `details`, an
        `inference.Uncertainty`.

    Raises:
        ValueError: `input_image` is not a single image, T is below 1, or the likelihood does not read the outputs.
        UserError: a probability is not finite.
    """
    return _single("softmax", net, input_image, T, details, seed, likelihood)


@overload
def calc_uncertainty_normalized(
    net: nn.Module,
    input_image: Tensor,
    T: int = 15,
    *,
    details: Literal[False] = False,
    seed: int = 0,
    likelihood: str | None = None,
) -> tuple[float, float]: ...
@overload
def calc_uncertainty_normalized(
    net: nn.Module,
    input_image: Tensor,
    T: int = 15,
    *,
    details: Literal[True],
    seed: int = 0,
    likelihood: str | None = None,
) -> Uncertainty: ...
def calc_uncertainty_normalized(
    net: nn.Module,
    input_image: Tensor,
    T: int = 15,
    *,
    details: bool = False,
    seed: int = 0,
    likelihood: str | None = None,
) -> tuple[float, float] | Uncertainty:
    """`calc_uncertainty_softmax` with p̂ = softplus(logits) / Σ softplus(logits) (Shridhar et al. 2018, eq. 15)."""
    return _single("normalized", net, input_image, T, details, seed, likelihood)


def _single(
    kind: str, net: nn.Module, input_image: Tensor, samples: int, details: bool, seed: int, likelihood: str | None
) -> tuple[float, float] | Uncertainty:
    if input_image.dim() != 3:
        raise ValueError(f"expected one image [channels, height, width], got shape {tuple(input_image.shape)}")
    batch = uncertainty(net, input_image[None], samples, kind, seed=seed, likelihood=likelihood)
    if batch.epistemic.dim() != 3:
        raise ValueError("expected a network that classifies a whole image: for maps see inference.uncertainty")
    if details:
        return Uncertainty(batch.epistemic[0], batch.aleatoric[0], batch.predicted[0])
    epistemic, aleatoric = batch.traces
    return epistemic.item(), aleatoric.item()
