"""A web page in one file: escaped text, tables, and figures held inside it; readable in the light and in the dark."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

_STYLE = """
:root { color-scheme: light dark; --text: #1d1d1f; --soft: #5f6368; --line: #dcdfe4; --back: #ffffff; --shade: #f4f6f8;
  --good: #00694e; --bad: #b3400a; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e6e6; --soft: #a0a6ad; --line: #3a3f45; --back: #16181b; --shade: #1f2226;
  --good: #4cc9a0; --bad: #ff9b6a; } }
body { max-width: 60rem; margin: 2rem auto 4rem; padding: 0 1.2rem; color: var(--text); background: var(--back);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p.lead { font-size: 1.06rem; padding: .9rem 1.1rem; background: var(--shade); border-left: 4px solid var(--bad); border-radius: 4px; }
p.lead.good { border-color: var(--good); }
p.note, figcaption { color: var(--soft); font-size: .88rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; margin: .4rem 0; }
th, td { padding: .28rem .9rem .28rem 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { font-weight: 600; color: var(--soft); }
th:first-child, td:first-child { text-align: left; }
table.words td, table.words th { text-align: left; white-space: normal; overflow-wrap: anywhere; }
table.words td:first-child { white-space: nowrap; }
.bad { color: var(--bad); font-weight: 600; } .good { color: var(--good); }
figure { margin: 1rem 0 1.4rem; }
figure img { width: 100%; height: auto; background: #fff; border-radius: 6px; }
pre { overflow-x: auto; padding: .6rem .8rem; background: var(--shade); border-radius: 4px; font-size: .85rem; }
details summary { cursor: pointer; font-weight: 600; }
"""


class Cell(NamedTuple):
    """Text of a table cell with a style class, "good" or "bad"."""

    text: str
    kind: str


def page(title: str, body: Sequence[str]) -> str:
    """Return a whole page from its title (text) and body (markup)."""
    return (f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, '
            f'initial-scale=1">\n<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n'
            + "\n".join([f"<h1>{escape(title)}</h1>", *body]) + "\n</body>\n</html>\n")


def section(title: str, body: Sequence[str]) -> str:
    """Return a headed section; nothing where the body is empty."""
    return "\n".join([f"<h2>{escape(title)}</h2>", *body]) if body else ""


def heading(text: str) -> str:
    """Return a smaller heading."""
    return f"<h3>{escape(text)}</h3>"


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph of escaped text with an optional style class."""
    return f'<p class="{escape(kind)}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def bullets(items: Sequence[str]) -> str:
    """Return a list."""
    return "<ul>" + "".join(f"<li>{escape(x)}</li>" for x in items) + "</ul>"


def folded(summary: str, body: str) -> str:
    """Return markup that opens when its summary is clicked."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def table(head: Sequence[str], rows: Sequence[Sequence[str | Cell]], kind: str = "") -> str:
    """Return a table of escaped text; numbers stand at the right, the first column at the left."""
    top = "".join(f'<th scope="col">{escape(h)}</th>' for h in head)
    body = "".join("<tr>" + "".join(_cell(x) for x in row) + "</tr>" for row in rows)
    mark = f' class="{escape(kind)}"' if kind else ""
    return f'<div class="scroll"><table{mark}><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def listing(values: Mapping[str, object]) -> str:
    """Return names and values, nested mappings with dotted names."""
    return table(("name", "value"), list(_flat("", values)), "words")


def code(text: str) -> str:
    """Return text as it is typed."""
    return f"<pre>{escape(text)}</pre>"


def picture(png: bytes, caption: str) -> str:
    """Return a figure held inside the page."""
    data = base64.b64encode(png).decode()
    return (f'<figure><img alt="{escape(caption, quote=True)}" src="data:image/png;base64,{data}"><figcaption>{escape(caption)}'
            f"</figcaption></figure>")


def _cell(cell: str | Cell) -> str:
    return f'<td class="{escape(cell.kind)}">{escape(cell.text)}</td>' if isinstance(cell, Cell) else f"<td>{escape(cell)}</td>"


def _flat(prefix: str, values: Mapping[str, object]) -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    for name, value in values.items():
        full = f"{prefix}.{name}" if prefix else str(name)
        if isinstance(value, Mapping):
            out += _flat(full, value)
        else:
            out.append((full, ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)))
    return out
