"""The settings of a run: what each means, which values it may have, how a file and the command line give it."""

from __future__ import annotations

import argparse
import ast
import types
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import Field, dataclass, field, fields
from enum import Enum
from typing import Any, TypeVar, cast

import torch

from images import SOURCES
from layers.estimators import ESTIMATORS
from layers.posteriors import FAMILIES, Family
from layers.priors import DistributionPrior, Prior, Priors
from likelihoods import TASKS, parse_task
from models import ACTIVATIONS, IMAGE_SIZE, KNOWN, Size, check_image_size, check_net_type
from support import Check, OneLineParser, UserError, either, flag, nearest, number, one_of, text, whole
from training.objective import SCHEDULES

RECIPE = "recipe"  # the flag that is no setting
PRIOR_FIELDS = ("prior", "learn_prior_sigma", "prior_mu", "prior_sigma")  # of `Priors`
START_FIELDS = ("posterior_mu_initial", "posterior_rho_initial")
MOST_SAMPLES, MOST_WORKERS = 100_000, 1_000  # far more than is of use, and what a typing error exceeds


class Role(Enum):
    """What sets a setting apart from those that define the run; it stands in the metadata of the setting's field."""

    MAY_CHANGE_ON_RESUME = "a resumed run may have another value than the run it resumes"
    NOT_COMPARED = "it changes no result, so it is left out when two runs are compared"
    LOCAL = "it says where things are on this machine, or how the run was started there"


def _beta(value: Any) -> str | float:
    if isinstance(value, str) and value not in SCHEDULES:
        near = nearest(value, SCHEDULES)
        raise ValueError(f"a number ≥ 0, or one of {', '.join(SCHEDULES)} (did you mean {near!r}?)")
    return value if isinstance(value, str) else cast(float, number(0)(value))


def _below_one(value: Any) -> float:
    if number(0, 1)(value) == 1:
        raise ValueError("a number ≥ 0 and < 1")
    return float(value)


def _channels(value: Any) -> int:
    if type(value) is not int or value not in (1, 3):
        raise ValueError("1 or 3")
    return value


def _share(value: Any) -> float:
    if number(0, 1)(value) == 0:
        raise ValueError("a number > 0 and ≤ 1")
    return float(value)


def _likelihood(value: Any) -> str | dict[str, Any]:
    if not isinstance(value, (str, dict)) or not all(isinstance(name, str) for name in value):
        raise ValueError("the name of a likelihood, or a dict of it and its options")
    return value


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)) or not value or not all(type(n) is int and n > 0 for n in value):
        raise ValueError("a shape such as (1, 1)")
    return tuple(value)


def _priors(value: Any) -> dict[str, Any]:
    """As plain values, which a checkpoint can hold."""
    prior = Priors.parse(value).prior
    values = {} if value is None else dict(vars(value) if isinstance(value, Priors) else value)
    if isinstance(prior, Prior):
        raise ValueError("prior must be of torch.distributions, or a dict that describes one")
    return values if prior is None else {**values, "prior": DistributionPrior(prior).plain}


def _posterior(value: Any) -> str | dict[str, Any]:
    family = Family.parse(value)
    return family.name if isinstance(value, str) else {"family": family.name, **family.options}


def _names(value: Any) -> list[str]:
    value = value.split(",") if isinstance(value, str) else value
    if not isinstance(value, (tuple, list)) or not value or not all(isinstance(name, str) and name for name in value):
        raise ValueError("names of layers, such as conv1,fc3")
    return list(value)


def _device(value: Any) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that torch knows and will not know
            torch.device(text(value))
    except RuntimeError as error:
        raise ValueError("a device such as cpu or cuda:0") from error
    return cast(str, value)


