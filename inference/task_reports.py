"""What a network for labels, numbers or maps knows and does not know: scores, uncertainties, known against unknown."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from inference.classifier import Classifier
from inference.evaluation import ImageSets
from inference.regressor import Regressor
from likelihoods import novelty, parse_task
from models import SavedNetwork
from support import ALONE, World


def load_for_task(saved: SavedNetwork, source: str | Path) -> Classifier | Regressor:
    """The network of a checkpoint as what predicts its task.

    Args:
        saved: the network and its checkpoint's content.
        source: the file.

    Raises:
        UserError: the file has broken decisions.
    """
    if saved.description.task.get("task") == "regression":
        return Regressor.from_description(saved.net, saved.description, source)
    return Classifier.from_saved(saved, source)


def evaluate_task(
    networks: Mapping[str, Classifier | Regressor],
    images: ImageSets,
    task: Mapping[str, Any],
    *,
    num_samples: int = 25,
    seed: int = 0,
    method: str = "draws",
    world: World = ALONE,
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """All scores of some networks on known images and their targets, and how they tell unknown images from them.

    Args:
        networks: by name.
        images: known and unknown; the labels are the targets of the task.
        task: of the networks, as for `likelihoods.parse_task`.
        num_samples: draws from each posterior.
        seed: of the draws.
        method: 'draws', or 'moments' for a single pass without draws.
        world: the processes that predict together.

    Returns:
        By network, the predictives of the known images and of each unknown set, by name; and the report, of plain
        values: what was evaluated, and for each of `networks` its `known` scores, the likelihood's `details`, the means
        of its `uncertainties` on all sets, and `novelty`, by the uncertainty of an image.
    """
    likelihood = parse_task(task)
    how: dict[str, Any] = {"num_samples": num_samples, "seed": seed, "method": method, "world": world}
    predictives = {network: images.predicted(partial(each.predict, **how)) for network, each in networks.items()}
    targets = images.labels.long() if images.labels.dim() == 3 else images.labels
    report: dict[str, Any] = {
        "task": task["task"],
        **images.description,
        "prediction": method,
        "samples": num_samples,
        "seed": seed,
        "networks": {},
    }
    for network, sets in predictives.items():
        uncertainties = {name: likelihood.uncertainties(predictive) for name, predictive in sets.items()}
        known = uncertainties[images.name]
        report["networks"][network] = {
            "known": likelihood.scores(sets[images.name], targets),
            "details": likelihood.details(sets[images.name], targets, images.classes),
            "uncertainties": {
                name: {score: values.mean().item() for score, values in of_set.items()}
                for name, of_set in uncertainties.items()
            },
            "novelty": {
                name: {score: novelty(known[score], uncertainties[name][score]) for score in known}
                for name in images.unknown
            },
        }
    return predictives, report | {"skipped": dict(images.skipped)}


def print_task_report(report: Mapping[str, Any]) -> None:
    """Print a report of `evaluate_task`."""
    networks = report["networks"]
    print(f"\n{report['known']} ({report['known_images']:,} images)")
    for name in next(iter(networks.values()))["known"]:
        cells = (f"{family} {network['known'][name]:<12.4g}" for family, network in networks.items())
        print(f"{name.replace('_', ' '):<26}" + "".join(cells))
    for family, network in networks.items():
        print(f"\n{family}: mean uncertainty of an image, and AUROC against {report['known']}")
        for name, values in network["uncertainties"].items():
            novelties = network["novelty"].get(name, {})
            cells = (
                f"{score} {value:<10.4g}" + (f"({novelties[score]['auroc']:.4f})  " if novelties else f"{'':10}")
                for score, value in values.items()
            )
            print(f"{name:<26}" + "".join(cells))
