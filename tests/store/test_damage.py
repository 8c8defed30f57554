"""Files that a disk or a crash has changed: each is named, or says what it said, never another."""

import json
import random

import planted_bank
import pytest
import torch

from autoaug_ray.errors import UserError
from autoaug_ray.generate import bank_files
from autoaug_ray.generate.bank import Bank
from autoaug_ray.report.runs import read_study
from autoaug_ray.store import bill, calibration, meter
from autoaug_ray.store.files import DamagedFile, load_state, read_lines, save_state
from autoaug_ray.store.folder import Folder, append_line

FLIPS = 300


def damaged(data, number):
    """The bytes with one bit flipped, or every sixth time cut short."""
    rng = random.Random(number)
    if number % 6 == 0:
        return data[: rng.randrange(len(data))]
    changed = bytearray(data)
    bit = rng.randrange(8 * len(data))
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def try_all(path, read, same):
    """Damages a file in FLIPS ways; the number that were named. All others must read the same."""
    whole, right, named = path.read_bytes(), read(), 0
    for number in range(FLIPS):
        path.write_bytes(damaged(whole, number))
        try:
            assert same(read(), right), number
        except DamagedFile as error:
            assert str(path) in str(error) and "delete it" in str(error)
            named += 1
    path.write_bytes(whole)
    return named


def test_a_checkpoint_is_named_for_any_bit_that_counts(tmp_path):
    folder = Folder(tmp_path)
    generator = torch.Generator().manual_seed(0)
    state = {"weights": torch.randn(64, 64, generator=generator), "epoch": 3, "rows": [{"a": 0.5}]}
    folder.save_checkpoint("k", state)

    named = try_all(
        tmp_path / "checkpoints" / "k.pt",
        lambda: folder.load_checkpoint("k"),
        lambda a, b: repr(a) == repr(b) and torch.equal(a["weights"], b["weights"]),
    )
    assert named > FLIPS / 2


def test_rows_are_named_for_any_bit_that_counts(tmp_path):
    folder = Folder(tmp_path)
    rows = [
        {"run_key": "k", "label": "a", "epoch": e, "test_right": bytes(200), "train_loss": 1 / e}
        for e in range(1, 9)
    ]
    folder.write_rows("k", rows)
    named = try_all(tmp_path / "rows" / "k.parquet", folder.read_rows, lambda a, b: a == b)
    assert named > FLIPS / 8
    (tmp_path / "rows" / "k.parquet").rename(tmp_path / "rows" / "j.parquet")
    with pytest.raises(DamagedFile, match="not those of the run that it is named after"):
        folder.read_rows()


def test_generated_images_are_named_for_any_bit_that_counts(tmp_path):
    bank = Bank(tmp_path)
    _, edits = planted_bank.make_plan(bank, planted_bank.make_pool())
    shard = planted_bank.write(bank, edits)
    named = try_all(shard, lambda: bank_files.read_images(shard), lambda a, b: a == b)
    assert named > FLIPS / 4


def test_a_line_that_is_not_whole_does_not_count_and_spoils_no_other(tmp_path):
    folder = Folder(tmp_path)
    for key in ("a", "b"):
        append_line(folder.outcomes, {"run": key, "outcome": "stopped"})
    folder.outcomes.write_bytes(folder.outcomes.read_bytes()[:-4])
    append_line(folder.outcomes, {"run": "c", "outcome": "failed"})
    assert [line["run"] for line in folder.read_outcomes()] == ["a", "c"]
    folder.outcomes.write_bytes(b"\xff\xfe 1\n[1]\n" + folder.outcomes.read_bytes())
    assert [line["run"] for line in folder.read_outcomes()] == ["a", "c"]
    assert read_lines(tmp_path / "none.jsonl") == []
    ledger = tmp_path / "ledger"
    ledger.mkdir()
    (ledger / "k-001-0.jsonl").write_bytes(b'{"run": "k", "at": 1}\n\xff{"run"\n3\n')
    assert meter.read(ledger) == [{"run": "k", "at": 1}]


def test_what_a_report_reads_besides_is_named_with_what_to_do(tmp_path):
    (tmp_path / "study.json").write_bytes(b'{"name": "a", ')
    with pytest.raises(
        UserError, match=r"study.json cannot be read \(Invalid JSON.* --resume, which"
    ):
        read_study(tmp_path)
    (tmp_path / "calibration.json").write_bytes(b"{")
    with pytest.raises(UserError, match="calibration.json cannot be read .* delete it"):
        calibration.read(tmp_path / "calibration.json")
    (tmp_path / "bill").mkdir()
    (tmp_path / "bill" / "1.json").write_text(json.dumps({"began": 1.0}))
    with pytest.raises(UserError, match="1.json cannot be read .'at'.; delete it"):
        bill.read(tmp_path / "bill", [])
    save_state(tmp_path / "state.pt", {"a": 1})
    (tmp_path / "state.pt").write_bytes(b"")
    with pytest.raises(DamagedFile, match="state.pt cannot be read"):
        load_state(tmp_path / "state.pt")
    with pytest.raises(FileNotFoundError):
        load_state(tmp_path / "none.pt")


def test_other_data_than_a_folder_s_runs_are_refused(tmp_path):
    folder = Folder(tmp_path)
    folder.note_data("one", ["a", "b"])
    folder.note_data("two", ["a", "b", "c"])  # nothing has run yet
    assert folder.classes() == ("a", "b", "c")
    folder.write_rows("k", [{"run_key": "k", "label": "a", "epoch": 1}])
    folder.note_data("two", ["a", "b", "c"])
    with pytest.raises(UserError, match="holds runs on other data than dataset.root has now"):
        folder.note_data("three", ["a", "b", "c"])
    assert Folder(tmp_path / "old").classes() == ()