def _setting(help: str, check: Check, *roles: Role) -> Any:
    return field(metadata={"help": help, "check": check, "roles": roles})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a run of either family; every field has a flag of its name.

    The constructor, and so `dataclasses.replace`, checks every value and stores it in the setting's own type: an
    integer for a float setting as a float, for example.

    Raises:
        UserError: a value that its setting cannot have, or settings that contradict each other.
    """

    dataset: str = _setting(
        f"{', '.join(SOURCES)} (of which MNIST5k needs no download), or a folder with train/<class>/* images",
        text,
        Role.LOCAL,
    )
    task: str = _setting(
        "what is predicted: classification; or, for a folder, multilabel (by labels.csv), regression (targets.csv) or "
        "segmentation (images/ and masks/)",
        one_of(*TASKS),
    )
    likelihood: str | dict[str, Any] | None = _setting(
        "categorical, noisy_dirichlet, bernoulli, gaussian, student_t; or a dict of it and its options, such as "
        "{'likelihood': 'categorical', 'class_weights': 'balanced'}; None for that of the task",
        either(None, _likelihood),
    )
    data_dir: str = _setting("folder of downloaded data", text, *Role)
    net_type: str = _setting(
        f"the architecture: {KNOWN}, or package.module:factory of your own, a function of (outputs, inputs)",
        check_net_type,
    )
    weights: str | None = _setting(
        "start from this file of a network's weights, such as torchvision's: a state_dict, .pth or .safetensors, whose "
        "last layer may be of other classes; None: random initialization",
        either(None, text),
    )
    activation_type: str = _setting("relu or softplus", one_of(*ACTIVATIONS))
    n_epochs: int = _setting("passes over the training split", whole(1), Role.MAY_CHANGE_ON_RESUME)
    first_filters: str = _setting(
        "how the weights of a first layer that sees the images start: patches (random, with the covariance of the "
        "training images' patches, so that they answer little to pixel noise), random (as torch starts every layer), "
        "or auto (patches for classes of grey images, in a network of this library from scratch)",
        one_of("auto", "patches", "random"),
    )
    lr_start: float = _setting(
        "learning rate of the weights (of their posterior means) at the start", number(0, exclusive=True)
    )
    lr_schedule: str = _setting(
        "learning rate after the warm-up: linear or cosine (it falls to 0), or constant",
        one_of("constant", "linear", "cosine"),
    )
    warmup_epochs: float = _setting("epochs in which learning rates rise to their start from near 0", number(0))
    optimizer: str = _setting(
        "adam, or sgd with momentum; in a Bayesian network, sgd is for the means, and ρ and log α learn by Adam; or "
        "ivon, for Bayesian networks alone: natural-gradient steps of means and σ",
        one_of("adam", "sgd", "ivon"),
    )
    momentum: float = _setting("momentum of sgd and ivon", _below_one)
    weight_decay: float = _setting(
        "decay of the weights (as in AdamW with adam, L2 with sgd); of a Bayesian network, only of the parameters that "
        "no prior pulls on, and never of ρ and log α",
        number(0),
    )
    batch_size: int = _setting("images per training step", whole(1))
    valid_size: float = _setting(
        "fraction of the training images that is kept for validation", number(0, 1, exclusive=True)
    )
    image_size: Size | str | None = _setting(
        "height,width of the images, or one number for both; None for the data set's own (32 for a folder); own for a "
        "folder whose images all have one size",
        either(None, either("own", check_image_size)),
    )
    center_crop: bool = _setting(
        "of an image of another shape than image_size, cut out the center rather than stretch the whole", flag
    )
    channels: int | str = _setting("1 for grey, 3 for RGB, auto for those of the images", either("auto", _channels))
    random_shift: int = _setting(
        "largest random shift of a training image, in pixels, less than a side of it", whole(0)
    )
    random_crop: float = _setting(
        "smallest share of a training image's area that a random crop keeps before it is enlarged; 1: no crop",
        _share,
    )
    random_flip: str | bool = _setting(
        "mirror training images half the time: True, False, or auto (images in color only)", either("auto", flag)
    )
    num_workers: int = _setting(
        "processes that decode images when they do not fit in memory",
        whole(0, MOST_WORKERS),
        Role.MAY_CHANGE_ON_RESUME,
        Role.NOT_COMPARED,
    )
    skip_broken: bool = _setting("leave out the images of a folder that cannot be read, and count them", flag)
    seed: int = _setting("seed of the split, the weights, the order and the noise", whole(0))
    device: str = _setting(
        "auto (a GPU if there is one), cpu, cuda, cuda:1, mps …", either("auto", _device), Role.MAY_CHANGE_ON_RESUME
    )
    amp: bool = _setting("train in bfloat16 mixed precision", flag)
    compile: bool = _setting("train through torch.compile", flag)
    deterministic: bool = _setting(
        "use only torch's deterministic algorithms: the same seed gives the same numbers on a GPU too (slower)", flag
    )
    patience: int = _setting(
        "stop after this many epochs without a better validation NLL; 0 for never", whole(0), Role.MAY_CHANGE_ON_RESUME
    )
    resume: bool = _setting("continue from last.pt in the checkpoint folder", flag, *Role)
    checkpoint_dir: str = _setting("folder of checkpoints and reports", text, *Role)
    tensorboard: bool = _setting(
        "write live curves for TensorBoard", flag, Role.MAY_CHANGE_ON_RESUME, Role.NOT_COMPARED
    )

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = _checked(setting, getattr(self, setting.name), setting.name)
            object.__setattr__(self, setting.name, value)  # the way to set a field of a frozen dataclass
        try:
            parse_task(self.task_options | ({} if self.class_weights != "balanced" else {"class_weights": None}))
        except ValueError as error:
            raise UserError(str(error)) from error
        if self.task == "segmentation" and self.random_crop < 1:
            raise UserError("random_crop is not for segmentation, whose masks have no pixels in between: leave it at 1")
        if isinstance(self.image_size, tuple) or self.image_size is None:
            self.check_shift(self.image_size or IMAGE_SIZE)
        if self.warmup_epochs and self.warmup_epochs >= self.n_epochs:
            raise UserError(
                f"warmup_epochs {self.warmup_epochs:g} leaves none of n_epochs {self.n_epochs}: give fewer, or more "
                f"n_epochs"
            )
        if self.first_filters == "patches" and not self.starts_at_random:
            raise UserError(
                "first_filters 'patches' says how the first layer starts, and so do weights, init_from, prior_from and "
                "posterior_mu_initial: leave out one of them"
            )
        if self.optimizer == "ivon" and not isinstance(self, BayesianSettings):
            raise UserError("optimizer 'ivon' is for the posterior of a Bayesian network: give adam or sgd")

    @property
    def task_options(self) -> dict[str, Any]:
        """What `likelihoods.parse_task` takes, but for what follows from the data."""
        likelihood = {"likelihood": self.likelihood} if isinstance(self.likelihood, str) else self.likelihood or {}
        return {"task": self.task, **likelihood}

    @property
    def class_weights(self) -> Any:
        """Those of the likelihood, or 'balanced'."""
        return self.task_options.get("class_weights")

    @property
    def starts_at_random(self) -> bool:
        """Whether nothing that the user gives is what training starts from."""
        return self.weights is None

    def check_shift(self, image_size: Size) -> None:
        """Refuse a random shift that moves images of this size out of sight.

        Raises:
            UserError: it does.
        """
        if self.random_shift >= min(image_size):
            raise UserError(
                f"random_shift {self.random_shift} moves images of {image_size[0]}×{image_size[1]} pixels out of "
                f"sight: give at most {min(image_size) - 1}, or a larger image_size"
            )


@dataclass(frozen=True, kw_only=True)
class BayesianSettings(Settings):
    """The settings of a Bayesian run: those of `Settings`, and these."""

    layer_type: str = _setting("the estimator: lrt, bbb or flipout", one_of(*ESTIMATORS))
    posterior: str | dict[str, Any] = _setting(
        f"the family of the posterior: {', '.join(FAMILIES)}; or a dict of it and its options, such as "
        "{'family': 'k_tied', 'rank': 3}",
        _posterior,
    )
    alpha_shape: tuple[int, ...] | None = _setting(
        "a shape such as (1, 1), of log α in the alpha posterior; None with any other", either(None, _shape)
    )
    priors: dict[str, Any] = _setting("a dict of " + ", ".join(prior.name for prior in fields(Priors)), _priors)
    bayesian_layers: str = _setting(
        "the layers that have a posterior: all, last, or a pattern of their names such as layer4.*", text
    )
    freeze: bool = _setting(
        "the layers without a posterior keep their weights, and batch norm its statistics, from the start", flag
    )
    init_from: str | None = _setting(
        "start the posterior means from this checkpoint of main_frequentist.py; None: random initialization",
        either(None, text),
    )
    moped: float | None = _setting(
        "with init_from or weights, start every σ at this multiple of |w|, such as 0.1; None for posterior_rho_initial",
        either(None, number(0, exclusive=True)),
    )
    prior_at_means: bool = _setting(
        "with init_from or weights, center the Gaussian prior of every weight at its start", flag
    )
    prior_from: str | None = _setting(
        "continue on new images from this checkpoint of main_bayesian.py: its posterior is the prior, and the start; "
        "None for the prior in priors",
        either(None, text),
    )
    patch_prior: float | str = _setting(
        "strength s of the prior N(0, (C + 0.001 I)/s) of the first layer's weights, C the second moment of the "
        "training images' patches, which makes the network more robust to pixel noise (such as 30); 0: the prior in "
        "priors; auto: N/(180 beta_type) for classes of grey images, in a network from scratch whose priors are as "
        "they were",
        either("auto", number(0)),
    )
    beta_type: str | float = _setting(
        "weight β of the KL: a number (1: the variational posterior; below 1: a cold one), or a schedule of mean "
        "1: Standard, Blundell, Soenderby",
        _beta,
    )
    temperature: float = _setting(
        "T, which scales the posterior's entropy alone, where beta_type scales the whole KL: below 1 for a cold "
        "posterior whose means decay as under the full prior (then give beta_type 1)",
        number(0, exclusive=True),
    )
    lr_spread_factor: float = _setting(
        "learning rate of ρ and log α, as a multiple of lr_start; with optimizer sgd and its larger lr_start, such as "
        "0.05, give about 0.2; ivon has no use for it",
        number(0, exclusive=True),
    )
    curvature_decay: float = _setting(
        "ivon: the share of the running curvature, and so of σ, that a step keeps; the larger, the slower and smoother",
        _below_one,
    )
    train_ens: int = _setting("posterior samples per training step", whole(1, MOST_SAMPLES))
    valid_ens: int | str = _setting(
        "posterior samples in validation; or moments, for a single pass that carries means and variances",
        either("moments", whole(1, MOST_SAMPLES)),
    )
    test_ens: int | str = _setting(
        "posterior samples in the final test, or moments", either("moments", whole(1, MOST_SAMPLES))
    )
    record_mean_var: bool = _setting("record means and variances of layer outputs during training", flag)
    recording_freq_per_epoch: int = _setting("records per epoch, evenly spaced", whole(1))
    record_layers: list[str] | None = _setting("names of the layers to record; None for all", either(None, _names))

    @property
    def starts_at_random(self) -> bool:
        """Whether nothing that the user gives is what training starts from."""
        given = (self.init_from, self.prior_from, Priors.parse(self.priors).posterior_mu_initial)
        return super().starts_at_random and given == (None, None, None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prior_from is not None:
            self._check_against_prior_from()
        if self.patch_prior not in (0, "auto") and (self.prior_from is not None or self.prior_at_means):
            name = "prior_at_means" if self.prior_at_means else "prior_from"
            raise UserError(f"patch_prior and {name} both say what the first layer's prior is: leave out one of them")
        for name in ("moped", "prior_at_means"):
            if getattr(self, name) and self.init_from is None and self.weights is None:
                raise UserError(
                    f"{name} is for a run that starts from a frequentist network: give init_from or weights too"
                )
        if self.init_from is not None and self.weights is not None:
            raise UserError("init_from says where training starts, and so does weights: leave out one of them")
        try:
            family = Family.parse(self.posterior, self.alpha_shape)
        except ValueError as error:
            raise UserError(str(error)) from error
        if family.name == "alpha":
            self._refuse_prior("the alpha posterior has a prior of its own")
        if self.prior_at_means and Priors.parse(self.priors).prior_mu:
            raise UserError("prior_at_means says what the prior's mean is, and so does prior_mu: leave out one of them")
        if self.beta_type == 0 and self.temperature != 1:
            raise UserError("temperature scales a part of the KL, whose weight beta_type is 0: leave out one of them")
        if self.beta_type == "Soenderby" and self.n_epochs == 1:
            raise UserError(
                "beta_type 'Soenderby' warms the KL up over the first quarter of the epochs, and n_epochs is 1: give "
                "more of them, or another beta_type"
            )
        if self.optimizer == "ivon" and self.beta_type in ("Blundell", "Soenderby", 0.0):
            raise UserError(
                f"optimizer 'ivon' needs a β that is above 0 and stays the same, and beta_type is {self.beta_type!r}: "
                f"give Standard or a number above 0"
            )
        if self.record_layers is not None and not self.record_mean_var:
            raise UserError(
                "record_layers says what record_mean_var records: give record_mean_var too, or leave it out"
            )

    def _check_against_prior_from(self) -> None:
        for name in ("init_from", "weights", "moped", "prior_at_means"):
            if getattr(self, name):
                raise UserError(f"prior_from says where training starts, and so does {name}: leave out one of them")
        if self.alpha_shape is not None:
            raise UserError("the alpha posterior has a prior of its own: leave out alpha_shape or prior_from")
        self._refuse_prior("prior_from replaces the prior")
        self._refuse_prior("prior_from says where the posterior starts", START_FIELDS)

    def _refuse_prior(self, reason: str, names: Sequence[str] = PRIOR_FIELDS) -> None:
        priors, default = Priors.parse(self.priors), Priors()
        for name in names:
            if getattr(priors, name) != getattr(default, name):
                raise UserError(f"{reason}: leave out {name} of priors")


Kind = TypeVar("Kind", bound=Settings)


def names_with(role: Role) -> frozenset[str]:
    """The names of the settings of either family that have this role."""
    return frozenset(setting.name for setting in fields(BayesianSettings) if role in setting.metadata["roles"])


def from_config(
    kind: type[Kind],
    config: types.ModuleType,
    arguments: Sequence[str] = (),
    purpose: str = "",
    parents: Sequence[argparse.ArgumentParser] = (),
) -> Kind:
    """The settings of a config module, overridden by those on the command line.

    Args:
        kind: `Settings` or `BayesianSettings`.
        config: a module with a variable per setting, and perhaps a dict `recipes` of dicts of settings: the flag
            `--recipe NAME` puts one of them over the module's settings and under the other flags.
        arguments: flags, such as ["--n_epochs", "3"].
        purpose: the first sentences of `--help`.
        parents: parsers of a script's own flags, which `--help` lists too; the script parses them itself.

    Returns:
        The settings, checked.

    Raises:
        UserError: a name that is no setting or no recipe (the nearest one is named), a setting that is missing, a
            value that a setting cannot have, or settings that contradict each other.
    """
    settings = {setting.name: setting for setting in fields(kind)}
    source = f"{config.__name__}.py"
    values = _file_values(settings, vars(config), source)
    for name, setting in settings.items():
        if name not in values:
            raise UserError(f"{source}: the setting {name!r} is missing ({setting.metadata['help']})")
    words = _flags(kind, config, arguments, purpose, parents)
    if RECIPE in words:
        name, recipes = words.pop(RECIPE), _recipes(config)
        if name not in recipes:
            near = f": did you mean {nearest(name, recipes)!r}?" if recipes else ""
            raise UserError(f"{source} has no recipe {name!r}{near}")
        values |= _file_values(settings, recipes[name], f"{source}: recipe {name!r}")
    for name, word in words.items():
        values[name] = _flag_value(settings[name], word)
    return kind(**values)


def _file_values(settings: Mapping[str, Field[Any]], variables: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The variables of a config module or of one of its recipes that are settings, checked."""
    values = {name: value for name, value in variables.items() if _is_setting(name, value)}
    for name in values:
        if name not in settings:
            raise UserError(f"{source}: unknown setting {name!r}: did you mean {nearest(name, settings)!r}?")
    return {name: _checked(settings[name], value, f"{source}: {name}") for name, value in values.items()}


