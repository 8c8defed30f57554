"""Alpha by alignment: what a drawn kind is scored by, and how alpha moves by the scores."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autoaug_ray.data import Edits, Split
from autoaug_ray.learner import Learner
from autoaug_ray.methods import generative
from autoaug_ray.methods.base import Task
from autoaug_ray.methods.generative import AutoGenDA
from autoaug_ray.methods.mixture_state import AlignmentState, reinforce
from autoaug_ray.settings.training import Training

CPU = torch.device("cpu")
TASK = Task(1, 4, 4, (10, 5, 1), (0.5,))


@pytest.fixture(autouse=True)
def precise(monkeypatch):
    """float64, and a difference over so short a way that it is nearly a derivative."""
    monkeypatch.setattr(generative, "as_float", lambda x: x.double() / 255)
    monkeypatch.setattr(Learner, "logits", lambda learner, images: learner.model(images))
    monkeypatch.setattr(generative, "DISTANCE", 1e-6)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def seeded():
    return torch.Generator().manual_seed(0)


def pixels(n):
    return torch.randint(0, 256, (n, 1, 4, 4), dtype=torch.uint8)


class Step:
    """One step of alpha by alignment on a small smooth net."""

    def __init__(self, method=None, **training):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 3))
        settings = {"gradient": "alignment", "then": {"name": "none"}, **(method or {})}
        self.method = AutoGenDA(**settings)
        training = Training(**{"lr": 0.5, **training})
        self.learner = Learner(self.model, training, total_steps=10, noise=seeded())
        self.state = self.method.start(TASK, 0, CPU)
        self.learner.begin_step()
        torch.manual_seed(1)
        n = 16
        where = 2 * torch.arange(n)[:, None] + torch.arange(2), torch.ones(n, 2, dtype=torch.long)
        self.batch = Split(pixels(n), torch.arange(n) % 3, Edits(pixels(2 * n), *where))
        self.meta = Split(pixels(n), torch.arange(n) % 3)

    def __call__(self):
        self.learner.begin_step()
        logs = self.method.step(self.learner, self.batch, lambda n: self.meta, self.state)
        self.learner.end_step()
        return logs

    def scores(self):
        """What the kinds of the batch are scored by in this step, (B,), before it is centred."""
        seen = []
        real = self.state.scores.centred
        self.state.scores.centred = lambda *args: seen.append(args[0]) or real(*args)
        self()
        return seen[0]

    def oracle(self):
        """<d, g_i> / B for the images that the step sees, by a backward pass for each of them."""
        w = list(self.learner.weights().values())
        images, kind = self.method.chosen(self.state, self.batch, seeded())
        each = F.cross_entropy(self.model(images), self.batch.labels, reduction="none")
        labels, out = self.meta.labels, self.model(self.meta.images / 255)
        of_meta = F.cross_entropy(out, labels, reduction="none")
        weighted = (of_meta * torch.tensor([16 / 30, 16 / 15, 16 / 3])[labels]).mean()
        g = torch.autograd.grad(each.mean(), w, retain_graph=True)
        d = [-self.learner.rule.lr * v for v in torch.autograd.grad(weighted, w)]
        if self.method.normalise:  # the average of one gradient is that gradient
            c = dot(d, g) / dot(g, g)
            d = [a - c * b for a, b in zip(d, g, strict=True)]
        n = len(each)
        rows = [torch.autograd.grad(loss, w, retain_graph=True) for loss in each]
        return torch.stack([dot(d, row) for row in rows]) / n, kind


def dot(a, b):
    return sum((x * y).sum() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_score_is_the_derivative_of_the_image_s_loss_along_d(normalise, accumulate, precision):
    """With precision: bf16, both ends of the difference are computed anew, in float64."""
    settings = {"normalise": normalise}
    oracle, _ = Step(settings).oracle()
    scores = Step(settings, accumulate=accumulate, precision=precision).scores()
    torch.testing.assert_close(scores, oracle, rtol=1e-4, atol=1e-7)


def test_alpha_moves_by_what_is_better_than_its_class():
    """By sum_i (a_i - mean of its class) dlog alpha(kind_i), at first from plain means."""
    step = Step()
    scores, kind = step.oracle()
    step()
    want = torch.zeros(3, 3)
    for c in range(3):
        mine = step.batch.labels == c
        for a, k in zip(scores[mine] - scores[mine].mean(), kind[mine], strict=True):
            want[c] += a * (F.one_hot(k, 3) - 1 / 3)
    torch.testing.assert_close(step.state.logits.grad, want, rtol=1e-4, atol=1e-7)


def test_over_the_draws_it_is_the_derivative_of_the_expected_score():
    """Against an exact expectation over the 27 ways to draw a kind for three images."""
    torch.manual_seed(0)
    logits = torch.randn(2, 3, requires_grad=True)
    labels, table = torch.tensor([0, 1, 1]), torch.randn(3, 3)  # a score of each image and kind
    baseline = torch.randn(2)
    log_alpha = logits.log_softmax(1)
    expected = (log_alpha.exp()[labels] * table).sum()
    exact = torch.autograd.grad(expected, logits, retain_graph=True)
    total = torch.zeros_like(logits)
    for kinds in itertools.product(range(3), repeat=3):
        kind = torch.tensor(kinds)
        p = log_alpha[labels, kind].exp().prod().detach()
        score = table[torch.arange(3), kind] - baseline[labels]
        # Each draw has a graph of its own, as each step has.
        log_alpha = logits.log_softmax(1)
        total += p * reinforce(log_alpha[labels], kind, score, logits)
    torch.testing.assert_close(total, exact[0])


def test_the_mean_of_a_class_is_plain_at_first_and_forgets_later():
    state = AlignmentState(torch.ones(3), memory=20)
    torch.manual_seed(0)
    first, second = torch.randn(2, 12)
    labels = torch.arange(12) % 2
    state.centred(first, labels)
    state.centred(second, labels)
    both = torch.stack([first, second])
    means = torch.stack([both[:, labels == c].mean() for c in range(2)])
    torch.testing.assert_close(state.mean_score, torch.cat([means, torch.zeros(1)]))
    for _ in range(100):
        out = state.centred(torch.full((12,), 5.0), labels)
    assert float(out.abs().max()) < 0.01, "old scores count no more"


def test_meta_images_count_by_their_class():
    """In a long tail all classes weigh alike; where they are drawn alike, each image does."""
    counts = torch.tensor(TASK.class_counts)
    weights = Step().state.scores.class_weights
    torch.testing.assert_close(weights * counts, (weights * counts).mean().expand(3))
    assert float((weights * counts).sum() / counts.sum()) == pytest.approx(1)
    balanced = Step({"sampler": "balanced"}).state.scores.class_weights
    assert balanced.tolist() == [1, 1, 1]


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_the_classifier_takes_the_step_that_it_would_take_anyway(accumulate, optimiser):
    settings = {"accumulate": accumulate, "optimiser": optimiser, "lr": 0.01}
    learning = Step({"learn": "online"}, **settings)
    frozen = Step({"learn": "off"}, **settings)
    assert learning()["train_loss"] == pytest.approx(float(frozen()["train_loss"]))
    for a, b in zip(learning.model.parameters(), frozen.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_online_there_is_no_run_before_and_the_split_is_the_study_s():
    online, off = AutoGenDA(learn="online", gradient="alignment"), AutoGenDA(learn="off")
    for method in (online, off):
        assert method.uses_meta and not method.searches_in_own_run
        assert method.meta_fraction is None and method.resplits_each_epoch
    assert online.learns and not off.learns and not AutoGenDA().learns
    state = off.start(TASK, 0, CPU)
    assert torch.allclose(off.alpha(state), torch.full((3, 3), 1 / 3))
    row = {"alpha": [[0.5, 0.5, 0.0], [0.5, 0.0, 0.5]], "kinds": online.kinds}
    assert online.found_figures(row)["probability of local"] == 0.25


@pytest.mark.parametrize(
    "name, value", [("of", "other"), ("search_steps", 10), ("alpha_table", ((0.5, 0.25, 0.25),))]
)
def test_what_online_learning_cannot_take_is_said(name, value):
    with pytest.raises(ValueError, match=f"learn: online .* {name} must be left out"):
        AutoGenDA(learn="online", **{name: value})


def test_proportions_that_moved_in_a_training_are_no_source():
    with pytest.raises(ValueError, match="learn: online"):
        AutoGenDA(of="it").check_source(AutoGenDA(learn="online"))
