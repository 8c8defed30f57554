"""Entries that train with what others found: which names mean what, and what is refused."""

from pathlib import Path

import pytest
import torch

from autoaug_ray import policy, train
from autoaug_ray.bench.alpha import Planted
from autoaug_ray.errors import UserError
from autoaug_ray.methods import method_class
from autoaug_ray.methods.base import Task
from autoaug_ray.methods.sources import Source, parse
from autoaug_ray.schedule.queue import RunQueue
from autoaug_ray.store.folder import ROW, TIMES, Folder
from autoaug_ray.store.places import Remote

GREY, COLOUR = Task(1, 28, 28, (16,) * 10), Task(3, 32, 32, (16,) * 10)
SPELT = {"run_key", "used_key", "settings", "label"}
"""Columns that hold the name of the source."""


def test_a_source_is_a_label_of_this_study_or_of_another_one():
    assert parse("a b") == Source(None, None, "a b")
    assert parse("s/a") == Source("s", None, "a") and str(parse("s/a")) == "s/a"
    assert parse("s/c=1/a") == Source("s", "c=1", "a")


@pytest.mark.parametrize("of", ["a/b/c/d", "../x", "s/../x", "/etc/x", "s/", ""])
def test_a_source_leads_to_no_other_folder(of):
    with pytest.raises(ValueError, match="of: must be LABEL, STUDY/LABEL or STUDY/CASE/LABEL"):
        parse(of)


@pytest.mark.parametrize(
    "out", [Path("/runs"), Remote("s3", "bucket/runs", "region=x")], ids=["disk", "store"]
)
def test_studies_and_cases_are_neighbours(out):
    own, case = out / "mine", out / "mine" / "wide"
    assert parse("a").root(own, None) == own
    assert parse("other/a").root(own, None) == out / "other"
    assert parse("other/c/a").root(own, None) == out / "other" / "c"
    assert parse("mine/c/a").root(case, "wide") == out / "mine" / "c"


