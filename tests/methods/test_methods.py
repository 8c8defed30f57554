"""Laws that every method keeps; a new line in METHODS is tested without a new test."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from autoaug_ray import data, policy, train
from autoaug_ray.bench.alpha import Planted
from autoaug_ray.data import Split
from autoaug_ray.errors import RunError
from autoaug_ray.learner import Learner
from autoaug_ray.maths.strength import Strength
from autoaug_ray.methods import METHODS, method_class
from autoaug_ray.methods.base import Task
from autoaug_ray.methods.bilevel import NETWORK_LR, Bilevel
from autoaug_ray.settings.training import Training
from autoaug_ray.store.folder import TIMES

THIRDS = {"identity": 0.5, "local": 0.25, "transfer": 0.25}
TABLE = [[["Rotate", 0.8, 0.5], ["Invert", 0.2, None]], [["ShearX", 1.0, 0.3]]]
FEW = {"samples": 3, "keep": 2, "images": 40}
CASES = {name: (name, {}) for name in METHODS if name not in ("replay", "mix")} | {
    "fast_autoaugment": ("fast_autoaugment", FEW),
    "fast_autoaugment learned": ("fast_autoaugment", {"sub_policies": TABLE}),
    "dada first_order": ("dada", {"gradient": "first_order"}),
    "dada learned": ("dada", {"sub_policies": TABLE, "weights": [0.9, 0.1]}),
    "mix": ("mix", {"probabilities": THIRDS}),
    "mix for small classes": (
        "mix",
        {"probabilities": {"identity": 0.5, "fixed": 0.5}, "below": 0.25, "ramp": True},
    ),
    "mix balanced": ("mix", {"probabilities": THIRDS, "sampler": "balanced"}),
    "autogenda hypergradient": ("autogenda", {"gradient": "hypergradient"}),
    "autogenda ratio": (
        "autogenda",
        {"gradient": "hypergradient", "estimator": "likelihood_ratio"},
    ),
    "autogenda alignment": ("autogenda", {"gradient": "alignment", "every": 2}),
    "autogenda online": (
        "autogenda",
        {"gradient": "alignment", "learn": "online", "sampler": "balanced", "normalise": False},
    ),
    "autogenda online hypergradient": (
        "autogenda",
        {"gradient": "hypergradient", "learn": "online"},
    ),
    "autogenda off": ("autogenda", {"learn": "off"}),
    "autogenda + randaugment": (
        "autogenda",
        {"then": {"name": "randaugment"}, "optimiser": "adam"},
    ),
    "autogenda learned": ("autogenda", {"alpha_table": [[0.5, 0.25, 0.25]] * 10}),
    "bilevel on edits": ("bilevel", {"edits": ["local", "transfer"], "group": "translation"}),
    "bilevel on edits K=2": ("bilevel", {"edits": ["fixed"], "estimator": "exact", "unroll": 2}),
    "bilevel on edits off": ("bilevel", {"edits": ["fixed"], "learn": "off"}),
    "bilevel K=3 J=2 half": (
        "bilevel",
        {"estimator": "exact", "unroll": 3, "every": 2, "fraction": 0.5},
    ),
    "bilevel color large": ("bilevel", {"group": "color", "size": "large"}),
    "bilevel average": ("bilevel", {"estimator": "exact", "every": 2}),
    "bilevel alignment": ("bilevel", {"every": 1, "until": 1.0, "meta_every": 2}),
    "bilevel alignment on edits": (
        "bilevel",
        {"edits": ["local"], "normalise": "batch", "every": 2},
    ),
    "bilevel flip learned": (
        "bilevel",
        {"flip": "learned", "estimator": "exact", "unroll": 2, "every": 2},
    ),
    "bilevel jitter": ("bilevel", {"jitter": 0.4}),
    "bilevel sgd": ("bilevel", {"optimiser": "sgd", "weight_decay": 0.01}),
    "bilevel off": ("bilevel", {"learn": "off"}),
    "bilevel decay_only": ("bilevel", {"learn": "decay_only", "weight_decay": 0.1}),
    "bilevel train_loss": ("bilevel", {"learn": "train_loss"}),
    # Translation: published affine parameters have no bounds, nor has what they do in ten steps.
    "bilevel as published": ("bilevel", {"protocol": "paper", "group": "translation"}),
    "bilevel as published K=2 J=2": (
        "bilevel",
        {
            "protocol": "paper",
            "group": "color",
            "size": "medium",
            "unroll": 2,
            "every": 2,
            "resplit": "fixed",
        },
    ),
    "bilevel as released": ("bilevel", {"protocol": "release", "group": "affine+color"}),
    "saflex off": ("saflex", {"learn": "off"}),
    "saflex + trivialaugment": ("saflex", {"then": {"name": "trivialaugment"}, "temperature": 0}),
    "learned_ops in a row": ("learned_ops", {"num_ops": 2, "every": 1, "score": "inner"}),
    "learned_ops off": ("learned_ops", {"learn": "off"}),
    "pba with a policy": ("pba", {"policy": [5] * 60}),
    "entaugment with all": (
        "entaugment",
        {"entropy_loss": True, "space": "torchvision", "warm_up": 0.3, "sampler": "balanced"},
    ),
    "randaugment with the stage": ("randaugment", {"crop": 2, "cutout": 8}),
    "bilevel K=2 with the stage": (
        "bilevel",
        {"estimator": "exact", "unroll": 2, "crop": 2, "cutout": 8},
    ),
}

TASK = Task(1, 28, 28, (16,) * 10, (0.3,))


def rows(run, resume=None):
    return [
        {k: v for k, v in epoch.row.items() if k not in TIMES}
        for epoch in train.run(run, resume=resume, bank=Planted(run))
    ]


@pytest.fixture(params=CASES, ids=str)
def case(request, final_run):
    return final_run(*CASES[request.param])


@pytest.fixture(scope="module")
def seen():
    """The rows of every case, computed once."""
    return {}


def of(case, seen):
    if case.key not in seen:
        seen[case.key] = rows(case)
    return seen[case.key]


def test_same_seed_same_rows(case, seen):
    assert of(case, seen) == rows(case)


def test_a_resumed_run_is_an_uninterrupted_one(case, seen, tmp_path):
    run = train.run(case, bank=Planted(case))
    state = next(run).snapshot()
    torch.save(state, tmp_path / "state.pt")
    run.close()
    resumed = rows(case, torch.load(tmp_path / "state.pt", weights_only=True))
    assert resumed == of(case, seen)[1:]


def test_rows_say_what_was_asked_and_used(case, seen):
    for row in of(case, seen):
        assert row["run_key"] == row["used_key"] == case.key
        assert 0 <= row["displacement"] < 30 and 0 <= row["color_change"] <= 2


def test_what_the_trainer_really_held_is_what_is_hashed(final_run, monkeypatch):
    """A scheduler's setting that does not reach the optimiser must not go unseen."""
    run = final_run("none")
    real = train.Learner

    def careless(model, training, **kwargs):
        return real(model, training.model_copy(update={"momentum": 0.5}), **kwargs)

    monkeypatch.setattr(train, "Learner", careless)
    assert all(row["used_key"] != row["run_key"] for row in rows(run)[-1:])


