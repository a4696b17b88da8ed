"""Self-contained HTML pages: pictures and videos are embedded in the file."""

import base64
import io
import string
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
from PIL import Image


def page(title: str, body: str, style: str = "") -> str:
    """Returns a whole page, for wide and narrow screens, light and dark.

    Args:
        title: Text.
        body: HTML that follows the title.
        style: CSS in addition to that of all pages.
    """
    return _PAGE.substitute(title=escape(title), body=body, style=style)


def items(lines: Iterable) -> str:
    """Returns list items of texts."""
    return "\n".join(f"<li>{escape(str(line))}" for line in lines)


def details(summary: str, inside: str, opened: bool = False) -> str:
    """Returns HTML that a click on its summary, HTML too, shows."""
    state = " open" if opened else ""
    return f"<details{state}><summary>{summary}</summary>{inside}</details>"


def picture(encoded: bytes, kind: str, alt: str = "") -> str:
    """Returns a picture of type image/`kind`, loaded when scrolled to."""
    source = base64.b64encode(encoded).decode()
    return (
        f'<img loading="lazy" alt="{escape(alt)}"'
        f' src="data:image/{kind};base64,{source}">'
    )


def video(mp4: bytes, poster: bytes, label: str) -> str:
    """Returns a video that plays in place.

    Args:
        mp4: H.264, which nearly all browsers play.
        poster: JPEG, shown until it plays.
        label: Text that describes it.
    """
    source, still = (base64.b64encode(x).decode() for x in (mp4, poster))
    return (
        f'<video controls loop muted playsinline aria-label="{escape(label)}"'
        f' poster="data:image/jpeg;base64,{still}"'
        f' src="data:video/mp4;base64,{source}"></video>'
    )


def jpeg(frame: np.ndarray, size: tuple[int, int]) -> bytes:
    """Encodes a uint8 frame (H, W, 3) as JPEG of size (width, height) in pixels."""
    file = io.BytesIO()
    picture = Image.fromarray(frame).resize(size, Image.Resampling.BOX)
    picture.save(file, "JPEG", quality=80, optimize=True)
    return file.getvalue()


def table(head: Sequence, rows: Iterable[Sequence], numbers: int = 0) -> str:
    """Returns a table that scrolls if the screen is too narrow.

    Args:
        head: Titles of the columns.
        rows: Cells, as many as titles.
        numbers: Number of last columns that are aligned right.
    """
    first = len(head) - numbers

    def row(cells, tag):
        kinds = [
            f'<{tag} class="n">' if i >= first else f"<{tag}>"
            for i in range(len(cells))
        ]
        return "<tr>" + "".join(
            f"{kind}{escape(str(cell))}"
            for kind, cell in zip(kinds, cells, strict=True)
        )

    lines = [row(head, "th"), *(row(cells, "td") for cells in rows)]
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


_PAGE = string.Template("""\
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.4 system-ui, sans-serif; overflow-wrap: anywhere; }
body { margin: 0 auto; padding: 1em; max-width: 1440px; }
h1, h2, p, figure { margin: 0; }
h2 { font-size: 1em; }
section p, figcaption { font-size: 0.85em; opacity: 0.75; }
details { margin: 0.5em 0; }
details[open] b { color: #d33; }
img { display: block; width: 100%; }
$style
</style>
<h1>$title</h1>
$body
</html>
""")
