"""One's own generated images: read as the dataset's are, each class's for its own, and named by
what they show."""

import shutil
from collections import Counter

import numpy as np
import planted_bank
import pytest
import torch
from command import run_all
from hand import Hand
from PIL import Image

from autoaug_ray import config, data, train
from autoaug_ray.commands.smoke import smaller
from autoaug_ray.data import Dataset, Source, Split
from autoaug_ray.errors import UserError
from autoaug_ray.generate import own
from autoaug_ray.generate.bank import Bank
from autoaug_ray.generate.bank_export import export_imagefolder
from autoaug_ray.generate.plan import content_hash
from autoaug_ray.generate.settings import Generation
from autoaug_ray.report.cost_sentences import verdicts
from autoaug_ray.schedule.bank_for_study import fill_bank, own_images, write_faults, write_sheet
from autoaug_ray.store.folder import Folder

HALF = {"identity": 0.5, "own": 0.5}


def paint(folder, names, seed):
    stream = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for name in names:
        Image.fromarray(stream.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(folder / name)


@pytest.fixture
def photos(tmp_path):
    """The settings of a dataset of 8 + 4 training images and 2 + 2 test images."""
    for i, (part, name, count) in enumerate(
        [("train", "cat", 8), ("train", "dog", 4), ("test", "cat", 2), ("test", "dog", 2)]
    ):
        paint(tmp_path / "photos" / part / name, [f"{j}.png" for j in range(count)], i)
    return {"name": "folder", "root": str(tmp_path / "photos"), "image_size": 8}


@pytest.fixture
def synth(tmp_path):
    """A folder of 11 + 3 own images."""
    paint(tmp_path / "synth" / "cat", [f"{j}.png" for j in range(11)], 10)
    paint(tmp_path / "synth" / "dog", ["a.png", "b.png", "c.png"], 11)
    return tmp_path / "synth"


def study_of(photos, folder, methods=None, **generate):
    methods = methods or {"own": {"method": "mix", "probabilities": HALF}}
    return config.study(
        {
            "dataset": photos, "model": {"width": 2}, "seeds": 1,
            "train": {"epochs": 1, "batch_size": 6},
            "generate": {"folder": folder and str(folder), **generate},
            "methods": {"none": {}, **methods},
        },
        name="mine",
    )  # fmt: skip


def filled(study, root):
    (out,) = fill_bank([study], root, print)
    return out


def hashes(images):
    return Counter(content_hash(image) for image in images)


def met(edits, labels):
    """The images that may be drawn in place of the real ones of each of two classes."""
    out = [Counter(), Counter()]
    for label, begin, count in zip(labels, edits.start[:, 0], edits.count[:, 0], strict=True):
        out[label] += hashes(edits.images[begin : begin + count])
    return out


@pytest.mark.parametrize("option", [{}, {"fit": "crop"}, {"channels": 1}])
def test_they_are_read_as_the_datasets_own_images_are(photos, synth, option, tmp_path):
    shutil.copytree(synth, tmp_path / "as photos" / "train")
    shutil.copytree(tmp_path / "photos" / "test", tmp_path / "as photos" / "test")
    as_photos = photos | {"root": str(tmp_path / "as photos")} | option
    pool = data.source_of(Dataset(**as_photos)).pool.load()
    found = own.read(str(synth), Dataset(**photos | option))
    assert (found.counts, found.found) == ([11, 3], 14)
    for label in (0, 1):
        mine = found.images[found.labels == label]
        assert hashes(mine) == hashes(pool.images[pool.labels == label])


@pytest.mark.parametrize("counts", [[11, 3], [4, 4], [0, 2], [1, 0], [40, 7]])
def test_each_real_image_has_a_part_of_its_classs_own_images(counts):
    labels = torch.tensor([0, 1, 0, 0, 1, 0, 1, 0, 0, 1, 0, 0])
    start, count = own.shares(labels, torch.tensor(counts))
    for label, (first, m) in enumerate([(0, counts[0]), (counts[0], counts[1])]):
        members = (labels == label).nonzero().flatten().tolist()
        shared = Counter(
            j for i in members for j in range(int(start[i]), int(start[i]) + int(count[i]))
        )
        assert set(shared) == set(range(first, first + m)) or m == 0 and not shared
        if m >= len(members):  # a part for each
            assert set(shared.values()) == {1}
        elif m:  # one for each, and all in use about as often
            assert all(int(count[i]) == 1 for i in members)
            assert max(shared.values()) - min(shared.values()) <= 1


def test_what_trains_is_what_the_folder_holds(photos, synth, tmp_path):
    study = filled(study_of(photos, synth), tmp_path / "bank")
    bank, read = Bank(tmp_path / "bank"), own.read(str(synth), study.dataset)
    assert bank.verify() == [] and set(study.bank_plans.values()) == {read.key}
    run = study.run(study.entry("own"), "final", seed=0, choices={})
    used = train.load_data(run, torch.device("cpu"), bank)
    pool = used.splits.train
    of_class = [hashes(read.images[read.labels == label]) for label in (0, 1)]
    cats, dogs = met(pool.edits, pool.labels)
    assert cats == of_class[0]  # 11 for 8 real ones
    assert set(dogs) == set(of_class[1])  # 3 for 4
    always = run.method.model_copy(update={"probabilities": {"identity": 0.0, "own": 1.0}})
    setup = train.prepare(run.model_copy(update={"method": always}), torch.device("cpu"), used)
    drawn = always.select(setup.state, pool, torch.Generator().manual_seed(0))
    for image, label in zip(drawn, pool.labels, strict=True):
        assert content_hash((255 * image).round().to(torch.uint8)) in of_class[label]


@pytest.mark.parametrize(
    "method",
    [
        {"method": "mix", "probabilities": HALF},
        {"method": "mix", "probabilities": HALF, "below": 0.6},
        {"method": "autogenda", "edits": ["own"], "learn": "online", "controls": ["off"]},
        {"method": "bilevel", "edits": ["own"], "group": "translation"},
    ],
)
def test_the_methods_that_mix_train_with_them(photos, synth, tmp_path, method):
    study = filled(study_of(photos, synth, {"own": method}), tmp_path)
    for entry in study.entries[1:]:
        run = study.run(entry, "final", seed=0, choices={})
        row = [epoch.row for epoch in train.run(run, bank=Bank(tmp_path))][-1]
        assert row["finished"] and row["kinds"] == ["identity", "own"]
        assert row["generated"] == (3 if "below" in method else 14)
        assert row["bank_hours"] == row["bank_work"] == {}


def test_a_run_is_named_by_what_they_show_and_not_by_where_they_lie(photos, synth, tmp_path):
    def key(folder, **cost):
        study = filled(study_of(photos, folder, **cost), tmp_path / "bank")
        return study.run(study.entry("own"), "final", seed=0, choices={}).key

    before = key(synth)
    for i, path in enumerate(sorted(synth.glob("*/*.png"), reverse=True)):
        target = tmp_path / "elsewhere" / path.parent.name / f"{i}.bmp"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(target)
    assert key(tmp_path / "elsewhere") == before
    assert key(synth, device_hours=12.5) == before
    (synth / "dog" / "a.png").rename(synth / "cat" / "a.png")
    assert key(synth) != before  # as another class


def test_what_the_bank_exports_is_somebodys_folder(tmp_path, monkeypatch):
    """Edits of a bank, exported and read as one's own, have the same pixels; sources are copies."""
    monkeypatch.setattr(planted_bank, "SHAPE", (3, 8, 8))
    bank, pool = Bank(tmp_path / "bank"), planted_bank.make_pool()
    plan, edits = planted_bank.make_plan(bank, pool)
    planted_bank.write(bank, edits)
    export_imagefolder(bank, plan, tmp_path / "out", ["local"])
    assert (tmp_path / "out" / "dog_wolf").is_dir()
    dataset = Dataset(name="npz", root=str(tmp_path / "given.npz"))
    test = Split(planted_bank.make_pool(seed=1).images, pool.labels)
    data.give(dataset, Source(Split(pool.images, pool.labels), None, test, pool.classes))
    read = own.read(str(tmp_path / "out"), dataset)
    assert read.found - len(read.labels) == len(pool.images) and read.counts == [4, 4]
    assert "4 of the 12 images" in read.faults()[0]
    made = bank.variants(plan, planted_bank.of("local"), (3, 8, 8), pool.hashes)
    bank.write_own(read)
    drawn = bank.variants(read.key, {"own": [0, 1]}, (3, 8, 8), pool.hashes, pool.labels)
    assert met(drawn, pool.labels) == met(made, pool.labels)


def test_large_ones_are_kept_to_the_pixel_too(tmp_path):
    images = planted_bank.make_pool().images.repeat(1, 1, 12, 12)
    labels, names = torch.tensor([0, 0, 1, 1]), tuple(content_hash(i) for i in images)
    bank = Bank(tmp_path)
    read = own.OwnImages("synth", images, labels, names, ("cat", "dog"), 4)
    bank.write_own(read)
    assert bank.verify() == []
    (path,) = bank.own_files()
    path.rename(path.with_stem("own-" + "0" * 28))
    assert bank.verify() == [f"own/own-{'0' * 28}.parquet: its name is not the hash of its images"]


def refusal(study):
    with pytest.raises(UserError) as error:
        own_images(study)
    return str(error.value)


def test_folders_that_cannot_be_used_are_refused(photos, synth, tmp_path):
    study = study_of(photos, synth)
    assert "nowhere is not a folder" in refusal(study_of(photos, tmp_path / "nowhere"))
    paint(synth / "dogs", ["0.png"], 12)
    assert "dogs is not named after one class" in refusal(study)
    assert "did you mean dog?" in refusal(study) and "known: cat, dog." in refusal(study)
    (synth / "dogs").rename(tmp_path / "dogs")
    (synth / "loose.png").write_bytes((tmp_path / "dogs" / "0.png").read_bytes())
    assert "loose.png is in no folder of a class" in refusal(study)
    (synth / "loose.png").unlink()
    assert own_images(study) is not None
    (synth / "cat" / "broken.png").write_bytes(b"\x89PNG\r\n no image")
    assert "broken.png cannot be read as an image" in refusal(study)
    (synth / "cat" / "broken.png").unlink()
    copy = synth / "cat" / "leak.bmp"  # other bytes, the same pixels
    Image.open(tmp_path / "photos" / "test" / "dog" / "0.png").save(copy)
    assert "leak.bmp is a copy of an image that is tested on" in refusal(study)
    copy.unlink()
    shutil.rmtree(synth / "dog")
    assert "no image of class 'dog'" in refusal(study) and "methods.own draws" in refusal(study)
    small = {"own": {"method": "mix", "probabilities": HALF, "below": 0.6}}
    assert "no image of class 'dog'" in refusal(study_of(photos, synth, small))
    shutil.copytree(tmp_path / "photos" / "train" / "dog", synth / "dog")
    assert "besides copies of training images" in refusal(study)
    shutil.rmtree(synth)
    paint(synth / "dog", ["0.png"], 13)
    assert own_images(study_of(photos, synth, small)).counts == [0, 1]  # cats stay real


def test_copies_are_left_out_and_named(photos, synth, tmp_path):
    shutil.copy(tmp_path / "photos" / "train" / "cat" / "0.png", synth / "cat" / "real.png")
    shutil.copy(synth / "dog" / "a.png", synth / "dog" / "again.png")
    study = filled(study_of(photos, synth), tmp_path / "bank")
    read, folder = own_images(study), Folder(tmp_path / "runs")
    assert (read.counts, read.found) == ([11, 3], 16)
    write_faults(study, folder, tmp_path / "bank")
    assert folder.bank_faults.read_text().startswith(f"2 of the 16 images in {synth} are left out")
    write_sheet(study, folder, tmp_path / "bank")
    with Image.open(folder.root / "sheet.png") as sheet:
        assert sheet.width > 1000


def test_a_smoke_run_has_stand_ins_for_them(photos, synth, tmp_path):
    small = smaller(study_of(photos, synth), tmp_path / "small")
    read = own_images(small)
    assert read.folder != str(synth) and set(read.counts) == {2}


@pytest.mark.parametrize(
    ("methods", "generate", "message"),
    [
        (
            {"a": {"method": "autogenda"}},
            {},
            "methods.a mixes local and transfer images",
        ),
        ({"a": {"method": "predefined"}}, {}, "no entry mixes its images"),
        (None, {"strength": 0.5}, "strength says how images are made"),
        (None, {"device_hours": 1.0, "seconds_per_image": 2.0}, "only one of device_hours and"),
        (None, {"device_hours": -1.0}, r"generate.device_hours: .*greater than or equal to 0"),
        (None, {"folder": None, "device_hours": 1.0}, "cost of the images in folder, which is mis"),
        (None, {"folder": None}, "methods.own mixes images of the kind own, but generate.folder"),
    ],
)
def test_studies_that_cannot_use_them_are_refused(photos, methods, generate, message):
    with pytest.raises(UserError, match=message):
        study_of(photos, **{"folder": "synth", "methods": methods, **generate})


def test_what_they_cost_is_what_the_study_says(tmp_path):
    """40 of 50 usable images of 60, for 30 s in all: 24 s beside trainings of `none` of 12 s."""
    assert Generation(folder="f").for_each(60, 50).seconds_per_image is None
    cost = Generation(folder="f", device_hours=30 / 3600).for_each(60, 50)
    assert cost == Generation(folder="f", seconds_per_image=0.5).for_each(60, 50)
    methods = {"none": {}, "own": {"method": "mix", "probabilities": HALF}}
    for seconds, ratio in ((cost.seconds_per_image, 2.0), (None, 0.0)):
        hand = Hand(
            tmp_path / str(ratio), methods=methods, seeds=1,
            generate={"folder": "synth", "seconds_per_image": seconds},
        )  # fmt: skip
        hand.run("none", seconds=(12.0,))
        hand.run("own", seconds=(12.0,), more={"generated": 40, "bank_hours": {}})
        results = hand.results()
        assert results.by_label["own"].relative_bank_cost == pytest.approx(ratio)
        assert results.by_label["own"].relative_cost == pytest.approx(1 + ratio)
        assert results.by_label["own"].device_hours["generate"] == pytest.approx(ratio * 12 / 3600)
        (told,) = [line for line in verdicts(results) if "images in synth" in line]
        assert ("0.6 device-seconds" in told) if seconds else ("is in no cost" in told)


MADE = """
dataset:
  {name: fashion-mnist-mini, test_size: 100, imbalance: {factor: 0.5, largest: 4}, redraw: false}
model: {name: cnn, width: 2}
train: {epochs: 2, iters_per_epoch: 3, batch_size: 8}
generate: {calls: 2, per_class: 3}
seeds: 2
methods:
  none:
  half: {method: mix, probabilities: {identity: 0.5, fixed: 0.5}}
"""
MINE = (
    MADE.replace("fixed: 0.5}", "own: 0.5}")
    + """
  autogenda (ours): {method: autogenda, edits: [own], gradient: hypergradient}
"""
)


@pytest.mark.nightly
@pytest.mark.ray
def test_images_of_the_embedded_model_are_judged_as_somebodys_own(tmp_path):
    """Made by one study, exported, and judged by another one, with the same proportions: the same
    images, of which each real one now draws those of its class."""
    (tmp_path / "made.yaml").write_text(MADE)
    folder = tmp_path / "synth"
    cost = f"{{folder: {folder}, device_hours: 0.01}}"
    (tmp_path / "mine.yaml").write_text(MINE.replace("{calls: 2, per_class: 3}", cost))
    made = run_all(tmp_path / "made.yaml", "--out", tmp_path / "runs")
    assert made.returncode == 0, made.stdout + made.stderr
    bank = Bank(tmp_path / "runs" / "bank")
    (plan,) = bank.plans()
    export_imagefolder(bank, plan, folder, sources=False)
    out = run_all(tmp_path / "mine.yaml", "--out", tmp_path / "runs")
    assert out.returncode == 0, out.stdout + out.stderr
    assert f"{folder}: " in out.stdout and "images of one's own" in out.stdout
    page = (tmp_path / "runs" / "mine" / "report.html").read_text()
    assert "were made elsewhere: an entry is charged" in page
    rows = [r for r in Folder(tmp_path / "runs" / "mine").read_rows() if r["finished"]]
    (own_plan,) = {r["bank_plan"] for r in rows if r["bank_plan"]}
    assert bank.verify() == []
    of_made = bank.variants(plan, {"fixed": range(10)}, (1, 28, 28))
    drawn = bank.variants(own_plan, {"own": range(10)}, (1, 28, 28), labels=torch.arange(10))
    assert set(hashes(drawn.images)) == set(hashes(of_made.images))
    assert {r["generated"] for r in rows if r["bank_plan"]} == {len(drawn.images)}
    again = run_all(tmp_path / "mine.yaml", "--out", tmp_path / "runs", "--resume")
    assert again.returncode == 0, again.stdout + again.stderr
