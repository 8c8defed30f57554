import pytest
from hand import calibrated

from autoaug_ray.schedule.forecast import Forecast, forecast, sentence
from autoaug_ray.store.calibration import KindOfStep, Training


def steps(seconds, number=10, after=0.0):
    kind = KindOfStep(
        logged="train_loss", steps=9, in_run=number, q1=0, median=seconds, q3=9, gflop=1.0
    )
    return Training(kinds=(kind,), after=after)


def test_every_run_is_counted(tiny):
    study = tiny(
        {
            "grid": {"method": "random_affine", "scale_x": {"grid": [0.0, 0.1, 0.2]}},
            "bilevel": {"controls": []},
            "again": {"method": "replay", "of": "bilevel"},
            "autogenda": {},
            "unknown": {"method": "none"},
        },
        seeds=2,
    )
    found = forecast(
        study,
        calibrated(
            none=(None, steps(1.0)),
            grid=(None, steps(2.0)),
            bilevel=(None, steps(4.0)),
            autogenda=(steps(8.0, after=5.0), steps(1.0)),
        ),
    )
    assert found == [
        Forecast("none", 0, 2, 0.0, 10.0),
        Forecast("grid", 3, 2, 20.0, 20.0),
        Forecast("bilevel", 0, 2, 0.0, 40.0),
        Forecast("again", 0, 2, 0.0, 10.0),
        Forecast("autogenda", 2, 2, 85.0, 10.0),
    ]
    assert [f.device_seconds for f in found] == [20.0, 100.0, 80.0, 20.0, 190.0]
    assert sentence(found, "CPU") == (
        "forecast: 15 runs, about 6.83 CPU-minutes of training; the longest, autogenda, about "
        "85 CPU-seconds a run"
    )


@pytest.mark.parametrize(
    "seconds, words",
    [(0.51, "0.51 device-seconds"), (600, "10 device-minutes"), (36000, "10 device-hours")],
)
def test_a_forecast_is_told_in_the_unit_that_suits_it(seconds, words):
    assert f"about {words} of" in sentence([Forecast("none", 0, 1, 0.0, seconds)], "H200")
