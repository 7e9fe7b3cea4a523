"""`python -m pipeline`; also what torchrun starts on every rank."""

import atexit
import gc
import os
import sys

from pipeline import output, stopping
from pipeline.cli import main

# Threads that spin while they wait for each other lose whole time slices where the machine has anything else to do: a CNN step
# took 17 times as long beside busy neighbors. Asleep they are woken at once. Read when torch is loaded.
if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    output.install()
    gc.set_threshold(50_000, 20, 100)  # imports make a million objects and next to no garbage: a fifth of their time
    ended: list[int] = []
    atexit.register(lambda: ended and stopping.leave(ended[0]))  # registered first, so it is called last
    stopping.install()
    ended.append(main())
    if os.environ.get("WORLD_SIZE", "1") != "1":
        stopping.leave(ended[0])
    sys.exit(ended[0])
