"""Labels and splits against other people's readers of the formats, or a second plain one."""

import json
import random
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from lvis import LVIS
from PIL import Image
from pycocotools.coco import COCO

from autoaug_ray import data
from autoaug_ray.data import objects
from autoaug_ray.data.standins.objects import WRITERS
from autoaug_ray.errors import UserError
from autoaug_ray.generate.prompts import prompt_names

PER_CLASS = 4
SOME = {"min_class_count": 2, "image_size": 32}


@pytest.fixture(scope="session")
def standins(tmp_path_factory):
    roots = {name: tmp_path_factory.mktemp(name) for name in WRITERS}
    for name, write in WRITERS.items():
        write(roots[name], PER_CLASS, 0)
    return roots


@pytest.fixture
def tree(request, standins, tmp_path):
    """A tree that the test may break, of the dataset that the test is parametrised with."""
    return shutil.copytree(standins[request.param], tmp_path / "tree")


def of(name):
    return pytest.mark.parametrize("tree", [name], indirect=True)


both = pytest.mark.parametrize("protocol", ["clean", "dafusion"])


def read(name, root, protocol="clean", **settings):
    """The reader's own source, neither cached nor decoded."""
    settings = {"protocol": protocol, **SOME, **settings}
    return objects.__dict__[name](data.Dataset(name=name, root=str(root), **settings))


def file_classes(source):
    """{file: name of its class} of the pool and of the test set."""
    parts = []
    for part in (source.pool, source.test):
        files = [part.read.paths[i] for i in part.index.tolist()]
        parts.append(dict(zip(files, (source.classes[c] for c in part.labels), strict=True)))
        assert len(parts[-1]) == len(files)
    return parts


def frequent(pool, test, least=2):
    """Two dicts of `file_classes` without the classes that are too small."""
    have, tested = Counter(pool.values()), Counter(test.values())
    kept = {c for c in have if have[c] >= least and tested[c]}
    return [{f: c for f, c in part.items() if c in kept} for part in (pool, test)]


# ---------------------------------------------------------------------------------- every dataset


@both
@pytest.mark.parametrize("name", WRITERS)
def test_images_stay_on_disk_and_can_be_loaded(standins, name, protocol):
    dataset = data.Dataset(name=name, root=str(standins[name]), protocol=protocol, **SOME)
    on_disk = data.load(
        dataset.model_copy(update={"memory_gb": 0}), val_fraction=0.25, device="cpu"
    )
    in_memory = data.load(dataset, val_fraction=0.25, device="cpu")
    assert isinstance(on_disk.train, data.Stored) and isinstance(in_memory.train, data.Split)
    assert in_memory.train.images.shape[1:] == (3, 32, 32)
    assert torch.equal(on_disk.test.load().images, in_memory.test.images)
    assert prompt_names(in_memory.classes)


@pytest.mark.parametrize("name", WRITERS)
def test_files_are_256_pixels_wide_if_nothing_else_is_said(standins, name):
    source = read(name, standins[name], image_size=None)
    assert source.pool.shape == source.test.shape == (3, 256, 256) and source.held_out is None
    assert source.pool.read.fit == "stretch"
    assert read(name, standins[name], fit="crop").pool.read.fit == "crop"


@pytest.mark.parametrize("name", WRITERS)
def test_pool_and_test_are_disjoint_and_classes_dense(standins, name):
    source = read(name, standins[name])
    pool, test = file_classes(source)
    assert not pool.keys() & test.keys()
    for part in (source.pool, source.test):
        assert part.labels.unique().tolist() == list(range(len(source.classes)))


@both
@pytest.mark.parametrize("name", WRITERS)
def test_order_on_disk_does_not_matter(standins, tmp_path, name, protocol):
    files = [p for p in standins[name].rglob("*") if p.is_file()]
    random.Random(0).shuffle(files)
    for path in files:
        copy = tmp_path / path.relative_to(standins[name])
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    a, b = (read(name, root, protocol) for root in (standins[name], tmp_path))
    for part, other in ((a.pool, b.pool), (a.test, b.test)):
        names = [[p.read.paths[i].name for i in p.index] for p in (part, other)]
        assert names[0] == names[1] and torch.equal(part.labels, other.labels)


