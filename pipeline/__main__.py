"""`python -m pipeline`; also what torchrun starts on every rank."""

import os
import sys

from pipeline import stopping
from pipeline.cli import main

if __name__ == "__main__":
    stopping.install()
    status = main()
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from pipeline.distributed import leave

        leave(status)
    sys.exit(status)
