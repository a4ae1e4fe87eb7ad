"""Grafana's JSON of a dashboard, by Grafana's own library."""

import json
from typing import TypeAlias

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    prometheus,
    stat,
    statetimeline,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as styles
from grafana_foundation_sdk.models import dashboard as schema

from ci.dashboards.board import Board, Kind, Panel, Query

_SOURCE = schema.DataSourceRef(type_val="prometheus", uid="${datasource}")
_HEIGHT = {Kind.NUMBER: 4, Kind.BARS: 8, Kind.LINES: 8, Kind.AREAS: 8, Kind.STATES: 8}
_FILL = 20

_Drawn: TypeAlias = timeseries.Panel | stat.Panel | bargauge.Panel | statetimeline.Panel


def rendered(board: Board) -> str:
    """The JSON that Grafana imports, with a line break at its end."""
    made = (
        dashboard.Dashboard(board.title)
        .uid(f"llamaorch-{board.name}")
        .description(board.about)
        .tags(["llama-orch"])
        .readonly()
        .refresh("10s")
        .time("now-1h", "now")
        .tooltip(schema.DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").type("prometheus"))
        .link(_others())
    )
    if board.pools:
        made.with_variable(_pools())
    for row in board.rows:
        made.with_row(dashboard.Row(row.title))
        for panel in row.panels:
            made.with_panel(_panel(panel))
    return json.dumps(made.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _others() -> dashboard.DashboardLink:
    link = dashboard.DashboardLink("llama-orch").type(schema.DashboardLinkType.DASHBOARDS)
    return link.tags(["llama-orch"]).as_dropdown(True).include_vars(True).keep_time(True)


def _pools() -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable("pool")
        .label("Pool")
        .datasource(_SOURCE)
        .query("label_values(pool_state, pool_id)")
        .refresh(schema.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def _panel(panel: Panel) -> _Drawn:
    drawn = _drawn(panel.kind)
    drawn.title(panel.title).description(panel.about).datasource(_SOURCE)
    drawn.unit(panel.unit).span(panel.width).height(_HEIGHT[panel.kind])
    if panel.lowest is not None:
        drawn.min(panel.lowest)
    if panel.highest is not None:
        drawn.max(panel.highest)
    drawn.thresholds(_thresholds(panel))
    for place, query in enumerate(panel.queries):
        drawn.with_target(_target(query, chr(ord("A") + place), panel.kind))
    return drawn


def _drawn(kind: Kind) -> _Drawn:
    match kind:
        case Kind.NUMBER:
            return stat.Panel().color_mode(styles.BigValueColorMode.VALUE)
        case Kind.BARS:
            return bargauge.Panel().display_mode(styles.BarGaugeDisplayMode.BASIC)
        case Kind.STATES:
            return statetimeline.Panel().show_value(styles.VisibilityMode.NEVER)
        case Kind.LINES:
            return timeseries.Panel()
        case Kind.AREAS:
            stacked = common.StackingConfig().mode(styles.StackingMode.NORMAL)
            return timeseries.Panel().stacking(stacked).fill_opacity(_FILL)


def _thresholds(panel: Panel) -> dashboard.ThresholdsConfig:
    steps = [schema.Threshold(None, "green" if panel.warn or panel.bad else "text")]
    if panel.warn is not None:
        steps.append(schema.Threshold(panel.warn, "yellow"))
    if panel.bad is not None:
        steps.append(schema.Threshold(panel.bad, "red"))
    return dashboard.ThresholdsConfig().mode(schema.ThresholdsMode.ABSOLUTE).steps(steps)


def _target(query: Query, ref_id: str, kind: Kind) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(query.expr).ref_id(ref_id).datasource(_SOURCE)
    if query.legend:
        target.legend_format(query.legend)
    return target.instant() if kind in (Kind.NUMBER, Kind.BARS) else target.range()
