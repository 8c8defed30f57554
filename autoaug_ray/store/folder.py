"""A study's folder, on disk or on a store that many machines share: rows, checkpoints, policies.

    OUT/<study>/
      study.json             the study as it was run
      data.json              the classes, and a fingerprint of the images (see data.fingerprint)
      calibration.json       a few steps of every entry, measured side by side (see .calibration)
      rows/<run key>.parquet one row per epoch of one run (see ROW)
      checkpoints/<key>.pt   the state of a run that is not finished
      policies/<label>/seed-<n>/   policy.pt and policy.yaml (see autoaug_ray.policy)
      ledger/                the meter's
      outcomes.jsonl         how every run that has ended did so (see autoaug_ray.schedule.queue)
      bill/, bill.txt        what the machines cost meanwhile (see store.bill), and in words
      driver.lock, driver.json     the process that runs the study (see store.driver)
      bank_faults.txt        what went wrong with the generated images that the study mixes
      summary.parquet        one row per entry (see autoaug_ray.report.results)
      report.html, *.png     the page and its figures
      trials/                Ray Tune's own files

A run's name is the hash of its settings, so a file is either what is wanted or not there: nothing
computed under other settings can be taken for it, and a study can be resumed, lengthened or given
more seeds without doing anything twice.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from autoaug_ray.errors import StorageError, UserError, storing
from autoaug_ray.store.files import load_state, read_lines, reading, save_state, write_whole
from autoaug_ray.store.places import Place, Remote, listed, read_all

STEP_WORK = pa.struct(
    [
        ("logged", pa.string()),  # by what a step logs: steps of one kind do the same work
        ("steps", pa.int64()),
        *((name, pa.float64()) for name in ("q1", "median", "q3")),
    ]
)

ROW = pa.schema(
    [
        ("run_key", pa.string()),  # hash of the settings; the name of the file
        ("label", pa.string()),  # of the entry in the study
        ("method", pa.string()),
        ("phase", pa.string()),  # search | final
        ("seed", pa.int64()),
        ("index", pa.int64()),  # of the trial within the entry's search
        ("used_key", pa.string()),  # the same hash, from what the trainer really held
        ("settings", pa.string()),  # the run as JSON
        ("epoch", pa.int64()),  # 1..epochs
        ("epochs", pa.int64()),
        ("train_loss", pa.float64()),  # mean over the steps of the epoch
        ("val_accuracy", pa.float64()),  # [0, 1]; null in a final run
        ("test_accuracy", pa.float64()),  # [0, 1]; only in the last row of a final run
        ("test_top5", pa.float64()),  # [0, 1], where test_accuracy is; null with 5 classes or fewer
        ("test_right", pa.binary()),  # where test_accuracy is: a byte per image, 1 if it was right
        ("class_accuracy", pa.list_(pa.float64())),  # per class, where test_accuracy is
        ("class_counts", pa.list_(pa.int64())),  # training images per class, in the run's pool
        ("imbalance_nominal", pa.float64()),  # the study's factor, if it has one
        ("imbalance_effective", pa.float64()),  # smallest / largest of class_counts
        ("kinds", pa.list_(pa.string())),  # of images that the method mixes, identity first
        ("alpha", pa.list_(pa.list_(pa.float64()))),  # class x kind: probabilities after the epoch
        ("found", pa.string()),  # JSON: hyperparameters that a learning run found; its last row
        ("bank_plan", pa.string()),  # of the generated images that the run needs
        ("generated", pa.int64()),  # how many of them it may draw
        ("bank_hours", pa.map_(pa.string(), pa.float64())),  # billed for them, by phase
        ("bank_work", pa.map_(pa.string(), pa.float64())),  # device-seconds of it, by phase
        ("displacement", pa.float64()),  # delivered strength: mean pixels per image
        ("color_change", pa.float64()),  # delivered strength: mean change in [0, 1] units
        ("log", pa.map_(pa.string(), pa.float64())),  # the method's own figures
        ("samples", pa.binary()),  # PNG: the probe images as trained on, some epochs of a final
        ("device", pa.string()),
        ("share", pa.float64()),  # devices held
        ("threads", pa.int64()),  # of torch
        ("channels_last", pa.bool_()),  # memory format of the classifier
        ("reuse_actors", pa.bool_()),  # whether a process may train one run after the other
        ("attempt", pa.int64()),
        ("device_hours", pa.float64()),  # billed so far, all attempts and phases
        ("device_hours_training", pa.float64()),  # so far, without evaluation and overhead
        ("clock", pa.string()),  # what measured the work
        ("step_work", pa.list_(STEP_WORK)),  # device-seconds per step of the epoch
        ("work", pa.float64()),  # device-seconds: all steps, and what was found after the last
        ("work_after", pa.float64()),  # the part of it that is no step
        ("finished", pa.bool_()),  # true in the last row of a whole run
    ]
)

SEAL, UNSEALED = b"seal", b"autoaug_ray.sha256:" + 64 * b"0"

TIMES = (
    "bank_hours", "bank_work", "device_hours", "device_hours_training", "step_work", "work",
    "work_after",
)  # fmt: skip
"""Columns that differ when the same run is done again; all others, but `attempt`, are the same."""

MAPS = [field.name for field in ROW if pa.types.is_map(field.type)]


class Folder:
    """The places of one study."""

    def __init__(self, root: Place) -> None:
        self.root, self._seen = root, False
        self.rows, self.checkpoints = root / "rows", root / "checkpoints"
        self.ledger, self.policies, self.trials = (
            root / "ledger", root / "policies", root / "trials",
        )  # fmt: skip
        self.outcomes, self.bill = root / "outcomes.jsonl", root / "bill.txt"
        self.data = root / "data.json"
        self.bank_faults, self.calibration = root / "bank_faults.txt", root / "calibration.json"

    def check(self) -> None:
        """Raise StorageError if the folder was deleted.

        Call this first: from then on writes never recreate it.
        """
        if not isinstance(self.root, Remote) and not self.root.is_dir():
            raise StorageError(f"{self.root} cannot be used (it is not there any more).")
        self._seen = True

    def note_data(self, fingerprint: str, classes: Sequence[str]) -> None:
        """Writes what the runs of this folder train on. Raises UserError if that was other data.

        A folder without runs, and one of a version that did not note its data, takes any.
        """
        about = {"fingerprint": fingerprint, "classes": list(classes)}
        before = self._read_data()
        if self.rows.exists() and before not in (None, about):
            raise UserError(
                f"{self.root} holds runs on other data than dataset.root has now: give --out "
                "another folder, or put the images back as they were."
            )
        if before != about:
            write_whole(self.data, json.dumps(about, indent=1).encode())

    def classes(self) -> tuple[str, ...]:
        """The names of the classes in the order of their labels; () if they were not noted."""
        return tuple((self._read_data() or {}).get("classes", ()))

    def _read_data(self) -> dict[str, Any] | None:
        if not self.data.exists():
            return None
        with reading(self.data, "delete it, and --resume notes anew what it trains on"):
            about: dict[str, Any] = json.loads(self.data.read_bytes())
            return about

    def policy(self, label: str, seed: int) -> Place:
        return self.policies / label / f"seed-{seed}"

    def write_rows(self, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes all rows of a run so far; a reader sees the old file or the new one, whole."""
        columns = {
            name: [
                list((row.get(name) or {}).items()) if name in MAPS else row.get(name)
                for row in rows
            ]
            for name in ROW.names
        }
        buffer = io.BytesIO()
        schema = ROW.with_metadata({SEAL: UNSEALED})
        pq.write_table(pa.table(columns, schema=schema), buffer)
        data = _sealed(buffer.getvalue())
        write_whole(self.rows / f"{key}.parquet", data, parents=not self._seen)

    def read_rows(self, key: str | None = None) -> list[dict[str, Any]]:
        """The rows of one run, or of all, as dicts, in which columns of MAPS are dicts."""
        if key is None:
            paths = listed(self.rows, "*.parquet")
        else:
            path = self.rows / f"{key}.parquet"
            paths = [path] if path.exists() else []
        rows = [
            row
            for path, data in zip(paths, read_all(paths), strict=True)
            for row in _rows_of(path, data)
        ]
        return [row | {name: dict(row.get(name) or ()) for name in MAPS} for row in rows]

    def finished(self) -> dict[str, dict[str, Any]]:
        """The last row of every whole run, by key."""
        return {row["run_key"]: row for row in self.read_rows() if row["finished"]}

    def read_outcomes(self) -> list[Mapping[str, Any]]:
        """How every run that has ended did so, in the order of their ends.

        A line that is not whole does not count, and its run is done again.
        """
        return [line for line in read_lines(self.outcomes) if "run" in line and "outcome" in line]

    def save_checkpoint(self, key: str, state: Mapping[str, Any]) -> None:
        save_state(self.checkpoints / f"{key}.pt", state, parents=not self._seen)

    def load_checkpoint(self, key: str) -> dict[str, Any] | None:
        path = self.checkpoints / f"{key}.pt"
        remedy = "delete it, and --resume trains the run from its beginning"
        return load_state(path, remedy) if path.exists() else None

    def drop_checkpoint(self, key: str) -> None:
        (self.checkpoints / f"{key}.pt").unlink(missing_ok=True)


