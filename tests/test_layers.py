"""Imports run one way: the layers of the house, and the files that alone may know a library."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT

LAYERS = [  # a module may import its own layer and those before it
    {"models", "pipeline", "pipeline.errors", "pipeline.files", "pipeline.output", "pipeline.signals", "pipeline.losses",
     "pipeline.metrics", "pipeline.task"},
    {"pipeline.config", "pipeline.release", "pipeline.values", "pipeline.environment", "pipeline.places",
     "pipeline.sources", "pipeline.machine"},
    {"pipeline.data", "pipeline.distributed", "pipeline.manifest", *(f"pipeline.data.{name}" for name in (
        "spec", "builtin", "mnist", "images", "decoding", "layout", "folder", "columns", "encoding", "table_file",
        "table_target", "table_notes", "table", "arrays", "image_table", "resize", "tensors", "split", "prepare", "spill",
        "augment", "mix", "loader", "shards", "shards.places", "shards.table", "shards.store", "shards.source", "shards.order",
        "shards.rows", "shards.write", "bucket"))},
    {f"pipeline.{name}" for name in (
        "recipe", "checks", "resolve", "stages", "run",
        "initial", "skeleton", "layers", "norms", "ema", "muon", "optimizers", "progress",
        "cuda_graph", "precision", "baseline", "calibration", "intervals")},
    {"pipeline.checkpoint", "pipeline.reuse", "pipeline.explain",
     "pipeline.tracking", "pipeline.tracking.connection", "pipeline.tracking.journal",
     "pipeline.tracking.monitor", "pipeline.tracking.registry", "pipeline.tracking.runs", "pipeline.tracking.sender",
     "pipeline.tracking.fetch", "pipeline.tracking.served", "pipeline.tracking.tracker",
     *(f"pipeline.tracking.{name}" for name in ("history", "lease", "parent", "proof", "promotion"))},
    {"pipeline.answers", "pipeline.evaluate", "pipeline.resume", "export"},
    {"pipeline.plots", "pipeline.plots.style", "pipeline.plots.evaluation", "pipeline.plots.curves", "pipeline.plots.draw",
     "pipeline.plots.standalone", "pipeline.plots.data", "pipeline.plots.benchmark", "pipeline.plots.search",
     "pipeline.train", "pipeline.pages",
     *(f"pipeline.pages.{name}" for name in (
        "page", "charts", "figures", "samples", "artifacts", "loading", "report", "comparison"))},
    {"pipeline.start", "pipeline.fitting", "pipeline.commands", "pipeline.benchmark", "pipeline.reporting",
     "pipeline.cache", "pipeline.flags",
     "pipeline.inspection",
     *(f"pipeline.inspection.{name}" for name in (
        "command", "images", "columns", "arrays", "shards", "targets", "costs", "report")),
     "pipeline.search", *(f"pipeline.search.{name}" for name in (
        "space", "storage", "queue", "loop", "show", "plan", "command", "trial", "winner", "study"))},
    {"pipeline.handlers", "pipeline.cli", "pipeline.__main__"},
]  # fmt: skip
SOURCES = [p for folder in ("models", "pipeline", "export") for p in sorted((ROOT / folder).rglob("*.py"))]
NAMES = [".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in SOURCES]


def _layer(module: str) -> int:
    for level, names in enumerate(LAYERS):
        if module in names:
            return level
    top = module.partition(".")[0]
    assert top in ("models", "export"), f"{module} stands in no layer: give it one"
    return next(level for level, names in enumerate(LAYERS) if top in names)


def _imports(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in NAMES else node.module


@pytest.mark.parametrize("module", NAMES)
def test_a_module_imports_only_its_own_layer_and_those_below(module: str) -> None:
    source = SOURCES[NAMES.index(module)].read_text()
    for imported in _imports(source):
        if imported.partition(".")[0] in ("models", "pipeline", "export"):
            assert _layer(imported) <= _layer(module), f"{module} imports {imported}, which stands above it"


def test_no_imports_go_in_a_circle() -> None:
    """Those within functions and those for types count too."""
    edges = {
        module: {i for i in _imports(path.read_text()) if i in NAMES and i != module}
        for module, path in zip(NAMES, SOURCES, strict=True)
    }
    while leaves := {module for module, wanted in edges.items() if not wanted}:
        edges = {module: wanted - leaves for module, wanted in edges.items() if module not in leaves}
    assert not edges, f"these import each other: {sorted(edges)}"


def test_models_import_nothing_else_of_ours() -> None:
    for module, path in zip(NAMES, SOURCES, strict=True):
        if module.startswith("models"):
            assert not [i for i in _imports(path.read_text()) if i.startswith(("pipeline", "export"))], module


def test_only_tracking_imports_mlflow() -> None:
    users = {m for m, p in zip(NAMES, SOURCES, strict=True) if any(i.startswith("mlflow") for i in _imports(p.read_text()))}
    assert users and all(module.startswith("pipeline.tracking.") for module in users)


def test_training_does_not_import_the_exporters() -> None:
    users = {
        m for m, p in zip(NAMES, SOURCES, strict=True)
        if any(i.partition(".")[0] in ("onnx", "onnxruntime", "onnxscript") for i in _imports(p.read_text()))
    }  # fmt: skip
    assert all(m.startswith("export.") or m == "pipeline.tracking.registry" for m in users)
    assert "import onnx" not in (ROOT / "pipeline" / "train.py").read_text()


def test_only_one_module_prints_so_that_no_reader_who_leaves_can_end_a_training() -> None:
    """And so that the run's log has every word."""
    for module, path in zip(NAMES, SOURCES, strict=True):
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        printing = any(isinstance(function, ast.Name) and function.id == "print" for function in calls)
        assert printing == (module == "pipeline.output"), f"{module}: use pipeline.output.say"


@pytest.mark.parametrize("module", NAMES)
def test_a_module_says_what_it_is_for_and_stays_short(module: str) -> None:
    source = SOURCES[NAMES.index(module)].read_text()
    assert ast.get_docstring(ast.parse(source)), f"{module} does not say what it is for"
    assert source.count("\n") <= 400, f"{module} has too many lines to be one thing"
