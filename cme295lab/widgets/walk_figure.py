"""One step of a tile walk as a static picture: the same matrix, strips, rows and bytes as in the widget."""

from collections.abc import Sequence
from typing import Any

from matplotlib.patches import Patch, Rectangle

from cme295lab import palette
from cme295lab.units import format_bytes
from cme295lab.widgets.picture import Picture
from cme295lab.widgets.walk_records import ProgramWalk, RowRange, WalkStep

_STRIP = 0.06  # of the matrix' edge
_GAP = 0.025
_STYLES: dict[str, dict[str, Any]] = {
    "current": {"facecolor": palette.ORANGE, "edgecolor": "black", "linewidth": 1.6, "zorder": 3},
    "visited": {"facecolor": palette.SKY, "edgecolor": palette.BLUE},
    "earlier": {"facecolor": "#C9E5F7", "edgecolor": palette.GREY},
    "waiting": {"facecolor": "white", "edgecolor": palette.GREY},
    "skipped": {"facecolor": "white", "edgecolor": palette.GREY, "hatch": "////"},
    "empty": {"facecolor": "#EEF0F2", "edgecolor": palette.GREY},
    "held": {"facecolor": palette.SKY, "edgecolor": palette.BLUE},
    "stored": {"facecolor": palette.GREEN, "edgecolor": "white"},
}
_LEGEND = {
    "current": "tile at hand", "visited": "visited by this program", "earlier": "by earlier programs",
    "waiting": "to come", "skipped": "skipped (causal)", "stored": "stored to HBM",
}  # fmt: skip


def draw_walk(
    records: Sequence[ProgramWalk], number: int, step_index: int, *, caption: str, numbers: Sequence[Sequence[str]]
) -> Picture:
    """Draw one step of one program.

    Args:
        records: all programs of the launch.
        number: which of them.
        step_index: which of its steps.
        caption: what the step does, in words.
        numbers: a line of text per sampled row: query, m, l and rescaling factor.

    Returns:
        The picture, with its text alternative.
    """
    record, step = records[number], records[number].steps[step_index]
    title = f"Program {number + 1} of {len(records)}, step {step_index + 1} of {len(record.steps)}"
    figure = Picture(_alt_text(title, caption, record, step, numbers), figsize=(9.2, 4.5))
    matrix, text = figure.subplots(1, 2, width_ratios=(1, 1.05))
    _draw_matrix(matrix, records, number, step)
    _draw_text(text, title, caption, record, step, numbers)
    return figure


def tile_state(records: Sequence[ProgramWalk], number: int, step: WalkStep, owner: int | None, keys: RowRange) -> str:
    """State of one tile of the score matrix at a step of program `number`; `owner` is the program of the tile's row."""
    if owner is None or keys not in records[owner].visited:
        return "skipped"
    if owner != number:
        return "earlier" if owner < number else "waiting"
    if step.key_rows == keys:
        return "current"
    if step.key_rows is None:
        return "visited" if step.stored else "waiting"
    visited = records[number].visited
    return "visited" if visited.index(keys) < visited.index(step.key_rows) else "waiting"


def _draw_matrix(axes: Any, records: Sequence[ProgramWalk], number: int, step: WalkStep) -> None:
    plane = records[number].program[1:]
    owners = {walk.query_rows: index for index, walk in enumerate(records) if walk.program[1:] == plane}
    key_blocks = sorted({keys for walk in records for keys in walk.visited})
    num_queries, num_keys = max(rows[1] for rows in owners), max(keys[1] for keys in key_blocks)

    def box(rows: RowRange | None, keys: RowRange | None, x: float, y: float, style: str) -> None:
        left, right = (keys[0] / num_keys, keys[1] / num_keys) if keys else (x, x + _STRIP)
        top, bottom = (rows[0] / num_queries, rows[1] / num_queries) if rows else (y, y + _STRIP)
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, **_STYLES[style]))

    states = set()
    for rows, owner in owners.items():
        for keys in key_blocks:
            state = tile_state(records, number, step, owner, keys)
            states.add(state)
            box(rows, keys, 0, 0, state)
        mine = owner == number
        box(rows, None, -_STRIP - _GAP, 0, "held" if mine and "q" in step.held else "empty")
        stored = owner < number or (mine and "o" in step.stored)
        states |= {"stored"} if stored else set()
        box(rows, None, 1 + _GAP, 0, "stored" if stored else "empty")
    for keys in key_blocks:
        for name, y in (("k", -2 * (_STRIP + _GAP)), ("v", -_STRIP - _GAP)):
            box(None, keys, 0, y, "held" if keys == step.key_rows and name in step.held else "empty")
    _label_matrix(axes, f"keys 0 to {num_keys - 1}", f"queries 0 to {num_queries - 1}")
    handles = [Patch(label=label, **_STYLES[state]) for state, label in _LEGEND.items() if state in states]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3, fontsize=8, frameon=False)


