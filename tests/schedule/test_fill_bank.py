"""Filling a bank with real Ray actors: any number of them, killed, interrupted and poisoned."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import ray
import torch

from autoaug_ray.errors import RunError, StorageError, UserError
from autoaug_ray.generate.bank import Bank
from autoaug_ray.generate.bank_files import decode
from autoaug_ray.generate.plan import Pool
from autoaug_ray.generate.settings import (
    EDITS,
    Generation,
    Tokens,
    Workers,
    of_all_classes,
)
from autoaug_ray.generate.worker import PieceDone, Worker
from autoaug_ray.schedule import cluster, fill_bank
from autoaug_ray.store import meter

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
FIXED = ("fixed",)


def make_pool(count=12, classes=("cat", "dog", "owl")):
    """The images of a smaller pool are the first of a larger one."""
    stream = torch.Generator().manual_seed(0)
    images = torch.randint(256, (32, 1, 12, 10), generator=stream).to(torch.uint8)
    return Pool(images[:count], torch.arange(count) % len(classes), classes)


class Job(NamedTuple):
    image: torch.Tensor
    prompt: str
    seed: int


class Edited(NamedTuple):
    image: torch.Tensor
    reject: str | None


class FakeEditor:
    """Takes a while and makes noise. "poison" in a prompt is an error; the file `kill`, the end of
    the first process that sees it."""

    def __init__(self, root, batch_size):
        self.kill, self.batch_size = root / "kill", batch_size

    def count_tokens(self, text):
        return len(text.split())

    def edit(self, jobs):
        edited = []
        for begin in range(0, len(jobs), self.batch_size):
            time.sleep(0.05)
            for job in jobs[begin : begin + self.batch_size]:
                if "poison" in job.prompt:
                    raise ValueError("poisoned")
                edited.append(Edited(noisy(job.image, job.prompt, job.seed), None))
            with contextlib.suppress(FileNotFoundError):
                self.kill.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        return edited


def noisy(image, prompt, seed):
    said = hashlib.sha256(f"{prompt}/{seed}".encode()).digest()
    return image ^ torch.from_numpy(np.resize(np.frombuffer(said, np.uint8), tuple(image.shape)))


class FakeWorker(Worker):
    """A worker without models, and without the seconds that importing their library takes."""

    def edit(self, *arguments):
        sys.modules["autoaug_ray.generate.img2img"] = SimpleNamespace(Job=Job)
        return super().edit(*arguments)

    def caption(self, images, hashes, names, key):
        class Captioner:
            def continuations(self, images, names, prefix):
                return [f"is number {int(image.sum())}" for image in images]

        self._captioner = Captioner()
        return super().caption(images, hashes, names, key)

    def embed(self, names):
        return PieceDone(
            [tuple(c for c in range(len(names)) if c != own) for own in range(len(names))]
        )

    def invert(self, images, labels, names, tokens):
        path = self.bank.tokens_path(tokens)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(len(b"{}").to_bytes(8, "little") + b"{}")
        return PieceDone()

    def _editor_with(self, words):
        return FakeEditor(self.bank.root, self.workers.batch_size)

    def _tflop(self, edits, sources, prompts):
        return 0.0


class BrokenWorker(FakeWorker):
    """Whatever it is given, its process dies."""

    def _editor_with(self, words):
        os._exit(1)


class ModellessWorker(FakeWorker):
    def _editor_with(self, words):
        raise UserError("generate.model: there is none.")


def fill(root, pools, kinds=FIXED, worker=FakeWorker, settings=None, **workers):
    """A bank, its plan keys, and what was said."""
    workers = {"cpus": 0.5, "actors": 2, "shard_size": 7, "retries": 1} | workers
    models = root.parent.parent / "models"  # of all tests: a plan says where they were
    for name in ("sd", "blip"):
        (models / name).mkdir(parents=True, exist_ok=True)
        (models / name / "config.json").write_text(name)
    settings = {
        "model": str(models / "sd"), "captioner": str(models / "blip"), "calls": 2, "per_class": 8,
    } | (settings or {})  # fmt: skip
    said = []
    bank = Bank(root)
    drawn = [kinds if isinstance(kinds, dict) else of(pool, kinds) for pool in pools]
    keys = with_worker(
        worker,
        lambda: fill_bank.fill(
            bank, pools, Generation(**settings), Workers(**workers), drawn, said.append
        ),
    )
    return bank, keys, said


def of(pool, kinds):
    return of_all_classes(kinds, len(pool.classes))


def with_worker(worker, work):
    own, fill_bank.Worker = fill_bank.Worker, worker
    try:
        return work()
    finally:
        fill_bank.Worker = own


@pytest.fixture(scope="module", autouse=True)
def by_value():
    # Workers cannot import a test: its classes travel as they are.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def content(bank):
    """Every file but the ledger's."""
    return {
        path.relative_to(bank.root).as_posix(): path.read_bytes()
        for path in sorted(bank.root.glob("*/*"))
        if path.parent.name != "ledger"
    }


