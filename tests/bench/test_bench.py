"""The benchmarks, tiny: what they hand over, and what must hold whatever the clock says."""

import json
import subprocess
import sys
from itertools import islice

import pytest
import torch
from torch import nn

from autoaug_ray.bench import __main__ as command
from autoaug_ray.bench import hypergradient, signal, tune
from autoaug_ray.bench.hypergradient import Place
from autoaug_ray.bench.tune import Attempt, in_lanes, slot_time
from autoaug_ray.methods.bilevel import Bilevel
from autoaug_ray.settings.classifier import Classifier
from autoaug_ray.settings.dataset import Dataset
from autoaug_ray.store.meter import Meter

SMALL = Dataset(name="fashion-mnist-mini", train_size=320, test_size=60)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(hypergradient, "DATASET", SMALL)


@pytest.fixture
def place(small):
    return Place(Classifier(width=4), torch.device("cpu"), hypergradient.as_it_is, warmup=3)


@pytest.mark.parametrize("whole", [3, pytest.param(None, marks=pytest.mark.nightly)])
def test_hypergradient(small, tmp_path, capsys, monkeypatch, whole):
    """With the first three of its whole trainings, or with all."""
    some = dict(islice(hypergradient.trainings().items(), whole))
    monkeypatch.setattr(hypergradient, "trainings", lambda: some)
    monkeypatch.setattr(hypergradient, "SLICES", 2)
    out = tmp_path / "new" / "h.json"
    arguments = "--width 4 --repeats 1 --epochs 1 --warmup 3 --batches 1 --json".split()
    assert command.main(["hypergradient", *arguments, str(out)]) == 0
    printed = capsys.readouterr().out
    figures = json.loads(out.read_text())
    assert figures["bench"] == "hypergradient" and figures["threads"] == 1

    *steps, another = figures["steps"]
    assert [s["name"] for s in steps] == [v.name for v in hypergradient.variants()]
    assert [t["name"] for t in figures["trainings"]] == list(hypergradient.trainings())
    for row in [*steps, *figures["trainings"]]:
        assert 0 < row["cost_low"] <= row["cost"] <= row["cost_high"]
        assert row["name"] in printed
    assert steps[0]["cost"] == figures["trainings"][0]["cost"] == 1.0
    for row in figures["trainings"]:
        assert row["within_aim"] == (row["cost"] <= 1.5)

    for row, variant in zip(steps, hypergradient.variants(), strict=True):
        assert set(row["cosine"]) == (set(hypergradient.NETS) if variant.estimates else set())
    for row in [*steps, another]:
        for found in row["cosine"].values():
            assert -1.001 < found["lowest"] <= found["mean"] + 1e-9 < 1.001
    exact, *_ = (s for s in steps if s["cosine"])
    assert all(c["lowest"] > 0.9999 for c in exact["cosine"].values())
    differences = [s for s in steps if s["name"].startswith("finite")]
    assert len(differences) == 2
    for row in differences:  # on a net without kinks they must be right
        assert row["cosine"]["smooth"]["lowest"] > 0.98


def test_places_share_nothing(place):
    def everything(learner, state):
        tensors = [*learner.model.state_dict().values(), *state.state_dict().values()]
        return [t.clone() for t in [*tensors, *learner.buffers().values()] if torch.is_tensor(t)]

    method = Bilevel(every=1)
    before = everything(*place.start(method))
    learner, state = place.start(method)
    for _ in range(2):
        hypergradient._train_step(learner, method.step, place.batch(), state)
    after = everything(learner, state)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    again = everything(*place.start(method))
    assert all(torch.equal(a, b) for a, b in zip(before, again, strict=True))


def test_all_variants_look_from_the_same_weights(place):
    lead = [place.batch() for _ in range(hypergradient.DEEPEST)]
    ends = []
    for variant in hypergradient.variants():
        if variant.estimates:
            learner, state = place.start(variant.method)
            for batch in lead:
                hypergradient._train_step(learner, variant.step, batch, state)
            ends.append(torch.cat([w.detach().flatten() for w in learner.weights().values()]))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-3, atol=1e-4)


def test_smooth_nets_have_no_kinks():
    def net():
        pools = nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(2)
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.ReLU(), *pools), nn.LeakyReLU())

    silu, smooth = net(), net()
    hypergradient.with_silu(silu)
    hypergradient.smooth(smooth)
    assert sum(isinstance(m, nn.SiLU) for m in silu.modules()) == 2
    kinks = nn.ReLU | nn.LeakyReLU | nn.MaxPool2d | nn.AdaptiveMaxPool2d
    assert sum(isinstance(m, kinks) for m in silu.modules()) == 2
    assert not any(isinstance(m, kinks) for m in smooth.modules())
    x = torch.rand(3, 1, 12, 12)
    assert smooth(x).shape == net()(x).shape


def attempt(began, ended, **seconds):
    known = sum(seconds.values())
    return Attempt(
        began, ended, {"search": 0.0, "final": 0.0, "eval": 0.0, "other": ended - began - known}
        | seconds,
    )  # fmt: skip


def test_slot_time_says_where_it_went():
    made = [
        attempt(2.0, 10.0, final=6.0, eval=1.5),
        attempt(3.0, 9.0, search=5.0),
        attempt(9.5, 15.0, final=5.0),
    ]
    lanes = in_lanes(made, 2)
    assert [[a.began for a in lane] for lane in lanes] == [[2.0], [3.0, 9.5]]
    parts = slot_time(lanes, begin=0.0, end=16.0)
    assert {name: part for name, part in parts.items() if part} == pytest.approx({
        "start": 5.0, "between": 0.5, "tail": 5.0, "finish": 2.0,
        "search": 5.0, "final": 11.0, "eval": 1.5, "other": 2.0,
    })  # fmt: skip
    assert sum(parts.values()) == pytest.approx(2 * 16.0)


