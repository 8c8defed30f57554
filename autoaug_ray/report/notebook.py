"""The results of a study in a notebook: its verdict, a table and the figure."""

import base64
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from autoaug_ray.errors import UserError
from autoaug_ray.maths.statistics import Comparison
from autoaug_ray.report import compare, figures
from autoaug_ray.report.results import EntryResult, StudyResults
from autoaug_ray.report.verdict import verdict

if TYPE_CHECKING:
    import pandas as pd


def table(results: StudyResults) -> "pd.DataFrame":
    """One row per entry, by its label: accuracy in per cent, its difference to the reference in
    points with the ends of the 95 % interval, and cost in trainings of the reference."""
    import pandas as pd

    against = compare.against_reference(results.entries)
    rows = [_row(entry, *against.get(entry.label, (None, None))) for entry in results.entries]
    index = pd.Index([entry.label for entry in results.entries], name="method")
    named = {"above": f"above {results.study.reference}"}
    return pd.DataFrame(rows, index, dtype=float).astype({"seeds": int}).rename(columns=named)


def _row(entry: EntryResult, c: Comparison | None, p_value: float | None) -> dict[str, Any]:
    low = high = None
    if c is not None and c.difference is not None and c.half_width is not None:
        low, high = c.difference - c.half_width, c.difference + c.half_width
    shares = {
        "accuracy %": entry.test_accuracy_mean,
        "sd": entry.test_accuracy_sd,
        "above": None if c is None else c.difference,
        "low": low,
        "high": high,
    }
    return {
        "seeds": len(entry.seeds),
        **{name: None if share is None else 100 * share for name, share in shares.items()},
        "p (Holm)": p_value,
        "cost": entry.relative_cost,
        "cost ±": entry.relative_cost_half_width,
    }


def plot(results: StudyResults) -> Figure:
    """The figure of accuracy against cost. Raises UserError where no cost is known yet."""
    figure = figures.accuracy_vs_cost(results.entries)
    if figure is None:
        raise UserError(f"{results.name}: no entry has a cost yet, so there is nothing to plot.")
    # Without pyplot, which nothing here imports, a notebook would show its name alone.
    vars(figure)["_repr_png_"] = partial(figures.png, figure)
    return figure


def page(results: StudyResults) -> str:
    """HTML of what to use and why, the table and the figure, with everything escaped."""
    found = verdict(results)
    lines = [
        f"<p><b>{escape(found.headline)}</b></p>",
        *(f"<p>{escape(n)}</p>" for n in found.notes),
    ]
    if found.load:
        lines.append(f"<pre>{escape(found.load)}</pre>")
    shown = table(results)
    lines.append(shown.to_html(escape=True, na_rep="", float_format=lambda x: f"{x:.2f}"))
    if (figure := figures.accuracy_vs_cost(results.entries)) is not None:
        encoded = base64.b64encode(figures.png(figure)).decode()
        lines.append(
            f'<img src="data:image/png;base64,{encoded}" alt="Test accuracy against cost">'
        )
    return "\n".join(lines)
