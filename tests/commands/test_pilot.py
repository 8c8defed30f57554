"""`autoaug-ray pilot`: its rule on made-up accuracies, and a real one of a tiny folder."""

from math import sqrt

import numpy as np
import pytest
from command import run_all
from hand import entry
from PIL import Image

from autoaug_ray.commands import main, pilot_rule
from autoaug_ray.commands.pilot_rule import decide
from autoaug_ray.errors import UserError
from autoaug_ray.report.elimination import LOOKS
from autoaug_ray.store.folder import Folder

FLAT = (0.5, 0.5, 0.5)


def row(label, *points, cost=1.0, over=FLAT):
    """An entry with accuracies in [0, 1] that are so many points above `over`."""
    accuracies = [base + p / 100 for base, p in zip(over, points, strict=True)]
    return entry(label, relative_cost=cost, test_accuracies=accuracies)


NONE, TRIVIAL = row("none", -5, -5, -5), row("trivialaugment", 0, 0, 0, cost=1.2)


def verdict(*rows, searches=("bilevel",), worth=1.0):
    free = [r.label for r in rows if r.label not in searches]
    return decide(rows, searches, free, worth=worth)


def half_width(sd):
    """The half width at three seeds: with two degrees of freedom Student's t has a closed form."""
    p = 1 - 0.05 / len(LOOKS) / 2
    return (2 * p - 1) * sqrt(2 / (4 * p * (1 - p))) * sd / sqrt(3)


def test_the_interval_is_the_corrected_one():
    """Differences 0.4, 0.6, 0.8: mean 0.6, sd 0.2."""
    high = 0.6 + half_width(0.2)
    assert high == pytest.approx(1.4832, abs=1e-4)
    rows = NONE, TRIVIAL, row("bilevel", 0.4, 0.6, 0.8, cost=2.8)
    assert verdict(*rows, worth=high + 1e-6).decided
    open_ = verdict(*rows, worth=high - 1e-6)
    assert not open_.decided
    assert open_.sentence == (
        "Undecided at 3 seeds: bilevel (50.60 % at 2.80x) against trivialaugment (50.00 % at "
        "1.20x) is -0.3 to +1.5 points (95 %)."
    )


def test_search_is_not_worth_it():
    said = verdict(NONE, TRIVIAL, row("bilevel", 0.1, 0.2, 0.3, cost=2.8))
    assert said.decided and said.sentence == (
        "Search is not worth it here: none is more than 0.6 points better than trivialaugment "
        "(50.00 % at 1.20x) (95 %); bilevel (50.20 % at 2.80x) comes nearest to that."
    )
    said = verdict(NONE, TRIVIAL, row("bilevel", -2, -2, -2, cost=2.8))
    assert said.sentence.endswith(
        "every one is worse than trivialaugment (50.00 % at 1.20x) (95 %); bilevel (48.00 % at "
        "2.80x) by at least 2.0 points."
    )


def test_search_pays_from_where_the_interval_leaves_zero():
    shift = half_width(0.2)
    for mean, pays in ((shift + 0.001, True), (shift - 0.001, False)):
        learned = row("bilevel", mean - 0.2, mean, mean + 0.2, cost=2.8)
        said = verdict(NONE, TRIVIAL, learned)
        assert said.decided is pays
        assert said.sentence.startswith("Search pays here" if pays else "Undecided at 3 seeds")
    said = verdict(NONE, TRIVIAL, row("bilevel", 2.8, 3.0, 3.2, cost=2.8))
    assert said.sentence == (
        "Search pays here: bilevel (53.00 % at 2.80x) is 2.1 to 3.9 points better than "
        "trivialaugment (50.00 % at 1.20x) (95 %)."
    )


def test_better_by_less_than_it_is_worth_does_not_pay():
    rows = NONE, TRIVIAL, row("bilevel", 0.5, 0.5, 0.5, cost=2.8)
    assert verdict(*rows).sentence.startswith("Search is not worth it here")
    assert verdict(*rows, worth=0.4).sentence.startswith("Search pays here")


