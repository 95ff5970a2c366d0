"""A run from its settings to its results: train, validate, keep the best network, resume, and test once."""

from __future__ import annotations

import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from tqdm import tqdm

from images import Split, augment, data_name, normalize
from inference import Classifier, Regressor
from layers import kl_divergence
from models import read_checkpoint, restore_network, save_network
from recording import Recorder, find_recordings, recording
from support import (
    ALONE,
    UserError,
    World,
    archive,
    first_line,
    locked,
    process_group,
    remove_temporaries,
    tune_cpu,
    versions,
    write_json,
)
from training.alarms import Alarms
from training.interruption import StopRequest, stop_requests
from training.network import set_to_train, wrap_for_training
from training.objective import expected_nll, kl_weight, negative_elbo, tempered_kl
from training.reports import (
    SCORES,
    Curves,
    Row,
    comparison,
    epoch_line,
    plot_confusion,
    plot_history,
    read_results,
    write_history,
)
from training.settings import Settings
from training.state import Progress, RunFiles, Setup, State, derive_seed, initial_state, prepare, resume, save

REPORTS = ("history.csv", "history.png", "confusion.png", "results.json", "tensorboard")


class DivergedError(UserError):
    """The loss, the KL or the validation NLL is not finite."""


def run(settings: Settings) -> dict[str, Any]:
    """Train, validate and test by the settings, then print the twin's results beside these if there are any.

    The process belongs to the run: see `start`.

    Returns:
        The results that `results.json` holds.

    Raises:
        UserError: as `prepare`, `initial_state`, `train` and `test`, or another process writes to the same folder.
        SystemExit: Ctrl-C or SIGTERM, once `last.pt` is written.
    """
    with process_group(settings.device) as world:
        state, setup = start(settings, world)
        with locked(setup.files.last.parent) if world.is_main else nullcontext():
            if world.is_main:
                remove_temporaries(setup.files.last.parent, "last.pt", "model_*.pt")
                remove_temporaries(setup.files.reports, "history.*", "confusion.png", "results.json", "*.sqlite")
            train(state, setup)
            results = test(state, setup)
    if world.is_main and all(path.exists() for path in _result_files(settings)):
        try:
            print(f"\n{compare(settings)}", flush=True)
        except UserError as error:  # of the twin's file: this run is done
            print(f"not compared with the twin: {error}", file=sys.stderr, flush=True)
    return results


def start(settings: Settings, world: World = ALONE) -> tuple[State, Setup]:
    """Set this process up for a run, and make the run's state and setup.

    What changes in the process: denormal floats count as 0, the allocator keeps freed memory, deterministic
    algorithms are switched on if the settings say so, and torch's global generators are seeded.

    Args:
        settings: of the run.
        world: the processes that train together.

    Raises:
        UserError: as `prepare` and `initial_state`.
    """
    tune_cpu()
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses
        torch.use_deterministic_algorithms(True)
    setup = prepare(settings, world)
    state = initial_state(setup)
    torch.manual_seed(derive_seed(settings.seed, world.rank))  # of this process's noise
    return state, setup


