"""Headline, sentences and tables, from rows written by hand."""

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import hand as by_hand
import numpy as np
import pytest
from hand import Hand, MixHand, Page
from rich.console import Console

from autoaug_ray.report import mixes
from autoaug_ray.report.compare import pareto
from autoaug_ray.report.results import EntryResult
from autoaug_ray.report.sentences import table, verdicts
from autoaug_ray.report.write import write


@pytest.fixture
def hand(tmp_path: Path) -> Hand:
    return Hand(tmp_path)


# Words


def test_learned_against_its_control(hand: Hand) -> None:
    hand.finals("none", 0.60, 0.61, 0.62)
    hand.finals("bilevel", 0.70, 0.71, 0.72)
    hand.finals("bilevel learn:off", 0.69, 0.72, 0.70)
    assert "bilevel is not distinguishable from its control bilevel learn:off" in hand.words()
    hand.finals("bilevel learn:off", 0.65, 0.661, 0.67)
    assert "bilevel is better than its control bilevel learn:off" in hand.words()


def test_pareto_front_by_hand() -> None:
    def row(label: str, cost: float | None, accuracy: float) -> EntryResult:
        return by_hand.entry(label, relative_cost=cost, test_accuracy_mean=accuracy)

    rows = [
        row("dear", 9.0, 0.90), row("none", 1.0, 0.50), row("beaten", 3.0, 0.60),
        row("good", 2.0, 0.70), row("tie", 5.0, 0.70), row("unknown", None, 0.99),
    ]  # fmt: skip
    assert [r.label for r in pareto(rows)] == ["none", "good", "dear"]


def test_an_entry_leaves_the_front_only_where_another_is_distinguishably_better(
    hand: Hand,
) -> None:
    """By the means alone, bilevel would beat randaugment and its own control."""
    hand.finals("none", 0.60, 0.61, 0.62)
    hand.finals("bilevel", 0.70, 0.72, 0.71, seconds=(20.0,))
    hand.finals("bilevel learn:off", 0.705, 0.695, 0.705, seconds=(20.4,))
    hand.finals("randaugment", 0.62, 0.63, 0.64, seconds=(21.0,), choices={"magnitude": 5})

    def front() -> list[str]:
        return [r.label for r in pareto(hand.results().entries)]

    assert front() == ["none", "bilevel", "bilevel learn:off"]  # randaugment is clearly worse
    hand.finals("bilevel learn:off", 0.705, 0.695, 0.705, seconds=(30.0,))
    assert front() == ["none", "bilevel"]  # and now its control clearly dearer
    for seed, seconds in enumerate((10.0, 50.0, 30.0)):
        hand.run("bilevel learn:off", seed=seed, accuracy=0.7, seconds=(seconds,))
    assert front() == ["none", "bilevel", "bilevel learn:off"]  # by the mean alone: 3 +- 5


def test_two_seeds_give_no_answer(hand: Hand) -> None:
    hand.finals("none", 0.60, 0.61)
    hand.finals("bilevel", 0.80, 0.81, seconds=(40.0,))
    words = hand.words()
    assert "Too early to say what to use" in words
    assert "an interval means nothing" in words
    assert "is better" not in words and "better:" not in words


def test_holm_decides_the_star(tmp_path: Path) -> None:
    """p = 0.04 alone is distinguishable; as one of five it is not."""
    d = np.array([0.01, 0.02, 0.03, 0.012, 0.04])
    alone = Hand(tmp_path / "a", seeds=5, methods={"none": None, "predefined": None})
    many = Hand(
        tmp_path / "b",
        seeds=5,
        methods={"none": None, "predefined": None}
        | {f"p{i}": {"method": "predefined", "translate": float(i)} for i in range(10)},
    )
    for hand in (alone, many):
        hand.finals("none", *[0.5] * 5)
        hand.finals("predefined", *(0.5 + d))
        for entry in hand.study.entries[2:]:
            hand.finals(entry.label, *(0.5 + (d - d.mean())))
    assert "better: predefined" in alone.words()
    assert "not distinguishable: predefined" in many.words()


