"""Results, words, figures and labels: arithmetic on hand-written rows, and a page of real ones."""

import base64
import io
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from warnings import catch_warnings, filterwarnings

import hand as by_hand
import matplotlib.image
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hand import TREE, Hand, MixHand, Page
from matplotlib.figure import Figure
from rich.console import Console

from autoaug_ray import config, train
from autoaug_ray.config import Study
from autoaug_ray.report import figures, label_placement
from autoaug_ray.report.compare import pareto
from autoaug_ray.report.results import SUMMARY, EntryResult, collect
from autoaug_ray.report.sentences import headline, table
from autoaug_ray.report.write import write
from autoaug_ray.store.folder import Folder
from autoaug_ray.store.meter import PHASES, Meter


@pytest.fixture
def hand(tmp_path: Path) -> Hand:
    return Hand(tmp_path)


# Arithmetic


def test_accuracy_is_that_of_whole_final_runs(hand: Hand) -> None:
    hand.run("randaugment", "search", accuracy=0.99, choices={"magnitude": 5})
    hand.run("randaugment", seed=0, accuracy=0.70, choices={"magnitude": 9})
    hand.run("randaugment", seed=1, accuracy=0.74, choices={"magnitude": 9})
    hand.run("randaugment", seed=2, accuracy=0.10, choices={"magnitude": 9}, finished=False)
    row = hand.rows()["randaugment"]
    assert row["seeds"] == [0, 1] and row["missing_seeds"] == [2]
    assert row["test_accuracy_mean"] == pytest.approx(0.72)
    assert row["test_accuracy_sd"] == pytest.approx(math.sqrt(0.0008))
    assert row["test_accuracy_half_width"] == pytest.approx(0.02 * math.tan(0.475 * math.pi))
    assert json.loads(row["choices"]) == {"magnitude": 9}
    assert row["displacement"] == pytest.approx(0.72)


def test_relative_cost_by_hand(hand: Hand) -> None:
    """Search 6 + 2 x (3 + 4) for an attempt that died; finals (20 + 30) / 2; reference 10."""
    hand.finals("none", 0.5, 0.5)
    search = {"label": "randaugment", "phase": "search"}
    hand.run(**search, choices={"magnitude": 5}, seconds=(6.0,))
    hand.run(**search, choices={"magnitude": 9}, index=1, seconds=(3.0, 4.0), share=2.0)
    hand.run("randaugment", seed=0, choices={"magnitude": 9}, seconds=(5.0, 15.0))
    hand.run("randaugment", seed=1, choices={"magnitude": 9}, seconds=(30.0,))
    row = hand.rows()["randaugment"]
    assert row["relative_search_cost"] == pytest.approx(2.0)
    assert row["relative_cost"] == pytest.approx(4.5)
    assert row["training_device_hours"] == pytest.approx(45 / 3600)
    assert row["trials"] == 4 and row["attempts"] == 6
    assert hand.rows()["none"]["relative_cost"] == pytest.approx(1.0)
    assert row["search_device_hours"] == pytest.approx((20 + 1100 + 4 * 1100) / 3600)
    assert row["total_device_hours"] == pytest.approx((20 + 50 + 5 * 1100 + 3 * 1100) / 3600)


def test_failed_and_stopped_runs_cost(hand: Hand) -> None:
    hand.finals("none", 0.5, 0.5, 0.5)
    search = {"label": "randaugment", "phase": "search"}
    hand.run(**search, choices={"magnitude": 5}, seconds=(7.0,), error="out of memory", rows=False)
    hand.run(**search, choices={"magnitude": 9}, index=1, seconds=(3.0,), finished=False)
    hand.finals("randaugment", 0.6, 0.6, 0.6, choices={"magnitude": 9})
    row = hand.rows()["randaugment"]
    assert row["relative_cost"] == pytest.approx(2.0)
    assert (row["failed"], row["stopped"], row["trials"]) == (1, 1, 5)


def test_relative_cost_is_over_the_same_seeds(hand: Hand) -> None:
    """A machine that was slow during seed 1 was slow for both."""
    hand.run("none", seed=0, seconds=(10.0,))
    hand.run("none", seed=1, seconds=(40.0,))
    hand.run("bilevel", seed=1, seconds=(80.0,))
    hand.run("bilevel", seed=2, seconds=(999.0,))
    assert hand.rows()["bilevel"]["relative_cost"] == pytest.approx(2.0)


