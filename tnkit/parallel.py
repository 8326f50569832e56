"""One job in several processes, each with its share of the batches; no effect on a single process.

torchrun --nproc-per-node 4 -m tnkit detect …        # or a script that calls tn.detect, run by torchrun

Every process loads the model and runs its own batches; float64 sums are added over all processes, so each of them
returns the result of the whole corpus. The first process (rank 0) writes files and shows progress.

A model loaded with tp_plan="auto" is instead split over the processes, which run every batch together.
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
_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # set by torchrun
_PATIENCE = timedelta(hours=1)  # for a process that is running but silent; one that has exited is noticed at once
_MEETING = timedelta(seconds=20)  # for all processes to connect if torchrun did not start them
_CONNECTING = 10  # seconds


def rank() -> int:
    """The number of this process, 0 for the first or only process.

    >>> rank(), size()
    (0, 1)
    """
    return _setting("get_rank", "RANK", 0)


def size() -> int:
    """How many processes work together."""
    return _setting("get_world_size", "WORLD_SIZE", 1)


def share(batches: Sequence[_Batch], costs: Sequence[int]) -> list[_Batch]:
    """This process's share of the batches, in order; batches are assigned whole so that the costs are balanced.

    >>> share([[0, 1], [2]], [5, 3])
    [[0, 1], [2]]
    """
    loads, assigned = [0] * size(), []
    for number in sorted(range(len(batches)), key=costs.__getitem__, reverse=True):
        least = loads.index(min(loads))
        loads[least] += costs[number]
        assigned += [number] if least == rank() else []
    return [batches[number] for number in sorted(assigned)]


def added(total: "Tensor") -> "Tensor":
    """The sum over all processes of a tensor on the CPU."""
    if size() == 1:
        return total
    import torch.distributed as dist

    total = total.clone()
    _together(lambda group: dist.all_reduce(total, group=group))
    return total


def least(number: int) -> int:
    """The smallest of the processes' numbers.

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


def agree(job: Any) -> None:
    """Check that all processes were given the same job; a `TnkitError` if not."""
    if size() == 1:
        return
    import torch.distributed as dist

    jobs = [None] * size()
    _together(lambda group: dist.all_gather_object(jobs, job, group=group))
    if any(other != jobs[0] for other in jobs):
        raise TnkitError(
            f"the {size()} processes have different models, sentences or options; give all the same: {jobs}"
        )


def scaled(counts: Iterable[int], of: int, to: int) -> Iterator[int]:
    """Counts that add up to `to`, in proportion to counts that add up to `of`: a share's progress on the whole's scale.

    >>> list(scaled([2, 1], 3, 6)), list(scaled([], 0, 6))
    ([4, 2], [6])
    """
    done = reported = 0
    for count in counts:
        done += count
        reached = done * to // of
        yield reached - reported
        reported = reached
    if reported < to:
        yield to - reported


def own_device(device_map: Any) -> Any:
    """A device map in which, with several processes, "auto" and "cuda" mean this process's GPU."""
    import torch

    if size() == 1 or device_map not in ("auto", "cuda") or not torch.cuda.is_available():
        return device_map
    return f"cuda:{int(os.environ.get('LOCAL_RANK', rank())) % torch.cuda.device_count()}"


def check_divides(name: str, most: int | None) -> None:
    """Refuse to split a model over the running processes if that would fail late, or silently load it whole.

    Args:
        name: of the model.
        most: the largest number of processes that it can be split over, or None.
    """
    if size() == 1:
        raise TnkitError("tp_plan splits a model over several processes, but there is only one; start it with torchrun")
    most = most or 1
    if most % size():
        sizes = " or ".join(str(divisor) for divisor in range(2, most + 1) if most % divisor == 0)
        raise TnkitError(
            f"{name} cannot be split over {size()} processes: its heads, key-value heads and neurons divide evenly "
            f"among {sizes or 'no number of'} processes; run it without tp_plan or with another number of processes"
        )


def _setting(by_torch: str, by_torchrun: str, alone: int) -> int:
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
        raise TnkitError(f"the environment variable {name} is {value!r:.40}, expected a number; {_UNSET}")
    return int(value)


def _together(operation: "Callable[[ProcessGroup], object]") -> None:
    try:
        operation(_group())
    except RuntimeError as error:
        raise TnkitError(
            f"another of the {size()} processes exited or stopped responding ({first_line(error):.80}); see its own "
            "message; with cache=True / --cache a new run resumes from here"
        ) from error


@cache
def _group() -> "ProcessGroup":
    """A gloo group of all processes, which sums on the CPU and notices at once if a process exits."""
    import torch.distributed as dist

    if not dist.is_initialized():
        _connect()
        atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())
    return dist.new_group(backend="gloo", timeout=_PATIENCE)


def _connect() -> None:
    """Connect all processes; variables left in the environment by an earlier run are an error, not a long wait."""
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
            f"RANK={rank()} and WORLD_SIZE={size()} are set, but the {size()} processes could not connect at "
            f"{':'.join(address)} ({first_line(error):.120}); {_UNSET}"
        ) from error
