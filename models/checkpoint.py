"""A trained network in a file that alone rebuilds it."""

from __future__ import annotations

import hashlib
import io
import math
import stat
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from likelihoods import TaskLikelihood, parse_task
from models.architectures import IMAGE_SIZE, Size
from models.registry import FACTORIES, NETWORKS, build
from models.screening import check_archive
from support import UserError, atomic_write, first_line, number, text, whole

FORMAT = 1  # of the files that this version writes and reads
MOST_PIXELS = 4096  # of a side of an image
ROOM = 2**26  # values by which a network may be larger than its weights: less than the memory of a small machine


@dataclass(frozen=True)
class Description:
    """What a network is and what it was trained on: everything but its weights.

    Attributes:
        net_type: as for `build`.
        bayesian: as for `build`.
        architecture: the keyword arguments of `build`.
        classes: the names of the classes, by label; or those of the labels or targets of another task.
        mean: per channel, what is subtracted from an image's pixels in [0, 1].
        std: per channel, what they are then divided by.
        image_size: height and width of the images.
        center_crop: whether the center of an image of another shape is cut out rather than the image stretched.
        task: what the outputs mean, as for `likelihoods.parse_task`.
    """

    net_type: str
    bayesian: bool
    architecture: dict[str, Any]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: Size = IMAGE_SIZE
    center_crop: bool = False
    task: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the types: whoever makes a file can write anything into it.

        Raises:
            ValueError: a value that a description cannot have; the message names it.
        """
        known = isinstance(self.net_type, str) and isinstance(self.bayesian, bool) and type(self.center_crop) is bool
        if not known or not isinstance(self.architecture, dict) or not isinstance(self.task, dict):
            raise ValueError(
                "net_type, bayesian, center_crop, architecture and task must be a string, two bools and two dicts"
            )
        object.__setattr__(self, "image_size", check_image_size(self.image_size))
        for name, check in (("classes", text), ("mean", number(-math.inf)), ("std", number(0, exclusive=True))):
            values = getattr(self, name)
            try:
                if not isinstance(values, (tuple, list)) or not values:
                    raise ValueError("a tuple that is not empty")
                for value in values:
                    check(value)
            except (ValueError, OverflowError) as error:
                raise ValueError(f"{name}: expected {error}") from error
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean and std must be of the same channels, got {len(self.mean)} and {len(self.std)}")
        self.likelihood.check(len(self.classes))

    @property
    def likelihood(self) -> TaskLikelihood:
        """The likelihood of the task."""
        return parse_task(self.task)

    @property
    def maps(self) -> bool:
        """Whether the outputs are maps [n, classes, height, width], one class per pixel."""
        return self.task.get("task") == "segmentation"

    def build(self) -> nn.Module:
        """The network, with fresh weights."""
        outputs, inputs = self.likelihood.outputs(len(self.classes)), len(self.mean)
        return build(self.net_type, self.bayesian, outputs, inputs, image_size=self.image_size, **self.architecture)


def check_image_size(value: Any) -> Size:
    """Check the size of images.

    Returns:
        Height and width; of one number, twice that number.

    Raises:
        ValueError: it is neither a number of pixels nor two of them; the message says what is expected.
    """
    sides = (value, value) if isinstance(value, int) else value
    if isinstance(sides, (tuple, list)) and len(sides) == 2:
        with suppress(ValueError):
            height, width = map(whole(1, MOST_PIXELS), sides)
            return height, width
    raise ValueError(f"a number of pixels from 1 to {MOST_PIXELS}, or height,width")


class SavedNetwork(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        net: the network, in eval mode.
        description: what it is and what it was trained on.
        content: the whole content of the file, the report that was saved with the network included.
    """

    net: nn.Module
    description: Description
    content: dict[str, Any]

    @property
    def skips_broken(self) -> bool:
        """Whether it was trained without the images that cannot be read."""
        settings = self.content.get("settings")
        return isinstance(settings, dict) and settings.get("skip_broken") is True


