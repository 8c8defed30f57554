"""Mixing generated images, and learning in which proportions. Banks are planted: see planted.py."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from autoaug_ray import data, train
from autoaug_ray.bench.alpha import SEARCHES, Planted, Search, learned
from autoaug_ray.data import Edits, Split
from autoaug_ray.errors import UserError
from autoaug_ray.learner import Learner
from autoaug_ray.methods.base import Task
from autoaug_ray.methods.generative import AutoGenDA, Mix, edited
from autoaug_ray.settings.training import Training

CPU = torch.device("cpu")


def batch(n=8):
    """Image i is all i; its edits of kind k are 10 k + i, two of each; the last has none of 1."""
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 1, 4, 4).contiguous()
    made = torch.stack([images + 10 * k for k in (1, 1, 2, 2)], dim=1).flatten(0, 1)
    start = 4 * torch.arange(n)[:, None] + torch.tensor([0, 2])
    count = torch.full((n, 2), 2)
    count[-1, 0] = 0
    return Split(images, torch.arange(n) % 3, Edits(made, start, count))


def test_an_image_is_replaced_by_its_own_edits_of_the_drawn_kind():
    b = batch()
    for kind in (0, 1, 2):
        out = edited(b, torch.full((8,), kind), torch.Generator().manual_seed(0)) * 255
        want = torch.arange(8) + 10 * kind
        if kind == 1:
            want[-1] = 7  # it has no such edit: the real one
        assert torch.equal(out[:, 0, 0, 0].round().long(), want)


def test_every_edit_of_a_kind_is_drawn():
    b = batch(2)
    b.edits.images[:] = torch.arange(8).view(8, 1, 1, 1)
    seen = {
        int(edited(b, torch.tensor([2, 2]), torch.Generator().manual_seed(s))[0, 0, 0, 0] * 255.5)
        for s in range(40)
    }
    assert seen == {2, 3}


def alpha_of(method, counts):
    return method.alpha(method.init(Task(1, 4, 4, tuple(counts)), 0, CPU))


def test_the_tables_of_the_baselines():
    half = {"identity": 0.5, "fixed": 0.5}
    dafusion = Mix(probabilities=half)
    assert dafusion.kinds == ("identity", "fixed")
    assert torch.allclose(alpha_of(dafusion, [100, 3]), torch.full((2, 2), 0.5))
    git = alpha_of(Mix(probabilities=half, below=0.25), [100, 25, 24, 2])
    assert torch.allclose(git[:, 1], torch.tensor([0, 0, 0.5, 0.5]), atol=1e-6)
    ramp = alpha_of(Mix(probabilities=half, below=0.25, ramp=True), [100, 25, 13, 1])
    assert torch.allclose(ramp[:, 1], torch.tensor([0, 0, 0.25, 0.5]), atol=1e-6)
    assert torch.allclose(ramp.sum(1), torch.ones(4))


def test_only_what_a_method_can_draw_is_made_and_charged():
    """On CIFAR-10-LT at 0.01 (LDAM's counts) GIT edits 2,613 of the 12,406 images."""
    counts = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert counts == data.counts_of(data.Imbalance(factor=0.01, order="index"), 10, 5000)
    half = {"identity": 0.5, "fixed": 0.5}
    assert Mix(probabilities=half).drawn(counts) == {"fixed": list(range(10))}
    drawn = Mix(probabilities=half, below=0.25).drawn(counts)
    assert drawn == {"fixed": [3, 4, 5, 6, 7, 8, 9]}
    assert (sum(counts), sum(counts[c] for c in drawn["fixed"])) == (12_406, 2_613)
    assert Mix(probabilities=half, below=0.25).drawn([100, 50, 50]) == {"fixed": []}
    ramp = Mix(probabilities={"identity": 0.4, "local": 0.6}, below=0.25, ramp=True)
    assert ramp.drawn([100, 24, 25, 1]) == {"local": [1, 3]}
    learned = AutoGenDA().drawn([3, 2])
    assert {kind: list(classes) for kind, classes in learned.items()} == {
        "local": [0, 1], "transfer": [0, 1],
    }  # fmt: skip


def test_of_a_pool_without_small_classes_git_trains_on_the_real_images(final_run):
    class Nothing:
        def variants(self, plan_key, drawn, shape, hashes, labels):
            assert drawn == {"fixed": []}
            none = torch.zeros(len(hashes), 1, dtype=torch.int64)
            return Edits(torch.zeros((0, *shape), dtype=torch.uint8), none, none)

        def cost(self, plan_key, drawn):
            return {"generate": 0.0}

        work = cost

    half = {"identity": 0.5, "fixed": 0.5}
    balanced = {"name": "fashion-mnist-mini", "test_size": 60, "shots": 5}
    run = final_run("mix", {"probabilities": half, "below": 0.25}, dataset=balanced)
    run = run.model_copy(update={"bank_plan": "empty"})
    row = [e.row for e in train.run(run, bank=Nothing())][-1]
    assert row["finished"] and row["alpha"] == [[1.0, 0.0]] * 10


def test_bad_tables_are_refused(tiny):
    for method, message in (
        ({"method": "mix", "probabilities": {"identity": 0.5, "local": 0.6}}, "add up to 1"),
        ({"method": "mix", "probabilities": {"identity": 1.0}}, "nothing to mix"),
        ({"method": "mix", "probabilities": {"identity": 0.5, "locl": 0.5}}, "probabilities"),
        ({"method": "mix"}, "probabilities is missing"),
        ({"method": "autogenda", "alpha_table": [[0.5, 0.5]]}, "needs 3 probabilities"),
        ({"method": "autogenda", "edits": []}, "at least one"),
        ({"method": "autogenda", "then": {"name": "stn"}}, "then"),
    ):
        with pytest.raises(UserError, match=message):
            tiny({"entry": method})


def learner_of(dtype=torch.float64):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(16, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)
    ).to(dtype)
    generator = torch.Generator().manual_seed(0)
    learner = Learner(model, Training(lr=0.5), total_steps=10, noise=generator)
    learner.begin_step()
    return learner


