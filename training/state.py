"""What is fixed for a run (`Setup`), what training changes (`State`), and how the latter is saved and restored."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from images import ImageData, load_data, normalize
from models import NETWORKS, Description, build, file_name, read_checkpoint, write_checkpoint
from recording import recorded_layers
from support import ALONE, UserError, World, first_line
from training.network import (
    architecture,
    build_network,
    build_optimizer,
    build_scheduler,
    describe,
    give_patch_prior,
    images_for_patches,
    normalized_as_for,
    start_first_layer,
    try_one_image,
)
from training.reports import Row
from training.restoring import check_optimizer_state, check_progress
from training.settings import BayesianSettings, Role, Settings, names_with

EARLIER = {  # of runs of before
    "optimizer": "adam",
    "weight_decay": 0.0,
    "warmup_epochs": 0.0,
    "temperature": 1.0,
    "prior_from": None,
    "posterior": "gaussian",
    "patch_prior": 0.0,
    "first_filters": "random",
    "image_size": None,
    "center_crop": False,
    "channels": "auto",
    "random_crop": 1.0,
    "weights": None,
    "bayesian_layers": "all",
    "freeze": False,
    "task": "classification",
    "likelihood": None,
}


@dataclass(frozen=True)
class RunFiles:
    """Where a run's files go.

    Attributes:
        best: the checkpoint of the best network.
        last: the checkpoint that a run resumes from.
        reports: the folder of history.csv, history.png and results.json.
    """

    best: Path
    last: Path
    reports: Path

    @classmethod
    def for_run(cls, settings: Settings, dataset: str, bayesian: bool) -> RunFiles:
        """`<checkpoint_dir>/<dataset>/<family>/` and the files in it.

        Args:
            settings: of the run, or of its twin.
            dataset: the name of the data set, from `images.data_name`.
            bayesian: whether the network is Bayesian.
        """
        folder = Path(settings.checkpoint_dir) / dataset / ("bayesian" if bayesian else "frequentist")
        name = file_name(settings.net_type)
        return cls(folder / f"model_{name}.pt", folder / "last.pt", folder / name)


@dataclass(frozen=True, eq=False)
class Setup:
    """What is fixed for a run; `prepare` makes it.

    Attributes:
        settings: `BayesianSettings` for a Bayesian network, `Settings` for its frequentist twin.
        data: the images, in three splits.
        description: what the checkpoint of the network holds besides its weights.
        device: where the network trains.
        world: the processes that train it together. Each takes its share of every batch, so a batch, a step
            and the objective are what they are for one process; each draws its own noise.
        files: where the run's files go.
    """

    settings: Settings
    data: ImageData
    description: Description
    device: torch.device
    world: World
    files: RunFiles

    @property
    def bayesian(self) -> BayesianSettings | None:
        """The settings of a Bayesian run; None for a frequentist one."""
        return self.settings if isinstance(self.settings, BayesianSettings) else None

    @property
    def batches(self) -> int:
        """The number of batches per epoch."""
        return math.ceil(len(self.data.train) / self.settings.batch_size)


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        steps: [batches, 4], one row per finished batch of the current epoch: NLL, KL, number of correct
            predictions, number of examples, over all processes.
        epoch: the number of finished epochs.
        batch: the number of finished batches of the current epoch.
        history: one row per finished epoch.
        best_nll: the best validation NLL so far.
        best_epoch: the epoch of the best validation NLL.
        seconds: time spent in training and validation.
        run: the identity of the run, which every file that it leaves holds; '' before its start, and in files of
            versions that had none.
    """

    steps: Tensor
    epoch: int = 0
    batch: int = 0
    history: list[Row] = field(default_factory=list)
    best_nll: float = math.inf
    best_epoch: int = 0
    seconds: float = 0.0
    run: str = ""

    @property
    def step(self) -> int:
        """The number of finished batches since the beginning of training."""
        return self.epoch * len(self.steps) + self.batch


@dataclass
class State:
    """What training changes, and `last.pt` holds; `initial_state` makes it.

    Attributes:
        net: the network, on the device where it trains.
        optimizer: of its parameters.
        scheduler: of the optimizer's learning rates, stepped after every step of the optimizer.
        progress: how far the run is.
    """

    net: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LambdaLR
    progress: Progress


