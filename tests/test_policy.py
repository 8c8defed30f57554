import warnings

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2

import autoaug_ray
from autoaug_ray import policy, train
from autoaug_ray.bench.alpha import Planted
from autoaug_ray.errors import UserError
from autoaug_ray.methods import METHODS, method_class
from autoaug_ray.methods.base import Task

CASES = sorted(set(METHODS) - {"replay"})


@pytest.fixture
def exported(tmp_path, final_run):
    def make(name, **hyperparameters):
        if name == "mix":
            hyperparameters = {"probabilities": {"identity": 0.5, "fixed": 0.5}}
        if name == "fast_autoaugment":
            # A final training is given what its search has found.
            hyperparameters = {"sub_policies": [[["Rotate", 0.9, 0.6], ["Color", 0.8, 0.9]]]}
        run = final_run(name, hyperparameters)
        state = [e.snapshot()["state"] for e in train.run(run, bank=Planted(run))][-1]
        task = Task(1, 28, 28, (16,) * 10)
        policy.export(tmp_path, run, task, state, [], {"test_accuracy": 0.5})
        return tmp_path / "policy.pt"

    return make


PBA = {"schedule": ((0.0, (0,) * 60), (0.5, (10, 9) * 30)), "flip": "none"}


@pytest.mark.parametrize("name", CASES)
def test_every_method_gives_a_transform(name, exported, monkeypatch):
    """It does, to the bit, what the method did with the state in which training ended."""
    seen, probe = [], train.probe
    monkeypatch.setattr(train, "probe", lambda m, s, p: seen.append((m, s)) or probe(m, s, p))
    with warnings.catch_warnings(record=True, action="always") as said:
        transform = autoaug_ray.load_policy(exported(name, **(PBA if name == "pba" else {})))
    images = torch.rand(40, 1, 28, 28, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(5)
    out = transform(images)
    torch.manual_seed(5)
    noise = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    method, state = seen[-1]
    with torch.no_grad():
        assert torch.equal(out, method.augment(state, images, noise))
    assert name == "none" or not torch.equal(out, images)
    assert isinstance(transform, nn.Module)
    lacking = transform.method.left_out
    assert bool(lacking) == (name in {"augmix", "cutmix", "mixup", "mixup_cutmix", "timm_recipe"})
    assert [str(w.message).endswith(f"lacks {lacking}.") for w in said] == [True] * bool(lacking)
    batch = torch.randint(0, 256, (6, 1, 28, 28), dtype=torch.uint8)
    for images in (batch, batch[0], batch.float() / 255, torch.rand(1, 40, 36)):
        out = transform(images)
        assert out.shape == images.shape and out.dtype == images.dtype
    assert transform(batch, 3, "x")[1:] == (3, "x")


def made(name="predefined", channels=3, **hyperparameters):
    task = Task(channels, 20, 30, (5, 5), (0.5,) * channels)
    return policy.Policy(method_class(name)(**hyperparameters), task, {})


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pil_and_tv_tensors_come_back_as_they_are(mode):
    transform = made("trivialaugment", 3 if mode == "RGB" else 1, flip="none")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    tensor = v2.functional.pil_to_tensor(image)
    outs = []
    for given in (image, tensor, tv_tensors.Image(tensor), tensor.float() / 255):
        torch.manual_seed(4)
        outs.append(transform(given))
    pil, plain, tv, floats = outs
    assert isinstance(pil, Image.Image) and pil.mode == mode and pil.size == (30, 20)
    assert type(tv) is tv_tensors.Image and type(plain) is torch.Tensor
    assert torch.equal(v2.functional.pil_to_tensor(pil), plain) and torch.equal(tv, plain)
    assert torch.equal((floats * 255).round().to(torch.uint8), plain)
    half = transform(tensor.half() / 255)
    assert half.dtype == torch.half and transform(tensor[None][:0]).shape == (0, *tensor.shape)


def spots(places, height=20, width=30):
    """An image with a white spot of 3 x 3 pixels around each (x, y)."""
    image = torch.zeros(3, height, width)
    for x, y in places:
        image[:, y - 1 : y + 2, x - 1 : x + 2] = 1
    return image


@pytest.mark.parametrize(
    "name, hyperparameters",
    [
        ("predefined", {"translate": 3, "rotate": 15, "scale": (0.8, 1.2), "shear": 5}),
        ("predefined", {"flip": "vertical", "translate": 0, "crop": 3}),
        ("randaugment", {"num_ops": 1, "magnitude": 9}),
        ("pba", {"policy": (10, 2) * 30}),
        ("bilevel", {"spread": 0.1, "group": "affine+color"}),
        ("learned_ops", {"ops": ("Rotate",)}),
    ],
    ids=str,
)
def test_boxes_masks_and_points_go_where_the_pixels_go(name, hyperparameters):
    """A spot of the image lies in its mask, its box and around its point, for 15 draws."""
    transform = made(name, **hyperparameters)
    image = spots([(14, 10)])
    mask = tv_tensors.Mask(image[0].to(torch.int64) * 300)
    box = tv_tensors.BoundingBoxes([[12.0, 8.0, 5, 5]], format="XYWH", canvas_size=(20, 30))
    point = tv_tensors.KeyPoints([[14.5, 10.5]], canvas_size=(20, 30))
    moves = 0
    for seed in range(15):
        torch.manual_seed(seed)
        out = transform({"x": tv_tensors.Image(image), "also": (mask, box, point), "label": 7})
        moved_mask, moved_box, moved_point = out["also"]
        assert out["label"] == 7 and moved_mask.dtype == torch.int64
        assert type(moved_box) is tv_tensors.BoundingBoxes and moved_box.format.name == "XYWH"
        rows, columns = torch.nonzero(moved_mask == 300, as_tuple=True)
        seen = torch.stack([columns, rows]).double().mean(1) + 0.5
        x, y, w, h = moved_box[0].double().tolist()
        assert (seen - moved_point[0].double()).abs().max() < 0.7
        centre = torch.tensor([x + w / 2, y + h / 2])
        assert (seen - centre).abs().max() < 0.9 and min(w, h) >= 3.5
        moves += bool((seen - torch.tensor([14.5, 10.5])).abs().max() > 0.6)
    assert moves > 3


def test_a_flip_of_boxes_is_torchvision_s():
    transform, image = made(translate=0), torch.rand(3, 20, 30)
    boxes = tv_tensors.BoundingBoxes([[2, 3, 9, 8], [0, 0, 30, 20]], format="XYXY",
                                     canvas_size=(20, 30))  # fmt: skip
    flipped = 0
    for seed in range(8):
        torch.manual_seed(seed)
        out, there = transform(tv_tensors.Image(image), boxes)
        if torch.equal(out, image.flip(-1)):
            flipped += 1
            assert torch.equal(there, v2.functional.horizontal_flip(boxes))
        else:
            assert torch.equal(there, boxes)
    assert 0 < flipped < 8


def test_two_images_of_a_call_draw_the_same():
    transform, image = made("trivialaugment"), tv_tensors.Image(torch.rand(3, 20, 30))
    for _ in range(5):
        a, b = transform(image, image)
        assert torch.equal(a, b)


def test_a_policy_has_nothing_to_train_and_nothing_to_cast():
    transform = made("bilevel").half()
    assert not list(transform.parameters()) and not transform.state_dict()
    assert not any(p.requires_grad for p in transform.state.parameters())
    assert transform(torch.rand(2, 3, 20, 30)).dtype == torch.float


@pytest.mark.parametrize(
    "sample, sentence",
    [
        (torch.ones(3, 20, 30, dtype=torch.int64), "uint8, or of float in .0, 1., got torch.int64"),
        (torch.ones(3, 20, 30, dtype=torch.uint16), "got torch.uint16"),
        (torch.full((3, 20, 30), 255.0), "in .0, 1., got values from 255 to 255"),
        (torch.full((3, 20, 30), float("nan")), "got values from nan"),
        (torch.randn(3, 20, 30, generator=torch.Generator().manual_seed(0)), "before Normalize"),
        (torch.rand(20, 30, 3), "got .20, 30, 3."),
        (np.ones((20, 30, 3), np.uint8), "expected an image: .* got ndarray"),
        (Image.new("RGBA", (30, 20)), "mode L or RGB, got RGBA"),
        (tv_tensors.Video(torch.rand(2, 3, 20, 30)), "no tv_tensors.Video"),
        ((torch.rand(4, 3, 20, 30), tv_tensors.Mask(torch.ones(20, 30))), "not with a batch"),
        ((torch.rand(3, 20, 30), tv_tensors.BoundingBoxes(torch.ones(1, 5), format="CXCYWHR",
          canvas_size=(20, 30))), "XYXY, XYWH or CXCYWH, got CXCYWHR"),
    ],
    ids=range(11),
)  # fmt: skip
def test_what_it_cannot_serve_is_one_sentence(sample, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        made()(sample)
    assert "\n" not in str(error.value)


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
