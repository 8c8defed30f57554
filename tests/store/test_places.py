"""Places on this machine and on an object store, which is moto's S3 server on this machine."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from itertools import chain, repeat
from pathlib import Path

import planted_bank
import pytest
import torch

from autoaug_ray.commands import main
from autoaug_ray.errors import StorageError, UserError
from autoaug_ray.generate.bank import Bank
from autoaug_ray.generate.bank_files import Caption
from autoaug_ray.generate.settings import EDITS
from autoaug_ray.store import driver, meter, places
from autoaug_ray.store.files import load_state, save_state, write_whole
from autoaug_ray.store.folder import Folder, append_line
from autoaug_ray.store.places import Remote, listed, place, read_all, relative

BUCKET = "autoaug"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Store:
    """moto's server in a process of its own, which can be ended and started again."""

    def __init__(self, log):
        self.port, self.log, self.process = free_port(), log, None

    def start(self):
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        for _ in range(600):
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", self.port)) == 0:
                    break
            time.sleep(0.05)
        import boto3

        client = boto3.client(
            "s3", endpoint_url=f"http://127.0.0.1:{self.port}", region_name="us-east-1",
            aws_access_key_id="testing", aws_secret_access_key="testing",
        )  # fmt: skip
        client.create_bucket(Bucket=BUCKET)

    def stop(self):
        self.process.kill()
        self.process.wait()

    def uri(self, prefix):
        return f"s3://{BUCKET}/{prefix}?endpoint_override=127.0.0.1:{self.port}&scheme=http"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    before = dict(os.environ)
    os.environ.update(keys, AWS_EC2_METADATA_DISABLED="true")
    with open(tmp_path_factory.mktemp("moto") / "log", "w") as log:
        one = Store(log)
        one.start()
        yield one
        one.stop()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path, store):
    """A folder, and a prefix of a bucket: everything below is the same for both."""
    return tmp_path if request.param == "local" else place(store.uri(tmp_path.name))


def test_one_driver_at_a_time(root, monkeypatch):
    with driver.alone(root, print, beat=0.1):
        with pytest.raises(UserError, match=f"in use: process {os.getpid()} on"):
            with driver.alone(root, print, beat=0.1):
                pass
    with driver.alone(root, print, beat=0.1):
        pass


def test_files_are_written_read_listed_and_removed(root):
    write_whole(root / "a" / "one.txt", b"1")
    write_whole(root / "a" / "two.txt", b"22")
    write_whole(root / "a" / "below" / "three.txt", b"333")
    assert (root / "a").is_dir() and not (root / "a").is_file() and (root / "a").exists()
    assert (root / "a" / "two.txt").is_file() and (root / "a" / "two.txt").read_text() == "22"
    files = listed(root / "a", "*.txt")
    assert [f.name for f in files] == ["one.txt", "two.txt"] and files[0].stem == "one"
    assert list(read_all(files)) == [b"1", b"22"] and places.size(files[1]) == 2
    files[0].unlink()
    files[0].unlink(missing_ok=True)
    assert not files[0].exists() and listed(root / "nowhere", "*") == []
    with pytest.raises(FileNotFoundError):
        files[0].read_bytes()
    append_line(root / "lines", {"x": 1})
    append_line(root / "lines", {"y": 2})
    assert (root / "lines").read_text() == '{"x": 1}\n{"y": 2}\n'
    assert relative(root / "case" / "report.html", root) == "case/report.html"


def test_a_place_reads_what_it_says(root):
    assert place(str(root)) == root and place(root) == root
    assert str(place(str(root / "x"))) == str(root / "x")


def test_rows_checkpoints_and_ledger_of_a_study(root):
    folder = Folder(root / "study")
    assert folder.read_rows() == [] and folder.load_checkpoint("k") is None
    row = {"run_key": "k", "epoch": 1, "log": {"x": 1.5}, "bank_hours": {}, "finished": False}
    folder.write_rows("k", [row])
    folder.write_rows("k", [row, row | {"epoch": 2, "finished": True}])
    folder.write_rows("other", [row | {"run_key": "other"}])
    assert [r["epoch"] for r in folder.read_rows("k")] == [1, 2]
    assert len(folder.read_rows()) == 3 and list(folder.finished()) == ["k"]
    folder.save_checkpoint("k", {"epoch": 3})
    assert folder.load_checkpoint("k") == {"epoch": 3}
    folder.drop_checkpoint("k")
    assert folder.load_checkpoint("k") is None
    save_state(root / "s.pt", {"a": [1]})
    assert load_state(root / "s.pt") == {"a": [1]}
    for seconds in (2.0, 3.0):
        ticks = chain([0.0], repeat(seconds))
        with meter.Meter(folder.ledger, key="k", clock=ticks.__next__):
            pass
    lines = meter.read(folder.ledger, "k")
    assert [line["attempt"] for line in lines] == [1, 2]
    assert [sum(line["seconds"].values()) for line in lines] == [2.0, 3.0]


def test_a_folder_that_was_seen_is_not_made_again(tmp_path):
    folder = Folder(tmp_path / "study")
    folder.write_rows("k", [])
    folder.check()
    folder.root.rename(tmp_path / "away")
    for write in (folder.write_rows, folder.save_checkpoint):
        with pytest.raises(StorageError, match="study.* cannot be used"):
            write("k", {})
    assert not folder.root.exists()


