"""`protocol: paper` of bilevel against a plain computation of the paper's equations."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autoaug_ray import train
from autoaug_ray.data import Split
from autoaug_ray.errors import UserError
from autoaug_ray.learner import Learner
from autoaug_ray.methods.base import Task
from autoaug_ray.methods.bilevel import Bilevel
from autoaug_ray.settings.training import Training

CPU = torch.device("cpu")
RULE = {"lr": 0.3, "momentum": 0.9, "weight_decay": 5e-3}  # of the classifier


@pytest.mark.parametrize("learn", ["hypergradient", "train_loss"])
def test_all_weights_are_one_group_at_a_rate_that_never_changes(learn, final_run):
    run = final_run("bilevel", {"protocol": "paper", "every": 3, "learn": learn})
    setup = train.prepare(run, CPU, train.load_data(run, CPU, None))
    seen = []
    for epoch in (1, 2):
        batches, next_meta = train.epoch_batches(setup, epoch)
        for _ in range(setup.steps):
            setup.learner.begin_step()
            setup.method.step(setup.learner, batches(32), next_meta, setup.state)
            setup.learner.end_step()
            seen.append([
                (g["lr"], g["momentum"], g["weight_decay"], g["nesterov"], len(g["params"]))
                for g in setup.state.optimiser.param_groups
            ])  # fmt: skip
    layers = [m for m in setup.state.modules() if isinstance(m, nn.Linear)]
    assert len(seen) == 10 == setup.learner.total_steps
    assert seen == [[(0.2, 0.9, 0.01, False, 2 * len(layers))]] * 10
    assert len(list(setup.state.parameters())) == 2 * len(layers) == 6


class Classifier(nn.Module):
    """Smooth, so that difference quotients converge."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(64, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.last(F.silu(self.first(x.flatten(1))))


def by_hand(theta, group, x, z):
    """The augmented images of the text's small network: theta are its weights and biases."""
    for weight, bias in zip(theta[0:4:2], theta[1:4:2], strict=True):
        z = (z @ weight.T + bias).relu()
    p = z @ theta[4].T + theta[5]
    matrix = torch.eye(2, 3).repeat(len(x), 1, 1)
    if group == "affine":
        matrix = matrix + p.view(-1, 2, 3)
    else:
        matrix[:, :, 2] = p.tanh()
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def classified(w, x):
    return F.silu(x.flatten(1) @ w[0].T + w[1]) @ w[2].T + w[3]


def look_ahead(w, m, theta, group, batch, z):
    """Weights and momenta after a step of SGD on an augmented batch (eq. 5): no derivative."""
    w = [v.detach().requires_grad_() for v in w]
    loss = F.cross_entropy(classified(w, by_hand(theta, group, batch[0], z)), batch[1])
    g = torch.autograd.grad(loss, w)
    m = [
        RULE["momentum"] * b + d + RULE["weight_decay"] * v for b, d, v in zip(m, g, w, strict=True)
    ]
    return [(v - RULE["lr"] * b).detach() for v, b in zip(w, m, strict=True)], m