def _label_matrix(axes: Any, keys: str, queries: str) -> None:
    for name, x, y in (("K", -0.05, -2 * _GAP - 1.5 * _STRIP), ("V", -0.05, -_GAP - _STRIP / 2),
                       ("Q", -_GAP - _STRIP / 2, 1.06), ("O", 1 + _GAP + _STRIP / 2, 1.06)):  # fmt: skip
        axes.text(x, y, name, ha="center", va="center", fontweight="bold")
    style = {"ha": "center", "va": "center", "color": "#444444", "fontsize": 9}
    axes.text(0.5, -0.24, keys, **style)
    axes.text(-0.16, 0.5, queries, rotation=90, **style)
    axes.set(xlim=(-0.22, 1.12), ylim=(1.1, -0.28), aspect="equal")
    axes.axis("off")


def _draw_text(
    axes: Any, title: str, caption: str, record: ProgramWalk, step: WalkStep, numbers: Sequence[Sequence[str]]
) -> None:
    axes.axis("off")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.text(0, 0.97, title, fontsize=10, color="#444444")
    axes.text(0, 0.88, caption, fontsize=12, fontweight="bold")
    code = step.source.split("  #")[0]
    source = code if len(code) <= 64 else code[:61] + "..."
    axes.text(0, 0.79, f"line {step.line}   {source}", fontsize=7.5, family="monospace",
              bbox={"facecolor": "#F2F3F5", "edgecolor": "none", "pad": 4})  # fmt: skip
    table = axes.table(
        cellText=[list(line) for line in numbers], colLabels=["query", "max m", "sum l", "rescale α"],
        cellLoc="right", edges="horizontal", bbox=(0, 0.34, 0.94, 0.38),
    )  # fmt: skip
    table.auto_set_font_size(False)
    table.set_fontsize(10)
    for cell in table.get_celld().values():
        cell.set_edgecolor(palette.PALE)
    read, written = record.read_bytes_before + step.read_bytes, record.written_bytes_before + step.written_bytes
    lines = (
        (palette.SKY, "HBM read", f"{format_bytes(step.read_bytes)}, all programs so far {format_bytes(read)}"),
        (
            palette.GREEN,
            "HBM written",
            f"{format_bytes(step.written_bytes)}, all programs so far {format_bytes(written)}",
        ),
        (
            palette.BLUE,
            "tiles in SRAM",
            f"{', '.join(step.held).upper()}: {format_bytes(step.held_bytes, binary=True)}",
        ),
    )
    for row, (colour, label, value) in enumerate(lines):
        y = 0.21 - 0.09 * row
        axes.add_patch(Rectangle((0, y - 0.012), 0.022, 0.04, color=colour))
        axes.text(0.045, y, label, fontsize=10)
        axes.text(0.31, y, value, fontsize=10)


def _alt_text(title: str, caption: str, record: ProgramWalk, step: WalkStep, numbers: Sequence[Sequence[str]]) -> str:
    rows = "; ".join(f"query {row}: m {m}, l {l_sum}, α {alpha}" for row, m, l_sum, alpha in numbers)
    first, last = record.query_rows
    at = f", at the tile of keys {step.key_rows[0]} to {step.key_rows[1] - 1}" if step.key_rows else ""
    return (
        f"Tile walk of flash attention. {title}, queries {first} to {last - 1}{at}. {caption}. "
        f"Running softmax: {rows}. Read {format_bytes(step.read_bytes)}, written {format_bytes(step.written_bytes)}."
    )
