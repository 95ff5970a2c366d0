"""Predictives of several classifiers, and of passes with dropout: the alternatives to a single posterior."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from inference.classifier import Classifier, Images, predict_chunks
from inference.likelihoods import Predictive
from inference.prediction import batched_outputs, posterior_outputs, summarize

DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
BATCH = 256  # images per forward pass


def ensemble_predictive(
    classifiers: Sequence[Classifier], images: Images, num_samples: int = 25, seed: int = 0
) -> Predictive:
    """The predictive of an ensemble (Lakshminarayanan et al. 2017): the mean of its members' probabilities.

    The members may be Bayesian, and the predictive is then that of the mixture of their posteriors. Each member
    normalizes the images by its own constants.

    Args:
        classifiers: the members, of the same classes, image shape and likelihood.
        images: as for `Classifier.predict`.
        num_samples: draws from the posterior of each Bayesian member; a deterministic member is one sample.
        seed: member m draws with seed + m.

    Raises:
        ValueError: there is no member, or they differ in classes, image shape or likelihood; as `Classifier.predict`.
    """
    if len({(classifier.classes, classifier.image_shape, classifier.likelihood) for classifier in classifiers}) != 1:
        raise ValueError("expected at least one classifier, and all with the same classes, image shape and likelihood")

    def predict_chunk(pixels: Tensor) -> Predictive:
        with torch.inference_mode():
            samples = (
                outputs
                for member, classifier in enumerate(classifiers)
                for outputs in posterior_outputs(
                    classifier.net, classifier.normalize(pixels), num_samples, BATCH, seed + member
                )
            )
            return summarize(samples, likelihood=classifiers[0].likelihood)

    return predict_chunks(classifiers[0].read(images), predict_chunk)


def dropout_predictive(classifier: Classifier, images: Images, num_samples: int = 25, seed: int = 0) -> Predictive:
    """The predictive of MC dropout (Gal & Ghahramani 2016, eq. 6): passes in eval mode but for active dropout layers.

    Args:
        classifier: a network with dropout layers; it is not modified.
        images: as for `Classifier.predict`.
        num_samples: passes.
        seed: of the dropout masks; the global random state stays as it is.

    Raises:
        ValueError: the network has no dropout layer, or `num_samples` is below 1; as `Classifier.predict`.
    """
    net = copy.deepcopy(classifier.net).eval()
    layers = [module for module in net.modules() if isinstance(module, DROPOUT)]
    if not layers:
        raise ValueError("expected a network with dropout layers, got one without")
    for layer in layers:
        layer.train()
    device = next(net.parameters()).device

    def predict_chunk(pixels: Tensor) -> Predictive:
        inputs = classifier.normalize(pixels)
        with torch.inference_mode(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            return summarize(batched_outputs(net, inputs, BATCH) for _ in range(num_samples))

    return predict_chunks(classifier.read(images), predict_chunk)
