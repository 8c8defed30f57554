"""The page of one study, and what all pages share: templates, figures as text, plotly's figure."""

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from statistics import fmean, stdev
from typing import Any
from urllib.parse import quote

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from autoaug_ray.maths.statistics import ENOUGH
from autoaug_ray.methods import method_class
from autoaug_ray.report import budgets, cases, claims, compare, cost_sentences, published, sentences
from autoaug_ray.report.cases import Across
from autoaug_ray.report.cost_figure import HEIGHT, WIDTHS, cost_figure, notes
from autoaug_ray.report.figures import MARKERS, styles
from autoaug_ray.report.results import StudyResults
from autoaug_ray.report.runs import Row
from autoaug_ray.report.svg import inline
from autoaug_ray.report.verdict import Verdict, over_cases, verdict
from autoaug_ray.store.places import Place, relative

SYMBOLS = dict(
    zip(
        MARKERS,
        "circle square diamond triangle-down triangle-up cross x pentagon hexagon triangle-left "
        "triangle-right diamond-tall".split(),
        strict=True,
    )
)
"""Matplotlib's markers by plotly's names."""


def render(template: str, pictures: Mapping[str, Figure | None], **values: Any) -> str:
    """The page of a template of this package, with everything from the study escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.globals |= {
        "budgets": budgets, "cases_words": cases, "claims": claims, "compare": compare,
        "costs": cost_sentences,
        "enough": ENOUGH, "inline": inline, "published": published, "sentences": sentences,
    }  # fmt: skip
    drawn = {name: figure for name, figure in pictures.items() if figure is not None}
    return environment.get_template(template).render(pictures=drawn, **values)


def page(results: StudyResults, pictures: Mapping[str, Figure | None], shifted: bool) -> str:
    """The page of one study; `shifted` tells that the images in use are moved."""
    study = results.study
    settings = study.model_dump(mode="json", exclude_defaults=True)
    return render(
        "report.html.j2",
        pictures,
        results=results,
        study=study,
        reference=study.reference,
        uneven=compare.uneven(results),
        ranked=compare.order(results.last_rows),
        lines=sentences.lines(results),
        verdict=verdict(results),
        sheet=results.sheet and base64.b64encode(results.sheet).decode(),
        styles=styles(results.entries),
        plot=accuracy_vs_cost(results),
        library=library(),
        policies=policies(results),
        shifted=shifted,
        searches=_searches(results),
        settings=yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
    )


def _searches(results: StudyResults) -> dict[str, list[dict[str, Any]]]:
    """label -> its search trials. A training that learns a mix is no trial: nothing is chosen."""
    out = {}
    for label, trials in results.searches.items():
        names = results.study.entry(label).ranges
        if last := [rows[-1] for rows in trials if not compare.learns(rows[-1])]:
            chosen = [{n: sentences.brief(_hyperparameters(row)[n]) for n in names} for row in last]
            out[label] = [row | {"choices": one} for row, one in zip(last, chosen, strict=True)]
    return out


@cache
def library() -> str:
    """plotly.js, gzipped and in base64: 1.9 MB of a page instead of 4.8."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def accuracy_vs_cost(results: StudyResults) -> dict[str, Any] | None:
    """The figure of accuracy against cost, as `script.html.j2` draws it with plotly.

    `meta` is the entry of a point, by which the page hides it; `notes` are places of labels, by
    the width of the frame. Names and texts are escaped, because
    plotly reads some HTML in them.
    """
    shown = cost_figure(results.entries)
    if shown is None:
        return None
    style = styles(results.entries)
    line_of = {line.label: line for line in sentences.lines(results)}
    reference = escape(results.study.reference)
    _, time_name = compare.device_unit(results.entries)
    points = []
    for entry, at, half, cost_half, paper in shown.points:
        color, marker, hollow = style[entry.label]
        line, name = line_of[entry.label], escape(entry.label)
        texts = [
            f"<b>{name}</b>", f"accuracy {line.accuracy} %",
            f"points above {reference}: {line.difference}",
            f"relative cost {line.cost}", f"{time_name} {line.time}",
            f"seeds {', '.join(map(str, entry.seeds))}",
        ]  # fmt: skip
        beside = paper and f"<b>{name}</b>, published<br>{paper[1]:.2f} % at {paper[0]:.2f}"
        points.append(
            {
                "meta": entry.label, "name": name, "at": at, "half": half,
                "cost_half": cost_half,
                "color": color, "symbol": SYMBOLS[marker] + "-open" * hollow,
                "seeds": [100 * a for a in entry.test_accuracies], "text": ["<br>".join(texts)],
                "paper": paper and [*paper, beside],
            }
        )  # fmt: skip
    return {
        "data": points, "front": shown.front, "costs": shown.costs,
        "accuracies": shown.accuracies, "reference": reference,
        "notes": notes(shown), "sizes": WIDTHS, "height": HEIGHT,
    }  # fmt: skip


