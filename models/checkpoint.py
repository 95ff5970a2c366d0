"""A trained network in a file that alone rebuilds it."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.registry import FACTORIES, NETWORKS, build
from support import UserError, atomic_write, first_line

FORMAT = 1


@dataclass(frozen=True)
class Description:
    """What a network is and what it was trained on: all that its weights do not tell.

    Attributes:
        net_type, bayesian, architecture: arguments of `models.build`; `architecture` holds its keyword
            arguments.
        classes: the names of the classes, by label.
        mean, std: what an image's channels, in [0, 1], are normalized by.
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


def save_network(path: Path, net: nn.Module, description: Description, **report: Any) -> None:
    """Write the network and `report` (settings, scores: plain values) to `path`, whole or not at all."""
    write_checkpoint(path, {"description": asdict(description), "weights": net.state_dict(), **report})


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write `content` with this version's format number and its checksum, whole or not at all."""
    content = {"format": FORMAT, **content}
    stream = io.BytesIO()  # torch's own writer does not say why a disk refuses
    torch.save({**content, "checksum": _checksum(content)}, stream)
    with atomic_write(path) as temporary:
        temporary.write_bytes(stream.getbuffer())


def load_network(
    path: str | Path, device: torch.device | str = "cpu", net_type: str | None = None
) -> tuple[nn.Module, Description, dict[str, Any]]:
    """The network (in eval mode), its description, and the whole content of the file.

    Args:
        net_type: the `package.module:factory` that the file may call; needed for a network of your own, because a
            file could name any.

    Raises:
        UserError: the file is missing, is no checkpoint of this library, or does not fit together.
    """
    content = read_checkpoint(path)
    description = content.get("description")
    if "progress" in content and description is None:
        raise UserError(f"{path} is for --resume alone: give the model_<net_type>.pt beside it")
    wanted = description.get("net_type") if isinstance(description, dict) else None
    if wanted not in (*NETWORKS, *FACTORIES, net_type):
        raise UserError(f"{path} holds a network that {wanted!r} makes: give that as net_type if it is your own")
    return network_in(content, path, device), Description(**content["description"]), content


def network_in(content: dict[str, Any], path: str | Path, device: torch.device | str = "cpu") -> nn.Module:
    """The network (in eval mode) that the content of the checkpoint at `path` describes.

    Raises:
        UserError: the content does not fit together.
    """
    try:
        net = Description(**content["description"]).build()
        net.load_state_dict(content["weights"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} does not hold a network of this library: {first_line(error)}") from error
    return net.to(device).eval()


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint, its tensors on the CPU; nothing in it is executed (`weights_only=True`).

    Raises:
        UserError: the file is missing, unreadable, damaged, or of another format.
    """
    try:
        _refuse_bomb(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"there is no checkpoint {path}: train one first, or give the path of another") from error
    except Exception as error:  # what an unpickler makes of a foreign file can be any of them
        raise UserError(f"{path} is not a readable checkpoint: {first_line(error)}") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this version: expected format {FORMAT}, found {found!r}")
    if content.pop("checksum", None) != _checksum(content):
        raise UserError(f"{path} is damaged: its checksum is not that of its content; restore it or train again")
    return content


def _refuse_bomb(path: str | Path) -> None:
    """What torch writes is stored, not compressed: an archive that unpacks to more than it weighs is not torch's."""
    with zipfile.ZipFile(path) as archive:
        if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
            raise ValueError("its parts are compressed, which those of a checkpoint are not")
        if sum(part.file_size for part in archive.infolist()) > Path(path).stat().st_size:
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
