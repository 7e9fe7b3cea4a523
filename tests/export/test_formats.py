"""A format is one file, which an isolated process can load, and which knows torch by its public names alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from export import isolated
from export.formats import FORMATS
from pipeline import config
from tests.conftest import ROOT
from tests.export.conftest import EXACT, Trained


def test_formats_are_the_modules_of_their_folder_onnx_first() -> None:
    folder = ROOT / "export" / "formats"
    assert {name.rpartition("-")[2] for name in FORMATS} == {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert tuple(FORMATS) == config.FORMATS and config.FORMATS[0] == "onnx", "the command line knows them all"
    for name, each in FORMATS.items():
        assert each.source == folder / f"{each.base or name}.py" and each.file.startswith("model.")
        assert bool(each.base) == bool(each.derivation) == (each.build is None) == name.startswith(f"{each.base}-")


@pytest.mark.slow
def test_a_new_format_is_one_new_file(exports: Callable[[str], Trained], tmp_path: Path) -> None:
    """It is built, sealed, run by an isolated process, and stands in the report."""
    trained = exports("two_layer")
    shutil.copytree(ROOT / "export", tmp_path / "export")
    pt2 = (tmp_path / "export" / "formats" / "pt2.py").read_text()
    new = re.sub("^FILE = .*", 'FILE = "model.new"', re.sub("^ORDER = .*", "ORDER = -1", pt2, flags=re.M), flags=re.M)
    (tmp_path / "export" / "formats" / "new.py").write_text(new)
    shutil.copytree(trained.run.folder, tmp_path / "run", ignore=shutil.ignore_patterns("export"))
    script = (
        "import dataclasses, json, sys; from pathlib import Path; from pipeline.run import Run; from pipeline import manifest\n"
        "from export.artifacts import export_run; from export.verify import verify_run\n"
        "run = Run.open(Path('run'), check=False)\n"
        "run = dataclasses.replace(run, config=dataclasses.replace(run.config, formats='new,onnx,torchscript,pt2'))\n"
        "before = manifest.is_sealed(run.folder, 'export'); sizes = export_run(run)\n"
        "between = manifest.is_sealed(run.folder, 'export'); run.seal('export')\n"
        "verdict = verify_run(run, data=Path(sys.argv[1]))\n"
        "states = [before, between, manifest.is_whole(run.folder, 'export')]\n"
        "sealed = [name for name in manifest.read(run.folder)[1] if name.startswith('export/')]\n"
        "print(json.dumps([verdict.passed, list(verdict.report['artifacts']), states, sealed, list(sizes)]))"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, trained.data], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    passed, artifacts, states, sealed, sizes = json.loads(ended.stdout.splitlines()[-1])
    assert passed and artifacts == ["new", *EXACT] and states == [False, False, True]
    assert set(sealed) == {f"export/{FORMATS[name].file}" for name in EXACT} | {
        "export/model.new", "export/model.safetensors", "export/config.json"
    }  # fmt: skip
    assert "verify/new/size_bytes" in sizes


@pytest.mark.parametrize("name", EXACT)
def test_a_formats_file_needs_nothing_of_ours_and_no_other_formats_library(name: str) -> None:
    script = (
        f"import json, runpy, sys; from pathlib import Path; sys.path.insert(0, {str(ROOT)!r})\n"
        f"names = runpy.run_path({isolated.__file__!r}); sys.meta_path.insert(0, names['Blocker']())\n"
        f"format = names['load_format'](Path({str(FORMATS[name].source)!r})); light = set(sys.modules)\n"
        f"format.import_runtime()\n"
        f"try: format.load(Path('missing'), num_threads=1)\n"
        f"except Exception as error: assert not isinstance(error, ImportError), error\n"
        f"print(json.dumps([sorted(light), sorted(sys.modules)]))"
    )
    ended = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    light, loaded = (set(modules) for modules in json.loads(ended.stdout))
    assert not {module for module in loaded if module.partition(".")[0] in isolated.BLOCKED}
    assert not light & {"torch", "onnx", "onnxruntime"}, "they are to be imported by import_runtime, whose errors are reported"
    assert ("torch" in loaded) != (name == "onnx")


def test_export_uses_no_private_name_of_torch() -> None:
    private = re.compile(r"\btorch(\.\w+)*\._[A-Za-z]|torch\.autograd\.function\b")
    for path in sorted((ROOT / "export").rglob("*.py")):
        assert not private.search(path.read_text()), path