def test_devices_and_test_reads_are_said(hand: Hand) -> None:
    hand.finals("none", 0.5, 0.5, 0.5)
    assert (
        "All costs are work on this device, CPU, by CPU time; every training had 1 thread and "
        "weights with channels first, in processes that are used again."
    ) in hand.words()
    assert "read once by each of the 3 final trainings" in hand.words()
    hand.finals("bilevel", 0.5, 0.5, 0.5, device="NVIDIA H100")
    assert "Not all ran on the same device (CPU, NVIDIA H100)" in hand.words()


def test_a_cost_is_said_with_its_interval_its_clock_and_what_was_billed(hand: Hand) -> None:
    """3.9, 4.0 and 4.1 trainings: 4 ± 4.303 x 0.1 / sqrt(3)."""
    hand.finals("none", 0.5, 0.5, 0.5)
    for seed, seconds in enumerate((39.0, 40.0, 41.0)):
        hand.run("bilevel", seed=seed, accuracy=0.8 + seed / 100, seconds=(seconds,), wall=2.0)
    hand.finals("randaugment", 0.5, 0.5, 0.5, choices={"magnitude": 5})
    billed = 3 * (80 + 1100) / 60
    assert (
        f"bilevel costs 4.00 ± 0.25 trainings of none (CPU time); {billed:.3g} CPU-minutes billed."
    ) in hand.words().replace("\u00a0", " ")


def test_costs_that_cannot_be_told_apart_are_named(hand: Hand) -> None:
    hand.finals("none", 0.5, 0.5, 0.5)
    assert "cannot be told apart" not in hand.words()
    for seed, seconds in enumerate((8.0, 12.0, 11.0)):
        hand.run("bilevel", seed=seed, seconds=(seconds,))
    hand.finals("bilevel learn:off", 0.5, 0.5, 0.5, seconds=(20.0,))
    words = hand.words().replace("\u00a0", " ")
    assert "Costs that cannot be told apart, or differ by less than 5 %: none (1.00) and" in words
    assert "and bilevel (1.03 ± 0.52)." in words


def test_plain_sums_that_tell_another_cost_are_said(hand: Hand) -> None:
    """One slow step in ten: the sum is a tenth higher than ten times the median."""
    hand.finals("none", 0.5, 0.5, 0.5)
    slow = {"work": 22.0, "step_work": [{"logged": "train_loss", "steps": 10, "median": 2.0}]}
    hand.finals("bilevel", 0.5, 0.5, 0.5, seconds=(22.0,), more=slow)
    words = hand.words()
    assert hand.rows()["bilevel"]["relative_cost"] == pytest.approx(2.0)
    assert (
        "bilevel: search and training cost 2.00 by typical steps, but 2.20 by plain sums (9% apart)"
    ) in words
    assert "none: search and training" not in words


def test_settings_that_spoil_the_comparison_of_costs_are_said(hand: Hand) -> None:
    hand.finals("none", 0.5, 0.5, 0.5)
    hand.finals("bilevel", 0.5, 0.5, 0.5, more={"threads": 4})
    assert "Not all trainings had the same threads (1, 4)" in hand.words()


def test_terminal_table(hand: Hand) -> None:
    hand.finals("none", 0.60, 0.61, 0.62)
    hand.finals("bilevel", 0.80, 0.82, 0.81, seconds=(40.0,))
    hand.finals("bilevel learn:off", 0.60)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table(hand.results()))
    text = console.export_text().replace("\u00a0", " ")
    assert re.search(r"^ *none .* 61\.00 ± 1\.00 \(3\) +- +1\.00 +- +3 ", text, re.M)
    assert re.search(
        r"^ *bilevel .* 81\.00 ± 1\.00 \(3\) +\+20\.00 \[\+17\.52, \+22\.48\]\* +4\.00", text, re.M
    )
    assert re.search(r"^ +learn:off .* 60\.00 \(1\) +\+0\.00 ", text, re.M)
    assert re.search(r"^ +CPU- *$", text, re.M)
    narrow = Console(width=60, record=True, file=io.StringIO())
    narrow.print(table(hand.results()))
    assert "\u2026" not in narrow.export_text()  # wrapped, not cut


# Unfinished studies


