import gzip
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from autoaug_ray import data, train
from autoaug_ray.data import arrays, files, standins
from autoaug_ray.errors import UserError
from autoaug_ray.generate.tiny import excerpt
from autoaug_ray.settings.dataset import Dataset, Shift

MINI = Dataset(name="fashion-mnist-mini")


def test_the_excerpt_is_balanced_and_splits_do_not_overlap():
    splits = data.load(MINI, val_fraction=0.2, device="cpu")
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [3200, 800, 2000]
    assert splits.train.images.shape[1:] == (1, 28, 28)
    for split, count in ((splits.train, 320), (splits.val, 80), (splits.test, 200)):
        assert torch.bincount(split.labels).tolist() == [count] * 10
    keys = [{i.numpy().tobytes() for i in s.images} for s in (splits.train, splits.val)]
    assert not keys[0] & keys[1]


def test_a_final_run_trains_on_val_too():
    splits = data.load(MINI, val_fraction=None, device="cpu")
    assert len(splits.train) == 4000 and splits.val is None
    assert torch.equal(splits.train.images, splits.meta.images)


def test_the_excerpt_avoids_the_half_reserved_for_pretraining():
    with np.load(data.__file__.replace("__init__.py", "fashion-mnist-mini.npz")) as arrays:
        index, labels = arrays["pool_index"], arrays["pool_labels"]
    # The halves need all 60,000 labels; those of the excerpt alone suffice where it is at hand.
    assert len(np.unique(index)) == 4000 and np.bincount(labels).tolist() == [400] * 10
    a, b = excerpt.halves(np.repeat(np.arange(10), 6000))
    assert not set(a) & set(b) and len(a) == len(b) == 30000


def test_smaller_subsets_are_part_of_larger_ones():
    def images(size):
        pool = data.load(
            MINI.model_copy(update={"train_size": size}), val_fraction=None, device="cpu"
        )
        assert torch.bincount(pool.train.labels).tolist() == [size // 10] * 10
        return {i.numpy().tobytes() for i in pool.train.images}

    assert images(50) < images(200)


def test_shift_is_seen_by_val_meta_and_test_only():
    plain = data.load(MINI, val_fraction=0.2, device="cpu")
    shift = Shift(translate=6.0, rotate=20.0, zoom=1.2, brightness=0.3)
    shifted = data.load(MINI.model_copy(update={"shift": shift}), val_fraction=0.2, device="cpu")
    assert torch.equal(plain.train.images, shifted.train.images)
    for name in ("meta", "val", "test"):
        a, b = getattr(plain, name), getattr(shifted, name)
        assert torch.equal(a.labels, b.labels) and not torch.equal(a.images, b.images)
    again = data.apply_shift(plain.test.images, shift, seed=2)
    assert torch.equal(again, shifted.test.images)  # drawn once: the same for every run


def test_shift_moves_by_what_it_says():
    x = torch.zeros(2000, 1, 31, 31, dtype=torch.uint8)
    x[:, :, 15, 15] = 255
    moved = data.apply_shift(x, Shift(translate=6.0), seed=0).float()[:, 0]
    weight = moved / moved.sum((1, 2), keepdim=True)
    at = torch.stack([weight.sum(1) @ torch.arange(31.0), weight.sum(2) @ torch.arange(31.0)]) - 15
    assert at.abs().max() < 6.1
    torch.testing.assert_close(at.std(1), torch.full((2,), 6 / 3**0.5), rtol=0.05, atol=0)


def test_brightness_and_hue_shift_colours_only():
    x = torch.full((500, 3, 4, 4), 100, dtype=torch.uint8)
    bright = data.apply_shift(x, Shift(brightness=0.5), seed=0).float()
    assert bright.min() < 60 and bright.max() > 140
    x[:, 0] = 200
    hue = data.apply_shift(x, Shift(hue=0.5), seed=0)
    assert (hue[:, 1] > hue[:, 0]).any() and (hue[:, 2] > hue[:, 0]).any()


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 2)):
        for name in ("cat", "dog"):
            place = tmp_path / part / name
            place.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{i}.png")
    return tmp_path


def load_folder(root, **settings):
    dataset = Dataset(name="folder", root=str(root), **settings)
    return data.load(dataset, val_fraction=0.25, device="cpu")


