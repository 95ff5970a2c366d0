"""The posterior predictive: class probabilities averaged over draws of the weights.

A draw of the posterior is a deterministic network, so a sample costs one deterministic pass and is shared by every
image (Blundell et al. 2015). The draws are from the variational posterior itself, whichever estimator trained the
network. Draw t depends on the seed and t alone, not on how the images are split into batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inference.moments import moment_samples
from layers import to_deterministic, weight_posteriors
from support import World

METHODS = ("draws", "moments")


@dataclass(frozen=True, eq=False)
class Predictive:
    """Summaries of the posterior predictive for n images, float32 on the CPU.

    p̂_t are the class probabilities of sample t.

    Attributes:
        probs: [n, classes], p̄, the mean of p̂_t over the samples.
        expected_log_probs: [n, classes], the mean of log p̂_t, for the expected log-likelihood.
        expected_entropy: [n], the mean of H(p̂_t) in nats: the aleatoric uncertainty.
        epistemic_softmax: [n], trace of the epistemic covariance (Kwon et al. 2018, eq. 4) with p̂ = softmax(logits).
        aleatoric_softmax: [n], trace of the aleatoric covariance.
        epistemic_normalized: [n], as `epistemic_softmax` with p̂ = softplus(logits) / Σ softplus(logits) (Shridhar et
            al. 2018, eq. 15).
        aleatoric_normalized: [n], as `aleatoric_softmax` with the same p̂.
    """

    probs: Tensor
    expected_log_probs: Tensor
    expected_entropy: Tensor
    epistemic_softmax: Tensor
    aleatoric_softmax: Tensor
    epistemic_normalized: Tensor
    aleatoric_normalized: Tensor

    @classmethod
    def concatenate(cls, predictives: Sequence[Predictive]) -> Predictive:
        """The predictive for all images of several predictives, in their order."""
        return cls(*(torch.cat([getattr(each, name) for each in predictives]) for name in cls.__annotations__))

    @classmethod
    def from_shares(cls, shares: Sequence[Predictive]) -> Predictive:
        """The predictive for all images, of which process r of k predicted every k-th, from index r on."""
        count = sum(len(share.probs) for share in shares)

        def interleave(name: str) -> Tensor:
            tensors = [getattr(share, name) for share in shares]
            whole = tensors[0].new_empty((count, *tensors[0].shape[1:]))
            for rank, tensor in enumerate(tensors):
                whole[rank :: len(shares)] = tensor
            return whole

        return shares[0] if len(shares) == 1 else cls(*map(interleave, cls.__annotations__))

    @property
    def labels(self) -> Tensor:
        """[n], int64, the most probable class."""
        return self.probs.argmax(-1)

    @property
    def entropy(self) -> Tensor:
        """[n], H(p̄) in nats: the total uncertainty."""
        return entropy(self.probs)

    @property
    def mutual_information(self) -> Tensor:
        """[n], H(p̄) − mean of H(p̂_t) in nats, at least 0: the epistemic uncertainty."""
        return (self.entropy - self.expected_entropy).clamp_min(0)


def entropy(probs: Tensor) -> Tensor:
    """Entropy in nats over the last axis, with 0·log 0 = 0."""
    return torch.special.entr(probs).sum(-1)


def softmax(logits: Tensor) -> Tensor:
    """Probabilities exp(logits) / Σ exp(logits) over the last axis."""
    return logits.softmax(-1)


def normalized_softplus(logits: Tensor) -> Tensor:
    """Probabilities softplus(logits) / Σ softplus(logits) over the last axis (Shridhar et al. 2018, eq. 15)."""
    positive = F.softplus(logits)
    return positive / positive.sum(-1, keepdim=True)


@torch.no_grad()  # of a generator: only while it makes a draw, not in the code that uses the draws
def posterior_draws(net: nn.Module, num_samples: int, seed: int) -> Iterator[nn.Module]:
    """Draws from the posterior of `net`, one at a time, each a deterministic network in eval mode.

    The same network object is yielded each time, with the next draw in its weights. A network without Bayesian layers
    is yielded unchanged. `net` itself is not modified.

    Args:
        net: a Bayesian or deterministic network.
        num_samples: how many draws.
        seed: draw t depends on it and t alone.
    """
    twin = to_deterministic(net).eval()
    weights = [
        (twin.get_parameter(name), mean.detach(), posterior.std(mean), torch.empty(mean.shape))
        for name, mean, posterior in weight_posteriors(net)
    ]
    generator = torch.Generator()
    for sample in range(num_samples):
        generator.manual_seed((seed * 1_000_003 + sample) % 2**63)
        for weight, mean, std, noise in weights:
            noise.normal_(generator=generator)  # on the CPU in float32: the same draw on every device
            torch.addcmul(mean, std, noise.to(mean), out=weight)
        yield twin


def effective_samples(net: nn.Module, num_samples: int) -> int:
    """`num_samples`, or 1 for a network without Bayesian layers, whose samples are all the same.

    Raises:
        ValueError: `num_samples` is below 1.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    return num_samples if any(True for _ in weight_posteriors(net)) else 1