def train(
    state: State,
    setup: Setup,
    evaluated: nn.Module | None = None,
    after_epoch: Callable[[Row], None] | None = None,
) -> None:
    """Train to the end and keep the best network by validation; the test split stays unseen.

    Noise comes from torch's global generators, which only a resumed run changes: to what they were when it stopped.

    Args:
        state: where training starts, if the settings do not resume a run; it changes in place.
        setup: what is fixed for the run.
        evaluated: the network that is validated and kept, if it is not the trained one but, for example, the
            running mean of its weights.
        after_epoch: called with the figures of every epoch that ends, before `last.pt` is written; what it raises ends
            the run. After a process was killed in between, it is called for the same epoch again.

    Raises:
        DivergedError: the loss is no longer finite.
        UserError: `last.pt` cannot be resumed, a file cannot be written, or an operation has no deterministic
            algorithm where the settings ask for those.
        SystemExit: Ctrl-C or SIGTERM, once `last.pt` is written.
    """
    resumed = resume(state, setup)
    settings, world, progress = setup.settings, setup.world, state.progress
    if world.is_main:
        print(setup.data.report(), flush=True)
    if not resumed:
        progress.run = world.broadcast_from_main(lambda: _begin(setup.files))
    evaluated = state.net if evaluated is None else evaluated
    forward = wrap_for_training(state.net, settings, world)
    continues = setup.bayesian is not None and setup.bayesian.prior_from is not None
    # MOPED, or the run that this one continues, has put σ where it belongs.
    is_new = not (resumed or continues or (setup.bayesian and setup.bayesian.moped))
    faster = "a smaller curvature_decay" if settings.optimizer == "ivon" else "a larger lr_spread_factor"
    batches = setup.batches if is_new else 0
    classes = len(setup.data.classes) if settings.task == "classification" else 1
    alarms = Alarms(state.net, classes, settings.n_epochs, batches, faster, continues)
    with _report_nondeterministic(), ExitStack() as stack:
        stop = stack.enter_context(stop_requests())
        if world.launch and not resumed:
            save(state, setup)  # torchrun resumes it if a process is lost before the first epoch ends
        recorder = stack.enter_context(_recording(state, setup, resumed))
        curves = Curves(setup.files.reports / "tensorboard") if settings.tensorboard and world.is_main else None
        while progress.epoch < settings.n_epochs and not _out_of_patience(progress, settings.patience):
            started = time.perf_counter()
            signum = train_epoch(state, setup, forward, stop, recorder)
            if signum:
                progress.seconds += time.perf_counter() - started
                _check_finite(progress)
                _save(state, setup, recorder)
                _exit(setup, progress, signum)
            row = _training_row(progress, setup) | validate(evaluated, setup)
            seconds = progress.seconds + time.perf_counter() - started  # with those before a stop within the epoch
            row["seconds"] = seconds - sum(earlier["seconds"] for earlier in progress.history)
            best = _finish_epoch(state, setup, evaluated, row)
            if after_epoch:
                after_epoch(row)
            _save(state, setup, recorder)
            if world.is_main:
                print(epoch_line(row, settings.n_epochs, best), flush=True)
                for text in alarms.check(progress.history, len(setup.data.valid)):
                    print(f"warning: {text}", file=sys.stderr, flush=True)
                if curves:
                    curves.add(row)
            if signum := world.all_reduce_max(_stop_signal(stop, world)):  # it came during validation
                _exit(setup, progress, signum)


@contextmanager
def _report_nondeterministic() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        operation = first_line(error).partition(", but")[0]
        raise UserError(f"{operation}: leave out deterministic for this network or task") from error


