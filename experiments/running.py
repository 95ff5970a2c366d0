"""One experiment: train by the scripts' own functions, evaluate the network, write the results."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import config_bayesian
import config_frequentist
from experiments.plan import Experiment
from images import ImageData, ImageFiles, data_name, load_data, read_images
from inference import Classifier, Swag, dropout_predictive, ensemble_predictive, laplace, novelties
from likelihoods import Predictive, scores
from support import LockedError, UserError, argument, atomic_write, locked, named, write_json
from training import (
    BayesianSettings,
    Role,
    Row,
    RunFiles,
    Settings,
    from_config,
    loop,
    names_with,
    read_results,
    start,
    train,
)

RESULTS = Path(__file__).parent / "results"
SAMPLES = 25
SCORES = ("total entropy", "mutual information")


@dataclass(frozen=True)
class ExperimentFiles:
    """Where the files of the experiments are.

    Attributes:
        results: holds one JSON file per experiment.
        checkpoints: holds one folder per experiment.
        data_dir: where data lies or is downloaded to.
        not_mnist: a folder of unknown images.
        folders: by data set, a folder of images to use in its place.
    """

    results: Path
    checkpoints: Path
    data_dir: Path
    not_mnist: Path
    folders: Mapping[str, str]

    @staticmethod
    def add_flags(parser: argparse.ArgumentParser) -> None:
        """Add to a script's parser the flags that `from_arguments` reads."""
        add = parser.add_argument
        add("--data_dir", type=Path, default=Path("data"), help="folder of downloaded data (%(default)s)")
        add(
            "--not_mnist", type=Path, default=Path("data/notMNIST_small"), help="folder of unknown images (%(default)s)"
        )
        add("--checkpoint_dir", type=Path, default=Path("checkpoints/experiments"), help="folder of runs (%(default)s)")
        add(
            "--folder",
            nargs="+",
            type=argument(named),
            default=[],
            metavar="DATASET=FOLDER",
            help="read a data set from a folder with train/<class>/* and test/<class>/* images, not from a download",
        )

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> ExperimentFiles:
        """The places that the arguments of a script name."""
        return cls(RESULTS, args.checkpoint_dir, args.data_dir, args.not_mnist, dict(args.folder))

    def result(self, experiment: Experiment) -> Path:
        """The file of its results."""
        return self.results / f"{experiment.name}.json"

    def dataset(self, experiment: Experiment) -> str:
        """The name of its data set, or the folder of images in its place."""
        return self.folders.get(experiment.block.dataset, experiment.block.dataset)

    def settings(self, experiment: Experiment) -> Settings:
        """The settings of its run, checked."""
        changes = experiment.settings() | {
            "dataset": self.dataset(experiment),
            "data_dir": str(self.data_dir),
            "checkpoint_dir": str(self.checkpoints / experiment.name),
        }
        return configured(changes, experiment.method.bayesian)

    def run(self, experiment: Experiment) -> RunFiles:
        """The files of its run."""
        settings = self.settings(experiment)
        return RunFiles.for_run(settings, data_name(settings.dataset), experiment.method.bayesian)


def configured(changes: Mapping[str, Any], bayesian: bool) -> Settings:
    """The configuration of the family with these settings changed, checked.

    As in the first results, the first filters start at random and have no patch prior, unless the changes say so.
    """
    of_before = {"first_filters": "random", **({"patch_prior": 0} if bayesian else {})}
    flags = [f"--{name}={value}" for name, value in {**of_before, **changes}.items()]
    if bayesian:
        return from_config(BayesianSettings, config_bayesian, flags)
    return from_config(Settings, config_frequentist, flags)


def run_missing(experiments: Sequence[Experiment], places: ExperimentFiles) -> None:
    """Run the experiments without results, one after the other, except those that another process is running.

    Raises:
        UserError: at the end, if some failed: data is missing, or a loss is not finite.
    """
    missing, failed = [experiment for experiment in experiments if not places.result(experiment).exists()], []
    while missing:
        left = []
        for experiment in missing:
            try:
                if not (places.result(experiment).exists() or _run_one(experiment, places)):
                    left.append(experiment)
            except UserError as error:
                print(f"{experiment.name}: {error}", file=sys.stderr, flush=True)
                failed.append(experiment.name)
        if len(left) == len(missing):
            names = ", ".join(experiment.name for experiment in left)
            print(f"left: {names}: another process runs them, or the networks that they need")
            break
        missing = left
    if failed:
        raise UserError(f"failed, for the reasons above: {', '.join(failed)}")


