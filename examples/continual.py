"""Learn tasks one after the other, each with the posterior of those before it as its prior.

Four problems: "permuted" has ten tasks, each the ten digits under its own permutation of the pixels, and one head;
"split" has five tasks of two digits each, and a head per task; "incremental" has the same tasks and one head for all
ten digits; "streaming" has one task, in 20 parts that come one after the other. Beside the Bayesian network, its twin
is trained in sequence, where it forgets, also with coresets, and on all tasks at once, which bounds what a sequence can
reach. Adds the accuracies of every task after every task to a JSON record, and draws them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms

from images import Split, load_data
from inference import posterior_predictive
from layers import BBBLinear, ModuleWrapper, posterior_as_prior
from likelihoods import scores
from support import (
    BLUE,
    GREEN,
    ORANGE,
    PINK,
    OneLineParser,
    UserError,
    argument,
    figure_style,
    number,
    report_user_errors,
    save_figure,
    tune_cpu,
    versions,
    whole,
    write_json,
)
from training import fit_jointly, fit_task, fitted_to_coreset, join_tasks, k_center_coreset, random_coreset

SIDE = 28  # pixels, as in the papers
CORESETS = {"random": random_coreset, "k-center": k_center_coreset}
BAYESIAN, WITH_CORESETS, TWIN, TWIN_WITH_CORESETS, JOINT = (
    "Bayesian, in sequence",
    "with coresets",
    "twin, in sequence",
    "twin, with coresets",
    "twin, all at once",
)
SEQUENCES = {BAYESIAN: BLUE, WITH_CORESETS: GREEN, TWIN: ORANGE, TWIN_WITH_CORESETS: PINK}

Accuracies = list[list[float]]  # a row per learned task: those of this and all earlier tasks


class Problem(NamedTuple):
    """Tasks, and the size of the two-layer network that learns them (Nguyen et al. 2018, section 6).

    Attributes:
        tasks: a training and a test split each.
        width: units per hidden layer.
        heads: 1, or one per task.
        outputs: per head.
    """

    tasks: list[tuple[Split, Split]]
    width: int
    heads: int
    outputs: int


def permuted(train: Split, test: Split, count: int, seed: int) -> Problem:
    """The pixels as they are, and then in `count` − 1 random orders."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.arange(SIDE**2), *(torch.randperm(SIDE**2, generator=generator) for _ in range(count - 1))]
    tasks = [
        (Split(_pixels(train)[:, order], train.labels), Split(_pixels(test)[:, order], test.labels)) for order in orders
    ]
    return Problem(tasks, width=100, heads=1, outputs=10)


def split(train: Split, test: Split, count: int, seed: int) -> Problem:
    """0 or 1, 2 or 3, … 8 or 9; the task is known in prediction."""
    pairs = incremental(train, test, count, seed).tasks
    tasks = [(Split(a.images, a.labels % 2), Split(b.images, b.labels % 2)) for a, b in pairs]
    return Problem(tasks, width=256, heads=count, outputs=2)