def test_folder(folder):
    splits = load_folder(folder, image_size=16)
    assert splits.classes == ("cat", "dog")
    assert splits.train.images.shape == (9, 3, 16, 16) and len(splits.val) == 3
    assert load_folder(folder, channels=1).train.images.shape[1:] == (1, 32, 32)


def test_folder_with_its_own_val(folder):
    shutil.copytree(folder / "test", folder / "val")
    splits = load_folder(folder)
    assert (len(splits.train), len(splits.val)) == (12, 4)
    final = data.load(Dataset(name="folder", root=str(folder)), val_fraction=None, device="cpu")
    assert len(final.train) == 16


@pytest.fixture
def flat(folder):
    """CLASS/*.png without parts: 20 cats and 10 dogs, of which cat/03 to 06 are one file."""
    for part in ("train", "test"):
        shutil.rmtree(folder / part)
    rng = np.random.default_rng(1)
    for name, count in (("cat", 20), ("dog", 10)):
        (folder / name).mkdir()
        for i in range(count):
            pixels = rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:02}.png")
    for i in (4, 5, 6):
        shutil.copy(folder / "cat/03.png", folder / f"cat/{i:02}.png")
    return folder


def pictures(split):
    return [image.numpy().tobytes() for image in split.images]


def test_a_flat_folder_is_cut_by_class_and_identical_files_stay_together(flat):
    copied = 0
    for fraction in (0.1, 0.2, 0.4, 0.9):
        splits = load_folder(flat, test_fraction=fraction)
        pool, test = (pictures(splits.train) + pictures(splits.val)), pictures(splits.test)
        assert len(pool) + len(test) == 30 and not set(pool) & set(test)
        extra = len(test) - len(set(test))
        assert extra in (0, 3)
        copied += extra
        counts = torch.bincount(splits.test.labels) - torch.tensor([extra, 0])
        shares = counts / torch.tensor([17, 10])
        assert (shares - fraction).abs().max() < 0.06, (fraction, counts)
    assert copied > 0, "the copies were never drawn into the test set: nothing was tested"


def test_the_cut_is_the_same_wherever_the_folder_lies(flat, tmp_path_factory):
    here = load_folder(flat, test_fraction=0.2)
    copy = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(flat, copy)
    elsewhere = load_folder(copy, test_fraction=0.2, image_size=16)
    assert here.test.labels.tolist() == elsewhere.test.labels.tolist()
    again = load_folder(copy, test_fraction=0.2)
    assert pictures(here.test) == pictures(again.test)


