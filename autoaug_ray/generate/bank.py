"""The bank of edited images: a folder that any study may read and add to.

    BANK/
      shards/<name>.parquet      edited images and where each comes from (see SHARD)
      captions/<name>.parquet    what images show, as text after a prefix (see CAPTIONS)
      plans/<plan key>.parquet   the table of edits of one pool under one setting (see PLAN)
      plans/<plan key>-sources.parquet   that pool's own images, so that a bank can be looked at
      tokens/<fingerprint>.safetensors   learned words
      ledger/                    the meter's; a shard's work is under the shard's name
      quarantine.jsonl           shards that failed again and again, and why

A shard's name is the hash of its keys and its bytes hold no time, place or attempt: whoever makes
it makes the same file, so that files are written whole, never changed and need no lock.
"""

import hashlib
import io
import json
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from autoaug_ray.errors import UserError
from autoaug_ray.generate.plan import (
    Edit,
    Fingerprints,
    Pool,
    caption_key,
    content_hash,
    edit_key,
    guard,
    neighbours_name,
)
from autoaug_ray.generate.settings import EDITS, Generation, ImageKind
from autoaug_ray.store import meter
from autoaug_ray.store.folder import append_line, write_whole
from autoaug_ray.store.places import Place, listed, opened

LOSSLESS = 64
"""Images up to this many pixels a side are PNG; larger ones JPEG, a quarter of the size."""

SHARD = pa.schema(
    [
        ("key", pa.string()),  # plan.edit_key of the columns below
        ("image", pa.binary()),  # PNG or JPEG
        ("height", pa.int64()),  # pixels; as the source's
        ("width", pa.int64()),
        ("channels", pa.int64()),
        ("source_hash", pa.string()),
        ("class_name", pa.string()),
        ("prompt", pa.string()),
        ("strength", pa.float64()),
        ("guidance", pa.float64()),
        ("calls", pa.int64()),
        ("solver", pa.string()),
        ("size", pa.int64()),  # pixels that the model worked at; null: its own
        ("precision", pa.string()),
        ("seed", pa.int64()),
        ("generator", pa.string()),  # fingerprints
        ("tokens", pa.string()),
        ("reject", pa.string()),  # why nothing should train on it; null: it may
        ("checksum", pa.string()),  # SHA-256 of `image`
    ]
)
CAPTIONS = pa.schema(
    [
        ("key", pa.string()),  # plan.caption_key of the next four
        ("image_hash", pa.string()),
        ("name", pa.string()),  # of the class, as prompts say it
        ("prefix", pa.string()),
        ("captioner", pa.string()),  # fingerprint
        ("continuation", pa.string()),  # the text after the prefix
    ]
)
PLAN = pa.schema(
    [
        ("source", pa.int64()),
        ("source_hash", pa.string()),
        ("class_name", pa.string()),
        ("kind", pa.string()),
        ("number", pa.int64()),
        ("prompt", pa.string()),
        ("caption_of", pa.string()),
        ("caption", pa.string()),
        ("note", pa.string()),
        ("seed", pa.int64()),
        ("key", pa.string()),
    ]
)
SOURCES = pa.schema(
    [
        ("position", pa.int64()),
        ("hash", pa.string()),  # of the image before it was encoded
        ("class_name", pa.string()),
        ("image", pa.binary()),
    ]
)


@dataclass(frozen=True)
class Plan:
    """A plan as the bank holds it."""

    key: str
    edits: list[Edit]  # by source, then kind, then number
    images: int  # in the pool
    kinds: tuple[ImageKind, ...]
    classes: tuple[str, ...]
    settings: Generation
    fingerprints: Fingerprints


@dataclass(frozen=True)
class Variants:
    """The edited images that a training draws from, as one tensor."""

    images: Tensor  # (N, channels, height, width) uint8
    start: Tensor  # (n, kinds) int64; n: images in the pool
    count: (
        Tensor  # (n, kinds) int64; image i, kind k: images[start[i, k] : start[i, k]+count[i, k]]
    )
    missing: dict[ImageKind, int]
    """Edits that are not there because their shard is in quarantine."""
    rejected: dict[ImageKind, int]
    duplicate: dict[ImageKind, int]
    """Edits that equal their source, or another edit of the same source and kind."""


class Caption(NamedTuple):
    """A row of captions/, without its key."""

    image_hash: str
    name: str
    prefix: str
    captioner: str
    continuation: str

    @property
    def key(self) -> str:
        return caption_key(*self[:4])


