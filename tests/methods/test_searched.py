"""Fast AutoAugment and DADA: how they find sub-policies, and what the final training does."""

import json

import look_ahead
import pytest
import torch
from torch.nn import functional as F

from autoaug_ray import train
from autoaug_ray.data import Split
from autoaug_ray.errors import RunError, UserError
from autoaug_ray.learner import Learner
from autoaug_ray.maths.policies import SubPolicies
from autoaug_ray.maths.relaxed_policy import RelaxedPolicy
from autoaug_ray.methods import dada, fast_autoaugment
from autoaug_ray.methods.base import Task
from autoaug_ray.methods.dada import Dada
from autoaug_ray.settings.training import Training
from autoaug_ray.store.meter import Meter

FEW = {"samples": 40, "keep": 3, "images": 50, "num_policies": 2, "num_ops": 3}
TABLE = [[["Rotate", 0.8, 0.5], ["Invert", 0.2, None]], [["ShearX", 1.0, 0.3]]]


def last_row(run):
    return [epoch.row for epoch in train.run(run)][-1]


def learner_of(model, lr=0.1):
    generator = torch.Generator().manual_seed(0)
    learner = Learner(model, Training(lr=lr), total_steps=10, noise=generator)
    learner.begin_step()
    return learner


# --- Fast AutoAugment -----------------------------------------------------------------------------


def test_the_sub_policies_of_the_best_candidates_are_found(final_run, monkeypatch):
    """A planted criterion is how often something happens. The sampler learns what it wants."""
    tried = []

    def planted(learner, policy, images, labels):
        loss = sum(p for steps in policy.table for _, p, _ in steps)
        tried.append((loss, policy.table))
        return loss

    monkeypatch.setattr(fast_autoaugment, "_loss", planted)
    row = last_row(final_run("fast_autoaugment", FEW))
    (clean, _), *tried = tried
    assert len(tried) == 40 and clean == 0 and row["log"]["meta_loss/clean"] == 0
    assert all(len(table) == 2 and {len(steps) for steps in table} == {3} for _, table in tried)
    best = sorted(tried, key=lambda candidate: candidate[0])[:3]
    expected = [[list(step) for step in steps] for _, table in best for steps in table]
    assert json.loads(row["found"]) == {"sub_policies": expected}
    assert row["log"]["meta_loss/best"] == best[0][0]
    early, late = (sum(loss for loss, _ in part) for part in (tried[:10], tried[-10:]))
    assert late < early


