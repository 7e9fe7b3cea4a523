"""What a Python script writes on a terminal of its own."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys


def written_on_a_terminal(script: str) -> str:
    """Run a script, which has to end with 0, and return what it wrote, without the codes that move the cursor."""
    main, child = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen([sys.executable, "-c", script], stdout=child, stderr=child, env=environment)
    os.close(child)
    seen = b""
    try:
        while chunk := os.read(main, 4096):
            seen += chunk
    except OSError:  # the other end was closed: the process is done
        pass
    os.close(main)
    assert process.wait(timeout=30) == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