def test_a_ledger_on_a_store_lives_through_its_process(store, tmp_path):
    ledger = place(store.uri("beats")) / "ledger"
    code = (
        "import sys, time, os\nfrom autoaug_ray.store import meter\n"
        "from autoaug_ray.store.places import place\n"
        "m = meter.Meter(place(sys.argv[1]), key='k', heartbeat=0.1)\n"
        "time.sleep(1.0); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(ledger)]).returncode == 9
    (line,) = meter.read(ledger)
    assert 0.5 < line["seconds"]["other"] < 3.0
    assert meter.Meter(ledger, key="k").attempt == 2


def test_a_quarantine_and_its_bank(root):
    bank = Bank(root / "bank")
    assert bank.shards() == [] and bank.quarantined() == {} and bank.captions() == {}
    bank.quarantine("one", ["a"], "broken")
    bank.quarantine("two", ["b"], "broken too")
    assert [line["error"] for line in bank.quarantined().values()] == ["broken", "broken too"]


def test_a_bank_holds_the_same_bytes_on_a_store(store, tmp_path):
    banks = [Bank(tmp_path / "bank"), Bank(place(store.uri("bank")))]
    for bank in banks:
        key, edits = planted_bank.make_plan(bank, planted_bank.make_pool())
        planted_bank.write(bank, edits[:10])
        planted_bank.write(bank, edits[10:])
        bank.write_captions([Caption("hash", "cat", "a photo of", "blip", " asleep")])
    local, remote = banks
    assert local.plans() == remote.plans() == [key] and local.captions() == remote.captions()
    assert [p.read_bytes() for p in local.shards()] == [p.read_bytes() for p in remote.shards()]
    assert remote.missing([e.key for e in edits]) == [] and remote.verify() == []
    assert torch.equal(
        local.variants(key, planted_bank.of(*EDITS), planted_bank.SHAPE).images,
        remote.variants(key, planted_bank.of(*EDITS), planted_bank.SHAPE).images,
    )
    assert main(["bank", "--bank", str(remote.root), "ls"]) == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ftp://x/y", "unknown kind 'ftp'"),
        ("s3:///y", "no bucket; expected s3://bucket/prefix"),
        ("s3://key:secret@bucket/y", "credentials, which belong into the environment"),
        ("s3://bucket/y?secret_key=secret", "credentials, which belong into the environment"),
    ],
)
def test_wrong_uris_are_one_sentence_without_secrets(text, words):
    with pytest.raises(UserError) as error:
        place(text)
    assert words in str(error.value) and "secret@" not in str(error.value)
    assert "=secret" not in str(error.value)


def test_an_unusable_store_is_said_before_any_work(store, capsys):
    uri = store.uri("x").replace(BUCKET, "nobody-made-this", 1)
    assert main(["--storage", uri]) == 2
    assert f"error: storage {uri}: cannot be used (" in capsys.readouterr().err
    assert main(["--storage", "s4://bucket/x"]) == 2
    assert "unknown kind 's4'; allowed:" in capsys.readouterr().err


def test_a_bucket_that_is_gone_is_not_waited_for(store):
    root = place(store.uri("x").replace(BUCKET, "nobody-made-this", 1))
    with pytest.raises(
        StorageError, match="nobody-made-this/x/a.* cannot be used .*NO_SUCH_BUCKET"
    ):
        write_whole(root / "a", b"1")


def test_an_outage_is_waited_out_or_ends_the_run(store, monkeypatch):
    root = place(store.uri("outage"))
    write_whole(root / "before", b"1")
    monkeypatch.setattr(places, "PATIENCE", 2.0)
    store.stop()
    try:
        with pytest.raises(StorageError, match=r"outage/x\?.*did not answer for"):
            write_whole(root / "x", b"1")
        monkeypatch.setattr(places, "PATIENCE", 120.0)
        thread = threading.Timer(2.0, store.start)
        thread.start()
        write_whole(root / "x", b"2")
        thread.join()
        assert (root / "x").read_bytes() == b"2"
    finally:
        if store.process.poll() is not None:
            store.start()


@pytest.mark.nightly
@pytest.mark.ray
def test_a_study_on_a_store_is_the_study_on_a_disk(store, real_study, capsys):
    uri, path = store.uri("runs"), str(real_study.yaml)
    assert main([path, "--storage", uri]) == 0
    printed = capsys.readouterr().out
    assert f"report: {place(uri) / 'tiny' / 'report.html'}" in printed
    remote, local = Folder(place(uri) / "tiny"), Folder(real_study.root)
    rows = [
        {(r["run_key"], r["epoch"]): r["test_accuracy"] for r in f.read_rows()}
        for f in (remote, local)
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 6
    assert b"<html" in (remote.root / "report.html").read_bytes()
    assert (remote.policy("bilevel", 0) / "policy.pt").is_file()
    assert main([path, "--storage", uri, "--resume"]) == 0
    assert "6 of 6 runs are on disk already" in capsys.readouterr().out
    assert main([path, "--storage", uri]) == 2
    assert "holds rows of an earlier run; add --resume" in capsys.readouterr().err
    assert not (real_study.yaml.parent / "s3:").exists() and not Path("s3:").exists()
    json.loads((remote.root / "study.json").read_text())
    assert isinstance(remote.root, Remote)