def _sealed(data: bytes) -> bytes:
    """A file of rows with the SHA-256 of all its other bytes in its footer.

    Parquet's own checksums cover neither the footer nor the heads of pages. A file of a version
    that did not seal is given back as it is.
    """
    begin = data.rfind(UNSEALED[:-64])
    if begin < 0:
        return data
    end = begin + len(UNSEALED)
    digest = hashlib.sha256(data[:begin] + data[end:]).hexdigest()
    return data[:begin] + UNSEALED[:-64] + digest.encode() + data[end:]


def _rows_of(path: Place, data: bytes) -> list[dict[str, Any]]:
    """The rows in a file's bytes. Raises DamagedFile."""
    with reading(path, "delete it, and --resume trains the run anew"):
        # From bytes: pq.read_table(path) opens a file twice, and the second may be a newer one.
        # Without threads: those that are left abort a process, at its end, that also used S3.
        if data != _sealed(data):
            raise ValueError("its checksum is another")
        table = pq.read_table(io.BytesIO(data), use_threads=False)
        rows: list[dict[str, Any]] = table.to_pylist()
        if not rows or any(row["run_key"] != path.stem for row in rows):
            raise ValueError("its rows are not those of the run that it is named after")
        return rows


def append_line(path: Place, line: Mapping[str, Any]) -> None:
    """Adds a line of JSON; rewrites the file, which must have one writer. Raises StorageError."""
    with storing(path):
        before = path.read_bytes() if path.exists() else b""
    before += b"\n" if before and not before.endswith(b"\n") else b""
    write_whole(path, before + json.dumps(line).encode() + b"\n")