def save_network(path: Path, net: nn.Module, description: Description, **report: Any) -> None:
    """Write a network to a file, atomically.

    Args:
        path: the file.
        net: the network that `description` builds.
        description: what it is.
        report: what else the file is to hold (settings, scores): plain values and tensors.

    Raises:
        UserError: the file cannot be written.
    """
    write_checkpoint(path, {"description": asdict(description), "weights": net.state_dict(), **report})


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write `content`, with the format number and a checksum, to a file, atomically.

    Args:
        path: the file.
        content: plain values and dense tensors, nested in dicts, lists and tuples.

    Raises:
        UserError: the file cannot be written, or `read_checkpoint` would refuse it.
    """
    content = {"format": FORMAT, **content}
    stream = io.BytesIO()  # torch's own writer does not say why the system refuses
    torch.save({**content, "checksum": _checksum(content)}, stream)
    try:
        check_archive(stream, stream.tell())
    except ValueError as error:
        raise UserError(f"cannot write {path}: {error}: keep plain values and dense tensors in a network") from error
    with atomic_write(path) as temporary:
        temporary.write_bytes(stream.getbuffer())


def load_network(path: str | Path, device: torch.device | str = "cpu", net_type: str | None = None) -> SavedNetwork:
    """Load a network that `save_network` wrote.

    Args:
        path: the file.
        device: where the network goes.
        net_type: the `package.module:factory` that the file may call; needed for a network of your own, because a
            file could name any function.

    Raises:
        UserError: the file is missing, is no checkpoint of this library, or its weights do not fit its description.
    """
    content = read_checkpoint(path)
    description = content.get("description")
    if "progress" in content and description is None:
        raise UserError(f"{path} is for --resume alone: give the model_<net_type>.pt beside it")
    builder = description.get("net_type") if isinstance(description, dict) else None
    if builder not in (*NETWORKS, *FACTORIES, net_type):
        raise UserError(f"{path} holds a network that {builder!r} makes: give that as net_type if it is your own")
    return SavedNetwork(restore_network(content, path, device), Description(**content["description"]), content)


def restore_network(content: dict[str, Any], path: str | Path, device: torch.device | str = "cpu") -> nn.Module:
    """Build the network that the content of a checkpoint describes, and load its weights.

    Args:
        content: what `read_checkpoint` returned.
        path: of the checkpoint, for the error message.
        device: where the network goes.

    Returns:
        The network, in eval mode.

    Raises:
        UserError: the weights do not fit the description, or one of the two is missing.
    """
    try:
        description, weights = Description(**content["description"]), content["weights"]
        _refuse_larger(description, weights)
        net = description.build()
        with warnings.catch_warnings():  # the file says what the priors are, and they may be of another kind
            warnings.filterwarnings("ignore", "the prior of the loaded weights")
            net.load_state_dict(weights)
    except Exception as error:  # what a foreign file describes can fail in any way
        raise UserError(f"{path} does not hold a network of this library: {first_line(error)}") from error
    return net.to(device).eval()


def check_settings(content: dict[str, Any], path: str | Path) -> None:
    """Check the settings in a checkpoint by which a script loads the data that its network was trained on.

    Args:
        content: what `load_network` returned.
        path: of the checkpoint, for the error message.

    Raises:
        UserError: they are missing, or have values that settings cannot have.
    """
    try:
        settings = content["settings"]
        for name, check in (("dataset", text), ("valid_size", number(0, 1, exclusive=True)), ("seed", whole(0))):
            check(settings[name])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path} does not say what data it was trained on: give one that training wrote") from error


def _refuse_larger(description: Description, weights: Mapping[str, Any]) -> None:
    """Refuse a description of a network that is far larger than its weights, before it takes memory."""
    if description.net_type not in (*NETWORKS, *FACTORIES):
        return  # a network of the caller's own, which need not be made for the meta device
    with torch.device("meta"):
        described = sum(tensor.numel() for tensor in description.build().parameters())
    stored = sum(value.numel() for value in weights.values() if isinstance(value, Tensor))
    if described > stored + ROOM:
        raise ValueError(f"its description is of a network of {described:,} values, its weights are {stored:,}")


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a file that `write_checkpoint` wrote; nothing in it is executed (`weights_only=True`).

    Returns:
        Its content, with tensors on the CPU.

    Raises:
        UserError: the file is missing, unreadable, damaged, or of another format.
    """
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        check_archive(path, status.st_size)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"there is no checkpoint {path}: train one first, or give the path of another") from error
    except Exception as error:  # an unpickler may raise any of them for a file that is something else
        raise UserError(f"{path} is not a readable checkpoint: {first_line(error)}") from error
    number = content.get("format") if isinstance(content, dict) else None
    if type(number) is not int or number != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this version: expected format {FORMAT}, found {number!r}")
    if content.pop("checksum", None) != _checksum(content):
        raise UserError(f"{path} is damaged: its checksum is not that of its content; restore it or train again")
    return content


def _checksum(content: Any) -> str:
    """SHA-256 of nested plain values and tensors."""
    digest = hashlib.sha256()
    _feed(digest.update, content)
    return digest.hexdigest()


def _feed(update: Callable[[bytes], None], value: Any) -> None:
    if isinstance(value, Tensor):
        update(f"{value.dtype}{tuple(value.shape)}".encode())
        update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        for key, item in value.items():
            update(f"{key!r}:".encode())
            _feed(update, item)
    elif isinstance(value, (list, tuple)):
        update(f"{type(value).__name__}{len(value)}".encode())
        for item in value:
            _feed(update, item)
    else:
        update(f"{value!r};".encode())
