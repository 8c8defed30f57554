"""The page and the files beside it, of a study that was trained."""

import re
from collections.abc import Iterator
from pathlib import Path
from warnings import catch_warnings, filterwarnings

import matplotlib.image
import pyarrow.parquet as pq
import pytest
import torch
from hand import TREE, Hand, Page

from autoaug_ray import config, train
from autoaug_ray.config import Study
from autoaug_ray.report.results import SUMMARY, collect
from autoaug_ray.report.write import write
from autoaug_ray.store.folder import Folder
from autoaug_ray.store.meter import Meter, read, spent


@pytest.fixture
def hand(tmp_path: Path) -> Hand:
    return Hand(tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Study, Folder, Path]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tree = TREE | {"dataset": TREE["dataset"] | {"shift": {"translate": 6}}}
    study = config.study(tree, name="made")
    folder = Folder(tmp_path_factory.mktemp("study") / "made")
    for entry in study.entries:
        runs = [
            study.run(entry, "search", seed=0, choices=c, index=i)
            for i, c in enumerate(entry.grid())
            if entry.ranges
        ]
        choices = entry.grid()[0]
        runs += [study.run(entry, "final", seed=s, choices=choices) for s in study.seeds]
        for run in runs:
            about = {"label": run.label, "phase": run.phase, "seed": run.seed}
            with Meter(folder.ledger, key=run.key, about=about) as meter, catch_warnings():
                filterwarnings("ignore", "The image decoding and encoding", DeprecationWarning)
                folder.write_rows(run.key, [epoch.row for epoch in train.run(run, meter)])
    folder.note_data("", [f"<class {i}>" for i in range(10)])
    yield study, folder, write(collect(study, folder))
    torch.set_num_threads(threads)


def test_page_is_whole_and_needs_nothing_else(made: tuple[Study, Folder, Path]) -> None:
    study, folder, path = made
    text = path.read_text()
    page = Page(text)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == len(list(folder.root.glob("*.png"))) == 6
    assert all((i["src"] or "").startswith("data:image/png;base64,") and i["alt"] for i in images)
    assert not {"link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not any("href" in attributes for _, attributes in page.tags)
    assert not re.search(r"https?://|@import|url\(", re.sub(r"base64,[^\"]+", "", text))
    for label in (e.label for e in study.entries):
        assert label in page.text
    assert "magnitude: 5" in page.text  # chosen
    assert "translated by up to ±6 pixels" in page.text
    assert "randaugment: 2 search trials" in page.text
    assert "train_size: 160" in page.text  # the settings
    assert "Not all is there" not in page.text


def test_pictures_can_be_read(made: tuple[Study, Folder, Path]) -> None:
    _, folder, _ = made
    for name in (
        "accuracy_vs_cost",
        "strength",
        "hypergradient",
        "samples",
        "classes",
        "device_hours",
    ):
        picture = matplotlib.image.imread(folder.root / f"{name}.png")
        height, width = picture.shape[:2]
        assert 600 < width < 1200 and 250 < height
        assert picture[..., :3].std() > 0.05


def test_same_rows_same_page(made: tuple[Study, Folder, Path]) -> None:
    study, folder, path = made
    before = path.read_bytes()
    assert write(collect(study, folder)).read_bytes() == before


def test_summary_file(made: tuple[Study, Folder, Path]) -> None:
    study, folder, _ = made
    written = pq.read_table(folder.root / "summary.parquet")
    assert written.schema.equals(SUMMARY)
    rows = written.to_pylist()
    assert [r["label"] for r in rows] == [e.label for e in study.entries]
    assert rows == [r.row() for r in collect(study, folder).entries]
    assert all(r["seeds"] == [0, 1, 2] and r["device"] == "CPU" for r in rows)
    assert rows[0]["relative_cost"] == pytest.approx(1)
    by_label = {r["label"]: r for r in rows}
    assert by_label["randaugment"]["trials"] == 5
    assert by_label["bilevel learn:off"]["control_of"] == "bilevel"
    ledger = [line for line in read(folder.ledger) if line["label"] == "none"]
    hours = sum(map(spent, ledger)) / 3600
    assert by_label["none"]["total_device_hours"] == pytest.approx(hours)
    # The ledger's last line is later than the last row.
    rows = [row for row in folder.finished().values() if row["label"] == "none"]
    assert hours > sum(row["device_hours"] for row in rows)


def test_figures_without_data_are_removed(hand: Hand) -> None:
    hand.folder.root.mkdir(exist_ok=True)
    (hand.folder.root / "samples.png").write_bytes(b"of an earlier report")
    write(hand.results())
    assert not list(hand.folder.root.glob("*.png"))