def test_a_slot_without_trials_is_all_tail():
    parts = slot_time(in_lanes([attempt(1.0, 4.0, final=3.0)], 3), begin=0.0, end=5.0)
    assert parts["tail"] == 8.0 and sum(parts.values()) == 15.0


def test_attempts_are_read_from_the_ledger(tmp_path):
    now = [100.0]
    for key, lasted in (("b", 3.0), ("a", 2.0)):
        with Meter(tmp_path, key=key, clock=lambda: now[0]) as meter:
            with meter.phase("final"):
                now[0] += lasted
            now[0] += 0.5
    found = tune.attempts(tmp_path)
    assert len(found) == 2
    for a in found:
        assert a.ended - a.began == pytest.approx(sum(a.seconds.values()), abs=1e-3)
        assert a.seconds["final"] in (2.0, 3.0) and a.seconds["other"] == 0.5
    assert found[0].began <= found[1].began


@pytest.mark.ray
@pytest.mark.nightly
def test_tune(tmp_path):
    out = tmp_path / "t.json"
    code = (
        "import sys; from autoaug_ray.bench import __main__ as command, tune; "
        "from autoaug_ray.data import Dataset; "
        f"tune.DATASET = Dataset.model_validate_json({SMALL.model_dump_json()!r}); "
        "sys.exit(command.main(sys.argv[1:]))"
    )
    arguments = ["tune", "--seconds", "0.3", "--trials", "2", "--slots", "1", "--json", str(out)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    parts = figures["parts"]
    assert set(parts) == set(tune.PARTS)
    assert figures["attempts"] == figures["trials"] == len(figures["trial_seconds"]) == 2
    assert [len(lane) for lane in figures["lanes"]] == [2]
    assert figures["slot_seconds"] == pytest.approx(figures["wall_seconds"] * figures["slots"])
    assert sum(parts.values()) == pytest.approx(figures["slot_seconds"])
    held = parts["training"] + parts["eval"] + parts["warm_up"] + parts["other"]
    assert held == pytest.approx(sum(figures["trial_seconds"]))
    assert parts["training"] > 0 and parts["eval"] > 0 and parts["start"] > 0
    assert 0 < figures["overhead_share"] < figures["not_training_share"] < 1
    for label in tune.PARTS.values():
        assert label in done.stdout


def test_augment(tmp_path):
    arguments = "augment --batch 4 --rounds 1 --sizes 8,12 --json".split()
    assert command.main([*arguments, str(tmp_path / "f.json")]) == 0
    figures = json.loads((tmp_path / "f.json").read_text())
    for size in ("8", "12"):
        assert figures[size].keys() >= {"randaugment", "bilevel, affine"}
        for ways in figures[size].values():
            assert all(times[0] > 0 for times in ways.values())
        assert len(figures[size]["randaugment"]) == 3


def test_decode(tmp_path, capsys):
    out = tmp_path / "d.json"
    arguments = "decode --images 40 --size 16 --rounds 1 --json".split()
    assert command.main([*arguments, str(out)]) == 0
    figures, printed = json.loads(out.read_text()), capsys.readouterr().out
    threads, processes = figures["rates"].values()
    assert figures["ratio"] == pytest.approx(threads[0] / processes[0])
    assert all(name in printed for name in figures["rates"])
    assert 0.02 < figures["file_megabytes"] < 0.3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["hypergradient", "--device", "tpu"], "--device must be cpu or cuda"),
        (["hypergradient", "--model", "resnet81"], "--model must be one of cnn"),
        (["hypergradient", "--repeats", "0"], "--repeats must be above 0"),
        (["hypergradient", "--threads", "0"], "--threads must be above 0"),
        (["tune", "--slots", "100000"], "--slots must be at most"),
        (["tune", "--seconds", "-1"], "--seconds must be above 0"),
        (["tune", "--json", "."], "is a folder"),
        (["decode", "--images", "0"], "--images must be above 0"),
    ],
)
def test_errors_are_one_sentence(arguments, words, capsys):
    assert command.main(arguments) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_an_unknown_benchmark_is_told_the_known_ones(capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["speed"])
    assert stop.value.code == 2 and "hypergradient" in capsys.readouterr().err


def test_signal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(signal, "DATASET", SMALL)
    some = dict(islice(signal.estimators().items(), 4, 6))
    monkeypatch.setattr(signal, "estimators", lambda: some)
    out = tmp_path / "s.json"
    arguments = "--case brightness --seeds 1 --batches 2 --epochs 2,1 --json".split()
    assert command.main(["signal", *arguments, str(out)]) == 0
    printed = capsys.readouterr().out
    figures = json.loads(out.read_text())
    assert [s["epoch"] for s in figures["signals"]] == [1, 1, 2, 2]
    for found in figures["signals"]:
        assert found["name"] in printed and list(found["signal"]) == ["brightness"]
        assert found["signal"]["brightness"] != 0


@pytest.mark.parametrize(
    "option, value", [("--case", "shear"), ("--epochs", "1,x"), ("--epochs", "25")]
)
def test_signal_says_what_it_takes(option, value, capsys):
    assert command.main(["signal", option, value]) == 2
    assert value in capsys.readouterr().err