def prepare(settings: Settings, world: World = ALONE) -> Setup:
    """Load the data and settle everything else that is fixed for a run.

    Args:
        settings: of the run.
        world: the processes that train together.

    Raises:
        UserError: data that cannot be loaded, a device that is not available, a layer to record that the network
            does not have, more processes than images, or a checkpoint `prior_from` that cannot be loaded, is for other
            images, or is where this run writes its own.
    """
    device = world.device(settings.device)
    if isinstance(settings, BayesianSettings) and settings.record_mean_var and settings.net_type in NETWORKS:
        with torch.device("meta"):  # wrong names are reported before the data is loaded, and names need no weights
            recorded_layers(build(settings.net_type, True, 1, 1, **architecture(settings)), settings.record_layers)
    with world.local_main_first():  # the data may have to be downloaded
        data = load_data(
            settings.dataset,
            settings.data_dir,
            settings.valid_size,
            settings.seed,
            batch_size=settings.batch_size,
            skip_broken=settings.skip_broken,
            image_size=settings.image_size,
            center_crop=settings.center_crop,
            channels=settings.channels,
            task=settings.task,
        )
    settings.check_shift(data.image_size)
    if min(settings.batch_size, len(data.valid), len(data.test)) < world.size:
        raise UserError(
            f"{world.size} processes are too many for batch_size {settings.batch_size}, {len(data.valid)} "
            f"validation images and {len(data.test)} test images: each needs one of each"
        )
    files = RunFiles.for_run(settings, data.name, isinstance(settings, BayesianSettings))
    prior_from = settings.prior_from if isinstance(settings, BayesianSettings) else None
    if prior_from is not None:
        if Path(prior_from).resolve() == files.best.resolve():
            raise UserError(f"prior_from {prior_from} is where this run writes its own: give another checkpoint_dir")
        data = normalized_as_for(prior_from, settings.net_type, data)
    return Setup(settings, data, describe(settings, data), device, world, files)


def initial_state(setup: Setup) -> State:
    """The state before the first step; torch's global generators are left as they are.

    Raises:
        UserError: as `build_network`, `give_patch_prior`, `build_optimizer` and `recorded_layers`; or a batch holds one
            image, which the network cannot train on.
    """
    net = build_network(setup.settings, setup.description)
    if setup.bayesian and setup.bayesian.record_mean_var:
        recorded_layers(net, setup.bayesian.record_layers)
    count, size = len(setup.data.train), setup.settings.batch_size
    if any(0 < each < 2 * setup.world.size for each in (min(count, size), count % size)):
        pixels, _ = next(setup.data.train.batches(1))
        try_one_image(net, normalize(pixels, setup.data.mean, setup.data.std))
    images = cache(partial(images_for_patches, setup.data))  # read once for both, and only if one of them needs them
    start_first_layer(net, setup.data, setup.settings, images)
    if setup.bayesian:
        give_patch_prior(net, setup.data, setup.bayesian, images)
    net.to(setup.device)
    optimizer = build_optimizer(net, setup.settings, len(setup.data.train))
    scheduler = build_scheduler(optimizer, setup.settings, setup.batches)
    return State(net, optimizer, scheduler, Progress(torch.zeros(setup.batches, 4, device=setup.device)))


def derive_seed(*seeds: int) -> int:
    """A single seed for every combination of seeds."""
    mixed = 0
    for seed in seeds:
        mixed = (mixed * 6364136223846793005 + seed + 1442695040888963407) % 2**63
    return mixed


def save(state: State, setup: Setup) -> None:
    """Write `last.pt`, with the states of torch's global generators in every process.

    All processes call it; the main one writes.

    Raises:
        UserError: the file cannot be written.
    """
    content = {
        "settings": asdict(setup.settings),
        "weights": state.net.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scheduler": state.scheduler.state_dict(),
        "progress": vars(state.progress),
        "random": setup.world.all_gather(_random_state(setup.device)),
        "launch": setup.world.launch,
        "data": setup.data.fingerprint,
    }
    if setup.world.is_main:
        write_checkpoint(setup.files.last, content)


def resume(state: State, setup: Setup) -> bool:
    """Restore `last.pt` if the settings say so, or if torchrun restarted this run because a process was lost.

    Returns:
        Whether the state is restored.

    Raises:
        UserError: there is no `last.pt`, or `restore` refuses it.
    """
    content = setup.world.broadcast_from_main(lambda: _content_to_resume(setup))
    if content is None:
        return False
    restore(state, setup, content)
    return True


def _content_to_resume(setup: Setup) -> dict[str, Any] | None:
    if setup.settings.resume:
        return read_checkpoint(setup.files.last)
    if setup.world.restarts and setup.files.last.exists():
        content = read_checkpoint(setup.files.last)
        return content if content.get("launch") == setup.world.launch else None
    return None