def _is_setting(name: str, value: Any) -> bool:
    others = ("annotations", "recipes")
    return not name.startswith("_") and not isinstance(value, types.ModuleType) and name not in others


def _recipes(config: types.ModuleType) -> Mapping[str, Mapping[str, Any]]:
    recipes = getattr(config, "recipes", {})
    is_valid = isinstance(recipes, dict) and all(isinstance(recipe, dict) for recipe in recipes.values())
    if not is_valid or not all(isinstance(name, str) for each in (recipes, *recipes.values()) for name in each):
        raise UserError(f"{config.__name__}.py: recipes must be a dict of dicts of settings, by their names")
    return recipes


def _checked(setting: Field[Any], value: Any, where: str) -> Any:
    try:
        return setting.metadata["check"](value)
    except ValueError as error:
        if setting.name in ("priors", "posterior"):  # whose messages are whole sentences
            raise UserError(f"{where}: {error}") from error
        raise UserError(f"{where}: expected {error}, got {value!r}") from error


def _flag_value(setting: Field[Any], word: str) -> Any:
    """The value that a flag's word stands for: the Python value, or else, as of a folder called 2024, the text."""
    try:
        return _checked(setting, _parsed(word), f"--{setting.name}")
    except UserError:
        with suppress(ValueError):
            return setting.metadata["check"](word)
        raise


