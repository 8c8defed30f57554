"""The steps on throw-away copies: no row depends on them, and no cost has them."""

import copy
import itertools
import random

import numpy as np
import pytest
import torch

from autoaug_ray import train
from autoaug_ray.methods.predefined import NoAugmentation
from autoaug_ray.store.folder import TIMES
from autoaug_ray.store.meter import TRAINING, Meter

SHORT = {"epochs": 2, "batch_size": 16, "iters_per_epoch": 3}


@pytest.fixture(autouse=True)
def cold(monkeypatch):
    """This process has taken no step, as a new one."""
    monkeypatch.setattr(train, "WARM", set())


class Steps:
    """A work clock that tells the number of steps taken, warm-up included."""

    name = "steps"

    def __init__(self, monkeypatch):
        self.now, plain = 0, NoAugmentation.step

        def step(method, *arguments):
            self.now += 1
            return plain(method, *arguments)

        monkeypatch.setattr(NoAugmentation, "step", step)

    def mark(self):
        return self.now

    def between(self, marks):
        return [float(end - begin) for begin, end in itertools.pairwise(marks)]


def rows(run):
    """All that must not depend on a warm-up: rows, and the global random numbers after them."""
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    out = [
        {k: v for k, v in epoch.row.items() if k not in (*TIMES, "attempt")}
        for epoch in train.run(run)
    ]
    return out, torch.rand(3).tolist(), random.random(), np.random.rand()


@pytest.mark.parametrize(
    ("method", "model"),
    [
        ("none", "badgan"),  # which has dropout, so that its steps draw global random numbers
        ("randaugment", "cnn"),
        ("bilevel", "cnn"),
        ("bilevel", "badgan"),
        ("dada", "cnn"),
    ],
)
def test_rows_are_the_same_to_the_bit_with_and_without(method, model, final_run, monkeypatch):
    steps_per_epoch = []
    learn = train.learn

    def counted(setup, *arguments):
        steps_per_epoch.append(setup.steps)
        return learn(setup, *arguments)

    monkeypatch.setattr(train, "learn", counted)
    small = {"name": "fashion-mnist-mini", "train_size": 40, "test_size": 20}
    model = {"name": model} if model == "badgan" else {"name": model, "width": 4}
    run = final_run(method, model=model, dataset=small, train=SHORT | {"batch_size": 4})
    first = rows(run)
    taken = list(steps_per_epoch)
    steps_per_epoch.clear()
    warm = rows(run)
    assert steps_per_epoch == [3, 3] and taken[1:] == [3, 3] and len(taken) == 3 and taken[0] > 0
    assert first == warm


def test_a_run_that_goes_on_is_the_same_in_a_cold_process(final_run):
    run = final_run("bilevel", train=SHORT | {"epochs": 3})
    whole = []
    for epoch in train.run(run):
        whole.append({k: v for k, v in epoch.row.items() if k not in TIMES})
        if epoch.row["epoch"] == 1:
            saved = copy.deepcopy(epoch.snapshot())  # its tensors go on to be trained
    train.WARM.clear()
    rest = [{k: v for k, v in e.row.items() if k not in TIMES} for e in train.run(run, None, saved)]
    assert rest == whole[1:] and train.WARM


def test_it_is_shown_and_in_no_cost(final_run, monkeypatch, tmp_path):
    clock = Steps(monkeypatch)
    run = final_run("none", train=SHORT | {"iters_per_epoch": 100})
    with Meter(tmp_path, key="k", work_clock=clock) as meter:
        found = [epoch.row for epoch in train.run(run, meter)]
    assert clock.now == 2 + 2 * 100  # two steps, as one in a hundred would be
    assert meter._work["warm_up"] == 2
    assert sum(meter._work[phase] for phase in TRAINING) == 200
    assert [row["work"] for row in found] == [100, 100]
    assert [(kind["steps"], kind["median"]) for kind in found[0]["step_work"]] == [(100, 1)]
    assert meter.seconds()["warm_up"] > 0


def test_it_is_short_beside_a_short_training(final_run, monkeypatch):
    clock = Steps(monkeypatch)
    list(train.run(final_run("none", train=SHORT), Meter(work_clock=clock)))
    assert clock.now == 1 + 2 * 3


def test_it_is_done_once_for_each_kind_of_step_in_a_process(final_run, monkeypatch):
    clock = Steps(monkeypatch)

    def warm_ups(**other):
        before = clock.now
        training = SHORT | other.pop("train", {})
        list(train.run(final_run("none", train=training, **other), Meter(work_clock=clock)))
        return clock.now - before - 2 * 3

    assert warm_ups() == 1
    assert warm_ups() == 0
    assert warm_ups(seed=1, train={"lr": 0.01}) == 0, "the same work"
    assert warm_ups(train={"batch_size": 8}) == 1
    assert warm_ups(model={"width": 2}) == 1
    assert warm_ups() == 0
