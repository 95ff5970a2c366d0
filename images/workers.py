"""Worker processes that decode images while the main process computes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from support import UserError


def read_batches(images: Dataset[Tensor], batches: Sequence[Tensor], workers: int) -> Iterator[Tensor]:
    """Each batch of images, stacked, in the order of `batches`; torch's global generators are left as they are.

    Args:
        images: a data set whose item i is the image i.
        batches: int64, the indices of each batch's images.
        workers: processes that read ahead, of which there are no more than cores; 0 for none but this one.

    Raises:
        UserError: an image that cannot be read.
    """
    sampler = [indices.tolist() for indices in batches]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        yield from DataLoader(
            images,
            batch_sampler=sampler,
            num_workers=min(workers, cores),  # torch warns about more
            worker_init_fn=_ignore_group_signals,
            generator=torch.Generator(),  # by default it draws from the global generator, that of the network's noise
        )
    except UserError as error:  # a worker's error comes with its traceback in the message, its line breaks escaped
        message = str(error).rpartition(f"{UserError.__module__}.{UserError.__name__}: ")[2]
        raise UserError(message.removesuffix("\\n")) from error


def _ignore_group_signals(worker: int) -> None:
    """Make a worker ignore signals sent to the whole process group: the main process handles them and ends its workers.

    When the main process exits with a loader still open, it ends the workers by SIGTERM; from it alone they accept one.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # Linux; no other system tells who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
        threading.Thread(target=_exit_on_parent_sigterm, daemon=True).start()


def _exit_on_parent_sigterm() -> None:
    while signal.sigwaitinfo((signal.SIGTERM,)).si_pid != os.getppid():
        pass
    os._exit(0)
