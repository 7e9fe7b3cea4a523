"""The spread of a recipe over seeds: test accuracy of the weights that validation chose.

`uv run python -m benchmarks.seeds --data_dir DIR model=cnn dataset=mnist epochs=1` trains seeds 0 to 9 and prints mean,
standard error, smallest and largest. The words are flags of `train`.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.report import options
from benchmarks.training import build
from pipeline.data.loader import open_split
from pipeline.data.prepare import prepare
from pipeline.evaluate import measure
from pipeline.progress import Progress


def fitted(flags: Mapping[str, str], split: str) -> dict[str, float]:
    """Train and return loss, accuracy and seconds; on `val` or `test`, with the best weights on validation if there are any."""
    with tempfile.TemporaryDirectory() as base:
        training = build(flags, Path(base) / "run", saves=False)
        start = time.perf_counter()
        training.fit(Progress())
        seconds = time.perf_counter() - start
        if training.best_weights:
            training.model.load_state_dict(training.best_weights)
        data = open_split(prepare(training.config), split)
        c, task = training.config, training.task
        return measure(training.model, data, training.val_loss_sum, training.ranks, config=c, task=task) | {"seconds": seconds}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="how many, from 0 on")
    parser.add_argument("flags", nargs="+", metavar="FLAG=VALUE")
    given = parser.parse_args()
    flags = {"cache_dir": given.cache_dir} | ({"data_dir": given.data_dir} if given.data_dir else {})
    flags |= dict(word.split("=", 1) for word in given.flags)
    seen = []
    for seed in range(given.seeds):
        seen.append(fitted(flags | {"seed": str(seed)}, "test"))
        print(f"seed {seed}: {seen[-1]['accuracy']:.4f} in {seen[-1]['seconds']:.1f} s", flush=True)
    values = [figures["accuracy"] for figures in seen]
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    print(
        f"{' '.join(given.flags)}: mean {statistics.mean(values):.5f}, standard error {error:.5f}, "
        f"{min(values):.4f} to {max(values):.4f}, n {len(values)}"
    )
    if given.json:
        Path(given.json).write_text(json.dumps({"flags": given.flags, "seeds": seen}, indent=1) + "\n")


if __name__ == "__main__":
    main()
