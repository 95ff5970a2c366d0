"""The settings of a run: what each means, what it may be, and how a config file and the command line give it."""

from __future__ import annotations

import argparse
import ast
import types
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import Field, dataclass, field, fields
from typing import Any, TypeVar, cast

import torch

from layers.estimators import ESTIMATORS
from layers.priors import Priors, as_plain
from models import ACTIVATIONS, FACTORIES, IMAGE_SIZE, NETWORKS, check_net_type
from support import Check, OneLineParser, UserError, either, flag, nearest, number, one_of, text, whole
from training.objective import SCHEDULES


def _beta(value: Any) -> str | float:
    if isinstance(value, str) and value not in SCHEDULES:
        near = nearest(value, SCHEDULES)
        raise ValueError(f"a number ≥ 0, or one of {', '.join(SCHEDULES)} (did you mean {near!r}?)")
    return value if isinstance(value, str) else cast(float, number(0)(value))


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)) or not value or not all(type(n) is int and n > 0 for n in value):
        raise ValueError("a shape such as (1, 1)")
    return tuple(value)


def _priors(value: Any) -> dict[str, Any]:
    """As plain values, which a checkpoint can hold."""
    prior = Priors.parse(value).prior
    given = {} if value is None else dict(vars(value) if isinstance(value, Priors) else value)
    return given if prior is None else {**given, "prior": as_plain(prior)}


def _names(value: Any) -> list[str]:
    value = value.split(",") if isinstance(value, str) else value
    if not isinstance(value, (tuple, list)) or not value or not all(isinstance(name, str) and name for name in value):
        raise ValueError("names of layers, such as conv1,fc3")
    return list(value)


def _device(value: Any) -> str:
    try:
        torch.device(text(value))
    except RuntimeError as error:
        raise ValueError("a device such as cpu or cuda:0") from error
    return cast(str, value)


