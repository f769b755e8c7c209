"""The frame of every page that is written: one self-contained HTML document, light and dark, readable on a phone. Pure text."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

SCRIPT = Path(__file__).with_name("chart.js")
STYLE = """
:root{color-scheme:light dark;--text:#1a202c;--back:#fff;--line:#d5dce5;--muted:#576172;--link:#2b6cb0;--soft:#f0f3f7;--mark:#b83280;
--c0:#2b6cb0;--c1:#c05621;--c2:#2f855a;--c3:#97266d;--c4:#4a5568;--c5:#b7791f;--c6:#285e61;--c7:#702459}
@media(prefers-color-scheme:dark){:root{--text:#e6eaf0;--back:#14181f;--line:#343d4b;--muted:#a3adbb;--link:#90cdf4;--soft:#1f2630;--mark:#f687b3;
--c0:#63b3ed;--c1:#f6ad55;--c2:#68d391;--c3:#f687b3;--c4:#cbd5e0;--c5:#f6e05e;--c6:#4fd1c5;--c7:#d6bcfa}}
body{font:16px/1.5 system-ui,sans-serif;max-width:1080px;margin:0 auto;padding:1rem;color:var(--text);background:var(--back)}
h1{font-size:1.5rem;margin:.5rem 0;overflow-wrap:anywhere}h2{font-size:1.15rem;margin:2rem 0 .5rem}
p{overflow-wrap:anywhere}a{color:var(--link)}.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.25rem .8rem .25rem 0;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
.bars td:last-child{width:20rem}.bar{height:.9em;min-width:2px;margin-top:.3em;background:var(--c3)}
.bars{margin-bottom:1.5rem}.bars td:nth-child(n+2){white-space:nowrap}.bars tr:first-child .bar{background:var(--c2)}
.muted,figcaption{color:var(--muted)}img,video{max-width:100%;height:auto}video{width:min(100%,40rem)}
figure{margin:0 0 1.25rem}svg{display:block;width:100%;min-width:640px;max-width:900px;height:auto;font-size:12px}.wide img{min-width:640px}
.clips{display:grid;grid-template-columns:repeat(auto-fill,minmax(8.5rem,1fr));gap:0 1rem;margin-top:1rem}.clips img{width:100%}
.clips figure{min-width:0}.clips figcaption{font-size:.85rem;overflow-wrap:anywhere}
.chart figcaption{color:inherit}.chart output{display:block;min-height:1.5em;overflow-wrap:anywhere}.legend{margin-left:.5rem}
button{font:inherit;font-size:.85rem;color:inherit;background:none;border:1px solid var(--line);border-radius:1rem}
button{margin:.15rem .2rem;padding:.1rem .6rem}
button[aria-pressed=false]{opacity:.5;text-decoration:line-through}
button i{display:inline-block;width:.8em;height:.8em;border-radius:50%;margin-right:.4em}
:focus-visible{outline:2px solid var(--link);outline-offset:2px}
"""


def document(title: str, body: str) -> str:
    """The whole page around its body."""
    viewport = '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
    head = f"{viewport}<title>{html.escape(title)}</title><style>{STYLE}</style>"
    script = f"<script>{SCRIPT.read_text()}</script>"
    return f'<!doctype html><html lang="en"><head>{head}</head><body><main>{body}</main>{script}</body></html>\n'


def section(title: str, body: str) -> str:
    """A part of the page under its heading; nothing when there is nothing to tell."""
    return f"<section><h2>{html.escape(title)}</h2>{body}</section>" if body else ""


def table(head: Sequence[str], rows: Sequence[Sequence[object]], label: str = "table") -> str:
    """An HTML table of escaped cells, which scrolls on its own (by keyboard too) where it is wider than the page."""
    if not rows:
        return ""
    cells = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    titles = "".join(f"<th>{html.escape(title)}</th>" for title in head)
    shown = f"<thead><tr>{titles}</tr></thead>" if any(head) else ""
    name = html.escape(label, quote=True)
    return f'<div class="wide" tabindex="0" role="region" aria-label="{name}"><table>{shown}<tbody>{cells}</tbody></table></div>'
