"""What `web` writes, and what it refuses; without a browser and without the real runtime."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from export.web import build, runtime
from pipeline import manifest
from pipeline.cli import main
from pipeline.run import Run
from tests.conftest import ROOT

PAGE = ROOT / "export" / "web" / "page"


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with files in the place of the runtime's, of which the hashes are asked for."""
    folder = tmp_path / "dist"
    folder.mkdir()
    for name in runtime.SHA256:
        (folder / name).write_text(f"/* {name} */")
    monkeypatch.setattr(runtime, "SHA256", {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()})
    return folder


def _web(run: Path, stand_in: Path, *more: str) -> int:
    return main(["web", "--run", str(run), "--output", "out", "--runtime", str(stand_in), *more])


def test_the_folder_holds_the_proven_file_and_what_the_page_asks_for(sine: Path, stand_in: Path) -> None:
    assert _web(sine, stand_in) == 0
    html = Path("out/index.html").read_text()
    names = {path.name for path in Path("out").iterdir()}
    assert names == {path.name for path in PAGE.iterdir()} | set(runtime.SHA256) | {"model.onnx", "page.json"}
    assert set(re.findall(r'(?:src|href)="([\w.-]+)"', html)) <= names
    about = json.loads(Path("out/page.json").read_text())
    digest = hashlib.sha256(Path("out/model.onnx").read_bytes()).hexdigest()
    proof = json.loads((sine / "export" / "parity.json").read_text())
    assert dict(about["lineage"])["ONNX file SHA-256"] == digest == proof["artifacts"]["onnx"]["sha256"]
    assert str(sine.parent) not in json.dumps(about)
    assert "default-src 'none'" in html and "connect-src 'self'" in html


def test_the_single_file_holds_all_of_it_and_allows_its_own_scripts_alone(sine: Path, stand_in: Path) -> None:
    assert _web(sine, stand_in, "--single_file", "true") == 0
    assert [path.name for path in Path("out").iterdir()] == ["index.html"]
    html = Path("out/index.html").read_text()
    held = dict(re.findall(r'<script type="text/plain" id="asset:([\w.-]+)">([^<]+)</script>', html))
    assert gzip.decompress(base64.b64decode(held["model.onnx"])) == (sine / "export" / "model.onnx").read_bytes()
    assert set(held) == {"model.onnx", "page.json", runtime.LOADER, runtime.WASM}
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert len(scripts) == len(re.findall("<script src", (PAGE / "index.html").read_text())) and "src=" not in "".join(held)
    policy = re.findall(r'Policy" content="([^"]+)"', html)[0]
    for text in [*scripts, *re.findall("<style>(.*?)</style>", html, re.DOTALL)]:
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy
    assert "connect-src 'none'" in policy and "unsafe-inline" not in policy and not re.search(r'(src|href)="[^d]', html)
    first = Path("out/index.html").read_bytes()
    assert all(base64.b64decode(text)[4:8] == bytes(4) for text in held.values()), (
        "gzip notes the time unless it is told not to"
    )
    shutil.rmtree("out")
    assert _web(sine, stand_in, "--single_file", "true") == 0 and Path("out/index.html").read_bytes() == first


def test_nothing_is_overwritten(sine: Path, stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    assert _web(sine, stand_in) == 0, "an empty folder is as good as none"
    before = {path: path.read_bytes() for path in Path("out").iterdir()}
    assert _web(sine, stand_in) == 2 and "output=out is there already, and not empty" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path("out").iterdir()} == before
    assert not [path for path in Path().iterdir() if path.name.startswith(".out")]


def _copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_a_run_that_was_not_verified_is_refused(sine: Path, stand_in: Path, tmp_path: Path) -> None:
    copy = _copied(sine, tmp_path)
    manifest.unseal(copy, Run.open(copy).mlflow_run_id, *manifest.FILES["verify"])
    assert _web(copy, stand_in) == 2 and not Path("out").exists()


@pytest.mark.parametrize("change", ["failed", "rejected", "another", "missing"])
def test_only_the_file_that_passed_is_taken(
    sine: Path, stand_in: Path, tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = _copied(sine, tmp_path)
    report = copy / manifest.REPORTS[0]
    proof = json.loads(report.read_text())
    part = proof["artifacts"]["onnx"]
    if change == "failed":
        proof["passed"] = False
    elif change == "rejected":
        part["problems"] = ["its accuracy is lower"]
    elif change == "another":
        part["sha256"] = "0" * 64
    else:
        del proof["artifacts"]["onnx"]
    report.write_text(json.dumps(proof))
    manifest.seal(copy, Run.open(copy, check=False).mlflow_run_id, *manifest.FILES["verify"])
    assert _web(copy, stand_in) == 2 and not Path("out").exists()
    none = "format=onnx: run=copy has no proven file of it".replace("copy", str(copy))
    said = {"failed": "disagree with the model", "another": "is not the file that was proven"}.get(change, none)
    assert said in capsys.readouterr().err


def test_a_file_that_was_changed_is_refused(sine: Path, stand_in: Path, tmp_path: Path) -> None:
    copy = _copied(sine, tmp_path)
    path = copy / "export" / "model.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    assert _web(copy, stand_in) == 2 and not Path("out").exists()


def test_another_runtime_than_the_one_that_is_known_is_refused(
    sine: Path, stand_in: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stand_in / runtime.LOADER).write_text("something else")
    assert _web(sine, stand_in) == 2 and "its SHA-256 differs" in capsys.readouterr().err
    (stand_in / runtime.LOADER).unlink()
    assert _web(sine, stand_in) == 2 and f"has no {runtime.LOADER}" in capsys.readouterr().err
    assert not Path("out").exists()


def test_without_npm_it_says_what_to_do(
    sine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert main(["web", "--run", str(sine), "--output", "out", "--cache_dir", "cache"]) == 2
    assert "npm is not installed" in (said := capsys.readouterr().err) and "--runtime FOLDER" in said
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("script", "said"),
    [("exit 1", "exit status 1"), ("echo no network >&2; exit 1", "no network"), ("echo x > a.tgz", "its SHA-512 differs")],
)
def test_what_npm_does_not_bring_or_brings_otherwise_is_told(
    sine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], script: str, said: str
) -> None:
    (tmp_path / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert main(["web", "--run", str(sine), "--output", "out", "--cache_dir", "cache"]) == 1
    assert said in capsys.readouterr().err and not Path("out").exists() and not [*Path("cache").rglob("*")]


def test_a_flag_without_effect_is_refused(sine: Path, stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _web(sine, stand_in, "--cache_dir", "cache") == 2
    assert "cache_dir=cache has no effect with --runtime" in capsys.readouterr().err


def test_it_loads_no_torch(sine: Path, stand_in: Path) -> None:
    code = (
        "import sys; from export.web import build, runtime; from pipeline.cli import main;"
        f"runtime.SHA256 = {runtime.SHA256!r};"
        f"assert main(['web', '--run', {str(sine)!r}, '--output', 'out', '--runtime', {str(stand_in)!r}]) == 0;"
        "print([m for m in ('torch', 'mlflow', 'pandas', 'onnx', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", done.stderr + done.stdout


def test_the_pages_files_are_short_and_part_of_the_package() -> None:
    for path in PAGE.iterdir():
        text = path.read_text()
        assert (
            text.count("\n") < 400 and "innerHTML" not in text and "http:" not in text.replace("http://www.w3.org/2000/svg", "")
        )
    assert 'lang="en"' in (PAGE / "index.html").read_text() and build.PAGE == PAGE
    assert "animation" not in (PAGE / "page.css").read_text() and "transition" not in (PAGE / "page.css").read_text()
