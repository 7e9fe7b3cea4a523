"""Each artifact in a process of its own, where nothing of ours can be imported and nothing else is measured meanwhile."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from export import isolated, runner, verify
from export.artifacts import FILES, FOLDER
from export.formats import FORMATS
from export.runner import Runner
from export.verify import verify_run
from tests.export.conftest import EXACT, Trained

Exports = Callable[[str], Trained]


_SLOW_BUT_ONNX = [kind if kind == "onnx" else pytest.param(kind, marks=pytest.mark.slow) for kind in EXACT]


def test_a_process_that_takes_too_long_fails_and_is_ended(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = exports("mlp")
    path = shutil.copy(trained.run.folder / FOLDER / FILES["onnx"], tmp_path / "slow.onnx")
    monkeypatch.setattr(runner, "TIMEOUT", 0.01)
    verdict = verify_run(trained.run, data=trained.data, onnx=Path(path))
    assert verdict.problems == ["slow.onnx: it did not finish within 0 s"]


@pytest.mark.parametrize("name", isolated.BLOCKED)
def test_an_isolated_process_cannot_import_the_project(name: str) -> None:
    root = str(Path(isolated.__file__).parents[1])
    script = (  # the script itself, on a file that is not there; what it set up on its way stays
        f"import contextlib, runpy, sys; sys.path.insert(0, {root!r})\n"
        f"open('request.json', 'w').write('{{}}'); import numpy; numpy.save('samples.npy', numpy.zeros(1))\n"
        f"sys.argv = ['isolated.py', {str(FORMATS['onnx'].source)!r}, 'missing.onnx', '.']\n"
        f"with contextlib.suppress(SystemExit):\n"
        f"    runpy.run_path({isolated.__file__!r}, run_name='__main__')\n"
        f"import {name}"
    )
    ended = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True)
    assert ended.returncode == 1
    assert f"ImportError: {name} is blocked" in ended.stderr


@pytest.mark.parametrize("kind", _SLOW_BUT_ONNX)
def test_an_isolated_process_ends_when_nobody_gives_it_a_file(kind: str, tmp_path: Path) -> None:
    command = [sys.executable, "-I", isolated.__file__, FORMATS[kind].source, "no.artifact", str(tmp_path)]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100, check=False)
    assert (ended.returncode, ended.stderr) == (1, "nobody waits for the answer\n") and not list(tmp_path.iterdir())


def test_latency_is_measured_when_the_other_processes_are_idle_and_nothing_of_ours_works(
    exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, events, tell, compute = exports("mlp"), [], Runner._tell, verify._eager_outputs
    names = EXACT

    def note_and_tell(self: Runner, kind: str, line: str) -> None:
        if line == "measure\n":
            assert all(self._file(k, "facts.json").exists() for k in names), "another process still works"
            measured = names[: names.index(kind)]
            assert all(self._processes[k].poll() == 0 for k in measured), "another process still measures"
        events.append(f"{line.strip()} {kind}")
        tell(self, kind, line)

    def note_and_compute(*arguments: Any) -> Any:
        events.append("torch begins")
        result = compute(*arguments)
        events.append("torch ends")
        return result

    monkeypatch.setattr(Runner, "_tell", note_and_tell)
    monkeypatch.setattr(verify, "_eager_outputs", note_and_compute)
    with runner.warm(EXACT):  # all can wait for their files before these are there
        started = [each for _, each in runner._warm]
        verdict = verify_run(trained.run, data=trained.data)
        assert not runner._warm and len(started) == 1, "the processes that were warm are those that were used"
    assert verdict.passed and list(verdict.report["artifacts"]) == EXACT
    work = [*(f"load {k}" for k in EXACT), "torch begins", "torch ends"]
    assert events == [*work, *(f"measure {k}" for k in EXACT)]


@pytest.mark.parametrize("kind", _SLOW_BUT_ONNX)
def test_an_isolated_process_computes_on_one_thread_as_two_would_wait_for_each_other(kind: str, exports: Exports) -> None:
    path = str(exports("cnn").run.folder / FOLDER / FILES[kind])
    script = (
        f"import os, runpy; from pathlib import Path; import numpy as np\n"
        f"names = runpy.run_path({isolated.__file__!r})\n"
        f"loader = names['load_format'](Path({str(FORMATS[kind].source)!r})); loader.import_runtime()\n"
        f"count = lambda: len(os.listdir('/proc/self/task')); before = count()\n"
        f"call, *_ = loader.load(Path({path!r}), num_threads=names['NUM_THREADS'])\n"
        f"call(np.zeros((64, 1, 28, 28), np.uint8)); print(count() - before)\n"
        f"import torch; print(torch.get_num_threads() if {kind!r} != 'onnx' else 1)"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "4"}
    ended = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert ended.stdout.split() == ["0", "1"]


def test_torchs_own_outputs_are_computed_on_as_many_threads_as_those_of_an_isolated_process(
    exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, seen, compute, before = exports("mlp"), [], verify._eager_outputs, torch.get_num_threads()
    monkeypatch.setattr(verify, "_eager_outputs", lambda *a: (seen.append(torch.get_num_threads()), compute(*a))[1])
    torch.set_num_threads(3)
    try:
        verify_run(trained.run, data=trained.data, onnx=trained.run.folder / FOLDER / FILES["onnx"])
        assert seen == [isolated.NUM_THREADS] and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