def restore(state: State, setup: Setup, content: dict[str, Any]) -> None:
    """Change the state, and torch's global generators, to what the content of `last.pt` says.

    Args:
        state: of a run with this setup.
        setup: the settings may differ from the saved ones in those with `Role.MAY_CHANGE_ON_RESUME`.
        content: of `last.pt`, as `read_checkpoint` returns it.

    Raises:
        UserError: the content is of a run with other settings or other data, of more epochs than the settings say,
            or damaged.
    """
    path, settings = setup.files.last, setup.settings
    try:
        _refuse_other_settings(setup, content["settings"])
        _refuse_other_data(setup, content.get("data", setup.data.fingerprint))
        content = _with_scheduler(content, state)
        check_optimizer_state(state.optimizer, content["optimizer"])
        check_progress(content["progress"], content["scheduler"]["last_epoch"], state.progress.steps)
        state.net.load_state_dict(content["weights"])
        groups = state.optimizer.state_dict()["param_groups"]  # whose options follow from the settings and the device
        state.optimizer.load_state_dict({"state": content["optimizer"]["state"], "param_groups": groups})
        # A new scheduler instead of load_state_dict: the rates of the next step are those of the present n_epochs.
        state.scheduler = build_scheduler(
            state.optimizer, settings, setup.batches, steps=content["scheduler"]["last_epoch"]
        )
        state.progress = Progress(**content["progress"])
        _refuse_fewer_epochs(setup, state.progress)
        state.progress.steps = state.progress.steps.to(setup.device)
        _restore_random_state(setup, state.progress, content["random"])
    except UserError:
        raise
    except Exception as error:  # what a foreign file says can fail in any way
        raise UserError(f"{path} cannot be resumed: {first_line(error)}") from error
    if setup.world.is_main:
        print(f"resuming {path} at epoch {state.progress.epoch + 1}, step {state.progress.batch + 1}", flush=True)


def _refuse_other_settings(setup: Setup, saved: dict[str, Any]) -> None:
    may_change = names_with(Role.MAY_CHANGE_ON_RESUME)
    saved = {**EARLIER, **saved}
    for name, value in asdict(setup.settings).items():
        if saved.get(name, value) != value and name not in may_change:
            raise UserError(
                f"{setup.files.last} is of a run with {name} {saved[name]!r}, not {value!r}: resume with the "
                f"settings of that run, or start a new one without --resume"
            )


def _refuse_other_data(setup: Setup, saved: Any) -> None:
    if saved != setup.data.fingerprint:
        raise UserError(
            f"{setup.files.last} is of a run on other images than those of {setup.settings.dataset} now: resume with "
            f"the images of that run, or start a new one without --resume"
        )


def _refuse_fewer_epochs(setup: Setup, progress: Progress) -> None:
    """Refuse a run with more steps than the settings have."""
    epochs = math.ceil(progress.step / setup.batches)
    if epochs > setup.settings.n_epochs:
        raise UserError(
            f"{setup.files.last} is of a run in epoch {epochs}, beyond n_epochs {setup.settings.n_epochs}: give at "
            f"least {epochs}"
        )


def _with_scheduler(content: dict[str, Any], state: State) -> dict[str, Any]:
    """The content of a `last.pt` of today, from one of an older version: 'optimiser', and no scheduler."""
    if "optimiser" not in content:
        return content
    optimizer, progress = content["optimiser"], Progress(**content["progress"])
    groups = [
        {**saved, "initial_lr": group["initial_lr"]}
        for saved, group in zip(optimizer["param_groups"], state.optimizer.param_groups, strict=True)
    ]
    return {
        **content,
        "optimizer": {**optimizer, "param_groups": groups},
        "scheduler": {"last_epoch": progress.step},
    }


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Of this process's generators, on the CPU and on the GPU."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _restore_random_state(setup: Setup, progress: Progress, states: list[tuple[Tensor, Tensor | None]]) -> None:
    if len(states) != setup.world.size:  # no process of now continues one of then
        torch.manual_seed(derive_seed(setup.settings.seed, setup.world.rank, progress.epoch, progress.batch))
        return
    on_cpu, on_gpu = states[setup.world.rank]
    torch.set_rng_state(on_cpu)
    if setup.device.type == "cuda" and on_gpu is not None:
        torch.cuda.set_rng_state(on_gpu.cpu(), setup.device)
