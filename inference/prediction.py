"""The posterior predictive: class probabilities averaged over draws of the weights.

A draw of the posterior is a deterministic network, so a sample costs one deterministic pass and is shared
by every image (Blundell et al. 2015): the exact posterior, whatever estimator trained the network. Draw t
depends on the seed and t alone, never on how the images are cut into batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers import to_deterministic, weight_posteriors
from support import World


@dataclass(frozen=True, eq=False)
class Predictive:
    """Summaries of the posterior predictive for n images, float32 on the CPU; entropies in nats.

    Attributes:
        probs: [n, classes], the mean probabilities p̄ over the samples.
        expected_log_probs: [n, classes], the mean of log p̂_t, for the expected log-likelihood.
        expected_entropy: [n], the mean of H(p̂_t): aleatoric.
        epistemic_softmax, aleatoric_softmax: [n], traces of the two covariances (Kwon et al. 2018, eq. 4)
            with p̂ = softmax(logits).
        epistemic_normalized, aleatoric_normalized: the same with p̂ = softplus(logits) / Σ softplus(logits)
            (Shridhar et al. 2018, eq. 15).
    """

    probs: Tensor
    expected_log_probs: Tensor
    expected_entropy: Tensor
    epistemic_softmax: Tensor
    aleatoric_softmax: Tensor
    epistemic_normalized: Tensor
    aleatoric_normalized: Tensor

    @classmethod
    def concatenate(cls, parts: Sequence[Predictive]) -> Predictive:
        """The whole of images that were predicted one part after the other."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in cls.__annotations__))

    @classmethod
    def from_shares(cls, parts: Sequence[Predictive]) -> Predictive:
        """The whole of what k processes predicted, of which each took every k-th image."""
        count = sum(len(part.probs) for part in parts)

        def whole(name: str) -> Tensor:
            tensors = [getattr(part, name) for part in parts]
            found = tensors[0].new_empty((count, *tensors[0].shape[1:]))
            for rank, tensor in enumerate(tensors):
                found[rank :: len(parts)] = tensor
            return found

        return parts[0] if len(parts) == 1 else cls(*map(whole, cls.__annotations__))

    @property
    def entropy(self) -> Tensor:
        """[n], H(p̄) in nats: the total uncertainty."""
        return entropy(self.probs)

    @property
    def mutual_information(self) -> Tensor:
        """[n], H(p̄) less the mean of H(p̂_t), in nats: epistemic, at least 0."""
        return (self.entropy - self.expected_entropy).clamp_min(0)


def entropy(probs: Tensor) -> Tensor:
    """Entropy in nats over the last axis; 0·log 0 is 0."""
    return torch.special.entr(probs).sum(-1)


def normalized(logits: Tensor) -> Tensor:
    """Probabilities softplus(logits) / Σ softplus(logits) over the last axis (Shridhar et al. 2018, eq. 15)."""
    positive = F.softplus(logits)
    return positive / positive.sum(-1, keepdim=True)


@torch.no_grad()  # of a generator: within each step, not in the code that uses the draws
def posterior_draws(net: nn.Module, num_samples: int, seed: int) -> Iterator[nn.Module]:
    """`num_samples` draws of `net`'s posterior, one at a time, each a deterministic network in eval mode.

    The same network object is yielded each time with the next draw in its weights. A network without
    Bayesian layers is yielded as often, unchanged. `net` itself is left as it is.
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
    """`num_samples`, or 1 for a network without Bayesian layers: all its samples are the same.

    Raises:
        ValueError: fewer than one sample.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    return num_samples if any(True for _ in weight_posteriors(net)) else 1


