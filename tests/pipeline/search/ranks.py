"""A rank of a search that notes after how many steps each of its trainings has ended: FOLDER, then the command line."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from pipeline import signals
from pipeline.cli import main
from pipeline.train import Training

if __name__ == "__main__":
    folder, *arguments = sys.argv[1:]
    inner = Training.fit

    def fit(self: Training, *args: Any, **kwargs: Any) -> None:
        inner(self, *args, **kwargs)
        with Path(folder, f"rank{os.environ['RANK']}").open("a") as file:
            file.write(f"{self.state.step}\n")

    Training.fit = fit  # type: ignore[method-assign]
    signals.install()
    signals.exit_now(main(arguments))
