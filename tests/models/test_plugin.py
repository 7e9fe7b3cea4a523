"""`file.py:Name` and `package.module:Name`: found by their text, run once, and no trouble for anybody's folder."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

import models
from models import plugin
from models.plugin import PluginError
from tests.models.hostile import UNLOADABLE, UNREADABLE


def write(path: str, source: str | bytes) -> Path:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(source if isinstance(source, bytes) else source.encode())
    return file


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_its_text_tells_is_a_sentence_before_anything_is_run(case: str) -> None:
    source, name, said = UNREADABLE[case]
    write("net.py", source)
    with pytest.raises(PluginError, match=said) as caught:
        plugin.check(f"net.py:{name}")
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize("case", UNLOADABLE)
def test_what_goes_wrong_while_loading_is_a_sentence_with_its_line(case: str) -> None:
    source, said = UNLOADABLE[case]
    write("net.py", source)
    with pytest.raises(PluginError, match=said) as caught:
        plugin.load("net.py:Net")
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    assert not [name for name in sys.modules if name.startswith("_trainyard_") and getattr(sys.modules[name], "ratio", None)]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("net.py", "is not of the form"),
        (":Net", "is not of the form"),
        ("net.py:", "is not of the form"),
        ("net.py:a b", "is not of the form"),
        ("absent.py:Net", r"names /.*/absent\.py, which does not exist"),
        ("folder.py:Net", "which is not a file"),
        ("nets/net:Net", r"is no \.py file"),
        ("nowhere.net:Net", "there is no module nowhere"),
        ("json.nothing:Net", r"there is no module json\.nothing"),
        ("mynets:Net", r"There is a file of that name here: give mynets\.py:Net"),
        ("models.mine:Net", "models is a part of this program"),
        ("1net:Net", "neither a .py file nor a module"),
        ("json:JSONEncodr", "Did you mean json:JSONEncoder"),
    ],
)
def test_a_name_of_nothing_is_a_sentence(spec: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "path", [folder for folder in sys.path if folder not in ("", ".")]
    )  # as the installed command has it
    Path("folder.py").mkdir()
    write("mynets.py", "class Net: pass\n")
    with pytest.raises(PluginError, match=said):
        plugin.load(spec)


def test_a_file_that_is_too_large_to_be_source_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "_MOST_BYTES", 10)
    write("net.py", "x = 1234567890\n")
    with pytest.raises(PluginError, match="is no source"):
        plugin.check("net.py:x")


def test_a_file_is_loaded_once_and_anew_when_it_was_changed() -> None:
    write("net.py", "class Net: kind = 1\n")
    first = plugin.load("net.py:Net")
    assert plugin.load(str(Path("net.py").resolve()) + ":Net") is first
    write("net.py", "class Net: kind = 2\n")
    assert plugin.load("net.py:Net").kind == 2 and first.kind == 1  # type: ignore[attr-defined]


def test_finding_a_model_runs_nothing_of_its_file() -> None:
    write("net.py", "import pathlib\npathlib.Path('ran').touch()\nclass Net: pass\n")
    spec = models.find("net.py:Net")
    assert (spec.kind, spec.input_shape, spec.layers, spec.image_size) == ("file", None, (), 0)
    assert plugin.source_of("net.py:Net").path.name == "net.py"
    assert not Path("ran").exists()


def test_a_users_folders_may_be_called_as_ours() -> None:
    write("models/pipeline/__init__.py", "")
    write("models/pipeline/parts.py", "width = 7\n")
    write("models/export.py", "depth = 3\n")
    write("models/models/__init__.py", "kind = 'theirs'\n")
    write(
        "models/net.py",
        "from pipeline.parts import width\nimport export, models\nclass Net:\n    told = width, export.depth, models.kind\n",
    )
    assert plugin.load("models/net.py:Net").told == (7, 3, "theirs")  # type: ignore[attr-defined]
    import export
    import pipeline.task

    assert sys.modules["models"] is models and Path(str(export.__file__)).is_relative_to(Path(models.__file__).parents[1])
    assert "pipeline.parts" not in sys.modules and pipeline.task.TASKS


def test_two_files_may_each_have_another_module_of_one_name_beside_them() -> None:
    for folder, value in (("a", 1), ("b", 2)):
        write(f"{folder}/blocks.py", f"value = {value}\n")
        write(f"{folder}/net.py", "import blocks\nfrom .blocks import value\nclass Net: told = blocks.value, value\n")
    path = list(sys.path)
    assert [plugin.load(f"{folder}/net.py:Net").told for folder in "ab"] == [(1, 1), (2, 2)]  # type: ignore[attr-defined]
    assert sys.path == path and "blocks" not in sys.modules


def test_a_relative_import_works_inside_a_function_too() -> None:
    write("late/blocks.py", "value = 5\n")
    write("late/net.py", "def value():\n    from .blocks import value\n    return value\n")
    assert plugin.load("late/net.py:value")() == 5  # type: ignore[operator]


def test_no_compiled_file_is_left_beside_the_users() -> None:
    write("tidy/net.py", "class Net: pass\n")
    plugin.load("tidy/net.py:Net")
    assert [path.name for path in Path("tidy").iterdir()] == ["net.py"]


def test_the_source_is_the_files_bytes_and_those_that_it_imports_from_its_folder() -> None:
    write("own/blocks/__init__.py", "from . import deep\n")
    write("own/blocks/deep.py", "from .. import helpers\n")
    write("own/helpers.py", "import json\n")
    write("own/unused.py", "")
    file = write("own/net.py", "import torch\nfrom blocks import deep\nclass Net: pass\n")
    source = plugin.source_of("own/net.py:Net")
    assert source.content == file.read_bytes()
    assert next(iter(source.files)) == "net.py"
    assert set(source.files) == {"net.py", "blocks/__init__.py", "blocks/deep.py", "helpers.py"}
    listing = "".join(f"{hashlib.sha256(source.files[name]).hexdigest()}  {name}\n" for name in sorted(source.files))
    assert source.sha256 == hashlib.sha256(listing.encode()).hexdigest()
    alone = plugin.source_of(f"{write('one.py', 'class Net: pass')}:Net")
    assert alone.sha256 == hashlib.sha256(b"class Net: pass").hexdigest() and set(alone.files) == {"one.py"}


def test_a_module_of_a_package_is_found_without_running_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    write("site/apackage/__init__.py", "raise RuntimeError('ran')\n")
    write("site/apackage/net.py", "class Net: pass\n")
    monkeypatch.syspath_prepend(str(Path("site").resolve()))
    assert models.find("apackage.net:Net").kind == "package"
    assert plugin.source_of("apackage.net:Net").content == b"class Net: pass\n"
    with pytest.raises(PluginError, match=r"RuntimeError: ran \(__init__\.py:1"):
        plugin.load("apackage.net:Net")


def test_names_that_only_running_can_tell_are_left_to_loading() -> None:
    write("made.py", "globals()['Net'] = int\n")
    write("star.py", "from json import *\n")
    write("branch.py", "try:\n    import nothing\nexcept ImportError:\n    class Net: pass\nif True:\n    Other = Net\n")
    for spec in ("made.py:Net", "star.py:JSONEncoder", "branch.py:Net", "branch.py:Other"):
        assert callable(plugin.load(spec))


def test_a_signal_while_a_file_is_loading_is_not_taken_for_its_own_exit() -> None:
    write("net.py", "from pipeline.signals import Interrupted\nclass Net: pass\nraise Interrupted(15)\n")
    with pytest.raises(SystemExit) as caught:
        plugin.load("net.py:Net")
    assert caught.value.code == 143


def test_loading_needs_no_torch() -> None:
    write("net.py", "class Net: pass\n")
    code = "import sys; from models.plugin import load; load('net.py:Net'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