class Bank:
    """The places of one bank. Reading needs neither Ray nor a generative model."""

    def __init__(self, root: Place) -> None:
        self.root = root
        self.shards_folder, self.captions_folder = root / "shards", root / "captions"
        self.plans_folder, self.tokens_folder = root / "plans", root / "tokens"
        self.ledger, self.quarantine_file = root / "ledger", root / "quarantine.jsonl"
        self._keys: dict[Place, list[str]] = {}
        """Of files that were read already; they never change."""

    # Shards

    def shards(self) -> list[Place]:
        return listed(self.shards_folder, "*.parquet")

    def index(self) -> dict[str, Place]:
        """The shard of every image, by key."""
        return {key: path for path in self.shards() for key in self._keys_of(path)}

    def has(self, key: str) -> bool:
        return key in self.index()

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those that no shard holds, once each, in the order given."""
        held = self.index()
        return [key for key in dict.fromkeys(keys) if key not in held]

    def shard_path(self, keys: Sequence[str]) -> Place:
        return self.shards_folder / f"{shard_name(keys)}.parquet"

    def write_shard(
        self,
        edits: Sequence[Edit],
        images: Sequence[Tensor],
        rejects: Sequence[str | None],
        settings: Generation,
        fingerprints: Fingerprints,
    ) -> Place:
        """Images (c, h, w) uint8, one per edit; `rejects`: why not to use one, or None."""
        with ThreadPoolExecutor(4) as threads:  # a large JPEG takes as long as a third of its edit
            encoded = list(threads.map(encode, images))
        columns: dict[str, list[Any]] = {
            "key": [e.key for e in edits],
            "image": encoded,
            "channels": [i.shape[0] for i in images],
            "height": [i.shape[1] for i in images],
            "width": [i.shape[2] for i in images],
            "source_hash": [e.source_hash for e in edits],
            "class_name": [e.class_name for e in edits],
            "prompt": [e.prompt for e in edits],
            **{
                field: [getattr(settings, field)] * len(edits)
                for field in ("strength", "guidance", "calls", "solver", "size", "precision")
            },
            "seed": [e.seed for e in edits],
            "generator": [fingerprints.generator] * len(edits),
            "tokens": [fingerprints.tokens] * len(edits),
            "reject": list(rejects),
            "checksum": [hashlib.sha256(data).hexdigest() for data in encoded],
        }
        path = self.shard_path(columns["key"])
        _write(path, {name: columns[name] for name in SHARD.names}, SHARD)
        return path

    # Captions

    def captions(self) -> dict[str, str]:
        """Every continuation there is, by key."""
        out: dict[str, str] = {}
        for path in listed(self.captions_folder, "*.parquet"):
            table = _read(path, ["key", "continuation"])
            out |= dict(zip(*(table[c].to_pylist() for c in table.column_names), strict=True))
        return out

    def caption_path(self, keys: Sequence[str]) -> Place:
        return self.captions_folder / f"{shard_name(keys)}.parquet"

    def write_captions(self, captions: Sequence[Caption]) -> Place:
        columns: dict[str, list[Any]] = {"key": [c.key for c in captions]}
        columns |= {name: [getattr(c, name) for c in captions] for name in CAPTIONS.names[1:]}
        path = self.caption_path(columns["key"])
        _write(path, columns, CAPTIONS)
        return path

    # Plans

    def plans(self) -> list[str]:
        return sorted(p.stem for p in listed(self.plans_folder, "*.parquet") if "-" not in p.stem)

    def plan_path(self, plan_key: str) -> Place:
        return self.plans_folder / f"{plan_key}.parquet"

    def write_plan(
        self,
        plan_key: str,
        edits: Sequence[Edit],
        pool: Pool,
        kinds: Sequence[ImageKind],
        settings: Generation,
        fingerprints: Fingerprints,
    ) -> None:
        """The table and the pool's own images. Raises UserError for an edit from outside it."""
        guard(edits, pool.hashes)
        sources: dict[str, list[Any]] = {
            "position": list(range(len(pool.hashes))),
            "hash": list(pool.hashes),
            "class_name": [pool.classes[label] for label in pool.labels.tolist()],
            "image": [encode(image) for image in pool.images.cpu()],
        }
        # First: a plan that is there has all that belongs to it.
        _write(self.plans_folder / f"{plan_key}-sources.parquet", sources, SOURCES)
        about = {
            "images": len(pool.hashes),
            "kinds": list(kinds),
            "classes": list(pool.classes),
            "settings": settings.model_dump(mode="json"),
            "fingerprints": fingerprints._asdict(),
        }
        rows: list[list[Any]] = [list(c) for c in zip(*edits, strict=True)] or [[]] * len(PLAN)
        schema = PLAN.with_metadata({"about": json.dumps(about)})
        _write(self.plan_path(plan_key), dict(zip(PLAN.names, rows, strict=True)), schema)

    def read_plan(self, plan_key: str) -> Plan:
        """Raises UserError if there is no such plan."""
        path = self.plan_path(plan_key)
        if plan_key not in self.plans():  # nor is a path a key
            raise UserError(
                f"bank {self.root}: no plan {plan_key}; known: {', '.join(self.plans()) or 'none'}."
            )
        table = _read(path)
        about = json.loads(table.schema.metadata[b"about"])
        columns = [table[name].to_pylist() for name in PLAN.names]
        return Plan(
            key=plan_key,
            edits=[Edit(*row) for row in zip(*columns, strict=True)],
            images=about["images"],
            kinds=tuple(about["kinds"]),
            classes=tuple(about["classes"]),
            settings=Generation.model_validate(about["settings"]),
            fingerprints=Fingerprints(**about["fingerprints"]),
        )

    def sources(self, plan_key: str) -> list[dict[str, Any]]:
        """The pool's own images as rows of SOURCES, by position."""
        rows: list[dict[str, Any]] = _read(
            self.plans_folder / f"{plan_key}-sources.parquet"
        ).to_pylist()
        return rows

    def tokens_path(self, fingerprint: str) -> Place:
        return self.tokens_folder / f"{fingerprint}.safetensors"

    # Quarantine

    def quarantine(self, name: str, keys: Sequence[str], error: str) -> None:
        append_line(self.quarantine_file, {"shard": name, "keys": list(keys), "error": error})

    def quarantined(self) -> dict[str, dict[str, Any]]:
        """What is set aside, by the shard's name: its keys and its error."""
        if not self.quarantine_file.is_file():
            return {}
        lines = map(json.loads, self.quarantine_file.read_text().splitlines())
        return {line["shard"]: line for line in lines}

    # Use

    def variants(
        self,
        plan_key: str,
        kinds: Sequence[ImageKind],
        shape: tuple[int, int, int],
        hashes: Sequence[str] | None = None,
    ) -> Variants:
        """The images of a plan for a training; `shape`: (channels, height, width) of each.

        `hashes`: of the images that the training may see, in its order; a plan that does not
        belong to exactly these raises UserError. So does a plan that is not filled.
        """
        if hashes is not None:
            plan = self.read_plan(plan_key)
            guard(plan.edits, hashes)
            if plan.images != len(hashes):
                raise UserError(
                    f"plan {plan_key} is of {plan.images} images, the pool has {len(hashes)}."
                )
        return _variants(self.root, plan_key, tuple(kinds), tuple(shape))

    def cost(self, plan_key: str, kinds: Sequence[ImageKind]) -> dict[str, float]:
        """Device-seconds by phase that the images of these kinds of this plan took.

        All attempts of a shard count, divided among its images: who needs half of a shard pays for
        half of it, whoever made it. Learned words were learned for this pool, and cost all of it.
        """
        plan = self.read_plan(plan_key)
        edits = [e for e in plan.edits if e.kind in kinds]
        spent = self.spent()
        out = dict.fromkeys(meter.BANK, 0.0)
        needed = {e.key for e in edits}
        holders: dict[str, Sequence[str]] = {p.stem: self._keys_of(p) for p in self.shards()}
        holders |= {name: line["keys"] for name, line in self.quarantined().items()}
        for name, keys in holders.items():
            if used := len(needed.intersection(keys)):
                out["generate"] += spent.get(name, 0.0) * used / len(keys)
        captions = {e.caption for e in edits if e.caption is not None}
        for path in listed(self.captions_folder, "*.parquet"):
            keys = self._keys_of(path)
            if used := len(captions.intersection(keys)):
                out["caption"] += spent.get(path.stem, 0.0) * used / len(keys)
        if captions:  # what the linter counted, and which classes are near
            out["caption"] += spent.get(plan_key, 0.0)
        if any(e.kind == "transfer" for e in edits):
            name = neighbours_name(plan.classes, plan.fingerprints)
            out["caption"] += spent.get(name, 0.0)
        if plan.fingerprints.tokens is not None and edits:
            out["invert"] += spent.get(plan.fingerprints.tokens, 0.0)
        return out

    def spent(self) -> dict[str, float]:
        """Device-seconds of every name in the ledger, all attempts."""
        out: defaultdict[str, float] = defaultdict(float)
        for line in meter.read(self.ledger):
            out[line["run"]] += meter.spent(line)
        return dict(out)

    def faults(self, plan_key: str) -> list[str]:
        """What went wrong while the plan's edits were made, a sentence each; nothing if all did
        well."""
        needed = {edit.key for edit in self.read_plan(plan_key).edits}
        aside = {
            name: line
            for name, line in self.quarantined().items()
            if needed.intersection(line["keys"])
        }
        names = {path.stem for path in self.shards() if needed.intersection(self._keys_of(path))}
        lines = [line for line in meter.read(self.ledger) if line["run"] in names | aside.keys()]
        last = {line["run"]: line["attempt"] for line in lines}
        again = [line for line in lines if line["attempt"] < last[line["run"]]]
        out = []
        if again:
            hours = sum(map(meter.spent, again)) / 3600
            out.append(
                f"Attempts at shards of generated images that failed and were made again: "
                f"{len(again)} ({hours:.2g} device-hours)."
            )
        out += [
            f"Shard {name} of {len(line['keys'])} generated images is set aside, since it failed "
            f"every time ({line['error']})."
            for name, line in aside.items()
        ]
        if rows := [line["rows"] for line in lines if "rows" in line]:
            out.append(
                f"Memory was too small for as many generated images at a time as were asked for: "
                f"{min(rows)} instead."
            )
        return out

    def encoded(self, keys: Iterable[str]) -> Iterator[tuple[str, bytes, str | None]]:
        """Key, encoded image and reject reason of those that are there, shard by shard."""
        wanted, index = set(keys), self.index()
        for path in sorted({index[key] for key in wanted if key in index}, key=str):
            table = _read(path, ["key", "image", "reject"])
            for key, image, reject in zip(*(c.to_pylist() for c in table.columns), strict=True):
                if key in wanted:
                    yield key, image, reject

    # Care

    def verify(self) -> list[str]:
        """What is wrong in this folder, a sentence each; nothing if all is well."""
        problems: list[str] = []
        seen: dict[str, str] = {}
        for path in self.shards():
            problems += [f"shards/{path.name}: {p}" for p in _check_shard(path)]
            for key in _keys_or_none(path):
                if key in seen:
                    problems.append(f"shards/{path.name}: {key} is in {seen[key]} too")
                seen[key] = f"shards/{path.name}"
        for path in listed(self.captions_folder, "*.parquet"):
            problems += [f"captions/{path.name}: {p}" for p in _check_captions(path)]
        for plan_key in self.plans():
            problems += [f"plans/{plan_key}.parquet: {p}" for p in self._check_plan(plan_key)]
        for path in listed(self.tokens_folder, "*.safetensors"):
            if not _is_safetensors(path):
                problems.append(f"tokens/{path.name}: not a whole safetensors file")
        return problems

    def export_imagefolder(
        self, plan_key: str, out: Path, kinds: Sequence[ImageKind] = EDITS, *, sources: bool = True
    ) -> int:
        """CLASS/SOURCE-KIND-NUMBER.png (or .jpg) below `out`; returns how many files.

        Without what was rejected. The real images are written as the bank keeps them, which above
        64 pixels a side is JPEG.
        """
        written = 0
        for stem, class_name, data, _ in self._exported(plan_key, kinds, sources=sources):
            place = out / _file_name(class_name)
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{stem}.{_ending(data)}").write_bytes(data)
            written += 1
        return written

    def export_webdataset(
        self, plan_key: str, out: Path, kinds: Sequence[ImageKind] = EDITS, *,
        per_tar: int = 10_000, sources: bool = True,
    ) -> int:  # fmt: skip
        """000000.tar, ... with an image, its .cls (number of the class) and its .json (its row).

        Returns how many samples. What was rejected is left out, as in `export_imagefolder`.
        """
        classes = self.read_plan(plan_key).classes
        out.mkdir(parents=True, exist_ok=True)
        tar: tarfile.TarFile | None = None
        number = -1
        for number, (stem, class_name, data, row) in enumerate(
            self._exported(plan_key, kinds, sources=sources)
        ):
            if number % per_tar == 0:
                if tar is not None:
                    tar.close()
                tar = tarfile.open(out / f"{number // per_tar:06d}.tar", "w")
            assert tar is not None
            for ending, content in (
                (_ending(data), data),
                ("cls", str(classes.index(class_name)).encode()),
                ("json", json.dumps(row).encode()),
            ):
                member = tarfile.TarInfo(f"{stem}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        if tar is not None:
            tar.close()
        return number + 1

    def _exported(
        self, plan_key: str, kinds: Sequence[ImageKind], *, sources: bool
    ) -> Iterator[tuple[str, str, bytes, dict[str, Any]]]:
        """Name, class, encoded image and row of all that is exported."""
        plan = self.read_plan(plan_key)
        if sources:
            for row in self.sources(plan_key):
                name = row["class_name"]
                about = {"class": name, "kind": "identity", "source_hash": row["hash"]}
                yield f"{row['position']:06d}-identity", name, row["image"], about
        by_key: dict[str, list[Edit]] = {}
        for edit in plan.edits:
            if edit.kind in kinds:
                by_key.setdefault(edit.key, []).append(edit)
        for key, data, reject in self.encoded(by_key):
            for edit in by_key[key] if reject is None else ():
                stem = f"{edit.source:06d}-{edit.kind}-{edit.number:03d}"
                about = {
                    "class": edit.class_name, "kind": edit.kind, "source_hash": edit.source_hash,
                    "prompt": edit.prompt, "caption_of": edit.caption_of, "note": edit.note,
                    "seed": edit.seed, "key": key, "plan": plan_key,
                }  # fmt: skip
                yield stem, edit.class_name, data, about

    def _keys_of(self, path: Place) -> list[str]:
        if path not in self._keys:
            self._keys[path] = _read(path, ["key"])["key"].to_pylist()
        return self._keys[path]

    def _check_plan(self, plan_key: str) -> Iterator[str]:
        try:
            plan, sources = self.read_plan(plan_key), self.sources(plan_key)
            guard(plan.edits, [row["hash"] for row in sources])
        except (UserError, OSError, pa.ArrowException, KeyError, ValueError) as error:
            yield str(error)
            return
        same = _of_all(plan.settings, plan.fingerprints)
        for e in plan.edits:
            key = edit_key(source_hash=e.source_hash, prompt=e.prompt, seed=e.seed, **same)
            if key != e.key:
                yield f"{e.kind} edit {e.number} of image {e.source}: its key is not its row's"


@lru_cache(maxsize=2)
def _variants(
    root: Place, plan_key: str, kinds: tuple[ImageKind, ...], shape: tuple[int, int, int]
) -> Variants:
    """Cached: a process that runs many trials of one study decodes its images once."""
    bank = Bank(root)
    plan = bank.read_plan(plan_key)
    if unknown := [kind for kind in kinds if kind not in plan.kinds]:
        raise UserError(
            f"plan {plan_key} has no {unknown[0]} edits; it was made for {', '.join(plan.kinds)}."
        )
    column = {kind: k for k, kind in enumerate(kinds)}
    edits = [e for e in plan.edits if e.kind in column]
    held: dict[str, tuple[bytes, str | None]] = {
        key: (data, reject) for key, data, reject in bank.encoded(e.key for e in edits)
    }
    aside = {key for line in bank.quarantined().values() for key in line["keys"]}
    if lost := len({e.key for e in edits} - held.keys() - aside):
        raise UserError(
            f"bank {root}: {lost} of the {len({e.key for e in edits})} images of plan {plan_key} "
            "are not made yet; start the study again to make them."
        )
    missing: Counter[ImageKind] = Counter()
    rejected: Counter[ImageKind] = Counter()
    duplicate: Counter[ImageKind] = Counter()
    used: list[Tensor] = []
    start = torch.zeros(plan.images, len(kinds), dtype=torch.int64)
    count = torch.zeros_like(start)
    seen: set[tuple[int, ImageKind, str]] = set()
    for e in edits:  # edits of one source and kind follow each other
        if e.key not in held:
            missing[e.kind] += 1
            continue
        data, reject = held[e.key]
        if reject is not None:
            rejected[e.kind] += 1
            continue
        image = decode(data)
        if tuple(image.shape) != shape:
            raise UserError(
                f"bank {root}: image {e.key} is {'x'.join(map(str, image.shape))}, the training's "
                f"are {'x'.join(map(str, shape))} (channels x height x width)."
            )
        pixels = content_hash(image)
        if pixels == e.source_hash or (e.source, e.kind, pixels) in seen:
            duplicate[e.kind] += 1
            continue
        seen.add((e.source, e.kind, pixels))
        place = e.source, column[e.kind]
        if count[place] == 0:
            start[place] = len(used)
        count[place] += 1
        used.append(image)
    return Variants(
        images=torch.stack(used) if used else torch.zeros((0, *shape), dtype=torch.uint8),
        start=start,
        count=count,
        missing={kind: missing[kind] for kind in kinds},
        rejected={kind: rejected[kind] for kind in kinds},
        duplicate={kind: duplicate[kind] for kind in kinds},
    )


def shard_name(keys: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:32]


def encode(image: Tensor) -> bytes:
    """A (1 or 3, h, w) uint8 image as PNG, or above LOSSLESS pixels a side as JPEG."""
    array = image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2] == 1 else array))
    buffer = io.BytesIO()
    if max(picture.size) <= LOSSLESS:
        picture.save(buffer, "PNG")
    else:
        picture.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def decode(data: bytes) -> Tensor:
    """What `encode` was given, (c, h, w) uint8; of a JPEG, nearly."""
    with Image.open(io.BytesIO(data)) as picture:
        array = np.array(picture)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def _of_all(settings: Generation, fingerprints: Fingerprints) -> dict[str, Any]:
    """The part of an edit's key that is the same in a whole plan."""
    return {
        "generator": fingerprints.generator, "tokens": fingerprints.tokens,
        "strength": settings.strength, "guidance": settings.guidance, "calls": settings.calls,
        "solver": settings.solver, "size": settings.size, "precision": settings.precision,
    }  # fmt: skip


