"""`precision=auto`: measured where the hardware has bfloat16, and kept in the configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline import precision
from pipeline.config import RunConfig
from pipeline.data.loader import open_split
from pipeline.data.prepare import prepare, read_spec
from pipeline.distributed import single_process
from pipeline.run import Run

Make = Callable[..., RunConfig]


def _choose(config: RunConfig) -> tuple[str, str]:
    data = prepare(config)
    run = Run(folder=Path(), config=config, mlflow_run_id="", git_commit="", data=read_spec(data))
    settled, why = precision.choose(run, open_split(data, "train"), single_process())
    assert settled == dataclasses.replace(config, precision=settled.precision)
    return settled.precision, why


@pytest.mark.parametrize(("factor", "expected"), [(0.5, "bf16"), (0.97, "fp32"), (2.0, "fp32")])
def test_auto_is_bf16_only_where_the_models_own_step_is_clearly_faster(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, factor: float, expected: str
) -> None:
    """The step is real; what the clock says of it is not, so that no busy machine decides the test."""
    seen: list[str] = []
    real = precision._step

    def timed(model: object, part: object, run: object, name: str) -> float:
        real(model, part, run, name)  # type: ignore[arg-type]
        seen.append(name)
        return factor if name == "bf16" else 1.0

    monkeypatch.setattr(precision, "_step", timed)
    monkeypatch.setattr(precision, "computes_bf16", lambda device: True)
    state = torch.get_rng_state()
    chosen, why = _choose(make_config(model="cnn"))
    assert chosen == expected and "measured" in why
    assert torch.equal(torch.get_rng_state(), state)  # or the weights would be others than with the precision given
    assert seen[::2] == ["fp32"] * (len(seen) // 2) and seen[1::2] == ["bf16"] * (len(seen) // 2)  # in turns


@pytest.mark.parametrize("step", [0.3, 0.55, 0.7, 1.5, 3.0])
def test_a_slow_step_is_measured_in_both_wherever_the_time_is_over(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    """With steps of 0.55 s it is over between the two of a turn that else would only warm up."""
    clock = [0.0]

    def timed(*_: object) -> float:
        clock[0] += step
        return step

    monkeypatch.setattr(precision, "_step", timed)
    monkeypatch.setattr(precision.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(precision, "computes_bf16", lambda device: True)
    chosen, why = _choose(make_config(model="cnn"))
    assert chosen == "fp32" and f"fp32 {1000 * step:.3g} ms, bf16 {1000 * step:.3g} ms" in why


def test_without_bf16_in_hardware_nothing_is_measured(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, "amx_bf16": False})
    monkeypatch.setattr(precision, "_step", lambda *_: pytest.fail("was measured"))
    assert _choose(make_config(model="cnn")) == ("fp32", "no bf16 in hardware")
    assert _choose(make_config(model="cnn", precision="bf16")) == ("bf16", "")