def test_every_search_must_be_ruled_out_and_one_is_enough_to_pay():
    poor, wide = row("bilevel", -1, -1, -1), row("randaugment", -3, 0, 3)
    both = {"searches": ("bilevel", "randaugment")}
    assert verdict(NONE, TRIVIAL, poor, **both | {"searches": ("bilevel",)}).decided
    assert not verdict(NONE, TRIVIAL, poor, wide, **both).decided
    good = row("randaugment", 3, 3, 3)
    assert "pays here: randaugment" in verdict(NONE, TRIVIAL, poor, good, **both).sentence


def test_search_must_be_better_than_everything_without_search():
    """None is 2 points above TrivialAugment, which three seeds cannot tell: half-width 4.4."""
    rows = row("none", 1, 2, 3), TRIVIAL
    said = verdict(*rows, row("bilevel", 2, 2, 2, cost=2.8))
    assert not said.decided and "against trivialaugment" in said.sentence
    said = verdict(*rows, row("bilevel", 9, 10, 11, cost=2.8))
    assert "8.0 to 8.0 points better than none" in said.sentence


def test_a_yardstick_is_replaced_only_beyond_chance():
    """Over TrivialAugment by 1.1 half-widths: enough for the only other entry, not among four."""
    mean = 1.1 * half_width(0.2)
    others = [row(f"p{i}", -2, -1, 0) for i in range(3)]
    better = row("predefined", mean - 0.2, mean, mean + 0.2, cost=1.2)
    rows = TRIVIAL, better, row("bilevel", 0, 0, 0)
    assert "worse than predefined" in verdict(*rows).sentence
    assert "than trivialaugment" in verdict(*rows, *others).sentence


def test_differences_are_paired_over_the_seeds():
    over = (0.3, 0.5, 0.9)
    rows = [row("none", -5, -5, -5, over=over), row("trivialaugment", 0, 0, 0, over=over)]
    assert "pays" in verdict(*rows, row("bilevel", 1.9, 2.0, 2.1, over=over)).sentence


def test_a_yardstick_that_hurts_is_replaced():
    """TrivialAugment 4 points below none; the search is as good as none, so 4 above the former."""
    hurt = row("trivialaugment", -4, -4, -4, cost=1.2)
    rows = row("none", 0, 0, 0), hurt, row("bilevel", 0.2, 0.2, 0.2, cost=2.8)
    assert verdict(*rows).sentence.startswith(
        "Search is not worth it here: none is more than 0.2 points better than none (50.00 % at "
        "1.00x)"
    )
    better = row("predefined", 2, 2, 2, cost=1.1)
    rows = NONE, TRIVIAL, better, row("bilevel", 2, 2, 2, cost=2.8)
    assert "better than predefined (52.00 % at 1.10x)" in verdict(*rows).sentence
    by_chance = row("predefined", -1, 2, 5, cost=1.1)
    rows = NONE, TRIVIAL, by_chance, row("bilevel", 0, 0, 0, cost=2.8)
    assert "than trivialaugment" in verdict(*rows).sentence


def test_a_control_that_is_as_good_as_what_it_controls_is_what_it_has_to_beat():
    control = row("bilevel learn:off", 3, 3, 3, cost=1.15)
    rows = NONE, TRIVIAL, control, row("bilevel", 3, 3, 3, cost=2.8)
    assert "better than bilevel learn:off (53.00 % at 1.15x)" in verdict(*rows).sentence


def test_without_trivialaugment_the_best_search_free_entry_is_the_yardstick():
    rows = NONE, row("predefined", 1, 1, 1), row("bilevel", 1, 1, 1, cost=2.8)
    assert "than predefined" in verdict(*rows).sentence


def test_what_has_not_finished_decides_nothing():
    assert verdict(NONE, TRIVIAL, row("bilevel", over=())).sentence == (
        "Undecided: no final training of bilevel has finished."
    )
    few = row("bilevel", 0, 0, over=FLAT[:2])
    said = verdict(NONE, TRIVIAL, few)
    assert not said.decided and "fewer than 3 finished seeds in common" in said.sentence


