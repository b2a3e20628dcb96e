"""Several processes that train one network: what each does of a batch, and what all of them agree on.

Every process runs the same program with the same arguments, as torchrun starts it. The work of steps and measurements
is shared out; what is decided (scores, plans, searches) is decided by the first process, the leader, and sent to the
others, so that all of them cut the very same channels. The leader alone writes files. In a single process, all of this
does nothing.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from sentei.data.splits import WHOLE, Part
from sentei.errors import SenteiError, TrainError

T = TypeVar("T")


class LostError(TrainError):
    """The other processes are gone, or do not answer."""


TIMEOUT = "SENTEI_TIMEOUT_MINUTES"
"""Environment: how long a process waits for the others in a step; 10 unless given."""
PATIENCE = timedelta(days=30)
"""How long the others wait for what the leader decides; if it dies, they know at once."""


class Groups(NamedTuple):
    """Two groups of all processes for what lies in main memory."""

    world: Any
    prompt: Any
    patient: Any


_now: dict[str, Any] = {"groups": None, "alone": 0, "sharing": False}


def processes() -> int:
    """How many processes share the work; 1 where there is no process group, and while the leader decides alone."""
    together = not _now["alone"] and dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if together else 1


def is_leader() -> bool:
    """Whether this is the process that decides, writes and speaks."""
    return processes() == 1 or dist.get_rank() == 0


def part() -> Part:
    """This process's part of every batch."""
    return WHOLE if processes() == 1 else Part(dist.get_rank(), processes())


def starts() -> int:
    """How often torchrun has started the processes: more than once after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) + 1


def is_first_to_tell(text: str) -> bool:
    """Whether no other process has told the user the same before this one."""
    if not dist.is_initialized():
        return os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        key = hashlib.sha256(text.encode()).hexdigest()
        return bool(dist.distributed_c10d._get_default_store().add(key, 1) == 1)
    except RuntimeError:  # whoever kept the store has gone
        return is_leader()


# -- the process group


@contextmanager
def joined() -> Iterator[None]:
    """Take part in the process group that torchrun (or `sentei launch`) has made, if there is one.

    LostError where the others are lost: one has died, or has not answered for as long as SENTEI_TIMEOUT_MINUTES says.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    _end_with_agent()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_timeout())
    if not is_leader():  # nothing to be tidied up, and the wait for the leader would not let go
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    except RuntimeError as error:
        raise (_lost(error) if _is_lost(error) else error) from error
    dist.destroy_process_group()


def _end_with_agent() -> None:
    """Where the system can do that: without the agent, nobody would end what waits for a process that is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _timeout() -> timedelta:
    return timedelta(minutes=float(os.environ.get(TIMEOUT, "10")))


def _is_lost(error: RuntimeError) -> bool:
    told = str(error)
    return isinstance(error, dist.DistError) or any(word in told for word in ("gloo", "Gloo", "NCCL", "ProcessGroup"))


def _lost(error: RuntimeError) -> LostError:
    reason = str(error).partition("\n")[0].rpartition("] ")[2].partition(". ")[0]
    return LostError(
        f"process {dist.get_rank()} of {dist.get_world_size()} has lost the others: one has died, or has not answered "
        f"within {_timeout().total_seconds() / 60:g} minutes (sentei launch --timeout, {TIMEOUT}): {reason}"
    )


def _groups() -> Groups:
    """Made when they are first asked for, which all processes do at the same place."""
    if _now["groups"] is None or _now["groups"].world is not dist.group.WORLD:
        made = (dist.new_group(backend="gloo", timeout=timeout) for timeout in (_timeout(), PATIENCE))
        _now["groups"] = Groups(dist.group.WORLD, *made)
    return _now["groups"]


def _group(device: torch.device) -> Any:
    return _groups().prompt if device.type == "cpu" else dist.group.WORLD


# -- what is agreed on


def decided(compute: Callable[[], T]) -> T:
    """What the leader computes, alone, as plain values or tensors on the CPU: sent to all, and so is its error.

    >>> decided(lambda: [3, 1])
    [3, 1]
    """
    if processes() == 1:
        return compute()
    groups, error = _groups(), None
    told: list[Any] = [None]
    if is_leader():
        try:
            with _alone():
                told = [(True, compute())]
        except Exception as raised:
            error, told = raised, [(False, _portable(raised))]
    dist.broadcast_object_list(told, src=0, group=groups.patient, device=torch.device("cpu"))
    good, value = told[0]
    if not good:
        raise error or value
    return value


def agreed(value: T) -> T:
    """The leader's value."""
    return decided(lambda: value)


