"""The versions that a result depends on."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path


def versions() -> dict[str, str]:
    """Python, torch, torchvision, the platform, and the commit of this project ('unknown' outside a clone)."""
    import torch  # here, as in `support`
    import torchvision

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "platform": platform.platform(),
        "commit": _commit(),
    }


def _commit() -> str:
    root = Path(__file__).resolve().parents[1]
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD", "--show-toplevel"], capture_output=True, text=True, cwd=root, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    commit, _, top = answer.stdout.strip().partition("\n")
    return commit if top and Path(top) == root else "unknown"  # installed, it may lie within another project's clone
