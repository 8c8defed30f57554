"""What images and searches cost, what users load, and how often files are read."""

import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from hand import KINDS, Hand, MixHand
from rich.console import Console

import autoaug_ray
from autoaug_ray.commands import main, run
from autoaug_ray.errors import UserError
from autoaug_ray.methods.base import Task
from autoaug_ray.policy import export
from autoaug_ray.report import write
from autoaug_ray.report.results import SUMMARY, collect_cases
from autoaug_ray.report.verdict import verdict

MIX = {"kinds": KINDS, "alpha": [[0.4, 0.3, 0.3]] * 10}
ALPHA = {"alpha_table": tuple((0.4, 0.3, 0.3) for _ in range(10))}


@pytest.fixture
def hand(tmp_path):
    """Seed 0 and 1 share a bank plan, seed 2 has its own; 3600 s and 7200 s of work on images."""
    dataset = {"name": "fashion-mnist-mini", "imbalance": {"factor": 0.1}, "redraw": False}
    hand = MixHand(tmp_path, dataset=dataset)
    hand.study = hand.study.model_copy(update={"bank_plans": {"whole": "a"}})
    hours = {"generate": 1.0, "caption": 0.5}
    work = {"generate": 3000.0, "caption": 600.0}  # billed 1.5 hours, of which 1 was work
    bank = dict.fromkeys((0, 1), {"bank_plan": "a", "bank_hours": hours, "bank_work": work})
    bank[2] = {
        "bank_plan": "b", "bank_hours": hours | {"generate": 2.0},
        "bank_work": work | {"generate": 6600.0},
    }  # fmt: skip
    for seed in range(3):
        hand.run("none", seed=seed, seconds=(100.0,))
        hand.run("search-free", seed=seed, seconds=(100.0,), more=MIX | bank[seed])
        learning = {"kinds": [KINDS] * 2, "alpha": [MIX["alpha"]] * 2}
        hand.run("autogenda", "search", seed, seconds=(60.0 + 60 * seed,), by_epoch=learning)
        hand.run("autogenda", seed=seed, seconds=(100.0,), choices=ALPHA, more=MIX | bank[seed])
    return hand


def test_images_cost_what_a_seed_needs_and_a_plan_is_paid_once(hand):
    row = hand.rows()["search-free"]
    assert row["seeds"] == [0, 1, 2]
    mean = (3600 + 3600 + 7200) / 3
    assert row["relative_bank_cost"] == pytest.approx(mean / 100)
    assert row["relative_cost"] == pytest.approx((mean + 100) / 100)
    assert row["device_hours_generate"] == pytest.approx(3.0)  # plans a and b, not seeds
    assert row["device_hours_caption"] == pytest.approx(1.0)
    parts = 4.0 + 3 * (100 + 100 + 1000) / 3600
    assert row["total_device_hours"] == pytest.approx(parts)


def test_what_each_seed_learns_first_counts_once_for_a_training(hand):
    row = hand.rows()["autogenda"]
    assert row["relative_search_cost"] == pytest.approx((60 + 120 + 180) / 3 / 100)
    assert row["device_hours_search"] == pytest.approx((60 + 120 + 180) / 3600)
    assert row["choices"] == "{}"  # proportions are each seed's own, not a choice between trials


def test_macro_accuracy_is_the_mean_over_classes(hand):
    assert hand.rows()["none"]["macro_accuracy_mean"] == pytest.approx(0.75)


def test_another_bank_is_another_study(hand):
    hand.study = hand.study.model_copy(update={"bank_plans": {"whole": "c"}})
    rows = hand.rows()
    assert rows["search-free"]["seeds"] == [] and rows["none"]["seeds"] == [0, 1, 2]