def _setting(help: str, check: Check) -> Any:
    return field(metadata={"help": help, "check": check})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run needs to know, checked. Every field has a flag of its name."""

    dataset: str = _setting(
        "MNIST5k (embedded), MNIST, CIFAR10, CIFAR100, or a folder with train/<class>/* images", text
    )
    data_dir: str = _setting("where downloaded data lies or goes", text)
    net_type: str = _setting(
        f"the architecture: {', '.join((*NETWORKS, *FACTORIES))}, or package.module:factory of your own, a function of "
        "(outputs, inputs)",
        check_net_type,
    )
    activation_type: str = _setting("relu or softplus", one_of(*ACTIVATIONS))
    n_epochs: int = _setting("passes over the training split", whole(1))
    lr_start: float = _setting(
        "learning rate of the weights (of their posterior means) at the start", number(0, exclusive=True)
    )
    lr_schedule: str = _setting(
        "how learning rates fall to 0 over the run: constant, linear or cosine", one_of("constant", "linear", "cosine")
    )
    batch_size: int = _setting("images a step", whole(1))
    valid_size: float = _setting(
        "fraction of the training images that is kept for validation", number(0, 1, exclusive=True)
    )
    random_shift: int = _setting("training images are moved by up to so many pixels", whole(0, IMAGE_SIZE - 1))
    random_flip: str | bool = _setting(
        "mirror training images half the time: True, False, or auto (images in color only)", either("auto", flag)
    )
    num_workers: int = _setting("processes that decode images when they do not fit in memory", whole(0))
    seed: int = _setting("of the split, the weights, the order and the noise", whole(0))
    device: str = _setting("auto (a GPU if there is one), cpu, cuda, cuda:1, mps …", either("auto", _device))
    amp: bool = _setting("train in bfloat16 mixed precision", flag)
    compile: bool = _setting("train through torch.compile", flag)
    deterministic: bool = _setting(
        "use torch's deterministic algorithms alone: the same seed, the same numbers, on a GPU too (slower)", flag
    )
    patience: int = _setting("stop after so many epochs without a better validation NLL; 0 for never", whole(0))
    resume: bool = _setting("go on from last.pt in the checkpoint folder", flag)
    checkpoint_dir: str = _setting("where checkpoints and reports go", text)
    tensorboard: bool = _setting("write live curves for TensorBoard", flag)


@dataclass(frozen=True, kw_only=True)
class BayesianSettings(Settings):
    """The settings of a Bayesian run."""

    layer_type: str = _setting("the estimator: lrt, bbb or flipout", one_of(*ESTIMATORS))
    alpha_shape: tuple[int, ...] | None = _setting(
        "None for the Gaussian posterior; a shape such as (1, 1) for the alpha posterior", either(None, _shape)
    )
    priors: dict[str, Any] = _setting("a dict of " + ", ".join(prior.name for prior in fields(Priors)), _priors)
    init_from: str | None = _setting(
        "start the posterior means from this checkpoint of main_frequentist.py; None for fresh ones", either(None, text)
    )
    moped: float | None = _setting(
        "with init_from, start every σ at so many times |w|, 0.1 say; None for posterior_rho_initial",
        either(None, number(0, exclusive=True)),
    )
    prior_at_means: bool = _setting("with init_from, centre the Gaussian prior of every weight at its start", flag)
    beta_type: str | float = _setting(
        "weight of the KL: Standard, Blundell, Soenderby, or a number (1 is the true posterior)", _beta
    )
    lr_spread_factor: float = _setting(
        "learning rate of ρ and log α, as a multiple of lr_start", number(0, exclusive=True)
    )
    train_ens: int = _setting("posterior samples a training step", whole(1))
    valid_ens: int = _setting("posterior samples in validation", whole(1))
    test_ens: int = _setting("posterior samples in the final test", whole(1))
    record_mean_var: bool = _setting("record means and variances of layer outputs while training", flag)
    recording_freq_per_epoch: int = _setting("records an epoch, evenly spread", whole(1))
    record_layers: list[str] | None = _setting("names of the layers to record; None for all", either(None, _names))


Kind = TypeVar("Kind", bound=Settings)


def from_config(kind: type[Kind], config: types.ModuleType, arguments: Sequence[str] = (), purpose: str = "") -> Kind:
    """The settings that a config module gives, with those that the command line gives instead.

    Args:
        purpose: what `--help` says first.

    Raises:
        UserError: a name that is no setting (the nearest one is named), a setting that is missing, a value
            that a setting cannot have.
    """
    known = {setting.name: setting for setting in fields(kind)}
    given = {name: value for name, value in vars(config).items() if _is_setting(name, value)}
    source = f"{config.__name__}.py"
    for name in given:
        if name not in known:
            raise UserError(f"{source}: unknown setting {name!r}: did you mean {nearest(name, known)!r}?")
    for name in known:
        if name not in given:
            raise UserError(f"{source}: the setting {name!r} is missing ({known[name].metadata['help']})")
    values = {name: _checked(known[name], value, f"{source}: {name}") for name, value in given.items()}
    for name, given_text in _flags(kind, config, arguments, purpose).items():
        values[name] = _given(known[name], given_text)
    settings = kind(**values)
    if isinstance(settings, BayesianSettings):
        _consistent(settings)
    return settings


def _consistent(settings: BayesianSettings) -> None:
    """Refuse settings that are right one by one and contradict each other."""
    for name in ("moped", "prior_at_means"):
        if getattr(settings, name) and settings.init_from is None:
            raise UserError(f"{name} is for a run that starts from a frequentist network: give init_from too")
    if settings.beta_type == "Soenderby" and settings.n_epochs == 1:
        raise UserError(
            "beta_type 'Soenderby' warms the KL up over the first quarter of the epochs, and n_epochs is 1: give more "
            "of them, or another beta_type"
        )


def _is_setting(name: str, value: Any) -> bool:
    return not name.startswith("_") and not isinstance(value, types.ModuleType) and name != "annotations"


def _checked(setting: Field[Any], value: Any, where: str) -> Any:
    try:
        return setting.metadata["check"](value)
    except ValueError as error:
        expected = str(error)
        if setting.name == "priors":
            raise UserError(f"{where}: {expected}") from error
        raise UserError(f"{where}: expected {expected}, got {value!r}") from error


def _given(setting: Field[Any], given: Any) -> Any:
    """A flag's value: what a config file would have, or else, as of a folder called 2024, the text itself."""
    value = _parsed(given)
    try:
        return _checked(setting, value, f"--{setting.name}")
    except UserError:
        with suppress(ValueError):
            return setting.metadata["check"](given)
        raise


def _parsed(given: Any) -> Any:
    """A flag's text as the Python value that a config file would have, or as itself."""
    try:
        return ast.literal_eval(given)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return given


def _flags(kind: type[Settings], config: types.ModuleType, arguments: Sequence[str], purpose: str) -> dict[str, str]:
    parser = OneLineParser(
        description=f"{purpose} Every setting of {config.__name__}.py has a flag of its name; what a flag does not "
        f"give comes from that file.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30, width=110),
    )
    for setting in fields(kind):
        default = getattr(config, setting.name)
        help = f"{setting.metadata['help']} (now {default!r})".replace("%", "%%")
        optional: dict[str, Any] = {"nargs": "?", "const": "True"} if setting.metadata["check"] is flag else {}
        parser.add_argument(f"--{setting.name}", metavar=setting.name.upper(), help=help, **optional)
    found, unknown = parser.parse_known_args(list(arguments))
    for word in unknown:
        known = [setting.name for setting in fields(kind)]
        if not word.startswith("-"):
            raise UserError(f"unexpected argument {word!r}: settings are given as --name value")
        name = word.lstrip("-").split("=")[0]
        raise UserError(f"unknown setting {word!r}: did you mean --{nearest(name, known)}?")
    return vars(found)
