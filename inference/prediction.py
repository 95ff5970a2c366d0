"""The posterior predictive: class probabilities averaged over draws of the weights.

A draw of the posterior is a deterministic network, so a sample costs one deterministic pass and is shared by every
image (Blundell et al. 2015). The draws are from the variational posterior itself, whichever estimator trained the
network. Draw t depends on the seed and t alone, not on how the images are split into batches.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from images import chunk_size
from inference.distributions import plain_network, random_weights, refuse_distribution, sampler
from inference.prefix import OtherCallsError, Prefix
from layers.kernels import at_least_float32
from likelihoods import Predictive, Summaries, Summary, entropy, get_likelihood, normalized_softplus, softmax
from moments import Propagation
from support import UserError, World

METHODS = ("draws", "moments")  # of `posterior_predictive`
MAPS = 32  # of 32×32, whose draws by moments are in memory at a time
PREFIX_BYTES = 2**28  # that may be kept of what comes before the first random weight


@torch.no_grad()  # of a generator: only while it makes a draw, not in the code that uses the draws
def posterior_draws(net: nn.Module, num_samples: int, seed: int) -> Iterator[nn.Module]:
    """Draws from the posterior of `net`, one at a time, each a deterministic network in eval mode.

    The same network object is yielded each time, with the next draw in its weights. A network without Bayesian layers
    is yielded unchanged. `net` itself is not modified.

    Args:
        net: a Bayesian or deterministic network, or a `WeightDistribution`.
        num_samples: how many draws.
        seed: draw t depends on it and t alone.
    """
    twin = plain_network(net)
    weights = [twin.get_parameter(name) for name in random_weights(net)]
    draw = sampler(net)
    generator = torch.Generator()

    def noise(like: Tensor) -> Tensor:  # on the CPU in float32: the same draw on every device
        return torch.empty(like.shape, device="cpu").normal_(generator=generator).to(like)

    for sample in range(num_samples):
        generator.manual_seed((seed * 1_000_003 + sample) % 2**63)
        if weights:
            for weight, value in zip(weights, draw(noise), strict=True):
                weight.copy_(value)
            torch.clear_autocast_cache()  # of copies in lower precision, which are of the draw before
        yield twin


def effective_samples(net: nn.Module, num_samples: int) -> int:
    """`num_samples`, or 1 for a network without Bayesian layers, whose samples are all the same.

    Raises:
        ValueError: `num_samples` is below 1.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    return num_samples if random_weights(net) else 1


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


def batched_outputs(
    net: nn.Module, inputs: Tensor, batch_size: int, prefixes: Sequence[Prefix] | None = None
) -> Tensor:
    """The network's outputs without the KL, computed batch by batch, in float32 or wider.

    Args:
        net: any network.
        inputs: [n, ...].
        batch_size: inputs per pass.
        prefixes: for each batch, what earlier passes of the same network over it have kept.

    Raises:
        ValueError: they are no floating-point tensor [n, outputs, ...].
    """
    device = next(net.parameters(), inputs).device
    outputs = []
    for index, batch in enumerate(inputs.split(batch_size)):
        prefix = None if prefixes is None else prefixes[index]
        outputs.append(_checked(_output(net, batch.to(device, non_blocking=True), prefix), len(batch)))
    return torch.cat(outputs)


def _output(net: nn.Module, batch: Tensor, prefix: Prefix | None) -> Any:
    if prefix is not None:
        with suppress(OtherCallsError), prefix:
            return net(batch)
        prefix.forget()
    return net(batch)


def _checked(output: Any, count: int) -> Tensor:
    output = output[0] if isinstance(output, tuple) else output
    if not isinstance(output, Tensor):
        raise ValueError(f"expected a network that returns a tensor, or a tuple with it, got {type(output).__name__}")
    if not output.is_floating_point() or output.dim() < 2 or len(output) != count:
        raise ValueError(
            f"expected floating-point outputs [{count}, outputs, ...] for {count} inputs, got "
            f"{list(output.shape)} of {output.dtype}"
        )
    return at_least_float32(output)


