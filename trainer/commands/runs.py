"""`runs`: the runs under a folder, one line each."""

from __future__ import annotations

import json
import time
from pathlib import Path

from data_pipeline.errors import UserError
from trainer.commands.options import Options
from trainer.commands.status import clock
from trainer.status import overview, runs_under

EXAMPLE = "  python trainer/main.py runs\n  python trainer/main.py runs run.root=/data/runs"


def command(arguments: list[str], environment: dict[str, str]) -> int:
    """Print the list."""
    options = Options("runs", "The runs under run.root: state, stage, step, held-out loss.", EXAMPLE)
    options.add_argument("--run.root", dest="root", type=Path, default=Path("runs"), metavar="FOLDER", help="where the runs are (runs)")
    options.add_argument("--json", action="store_true", help="one JSON object per run instead of the table")
    given = options.read(arguments)
    found, now = runs_under(given.root), time.time()
    if not found:
        raise UserError(f"run.root={given.root}: there is no run in this folder")
    rows = [overview(run, now) for run in found]
    if given.json:
        print("\n".join(map(json.dumps, rows)))
        return 0
    table = [("run", "state", "stage", "step", "held-out loss", "last heard of")]
    for row in rows:
        loss = "-" if row["held_out_loss"] is None else f"{row['held_out_loss']:.4f}"
        ago = f"{clock(now - row['last_word'])} ago" if row["last_word"] else "-"
        table.append((row["run"], row["state"], row["stage"] or "-", str(row["step"]), loss, ago))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print("\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table))
    return 0
