"""cases.py: tables, tests and sentences over cases, from rows written by hand."""

import io
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand import MixHand, Page
from rich.console import Console
from scipy import stats

from autoaug_ray.report import case_figures
from autoaug_ray.report.cases import gather, lines, table, verdicts
from autoaug_ray.report.results import StudyResults
from autoaug_ray.report.write import write, write_cases

GAINS = {"autogenda": 0.05, "search-free": 0.03}


def make(
    root: Path,
    values: Sequence[Any],
    *,
    gain: Mapping[str, float] | Sequence[Mapping[str, float]] = GAINS,
    seeds: int = 3,
    field: str = "imbalance",
    **more: Any,
) -> list[StudyResults]:
    """One case for each value of imbalance.factor or of shots."""
    out = []
    for i, value in enumerate(values):
        dataset = {"name": "fashion-mnist-mini"}
        dataset |= {field: {"factor": value} if field == "imbalance" else value}
        name = f"{field}={value}"
        hand = MixHand(root / name, seeds=seeds, case=name, dataset=dataset)
        gains = gain if isinstance(gain, Mapping) else gain[i]
        hand.fill(gains, classes=5, seed=i, **more)
        out.append(hand.results())
    return out


def text_of(table: Any, width: int = 140) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text(styles=True).replace("\u00a0", " ")


# Blocks and ranks


def test_few_cases_are_ranked_by_case_and_seed(tmp_path: Path) -> None:
    cases = make(tmp_path, [0.01, 0.1])
    found = gather(cases)
    assert found.control == "autogenda"
    assert not found.by_case and found.blocks == 6 and found.ranking is not None
    columns = [
        [a for case in found.cases for a in case.by_label[label].test_accuracies]
        for label in found.labels
    ]
    assert found.ranking.p_value == pytest.approx(stats.friedmanchisquare(*columns).pvalue)
    words = "\n".join(verdicts(gather(cases)))
    assert "6 blocks, which are (case, seed) pairs" in words
    assert "Seeds of one case are not independent datasets" in words
    assert "rough approximation" in words


def test_five_cases_are_the_blocks(tmp_path: Path) -> None:
    cases = make(tmp_path, [0.01, 0.05, 0.1, 0.2, 0.5], seeds=2)
    found = gather(cases, control="none")
    assert found.by_case and found.blocks == 5 and found.ranking is not None
    columns = [
        [np.mean(case.by_label[label].test_accuracies) for case in found.cases]
        for label in found.labels
    ]
    assert found.ranking.p_value == pytest.approx(stats.friedmanchisquare(*columns).pvalue)
    words = "\n".join(verdicts(found))
    assert "5 blocks, which are cases" in words and "not independent datasets" not in words
    assert "none (mean rank 3.00) by rank, with Holm's correction for 2 comparisons" in words
    assert "worse than autogenda (rank 1.00" in words


def test_only_whole_blocks_count(tmp_path: Path) -> None:
    """A seed that one entry has not finished ranks nobody."""
    cases = make(tmp_path, [0.01, 0.1], seeds=3, skip=[("search-free", 1)])
    assert gather(cases).blocks == 4
    words = "\n".join(verdicts(gather(cases)))
    assert "No test of the ranks was made: there are 4 blocks" in words
    assert "imbalance=0.01: 1 final trainings are missing" in words
    assert "Friedman" not in words


def test_an_entry_that_a_case_lacks_is_not_ranked(tmp_path: Path) -> None:
    lacks = [("search-free", s) for s in range(3)]
    cases = make(tmp_path / "a", [0.01]) + make(tmp_path / "b", [0.1, 0.2], skip=lacks)
    found = gather(cases)
    assert found.left_out == ["search-free"] and found.ranking is None
    words = "\n".join(verdicts(gather(cases)))
    assert "only 2 entries have finished in every case" in words
    assert "Not ranked, because some case has no finished training of it: search-free." in words


def test_a_study_says_which_entries_are_ranked(tmp_path: Path) -> None:
    """Three of four: ranks, statistic and control are those of a table without the fourth."""
    gains = {"autogenda": 0.05, "search-free": 0.03, "also": 0.04}
    methods = {
        "none": None,
        "search-free": {"method": "mix", "probabilities": {"identity": 0.5, "local": 0.5}},
        "also": {"method": "mix", "probabilities": {"identity": 0.5, "transfer": 0.5}},
        "autogenda": None,
    }
    cases = []
    for i in range(5):
        hand = MixHand(
            tmp_path / str(i), case=str(i), methods=methods, ranked=["none", "search-free", "also"]
        )
        hand.fill(gains, classes=5, seed=i)
        cases.append(hand.results())
    found = gather(cases)
    assert found.ranking is not None and found.control == "none" and not found.left_out
    assert list(found.ranking.mean_ranks) == ["none", "search-free", "also"]
    columns = [
        [np.mean(case.by_label[label].test_accuracies) for case in cases]
        for label in ("none", "search-free", "also")
    ]
    ranks = stats.rankdata(-np.array(columns), axis=0).mean(axis=1)
    assert list(found.ranking.mean_ranks.values()) == pytest.approx(ranks)
    assert found.ranking.p_value == pytest.approx(stats.friedmanchisquare(*columns).pvalue)
    words = "\n".join(verdicts(found))
    assert "Not ranked, because the study says which are: autogenda." in words
    assert "Friedman's test of 3 entries" in words
    assert [line.rank for line in lines(found)][-1] == "-"


