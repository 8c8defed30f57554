import time

import pytest
import torch

from autoaug_ray import train
from autoaug_ray.methods.fast_autoaugment import FastAutoAugment
from autoaug_ray.schedule.forecast import REPEATS, forecast, probe_run


def test_every_entry_is_timed_and_every_run_counted(tiny):
    study = tiny(
        {
            "grid": {"method": "random_affine", "scale_x": {"grid": [0.0, 0.1, 0.2]}},
            "bilevel": {"every": 4},
            "again": {"method": "replay", "of": "bilevel"},
            "autogenda": {},
        },
        seeds=2,
        resources={"cpus": 2},
    )
    by_label = {f.label: f for f in forecast(study, torch.device("cpu"))}
    assert [f.search_runs for f in by_label.values()] == [0, 3, 0, 0, 0, 2]
    grid = by_label["grid"]
    assert grid.run_seconds == pytest.approx(grid.step_seconds * 5 * 2)  # steps x epochs
    assert grid.device_hours == pytest.approx(5 * grid.run_seconds * 2 / 3600)


def test_candidates_tried_after_the_last_step_are_timed_by_a_few(tiny, monkeypatch):
    tried = []

    def finish(method, learner, next_meta, state):
        tried.append(method.samples)
        time.sleep(0.01 * method.samples)

    monkeypatch.setattr(FastAutoAugment, "finish", finish)
    study = tiny({"fast_autoaugment": {"samples": 200}})
    _, timed = forecast(study, torch.device("cpu"))
    assert set(tried) == {8} and timed.search_runs == 1
    assert timed.run_seconds - timed.step_seconds * 10 == pytest.approx(2.0, rel=0.3)


def test_steps_are_timed_with_the_threads_of_a_trial(tiny, monkeypatch):
    used, real = [], train.run

    def run(*arguments, **named):
        used.append(torch.get_num_threads())
        return real(*arguments, **named)

    monkeypatch.setattr(train, "run", run)
    torch.set_num_threads(1)
    study = tiny({"two": {"method": "none", "resources": {"cpus": 2.5}}}, resources={"cpus": 0.5})
    forecast(study, torch.device("cpu"))
    assert used == [1] * REPEATS + [2] * REPEATS
    assert torch.get_num_threads() == 1


def test_the_timed_steps_hold_the_rare_outer_ones(final_run):
    run = final_run("bilevel", {"every": 10}, train={"epochs": 3, "batch_size": 10})
    short = probe_run(run, pool=160)
    assert short.train.epochs == 1 and short.dataset.train_size == 100
    (epoch,) = train.run(short)
    assert epoch.row["log"]["hypergradient_norm"] > 0
