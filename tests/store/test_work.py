"""Work: two clocks with false hands, sums over attempts, and the steps of an epoch."""

import itertools
import math
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from autoaug_ray.store import meter as m
from autoaug_ray.store.work import EpochWork, epoch_work, typical


class Hand:
    """A clock whose hand the test moves; a work clock, too."""

    name = "a hand"

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    mark = __call__

    def between(self, marks):
        return [end - begin for begin, end in itertools.pairwise(marks)]


@pytest.fixture
def clock():
    return Hand()


@pytest.fixture
def work():
    return Hand()


def only(**phases):
    """Numbers by phase, 0 for all others."""
    return dict.fromkeys(m.PHASES, 0.0) | phases


def last(ledger, number=-1):
    return m.read(ledger)[number]


def test_a_phase_within_another_is_charged_alone(tmp_path, clock, work):
    with m.Meter(tmp_path, key="k", clock=clock, work_clock=work) as meter:
        work.now += 64  # before the first phase: nobody's work
        with meter.phase("search"):
            work.now += 1
            clock.now += 10
            with meter.phase("eval"):
                work.now += 2
                clock.now += 20
            with meter.phase("warm_up"):
                work.now += 4
                clock.now += 40
            work.now += 8
            clock.now += 80
        work.now += 32
        clock.now += 1
    line = last(tmp_path)
    assert line["work"] == {"search": 9, "eval": 2, "warm_up": 4}
    assert line["seconds"] == only(search=90, eval=20, warm_up=40, other=1)


def test_an_exception_in_a_phase_within_another_leaves_the_outer_one_open(clock, work):
    meter = m.Meter(clock=clock, work_clock=work)
    with meter.phase("search"):
        with pytest.raises(ZeroDivisionError), meter.phase("eval"):
            clock.now += 3
            raise ZeroDivisionError
        clock.now += 5
    assert meter.seconds() == only(search=5, eval=3)


class Gpu:
    """A GPU that reaches a point in its work only once somebody waits for it."""

    def __init__(self):
        self.queued = self.reached = 0.0
        self.waits = 0

    def event(self, *, enable_timing):
        assert enable_timing
        return Event(self)

    def synchronize(self, device=None):
        self.waits += 1
        self.reached = self.queued


class Event:
    def __init__(self, gpu):
        self.gpu, self.at = gpu, None

    def record(self):
        self.at = self.gpu.queued

    def synchronize(self):
        self.gpu.waits += 1
        self.gpu.reached = max(self.gpu.reached, self.at)

    def elapsed_time(self, end):
        assert self.at <= end.at <= self.gpu.reached, "asked before the GPU was there"
        return 1000 * (end.at - self.at)  # milliseconds, as CUDA has it


@pytest.fixture
def gpu(monkeypatch):
    made = Gpu()
    monkeypatch.setattr(torch.cuda, "synchronize", made.synchronize)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    return made


def test_steps_on_a_gpu_are_waited_for_once(gpu):
    clock = m.CUDAClock(gpu.event)
    marks = [clock.mark()]
    for seconds in (0.5, 2.0, 0.25):
        gpu.queued += seconds
        marks.append(clock.mark())
    assert gpu.waits == 0, "a mark must not hold up the steps"
    assert clock.between(marks) == [0.5, 2.0, 0.25]
    assert gpu.waits == 1


def test_a_share_of_a_gpu_is_charged_for_its_share(tmp_path, gpu, clock):
    with m.Meter(
        tmp_path, key="k", device=torch.device("cuda"), share=0.25, clock=clock,
        work_clock=m.CUDAClock(gpu.event),
    ) as meter:  # fmt: skip
        with meter.phase("final"):
            marks = [meter.work_clock.mark()]
            for seconds in (4.0, 8.0):
                gpu.queued += seconds
                marks.append(meter.work_clock.mark())
            clock.now += 16
            assert meter.between(marks) == [1.0, 2.0]
    line = last(tmp_path)
    assert (line["device"], line["clock"]) == ("a GPU", "CUDA events")
    assert line["work"] == {"final": 3.0} and m.spent(line) == 4.0


def test_cpu_time_is_of_all_cpus_whatever_their_share(clock, work):
    """Two CPUs at work for a second are two CPU-seconds, which the clock has counted already."""
    meter = m.Meter(share=2.0, clock=clock, work_clock=work)
    begin = work.mark()
    work.now += 3
    assert meter.between([begin, work.mark()]) == [3.0]


@pytest.fixture
def cpu(monkeypatch):
    """The CPU time of this process and of the meter's thread, as the test has it."""
    used = SimpleNamespace(process=0.0, thread=0.0)
    false = SimpleNamespace(
        process_time=lambda: used.process, thread_time=lambda: used.thread,
        monotonic=lambda: 0.0, time=lambda: 0.0,
    )  # fmt: skip
    monkeypatch.setattr(m, "time", false)
    return used


