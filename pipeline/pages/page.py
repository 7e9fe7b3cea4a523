"""A template and values to the text of a page. Jinja escapes whatever a template prints; what is HTML already is `Markup`.

A page forbids itself by its Content-Security-Policy to load anything or to run a script, so no class name can make it.
"""

from __future__ import annotations

import base64
import io
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_SIDE = 80  # pixels to which larger images are scaled down


def render(template: str, **values: object) -> str:
    """Return a template of `templates/` with these values. A name that is not there is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pipeline.pages"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"number": number, "thousands": thousands, "size": size}
    text = environment.get_template(template).render(**values)
    return text.encode(errors="replace").decode()  # names of files may hold what no text can


def number(value: float | None, digits: int = 4) -> str:
    """Return a number as it reads well, and a dash for none; a large one is whole."""
    if value is None or not math.isfinite(value):
        return "-"
    is_whole = float(value).is_integer() or abs(value) >= 10**digits
    return thousands(round(value)) if is_whole and abs(value) < 1e15 else f"{value:.{digits}g}"


def thousands(count: int) -> str:
    return f"{count:,}".replace(",", " ")


def size(count: float) -> str:
    """Return a number of bytes."""
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def picture(image: Array) -> str:
    """Return an image (C, H, W) uint8 as the address of a PNG that holds it; of odd channels, the first as grey."""
    from PIL import Image

    rows = image.transpose(1, 2, 0) if len(image) == 3 else image[0]  # (H, W, 3) or (H, W)
    drawn = Image.fromarray(rows.copy())
    drawn.thumbnail((_SIDE, _SIDE))
    out = io.BytesIO()
    drawn.save(out, "PNG")
    return png(out.getvalue())


def png(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
