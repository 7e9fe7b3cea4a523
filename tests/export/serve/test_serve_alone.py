"""`serve` needs few packages, and what deploy/Dockerfile installs is what it needs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT
from tests.export.serve.serving import served
from tests.export.serve.test_predict_alone import BLOCKER, NEEDED

WEB = ("fastapi", "orjson", "uvicorn")
BENEATH = ("starlette", "h11", "click", "anyio", "pydantic", "pydantic_core", "annotated_types", "annotated_doc", "idna",
           "typing_extensions", "typing_inspection", "opentelemetry")  # fmt: skip
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
CODE = BLOCKER.replace(repr(NEEDED), repr((*NEEDED, *WEB, *BENEATH)))


def test_it_needs_few_packages_beside_those_of_predict(table_onnx: Path) -> None:
    with served(table_onnx, code=CODE) as server:
        rows = [{"age": 20, "member": True, "since": "2020-01-01", "city": "Rome"}]
        assert json.loads(server.ask("/predict", {"rows": rows})[1])["predictions"][0]["prediction"] == "dog"
        assert server.stop() == 0
    assert server.said[-1] == "[]"  # of torch, pandas, onnx, mlflow, scikit-learn and rich, nothing was loaded


def test_its_help_and_its_mistakes_load_nothing_heavy() -> None:
    code = (
        "import sys; from pipeline.cli import main; assert main(['serve', '--help']) == 0;"
        "assert main(['serve', '--port', 'x']) == 2;"
        "sys.exit(any(m in sys.modules for m in ('fastapi', 'uvicorn', 'numpy', 'onnxruntime', 'torch', 'mlflow')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True, check=False).returncode == 0


def test_the_dockerfile_installs_these_from_the_lock_and_copies_what_is_there() -> None:
    assert "-c requirements.lock" in DOCKERFILE
    found = re.search(r"-c requirements\.lock ([\w ]+)", DOCKERFILE)
    assert found and set(found[1].split()) == {"numpy", "pillow", "pyarrow", "onnxruntime", *WEB}
    for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE):
        for name in line.split()[:-1]:
            assert (ROOT / name).exists(), name
    words = re.findall(r'"([^"]+)"', DOCKERFILE.partition("ENTRYPOINT")[2].partition("\n")[0])
    assert words[:2] == ["trainyard", "serve"]
    assert "USER" in DOCKERFILE and "torch" not in re.sub(r"#.*", "", DOCKERFILE)