def incremental(train: Split, test: Split, count: int, seed: int) -> Problem:
    """0 and 1, then 2 and 3, … then 8 and 9; in prediction any of the ten."""

    def pair(images: Split, number: int) -> Split:
        return images.subset((images.labels // 2 == number).nonzero().flatten())

    return Problem([(pair(train, number), pair(test, number)) for number in range(count)], 256, heads=1, outputs=10)


def streaming(train: Split, test: Split, count: int, seed: int) -> Problem:
    """One task in parts, each with the same test split."""
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    return Problem([(train.subset(part), test) for part in order.tensor_split(count)], width=100, heads=1, outputs=10)


PROBLEMS = {  # and how many tasks they have
    "permuted": (permuted, 10),
    "split": (split, 5),
    "incremental": (incremental, 5),
    "streaming": (streaming, 20),
}


class Pixels(nn.Module):
    """uint8 pixels to floats in [0, 1]."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Of the same shape."""
        return pixels.float() / 255


def learners(problem: Problem, layer: Callable[[int, int], nn.Module]) -> list[nn.Module]:
    """The network of each task: a body with two hidden layers that all share, and one head, or a head each."""
    width = problem.width
    body = nn.Sequential(Pixels(), layer(SIDE**2, width), nn.ReLU(), layer(width, width), nn.ReLU())
    nets: list[nn.Module] = [ModuleWrapper(body, layer(width, problem.outputs)) for _ in range(problem.heads)]
    return nets if problem.heads > 1 else nets * len(problem.tasks)


def bayesian_learners(problem: Problem, args: argparse.Namespace) -> list[nn.Module]:
    """The same, Bayesian, by local reparameterization."""
    priors = {"prior_sigma": args.prior_sigma, "posterior_rho_initial": (args.rho, 0.0)}
    return learners(problem, lambda inputs, outputs: BBBLinear(inputs, outputs, layer_type="lrt", priors=priors))


def steps_of(args: argparse.Namespace) -> dict[str, Any]:
    """How a posterior is fitted, to a task or to coresets."""
    return {"lr": args.lr, "lr_spread_factor": args.lr_spread_factor, "beta": args.beta}


def in_sequence(problem: Problem, args: argparse.Namespace, seed: int) -> dict[str, Accuracies]:
    """Learn the tasks one after the other, by the Bayesian network and by its twin."""
    nets, twins = bayesian_learners(problem, args), learners(problem, nn.Linear)
    steps: dict[str, Any] = {"batch_size": args.batch_size, "lr": args.lr, "seed": seed}
    ours = steps | steps_of(args)
    rows: dict[str, Accuracies] = {name: [] for name in SEQUENCES}
    coresets: list[Split] = []
    for count, (net, twin, (task, _)) in enumerate(zip(nets, twins, problem.tasks, strict=True), start=1):
        coreset, rest = CORESETS[args.choose](task, args.coreset, seed)
        coresets.append(coreset)
        fit_task(net, rest, args.epochs, **ours)
        posterior_as_prior(net)
        fit_task(twin, task, args.twin_epochs, **steps)
        rows[BAYESIAN].append(accuracies(nets, problem, count, args))
        rows[WITH_CORESETS].append(accuracies(with_coresets(nets, coresets, args), problem, count, args))
        rows[TWIN].append(accuracies(twins, problem, count, args))
        rows[TWIN_WITH_CORESETS].append(accuracies(with_coresets(twins, coresets, args), problem, count, args))
        means = ", ".join(f"{name} {_mean(accuracies[-1]):.2%}" for name, accuracies in rows.items())
        print(f"seed {seed}, task {count} of {len(problem.tasks)}: {means}", flush=True)
    return rows


def with_coresets(nets: Sequence[nn.Module], coresets: Sequence[Split], args: argparse.Namespace) -> list[nn.Module]:
    """The networks for prediction: one head learns the coresets of all tasks so far, a head per task its own."""
    steps = {"epochs": args.coreset_epochs, **steps_of(args)}
    if nets[0] is nets[-1]:
        return [fitted_to_coreset(nets[0], join_tasks(coresets), **steps)] * len(coresets)
    return [fitted_to_coreset(net, coreset, **steps) for net, coreset in zip(nets, coresets, strict=False)]


def jointly(problem: Problem, args: argparse.Namespace, seed: int) -> list[float]:
    """The accuracies of a twin that has all tasks at once."""
    twins, tasks = learners(problem, nn.Linear), [task for task, _ in problem.tasks]
    fit_jointly(twins, tasks, args.twin_epochs, batch_size=args.batch_size, lr=args.lr, seed=seed)
    return accuracies(twins, problem, len(tasks), args)


def accuracies(nets: Sequence[nn.Module], problem: Problem, count: int, args: argparse.Namespace) -> list[float]:
    """Of the first `count` tasks, each by its own network."""
    return [evaluate(nets[index], problem.tasks[index][1], args)["accuracy"] for index in range(count)]


def evaluate(net: nn.Module, test: Split, args: argparse.Namespace) -> dict[str, float]:
    """Accuracy, NLL, Brier score and ECE of the posterior predictive."""
    return scores(posterior_predictive(net, _pixels(test), args.num_samples, batch_size=1000), test.labels)


def in_parts(problem: Problem, args: argparse.Namespace, seed: int) -> dict[str, dict[str, float]]:
    """The scores of a network that has the data in parts, one after the other, and of one that has them at once."""
    parts, test = [part for part, _ in problem.tasks], problem.tasks[0][1]
    steps = {"batch_size": args.batch_size, "seed": seed, **steps_of(args)}
    results = {}
    for name, tasks in (("in parts", parts), ("at once", [join_tasks(parts)])):
        net = bayesian_learners(problem, args)[0]
        for task in tasks:
            fit_task(net, task, args.epochs, **steps)
            posterior_as_prior(net)
        results[name] = evaluate(net, test, args)
        print(f"seed {seed}, {name}: {', '.join(f'{key} {value:.4f}' for key, value in results[name].items())}")
    return results


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Solve the problem that the command line names, for each seed; returns the results by seed."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    args = parse_arguments(words)
    read_record(args.record)  # what cannot be added to is better known before the training
    tune_cpu()
    data = load_data(args.dataset, args.data_dir, valid_size=0.1, seed=0)
    train, test = _flattened(data.train), _flattened(data.valid if args.valid else data.test)
    make, count = PROBLEMS[args.problem]
    results: dict[str, Any] = {}
    for seed in args.seeds:
        torch.manual_seed(seed)
        started = time.perf_counter()
        problem = make(train, test, args.tasks or count, seed)
        if args.problem == "streaming":
            results[str(seed)] = in_parts(problem, args, seed)
        else:
            results[str(seed)] = in_sequence(problem, args, seed) | {JOINT: jointly(problem, args, seed)}
            print(f"seed {seed}, {JOINT}: {_mean(results[str(seed)][JOINT]):.2%}", flush=True)
        results[str(seed)]["seconds"] = round(time.perf_counter() - started)
        add_to_record(args, words, results, {"train": len(train), "valid" if args.valid else "test": len(test)})
    if args.problem != "streaming":
        print(_plot(args.picture, results[str(args.seeds[0])], f"{args.problem} {args.dataset}, seed {args.seeds[0]}"))
    return results


def _flattened(images: Split) -> Split:
    """The images with as many pixels as MNIST's own, in a row."""
    return Split(transforms.resize(_pixels(images), [SIDE, SIDE]).flatten(1), images.labels)


def _pixels(images: Split) -> Tensor:
    assert isinstance(images.images, Tensor)  # MNIST fits in memory
    return images.images


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def read_record(path: Path) -> dict[str, Any]:
    """The results so far, by problem and data set.

    Raises:
        UserError: the file is not such a record.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for entry in record.values():
            entry["settings"].items()
            entry["results"].items()
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is not a record of this script: move it away") from error
    return record


def add_to_record(args: argparse.Namespace, words: Sequence[str], results: dict[str, Any], images: Any) -> None:
    """Earlier seeds stay where the settings are the same."""
    record = read_record(args.record)
    name, settings = f"{args.problem} {args.dataset}", vars(args).copy()
    for local in ("seeds", "data_dir", "record", "picture"):
        del settings[local]
    earlier = record.get(name, {})
    entry = {
        "command": " ".join(("python -m examples.continual", *words)),
        "settings": settings,
        "images": images,
        "results": (earlier["results"] if earlier.get("settings") == settings else {}) | results,
        "versions": versions(),
    }
    write_json(args.record, record | {name: entry})


@figure_style()
def _plot(path: Path, results: dict[str, Any], title: str) -> Path:
    """Per task its accuracy from when it was learned, and their mean over the tasks so far."""
    tasks = len(results[TWIN])
    columns = 6 if tasks > 5 else 3
    figure = Figure(figsize=(2 * columns + 1, 4), layout="constrained")
    axes = figure.subplots(2, columns, sharex=True, sharey=True).flat
    for name, color in SEQUENCES.items():
        rows = results[name]
        for task in range(tasks):
            axes[task].plot(range(task + 1, tasks + 1), [row[task] for row in rows[task:]], ".-", color=color)
        axes[tasks].plot(range(1, tasks + 1), [_mean(row) for row in rows], ".-", color=color, label=name)
    for task, accuracy in enumerate([*results[JOINT], _mean(results[JOINT])]):
        label = JOINT if task == tasks else None
        axes[task].axhline(accuracy, color="0.4", linestyle="--", linewidth=1, label=label)
        axes[task].set_title(f"task {task + 1}" if task < tasks else "mean so far", fontsize=9)
        axes[task].xaxis.set_major_locator(MaxNLocator(integer=True))
    for ax in axes[tasks + 1 :]:
        ax.set_visible(False)
    figure.suptitle(f"{title}: accuracy by the number of tasks learned")
    figure.legend(loc="outside lower center", ncols=columns * 2 // 3, fontsize=9)
    return save_figure(figure, path)


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """The problem and its settings, checked."""
    parser = OneLineParser("python -m examples.continual", description=__doc__, allow_abbrev=False)
    add, positive = parser.add_argument, argument(number(0, exclusive=True))
    add("problem", choices=PROBLEMS)
    add(
        "--dataset", choices=("MNIST5k", "MNIST"), default="MNIST5k", help="5,000 embedded digits, or all (%(default)s)"
    )
    add("--data_dir", default="data", help="where MNIST lies or goes (%(default)s)")
    add("--tasks", type=argument(whole(2)), help="how many, or parts of the stream (10, 5, 5 and 20)")
    add("--coreset", type=argument(whole(1)), default=40, help="images per task kept out of training (%(default)s)")
    add("--choose", choices=CORESETS, default="random", help="how they are chosen (%(default)s)")
    add("--epochs", type=argument(whole(1)), default=60, help="per task (%(default)s)")
    add("--twin_epochs", type=argument(whole(1)), default=10, help="of the twin, per task (%(default)s)")
    add("--coreset_epochs", type=argument(whole(1)), default=60, help="over the coresets (%(default)s)")
    add("--batch_size", type=argument(whole(1)), default=256, help="images per step (%(default)s)")
    add("--lr", type=positive, default=2e-3, help="at the start of a task (%(default)s)")
    add("--lr_spread_factor", type=positive, default=10.0, help="learning rate of ρ, a multiple of --lr (%(default)s)")
    add("--prior_sigma", type=positive, default=1.0, help="σ of the prior before task 1 (%(default)s)")
    add("--beta", type=positive, default=1.0, help="the KL's weight; below 1, less is forgotten (%(default)s)")
    add("--rho", type=argument(number(-80)), default=-6.0, help="where ρ starts, σ = softplus(ρ) (%(default)s)")
    add("--num_samples", type=argument(whole(1)), default=10, help="draws per prediction (%(default)s)")
    add("--seeds", type=argument(whole(0)), nargs="+", default=[0], help="one run each (0)")
    add("--valid", action="store_true", help="score on the validation images, to choose settings by")
    add("--record", type=Path, default=Path("continual.json"), help="JSON to add the results to (%(default)s)")
    add("--picture", type=Path, default=Path("continual.png"), help="where to draw them (%(default)s)")
    args = parser.parse_args(words)
    if args.problem in ("split", "incremental") and (args.tasks or 5) > 5:
        parser.error(f"{args.problem} has at most 5 tasks: give --tasks 5 or fewer")
    return args


if __name__ == "__main__":
    with report_user_errors():
        main()