def test_the_ledger_is_not_part_of_the_work(tmp_path, cpu, clock, monkeypatch):
    """A write that takes 16 s of CPU time in the meter's own thread, and 2 s of a step."""
    written = threading.Event()

    def write(self, *, ended):
        if threading.current_thread() is not threading.main_thread():
            cpu.process += 16
            cpu.thread += 16
            written.set()
            self._stop.set()

    monkeypatch.setattr(m.Meter, "_write", write)
    meter = m.Meter(tmp_path, key="k", heartbeat=0.05, clock=clock)
    (beats,) = (t for t in threading.enumerate() if getattr(t, "_target", None) == meter._live)
    with meter.phase("final"):
        begin = meter.work_clock.mark()
        cpu.process += 2
        assert written.wait(60)
        beats.join(60)
        assert meter.between([begin, meter.work_clock.mark()]) == [2.0]
    assert meter._work["final"] == 2.0


def attempt(ledger, clock, work, kept, lost, **phases):
    """One that is lost after `kept` and `lost` seconds of work, or, with neither, one that ends."""
    meter = m.Meter(ledger, key="k", clock=clock, work_clock=work, heartbeat=1e6)
    for seconds, on_disk in ((kept, True), (lost, False)):
        for phase, share in phases.items():
            with meter.phase(phase):
                work.now += share * seconds
                clock.now += 2 * share * seconds
        if on_disk:
            meter.keep()
    meter._beat()
    meter._stop.set()
    return meter


def test_redone_work_is_left_out(tmp_path, clock, work):
    attempt(tmp_path, clock, work, 3, 4, search=1, eval=8)
    attempt(tmp_path, clock, work, 0, 16, search=1, eval=8)
    attempt(tmp_path, clock, work, 32, 64, search=1, eval=8).__exit__()
    lines = m.read(tmp_path)
    assert [line["open"] for line in lines] == [True, True, False]
    needed = 3 + 0 + (32 + 64)
    for order in itertools.permutations(lines):
        assert m.work(order, ("search",)) == needed
    assert m.work(lines, ("search", "eval")) == needed * 9
    assert m.work(lines, ("final",)) == 0
    assert [m.in_vain(line) for line in lines[:2]] == [4 * 2 * 9, 16 * 2 * 9]
    assert m.work(lines[:1], ("search",)) == 7, "nobody has done it again"


def test_lines_of_a_version_that_did_not_measure_work_are_not_known_to_be_any(
    tmp_path, clock, work
):
    attempt(tmp_path, clock, work, 1, 1, final=1)
    new = last(tmp_path)
    old = {name: value for name, value in new.items() if name not in ("work", "kept_work")}
    assert m.work([new], ("final",)) == 2
    assert m.work([old, new | {"attempt": 2}], ("final",)) is None
    assert m.work([], ("final",)) is None


def test_steps_of_an_epoch_by_what_they_log():
    logged = ["train_loss"] * 4 + ["meta_loss, train_loss"] * 2
    found = epoch_work(logged, [1.0, 2.0, 4.0, 8.0, 100.0, 300.0])
    assert list(found.each) == list(zip(logged, (1.0, 2.0, 4.0, 8.0, 100.0, 300.0), strict=True))
    assert found._replace(each=()) == EpochWork(
        [
            {"logged": "meta_loss, train_loss", "steps": 2, "q1": 150, "median": 200, "q3": 250},
            {"logged": "train_loss", "steps": 4, "q1": 1.75, "median": 3, "q3": 5},
        ],
        415.0,
    )
    assert typical({"step_work": found.steps, "work_after": 7.0}) == 2 * 200 + 4 * 3 + 7


def test_quartiles_are_numpys():
    seconds = np.random.default_rng(0).exponential(size=(3, 41))
    logged = ["a", "b", "c"] * 41
    found = epoch_work(logged, seconds.T.ravel().tolist())
    for kind, values in zip(found.steps, seconds, strict=True):
        quartiles = [kind[name] for name in ("q1", "median", "q3")]
        np.testing.assert_allclose(quartiles, np.percentile(values, [25, 50, 75]), rtol=1e-12)
        assert kind["steps"] == 41
    assert found.total == pytest.approx(seconds.sum(), rel=1e-12)
    by_hand = 41 * np.median(seconds, axis=1).sum()
    assert typical({"step_work": found.steps, "work_after": 0.0}) == pytest.approx(by_hand)


def test_some_slow_steps_lengthen_the_sum_alone():
    calm, paged = (epoch_work(["x"] * 9, [1.0] * 6 + slow) for slow in ([1.0] * 3, [50.0] * 3))
    rows = [{"step_work": w.steps, "work_after": w.after} for w in (calm, paged)]
    assert typical(rows[0]) == typical(rows[1]) == 9 == calm.total
    assert math.isclose(paged.total, 156)
