"""Learning in sequence: yesterday's posterior is today's prior (variational continual learning, Nguyen et al. 2018).

Tasks come one after the other, and the images of an earlier one are gone when a later one comes. A task is a `Split`,
its learner a network that takes the split's own uint8 images and returns (logits, kl). Algorithm 2 of the paper is

    coreset, rest = random_coreset(task, 200)  # kept out of training
    fit_task(net, rest, epochs=50)
    posterior_as_prior(net)  # of `layers`: what the network knows is now its prior
    ready = fitted_to_coreset(net, coreset, epochs=50)  # a copy, for prediction alone

per task. With one head, `net` is the same network for every task, and `coreset` holds those of all tasks so far. With
a head per task, the learners share a body: `ModuleWrapper(body, head)` per head. Then only the heads of tasks that have
come are in the KL, and an untouched head stays at its start.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from images import Split
from layers import kl_divergence, parameter_groups
from support import UserError
from training.objective import negative_elbo


def fit_task(
    net: nn.Module,
    task: Split,
    epochs: int,
    *,
    batch_size: int = 256,
    lr: float = 1e-3,
    lr_spread_factor: float = 10.0,
    beta: float = 1.0,
    seed: int = 0,
) -> None:
    """Minimize the negative ELBO of one task, from where the network is; Adam, the rates fall to 0 linearly.

    Noise comes from torch's global generator.

    A β below 1 is for sequences (Loo et al. 2021). With the same β for every task, each image counts 1/β times, of
    earlier tasks and of this one alike: NLL + β KL(q‖p)/N is 1/N times the negative ELBO of N/β images, times β. What
    an earlier task says against this one is thus as strong as at 1, but it is said within narrower deviations, in which
    an independent normal is closer to the truth, and fewer weights stay as the prior has them.

    Args:
        net: takes the task's uint8 images and returns (logits, kl); with plain `torch.nn` layers in a `ModuleWrapper`
            it is a deterministic twin, whose KL is 0.
        task: images and labels; N of the objective is their number.
        epochs: passes over them.
        batch_size: images per step.
        lr: the learning rate of the posterior means at the start.
        lr_spread_factor: that of ρ, as a multiple of `lr`.
        beta: the weight of the KL.
        seed: of the order of the images.

    Raises:
        UserError: the task has no image.
    """
    fit_jointly(
        [net], [task], epochs, batch_size=batch_size, lr=lr, lr_spread_factor=lr_spread_factor, beta=beta, seed=seed
    )


def fit_jointly(
    nets: Sequence[nn.Module],
    tasks: Sequence[Split],
    epochs: int,
    *,
    batch_size: int = 256,
    lr: float = 1e-3,
    lr_spread_factor: float = 10.0,
    beta: float = 1.0,
    seed: int = 0,
) -> None:
    """Minimize the negative ELBO of several tasks at once: what learning in sequence is measured against.

    Each step takes a batch of one task, and the tasks alternate at random. N is the number of all images, and the KL
    that of all weights, each counted once.

    Args:
        nets: the learner of each task; they may share weights, or be one network.
        tasks: as many, images and labels.
        epochs: passes over all of them.
        batch_size: as for `fit_task`.
        lr: as for `fit_task`.
        lr_spread_factor: as for `fit_task`.
        beta: as for `fit_task`.
        seed: of the order of the images and of the tasks.

    Raises:
        UserError: the tasks have no image.
    """
    learners = nn.ModuleList(nets).train()
    device = next(learners.parameters()).device
    optimizer = torch.optim.Adam(parameter_groups(learners, lr, lr_spread_factor), fused=True)
    generator = torch.Generator().manual_seed(seed)
    train_size = sum(map(len, tasks))
    if not train_size:
        raise UserError("there is no image to learn from: give tasks of at least one")
    steps = epochs * sum(-(-len(task) // batch_size) for task in tasks)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(epochs):
        orders = [torch.randperm(len(task), generator=generator) for task in tasks]
        batches = [(index, batch) for index, order in enumerate(orders) for batch in order.split(batch_size)]
        for which in torch.randperm(len(batches), generator=generator).tolist():
            index, batch = batches[which]
            images, labels = next(tasks[index].batches(batch_size, batch))
            logits, kl = nets[index](images.to(device))
            kl = kl if len(nets) == 1 else kl_divergence(learners)
            loss = negative_elbo(F.cross_entropy(logits, labels.to(device)), kl, beta, train_size)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()


def fitted_to_coreset(net: nn.Module, coreset: Split, epochs: int, **settings: Any) -> nn.Module:
    """A copy of a network that has learned a coreset as well, for prediction alone (Nguyen et al. 2018, algorithm 2).

    The network itself goes on to the next task without it: had it learned the coreset, it would count it twice at the
    next prediction.

    Args:
        net: whose prior is its posterior: call `posterior_as_prior` first.
        coreset: images that no call of `fit_task` has seen, of one task or of several.
        epochs: passes over them.
        settings: the further arguments of `fit_task`.
    """
    copied = copy.deepcopy(net)
    fit_task(copied, coreset, epochs, **settings)
    return copied


def random_coreset(task: Split, size: int, seed: int = 0) -> tuple[Split, Split]:
    """Divide a task at random into a coreset of `size` images and the rest, to train on.

    Raises:
        UserError: `size` is not from 1 to one less than the images of the task.
    """
    _check_size(task, size)
    order = torch.randperm(len(task), generator=torch.Generator().manual_seed(seed))
    return _divide(task, order[:size])


def k_center_coreset(task: Split, size: int, seed: int = 0) -> tuple[Split, Split]:
    """Divide a task into a coreset of `size` images that are far from each other, and the rest, to train on.

    From a random first one on, the next is always the image that is farthest from all that are chosen, in Euclidean
    distance of the pixels: the greedy algorithm of Gonzalez (1985).

    Raises:
        UserError: `size` is not from 1 to one less than the images of the task, or they do not fit in memory.
    """
    _check_size(task, size)
    pixels = _in_memory(task).flatten(1).float() / 255
    squares = pixels.square().sum(1)
    chosen = [int(torch.randint(len(task), (), generator=torch.Generator().manual_seed(seed)))]
    nearest = torch.full_like(squares, torch.inf)  # squared distance to the nearest chosen one
    while len(chosen) < size:
        newest = chosen[-1]
        nearest = torch.minimum(nearest, squares - 2 * pixels @ pixels[newest] + squares[newest])
        nearest[newest] = -1  # below rounding errors: duplicates of it come last, it itself never
        chosen.append(int(nearest.argmax()))
    return _divide(task, torch.tensor(chosen))


def join_tasks(tasks: Sequence[Split]) -> Split:
    """Several tasks, or their coresets, as one.

    Raises:
        UserError: their images do not fit in memory.
    """
    return Split(torch.cat([_in_memory(task) for task in tasks]), torch.cat([task.labels for task in tasks]))


def _in_memory(task: Split) -> Tensor:
    if not isinstance(task.images, Tensor):
        raise UserError("the images do not fit in memory: give fewer, or choose a random coreset of one task")
    return task.images


def _check_size(task: Split, size: int) -> None:
    if not 0 < size < len(task):
        raise UserError(f"a coreset of {size} images, from a task of {len(task)}: expected from 1 to {len(task) - 1}")


def _divide(task: Split, chosen: Tensor) -> tuple[Split, Split]:
    rest = torch.ones(len(task), dtype=torch.bool)
    rest[chosen] = False
    return task.subset(chosen), task.subset(rest.nonzero().flatten())
