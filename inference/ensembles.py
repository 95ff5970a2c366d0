"""Predictives of several classifiers, and of passes with dropout: the alternatives to a single posterior."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from images import CHUNK
from inference.classifier import Classifier, Images, predict_chunks
from inference.prediction import (
    Predictor,
    batched_outputs,
    effective_samples,
    posterior_outputs,
    summarize,
    summarize_blocks,
)
from likelihoods import Predictive
from moments import component_count

DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
BATCH = 256  # images per forward pass


def ensemble_predictive(
    classifiers: Sequence[Classifier], images: Images, num_samples: int = 25, seed: int = 0, *, method: str = "draws"
) -> Predictive:
    """The predictive of an ensemble (Lakshminarayanan et al. 2017): the mean of its members' probabilities.

    The members may be Bayesian, and the predictive is then that of the mixture of their posteriors. All members have
    the same weight, deterministic or not, and of however many components a posterior is. Each member normalizes the
    images by its own constants; its decisions, which are its own, are left out.

    Args:
        classifiers: the members, of the same classes, image shape and likelihood.
        images: as for `Classifier.predict`.
        num_samples: draws from the posterior of each Bayesian member; a deterministic member is computed once.
        seed: member m draws with seed + m.
        method: 'draws', or 'moments' for a single pass per member without draws of the weights.

    Raises:
        ValueError: there is no member, or they differ in classes, image shape or likelihood; as `Classifier.predict`.
    """
    if len({(classifier.classes, classifier.image_shape, classifier.likelihood) for classifier in classifiers}) != 1:
        raise ValueError("expected at least one classifier, and all with the same classes, image shape and likelihood")

    likelihood = classifiers[0].likelihood
    sources: list[Callable[[Tensor], Iterable[Tensor]]]  # by member, from its inputs to blocks of samples
    if method == "draws":
        counts = [effective_samples(classifier.net, num_samples) for classifier in classifiers]
        sources = [partial(_draws, each.net, num_samples, seed + member) for member, each in enumerate(classifiers)]
    else:
        sources = [Predictor(each.net, method=method, likelihood=likelihood).outputs for each in classifiers]
        counts = [component_count(classifier.net) for classifier in classifiers]
    repeats = [math.lcm(*counts) // count for count in counts]  # of each sample, for as many of every member
    members = list(zip(classifiers, sources, repeats, strict=True))

    def predict_chunk(pixels: Tensor) -> Predictive:
        blocks = (
            block
            for classifier, outputs, count in members
            for block in outputs(classifier.normalize(pixels))
            for _ in range(count)
        )
        return summarize_blocks(blocks, likelihood, 1.0)

    return predict_chunks(classifiers[0].read(images), predict_chunk, chunk=CHUNK if method == "draws" else BATCH)


def _draws(net: nn.Module, num_samples: int, seed: int, inputs: Tensor) -> Iterator[Tensor]:
    """One block [1, n, outputs, ...] per draw."""
    return (outputs[None] for outputs in posterior_outputs(net, inputs, num_samples, BATCH, seed))


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
