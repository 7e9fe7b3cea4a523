#!/usr/bin/env python3
"""Resolve pyproject.toml's ranges anew and write the pins: the same lines there and in requirements.lock.

Needs uv and a package registry. It resolves for every supported Python and system at once, hence the markers.
"""

import re
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PINS = re.compile(r"^constraint-dependencies = \[\n(.*?)^\]\n", re.MULTILINE | re.DOTALL)
HEADER = "# The exact versions that CI uses, dev group and extras included. To renew: python3 .ci/lock.py\n"
# Left free, the resolver takes 4 and goes back to an older graphene, which does not refuse it.
BOUNDS = 'constraint-dependencies = ["python-dateutil<3"]\n'
EXPORT = "uv export -q --frozen --all-groups --all-extras --no-emit-project --no-hashes --no-annotate --no-header"


def main() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    assert PINS.search(project), "pyproject.toml has lost its constraint-dependencies"
    with tempfile.TemporaryDirectory() as folder:  # a copy without the old pins, which would otherwise hold
        Path(folder, "pyproject.toml").write_text(PINS.sub(BOUNDS, project))
        subprocess.run(["uv", "lock", "-q", "--fork-strategy", "fewest"], cwd=folder, check=True)
        pins = subprocess.run(EXPORT.split(), cwd=folder, check=True, text=True, stdout=subprocess.PIPE)
    lines = sorted(pins.stdout.splitlines())
    (ROOT / "requirements.lock").write_text(HEADER + "".join(f"{line}\n" for line in lines))
    block = "constraint-dependencies = [\n" + "".join(f'    "{line}",\n' for line in lines) + "]\n"
    (ROOT / "pyproject.toml").write_text(PINS.sub(lambda _: block, project))


if __name__ == "__main__":
    main()
