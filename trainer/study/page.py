"""study.html and the table on the terminal: what every run of a study has reached, and the laws. Pure text from study.json's record."""

from __future__ import annotations

import html
import math
from typing import Any

from trainer.inspection.chart import Line, chart
from trainer.inspection.page import document, section, table
from trainer.study.law import FEWEST, Law

Record = dict[str, Any]
HEAD = ("run", "parameters", "steps", "FLOPs", "held-out loss", "")
LAW_POINTS = 60  # of its line
NOTE = (
    "Compute is counted from a run's beginning, in FLOPs that the objective needs. Losses are of held-out clips in the last stage; they "
    "compare where runs share data, head and last stage. A law is fitted to the best that its runs have reached at any compute."
)


def page(study: Record) -> str:
    """The whole page, self-contained."""
    charts = "".join(family_chart(study, law) for law in study["laws"])
    laws = "".join(f"<p>{html.escape(law_line(law))}</p>" for law in study["laws"])
    parts = [
        f"<h1>{html.escape(study['study'])}</h1>",
        f"<p>{html.escape(axes_line(study))}</p>",
        section("Held-out loss over compute", f"{laws}{charts}<p class='muted'>{html.escape(NOTE)}</p>"),
        section("Runs", table(HEAD, rows(study), "runs")),
    ]
    return document(study["study"], "".join(parts))


def rows(study: Record) -> list[list[str]]:
    """A line per run; figures of finished ones only."""
    found = []
    for run in study["runs"]:
        figures = ["", "", ""]
        if run["state"] == "finished":
            loss = run["held_out_loss"]
            figures = [str(run["steps"]), f"{run['flops']:.3e}", "none" if loss is None else f"{loss:.4f}"]
        found.append([run["run"], f"{run['parameters']:,}", *figures, run["state"]])
    return found


def axes_line(study: Record) -> str:
    return f"Recipe {study['recipe']}; " + "; ".join(f"{key}: {', '.join(values)}" for key, values in study["axes"].items()) + "."


def law_line(law: Record) -> str:
    """A family's law with its residual, or why it has none."""
    about = f"{law['family']}: " if law["family"] else ""
    if law["law"] is None:
        return f"{about}no law, it takes {FEWEST} evaluations that are each the best so far, and there are {law['points']}"
    return f"{about}{Law(**law['law'])}, fitted to {law['points']} points with a residual of {law['law']['residual']:.2%}"


def family_chart(study: Record, law: Record) -> str:
    """The curves of the runs that share a law, and the law; nothing where no run has a curve."""
    curves = {run["run"]: run["curve"] for run in study["runs"] if run["family"] == law["family"] and run["state"] == "finished"}
    reached = [compute for curve in curves.values() for compute, _ in curve]
    if not reached:
        return ""
    power = math.floor(math.log10(max(reached))) - 2  # three digits before the point, which is what a chart's readout shows
    lines = [Line(name, [(compute / 10**power, loss) for compute, loss in curve]) for name, curve in curves.items()]
    if law["law"]:
        low, high = min(reached), max(reached)
        places = [low + (high - low) * place / (LAW_POINTS - 1) for place in range(LAW_POINTS)]
        lines.append(Line("law", [(compute / 10**power, Law(**law["law"]).at(compute)) for compute in places]))
    return chart(f"{law['family'] or 'all runs'}, over compute in 10^{power} FLOPs", lines)


def text(study: Record) -> str:
    """The table and the laws, for a terminal."""
    lines = [HEAD, *rows(study)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*shown, *map(law_line, study["laws"])])
