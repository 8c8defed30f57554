import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from autoaug_ray import train
from autoaug_ray.errors import RunError
from autoaug_ray.learner import Learner
from autoaug_ray.maths import hypergradient
from autoaug_ray.methods.bilevel import Bilevel
from autoaug_ray.methods.fast_autoaugment import FastAutoAugment
from autoaug_ray.schedule.calibrate import TURNS, calibrate, fits, stretches, turns_of
from autoaug_ray.store import calibration

OUTER, PLAIN = "alignment, meta_loss, train_loss", "train_loss"


class Clock:
    """A work clock that moves when it is told to."""

    name = "a planted clock"
    now = 0.0

    def mark(self):
        return self.now

    def between(self, marks):
        return [end - begin for begin, end in zip(marks, marks[1:], strict=False)]


@pytest.fixture
def clock(monkeypatch):
    """A step takes 1 s, one with a hypergradient 4 s, a candidate of Fast AutoAugment 0.5 s."""
    clock = Clock()

    def takes(seconds, where, name):
        real = getattr(where, name)

        def work(first, *others):
            clock.now += seconds(first)
            return real(first, *others)

        monkeypatch.setattr(where, name, work)

    takes(lambda learner: 1.0, Learner, "backward")
    takes(lambda learner: 3.0, Learner, "apply")
    takes(lambda method: 0.5 * method.samples, FastAutoAugment, "finish")
    return clock


def kinds(training):
    return {k.logged: (k.in_run, k.q1, k.median, k.q3) for k in training.kinds}


def test_every_kind_of_step_is_measured_and_counted(tiny, clock):
    study = tiny(
        {"bilevel": {"every": 4, "until": 0.6}, "again": {"method": "replay", "of": "bilevel"}},
        train={"epochs": 10, "batch_size": 32},
    )  # 50 steps, of which 30 before `until`
    found = calibrate(study, clock)
    assert [e.label for e in found.entries] == ["none", "bilevel", "bilevel learn:off"]
    assert found.left_out.keys() == {"again"} and "of none" in found.left_out["again"]
    none, bilevel, off = found.entries
    assert kinds(none.final) == kinds(off.final) == {PLAIN: (50, 1.0, 1.0, 1.0)}
    assert kinds(bilevel.final) == {OUTER: (7, 4.0, 4.0, 4.0), PLAIN: (43, 1.0, 1.0, 1.0)}
    assert bilevel.search is None and bilevel.final.seconds == 4 * 7 + 43
    assert (bilevel.clock, bilevel.device, bilevel.threads) == ("a planted clock", "CPU", 1)


@pytest.mark.parametrize(
    "settings",
    [
        {"every": 4, "until": 0.6},
        {"until": 0.07},
        {"every": 7, "until": 0.99},
        {"estimator": "exact", "every": 3, "unroll": 2, "fraction": 0.5},
        {"learn": "train_loss", "every": 2},
    ],
)
def test_the_steps_of_a_run_are_those_that_it_takes(settings, tiny):
    study = tiny({"bilevel": settings}, train={"epochs": 6, "batch_size": 32})
    expected = calibrate(study).training("bilevel", "final")
    run = study.run(study.entry("bilevel"), "final", seed=0, choices={})
    taken = {}
    for epoch in train.run(run):
        for kind in epoch.row["step_work"]:
            taken[kind["logged"]] = taken.get(kind["logged"], 0) + kind["steps"]
    assert {k.logged: k.in_run for k in expected.kinds} == taken


def test_a_search_of_its_own_length_is_forecast_at_that_length(tiny):
    study = tiny(
        {"mine": {"method": "autogenda", "search_steps": 44}},
        train={"epochs": 2, "iters_per_epoch": 6, "batch_size": 32},
    )
    found = calibrate(study)
    steps = {p: [k.in_run for k in found.training("mine", p).kinds] for p in ("search", "final")}
    assert steps == {"search": [44], "final": [12]}


def test_a_rare_kind_of_step_is_found_wherever_it_is():
    method = Bilevel(every=1000, until=0.5)
    (only,) = stretches(method, 100_000)
    assert 999 in {done % 1000 for done in only} and len(only) < 10
    early, late = stretches(Bilevel(every=1, until=0.5), 1000)
    assert early.stop < 500 < late.start
    assert stretches(Bilevel(until=0.001), 2) == [range(2)]


def test_entries_take_turns(tiny, monkeypatch):
    turns, real = [], train.learn

    def learn(setup, *others):
        turns.append((setup.config.label, setup.config.phase, torch.get_num_threads()))
        return real(setup, *others)

    study = tiny(
        {"two": {"method": "none", "resources": {"cpus": 2.5}}, "autogenda": {}},
        resources={"cpus": 0.5},
    )
    torch.set_num_threads(1)
    calibrate(study)  # warm, so that no step is taken on throw-away copies below
    monkeypatch.setattr(train, "learn", learn)
    stream = torch.random.get_rng_state()
    calibrate(study)
    assert torch.get_num_threads() == 1 and torch.equal(stream, torch.random.get_rng_state())
    search = ("autogenda", "search", 1)
    once = [("none", "final", 1), ("two", "final", 2), search, ("autogenda", "final", 1)]
    each = turns_of(study)
    assert turns[: 1 + len(once) * each] == [search, *once * each]
    assert set(turns[1 + len(once) * each :]) == set(once), "these count FLOP"


