"""Exported policies against ours, pixel by pixel, for the same drawn numbers."""

import json
import math
import random
from collections import Counter

import pytest
import torch
import yaml
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from autoaug_ray.commands import main
from autoaug_ray.errors import UserError
from autoaug_ray.exports import draws, on_albumentations, on_kornia, on_torchvision, write
from autoaug_ray.maths import augmenter, image_ops, plans, policies
from autoaug_ray.methods import method_class
from autoaug_ray.methods.base import Task
from autoaug_ray.policy import Policy, export, load_policy, tensors

H, W = 24, 32
COLORS = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.2}
STILL = {"flip": "none", "translate": 0}
CASES = {
    "none": ("none", {}),
    "shared stage": ("predefined", {"translate": 0, "crop": 3, "cutout": 8}),
    "predefined": ("predefined", {"rotate": 20, "scale": (0.7, 1.5), "shear": 10, **COLORS}),
    "lighting": ("predefined", {**STILL, "lighting": 1.0}),
    "random_affine": ("random_affine", {"scale_x": 0.2, "shear_y": 0.3, "translate_x": 0.4}),
    "magnitude": ("validated_magnitude", {"group": "similarity+color", "magnitude": 0.3}),
    "bilevel": ("bilevel", {"group": "affine+color", "spread": 0.3, "jitter": 0.2}),
    "bilevel MLP": ("bilevel", {"size": "small", "spread": 0.3, "flip": "learned"}),
    "paper": ("bilevel", {"protocol": "paper"}),
    "randaugment": ("randaugment", {}),
    "trivialaugment": ("trivialaugment", {}),
    "autoaugment": ("autoaugment", {}),
    "learned_ops": ("learned_ops", {"num_ops": 2}),
    "entaugment": ("entaugment", {}),
    "pba": ("pba", {"policy": (5, 7) * 30}),
    "saflex": ("saflex", {}),
}  # fmt: skip


def policy(name, channels=3, state=(), **hyperparameters):
    task = Task(channels, H, W, (5, 5), (0.4, 0.5, 0.6)[:channels])
    return Policy(method_class(name)(**hyperparameters), task, dict(state))


def photograph(channels=3):
    """(C, H, W) uint8, smooth, so that a hundredth of a pixel is less than a level."""
    coarse = torch.rand(1, channels, 4, 5, generator=torch.Generator().manual_seed(0))
    x = torch.nn.functional.interpolate(coarse, (H, W), mode="bicubic", align_corners=True)
    return (x[0].clamp(0, 1) * 255).round().to(torch.uint8)


def by_our_ops(operations, image):
    """(C, H, W) in levels, by the operations that our methods are made of."""
    x = image[None].float() / 255
    for name, *numbers in operations:
        if name == "flip":
            x = x.flip(-1)
        elif name == "warp":
            a, b, c, d, e, f = numbers[0]
            normalised = [[a, b * H / W, 2 * c / W], [d * W / H, e, 2 * f / H]]
            x = image_ops.warp(x, torch.tensor([normalised]), numbers[1])
        elif name in COLORS:
            x = getattr(image_ops, f"adjust_{name}")(x, torch.tensor([float(numbers[0])]))
        elif name == "shift":
            x = (x + torch.tensor(numbers[0]).view(-1, 1, 1) / 255).clamp(0, 1)
        elif name == "erase":
            where = (torch.tensor([n]) for n in numbers[:3])
            x = image_ops.cutout(x, *where, torch.tensor(numbers[3]).view(-1, 1, 1) / 255)
        else:
            ops = {op.lower(): i for i, op in enumerate(image_ops.OPS)}
            value = {"sharpness": lambda v: v - 1, "solarize": lambda v: v / 255}.get(name, float)
            magnitude = value(numbers[0]) if numbers else 0.0
            x = image_ops.apply_ops(x, torch.tensor([ops[name]]), torch.tensor([magnitude]))
    return (x[0] * 255).round()


def loaded(text):
    """The module that exported code is, and that it needs none of ours."""
    assert "import autoaug_ray" not in text and "from autoaug_ray" not in text
    module = {"__name__": "exported"}
    exec(compile(text, "exported.py", "exec"), module)
    return module