def attempts(bank):
    """How often each shard was begun."""
    begun = Counter(line["run"] for line in meter.read(bank.ledger))
    return {path.stem: begun[path.stem] for path in bank.shards()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    bank, keys, _ = fill(tmp_path_factory.mktemp("one") / "bank", [make_pool()], EDITS, actors=1)
    assert len(bank.shards()) == 11 and bank.verify() == []
    assert set(attempts(bank).values()) == {1}
    return bank, keys, content(bank)


@pytest.mark.nightly  # the next one has the same bytes of two actors, one of which dies
@pytest.mark.parametrize("actors, batch_size", [(2, 1), (3, 5)])
def test_who_makes_it_changes_no_byte(undisturbed, tmp_path, actors, batch_size):
    bank, _, _ = fill(tmp_path / "bank", [make_pool()], EDITS, actors=actors, batch_size=batch_size)
    assert content(bank) == undisturbed[2]
    assert set(attempts(bank).values()) == {1}


def test_an_actor_that_is_killed_is_replaced(undisturbed, tmp_path):
    root = tmp_path / "bank"
    root.mkdir()
    (root / "kill").touch()
    bank, _, said = fill(root, [make_pool()], EDITS, batch_size=1)
    assert not (root / "kill").exists()
    assert content(bank) == undisturbed[2]
    assert sorted(attempts(bank).values()) == [1] * 10 + [2]
    assert sum("its process died; trying again" in line for line in said) == 1
    assert not bank.quarantined()
    (fault,) = bank.faults(bank.plans()[0])
    assert fault.startswith("Attempts at shards of generated images that failed")


@pytest.mark.nightly
def test_a_driver_that_is_killed_goes_on_where_it_was(undisturbed, tmp_path):
    root = tmp_path / "bank"
    process = subprocess.Popen(
        [sys.executable, __file__, str(root)], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    bank = Bank(root)
    limit = time.monotonic() + 60
    while len(bank.shards()) < 3:
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1)  # its actor finds out
    made = {path.stem for path in bank.shards()}
    assert 3 <= len(made) < 11
    bank, _, _ = fill(root, [make_pool()], EDITS)
    assert content(bank) == undisturbed[2]
    begun = attempts(bank)
    assert all(begun[name] == 1 for name in made)
    assert sum(begun.values()) <= 11 + 1  # what its actor had begun


def test_every_edit_is_of_its_source(undisturbed):
    bank, (key,), _ = undisturbed
    some, edits = make_pool(), {e.key: e for e in bank.read_plan(key).edits}
    for key, data, _ in bank.encoded(edits):
        e = edits[key]
        assert torch.equal(decode(data), noisy(some.images[e.source], e.prompt, e.seed))


def test_nothing_is_started_if_nothing_is_missing(undisturbed, monkeypatch):
    bank, _, _ = undisturbed
    before = content(bank), attempts(bank)
    monkeypatch.setattr(cluster, "join", lambda: pytest.fail("started"))
    _, keys, said = fill(bank.root, [make_pool()], EDITS)
    assert keys == undisturbed[1] and said == ["72 edits, 0 to make"]
    assert (content(bank), attempts(bank)) == before


def test_a_poisoned_shard_is_set_aside_and_the_rest_is_there(tmp_path):
    some = make_pool(5, ("cat", "poison", "owl", "fox", "elk"))
    bank, (key,), said = fill(tmp_path / "bank", [some], shard_size=8)
    edits = bank.read_plan(key).edits
    bad = [e.key for e in edits if e.class_name == "poison"]
    ((name, line),) = bank.quarantined().items()
    assert (line["keys"], line["error"]) == (bad, "ValueError: poisoned")
    assert f"  shard {name} is set aside: ValueError: poisoned" in said
    assert not bank.missing({e.key for e in edits} - set(bad))
    begun = Counter(line["run"] for line in meter.read(bank.ledger))
    assert begun[name] == 2  # once, and one more try
    found = bank.variants(key, of(some, FIXED), (1, 12, 10), some.hashes)
    assert found.missing == {"fixed": 8} and len(found.images) == 32
    assert found.count.flatten().tolist() == [8, 0, 8, 8, 8]
    # what failed was paid for too
    assert bank.cost(key)["generate"] == pytest.approx(sum(bank.spent().values()))

    again, aside = bank.faults(key)
    assert again.startswith("Attempts at shards of generated images")
    assert aside == (
        f"Shard {name} of 8 generated images is set aside, since it failed every time "
        "(ValueError: poisoned)."
    )

    _, _, said = fill(tmp_path / "bank", [some], shard_size=8)
    assert said[0] == "40 edits, 0 to make" and "8 are set aside" in said[1]


def test_if_every_shard_fails_it_is_not_the_shards(tmp_path, monkeypatch):
    with pytest.raises(RunError, match=r"no shard could be made \(its process died\)"):
        fill(tmp_path / "bank", [make_pool(3)], worker=BrokenWorker, retries=0, shard_size=99)
    monkeypatch.setattr(fill_bank, "HOPELESS", 2)
    begun = Bank(tmp_path / "bank")
    with pytest.raises(RunError, match="no shard could be made"):
        fill(begun.root, [make_pool()], worker=BrokenWorker, retries=0, actors=1)
    assert len(meter.read(begun.ledger)) == 1 + 2  # of its 4 shards
    assert not begun.quarantined()


def test_a_full_disk_is_no_fault_of_the_shard(small_disk):
    root = small_disk.root / "bank"
    small_disk.fill()
    with pytest.raises(StorageError, match=f"^{root}.* cannot be used .No space left on device.."):
        fill(root, [make_pool(3)])
    small_disk.free()
    bank, (key,), _ = fill(root, [make_pool(3)])
    assert bank.verify() == bank.faults(key) == [] and not bank.quarantined()


def test_an_actor_whose_machine_is_gone_needs_the_room_of_an_idle_one(tmp_path):
    class Other:
        """Takes the room that a dead actor leaves, as if the machine were gone."""

        def __init__(self, stop):
            self.stop = stop

        def hold(self):
            limit = time.monotonic() + 60
            while not self.stop.exists() and time.monotonic() < limit:
                time.sleep(0.05)

    cluster.join()
    root, stop = tmp_path / "bank", tmp_path / "stop"
    root.mkdir()
    (root / "kill").touch()
    cpus = ray.cluster_resources()["CPU"] / 2
    held = [None]

    def hold():
        while (root / "kill").exists():
            time.sleep(0.01)
        other = ray.remote(Other).options(num_cpus=cpus).remote(stop)
        held[0] = other.hold.remote()

    threading.Thread(target=hold).start()
    bank, _, said = fill(root, [make_pool()], cpus=cpus, batch_size=1)
    assert ray.wait(held, timeout=0)[0] == [], "the room was given back before the bank was full"
    stop.touch()
    ray.get(held)
    assert sum("its process died; trying again" in line for line in said) == 1
    assert bank.verify() == []


def test_what_every_shard_would_meet_is_said_once(tmp_path):
    with pytest.raises(UserError, match="^generate.model: there is none.$"):
        fill(tmp_path / "bank", [make_pool()], worker=ModellessWorker, actors=1)
    assert len(meter.read(tmp_path / "bank" / "ledger")) == 1


def test_more_than_any_machine_has(tmp_path):
    with pytest.raises(UserError, match="asks for 1000 CPU and 0 GPU, which no machine here has"):
        fill(tmp_path / "bank", [make_pool()], cpus=1000)


def test_subsets_studies_and_kinds_share(tmp_path):
    bank, (large,), _ = fill(tmp_path / "bank", [make_pool(24)], actors=1)
    before = set(bank.index())
    pools = [make_pool(24), make_pool(12), make_pool(24)]
    _, keys, said = fill(tmp_path / "bank", pools, EDITS, actors=1)
    asked = {e.key for key in keys for e in bank.read_plan(key).edits}
    assert before < asked and len(asked) < 72 + 72
    assert f"{len(asked)} edits, {len(asked - before)} to make" in said
    # 8 images a class have one fixed edit each, 4 have two: the first is there
    small = [e for e in bank.read_plan(keys[1]).edits if e.kind == "fixed"]
    assert [e.key in before for e in small] == [e.number == 0 for e in small]
    assert keys[0] == keys[2] != keys[1]
    assert bank.verify() == []
    assert len(attempts(bank)) and set(attempts(bank).values()) == {1}
    assert bank.cost(large)["caption"] == 0 < bank.cost(keys[0])["caption"]


def test_every_pool_learns_its_own_words(tmp_path):
    settings = {"tokens": Tokens(steps=1)}
    pools = [make_pool(24), make_pool(12)]
    bank, keys, _ = fill(tmp_path / "bank", pools, settings=settings, actors=1)
    plans = [bank.read_plan(key) for key in keys]
    words = [p.fingerprints.tokens for p in plans]
    assert words[0] != words[1]
    assert {p.stem for p in bank.tokens_folder.iterdir()} == set(words)
    assert {e.prompt for e in plans[1].edits} == {
        f"a photo of a <{n}>" for n in ("cat", "dog", "owl")
    }
    assert not {e.key for e in plans[0].edits} & {e.key for e in plans[1].edits}
    assert bank.verify() == []  # no shard holds images of both
    assert bank.cost(keys[0])["invert"] > 0
    _, again, said = fill(tmp_path / "bank", pools[:1], settings=settings)
    assert again == keys[:1] and said == ["24 edits, 0 to make"]


def test_only_the_words_and_edits_of_the_classes_that_are_drawn_are_made(tmp_path):
    some, settings = make_pool(12), {"tokens": Tokens(steps=1, per_class=True)}
    drawn = {"fixed": [1], "local": [1, 2]}
    bank, (key,), said = fill(tmp_path / "bank", [some], drawn, settings=settings, actors=1)
    made = bank.read_plan(key)
    assert Counter((e.kind, e.class_name) for e in made.edits) == {
        ("fixed", "dog"): 8, ("local", "dog"): 8, ("local", "owl"): 8,
    }  # fmt: skip
    captions = {e.caption for e in made.edits if e.kind == "local"}
    assert "2 words to learn" in said and f"{len(captions)} captions to make" in said
    words = made.fingerprints.words
    assert {p.stem for p in bank.tokens_folder.iterdir()} == set(words[1:])
    assert set(bank.index()) == {e.key for e in made.edits} and bank.verify() == []
    spent = bank.spent()
    assert bank.cost(key, {"fixed": [1]})["invert"] == spent[words[1]]
    assert bank.cost(key, drawn)["invert"] == spent[words[1]] + spent[words[2]]
    # Another study that needs more of the same pool shares all of it.
    before = set(bank.index())
    _, (more,), said = fill(tmp_path / "bank", [some], ("fixed", "local"), settings=settings)
    assert "1 words to learn" in said and before < set(bank.index())
    assert {e.key for e in made.edits} < {e.key for e in bank.read_plan(more).edits}


@pytest.mark.nightly
def test_real_models_make_the_same_bytes_here_and_there(tmp_path):
    pytest.importorskip("diffusers")
    import tiny_blip2
    import tiny_sd

    settings = {
        "model": str(tiny_sd.save(tmp_path / "sd")), "per_class": 2,
        "captioner": str(tiny_blip2.save_blip(tmp_path / "blip")),
    }  # fmt: skip
    some = make_pool(4, ("cat", "dog"))
    bank, (key,), said = fill(
        tmp_path / "bank", [some], EDITS, Worker, settings=settings, shard_size=5, batch_size=3
    )
    assert any("TFLOP/s per CPU" in line for line in said)
    found = bank.variants(key, of(some, EDITS), (1, 12, 10), some.hashes)
    assert len(found.images) == 12 and bank.verify() == []
    assert set(bank.cost(key)) == set(meter.BANK)

    own = Bank(tmp_path / "own")
    plan = bank.read_plan(key)
    alone = Worker(str(own.root), plan.settings, Workers(batch_size=1))
    images = list(some.images.numpy())
    for begin in range(0, 12, 5):
        edits = plan.edits[begin : begin + 5]
        alone.edit(edits, images, [e.source for e in edits], plan.fingerprints, ())
    assert [p.read_bytes() for p in own.shards()] == [p.read_bytes() for p in bank.shards()]


if __name__ == "__main__":
    cluster.join(2)
    fill(Path(sys.argv[1]), [make_pool()], EDITS, batch_size=1, actors=1)
