"""`autoaug-ray init`: real folders of small pictures, as people have them."""

import shutil

import numpy as np
import pytest
from PIL import Image

from autoaug_ray import config, data
from autoaug_ray.commands import init, main
from autoaug_ray.commands.flips import asked_for
from autoaug_ray.commands.propose import SIZES, backbones, nearest, recipe, study_text
from autoaug_ray.data.files import read_image
from autoaug_ray.data.inspect import inspect
from autoaug_ray.errors import UserError
from autoaug_ray.maths.statistics import compare
from autoaug_ray.settings.classifier import Classifier
from autoaug_ray.store.calibration import Calibration


def draw_class(place, count, *, size=(20, 30), mode="RGB", seed=0, ending="png"):
    rng = np.random.default_rng([seed, *place.name.encode()])
    place.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(place / f"{i:03}.{ending}")


@pytest.fixture
def pets(tmp_path):
    draw_class(tmp_path / "pets/cat", 12)
    draw_class(tmp_path / "pets/dog", 8, ending="jpg")
    return tmp_path / "pets"


@pytest.fixture
def untimed(monkeypatch):
    """The proposal alone, for tests that ask nothing of its steps, or of what a flip is worth."""
    nothing = Calibration(time=0.0, entries=(), left_out={})
    monkeypatch.setattr(init, "calibrate", lambda study, turns: nothing)
    monkeypatch.setattr(init, "measure", lambda dataset: compare("flip", {}, "none", {}))


def study_of(folder, *, gpu=False, flip="horizontal", **other):
    """The study that is proposed for it, through the YAML that its user is given."""
    path = folder.parent / "mine.yaml"
    path.write_text(study_text(inspect(folder), gpu=gpu, cpus=8, flips=asked_for(flip), **other))
    (study,) = config.load(path)
    return study


def test_a_folder_is_looked_at_a_study_is_written_and_its_steps_are_timed(
    pets, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "pets"]) == 0
    said = capsys.readouterr().out
    for line in (
        "pets: 20 images of 2 classes in CLASS/*",
        "size        20 x 30 pixels, all of them",
        "colour      all in colour",
        "balance     12 images in the largest class, 8 in the smallest (1.5 : 1)",
        "copies      none (files of the same bytes as another one)",
        "unreadable  none",
        "test set    4 images (they tell about 35 points apart)",
        "network     random weights: trained networks have seen no images that small",
        "flip        not measured, with fewer than 40 images to train on",
        "autoaug-ray pilot pets.yaml",
        "runs/pets/report.html",
    ):
        assert line in said
    assert "warning" not in said
    (study,) = config.load(tmp_path / "pets.yaml")
    table = [line.split() for line in said.partition("forecast:")[2].splitlines()]
    for entry in study.entries:
        words = entry.label.split()
        assert any(row[: len(words)] == words for row in table), "it has no forecast"
    splits = data.load(study.dataset, val_fraction=None, device="cpu")
    assert splits.classes == ("cat", "dog") and len(splits.test) == 4
    assert splits.train.images.shape == (16, 3, 28, 28)
    listed = (tmp_path / "pets.test_files.txt").read_text().splitlines()
    images = [read_image(pets / name, name, 28, 3, "stretch") for name in listed]
    assert np.array_equal(np.stack(images), splits.test.images), "not what the study tests on"


@pytest.mark.usefixtures("untimed")
def test_a_study_is_replaced_only_if_asked_to(pets, tmp_path, monkeypatch, capsys):
    path = tmp_path / "other.yaml"
    path.write_text("mine")
    arguments = ["init", str(pets), "--study", str(path)]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error == f"error: {path} exists; --force replaces it, --study names another file.\n"
    assert path.read_text() == "mine"
    assert main([*arguments, "--force", "--flip", "none"]) == 0
    (study,) = config.load(path)
    flips = [e.hyperparameters.get("flip") for e in study.entries]
    assert set(flips) == {None, "none"} and flips.count(None) == 1