@pytest.mark.parametrize("runtime", [on_torchvision, on_kornia], ids=lambda m: m.__name__[23:])
@pytest.mark.parametrize("case", CASES)
def test_exported_code_does_what_our_ops_do(case, runtime, monkeypatch):
    """Within 2 levels of 255 everywhere, and 0.2 on average."""
    name, hyperparameters = CASES[case]
    plan, image = policy(name, **hyperparameters).plan(), photograph()
    augment = runtime.Augment(plan)
    for seed in range(4):
        operations = draws.draw(plan, H, W, random.Random(seed))
        monkeypatch.setattr(runtime, "draw", lambda *_, drawn=operations: drawn)
        if runtime is on_kornia:
            there = (augment(image[None] / 255)[0] * 255).round()
        else:
            there = augment(image)
        off = (there.float() - by_our_ops(operations, image)).abs()
        assert off.max() <= 2 and off.mean() < 0.2, operations


SLOW = ("predefined", "bilevel MLP", "magnitude", "random_affine", "paper")
NIGHTLY = [pytest.param(case, marks=pytest.mark.nightly) for case in SLOW]


@pytest.mark.parametrize("case", ["bilevel", *NIGHTLY])
def test_drawn_numbers_are_distributed_as_ours(case):
    """What pixels become on average, over draws of both: no drawn number is shared here."""
    name, hyperparameters = CASES[case]
    ours, image = policy(name, **hyperparameters), photograph()
    n = 500
    torch.manual_seed(0)
    a = ours(image.expand(n, -1, -1, -1)).float()
    rng, plan = random.Random(0), ours.plan()
    b = torch.stack([by_our_ops(draws.draw(plan, H, W, rng), image) for _ in range(n)])
    error = ((a.var(0) + b.var(0)) / n).sqrt() + 0.05
    z = (a.mean(0) - b.mean(0)) / error
    assert z.abs().max() < 5 and z.square().mean() < 1.7
    spread = a.std(0).mean() / b.std(0).mean()
    assert 0.92 < spread < 1.08


class Told(random.Random):
    """Gives the numbers that it is told, whatever is asked for."""

    def uniform(self, low, high):
        return self.numbers.pop(0)


def test_a_drawn_affine_is_torchvision_s():
    """Rotation, zoom and shear at once, where a wrong sign is no other distribution."""
    image, rng = photograph(), Told()
    rng.numbers = [2.0, -1.5, 25.0, math.log(1.3), 12.0]
    (stage,) = policy("predefined", flip="none", rotate=30, shear=20, scale=(0.5, 2)).plan()
    there = by_our_ops([("warp", draws.draw_affine(stage, rng), "bilinear")], image)
    wanted = F.affine(image / 255, 25.0, [2.0, -1.5], 1.3, [12.0, 0.0],
                      interpolation=F.InterpolationMode.BILINEAR, fill=None)  # fmt: skip
    assert (there - wanted * 255).abs().max() <= 1


@pytest.mark.parametrize("group", ["affine", "similarity+color"])
def test_drawn_parameters_are_the_augmenter_s(group):
    names, image = augmenter.parameter_names(group, 3), photograph()
    p = 0.3 * torch.rand(20, len(names), generator=torch.Generator().manual_seed(1))
    p *= torch.tensor([augmenter.BOUNDS[n] for n in names])
    wanted = augmenter.transform(image.expand(20, -1, -1, -1) / 255, p, names)
    for row, one in zip(p.tolist(), wanted, strict=True):
        values = {n: v * plans.unit_of(n, (H, W))[0] for n, v in zip(names, row, strict=True)}
        there = by_our_ops(draws.parameters(values), image)
        assert (there - one * 255).abs().max() <= 1


def ops_alone(name, level):
    return policy("fast_autoaugment", flip="none", sub_policies=((((name, 1.0, level)),),))


