"""How the default recipes of cnn and lenet were found: a random search on MNIST, judged on validation samples alone.

`uv run python -m benchmarks.search --model cnn --data_dir DIR --log docs/search-cnn.jsonl`. scikit-learn draws the candidates;
each trains `--epochs` passes with seed 0, the best five and the present default with seeds 1 and 2 as well. The log holds a
line for each training, and the table that is printed is made of it. The test set is never read.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path

from scipy.stats import loguniform
from sklearn.model_selection import ParameterSampler

from benchmarks.report import options
from benchmarks.seeds import fitted

SPACE = {
    "optimizer": ["adamw", "muon"],
    "lr": loguniform(2e-3, 1.2e-2),
    "weight_decay": ["0.02", "0.05", "0.1", "0.2"],
    "batch_size": ["32", "48", "64", "96"],
    "label_smoothing": ["0", "0.05", "0.1"],
    "warmup_ratio": ["0.1", "0.2", "0.3"],
    "init": ["random", "patches"],
    "augment_shift": ["0", "1"],
}
BEST = 5


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--model", choices=("cnn", "lenet"), default="cnn")
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--epochs", default="1")
    parser.add_argument("--log", required=True, help="file for a JSON line a training; must not exist yet")
    given = parser.parse_args()
    common = {"model": given.model, "dataset": "mnist", "epochs": given.epochs}
    places = {"data_dir": given.data_dir, "cache_dir": given.cache_dir}
    drawn = ParameterSampler(SPACE, given.candidates, random_state=0)
    candidates: list[dict[str, str]] = [{}]
    candidates += [{k: f"{v:.2g}" if k == "lr" else str(v) for k, v in candidate.items()} for candidate in drawn]
    seen: dict[str, list[float]] = defaultdict(list)
    with Path(given.log).open("x") as log:

        def train(candidate: dict[str, str], seed: int) -> None:
            figures = fitted(common | places | candidate | {"seed": str(seed)}, "val")
            name = " ".join(f"{k}={v}" for k, v in candidate.items()) or "the default"
            seen[name].append(figures["accuracy"])
            row = common | {"candidate": candidate, "seed": seed} | {f"val_{k}": figures[k] for k in ("accuracy", "loss")}
            log.write(json.dumps(row | {"seconds": round(figures["seconds"], 1)}) + "\n")
            log.flush()
            print(f"{figures['accuracy']:.4f} seed {seed}: {name}", flush=True)

        for candidate in candidates:
            train(candidate, 0)
        names = list(seen)
        ranked = sorted(range(1, len(names)), key=lambda k: -seen[names[k]][0])[:BEST]
        for k in [0, *ranked]:
            for seed in (1, 2):
                train(candidates[k], seed)
    print(f"\n| validation accuracy, mean of 3 seeds | {given.model}, {given.epochs} epoch(s) |\n|---|---|")
    for name, values in sorted(seen.items(), key=lambda item: -statistics.mean(item[1])):
        if len(values) == 3:
            print(f"| {statistics.mean(values):.4f} | {name} |")


if __name__ == "__main__":
    main()
