"""Readers of published formats, on small made-up datasets in the same formats."""

import os
import pathlib
import shutil
import sys

import datasets
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from standin_files import load
from torchvision.transforms import v2

from autoaug_ray import data, train
from autoaug_ray.data.standins import natural
from autoaug_ray.data.standins.natural import WRITERS
from autoaug_ray.errors import UserError
from autoaug_ray.store.folder import TIMES


def parts(splits):
    return [splits.train.load(), splits.val.load(), splits.test.load()]


def files(split):
    return [split.read.paths[i] for i in split.index]


def test_every_reader_here_has_a_stand_in():
    elsewhere = {"fashion-mnist-mini", "caltech101", "voc2012", "coco2017", "lvis"}
    assert WRITERS.keys() == data.SOURCES.keys() - elsewhere


@pytest.mark.parametrize("name", WRITERS)
def test_parts_are_disjoint_and_can_be_learned(stand_in, name):
    dataset = stand_in(name)
    splits = load(dataset)
    train_part, val, test = parts(splits)
    hashes = [{i.numpy().tobytes() for i in part.images} for part in (train_part, val, test)]
    assert [len(h) for h in hashes] == [len(train_part), len(val), len(test)]
    assert not hashes[0] & hashes[1] and not (hashes[0] | hashes[1]) & hashes[2]
    assert len(load(dataset, None).train) == len(train_part) + len(val)
    for part in (train_part, test):
        counts = torch.bincount(part.labels, minlength=len(splits.classes))
        assert part.images.dtype == torch.uint8 and (counts > 0).all()

    def described(images):
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 8).flatten(1)

    centres = torch.stack(
        [described(train_part.images[train_part.labels == c]).mean(0)
         for c in range(len(splits.classes))]
    )  # fmt: skip
    nearest = torch.cdist(described(test.images), centres).argmin(1)
    right = (nearest == test.labels).float().mean()
    # A disk may be cut between BACH's patches, and CIFAR-100's hundred colours are close.
    assert right > {"bach": 0.7, "cifar100": 0.4}.get(name, 0.9)


class Listed(list):
    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize("name", ["tiny-imagenet", "imagenet", "bach", "folder"])
def test_the_order_on_disk_does_not_matter(stand_in, monkeypatch, name):
    dataset = stand_in(name)
    before = parts(load(dataset))
    scandir, listdir = os.scandir, os.listdir
    monkeypatch.setattr(os, "scandir", lambda at: Listed(reversed(sorted(scandir(at), key=str))))
    monkeypatch.setattr(os, "listdir", lambda at: sorted(listdir(at), reverse=True))
    for a, b in zip(before, parts(load(dataset)), strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)


def test_tiny_imagenet_tests_on_the_publishers_val(stand_in):
    dataset = stand_in("tiny-imagenet")
    splits = load(dataset)
    assert splits.classes == (
        "goldfish", "crane (n02012849)", "Egyptian cat", "beer bottle", "crane (n03126707)"
    )  # fmt: skip
    assert [len(p) for p in parts(splits)] == [15, 5, 10]
    assert splits.test.shape == (3, 64, 64)
    top = f"{dataset.root}/tiny-imagenet-200"
    wnids = sorted(natural.WORDS)
    shown = splits.test.images, splits.test.labels
    found = {i.numpy().tobytes(): int(c) for i, c in zip(*shown, strict=True)}
    with open(f"{top}/val/val_annotations.txt") as file:
        for line in file:
            name, wnid = line.split("\t")[:2]
            pixels = np.array(Image.open(f"{top}/val/images/{name}")).transpose(2, 0, 1)
            assert found.pop(pixels.tobytes()) == wnids.index(wnid)
    assert not found
    pool = load(dataset, None).train
    grey = (pool.images[:, :1] == pool.images).all((1, 2, 3))
    assert pool.labels[grey].tolist() == [wnids.index("n03126707")]
    inside = load(dataset.model_copy(update={"root": top}))
    assert torch.equal(inside.train.images, splits.train.images)