@pytest.mark.parametrize("name", WRITERS)
def test_the_classes_of_a_standin_can_be_learned(standins, name):
    source = data.source_of(data.Dataset(name=name, root=str(standins[name]), **SOME))
    x, y = ((p.images.float() / 255).mean((2, 3)) for p in (source.pool, source.test))
    means = torch.stack([x[source.pool.labels == c].mean(0) for c in range(len(source.classes))])
    right = torch.cdist(y, means).argmin(1) == source.test.labels
    assert right.float().mean() > 2 / len(source.classes)


@pytest.mark.parametrize("name", WRITERS)
def test_a_listed_image_that_is_missing_is_named(standins, tmp_path, name):
    tree = shutil.copytree(standins[name], tmp_path / "tree")
    if name == "caltech101":
        shutil.rmtree(tree)
        with pytest.raises(UserError, match=r"CLASS/image_0001.jpg; unpack 101_ObjectCategories"):
            read(name, tree)
        return
    lost = sorted(file_classes(read(name, tree))[0])[2:5]
    for path in lost:
        path.unlink()
    with pytest.raises(UserError, match=f"3 of .* files are missing, the first is {tree}.*unpack"):
        read(name, tree)


# --------------------------------------------------------------------------------------- VOC 2012


def voc_label(base, name, protocol):
    """The class's name, or None without an instance, found by loops over pixels."""
    masks = [
        np.array(Image.open(base / f"Segmentation{which}/{name}.png")).tolist()
        for which in ("Class", "Object")
    ]
    sizes, values = Counter(), {}
    for class_row, object_row in zip(*masks, strict=True):
        for value, instance in zip(class_row, object_row, strict=True):
            sizes[instance] += 1
            values.setdefault(instance, value)
    out = {0, 255} if protocol == "clean" else {min(sizes), max(sizes)}
    left = [i for i in sorted(sizes) if i not in out]
    if left:
        value = values[max(left, key=lambda i: (sizes[i], -i))]
    else:  # numpy's argmax of zeros
        value = values[min(sizes)] if protocol == "dafusion" else 0
    return objects.VOC_CLASSES[value - 1] if value not in (0, 255) else None


def voc_expected(base, protocol):
    parts = []
    for part in ("train", "val"):
        names = (base / f"ImageSets/Segmentation/{part}.txt").read_text().split()
        labels = {base / f"JPEGImages/{n}.jpg": voc_label(base, n, protocol) for n in names}
        parts.append({path: label for path, label in labels.items() if label})
    return parts


@both
def test_voc_labels(standins, protocol):
    base = standins["voc2012"] / "VOCdevkit/VOC2012"
    source = read("voc2012", standins["voc2012"], protocol)
    assert file_classes(source) == frequent(*voc_expected(base, protocol))
    assert source.classes == ("airplane", "cat", "dog", "person", "train")
    # One image without objects in each part; dafusion also loses the only ones without a border.
    lost = {"clean": 2, "dafusion": 7}[protocol]
    assert f"{lost} of 32 images have no instance that counts and are not used." in source.notes
    assert any(n.startswith("15 of 20 classes have fewer than 2") for n in source.notes)
    assert any(n.endswith("horse (0 + 0) and 5 more.") for n in source.notes)