# Several cases


def cases_page(found: Across, pictures: Mapping[str, Figure | None], root: Place) -> str:
    """The page over the cases, which links to the cases' own pages from `root`."""
    about = [_about(case, root) for case in found.cases]
    return render(
        "cases.html.j2",
        pictures,
        found=found,
        answers=over_cases(found.cases),
        provisos=_provisos({case["name"]: case["verdict"] for case in about}),
        reference=found.reference,
        cases=about,
        lines=cases.lines(found),
        styles=styles(found.entries),
    )


def _provisos(verdicts: Mapping[str, Verdict]) -> list[str]:
    """Those of the cases' answers, each once, with the cases that it holds for."""
    names: dict[str, list[str]] = {}
    for name, one in verdicts.items():
        for text in one.provisos:
            names.setdefault(text, []).append(name)
    return [
        text if len(of) == len(verdicts) else f"{', '.join(of)}: {text}"
        for text, of in names.items()
    ]


def _about(case: StudyResults, root: Place) -> dict[str, Any]:
    """What the page tells of a case in one line."""
    last = case.last_rows
    ranked = compare.order(last)
    images = "-"
    if ranked is not None:
        images = f"{ranked.counts[0]:.4g}"
        if not ranked.even():
            images = f"{ranked.counts[-1]:.4g} to {ranked.counts[0]:.4g}"
    reached = [r["imbalance_effective"] for r in last if r.get("imbalance_effective") is not None]
    asked = [r["imbalance_nominal"] for r in last if r.get("imbalance_nominal") is not None]
    link = relative(case.root / "report.html", root)
    return {
        "name": case.name,
        "link": quote(link),
        "dataset": case.study.dataset.name,
        "images": images,
        "asked": f"{asked[0]:g}" if asked else "-",
        "reached": f"{fmean(reached):.2g}" if reached else "-",
        "seeds": len(case.study.seeds),
        "verdict": verdict(case),
    }


# What was learned


def policies(results: StudyResults) -> list[dict[str, Any]]:
    """What each entry with an exported policy ended with, by seed, and the first one's path.

    Figures are the last epoch's: learned spreads (std of a parameter), probabilities of kinds of
    images (means over the classes), and sub-policies with their weights.
    """
    out = []
    for entry in results.entries:
        if entry.policies:
            last = {seed: results.finals[entry.label][seed][-1] for seed in entry.policies}
            of = method_class(entry.method)
            methods = {
                seed: of.model_validate_json(json.dumps(_hyperparameters(row)))
                for seed, row in last.items()
            }
            first = relative(next(iter(entry.policies.values())), results.root)
            found = {
                "label": entry.label, "load": json.dumps(first),
                "figures": _over_seeds([methods[s].found_figures(row) for s, row in last.items()]),
                "sub_policies": {s: _cut(p) for s, m in methods.items() if (p := m.found_lines())},
            }  # fmt: skip
            if found["figures"] or found["sub_policies"]:
                out.append(found)
    return out


def _hyperparameters(row: Row) -> dict[str, Any]:
    method: dict[str, Any] = json.loads(row["settings"])["method"]
    return method


def _over_seeds(found: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """name -> mean ± sd over the seeds, of the figures that every one of them has."""
    names = [n for n in found[0] if all(n in f for f in found)]
    out = {}
    for name in names:
        values = [f[name] for f in found]
        out[name] = f"{fmean(values):.3f}"
        if len(values) > 1:
            out[name] += f" ± {stdev(values):.3f}"
    return out


SHOWN = 25
"""Sub-policies of a seed that stand on the page; policy.yaml has them all."""


def _cut(lines: Sequence[str]) -> list[str]:
    return [*lines[:SHOWN], *[f"and {len(lines) - SHOWN} more"] * (len(lines) > SHOWN)]