@pytest.mark.parametrize(
    "methods, sentence",
    [
        ({"again": {"method": "replay", "of": "none"}}, "again.of: 'none' is none; a replay needs"),
        ({"again": {"method": "replay", "of": "bilevl"}}, "did you mean bilevel"),
        ({"again": {"method": "replay", "of": "replay"}}, "'replay' found nothing of its own"),
        ({"again": {"method": "replay", "of": "a/../b"}}, "again.of: must be LABEL"),
        ({"bilevel": {"edits": ["local"]}}, "replay.of: 'bilevel' mixes generated images"),
        ({"two": {"method": "autogenda", "of": "bilevel"}}, "'bilevel' is bilevel; alpha is found"),
        (
            {"one": {"method": "autogenda"}, "two": {"method": "autogenda", "of": "one",
                                                     "edits": ["local"]}},
            "two.of: 'one' found the proportions of edits:",
        ),
        (
            {"one": {"method": "autogenda", "of": "two"}, "two": {"method": "autogenda",
                                                                  "of": "one"}},
            "one.of: 'two' found nothing of its own, it follows 'one'",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_refused_as_the_study_is_read(tiny, methods, sentence):
    usual = {"bilevel": {"group": "translation"}, "replay": {"of": "bilevel"}}
    with pytest.raises(UserError, match=r"^methods\.") as error:
        tiny(usual | methods)
    assert sentence in str(error.value)


# What is replayed


def leave(folder, run):
    """Train, and leave a policy as a trial does; the states after the epochs."""
    learned = [policy.tensors(epoch.snapshot()["state"]) for epoch in train.run(run)]
    schedule = [(i / len(learned), state) for i, state in enumerate(learned)]
    task = GREY if run.dataset.name == "fashion-mnist-mini" else COLOUR
    place = folder.policy(run.label, run.seed)
    policy.export(place, run, task, learned[-1], schedule, {})
    return place / "policy.pt"


def replays(study, folder, of):
    """The final runs of the entries that follow, as the queue makes them when `of` has ended."""
    queue = RunQueue(study, folder, lambda *_: 0)
    while (run := queue.next()) is not None:
        if run.label == of:
            queue.last_row(run)
            queue.settle(run, "finished")
        elif run.method.follows is not None:
            yield run


def test_a_replay_across_studies_trains_as_one_within_a_study(tiny, tmp_path):
    """To the bit, also from a case; and the place of the files is not in the runs' names."""
    methods = {"bilevel": {"group": "translation", "lr": 0.1, "controls": []}}
    within = tiny(methods | {"again": {"method": "replay", "of": "bilevel"}})
    learn = within.run(within.entry("bilevel"), "final", seed=0, choices={})
    keys = {}
    for out in (tmp_path / "a", tmp_path / "b"):
        learned = Folder(out / "learned")
        leave(learned, learn)
        across = tiny({"again": {"method": "replay", "of": "learned/bilevel"}}).model_copy(
            update={"case": "here"}
        )
        (one,) = replays(within, learned, "bilevel")
        (other,) = replays(across, Folder(out / "mine" / "here"), "bilevel")
        keys[out.name] = one.key, other.key
    assert keys["a"] == keys["b"]
    rows = [[epoch.row for epoch in train.run(run)] for run in (one, other)]
    compared = set(ROW.names) - set(TIMES) - SPELT - {"attempt", "reuse_actors"}
    assert rows[0][-1]["displacement"] > 1
    for mine, theirs in zip(*rows, strict=True):
        assert {k: mine[k] for k in compared} == {k: theirs[k] for k in compared}


def test_a_replay_of_another_content_is_another_run(tiny, tmp_path):
    study = tiny({"again": {"method": "replay", "of": "learned/bilevel"}})
    learn = tiny({"bilevel": {"group": "translation", "controls": []}})
    learn = learn.run(learn.entry("bilevel"), "final", seed=0, choices={})
    file = leave(Folder(tmp_path / "learned"), learn)
    (first,) = replays(study, Folder(tmp_path / "mine"), "")
    method = learn.method.model_copy(update={"lr": 0.5})
    assert leave(Folder(tmp_path / "learned"), learn.model_copy(update={"method": method})) == file
    (second,) = replays(study, Folder(tmp_path / "mine"), "")
    assert first.key != second.key
    second.method.init(GREY, 0, torch.device("cpu"))
    with pytest.raises(UserError, match="is not what it was when this run was planned"):
        first.method.init(GREY, 0, torch.device("cpu"))


@pytest.mark.parametrize("group, fits", [("translation", True), ("affine+color", False)])
def test_grey_to_colour_is_replayed_if_the_parameters_are_the_same(
    final_run, tmp_path, group, fits
):
    file = leave(Folder(tmp_path), final_run("bilevel", {"group": group, "spread": 0.3}))
    replay = method_class("replay")(policy=str(file))
    if not fits:
        with pytest.raises(UserError, match=r"1 channel\(s\), these have 3, for which group: aff"):
            replay.init(COLOUR, 0, torch.device("cpu"))
        return
    # On larger images the same share of the side.
    moved = []
    for task in (GREY, COLOUR):
        state = replay.init(task, 0, torch.device("cpu"))
        z = state.augmenter.draw(256, torch.Generator().manual_seed(0))
        moved.append(state.augmenter(z))
        images = torch.rand(4, *task[:3])
        assert replay.augment(state, images, torch.Generator()).shape == images.shape
    assert torch.equal(*moved) and moved[0].abs().max() > 0.1


def test_alpha_is_taken_over_and_needs_the_same_classes(final_run, tmp_path):
    table = [[0.5, 0.25, 0.25]] * 5 + [[0.125, 0.375, 0.5]] * 5
    run = final_run("autogenda", {"alpha_table": table})
    policy.export(tmp_path, run, GREY, {}, [], {})
    follower = method_class("autogenda")(of="study/entry")
    assert not follower.searches_in_own_run and not follower.uses_meta
    assert follower.timed_as_reference
    with pytest.raises(UserError, match="study/entry has no policy.pt of this seed"):
        follower.init(GREY, 0, torch.device("cpu"))
    found = follower.inherit(tmp_path / "policy.pt")
    assert found == {"alpha_table": table}
    run = final_run("autogenda", {"of": "s/e", "then": {"name": "randaugment"}, **found})
    *_, last = train.run(run, bank=Planted(run))
    assert last.row["alpha"] == [pytest.approx(row) for row in table]
    with pytest.raises(UserError, match="for 10 classes, the dataset has 3"):
        run.method.init(Task(1, 28, 28, (5, 5, 5)), 0, torch.device("cpu"))