def _run_one(experiment: Experiment, places: ExperimentFiles) -> bool:
    """Run it, and return whether it has results; it has none if another process runs it or the networks it needs."""
    sources = experiment.sources
    if sources != (experiment,) and not all(_results(places, source).exists() for source in sources):
        return False
    try:
        with locked(places.checkpoints / experiment.name):
            if places.result(experiment).exists():
                return True
            print(f"\n{experiment.name}", flush=True)
            if sources == (experiment,) and not _results(places, experiment).exists():
                _train(experiment, places)
            write_json(places.result(experiment), _evaluate(experiment, places))
    except LockedError:
        return False
    return True


def _results(places: ExperimentFiles, experiment: Experiment) -> Path:
    return places.run(experiment).reports / "results.json"


def _train(experiment: Experiment, places: ExperimentFiles) -> None:
    settings = places.settings(experiment)
    if places.run(experiment).last.exists():
        settings = replace(settings, resume=True)
    if not experiment.method.collects:
        loop.run(settings)
        return
    state, setup = start(settings)
    swag = Swag(state.net)
    path = _swag_path(places, experiment)
    if settings.resume and path.exists():
        swag.load_state_dict(torch.load(path, weights_only=True))

    def collect(row: Row) -> None:
        if row["epoch"] - settings.n_epochs // 2 > swag.count:  # not what it had when it was killed
            swag.collect(state.net)
            with atomic_write(path) as temporary:
                torch.save(swag.state_dict(), temporary)

    train(state, setup, after_epoch=collect)
    loop.test(state, setup)


def _swag_path(places: ExperimentFiles, experiment: Experiment) -> Path:
    return places.checkpoints / experiment.name / "swag.pt"


def load_classifiers(experiment: Experiment, places: ExperimentFiles, data: ImageData) -> list[Classifier]:
    """The trained networks with which the experiment predicts.

    Args:
        experiment: whose sources have been trained.
        places: where the files are.
        data: its data set.

    Raises:
        UserError: a file is missing or broken.
    """
    classifiers = []
    for source in experiment.sources:
        classifier = Classifier.load(places.run(source).best, net_type=places.settings(source).net_type)
        if source.method.collects:
            swag = Swag(classifier.net)
            swag.load_state_dict(torch.load(_swag_path(places, source), weights_only=True))
            classifier = replace(classifier, net=swag)
        classifiers.append(laplace(classifier, data.train) if experiment.method.laplace else classifier)
    return classifiers


def _evaluate(experiment: Experiment, places: ExperimentFiles) -> dict[str, Any]:
    """The results of an experiment, as plain values."""
    runs = [read_results(_results(places, source)) for source in experiment.sources]
    settings = places.settings(experiment.sources[0])
    data = load_data(settings.dataset, settings.data_dir, settings.valid_size, settings.seed)
    classifiers = load_classifiers(experiment, places, data)
    predict = _predictor(experiment, classifiers)
    local = names_with(Role.LOCAL)
    started = time.perf_counter()
    known = predict(data.test.images)
    seconds = time.perf_counter() - started
    unknown = {name: predict(images) for name, images in unknown_images(data, places.not_mnist).items()}
    return {
        "dataset": experiment.block.dataset,
        "net_type": experiment.block.net_type,
        "method": experiment.method_name,
        "seed": experiment.seed,
        "test": scores(known, data.test.labels),
        "unknown": {name: novelties(known, predictive, SCORES) for name, predictive in unknown.items()},
        "valid_nll": sum(run["validation"]["valid_nll"] for run in runs) / len(runs),
        "valid_accuracy": sum(run["validation"]["valid_accuracy"] for run in runs) / len(runs),
        "best_validations": [run["validation"] for run in runs],
        "best_epochs": [int(run["validation"]["epoch"]) for run in runs],
        "epochs": runs[0]["epochs"],
        "parameters": sum(run["parameters"] for run in runs),
        "training_seconds": round(sum(run["training_seconds"] for run in runs)),
        "predicting_seconds": round(seconds, 2),
        "threads": torch.get_num_threads(),
        "settings": {name: value for name, value in runs[0]["settings"].items() if name not in local},
        "versions": runs[0]["versions"],
    }  # fmt: skip


def _predictor(
    experiment: Experiment, classifiers: Sequence[Classifier]
) -> Callable[[Tensor | ImageFiles], Predictive]:
    """How the networks of the experiment predict images."""
    if experiment.method.dropout_at_work:
        return partial(dropout_predictive, classifiers[0], num_samples=SAMPLES, seed=experiment.seed)
    return partial(ensemble_predictive, classifiers, num_samples=SAMPLES, seed=experiment.seed)


def unknown_images(data: ImageData, not_mnist: Path) -> dict[str, Tensor]:
    """Images of no class of the data: letters, and noise of independent uniform pixels."""
    letters, _ = read_images(not_mnist, data.channels)
    noise = torch.randint(256, (len(data.test), *letters.shape[1:]), generator=torch.Generator().manual_seed(0))
    return {"notMNIST": letters, "noise": noise.to(torch.uint8)}
