"""A run from its settings to its results: fit, validate, keep the best, resume, and test once."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from images import CHUNK, Split, augment, data_name, load_data, normalize
from inference.metrics import accuracy, nll, scores
from inference.prediction import Predictive, predict_batches, predict_together
from layers import ModuleWrapper, kl_divergence, start_at_means
from models import (
    IMAGE_SIZE,
    Description,
    build,
    file_name,
    load_network,
    read_checkpoint,
    restore_network,
    save_network,
    write_checkpoint,
)
from recording.recorder import Recorder, recorded_layers, recording
from support import ALONE, UserError, World, archive, first_line, locked, process_group, tune_cpu, versions, write_json
from training.alarms import Alarms
from training.interruption import StopRequest, stop_requests
from training.objective import expected_nll, kl_weight, negative_elbo
from training.reports import Row, comparison, epoch_line, plot_history, read_results, write_history
from training.settings import BayesianSettings, Settings

REPORTS = ("history.csv", "history.png", "results.json")
MAY_CHANGE_ON_RESUME = (
    "resume",
    "device",
    "num_workers",
    "n_epochs",
    "patience",
    "tensorboard",
    "data_dir",
    "checkpoint_dir",
)


@dataclass
class Progress:
    """Where a run is; with weights and optimizer, all that resuming needs.

    Attributes:
        epoch, batch: epochs finished, and batches finished of the one after.
        steps: [batches, 4], a row a finished batch of that epoch: NLL, KL, correct, examples, over all
            processes.
        history: one row a finished epoch.
        best_nll, best_epoch: the best validation NLL and when.
        seconds: spent training and validating.
    """

    steps: Tensor
    epoch: int = 0
    batch: int = 0
    history: list[Row] = field(default_factory=list)
    best_nll: float = math.inf
    best_epoch: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class RunFiles:
    """Where a run's files go."""

    best: Path
    last: Path
    reports: Path  # folder of history.csv, history.png, results.json

    @classmethod
    def for_run(cls, settings: Settings, dataset: str, bayesian: bool) -> RunFiles:
        """`<checkpoint_dir>/<dataset>/<family>/` and what lies in it."""
        folder = Path(settings.checkpoint_dir) / dataset / ("bayesian" if bayesian else "frequentist")
        name = file_name(settings.net_type)
        return cls(folder / f"model_{name}.pt", folder / "last.pt", folder / name)


