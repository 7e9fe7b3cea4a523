"""Ranks: which process this is, on which device, and the few collectives the pipeline needs.

Every function works the same with one process and no process group: a sum over one rank is the sum.
"""

from __future__ import annotations

import ctypes
import inspect
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline import environment, signals
from pipeline.errors import Failure, UserError
from pipeline.output import say

T = TypeVar("T")

_TIMEOUT = timedelta(minutes=10)  # for what one rank does alone: prepare, open or close the MLflow run, write the end
_GRACE = 1.0  # seconds in which the ranks that live notice a failure
_PR_SET_PDEATHSIG = 1  # of Linux' prctl
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_FAILED, _CLOSED = "trainyard/failed", "trainyard/closed"  # keys in the group's store


@dataclass(frozen=True)
class Ranks:
    """This process among all."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone writes, prints and tracks."""
        return self.rank == 0


def single_process() -> Ranks:
    """Return the ranks of a stage that runs in one process, on the CPU."""
    return Ranks(0, 0, 1, torch.device("cpu"))


def resolve_device(name: str) -> str:
    """Return `cpu` or `cuda` for `auto`, `cpu` or `cuda`. Raises UserError when cuda is asked for and is not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: torch finds no CUDA device here. Use --device cpu, or auto.")
    return name


def resolve_nproc(nproc: int | str, device: str) -> int:
    """Return the number of workers to start on this host. Raises UserError for more workers than GPUs."""
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    if nproc == "auto":
        return max(1, gpus)
    if device == "cuda" and int(nproc) > gpus:
        raise UserError(f"nproc={nproc} is more than the {gpus} GPUs of this host. Use --nproc {gpus}, or --device cpu.")
    return int(nproc)


@contextmanager
def process_group(device: str) -> Iterator[Ranks]:
    """Join the process group that the environment describes (none for a single process) and leave it at the end."""
    me = environment.worker()
    rank, local_rank, world_size = me.rank, me.local_rank, me.world_size
    if device == "cuda" and local_rank >= torch.cuda.device_count():
        raise UserError(
            f"LOCAL_RANK={local_rank} needs a GPU of its own, and this host has {torch.cuda.device_count()}. Start fewer "
            "processes on it, or use --device cpu."
        )
    chosen = torch.device(device, local_rank) if device == "cuda" else torch.device(device)
    if device == "cuda":
        torch.cuda.set_device(chosen)
        compute_alike()
    elif me.local_world_size > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // me.local_world_size))
    if environment.is_worker():
        _end_with_parent()
    keep_freed_memory()
    flush_denormals()
    if world_size > 1:
        options: dict[str, Any] = {"device_id": chosen} if device == "cuda" else {}
        dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=_TIMEOUT, **options)
    try:
        yield Ranks(rank, local_rank, world_size, chosen)
    except (UserError, Failure):  # all ranks raise these together; the launcher ends the others once the first is gone
        if rank == 0 and world_size > 1:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # nothing is left but to say why
            _tell(_CLOSED)
        elif world_size > 1:
            with suppress(dist.DistError):  # rank 0 may have ended, and the store with it, before the answer came
                _shared_store().wait([_CLOSED], _TIMEOUT)
        raise
    except Exception:
        _tell(_FAILED)
        if world_size > 1:
            _report_missing_ranks(rank, world_size)
        raise
    finally:
        if dist.is_initialized() and sys.exc_info()[0] is None:  # after an error the others may be gone: do not wait for them
            dist.destroy_process_group()


@contextmanager
def collective_timeout(seconds: float) -> Iterator[None]:
    """Have a collective of the block that a rank does not join within `seconds` raise on the others."""
    _set_timeout(timedelta(seconds=seconds))
    yield  # after an error there is nothing to wait for any more
    _set_timeout(max(_TIMEOUT, timedelta(seconds=seconds)))


def _set_timeout(timeout: timedelta) -> None:
    if dist.is_initialized():  # torch before 2.15 has it under a private name
        change = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
        change(timeout, dist.group.WORLD)


def keep_freed_memory() -> None:
    """Have freed memory kept for the next step, where the C library can: given back to the system, it comes again page by page.

    glibc gives back every large block at once, and a step of a small CNN then spends a tenth of its time in page faults.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if sys.platform == "linux" and mallopt:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def compute_alike() -> None:
    """Have a GPU compute float32 in float32, and a convolution in the same way each time.

    cuDNN's own choice is TF32, with 10 bits of the 23, and sums in the order in which threads come to an end: of two equal
    trainings of the CNN no weight was the same after 60 steps (by up to 0.02). On an H200 a step took 1.05 of the time.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


def flush_denormals() -> None:
    """Have numbers below 1.2e-38 count as 0, in this thread and in those of torch's pool, if it is not there yet.

    What an optimizer remembers of a unit that no longer fires decays to such numbers and stays there: the smallest of them
    times 0.95 is rounded to itself. Processors without a fast path for them were seen to take 16 times as long for a step.
    """
    torch.set_flush_denormal(True)


def _end_with_parent() -> None:
    """Have the system tell when the launcher dies, however it dies: torchrun starts each worker in its own session."""
    if sys.platform == "linux":
        launcher = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signals.ORPHANED)
        if os.getppid() != launcher:  # it died just before
            os.kill(os.getpid(), signals.ORPHANED)


def _report_missing_ranks(rank: int, world_size: int) -> None:
    """Say which ranks did not notice the failure that this rank is about to end with: these hang, or are dead."""
    try:
        _tell(f"{_FAILED}/{rank}")
        time.sleep(_GRACE)
        silent = [r for r in range(world_size) if not _shared_store().check([f"{_FAILED}/{r}"])]
    except (dist.DistError, RuntimeError):  # the store is gone with the rank that kept it
        silent = [0]
    if silent:
        say(f"rank {rank}: no answer from rank {', '.join(map(str, silent))}, which hangs or is dead", error=True)


def _tell(key: str) -> None:
    if dist.is_initialized():
        _shared_store().set(key, "1")


def another_rank_failed() -> bool:
    """Tell whether a rank ended with an error, so that a SIGTERM comes from the launcher and not from a person."""
    return dist.is_initialized() and _shared_store().check([_FAILED])


def _shared_store() -> dist.Store:
    return dist.distributed_c10d._get_default_store()


def data_parallel(module: nn.Module, device: torch.device) -> DistributedDataParallel:
    """Wrap `module` so that its gradients are averaged over the ranks while the backward pass runs, and talk no more than that.

    Buffers that training changes are each rank's own.
    """
    names = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"  # the name before torch 2.15
    ids = [device.index] if device.type == "cuda" else None
    options: dict[str, Any] = {"device_ids": ids, name: False}
    return DistributedDataParallel(module, gradient_as_bucket_view=True, **options)


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum `tensor` over all ranks, in place, and return it."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def broadcast(value: Any) -> Any:
    """Return rank 0's `value` (anything that pickles) on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: Any) -> list[Any]:
    """Return every rank's `value` (anything that pickles), in the order of ranks, on every rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def run_on_main(action: Callable[[], T], *, on: bool) -> T | None:
    """Run `action` on the ranks where `on` is true; a UserError of one of them is raised on all, so that none waits."""
    result: T | None = None
    messages: tuple[str, ...] = ()
    if on:
        try:
            result = action()
        except UserError as error:
            messages = error.messages
    failed = [m for m in gather(messages) if m]
    if failed:
        raise UserError(*failed[0])
    return result


def concatenate(rows: Tensor) -> Tensor:
    """Return the rows (n_r, ...) of all ranks, one after the other, on every rank; each may have another number of rows."""
    return torch.cat(gather(rows.cpu()))


def num_restarts() -> int:
    """Return how often the launcher has started this worker anew."""
    return environment.worker().num_restarts


def launch(command: list[str], nproc: int, *, max_restarts: int = 0) -> int:
    """Run `python -m <command>` as `nproc` ranks on this host with torch's elastic launcher; return the exit status.

    The status is 2 if all ranks refused their input, 128 + signal if this process was stopped, and 1 if a rank failed.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ[environment.LAUNCHED] = "1"
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")  # a restart must not meet a dead rank's address
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=max_restarts,
        monitor_interval=0.1,
    )
    if hasattr(config, "signals_to_handle"):  # not before torch 2.10
        config.signals_to_handle = "SIGTERM,SIGINT,SIGQUIT"  # and not SIGHUP: a terminal that is gone ends no training
    try:
        elastic_launch(config, sys.executable)("-m", *command)
    except ChildFailedError as error:
        for rank, failure in error.failures.items():
            if failure.exitcode < 0:
                say(f"rank {rank} was ended by {signal.Signals(-failure.exitcode).name}", error=True)
        return 2 if all(failure.exitcode == 2 for failure in error.failures.values()) else 1
    except SignalException as error:
        return 128 + int(error.sigval)
    finally:
        del os.environ[environment.LAUNCHED]
    return 0
