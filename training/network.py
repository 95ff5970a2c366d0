"""The network of a run, from its settings: built, tried out, perhaps started from a frequentist one; its optimizer."""

from __future__ import annotations

import copy
import math
from bisect import bisect_left
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from images import ImageData, chunk_size, normalize
from layers import (
    BayesianLayer,
    ModuleWrapper,
    Posterior,
    Priors,
    parameter_groups,
    patch_prior,
    posterior_as_prior,
    start_as_patches,
    start_at_means,
    weight_posteriors,
)
from likelihoods import parse_task
from models import Description, load_network
from moments import propagate
from support import UserError, World, first_line
from training.ivon import IVON
from training.objective import kl_weight
from training.optimizers import JointOptimizer
from training.settings import BayesianSettings, Settings

PATCH_IMAGES = 2048
_WITH_PATCHES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def architecture(settings: Settings) -> dict[str, Any]:
    """The keyword arguments of `models.build`."""
    arguments: dict[str, Any] = {"activation_type": settings.activation_type}
    if isinstance(settings, BayesianSettings):
        arguments |= {name: getattr(settings, name) for name in ("priors", "layer_type", "posterior", "alpha_shape")}
        if settings.bayesian_layers != "all":
            arguments["layers"] = settings.bayesian_layers
    return arguments


def describe(settings: Settings, data: ImageData) -> Description:
    """What the checkpoint of a network with these settings holds besides its weights."""
    bayesian = isinstance(settings, BayesianSettings)
    return Description(
        settings.net_type,
        bayesian,
        architecture(settings),
        data.classes,
        data.mean,
        data.std,
        data.image_size,
        data.center_crop,
        _task(settings, data),
    )


def _task(settings: Settings, data: ImageData) -> dict[str, Any]:
    """The options of the likelihood, with those that follow from the training data."""
    options, labels = settings.task_options, data.train.labels
    if settings.class_weights == "balanced":
        counts = labels.flatten().long().bincount(minlength=len(data.classes)).clamp_min(1)
        options["class_weights"] = (counts.sum() / (len(counts) * counts)).tolist()
    if settings.task == "regression":
        std = labels.double().std(0, correction=0)
        options["center"] = labels.double().mean(0).tolist()
        options["scale"] = torch.where(std > 0, std, 1.0).tolist()
    try:
        parse_task(options).check(len(data.classes))
    except ValueError as error:
        raise UserError(str(error)) from error
    return options