def test_an_unknown_control_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'nobody', which is no entry"):
        gather(make(tmp_path, [0.1]), control="nobody")


def test_nothing_finished_yet(tmp_path: Path) -> None:
    skip = [(label, s) for label in ("none", "search-free", "autogenda") for s in range(3)]
    cases = make(tmp_path, [0.1, 0.2], skip=skip)
    page = write_cases(gather(cases), tmp_path).read_text()
    assert "No test of the ranks was made" in page and "no finished training" in page
    assert "-" in text_of(table(gather(cases)))


# Words


def test_a_negative_result_is_said_as_plainly(tmp_path: Path) -> None:
    harm = {"autogenda": -0.05, "search-free": 0.04}
    cases = make(tmp_path, [0.01, 0.1], gain=harm, noise=0.002, seeds=4)
    words = "\n".join(verdicts(gather(cases)))
    assert "of 2 cases: worse in 2 (imbalance=0.01, imbalance=0.1)" in words
    assert "It has the highest mean in none." in words
    assert "above zero in 0 of 2" in words
    assert re.search(r"autogenda \(mean rank 3\.00\) by rank.*worse than .*search-free", words)


def test_no_difference_is_said(tmp_path: Path) -> None:
    """Friedman finds nothing, so nothing is held against the control."""
    cases = make(tmp_path, [0.01, 0.1, 0.2], gain={}, noise=0.05, seeds=3)
    found = gather(cases)
    assert found.ranking is not None and not found.ranking.rejected()
    words = "\n".join(verdicts(gather(cases)))
    assert "No difference between the entries was found" in words
    assert "better than" not in words
    page = write_cases(gather(cases), tmp_path).read_text()
    assert "Friedman's test found no difference, so one bar joins all" in page


def test_wins_are_counted_by_case(tmp_path: Path) -> None:
    gain = [{"autogenda": 0.06}, {"autogenda": -0.06}]
    cases = make(tmp_path, [0.01, 0.5], gain=gain, noise=0.002)
    words = "\n".join(verdicts(gather(cases)))
    assert "better in 1 (imbalance=0.01); worse in 1 (imbalance=0.5)" in words
    assert "It has the highest mean in 1 (imbalance=0.01)." in words


def test_terminal_table(tmp_path: Path) -> None:
    cases = make(tmp_path, [0.01, 0.1])
    row = cases[0].by_label["autogenda"].row()
    text = text_of(table(gather(cases)))
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    mean, sd = (100 * row[f"test_accuracy_{k}"] for k in ("mean", "sd"))
    assert f"{mean:.2f} ± {sd:.2f}*" in plain
    bold = re.findall(r"\x1b\[1m([^\x1b]*)", text)
    assert sum("±" in b for b in bold) == 2 and any(f"{mean:.2f}" in b for b in bold)
    assert "rank" in plain and "imbalance=0.1" in plain
    many = make(tmp_path / "many", [0.01, 0.05, 0.1, 0.2, 0.5], seeds=2)
    text = text_of(table(gather(many)), 120)
    assert "±" not in text
    # More cases than entries: a line for each case.
    assert re.search(r"^ *imbalance=0.05 ", re.sub(r"\x1b\[[0-9;]*m", "", text), re.M)


# What the cases differ in


def test_the_axis_is_the_one_number_that_differs(tmp_path: Path) -> None:
    found = gather(make(tmp_path, [4, 2, 16], field="shots", even=True))
    along = case_figures.axis(found.cases)
    assert along is not None and along.log and list(along.ticks) == [2, 4, 16]
    assert "per class" in along.name
    ((title, group),) = along.panels.items()
    assert title == "fashion-mnist-mini" and [x for x, _ in group] == [2, 4, 16]


def test_no_axis_where_more_differs(tmp_path: Path) -> None:
    cases = make(tmp_path, [2, 4], field="shots", even=True)
    study = cases[1].study.model_copy(update={"val_fraction": 0.3})
    assert case_figures.axis([cases[0], replace(cases[1], study=study)]) is None
    assert case_figures.axis(cases[:1]) is None
    mixed = make(tmp_path / "f", [0.1]) + make(tmp_path / "s", [4], field="shots")
    assert case_figures.axis(gather(mixed).cases) is None
    assert case_figures.gains(gather(mixed)) is None