@pytest.mark.parametrize("state", ["nothing", "one seed", "no reference", "no final", "no ledger"])
def test_an_unfinished_study_still_gives_a_page(hand: Hand, state: str) -> None:
    if state == "one seed":
        hand.finals("none", 0.5)
        hand.finals("bilevel", 0.6)
    elif state == "no reference":
        hand.finals("bilevel", 0.6, 0.7, 0.8)
    elif state == "no final":
        hand.finals("none", 0.5, 0.5, 0.5)
        hand.run("randaugment", "search", choices={"magnitude": 5}, finished=False)
    elif state == "no ledger":
        hand.finals("none", 0.5, 0.5, 0.5)
        for path in hand.folder.ledger.iterdir():
            path.unlink()
    page = write(hand.results()).read_text()
    assert "Not all is there" in page
    assert "randaugment: no finished final training for seed 0, 1, 2" in page
    reason = {
        "nothing": "no final training has finished yet",
        "one seed": "final trainings have not finished (none 2, randaugment 3, bilevel 2)",
    }.get(state, "final trainings have not finished")
    assert "<b>Too early to say what to use</b>: " in page
    assert reason in page
    Console(file=io.StringIO()).print(table(hand.results()))


def test_failures_are_listed_and_escaped(hand: Hand) -> None:
    hand.run("bilevel", seed=1, error="Traceback\n  ...\nValueError: <script>alert(1)</script>")
    hand.run("none", seed=0, error="its process died")
    hand.run("none", seed=0)  # retried with success, but the driver died before it heard of it
    outcomes = hand.folder.root / "outcomes.jsonl"
    outcomes.write_text("".join(outcomes.read_text().splitlines(keepends=True)[:-1]))
    page = write(hand.results()).read_text()
    assert "bilevel: no finished final training for seed 0, 1, 2; 1 run failed" in page
    assert "ValueError: &lt;script&gt;alert(1)" in page and "<script>alert" not in page
    assert "its process died" not in page


def test_a_run_that_used_other_settings_is_reported(hand: Hand) -> None:
    hand.finals("none", 0.5)
    row = hand.folder.read_rows()[-1]
    hand.folder.write_rows(row["run_key"], [{**row, "used_key": "something else"}])
    assert f"Run {row['run_key']} did not use the settings" in hand.words()


# Mixes and uneven classes


def plain(text: str) -> str:
    return " ".join(text.replace("\u00a0", " ").split())


def test_macro_accuracy_has_a_column_where_it_says_something(tmp_path: Path) -> None:
    hand = MixHand(tmp_path)
    hand.fill({"autogenda": 0.05})
    results = hand.results()
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(table(results))
    text = plain(console.export_text())
    assert "micro accuracy % macro accuracy % points" in text
    finals = results.finals["none"].values()
    macro = np.mean([rows[-1]["class_accuracy"] for rows in finals])
    assert re.search(rf"none [\d.]+ ± [\d.]+ \(3\) {100 * macro:.2f} - 1.00", text)
    page = Page(write(hand.results()).read_text()).text
    assert f"{100 * macro:.2f}" in page and "Macro accuracy %classes count the same" in page

    equal = [replace(r, macro_accuracy_mean=r.test_accuracy_mean) for r in results.entries]
    console.print(table(replace(results, entries=tuple(equal))))
    assert "and so do all classes (micro = macro)" in plain(console.export_text())


def test_even_classes_need_no_macro_accuracy(tmp_path: Path) -> None:
    hand = MixHand(tmp_path, dataset={"name": "fashion-mnist-mini", "shots": 40})
    hand.fill({"autogenda": 0.05}, even=True)
    text = write(hand.results()).read_text()
    assert "acro" not in text and "rarest third" not in text
    assert "The learned mix" in text and not (tmp_path / "frequency.png").exists()


def test_the_gain_in_rare_classes_by_hand(tmp_path: Path) -> None:
    """Ten classes: the third of them is three; the gain of class rank r is 2 g r / 9."""
    hand = MixHand(tmp_path)
    hand.fill({"autogenda": 0.05, "search-free": 0.05}, noise=0.0)
    words = hand.words()
    rare, frequent = (100 * 2 * 0.05 * r / 9 for r in (8, 1))
    assert (
        f"autogenda against none in the rarest third of the classes (40 to 50 images): "
        f"difference {rare:+.2f} points" in words
    )
    assert (
        f"most frequent third of the classes (133 to 400 images): difference {frequent:+.2f}"
        in words
    )
    assert "Every seed has its own order of the classes" in words