def _write(path: Place, columns: Mapping[str, Sequence[Any]], schema: pa.Schema) -> None:
    """The same bytes for the same rows; images are compressed already, text is not."""
    text = [name for name in schema.names if name != "image"]
    buffer = io.BytesIO()
    pq.write_table(
        pa.table(dict(columns), schema=schema),
        buffer,
        version="2.6",
        data_page_version="1.0",
        compression={name: "ZSTD" if name in text else "NONE" for name in schema.names},
        use_dictionary=text,
        write_statistics=False,
        row_group_size=1 << 20,
    )
    write_whole(path, buffer.getvalue())


def _read(path: Place, columns: list[str] | None = None) -> pa.Table:
    # One file, not a dataset: its folder's other files are none of its business.
    return pq.ParquetFile(opened(path)).read(columns=columns, use_threads=False)


def _keys_or_none(path: Place) -> list[str]:
    try:
        keys: list[str] = _read(path, ["key"])["key"].to_pylist()
    except (OSError, pa.ArrowException, KeyError):
        return []  # _check_shard has said so
    return keys


def _checked(path: Place, schema: pa.Schema) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of a file that is named by the hash of its keys, and what is wrong with the file."""
    try:
        rows: list[dict[str, Any]] = _read(path, schema.names).to_pylist()
    except (OSError, pa.ArrowException, KeyError) as error:
        return [], [f"cannot be read ({error})"]
    if shard_name([row["key"] for row in rows]) != path.stem:
        return rows, ["its name is not the hash of its keys"]
    return rows, []


def _check_shard(path: Place) -> Iterator[str]:
    rows, faults = _checked(path, SHARD)
    yield from faults
    for row in rows:
        if hashlib.sha256(row["image"]).hexdigest() != row["checksum"]:
            yield f"{row['key']}: the image's checksum is another"
            continue
        said = (row["channels"], row["height"], row["width"])
        if (found := tuple(decode(row["image"]).shape)) != said:
            yield f"{row['key']}: the image is {found}, its row says {said}"
        fields = (
            "generator", "tokens", "source_hash", "prompt", "strength", "guidance", "calls",
            "solver", "size", "precision", "seed",
        )  # fmt: skip
        if edit_key(**{field: row[field] for field in fields}) != row["key"]:
            yield f"{row['key']}: its key does not follow from its row"


def _check_captions(path: Place) -> Iterator[str]:
    rows, faults = _checked(path, CAPTIONS)
    yield from faults
    for row in rows:
        if Caption(*(row[name] for name in CAPTIONS.names[1:])).key != row["key"]:
            yield f"{row['key']}: its key does not follow from its row"


def _is_safetensors(path: Place) -> bool:
    """Its header is JSON, and the file ends where the last tensor does."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
    except ValueError:
        return False
    ends = [t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"]
    return len(data) == 8 + length + max(ends, default=0)


def _ending(data: bytes) -> str:
    return "png" if data.startswith(b"\x89PNG") else "jpg"


def _file_name(text: str) -> str:
    return re.sub(r"^\.+|[^\w. -]", "_", text)  # `..` is no name of a folder
