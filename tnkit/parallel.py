"""One job in several processes, each with its share of the batches; a single process is left alone.

torchrun --nproc-per-node 4 -m tnkit detect …        # or a script that calls tn.detect, run by torchrun

Every process loads the model and runs its own batches; float64 sums are added over all processes, so that each of them
ends with the result of the whole corpus. The first process (rank 0) writes files and shows progress.

A model loaded with tp_plan="auto" is spread over the processes instead: all of them run every batch together.
"""

import atexit
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from tnkit.errors import TnkitError, first_line

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

_UNSET = "unset RANK and WORLD_SIZE to run a single process, or start all processes with torchrun"
_Batch = TypeVar("_Batch", bound=Sequence[int])
_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun tells its processes
_PATIENCE = timedelta(hours=1)  # with a process that is running but silent; one that has exited is noticed at once
_MEETING = timedelta(seconds=20)  # for all processes to meet where torchrun did not start them
_CONNECTING = 10  # seconds


def rank() -> int:
    """The number of this process, 0 for the first or only one.

    >>> rank(), size()
    (0, 1)
    """
    return _told("get_rank", "RANK", 0)


def size() -> int:
    """How many processes work together."""
    return _told("get_world_size", "WORLD_SIZE", 1)


def share(batches: Sequence[_Batch], costs: Sequence[int]) -> list[_Batch]:
    """This process's part of the batches, such that the costs are as even as can be; whole batches, in their order.

    >>> share([[0, 1], [2]], [5, 3])
    [[0, 1], [2]]
    """
    loads, own = [0] * size(), []
    for number in sorted(range(len(batches)), key=costs.__getitem__, reverse=True):
        least = loads.index(min(loads))
        loads[least] += costs[number]
        own += [number] if least == rank() else []
    return [batches[number] for number in sorted(own)]


def added(total: "Tensor") -> "Tensor":
    """The sum of a tensor on the CPU over all processes."""
    if size() == 1:
        return total
    import torch.distributed as dist

    total = total.clone()
    _together(lambda group: dist.all_reduce(total, group=group))
    return total


def least(number: int) -> int:
    """The smallest number that any process has.

    >>> least(3)
    3
    """
    if size() == 1:
        return number
    import torch
    import torch.distributed as dist

    smallest = torch.tensor(number)
    _together(lambda group: dist.all_reduce(smallest, dist.ReduceOp.MIN, group=group))
    return int(smallest)


def agree(about: Any) -> None:
    """Check that all processes are about to do the same.

    Raises:
        TnkitError: where they are not.
    """
    if size() == 1:
        return
    import torch.distributed as dist

    said = [None] * size()
    _together(lambda group: dist.all_gather_object(said, about, group=group))
    if any(other != said[0] for other in said):
        raise TnkitError(
            f"the {size()} processes were given different models, sentences or options ({said}); give all of them the "
            "same"
        )


def scaled(counts: Iterable[int], of: int, to: int) -> Iterator[int]:
    """Counts that add up to `to`, in proportion to counts that add up to `of`: progress of a share as of the whole.

    >>> list(scaled([2, 1], 3, 6)), list(scaled([], 0, 6))
    ([4, 2], [6])
    """
    done = said = 0
    for count in counts:
        done += count
        now = done * to // of
        yield now - said
        said = now
    if said < to:
        yield to - said


def own_device(device_map: Any) -> Any:
    """A device map in which "auto" and "cuda" mean this process's GPU, where several processes work together."""
    import torch

    if size() == 1 or device_map not in ("auto", "cuda") or not torch.cuda.is_available():
        return device_map
    return f"cuda:{int(os.environ.get('LOCAL_RANK', rank())) % torch.cuda.device_count()}"


def check_divides(name: str, most: int | None) -> None:
    """Refuse to spread a model over the running processes where that would fail late, or silently load it whole.

    Args:
        name: of the model.
        most: the largest number of processes it can be spread over, or None.
    """
    if size() == 1:
        raise TnkitError(
            "tp_plan spreads a model over several processes, and this is the only one; start it with torchrun"
        )
    most = most or 1
    if most % size():
        ways = " or ".join(str(ways) for ways in range(2, most + 1) if most % ways == 0)
        raise TnkitError(
            f"{name} cannot be spread over {size()} processes: its heads, key-value heads and neurons divide evenly "
            f"among {ways or 'no number of'} processes; run it without tp_plan or with another number of them"
        )


def _told(by_torch: str, by_torchrun: str, alone: int) -> int:
    if all(name in os.environ for name in _LAUNCHED):
        return _number(by_torchrun)
    import sys

    dist = sys.modules.get("torch.distributed")
    if dist and dist.is_available() and dist.is_initialized():
        return getattr(dist, by_torch)()
    return alone


def _number(name: str) -> int:
    value = os.environ[name]
    if not re.fullmatch("[0-9]{1,6}", value) or (name == "WORLD_SIZE" and int(value) < 1):
        raise TnkitError(
            f"the environment variable {name} is {value!r:.40}, expected a number as torchrun sets it; {_UNSET}"
        )
    return int(value)


def _together(operation: "Callable[[ProcessGroup], object]") -> None:
    try:
        operation(_group())
    except RuntimeError as error:
        raise TnkitError(
            f"another of the {size()} processes exited or stopped responding ({first_line(error):.80}); its own "
            "message says why; with cache=True / --cache a new run resumes from here"
        ) from error


@cache
def _group() -> "ProcessGroup":
    """A gloo group of all processes: sums are on the CPU, and a process that has exited is noticed at once."""
    import torch.distributed as dist

    if not dist.is_initialized():
        _meet()
        atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())
    return dist.new_group(backend="gloo", timeout=_PATIENCE)


def _meet() -> None:
    """Wait for all processes; variables that an earlier run left in the environment are an error, not a long wait."""
    import torch.distributed as dist

    by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    address = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    try:
        if by_torchrun:  # which listens before it starts them
            socket.create_connection((address[0], _number("MASTER_PORT")), timeout=_CONNECTING).close()
        dist.init_process_group("gloo", timeout=_PATIENCE if by_torchrun else _MEETING)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, TnkitError):
            raise
        raise TnkitError(
            f"RANK={rank()} and WORLD_SIZE={size()} are set, but the {size()} processes could not meet at "
            f"{':'.join(address)} ({first_line(error):.120}); {_UNSET}"
        ) from error