def test_three_looks_seldom_find_a_search_that_is_not_there():
    """Equal entries, worth nothing less: at most 2.5 % of pilots may end with `pays`."""
    rng = np.random.default_rng(0)
    found, pilots = 0, 1000
    for _ in range(pilots):
        noise = rng.normal(0, 1, (2, LOOKS[-1]))
        for n in LOOKS:
            free, learned = (
                row(label, *x[:n], over=(0.5,) * n)
                for label, x in zip(("trivialaugment", "bilevel"), noise, strict=True)
            )
            said = verdict(free, learned, worth=1e-9)
            if said.decided:
                found += "pays" in said.sentence
                break
    assert 0 < found / pilots < 0.035


# The study that a pilot runs


def test_a_pilot_is_shorter_and_leaves_the_test_set_alone(tiny):
    study = tiny({"trivialaugment": {}, "bilevel": {}}, train={"epochs": 30}, seeds=10)
    short = pilot_rule.shortened(study, None)
    assert (short.name, short.train.epochs, short.seeds) == ("tiny-pilot", 10, (0, 1, 2))
    assert short.dataset.closed_test and not study.dataset.closed_test
    assert short.entries == study.entries and short.train.lr == study.train.lr
    assert pilot_rule.shortened(study, 7).train.epochs == 7
    for whole, expected in ((1, 1), (3, 3), (6, 3)):
        study = tiny({"bilevel": {}}, train={"epochs": whole})
        assert pilot_rule.shortened(study, None).train.epochs == expected


def test_long_searches_are_cut_to_random_draws_from_the_same_space(tiny):
    study = tiny(
        {
            "short": {"method": "randaugment", "magnitude": {"grid": [5, 9, 13]}},
            "grid": {
                "method": "randaugment",
                "magnitude": {"grid": list(range(31))},
                "num_ops": {"grid": [1, 2, 3]},
            },
            "random": {
                "method": "validated_magnitude",
                "magnitude": {"uniform": [0, 0.5]},
                "search": {"samples": 50, "scheduler": "asha"},
            },
            "pba": {"population": 16},
        }
    )
    short = pilot_rule.shortened(study, None)
    trials = {
        e.label: [r.method for r in pilot_rule.search_runs(short, e, pilot_rule.draw)]
        for e in short.entries
    }
    assert {k: len(v) for k, v in trials.items()} == {
        "none": 0, "short": 3, "grid": 8, "random": 8, "pba": 8,
    }  # fmt: skip
    assert [m.magnitude for m in trials["short"]] == [5, 9, 13]
    assert len({(m.magnitude, m.num_ops) for m in trials["grid"]}) > 4
    assert short.entry("random").search.scheduler == "asha"


def test_who_searches(tiny):
    study = tiny(
        {
            "trivialaugment": {},
            "grid": {"method": "randaugment", "magnitude": {"grid": [5, 9]}},
            "bilevel": {"controls": ["off", "train_loss"]},
            "plain": {"method": "bilevel", "learn": "off"},
            "replay": {"of": "bilevel"},
            "pba": {},
            "mix": {"probabilities": {"identity": 0.5, "fixed": 0.5}},
            "autogenda": {},
        }
    )
    assert pilot_rule.searching(study) == ["grid", "bilevel", "replay", "pba", "autogenda"]
    assert pilot_rule.search_free(study) == ["none", "trivialaugment", "bilevel learn:off", "plain",
                                        "mix"]  # fmt: skip


def test_a_study_without_a_question_is_refused(tiny):
    with pytest.raises(UserError, match="no method of the study searches or learns"):
        pilot_rule.shortened(tiny({"trivialaugment": {}}), None)
    searched = {"method": "randaugment", "magnitude": {"grid": [5, 9]}}
    study = tiny({"none": searched})
    with pytest.raises(UserError, match="every method of the study searches"):
        pilot_rule.shortened(study, None)