def test_a_folder_with_parts(tmp_path):
    for part, count in (("train", 6), ("val", 3), ("test", 2)):
        for name in ("cat", "dog"):
            draw_class(tmp_path / "mine" / part / name, count, seed=count)
    found = inspect(tmp_path / "mine")
    assert found.parts == ("train", "val", "test") and not found.flat
    assert found.counts("train") == {"cat": 6, "dog": 6} and found.pool == 18
    study = study_of(tmp_path / "mine")
    assert study.dataset.test_fraction is None
    splits = data.load(study.dataset, val_fraction=None, device="cpu")
    assert (len(splits.train), len(splits.test)) == (18, 4)


@pytest.mark.usefixtures("untimed")
def test_copies_are_counted_and_told_apart(tmp_path, capsys, monkeypatch):
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            draw_class(tmp_path / "mine" / part / name, 4, seed=len(part))
    mine = tmp_path / "mine"
    shutil.copy(mine / "train/cat/000.png", mine / "train/cat/copy.png")
    shutil.copy(mine / "train/cat/000.png", mine / "train/dog/copy.png")
    shutil.copy(mine / "train/dog/001.png", mine / "test/dog/copy.png")
    pairs = [(a.path.parent.name, b.path.relative_to(mine)) for a, b in inspect(mine).copies]
    assert [(label, str(path)) for label, path in pairs] == [
        ("cat", "train/cat/copy.png"), ("cat", "train/dog/copy.png"), ("dog", "test/dog/copy.png"),
    ]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "copies 3 (files of the same bytes as another one)" in said
    assert "recognised rather than classified: mine/test/dog/copy.png." in said
    assert "copies of images of another class: mine/train/dog/copy.png." in said