def _parsed(word: str) -> Any:
    """A flag's word as the Python value that a config file would have, or as itself."""
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return word


def _flags(
    kind: type[Settings],
    config: types.ModuleType,
    arguments: Sequence[str],
    purpose: str,
    parents: Sequence[argparse.ArgumentParser],
) -> dict[str, str]:
    """The settings on the command line, by name, as they are written there."""
    parser = OneLineParser(
        description=f"{purpose} Every setting of {config.__name__}.py has a flag of the same name; a "
        f"setting without a flag keeps its value in that file, shown as the default.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        parents=list(parents),
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30, width=110),
    )
    names = [RECIPE, *(setting.name for setting in fields(kind))]
    recipes = ", ".join(_recipes(config)) or "none"
    parser.add_argument(
        f"--{RECIPE}",
        metavar=RECIPE.upper(),
        help=f"settings that {config.__name__}.py has under this name; other flags override them ({recipes})".replace(
            "%", "%%"
        ),
    )
    for setting in fields(kind):
        default = getattr(config, setting.name)
        help = f"{setting.metadata['help']} (default: {default!r})".replace("%", "%%")
        optional: dict[str, Any] = {"nargs": "?", "const": "True"} if setting.metadata["check"] is flag else {}
        parser.add_argument(f"--{setting.name}", metavar=setting.name.upper(), help=help, **optional)
    args, unknown = parser.parse_known_args(list(arguments))
    for word in unknown:
        if not word.startswith("-"):
            raise UserError(f"unexpected argument {word!r}: settings are given as --name value")
        name = word.lstrip("-").split("=")[0]
        raise UserError(f"unknown setting {word!r}: did you mean --{nearest(name, names)}?")
    return {name: word for name, word in vars(args).items() if name in names}