def test_several_datasets_have_a_panel_each(tmp_path: Path) -> None:
    cases = []
    for name in ("cifar10", "cifar100"):
        for factor in (0.01, 0.1):
            dataset = {"name": name, "imbalance": {"factor": factor}}
            hand = MixHand(tmp_path / f"{name}-{factor}", case=f"{name} {factor}", dataset=dataset)
            hand.fill(GAINS, classes=5)
            cases.append(hand.results())
    found = gather(cases)
    along = case_figures.axis(found.cases)
    assert along is not None and list(along.panels) == ["cifar10", "cifar100"]
    known = case_figures.mean_alphas(found)
    assert known is not None
    assert list(known[1]["local"]) == ["autogenda, cifar10", "autogenda, cifar100"]
    assert write_cases(gather(cases), tmp_path).read_text().count("<svg") == 3


def test_gains_and_mean_alphas(tmp_path: Path) -> None:
    cases = make(tmp_path, [0.01, 0.1])
    found = gather(cases)
    known = case_figures.gains(found)
    assert known is not None
    (curves,) = known[1].values()
    assert curves["none"] == []
    row = found.cases[0].by_label["autogenda"].row()
    point = curves["autogenda"][0]
    assert (point.x, point.y) == pytest.approx((0.01, 100 * row["difference"]))
    assert point.high - point.y == pytest.approx(100 * row["difference_half_width"])
    shares = case_figures.mean_alphas(found)
    assert shares is not None and set(shares[1]) == {"identity", "local", "transfer"}
    finals = found.cases[1].finals["autogenda"]
    means = [np.mean([p[1] for p in rows[-1]["alpha"]]) for rows in finals.values()]
    assert shares[1]["local"]["autogenda"][1] == pytest.approx(
        (0.1, np.mean(means), min(means), max(means))
    )


def test_cases_that_differ_in_no_number_stand_side_by_side(tmp_path: Path) -> None:
    cases = make(tmp_path / "f", [0.1]) + make(tmp_path / "s", [4], field="shots")
    known = case_figures.mean_alphas(gather(cases))
    assert known is not None and list(known[0].ticks.values()) == ["imbalance=0.1", "shots=4"]


def test_two_seeds_have_no_interval(tmp_path: Path) -> None:
    known = case_figures.gains(gather(make(tmp_path, [0.01, 0.1], seeds=2)))
    assert known is not None
    (curves,) = known[1].values()
    assert all(p.low == p.y == p.high for p in curves["autogenda"])


# The page


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[StudyResults], Path]:
    """Two cases with a page each, and the page over both."""
    root = tmp_path_factory.mktemp("study")
    cases = make(root, [0.01, 0.1])
    write(cases[0])
    return cases, write_cases(gather(cases), root)


def test_page(made: tuple[list[StudyResults], Path]) -> None:
    cases, path = made
    root = path.parent
    text = path.read_text()
    page = Page(text)
    figures = [a for tag, a in page.tags if tag == "svg"]
    assert len(figures) == len(list(root.glob("*.png"))) == 3
    assert all(a["aria-label"] for a in figures)
    assert not re.search(r"https?://|@import|url\((?!#)", re.sub(r"base64,[^\"]+", "", text))
    links = {a["href"] for tag, a in page.tags if tag == "a"}
    assert links == {"imbalance%3D0.01/report.html", "imbalance%3D0.1/report.html"}
    for case in cases:
        assert f"{case.by_label['autogenda'].relative_cost:.2f}" in page.text
    assert text.count(' class="best">') == 2
    assert "80 to 400" in page.text
    back = (root / "imbalance=0.01" / "report.html").read_text()
    assert '<a href="../report.html">all cases</a>' in back and "imbalance=0.01" in back


def test_figures_without_data_are_removed(tmp_path: Path) -> None:
    (tmp_path / "gain.png").write_bytes(b"of an earlier report")
    write_cases(gather(make(tmp_path, [0.1])), tmp_path)
    assert not (tmp_path / "gain.png").exists()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser")
def test_a_browser_shows_all_of_it(made: tuple[list[StudyResults], Path], tmp_path: Path) -> None:
    """All figures have a size, folded or not, and nothing is wider than the page."""
    cases, path = made
    check = """<script>addEventListener("load", () => {
      const fits = document.documentElement.scrollWidth <= innerWidth;
      document.querySelectorAll("details").forEach(d => d.open = true);
      const figures = [...document.querySelectorAll("svg[aria-label]")];
      const large = figures.every(f => f.getBoundingClientRect().width > 600);
      const said = [figures.length, large, fits];
      document.body.innerHTML = `<p id="said">${said.join(" ")}</p>`; });</script></body>"""
    for page, count in ((path, 3), (cases[0].root / "report.html", 6)):
        probe = page.with_name("probe.html")
        probe.write_text(page.read_text().replace("</body>", check))
        out = subprocess.run(
            [
                "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1100,900",
                f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom", probe.as_uri(),
            ],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert f'<p id="said">{count} true true</p>' in out.stdout
