"""One process or many: which of them this one is, and the few operations that all of them do together."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from support.errors import UserError, first_line

Value = TypeVar("Value")


@dataclass(frozen=True)
class World:
    """The processes that train one network, or predict with it, together. `World()` is a single process.

    Every process must call the operations (`broadcast_from_main` and those that start with `all_`) in the same order.

    Attributes:
        rank: the number of this process among all, from 0.
        size: how many processes there are, on all machines.
        local_rank: the number of this process among those on its machine, from 0.
        launch: torchrun's name for this launch; '' without torchrun.
        restarts: how often torchrun has restarted the processes after one was lost.
        parent: the process id of torchrun; 0 without torchrun.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    launch: str = ""
    restarts: int = 0
    parent: int = 0

    @property
    def is_abandoned(self) -> bool:
        """Whether torchrun is gone: nobody else would then end its processes."""
        return self.parent != 0 and os.getppid() != self.parent

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    def share(self, count: int) -> int:
        """How many of `count` examples are this process's when each process takes every `size`-th."""
        return len(range(self.rank, count, self.size))

    def device(self, name: str) -> torch.device:
        """The device of this process; where there are several, each takes the GPU of its local rank.

        Args:
            name: 'auto' for a GPU if there is one, or one of torch's names.

        Raises:
            UserError: this machine has no such device.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of names that torch knows and will not know
                device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
                if device.type == "cuda" and self.size > 1:
                    device = torch.device("cuda", self.local_rank)
                torch.zeros((), device=device).item()  # the meta device has no values
        except Exception as error:  # a backend that is not there can fail in any way
            raise UserError(f"device {name!r} is not available here: use auto or cpu") from error
        return device

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """The sum of all processes' tensors, of the same shape; `tensor` itself is overwritten with it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def all_reduce_max(self, number: int) -> int:
        """The largest of all processes' numbers."""
        largest = torch.tensor(number)
        if self.size > 1:
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def all_gather(self, value: Value) -> list[Value]:
        """The values of all processes, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast_from_main(self, make: Callable[[], Value]) -> Value:
        """What `make` returns in the main process, which alone calls it."""
        values: list[Any] = [make() if self.is_main else None]
        if self.size > 1:
            dist.broadcast_object_list(values)
        return values[0]

    @contextmanager
    def local_main_first(self) -> Iterator[None]:
        """Run the block in one process of each machine first, then in the others, which find the files it has made."""
        if self.size > 1 and self.local_rank:
            dist.barrier()
        yield
        if self.size > 1 and not self.local_rank:
            dist.barrier()


ALONE = World()


@contextmanager
def process_group(device: str) -> Iterator[World]:
    """Join the processes that torchrun started with this one, for the time of the block.

    Args:
        device: 'auto', 'cpu', 'cuda' …: on GPUs the processes communicate by NCCL, on CPUs by gloo.

    Yields:
        The world that torchrun started this process in; `ALONE` without torchrun.

    Raises:
        UserError: torchrun's environment variables are incomplete, another process was lost, or it stopped at a
            mistake that it has reported itself.
    """
    if "RANK" not in os.environ:
        yield ALONE
        return
    size, rank, local_rank = (_launched_with(name) for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"))
    launch, restarts = os.environ.get("TORCHELASTIC_RUN_ID", ""), int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    world = World(rank, size, local_rank, launch, restarts, os.getppid() if launch else 0)
    if size == 1:
        yield world
        return
    _launched_with("MASTER_PORT")
    on_gpu = torch.cuda.is_available() and (device == "auto" or device.startswith("cuda"))
    store = None
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and os.environ["LOCAL_WORLD_SIZE"] == str(size):
        from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # not in every build

        # torchrun's store still holds the addresses of the processes that it replaced (PyTorch issue 135712).
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = PrefixStore(f"start {restarts}", TCPStore(address, port, is_master=False))
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    try:
        if on_gpu:
            torch.cuda.set_device(local_rank)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"process {rank} of {size} cannot join the others: {first_line(error)}") from error
    try:
        yield world
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error).lower() or "connection" in str(error).lower():
            raise UserError(f"process {rank} of {size} lost another one: see what that one says") from error
        raise
    finally:
        dist.destroy_process_group()


def _launched_with(name: str) -> int:
    """The number that torchrun has set an environment variable to."""
    value = os.environ.get(name, "")
    if not value.isascii() or not value.isdecimal():
        raise UserError(
            f"RANK is set, as by torchrun, but {name} is {value!r}: start the processes by torchrun, or unset RANK"
        )
    return int(value)