@pytest.mark.parametrize("below", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_voc_is_found_from_any_of_its_folders(standins, below):
    assert len(read("voc2012", standins["voc2012"] / below).pool) == 5 * PER_CLASS


@pytest.mark.parametrize(
    ("mask", "clean", "dafusion"),
    [
        # Void and background are larger than any instance.
        ([[0] * 9, [1, 2, 2, *[255] * 6]], "dog", "dog"),
        # Without a void border DAFusion loses the last id, here the largest.
        ([[0] * 9, [1, 1, 2, 2, 2, 2, 0, 0, 0]], "dog", "cat"),
        # Without background it loses the first.
        ([[1] * 6 + [2] * 2 + [255]], "cat", "dog"),
        # It keeps an only instance without background, as its first id ...
        ([[1] * 6 + [255]], "cat", "cat"),
        # ... and loses one without a border.
        ([[0] * 6 + [1]], "cat", None),
        ([[0] * 6 + [255]], None, None),
        # The largest instance is not of the class that covers most.
        ([[0, *[1] * 4, *[2] * 5, *[3] * 4, 255]], "dog", "dog"),
        # A tie goes to the lower id.
        ([[0, 255, *[2] * 4, *[1] * 4]], "cat", "cat"),
    ],
)
@of("voc2012")
def test_voc_traps(tree, mask, clean, dafusion):
    base = tree / "VOCdevkit/VOC2012"
    name = "2007_000001"
    values = {0: 0, 1: 8, 2: 12, 3: 8, 255: 255}
    for which, pixels in (("Object", mask), ("Class", np.vectorize(values.get)(mask))):
        image = Image.fromarray(np.array(pixels, np.uint8))
        image.save(base / f"Segmentation{which}/{name}.png")
    for protocol, label in (("clean", clean), ("dafusion", dafusion)):
        assert voc_label(base, name, protocol) == label
        assert (
            file_classes(read("voc2012", tree, protocol))[0].get(base / f"JPEGImages/{name}.jpg")
            == label
        )


def voc_nothing(base):
    shutil.rmtree(base / "ImageSets")
    return "no VOCdevkit/VOC2012/ImageSets/Segmentation in .*; unpack VOCtrainval_11-May-2012.tar"


def voc_no_list(base):
    (base / "ImageSets/Segmentation/val.txt").unlink()
    return "no .*Segmentation/val.txt; unpack VOCtrainval_11-May-2012.tar again"


def voc_no_masks(base):
    shutil.rmtree(base / "SegmentationObject")
    return "32 of 64 files are missing, the first is .*SegmentationObject/2007_000000.png; unpack"


def voc_cut_short(base):
    path = base / "SegmentationClass/2007_000003.png"
    path.write_bytes(path.read_bytes()[:90])
    return "SegmentationClass/2007_000003.png cannot be read as an image"


def voc_colour(base):
    path = base / "SegmentationClass/2007_000003.png"
    Image.open(path).convert("RGB").save(path)
    return r"^\S+2007_000003.png is in colour \(RGB\), but a mask of numbers is expected"


def voc_size(base):
    path = base / "SegmentationObject/2007_000003.png"
    Image.open(path).crop((0, 0, 20, 20)).save(path)
    return "SegmentationObject/2007_000003.png has another size than its class mask"


@of("voc2012")
@pytest.mark.parametrize(
    "fault", [voc_nothing, voc_no_list, voc_no_masks, voc_cut_short, voc_colour, voc_size]
)
def test_a_voc_that_is_not_whole(tree, fault):
    with pytest.raises(UserError, match=fault(tree / "VOCdevkit/VOC2012")):
        read("voc2012", tree)


# ---------------------------------------------------------------------------- COCO 2017 and LVIS


def coco_expected(root, crowds):
    parts = []
    for part in ("train", "val"):
        coco = COCO(root / f"annotations/instances_{part}2017.json")
        labels = {}
        for image in coco.loadImgs(coco.getImgIds()):
            ids = coco.getAnnIds(imgIds=[image["id"]], iscrowd=None if crowds else False)
            if ids:
                largest = max(coco.loadAnns(ids), key=lambda a: a["area"])
                (category,) = coco.loadCats([largest["category_id"]])
                labels[root / f"{part}2017" / image["file_name"]] = category["name"]
        parts.append(labels)
    return parts


@both
def test_coco_labels(standins, protocol):
    root = standins["coco2017"]
    source = read("coco2017", root, protocol)
    expected = coco_expected(root, crowds=protocol == "dafusion")
    assert file_classes(source) == frequent(*expected)
    assert source.classes == ("person", "car", "cat", "dog")  # by their ids
    # A crowd of persons is the largest in one image of each of four classes.
    assert Counter(file_classes(source)[0].values())["person"] == PER_CLASS + 3 * (
        protocol == "dafusion"
    )
    assert source.notes == (
        f"4 of {4 * PER_CLASS + 5 + 4 * PER_CLASS // 2} images have no instance that counts and "
        "are not used.",
        "1 of 5 classes have fewer than 2 training images or no test image and are dropped "
        "(training + test images): toaster (1 + 0).",
    )


@of("coco2017")
def test_a_coco_class_without_a_test_image_is_dropped(tree):
    path = tree / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    (cat,) = (c["id"] for c in content["categories"] if c["name"] == "cat")
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != cat]
    path.write_text(json.dumps(content))
    source = read("coco2017", tree)
    assert source.classes == ("person", "car", "dog") and "cat (4 + 0)" in source.notes[-1]
    assert file_classes(source) == frequent(*coco_expected(tree, crowds=False))


