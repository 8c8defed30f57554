import warnings

import pytest
import torch
import yaml
from torch import nn
from torchvision.transforms import v2

import autoaug_ray
from autoaug_ray import policy, train
from autoaug_ray.bench.alpha import Planted
from autoaug_ray.errors import UserError
from autoaug_ray.methods import METHODS
from autoaug_ray.methods.base import Task

CASES = sorted(set(METHODS) - {"replay"})


@pytest.fixture
def exported(tmp_path, final_run):
    def make(name, **hyperparameters):
        if name == "mix":
            hyperparameters = {"probabilities": {"identity": 0.5, "fixed": 0.5}}
        if name == "fast_autoaugment":
            hyperparameters = {"samples": 2, "images": 20}
        run = final_run(name, hyperparameters)
        state = [e.snapshot()["state"] for e in train.run(run, bank=Planted(run))][-1]
        task = Task(1, 28, 28, (16,) * 10)
        policy.export(tmp_path, run, task, state, [], {"test_accuracy": 0.5})
        return tmp_path / "policy.pt"

    return make


@pytest.mark.parametrize("name", CASES)
def test_every_method_gives_a_transform(name, exported):
    with warnings.catch_warnings(record=True, action="always") as said:
        transform = autoaug_ray.load_policy(exported(name))
    assert isinstance(transform, nn.Module)
    lacking = transform.method.left_out
    assert bool(lacking) == (name in {"augmix", "cutmix", "mixup", "mixup_cutmix", "timm_recipe"})
    assert [str(w.message).endswith(f"lacks {lacking}.") for w in said] == [True] * bool(lacking)
    batch = torch.randint(0, 256, (6, 1, 28, 28), dtype=torch.uint8)
    for images in (batch, batch[0], batch.float() / 255, torch.rand(1, 40, 36)):
        out = transform(images)
        assert out.shape == images.shape and out.dtype == images.dtype
    assert transform(batch, 3, "x")[1:] == (3, "x")


def test_a_mixing_policy_says_in_which_proportions(exported):
    alpha = autoaug_ray.load_policy(exported("mix")).alpha
    assert torch.allclose(alpha, torch.full((10, 2), 0.5))
    assert autoaug_ray.load_policy(exported("randaugment")).alpha is None


def test_it_stands_in_a_v2_pipeline(exported):
    pipeline = v2.Compose([autoaug_ray.load_policy(exported("bilevel")), v2.Resize(14)])
    assert pipeline(torch.rand(1, 28, 28)).shape == (1, 14, 14)


def test_images_of_a_batch_draw_their_own_and_seeds_decide(exported):
    transform = autoaug_ray.load_policy(exported("bilevel", spread=0.5, group="translation"))
    x = torch.rand(1, 1, 28, 28).expand(4, -1, -1, -1)
    torch.manual_seed(0)
    a, b = transform(x), transform(x)
    torch.manual_seed(0)
    assert torch.equal(transform(x), a) and not torch.equal(a, b)
    assert not torch.equal(a[0], a[2])


def test_what_was_learned_is_what_is_loaded(exported, final_run):
    loaded = autoaug_ray.load_policy(exported("bilevel", lr=0.5))
    run = final_run("bilevel", {"lr": 0.5})
    state = [e.snapshot()["state"] for e in train.run(run)][-1]
    gain = loaded.state.augmenter.log_gain.detach()
    assert torch.equal(gain, state["augmenter.log_gain"]) and float(gain.abs().max()) > 0
    words = yaml.safe_load(exported("bilevel", lr=0.5).with_suffix(".yaml").read_text())
    assert words["method"]["name"] == "bilevel" and words["test_accuracy"] == 0.5


def test_wrong_files_and_images_are_named(tmp_path, exported):
    with pytest.raises(UserError, match="nothing.pt does not exist"):
        autoaug_ray.load_policy(tmp_path / "nothing.pt")
    (tmp_path / "bad.pt").write_bytes(b"no")
    with pytest.raises(UserError, match="bad.pt is not a policy"):
        autoaug_ray.load_policy(tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"expected \(1, H, W\).*got \(3, 28, 28\)"):
        autoaug_ray.load_policy(exported("none"))(torch.rand(3, 28, 28))


def test_the_schedule_is_thinned_but_keeps_its_end():
    kept = [e for e in range(1, 201) if policy.in_schedule(e, 200)]
    assert len(kept) == 20 and kept[-1] == 200
    assert [e for e in range(1, 4) if policy.in_schedule(e, 3)] == [1, 2, 3]
