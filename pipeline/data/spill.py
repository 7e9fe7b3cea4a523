"""Tensors that grow with the number of samples, kept out of private memory."""

from __future__ import annotations

import math
import os
import tempfile

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import Failure

_LARGE = 4_000_000  # bytes


def scratch(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return a tensor to write into, of one row a sample.

    A large one lies in a file without a name, whose pages the system may write out, and which goes when the tensor goes. Raises
    Failure where the folder for temporary files has no room for it.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < _LARGE:
        return torch.empty(shape, dtype=dtype)
    with tempfile.TemporaryFile() as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)  # now: a page that finds no room later ends the process
        except OSError as error:
            raise Failure(
                f"the order of {shape[0]:,} samples needs {size // 1_000_000} MB in {tempfile.gettempdir()} "
                f"({error.strerror}). Make room there, or set TMPDIR to another folder."
            ) from None
        return torch.from_numpy(np.memmap(file, np.uint8, "r+", shape=(size,))).view(dtype).view(shape)