def build_network(settings: Settings, description: Description) -> nn.Module:
    """The network at the start of training, on the CPU; its weights depend on the settings' seed alone.

    Torch's global generators are left as they are.

    Args:
        settings: of the run.
        description: of the network.

    Raises:
        UserError: a network of your own that does not map images to logits, or that moments cannot pass through if
            it is to be evaluated by them; `weights`, or a checkpoint `init_from` or `prior_from`, that do not fit; or a
            temperature with a prior that follows the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)  # torch.manual_seed would seed the GPUs too
        net = description.build()
        images = torch.zeros(2, len(description.mean), *description.image_size)
        _try_out(net, description, images)
        if settings.weights:
            load_weights(net, settings.weights)
        if isinstance(settings, BayesianSettings):
            if settings.init_from:
                _start_from(settings.init_from, net, settings, description)
            if settings.init_from or settings.weights:
                try:
                    start_at_means(net, settings.moped, settings.prior_at_means)
                except ValueError as error:
                    raise UserError(str(error)) from error
            if settings.prior_from:
                _continue_from(settings.prior_from, net, settings, description)
            if settings.temperature != 1:
                _refuse_prior_that_follows(net)
            if "moments" in (settings.valid_ens, settings.test_ens):
                with torch.no_grad():
                    propagate(net, images)
            if settings.freeze:
                _freeze(net)
    return net


def _freeze(net: nn.Module) -> None:
    """Let the weights that have a posterior learn, and no others."""
    learning = {id(mean) for _, mean, _ in weight_posteriors(net)}
    learning |= {id(p) for module in net.modules() if isinstance(module, Posterior) for p in module.parameters()}
    frozen = [parameter for parameter in net.parameters() if id(parameter) not in learning]
    if not frozen:
        raise UserError("freeze is for layers without a posterior, and here every weight has one: leave it out")
    for parameter in frozen:
        parameter.requires_grad_(False)


def set_to_train(net: nn.Module) -> None:
    """Set a network to training mode, and its frozen layers to evaluation: batch norm then keeps its statistics.

    A layer is frozen if it has parameters of its own and nothing in it learns.
    """
    net.train()
    for module in net.modules():
        own = list(module.parameters(recurse=False))
        if own and not any(parameter.requires_grad for parameter in module.parameters()):
            module.eval()


def load_weights(net: nn.Module, path: str) -> None:
    """Give a network the weights in a file, as posterior means where it has posteriors.

    The last layer in the file may be of another shape, as one for other classes is; then it is left out. Files of
    before PyTorch 0.4.1 do not count the batches of batch norm.

    Args:
        net: a network of the architecture of the file's, Bayesian or not.
        path: of a state_dict, that `torch.save` or safetensors wrote.

    Raises:
        UserError: the file cannot be read, or holds weights of another network.
    """
    weights = {name: tensor for name, tensor in _read_weights(path).items() if not name.lower().startswith("aux")}
    inner = _inner(net)
    expected = inner.state_dict()
    head = next(reversed(weights)).rpartition(".")[0]
    for name, tensor in list(weights.items()):
        if name not in expected:
            raise UserError(f"{path} holds the weights of another network: it has {name}, which this one has not")
        if tensor.shape != expected[name].shape:
            if name.rpartition(".")[0] != head:
                raise UserError(
                    f"{path} does not fit: its {name} is of shape {list(tensor.shape)}, that of the network of "
                    f"{list(expected[name].shape)}: give the net_type, image_size and channels that it was made for"
                )
            del weights[name]
    own = {name for name in expected if ".posterior." not in f".{name}" and name.rpartition(".")[0] != head}
    if missing := sorted(name for name in own - weights.keys() if not name.endswith("num_batches_tracked")):
        raise UserError(f"{path} holds the weights of another network: {missing[0]} is not in it")
    inner.load_state_dict(weights, strict=False)


def _inner(net: nn.Module) -> nn.Module:
    """A converted network without the wrapper that it got."""
    return net.get_submodule("0") if type(net) is ModuleWrapper else net


def _read_weights(path: str) -> dict[str, Tensor]:
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file  # few need it

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise UserError(f"cannot read {path} without safetensors: pip install safetensors") from error
    except Exception as error:  # a file can be anything
        raise UserError(f"cannot read the weights {path}: {first_line(error)}") from error
    if isinstance(content, dict) and {"weights", "description"} <= content.keys():
        raise UserError(f"{path} is a checkpoint of this library: give init_from, or prior_from if it is Bayesian")
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} is not a state_dict: expected tensors by the names of a network's parameters")
    return content


def _refuse_prior_that_follows(net: nn.Module) -> None:
    """Refuse a temperature where it gives the objective no least value: see `tempered_kl`."""
    for name, _, posterior in weight_posteriors(net):
        if posterior.prior_follows:
            raise UserError(
                f"a temperature other than 1 needs a fixed prior, and that of {name} follows the weight: leave out "
                f"alpha_shape and learn_prior_sigma, or give beta_type instead"
            )


def _try_out(net: nn.Module, description: Description, images: Tensor) -> None:
    """Refuse a network that does not map images to the outputs of its task."""
    outputs = description.likelihood.outputs(len(description.classes))
    expected = (len(images), outputs, *(images.shape[2:] if description.maps else ()))
    try:
        with torch.no_grad():
            output = net.eval()(images)
    except Exception as error:
        least = _least_side(net, len(description.mean))
        advice = f"give an image_size of at least {least}" if least > min(images.shape[2:]) else first_line(error)
        raise UserError(
            f"{description.net_type} cannot take images of shape {tuple(images.shape)}: {advice}"
        ) from error
    logits = output[0] if description.bayesian and isinstance(output, tuple) else output
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != expected or isinstance(output, tuple) != description.bayesian:
        wanted = f"(logits {expected}, kl)" if description.bayesian else f"logits {expected}"
        task = description.task.get("task", "classification")
        raise UserError(
            f"{description.net_type} returns {shape} for {len(images)} images, expected {wanted}: give a net_type that "
            f"is for {task}"
        )


def try_one_image(net: nn.Module, images: Tensor) -> None:
    """Refuse a network that cannot train on one image, as batch norm that sees one number per channel cannot.

    Args:
        net: on the CPU; it stays as it is.
        images: one.

    Raises:
        UserError: it cannot.
    """
    twin = copy.deepcopy(net)
    set_to_train(twin)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            twin(images)
        except ValueError as error:
            raise UserError(
                f"the network cannot train on one image ({first_line(error)}), and a batch holds one alone, per "
                f"process: give another batch_size"
            ) from error


def _least_side(net: nn.Module, channels: int) -> int:
    """The smallest square images that a network takes, up to 256 pixels; 0 if it takes none of those."""

    def takes(side: int) -> bool:
        try:
            net(torch.zeros(2, channels, side, side))
        except Exception:  # any that a network raises
            return False
        return True

    with torch.no_grad():
        return bisect_left(range(1, 257), True, key=takes) + 1 if takes(256) else 0


def _start_from(path: str, net: nn.Module, settings: BayesianSettings, description: Description) -> None:
    """Give a new Bayesian network the weights of a frequentist checkpoint."""
    twin, of_twin, _ = load_network(path, net_type=settings.net_type)
    if of_twin.bayesian:
        raise UserError(f"init_from takes a checkpoint of main_frequentist.py, and {path} is Bayesian: give prior_from")
    architecture = {"activation_type": settings.activation_type}
    _refuse_other(path, of_twin, replace(description, bayesian=False, architecture=architecture))
    missing, unexpected = _inner(net).load_state_dict(twin.state_dict(), strict=False)
    differences = [*unexpected, *(name for name in missing if ".posterior." not in f".{name}")]
    if differences:
        raise UserError(f"{path} cannot be started from: the networks differ in {differences[0]}")


def _continue_from(path: str, net: nn.Module, settings: BayesianSettings, description: Description) -> None:
    """Give a new Bayesian network the weights of another one, whose posterior is their prior as well."""
    earlier, of_earlier, content = load_network(path, net_type=settings.net_type)
    if "pruned" in content:
        raise UserError(f"{path} is pruned, and its pruned weights would stay 0: give the checkpoint that was pruned")
    try:
        posterior_as_prior(earlier)
    except ValueError as error:
        raise UserError(f"{path} cannot be continued from: {error}") from error
    # The estimator may be another one, and the prior that the earlier run had is in its posterior.
    free = {name: description.architecture[name] for name in ("layer_type", "priors")}
    _refuse_other(path, replace(of_earlier, architecture=of_earlier.architecture | free), description)
    net.load_state_dict(earlier.state_dict())


@torch.no_grad()
def start_first_layer(net: nn.Module, data: ImageData, settings: Settings, images: Callable[[], Tensor]) -> None:
    """Start a first layer that sees the images by their patches, see `layers.start_as_patches`, if the settings say so.

    Args:
        net: Bayesian or not, on the CPU.
        data: of the run.
        settings: of the run.
        images: gives `images_for_patches`, once they are needed.
    """
    if settings.first_filters == "random" or (settings.first_filters == "auto" and not _is_seen_to(data, settings)):
        return
    first = next((layer for layer in net.modules() if isinstance(layer, _WITH_PATCHES)), None)
    if first is None or not isinstance(first.weight, nn.Parameter):
        return
    if _sees(net, first, images()):
        with suppress(ValueError):  # a convolution in groups
            start_as_patches(first, images())


def _is_seen_to(data: ImageData, settings: Settings) -> bool:
    """Whether the first layer is seen to by default: of classes of grey images, in a network from scratch.

    A factory of the user's own may give weights, and their prior, and so is left alone.
    """
    grey_classes = data.task == "classification" and data.channels == 1
    return grey_classes and settings.starts_at_random and ":" not in settings.net_type


def images_for_patches(data: ImageData) -> Tensor:
    """The first 2,048 training images, fewer of large ones; where classes follow each other, as many among all.

    Returns:
        [n, channels, height, width], normalized.

    Raises:
        UserError: an image file that cannot be read.
    """
    labels, most = data.train.labels, len(data.train)
    count = min(PATCH_IMAGES, chunk_size(data.image_size), most)
    in_order = labels.dim() == 1 and bool((labels.diff() >= 0).all())
    order = torch.linspace(0, most - 1, count).long() if in_order else torch.arange(count)
    pixels, _ = next(data.train.batches(count, order))
    return normalize(pixels, data.mean, data.std)


def _sees(net: nn.Module, layer: nn.Module, images: Tensor) -> bool:
    """Whether the images themselves are what the layer gets."""
    seen: list[Tensor] = []
    watch = layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    with watch, torch.random.fork_rng(devices=[]):
        net.eval()(images[:2])
    return bool(seen) and torch.equal(seen[0], images[:2])


@torch.no_grad()
def give_patch_prior(net: nn.Module, data: ImageData, settings: BayesianSettings, images: Callable[[], Tensor]) -> None:
    """Give the first Bayesian layer the prior of the training images' patches, if the settings say so.

    Args:
        net: a Bayesian network, on the CPU.
        data: of the run.
        settings: of the run.
        images: gives `images_for_patches`, once they are needed.

    Raises:
        UserError: a strength is given, and the first Bayesian layer does not see the images, or has no such prior.
    """
    if settings.patch_prior == "auto":
        with suppress(UserError):
            _give_patch_prior(net, images, automatic_strength(data, settings))
    else:
        _give_patch_prior(net, images, float(settings.patch_prior))


def automatic_strength(data: ImageData, settings: BayesianSettings) -> float:
    """The strength of a patch prior that the settings leave to the program, 0 for none.

    The pull of the prior is βs/N, and s = N/(180 β) makes it the same for every β and number of images: 10,000 for
    MNIST at β = 0.03. Adam scales every weight's gradient by itself, and so leaves the span of the patches in which
    SGD would stay; this pull leads back. Of color images it would take accuracy. Whoever gives weights to start from, a
    network of his own, or another prior, has that.
    """
    given = Priors.parse(settings.priors)
    is_own = (given.prior_mu, given.prior_sigma, given.learn_prior_sigma, given.prior) != (0.0, 1.0, False, None)
    beta = 1.0 if isinstance(settings.beta_type, str) else settings.beta_type
    return len(data.train) / (180 * beta) if _is_seen_to(data, settings) and not is_own and beta else 0.0


def _give_patch_prior(net: nn.Module, images: Callable[[], Tensor], strength: float) -> None:
    if strength == 0:
        return
    first = next((layer for layer in net.modules() if isinstance(layer, BayesianLayer)), None)
    if first is None:
        raise UserError("patch_prior needs a Bayesian layer, and the network has none: leave it out")
    if not _sees(net, first, images()):
        raise UserError("patch_prior is for a network whose first Bayesian layer sees the images: leave it out")
    try:
        prior = patch_prior(first, images(), strength)
        next(posterior for name, _, posterior in weight_posteriors(first) if name == "weight").set_prior(prior)
    except ValueError as error:
        raise UserError(f"patch_prior cannot be used with this network: {error}") from error


def normalized_as_for(path: str, net_type: str, data: ImageData) -> ImageData:
    """The data with the normalization of the network in a checkpoint, from which a run on them continues.

    A posterior over weights is about inputs of one scale. New images have a mean and a standard deviation of their
    own; normalized by those, an image that both data sets hold would be two different inputs.

    Args:
        path: of the checkpoint.
        net_type: of its network.
        data: of the run.

    Raises:
        UserError: the checkpoint cannot be loaded, or its network takes images of other channels.
    """
    earlier = load_network(path, net_type=net_type).description
    if len(earlier.mean) != data.channels:
        raise UserError(
            f"{path} is for images of {len(earlier.mean)} channels, and those of {data.name} have {data.channels}: "
            f"give images like those that it was trained on"
        )
    return replace(data, mean=earlier.mean, std=earlier.std, notes=(*data.notes, f"normalized as for {path}"))


def _refuse_other(path: str, saved: Description, expected: Description) -> None:
    """Refuse to start from a checkpoint of another network than this run's, or of other classes or normalization."""
    for name in ("bayesian", "net_type", "architecture", "classes", "mean", "std", "image_size"):
        if getattr(saved, name) != getattr(expected, name):
            raise UserError(
                f"{path} cannot be started from: its {name} is {getattr(saved, name)!r}, "
                f"this run needs {getattr(expected, name)!r}: give the settings that it was trained with"
            )