@pytest.mark.parametrize("name", ["none", "bilevel", "autogenda"])
def test_any_method_trains_with_adam(name, final_run):
    adam = {"epochs": 2, "batch_size": 32, "optimiser": "adam", "lr": 1e-3}
    run = final_run(name, train=adam)
    whole = rows(run)
    assert all(row["used_key"] == row["run_key"] for row in whole)
    state = next(train.run(run, bank=Planted(run))).snapshot()
    assert rows(run, state) == whole[1:]


RECIPE = {
    "epochs": 2, "batch_size": 32, "iters_per_epoch": 3, "optimiser": "adamw", "lr": 1e-3,
    "weight_decay": 0.05, "weight_decay_on": "matrices", "lr_decay": 0.75, "schedule": "cosine",
    "warmup": 0.1, "label_smoothing": 0.1, "ema": 0.8,
}  # fmt: skip
NIGHTLY = (
    "none", "bilevel alignment", "dada", "saflex", "autogenda alignment", "autogenda ratio",
    "timm_recipe", "fast_autoaugment",
)  # fmt: skip


@pytest.mark.parametrize(
    "name, more",
    [
        ("bilevel K=3 J=2 half", {"accumulate": 2}),
        ("learned_ops", {}),
        *(pytest.param(n, {"precision": "bf16"}, marks=pytest.mark.nightly) for n in NIGHTLY),
    ],
)
def test_any_method_trains_by_the_recipe_of_fine_tuning(name, more, final_run):
    """Also resumed: averages, groups and schedule go on where they were."""
    run = final_run(*CASES[name], train=RECIPE | more)
    whole = rows(run)
    assert all(row["used_key"] == row["run_key"] for row in whole)
    state = next(train.run(run, bank=Planted(run))).snapshot()
    assert rows(run, state) == whole[1:]


