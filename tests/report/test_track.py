"""What trackers are given; W&B's own side is in test_wandb.py."""

import io
import json
import re
import sys
from types import SimpleNamespace

import pytest
from hand import Hand
from PIL import Image

from autoaug_ray.errors import UserError
from autoaug_ray.report import track
from autoaug_ray.report.track import Target, Tracker

PNG = io.BytesIO()
Image.new("L", (6, 4), 200).save(PNG, "png")
MIXED = {
    "bank_plan": "f" * 64, "bank_hours": {"caption": 0.5, "generate": 2.0},
    "kinds": ["identity", "fixed"], "alpha": [[0.75, 0.25], [0.25, 0.75]],
    "log": {"spread": 0.125}, "samples": PNG.getvalue(), "device_hours": 0.25,
}  # fmt: skip


@pytest.fixture
def hand(tmp_path):
    """A study with a search trial, a final training that is over and one that is under way."""
    hand = Hand(tmp_path / "hand")
    hand.run("randaugment", "search", accuracy=0.5, choices={"magnitude": 5})
    hand.run("none", seed=0, accuracy=0.75, more=MIXED)
    hand.run("bilevel", seed=1, finished=False)
    policy = hand.folder.policy("none", 0)
    policy.mkdir(parents=True)
    (policy / "policy.pt").write_bytes(b"weights")
    study = hand.study.model_dump_json(indent=1)
    (hand.folder.root / "study.json").write_text(study)
    outcomes = hand.folder.root / "outcomes.jsonl"  # the last one is the driver's to write
    outcomes.write_text("".join(outcomes.read_text().splitlines(keepends=True)[:-1]))
    return hand


def go_on(hand):
    """The training that was under way ends."""
    key = hand.key("bilevel", "final", 1, {}, 0)
    (row,) = hand.folder.read_rows(key)
    last = {"epoch": 2, "finished": True, "test_accuracy": 0.5, "class_accuracy": [0.5, 0.5],
            "device_hours": 0.5}  # fmt: skip
    hand.folder.write_rows(key, [row, row | last])


class Run(track.TrackedRun):
    def __init__(self, about):
        self.about, self.epochs, self.ends = about, [], []

    def log(self, point):
        self.epochs.append(point.epoch)

    def end(self, summary, files, *, failed):
        self.ends.append((summary, files, failed))


class Fake(track.Service):
    title, needs = "Fake", ("no_such_library",)
    runs: dict = {}
    fault = None
    live = True

    @classmethod
    def default_mode(cls):
        return "online"

    def begin(self, about):
        if self.fault:
            raise ValueError(self.fault)
        return self.runs.setdefault(about.id.split("-", 1)[1], Run(about))


@pytest.fixture
def fake(monkeypatch):
    """A tracker that keeps what it is told, by key."""
    monkeypatch.setitem(track.SERVICES, "fake", "Fake")
    monkeypatch.setitem(sys.modules, "autoaug_ray.report.fake", SimpleNamespace(Fake=Fake))
    monkeypatch.setattr(Fake, "runs", {})
    monkeypatch.setattr(Fake, "fault", None)
    monkeypatch.setattr(Fake, "live", True)
    return Fake


def test_every_epoch_is_passed_on_once_also_of_a_training_that_is_resumed(hand, fake):
    under_way = hand.key("bilevel", "final", 1, {}, 0)
    tracker = Tracker(hand.folder, Target("fake", "online"))
    tracker.send(last=False)
    tracker.send(last=False)
    assert {run.about.kind for run in fake.runs.values()} == {"search", "final"}
    assert fake.runs[under_way].epochs == [1] and not fake.runs[under_way].ends
    assert all(r.epochs == [1, 2] and len(r.ends) == 1 for k, r in fake.runs.items()
               if k != under_way)  # fmt: skip
    tracker.send(last=True)
    assert fake.runs[under_way].ends == [({"outcome": "unfinished"}, {}, True)]
    go_on(hand)
    Tracker(hand.folder, Target("fake", "online")).send(last=True)
    assert fake.runs[under_way].epochs == [1, 2] and fake.runs[under_way].ends[1][2] is False
    assert len(fake.runs) == 4, "one for the generated images"


def test_a_tracker_that_is_not_live_gets_whole_trainings(hand, fake, monkeypatch):
    monkeypatch.setattr(Fake, "live", False)
    tracker = Tracker(hand.folder, Target("fake", "offline"))
    tracker.send(last=False)
    assert sorted(run.about.name for run in fake.runs.values()) == [
        "none final seed 0", "randaugment search trial 0 seed 0",
    ]  # fmt: skip
    (final,) = (run for run in fake.runs.values() if run.about.kind == "final")
    ((summary, files, failed),) = final.ends
    assert summary["outcome"] == "finished" and summary["test_accuracy"] == 0.75 and not failed
    assert files == {"policy.pt": b"weights"}


def test_what_went_online_is_not_sent_again_and_what_went_to_files_is(hand, fake):
    for mode, sent in (("offline", 4), ("online", 4), ("offline", 0), ("online", 0)):
        fake.runs.clear()
        Tracker(hand.folder, Target("fake", mode)).send(last=True)
        assert len(fake.runs) == sent, mode


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_failure_is_said_with_its_reason_and_without_a_secret(
    hand, fake, monkeypatch, capsys, mode
):
    monkeypatch.setattr(Fake, "fault", "Invalid project name 'team/proj', key s3cret\nmore")
    monkeypatch.setenv("WANDB_API_KEY", "s3cret")
    monkeypatch.setattr("os.nice", lambda by: None)
    monkeypatch.setattr(track.select, "select", lambda *_: ([sys.stdin], [], []))
    again = []
    monkeypatch.setattr("os.execve", lambda *arguments: again.append(arguments[1][2:]))
    root = str(hand.folder.root)
    assert track.main(["fake", mode, root]) == (mode == "offline")
    said = capsys.readouterr().out
    assert said.startswith(f"Fake, {mode}: ValueError: Invalid project name 'team/proj', key ***.")
    assert said.count("\n") == 1 and "s3cret" not in said
    module = "autoaug_ray.report.track"
    assert again == ([] if mode == "offline" else [[module, "fake", "offline", root]])


