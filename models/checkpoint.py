"""A trained network in a file that alone rebuilds it."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.registry import FACTORIES, NETWORKS, build
from support import UserError, atomic_write, first_line

FORMAT = 1  # of the files that this version writes and reads


@dataclass(frozen=True)
class Description:
    """What a network is and what it was trained on: everything but its weights.

    Attributes:
        net_type: as for `build`.
        bayesian: as for `build`.
        architecture: the keyword arguments of `build`.
        classes: the names of the classes, by label.
        mean: per channel, what is subtracted from an image's pixels in [0, 1].
        std: per channel, what they are then divided by.
    """

    net_type: str
    bayesian: bool
    architecture: dict[str, Any]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def build(self) -> nn.Module:
        """The network, with fresh weights."""
        return build(self.net_type, self.bayesian, len(self.classes), len(self.mean), **self.architecture)


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
        content: plain values and tensors, nested in dicts, lists and tuples.

    Raises:
        UserError: the file cannot be written.
    """
    content = {"format": FORMAT, **content}
    stream = io.BytesIO()  # torch's own writer does not say why the system refuses
    torch.save({**content, "checksum": _checksum(content)}, stream)
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
        net = Description(**content["description"]).build()
        net.load_state_dict(content["weights"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} does not hold a network of this library: {first_line(error)}") from error
    return net.to(device).eval()


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a file that `write_checkpoint` wrote; nothing in it is executed (`weights_only=True`).

    Returns:
        Its content, with tensors on the CPU.

    Raises:
        UserError: the file is missing, unreadable, damaged, or of another format.
    """
    try:
        _refuse_bomb(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"there is no checkpoint {path}: train one first, or give the path of another") from error
    except Exception as error:  # an unpickler may raise any of them for a file that is something else
        raise UserError(f"{path} is not a readable checkpoint: {first_line(error)}") from error
    number = content.get("format") if isinstance(content, dict) else None
    if number != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this version: expected format {FORMAT}, found {number!r}")
    if content.pop("checksum", None) != _checksum(content):
        raise UserError(f"{path} is damaged: its checksum is not that of its content; restore it or train again")
    return content


def _refuse_bomb(path: str | Path) -> None:
    """Refuse an archive that unpacks to more than its size: torch stores its parts uncompressed."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("its parts are compressed, which those of a checkpoint are not")
    if sum(member.file_size for member in members) > Path(path).stat().st_size:
        raise ValueError("its parts are larger than the file")


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