def test_settings_are_frozen_and_classes_final(case):
    with pytest.raises(ValidationError, match="frozen"):
        case.method.flip = "none"
    assert not type(case.method).__subclasses__()


def test_augmented_images_stay_images(case):
    method = case.method
    state = method.start(TASK, 0, torch.device("cpu"))
    images = torch.rand(64, 1, 28, 28)
    strength = Strength(images)
    with torch.no_grad():
        out = method.augment(state, images, torch.Generator().manual_seed(0), strength)
    assert out.shape == images.shape
    assert out.min() >= -1e-5 and out.max() <= 1 + 1e-5
    assert torch.isfinite(strength.displacement()).all()


def test_the_test_set_is_read_once_and_only_by_a_final_run(case, tiny, monkeypatch):
    reads = []
    real = train.evaluate

    def counting(method, learner, split, state):
        reads.append(len(split))
        return real(method, learner, split, state)

    monkeypatch.setattr(train, "evaluate", counting)
    test = case.dataset.test_size
    list(train.run(case, bank=Planted(case)))
    assert reads == [test]
    reads.clear()
    search = case.model_copy(update={"phase": "search"})
    list(train.run(search, bank=Planted(search)))
    assert reads == [round(case.dataset.train_size * case.val_fraction)] * case.train.epochs


def test_same_seed_same_rows_in_another_process(final_run):
    run = final_run("bilevel", {"group": "affine"})
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from autoaug_ray import train; from autoaug_ray.config import Run\n"
        "run = Run.model_validate_json(sys.stdin.read())\n"
        "row = [e.row for e in train.run(run)][-1]\n"
        "import json; print(json.dumps([row['test_accuracy'], row['train_loss'], row['log']]))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], input=run.model_dump_json(), text=True,
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    here = rows(run)[-1]
    assert json.loads(out) == [here["test_accuracy"], here["train_loss"], here["log"]]


def test_methods_start_alike_and_see_the_same_images(final_run, monkeypatch):
    """A paired comparison: same initial weights, and the same batches in the same order."""
    seen = {}
    for name in ("randaugment", "predefined", "stn"):
        run = final_run(name)
        batches, weights = [], []
        real = method_class(name).step

        def spy(
            method,
            learner,
            batch,
            next_meta,
            state,
            into=batches,
            w=weights,
            step=real,
        ):
            if not into:
                w.append(next(learner.model.parameters()).detach().clone())
            into.append(batch.labels.clone())
            return step(method, learner, batch, next_meta, state)

        monkeypatch.setattr(method_class(name), "step", spy)
        list(train.run(run))
        seen[name] = torch.cat(batches), weights[0]
    first = seen.pop("stn")
    for other in seen.values():
        assert torch.equal(first[0], other[0]) and torch.equal(first[1], other[1])


def test_meta_images_train_no_weights_in_their_epoch():
    for epoch in (1, 2):
        a, b = train.deal(100, 0.2, seed=3, epoch=epoch)
        assert len(b) == 20 and sorted(torch.cat([a, b]).tolist()) == list(range(100))
    assert train.deal(100, 0.2, 3, 1)[1].tolist() != train.deal(100, 0.2, 3, 2)[1].tolist()


def test_cycle_goes_through_all_before_it_repeats():
    split = data.Split(torch.arange(5).view(5, 1, 1, 1), torch.arange(5))
    take = train.shuffled(split, torch.tensor([0, 2, 4]), torch.Generator().manual_seed(0))
    drawn = torch.cat([take(2).labels for _ in range(6)])
    for i in range(0, 12, 3):
        assert sorted(drawn[i : i + 3].tolist()) == [0, 2, 4]


@pytest.mark.parametrize("name", [n for n in METHODS if "learn" in method_class(n).model_fields])
def test_off_may_be_a_truth_value(name):
    assert method_class(name)(learn=False).learn == "off"