COLUMNS = """
method: string
label: string
control_of: string
reference: string
dataset: string
epochs: int64
seeds: list<element: int64>
missing_seeds: list<element: int64>
test_accuracies: list<element: double>
test_accuracy_mean: double
test_accuracy_sd: double
test_accuracy_half_width: double
macro_accuracies: list<element: double>
macro_accuracy_mean: double
top5_accuracy_mean: double
difference: double
difference_half_width: double
published_accuracy: double
published_measure: string
published_cost: double
published_difference: double
published_half_width: double
clock: string
cost_seeds: list<element: int64>
relative_costs: list<element: double>
relative_cost: double
relative_cost_half_width: double
relative_search_cost: double
amortised_search_cost: double
search_users: int64
relative_bank_cost: double
plain_training_cost: double
calibrated_training_cost: double
flop_training_cost: double
training_device_hours: double
search_device_hours: double
total_device_hours: double
device_hours_caption: double
device_hours_invert: double
device_hours_generate: double
device_hours_search: double
device_hours_final: double
device_hours_eval: double
device_hours_warm_up: double
device_hours_other: double
trials: int64
attempts: int64
stopped: int64
failed: int64
lost_attempts: int64
lost_device_hours: double
displacement: double
color_change: double
choices: string
device: string
"""


def test_columns_of_the_summary_keep_their_names_order_and_types():
    """Notebooks of others read summary.parquet."""
    found = [f"{field.name}: {field.type}".replace("item:", "element:") for field in SUMMARY]
    assert found == COLUMNS.split("\n")[1:-1]


# What users load


def keep(hand):
    """study.json beside the rows, as a study writes it."""
    hand.folder.root.mkdir(parents=True, exist_ok=True)
    (hand.folder.root / "study.json").write_text(hand.study.model_dump_json())
    return hand


@pytest.fixture
def told(tmp_path):
    """A study whose control is as good as bilevel, and costs half of it."""
    told = keep(Hand(tmp_path / "hand"))
    told.finals("none", 0.60, 0.61, 0.62)
    told.finals("bilevel", 0.80, 0.82, 0.81, seconds=(40.0,))
    told.finals("bilevel learn:off", 0.79, 0.805, 0.82, seconds=(20.0,))
    told.finals("randaugment", 0.60, 0.61, 0.62, choices={"magnitude": 5})
    return told


def test_users_load_what_the_page_says(told):
    results = autoaug_ray.load_results(str(told.folder.root))
    best = results.best()
    assert verdict(results).headline.startswith("Use bilevel (81.00 % at 4.00x)")
    assert (best.label, best.control_of) == ("bilevel", None)
    assert best.relative_cost == pytest.approx(4.0)
    assert best.by_seed == {0: 0.80, 1: 0.82, 2: 0.81}
    low, high = best.interval
    assert (low + high) / 2 == pytest.approx(0.81)
    assert (high - low) / 2 == pytest.approx(best.test_accuracy_half_width)
    with pytest.raises(AttributeError):
        best.label = "another"
    frame = results.to_pandas()
    assert list(frame.columns) == SUMMARY.names
    assert frame.set_index("label").loc["bilevel", "relative_cost"] == pytest.approx(4.0)


def test_without_an_answer_there_is_no_best_entry(tmp_path):
    hand = keep(Hand(tmp_path))
    hand.finals("none", 0.60, 0.61)
    with pytest.raises(UserError, match="Too early to say what to use"):
        autoaug_ray.load_results(tmp_path).best()


def test_the_best_entrys_policy_is_loaded(told):
    method = told.study.entry("bilevel").method({})
    task = Task(1, 28, 28)
    state = method.init(task, seed=0, device=torch.device("cpu")).state_dict()
    kept = told.study.run(told.study.entry("bilevel"), "final", seed=1, choices={})
    export(told.folder.policy(kept.label, 1), kept, task, state, [], {})
    results = autoaug_ray.load_results(told.folder.root)
    best = results.best()
    line = verdict(results).load
    assert line == f"augment = autoaug_ray.load_policy({json.dumps(str(best.policies[1]))})"
    images = torch.rand(2, 1, 28, 28)
    for policy in (best.load_policy(), best.load_policy(seed=1)):
        assert policy.method == method and policy(images).shape == images.shape
    with pytest.raises(UserError, match="bilevel has no policy of seed 0; seeds with one: 1."):
        best.load_policy(seed=0)