def alike(value: T, what: str) -> T:
    """A value that every process has computed by itself; TrainError, on all, if they differ."""
    found = gathered(value)
    if any(other != found[0] for other in found):
        raise TrainError(f"{len(found)} processes have computed {what} each, and these differ")
    return value


@contextmanager
def _alone() -> Iterator[None]:
    _now["alone"] += 1
    try:
        yield
    finally:
        _now["alone"] -= 1


def _portable(error: Exception) -> Exception:
    try:
        return error if isinstance(pickle.loads(pickle.dumps(error)), type(error)) else _told(error)
    except Exception:
        return _told(error)


def _told(error: Exception) -> SenteiError:
    return TrainError(f"process 0 failed: {type(error).__name__}: {error}")


# -- what is added up


@contextmanager
def sharing() -> Iterator[None]:
    """While it is entered, each process measures a part of the samples: `total` and `every` are over all of them."""
    _now["sharing"] = True
    try:
        yield
    finally:
        _now["sharing"] = False


def total(tensor: Tensor) -> Tensor:
    """For tasks: what was counted, over the samples of all processes.

    >>> total(torch.tensor(3))
    tensor(3)
    """
    return summed(tensor.clone()) if _now["sharing"] else tensor


def every(values: list[T]) -> list[T]:
    """For tasks: what was listed, over the samples of all processes."""
    return [value for found in gathered(values) for value in found] if _now["sharing"] else values


def summed(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if processes() > 1:
        dist.all_reduce(tensor, group=_group(tensor.device))
    return tensor


def gathered(value: T) -> list[T]:
    """Every process's value, in order."""
    if processes() == 1:
        return [value]
    found: list[Any] = [None] * processes()
    dist.all_gather_object(found, value, group=_groups().prompt)
    return found


def average_gradients(parameters: Iterable[nn.Parameter], weight: float | Tensor = 1.0) -> None:
    """The mean of the processes' gradients, each multiplied by its weight before."""
    found = [p.grad for p in parameters if p.grad is not None]
    if processes() > 1:
        _flat(found, lambda flat: summed(flat.mul_(weight)).div_(processes()))


def average_statistics(model: nn.Module) -> None:
    """The mean of the running statistics, of which each process has taken its own."""
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
    if processes() > 1:
        found = [t for m in norms for t in (m.running_mean, m.running_var) if t is not None]
        _flat(found, lambda flat: summed(flat).div_(processes()))


def agree_weights(model: nn.Module) -> None:
    """The leader's parameters and buffers, on every process."""
    if processes() > 1:
        _flat([*model.parameters(), *model.buffers()], _sent)


def _sent(tensor: Tensor) -> Tensor:
    dist.broadcast(tensor, src=0, group=_group(tensor.device))
    return tensor


def _flat(tensors: Sequence[Tensor], change: Callable[[Tensor], Tensor]) -> None:
    """Change many tensors, those of one kind joined to one."""
    kinds: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    with torch.no_grad():
        for kind in kinds.values():
            flat = change(torch.cat([t.reshape(-1) for t in kind]))
            for tensor, values in zip(kind, flat.split([t.numel() for t in kind]), strict=True):
                tensor.copy_(values.view_as(tensor))