@of("coco2017")
def test_of_equal_areas_the_first_in_the_file_counts(tree):
    path = tree / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    for a in content["annotations"]:
        a["area"] = 7
    path.write_text(json.dumps(content))
    first = {}
    for a in content["annotations"]:
        first.setdefault(a["image_id"], a["category_id"])
    names = {c["id"]: c["name"] for c in content["categories"]}
    labels = {
        int(p.stem): c
        for p, c in file_classes(read("coco2017", tree, min_class_count=1))[0].items()
    }
    assert labels == {i: names[c] for i, c in first.items() if names[c] != "toaster"}


def test_coco_needs_32_images_of_a_class_unless_it_is_read_as_dafusion_does(standins):
    root = standins["coco2017"]
    expected = "min_class_count: 0 of 5 classes have at least 32 training image"
    with pytest.raises(UserError, match=expected):
        read("coco2017", root, min_class_count=None)
    source = read("coco2017", root, "dafusion", min_class_count=None)
    assert len(source.classes) == 4 and "have no training image or no test" in source.notes[-1]


def lvis_expected(root, frequencies=("c",)):
    parts = []
    for part in ("train", "val"):
        api = LVIS(root / f"annotations/lvis_v1_{part}.json")
        labels = {}
        for image in api.load_imgs(api.get_img_ids()):
            annotations = api.load_anns(api.get_ann_ids(img_ids=[image["id"]]))
            if not annotations:
                continue
            largest = max(annotations, key=lambda a: a["area"])
            (category,) = api.load_cats([largest["category_id"]])
            if category["frequency"] in frequencies:
                path = root / image["coco_url"].removeprefix("http://images.cocodataset.org/")
                labels[path] = category["name"]
        parts.append(labels)
    return parts