def logits_of(net: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    """The network's outputs alone, batch by batch, in float32 at least."""
    device = next(net.parameters()).device
    outputs = []
    for batch in images.split(batch_size):
        output = net(batch.to(device, non_blocking=True))
        outputs.append(output[0] if isinstance(output, tuple) else output)
    whole = torch.cat(outputs)
    return whole.to(torch.promote_types(whole.dtype, torch.float32))


def softmax(logits: Tensor) -> Tensor:
    """Probabilities exp(logits) / Σ exp(logits) over the last axis."""
    return logits.softmax(-1)


def predict(
    net: nn.Module,
    images: Tensor,
    num_samples: int = 25,
    batch_size: int = 256,
    seed: int = 0,
    link: Callable[[Tensor], Tensor] = softmax,
) -> Tensor:
    """Class probabilities of every sample: [num_samples, n, classes], on the CPU.

    Args:
        net: a Bayesian or deterministic network; a deterministic one gives a single sample.
        images: [n, channels, height, width], normalized as in training.
        link: from logits to probabilities, `softmax` or `normalized`.
    """
    with torch.inference_mode():
        draws = posterior_draws(net, effective_samples(net, num_samples), seed)
        return torch.stack([link(logits_of(draw, images, batch_size)).cpu() for draw in draws])


def posterior_predictive(
    net: nn.Module, images: Tensor, num_samples: int = 25, batch_size: int = 256, seed: int = 0
) -> Predictive:
    """The summaries of `predict`'s samples without keeping them: memory grows with n alone."""
    with torch.inference_mode():
        draws = posterior_draws(net, effective_samples(net, num_samples), seed)
        return summarized(logits_of(draw, images, batch_size) for draw in draws)


def summarized(samples: Iterable[Tensor]) -> Predictive:
    """The summaries of samples that come one by one, each the logits [n, classes] of the same images.

    Draws of a posterior, members of an ensemble, passes with dropout: whatever disagrees.

    Raises:
        ValueError: no sample.
    """
    plain, positive = _Moments(), _Moments()
    log_probs = entropies = None
    for logits in samples:
        log_p = logits.log_softmax(-1)
        p = log_p.exp()
        plain.add(p)
        positive.add(normalized(logits))
        log_probs = log_p if log_probs is None else log_probs.add_(log_p)
        h = entropy(p)
        entropies = h if entropies is None else entropies.add_(h)
    if log_probs is None or entropies is None:
        raise ValueError("there is no sample to summarize")
    count = plain.count
    parts = plain.mean, log_probs / count, entropies / count, *plain.traces(), *positive.traces()
    return Predictive(*(part.cpu() for part in parts))


def predict_batches(
    net: nn.Module, chunks: Iterable[Tensor], num_samples: int = 25, batch_size: int = 256, seed: int = 0
) -> Predictive:
    """`posterior_predictive` of images that come in chunks, and need never all be in memory."""
    return Predictive.concatenate([posterior_predictive(net, chunk, num_samples, batch_size, seed) for chunk in chunks])


def predict_together(count: int, predict: Callable[[Tensor], Predictive], world: World) -> Predictive:
    """The summaries for `count` images, of which each process predicts its share; all of them get the whole.

    Args:
        count: how many images, at least one a process.
        predict: the summaries for the images of these indices, such as
            `lambda at: posterior_predictive(net, images[at])`.
        world: the processes; `support.process_group` gives it to a script that torchrun started.
    """
    mine = torch.arange(world.rank, count, world.size)
    return Predictive.from_shares(world.all_gather(predict(mine)))


class _Moments:
    """Running mean of probabilities and of their squared distance from it (Welford 1962), a sample at a time."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, probs: Tensor) -> None:
        self.count += 1
        if self.count == 1:
            self.mean, self.scatter, self.aleatoric = probs.clone(), torch.zeros_like(probs[:, 0]), _spread(probs)
            return
        delta = probs - self.mean
        self.mean.add_(delta, alpha=1 / self.count)
        self.scatter.add_((delta * (probs - self.mean)).sum(-1))
        self.aleatoric.add_(_spread(probs))

    def traces(self) -> tuple[Tensor, Tensor]:
        """Traces of the epistemic and the aleatoric covariance (Kwon et al. 2018, eq. 4)."""
        return self.scatter / self.count, self.aleatoric / self.count


def _spread(probs: Tensor) -> Tensor:
    """trace(diag(p) − p pᵀ) = Σ p(1 − p)."""
    return (probs * (1 - probs)).sum(-1)