def test_imagenet_lists_what_torchvision_lists(stand_in):
    dataset = stand_in("imagenet", memory_gb=0)
    splits = load(dataset, None)
    for part, split in (("train", splits.train), ("val", splits.test)):
        oracle = torchvision.datasets.ImageFolder(f"{dataset.root}/{part}")
        assert list(oracle.classes) == sorted(natural.WORDS)
        assert files(split) == [path for path, _ in oracle.samples]
        assert split.labels.tolist() == oracle.targets
    assert splits.classes[:2] == ("goldfish", "crane (n02012849)")
    os.remove(f"{dataset.root}/LOC_synset_mapping.txt")
    assert load(dataset).classes == tuple(sorted(natural.WORDS))


def test_imagenet_is_256_with_the_middle_kept(stand_in):
    dataset = stand_in("imagenet", image_size=None)
    usual = v2.Compose([v2.Resize(256), v2.CenterCrop(256)])
    for part, split in (("train", load(dataset, None).train), ("val", load(dataset).test)):
        folder = torchvision.datasets.ImageFolder(f"{dataset.root}/{part}", usual)
        for image, (oracle, _) in zip(split.images, folder, strict=True):
            wanted = v2.functional.pil_to_tensor(oracle)
            assert image.shape == wanted.shape == (3, 256, 256)
            # Cropped first, then scaled: the window is the same to a fraction of a pixel.
            assert (image.float() - wanted.float()).abs().mean() < 3
    stretched = load(stand_in("imagenet", fit="stretch", image_size=None)).test.images
    assert (stretched.float() - load(dataset).test.images.float()).abs().mean() > 5