@pytest.mark.usefixtures("untimed")
def test_what_cannot_be_read_is_named_and_left_out(pets, tmp_path, capsys, monkeypatch):
    (pets / "cat/000.png").write_bytes(b"no image")
    whole = (pets / "dog/007.jpg").read_bytes()
    (pets / "dog/007.jpg").write_bytes(whole[: len(whole) // 2])
    monkeypatch.chdir(tmp_path)
    assert main(["init", "pets"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "unreadable 2" in said
    assert (
        "warning: cannot be read, and will be left out: pets/cat/000.png, pets/dog/007.jpg." in said
    )
    (study,) = config.load(tmp_path / "pets.yaml")
    splits = data.load(study.dataset, val_fraction=None, device="cpu")
    assert len(splits.train) + len(splits.test) == 18


@pytest.mark.usefixtures("untimed")
def test_deep_images_that_are_nearly_black_are_warned_of(pets, tmp_path, capsys, monkeypatch):
    deep = np.arange(600, dtype=np.uint16).reshape(30, 20)
    Image.fromarray(deep * 100).save(pets / "cat/deep.png")
    Image.fromarray(deep * 6).save(pets / "cat/dim.png")
    monkeypatch.chdir(tmp_path)
    assert main(["init", "pets"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "use few of the values of more than 8 bits: pets/cat/dim.png." in said
    assert "20 in colour, 2 grey" in said


@pytest.mark.usefixtures("untimed")
def test_images_that_look_the_same_are_named_and_groups_are_kept(tmp_path, capsys, monkeypatch):
    for part, names in (("Train", "ab"), ("test", "ab")):
        for name in names:
            draw_class(tmp_path / "mine" / part / name, 3, seed=len(part))
    mine = tmp_path / "mine"
    first = Image.open(mine / "Train/a/000.png").resize((5, 7)).resize((20, 30))
    first.save(mine / "Train/a/000.png")
    first.save(mine / "Train/a/v1_0.jpg", quality=90)
    first.resize((40, 60)).save(mine / "test/b/v2_0.png")
    shutil.copy(mine / "Train/a/001.png", mine / "Train/a/copy.png")
    (mine / "Train/a/notes.txt").write_text("no image")
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine", "--group-by", r"v\d"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for line in (
        "15 images of 2 classes in Train/CLASS/* test/CLASS/*",
        "copies 1 (files of the same bytes",
        "alike 2 (look the same as another one)",
        "look the same as images of an earlier part: mine/test/b/v2_0.png (as "
        "mine/Train/a/000.png).",
        "on one side of each split: mine/Train/a/v1_0.jpg (as mine/Train/a/000.png).",
        "1 files are not read, as their ending is none of an image that is: 1 .txt",
        "dataset.group_by makes 15 groups of 15 files; the largest, 'v1', has 1, and 13 match",
    ):
        assert line in said, line
    (study,) = config.load(tmp_path / "mine.yaml")
    assert study.dataset.group_by == r"v\d"


@pytest.mark.parametrize("pattern, words", [("(v", "no regular expression"), ("x", "none of 20")])
def test_a_group_by_that_groups_nothing_writes_no_study(pets, tmp_path, capsys, pattern, words):
    study = tmp_path / "mine.yaml"
    assert main(["init", str(pets), "--study", str(study), "--group-by", pattern]) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.strip().splitlines()) == 1 and not study.exists()


@pytest.mark.parametrize(
    "shapes, fit",
    [([(20, 30)] * 4, None), ([(20, 22), (20, 21)] * 2, None), ([(20, 30), (30, 20)] * 2, "crop"),
     ([(20, 50), (30, 20)] * 2, "letterbox")],
)  # fmt: skip
def test_images_of_several_shapes_are_not_stretched(tmp_path, shapes, fit):
    for i, size in enumerate(shapes):
        for name in "ab":
            draw_class(tmp_path / "mine" / name, len(shapes) - i, size=size, seed=i)
    assert study_of(tmp_path / "mine").dataset.fit == fit


@pytest.mark.usefixtures("untimed")
def test_only_the_largest_classes_are_listed(tmp_path, capsys, monkeypatch):
    for i in range(23):
        draw_class(tmp_path / f"mine/c{i:02}", 3 + (i == 22), size=(8, 8))
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine"]) == 0
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert said.index(["c22", "4"]) < said.index(["c00", "3"]) < said.index(["c18", "3"])
    assert ["and", "3", "more", "9"] in said and ["c19", "3"] not in said


@pytest.mark.parametrize("flip, learned", [("horizontal", "learned"), ("none", "none")])
def test_what_learns_learns_whether_to_flip(tmp_path, flip, learned):
    for name in ("b", "d"):
        draw_class(tmp_path / "mine" / name, 3)
    study = study_of(tmp_path / "mine", flip=flip)
    flips = {e.label: e.hyperparameters.get("flip") for e in study.entries}
    assert flips["trivialaugment"] == flip and flips["bilevel"] == learned


@pytest.mark.parametrize("mode, ending", [("L", "png"), ("RGB", "png"), ("L", "jpg")])
def test_grey_is_seen_in_the_pixels_not_in_the_format(tmp_path, mode, ending):
    for name in ("a", "b"):
        draw_class(tmp_path / "mine" / name, 5, mode="L", ending=ending)
        for path in (tmp_path / "mine" / name).iterdir():
            Image.open(path).convert(mode).save(path)
    study = study_of(tmp_path / "mine")
    assert study.dataset.channels == 1
    assert study.entry("bilevel").hyperparameters["group"] == "affine"
    draw_class(tmp_path / "mine/c", 1)
    study = study_of(tmp_path / "mine")
    assert study.dataset.channels == 3
    assert study.entry("bilevel").hyperparameters["group"] == "affine+color"


@pytest.mark.parametrize(
    "side, proposed, on_cpu",
    [(8, 28, 28), (29, 28, 28), (31, 32, 32), (46, 64, 64), (100, 96, 64), (2000, 224, 64)],
)
def test_the_size_is_the_nearest_one(tmp_path, side, proposed, on_cpu):
    for name in ("a", "b"):
        draw_class(tmp_path / "mine" / name, 1, size=(side, side), mode="L", ending="jpg")
    assert nearest(side, SIZES) == proposed
    assert study_of(tmp_path / "mine", gpu=True).dataset.image_size == proposed
    assert study_of(tmp_path / "mine").dataset.image_size == on_cpu


def test_a_gpu_gets_a_larger_network(tmp_path):
    draw_class(tmp_path / "mine/a", 2, size=(64, 64))
    draw_class(tmp_path / "mine/b", 2, size=(64, 64))
    study = study_of(tmp_path / "mine", gpu=True)
    assert study.model.name == "resnet18" and study.resources.gpus == 0.5
    assert study_of(tmp_path / "mine").model.name == "cnn"


def test_photographs_get_a_trained_network_and_a_fine_tuning(tmp_path):
    for name in ("a", "b"):
        draw_class(tmp_path / "mine" / name, 2, size=(80, 60))
    found = inspect(tmp_path / "mine")
    for gpu, side in ((False, 128), (True, 224)):
        for backbone in backbones(found, gpu=gpu):
            study = study_of(tmp_path / "mine", gpu=gpu, backbone=backbone)
            assert study.model == backbone and study.dataset.image_size == side
            assert backbone.weights and study.train.optimiser == "adamw"
            assert study.train.schedule == "cosine" and 1e-5 < study.train.lr < 1e-3
    draw_class(tmp_path / "small/a", 2, size=(40, 40))
    draw_class(tmp_path / "small/b", 2, size=(40, 40))
    assert backbones(inspect(tmp_path / "small"), gpu=False) == ()


def test_fine_tuning_is_the_shorter_the_fewer_the_images():
    tuned, fresh = (
        [recipe(n, gpu=True, backbone=backbone) for n in (200, 5_000, 50_000)]
        for backbone in (Classifier(name="torchvision:resnet50", weights="imagenet"), None)
    )
    steps = [[r.steps * r.epochs for r in some] for some in (tuned, fresh)]
    assert steps[0] == sorted(steps[0]) and steps[0][0] < steps[0][-1]
    assert all(a < b for a, b in zip(*steps, strict=True)), "as long as from random weights"


def test_uneven_classes_get_balanced_batches(pets):
    assert {e.hyperparameters.get("sampler") for e in study_of(pets).entries} == {None}
    draw_class(pets / "emu", 2)
    samplers = {e.label: e.hyperparameters.get("sampler") for e in study_of(pets).entries}
    assert samplers.pop("none") is None and set(samplers.values()) == {"balanced"}


def test_odd_names_survive_the_yaml(tmp_path):
    folder = tmp_path / "my: images, #1 'ä'"
    for name in ("no", "[x]"):
        draw_class(folder / name, 5)
    study = study_of(folder)
    assert study.dataset.root == str(folder)
    assert data.load(study.dataset, val_fraction=None, device="cpu").classes == ("[x]", "no")


def empty(root):
    root.mkdir()
    return "holds 0 images and 0 folders; expected are .*/train/CLASS/.* or .*/mine/CLASS/"


def nothing(root):
    return "mine is not a folder.$"


def loose(root):
    draw_class(root, 3)
    return "holds 3 images and 0 folders; expected are"


def one_too_deep(root):
    for name in ("cat", "dog"):
        draw_class(root / "images" / name, 2)
    return "holds 0 images and 1 folder; .* did you mean .*mine/images\\?$"


def no_test(root):
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            draw_class(root / part / name, 2)
    return "holds train/ and val/ but no test/; expected .* `autoaug-ray init .*mine/train`"


def an_empty_class(root):
    draw_class(root / "cat", 2)
    (root / "dog").mkdir()
    return "mine/dog holds no image"


def all_unreadable(root):
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        (root / name / "0.png").write_bytes(b"no image")
    return "none of its 2 images can be read"


def one_class_unreadable(root):
    all_unreadable(root)
    draw_class(root / "cat", 1, seed=1)
    return "mine/dog: none of its images can be read"


def a_class_in_test_only(root):
    for part, names in (("train", "ab"), ("test", "abc")):
        for name in names:
            draw_class(root / part / name, 2)
    return "the class 'c' is not among the training classes"


FAULTS = (empty, nothing, loose, one_too_deep, no_test, an_empty_class, all_unreadable,
          one_class_unreadable, a_class_in_test_only)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_a_folder_that_cannot_be_used_is_one_sentence(tmp_path, fault, capsys):
    expected = fault(tmp_path / "mine")
    with pytest.raises(UserError, match=expected):
        inspect(tmp_path / "mine")
    study = tmp_path / "mine.yaml"
    assert main(["init", str(tmp_path / "mine"), "--study", str(study)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1 and not study.exists()