def test_a_candidate_is_scored_by_the_loss_of_the_augmented_images():
    """In evaluation mode, by all images, whatever the size of a forward pass."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.BatchNorm1d(16), torch.nn.Linear(16, 3)
    )
    model.eval()
    learner = learner_of(model)
    images, labels = torch.rand(1203, 1, 4, 4), torch.arange(1203) % 3
    invert = SubPolicies(((("Invert", 1.0, None),),))
    got = fast_autoaugment._loss(learner, invert, images, labels)
    assert got == pytest.approx(float(F.cross_entropy(model(1 - images), labels).detach()))


def test_the_search_leaves_the_classifier_as_it_was_and_is_charged_as_search(
    final_run, monkeypatch
):
    now = [0.0]
    before = {}
    real = fast_autoaugment.FastAutoAugment.finish

    def slow(method, learner, next_meta, state):
        before.update({k: v.clone() for k, v in learner.model.state_dict().items()})
        real(method, learner, next_meta, state)
        after = learner.model.state_dict()
        assert learner.model.training and all(torch.equal(v, after[k]) for k, v in before.items())
        now[0] += 100.0

    monkeypatch.setattr(fast_autoaugment.FastAutoAugment, "finish", slow)
    run = final_run("fast_autoaugment", FEW | {"samples": 3}).model_copy(update={"phase": "search"})
    meter = Meter(clock=lambda: now[0])
    rows = [epoch.row for epoch in train.run(run, meter)]
    assert len(before) > 4 and meter.seconds()["search"] == 100
    assert rows[-1]["device_hours_training"] == pytest.approx(100 / 3600)
    assert [row["found"] is None for row in rows] == [True, False]


def test_a_classifier_without_a_loss_on_the_held_out_images_stops_the_run(final_run, monkeypatch):
    monkeypatch.setattr(fast_autoaugment, "_loss", lambda *a: float("nan"))
    with pytest.raises(RunError, match=r"held-out images is nan.*train.lr \(0.1\)"):
        last_row(final_run("fast_autoaugment", FEW))


def test_the_classifier_learns_from_unaugmented_images_of_the_train_role(final_run, monkeypatch):
    seen = []
    train_on = Learner.train_on
    monkeypatch.setattr(
        Learner, "train_on", lambda self, x, *rest: (seen.append(x), train_on(self, x, *rest))[1]
    )
    monkeypatch.setattr(fast_autoaugment.FastAutoAugment, "finish", lambda *a: None)
    run = final_run("fast_autoaugment", {"flip": "none"}, train={"epochs": 3, "batch_size": 32})
    list(train.run(run))
    images = {image.numpy().tobytes() for image in torch.cat(seen)}
    pool = train.data.load(run.dataset, val_fraction=None, device="cpu", seed=0).train
    assert images < {image.numpy().tobytes() for image in pool.images.float() / 255}
    assert len(images) == pytest.approx(0.6 * 160, abs=10)  # by class, and the same in every epoch


# --- DADA -----------------------------------------------------------------------------------------


def test_what_dada_finds_are_the_likeliest_pairs_with_their_chances(final_run):
    run = final_run("dada", {"keep": 4, "lr": 0.5})
    epoch = list(train.run(run))[-1]
    found = json.loads(epoch.row["found"])
    pi = epoch.snapshot()["state"]["relaxed.choice"].softmax(0)
    assert found["weights"] == pytest.approx(pi.sort(descending=True).values[:4].tolist(), abs=1e-4)
    assert [len(steps) for steps in found["sub_policies"]] == [2] * 4
    assert epoch.row["log"]["effective_sub_policies"] < 100


def batch_of(n=16):
    return Split(torch.randint(60, 200, (n, 1, 6, 6), dtype=torch.uint8), torch.arange(n) % 3)


def test_the_look_ahead_of_dada_is_the_step_that_the_classifier_takes():
    """Its images are discrete: as if they had been augmented before, and trained on."""
    batch, weights = batch_of(), []
    for by_hand in (False, True):
        torch.manual_seed(1)
        model = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(36, 8), torch.nn.BatchNorm1d(8),
            torch.nn.Tanh(), torch.nn.Linear(8, 3),
        )  # fmt: skip
        learner, method = learner_of(model), Dada(flip="none")
        state = method.init(Task(1, 6, 6), 0, torch.device("cpu"))
        if by_hand:
            with torch.no_grad():
                images = state.relaxed(batch.images / 255, learner.noise)
            learner.descend(F.cross_entropy(learner.logits(images), batch.labels))
        else:
            method.step(learner, batch, lambda n: batch_of(), state)
            assert all(bool(p.grad.any()) for p in state.parameters())
        weights.append(model.state_dict())
    for k in weights[0]:
        torch.testing.assert_close(weights[0][k], weights[1][k])


@pytest.fixture
def smooth(monkeypatch):
    """Model, learner, and a state of ops with exact derivatives whose steps always fire; float64.

    Then the loss is a smooth function of the magnitudes.
    """
    monkeypatch.setattr(dada, "as_float", lambda x: x.double() / 255)
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(36, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)
    ).double()
    relaxed = RelaxedPolicy([["Brightness", "Rotate"], ["ShearX", "Contrast"]], 0.5).double()
    relaxed.probability.data.fill_(100.0)
    return model, learner_of(model, lr=0.5), dada.DadaState(relaxed, lr=1e-9)


def assert_is_derivative(got, loss_at, magnitude):
    """`got` of loss_at (a function of the magnitudes), by central differences."""
    for place in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        h = torch.zeros_like(magnitude)
        h[place] = 1e-6
        numeric = (loss_at(magnitude + h) - loss_at(magnitude - h)) / 2e-6
        assert float(got[place]) == pytest.approx(float(numeric), rel=1e-4), place


def test_dada_goes_down_the_derivative_of_the_clean_loss_after_the_classifiers_step(smooth):
    model, learner, state = smooth
    batch, meta = batch_of(), batch_of()
    start = {k: v.detach().clone() for k, v in model.named_parameters()}
    magnitude = state.relaxed.magnitude.detach().clone()

    def meta_loss(moved):
        state.relaxed.magnitude.data = moved
        with torch.no_grad():
            images = state.relaxed(batch.images.double() / 255, torch.Generator().manual_seed(0))
        return look_ahead.meta_loss(
            model, start, learner.rule, images, batch.labels,
            meta.images.double() / 255, meta.labels,
        )  # fmt: skip

    Dada(flip="none", normalise=False).step(learner, batch, lambda n: meta, state)
    assert_is_derivative(state.relaxed.magnitude.grad, meta_loss, magnitude)


def test_dada_by_first_order_goes_down_the_derivative_of_the_augmented_loss(smooth, monkeypatch):
    model, learner, state = smooth
    batch, meta = batch_of(), batch_of()
    magnitude = state.relaxed.magnitude.detach().clone()
    noise = []
    real = RelaxedPolicy.forward

    def spy(self, images, generator):
        noise.append(generator.get_state())
        return real(self, images, generator)

    monkeypatch.setattr(RelaxedPolicy, "forward", spy)
    method = Dada(flip="none", gradient="first_order")
    monkeypatch.setattr(Dada, "augment", lambda self, state, images, noise: images.double())
    method.step(learner, batch, lambda n: meta, state)

    def meta_loss(moved):
        state.relaxed.magnitude.data = moved
        generator = torch.Generator()
        generator.set_state(noise[0])
        with torch.no_grad():
            images = state.relaxed(meta.images.double() / 255, generator)
            return F.cross_entropy(model(images), meta.labels)

    assert_is_derivative(state.relaxed.magnitude.grad, meta_loss, magnitude)


# --- both -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fast_autoaugment", "dada"])
def test_the_final_training_draws_from_what_was_found(name, final_run):
    run = final_run(name, FEW | {"samples": 3} if name == "fast_autoaugment" else {})
    found = json.loads(last_row(run)["found"])
    method = final_run(name, found).method
    assert not (method.searches_in_own_run or method.uses_meta) and method.reshuffles_each_epoch
    state = method.init(None, 0, torch.device("cpu"))
    images = torch.rand(30, 1, 8, 8)
    policy = SubPolicies(method.sub_policies, tuple(found.get("weights", ())))
    g = torch.Generator().manual_seed
    flat = method.model_copy(update={"flip": "none"})
    assert torch.equal(flat.augment(state, images, g(0)), policy(images, g(0)))
    assert json.loads(json.dumps(method.sub_policies)) == found["sub_policies"]


def test_bad_sub_policies_are_refused(tiny):
    for method, message in (
        ({"method": "dada", "sub_policies": [[["Spin", 0.5, 0.5]]]}, "op must be one of"),
        ({"method": "dada", "sub_policies": TABLE, "weights": [1.0]}, "weights must be 2 numbers"),
        ({"method": "dada", "weights": [1.0]}, "weights are those of sub_policies"),
        ({"method": "dada", "keep": 106}, "keep.*less than or equal to 105"),
        ({"method": "fast_autoaugment", "sub_policies": [[["Rotate", 2, 0.5]]]}, "of Rotate"),
        ({"method": "fast_autoaugment", "sub_policies": []}, "at least one sub-policy"),
        ({"method": "fast_autoaugment", "samples": 0}, "samples"),
    ):
        with pytest.raises(UserError, match=message):
            tiny({"entry": method})


def test_without_optuna_only_a_search_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(fast_autoaugment.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'autoaug_ray\[search\]'"):
        tiny({"entry": {"method": "fast_autoaugment"}})
    tiny({"entry": {"method": "fast_autoaugment", "sub_policies": TABLE}})


@pytest.mark.parametrize(("weights", "told"), [
    ((0.25, 0.75), ["0.750: Color 1.00 0.50", "0.250: Invert 0.10 0.20"]),
    ((), ["Invert 0.10 0.20", "Color 1.00 0.50"]),
])  # fmt: skip
def test_sub_policies_are_told_the_weightiest_first(weights, told):
    table = ((("Invert", 0.1, 0.2),), (("Color", 1.0, 0.5),))
    assert dada.Dada(sub_policies=table, weights=weights).found_lines() == told
    assert dada.Dada().found_lines() == []