def test_unreadable_images_are_skipped_only_if_that_is_asked_for(flat):
    (flat / "cat/00.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="cat/00.png cannot be read"):
        load_folder(flat, test_fraction=0.2)
    splits = load_folder(flat, test_fraction=0.2, unreadable="skip")
    assert sum(map(len, (splits.train, splits.val, splits.test))) == 29


def test_wrong_layouts_are_named(folder, flat, tmp_path_factory):
    with pytest.raises(UserError, match="a train/ and a test/ .* or .* dataset.test_fraction"):
        load_folder(flat)
    with pytest.raises(UserError, match="test_fraction: 0.01 of 27 images leaves none to test"):
        load_folder(flat, test_fraction=0.01)
    for part in ("train", "test"):
        shutil.copytree(flat / "dog", folder / part / "dog")
    with pytest.raises(UserError, match="test_fraction is 0.2, but .* has its own train/ and test"):
        load_folder(folder, test_fraction=0.2)
    with pytest.raises(ValueError, match="test_fraction can be set for name: folder only"):
        Dataset(name="cifar10", test_fraction=0.2)


def test_a_class_may_be_called_train(flat):
    (flat / "cat").rename(flat / "train")
    assert load_folder(flat, test_fraction=0.2).classes == ("dog", "train")


def test_a_closed_test_set_is_replaced_by_a_part_of_the_pool(folder):
    for size, fraction in ((None, None), (200, None), (200, 0.25)):
        dataset = MINI.model_copy(update={"train_size": size})
        closed = dataset.model_copy(update={"closed_test": True})
        whole, splits = (
            data.load(d, val_fraction=fraction, device="cpu") for d in (dataset, closed)
        )
        pool = pictures(splits.train) + (pictures(splits.val) if splits.val else [])
        stand_in, test = pictures(splits.test), pictures(whole.test)
        assert len(stand_in) == 0.2 * (size or 4000)
        assert len(set(torch.bincount(splits.test.labels).tolist())) == 1
        everything = pictures(whole.train) + (pictures(whole.val) if whole.val else [])
        assert sorted(pool + stand_in) == sorted(everything)
        assert not set(test) & set(pool + stand_in)


def test_what_stands_in_for_the_test_set_is_seen_as_in_use():
    closed = MINI.model_copy(update={"closed_test": True, "shift": Shift(translate=6.0)})
    plain = MINI.model_copy(update={"closed_test": True})
    a, b = (data.load(d, val_fraction=None, device="cpu") for d in (closed, plain))
    assert torch.equal(a.train.images, b.train.images)
    assert not torch.equal(a.test.images, b.test.images)


def break_nothing_there(root):
    shutil.rmtree(root / "train")
    return "train is not a folder"


def break_one_class(root):
    shutil.rmtree(root / "train/dog")
    return r"holds 1 class folder\(s\) \(cat\)"


def break_unreadable(root):
    (root / "train/dog/3.png").write_bytes(b"no image")
    return r"train/dog/3.png cannot be read as an image"


def break_cut_short(root):
    path = root / "train/dog/3.png"
    path.write_bytes(path.read_bytes()[:100])
    return r"train/dog/3.png cannot be read as an image"


def break_empty_class(root):
    (root / "train/emu").mkdir()
    return "train/emu holds no image"


def break_label(root):
    shutil.copytree(root / "test/dog", root / "test/wolf")
    return "test/wolf: the class 'wolf' is not among the training classes"


def break_no_test(root):
    shutil.rmtree(root / "test")
    return "test is not a folder"


@pytest.mark.parametrize("fault", [v for k, v in dict(globals()).items() if k.startswith("break_")])
def test_bad_folders_are_named(folder, fault):
    with pytest.raises(UserError, match=fault(folder)):
        load_folder(folder)


def idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wb") as file:
        file.write(header + array.tobytes())


@pytest.fixture
def fashion(tmp_path):
    for stem, n in (("train", 40), ("t10k", 20)):
        labels = np.arange(n, dtype=np.uint8) % 10
        images = np.repeat(labels, 784).reshape(n, 28, 28)
        idx(tmp_path / f"{stem}-images-idx3-ubyte.gz", images)
        idx(tmp_path / f"{stem}-labels-idx1-ubyte.gz", labels)
    return tmp_path


def test_fashion_mnist_files(fashion):
    dataset = Dataset(name="fashion-mnist", root=str(fashion))
    splits = data.load(dataset, val_fraction=None, device="cpu")
    assert splits.train.images.shape == (40, 1, 28, 28)
    assert torch.equal(splits.train.images[:, 0, 5, 5].long(), splits.train.labels)


def test_fashion_mnist_errors_name_the_file(fashion):
    dataset = Dataset(name="fashion-mnist", root=str(fashion))
    path = fashion / "train-labels-idx1-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(UserError, match="train-labels-idx1-ubyte.gz is not a whole IDX file"):
        arrays.fashion_mnist(dataset)
    idx(path, np.zeros(7, np.uint8))
    with pytest.raises(UserError, match="40 images but 7 labels"):
        arrays.fashion_mnist(dataset)
    path.unlink()
    with pytest.raises(UserError, match=r"no train-labels-idx1-ubyte\[.gz\].*dataset.download"):
        arrays.fashion_mnist(dataset)


def test_a_missing_cifar_says_what_to_do(tmp_path):
    with pytest.raises(
        UserError, match="no cifar-10-batches-py; unpack cifar-10.*dataset.download"
    ):
        data.load(Dataset(name="cifar10", root=str(tmp_path)), val_fraction=None, device="cpu")


def test_subsets_cannot_be_larger_than_the_set():
    with pytest.raises(UserError, match="dataset.train_size is 5000, but there are only 4000"):
        data.load(MINI.model_copy(update={"train_size": 5000}), val_fraction=None, device="cpu")


def test_a_class_without_training_images_is_named(fashion):
    dataset = Dataset(name="fashion-mnist", root=str(fashion), train_size=5)
    with pytest.raises(UserError, match="no training image of class"):
        data.load(dataset, val_fraction=None, device="cpu")


def tail(**imbalance):
    return data.Dataset(name="fashion-mnist-mini", imbalance=data.Imbalance(**imbalance))


def counts(dataset, seed=0):
    return torch.bincount(
        data.load(dataset, val_fraction=None, device="cpu", seed=seed).train.labels
    ).tolist()


def test_long_tails_are_the_published_ones():
    """LDAM's CIFAR-10-LT at f = 0.01, and AutoGenDA's least count of 2."""
    lt = data.Imbalance(factor=0.01)
    assert data.counts_of(lt, 10, 5000) == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert sum(data.counts_of(lt, 100, 500)) == 10847
    assert sum(data.counts_of(lt, 20, 40)) == 186 and data.counts_of(lt, 20, 40)[-9:] == [2] * 9


def test_a_long_tail_has_an_order_of_classes_per_seed():
    dataset = tail(factor=0.1, largest=50)
    first, second = counts(dataset), counts(dataset, seed=1)
    assert sorted(first, reverse=True) == data.counts_of(dataset.imbalance, 10, 50)
    assert sorted(first) == sorted(second) and first != second
    assert counts(tail(factor=0.1, largest=50, order="index")) == sorted(first, reverse=True)
    assert max(counts(tail(factor=0.5))) == 400  # the smallest class of the pool has 400
    shared = dataset.model_copy(update={"redraw": False})
    assert counts(shared, seed=1) == first


def test_smaller_subsets_are_parts_of_larger_ones():
    def images(dataset):
        split = data.load(dataset, val_fraction=None, device="cpu", seed=3).train
        return {image.numpy().tobytes() for image in split.images}

    small, large = (images(tail(factor=f, largest=50)) for f in (0.01, 0.1))
    assert small < large
    two, four = (images(data.Dataset(name="fashion-mnist-mini", shots=n)) for n in (2, 4))
    assert two < four and len(two) == 20 and len(four) == 40


def test_classes_are_apart_as_masks_would_take_them():
    labels = torch.randint(0, 7, (200,), generator=torch.Generator().manual_seed(0))
    labels[labels == 3] = 4  # a class without images
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))[:150]
    apart = data.by_class(labels, order)
    assert len(apart) == 7
    for c, members in enumerate(apart):
        assert torch.equal(members, order[labels[order] == c])