class Run:
    """One training run.

    Args:
        settings: `BayesianSettings` for a Bayesian network, `Settings` for its frequentist twin.
        world: the processes that train it together. Each takes its share of every batch, so a batch, a
            step and the objective are what they are for one process; each draws its own noise.

    Raises:
        UserError: data that cannot be had, a device that is not there.
    """

    def __init__(self, settings: Settings, world: World = ALONE) -> None:
        self.settings = settings
        self.world = world
        self.bayesian = settings if isinstance(settings, BayesianSettings) else None
        self.device = world.device(settings.device)
        tune_cpu()
        if settings.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses
            torch.use_deterministic_algorithms(True)
        architecture: dict[str, Any] = {"activation_type": settings.activation_type}
        if self.bayesian:
            architecture |= {name: getattr(settings, name) for name in ("priors", "layer_type", "alpha_shape")}
            if self.bayesian.record_mean_var:
                with torch.device("meta"):  # a wrong name need not wait for the data, and a name asks for no weights
                    recorded_layers(build(settings.net_type, True, 1, 1, **architecture), self.bayesian.record_layers)
        with world.local_main_first():  # it may download
            self.data = load_data(
                settings.dataset, settings.data_dir, settings.valid_size, settings.seed, batch_size=settings.batch_size
            )
        if min(settings.batch_size, len(self.data.valid), len(self.data.test)) < world.size:
            raise UserError(
                f"{world.size} processes are too many for batch_size {settings.batch_size}, {len(self.data.valid)} "
                f"validation images and {len(self.data.test)} test images: each needs one of each"
            )
        self.places = RunFiles.for_run(settings, self.data.name, self.bayesian is not None)
        self.description = Description(
            settings.net_type, self.bayesian is not None, architecture, self.data.classes, self.data.mean, self.data.std
        )
        torch.manual_seed(settings.seed)
        net = self.description.build()
        self._try_out(net)
        if self.bayesian and self.bayesian.init_from:
            self._start_from(self.bayesian.init_from, net)
        self.net = net.to(self.device)
        self.forward: Callable[[Tensor], Any] = self.net
        if world.size > 1:
            self.forward = DistributedDataParallel(self.net, [self.device] if self.device.type == "cuda" else None)
        if settings.compile:
            # On a CPU the compiler's own generator is twice as slow as torch's.
            self.forward = torch.compile(self.forward, options={"fallback_random": self.device.type == "cpu"})
        self.optimizer, self.base_rates = self._optimizer()
        self.batches = math.ceil(len(self.data.train) / settings.batch_size)
        self.progress = Progress(torch.zeros(self.batches, 4, device=self.device))
        self.recorder: Recorder | None = None
        torch.manual_seed(_seed(settings.seed, world.rank))  # of this process's noise

    def _try_out(self, net: nn.Module) -> None:
        """Refuse a network of one's own that does not make [n, classes] of images."""
        images = torch.zeros(2, len(self.data.mean), IMAGE_SIZE, IMAGE_SIZE)
        wanted = (len(images), len(self.data.classes))
        try:
            with torch.no_grad():
                output = net.eval()(images)
        except Exception as error:
            raise UserError(
                f"{self.settings.net_type} cannot take images of shape {tuple(images.shape)}: {first_line(error)}"
            ) from error
        logits = output[0] if self.bayesian and isinstance(output, tuple) else output
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if found != wanted or isinstance(output, tuple) != bool(self.bayesian):
            expected = f"(logits {wanted}, kl)" if self.bayesian else f"logits {wanted}"
            raise UserError(f"{self.settings.net_type} makes {found} of {len(images)} images, expected {expected}")

    def _start_from(self, path: str, net: nn.Module) -> None:
        """Give a fresh Bayesian network the weights of a frequentist checkpoint, and MOPED's start if asked."""
        assert self.bayesian is not None
        plain, found, _ = load_network(path, net_type=self.settings.net_type)
        mine = self.description
        wanted = replace(mine, bayesian=False, architecture={"activation_type": self.settings.activation_type})
        for name in ("bayesian", "net_type", "architecture", "classes", "mean", "std"):
            if getattr(found, name) != getattr(wanted, name):
                raise UserError(
                    f"{path} cannot be started from: its {name} is {getattr(found, name)!r}, "
                    f"this run needs {getattr(wanted, name)!r}: give the settings that it was trained with"
                )
        inner = net.get_submodule("0") if type(net) is ModuleWrapper else net  # of one that was made Bayesian
        missing, unexpected = inner.load_state_dict(plain.state_dict(), strict=False)
        apart = [*unexpected, *(name for name in missing if ".posterior." not in f".{name}")]
        if apart:
            raise UserError(f"{path} cannot be started from: the networks differ in {apart[0]}")
        try:
            start_at_means(net, self.bayesian.moped, self.bayesian.prior_at_means)
        except ValueError as error:
            raise UserError(str(error)) from error

    def _optimizer(self) -> tuple[torch.optim.Optimizer, list[float]]:
        spread = [p for name, p in self.net.named_parameters() if ".posterior." in name]
        others = [p for name, p in self.net.named_parameters() if ".posterior." not in name]
        rate = self.settings.lr_start
        groups, rates = [{"params": others}], [rate]
        if self.bayesian:
            groups, rates = [*groups, {"params": spread}], [rate, rate * self.bayesian.lr_spread_factor]
        return torch.optim.Adam(groups, lr=rate, fused=self.device.type in ("cpu", "cuda", "mps")), rates

    def fit(self) -> dict[str, Any]:
        """Train to the end, test the best network once, and return the results that `results.json` holds.

        Raises:
            UserError, SystemExit: as `train`.
        """
        self.train()
        return self._test()

    def train(self) -> None:
        """Train to the end and keep the best network; the test split stays unseen.

        Raises:
            UserError: nothing or another run to resume, the loss is no longer finite, or nothing can be written.
            SystemExit: Ctrl-C or SIGTERM, once `last.pt` is written.
        """
        resumed = self.resume()
        settings, progress = self.settings, self.progress
        alarms = Alarms(self.net, len(self.data.classes), settings.n_epochs)
        with ExitStack() as stack:
            stop = stack.enter_context(stop_requests())
            if self.world.launch and not resumed:
                self._save_last()  # what torchrun goes on from if a process is lost before the first epoch ends
            if self.bayesian and self.bayesian.record_mean_var and self.world.is_main:
                self.recorder = stack.enter_context(self._recording(self.bayesian, resumed))
            board = None
            if settings.tensorboard and self.world.is_main:
                board = _tensorboard(self.places.reports, stack, resumed)
            while progress.epoch < settings.n_epochs and not self._out_of_patience():
                started = time.perf_counter()
                for signum in self._train_epoch(stop):
                    if signum:
                        progress.seconds += time.perf_counter() - started
                        self._interrupted(signum)
                row, best = self._finish_epoch(started)
                self._print(epoch_line(row, settings.n_epochs, best))
                if self.world.is_main:
                    for text in alarms.after(progress.history, len(self.data.valid)):
                        print(f"warning: {text}", file=sys.stderr, flush=True)
                if board is not None:
                    for name, value in row.items():
                        board.add_scalar(name.replace("_", "/", 1), value, int(row["epoch"]))

    def _keep_earlier(self) -> None:
        """Move the network of an earlier run of this name, and what was said of it, out of this run's way."""
        best, reports = self.places.best, self.places.reports
        if best.exists():
            said = [path for path in map(reports.joinpath, REPORTS) if path.exists()]
            kept = archive([*said, best], reports)
            print(f"the network and the reports of the earlier run went to {kept}", flush=True)

    def _out_of_patience(self) -> bool:
        patience = self.settings.patience
        return bool(patience) and self.progress.epoch - self.progress.best_epoch >= patience

    def _train_epoch(self, stop: StopRequest) -> Iterator[int]:
        """Take the steps that this epoch still has, yielding after each the signal that any process has got, or 0."""
        settings, data, progress = self.settings, self.data, self.progress
        flip = data.flippable if settings.random_flip == "auto" else bool(settings.random_flip)
        order = torch.randperm(len(data.train), generator=_generator(settings.seed, progress.epoch))
        left = order[progress.batch * settings.batch_size :]
        self.net.train()
        bar = tqdm(
            data.train.batches(settings.batch_size, left, settings.num_workers, self.world),
            desc=f"epoch {progress.epoch + 1}/{settings.n_epochs}",
            total=self.batches,
            initial=progress.batch,
            unit="batch",
            leave=False,
            disable=not (sys.stderr.isatty() and self.world.is_main),
        )
        for images, labels in bar:
            generator = _generator(settings.seed, progress.epoch, progress.batch, self.world.rank)
            images = augment(self._to_device(images), settings.random_shift, flip, generator)
            count = min(settings.batch_size, len(data.train) - progress.batch * settings.batch_size)
            row = self._step(normalize(images, data.mean, data.std), self._to_device(labels), count)
            progress.steps[progress.batch] = self._reduce(row)
            progress.batch += 1
            if self.recorder:
                self.recorder.step()
            if self.device.type == "cpu" or progress.batch % 50 == 0 or progress.batch == self.batches:
                self._check_finite()
                bar.set_postfix(_postfix(progress.steps[: progress.batch], len(data.train), self.bayesian is not None))
                yield self.world.all_reduce_max(stop.signum or 0)
            elif self.world.size == 1:
                yield stop.signum or 0

    def _step(self, images: Tensor, labels: Tensor, count: int) -> Tensor:
        """One optimizer step; NLL, KL, correct and examples of this process's share of the batch as one tensor.

        DistributedDataParallel averages gradients over the processes. So that they become those of the whole
        batch of `count` examples, whatever the shares, a share of n counts n·size/count times; the KL, the
        same in all of them, counts once.
        """
        settings, progress = self.settings, self.progress
        share = self.world.share(count)
        step = progress.epoch * self.batches + progress.batch
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * _rate_factor(settings.lr_schedule, step / (self.batches * settings.n_epochs))
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.amp):
            if self.recorder and settings.compile:
                self.recorder.observe(images)
            if self.bayesian:
                outputs = [self.forward(images) for _ in range(self.bayesian.train_ens)]
                logits, kl = [output[0].float() for output in outputs], outputs[0][1]
                weight = kl_weight(self.bayesian.beta_type, step, self.batches, settings.n_epochs)
            else:
                logits, kl, weight = [self.forward(images).float()], torch.zeros((), device=self.device), 0.0
        nll = expected_nll(logits, labels)
        negative_elbo(nll * (share * self.world.size / count), kl, weight, len(self.data.train)).backward()
        self.optimizer.step()
        with torch.no_grad():
            probs = torch.stack(logits).softmax(-1).mean(0)
            correct = (probs.argmax(-1) == labels)[:share].sum()
            return torch.stack([nll, kl, correct.float(), torch.full_like(nll, share)]).detach()

    def _reduce(self, row: Tensor) -> Tensor:
        """A step's figures over the shares of all processes."""
        if self.world.size == 1:
            return row
        nll, kl, correct, examples = row
        sums = self.world.all_reduce_sum(torch.stack([nll * examples, kl / self.world.size, correct, examples]))
        return torch.stack([sums[0] / sums[3], *sums[1:]])

    def _recording(self, settings: BayesianSettings, resumed: bool) -> AbstractContextManager[Recorder]:
        return recording(
            self.net,
            self.places.reports,
            self.batches,
            layers=settings.record_layers,
            frequency=settings.recording_freq_per_epoch,
            resume_at=self.progress.epoch * self.batches + self.progress.batch if resumed else None,
            settings=asdict(settings),
            seed=settings.seed,
        )

    def _check_finite(self) -> None:
        finite = self.progress.steps[: self.progress.batch, :2].isfinite().all(-1)
        if not finite.all():
            batch = int((~finite).int().argmax()) + 1
            raise UserError(
                f"the loss is not finite at epoch {self.progress.epoch + 1}, step {batch} of {self.batches}: try a "
                f"smaller lr_start, or amp False; the checkpoints of earlier epochs are kept"
            )

    def _finish_epoch(self, started: float) -> tuple[Row, bool]:
        """Validate, keep the network if it is the best, and save everything."""
        progress, data = self.progress, self.data
        nll, kl, correct, examples = progress.steps.double().cpu().unbind(1)
        row: Row = {
            "epoch": progress.epoch + 1,
            "train_nll": float((nll * examples).sum() / examples.sum()),
            "train_accuracy": float(correct.sum() / examples.sum()),
        }
        if self.bayesian:
            row["train_kl"] = float(kl[-1])
            row["kl_weight"] = kl_weight(
                self.bayesian.beta_type, (progress.epoch + 1) * self.batches - 1, self.batches, self.settings.n_epochs
            )
        samples = self.bayesian.valid_ens if self.bayesian else 1
        predictive = self._predictive(self.net, data.valid, samples)
        row |= _validation(predictive, data.valid.labels, float(kl_divergence(self.net).detach()), len(data.train))
        seconds = time.perf_counter() - started
        row["seconds"] = seconds
        best = row["valid_nll"] < progress.best_nll
        if best:
            progress.best_nll, progress.best_epoch = row["valid_nll"], int(row["epoch"])
            if self.world.is_main:
                if not progress.history:
                    self._keep_earlier()
                report = {"settings": asdict(self.settings), "validation": row}
                save_network(self.places.best, self.net, self.description, **report)
        elif self.world.is_main and not self.places.best.exists():
            raise UserError(f"{self.places.best} is gone: it held the best network so far; train again")
        progress.epoch, progress.batch, progress.seconds = progress.epoch + 1, 0, progress.seconds + seconds
        progress.steps.zero_()
        progress.history.append(row)
        if self.world.is_main:
            write_history(self.places.reports, progress.history)
        self._save_last()
        return row, best

    def _test(self) -> dict[str, Any]:
        """The best network on the test split, once."""
        content = self.world.broadcast_from_main(lambda: read_checkpoint(self.places.best))
        net = restore_network(content, self.places.best, self.device)
        samples = self.bayesian.test_ens if self.bayesian else 1
        started = time.perf_counter()
        probs = self._predictive(net, self.data.test, samples).probs
        results = {
            "dataset": self.data.name,
            "net_type": self.settings.net_type,
            "method": "bayesian" if self.bayesian else "frequentist",
            "test": scores(probs, self.data.test.labels),
            "test_samples": samples,
            "test_images": len(self.data.test),
            "validation": content["validation"],
            "epochs": self.progress.epoch,
            "parameters": sum(p.numel() for p in net.parameters()),
            "training_seconds": round(self.progress.seconds, 2),
            "test_seconds": round(time.perf_counter() - started, 2),
            "seed": self.settings.seed,
            "processes": self.world.size,
            "settings": asdict(self.settings),
            "versions": versions(),
        }
        if not self.world.is_main:
            return results
        write_json(self.places.reports / "results.json", results)
        picture = plot_history(
            self.places.reports,
            self.progress.history,
            f"{results['method']} {results['net_type']} on {results['dataset']}",
        )
        test = results["test"]
        print(
            f"test  accuracy {test['accuracy']:.2%}  nll {test['nll']:.4f}  brier {test['brier']:.4f}  "
            f"ece {test['ece']:.4f}  ({len(self.data.test):,} images, {samples} sample{'s' if samples > 1 else ''}, "
            f"best epoch {self.progress.best_epoch}, trained in {self.progress.seconds:.0f} s)"
        )
        print(f"network  {self.places.best}\nreports  {self.places.reports / 'results.json'}, {picture}", flush=True)
        return results

    def _predictive(self, net: nn.Module, split: Split, samples: int) -> Predictive:
        def predict_at(indices: Tensor) -> Predictive:
            chunks = (
                normalize(self._to_device(images), self.data.mean, self.data.std)
                for images, _ in split.batches(CHUNK, indices, self.settings.num_workers)
            )
            return predict_batches(net, chunks, samples, seed=self.settings.seed)

        return predict_together(len(split), predict_at, self.world)

    def _print(self, text: str) -> None:
        if self.world.is_main:
            print(text, flush=True)

    def _to_device(self, tensor: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def _interrupted(self, signum: int) -> None:
        self._check_finite()
        self._save_last()
        progress = self.progress
        self._print(
            f"stopped by {signal.Signals(signum).name} in epoch {progress.epoch + 1} after {progress.batch} of "
            f"{self.batches} steps; {self.places.last} is written: run the same command with --resume to go on"
        )
        raise SystemExit(128 + signum)

    def _save_last(self) -> None:
        content = {
            "settings": asdict(self.settings),
            "weights": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": vars(self.progress),
            "random": self.world.all_gather(self._random_state()),
            "launch": self.world.launch,
        }
        if self.recorder:
            self.recorder.sync()
        if self.world.is_main:
            write_checkpoint(self.places.last, content)

    def resume(self) -> bool:
        """Go on from `last.pt` if the settings ask for it, or if torchrun started this run anew after a loss.

        Raises:
            UserError: nothing or another run to resume.
        """
        content = self.world.broadcast_from_main(self._last)
        if content is None:
            return False
        self._restore(content)
        return True

    def _last(self) -> dict[str, Any] | None:
        """What `last.pt` holds if this run is to go on from it: asked to, or started anew after a process was lost."""
        if self.settings.resume:
            return read_checkpoint(self.places.last)
        if self.world.restarts and self.places.last.exists():
            content = read_checkpoint(self.places.last)
            return content if content.get("launch") == self.world.launch else None
        return None

    def _restore(self, content: dict[str, Any]) -> None:
        try:
            now, then = asdict(self.settings), content["settings"]
            for name, value in now.items():
                if then.get(name, value) != value and name not in MAY_CHANGE_ON_RESUME:
                    raise UserError(
                        f"{self.places.last} is of a run with {name} {then[name]!r}, not {value!r}: resume with the "
                        f"settings of that run, or start anew without --resume"
                    )
            self.net.load_state_dict(content["weights"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.progress = Progress(**content["progress"])
            self.progress.steps = self.progress.steps.to(self.device)
            if len(content["random"]) == self.world.size:
                self._set_random_state(content["random"][self.world.rank])
            else:  # as many processes as there are now have no past
                torch.manual_seed(_seed(self.settings.seed, self.world.rank, self.progress.epoch, self.progress.batch))
        except (KeyError, TypeError, RuntimeError) as error:
            raise UserError(f"{self.places.last} cannot be resumed: {error}") from error
        self._print(f"resuming {self.places.last} at epoch {self.progress.epoch + 1}, step {self.progress.batch + 1}")

    def _random_state(self) -> tuple[Tensor, Tensor | None]:
        """Of this process's generators, on the CPU and on the GPU."""
        on_gpu = self.device.type == "cuda"
        return torch.get_rng_state(), torch.cuda.get_rng_state(self.device) if on_gpu else None

    def _set_random_state(self, states: tuple[Tensor, Tensor | None]) -> None:
        torch.set_rng_state(states[0])
        if self.device.type == "cuda" and states[1] is not None:
            torch.cuda.set_rng_state(states[1].cpu(), self.device)


def run(settings: Settings) -> dict[str, Any]:
    """Train, validate and test by the settings, then print the twin's results beside these if there are any."""
    with process_group(settings.device) as world:
        whole = Run(settings, world)
        with locked(whole.places.last.parent) if world.is_main else nullcontext():
            results = whole.fit()
    if world.is_main and all(path.exists() for path in _results(settings)):
        print(f"\n{compare(settings)}", flush=True)
    return results


def compare(settings: Settings) -> str:
    """The results of the Bayesian network and of its twin, side by side.

    Raises:
        UserError: one of them has not been trained.
    """
    return comparison(*(read_results(path) for path in _results(settings)))


def _results(settings: Settings) -> tuple[Path, Path]:
    """Where the Bayesian network's and the twin's results are."""
    name = data_name(settings.dataset)
    bayesian, frequentist = (
        RunFiles.for_run(settings, name, family).reports / "results.json" for family in (True, False)
    )
    return bayesian, frequentist


def _validation(predictive: Predictive, labels: Tensor, kl: float, train_size: int) -> Row:
    """Accuracy, NLL of the mean prediction, and ELBO at β = 1 (nats per example), over the whole split."""
    expected = predictive.expected_log_probs.double().gather(1, labels[:, None]).mean()
    return {
        "valid_nll": nll(predictive.probs, labels),
        "valid_accuracy": accuracy(predictive.probs, labels),
        "valid_elbo": float(expected) - kl / train_size,
    }


def _postfix(steps: Tensor, train_size: int, bayesian: bool) -> dict[str, str]:
    nll, kl, correct, examples = steps.cpu().unbind(1)
    mean_nll = float((nll * examples).sum() / examples.sum())
    shown = {"nll": f"{mean_nll:.3f}", "acc": f"{float(correct.sum() / examples.sum()):.1%}"}
    if bayesian:
        shown |= {"kl": f"{float(kl[-1]):,.0f}", "elbo": f"{-mean_nll - float(kl[-1]) / train_size:.3f}"}
    return shown


def _rate_factor(schedule: str, done: float) -> float:
    """What learning rates are multiplied by when a fraction `done` of the run is over."""
    if schedule == "linear":
        return 1 - done
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1.0


def _generator(*seeds: int) -> torch.Generator:
    """A generator of its own for every combination of seeds, so that a resumed run draws the same."""
    return torch.Generator().manual_seed(_seed(*seeds))


def _seed(*seeds: int) -> int:
    """One seed for every combination of them."""
    mixed = 0
    for seed in seeds:
        mixed = (mixed * 6364136223846793005 + seed + 1442695040888963407) % 2**63
    return mixed


def _tensorboard(folder: Path, stack: ExitStack, resumed: bool) -> Any:
    from torch.utils.tensorboard import SummaryWriter  # slow to import, and few runs ask for it

    if not resumed and (folder / "tensorboard").exists():  # two runs in one folder would be one zigzag curve
        archive([folder / "tensorboard"], folder)
    return stack.enter_context(SummaryWriter(str(folder / "tensorboard")))