def test_a_short_study_is_calibrated_in_fewer_turns(tiny):
    steps = {"batch_size": 32, "iters_per_epoch": 10}
    lengths = {1: 2, 3: 5, 100: TURNS}
    for epochs, turns in lengths.items():
        assert turns_of(tiny({}, train={"epochs": epochs, **steps})) == turns


def test_what_is_found_after_the_last_step_is_measured_by_a_part(tiny, clock):
    study = tiny({"fast_autoaugment": {"samples": 200}})
    entry = calibrate(study, clock).entry("fast_autoaugment")
    assert entry.search.after == 100.0 and entry.final.after == 0.0
    assert entry.search.seconds == 110.0 and entry.final.seconds == 10.0


def test_an_entry_whose_training_must_not_go_on_is_left_out(tiny, monkeypatch):
    real = train.learn

    def learn(setup, *others):
        if setup.config.label == "bilevel":
            raise RunError("bilevel: train_loss became nan.")
        return real(setup, *others)

    monkeypatch.setattr(train, "learn", learn)
    found = calibrate(tiny({"bilevel": {}}))
    assert [e.label for e in found.entries] == ["none", "bilevel learn:off"]
    assert found.left_out == {"bilevel": "bilevel: train_loss became nan."}


def test_arithmetic_of_a_network_is_that_by_hand(tiny):
    """A multiply-add is 2 FLOP; backward needs two products for each of forward, the first
    convolution one, as no gradient goes to the images. By alignment, one goes there from the
    trainer's pass and from the shifted one, in which the weights have none."""
    study = tiny({"bilevel": {"every": 2}})  # cnn of width 4 on 28 x 28, batches of 32
    first = 2 * 4 * 9 * 1 * 28**2
    others = 2 * 8 * 9 * 4 * 14**2 + 2 * 16 * 9 * 8 * 7**2 + 2 * 64 * 10
    by_hand = 32 * (2 * first + 3 * others) / 1e9
    found = calibrate(study)
    (none,) = found.entry("none").final.kinds
    assert none.gflop == pytest.approx(by_hand, rel=1e-12)
    gflop = {k.logged: k.gflop for k in found.entry("bilevel").final.kinds}
    assert gflop[PLAIN] == pytest.approx(by_hand, rel=1e-3)  # small matrices place the images
    outer = 32 * ((3 + 2 + 2) * first + (3 + 3 + 2) * others) / 1e9
    assert gflop[OUTER] == pytest.approx(outer, rel=1e-3)


def test_arithmetic_of_a_hypergradient_is_that_by_hand():
    """L_t(w) = CE(x(theta) w): forward x w; backward x' d; meta forward; and backwards through all
    of it, to w', to x and d in x' d, and to x in x w. Seven products of one size, where a plain
    step has two."""
    batch, inputs, classes = 6, 5, 3
    theta = torch.ones(inputs, requires_grad=True)
    images, labels = torch.rand(batch, inputs), torch.arange(batch) % classes
    w = {"w": torch.rand(inputs, classes, requires_grad=True)}

    def loss(x):
        return lambda w: F.cross_entropy(x @ w["w"], labels)

    with FlopCounterMode(display=False) as counter:
        hypergradient.unrolled(
            [loss(images * theta)], loss(images), w, {"w": torch.zeros_like(w["w"])}, [theta],
            [hypergradient.SGD(0.1)],
        )  # fmt: skip
    assert counter.get_total_flops() == 7 * 2 * batch * inputs * classes


def test_a_calibration_is_kept_and_says_what_a_row_takes(tiny, clock, tmp_path):
    study = tiny({"bilevel": {"every": 4}, "fast_autoaugment": {"samples": 200}})
    found = calibrate(study, clock)
    path = tmp_path / "deep" / "calibration.json"
    assert calibration.read(path) is None
    calibration.write(path, found)
    assert calibration.read(path) == found
    assert fits(found, study)
    assert not fits(found, tiny({"bilevel": {"every": 2}, "fast_autoaugment": {}}))
    assert not fits(found, tiny({"bilevel": {"every": 4}, "other": {"method": "none"}}))
    assert not fits(found, tiny({"bilevel": {"every": 4}}, resources={"cpus": 2}))

    def row(phase, finished, outer=0, plain=0):
        work = [{"logged": OUTER, "steps": outer}, {"logged": PLAIN, "steps": plain}]
        work = [kind for kind in work if kind["steps"]]
        return {"phase": phase, "finished": finished, "step_work": work}

    mixed = row("final", False, outer=2, plain=3)
    assert found.seconds("bilevel", mixed) == 4 * 2 + 3
    kind = {k.logged: k for k in found.entry("bilevel").final.kinds}
    gflop = 2 * kind[OUTER].gflop + 3 * kind[PLAIN].gflop
    assert found.gflop("bilevel", mixed) == pytest.approx(gflop)
    assert found.seconds("bilevel", row("search", False, plain=3)) == 3.0, "a trial's steps"
    assert found.seconds("fast_autoaugment", row("search", True, plain=3)) == 103.0
    assert found.seconds("fast_autoaugment", row("search", False, plain=3)) == 3.0
    assert found.seconds("fast_autoaugment", row("final", True, plain=3)) == 3.0
    for unknown in (row("final", True, outer=1), row("final", True)):
        assert found.seconds("none", unknown) is None and found.gflop("none", unknown) is None
    assert found.seconds("other", mixed) is None and found.gflop("other", mixed) is None

    path.write_text('{"time": 1}')
    assert calibration.read(path) is None
