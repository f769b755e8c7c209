"""`python -m k8s.generate` writes dashboards, alerts and the README's tables; with --check it says which are out of date and exits 1."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from k8s.generate import alerts, dashboards, documents
from k8s.generate.boards import BOARDS

HERE = Path(__file__).parents[1]


def contents() -> dict[Path, str]:
    """Every generated file and what belongs into it."""
    readme = (HERE / "README.md").read_text()
    readme = documents.replace(readme, "values", documents.values_table((HERE / "chart" / "values.yaml").read_text()))
    readme = documents.replace(readme, "metrics", documents.metrics_table())
    readme = documents.replace(readme, "runbook", documents.runbook())
    boards = {HERE / "dashboards" / f"{board.name}.json": dashboards.encode(board) for board in BOARDS}
    rules = yaml.safe_dump(alerts.rules(), sort_keys=False, width=1000)
    return boards | {HERE / "chart" / "alerts.yaml": rules, HERE / "README.md": readme}


def main(arguments: list[str]) -> int:
    stale = {path: text for path, text in contents().items() if not path.exists() or path.read_text() != text}
    for path, text in stale.items():
        if "--check" in arguments:
            print(f"{path.relative_to(HERE)} is out of date: make dashboards", file=sys.stderr)
        else:
            path.write_text(text)
            print(path.relative_to(HERE.parent))
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
