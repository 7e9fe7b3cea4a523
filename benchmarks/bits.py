"""Whether a change left every number as it was: trains by the command line and prints what the weights and curves hash to.

    python -m benchmarks.bits --output before.json [--data_dir DIR] [--checkout FOLDER]
    python -m benchmarks.bits --output after.json --against before.json

Each model's default recipe on its data sets, on 1, 2 and 3 ranks, ended by SIGTERM and resumed, and the reference recipes.
Only the command line is used, so any two checkouts can be compared on one machine; with the real MNIST in `--data_dir` on that
too, for a hundred steps. Ends with 1 where anything differs, or a training failed. Takes about ten minutes on one core.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DEFAULTS = {"polynomial": "sine", "mlp": "breast_cancer", "two_layer": "moons", "lenet": "digits", "cnn": "digits"}
RANKS = (1, 2, 3)
MNIST = ["--dataset", "mnist", "--max_steps", "100"]


def cases(data_dir: str, reference: str) -> dict[str, list[str]]:
    """Return the flags of each training."""
    found: dict[str, list[str]] = {}
    for model, dataset in DEFAULTS.items():
        for ranks in RANKS:
            flags = ["--model", model, "--dataset", dataset, "--nproc", str(ranks)]
            found[f"{model} on {dataset}, {ranks} ranks"] = flags
        found[f"{model} on {dataset}, resumed"] = ["--model", model, "--dataset", dataset, "--checkpoint_every", "20"]
    for model in ("polynomial", "mlp", "two_layer"):
        found[f"{model}, {reference}"] = ["--model", model, "--recipe", reference, "--epochs", "300"]
    if data_dir:
        data = ["--data_dir", data_dir]
        for model in ("lenet", "cnn"):
            found[f"{model} on mnist"] = ["--model", model, *MNIST, *data]
        for recipe in ("fast", "accurate", reference):
            found[f"cnn, {recipe}"] = ["--recipe", recipe, *MNIST, *data]
    return found


def train(words: list[str], folder: Path, environment: dict[str, str], checkout: Path, *, stop: bool) -> str:
    """Train in `folder`; with `stop`, end it after its first checkpoint and go on. Return "" or what went wrong."""
    command = [sys.executable, "-m", "pipeline", "train", *words, "--precision", "fp32", "--output_dir", str(folder)]
    process = subprocess.Popen(
        command, env=environment, cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while stop and process.poll() is None:
        if any(folder.glob("checkpoints/step-*.json")):
            process.send_signal(signal.SIGTERM)
            break
        time.sleep(0.001)
    out, _ = process.communicate(timeout=900)
    if stop and process.returncode == 143:
        return train(["--resume", "true"], folder, environment, checkout, stop=False)
    return "" if process.returncode == 0 else out[-500:]


def digest(folder: Path) -> dict[str, str]:
    """Return short SHA-256 of both weight files' tensors and of every loss that was written."""
    from safetensors.numpy import load_file

    found = {}
    for name in ("weights", "last"):
        tensors = load_file(folder / f"{name}.safetensors")
        content = b"".join(key.encode() + tensors[key].tobytes() for key in sorted(tensors))
        found[name] = hashlib.sha256(content).hexdigest()[:16]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [(row["step"], key, row[key]) for row in rows for key in sorted(row) if key.endswith("loss")]
    return found | {"losses": hashlib.sha256(json.dumps(losses).encode()).hexdigest()[:16], "points": str(len(losses))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="JSON file for what was found")
    parser.add_argument("--against", default="", help="JSON file of another checkout")
    parser.add_argument("--checkout", default=".", help="the checkout to train with")
    parser.add_argument("--data_dir", default="", help="folder with the real MNIST")
    parser.add_argument("--only", default="", help="a part of the names of the cases to train")
    given = parser.parse_args()
    checkout = Path(given.checkout).resolve()
    before = json.loads(Path(given.against).read_text()) if given.against else {}
    found: dict[str, dict[str, str]] = {}
    wrong = 0
    with tempfile.TemporaryDirectory() as base:
        environment = os.environ | {
            "MLFLOW_TRACKING_URI": f"sqlite:///{base}/mlflow.db", "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"
        }  # fmt: skip
        words = [sys.executable, "-m", "pipeline", "train", "--help"]
        help_text = subprocess.run(words, env=environment, cwd=checkout, capture_output=True, text=True, check=True).stdout
        reference = "reference" if "reference" in help_text else "seed"
        two_layer = "two_layer" if "two_layer:" in help_text else "moons"  # the names before
        for number, (name, flags) in enumerate(cases(given.data_dir, reference).items()):
            if given.only not in name:
                continue
            folder = Path(base) / f"run{number}"
            flags = [two_layer if flag == "two_layer" else flag for flag in flags] + ["--cache_dir", f"{base}/cache"]
            problem = train(flags, folder, environment, checkout, stop="resumed" in name)
            name = name.replace(reference, "reference")
            found[name] = digest(folder) if not problem else {"failed": problem}
            same = "" if not before else "same" if found[name] == before.get(name) else "DIFFERENT"
            wrong += bool(problem) or same == "DIFFERENT"
            print(f"{name}: {found[name]} {same}", flush=True)
    Path(given.output).write_text(json.dumps(found, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