def build_optimizer(net: nn.Module, settings: Settings, train_size: int) -> torch.optim.Optimizer:
    """The optimizer that the settings name; the ρ and log α of a Bayesian network have a learning rate of their own.

    With "sgd", SGD with momentum moves the posterior means and all other parameters, and Adam ρ and log α, whose
    gradients differ by orders of magnitude from weight to weight. "ivon" moves ρ by its own rule (see `training.ivon`).

    Args:
        net: the network, on the device where it trains.
        settings: of the run.
        train_size: N, the number of training examples.

    Raises:
        UserError: the optimizer cannot train a posterior or prior of the network.
    """
    if isinstance(settings, BayesianSettings) and settings.optimizer == "ivon":
        try:
            return IVON(
                net,
                settings.lr_start,
                train_size,
                beta=kl_weight(settings.beta_type, 0, 1, settings.n_epochs),
                temperature=settings.temperature,
                momentum=settings.momentum,
                curvature_decay=settings.curvature_decay,
                weight_decay=settings.weight_decay,
            )
        except ValueError as error:
            raise UserError(str(error)) from error
    factor = settings.lr_spread_factor if isinstance(settings, BayesianSettings) else 1.0
    fused = next(net.parameters()).device.type in ("cpu", "cuda", "mps")
    groups = parameter_groups(net, settings.lr_start, factor, settings.weight_decay)
    if settings.optimizer == "adam":
        adam = torch.optim.AdamW if settings.weight_decay else torch.optim.Adam
        return adam(groups, lr=settings.lr_start, fused=fused)
    has_deviations = any(isinstance(module, Posterior) and module.deviations() for module in net.modules())
    count = len(groups) - has_deviations
    sgd = torch.optim.SGD(groups[:count], lr=settings.lr_start, momentum=settings.momentum, fused=fused)
    return JointOptimizer(sgd, torch.optim.Adam(groups[count:], fused=fused)) if groups[count:] else sgd


