"""Trained networks that come with the library, by name."""

from __future__ import annotations

import hashlib
from pathlib import Path

from support import UserError

FOLDER = Path(__file__).parent / "networks"
SHIPPED: dict[str, str] = {  # the SHA-256 of FOLDER/NAME.pt; the README beside them says how each was trained
    "lenet-mnist": "5374df138e7527231a1f9eda20cebafd9ad55fb9f622567f3ffdec97d82ff6e9",
    "lenet-cifar10": "c4d8ddcc2b6c0017986624968e4b0365b70572097af4416a40acacbad9da6f6c",
}


def resolve(path: str | Path) -> Path:
    """The path of a checkpoint: that of a network of the library, if `path` is its name and there is no such file.

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
