"""`python -m pipeline`, with a fault in one rank of the first start. Before `--` stand RANK HOOK CALL before|after KIND.

python -m tests.faults.worker 1 step 300 before SIGKILL -- train --model two_layer
"""

from __future__ import annotations

import os
import sys

from pipeline import signals
from pipeline.cli import main
from pipeline.distributed import num_restarts
from tests.faults.inject import arm

if __name__ == "__main__":
    rank, hook, call, moment, kind, _, *arguments = sys.argv[1:]
    signals.install()
    if os.environ["RANK"] == rank and num_restarts() == 0:
        arm(hook, int(call), after=moment == "after", kind=kind)
    signals.exit_now(main(arguments))