@pytest.mark.parametrize("group", ["translation", "affine"])
def test_two_outer_steps_are_those_of_a_plain_computation(group, monkeypatch):
    """Eq. 3 to 5 with K = J = 1, the derivative towards theta by central differences."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        monkeypatch.setattr("autoaug_ray.methods.bilevel.as_float", lambda images: images)
        method = Bilevel(protocol="paper", group=group, flip="none")
        state = method.init(Task(1, 8, 8), 3, CPU)
        noise = torch.Generator().manual_seed(1)
        training = Training(batch_size=6, schedule="constant", **RULE)
        learner = Learner(Classifier(), training, total_steps=2, noise=noise)
        smooth = F.interpolate(torch.rand(24, 1, 3, 3), (8, 8), mode="bicubic")
        labels = torch.randint(3, (24,))
        train_batches = [(smooth[i : i + 6], labels[i : i + 6]) for i in (0, 6)]
        meta_batches = [(smooth[i : i + 6], labels[i : i + 6]) for i in (12, 18)]
        drawn = [2 * torch.rand(6, state.augmenter.noise_size) - 1 for _ in range(2)]

        w = [p.detach().clone() for p in learner.model.parameters()]
        m = [torch.zeros_like(v) for v in w]
        theta = [p.detach().clone() for p in state.parameters()]
        momenta = [torch.zeros_like(p) for p in theta]
        some = [range(0, p.numel(), max(1, p.numel() // 12)) for p in theta]
        for batch, meta, z in zip(train_batches, meta_batches, drawn, strict=True):
            h = [torch.full_like(p, torch.nan) for p in theta]
            for parameter, slope, entries in zip(theta, h, some, strict=True):
                flat = parameter.view(-1)
                for i in entries:
                    ends = []
                    for sign in (1, -2):
                        flat[i] += sign * 1e-6
                        ahead, _ = look_ahead(w, m, theta, group, batch, z)
                        ends.append(F.cross_entropy(classified(ahead, meta[0]), meta[1]))
                    flat[i] += 1e-6
                    slope.view(-1)[i] = (ends[0] - ends[1]) / 2e-6
            w, m = look_ahead(w, m, theta, group, batch, z)
            momenta = [0.9 * b + d + 0.01 * p for b, d, p in zip(momenta, h, theta, strict=True)]
            monkeypatch.setattr(state.augmenter, "draw", lambda n, generator, z=z: z)
            learner.begin_step()
            method.step(learner, Split(*batch), lambda n, meta=meta: Split(*meta), state)
            learner.end_step()
            moved = 0.0
            for i, (p, b) in enumerate(zip(theta, momenta, strict=True)):
                at = torch.tensor(list(some[i]))
                expected = (p - 0.2 * b).view(-1)[at]
                got = dict(enumerate(state.parameters()))[i].detach()
                torch.testing.assert_close(got.view(-1)[at], expected, rtol=1e-5, atol=1e-8)
                moved = max(moved, float((0.2 * h[i].view(-1)[at]).abs().max()))
                # What was not differenced goes on from where the method took it.
                momenta[i] = (p - got) / 0.2
                theta[i] = got.clone()
            assert moved > 1e-4, "the hypergradient was nothing beside the weight decay"
            for ours, p in zip(w, learner.model.parameters(), strict=True):
                torch.testing.assert_close(ours, p.detach())
    finally:
        torch.set_default_dtype(previous)


def test_its_noise_is_independent_and_ours_is_antithetic():
    for protocol, correlation in (("paper", 0.0), ("release", 0.0), ("ours", -1.0)):
        augmenter = Bilevel(protocol=protocol).init(Task(3, 8, 8), 0, CPU).augmenter
        z = augmenter.draw(8192, torch.Generator().manual_seed(0))
        assert len(z) == 8192 and z.abs().max() <= 1
        assert float(z.var()) == pytest.approx(1 / 3, rel=0.02)  # uniform in [-1, 1]
        pairs = torch.corrcoef(torch.stack([z[::2].flatten(), z[1::2].flatten()]))
        assert float(pairs[0, 1]) == pytest.approx(correlation, abs=0.03)


def drawn(run):
    """The train and the meta images of two epochs, in the order in which they are drawn."""
    setup = train.prepare(run, CPU, train.load_data(run, CPU, None))
    out = []
    for epoch in (1, 2):
        batches, next_meta = train.epoch_batches(setup, epoch)
        both = batches(128).images, next_meta(32).images
        out.append([[i.numpy().tobytes() for i in images] for images in both])
    return out


@pytest.mark.parametrize("settings, same_split, same_order", [
    ({"protocol": "paper"}, False, False),
    ({"protocol": "paper", "resplit": "fixed"}, True, False),
    ({"resplit": "fixed"}, True, False),
    ({}, False, False),
    ({"protocol": "release"}, True, True),
])  # fmt: skip
def test_the_split_is_dealt_once_or_every_epoch(settings, same_split, same_order, final_run):
    (train_1, meta_1), (train_2, meta_2) = drawn(final_run("bilevel", settings))
    assert len(set(train_1)) == 128 and len(set(meta_1)) == 32  # a fifth of the pool of 160
    for one, other in ((train_1, meta_1), (train_2, meta_2)):
        assert not set(one) & set(other)
    assert (set(train_1) == set(train_2), set(meta_1) == set(meta_2)) == (same_split,) * 2
    assert (train_1 == train_2, meta_1 == meta_2) == (same_order,) * 2


@pytest.mark.parametrize("settings, message", [
    ({"symmetric": True}, "knows symmetric: false only, got symmetric: true"),
    ({"spread": 0.2}, "knows spread: 0.1 only, got spread: 0.2"),
    ({"optimiser": "adam"}, 'knows optimiser: "sgd" only, got optimiser: "adam"'),
    ({"normalise": "batch"}, 'knows normalise: "none" only'),
    ({"estimator": "alignment"}, 'knows estimator: "exact" only'),
    ({"flip": "learned"}, "flips with a fixed chance, got flip: learned"),
    ({"memory": 5}, "knows memory: 20.0 only"),
    ({"until": 0.5}, "knows until: 1.0 only"),
    ({"fraction": 0.5}, "knows fraction: 1.0 only"),
    ({"edits": ["fixed"]}, r"knows edits: \[\] only"),
    ({"size": "scale"}, "needs size: small, medium or large, got size: scale"),
    ({"group": "similarity"}, "has no augmenter for group: similarity; known: translation"),
    ({"lr": {"grid": [0.02, 0.2]}, "until": 0.5}, "knows until"),
])  # fmt: skip
def test_what_the_paper_does_not_have_is_refused(settings, message, tiny):
    with pytest.raises(UserError, match=f"methods.x: protocol: paper {message}"):
        tiny({"x": {"method": "bilevel", "protocol": "paper", **settings}})


@pytest.mark.parametrize("settings", [{"unroll": 2}, {"every": 2}, {"resplit": "epoch"}])
def test_the_release_has_one_step_and_one_split(settings, tiny):
    with pytest.raises(UserError, match=f"protocol: release knows {next(iter(settings))}: "):
        tiny({"x": {"method": "bilevel", "protocol": "release", **settings}})
    adam = {"epochs": 2, "batch_size": 32, "optimiser": "adam", "lr": 1e-3}
    with pytest.raises(UserError, match="methods.x.protocol: release needs train.optimiser: sgd"):
        tiny({"x": {"method": "bilevel", "protocol": "release"}}, train=adam)


def test_its_main_rate_can_be_swept(tiny):
    study = tiny({"x": {"method": "bilevel", "protocol": "paper", "lr": {"grid": [0.002, 0.2]}}})
    entry = study.entry("x")
    assert [entry.method(c).lr for c in entry.grid()] == [0.002, 0.2]
    whole = Bilevel(protocol="paper")
    assert (whole.lr, whole.weight_decay, whole.size) == (0.2, 0.01, "small")
    assert Bilevel.model_validate_json(whole.model_dump_json()) == whole
