"""The Laplace approximation of a trained network's last layer (Daxberger et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from images import Split, chunk_size
from inference.classifier import Classifier
from inference.distributions import Noise, WeightDistribution
from inference.prediction import batched_outputs
from likelihoods import get_likelihood
from support import UserError

ITERATIONS = 200  # of the fixed point of the prior's precision, which needs about ten


class LaplaceNetwork(WeightDistribution):
    """A network whose last linear layer has the weights N(W, (A ⊗ B + δI)⁻¹) and N(b, (nB + δI)⁻¹).

    A = Σ φφᵀ over n examples, φ the layer's input, and B is the mean Hessian of the NLL with respect to the logits:
    the Kronecker-factored Gauss–Newton matrix (Ritter et al. 2018). δ is the precision of the prior N(0, I/δ) that
    maximizes the evidence: δ = γ/‖w‖² with γ = Σ λ/(λ + δ) over the eigenvalues λ (MacKay 1992, eq. 22).

    Args:
        net: a deterministic network, trained; its last layer in the order of construction is an `nn.Linear`.
        name: of that layer.
        features: A, [in, in].
        hessian: B, [out, out].
        count: n.
        precision: δ; None for that of the largest evidence.
    """

    left: Tensor
    right: Tensor
    deviations: Tensor
    bias_deviations: Tensor

    def __init__(
        self, net: nn.Module, name: str, features: Tensor, hessian: Tensor, count: int, precision: float | None = None
    ) -> None:
        layer = net.get_submodule(name)
        keys = [f"{name}.{key}".removeprefix(".") for key, _ in layer.named_parameters()]
        super().__init__(net, keys)
        values, right = torch.linalg.eigh(features.double().cpu())
        curvatures, left = torch.linalg.eigh(hessian.double().cpu())
        products = torch.outer(curvatures.clamp_min(0), values.clamp_min(0))  # λ of the weights, [out, in]
        of_bias = count * curvatures.clamp_min(0)
        weights = [parameter.detach().double().cpu() for parameter in layer.parameters()]
        known = [products, of_bias][: len(weights)]
        self.precision = evidence_precision(known, weights) if precision is None else precision
        like = next(net.parameters())
        self.register_buffer("left", left.to(like))
        self.register_buffer("right", right.to(like))
        self.register_buffer("deviations", (products + self.precision).rsqrt().to(like))
        self.register_buffer("bias_deviations", (of_bias + self.precision).rsqrt().to(like))

    def draw(self, noise: Noise) -> Iterable[Tensor]:
        """See `WeightDistribution.draw`."""
        weight, *bias = (self.net.get_parameter(name) for name in self.names)
        yield weight + self.left @ (self.deviations * noise(weight)) @ self.right.mT
        if bias:
            yield bias[0] + self.left @ (self.bias_deviations * noise(bias[0]))


def evidence_precision(curvatures: Sequence[Tensor], weights: Sequence[Tensor]) -> float:
    """δ of the largest evidence, by MacKay's fixed point.

    Args:
        curvatures: the eigenvalues λ of the Hessian of the NLL, at least 0.
        weights: the weights w at the maximum.
    """
    eigenvalues = torch.cat([each.flatten() for each in curvatures])
    square = sum(float(each.square().sum()) for each in weights)
    precision = 1.0
    for _ in range(ITERATIONS):
        precision = float((eigenvalues / (eigenvalues + precision)).sum()) / max(square, 1e-12)
        precision = max(precision, 1e-12)
    return precision


@torch.no_grad()
def laplace(classifier: Classifier, training: Split, precision: float | None = None) -> Classifier:
    """A trained classifier whose last layer is drawn from its Laplace approximation, of which the rest is a part.

    Args:
        classifier: with a deterministic network whose last layer is an `nn.Linear`; it is not modified. The decisions
            that it has, which are of the network without draws, are left out.
        training: the images that it was trained on, and their labels.
        precision: of the prior, δ; None for that of the largest evidence.

    Raises:
        UserError: the network has no linear layer, or not as its last one, or its inputs are no vectors; there is no
            image.
    """
    net = classifier.net
    weighted = [(name, module) for name, module in net.named_modules() if any(True for _ in module.parameters(False))]
    name, layer = weighted[-1] if weighted else ("", net)
    if type(layer) is not nn.Linear:
        raise UserError(f"Laplace's approximation needs an nn.Linear as the last layer, got {type(layer).__name__}")
    if not len(training):
        raise UserError("there is no image to fit Laplace's approximation to")
    likelihood = get_likelihood(classifier.likelihood)
    features = layer.weight.new_zeros(layer.in_features, layer.in_features, dtype=torch.float64)
    hessian = layer.weight.new_zeros(layer.out_features, layer.out_features, dtype=torch.float64)
    inputs: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    was_training = net.training
    try:
        net.eval()
        for pixels, _ in training.batches(chunk_size(training.image_size)):
            outputs = batched_outputs(net, classifier.normalize(pixels), len(pixels))
            phi = inputs.pop().double()
            if phi.dim() != 2:
                raise UserError(
                    f"Laplace's approximation needs a last layer whose inputs are [n, features], got {list(phi.shape)}"
                )
            features += phi.mT @ phi
            probs = likelihood.probs(outputs.double(), lambda logits: logits.softmax(-1))
            hessian += likelihood.covariance(probs[None]).sum(0)
    finally:
        hook.remove()
        net.train(was_training)
    count = len(training)
    return replace(
        classifier, net=LaplaceNetwork(net, name, features, hessian / count, count, precision), decisions=None
    )