@pytest.fixture
def float64(monkeypatch):
    from autoaug_ray.methods import generative

    monkeypatch.setattr(generative, "as_float", lambda x: x.double() / 255)


@pytest.mark.parametrize("estimator", ["likelihood_ratio", "gumbel"])
def test_the_hypergradient_of_alpha_is_the_derivative_of_the_meta_loss(estimator, float64):
    """Against central differences; for the likelihood ratio, of the importance-weighted step."""
    method = AutoGenDA(
        gradient="hypergradient", estimator=estimator, normalise=False, then={"name": "none"}
    )
    torch.manual_seed(1)
    b, meta = batch(12), batch(12)
    b.images.random_(0, 256)
    b.edits.images.random_(0, 256)
    meta.images.random_(0, 256)
    learner = learner_of()
    state = method.init(Task(1, 4, 4, (4, 4, 4)), 0, CPU)
    state.double()
    before = {k: v.detach().clone() for k, v in learner.weights().items()}
    logits = state.logits.detach().clone()
    method.step(learner, b, lambda n: meta, state)
    got = state.logits.grad.clone()

    def meta_loss(moved):
        """The whole step again, by hand, at other logits."""
        learner.noise.manual_seed(0)
        log_alpha = moved.log_softmax(1)[b.labels]
        if estimator == "gumbel":
            state.logits.data = moved
            with torch.no_grad():
                x, w = method._blended(state, b, learner.noise), 1.0
        else:
            g = learner.noise
            at = logits.log_softmax(1)[b.labels]
            from autoaug_ray.maths.gumbel import discrete, gumbel

            kind = discrete(at, gumbel(at, g))
            x = edited(b, kind, g)
            w = (log_alpha - at).gather(1, kind[:, None])[:, 0].exp()
        weights = {k: v.clone().requires_grad_() for k, v in before.items()}
        run = torch.func.functional_call(learner.model, weights, (x,))
        loss = (w * F.cross_entropy(run, b.labels, reduction="none")).mean()
        grads = torch.autograd.grad(loss, list(weights.values()))
        stepped = {
            k: (v - learner.rule.lr * (d + learner.rule.weight_decay * v)).detach()
            for (k, v), d in zip(weights.items(), grads, strict=True)
        }
        out = torch.func.functional_call(learner.model, stepped, (meta.images.double() / 255,))
        return float(F.cross_entropy(out, meta.labels))

    h = 1e-5
    for place in [(0, 0), (1, 2), (2, 1)]:
        step = torch.zeros_like(logits)
        step[place] = h
        numeric = (meta_loss(logits + step) - meta_loss(logits - step)) / (2 * h)
        assert float(got[place]) == pytest.approx(numeric, rel=1e-4, abs=1e-9)