def batched_outputs(net: nn.Module, inputs: Tensor, batch_size: int) -> Tensor:
    """The network's outputs without the KL, computed batch by batch, in float32 or wider."""
    device = next(net.parameters()).device
    batches = []
    for batch in inputs.split(batch_size):
        output = net(batch.to(device, non_blocking=True))
        batches.append(output[0] if isinstance(output, tuple) else output)
    outputs = torch.cat(batches)
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


def posterior_outputs(net: nn.Module, inputs: Tensor, num_samples: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """The outputs (logits [n, classes] of a classifier) of one draw from the posterior after the other."""
    for draw in posterior_draws(net, effective_samples(net, num_samples), seed):
        yield batched_outputs(draw, inputs, batch_size)


def predict(
    net: nn.Module,
    images: Tensor,
    num_samples: int = 25,
    batch_size: int = 256,
    seed: int = 0,
    link: Callable[[Tensor], Tensor] = softmax,
) -> Tensor:
    """Class probabilities of every sample.

    Args:
        net: a Bayesian or deterministic network; a deterministic one gives a single sample.
        images: [n, channels, height, width], normalized as in training.
        num_samples: draws from the posterior.
        batch_size: images per forward pass.
        seed: of the draws.
        link: from logits to probabilities, `softmax` or `normalized_softplus`.

    Returns:
        [num_samples, n, classes], on the CPU.

    Raises:
        ValueError: `num_samples` is below 1.
    """
    with torch.inference_mode():
        return torch.stack([link(x).cpu() for x in posterior_outputs(net, images, num_samples, batch_size, seed)])


def posterior_predictive(
    net: nn.Module,
    images: Tensor,
    num_samples: int = 25,
    batch_size: int = 256,
    seed: int = 0,
    method: str = "draws",
) -> Predictive:
    """The summaries of the posterior predictive.

    Args:
        net: a Bayesian or deterministic network; a deterministic one gives a single sample.
        images: [n, channels, height, width], normalized as in training.
        num_samples: draws from the posterior.
        batch_size: images per forward pass.
        seed: of the draws.
        method: 'draws' for samples of the network, without keeping these: memory does not grow with their number;
            'moments' for one pass that carries means and variances (`inference.moments`), which needs no
            `num_samples` and no `seed`.

    Raises:
        ValueError: `num_samples` is below 1, or an unknown method.
        NotImplementedError: by moments, an operation of the network that has no rule.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: expected {' or '.join(map(repr, METHODS))}")
    with torch.inference_mode():
        if method == "draws":
            return summarize(posterior_outputs(net, images, num_samples, batch_size, seed))
        return Predictive.concatenate([summarize(samples) for samples in moment_samples(net, images, batch_size)])


def summarize(samples: Iterable[Tensor]) -> Predictive:
    """The predictive of any samples: draws from a posterior, members of an ensemble, passes with dropout.

    Args:
        samples: one by one, the logits [n, classes] of the same images.

    Raises:
        ValueError: there is no sample.
    """
    softmax_traces, normalized_traces = _CovarianceTraces(), _CovarianceTraces()
    log_probs = entropies = None
    for logits in samples:
        log_p = logits.log_softmax(-1)
        p = log_p.exp()
        softmax_traces.add(p)
        normalized_traces.add(normalized_softplus(logits))
        log_probs = log_p if log_probs is None else log_probs.add_(log_p)
        h = entropy(p)
        entropies = h if entropies is None else entropies.add_(h)
    if log_probs is None or entropies is None:
        raise ValueError("there is no sample to summarize")
    count = softmax_traces.count
    summaries = (
        softmax_traces.mean,
        log_probs / count,
        entropies / count,
        *softmax_traces.traces(),
        *normalized_traces.traces(),
    )
    return Predictive(*(summary.cpu() for summary in summaries))


def predict_together(count: int, predict: Callable[[Tensor], Predictive], world: World) -> Predictive:
    """The predictive for `count` images, of which each process predicts its share and gets the whole.

    Args:
        count: how many images, at least one per process.
        predict: the predictive for the images at these indices.
        world: the processes; `support.process_group` gives it to a script that torchrun started.
    """
    share = predict(torch.arange(world.rank, count, world.size))
    return Predictive.from_shares(world.all_gather(share))


class _CovarianceTraces:
    """Running mean of probabilities and of their squared distance from it (Welford 1962), one sample at a time."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, probs: Tensor) -> None:
        self.count += 1
        if self.count == 1:
            self.mean, self.scatter = probs.clone(), torch.zeros_like(probs[:, 0])
            self.aleatoric = _one_hot_variance(probs)
            return
        delta = probs - self.mean
        self.mean.add_(delta, alpha=1 / self.count)
        self.scatter.add_((delta * (probs - self.mean)).sum(-1))
        self.aleatoric.add_(_one_hot_variance(probs))

    def traces(self) -> tuple[Tensor, Tensor]:
        """Traces of the epistemic and the aleatoric covariance (Kwon et al. 2018, eq. 4)."""
        return self.scatter / self.count, self.aleatoric / self.count


def _one_hot_variance(probs: Tensor) -> Tensor:
    """Total variance of a one-hot class of these probabilities: trace(diag(p) − p pᵀ) = Σ p(1 − p)."""
    return (probs * (1 - probs)).sum(-1)