def test_bilevel_without_learning_trains_on_the_same_images(final_run, monkeypatch):
    """The control differs from the learned row by the hypergradient alone."""
    losses = {}
    for learn in ("hypergradient", "off"):
        run = final_run("bilevel", {"learn": learn, "every": 100})
        losses[learn] = [r["train_loss"] for r in rows(run)]
    assert losses["hypergradient"] == losses["off"]  # every: 100 never came to an outer step


def test_a_missing_gradient_stops_the_run_with_a_sentence(final_run, monkeypatch):
    monkeypatch.setattr(
        "autoaug_ray.maths.augmenter.transform", lambda x, p, names, strength=None: x + 0 * p.sum()
    )
    with pytest.raises(RunError, match="no gradient of the meta loss reached"):
        rows(final_run("bilevel"))


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(final_run, monkeypatch):
    def spoilt(self, state, images, noise, strength=None):
        return images / 0

    monkeypatch.setattr(method_class("none"), "augment", spoilt)
    with pytest.raises(RunError, match=r"train_loss became nan.*steps 1 to 5.*train.lr"):
        rows(final_run("none"))


def test_decay_only_shrinks_and_off_does_not(final_run):
    def spread(**settings):
        run = final_run("bilevel", {"until": 1.0, **settings})
        first, last = (r["log"]["std/translate_x"] for r in rows(run))
        return last / first

    assert spread(learn="off") == 1
    for size in ("scale", "small"):
        assert spread(learn="decay_only", weight_decay=1.0, lr=0.1, size=size) < 0.9


@pytest.mark.parametrize(
    "case",
    [
        "bilevel K=3 J=2 half", "bilevel on edits", "autogenda", "autogenda hypergradient",
        "autogenda ratio", "autogenda online", "dada", "dada first_order", "saflex",
        "learned_ops in a row",
    ],
    indirect=True,
)  # fmt: skip
def test_meta_images_never_reach_batch_norm(case, monkeypatch):
    """Statistics are those of the augmented training batches alone."""
    states = []
    for value in (0, 255):

        def load(*args, value=value, real=data.load, **kwargs):
            splits = real(*args, **kwargs)
            blank = replace(splits.meta, images=torch.full_like(splits.meta.images, value))
            return replace(splits, meta=blank)

        with monkeypatch.context() as m:
            m.setattr(train.data, "load", load)
            # One step: afterwards theta differs, and so do the images.
            one = {"epochs": 1, "iters_per_epoch": 1, "batch_size": 64}
            run = case.model_copy(update={"train": case.train.model_copy(update=one)})
            epoch = next(train.run(run, bank=Planted(case)))
            states.append(epoch.snapshot()["learner"]["model"])
    statistics = [k for k in states[0] if "running" in k]
    counts = [int(v) for k, v in states[0].items() if "num_batches" in k]
    assert statistics and set(counts) == {1}, "the model has no batch norm, or more than one pass"
    for k in statistics:
        torch.testing.assert_close(states[0][k], states[1][k], msg=k)


def test_replay_goes_through_the_states_of_the_run_that_it_replays(final_run, tmp_path):
    run = final_run("bilevel", {"group": "translation", "lr": 0.1, "until": 1.0})
    learned = [policy.tensors(epoch.snapshot()["state"]) for epoch in train.run(run)]
    gains = [state["augmenter.log_gain"] for state in learned]
    assert not torch.equal(*gains), "nothing was learned between the epochs"
    policy.export(tmp_path, run, TASK, learned[-1], [(0.0, learned[0]), (0.5, learned[1])], {})
    replay = method_class("replay")(policy=str(tmp_path / "policy.pt"))
    state = replay.init(TASK, 0, torch.device("cpu"))
    for progress, epoch in ((0.0, 0), (0.49, 0), (0.5, 1), (0.99, 1)):
        state.go_to(progress)
        assert torch.equal(state.augmenter.log_gain, gains[epoch]), progress
    replayed = final_run("replay", {"policy": str(tmp_path / "policy.pt")})
    ends = [policy.tensors(epoch.snapshot()["state"]) for epoch in train.run(replayed)]
    for end, gain in zip(ends, gains, strict=True):
        assert torch.equal(end["augmenter.log_gain"], gain)


