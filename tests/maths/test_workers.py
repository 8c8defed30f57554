"""Two processes with gloo against one: the same gradients of both orders, the same training."""

import multiprocessing

import pytest
import torch
from test_parts import SIZE, Problem
from torch import distributed as dist

from autoaug_ray import train
from autoaug_ray.config import Run
from autoaug_ray.maths import hypergradient as hg
from autoaug_ray.maths.workers import Workers

pytestmark = pytest.mark.nightly


def side_by_side(work, folder, *arguments):
    """What `work(workers, *arguments)` returns in each of two processes."""
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_process, args=(work, rank, str(folder), arguments))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def _process(work, rank, folder, arguments):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(work(Workers(rank, 2), *arguments), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def in_shares(workers, steps, adam, hold):
    problem = Problem(steps, adam)
    cuts = workers.share([slice(0, 3), slice(3, 6), slice(6, 8), slice(8, SIZE)])

    def shared(make):
        terms = [(make(cut), (cut.stop - cut.start) / SIZE) for cut in cuts]
        return hg.Parts([lambda w, f=f, s=s: s * f(w) for f, s in terms], workers.total)

    h = hg.unrolled(
        [shared(lambda part, i=i: problem.train_loss(i, part)) for i in range(steps)],
        shared(problem.meta_loss), problem.w, problem.m, problem.theta, problem.rules,
        hold=hold,
    )  # fmt: skip
    return [*h.theta, *h.weights.values(), h.train_loss, h.meta_loss]


@pytest.mark.parametrize("steps, adam, hold", [(1, False, hg.same_length), (3, True, None)])
def test_hypergradients_are_those_of_one_process(steps, adam, hold, tmp_path):
    first, second = side_by_side(in_shares, tmp_path, steps, adam, hold)
    h = Problem(steps, adam).h(None, hold)
    alone = [*h.theta, *h.weights.values(), h.train_loss, h.meta_loss]
    for a, b, c in zip(alone, first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)
        assert torch.equal(b, c)


def training(workers, text):
    out = []
    for epoch in train.run(Run.model_validate_json(text), workers=workers):
        state = epoch.snapshot()
        tensors = {**state["learner"]["model"], **state["state"]}
        out.append({k: v.clone() for k, v in tensors.items() if torch.is_tensor(v)})
        out.append({"train_loss": torch.tensor(epoch.row["train_loss"])})
    return out


@pytest.mark.parametrize(
    "name, settings",
    [
        ("none", {}),
        ("stn", {}),
        ("bilevel", {"every": 1}),
        ("bilevel", {"estimator": "exact", "unroll": 2, "every": 2, "fraction": 0.5}),
        ("entaugment", {"entropy_loss": True}),
        ("bilevel", {"learn": "train_loss"}),
        ("dada", {}),
        ("dada", {"gradient": "first_order"}),
    ],
)
def test_a_training_is_that_of_one_process_that_works_in_parts(name, settings, final_run, tmp_path):
    run = final_run(name, settings, train={"epochs": 2, "batch_size": 32, "accumulate": 2})
    first, second = side_by_side(training, tmp_path, run.model_dump_json())
    alone = training(Workers(), run.model_dump_json())
    for a, b, c in zip(alone, first, second, strict=True):
        for k in a:
            assert torch.equal(b[k], c[k]), k
            if not k.endswith(("running_mean", "running_var", "num_batches_tracked")):
                torch.testing.assert_close(a[k], b[k], rtol=2e-3, atol=2e-4, msg=k)
