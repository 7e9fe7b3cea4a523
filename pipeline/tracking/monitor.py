"""System metrics of each host (processor, memory, disk, network, GPU), read by MLflow's own monitors.

They are handed on as rows and sent like all other metrics, so that they outlive a server that is away.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]


def start(take: Callable[[Row], None], *, first_step: int = 0) -> Any:
    """Start a thread that calls `take` with a row of system metrics every few seconds; end it with its `finish`."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    class Monitor(SystemMetricsMonitor):
        """Only the reading is MLflow's: its own loop ends for good when the server does not answer once."""

        def monitor(self) -> None:
            over = False
            while not over:
                self.collect_metrics()
                over = self._shutdown_event.wait(self.sampling_interval)
                prefix = f"system/{self.node_id}/" if self.node_id else "system/"
                row = {"step": self._logging_step, "time": time.time_ns() // 1_000_000}
                take(row | {prefix + name: value for name, value in self.aggregate_metrics().items()})
                self._logging_step += 1
                for each in self.monitors:
                    each.clear_metrics()

        def finish(self) -> None:
            self._shutdown_event.set()
            if self._process:
                self._process.join(timeout=5)

    monitor = Monitor("", node_id=_node())
    monitor._logging_step = first_step
    monitor.start()
    return monitor


def _node() -> str | None:
    """Return the name of this host among several, `node_0`; None where there is one."""
    several = int(os.environ.get("WORLD_SIZE", 1)) > int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return f"node_{os.environ.get('GROUP_RANK', '0')}" if several else None