def test_phases_add_up(hand: Hand) -> None:
    hand.run("none", seconds=(10.0, 20.0), share=0.5)
    row = hand.rows()["none"]
    assert row["device_hours_final"] == pytest.approx(15 / 3600)
    assert row["device_hours_eval"] == pytest.approx(100 / 3600)
    parts = [row[f"device_hours_{p}"] for p in PHASES]
    assert sum(parts) == pytest.approx(row["total_device_hours"])


def test_a_replay_pays_for_what_it_replays(tmp_path: Path) -> None:
    methods = TREE["methods"] | {"replay": {"of": "bilevel"}}
    hand = Hand(tmp_path, methods=methods)
    hand.finals("none", 0.5, 0.5)
    hand.finals("bilevel", 0.5, 0.5, seconds=(30.0,))
    for seed in (0, 1):
        hand.run("replay", seed=seed, choices={"policy": f"p{seed}.pt"}, seconds=(11.0,))
    row = hand.rows()["replay"]
    assert row["seeds"] == [0, 1] and json.loads(row["choices"]) == {}
    assert row["relative_cost"] == pytest.approx(4.1)


def test_rows_of_another_version_of_the_study_do_not_count(hand: Hand) -> None:
    other = Hand(hand.folder.root, train={"epochs": 2, "batch_size": 16, "lr": 0.01})
    other.finals("none", 0.9, 0.9, 0.9, seconds=(500.0,))
    hand.run("none", seed=1, accuracy=0.5)
    row = hand.rows()["none"]
    assert row["seeds"] == [1] and row["test_accuracy_mean"] == 0.5
    assert row["device_hours_final"] == pytest.approx(10 / 3600)
    assert "3 runs in this folder with other settings" in hand.words()


def test_a_longer_search_replaces_the_choice(hand: Hand) -> None:
    hand.finals("randaugment", 0.9, 0.9, 0.9, choices={"magnitude": 5})
    hand.run("randaugment", seed=1, accuracy=0.6, choices={"magnitude": 9})
    row = hand.rows()["randaugment"]
    assert row["seeds"] == [1] and json.loads(row["choices"]) == {"magnitude": 9}


def test_difference_is_paired(hand: Hand) -> None:
    hand.finals("none", 0.60, 0.70, 0.80)
    hand.finals("bilevel", 0.61, 0.71, 0.815)
    row = hand.rows()["bilevel"]
    assert row["difference"] == pytest.approx(0.035 / 3)
    assert row["difference_half_width"] < 0.01 < row["test_accuracy_half_width"]


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


def test_headline_names_the_cheapest_of_the_indistinguishable(hand: Hand) -> None:
    hand.finals("none", 0.60, 0.61, 0.62)
    hand.finals("bilevel", 0.80, 0.82, 0.81, seconds=(40.0,))
    hand.finals("bilevel learn:off", 0.79, 0.805, 0.82, seconds=(20.0,))
    text = headline(hand.results())
    assert "use bilevel learn:off (80.50 % at 2.00x)" in text
    assert "most accurate one, bilevel (81.00 % at 4.00x), at 3 seeds" in text
    assert "may be up to" in text


def test_headline_names_the_best_if_all_cheaper_are_worse(hand: Hand) -> None:
    hand.finals("none", 0.60, 0.61, 0.62)
    hand.finals("bilevel", 0.80, 0.812, 0.82, seconds=(40.0,))
    text = headline(hand.results())
    assert "use bilevel" in text and "every clearly cheaper entry is distinguishably worse" in text


def test_headline_does_not_choose_by_the_noise_of_the_clock(hand: Hand) -> None:
    hand.finals("none", 0.79, 0.82, 0.80, seconds=(39.0,))
    hand.finals("bilevel", 0.80, 0.812, 0.82, seconds=(40.0,))
    text = headline(hand.results())
    assert "use bilevel" in text and "no entry costs clearly less" in text


