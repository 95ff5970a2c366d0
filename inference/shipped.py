"""Trained networks that come with the library, by name."""

from __future__ import annotations

import hashlib
from pathlib import Path

from support import UserError

FOLDER = Path(__file__).parent / "networks"
SHIPPED: dict[str, str] = {  # the SHA-256 of FOLDER/NAME.pt; the README beside them says how each was trained
    "lenet-mnist": "185bf205f7bc7d53af42931f3dcf43c7bc078f4e46a09710bd83483f7d5ac9d3",
}


def resolve(path: str | Path) -> Path:
    """The file of a network that comes with the library, if `path` is its name and no file; otherwise `path` itself.

    Raises:
        UserError: the file is missing or damaged.
    """
    name = str(path)
    if name not in SHIPPED or Path(path).exists():
        return Path(path)
    file = FOLDER / f"{name}.pt"
    try:
        is_whole = hashlib.sha256(file.read_bytes()).hexdigest() == SHIPPED[name]
    except OSError:
        is_whole = False
    if not is_whole:
        raise UserError(f"the network {name} that comes with the library is missing or damaged: install it again")
    return file