@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize("size", ["scale", "small"])
def test_an_outer_step_moves_as_far_as_the_steps_it_stands_for(final_run, every, size):
    """Adam's first step has the length of the learning rate, in every parameter."""
    settings = {"every": every, "size": size, "lr": 0.01, "until": 1.0}
    train_ = {"epochs": 1, "batch_size": 160 // every}
    run = final_run("bilevel", settings, train=train_)
    (epoch,) = train.run(run)
    state = epoch.snapshot()["state"]
    start = run.method.init(TASK, train.seed_of(0, "augmenter"), "cpu")
    left = 1 - (every - 1) / every  # the cosine at the only outer step, the last one
    expected = 0.01 * every * 0.5 * (1 - math.cos(math.pi * left))
    moved = {
        name: float((state[f"augmenter.{name}"] - value).abs().max())
        for name, value in start.augmenter.state_dict().items()
        if name in dict(start.augmenter.named_parameters())
    }
    assert moved == pytest.approx(
        {k: expected * (1 if k == "log_gain" else NETWORK_LR) for k in moved}, rel=0.01
    )


def test_unroll_reaches_back_over_real_steps(final_run):
    """K = 2 unrolls the previous step too: its hypergradient is not that of K = 1."""
    logs = [
        rows(
            final_run(
                "bilevel", {"estimator": "exact", "unroll": k, "every": 2, "normalise": "none"}
            )
        )[0]["log"]
        for k in (1, 2)
    ]
    assert logs[0]["hypergradient_norm"] != logs[1]["hypergradient_norm"]


@pytest.mark.parametrize("estimator", ["exact", "alignment"])
def test_the_chance_of_a_flip_goes_where_flips_help(estimator):
    """Mirrored images teach the wrong class where the class is the side that is bright."""
    torch.manual_seed(0)
    images = torch.randint(0, 60, (64, 1, 6, 6), dtype=torch.uint8)
    labels = torch.arange(64) % 2
    images[labels == 0, :, :, :3] += 150
    images[labels == 1, :, :, 3:] += 150
    batch = Split(images, labels)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 2))
    noise = torch.Generator().manual_seed(0)
    learner = Learner(model, Training(lr=0.01), total_steps=40, noise=noise)
    method = Bilevel(flip="learned", group="translation", estimator=estimator, every=1, until=1.0)
    state = method.start(Task(1, 6, 6, (32, 32), (0.3,)), 0, torch.device("cpu"))
    assert method.flip_chance(state) == 0.5
    for _ in range(40):
        learner.begin_step()
        method.step(learner, batch, lambda n: batch, state)
        learner.end_step()
    assert method.flip_chance(state) < 0.4
    assert method.end_epoch(state)["p/flip"] == float(method.flip_chance(state))


def test_figures_of_a_bilevel_epoch(final_run):
    log = rows(final_run("bilevel", {"group": "affine", "every": 1}))[0]["log"]
    names = Bilevel().init(TASK, 0, torch.device("cpu")).augmenter.names
    assert {f"std/{n}" for n in names} <= set(log)
    assert log["hypergradient_norm"] > 0 and log["hypergradient_snr"] > 0


def test_the_spatial_transformer_aligns_test_images_too():
    method = method_class("stn")(group="translation")
    state = method.init(TASK, 0, torch.device("cpu"))
    learner = SimpleNamespace(logits=lambda images: images)
    images = torch.rand(2, 1, 28, 28)
    assert torch.allclose(method.predict(learner, images, state), images, atol=1e-5)
    with torch.no_grad():
        state.network.head.bias.fill_(0.2)
    assert not torch.allclose(method.predict(learner, images, state), images, atol=1e-2)


def test_each_policy_of_a_schedule_is_in_force_from_the_very_step_that_it_names(final_run):
    first, second = [1] * 60, [2] * 60
    run = final_run("pba", {"schedule": [[0.0, first], [0.5, second]]}, train={"epochs": 4})
    device = torch.device("cpu")
    setup = train.prepare(run, device, train.load_data(run, device, None))
    batches, next_meta = train.epoch_batches(setup, 1)
    in_force = []
    for _ in range(setup.learner.total_steps):
        setup.learner.begin_step()
        setup.method.step(setup.learner, batches(16), next_meta, setup.state)
        setup.learner.end_step()
        in_force.append(int(setup.state.policy[0]))
    half = setup.learner.total_steps // 2
    assert len(in_force) == 2 * half and in_force == [1] * half + [2] * half