def test_cases_are_loaded_by_name(tmp_path):
    for name, accuracy in (("b", 0.6), ("a", 0.5)):
        keep(Hand(tmp_path / name, case=name)).finals("none", accuracy)
    cases = autoaug_ray.load_results(tmp_path)
    assert list(cases) == ["a", "b"]
    assert [case.by_label["none"].test_accuracy_mean for case in cases.values()] == [0.5, 0.6]
    assert autoaug_ray.load_results(tmp_path / "b").by_label["none"].test_accuracies == (0.6,)


def test_a_folder_that_is_no_study_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="holds no study.json; give the folder of one study") as e:
        autoaug_ray.load_results(tmp_path)
    assert len(str(e.value).splitlines()) == 1


# How often, and how much


OPENED: Counter[str] = Counter()
sys.addaudithook(lambda event, about: OPENED.update([str(about[0])]) if event == "open" else None)


def test_nothing_of_sixteen_cases_is_read_twice(tmp_path, monkeypatch):
    """Their pages, the page over them, the tables and the sentences, all from one reading.

    The figures of the single cases, which see no folder, are left out: they take a minute.
    """
    monkeypatch.setattr(write, "draw", lambda *_: {})
    folders = []
    for i in range(16):
        hand = keep(MixHand(tmp_path / f"case-{i}", case=f"case-{i}", seeds=1))
        hand.fill({"autogenda": 0.05}, classes=3, seed=i)
        folders.append((hand.study, hand.folder))
    OPENED.clear()
    console = Console(file=io.StringIO())
    page = run.show(collect_cases(folders), tmp_path, console)
    read = {path: n for path, n in OPENED.items() if str(tmp_path) in path and ".tmp" not in path}
    rows = [path for path in read if "/rows/" in path]
    ledger = [path for path in read if "/ledger/" in path]
    outcomes = [path for path in read if path.endswith("outcomes.jsonl")]
    assert (len(rows), len(ledger), len(outcomes)) == (16 * 4, 16 * 4, 16)
    assert {n for path, n in read.items() if not Path(path).is_dir()} == {1}
    assert page == tmp_path / "report.html" and page.is_file()


def test_results_load_without_what_only_figures_and_tests_need():
    """A command that reads no results must not pay for them: pandas alone takes a second."""
    heavy = ["matplotlib", "pandas", "plotly", "scipy.stats"]
    code = (
        "import json, sys, autoaug_ray.report.results, autoaug_ray.maths.statistics; "
        "import autoaug_ray.report.sentences; "
        f"print(json.dumps([m for m in {heavy} if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_a_folder_is_told_to_programs(tmp_path, capsys):
    hand = Hand(tmp_path / "hand")
    for label, accuracy in (("none", 0.5), ("bilevel", 0.7), ("bilevel learn:off", 0.5)):
        hand.finals(label, accuracy, accuracy + 0.01, accuracy - 0.01)
    hand.finals("randaugment", 0.5, 0.51, 0.49, choices={"magnitude": 5})
    hand.run("randaugment", "search", choices={"magnitude": 5})
    hand.run("randaugment", "search", choices={"magnitude": 9}, index=1)
    (hand.folder.root / "study.json").write_text(hand.study.model_dump_json())
    assert main(["report", str(hand.folder.root), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    said = verdict(hand.results())
    assert (told["answer"], told["headline"]) == (said.answer, said.headline)
    assert told["use"] == said.use.label
    assert {row["label"]: row for row in told["entries"]} == hand.rows()
    assert not (hand.folder.root / "report.html").exists()
    assert main(["report", str(hand.folder.root), "--json", "--wandb"]) == 2
