"""One experiment: train by the scripts' own functions, ask the network, write what it said."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import config_bayesian
import config_frequentist
from experiments.plan import Experiment
from images import CHUNK, ImageData, data_name, load_data, normalize, read_images
from inference import metrics
from inference.prediction import Predictive, effective_samples, logits_of, posterior_draws, summarized
from models import load_network
from support import LockedError, UserError, locked, write_json
from training import loop
from training.reports import read_results
from training.settings import BayesianSettings, Settings, from_config

SAMPLES = 25
BATCH = 256
PLACES_OF_A_MACHINE = ("dataset", "data_dir", "checkpoint_dir", "resume")
SCORES = ("total entropy", "mutual information")


@dataclass(frozen=True)
class ExperimentFiles:
    """Where things are.

    Attributes:
        results: one JSON file an experiment.
        checkpoints: a folder an experiment.
        data_dir: where data lies or is downloaded to.
        not_mnist: a folder of the unknown images.
        folders: for a data set that lies as a folder of images instead, that folder.
    """

    results: Path
    checkpoints: Path
    data_dir: Path
    not_mnist: Path
    folders: Mapping[str, str]

    def result(self, experiment: Experiment) -> Path:
        return self.results / f"{experiment.name}.json"

    def dataset(self, experiment: Experiment) -> str:
        return self.folders.get(experiment.block.dataset, experiment.block.dataset)

    def settings(self, experiment: Experiment) -> Settings:
        """The settings of the run, checked."""
        given = experiment.settings() | {
            "dataset": self.dataset(experiment),
            "data_dir": str(self.data_dir),
            "checkpoint_dir": str(self.checkpoints / experiment.name),
        }
        return configured(given, experiment.method.bayesian)

    def run(self, experiment: Experiment) -> loop.RunFiles:
        """Where the run's own files are."""
        settings = self.settings(experiment)
        return loop.RunFiles.for_run(settings, data_name(settings.dataset), experiment.method.bayesian)


def configured(changes: Mapping[str, Any], bayesian: bool) -> Settings:
    """The configuration of the family with these settings changed, checked."""
    flags = [f"--{name}={value}" for name, value in changes.items()]
    if bayesian:
        return from_config(BayesianSettings, config_bayesian, flags)
    return from_config(Settings, config_frequentist, flags)


def run_missing(experiments: Sequence[Experiment], places: ExperimentFiles) -> None:
    """Do what has no results yet, one after the other; what another process is doing is left to it.

    Raises:
        UserError: at the end, if some could not be done: data that cannot be had, a loss that is not finite.
    """
    missing, failed = [each for each in experiments if not places.result(each).exists()], []
    while missing:
        left = []
        for each in missing:
            try:
                if not (places.result(each).exists() or _run_one(each, places)):
                    left.append(each)
            except UserError as error:
                print(f"{each.name}: {error}", file=sys.stderr, flush=True)
                failed.append(each.name)
        if len(left) == len(missing):
            print(f"left: {', '.join(experiment.name for experiment in left)}: others do them, or what they need")
            break
        missing = left
    if failed:
        raise UserError(f"could not be done, for the reasons above: {', '.join(failed)}")


def _run_one(experiment: Experiment, places: ExperimentFiles) -> bool:
    """Do it, unless another process does or it needs networks that are not there."""
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
    loop.run(settings)


def _evaluate(experiment: Experiment, places: ExperimentFiles) -> dict[str, Any]:
    """Everything that is kept of an experiment, as plain values."""
    runs = [read_results(_results(places, source)) for source in experiment.sources]
    settings = places.settings(experiment.sources[0])
    nets = [load_network(places.run(source).best, net_type=settings.net_type).net for source in experiment.sources]
    data = load_data(settings.dataset, settings.data_dir, settings.valid_size, settings.seed)
    ask = _predictor(experiment, nets)
    started = time.perf_counter()
    known = _predictive(ask, data, (images for images, _ in data.test.batches(CHUNK)))
    seconds = time.perf_counter() - started
    unknown = {
        name: _predictive(ask, data, images.split(CHUNK)) for name, images in _unknown(data, places.not_mnist).items()
    }
    return {
        "dataset": experiment.block.dataset,
        "net_type": experiment.block.net_type,
        "method": experiment.method_name,
        "seed": experiment.seed,
        "test": metrics.scores(known.probs, data.test.labels),
        "unknown": {
            name: {score: metrics.novelty(metrics.SCORES[score](known), metrics.SCORES[score](found))
                   for score in SCORES}
            for name, found in unknown.items()
        },
        "valid_nll": sum(run["validation"]["valid_nll"] for run in runs) / len(runs),
        "valid_accuracy": sum(run["validation"]["valid_accuracy"] for run in runs) / len(runs),
        "best_epochs": [int(run["validation"]["epoch"]) for run in runs],
        "epochs": runs[0]["epochs"],
        "parameters": sum(run["parameters"] for run in runs),
        "training_seconds": round(sum(run["training_seconds"] for run in runs)),
        "predicting_seconds": round(seconds, 2),
        "threads": torch.get_num_threads(),
        "settings": {name: value for name, value in runs[0]["settings"].items() if name not in PLACES_OF_A_MACHINE},
        "versions": runs[0]["versions"],
    }  # fmt: skip


Predictor = Callable[[Tensor], Predictive]


def _predictor(experiment: Experiment, nets: Sequence[nn.Module]) -> Predictor:
    """How the networks of the experiment predict normalized images."""
    if experiment.method.dropout_at_work:
        return lambda images: dropout_predictive(nets[0], images, experiment.seed)
    return lambda images: ensemble_predictive(nets, images, experiment.seed)


def dropout_predictive(net: nn.Module, images: Tensor, seed: int) -> Predictive:
    """`SAMPLES` passes with dropout at work and everything else as in prediction (Gal & Ghahramani 2016, eq. 6)."""
    at_work = [module for module in net.modules() if isinstance(module, nn.Dropout)]
    net.eval()
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in at_work:
            module.train()
        try:
            return summarized(logits_of(net, images, BATCH) for _ in range(SAMPLES))
        finally:
            net.eval()


def ensemble_predictive(nets: Sequence[nn.Module], images: Tensor, seed: int) -> Predictive:
    """The mean of the members' probabilities (Lakshminarayanan et al. 2017), a Bayesian one's over `SAMPLES` draws.

    Of posteriors it is that of their mixture; of one network, its own predictive.
    """
    with torch.inference_mode():
        return summarized(
            logits_of(draw, images, BATCH)
            for member, net in enumerate(nets)
            for draw in posterior_draws(net, effective_samples(net, SAMPLES), seed + member)
        )


def _predictive(ask: Predictor, data: ImageData, chunks: Sequence[Tensor] | Iterator[Tensor]) -> Predictive:
    return Predictive.concatenate([ask(normalize(chunk, data.mean, data.std)) for chunk in chunks])


def _unknown(data: ImageData, not_mnist: Path) -> dict[str, Tensor]:
    """Images of no class of the data: letters, and noise, every pixel of its own."""
    letters, _ = read_images(not_mnist, data.channels)
    noise = torch.randint(256, (len(data.test), *letters.shape[1:]), generator=torch.Generator().manual_seed(0))
    return {"notMNIST": letters, "noise": noise.to(torch.uint8)}