def test_two_seeds_give_no_answer(hand: Hand) -> None:
    hand.finals("none", 0.60, 0.61)
    hand.finals("bilevel", 0.80, 0.81, seconds=(40.0,))
    words = hand.words()
    assert "2 seeds cannot tell what to use" in words
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
    assert "All costs are time on this device: CPU." in hand.words()
    assert "read once by each of the 3 final trainings" in hand.words()
    hand.finals("bilevel", 0.5, 0.5, 0.5, device="NVIDIA H100")
    assert "Not all ran on the same device (CPU, NVIDIA H100)" in hand.words()


def test_a_noisy_clock_is_said(hand: Hand) -> None:
    hand.run("none", seed=0, seconds=(10.0,))
    hand.run("none", seed=1, seconds=(11.0,))
    assert "noisy" not in hand.words()
    hand.run("none", seed=2, seconds=(15.0,))
    assert "took up to 1.5x as long" in hand.words()


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
    assert re.search(r"^ +bilevel learn:off .* 60\.00 \(1\) +\+0\.00 ", text, re.M)
    assert "CPU-hours" in text or "CPU-minutes" in text
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
    headline = {
        "nothing": "No final training has finished yet",
        "one seed": "1 seed cannot tell what to use",
        "no reference": "Costs cannot be compared",
        "no final": "use none",
        "no ledger": "Costs cannot be compared",
    }[state]
    assert headline in page
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


# The page, of a real study


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Study, Folder, Path]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tree = TREE | {"dataset": TREE["dataset"] | {"shift": {"translate": 6}}}
    study = config.study(tree, name="made")
    folder = Folder(tmp_path_factory.mktemp("study") / "made")
    for entry in study.entries:
        runs = [
            study.run(entry, "search", seed=0, choices=c, index=i)
            for i, c in enumerate(entry.grid())
            if entry.ranges
        ]
        choices = entry.grid()[0]
        runs += [study.run(entry, "final", seed=s, choices=choices) for s in study.seeds]
        for run in runs:
            about = {"label": run.label, "phase": run.phase, "seed": run.seed}
            with Meter(folder.ledger, key=run.key, about=about) as meter, catch_warnings():
                filterwarnings("ignore", "The image decoding and encoding", DeprecationWarning)
                folder.write_rows(run.key, [epoch.row for epoch in train.run(run, meter)])
    classes = [f"<class {i}>" for i in range(10)]
    yield study, folder, write(collect(study, folder, classes))
    torch.set_num_threads(threads)


