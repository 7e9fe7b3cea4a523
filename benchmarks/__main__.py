"""All measurements, one after the other, each in a process of its own.

`uv run --group peers python -m benchmarks --data_dir DIR` writes the figures as JSON and a Markdown table into `--output`.
A measurement that fails is named, and the others go on. Takes about two hours on two cores; `--only tiny latency` picks some.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.report import Row, options, table

SCRIPTS = (
    "accuracy",
    "peers",
    "step",
    "scaling",
    "tiny",
    "command",
    "memory",
    "latency",
    "decode",
    "images",
    "tables",
    "serving",
    "shards",
    "gpu",
)


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--output", default="build/benchmarks", help="folder for results.json and results.md")
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=SCRIPTS)
    given = parser.parse_args()
    folder = Path(given.output)
    folder.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in given.only:
        words = [f"--{flag}={getattr(given, flag)}" for flag in ("data_dir", "cache_dir", "precision", "pairs")]
        words.append(f"--json={folder / name}.json")
        (folder / f"{name}.json").unlink(missing_ok=True)  # if this one fails, no earlier figures stand for it
        print(f"\n== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *words], check=False).returncode:
            failed.append(name)
    found = [json.loads(path.read_text()) for name in SCRIPTS if (path := folder / f"{name}.json").exists()]
    rows = [Row(**{k: v for k, v in row.items() if k in Row.__annotations__}) for part in found for row in part["rows"]]
    rows.sort(key=lambda row: row.number)
    (folder / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / "results.md").write_text(table(rows) + "\n")
    print(f"\n{table(rows)}\n\n{folder / 'results.md'}, {folder / 'results.json'}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