def train_epoch(
    state: State,
    setup: Setup,
    forward: Callable[[Tensor], Any],
    stop: StopRequest,
    recorder: Recorder | None = None,
) -> int:
    """Take the steps that are left of the current epoch.

    Args:
        state: changes in place.
        setup: what is fixed for the run.
        forward: the network as `wrap_for_training` returns it.
        stop: read after every step; with several GPUs, every 50 steps.
        recorder: records the layers' outputs.

    Returns:
        The signal that asked a process to stop, or 0 once the epoch is finished.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    settings, data, world, progress = setup.settings, setup.data, setup.world, state.progress
    flip = data.flippable if settings.random_flip == "auto" else bool(settings.random_flip)
    order = torch.randperm(len(data.train), generator=_generator(settings.seed, progress.epoch))
    remaining = order[progress.batch * settings.batch_size :]
    set_to_train(state.net)
    bar = tqdm(
        data.train.batches(settings.batch_size, remaining, settings.num_workers, world),
        desc=f"epoch {progress.epoch + 1}/{settings.n_epochs}",
        total=setup.batches,
        initial=progress.batch,
        unit="batch",
        leave=False,
        disable=not (sys.stderr.isatty() and world.is_main),
    )
    for images, targets in bar:
        generator = _generator(settings.seed, progress.epoch, progress.batch, world.rank)
        images = _to_device(images, setup.device)
        targets = _to_device(targets, setup.device)
        if setup.description.maps:  # a mask moves with its image
            images = torch.cat([images, targets[:, None]], 1)
        images = augment(images, settings.random_shift, flip, generator, settings.random_crop)
        if setup.description.maps:
            images, targets = images[:, :-1], images[:, -1].long()
        images = normalize(images, data.mean, data.std)
        if recorder and settings.compile:  # compiled passes do not call the recorder
            with _autocast(setup):
                recorder.observe(images)
        progress.steps[progress.batch] = step(state, setup, forward, images, targets)
        progress.batch += 1
        if recorder:
            recorder.step()
        signum = 0
        if setup.device.type == "cpu" or progress.batch % 50 == 0 or progress.batch == setup.batches:
            _check_finite(progress)
            bar.set_postfix(_postfix(progress, setup))
            signum = world.all_reduce_max(_stop_signal(stop, world))
        elif world.size == 1:
            signum = _stop_signal(stop, world)
        if signum:
            return signum
    return 0


def step(state: State, setup: Setup, forward: Callable[[Tensor], Any], images: Tensor, targets: Tensor) -> Tensor:
    """Take one optimizer step on this process's share of a batch.

    DistributedDataParallel averages gradients over the processes. So that they become those of the whole
    batch of `count` examples, whatever the shares, a share of n counts n·size/count times; the KL, the
    same in all of them, counts once.

    Args:
        state: its network, optimizer and scheduler change in place.
        setup: what is fixed for the run.
        forward: the network as `wrap_for_training` returns it.
        images: [n, channels, height, width], normalized.
        targets: what the likelihood takes: [n] for classes.

    Returns:
        [4], over the shares of all processes: NLL, in nats per example, KL, in nats, the sum of the likelihood's
        `progress` (for classes, the number of correct predictions), number of examples.
    """
    settings, progress, train_size = setup.settings, state.progress, len(setup.data.train)
    count = min(settings.batch_size, train_size - progress.batch * settings.batch_size)
    share = setup.world.share(count)
    state.optimizer.zero_grad(set_to_none=True)
    with _autocast(setup):
        if setup.bayesian:
            pairs = [forward(images) for _ in range(setup.bayesian.train_ens)]
            outputs, kl = [output.float() for output, _ in pairs], pairs[0][1]
            weight = kl_weight(setup.bayesian.beta_type, progress.step, setup.batches, settings.n_epochs)
        else:
            outputs, kl, weight = [forward(images).float()], torch.zeros((), device=setup.device), 0.0
    likelihood = setup.description.likelihood
    nll = expected_nll(outputs, targets, likelihood)
    loss = nll * (share * setup.world.size / count)
    if setup.bayesian and settings.optimizer != "ivon":  # which has a part of its own for the KL
        loss = negative_elbo(loss, tempered_kl(kl, state.net, setup.bayesian.temperature), weight, train_size)
    loss.backward()
    state.optimizer.step()
    state.scheduler.step()
    with torch.no_grad():
        figure = likelihood.progress(outputs, targets)[:share].sum()
        return _reduce(torch.stack([nll, kl, figure.float(), torch.full_like(nll, share)]).detach(), setup.world)


def validate(net: nn.Module, setup: Setup) -> Row:
    """Scores on the whole validation split.

    Returns:
        valid_nll: of the mean prediction, in nats per example.
        valid_accuracy: of the mean prediction; for regression, valid_rmse.
        valid_elbo: at β = 1, in nats per example; not for regression.
    """
    predictive = _predict(net, setup.data.valid, setup.bayesian.valid_ens if setup.bayesian else 1, setup)
    figures = setup.description.likelihood.validation(predictive, _targets(setup.data.valid))
    expected = figures.pop("expected_nll", None)
    row = {f"valid_{name}": value for name, value in figures.items()}
    if expected is not None:
        row["valid_elbo"] = -expected - float(kl_divergence(net).detach()) / len(setup.data.train)
    return row


def _targets(split: Split) -> Tensor:
    """The labels of a split, masks as int64."""
    return split.labels.long() if split.labels.dtype == torch.uint8 else split.labels


def test(state: State, setup: Setup) -> dict[str, Any]:
    """Score the best network on the test split, and write `results.json` and `history.png`.

    Returns:
        The results that `results.json` holds.

    Raises:
        UserError: the checkpoint of the best network cannot be read, or a file cannot be written.
    """
    settings, data, files, progress = setup.settings, setup.data, setup.files, state.progress
    content = setup.world.broadcast_from_main(lambda: read_checkpoint(files.best))
    net = restore_network(content, files.best, setup.device)
    if content.get("run", "") != progress.run or tuple(content["description"]["classes"]) != data.classes:
        raise UserError(f"{files.best} is the network of another run than {files.last}: train again without --resume")
    samples = setup.bayesian.test_ens if setup.bayesian else 1
    started = time.perf_counter()
    predictive = _predict(net, data.test, samples, setup)
    likelihood, targets = setup.description.likelihood, _targets(data.test)
    results = {
        "dataset": data.name,
        "net_type": settings.net_type,
        "method": "bayesian" if setup.bayesian else "frequentist",
        "task": settings.task,
        "test": likelihood.scores(predictive, targets),
        **likelihood.details(predictive, targets, data.classes),
        "test_samples": samples,
        "test_images": len(data.test),
        "class_counts": data.counts,
        "skipped_images": data.skipped,
        "validation": content["validation"],
        "epochs": progress.epoch,
        "parameters": sum(p.numel() for p in net.parameters()),
        "training_seconds": round(progress.seconds, 2),
        "test_seconds": round(time.perf_counter() - started, 2),
        "seed": settings.seed,
        "processes": setup.world.size,
        "settings": asdict(settings),
        **_identity(state, setup),
        "versions": versions(),
    }
    if not setup.world.is_main:
        return results
    write_json(files.reports / "results.json", results)
    if settings.tensorboard:
        Curves(files.reports / "tensorboard").add_results(results["settings"], results["test"])
    title = f"{results['method']} {results['net_type']} on {results['dataset']}"
    pictures = [plot_history(files.reports, progress.history, title)]
    figures = results["test"]
    evaluation = samples if isinstance(samples, str) else f"{samples} sample{'s' if samples > 1 else ''}"
    shown = "  ".join(f"{name} {SCORES.get(name, '{:.4f}').format(value)}" for name, value in figures.items())
    print(
        f"test  {shown}  ({len(data.test):,} images, {evaluation}, "
        f"best epoch {progress.best_epoch}, trained in {progress.seconds:.0f} s)"
    )
    if "confusion" in results:
        pictures.append(plot_confusion(files.reports, results["confusion"], data.classes, title))
    reports = ", ".join(map(str, [files.reports / "results.json", *pictures]))
    print(f"network  {files.best}\nreports  {reports}", flush=True)
    return results


def compare(settings: Settings) -> str:
    """The results of the Bayesian network and of its twin, side by side.

    Raises:
        UserError: one of them has not been trained.
    """
    return comparison(*(read_results(path) for path in _result_files(settings)))


def _result_files(settings: Settings) -> list[Path]:
    """Of the Bayesian network and of its twin."""
    name = data_name(settings.dataset)
    return [RunFiles.for_run(settings, name, family).reports / "results.json" for family in (True, False)]


def _predict(net: nn.Module, split: Split, samples: int | str, setup: Setup) -> Any:
    """By so many posterior samples, or by 'moments'."""
    settings = setup.settings
    how: dict[str, Any] = {"method": samples} if isinstance(samples, str) else {"num_samples": samples}
    how |= {"seed": settings.seed, "workers": settings.num_workers, "world": setup.world}
    kind = Regressor if settings.task == "regression" else Classifier
    return kind.from_description(net, setup.description).predict(split.images, **how)


def _training_row(progress: Progress, setup: Setup) -> Row:
    """The training figures of the epoch whose steps are finished."""
    likelihood = setup.description.likelihood
    nll, kl, figure, examples = progress.steps.cpu().double().unbind(1)
    row: Row = {
        "epoch": progress.epoch + 1,
        "train_nll": float((nll * examples).sum() / examples.sum()),
        f"train_{likelihood.figure}": likelihood.followed(float(figure.sum() / examples.sum())),
    }
    if setup.bayesian:
        last, epochs = (progress.epoch + 1) * setup.batches - 1, setup.settings.n_epochs
        row["train_kl"] = float(kl[-1])
        row["kl_weight"] = kl_weight(setup.bayesian.beta_type, last, setup.batches, epochs)
    return row


def _finish_epoch(state: State, setup: Setup, evaluated: nn.Module, row: Row) -> bool:
    """Note the epoch in the progress, write the history, and keep the evaluated network if it is the best so far."""
    progress, files = state.progress, setup.files
    best = row["valid_nll"] < progress.best_nll
    if best:
        progress.best_nll, progress.best_epoch = row["valid_nll"], int(row["epoch"])
        if setup.world.is_main:
            report = {"settings": asdict(setup.settings), "validation": row, **_identity(state, setup)}
            save_network(files.best, evaluated, setup.description, **report)
    elif not progress.best_epoch:
        raise DivergedError(
            f"the validation NLL is {row['valid_nll']} after epoch {row['epoch']}: try a smaller lr_start"
        )
    elif setup.world.is_main and not files.best.exists():
        raise UserError(f"{files.best} is gone: it held the best network so far; train again")
    progress.epoch, progress.batch = progress.epoch + 1, 0
    progress.steps.zero_()
    progress.history.append(row)
    progress.seconds = sum(each["seconds"] for each in progress.history)
    if setup.world.is_main:
        write_history(files.reports, progress.history)
    return best


def _begin(files: RunFiles) -> str:
    """The identity of a new run, drawn from the system, once the files of earlier runs are out of its way.

    They move to a folder of their own: what stays where it was could be taken for this run's. `last.pt` goes first,
    because a run could still be resumed from it when the others are gone.
    """
    paths = [files.last, files.best, *map(files.reports.joinpath, REPORTS), *find_recordings(files.reports)]
    earlier = [path for path in paths if path.exists()]
    if earlier:
        names = ", ".join(path.name for path in earlier)
        print(f"{names} of an earlier run went to {archive(earlier, files.reports)}", flush=True)
    return secrets.token_hex(16)


def _identity(state: State, setup: Setup) -> dict[str, Any]:
    """Of the run and of its data, for the files that it leaves."""
    return {"run": state.progress.run, "data": setup.data.fingerprint}


def _save(state: State, setup: Setup, recorder: Recorder | None) -> None:
    """Write `last.pt`, the recordings before it: it must not be ahead of them."""
    if recorder:
        recorder.sync()
    save(state, setup)


def _stop_signal(stop: StopRequest, world: World) -> int:
    """The signal that asks this process to stop, or 0; the end of torchrun counts as SIGTERM."""
    return stop.signum or (int(signal.SIGTERM) if world.is_abandoned else 0)


def _exit(setup: Setup, progress: Progress, signum: int) -> NoReturn:
    """Exit as a signal asks, once everything is saved."""
    if setup.world.is_main:
        place = f"after epoch {progress.epoch}"
        if progress.batch:
            place = f"in epoch {progress.epoch + 1} after {progress.batch} of {setup.batches} steps"
        with suppress(OSError):  # of a terminal or torchrun that is gone
            print(
                f"stopped by {signal.Signals(signum).name} {place}; {setup.files.last} is written: run the same "
                f"command with --resume to continue",
                flush=True,
            )
    raise SystemExit(128 + signum)


def _out_of_patience(progress: Progress, patience: int) -> bool:
    return bool(patience) and progress.epoch - progress.best_epoch >= patience


def _check_finite(progress: Progress) -> None:
    finite = progress.steps[: progress.batch, :2].isfinite().all(-1)
    if not finite.all():
        index = int((~finite).int().argmax())
        quantity, advice = "loss", "a smaller lr_start, or amp False"
        if progress.steps[index, 0].isfinite():
            quantity, advice = "KL", "a wider prior (prior_sigma), or a smaller lr_start"
        raise DivergedError(
            f"the {quantity} is not finite at epoch {progress.epoch + 1}, step {index + 1} of {len(progress.steps)}: "
            f"try {advice}; the checkpoints of earlier epochs are kept"
        )


def _postfix(progress: Progress, setup: Setup) -> dict[str, str]:
    """The training figures of the current epoch so far, for the progress bar."""
    likelihood = setup.description.likelihood
    nll, kl, figure, examples = progress.steps[: progress.batch].cpu().unbind(1)
    mean_nll = float((nll * examples).sum() / examples.sum())
    followed = likelihood.followed(float(figure.sum() / examples.sum()))
    figures = {"nll": f"{mean_nll:.3f}", likelihood.figure[:4]: f"{followed:.3g}"}
    if setup.bayesian:
        elbo = -mean_nll - float(kl[-1]) / len(setup.data.train)
        figures |= {"kl": f"{float(kl[-1]):,.0f}", "elbo": f"{elbo:.3f}"}
    return figures


def _reduce(row: Tensor, world: World) -> Tensor:
    """A step's figures over the shares of all processes."""
    if world.size == 1:
        return row
    nll, kl, figure, examples = row
    sums = world.all_reduce_sum(torch.stack([nll * examples, kl / world.size, figure, examples]))
    return torch.stack([sums[0] / sums[3], *sums[1:]])


def _autocast(setup: Setup) -> torch.autocast:
    return torch.autocast(setup.device.type, torch.bfloat16, enabled=setup.settings.amp)


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _generator(*seeds: int) -> torch.Generator:
    """A generator of its own for every combination of seeds, so that a resumed run draws the same."""
    return torch.Generator().manual_seed(derive_seed(*seeds))


def _recording(state: State, setup: Setup, resumed: bool) -> AbstractContextManager[Recorder | None]:
    settings = setup.bayesian
    if settings is None or not settings.record_mean_var or not setup.world.is_main:
        return nullcontext()
    return recording(
        state.net,
        setup.files.reports,
        setup.batches,
        layers=settings.record_layers,
        frequency=settings.recording_freq_per_epoch,
        resume_at=state.progress.step if resumed else None,
        settings=asdict(settings) | _identity(state, setup),
        seed=settings.seed,
    )
