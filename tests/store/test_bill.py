"""What the machines cost: against sums made by hand, and around a real study."""

import json
import os
from types import SimpleNamespace

import pytest

from autoaug_ray.commands import main
from autoaug_ray.store import bill
from autoaug_ray.store.bill import Bill, ClusterState


class Cluster:
    """A clock and a cluster that a test moves."""

    def __init__(self):
        self.now, self.nodes, self.free = 0.0, {}, {}

    def look(self):
        return ClusterState(dict(self.nodes), dict(self.free))


@pytest.fixture
def world(tmp_path):
    cluster = Cluster()
    made = Bill(tmp_path / "bill", cluster.look, interval=1e9, clock=lambda: cluster.now)
    return SimpleNamespace(cluster=cluster, bill=made, folder=tmp_path / "bill", root=tmp_path)


def attempt(root, run, number, began, seconds, *, device="A100", share=1.0, kept=None):
    root.mkdir(exist_ok=True)
    line = {
        "run": run, "attempt": number, "device": device, "share": share,
        "at": began + sum(seconds.values()), "seconds": seconds,
        "open": kept is not None, "kept": kept or 0.0,
    }  # fmt: skip
    (root / f"{run}-{number:03d}-x.jsonl").write_text(json.dumps(line) + "\n")


def test_the_hours_melt_as_reckoned_by_hand(world):
    """Two nodes of four GPUs, of which one comes late and is lost early."""
    c, b = world.cluster, world.bill
    gpus = {"CPU": 8.0, "GPU": 4.0}
    c.nodes, c.free = {"one": gpus}, {"CPU": 8.0, "GPU": 4.0}
    b.note()
    c.now = 3600  # an hour idle
    c.nodes, c.free = {"one": gpus, "two": gpus}, {"CPU": 16.0, "GPU": 2.0}
    b.note()
    c.now = 7200  # an hour with six of eight GPUs in use
    c.nodes, c.free = {"one": gpus}, {"CPU": 8.0}
    b.note()
    c.now = 9000  # half an hour with all of four
    b.note()
    ledger = world.root / "ledger"
    began = b._began
    attempt(ledger, "a", 1, began, {"final": 3600.0, "other": 1800.0}, share=2.0, kept=1800.0)
    attempt(ledger, "a", 2, began, {"final": 3600.0, "other": 0.0}, share=2.0)
    attempt(ledger, "b", 1, began, {"search": 900.0, "other": 100.0}, device="CPU")
    attempt(ledger, "old", 1, began - 1e6, {"final": 3600.0, "other": 0.0})
    s = bill.read(world.folder, [ledger])
    assert s.device == "GPU" and s.sessions == 1 and s.nodes == 2
    assert s.billed == pytest.approx(4 * 1 + 8 * 1 + 4 * 0.5)
    assert s.allotted == pytest.approx(0 + 6 + 2)
    assert s.held == pytest.approx(2 * 1.5 + 2 * 1)
    assert s.useful == pytest.approx(2 * 1 + 2 * 1)
    assert s.lost == pytest.approx(2)
    said = bill.sentence(s)
    assert "14 GPU-hours of 2 nodes" in said and "allotted" in said and "8 (57%)" in said
    assert (
        "5 (36%) charged" in said
        and "4 (29%) useful" in said
        and "2 went to work that was lost" in said
    )


def test_sessions_add_up_and_no_bill_says_nothing(world):
    assert bill.read(world.folder, []) is None
    for _ in range(2):
        b = Bill(world.folder, world.cluster.look, interval=1e9, clock=lambda: world.cluster.now)
        world.cluster.nodes, world.cluster.free = {"one": {"CPU": 2.0}}, {"CPU": 1.0}
        with b:
            b.note()
            world.cluster.now += 3600
    s = bill.read(world.folder, [])
    assert (s.sessions, s.nodes, s.device) == (2, 1, "CPU")
    assert s.billed == pytest.approx(4) and s.allotted == pytest.approx(2)
    assert s.held == s.useful == s.lost == 0


def test_a_cluster_that_goes_away_and_a_folder_that_cannot_be_written_stop_nothing(world):
    def gone():
        raise ConnectionError

    with Bill(world.folder, gone, interval=1e9):
        pass
    (line,) = [json.loads(p.read_text()) for p in world.folder.glob("*.json")]
    assert line["billed"] == {}
    (world.root / "a file").write_text("")
    with Bill(world.root / "a file" / "bill", world.cluster.look, interval=1e9) as b:
        b.note()


def test_a_real_study_is_billed_for_more_than_it_used(tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(
        "dataset: {name: fashion-mnist-mini}\nmodel: {name: cnn, width: 2}\n"
        "train: {epochs: 1, batch_size: 256}\nseeds: 2\nmethods: {none: }\n"
    )
    assert main([str(tmp_path / "tiny.yaml"), "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "The bill: " in said and "CPU-hours of 1 node, of which" in said
    folder = tmp_path / "tiny"
    page = (folder / "report.html").read_text()
    assert page.count("The bill: ") == 1 and "Not all is there" not in page
    s = bill.read(folder / "bill", [folder / "ledger"])
    assert s.billed > s.held > s.useful > 0 and s.lost == 0
    assert s.billed >= s.allotted  # which a look a second may miss, of so short a study
    assert s.billed < 3600 * (os.cpu_count() or 1)
