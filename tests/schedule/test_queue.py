"""The order of runs, without Ray: rows are written by hand."""

import json

import pytest

from autoaug_ray.schedule.queue import RunQueue, queues_of, search_runs
from autoaug_ray.store.folder import ROW, Folder


def draw(values, rng):
    low, high = values.values
    return float(rng.uniform(low, high))


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def row(run, val=None, epoch=2, **other):
    values = dict.fromkeys(ROW.names)
    return values | {
        "run_key": run.key, "label": run.label, "phase": run.phase, "index": run.index,
        "settings": run.model_dump_json(), "epoch": epoch, "val_accuracy": val, "log": {},
        "finished": epoch == run.train.epochs, **other,
    }  # fmt: skip


def finish(queue, folder, run, val=0.5, **other):
    folder.write_rows(run.key, [row(run, val, **other)])
    queue.settle(run, "finished" if other.get("epoch", 2) == run.train.epochs else "stopped")


def take(queue):
    out = []
    while (run := queue.next()) is not None:
        out.append(run)
    return out


@pytest.fixture
def study(tiny):
    return tiny(
        {
            "none": {},
            "grid": {"method": "random_affine", "scale_x": {"grid": [0.0, 0.1, 0.2]}},
            "random": {
                "method": "validated_magnitude",
                "magnitude": {"uniform": [0.0, 0.5]},
                "search": {"samples": 2},
            },
        },
        seeds=[3, 4],
    )


def test_finals_follow_their_own_search_without_a_barrier(study, folder):
    queue = RunQueue(study, folder, draw)
    first = take(queue)
    assert queue.expected == 5 + 3 * 2
    assert [(r.label, r.phase) for r in first] == (
        [("grid", "search")] * 3 + [("random", "search")] * 2 + [("none", "final")] * 2
    )
    for run, val in zip(first[:3], (0.5, 0.9, 0.7), strict=True):
        finish(queue, folder, run, val)
    finals = take(queue)  # while `random` still searches
    assert [(r.label, r.seed, r.method.scale_x) for r in finals] == [
        ("grid", 3, 0.1), ("grid", 4, 0.1),
    ]  # fmt: skip
    assert not queue.complete
    for run in first[3:] + finals:
        finish(queue, folder, run, 0.5)
    for run in take(queue):
        finish(queue, folder, run, None)
    assert queue.complete and len(queue.done) == queue.expected


def test_all_entries_train_with_one_seed_before_any_does_with_the_next(tiny, folder):
    study = tiny({"randaugment": {}, "trivialaugment": {}}, seeds=[7, 3, 5])
    labels = [entry.label for entry in study.entries]
    assert [(r.seed, r.label) for r in take(RunQueue(study, folder, draw))] == [
        (seed, label) for seed in (7, 3, 5) for label in labels
    ]  # in the study's order of the seeds


def test_a_final_that_becomes_ready_late_goes_before_those_of_later_seeds(tiny, folder):
    grid = {"method": "random_affine", "scale_x": {"grid": [0.0, 0.1]}}
    study = tiny({"grid": grid, "learned": {"method": "autogenda"}}, seeds=[4, 3])
    study = study.model_copy(update={"bank_plans": {"whole": "plan"}})
    queue = RunQueue(study, folder, draw)
    first = [queue.next() for _ in range(5)]
    assert [(r.label, r.phase, r.seed) for r in first] == [
        ("grid", "search", 4), ("grid", "search", 4),  # searches first, then finals
        ("learned", "search", 4), ("learned", "search", 3),
        ("none", "final", 4),
    ]  # fmt: skip
    for run in (*first[:2], first[3]):  # seed 3 has learned before seed 4
        finish(queue, folder, run, found=FOUND)
    assert [(r.label, r.phase, r.seed) for r in take(queue)] == [
        ("grid", "final", 4), ("none", "final", 3), ("grid", "final", 3), ("learned", "final", 3),
    ]  # fmt: skip
    finish(queue, folder, first[2], None, found=FOUND)
    assert [(r.label, r.seed) for r in take(queue)] == [("learned", 4)]


def test_the_same_draws_every_time(study, folder):
    entry = study.entry("random")
    a, b = ([r.key for r in search_runs(study, entry, draw)] for _ in range(2))
    assert a == b and len(set(a)) == 2


def test_what_is_on_disk_is_not_run_again(study, folder):
    queue = RunQueue(study, folder, draw)
    first = take(queue)
    for run in first[:4]:
        finish(queue, folder, run, 0.5 + run.index / 10)
    again = RunQueue(study, folder, draw)  # the driver died here
    rest = take(again)
    assert {r.key for r in rest} == {r.key for r in first[4:]} | {
        study.run(study.entry("grid"), "final", seed=s, choices={"scale_x": 0.2}).key
        for s in study.seeds
    }


