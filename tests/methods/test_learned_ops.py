"""Learned chances of ops: their scores and their gradient, and where they go in planted cases."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd.functional import jvp
from torch.func import functional_call
from torch.nn import functional as F

from autoaug_ray import policy
from autoaug_ray.data import Split
from autoaug_ray.learner import Learner
from autoaug_ray.maths import alignment
from autoaug_ray.maths.image_ops import OPS
from autoaug_ray.methods import learned_ops
from autoaug_ray.methods.base import Task
from autoaug_ray.methods.learned_ops import BINS, LEVELS, LearnedOps, OpsState, agreement
from autoaug_ray.settings.training import Training

CPU = torch.device("cpu")


def seeded():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def smooth_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 6), nn.Tanh(), nn.Linear(6, 3))


def exact(model, w, d, x, labels):
    """(B,) <d, g_i>, and the cosine of dloss/dlogits and the logits' motion along d."""

    def logits(*values):
        return functional_call(model, dict(zip(w, values, strict=True)), (x,))

    def losses(*values):
        return F.cross_entropy(logits(*values), labels, reduction="none")

    here, along = tuple(w.values()), tuple(d.values())
    out, motion = jvp(logits, here, along)
    leaf = out.detach().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(leaf, labels, reduction="sum"), leaf)
    motion = motion - motion.mean(1, keepdim=True)
    cosine = (slope * motion).sum(1) / (slope.norm(dim=1) * motion.norm(dim=1))
    return {"inner": jvp(losses, here, along)[1], "cosine": cosine}


