"""The posterior predictive: class probabilities averaged over draws of the weights.

A draw of the posterior is a deterministic network, so a sample costs one deterministic pass and is shared by every
image (Blundell et al. 2015). The draws are from the variational posterior itself, whichever estimator trained the
network. Draw t depends on the seed and t alone, not on how the images are split into batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from inference.likelihoods import Predictive, entropy, get_likelihood, normalized_softplus, softmax
from layers import to_deterministic, weight_posteriors
from moments import moment_samples
from support import UserError, World

METHODS = ("draws", "moments")  # of `posterior_predictive`


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


def check_finite(net: nn.Module, source: object) -> None:
    """Refuse a network whose weights are not all finite, as those of training that diverged are.

    Args:
        net: any network.
        source: what it is, for the message: its file.

    Raises:
        UserError: a parameter holds a value that is not finite.
    """
    for name, parameter in net.named_parameters():
        if not parameter.isfinite().all():
            raise UserError(
                f"{source} has weights that are not finite ({name}): train it again, with a smaller lr_start"
            )


def batched_outputs(net: nn.Module, inputs: Tensor, batch_size: int) -> Tensor:
    """The network's outputs without the KL, computed batch by batch, in float32 or wider.

    Raises:
        ValueError: they are no floating-point tensor [n, outputs, ...].
    """
    device = next(net.parameters()).device
    batches = []
    for batch in inputs.split(batch_size):
        output = net(batch.to(device, non_blocking=True))
        output = output[0] if isinstance(output, tuple) else output
        if not isinstance(output, Tensor):
            raise ValueError(
                f"expected a network that returns a tensor, or a tuple with it, got {type(output).__name__}"
            )
        if not output.is_floating_point() or output.dim() < 2 or len(output) != len(batch):
            raise ValueError(
                f"expected floating-point outputs [{len(batch)}, outputs, ...] for {len(batch)} inputs, got "
                f"{list(output.shape)} of {output.dtype}"
            )
        batches.append(output)
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
    *,
    likelihood: str | None = None,
) -> Tensor:
    """Class probabilities of every sample.

    Args:
        net: a Bayesian or deterministic network; a deterministic one gives a single sample.
        images: [n, channels, height, width], normalized as in training.
        num_samples: draws from the posterior.
        batch_size: images per forward pass.
        seed: of the draws.
        link: from logits to probabilities over the last axis, `softmax` or `normalized_softplus`.
        likelihood: what the outputs are, as for `summarize`.

    Returns:
        [num_samples, n, classes], on the CPU; with another likelihood [num_samples, *outputs].

    Raises:
        ValueError: `num_samples` is below 1, the likelihood is unknown, or the outputs are not what it reads.
    """
    reading = get_likelihood(likelihood)
    with torch.inference_mode():
        outputs = posterior_outputs(net, images, num_samples, batch_size, seed)
        return torch.stack([reading.probs(output, link).cpu() for output in outputs])


def posterior_predictive(
    net: nn.Module,
    images: Tensor,
    num_samples: int = 25,
    batch_size: int = 256,
    seed: int = 0,
    *,
    method: str = "draws",
    likelihood: str | None = None,
) -> Predictive:
    """The summaries of the posterior predictive: mean probabilities and uncertainties.

    Args:
        net: a Bayesian or deterministic network; a deterministic one gives a single sample.
        images: [n, channels, height, width], normalized as in training.
        num_samples: draws from the posterior.
        batch_size: images per forward pass.
        seed: of the draws.
        method: 'draws' for samples of the network, whose number does not add to memory; 'moments' for a single pass
            that carries means and variances instead (the room `moments`), where `num_samples` and `seed` do nothing.
        likelihood: what the outputs are, as for `summarize`.

    Raises:
        ValueError: `num_samples` is below 1, the method or the likelihood is unknown, or the outputs are not what the
            likelihood reads.
        NotImplementedError: by moments, the network has an operation without a rule.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: expected {' or '.join(map(repr, METHODS))}")
    with torch.inference_mode():
        if method == "draws":
            samples = posterior_outputs(net, images, num_samples, batch_size, seed)
            return summarize(samples, likelihood=likelihood)
        batches = moment_samples(net, images, batch_size)
        return Predictive.concatenate([summarize(samples, likelihood=likelihood) for samples in batches])


def summarize(samples: Iterable[Tensor], *, likelihood: str | None = None) -> Predictive:
    """The predictive of any samples: draws from a posterior, members of an ensemble, passes with dropout.

    Args:
        samples: one by one, the outputs for the same images: logits [n, classes], or what the likelihood reads.
        likelihood: None for logits [n, classes] of one of at least 2 classes. 'categorical' also for maps of them,
            [n, classes, ...]. 'bernoulli' for one logit per label, [n, labels], of which each applies or not; the
            summaries are then a `BernoulliPredictive`.

    Raises:
        ValueError: there is no sample, the likelihood is unknown, or the samples are not what it reads.
    """
    reading = get_likelihood(likelihood)
    softmax_traces, normalized_traces = _CovarianceTraces(reading.total), _CovarianceTraces(reading.total)
    log_sums = log_totals = entropies = None  # Σ log p̂, log Σ p̂ and Σ H(p̂) over the samples
    for output in samples:
        logits = reading.logits(output)
        log_p = logits.log_softmax(-1)
        p = log_p.exp()
        softmax_traces.add(p)
        normalized_traces.add(normalized_softplus(logits))
        log_totals = log_p.clone() if log_totals is None else torch.logaddexp(log_totals, log_p, out=log_totals)
        log_sums = log_p if log_sums is None else log_sums.add_(log_p)
        h = entropy(p)
        entropies = h if entropies is None else entropies.add_(h)
    if log_totals is None or log_sums is None or entropies is None:
        raise ValueError("there is no sample to summarize")
    count, mean = softmax_traces.count, softmax_traces.mean
    # The logarithm of the mean is the more accurate one, where the mean has not rounded to 0.
    underflowed = mean < torch.finfo(mean.dtype).tiny
    log_probs = torch.where(underflowed, log_totals - math.log(count), mean.log().clamp_max(0))
    summaries = (
        reading.from_choices(mean),
        log_sums / count,
        entropies / count,
        *softmax_traces.traces(),
        *normalized_traces.traces(),
        log_probs,
    )
    return reading.predictive(*(summary.cpu() for summary in summaries))


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
    """Running mean of probabilities and of their squared distance from it (Welford 1962), one sample at a time.

    Args:
        total: from a variance per choice, on the last axis, to that of the prediction.
    """

    def __init__(self, total: Callable[[Tensor], Tensor]) -> None:
        self.total = total
        self.count = 0

    def add(self, probs: Tensor) -> None:
        self.count += 1
        one_hot_variance = self.total(probs * (1 - probs))
        if self.count == 1:
            self.mean, self.scatter = probs.clone(), torch.zeros_like(one_hot_variance)
            self.aleatoric = one_hot_variance.clone()
            return
        delta = probs - self.mean
        self.mean.add_(delta, alpha=1 / self.count)
        self.scatter.add_(self.total(delta * (probs - self.mean)))
        self.aleatoric.add_(one_hot_variance)

    def traces(self) -> tuple[Tensor, Tensor]:
        """Traces of the epistemic and the aleatoric covariance (Kwon et al. 2018, eq. 4)."""
        return self.scatter / self.count, self.aleatoric / self.count