def test_impossible_subsets_are_refused():
    for wrong, message in (
        (tail(factor=0.1, largest=500), "dataset.imbalance.largest: 500 images per class"),
        (data.Dataset(name="fashion-mnist-mini", shots=401), "dataset.shots: 401 images"),
    ):
        with pytest.raises(UserError, match=message):
            data.load(wrong, val_fraction=None, device="cpu")
    with pytest.raises(ValueError, match="only one of train_size and shots"):
        data.Dataset(name="fashion-mnist-mini", shots=2, train_size=40)


def test_stored_images_are_the_same_images(folder):
    """Training sees the same images if they are decoded when drawn, ahead and on threads."""
    inside, outside = (load_folder(folder, memory_gb=gb) for gb in (4.0, 0.0))
    assert isinstance(inside.train, data.Split) and isinstance(outside.train, data.Stored)
    for name in ("train", "val", "test"):
        a, b = getattr(inside, name), getattr(outside, name)
        assert torch.equal(a.images, b.load().images) and torch.equal(a.labels, b.labels)
    index = torch.arange(len(inside.train))
    for cycle in (train.shuffled, train.balanced):
        a, b = (cycle(s.train, index, train.stream(0, "order")) for s in (inside, outside))
        for _ in range(5):
            x, y = a(4), b(4)
            assert torch.equal(x.images, y.images) and torch.equal(x.labels, y.labels)
            assert torch.equal(x.rows, y.rows)
            assert torch.equal(x.images, inside.train.images[x.rows])
    for x, y in zip(
        data.channel_statistics(inside.train), data.channel_statistics(outside.train), strict=True
    ):
        torch.testing.assert_close(x, y)


def test_a_stored_image_that_cannot_be_read_is_named(folder):
    (folder / "train/dog/3.png").write_bytes(b"no image")
    stored = load_folder(folder, memory_gb=0.0)
    with pytest.raises(UserError, match="train/dog/3.png cannot be read as an image"):
        list(data.batches(stored.train)), list(data.batches(stored.val))


