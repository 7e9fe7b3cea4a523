"""What a newcomer's machine is told to install, and what must never be committed."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PIN = re.compile(r"[a-z0-9._-]+==[^\s;]+( ; .+)?")


def _lock() -> list[str]:
    return [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]


def test_the_lock_holds_exact_versions_and_nothing_else() -> None:
    assert len(_lock()) > 100 and all(PIN.fullmatch(line) for line in _lock())


def test_uv_run_obeys_the_lock() -> None:
    assert PROJECT["tool"]["uv"]["constraint-dependencies"] == _lock()


def test_every_dependency_is_pinned_in_the_lock() -> None:
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"]["dev"], *PROJECT["dependency-groups"]["peers"]]
    names = {re.split(r"[<>=!~ \[]", w)[0].lower() for w in wanted}  # an extra pins what it brings
    assert names <= {line.partition("==")[0] for line in _lock()}


def test_the_packages_asked_for_are_dependencies() -> None:
    wanted = " ".join([*PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"]["dev"]])
    assert all(name in wanted for name in ("torch", "torchvision", "scikit-learn", "onnx", "onnxruntime", "mlflow", "pytest"))


def test_conda_installs_this_project_and_no_second_list() -> None:
    environment = yaml.safe_load((ROOT / "conda.yaml").read_text())
    conda = [d for d in environment["dependencies"] if isinstance(d, str)]
    (pip,) = (d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert [d.partition("=")[0] for d in conda] == ["python", "pip"]
    assert pip == ["-c requirements.lock", "."]
    assert environment["channels"] and environment["name"] == PROJECT["project"]["name"]


def test_the_version_is_one() -> None:
    from pipeline import __version__

    assert PROJECT["project"]["version"] == __version__
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


def _committed() -> list[Path]:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, timeout=30, check=True)
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_nothing_committed_names_a_machines_path_or_a_registrys_host() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: there is no list of committed files")
    forbidden = re.compile(r"(?<![\w.])/(work|root|farm|home/\w+)/|://[\w.-]*(pypi|pythonhosted)[\w.-]*", re.IGNORECASE)
    for path in _committed():
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
            assert path == Path(__file__) or not forbidden.search(line), f"{path.relative_to(ROOT)}:{number}: {line}"


def test_no_data_weights_or_lock_with_addresses_is_committed() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: there is no list of committed files")
    suffixes = {".npy", ".npz", ".pt", ".pt2", ".onnx", ".safetensors", ".db", ".pkl"}
    for path in _committed():
        assert path.suffix not in suffixes and path.name != "uv.lock" and path.stat().st_size < 200_000, path