def test_the_first_order_gradient_is_that_of_the_augmented_loss_at_fixed_weights(float64):
    """Down it goes, and neither weights nor batch-norm statistics see the validation images."""
    method = AutoGenDA(then={"name": "none"}, lr=0.1)
    learner = learner_of()
    state = method.init(Task(1, 4, 4, (4, 4, 4)), 0, CPU)
    state.double()
    b = batch(12)
    seen = []
    real = method._blended

    def spy(state, part, generator):
        seen.append(({k: v.clone() for k, v in learner.weights().items()}, generator.get_state()))
        return real(state, part, generator)

    object.__setattr__(method, "_blended", spy)
    before = state.logits.detach().clone()
    logs = method.step(learner, b, lambda n: b, state)
    weights, at = seen[0]
    assert all(torch.equal(weights[k], v) for k, v in learner.weights().items())

    def loss_at(x):
        generator = torch.Generator()
        generator.set_state(at)
        blend = real(SimpleNamespace(log_alpha=x.log_softmax(1)), b, generator)
        return F.cross_entropy(learner.model(blend), b.labels)

    assert float(logs["meta_loss"]) == pytest.approx(float(loss_at(before).detach()))
    numeric = torch.zeros_like(before)
    for i in range(3):
        for j in range(3):
            step = torch.zeros_like(before)
            step[i, j] = 1e-5
            up, down = loss_at(before + step), loss_at(before - step)
            numeric[i, j] = (up - down).detach() / 2e-5
    assert torch.allclose(state.logits.detach(), before - 0.1 * numeric, atol=1e-8)


def test_blends_differ_though_the_proportions_are_equal():
    """The Gumbel noise is what lets a search try one kind and then another."""
    method = AutoGenDA(then={"name": "none"})
    state = method.init(Task(1, 4, 4, (4, 4, 4)), 0, CPU)
    b = batch(12)
    b.images[:] = 0
    b.edits.images[:] = 255
    blend = method._blended(state, b, torch.Generator().manual_seed(0)).detach()
    share = blend[:, 0, 0, 0][:-1]  # of the edits, in each image
    assert float(share.std()) > 0.1 and float(share.mean()) == pytest.approx(2 / 3, abs=0.15)