def test_imagenet_as_kaggle_packs_it(stand_in, tmp_path):
    dataset = stand_in("imagenet")
    before = load(dataset)
    inner = tmp_path / "kaggle/ILSVRC/Data/CLS-LOC"
    shutil.copytree(f"{dataset.root}/train", inner / "train")
    (inner / "val").mkdir()
    lines, names = [], {}
    sources = sorted((tmp_path / "imagenet/val").rglob("*.JPEG"))
    for n, source in enumerate(reversed(sources)):
        name = f"ILSVRC2012_val_{n:08}"
        shutil.copy(source, inner / "val" / f"{name}.JPEG")
        # The file is in no order of names.
        lines.insert(n // 2, f"{name},{source.parent.name} 1 2 30 40 {source.parent.name} 0 0 5 5 ")
        names[name] = source
    kaggle = dataset.model_copy(update={"root": str(tmp_path / "kaggle")})
    with pytest.raises(UserError, match="has to be sorted into class folders.*valprep.sh"):
        load(kaggle)
    table = "\n".join(["ImageId,PredictionString", *lines])
    (tmp_path / "kaggle/LOC_val_solution.csv").write_text(table)
    after = load(kaggle)
    assert torch.equal(after.train.images, before.train.images)
    order = [sources.index(names[name]) for name in sorted(names)]
    assert torch.equal(after.test.images, before.test.images[order])
    assert torch.equal(after.test.labels, before.test.labels[order])


def test_a_streamed_imagenet_trains_as_one_in_memory(stand_in, final_run):
    def rows(**settings):
        dataset = stand_in("imagenet", image_size=16, **settings).model_dump(exclude_defaults=True)
        run = final_run("predefined", dataset=dataset, train={"epochs": 1, "batch_size": 8})
        data._read.cache_clear()
        return [epoch.row for epoch in train.run(run)]

    def numbers(row):
        return {k: v for k, v in row.items() if type(v) is float and k not in TIMES}

    (inside,), (streamed,) = rows(), rows(memory_gb=0)
    assert {"train_loss", "test_accuracy", "displacement"} <= numbers(inside).keys()
    # The mean that normalises is summed in another order: the last digits may differ.
    assert numbers(streamed) == pytest.approx(numbers(inside), rel=1e-4)
    for name in ("class_accuracy", "class_counts", "log"):
        assert streamed[name] == pytest.approx(inside[name], rel=1e-4)


def test_bach_halves_are_whole_photographs(stand_in):
    dataset = stand_in("bach", memory_gb=0)
    splits = load(dataset)
    assert splits.classes == ("Benign", "InSitu", "Invasive", "Normal")
    sets = [set(files(part)) for part in (splits.train, splits.val, splits.test)]
    assert [len(s) for s in sets] == [12, 4, 16]
    assert len(set.union(*sets)) == 32
    assert [len(splits.train), len(splits.val), len(splits.test)] == [72, 24, 16]
    for part, each in ((splits.train, 18), (splits.val, 6), (splits.test, 4)):
        assert torch.bincount(part.labels).tolist() == [each] * 4
        for path, label in zip(files(part), part.labels, strict=True):
            assert path.split("/")[-2] == splits.classes[label]
    for settings in ({"shots": 9}, {"imbalance": {"factor": 0.3}}, {"train_size": 48}):
        part = load(stand_in("bach", memory_gb=0, **settings))
        assert not set(files(part.train)) & set(files(part.val))
        assert set(files(part.test)) == sets[2]


def test_bach_trains_on_patches_and_tests_on_whole_photographs(stand_in):
    dataset = stand_in("bach", memory_gb=0)
    splits = load(dataset, None)
    whole = {}
    for path, patch in zip(files(splits.train), splits.train.load().images, strict=True):
        whole.setdefault(path, []).append(patch)
    for path, patches in whole.items():
        assert len(patches) == 6
        rows = [torch.cat(patches[i : i + 3], dim=2) for i in (0, 3)]
        pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
        assert torch.equal(torch.cat(rows, dim=1), pixels)
    assert splits.test.shape == (3, 64, 96)
    first = np.array(Image.open(files(splits.test)[0])).transpose(2, 0, 1)
    assert np.array_equal(splits.test.load().images[0], first)
    assert load(stand_in("bach", image_size=40), None).train.images.shape == (32, 3, 40, 40)


@pytest.mark.parametrize("memory_gb", [0, 4])
def test_bach_photographs_are_classified_at_once(stand_in, final_run, memory_gb):
    dataset = stand_in("bach", memory_gb=memory_gb).model_dump(exclude_defaults=True)
    run = final_run("none", dataset=dataset, train={"epochs": 1, "batch_size": 8})
    data._read.cache_clear()
    (epoch,) = train.run(run)
    assert len(epoch.row["class_accuracy"]) == 4


def test_npz(stand_in):
    dataset = stand_in("npz")
    splits = load(dataset)
    arrays = np.load(dataset.root)
    assert splits.classes == ("0", "1", "2")
    for part, split in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
        assert np.array_equal(split.images.permute(0, 2, 3, 1), arrays[f"{part}_images"])
        assert np.array_equal(split.labels, arrays[f"{part}_labels"][:, 0])


def test_npz_may_be_grey_have_names_and_lack_val(stand_in):
    dataset = stand_in("npz")
    arrays = dict(np.load(dataset.root)).items()
    grey = {name: array[..., 0] for name, array in arrays if not name.startswith("val")}
    np.savez(dataset.root, classes=np.array(["a", "b", "c"]), **grey)
    splits = load(dataset)
    assert splits.classes == ("a", "b", "c") and splits.train.shape == (1, 28, 28)
    assert [len(p) for p in parts(splits)] == [9, 3, 6]


def hub_table(root, **columns):
    """The folder stand-in's train part as `datasets` holds it, with more columns."""
    features = datasets.Features({
        "picture": datasets.Image(), "kind": datasets.ClassLabel(names=list(natural.OWN_CLASSES)),
        **{name: feature for name, (feature, _) in columns.items()},
    })  # fmt: skip
    tables = {}
    for part in ("train", "val", "test"):
        paths = sorted(root.glob(f"{part}/*/*.png"))
        labels = [natural.OWN_CLASSES.index(path.parent.name) for path in paths]
        own = {"picture": [{"bytes": p.read_bytes()} for p in paths], "kind": labels}
        more = {name: [value] * len(paths) for name, (_, value) in columns.items()}
        tables[part] = datasets.Dataset.from_dict({**own, **more}, features=features)
    return datasets.DatasetDict(tables)


def save_parquet(tables, root):
    root.mkdir()
    for part, table in tables.items():
        table.to_parquet(root / f"{part}-00000-of-00001.parquet")


def save_to_disk(tables, root):
    tables.save_to_disk(root)


@pytest.mark.parametrize("save", [save_parquet, save_to_disk, None])
def test_hub_formats_hold_what_the_folder_holds(stand_in, tmp_path, save):
    wanted = load(stand_in("folder"))
    dataset = stand_in("hub")
    if save is not None:
        save(hub_table(tmp_path / "hub", id=(datasets.Value("int64"), 7)), tmp_path / "saved")
        dataset = dataset.model_copy(update={"root": str(tmp_path / "saved")})
    for settings in ({}, {"memory_gb": 0}):
        splits = load(dataset.model_copy(update=settings))
        assert splits.classes == natural.OWN_CLASSES
        for a, b in zip(parts(splits), parts(wanted), strict=True):
            assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
    grey = load(dataset.model_copy(update={"channels": 1, "image_size": 16}))
    assert grey.train.shape == (1, 16, 16)


def test_hub_without_datasets_names_the_extra(stand_in, monkeypatch):
    dataset = stand_in("hub")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs the package datasets; pip install .*\[hub\]"):
        load(dataset)


def rewrite(path, change):
    arrays = dict(np.load(path))
    change(arrays)
    np.savez(path, **arrays)


def several_labels(arrays):
    arrays["train_labels"] = np.zeros((len(arrays["train_labels"]), 14), np.uint8)


def volumes(arrays):
    arrays["train_images"] = np.zeros((12, 28, 28, 28), np.uint8)


def fewer(arrays):
    arrays["val_labels"] = arrays["val_labels"][1:]


def without_test(arrays):
    del arrays["test_images"]


def other_size(arrays):
    arrays["test_images"] = arrays["test_images"][:, :14]


def too_few_names(arrays):
    arrays["classes"] = np.array(["a", "b"])


def floats(arrays):
    arrays["train_images"] = arrays["train_images"] / 255


def objects(arrays):
    arrays["classes"] = np.array([{}], dtype=object)


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def save_hub(root, change, **columns):
    tables = hub_table(root, **columns)
    shutil.rmtree(root)
    change(tables)
    tables.save_to_disk(root)


def relabel(tables):
    other = datasets.ClassLabel(names=["x", "y", "z"])
    tables["test"] = tables["test"].cast_column("kind", other)


def unlabel(tables):
    hidden = datasets.Dataset.from_dict(
        {"picture": [None], "kind": [-1]}, features=tables["test"].features
    )
    tables["test"] = hidden


def unsort(root):
    for path in (root / "val").rglob("*.JPEG"):
        path.rename(root / "val" / path.name)
    for place in list((root / "val").iterdir()):
        if place.is_dir():
            place.rmdir()


def small_photograph(root):
    Image.new("RGB", (48, 48)).save(root / "Photos/InSitu/is002.tif")


FAULTS = {
    "cifar10": [
        (lambda r: (r / "cifar-10-batches-py/data_batch_3").unlink(),
         "cifar-10-batches-py holds no data_batch_3; unpack the whole of cifar-10-python.tar.gz"),
        (lambda r: cut(r / "cifar-10-batches-py/data_batch_5"), "data_batch_5 is not a whole"),
        (lambda r: (r / "cifar-10-batches-py/batches.meta").unlink(), "holds no batches.meta"),
        (lambda r: shutil.copy(r / "cifar-10-batches-py/batches.meta",
                               r / "cifar-10-batches-py/test_batch"),
         r"test_batch is not a whole batch of cifar-10-python.tar.gz \('data'\)"),
    ],
    "cifar100": [(shutil.rmtree, "no cifar-100-python; unpack cifar-100-python.tar.gz")],
    "tiny-imagenet": [
        (shutil.rmtree, "no wnids.txt or tiny-imagenet-200/wnids.txt; unpack tiny-imagenet-200.z"),
        (lambda r: shutil.rmtree(r / "tiny-imagenet-200/train/n02124075"),
         "train/n02124075 holds no image; unpack the whole of tiny-imagenet-200.zip"),
        (lambda r: shutil.rmtree(r / "tiny-imagenet-200/val"),
         "tiny-imagenet-200 holds no val/images; unpack the whole of tiny-imagenet-200.zip"),
        (lambda r: (r / "tiny-imagenet-200/val/images/val_3.JPEG").unlink(),
         "lacks 1 of the 10 images that val_annotations.txt names, val_3.JPEG for one"),
        (lambda r: (r / "tiny-imagenet-200/val/val_annotations.txt").write_text("val_0.JPEG"),
         "val_annotations.txt names the class ''"),
        (lambda r: (r / "tiny-imagenet-200/val/images/val_3.JPEG").write_bytes(b"no image"),
         "val_3.JPEG cannot be read as an image"),
    ],
    "imagenet": [
        (shutil.rmtree, "holds no train or .*; unpack ILSVRC2012_img_train.tar"),
        (lambda r: (r / "train/n01443537.tar").write_bytes(b""),
         "n01443537.tar is still packed; unpack it into .*train/n01443537/"),
        (lambda r: shutil.rmtree(r / "val"), "holds no val; unpack ILSVRC2012_img_val.tar"),
        (lambda r: shutil.rmtree(r / "val/n01443537"), "val/n01443537 holds no image"),
        (lambda r: shutil.rmtree(r / "train/n01443537"), "'n01443537' is not among the training"),
        (lambda r: unsort(r), "val has to be sorted into class folders.*valprep.sh"),
    ],
    "bach": [
        (shutil.rmtree, "no Photos/Benign .*; unpack ICIAR2018_BACH_Challenge.zip"),
        (lambda r: shutil.rmtree(r / "Photos/Normal"), "Photos/Normal holds no image"),
        (small_photograph, "b001.tif is 96x64 but .*is002.tif 48x48"),
        (lambda r: cut(r / "Photos/InSitu/is002.tif"), "is002.tif cannot be read as an image"),
        (lambda r: (r / "Photos/InSitu/is002.tif").write_bytes(b""), "is002.tif cannot be read"),
    ],
    "npz": [
        (lambda r: r.unlink(), "npz.npz is not a whole .npz file"),
        (cut, "npz.npz is not a whole .npz file"),
        (lambda r: rewrite(r, several_labels), "the train_labels .* have 14 columns"),
        (lambda r: rewrite(r, volumes), r"train_images .* are \(12, 28, 28, 28\) uint8"),
        (lambda r: rewrite(r, floats), "train_images .* float64"),
        (lambda r: rewrite(r, fewer), "6 val_images but 5 val_labels"),
        (lambda r: rewrite(r, without_test), "has no test_images; it has train_images"),
        (lambda r: rewrite(r, other_size), "differ in shape between its parts"),
        (lambda r: rewrite(r, too_few_names), "a label outside 0 to 1"),
        (lambda r: rewrite(r, objects), "is damaged .*allow_pickle=False"),
    ],
    "hub": [
        (shutil.rmtree, "hub is not a folder; for name: hub"),
        (lambda r: shutil.rmtree(r / "test"), "has the splits train, validation; train and"),
        (lambda r: save_hub(r, relabel), "train, val, test of .* differ in their columns"),
        (lambda r: save_hub(r, unlabel), "image 18 of the splits .* has no label"),
        (lambda r: save_hub(r, lambda t: None, mask=(datasets.Image(), None)),
         r"2 columns of the type Image \(picture, mask of picture, kind, mask\)"),
        (lambda r: [(p.unlink(), p.with_suffix(".csv").write_text("a,b\n1,2\n"))
                    for p in r.rglob("*.png")], "0 columns of the type Image"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "fault", "words"),
    [(name, *fault) for name, faults in FAULTS.items() for fault in faults],
)
def test_errors_are_one_sentence(stand_in, name, fault, words):
    dataset = stand_in(name)
    fault(pathlib.Path(dataset.root))
    with pytest.raises(UserError, match=words) as caught:
        load(dataset)
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message


def test_patches_must_fit(stand_in):
    with pytest.raises(
        UserError, match="dataset.image_size: patches of 80 pixels do not fit.*96x64"
    ):
        load(stand_in("bach", image_size=80))
