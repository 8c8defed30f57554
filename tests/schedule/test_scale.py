"""The simulated cluster against closed forms; the driver's cost, measured on a tiny study."""

import json
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
from ray.tune.experiment import Trial
from ray.tune.utils.object_cache import _ObjectCache

from autoaug_ray.bench import __main__ as command
from autoaug_ray.bench.scale import RECORDED, Driver, lasting, shortest, simulate
from autoaug_ray.schedule.schedulers import PerEntry
from autoaug_ray.schedule.tune import _placement

FREE = Driver(trial=0.0, result=0.0)


@pytest.mark.parametrize(("trials", "slots"), [(7, 3), (64, 64), (65, 64), (1000, 64), (2, 5)])
@pytest.mark.parametrize("results", [1, 4])
def test_equal_trials_and_a_driver_that_costs_nothing_run_in_waves(trials, slots, results):
    found = simulate([10.0] * trials, slots, FREE, results)
    waves = math.ceil(trials / slots)
    assert found.seconds == pytest.approx(10 * waves)
    assert found.busy == pytest.approx(trials / (slots * waves)) and found.driver == 0


@pytest.mark.parametrize("results", [1, 5])
def test_one_slot_pays_for_everything_in_turn(results):
    found = simulate([3.0, 5.0], 1, Driver(trial=0.5, result=0.1, start=2.0), results)
    assert found.seconds == pytest.approx(2 + 8 + 2 * 0.5 + 2 * results * 0.1)


@pytest.mark.parametrize("slots", [1, 3, 10, 20, 40])
def test_the_driver_saturates_where_its_rate_is_reached(slots):
    """A closed loop of equal customers with one server has no queue until 1 / load of them."""
    n, driver, trial = 4000, Driver(trial=1.0, result=0.0), 9.0
    found = simulate([trial] * n, slots, driver)
    rate = min(slots / (trial + 1), 1.0)
    assert n / found.seconds == pytest.approx(rate, rel=0.01)
    assert found.busy == pytest.approx(rate * trial / slots, rel=0.01)
    assert found.driver == pytest.approx(rate, rel=0.01)
    # The same work in five visits: never more than that, and the same away from the knee.
    split = simulate([trial] * n, slots, Driver(trial=0.2, result=0.2), 4)
    assert n / split.seconds <= rate * 1.01
    if slots != 10:
        assert n / split.seconds == pytest.approx(rate, rel=0.02)


def test_actors_that_start_one_by_one():
    slow = Driver(trial=0.0, result=0.0, start=5.0, together=False)
    # Trials longer than all starts: a slot begins every five seconds.
    assert simulate([100.0] * 4, 4, slow).seconds == pytest.approx(4 * 5 + 100)
    # Shorter than a start: the idle actor takes every trial, and no other ever starts.
    assert simulate([3.0] * 10, 4, slow).seconds == pytest.approx(5 + 10 * 3)
    # In between: the second slot starts beside the first trial and they share what is left.
    assert simulate([6.0] * 4, 2, slow).seconds == pytest.approx(5 + 5 + 2 * 6)
    together = slow._replace(together=True)
    assert simulate([100.0] * 4, 4, together).seconds == pytest.approx(5 + 100)


def test_the_shortest_trials_are_at_the_aim():
    driver, slots, trials = Driver(trial=0.02, result=0.002, start=20.0), 64, 1000
    found = shortest(RECORDED, trials, slots, driver, 30)
    at, below = (
        simulate(lasting(RECORDED, trials, found * part), slots, driver, 30).busy
        for part in (1.0, 0.97)
    )
    assert below < 0.9 <= at
    assert shortest([1.0], 65, 64, driver, 30) is None  # two waves, the second for one trial


def test_trials_last_as_asked_and_keep_their_spread():
    made = lasting([1.0, 3.0], 5, 10.0)
    assert made == [5.0, 15.0, 5.0, 15.0, 5.0]


@pytest.mark.ray
@pytest.mark.nightly
def test_scale(tmp_path):
    """In a process of its own: Ray is started with the CPUs that the benchmark asks for."""
    out = tmp_path / "s.json"
    arguments = [
        "scale",
        "--measured",
        "20",
        "--slots",
        "2",
        "--trials",
        "100",
        "--results",
        "3",
        "--json",
        str(out),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "autoaug_ray.bench", *arguments],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    assert figures["driver"]["trial"] > 0 and figures["driver"]["trial_cpu"] > 0
    for one in figures["measured"]:
        assert one["trials"] == 20 + 3  # and a final run of each entry
        assert 1 <= one["processes"] < one["trials"] / 2  # they serve several trials each
    assert [(r["nodes"], r["slots"]) for r in figures["rows"][:3]] == [(1, 1), (1, 4), (4, 4)]
    for row in figures["rows"]:
        busy = [row[name]["busy"] for name in ("alone", "together", "ideal")]
        assert 0 < busy[0] and busy == sorted(busy) and busy[-1] <= 1 + 1e-9
    assert "one by one" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--measured", "5"], "--measured must be an even number from 20 on, got 5"),
        (["--study", "nowhere"], "--study must be a folder with a ledger, got nowhere"),
        (["--results", "0"], "--results must be above 0"),
    ],
)
def test_errors_are_one_sentence(arguments, words, capsys):
    assert command.main(["scale", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_a_starting_actor_is_not_given_up_for_an_idle_one(tiny):
    """Tune kills the actor that starts for a trial which is chosen while another one is idle."""
    scheduler = PerEntry([tiny({})])

    def trial(cpus):
        config = {"phase": "final", "case": None, "label": "none"}
        resources = _placement(cpus, 0, 1)
        made = Trial("x", config=config, placement_group_factory=resources, stub=True)
        made.create_placement_group_factory()
        scheduler.on_trial_add(controller, made)
        live.append(made)
        return made

    live, started, idle = [], set(), _ObjectCache(may_keep_one=True)
    controller = SimpleNamespace(
        get_live_trials=lambda: set(live), _trial_to_actor={}, _actor_cache=idle,
        _actor_manager=SimpleNamespace(is_actor_started=started.__contains__),
    )  # fmt: skip
    first, second, third, other = trial(1), trial(1), trial(1), trial(2)
    assert scheduler.choose_trial_to_run(controller) is first
    controller._trial_to_actor |= {first: "a", second: "b"}  # both asked for, one has its place
    started.add("a")
    assert scheduler.choose_trial_to_run(controller) is second
    idle.cache_object(_placement(2, 0, 1), "c")
    assert scheduler.choose_trial_to_run(controller) is other
    for each in (second, third, other):
        each.set_status(Trial.RUNNING)
    assert scheduler.choose_trial_to_run(controller) is None
