"""What results hang on besides arguments and code: versions of libraries, and the kind of device. Without torch."""

from __future__ import annotations

import ctypes
import importlib.metadata
import platform
from functools import cache, lru_cache

_NAME = 100  # bytes of a GPU's


@cache
def version(package: str) -> str:
    """Return the version of an installed package; "" where it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of those of `packages` that are installed."""
    return {"python": platform.python_version()} | {name: found for name in packages if (found := version(name))}


@lru_cache(maxsize=1)
def gpus() -> tuple[str, ...]:
    """Return the names of the GPUs that CUDA's driver shows to this process; none where torch was built without CUDA."""
    if version("torch").endswith("+cpu"):
        return ()
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    number, device, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(_NAME)
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(number)):
        return ()
    found = []
    for index in range(number.value):
        if cuda.cuDeviceGet(ctypes.byref(device), index) or cuda.cuDeviceGetName(name, _NAME, device):
            return ()
        found.append(name.value.decode(errors="replace"))
    return tuple(found)


def kind(device: str) -> str:
    """Return what kind of device `auto`, `cpu` or `cuda` is here: `cpu`, or the name of the first GPU."""
    return "cpu" if device == "cpu" or not gpus() else gpus()[0]


def num_ranks(nproc: int | str, device: str) -> int:
    """Return how many processes `nproc` stands for on this host."""
    if isinstance(nproc, int):
        return nproc
    return len(gpus()) if device != "cpu" and gpus() else 1