@pytest.mark.parametrize("score", ["inner", "cosine"])
def test_a_score_is_the_derivative_of_a_samples_own_loss(score, double):
    model = smooth_net()
    w = {k: p.detach() for k, p in model.named_parameters()}
    d = {k: torch.randn_like(p) for k, p in w.items()}
    x, labels = torch.rand(16, 3, 6, 6), torch.arange(16) % 3
    ahead, eps = alignment.shifted(w, d, 1e-4)
    behind, _ = alignment.shifted(w, {k: -v for k, v in d.items()}, 1e-4)
    logits = (functional_call(model, there, (x,)) for there in (behind, ahead))
    found = agreement(*logits, labels, score)
    found = found / eps if score == "inner" else found
    torch.testing.assert_close(found, exact(model, w, d, x, labels)[score], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("score", ["inner", "cosine"])
def test_a_step_scores_its_batch_by_the_averaged_gradients(score, accumulate, double, monkeypatch):
    """d is -lr times the meta gradient, without its component along the training gradient."""
    monkeypatch.setattr(learned_ops, "as_float", lambda x: x.double() / 255)
    monkeypatch.setattr(alignment, "shifted", partial(alignment.shifted, distance=1e-4))
    model = smooth_net()
    training = Training(lr=0.5, accumulate=accumulate)
    learner = Learner(model, training, total_steps=10, noise=seeded())
    learner.begin_step()
    method = LearnedOps(score=score, every=1, crop=1, cutout=4)
    state = method.start(Task(3, 6, 6, (4,) * 3, (0.5,) * 3), 0, CPU)
    batch, meta = (
        Split(torch.randint(60, 200, (16, 3, 6, 6), dtype=torch.uint8), torch.arange(16) % 3)
        for _ in range(2)
    )
    images = method.augment(state, batch.images / 255, seeded())
    w = {k: p.detach().clone().requires_grad_() for k, p in model.named_parameters()}

    def gradient(x, labels):
        loss = F.cross_entropy(functional_call(model, w, (x,)), labels)
        return torch.autograd.grad(loss, list(w.values()))

    g, v = gradient(images, batch.labels), gradient(meta.images / 255, meta.labels)
    dot = [sum((a * b).sum() for a, b in zip(x, g, strict=True)) for x in (v, g)]
    lr = learner.rule.lr
    d = {k: -lr * (a - dot[0] / dot[1] * b) for k, a, b in zip(w, v, g, strict=True)}
    oracle = exact(model, {k: p.detach() for k, p in w.items()}, d, images, batch.labels)[score]

    seen = []
    real = OpsState.centred
    monkeypatch.setattr(
        OpsState, "centred", lambda self, s, labels: seen.append(s) or real(self, s, labels)
    )
    method.step(learner, batch, lambda n: meta, state)
    if score == "inner":  # eps is the step's own, a factor of all scores
        oracle, seen[0] = oracle / oracle.norm(), seen[0] / seen[0].norm()
    torch.testing.assert_close(seen[0], oracle, rtol=1e-3, atol=1e-4)


def small_state():
    """Three ops, of which one has no level, with chances that are not uniform."""
    state = OpsState(("Identity", "Rotate", "Solarize"), 2, memory=20, lr=0.1)
    with torch.no_grad():
        state.op_logits += torch.tensor([0.5, -0.3, 0.2])
        state.level_logits += torch.randn(3, LEVELS, generator=seeded())
    return state


@pytest.mark.parametrize("num_ops", [1, 2])
def test_the_likelihood_ratio_has_the_mean_of_the_exact_gradient(num_ops, double):
    """Against the softmax's own derivative: p_j (mean a of j - mean a), for ops and for levels."""
    state = small_state()
    table = torch.randn(3, BINS, generator=seeded())  # a score for every op and bin
    drawn = state.draw(200_000, num_ops, seeded())
    score = table.flatten()[drawn.cell].sum(1)
    ops, levels = state.gradients(drawn, score - score.mean(), prior=0.0)
    p = state.log_p().detach().exp()
    chance = p.sum(1)
    of_op = (p * table).sum(1) / chance
    expected = num_ops * chance * (of_op - (p * table).sum())
    torch.testing.assert_close(ops, expected, rtol=0, atol=0.01 * num_ops)
    group = torch.arange(BINS) * LEVELS // BINS
    of_level = torch.stack([
        (p * (table - of_op[:, None]))[:, group == k].sum(1) for k in range(LEVELS)
    ], dim=1)  # fmt: skip
    of_level[0] = 0.0  # Identity has no level
    torch.testing.assert_close(levels, num_ops * of_level, rtol=0, atol=0.01 * num_ops)


def test_the_prior_pulls_towards_uniform_chances_of_ops_and_levels(double):
    """The divergence from uniform, in closed form by finite differences of its own entropy."""
    state = small_state()
    nothing = state.draw(4, 1, seeded())
    found = state.gradients(nothing, torch.zeros(4), prior=2.0)

    def divergence():
        p = state.log_p().detach().exp().flatten()
        return float(2.0 * (math.log(len(p)) - torch.distributions.Categorical(p).entropy()))

    for parameter, gradient in zip(state.parameters(), found, strict=True):
        for i in range(parameter.numel()):
            ends = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    parameter.view(-1)[i] += step
                    ends.append(divergence())
                    parameter.view(-1)[i] -= step
            slope = (ends[0] - ends[1]) / 2e-5
            assert float(gradient.flatten()[i]) == pytest.approx(slope, abs=1e-8)


def test_the_space_is_trivialaugments_before_anything_is_learned():
    method = LearnedOps()
    assert method.ops == OPS[:-1] and OPS[-1] == "Invert"
    p = method.init(Task(3, 8, 8, (4, 4), (0.5,) * 3), 0, CPU).log_p().exp()
    torch.testing.assert_close(p, torch.full((14, BINS), 1 / (14 * BINS)))


def test_centring_takes_the_classes_means_away():
    """What differs between classes and not between draws is no reason to move."""
    state = OpsState(("Identity", "Rotate"), 3, memory=20, lr=0.1)
    labels = torch.arange(30) % 3
    of_class, own = torch.tensor([5.0, 0.0, -5.0])[labels], torch.randn(30, generator=seeded())
    for _ in range(200):
        out = state.centred(of_class + own, labels)
    own = own - torch.stack([own[labels == c].mean() for c in range(3)])[labels]
    torch.testing.assert_close(out, own / own.square().mean().sqrt(), atol=1e-3, rtol=0)


def planted(images, labels, model, steps=150, lr=0.05, **settings):
    """The chances (K,) of ops after some steps on images whose held-out half is like them."""
    split = Split(images, labels)
    learner = Learner(model, Training(lr=lr), total_steps=steps, noise=seeded())
    method = LearnedOps(flip="none", lr=0.05, every=1, **settings)
    state = method.start(Task(*images.shape[1:], (32, 32), (0.5,) * 3), 0, CPU)
    for _ in range(steps):
        learner.begin_step()
        method.step(learner, split, lambda n: split, state)
        learner.end_step()
    return method, state


def half_bright(low, high):
    """Images (64, 3, 6, 6) whose class is the half that is bright, and labels."""
    torch.manual_seed(0)
    labels = torch.arange(64) % 2
    images = torch.full((64, 3, 6, 6), low)
    images[labels == 0, ..., :3] = high
    images[labels == 1, ..., 3:] = high
    noise = torch.randint(-5, 6, images.shape)
    return (images + noise).to(torch.uint8), labels


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(108, 2)

    def forward(self, x):
        return self.layer(x.flatten(1) - 0.5)


@pytest.mark.parametrize("score", ["cosine", "inner"])
def test_an_op_that_destroys_the_label_is_drawn_less(score):
    method, state = planted(
        *half_bright(60, 190), Linear(), ops=("Identity", "Invert"), score=score
    )
    figures = method.end_epoch(state)
    assert figures["p/Invert"] < 0.1
    found = method.found_figures({"log": figures})
    assert found == {
        "chance of Identity": figures["p/Identity"], "chance of Invert": figures["p/Invert"]
    }  # fmt: skip


def test_an_op_that_only_lengthens_features_does_not_win_by_it():
    """Two ops of which one makes a linear classifier's features three times as long."""
    chances = {}
    for score in ("cosine", "inner"):
        noise = seeded()
        state = OpsState(("Identity", "Contrast"), 3, memory=20, lr=0.02)
        for _ in range(200):
            labels = torch.randint(3, (64,), generator=noise)
            features = F.one_hot(labels, 8) + torch.randn(64, 8, generator=noise)
            drawn = state.draw(64, 1, noise)
            features = torch.where(drawn.cell // BINS == 1, 3.0, 1.0) * features
            d = torch.eye(8, 3)  # along which the loss of most samples falls
            logits = (0.01 * step * features @ d for step in (-1, 1))
            found = state.centred(agreement(*logits, labels, score), labels)
            state.move(state.gradients(drawn, found, prior=0.1))
        chances[score] = float(state.log_p().detach().exp().sum(1)[1])
    assert abs(chances["cosine"] - 0.5) < 0.1 and chances["inner"] > 0.9


def test_the_exported_state_alone_draws_as_the_training_ended():
    method = LearnedOps(num_ops=2)
    task = Task(3, 8, 8, (4, 4), (0.5,) * 3)
    state = method.start(task, 0, CPU)
    with torch.no_grad():
        state.op_logits += torch.randn(14, generator=seeded())
        state.level_logits += torch.randn(14, LEVELS, generator=seeded())
    exported = policy.Policy(method, task, policy.tensors(state.state_dict()))
    images = torch.rand(8, 3, 8, 8)
    torch.manual_seed(3)
    out = exported(images)
    torch.manual_seed(3)
    noise = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    assert torch.equal(out, method.augment(state, images, noise))


def test_meta_batches_come_every_so_many_outer_steps():
    method = LearnedOps(every=2, meta_every=3, until=0.5)
    kinds = [method.kind_of_step(done, 40) for done in range(40)]
    outer = [i for i, kind in enumerate(kinds) if kind]
    assert outer == list(range(1, 20, 2))
    assert [i for i in outer if "meta" in kinds[i]] == [1, 7, 13, 19]
    assert method.steps_per_round == 6


@pytest.mark.parametrize("ops", [(), ("Rotate", "Rotate")])
def test_a_space_has_ops_and_each_once(ops):
    with pytest.raises(ValueError, match="ops must be different ops, at least one, got"):
        LearnedOps(ops=ops)