@pytest.mark.parametrize("estimator", ["likelihood_ratio", "gumbel"])
def test_the_classifier_takes_the_step_that_it_would_take_without_a_search(estimator):
    method = AutoGenDA(gradient="hypergradient", estimator=estimator, then={"name": "none"})
    learner = learner_of(torch.float32)
    state = method.init(Task(1, 4, 4, (4, 4, 4)), 0, CPU)
    before = [p.detach().clone() for p in learner.model.parameters()]
    b = batch(12)
    b.edits.images[:] = b.images.repeat_interleave(4, dim=0)  # whatever is drawn, it is the same
    method.step(learner, b, lambda n: b, state)
    loss = F.cross_entropy(
        torch.func.functional_call(
            learner.model, dict(zip(learner.weights(), before, strict=True)), (b.images / 255,)
        ),
        b.labels,
    )
    assert float(loss) > float(F.cross_entropy(learner.model(b.images / 255), b.labels).detach())
    plain = learner_of(torch.float32)
    plain.descend(F.cross_entropy(plain.logits(b.images / 255), b.labels))
    for mine, other in zip(learner.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_a_fixed_half_of_each_class_explores():
    labels = torch.tensor([0] * 7 + [1] * 2 + [2])
    a, b = train.deal_by_class(labels, 0.5, seed=1, epoch=1)
    assert torch.bincount(labels[a]).tolist() == [4, 1, 1]
    assert torch.bincount(labels[b]).tolist() == [3, 1, 1]  # the only one of class 2 has both roles
    assert not set(a.tolist()) & set(b.tolist()) - {9}
    assert train.deal_by_class(labels, 0.5, 1, 1)[0].equal(a)


def test_balanced_sampling_draws_all_classes_alike():
    labels = torch.tensor([0] * 90 + [1] * 8 + [2] * 2)
    split = Split(torch.arange(100).view(100, 1, 1, 1), labels)
    index = torch.arange(100)[labels != 0].repeat(1)
    index = torch.cat([torch.arange(50), index])
    drawn = train.balanced(split, index, torch.Generator().manual_seed(0))(30_000)
    share = torch.bincount(drawn.labels) / 30_000
    assert torch.allclose(share, torch.full((3,), 1 / 3), atol=0.01)
    assert set(drawn.images.flatten().tolist()) == set(index.tolist())


def final(final_run, hyperparameters, **other):
    train_settings = {"epochs": 2, "batch_size": 32, "iters_per_epoch": 7}
    return final_run("autogenda", hyperparameters, train=train_settings, **other)


def test_an_epoch_has_as_many_steps_as_asked(final_run):
    run = final(final_run, {})
    *_, last = train.run(run, bank=Planted(run))
    assert last.snapshot()["learner"]["steps_done"] == 14


def test_a_search_is_as_long_as_it_says_whatever_the_final_is(final_run, tiny):
    short = Training(epochs=10, iters_per_epoch=40)
    passes = Training(epochs=3, batch_size=50)
    asked = AutoGenDA(search_steps=10_000)
    assert asked.training("search", short).steps(pool=1) == 10_000
    assert asked.training("search", passes).steps(pool=500) == 3 * 3334, "rounded up"
    for method, phase in ((asked, "final"), (AutoGenDA(), "search"), (AutoGenDA(), "final")):
        assert method.training(phase, short) == short

    study = tiny({"mine": {"method": "autogenda", "search_steps": 6}}, train={
        "epochs": 2, "batch_size": 32, "iters_per_epoch": 4})  # fmt: skip
    entry, table = study.entry("mine"), {"alpha_table": [[0.5, 0.25, 0.25]] * 10}
    for phase, choices, steps in (("search", {}, 6), ("final", table, 8)):
        run = study.run(entry, phase, seed=0, choices=choices, whole_pool=phase == "search")
        run = run.model_copy(update={"bank_plan": "planted"})
        rows = [epoch.row for epoch in train.run(run, bank=Planted(run))]
        assert sum(kind["steps"] for row in rows for kind in row["step_work"]) == steps
        assert rows[-1]["finished"] and rows[-1]["used_key"] == run.key


def test_rows_say_what_was_mixed_and_what_it_cost(final_run):
    run = final(final_run, {}, dataset={"name": "fashion-mnist-mini", "test_size": 60,
                                        "imbalance": {"factor": 0.1, "largest": 30}})  # fmt: skip
    run = run.model_copy(update={"bank_plan": "planted"})
    row = [e.row for e in train.run(run, bank=Planted(run))][-1]
    assert row["kinds"] == ["identity", "local", "transfer"]
    alpha = torch.tensor(row["alpha"])
    assert alpha.shape == (10, 3) and torch.allclose(alpha.sum(1), torch.ones(10))
    assert sorted(row["class_counts"]) == sorted(data.counts_of(run.dataset.imbalance, 10, 30))
    assert row["imbalance_nominal"] == 0.1
    assert row["imbalance_effective"] == pytest.approx(3 / 30)
    assert row["bank_hours"]["generate"] == pytest.approx(4 / 3600)
    assert row["bank_work"]["generate"] == 4


def test_a_run_without_its_bank_stops(final_run):
    from autoaug_ray.errors import RunError

    with pytest.raises(RunError, match="generated images are needed"):
        list(train.run(final(final_run, {})))


def test_an_augmenter_and_proportions_are_learned_together(final_run):
    run = final_run("bilevel", {"edits": ["local"], "group": "translation", "lr": 0.1})
    epoch = list(train.run(run, bank=Planted(run)))[-1]
    alpha = torch.tensor(epoch.row["alpha"])
    assert not torch.allclose(alpha, torch.full((10, 2), 0.5), atol=1e-3)
    assert not torch.equal(epoch.snapshot()["state"]["augmenter.log_gain"], torch.zeros(2))


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.nightly)])
def test_the_hypergradient_turns_away_from_noise_for_every_class(seed):
    settings = {"gradient": "hypergradient", "optimiser": "adam", "lr": 0.1}
    (noise, sound, _), _ = learned(Search(settings, 4, 40, 128), seed, images=800, width=4)
    assert float(noise.mean()) < 0.15 and bool((noise < sound).all())


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["alignment", "online"])
def test_by_alignment_no_class_keeps_the_noise(name):
    (noise, _, _), _ = learned(SEARCHES[name], 2, images=800, width=4)
    assert float(noise.mean()) < 0.1 and float(noise.max()) < 1 / 3


def test_the_first_order_search_does_so_for_most_classes_only():
    """Noise that one class takes over is easy for the classifier: a trivial solution."""
    settings = {"gradient": "first_order", "optimiser": "sgd", "lr": 0.1}
    (noise, sound, _), _ = learned(Search(settings, 10, 40, 64), 0, images=800, width=4)
    assert float(noise.mean()) < 0.25 and int((noise < sound).sum()) >= 8
