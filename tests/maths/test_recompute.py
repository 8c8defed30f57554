"""Blocks that are computed again: the same gradients, of both orders, with less kept for them."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from autoaug_ray import models
from autoaug_ray.errors import UserError
from autoaug_ray.learner import Learner
from autoaug_ray.maths import hypergradient as hg
from autoaug_ray.maths.recompute import blocks, recomputed
from autoaug_ray.settings.classifier import Classifier
from autoaug_ray.settings.training import Training


def network(name="resnet8", width=8):
    grey = torch.tensor([0.4]), torch.tensor([0.2])
    return models.build(Classifier(name=name, width=width), 3, *grey, seed=0).train()


def hypergradient(net, again, real=False):
    torch.manual_seed(1)
    dtype = next(net.parameters()).dtype
    theta = [torch.full((1, 1, 8, 8), 0.1, dtype=dtype, requires_grad=True)]
    x, y = torch.rand(6, 1, 8, 8).to(dtype), torch.randint(3, (6,))
    w = {k: p.detach().requires_grad_() for k, p in net.named_parameters()}
    m = {k: torch.zeros_like(v) for k, v in w.items()}

    def loss(w, x, real=False):
        buffers = {} if real else {k: b.clone() for k, b in net.named_buffers()}
        with recomputed(again):
            return F.cross_entropy(functional_call(net, {**w, **buffers}, (x,)), y)

    return hg.unrolled(
        [lambda w: loss(w, x * (1 + theta[0]), real)], lambda w: loss(w, x.flip(0)),
        w, m, theta, [hg.SGD(0.1)], hold=hg.same_length,
    )  # fmt: skip


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return x + F.dropout(self.two(F.silu(self.one(x))), 0.5, self.training)


@pytest.mark.parametrize("name", ["resnet8", "dropout"])
def test_hypergradients_are_the_same(name):
    if name == "dropout":
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3), Dropping(), Dropping(), nn.Flatten(), nn.Linear(144, 3)
        )
        again = [net[1], net[2]]
    else:
        net = network(name)
        again = blocks(net)
    net.double()
    a, b = hypergradient(net, []), hypergradient(net, again)
    assert float(a.theta[0].abs().max()) > 1e-6
    torch.testing.assert_close(a.theta[0], b.theta[0], rtol=1e-9, atol=1e-14)
    for k, v in a.weights.items():
        torch.testing.assert_close(v, b.weights[k], rtol=1e-9, atol=1e-14)


def test_statistics_are_written_once():
    plain, again = network(), network()
    hypergradient(plain, [], real=True)
    hypergradient(again, blocks(again), real=True)
    for (k, a), b in zip(plain.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), k
    assert int(dict(again.named_buffers())["1.1.num_batches_tracked"]) == 1


def test_half_precision_is_that_of_the_first_computation():
    net = network()

    def run(again):
        with torch.autocast("cpu", torch.bfloat16), recomputed(again):
            loss = net(torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))).sum()
        return torch.autograd.grad(loss, list(net.parameters()))

    for a, b in zip(run([]), run(blocks(net)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "name, number",
    [("resnet8", 3), ("resnet18", 8), ("wrn-28-10", 12), ("torchvision:mobilenet_v3_small", 11)],
)
def test_blocks_are_the_residual_ones(name, number):
    assert len(blocks(network(name))) == number


def test_a_network_without_blocks_is_refused():
    about = {"total_steps": 1, "noise": torch.Generator()}
    with pytest.raises(UserError, match=r"train.recompute: true needs .* residual blocks"):
        Learner(network("cnn"), Training(recompute=True), **about)
    assert Learner(network(), Training(recompute=True), **about)