def test_page_is_whole_and_needs_nothing_else(made: tuple[Study, Folder, Path]) -> None:
    study, folder, path = made
    text = path.read_text()
    page = Page(text)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == len(list(folder.root.glob("*.png"))) == 6
    assert all((i["src"] or "").startswith("data:image/png;base64,") and i["alt"] for i in images)
    assert not {"link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not any("href" in attributes for _, attributes in page.tags)
    assert not re.search(r"https?://|@import|url\(", re.sub(r"base64,[^\"]+", "", text))
    for label in (e.label for e in study.entries):
        assert label in page.text
    assert "magnitude: 5" in page.text  # chosen
    assert "translated by up to ±6 pixels" in page.text
    assert "randaugment: 2 search trials" in page.text
    assert "train_size: 160" in page.text  # the settings
    assert "Not all is there" not in page.text


def test_pictures_can_be_read(made: tuple[Study, Folder, Path]) -> None:
    _, folder, _ = made
    for name in (
        "accuracy_vs_cost",
        "strength",
        "hypergradient",
        "samples",
        "classes",
        "device_hours",
    ):
        picture = matplotlib.image.imread(folder.root / f"{name}.png")
        height, width = picture.shape[:2]
        assert 600 < width < 1200 and 250 < height
        assert picture[..., :3].std() > 0.05


def test_same_rows_same_page(made: tuple[Study, Folder, Path]) -> None:
    study, folder, path = made
    before = path.read_bytes()
    names = [f"<class {i}>" for i in range(10)]
    assert write(collect(study, folder, names)).read_bytes() == before


def test_summary_file(made: tuple[Study, Folder, Path]) -> None:
    study, folder, _ = made
    written = pq.read_table(folder.root / "summary.parquet")
    assert written.schema.equals(SUMMARY)
    rows = written.to_pylist()
    assert [r["label"] for r in rows] == [e.label for e in study.entries]
    assert rows == [r.row() for r in collect(study, folder).entries]
    assert all(r["seeds"] == [0, 1, 2] and r["device"] == "CPU" for r in rows)
    assert rows[0]["relative_cost"] == pytest.approx(1)
    by_label = {r["label"]: r for r in rows}
    assert by_label["randaugment"]["trials"] == 5
    assert by_label["bilevel learn:off"]["control_of"] == "bilevel"
    hours = {k: r["device_hours"] for k, r in folder.finished().items() if r["label"] == "none"}
    # The ledger's last line is a little later than the last row.
    assert by_label["none"]["total_device_hours"] == pytest.approx(sum(hours.values()), rel=0.2)


def test_figures_without_data_are_removed(hand: Hand) -> None:
    hand.folder.root.mkdir(exist_ok=True)
    (hand.folder.root / "samples.png").write_bytes(b"of an earlier report")
    write(hand.results())
    assert not list(hand.folder.root.glob("*.png"))


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
    assert text.count(base64.b64encode(sheet).decode()) == 2
    assert (tmp_path / "sheet.png").read_bytes() == sheet


# Figures


@pytest.mark.parametrize("seed", range(4))
def test_labels_do_not_overlap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    figure = Figure((9, 5.6), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    points = {f"entry number {i}": (float(rng.normal()), float(rng.normal())) for i in range(12)}
    for point in points.values():
        axes.plot(*point, "o")
    axes.margins(0.15)
    boxes = list(label_placement.beside_points(figure, axes, points, []).values())
    frame = axes.get_window_extent()
    for i, box in enumerate(boxes):
        assert label_placement.overlap(box, frame) > 0.9 * box.width * box.height
        assert all(label_placement.overlap(box, other) == 0 for other in boxes[:i])


def test_apart() -> None:
    assert label_placement.apart([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert label_placement.apart([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    assert label_placement.apart([0.0, 0.0, 0.0], 0.1) == pytest.approx([0.02, 0.12, 0.22])
    rng = np.random.default_rng(0)
    for _ in range(50):
        wanted = sorted(rng.uniform(0, 1, 9))
        out = np.array(label_placement.apart(wanted, 0.08))
        assert (np.diff(out) > 0.08 - 1e-9).all() and out.min() > 0.01 and out.max() < 0.99


def test_true_displacement_equals_a_simulation() -> None:
    xy = np.random.default_rng(0).uniform(-6, 6, (400_000, 2))
    assert figures.true_displacement(6) == pytest.approx(np.hypot(*xy.T).mean(), rel=3e-3)


def test_series_is_mean_and_range_over_the_seeds() -> None:
    rows = {s: [{"epoch": e, "x": 10.0 * s + e} for e in (1, 2)] for s in (0, 1, 2)}
    out = figures.series(rows, lambda row: row["x"])
    assert out is not None and out.varies()
    assert (out.mean.tolist(), out.low.tolist(), out.high.tolist()) == ([11, 12], [1, 2], [21, 22])
    assert figures.series(rows, lambda row: None) is None
    assert figures.series({}, lambda row: 1.0) is None


def test_controls_share_the_colour_of_their_entry(hand: Hand) -> None:
    look = figures.styles(hand.results().entries)
    assert look["bilevel learn:off"].color == look["bilevel"].color
    assert look["bilevel learn:off"].hollow and not look["bilevel"].hollow
    assert len({look[k].color for k in ("none", "bilevel", "randaugment")}) == 3


def test_many_classes(hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 classes: those on which the entries differ most are shown, in order and with names."""
    shown: list[str] = []
    original = figures.Axes.set_yticks

    def spy(self: Any, ticks: Any, labels: Any = None, **more: Any) -> Any:
        shown.extend(labels or [])
        return original(self, ticks, labels, **more)

    monkeypatch.setattr(figures.Axes, "set_yticks", spy)
    hand.finals("none", 0.5)
    hand.finals("bilevel", 0.5)
    results = hand.results()
    finals = results.finals
    same = [0.5] * 100
    finals["none"][0][-1]["class_accuracy"] = same
    finals["bilevel"][0][-1]["class_accuracy"] = [0.5 + (i % 3 == 0) * 0.3 for i in range(100)]
    png = figures.classes(results.entries, finals, [f"c{i}" for i in range(100)])
    assert png is not None
    assert shown == [f"c{i}" for i in range(0, 90, 3)]
