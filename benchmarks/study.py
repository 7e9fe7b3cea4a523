"""What a search costs and gives: seconds a trial beside the training, trials of several workers, and the figure it comes to.

    uv run python -m benchmarks.study overhead              # 50 trials that do nothing, on a journal: seconds for each
    uv run python -m benchmarks.study workers               # trials that wait: 4 workers beside 1
    uv run python -m benchmarks.study figure --data_dir DIR --log docs/search-cnn.jsonl

`figure` searches the space of `benchmarks.search` with half the trainings of its log, on the same validation samples, and
trains the best trial with seeds 1 and 2 too, as was done there: both figures are a mean of three seeds. Waiting trials do not
compute, so the number of cores decides nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from benchmarks.seeds import fitted
from pipeline.distributed import single_process
from pipeline.search.loop import Job, Worker
from pipeline.search.queue import Queue
from pipeline.search.space import parse
from pipeline.search.storage import open_storage
from pipeline.train import Validated, Watch

SPACE = ["lr=2e-3..1.2e-2:log", "optimizer=adamw,muon", "weight_decay=0.02,0.05,0.1,0.2", "batch_size=32,48,64,96"]
REST = ["label_smoothing=0,0.05,0.1", "warmup_ratio=0.1,0.2,0.3", "init=random,pca", "augment_shift=0,1"]
TRIALS, EPOCHS = 50, 10
SEEDS = 3  # that stand behind a figure of benchmarks.search
WORKERS, SECONDS = 4, 1.0


def worker(folder: str, trials: int, seconds: float) -> list[float]:
    """Work on a study as a search does, with trials that report an epoch's figures and wait; return when each began."""
    import optuna

    storage = str(Path(folder) / "journal.log")
    queue = Queue(open_storage(storage), "study", pruner=optuna.pruners.MedianPruner())
    space, began = parse([*SPACE, *REST]), []

    def perform(job: Job, watch: Watch) -> str:
        for epoch in range(1, EPOCHS + 1):
            time.sleep(seconds / EPOCHS)
            watch(Validated(epoch, {"val/accuracy": float(job.flags["lr"]) + epoch}, True, epoch == EPOCHS))
        return ""

    def values(trial: optuna.Trial) -> dict[str, str]:
        began.append(time.perf_counter())
        return {each.name: each.ask(trial) for each in space}

    Worker(
        queue=queue, ranks=single_process(), storage=storage, most=trials, values=values, perform=perform, metric="val/accuracy"
    ).work()  # fmt: skip
    return began


def overhead() -> None:
    with tempfile.TemporaryDirectory() as folder:
        worker(folder, 1, 0)  # imports
        start, spent = time.perf_counter(), time.process_time()
        began = worker(folder, TRIALS, 0)
        wall, processor = (time.perf_counter() - start) / len(began), (time.process_time() - spent) / len(began)
        last = statistics.median(b - a for a, b in zip(began[-10:], began[-9:], strict=False))
    print(f"{len(began)} trials of {EPOCHS} epochs, 8 flags: {1000 * wall:.1f} ms a trial ({1000 * processor:.1f} ms of the "
          f"processor), the last ten {1000 * last:.1f} ms; of a trial of 60 s {wall / 60:.3%}")  # fmt: skip


def _finish(folder: str, trials: int, number: int) -> float:
    """Return the seconds in which so many workers finish the trials, from the first that begins to the last that ends."""
    with multiprocessing.get_context("spawn").Pool(number) as pool:
        pool.starmap(worker, [(f"{folder}/warm", number, 0.0)] * number)  # imports
        start = time.perf_counter()
        pool.starmap(worker, [(folder, trials, SECONDS)] * number, chunksize=1)
        return time.perf_counter() - start


def workers() -> None:
    seen = {}
    for number in (1, WORKERS):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "warm").mkdir()
            trials = 12 * number
            seen[number] = trials / _finish(folder, trials, number)
            print(f"{number} workers: {seen[number]:.3f} trials a second of {SECONDS:g} s each", flush=True)
    print(f"{WORKERS} workers finish {seen[WORKERS] / seen[1]:.2f} times the trials of one")


def figure(data_dir: str, log: str) -> None:
    from pipeline.cli import main

    rows = [json.loads(line) for line in Path(log).read_text().splitlines()]
    epochs, seen = int(rows[0]["epochs"]), defaultdict(list)
    for row in rows:
        seen[json.dumps(row["candidate"])].append(row["val_accuracy"])
    known = max(statistics.mean(values) for values in seen.values() if len(values) == SEEDS)
    trials = len(rows) // 2 - (SEEDS - 1)
    same = {"model": rows[0]["model"], "dataset": rows[0]["dataset"], "epochs": str(epochs), "data_dir": data_dir}
    with tempfile.TemporaryDirectory() as folder:
        words = [word for name, text in same.items() for word in (f"--{name}", text)]
        start = time.perf_counter()
        status = main(["search", *words, "--trials", str(trials), "--space", *SPACE, *REST, "--output_dir", f"{folder}/search"])
        found = json.loads((Path(folder) / "search" / "search.json").read_text())
        best = found["best"]
        config = json.loads((Path(folder) / "search" / f"trial-{best['number']:04d}" / "config.json").read_text())
        again = same | {"precision": config["config"]["precision"]} | best["values"]
        values = [best["value"], *(fitted(again | {"seed": str(k)}, "val")["accuracy"] for k in range(1, SEEDS))]
        spent = sum(trial["epochs"] for trial in found["trials"]) + (SEEDS - 1) * epochs
    print(f"exit status {status}: {best['values']}, {', '.join(f'{value:.4f}' for value in values)}: mean "
          f"{statistics.mean(values):.4f} after {trials} trials and {SEEDS - 1} more seeds, {spent} epochs and "
          f"{time.perf_counter() - start:.0f} s; {known:.4f} in {len(rows) * epochs} epochs of benchmarks.search")  # fmt: skip


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("overhead", "workers", "figure"))
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--log", default="docs/search-cnn.jsonl")
    given = parser.parse_args()
    if given.what == "figure":
        figure(given.data_dir, given.log)
    else:
        {"overhead": overhead, "workers": workers}[given.what]()


if __name__ == "__main__":
    run()
