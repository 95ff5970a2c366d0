"""Predictives of several classifiers, and of passes with dropout: the alternatives to a single posterior."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from inference.classifier import Classifier, Images, predict_chunks
from inference.prediction import Predictor, batched_outputs, posterior_outputs, summarize, summarize_blocks
from likelihoods import Predictive

DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
BATCH = 256  # images per forward pass


def ensemble_predictive(
    classifiers: Sequence[Classifier], images: Images, num_samples: int = 25, seed: int = 0, *, method: str = "draws"
) -> Predictive:
    """The predictive of an ensemble (Lakshminarayanan et al. 2017): the mean of its members' probabilities.

    The members may be Bayesian, and the predictive is then that of the mixture of their posteriors. Each member
    normalizes the images by its own constants; its decisions, which are its own, are left out.

    Args:
        classifiers: the members, of the same classes, image shape and likelihood.
        images: as for `Classifier.predict`.
        num_samples: draws from the posterior of each Bayesian member; a deterministic member is one sample.
        seed: member m draws with seed + m.
        method: 'draws', or 'moments' for a single pass per member without draws of the weights.

    Raises:
        ValueError: there is no member, or they differ in classes, image shape or likelihood; as `Classifier.predict`.
    """
    if len({(classifier.classes, classifier.image_shape, classifier.likelihood) for classifier in classifiers}) != 1:
        raise ValueError("expected at least one classifier, and all with the same classes, image shape and likelihood")

    likelihood = classifiers[0].likelihood
    if method != "draws":
        predictors = [Predictor(classifier.net, method=method, likelihood=likelihood) for classifier in classifiers]
        members = list(zip(classifiers, predictors, strict=True))

        def predict_batch(pixels: Tensor) -> Predictive:
            blocks = (block for each, predictor in members for block in predictor.outputs(each.normalize(pixels)))
            return summarize_blocks(blocks, likelihood, 1.0)

        return predict_chunks(
            classifiers[0].read(images),
            lambda pixels: Predictive.concatenate([predict_batch(batch) for batch in pixels.split(BATCH)]),
        )

    def predict_chunk(pixels: Tensor) -> Predictive:
        with torch.no_grad():
            samples = (
                outputs
                for member, classifier in enumerate(classifiers)
                for outputs in posterior_outputs(
                    classifier.net, classifier.normalize(pixels), num_samples, BATCH, seed + member
                )
            )
            return summarize(samples, likelihood=likelihood)

    return predict_chunks(classifiers[0].read(images), predict_chunk)


def dropout_predictive(classifier: Classifier, images: Images, num_samples: int = 25, seed: int = 0) -> Predictive:
    """The predictive of MC dropout (Gal & Ghahramani 2016, eq. 6): passes in eval mode but for active dropout layers.

    The classifier's decisions, which are for its network without dropout, are left out.

    Args:
        classifier: a network with dropout layers; it is not modified.
        images: as for `Classifier.predict`.
        num_samples: passes.
        seed: of the dropout masks; the global random state stays as it is.

    Raises:
        ValueError: the network has no dropout layer, or `num_samples` is below 1; as `Classifier.predict`.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    net = copy.deepcopy(classifier.net).eval()
    layers = [module for module in net.modules() if isinstance(module, DROPOUT)]
    if not layers:
        raise ValueError("expected a network with dropout layers, got one without")
    generator = torch.Generator(next(net.parameters()).device)  # its own: other threads draw from the global one
    for layer in layers:
        layer.register_forward_hook(partial(_drop, generator=generator))

    def predict_chunk(pixels: Tensor) -> Predictive:
        inputs = classifier.normalize(pixels)
        generator.manual_seed(seed)
        with torch.inference_mode():
            samples = (batched_outputs(net, inputs, BATCH) for _ in range(num_samples))
            return summarize(samples, likelihood=classifier.likelihood)

    return predict_chunks(classifier.read(images), predict_chunk)


def _drop(layer: nn.Module, _: object, output: Tensor, generator: torch.Generator) -> Tensor:
    """The output of a dropout layer in train mode, from that in eval mode, with the masks of a generator.

    On a CPU the masks are those that torch draws from the global generator at the same seed.
    """
    assert isinstance(layer, DROPOUT)
    p = layer.p
    if p == 1:
        return torch.zeros_like(output)
    whole_features = not isinstance(layer, (nn.Dropout, nn.AlphaDropout))
    shape = (*output.shape[:2], *(1 for _ in output.shape[2:])) if whole_features else output.shape
    kept = output.new_empty(shape).bernoulli_(1 - p, generator=generator)
    if not isinstance(layer, (nn.AlphaDropout, nn.FeatureAlphaDropout)):
        return output * kept.div_(1 - p)
    # What is dropped becomes SELU's lower bound; then mean 0 and variance 1 are restored (Klambauer et al. 2017).
    lowest = -1.7580993408473766
    a = ((lowest**2 * p + 1) * (1 - p)) ** -0.5
    return a * (output * kept + lowest * (1 - kept) - lowest * p)
