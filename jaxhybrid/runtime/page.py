"""Parts of a web page that needs nothing but its own file. All text is escaped here and nowhere else."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

__all__ = ["animation", "facts", "figure", "figures", "heading", "page", "paragraph", "section", "table", "tiles"]

# The policy lets a browser load nothing: what is missing then is missing everywhere, and not only offline.
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: #222; --soft: #666; --line: #ddd; --back: #fff; --tile: #f5f5f5; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e4e4e4; --soft: #a0a0a0; --line: #3a3a3a; --back: #161616; --tile: #222; }}
}}
body {{ font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.15rem; margin: 2.5rem 0 .75rem; border-bottom: 1px solid var(--line); padding-bottom: .25rem; }}
p {{ margin: .5rem 0; }}
.soft, figcaption, dt, th {{ color: var(--soft); }}
.tiles {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; margin: 1.5rem 0; }}
.tiles div {{ background: var(--tile); border-radius: .5rem; padding: .75rem 1rem; }}
.tiles b {{ display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }}
.tiles span {{ color: var(--soft); font-size: .85rem; }}
.figures {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); gap: 1rem; }}
figure {{ margin: 0; }}
figure img {{ width: 100%; height: auto; display: block; }}
figcaption {{ font-size: .85rem; }}
.animation img {{ width: auto; max-width: 100%; border-radius: .5rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: .25rem 1.5rem .25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }}
th {{ font-weight: 500; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.5rem; font-size: .9rem; margin: .5rem 0; }}
dd {{ margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }}
details {{ margin: .5rem 0; }}
summary {{ cursor: pointer; }}
</style>
</head>
<body>
"""


def page(title: str, parts: Iterable[str]) -> str:
    """Returns the whole page.

    Args:
      title: of the page, as text.
      parts: what the functions below return.
    """
    return "".join([_HEAD.format(title=_text(title)), *parts, "</body>\n</html>\n"])


def heading(title: str, below: str) -> str:
    """Returns the heading of the page with a line below it."""
    return f"<header><h1>{_text(title)}</h1>{paragraph(below, soft=True)}</header>\n"


def section(title: str, parts: Iterable[str], *, folded: bool = False) -> str:
    """Returns a heading with what belongs to it, or one that opens on a click."""
    body = "".join(parts)
    if folded:
        return f"<details><summary>{_text(title)}</summary>\n{body}</details>\n"
    return f"<section><h2>{_text(title)}</h2>\n{body}</section>\n"


def paragraph(text: str, *, soft: bool = False) -> str:
    """Returns a paragraph."""
    return f"<p{' class=soft' if soft else ''}>{_text(text)}</p>\n"


def tiles(values: Sequence[tuple[str, str]]) -> str:
    """Returns ``(label, value)`` pairs as large numbers."""
    cells = "".join(f"<div><b>{_text(value)}</b><span>{_text(label)}</span></div>\n" for label, value in values)
    return f'<div class="tiles">\n{cells}</div>\n'


def facts(values: Sequence[tuple[str, str]]) -> str:
    """Returns ``(name, value)`` pairs as a list."""
    rows = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>\n" for name, value in values)
    return f"<dl>\n{rows}</dl>\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table."""
    head = "".join(f"<th>{_text(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>\n'


def figure(light: bytes, dark: bytes, caption: str) -> str:
    """Returns a picture, as SVG on light and on dark ground, with its caption."""
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{_data("image/svg+xml", dark)}">'
        f'<img alt="{_text(caption)}" src="{_data("image/svg+xml", light)}"></picture>'
        f"<figcaption>{_text(caption)}</figcaption></figure>\n"
    )


def figures(parts: Iterable[str]) -> str:
    """Returns several figures side by side."""
    return f'<div class="figures">\n{"".join(parts)}</div>\n'


def animation(gif: bytes, caption: str) -> str:
    """Returns an animated GIF with its caption."""
    return (
        f'<figure class="animation"><img alt="{_text(caption)}" src="{_data("image/gif", gif)}">'
        f"<figcaption>{_text(caption)}</figcaption></figure>\n"
    )


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _text(text: str) -> str:
    return html.escape(str(text), quote=True)
