"""`web`: a run's proven ONNX file, onnxruntime-web and the page into a folder, or into one HTML file that opens from disk.

No framework and no bundler: the page's files are put out as they are, or set into index.html. There binary files stand as gzip
in base64, which makes the whole a third of its size. Which scripts may run is said by hash, and that nothing may be asked of
any other place. The folder takes its name when it is whole.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path

from export.proven import proven_file
from pipeline import files, manifest
from pipeline.errors import UserError
from pipeline.output import say
from pipeline.release import WebConfig
from pipeline.run import Run
from pipeline.values import shown

PAGE = Path(__file__).with_name("page")
_ABOUT = "page.json"
_SCRIPT = re.compile(r'<script src="([\w.-]+)"></script>')
_STYLE = '<link rel="stylesheet" href="page.css">'
_POLICY = (
    "default-src 'none'; script-src {scripts} 'wasm-unsafe-eval'; style-src {styles}; connect-src {asked}; "
    "img-src blob: data:; media-src blob:; base-uri 'none'; form-action 'none'"
)


def web(config: WebConfig, *, find_run: Callable[[], Run], given: Mapping[str, str]) -> int:
    """Write the page; return 0. `given` are the flags that were given.

    Raises UserError where the output is occupied, a flag has no effect, or the run has no such file that passed.
    """
    output = Path(config.output)
    _check(output, config, given)
    run = find_run()
    content = proven_file(run, config.format).content
    proof = files.read_json(run.folder / manifest.REPORTS[0])
    part = proof["artifacts"][config.format]

    from export.serve import model as models
    from export.web import card, runtime

    found = models.load(run.folder / "export" / part["file"])
    if hashlib.sha256(content).hexdigest() != files.sha256(found.path):
        raise UserError(f"run={run.folder}: export/{part['file']} was changed meanwhile. Do it again.")
    parts = dict(runtime.find(config.runtime, cache_dir=config.cache_dir))
    about = card.describe(run, found, part=part, proof=proof, size=len(content)) | {
        "onnx": part["file"],
        "runtime": {"loader": runtime.LOADER, "wasm": runtime.WASM, "notice": runtime.NOTICE},
    }
    parts |= {part["file"]: content, _ABOUT: json.dumps(about, allow_nan=False).encode()}
    parts |= {path.name: path.read_bytes() for path in sorted(PAGE.iterdir()) if path.is_file()}
    made = {"index.html": single_file(parts)} if config.single_file else parts | {"index.html": _in_folder(parts)}
    _write(output, made)
    size = sum(map(len, made.values())) / 1e6
    if config.single_file:
        say(f"{output / 'index.html'} ({size:.1f} MB) opens in a browser, from disk too")
    else:
        say(f"{output} ({size:.1f} MB) is ready for any web server, as in: python -m http.server --directory {output}")
    return 0


def _check(output: Path, config: WebConfig, given: Mapping[str, str]) -> None:
    """Raise UserError for what can be known before a run is looked for."""
    problems = []
    if output.is_symlink() or (output.exists() and (not output.is_dir() or any(output.iterdir()))):
        problems.append(f"output={shown(config.output)} is there already, and not empty. Give a folder that is new or empty.")
    if config.runtime and "cache_dir" in given:
        problems.append(f"cache_dir={config.cache_dir} has no effect with --runtime, which fetches nothing. Leave it out.")
    if problems:
        raise UserError(*problems)


def _in_folder(parts: Mapping[str, bytes]) -> bytes:
    """Return index.html for a folder with all other files."""
    policy = _POLICY.format(scripts="'self'", styles="'self'", asked="'self'")
    return _with_policy(parts["index.html"].decode(), policy).encode()


def single_file(parts: Mapping[str, bytes]) -> bytes:
    """Return index.html with all other files in it; the same bytes each time."""
    html, scripts = parts["index.html"].decode(), _SCRIPT.findall(parts["index.html"].decode())
    style = parts["page.css"].decode()
    for text in (style, *(parts[name].decode() for name in scripts)):
        assert not re.search("</s(cript|tyle)|<!--", text, re.IGNORECASE), "it would end the element that it is set into"
    held = [name for name in parts if name not in ("index.html", "page.css", *scripts)]
    blocks = "".join(f'<script type="text/plain" id="asset:{escape(name)}">{_packed(parts[name])}</script>\n' for name in held)
    policy = _POLICY.format(
        scripts=" ".join([*(_hash(parts[name].decode()) for name in scripts), "blob:"]), styles=_hash(style), asked="'none'"
    )
    html = _with_policy(html, policy).replace(_STYLE, f"<style>{style}</style>")
    first = _SCRIPT.search(html)
    assert first
    html = html[: first.start()] + blocks + html[first.start() :]
    return _SCRIPT.sub(lambda found: f"<script>{parts[found[1]].decode()}</script>", html).encode()


def _with_policy(html: str, policy: str) -> str:
    return html.replace('Policy" content=""', f'Policy" content="{policy}"')


def _hash(text: str) -> str:
    """Return how a policy names a script or style by its text, in which a browser reads each end of line as one character."""
    assert "\r" not in text
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()


def _write(output: Path, made: Mapping[str, bytes]) -> None:
    """Write all files into a folder, which takes its name when it is whole. An empty one gives way."""
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
    try:
        for name, content in made.items():
            (temporary / name).write_bytes(content)
        temporary.chmod(0o755)
        temporary.rename(output)  # onto an empty folder, too; never onto one that is not
    finally:
        files.remove(temporary)
