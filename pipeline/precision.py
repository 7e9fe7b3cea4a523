"""What `precision=auto` becomes: bf16 or fp32, whichever computes this model's own step faster on this machine.

That a processor has bfloat16 does not tell: with AVX512-BF16 alone the step of a small CNN was seen to be a quarter slower in
it. What was measured once is written into the run's configuration, so that a resumed run computes alike.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from contextlib import nullcontext
from typing import Any

import torch

from models.wrapper import Model
from pipeline.config import RunConfig
from pipeline.data.loader import Split
from pipeline.distributed import Ranks
from pipeline.run import Run

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_TURNS, _WARM_UP = 15, 3
_LONGEST = 2.0  # seconds for all turns
_MARGIN = 1.05  # bf16 must win clearly: it costs accuracy, and times vary


def autocast(precision: str, device: torch.device) -> Any:
    """Return the context in which a forward pass computes in `precision`."""
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, dtype=DTYPES[precision])


def computes_bf16(device: torch.device) -> bool:
    """Tell whether the hardware has bfloat16 at all; elsewhere it is emulated, and slow."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(torch.cpu.get_capabilities().get(feature) for feature in ("avx512_bf16", "amx_bf16", "bf16"))


def choose(run: Run, split: Split, ranks: Ranks) -> tuple[RunConfig, str]:
    """Return the run's configuration with `auto` replaced, and how that was decided, for the run's first lines.

    The forward and backward passes of the model on this rank's share of a batch of `split` are timed in turns.
    """
    c = run.config
    if c.precision != "auto":
        return c, ""
    if not computes_bf16(ranks.device):
        return dataclasses.replace(c, precision="fp32"), "no bf16 in hardware"
    with torch.random.fork_rng(devices=[ranks.device] if ranks.device.type == "cuda" else []):
        model = run.build_model().to(ranks.device)
        if run.data.is_image:
            model.to(memory_format=torch.channels_last)
        count = max(1, min(len(split), c.batch_size) // (ranks.world_size * c.grad_accum_steps))
        part = split.first(count).to(ranks.device)
        times: dict[str, list[float]] = {"fp32": [], "bf16": []}
        begin = time.perf_counter()
        for turn in range(_TURNS + _WARM_UP):
            seconds = {precision: _step(model, part, run, precision) for precision in times}
            is_late = time.perf_counter() - begin > _LONGEST  # asked once: a turn counts for both, or for none
            if turn >= _WARM_UP or (turn and is_late):
                for precision, spent in times.items():
                    spent.append(seconds[precision])
                if is_late:
                    break
    medians = {precision: statistics.median(spent) for precision, spent in times.items()}
    chosen = "bf16" if medians["fp32"] > _MARGIN * medians["bf16"] else "fp32"
    told = ", ".join(f"{precision} {1000 * seconds:.3g} ms" for precision, seconds in medians.items())
    return dataclasses.replace(c, precision=chosen), f"measured, a step: {told}"


def _step(model: Model, part: Split, run: Run, precision: str) -> float:
    """Return the seconds that a forward and a backward pass take."""
    device = part.x.device
    start = time.perf_counter()
    with autocast(precision, device):
        scores, _ = model(part.x)
    loss = run.task.loss_sum(run.loss, args=run.config.loss_args, network=model.network, unit=model.target_unit)
    loss(scores.float(), part.y).backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    for parameter in model.parameters():
        parameter.grad = None
    return time.perf_counter() - start
