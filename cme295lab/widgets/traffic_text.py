"""A traffic scenario in words: the table beside the sliders, and one line for readers who do not see the charts."""

from cme295lab import palette
from cme295lab.units import format_bytes, format_flops, format_seconds
from cme295lab.widgets.traffic_scenario import AttentionCost, TrafficScenario

# The notebook's own text colour everywhere, in the plotly charts too, so that both follow its theme.
STYLE = f"""<style>
.traffic-explorer {{ --traffic-text: var(--jp-content-font-color1, currentColor); max-width: 980px; }}
.traffic-explorer .main-svg text {{ fill: var(--traffic-text) !important; }}
.traffic-explorer .widget-html-content {{ white-space: normal; }}
.traffic-explorer .traffic-summary {{ color: var(--traffic-text); font-size: 13px; line-height: 1.45; }}
.traffic-explorer .traffic-summary {{ display: flex; flex-wrap: wrap; align-items: flex-end; gap: 6px 24px; }}
.traffic-explorer .traffic-summary b.big {{ display: block; font-size: 17px; font-weight: 600; margin-bottom: 4px; }}
.traffic-explorer .traffic-summary table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
.traffic-explorer .traffic-summary td, .traffic-explorer .traffic-summary th {{
  padding: 1px 12px 1px 0; text-align: right; font-weight: 400; background: none; white-space: nowrap; }}
.traffic-explorer .traffic-summary th {{ opacity: 0.75; }}
.traffic-explorer .traffic-summary td:first-child {{ text-align: left; }}
.traffic-explorer .traffic-summary i {{
  display: inline-block; width: 10px; height: 10px; margin-right: 6px; border-radius: 2px; }}
.traffic-explorer .traffic-fit {{ flex: 1 1 330px; padding-left: 8px; border-left: 4px solid {palette.GREEN}; }}
.traffic-explorer .traffic-fit.no {{ border-color: {palette.VERMILLION}; }}
</style>"""


_CAUSAL_BACKWARD = " The backward pass is counted without skipping causal tiles."


def summary_html(scenario: TrafficScenario) -> str:
    """The headline, a line per implementation, and whether the blocks fit, as HTML."""
    rows = _row("standard", palette.VERMILLION, scenario.standard, scenario)
    rows += _row("flash", palette.BLUE, scenario.flash, scenario)
    head = "".join(f"<th>{text}</th>" for text in ("", "HBM", "FLOPs", "FLOP/B", "best time", "limited by"))
    return (
        f'<div class="traffic-summary" role="status"><div><b class="big">{headline(scenario)}</b>'
        f"<table><tr>{head}</tr>{rows}</table></div>"
        f'<div class="traffic-fit{"" if scenario.fits else " no"}">{fit_text(scenario)}</div></div>'
    )


def summary_text(scenario: TrafficScenario) -> str:
    """The same in one line of plain text."""
    fits = "fits" if scenario.fits else "does not fit"
    return (
        f"N={scenario.seq}, d={scenario.head_dim}, {scenario.num_heads} heads, {scenario.dtype}, "
        f"{scenario.device.name}: "
        f"standard {format_bytes(scenario.standard.num_bytes)}, flash {format_bytes(scenario.flash.num_bytes)}, "
        f"BLOCK_M={scenario.block_m}, BLOCK_N={scenario.block_n} {fits}."
    )


def headline(scenario: TrafficScenario) -> str:
    """Which of the two moves fewer bytes, and by how much."""
    ratio = scenario.standard.num_bytes / scenario.flash.num_bytes
    if ratio >= 1:
        return f"Flash moves {ratio:.3g} times fewer bytes"
    return f"Flash moves {1 / ratio:.3g} times more bytes: blocks too small"


def fit_text(scenario: TrafficScenario) -> str:
    """The working set of a program against what an SM offers, formula and numbers."""
    tiles, tile_limit = scenario.working_set.tile_bytes, scenario.tile_limit_bytes
    sums, sum_limit = scenario.working_set.accumulator_bytes, scenario.accumulator_limit_bytes
    verdict = "Fits" if scenario.fits else "Does not fit"
    return (
        f"<b>{verdict}.</b> Tiles (BLOCK_M + 2 BLOCK_N) d × {scenario.element_bytes} B = "
        f"{_of(tiles, tile_limit)} of shared memory; sums 4 B × (BLOCK_M BLOCK_N + BLOCK_M d + 2 BLOCK_M) = "
        f"{_of(sums, sum_limit)} of registers." + (_CAUSAL_BACKWARD if scenario.causal and scenario.backward else "")
    )


def _of(used: float, limit: float) -> str:
    text = f"{format_bytes(used, binary=True)} of {format_bytes(limit, binary=True)}"
    return text if used <= limit else f"<b>{text}</b>"


def _row(name: str, colour: str, cost: AttentionCost, scenario: TrafficScenario) -> str:
    limit = "memory" if cost.intensity < scenario.device.ridge_point(scenario.dtype) else "arithmetic"
    cells = (
        format_bytes(cost.num_bytes),
        format_flops(cost.flops),
        f"{cost.intensity:.3g}",
        format_seconds(cost.seconds),
        limit,
    )
    numbers = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr class="traffic-{name}"><td><i style="background:{colour}"></i>{name}</td>{numbers}</tr>'