@pytest.mark.parametrize("frequencies", [("c",), ("f", "c"), ("r", "c", "f")])
def test_lvis_labels(standins, frequencies):
    root = standins["lvis"]
    expected = lvis_expected(root, frequencies)
    source = read("lvis", root, "dafusion", min_class_count=1, frequencies=frequencies)
    assert file_classes(source) == frequent(*expected, least=1)
    assert source.classes == tuple(sorted(set(expected[0].values()), key=str.lower))
    assert {p.parent.name for p in file_classes(source)[1]} == {"train2017", "val2017"}
    other = {("c",): PER_CLASS * 3 // 2 + 2, ("f", "c"): 2, ("r", "c", "f"): 0}[frequencies]
    noted = [n for n in source.notes if "of a frequency other than" in n]
    assert [int(n.split()[0]) for n in noted] == [other] * bool(other)


def test_lvis_clean_cuts_each_class_in_halves(standins):
    root = standins["lvis"]
    train, val = lvis_expected(root)
    pool, test = file_classes(read("lvis", root))
    assert pool | test == train | val
    have, tested = Counter(pool.values()), Counter(test.values())
    assert have == tested == dict.fromkeys(have, PER_CLASS * 3 // 4)
    for name in have:
        files = sorted((p for p, c in (train | val).items() if c == name), key=lambda p: p.name)
        order = np.random.default_rng(0).permutation(len(files))[: have[name]]
        assert {files[i] for i in order} == {p for p, c in pool.items() if c == name}


@of("lvis")
def test_lvis_files_may_lie_beside_the_images(tree):
    a = file_classes(read("lvis", tree))
    for path in (tree / "annotations").iterdir():
        path.rename(tree / path.name)
    assert file_classes(read("lvis", tree)) == a


FILES = {"coco2017": "annotations/instances_{}2017.json", "lvis": "annotations/lvis_v1_{}.json"}


def json_missing(path):
    path.unlink()
    return "dataset.root: no .*; unpack .*json.zip there|unpack annotations_trainval2017.zip there"


def json_cut_short(path):
    path.write_text(path.read_text()[:-40])
    return "is not whole JSON .*; unpack .*zip again"


def json_of_something_else(path):
    path.write_text(json.dumps({"images": [], "info": {}}))
    return r"is not in the format of .*zip \(KeyError: 'annotations'\)"


def json_without_addresses(path):
    content = json.loads(path.read_text())
    content["images"] = [{"id": i["id"]} for i in content["images"]]
    path.write_text(json.dumps(content))
    return r"is not in the format of .*zip \(KeyError: '(coco_url|file_name)'\)"


def json_of_another_download(path):
    content = json.loads(path.read_text())
    content["categories"][1]["name"] = "tiger"
    path.write_text(json.dumps(content))
    return "have different categories; they belong to different downloads"


def json_unknown_category(path):
    content = json.loads(path.read_text())
    content["annotations"][0] |= {"category_id": 77, "area": 1e4}
    path.write_text(json.dumps(content))
    return r"is not in the format of .*zip \(KeyError: 77\)"


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("fault", [v for k, v in dict(globals()).items() if k.startswith("json_")])
@pytest.mark.parametrize("name", FILES)
def test_annotations_that_are_not_whole(standins, tmp_path, name, fault, part):
    tree = tmp_path / "tree"
    shutil.copytree(standins[name] / "annotations", tree / "annotations")
    with pytest.raises(UserError, match=fault(tree / FILES[name].format(part))):
        read(name, tree)


# ------------------------------------------------------------------------------------ Caltech101


def test_caltech_as_dafusion_cuts_it(standins):
    base = standins["caltech101"] / "caltech-101/101_ObjectCategories"
    by_class = {}
    for path in sorted(base.glob("*/*.jpg")):
        by_class.setdefault(path.parent.name.lower().replace("_", " "), []).append(path)
    pool, test = {}, {}
    rng = np.random.default_rng(0)
    for name in sorted(by_class):
        order = rng.permutation(len(by_class[name]))
        for part, half in zip((pool, test), np.array_split(order, 2), strict=True):
            part |= {by_class[name][i]: name for i in half}
    source = read("caltech101", standins["caltech101"], "dafusion")
    assert file_classes(source) == [pool, test]
    assert source.classes == (
        "accordion", "background google", "faces", "faces easy", "water lilly"
    )  # fmt: skip
    assert source.notes == ("5 of 102 class folders are there.",)


def test_caltech_clean(standins):
    pool, test = file_classes(source := read("caltech101", standins["caltech101"]))
    assert source.classes == ("accordion", "faces", "faces easy", "water lilly")
    assert Counter(pool.values()) == Counter(test.values()) == dict.fromkeys(source.classes, 4)
    # One photograph, whole and cut out, is in one half.
    faces, easy = ({p.name for p, c in pool.items() if c == n} for n in ("faces", "faces easy"))
    assert faces == easy


@of("caltech101")
def test_caltech_halves_of_a_class_depend_on_that_class_only(tree):
    base = tree / "caltech-101/101_ObjectCategories"
    before = file_classes(read("caltech101", tree))[0]
    (base / "accordion/image_0001.jpg").unlink()
    after = file_classes(source := read("caltech101", tree))[0]
    for name in ("faces", "water lilly"):
        assert {p for p, c in before.items() if c == name} == {
            p for p, c in after.items() if c == name
        }
    # The first half of 7 images has 4.
    assert torch.bincount(source.pool.labels).tolist() == [4] * 4
    assert torch.bincount(source.test.labels).tolist() == [3, 4, 4, 4]


@pytest.mark.parametrize("below", ["", "caltech-101", "caltech-101/101_ObjectCategories"])
def test_caltech_is_found_from_any_of_its_folders(standins, below):
    assert len(read("caltech101", standins["caltech101"] / below).pool) == 4 * PER_CLASS
