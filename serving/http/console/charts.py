"""ECharts options of every chart, from the series of a `Track` and the deciles of a stay.

The colours fit both themes, so there is one set of options; the candidate has the accent, stable is grey. Values are
rounded and in the axis's unit already, so the tooltip shows them without a script.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from serving.http.console.history import Series, Track

__all__ = [
    "Curves",
    "bias_curves",
    "bias_options",
    "calibration_options",
    "calibration_points",
    "curves",
    "line_options",
]

CANDIDATE, STABLE, BOUND = "#3f7ff0", "#8792a2", "#d9534a"
TEXT, GRID = "#8490a0", "rgba(128,140,155,0.18)"

Points = list[list[float | None]]
Curves = dict[str, Points]


def curves(series: Series, stable: str, candidate: str, factor: float = 1.0, digits: int = 4) -> Curves:
    """Both arms' values over time."""
    return {
        "stable": series.column(stable, factor, digits),
        "candidate": series.column(candidate, factor, digits),
    }


def bias_curves(track: Track) -> Curves:
    """The candidate's bias with its interval, stable's, and the bound, in percent over time."""
    series = track.evidence
    return {name: series.column(name, 100.0, 2) for name in series.names}


def line_options(data: Curves | None, unit: str = "") -> dict[str, Any]:
    """Two lines over time."""
    data = data or {"stable": [], "candidate": []}
    return {
        **_frame(unit),
        "series": [_line("stable", data["stable"], STABLE), _line("candidate", data["candidate"], CANDIDATE)],
    }


def bias_options(data: Curves | None) -> dict[str, Any]:
    """The candidate's bias in a band, stable's, and plus and minus the bound as dashed steps."""
    names = ("bias", "bias_low", "bias_high", "stable_bias", "bound")
    data = data or {name: [] for name in names}
    low, high = data["bias_low"], data["bias_high"]
    # A band is an invisible line at its lower edge and its height stacked on that.
    width = [
        [a[0], None if a[1] is None or b[1] is None else round(b[1] - a[1], 2)] for a, b in zip(low, high, strict=True)
    ]
    unseen = {"lineStyle": {"opacity": 0}, "stack": "interval", "stackStrategy": "all", "tooltip": {"show": False}}
    down = [[time, None if value is None else -value] for time, value in data["bound"]]
    options = {
        **_frame("%"),
        "series": [
            {**_line("", low, CANDIDATE), **unseen},
            {**_line("", width, CANDIDATE), **unseen, "areaStyle": {"color": CANDIDATE, "opacity": 0.16}},
            _line("stable", data["stable_bias"], STABLE),
            _line("candidate", data["bias"], CANDIDATE),
            {**_line("bound", data["bound"], BOUND, dashed=True), "step": "end"},
            {**_line("bound", down, BOUND, dashed=True), "step": "end", "tooltip": {"show": False}},
        ],
    }
    reach = _reach(data)
    options["yAxis"] |= {"min": -reach, "max": reach, "interval": reach / 2}
    return options


def _reach(data: Curves) -> float:
    """Half the height of the bias chart: the newest third of the points fits; older, wider intervals may be cut off."""
    names = ("bias", "stable_bias", "bound", "bias_low", "bias_high")
    newest = {name: [abs(v) for _, v in data[name][-1 - len(data[name]) // 3 :] if v is not None] for name in names}
    inside = max((value for name in names[:3] for value in newest[name]), default=5.0)
    edges = max((value for name in names[3:] for value in newest[name]), default=0.0)
    wanted = 1.15 * max(inside, min(edges, 3 * inside))
    return next((nice for nice in (1, 2, 4, 6, 8, 10, 16, 20, 30, 40, 50, 80, 100) if nice >= wanted), round(wanted))


def calibration_points(phase: Mapping[str, Any]) -> Curves:
    """(mean score, click rate) by tenth of the scores, in percent."""
    return {
        arm: [[round(100 * tenth["mean"], 2), round(100 * tenth["rate"], 2)] for tenth in phase[arm]["deciles"]]
        for arm in ("stable", "candidate")
    }


def calibration_options(data: Curves | None) -> dict[str, Any]:
    """Click rate against mean score by tenth; on the dashed line the scores are calibrated."""
    data = data or {"stable": [], "candidate": []}
    most = max(
        (value for points in data.values() for point in points for value in point if value is not None), default=0
    )
    axis = {"type": "value", "min": 0, "max": _round_up(most), "axisLine": {"show": False}, "axisTick": {"show": False}}
    axis |= {
        "axisLabel": {"color": TEXT, "formatter": "{value} %", "hideOverlap": True},
        "nameTextStyle": {"color": TEXT},
    }
    axis |= {"splitLine": {"lineStyle": {"color": GRID}}, "nameGap": 24, "nameLocation": "middle"}
    top = _round_up(most)

    def dots(name: str, color: str) -> dict[str, Any]:
        return {**_line(name, data[name], color), "showSymbol": True, "symbol": "circle", "symbolSize": 6}

    return {
        **_frame("%"),
        "tooltip": {**_TOOLTIP, "trigger": "item", "formatter": "{a}: score and clicks, % {c}"},
        "grid": {"left": 20, "right": 18, "top": 12, "bottom": 22, "containLabel": True},
        "xAxis": {**axis, "name": "mean score"},
        "yAxis": {**axis, "name": "click rate", "nameGap": 44},
        "series": [
            {**_line("", [[0, 0], [top, top]], TEXT, dashed=True), "silent": True},
            dots("stable", STABLE),
            dots("candidate", CANDIDATE),
        ],
    }


def _round_up(percent: float) -> float:
    return next((top for top in (1, 2, 5, 10, 20, 30, 40, 50, 60, 80, 100) if top >= percent), 100)


_TOOLTIP = {
    "backgroundColor": "rgba(24,30,38,0.94)",
    "borderWidth": 0,
    "padding": [6, 10],
    "textStyle": {"color": "#f2f5f9", "fontSize": 12},
    "confine": True,
}


def _frame(unit: str) -> dict[str, Any]:
    label = {"color": TEXT, "fontSize": 11, "hideOverlap": True}
    return {
        "animation": False,
        "useUTC": True,
        "grid": {"left": 4, "right": 14, "top": 10, "bottom": 2, "containLabel": True},
        "tooltip": {**_TOOLTIP, "trigger": "axis"},
        "xAxis": {
            "type": "time",
            "axisLabel": {**label, "rich": {"primary": {"fontWeight": "normal"}}},
            "axisLine": {"lineStyle": {"color": GRID}},
            "axisTick": {"show": False},
            "splitNumber": 4,
        },
        "yAxis": {
            "type": "value",
            "scale": True,
            "axisLabel": {**label, "formatter": f"{{value}} {unit}".strip()},
            "splitLine": {"lineStyle": {"color": GRID}},
            "splitNumber": 4,
        },
    }


def _line(name: str, data: Sequence[Sequence[float | None]], color: str, *, dashed: bool = False) -> dict[str, Any]:
    return {
        "type": "line",
        "name": name,
        "data": [list(point) for point in data],
        "showSymbol": len(data) == 1,
        "color": color,
        "lineStyle": {"width": 1.2 if dashed else 2, "type": "dashed" if dashed else "solid", "color": color},
    }
