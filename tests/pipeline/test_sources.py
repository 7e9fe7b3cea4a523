"""What a module imports, by its text, holds all that its syntax tree says."""

from __future__ import annotations

import ast

import pytest

from pipeline import sources
from tests.conftest import ROOT

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("models", "pipeline", "export")
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def _by_tree(text: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import is not looked for"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in whole}
    return found & MODULES.keys()


@pytest.mark.parametrize("module", MODULES)
def test_the_text_of_a_module_tells_all_that_it_imports(module: str) -> None:
    text = MODULES[module].read_text()
    found = set(sources.imports(text))
    assert found >= _by_tree(text) and found <= MODULES.keys()


@pytest.mark.parametrize(
    "text",
    ["import pipeline.train", "from pipeline import train", "from pipeline.train import Training, State as S",
     "def f():\n    from pipeline import (\n        task,\n        train,\n    )\n",
     "import os\nimport pipeline.train as t  # why",
     "from models import (  # noqa\n    cnn,\n)\nfrom pipeline import train"],
)  # fmt: skip
def test_each_way_to_import_counts(text: str) -> None:
    assert "pipeline.train" in set(sources.imports(text))


def test_a_digest_covers_what_is_imported_and_the_packages_around_it() -> None:
    found = sources.digests("pipeline.fitting")
    assert {"pipeline", "pipeline.fitting", "pipeline.train", "pipeline.data", "pipeline.data.loader", "models"} <= set(found)
    assert not [name for name in found if name.startswith(("export", "pipeline.plots", "pipeline.pages"))]
    assert {"export.formats.int8", "export.formats.onnx"} <= set(sources.modules_of("export.formats"))
