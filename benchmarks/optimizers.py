"""What each optimizer reaches with its own defaults. `uv run python -m benchmarks.optimizers --data_dir DIR --seeds 3`

Only `--optimizer` is given, and on MNIST `--epochs 2`: everything else is what the recipe and the optimizer's own values in
models/__init__.py make of it. Accuracy on the test split of the best weights on validation, mean over the seeds; the last
column is what the worst lies below the best, in points.
"""

from __future__ import annotations

import argparse

from benchmarks.seeds import fitted

PAIRS = [("cnn", "digits"), ("lenet", "digits"), ("mlp", "breast_cancer"), ("moons", "breast_cancer"), ("moons", "moons"),
         ("mlp", "moons"), ("cnn", "mnist"), ("lenet", "mnist")]  # fmt: skip
OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop", "muon")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="", help="folder with the real MNIST; without it MNIST is left out")
    parser.add_argument("--cache_dir", default="~/.cache/trainyard", help="folder for prepared tensors")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each pair")
    given = parser.parse_args()
    print(f"| model, data | {' | '.join(OPTIMIZERS)} | spread |\n|---|{'---|' * (len(OPTIMIZERS) + 1)}", flush=True)
    for model, dataset in PAIRS:
        flags = {"model": model, "dataset": dataset, "cache_dir": given.cache_dir, "precision": "fp32"}
        if dataset == "mnist":
            if not given.data_dir:
                continue
            flags |= {"data_dir": given.data_dir, "epochs": "2"}
        means = []
        for optimizer in OPTIMIZERS:
            runs = [fitted(flags | {"optimizer": optimizer, "seed": str(seed)}, "test") for seed in range(given.seeds)]
            seen = [figures["accuracy"] for figures in runs]
            means.append(sum(seen) / len(seen))
        spread = 100 * (max(means) - min(means))
        print(f"| {model}, {dataset} | {' | '.join(f'{mean:.4f}' for mean in means)} | {spread:.2f} |", flush=True)


if __name__ == "__main__":
    main()