@pytest.mark.parametrize("name", image_ops.OPS)
def test_every_op_at_a_fixed_magnitude_is_ours(name):
    """The whole policy against the whole exported one: only the sign is chance."""
    image, there = photograph(), []
    ours = ops_alone(name, 0.6)
    text = {to: loaded(write.text(ours, to))["Augment"]() for to in ("torchvision", "kornia")}
    wanted = {tuple(ours(image).flatten().tolist()) for _ in range(9)}
    for _ in range(9):
        there.append(text["torchvision"](image))
        there.append((text["kornia"](image[None] / 255)[0] * 255).round())
    for one_there in there:
        off = [(one_there.flatten().float() - torch.tensor(one)).abs().max() for one in wanted]
        assert min(off) <= 2


def test_magnitudes_that_change_nothing_are_left_out():
    """Posterize to all 8 bits, and Solarize from above white on; 0 bits are black."""
    rng = random.Random(0)
    for op, value in (("Posterize", 8.0), ("Solarize", 256.0), ("Identity", 0.0)):
        assert draws.one_op(op, value, H, W, rng) == []
    assert draws.one_op("Posterize", 0.0, H, W, rng) == [("brightness", 0.0)]


def test_the_lottery_of_pba_is_told_by_chances():
    """Every outcome of 20,000 draws of what PBA chooses, against its stated weight."""
    entries = tuple(v for i in range(30) for v in ((3, 5) if i in (0, 3, 9, 20) else (0, 4)))
    entries = entries[:6] + (10, 5) + entries[8:]
    pba = policies.PopulationPolicy(entries)
    _, probability, _ = pba.entries((H, W))
    n = 20_000
    chosen = pba._choose(n, probability, torch.Generator().manual_seed(0)).tolist()
    names = [*policies.PBA_OPS, *policies.PBA_OPS]
    drawn = Counter(tuple(names[i] for i in pair if i < 30) for pair in chosen)
    (stage,) = policy("pba", flip="none", policy=entries).plan()
    stated = Counter()
    for choice in stage["choices"]:
        stated[tuple(step["op"] for step in choice["steps"])] += choice["weight"]
    assert sum(stated.values()) == pytest.approx(1)
    assert drawn.keys() <= stated.keys()
    for outcome, chance in stated.items():
        error = (chance * (1 - chance) / n) ** 0.5
        assert abs(drawn[outcome] / n - chance) < 5 * error + 1e-9, outcome


def test_torchvision_code_takes_what_torchvision_takes():
    module = loaded(write.text(policy("predefined", flip="none", translate=5), "torchvision"))
    augment, image = module["Augment"](), photograph()
    mask = tv_tensors.Mask((image[0] > 127).to(torch.uint8))
    boxes = tv_tensors.BoundingBoxes([[8.0, 6.0, 20.0, 18.0]], format="XYXY", canvas_size=(H, W))
    sample = {"image": tv_tensors.Image(image), "mask": mask, "boxes": boxes, "label": 3}
    torch.manual_seed(1)
    out = augment(sample)
    assert isinstance(out["image"], tv_tensors.Image) and out["image"].dtype == torch.uint8
    assert not torch.equal(out["boxes"], boxes) and out["label"] == 3
    centre = lambda box: (box[0, :2] + box[0, 2:]) / 2  # noqa: E731
    moved = centre(out["boxes"]) - centre(boxes)
    assert moved.abs().max() <= 5 and not torch.equal(out["mask"], mask)
    torch.manual_seed(1)
    pil = augment(F.to_pil_image(image))
    assert torch.equal(F.pil_to_tensor(pil), out["image"])
    torch.manual_seed(1)
    floats = augment(image / 255)
    assert floats.dtype == torch.float and (floats * 255 - out["image"]).abs().max() < 0.51


def run_export(tmp_path, name, *arguments, final_run, **hyperparameters):
    run = final_run(name, hyperparameters)
    task = Task(1, 28, 28, (16,) * 10, (0.3,))
    state = run.method.start(task, 0, torch.device("cpu"))
    export(tmp_path, run, task, tensors(state.state_dict()), [], {})
    return main(["export", str(tmp_path), *arguments])


