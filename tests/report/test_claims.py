"""A paper's claims as verdicts: each kind against scipy and numpy, and counts of cases."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand import Hand, MixHand
from scipy import stats

from autoaug_ray import config
from autoaug_ray.errors import UserError
from autoaug_ray.report import claims
from autoaug_ray.report.claims import Judged
from autoaug_ray.report.results import StudyResults
from autoaug_ray.report.write import write
from autoaug_ray.settings.published import Claim

SIMPLE: dict[str, Any] = {"says": "it is so", "label": "bilevel", "over": ["none"]}


def study(root: Path, *told: dict[str, Any], **accuracies: tuple[float, ...]) -> StudyResults:
    published = {"source": "A paper", "claims": list(told)} if told else None
    hand = Hand(root, published=published, case=root.name, seeds=4)
    for label, values in accuracies.items():
        choices = {"magnitude": 5} if label == "randaugment" else None
        seconds = (40.0,) if label == "bilevel" else (10.0,)
        hand.finals(label, *values, seconds=seconds, choices=choices)
    return hand.results()


def word(claim: dict[str, Any], *cases: StudyResults) -> str:
    (judged,) = claims.judge(Claim.model_validate_json(json.dumps(claim)), cases)
    return judged.word


NONE = (0.60, 0.61, 0.62, 0.63)
ABOVE = (0.70, 0.72, 0.71, 0.72)
ALIKE = (0.65, 0.57, 0.66, 0.60)


def test_best_is_above_each_of_the_others(tmp_path: Path) -> None:
    best = SIMPLE | {"kind": "best", "over": ["none", "randaugment"]}
    for values, other, wanted in (
        (ABOVE, ALIKE, "held"), (NONE, ABOVE, "not held"), (ALIKE, NONE, "not distinguishable"),
        (ABOVE[:2], ALIKE, "cannot be told"), ((), ALIKE, "cannot be told"),
    ):  # fmt: skip
        root = tmp_path / f"{wanted} {len(values)}"
        case = study(root, none=NONE, bilevel=values, randaugment=other)
        assert word(best, case) == wanted
    p = [stats.ttest_rel(ABOVE, x).pvalue for x in (NONE, ALIKE)]
    assert max(p) * 1 < 0.05 and min(p) * 2 < 0.05, "what Holm's correction asks of two"


@pytest.mark.parametrize(
    "points, wanted",
    [([0, 20], "held"), ([9.0, 9.6], "not distinguishable"), ([15, 20], "not held"),
     ([0, 5], "not held")],
)  # fmt: skip
def test_a_gain_lies_in_the_papers_range(points: list[float], wanted: str, tmp_path: Path) -> None:
    case = study(tmp_path / "x", none=NONE, bilevel=ABOVE)
    interval = stats.ttest_rel(ABOVE, NONE).confidence_interval()
    assert 5 < 100 * interval.low < 9.0 < 9.6 < 100 * interval.high < 15
    assert word(SIMPLE | {"kind": "gain", "points": points}, case) == wanted


def test_cheaper_goes_by_paired_costs(tmp_path: Path) -> None:
    case = study(tmp_path / "x", none=NONE, bilevel=ABOVE, randaugment=NONE)
    dear = SIMPLE | {"kind": "cheaper"}
    assert word(dear, case) == "not held"
    assert word(dear | {"label": "none", "over": ["bilevel"]}, case) == "held"
    assert word(dear | {"label": "none", "over": ["randaugment"]}, case) == "not distinguishable"


def mixes(root: Path, case: str, shots: int, share: float, **more: Any) -> StudyResults:
    dataset = {"name": "fashion-mnist-mini", "shots": shots}
    hand = MixHand(root / case, case=case, dataset=dataset, seeds=4)
    hand.fill({"autogenda": 0.05}, share=share, **more)
    return hand.results()


TAIL = {"says": "the tail gains most", "kind": "tail", "label": "autogenda", "over": ["none"]}


def test_the_tail_gains_most(tmp_path: Path) -> None:
    """`fill` puts all of the gain into rare classes: 2 x 0.05 x rank."""
    case = mixes(tmp_path, "a", 2, 0.1)
    assert word(TAIL, case) == "held"
    assert word(TAIL | {"label": "search-free"}, case) == "not distinguishable"
    assert word(TAIL | {"label": "none", "over": ["autogenda"]}, case) == "not held"
    assert word(TAIL, mixes(tmp_path, "b", 2, 0.1, even=True)) == "cannot be told"
    last = {label: by_seed for label, by_seed in case.finals.items()}
    differences = []
    for seed in last["none"]:
        rows = [last[label][seed][-1] for label in ("autogenda", "none")]
        order = np.argsort(-np.array(rows[0]["class_counts"]), kind="stable")
        gain = np.subtract(*(np.array(row["class_accuracy"]) for row in rows))[order]
        differences.append(gain[-3:].mean() - gain[:3].mean())
    (judged,) = claims.judge(Claim.model_validate_json(json.dumps(TAIL)), [case])
    assert f"{100 * np.mean(differences):+.2f}" in judged.why


def test_a_share_rises_over_the_cases(tmp_path: Path) -> None:
    rises = {"says": "s", "kind": "rises", "label": "autogenda", "share": "identity"}
    cases = [mixes(tmp_path, f"shots={n}", n, 0.1) for n in (2, 4, 8)]
    tilted = []
    for i, case in enumerate(cases):  # by hand: every seed's share of real images grows by 0.1
        finals = {
            label: {s: [{**r, "alpha": _tilted(r, i)} for r in rows] for s, rows in seeds.items()}
            for label, seeds in case.finals.items()
        }
        tilted.append(replace(case, finals=finals))
    assert word(rises, *tilted) == "held"
    assert word(rises | {"share": "local"}, *tilted) == "not held"
    assert word(rises, *cases) == "not distinguishable"
    assert word(rises, cases[0]) == "cannot be told"


def _tilted(row: Any, i: int) -> Any:
    if not row.get("alpha"):
        return row.get("alpha")
    return (np.array(row["alpha"]) + 0.1 * i * np.array([1, -0.5, -0.5])).tolist()


@pytest.mark.parametrize(
    "counts, at_least, wanted",
    [((3, 0, 0, 0), None, "held"), ((2, 1, 0, 0), None, "not held"),
     ((2, 0, 1, 0), None, "not distinguishable"), ((2, 1, 0, 0), 2, "held"),
     ((1, 2, 0, 0), 2, "not held"), ((1, 1, 1, 0), 2, "not distinguishable"),
     ((2, 0, 0, 1), 3, "cannot be told"), ((2, 0, 0, 1), 2, "held"), ((2, 0, 0, 0), 13,
     "cannot be told")],
)  # fmt: skip
def test_what_a_count_of_cases_says(counts: Any, at_least: int | None, wanted: str) -> None:
    claim = Claim(says="s", kind="best", label="a", over=("b",), at_least=at_least)
    judged = [
        Judged("x", w, "") for w, n in zip(claims.WORDS, counts, strict=True) for _ in range(n)
    ]
    assert claims.overall(claim, judged) == wanted


def test_the_report_says_it(tmp_path: Path) -> None:
    told = [SIMPLE | {"kind": "best"}, SIMPLE | {"kind": "gain", "points": [1, 2], "cases": "no"}]
    values = {"none": NONE, "bilevel": ABOVE}
    cases = [study(tmp_path / name, *told, **values) for name in ("one", "two")]
    (line,) = claims.verdicts(cases)
    assert line.startswith("The paper's claim, it is so: held. held in 2 of 2: one (+9.75 against")
    hand = Hand(tmp_path / "alone", published={"source": "A paper", "claims": told[:1]})
    hand.finals("none", *NONE[:3])
    hand.finals("bilevel", *ABOVE[:3])
    assert "The paper&#39;s claim, it is so: held." in write(hand.results()).read_text()


@pytest.mark.parametrize(
    "claim, message",
    [
        ({"kind": "best", "over": ["nobody"]}, "published.claims.0: nobody: no label of methods"),
        ({"kind": "best", "over": []}, "kind: best takes labels of others in over"),
        ({"kind": "gain"}, "points belongs to kind: gain, and kind is gain"),
        ({"kind": "gain", "points": [3, 1]}, r"points must be \[lowest, highest\]"),
        ({"kind": "rises", "share": "identity"}, r"takes no label in over, got \['none'\]"),
    ],
)
def test_a_wrong_claim_is_refused(claim: dict[str, Any], message: str) -> None:
    tree = {"dataset": {"name": "fashion-mnist-mini"}, "methods": {"none": {}, "bilevel": {}}}
    published = {"source": "A paper", "claims": [SIMPLE | claim]}
    with pytest.raises(UserError, match=message):
        config.study(tree | {"published": published}, name="s")
