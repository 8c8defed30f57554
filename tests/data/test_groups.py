"""Images that belong together, by their names or by their looks."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from standin_files import load

from autoaug_ray import data, train
from autoaug_ray.data import alike, groups
from autoaug_ray.errors import UserError
from autoaug_ray.settings.dataset import Dataset

PLACES = ["cat/v1_0.png", "cat/v1_1.png", "dog/v1_0.png", "dog/v2_0.png", "dog/still.png"]


def test_files_are_grouped_by_group_1_or_by_the_whole_match():
    paths = [f"/data/{place}" for place in PLACES]
    for pattern, wanted in (
        (r"(v\d)_", [0, 0, 0, 1, 2]), (r"v\d", [0, 0, 0, 1, 2]), (r"^\w+/v\d", [0, 0, 1, 2, 3]),
        (r"cat|(dog)", [0, 1, 2, 2, 2]),
    ):  # fmt: skip
        numbers, note = groups.numbered(paths, "/data", pattern)
        assert numbers.tolist() == wanted, pattern
    assert groups.numbered(paths, "/data", r"(v\d)_")[1] == (
        "dataset.group_by makes 3 groups of 5 files; the largest, 'v1', has 3, and 1 match nothing."
    )


@pytest.mark.parametrize(
    ("pattern", "words"),
    [("patient", r"'patient' is found in none of 5 files \(cat/v1_0.png for one\)"),
     ("png", "'png' puts all 5 files into one group, 'png'"),
     ("(v", r"'\(v' is no regular expression \(missing \)")],
)  # fmt: skip
def test_a_pattern_that_groups_nothing_is_refused(pattern, words):
    with pytest.raises(UserError, match=words):
        groups.numbered([f"/data/{place}" for place in PLACES], "/data", pattern)


def test_the_setting_is_checked_when_a_study_is_read():
    with pytest.raises(ValueError, match=r"'\(v' is no regular expression"):
        Dataset(name="folder", group_by="(v")
    with pytest.raises(ValueError, match="group_by can be set for name: tiny-imagenet, .*folder"):
        Dataset(name="npz", group_by="v")


def test_groupings_are_joined_over_several_steps():
    one, other = torch.tensor([5, 5, 7, 8, 9]), torch.tensor([1, 2, 2, 1, 0])
    found = groups.joined(one, other)
    same = found[:, None] == found
    assert same[:4, :4].all() and same.sum() == 17  # 0-1 by one, 1-2 and 0-3 by the other; 4 alone


def test_single_images_are_cut_to_the_rounded_share_of_every_class():
    labels = torch.arange(3).repeat_interleave(torch.tensor([50, 23, 8]))
    for fraction in (0.1, 0.2, 0.5, 0.8):
        rest, chosen = groups.apart(labels, torch.arange(len(labels)), fraction, seed=0)
        assert sorted([*rest.tolist(), *chosen.tolist()]) == list(range(81))
        for n, taken in zip((50, 23, 8), torch.bincount(labels[chosen]).tolist(), strict=True):
            assert abs(taken - n * fraction) <= 0.5


def missed(labels, group, chosen):
    inside = torch.isin(group, torch.tensor(sorted(chosen)))
    shares = torch.bincount(labels[inside], minlength=4) / torch.bincount(labels)
    return float((shares.double() - 0.2).square().sum())


def test_groups_stay_whole_and_shares_are_as_near_as_they_allow():
    generator = torch.Generator().manual_seed(0)
    part_of = set()
    for seed in range(5):
        group = torch.randint(0, 60, (600,), generator=generator) ** 2 // 60  # of uneven sizes
        labels = (group + (torch.rand(600, generator=generator) < 0.2).long()) % 4
        rest, chosen = groups.apart(labels, group, 0.2, seed=seed)
        assert not set(group[rest].tolist()) & set(group[chosen].tolist())
        miss = missed(labels, group, set(group[chosen].tolist()))
        for one in set(group.tolist()):
            other = missed(labels, group, set(group[chosen].tolist()) ^ {one})
            assert miss <= other + 1e-6, "another side for one group would have been nearer"
        again = groups.apart(labels, group, 0.2, seed=seed)
        assert torch.equal(again[1], chosen)
        part_of.add(tuple(chosen.tolist()))
    assert len(part_of) == 5


def test_classes_of_few_groups():
    """One of two large groups is taken, and a single one only if every class is asked for."""
    labels = torch.tensor([0] * 20 + [1] * 8 + [2] * 5)
    group = torch.tensor([*range(20), *[20] * 4, *[21] * 4, *[22] * 5])
    rest, chosen = groups.apart(labels, group, 0.1, seed=0)
    assert torch.bincount(labels[chosen], minlength=3).tolist() == [2, 4, 0]
    assert torch.bincount(labels[rest], minlength=3).tolist() == [18, 4, 5]
    rest, chosen = groups.apart(labels, group, 0.1, seed=0, every_class=True)
    assert torch.bincount(labels[chosen], minlength=3).tolist() == [2, 4, 5]
    assert torch.bincount(labels[rest], minlength=3).tolist() == [18, 4, 5]
    with pytest.raises(UserError, match="the 1 groups of 33 images cannot be parted"):
        groups.apart(labels, torch.zeros_like(group), 0.1, seed=0)


def draw(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def videos(tmp_path):
    """Two classes of 8 videos of 2 to 5 frames; the first frame of two is the same picture."""
    for c, name in enumerate(("cat", "dog")):
        for video in range(8):
            for frame in range(2 + video % 4):
                seed = 0 if name == "cat" and video < 2 and frame == 0 else (c, video, frame)
                draw(tmp_path / f"videos/{name}/{name}{video}_{frame}.png", seed)
    return tmp_path / "videos"


def names(split):
    return {split.read.paths[i].split("/")[-1].split("_")[0] for i in split.index.tolist()}


def of_videos(root, val_fraction=0.25, **more):
    return load(
        Dataset(
            name="folder", root=str(root), image_size=8, memory_gb=0, group_by=r"(\w+)_", **more
        ),
        val_fraction,
    )


@pytest.mark.parametrize("more", [{}, {"closed_test": True}, {"shots": 12}, {"train_size": 30}])
def test_frames_of_a_video_are_on_one_side_of_all_splits(videos, more):
    splits = of_videos(videos, test_fraction=0.25, **more)
    sides = [names(splits.train), names(splits.val), names(splits.test)]
    assert all(sides) and not any(sides[i] & sides[j] for i, j in ((0, 1), (0, 2), (1, 2)))
    assert torch.bincount(splits.test.labels).min() > 0
    files = [splits.train.read.paths[i].split("/")[-1].split("_")[0] for i in splits.train.index]
    for by_class in (None, 0.3):
        method = type("M", (), {"uses_meta": True, "meta_fraction": by_class})()
        training = type("T", (), {"meta_fraction": 0.3})()
        deals = [
            train.roles(method, training, splits.train.labels, 0, epoch, splits.groups)
            for epoch in (1, 2)
        ]
        for role, meta in deals:
            assert not {files[i] for i in role} & {files[i] for i in meta} and len(meta)
            assert len(role) + len(meta) == len(files)
        assert set(deals[0][1].tolist()) != set(deals[1][1].tolist())


def test_identical_frames_of_two_videos_put_both_on_one_side(videos):
    for fraction in (0.2, 0.3, 0.5):
        tested = names(of_videos(videos, test_fraction=fraction).test)
        assert len(tested & {"cat0", "cat1"}) != 1


def test_a_dataset_with_parts_must_keep_its_groups_together(videos):
    (videos.parent / "parts").mkdir()
    videos.rename(videos.parent / "parts/train")
    root = videos.parent / "parts"
    for name in ("cat", "dog"):
        draw(root / f"test/{name}/{name}9_0.png", 900)
        draw(root / f"val/{name}/{name}8_0.png", 901)
    splits = of_videos(root)
    assert len(splits.groups) == len(splits.train)
    final = of_videos(root, None)
    assert len(final.groups) == len(final.train) == len(splits.train) + 2
    few = of_videos(root, shots=10)
    assert not names(few.train) & names(few.val)
    draw(root / "test/dog/dog3_9.png", 902)
    with pytest.raises(UserError, match="dog3_0.png and .*dog3_9.png are of one group, but in dif"):
        of_videos(root)


def test_without_groups_each_image_is_dealt_by_itself(videos):
    splits = load(Dataset(name="folder", root=str(videos), test_fraction=0.25))
    assert splits.groups is None


def test_a_function_without_files_cannot_be_grouped():
    split = data.Split(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4) % 2)
    source = data.Source(split, None, split, ("a", "b"))
    with pytest.raises(UserError, match="dataset.group_by needs a dataset of image files"):
        groups.by_files(source, Dataset(name="folder", group_by="x"))


def photograph(seed, size=(96, 64)):
    """Something smooth, in colour, as photographs are."""
    levels = np.random.default_rng(seed).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize(size, Image.Resampling.BICUBIC)


def compressed(image):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=40)
    return Image.open(file)


CHANGES = {
    "half": lambda i: i.resize((i.width // 2, i.height // 2)),
    "compressed": compressed,
    "brighter": lambda i: ImageEnhance.Brightness(i).enhance(1.1),
    "flatter": lambda i: ImageEnhance.Contrast(i).enhance(0.6),
    "grey": lambda i: i.convert("L"),
    "next frame": lambda i: i.crop((1, 0, i.width, i.height)),
}


def test_changed_copies_look_alike_and_other_images_do_not(monkeypatch):
    monkeypatch.setattr(alike, "BLOCK", 7)  # pairs lie in several blocks
    images = [photograph(seed) for seed in range(40)]
    assert alike.look_alike([alike.thumbnail(i) for i in images]) == []
    for name, change in CHANGES.items():
        changed = [change(image) for image in images]
        pairs = alike.look_alike([alike.thumbnail(i) for i in images + changed])
        assert pairs == [(i, i + 40) for i in range(40)], name
    assert alike.look_alike([]) == []


def test_images_of_one_colour_look_like_nothing():
    white, black = (Image.new("L", (20, 20), v) for v in (255, 0))
    assert alike.look_alike([alike.thumbnail(i) for i in (white, black, white)]) == []


def test_the_first_of_several_is_named_as_a_loop_would_find_it():
    tables = np.random.default_rng(0).normal(size=(30, alike.SIDE**2)).astype(np.float32)
    tables[[4, 9, 20]] = tables[2]
    tables[25] = tables[11]
    tables /= np.linalg.norm(tables, axis=1, keepdims=True)
    wanted = []
    for later in range(30):
        first = next((i for i in range(later) if tables[i] @ tables[later] >= alike.ALIKE), None)
        if first is not None:
            wanted.append((first, later))
    assert sorted(alike.look_alike(list(tables))) == sorted(wanted) and len(wanted) == 4