def test_the_whole_study_is_extrapolated_run_by_run(tiny):
    """Finals 10 s and searches 4 s on 2 devices, in a pilot of a third of the steps."""
    grid = {"method": "randaugment", "magnitude": {"grid": list(range(12))}}
    whole = tiny({"grid": grid}, train={"epochs": 9, "iters_per_epoch": 10}, seeds=5)
    short = pilot_rule.shortened(whole, 3)

    def line(label, phase, run, seconds):
        return {
            "label": label, "phase": phase, "run": run, "share": 2.0,
            "seconds": {phase: 0.75 * seconds, "other": 0.25 * seconds},
        }  # fmt: skip

    lines = [line("none", "final", f"n{i}", 10) for i in range(3)]
    lines += [line("grid", "final", f"g{i}", 20) for i in range(3)]
    lines += [line("grid", "search", f"s{i}", 3) for i in range(8)]
    lines += [line("grid", "search", "s0", 8)]  # an attempt that died
    assert pilot_rule.device_hours(lines) == pytest.approx(2 * (30 + 60 + 32) / 3600)
    expected = 3 * 2 * (5 * 10 + 5 * 20 + 12 * 4) / 3600
    assert pilot_rule.whole_hours(whole, short, lines) == pytest.approx(expected)


def test_a_search_of_its_own_length_is_no_longer_in_the_whole_study(tiny):
    settings = {"method": "autogenda", "search_steps": 90}
    whole = tiny({"mine": settings}, train={"epochs": 9, "iters_per_epoch": 10}, seeds=5)
    short = pilot_rule.shortened(whole, 3)
    lines = [
        {"label": "mine", "phase": phase, "run": phase, "share": 1.0, "seconds": {phase: 6.0}}
        for phase in ("search", "final")
    ]
    expected = 5 * (6 + 3 * 6) / 3600
    assert pilot_rule.whole_hours(whole, short, lines) == pytest.approx(expected)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["no.yaml"], "no.yaml cannot be read"),
        (["{}", "--worth", "0"], "--worth must be above 0, got 0."),
        (["{}", "--epochs", "-1"], "--epochs must be above 0, got -1."),
        (["{}", "--set", "train.epoch=1"], "train.epoch: unknown key"),
        (["{}", "--set", "methods.bilevel.learn=off"], "no method of the study searches or learns"),
    ],
)
def test_wrong_input_is_one_sentence(arguments, message, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text("dataset: {name: fashion-mnist-mini}\nmethods: {none: , bilevel: }\n")
    assert main(["pilot", *(a.format(path) for a in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1


@pytest.mark.nightly
@pytest.mark.ray
def test_a_real_pilot(tmp_path, monkeypatch):
    """Pictures without any pattern, in two classes: all accuracies are chance."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(30):
            pixels = rng.integers(0, 255, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{i}.png")
    (tmp_path / "pets.yaml").write_text(
        "dataset: {name: folder, root: pets, channels: 1, image_size: 8, test_fraction: 0.2}\n"
        "model: {name: cnn, width: 4}\ntrain: {epochs: 3, batch_size: 16}\nseeds: 4\n"
        "reference: trivialaugment\nmethods: {trivialaugment: , bilevel: {controls: []}}\n"
    )

    monkeypatch.chdir(tmp_path)
    done = run_all("pilot", "pets.yaml", "--worth", "0.001")
    assert done.returncode == 0, done.stdout + done.stderr
    said = " ".join(done.stdout.split())
    assert "in place of the test set, which stays closed" in said
    assert "Undecided at 3 seeds" in said
    assert "that the whole study takes at this speed (4 seeds of 3 epochs)" in said
    assert "held-out accuracy %" in said
    assert "the whole study: autoaug-ray pets.yaml" in said
    assert "Use the cheapest, trivialaugment" in said and "95 % over the 3 looks of a pilot" in said
    folder = Folder(tmp_path / "runs" / "pets-pilot")
    rows = folder.finished().values()
    assert len(rows) in (2 * 5, 2 * 8)
    assert {sum(row["class_counts"]) for row in rows} == {38}  # of 60: 12 tested, 10 stand in
    page = (folder.root / "report.html").read_text()
    assert "What stands in for the closed test set was read once" in page