def posterior_outputs(net: nn.Module, inputs: Tensor, num_samples: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """The outputs (logits [n, classes] of a classifier) of one draw from the posterior after the other."""
    draws = posterior_draws(net, effective_samples(net, num_samples), seed)
    return _outputs_of_draws(draws, list(random_weights(net)), inputs, batch_size)


@torch.no_grad()
def _outputs_of_draws(
    draws: Iterable[nn.Module], names: Sequence[str], inputs: Tensor, batch_size: int
) -> Iterator[Tensor]:
    """The outputs of one network whose weights of these names change between draws.

    What it computes before the first of these weights, it computes for the first draw alone, unless it draws random
    numbers there or computes other things for the next draw.
    """
    prefixes: list[Prefix] = []
    for draw in draws:
        prefixes = prefixes or [Prefix(map(draw.get_parameter, names)) for _ in inputs.split(batch_size)]
        yield batched_outputs(draw, inputs, batch_size, prefixes)
        for prefix, total in zip(prefixes, accumulate(prefix.nbytes for prefix in prefixes), strict=True):
            if total > PREFIX_BYTES:
                prefix.forget()


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
    outputs = posterior_outputs(net, images, num_samples, batch_size, seed)
    with torch.no_grad():
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
    temperature: float = 1.0,
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
        temperature: as for `summarize`.

    Raises:
        ValueError: `num_samples` is below 1, the method or the likelihood is unknown, or the outputs are not what the
            likelihood reads.
        UserError: by moments, the network is a `WeightDistribution`.
        MissingRuleError: by moments, the network has an operation without a rule.
    """
    check_method(method)
    if method == "moments":
        return Predictor(net, method=method, likelihood=likelihood, temperature=temperature)(images, batch_size)
    outputs = posterior_outputs(net, images, num_samples, batch_size, seed)
    return summarize(outputs, likelihood=likelihood, temperature=temperature)


def check_method(method: str) -> None:
    """Refuse a way to predict that is not one of `METHODS`, by a ValueError."""
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: expected {' or '.join(map(repr, METHODS))}")


class Predictor:
    """The posterior predictive of one network, again and again: draws, or the moments of its weights, are kept.

    A call gives what `posterior_predictive` gives, to rounding. By draws, a few images go through all draws at once.

    Args:
        net: a Bayesian or deterministic network, of which a copy is kept.
        num_samples: draws from the posterior, each the size of the network.
        seed: of the draws.
        method: 'draws' or 'moments', as for `posterior_predictive`.
        likelihood: what the outputs are, as for `summarize`.
        temperature: as for `summarize`.
        fit_to: by moments, images [n, ...] as those of a call, of validation for example. The covariances of the
            logits are corrected so that on average they are those of `num_samples` draws on these images; 64 images
            suffice. Moments alone do not know how convolutions' outputs are correlated, and understate them.

    Raises:
        ValueError: `num_samples` is below 1 (2 for a fit), the method or the likelihood is unknown, or `fit_to` is not
            for moments.
        UserError: by moments, the network is a `WeightDistribution`.
    """

    @torch.no_grad()
    def __init__(
        self,
        net: nn.Module,
        num_samples: int = 25,
        seed: int = 0,
        *,
        method: str = "draws",
        likelihood: str | None = None,
        temperature: float = 1.0,
        fit_to: Tensor | None = None,
    ) -> None:
        check_method(method)
        get_likelihood(likelihood)
        if fit_to is not None and (method != "moments" or num_samples < 2):
            raise ValueError("fit_to expects the method 'moments' and at least 2 samples: leave it out otherwise")
        self.likelihood, self.temperature = likelihood, temperature
        self._propagation: Propagation | None = None
        if method == "moments":
            refuse_distribution(net)
            self._net = copy.deepcopy(net).eval()
            self._propagation = Propagation(self._net)
            if fit_to is not None and random_weights(net):
                outputs = torch.stack(list(posterior_outputs(self._net, fit_to, num_samples, 256, seed)))
                self._propagation.fit(fit_to.to(outputs.device), outputs)
            return
        self._net = plain_network(net)
        self._count = effective_samples(net, num_samples)
        self._draws = {name: mean.new_empty(self._count, *mean.shape) for name, mean in random_weights(net).items()}
        for sample, draw in enumerate(posterior_draws(net, self._count, seed)):
            for name, draws in self._draws.items():
                draws[sample] = draw.get_parameter(name)

    @torch.no_grad()
    def __call__(self, images: Tensor, batch_size: int = 256) -> Predictive:
        """The predictive for images [n, channels, height, width], normalized as in training.

        Raises:
            ValueError: the outputs are not what the likelihood reads.
            MissingRuleError: by moments, the network has an operation without a rule.
        """
        if self._propagation is None:
            return summarize_blocks(self.outputs(images, batch_size), self.likelihood, self.temperature)
        if self.likelihood == "categorical":  # maps, whose draws are large
            batch_size = min(batch_size, chunk_size(images.shape[-2:], MAPS))
        return Predictive.concatenate(
            [
                summarize_blocks(self.outputs(batch), self.likelihood, self.temperature)
                for batch in images.split(batch_size)
            ]
        )

    @torch.no_grad()
    def outputs(self, images: Tensor, batch_size: int = 256) -> Iterable[Tensor]:
        """The outputs by each sample: by each draw, or, by moments, draws of the outputs, in one pass.

        Args:
            images: as for a call.
            batch_size: images per pass; by moments, all images are in one.

        Returns:
            Blocks [k, n, outputs, ...] of k samples.
        """
        batch = images.to(next(self._net.parameters(), images).device)
        if self._propagation is not None:
            return [self._propagation.draws(batch)]
        if self._draws and 1 < self._count * len(images) <= batch_size:
            with suppress(RuntimeError):  # an operation that cannot take all draws at once
                return [vmap(lambda draw: _checked(functional_call(self._net, draw, batch), len(batch)))(self._draws)]
        return (each[None] for each in _outputs_of_draws(self._each_draw(), list(self._draws), images, batch_size))

    def _each_draw(self) -> Iterator[nn.Module]:
        for sample in range(self._count):
            for name, draws in self._draws.items():
                self._net.get_parameter(name).copy_(draws[sample])
            torch.clear_autocast_cache()  # as in `posterior_draws`
            yield self._net


def summarize(samples: Iterable[Tensor], *, likelihood: str | None = None, temperature: float = 1.0) -> Predictive:
    """The predictive of any samples: draws from a posterior, members of an ensemble, passes with dropout.

    Args:
        samples: one by one, the outputs for the same images: logits [n, classes], or what the likelihood reads.
        likelihood: None for logits [n, classes] of one of at least 2 classes. 'categorical' also for maps of them,
            [n, classes, ...]. 'bernoulli' for one logit per label, [n, labels], of which each applies or not; the
            summaries are then a `BernoulliPredictive`.
        temperature: what all logits are divided by (Guo et al. 2017, section 4.2): above 1 for less confidence.

    Raises:
        ValueError: there is no sample, the likelihood is unknown, or the samples are not what it reads.
    """
    return summarize_blocks((sample[None] for sample in samples), likelihood, temperature)


def summarize_blocks(blocks: Iterable[Tensor], likelihood: str | None, temperature: float) -> Predictive:
    """`summarize`, of blocks of samples [k, n, outputs, ...] instead of one sample after the other."""
    reading = get_likelihood(likelihood)
    softmax_traces, normalized_traces = _CovarianceTraces(reading.total), _CovarianceTraces(reading.total)
    log_sums, log_totals = torch.zeros(()), torch.tensor(-math.inf)  # Σ log p̂ and log Σ p̂ over the samples
    entropies = torch.zeros(())  # Σ H(p̂)
    energies, votes = torch.zeros(()), torch.zeros(())  # Σ −log Σ exp(logit), and the samples for each choice
    for block in blocks:
        block = at_least_float32(block.detach())
        logits = reading.logits(block.flatten(0, 1)).unflatten(0, block.shape[:2]) / temperature
        log_p = logits.log_softmax(-1)
        p = log_p.exp()
        softmax_traces.add(p)
        normalized_traces.add(normalized_softplus(logits))
        log_sums = log_sums + log_p.sum(0)
        log_totals = torch.logaddexp(log_totals.to(log_p), log_p.logsumexp(0))
        entropies = entropies + entropy(p).sum(0)
        energies = energies - logits.logsumexp(-1).sum(0)
        votes = votes + F.one_hot(logits.argmax(-1), logits.shape[-1]).sum(0)
    if not softmax_traces.count:
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
        energies / count,
        1 - votes.amax(-1) / count,
        torch.ones_like(entropies, dtype=torch.bool),
    )
    return reading.predictive(*(summary.cpu() for summary in summaries))


def predict_together(count: int, predict: Callable[[Tensor], Summary], world: World) -> Summary:
    """The predictive for `count` images, of which each process predicts its share and gets the whole.

    Args:
        count: how many images, at least one per process.
        predict: the predictive for the images at these indices.
        world: the processes; `support.process_group` gives it to a script that torchrun started.
    """
    share = predict(torch.arange(world.rank, count, world.size))
    return Summaries.from_shares(world.all_gather(share))


class _CovarianceTraces:
    """Running mean of probabilities and of their squared distance from it, one block of samples at a time.

    Two sets of k and N samples, of means m and M, have together the sum of squared distances of the first, that of the
    second, and kN/(k + N) · (m − M)² (Chan et al. 1979).

    Args:
        total: from a variance per choice, on the last axis, to that of the prediction.
    """

    def __init__(self, total: Callable[[Tensor], Tensor]) -> None:
        self.total = total
        self.count = 0

    def add(self, probs: Tensor) -> None:
        """Add samples [k, ..., choices]."""
        size, mean = len(probs), probs.mean(0)
        aleatoric = self.total((probs * (1 - probs)).sum(0))
        scatter = self.total((probs - mean).square().sum(0))
        if self.count == 0:
            self.count, self.mean, self.scatter, self.aleatoric = size, mean, scatter, aleatoric
            return
        delta = mean - self.mean
        self.scatter.add_(scatter).add_(self.total(delta.square()), alpha=size * self.count / (size + self.count))
        self.aleatoric.add_(aleatoric)
        self.count += size
        self.mean.add_(delta, alpha=size / self.count)

    def traces(self) -> tuple[Tensor, Tensor]:
        """Traces of the epistemic and the aleatoric covariance (Kwon et al. 2018, eq. 4)."""
        return self.scatter / self.count, self.aleatoric / self.count
