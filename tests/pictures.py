"""What the tests of pictures share: rows as a training writes them, and the words of a figure's legends."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure


def history(num_epochs: int, *, factor: float = 0.9) -> list[dict[str, Any]]:
    """Rows as train writes them: the best validation loss and accuracy are at 60 % of the epochs."""
    rows: list[dict[str, Any]] = []
    best = max(1, round(0.6 * num_epochs))
    for epoch in range(1, num_epochs + 1):
        for half in (0.5, 1):
            step = round(10 * (epoch - 1 + half))
            window = {"train/loss": 1.1 * factor ** (epoch - 1 + half), "samples": 320, "train/lr": 0.1}
            rows.append({"step": step, "epoch": epoch - 1 + half, "time": 1_700_000_000_000 + step} | window)
        common = {"step": 10 * epoch, "epoch": float(epoch), "time": 1_700_000_000_000 + 10 * epoch}
        distance = abs(epoch - best) / num_epochs
        figures = {"val/loss": 0.5 + distance, "val/accuracy": 0.9 - distance / 2, "train/epoch_loss": factor**epoch}
        rows.append(common | figures)
    return rows


def legend_texts(figure: Figure) -> list[str]:
    legends = [axes.get_legend() for axes in figure.axes]
    return [t.get_text() for legend in legends if legend for t in legend.get_texts()]