def test_a_shift_needs_images_in_memory(folder):
    with pytest.raises(UserError, match="dataset.shift needs images in memory.*memory_gb, 0"):
        load_folder(folder, memory_gb=0.0, shift=Shift(translate=2))


def test_files_are_stretched_or_cropped(tmp_path):
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 20:60] = 255  # the middle square
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    for fit, white in (("stretch", 0.5), ("crop", 1.0)):
        image = files.ImageFiles([tmp_path / "wide.png"], 20, fit=fit)(0)
        assert image.shape == (3, 20, 20)
        assert abs(image.mean() / 255 - white) < 0.01
    part = files.ImageFiles([tmp_path / "wide.png"], None, boxes=[(0, 0, 30, 10)])(0)
    assert np.array_equal(part, pixels[:10, :30].transpose(2, 0, 1))


@pytest.mark.parametrize("name", ["fashion-mnist-mini", "cifar10", "npz"])
def test_arrays_are_scaled_as_torchvision_scales_images(name, tmp_path):
    """Up and down, in grey and in colour; the oracle works on Pillow's images."""
    root = tmp_path / name
    if name in standins.WRITERS:
        standins.write(name, root, per_class=8)
    as_it_is = data.Dataset(name=name, root=str(root), memory_gb=4)
    before = data.source_of(as_it_is)
    for size in (12, 45):
        after = data.source_of(as_it_is.model_copy(update={"image_size": size}))
        for part in ("pool", "held_out", "test"):
            small, large = getattr(before, part), getattr(after, part)
            assert (small is None) == (large is None)
            if small is None:
                continue
            assert large.shape == (small.shape[0], size, size)
            assert torch.equal(large.labels, small.labels)
            resize = transforms.Resize((size, size))
            for image, scaled in zip(small.images[:3], large.images, strict=False):
                wanted = transforms.functional.pil_to_tensor(
                    resize(transforms.functional.to_pil_image(image))
                )
                assert torch.equal(scaled, wanted)


def test_arrays_that_grow_too_large_are_scaled_when_they_are_drawn():
    small = data.Dataset(name="fashion-mnist-mini", image_size=40, train_size=50, test_size=20)
    kept = data.load(small, val_fraction=0.2, device="cpu")
    drawn = data.load(small.model_copy(update={"memory_gb": 0}), val_fraction=0.2, device="cpu")
    assert isinstance(kept.train, data.Split) and isinstance(drawn.train, data.Stored)
    for role in ("train", "val", "test"):
        a, b = getattr(kept, role), getattr(drawn, role)
        assert torch.equal(a.images, b.load().images) and torch.equal(a.labels, b.labels)
    native = data.Dataset(name="fashion-mnist-mini", image_size=28, memory_gb=0)
    assert isinstance(data.source_of(native).pool, data.Split), "28 pixels is what they have"


def test_tiny_imagenet_is_scaled(tmp_path):
    standins.write("tiny-imagenet", tmp_path / "tiny", per_class=2)
    for size in (None, 32):
        dataset = data.Dataset(name="tiny-imagenet", root=str(tmp_path / "tiny"), image_size=size)
        assert data.source_of(dataset).pool.shape == (3, size or 64, size or 64)


def test_the_fingerprint_changes_with_the_images_and_not_with_what_a_case_draws(tmp_path):
    def given(**other):
        return Dataset(name="folder", root=str(tmp_path), test_fraction=0.3, image_size=8, **other)

    for name in ("ants", "bees"):
        (tmp_path / name).mkdir()
        for i in range(6):
            Image.new("RGB", (9, 9), (i, i, i)).save(tmp_path / name / f"{i}.png")
    before = data.fingerprint(given())
    assert before == data.fingerprint(given(shots=2)) and len(before) == 16
    assert before != data.fingerprint(given(train_size=6))
    data._read.cache_clear()
    assert data.fingerprint(given()) == before
    noise = torch.randint(256, (9, 9, 3), dtype=torch.uint8).numpy()
    Image.fromarray(noise).save(tmp_path / "ants" / "3.png")
    data._read.cache_clear()
    assert data.fingerprint(given()) != before
    mini = Dataset(name="fashion-mnist-mini")
    assert data.fingerprint(mini) != data.fingerprint(mini.model_copy(update={"image_size": 32}))
