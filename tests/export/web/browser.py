"""A real headless Chromium, a folder served on loopback, and a page whose every request is kept."""

from __future__ import annotations

import functools
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 60_000  # ms
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
          "--disable-component-update", "--disable-sync"]  # fmt: skip
_CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


def needed() -> str:
    """Return the path of Chromium. Without it or npm the test is skipped; where browser tests are required, it fails."""
    found = next(filter(None, map(shutil.which, _NAMES)), "")
    missing = [*([] if found else ["Chromium"]), *([] if shutil.which("npm") else ["npm"])]
    if missing and os.environ.get("TRAINYARD_BROWSER_TESTS") != "required":
        pytest.skip(f"the page was not tried in a browser: {' and '.join(missing)} not installed")
    assert not missing, f"{' and '.join(missing)} not installed, and the tests in a browser are required here"
    return found


@contextmanager
def chromium() -> Iterator[Any]:
    """Yield Playwright's browser."""
    path = needed()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def with_camera(browser: Any) -> Iterator[Any]:
    """Yield another browser, which has a camera that films a test picture. Playwright itself can be started only once."""
    other = browser.browser_type.launch(executable_path=needed(), args=[*_FLAGS, *_CAMERA])
    try:
        yield other
    finally:
        other.close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Yield the address of a folder, without any header that would isolate the page."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/index.html"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=60)


@contextmanager
def opened(browser: Any, address: str, *, size: dict[str, int] = WIDE) -> Iterator[Any]:
    """Yield a page that is ready. In the end it has asked for nothing but its own files, and had no error."""
    page = browser.new_page(viewport=size)
    page.set_default_timeout(PATIENCE)
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    try:
        page.goto(address)
        page.evaluate("Page.ready")
        assert page.evaluate("crossOriginIsolated") is False
        yield page
        own = address.removesuffix("index.html") if address.startswith("http") else address
        assert all(url.startswith((own, "blob:", "data:")) for url in asked), asked
        assert asked[0] == address and not errors, errors
    finally:
        page.close()


def drop(page: Any, content: bytes, name: str) -> None:
    """Drop a file onto the page, as a user does."""
    import base64

    page.evaluate(
        """([text, name]) => {
          const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
          const given = new DataTransfer();
          given.items.add(new File([bytes], name));
          const place = document.getElementById("drop");
          place.dispatchEvent(new DragEvent("drop", { dataTransfer: given, bubbles: true, cancelable: true }));
        }""",
        [base64.b64encode(content).decode(), name],
    )


def decided(page: Any, text: str) -> None:
    """Wait until the decision begins with a text."""
    page.wait_for_function("(text) => document.getElementById('decision').textContent.startsWith(text)", arg=text)
