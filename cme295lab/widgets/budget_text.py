"""A memory budget in words: the verdict, the largest lines of the ledger, and the cheapest change that makes it fit."""

from html import escape

from cme295lab import palette
from cme295lab.memory import Fix
from cme295lab.units import format_bytes
from cme295lab.widgets.budget import Budget
from cme295lab.widgets.memory_colours import COLOURS

_MOST_ROWS = 5

STYLE = f"""<style>
.budget-explorer {{ max-width: 940px; }}
.budget-explorer .main-svg text {{ fill: var(--jp-content-font-color1, currentColor) !important; }}
.budget-explorer .widget-html-content {{ white-space: normal; }}
.budget-view {{ color: var(--jp-content-font-color1, currentColor); font-size: 13px; line-height: 1.45; }}
.budget-view .budget-verdict {{ font-size: 17px; font-weight: 600; padding-left: 8px;
  border-left: 5px solid {palette.GREEN}; }}
.budget-view .budget-verdict.no {{ border-color: {palette.VERMILLION}; }}
.budget-impossible {{ padding-left: 8px; border-left: 5px solid {palette.VERMILLION}; }}
.budget-tables {{ display: flex; flex-wrap: wrap; gap: 4px 36px; margin-top: 6px; }}
.budget-tables table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
.budget-tables td, .budget-tables th {{ padding: 1px 12px 1px 0; text-align: left; background: none; }}
.budget-tables td:last-child {{ text-align: right; }}
.budget-tables th {{ font-weight: 400; opacity: 0.75; }}
.budget-tables i {{ display: inline-block; width: 10px; height: 10px; margin-right: 6px; border-radius: 2px; }}
.budget-change {{ margin-top: 6px; }}
</style>"""


def summary(budget: Budget) -> str:
    """The budget in one line of text."""
    parts = ", ".join(f"{kind} {format_bytes(size)}" for kind, size in budget.ledger.by_class().items() if size)
    return f"{budget.ledger.title}: {budget.verdict}; {parts}"


def view_html(budget: Budget, fix: Fix) -> str:
    """The verdict, bytes by class, the largest lines, and the change that helps.

    Args:
        budget: the setting and the GPU.
        fix: what `cheapest_fix` says of them.
    """
    verdict = budget.verdict
    mark = "" if verdict else " no"
    ledger = budget.ledger
    classes = "".join(
        f'<tr><td><i style="background:{COLOURS[kind]}"></i>{kind}</td><td>{format_bytes(size)}</td></tr>'
        for kind, size in ledger.by_class().items()
    )
    largest = sorted(ledger.rows, key=lambda row: -row.num_bytes)[:_MOST_ROWS]
    lines = "".join(
        f"<tr><td>{escape(row.name)}</td><td>{escape(row.formula)}</td><td>{format_bytes(row.num_bytes)}</td></tr>"
        for row in largest
    )
    return (
        f'<div class="budget-view" role="status"><div class="budget-verdict{mark}">{_capital(str(verdict))}</div>'
        f"{_change(fix)}"
        f'<div class="budget-tables"><table><tr><th>class</th><th>at the peak ({escape(ledger.moment)})</th></tr>'
        f"{classes}</table><table><tr><th>largest lines</th><th>formula</th><th></th></tr>{lines}</table></div></div>"
    )


def _change(fix: Fix) -> str:
    if not fix.changes:
        return ""
    if not fix:
        return f'<div class="budget-change">{escape(_capital(str(fix)))}</div>'
    steps = "; ".join(f"<b>{escape(change.name)}</b> (costs {escape(change.cost)})" for change in fix.changes)
    then = escape(str(fix.verdict))
    return f'<div class="budget-change">Cheapest change that makes it fit: {steps}. Then it {then}.</div>'


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