def build_scheduler(optimizer: torch.optim.Optimizer, settings: Settings, batches: int, steps: int = 0) -> LambdaLR:
    """The scheduler of the learning rates, for one `step()` after each step of the optimizer.

    Args:
        optimizer: of the run.
        settings: of the run.
        batches: the number of batches per epoch.
        steps: the number of steps taken so far.
    """
    warmup = int(batches * settings.warmup_epochs)
    total = batches * settings.n_epochs - warmup  # steps over which the rates fall

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if settings.lr_schedule == "linear":
            return 1 - (step - warmup) / total
        if settings.lr_schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * ((step - warmup) / total)))
        return 1.0

    return LambdaLR(optimizer, factor, last_epoch=steps - 1)


def wrap_for_training(net: nn.Module, settings: Settings, world: World) -> Callable[[Tensor], Any]:
    """`net` as a training step calls it: over several processes by DistributedDataParallel, compiled if so set."""
    device = next(net.parameters()).device
    forward: Callable[[Tensor], Any] = net
    if world.size > 1:
        forward = DistributedDataParallel(net, [device] if device.type == "cuda" else None)
    return _compiled(forward, device) if settings.compile else forward


def _compiled(forward: Callable[[Tensor], Any], device: torch.device) -> Callable[[Tensor], Any]:
    from torch._dynamo.exc import BackendCompilerFailed  # a second that only such a run should wait

    # On a CPU the compiler's own generator is twice as slow as torch's.
    compiled = torch.compile(forward, options={"fallback_random": device.type == "cpu"})

    def compile_or_refuse(images: Tensor) -> Any:
        try:
            return compiled(images)
        except BackendCompilerFailed as error:
            raise UserError(
                f"cannot compile the network ({first_line(error)}): leave out compile, or install the compiler that "
                f"torch.compile needs, such as g++"
            ) from error

    return compile_or_refuse