def test_a_run_is_whole_if_its_rows_are_whatever_was_noted_of_its_end(study, folder):
    queue = RunQueue(study, folder, draw)
    first = take(queue)
    folder.write_rows(first[0].key, [row(first[0], 0.5)])  # the driver died before it noted this
    folder.write_rows(first[1].key, [row(first[1], 0.5, epoch=1)])  # cut short
    finish(queue, folder, first[2])
    finish(queue, folder, first[3])
    (folder.rows / f"{first[3].key}.parquet").unlink()  # somebody wants it again
    rest = {r.key for r in take(RunQueue(study, folder, draw))}
    assert rest == {r.key for r in first} - {first[0].key, first[2].key}


def test_rows_are_read_once_when_a_run_ends(study, folder, monkeypatch):
    """The best of a search is not a reading of all its files while every machine waits."""
    queue = RunQueue(study, folder, draw)
    searches = [run for run in take(queue) if run.label == "grid"]
    for run in searches[:-1]:
        finish(queue, folder, run)
        queue.last_row(run)
    read, original = [], folder.read_rows
    monkeypatch.setattr(folder, "read_rows", lambda key: read.append(key) or original(key))
    finish(queue, folder, searches[-1])
    assert read == [searches[-1].key]


def test_more_seeds_later_run_only_the_new_ones(study, folder):
    queue = RunQueue(study, folder, draw)
    while not queue.complete:
        for run in take(queue):
            finish(queue, folder, run)
    longer = study.model_copy(update={"seeds": (3, 4, 5)})
    assert [r.seed for r in take(RunQueue(longer, folder, draw))] == [5, 5, 5]


def test_a_stopped_trial_does_not_beat_one_that_went_further(study, folder):
    queue = RunQueue(study, folder, draw)
    first = take(queue)
    finish(queue, folder, first[0], 0.6)
    finish(queue, folder, first[1], 0.9, epoch=1)  # stopped early, better at that
    finish(queue, folder, first[2], 0.5)
    assert {r.method.scale_x for r in take(queue)} == {0.0}
    again = RunQueue(study, folder, draw)  # and is not run again
    assert first[1].key not in {r.key for r in take(again)}


def test_failures_are_said_and_do_not_block(study, folder):
    queue = RunQueue(study, folder, draw)
    first = take(queue)
    for run in first[:3]:
        queue.settle(run, "failed", "it broke")
    for run in first[3:]:
        finish(queue, folder, run)
    for run in take(queue):
        assert run.label == "random"  # no final of a search that found nothing
        finish(queue, folder, run)
    assert queue.complete
    lines = [line for line in folder.read_outcomes() if line["outcome"] == "failed"]
    assert len(lines) == 3 and lines[0]["error"] == "it broke"
    retried = {r.key for r in take(RunQueue(study, folder, draw))}
    assert {r.key for r in first[:3]} <= retried


def test_a_replay_waits_for_the_schedules_of_its_own_seeds(tiny, folder):
    study = tiny(
        {"bilevel": {"controls": []}, "again": {"method": "replay", "of": "bilevel"}}, seeds=[1, 2]
    )
    queue = RunQueue(study, folder, draw)
    first = take(queue)
    assert {r.label for r in first} == {"none", "bilevel"}
    for run in first:
        finish(queue, folder, run, None)
    replays = take(queue)
    assert [r.method.policy for r in replays] == [
        str(folder.policy("bilevel", seed) / "policy.pt") for seed in (1, 2)
    ]


def test_an_entry_that_follows_another_case_waits_for_it(tiny, tmp_path):
    """Also if that case stands below; what another study found is there already."""
    follows = {"again": {"method": "replay", "of": "tiny/small/bilevel"},
               "other": {"method": "replay", "of": "elsewhere/x"}}  # fmt: skip
    wide, small = tiny(follows), tiny({"bilevel": {"controls": []}})
    cases = [(study.model_copy(update={"case": case}), Folder(tmp_path / "tiny" / case))
             for study, case in ((wide, "wide"), (small, "small"))]  # fmt: skip
    queue, other = queues_of(cases, draw)
    first = take(queue)
    assert [r.label for r in first] == ["none", "other"]
    assert first[1].method.policy == str(tmp_path / "elsewhere/policies/x/seed-0/policy.pt")
    for run in first:
        finish(queue, queue.folder, run, None)
    assert take(queue) == [] and not queue.complete
    for run in take(other):
        finish(other, other.folder, run, None)
    (again,) = take(queue)
    assert again.method.policy == str(other.folder.policy("bilevel", 0) / "policy.pt")
    finish(queue, queue.folder, again, None)
    assert queue.complete and queue.expected == 3
    assert all(one.complete for one in queues_of(cases, draw))


def test_nothing_waits_for_what_has_failed(tiny, folder):
    """Neither for a seed, nor for a search, nor for a training that learns for the final one."""
    study = tiny(
        {
            "bilevel": {"controls": []},
            "again": {"method": "replay", "of": "bilevel"},
            "grid": {"method": "bilevel", "controls": [], "every": {"grid": [1, 2]}},
            "of grid": {"method": "replay", "of": "grid"},
            "mine": {"method": "autogenda"},
            "of mine": {"method": "autogenda", "of": "mine"},
        },
        seeds=[1, 2],
    )
    queue = RunQueue(study, folder, draw)
    for run in take(queue):
        if run.label == "none" or (run.label == "bilevel" and run.seed == 1):
            finish(queue, folder, run, None)
        else:
            queue.settle(run, "failed", "x")
    (again,) = take(queue)
    assert (again.label, again.seed) == ("again", 1)
    finish(queue, folder, again, None)
    assert queue.complete


