"""`init --budget`: the forecast of what is proposed fits, by sums that are made by hand."""

import pytest
from PIL import Image

from autoaug_ray import config
from autoaug_ray.commands import init, main
from autoaug_ray.commands.budget import (
    LADDER,
    SLOWER,
    START,
    Plan,
    as_planned,
    at_epochs,
    fit,
    in_words,
    parse,
    seconds_of,
)  # fmt: skip
from autoaug_ray.errors import UserError
from autoaug_ray.schedule.forecast import forecast
from autoaug_ray.store.calibration import Calibration, EntryCalibration, KindOfStep, Training

METHODS = {
    "predefined": {}, "trivialaugment": {}, "randaugment": {"magnitude": {"grid": [5, 9, 13]}},
    "validated_magnitude": {"magnitude": {"grid": [0.05, 0.1, 0.2]}}, "bilevel": {},
}  # fmt: skip
STEPS, SECONDS = 100, 0.1


@pytest.fixture
def study(tiny):
    return tiny(METHODS, train={"epochs": 20}, seeds=5)


def calibrated(study, seconds=SECONDS):
    """Every training of the study has 100 steps of so many seconds."""
    kind = KindOfStep(
        logged="train_loss", steps=1, in_run=STEPS, q1=seconds, median=seconds, q3=seconds, gflop=1
    )
    entries = tuple(
        EntryCalibration(label=e.label, run="", device="CPU", clock="", threads=1, search=None,
                         final=Training(kinds=(kind,)))
        for e in study.entries
    )  # fmt: skip
    return Calibration(time=0.0, entries=entries)


@pytest.fixture
def calibration(study):
    return calibrated(study)


def by_hand(entries, searches, seeds, epochs, devices):
    """Seconds of a study: each training takes 10 at 20 epochs."""
    return START + SLOWER * (entries * seeds + searches) * 10 * epochs / 20 / devices


@pytest.mark.parametrize(
    "rung, entries, searches", [(0, 7, 6), (1, 7, 6), (2, 7, 6), (3, 6, 3), (4, 5, 0), (5, 3, 0)]
)
def test_what_just_fits_is_taken_and_a_second_less_is_not(
    study, calibration, rung, entries, searches
):
    seeds, least, cut = LADDER[rung]
    left_out = ("validated_magnitude", "randaugment", "bilevel")[:cut]
    fewest = round(20 * least)
    needed = by_hand(entries, searches, seeds, fewest, devices=2)
    plan = fit(study, calibration, needed + 0.01, 2)
    assert plan == (seeds, fewest, left_out)
    if rung < len(LADDER) - 1:
        assert fit(study, calibration, needed - 0.01, 2)[::2] != (seeds, left_out)
    else:
        with pytest.raises(
            UserError, match=f"^--budget: .* are too few: none, .* with 3 seeds of {fewest} epochs"
        ):
            fit(study, calibration, needed - 0.01, 2)


@pytest.mark.parametrize("budget", [150, 200, 300, 400, 600, 5000])
@pytest.mark.parametrize("devices", [1, 2])
def test_the_forecast_of_a_plan_fits_in_the_budget(study, calibration, budget, devices):
    plan = fit(study, calibration, budget, devices)
    planned = as_planned(study, plan)
    assert len(planned.seeds) == plan.seeds >= 3 and planned.train.epochs == plan.epochs
    shorter = at_epochs(calibration, plan.epochs / 20)
    assert seconds_of(forecast(planned, shorter), devices) <= budget


def test_a_control_goes_with_its_entry(study):
    planned = as_planned(study, Plan(3, 8, ("bilevel", "randaugment")))
    labels = [e.label for e in planned.entries]
    assert labels == ["none", "predefined", "trivialaugment", "validated_magnitude"]


@pytest.mark.parametrize("text, seconds", [("90s", 90), ("30m", 1800), ("1.5h", 5400)])
def test_times(text, seconds):
    assert parse(text) == seconds
    assert in_words(seconds) == {90: "90 seconds", 1800: "30 minutes", 5400: "90 minutes"}[seconds]


@pytest.mark.parametrize("text", ["30", "m", "0m", "-5m", "1d", "30 m", "1e3s", ""])
def test_what_is_no_time_is_one_sentence(text):
    with pytest.raises(UserError, match="--budget must be a time above 0, as in 90s, 30m or 2h"):
        parse(text)


def test_a_proposal_is_cut_to_its_budget_or_refused(tmp_path, monkeypatch, capsys):
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (9, 9), (20 * i, 99, 50)).save(tmp_path / "pets" / name / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(init, "calibrate", lambda study, turns: calibrated(study, seconds=1.0))
    line = ["init", "pets", "--budget"]
    assert main([*line, "90s"]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: --budget: 90 seconds are too few: none, predefined, trivial")
    assert [p.name for p in tmp_path.iterdir()] == ["pets"]
    assert main([*line, "15m"]) == 0  # 21 trainings of 100 seconds on 2 cores, half as long, x 1.5
    said = capsys.readouterr().out
    (study,) = config.load(tmp_path / "pets.yaml")
    assert len(study.seeds) == 3 and "left out: validated_magnitude" in said
    labels = {e.label for e in study.entries}
    assert labels == {"none", *METHODS, "bilevel learn:off"} - {"validated_magnitude"}
    assert 0.5 * 200 <= study.train.epochs < 200
    assert "did not fit in --budget" in (tmp_path / "pets.yaml").read_text()