def test_a_third_of_the_classes_that_is_untested_is_left_out(tmp_path: Path) -> None:
    """Two of three untested classes are among the three rarest, and then all three are."""
    hand = MixHand(tmp_path)
    hand.fill({"autogenda": 0.05}, noise=0.0)
    for untested, wanted in ((slice(-2, None), 100 * 2 * 0.05 * 7 / 9), (slice(-3, None), None)):
        results = hand.results()
        for by_seed in results.finals.values():
            for *_, last in by_seed.values():
                accuracy = list(last["class_accuracy"])
                for label in np.argsort(-np.array(last["class_counts"]), kind="stable")[untested]:
                    accuracy[label] = None
                last["class_accuracy"] = accuracy
        words = "\n".join(verdicts(results))
        if wanted is None:
            assert "autogenda against none in the most frequent third" in words
        else:
            assert (
                f"rarest third of the classes (40 to 50 images): difference {wanted:+.2f}" in words
            )
        figure = mixes.frequency(results.entries, results.finals, ["none", "autogenda"])
        assert figure is not None
        figure.canvas.draw()


def test_a_learned_mix_is_held_against_its_search_free_one(tmp_path: Path) -> None:
    hand = MixHand(tmp_path / "a")
    hand.fill({"autogenda": 0.01, "search-free": 0.06}, noise=0.002)
    assert "autogenda is worse than its search-free mix search-free (difference -" in hand.words()
    third = {"identity": 1 / 3, "local": 1 / 3, "transfer": 1 / 3}
    methods = {
        "none": None,
        "with ra": {"method": "mix", "probabilities": third, "then": {"name": "randaugment"}},
        "autogenda": None,
    }
    other = MixHand(tmp_path / "b", methods=methods)
    other.fill({"autogenda": 0.01})
    assert "its search-free mix" not in other.words()  # RandAugment is another difference


def test_what_was_learned_is_said(tmp_path: Path) -> None:
    hand = MixHand(tmp_path / "a")
    hand.fill({}, share=0.3)
    words = hand.words()
    third = r"in the rarest third: identity (0\.\d+) ± .*frequent: identity (0\.\d+)"
    learned = re.search(third, words)
    assert learned is not None and float(learned[1]) < 0.15 and float(learned[2]) > 0.5
    assert "next to nothing" not in words
    still = MixHand(tmp_path / "b")
    still.fill({}, share=0.0)
    for row in still.folder.read_rows():
        if row["alpha"]:
            row["alpha"] = [[1 / 3 + 0.01, 1 / 3, 1 / 3 - 0.01]] * 10
            still.folder.write_rows(row["run_key"], [row])
    assert "no probability of autogenda is further than 0.010 from equal" in still.words()


def test_an_imbalance_that_was_not_reached_is_said(tmp_path: Path) -> None:
    hand = MixHand(tmp_path)
    hand.fill({}, classes=100)
    assert "400 to 4 training images: a ratio of 0.01, where 0.1 was asked for" in hand.words()


def test_generated_images_are_charged(tmp_path: Path) -> None:
    """31 s of images, 5 s of search and 10 s of training, against 10 s."""
    hand = MixHand(tmp_path)
    hand.fill({})
    rows = hand.rows()
    assert rows["autogenda"]["relative_cost"] == pytest.approx(4.6)
    page = Page(write(hand.results()).read_text()).text
    assert "of which imagesgenerated; none = 1" in page and "3.10" in page
    assert "captionsCPU-minutes" in page and "generated imagesCPU-minutes" in page
    assert "learned wordsCPU" not in page  # nobody learned any
    assert re.search(r"autogenda: of [\d.]+ CPU-minutes, 1.55 went into making the images", page)
    assert "search trials" not in page  # they learned a mix: there was nothing to choose


def test_a_contact_sheet_is_shown_and_kept(tmp_path: Path) -> None:
    hand = MixHand(tmp_path)
    hand.fill({})
    write(hand.results())
    assert "The generated images" not in (tmp_path / "report.html").read_text()
    sheet = (tmp_path / "mixture.png").read_bytes()
    (tmp_path / "sheet.png").write_bytes(sheet)
    text = write(hand.results()).read_text()
    assert text.count(base64.b64encode(sheet).decode()) == 1
    assert (tmp_path / "sheet.png").read_bytes() == sheet
