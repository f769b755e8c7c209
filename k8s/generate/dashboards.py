"""Grafana's JSON of the boards, by grafana-foundation-sdk. `python -m k8s.generate` writes it."""

from __future__ import annotations

from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import BigValueGraphMode, BigValueTextMode, LineInterpolation, StackingMode
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DashboardLinkType, DataSourceRef, GridPos, VariableRefresh

from k8s.generate.panels import Board, Panel

SOURCE = DataSourceRef("prometheus", "$datasource")
HEIGHTS = {"stat": 4}


def encode(board: Board) -> str:
    """The dashboard's JSON, the same bytes for the same board."""
    built = (
        dashboard.Dashboard(f"videomar / {board.title}")
        .uid(f"videomar-{board.name}")
        .tags(["videomar"])
        .time("now-1h", "now")
        .refresh("15s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(choice("namespace", "label_values(videomar_run_state, namespace)"))
        .with_variable(choice("run", 'label_values(videomar_run_state{namespace=~"$namespace"}, run)'))
        .with_variable(choice("rank", 'label_values(videomar_rank_step_seconds{run=~"$run"}, rank)'))
        .link(
            dashboard.DashboardLink("videomar")
            .tags(["videomar"])
            .type(DashboardLinkType.DASHBOARDS)
            .as_dropdown(True)
            .keep_time(True)
            .include_vars(True)
        )
    )
    for panel in board.panels:
        built = built.with_panel(build(panel))
    return JSONEncoder(sort_keys=True, indent=1).encode(built.build()) + "\n"


def choice(name: str, query: str) -> dashboard.QueryVariable:
    """A variable with the values Prometheus has; all of them at first."""
    variable = dashboard.QueryVariable(name).query(query).datasource(SOURCE).include_all(True).all_value(".*").multi(True)
    return variable.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)


def build(panel: Panel) -> Any:
    """A panel of the SDK."""
    made: Any = stat.Panel() if panel.kind == "stat" else timeseries.Panel()
    made = made.title(panel.title).description(panel.description).unit(panel.unit).datasource(SOURCE)
    made = made.grid_pos(GridPos(h=HEIGHTS.get(panel.kind, 8), w=panel.width, x=0, y=0))
    for letter, (expression, legend) in zip("ABCDEFGH", panel.queries, strict=False):
        made = made.with_target(prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(letter).datasource(SOURCE))
    if panel.kind == "stat":
        reduce = common.ReduceDataOptions().calcs(["lastNotNull"]).values(False)
        return made.graph_mode(BigValueGraphMode.NONE).text_mode(BigValueTextMode.VALUE_AND_NAME).reduce_options(reduce)
    if panel.kind == "steps":
        made = made.line_interpolation(LineInterpolation.STEP_AFTER)
    if panel.kind == "stack":
        made = made.stacking(common.StackingConfig().mode(StackingMode.NORMAL)).fill_opacity(40)
    return made