def test_a_population_hands_its_lineage_to_the_final_runs(tiny, folder):
    study = tiny({"pba": {"population": 3, "perturb_every": 1}})
    queue = RunQueue(study, folder, draw)
    members = [r for r in take(queue) if r.phase == "search"]
    assert [r.index for r in members] == [0, 1, 2] and len({r.key for r in members}) == 3
    lineage = ((0.0, (1,) * 60), (0.5, (2,) * 60))
    for member in members:
        lived = member.model_copy(
            update={"method": member.method.model_copy(update={"schedule": lineage})}
        )
        finish(
            queue, folder, member, member.index / 10,
            settings=(lived if member.index == 2 else member).model_dump_json(),
        )  # fmt: skip
    (final,) = [r for r in take(queue) if r.label == "pba"]
    assert final.method.schedule == lineage


ALPHA = [[0.5, 0.25, 0.25]] * 10
FOUND = json.dumps({"alpha_table": ALPHA})


def test_each_seed_learns_before_its_own_final_training(tiny, folder):
    study = tiny({"mine": {"method": "autogenda"}}, seeds=[3, 4])
    study = study.model_copy(update={"bank_plans": {"whole": "plan"}})
    queue = RunQueue(study, folder, draw)
    assert queue.expected == 2 + 4
    learning = [r for r in take(queue) if r.label == "mine"]
    assert [(r.phase, r.seed, r.val_fraction) for r in learning] == [
        ("search", 3, None), ("search", 4, None),
    ]  # fmt: skip
    assert all(r.bank_plan == "plan" and r.method.alpha_table is None for r in learning)
    finish(queue, folder, learning[1], None, found=FOUND)
    (final,) = take(queue)  # while seed 3 still learns
    assert (final.phase, final.seed) == ("final", 4)
    assert final.method.alpha_table == tuple(map(tuple, ALPHA))
    queue.settle(learning[0], "failed", "x")
    assert take(queue) == [] and queue.expected == 5


def test_what_was_learned_is_not_learned_again(tiny, folder):
    study = tiny({"mine": {"method": "autogenda"}})
    queue = RunQueue(study, folder, draw)
    (learning,) = (r for r in take(queue) if r.label == "mine")
    finish(queue, folder, learning, None, found=FOUND)
    again = RunQueue(study, folder, draw)
    assert [(r.label, r.phase) for r in take(again)] == [("none", "final"), ("mine", "final")]


def test_a_searched_setting_of_a_learning_method_is_compared_with_validation_images(tiny, folder):
    study = tiny({"mine": {"method": "autogenda", "lr": {"grid": [0.1, 0.2]}}}, seeds=[3, 4])
    queue = RunQueue(study, folder, draw)
    compared = [r for r in take(queue) if r.label == "mine"]
    assert [(r.seed, r.val_fraction, r.method.lr) for r in compared] == [
        (3, 0.2, 0.1), (3, 0.2, 0.2),
    ]  # fmt: skip
    for run, val in zip(compared, (0.4, 0.6), strict=True):
        finish(queue, folder, run, val, found=FOUND)
    learning = take(queue)
    assert [(r.seed, r.val_fraction, r.method.lr) for r in learning] == [
        (3, None, 0.2), (4, None, 0.2),
    ]  # fmt: skip
    for run in learning:
        finish(queue, folder, run, None, found=FOUND)
    assert [(r.phase, r.seed, r.method.lr) for r in take(queue)] == [
        ("final", 3, 0.2), ("final", 4, 0.2),
    ]  # fmt: skip


def test_more_seeds_are_handed_out_once_those_before_have_ended(tiny, folder):
    """One of them per look, to the entry that finished the seeds before; in one queue."""
    methods = {"other": {"method": "predefined"}, "mine": {"method": "autogenda"}}
    study = tiny(methods, seeds=[3, 4, 5]).model_copy(update={"bank_plans": {"whole": "plan"}})

    def wanted(study, folder):
        finals = [row for row in folder.finished().values() if row["phase"] == "final"]
        looks = min(len(finals) // 2, 3)  # `none` and `mine` have one more seed each
        return {"none": (3, 4, 5)[: looks + 1], "other": (), "mine": (3, 4, 5)[: looks + 1]}

    queue, order = RunQueue(study, folder, draw, wanted=wanted), []
    while not queue.complete:
        runs = take(queue)
        order.append([(r.label, r.phase, r.seed) for r in runs])
        for run in runs:
            finish(queue, folder, run, None, found=FOUND)
    assert order == [
        line
        for seed in (3, 4, 5)
        for line in (
            [("mine", "search", seed), ("none", "final", seed)],
            [("mine", "final", seed)],
        )
    ]
    assert queue.expected == len(queue.done) == 3 * 3
    assert RunQueue(study, folder, draw, wanted=wanted).complete