@pytest.mark.parametrize(
    "asked, variables, found",
    [
        ((None, None), {}, ("wandb", "offline")),
        ((None, None), {"WANDB_API_KEY": "x"}, ("wandb", "online")),
        ((None, "off"), {"WANDB_API_KEY": "x"}, None),
        (("wandb", "online"), {}, ("wandb", "online")),
        (("mlflow", None), {}, ("mlflow", "offline")),
        (("mlflow", "off"), {"MLFLOW_TRACKING_URI": "http://x"}, ("mlflow", "online")),
        (("tensorboard", None), {"WANDB_API_KEY": "x"}, ("tensorboard", "offline")),
    ],
)
def test_where_trainings_go_by_what_is_asked_for(asked, variables, found, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(track, "find_spec", lambda name: name)
    assert track.target(*asked) == found


def test_two_trackers_or_one_that_is_not_there_are_told_at_once(fake):
    with pytest.raises(UserError, match="^--wandb online is for --track wandb, not for --track"):
        track.target("mlflow", "online")
    with pytest.raises(UserError, match=r"needs no_such_library: pip install 'autoaug_ray\[fake"):
        track.target("fake", None)


def test_of_a_path_only_its_last_part_is_told():
    settings = {"dataset": {"root": "/home/me/images"}, "more": ["~/x/y", "a/b", 1]}
    assert track.without_paths(settings) == {
        "dataset": {"root": "images"}, "more": ["y", "a/b", 1],
    }  # fmt: skip


def test_tensorboard_has_all_of_it(hand):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    to = Target("tensorboard", "offline")
    Tracker(hand.folder, to).send(last=True)
    go_on(hand)
    Tracker(hand.folder, to).send(last=True)
    folders = sorted((hand.folder.root / "tensorboard").glob("*-*"))
    assert [re.split("-[0-9a-f]{8}-", path.name)[0] for path in folders] == [
        "bilevel_final_seed_1", "generated_images_ffffffff", "none_final_seed_0",
        "randaugment_search_trial_0_seed_0",
    ]  # fmt: skip

    def read(path):
        found = reader.EventAccumulator(str(path))
        return found.Reload()

    bilevel, generated, none, _ = map(read, folders)
    assert [e.step for e in bilevel.Scalars("train_loss")] == [1, 2]
    assert [e.wall_time for e in bilevel.Scalars("train_loss")] == [0.0, 1800.0]
    (accuracy,) = none.Scalars("test_accuracy")
    assert (accuracy.step, accuracy.value, accuracy.wall_time) == (2, 0.75, 900.0)
    assert none.Scalars("log/spread")[-1].value == 0.125
    assert none.Scalars("alpha/fixed")[-1].value == 0.5
    assert none.Images("samples")[-1].width == 6
    assert "alpha_table/text_summary" in none.Tags()["tensors"]
    told = none.Tensors("settings/text_summary")[0].tensor_proto.string_val[0]
    assert json.loads(told)["dataset.train_size"] == 160
    assert json.loads(told)["outcome"] == "finished"
    assert none.SummaryMetadata("_hparams_/session_start_info").plugin_data.plugin_name == "hparams"
    assert generated.Scalars("result/device_hours")[0].value == 2.5


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")  # of its libraries, as they are imported
def test_mlflow_has_all_of_it(hand):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("alembic")
    to = Target("mlflow", "offline")
    Tracker(hand.folder, to).send(last=True)
    go_on(hand)
    Tracker(hand.folder, to).send(last=True)
    client = mlflow.MlflowClient(f"sqlite:///{hand.folder.root}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("hand")
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    assert sorted(runs) == [
        "bilevel final seed 1", "generated images ffffffff", "none final seed 0",
        "randaugment search trial 0 seed 0",
    ]  # fmt: skip
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    none, bilevel = runs["none final seed 0"], runs["bilevel final seed 1"]
    history = client.get_metric_history(bilevel.info.run_id, "train_loss")
    assert [(m.step, m.timestamp) for m in history] == [(1, 0), (2, 1_800_000)]
    assert none.data.metrics["test_accuracy"] == 0.75 and none.data.metrics["alpha/fixed"] == 0.5
    assert none.data.params["dataset.train_size"] == "160"
    assert none.data.tags["outcome"] == "finished"
    assert bilevel.data.tags["outcome"] == "finished"
    root = hand.folder.root / "mlflow" / "artifacts" / none.info.run_id / "artifacts"
    assert (root / "policy" / "policy.pt").read_bytes() == b"weights"
    assert json.loads((root / "alpha_table.json").read_text())["data"][0] == [0, 0.75, 0.25]
    assert list((root / "images").glob("samples*.png"))
    told = json.dumps([{**r.data.tags, **r.data.params} for r in runs.values()])
    assert str(hand.folder.root) not in told
    assert runs["generated images ffffffff"].data.metrics["device_hours"] == 2.5
