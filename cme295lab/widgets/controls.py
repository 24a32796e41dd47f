"""Sliders, menus, plots and the style sheet, as every explorer has them.

A control refuses a value that it cannot show, with the argument's name, and carries the CSS class
`<prefix>-<name>` by which style sheets and browser tests find it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ipywidgets
import plotly.graph_objects as go

_SCALES = ((1.0, ""), (1e3, "k"), (1e6, "M"), (1e9, "B"), (1e12, "T"))
CLEAR, GRID = "rgba(0,0,0,0)", "rgba(127,134,141,0.3)"


def choice_slider(
    prefix: str,
    name: str,
    options: Sequence[tuple[str, Any]],
    value: Any,
    *,
    label: str,
    width: str = "300px",
    label_width: str = "86px",
) -> Any:
    """A slider over choices: (text, value) each.

    Raises:
        ValueError: if the value is none of the choices.
    """
    choices = [choice for _, choice in options]
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")
    slider: Any = ipywidgets.SelectionSlider(
        options=options, value=value, description=label, style={"description_width": label_width}
    )
    slider.layout.width = width
    slider.add_class(f"{prefix}-{name}")
    return slider


def choice_menu(
    prefix: str,
    name: str,
    options: Iterable[str],
    value: str,
    *,
    label: str,
    width: str = "230px",
    label_width: str = "86px",
) -> Any:
    """A drop-down menu of names.

    Raises:
        ValueError: if the value is none of the names.
    """
    names = list(options)
    if value not in names:
        raise ValueError(f"{name} must be one of {', '.join(names)}, got {value!r}")
    menu: Any = ipywidgets.Dropdown(
        options=names, value=value, description=label, style={"description_width": label_width}
    )
    menu.layout.width = width
    menu.add_class(f"{prefix}-{name}")
    return menu


def nearest_choice(options: Sequence[tuple[str, float]], value: float) -> float:
    """The choice closest to a value, by ratio: for sliders over magnitudes."""
    return min((choice for _, choice in options), key=lambda choice: max(choice / value, value / choice))


def magnitudes(low: float, high: float) -> list[tuple[str, float]]:
    """1, 1.5, 2, 3, 5, 7 and their decades, with k, M, B and T, for a slider."""
    values = [scale * decade * step for scale, _ in _SCALES for decade in (1, 10, 100) for step in (1, 1.5, 2, 3, 5, 7)]
    return [(short(value), value) for value in values if low <= value <= high]


def short(value: float) -> str:
    """A count of parameters, tokens or dollars with k, M, B or T, to three digits."""
    scale, letter = [pair for pair in _SCALES if value >= 0.9995 * pair[0] or pair[0] == 1][-1]
    return f"{value / scale:.3g} {letter}".strip()


def arrange(controls: Mapping[str, Any], *columns: Iterable[str]) -> Any:
    """The controls in columns, by name, which wrap where the page is narrow."""
    row = ipywidgets.Layout(display="flex", flex_flow="row wrap")
    return ipywidgets.Box([ipywidgets.VBox([controls[name] for name in column]) for column in columns], layout=row)


def watch(controls: Mapping[str, Any], redraw: Callable[[Any], None]) -> None:
    """Redraw whenever a control's value changes."""
    for control in controls.values():
        control.observe(redraw, "value")


def explorer_style(prefix: str, more: str = "") -> Any:
    """The style sheet of an explorer whose class is `<prefix>-explorer`: colours follow the page, light or dark.

    Args:
        prefix: of its CSS classes; its text stands in an element of class `<prefix>-summary`.
        more: rules of its own.
    """
    colour = "var(--jp-content-font-color1, currentColor)"
    return ipywidgets.HTML(f"""<style>
.{prefix}-explorer {{ max-width: 960px; }}
.{prefix}-explorer .main-svg text {{ fill: {colour} !important; }}
.{prefix}-explorer .widget-html-content {{ white-space: normal; }}
.{prefix}-summary {{ color: {colour}; font-size: 13px; line-height: 1.45; }}
.{prefix}-summary b {{ font-size: 15px; }}
.{prefix}-summary table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; margin-top: 4px; }}
.{prefix}-summary td, .{prefix}-summary th {{ padding: 1px 16px 1px 0; text-align: right; background: none; }}
.{prefix}-summary th {{ font-weight: 400; opacity: 0.75; }}
.{prefix}-summary td:first-child {{ text-align: left; }}
{more}</style>""")


def summary_table(prefix: str, headline: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A sentence and a table below it, as HTML that a screen reader announces when it changes."""
    heads = "".join(f"<th>{text}</th>" for text in head)
    body = "".join("<tr>" + "".join(f"<td>{text}</td>" for text in row) + "</tr>" for row in rows)
    table = f"<table><tr>{heads}</tr>{body}</table>" if head else ""
    return f'<div class="{prefix}-summary" role="status"><b>{headline}</b>{table}</div>'


def live_plot(plot: Any, *, width: int, height: int, **layout: Any) -> Any:
    """A plotly figure as a widget without tool bar, on the page's own background.

    Args:
        plot: the figure, with all its traces; the explorer fills them in place.
        width, height: in pixels; left to plotly they would change with the window.
        **layout: more of plotly's layout.
    """
    plot.update_layout(
        width=width, height=height, paper_bgcolor=CLEAR, plot_bgcolor=CLEAR, uirevision="same",
        font={"size": 12, "family": "system-ui, sans-serif"},
        **({"margin": {"l": 55, "r": 10, "t": 30, "b": 40}} | layout),
    )  # fmt: skip
    plot.update_xaxes(gridcolor=GRID, zeroline=False)
    plot.update_yaxes(gridcolor=GRID, zeroline=False)
    widget = go.FigureWidget(plot)
    widget._config = {"displayModeBar": False}
    return widget
