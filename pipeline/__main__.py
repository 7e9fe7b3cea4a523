"""`python -m pipeline`, and the installed command `trainyard`; also what torchrun starts on every rank."""

import atexit
import gc
import os
import sys
from typing import NoReturn

from pipeline import output, signals
from pipeline.cli import main


def start() -> NoReturn:
    """Be the whole of a process.

    A thread that spins while it waits for another is charged for it, and then waits for whole time slices behind any neighbor
    of its core: torch's threads made a step take ten times as long beside one. A tenth of the spinning costs 3 % on a quiet
    machine.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "30000")  # read when torch is loaded
    output.install()
    gc.set_threshold(50_000, 20, 100)  # imports make a million objects and next to no garbage: a fifth of their time
    ended: list[int] = []
    atexit.register(lambda: ended and signals.exit_now(ended[0]))  # registered first, so it is called last
    signals.install()
    ended.append(main())
    if os.environ.get("WORLD_SIZE", "1") != "1":
        signals.exit_now(ended[0])
    sys.exit(ended[0])


if __name__ == "__main__":
    start()