def test_the_command_writes_every_form(tmp_path, capsys, final_run):
    for to, file in write.ENDINGS.items():
        assert run_export(tmp_path, "bilevel", "--to", to, final_run=final_run) == 0
        assert (tmp_path / file).stat().st_size > 500
        assert capsys.readouterr().out == f"wrote {tmp_path / file}\n"
    parameters = json.loads((tmp_path / "policy.json").read_text())
    assert parameters["image"] == {"channels": 1, "height": 28, "width": 28}
    (stage,) = [s for s in parameters["plan"] if s["stage"] == "parameters"]
    units = {one["name"]: (one["unit"], one["bound"]) for one in stage["parameters"]}
    assert units["translate_x"] == ("px", 14.0) and units["scale_y"] == ("%", 75.0)
    loaded((tmp_path / "policy_torchvision.py").read_text())["Augment"]()
    read = load_policy(tmp_path / "policy.pt")
    assert "translate_x 0 +- 1.4 px" in repr(read) and "horizontal flip, 50 %" in repr(read)


@pytest.mark.parametrize(
    "name, hyperparameters, arguments, sentence",
    [
        ("stn", {}, ["json"], "stn looks at each image"),
        ("mix", {"probabilities": {"identity": 0.5, "fixed": 0.5}}, ["kornia"],
         "autoaug-ray bank export"),
        ("predefined", {"erase": {}}, ["json"], "without resized_crop and erase only"),
        ("trivialaugment", {}, ["albumentations"],
         "Albumentations has no equal of Sharpness: its Sharpen does not blur"),
        ("trivialaugment", {}, ["json", "--without", "Sharpen"],
         "--without Sharpen: the policy has no stage and no op of this name"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)  # fmt: skip
def test_what_has_no_equal_is_said(
    name, hyperparameters, arguments, sentence, tmp_path, capsys, final_run
):
    assert run_export(tmp_path, name, "--to", *arguments, final_run=final_run,
                      **hyperparameters) == 2  # fmt: skip
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert len(list(tmp_path.iterdir())) == 2


def test_what_no_transform_can_do_is_said_in_the_file():
    assert "It lacks the mixing of images" in write.text(policy("mixup"), "torchvision")


def test_another_size_has_other_pixels():
    small, large = (json.loads(write.text(policy("randaugment"), "json", size=s)) for s in
                    (None, (2 * H, 2 * W)))  # fmt: skip
    ends = [
        step["magnitudes"][0]
        for one in (small, large) for choice in one["plan"][1]["choices"]
        for step in choice["steps"] if step["op"] == "TranslateX"
    ]  # fmt: skip
    assert ends == [int(150 / 331 * W * 9 / 30), int(150 / 331 * 2 * W * 9 / 30)]


# Albumentations itself is not among the tests' libraries (it brings OpenCV, 170 MB); its YAML is
# carried out here as its documentation and its code (2.0.8) say.


def affine_of(one):
    """(2, 3), output -> input around the centre: the inverse of Translate Shear Rotate Scale."""
    fixed = lambda key, axis, still: one.get(key, {}).get(axis, [still])[0]  # noqa: E731
    scale = one.get("scale", {})
    by = [scale[0]] * 2 if isinstance(scale, list) else [fixed("scale", k, 1.0) for k in "xy"]
    angle = torch.deg2rad(torch.tensor(one.get("rotate", [0.0])[0], dtype=torch.double))
    slant = [-fixed("shear", k, 0.0) for k in "xy"]
    tan = torch.tan(torch.deg2rad(torch.tensor(slant, dtype=torch.double)))
    shear = torch.tensor([[1.0, tan[0]], [tan[1], 1.0]], dtype=torch.double)
    turn = torch.stack([torch.cos(angle), torch.sin(angle), -torch.sin(angle), torch.cos(angle)])
    linear = shear @ turn.view(2, 2) @ torch.diag(torch.tensor(by, dtype=torch.double))
    inverse = torch.linalg.inv(linear)
    shift = torch.tensor([float(fixed("translate_px", k, 0)) for k in "xy"], dtype=torch.double)
    return torch.cat([inverse, -(inverse @ shift)[:, None]], dim=1)


def made(ours):
    """The transforms of an Albumentations pipeline."""
    return on_albumentations.pipeline(ours.plan(), (H, W))["transform"]["transforms"]


@pytest.mark.parametrize("case", ["predefined", "random_affine", "magnitude", "bilevel", "paper"])
def test_an_albumentations_affine_is_the_drawn_one(case):
    """But for translations, which Albumentations has in whole pixels only."""
    name, hyperparameters = CASES[case]
    ours = policy(name, **hyperparameters)
    (one_of,) = [t for t in made(ours) if t["__class_fullname__"] == "OneOf"]
    stage = next(s for s in ours.plan() if s["stage"] in ("affine", "parameters"))
    rng = random.Random(0)
    for one in one_of["transforms"][:60]:
        parts = one.get("transforms", [one])
        operations = draws.draw([stage], H, W, rng)
        wanted = torch.tensor(operations[0][1], dtype=torch.double).view(2, 3)
        found = affine_of(parts[0])
        assert parts[0]["__class_fullname__"] == "Affine" and parts[0]["interpolation"] == 1
        assert torch.allclose(found[:, :2], wanted[:, :2], atol=1e-6)
        forward = torch.linalg.inv(wanted[:, :2])
        assert (forward @ (found[:, 2] - wanted[:, 2])).abs().max() <= 0.5 + 1e-6
        for part, (op, value) in zip(parts[1:], operations[1:], strict=True):
            assert part["__class_fullname__"] == "ColorJitter" and part[op] == [value, value]


def test_an_albumentations_policy_has_every_op_and_chance():
    (one_of,) = made(policy("autoaugment", table="svhn", flip="none"))
    assert len(one_of["transforms"]) == 25 and {t["p"] for t in one_of["transforms"]} == {1 / 25}
    first = one_of["transforms"][0]["transforms"]  # ShearX 0.9 4, Invert 0.2
    assert [t["p"] for t in first] == [0.9, 0.2]
    assert [t["__class_fullname__"] for t in first] == ["OneOf", "InvertImg"]
    two = [affine_of(t)[0, 1].item() for t in first[0]["transforms"]]
    assert two == pytest.approx([0.3 * 4 / 9, -0.3 * 4 / 9], abs=1e-5)


def test_a_chance_of_one_step_is_not_lost_in_its_weight():
    """A OneOf of Albumentations applies what it has chosen, whatever its p."""
    table = ((("Rotate", 0.3, 0.5),), (("Invert", 0.6, None),))
    ours = policy("fast_autoaugment", flip="none", sub_policies=table, weights=(3.0, 1.0))
    (one_of,) = made(ours)
    assert [t["p"] for t in one_of["transforms"]] == [0.75, 0.25]
    assert [t["__class_fullname__"] for t in one_of["transforms"]] == ["Sequential"] * 2
    assert [t["transforms"][0]["p"] for t in one_of["transforms"]] == [0.3, 0.6]


def test_a_range_stays_a_range_in_albumentations():
    ours = policy("predefined", translate=4, rotate=10, brightness=0.2, hue=0.1, crop=3, cutout=8)
    by_name = {}
    read = yaml.safe_load(write.text(ours, "albumentations"))["transform"]["transforms"]
    assert read == made(ours)
    for one in read:
        by_name.setdefault(one["__class_fullname__"], []).append(one)
    crop, affine = by_name["Affine"]
    assert crop["translate_px"] == {"x": [-3, 3], "y": [-3, 3]} and crop["interpolation"] == 0
    assert affine["translate_px"]["x"] == [-4, 4] and affine["rotate"] == [-10, 10]
    brightness, hue = by_name["ColorJitter"]
    assert brightness["brightness"] == [0.8, 1.2] and hue["hue"] == pytest.approx([-0.1, 0.1])
    assert by_name["HorizontalFlip"][0]["p"] == 0.5
    (hole,) = by_name["CoarseDropout"]
    assert hole["hole_height_range"] == [8, 8] and hole["fill"] == [102.0, 128.0, 153.0]
    assert [one["px"] for one in by_name["CropAndPad"]] == [[4, 3, 3, 4], [-4, -3, -3, -4]]


def test_no_equal_is_a_user_error():
    with pytest.raises(UserError, match="no equal of lighting"):
        write.text(policy("predefined", **STILL, lighting=0.1), "albumentations")
