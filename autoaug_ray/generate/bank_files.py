"""The files of a bank: what stands in each, how it is written, read and checked.

    BANK/
      shards/<name>.parquet      edited images and where each comes from (see SHARD)
      captions/<name>.parquet    what images show, as text after a prefix (see CAPTIONS)
      plans/<plan key>.parquet   the table of edits of one pool under one setting (see PLAN)
      plans/<plan key>-sources.parquet   that pool's own images, so that a bank can be looked at
      own/<key>.parquet          images that somebody made elsewhere, as they train (see OWN)
      tokens/<fingerprint>.safetensors   learned words
      ledger/                    the meter's; a shard's work is under the shard's name
      quarantine.jsonl           shards that failed again and again, and why

A shard's name is the hash of its keys and its bytes hold no time, place or attempt: whoever makes
it makes the same file, so that files are written whole, never changed and need no lock.
"""

import hashlib
import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from autoaug_ray.errors import UserError
from autoaug_ray.generate.plan import (
    KEYED,
    Edit,
    Fingerprints,
    Pool,
    caption_key,
    content_hash,
    edit_key,
    guard,
    key_settings,
)
from autoaug_ray.generate.settings import Drawn, Generation, ImageKind, of_all_classes
from autoaug_ray.store.files import DamagedFile, reading, write_whole
from autoaug_ray.store.places import Place, opened

LOSSLESS = 64
"""Images up to this many pixels a side are PNG; larger ones JPEG, a quarter of the size."""

AGAIN = "delete it, and --resume makes what it held again"

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
OWN = pa.schema(
    [
        ("label", pa.int64()),  # of the classes in the file's metadata
        ("hash", pa.string()),  # plan.content_hash of the image
        ("image", pa.large_binary()),  # PNG, whatever its size: it trains like a real one
    ]
)


@dataclass(frozen=True)
class Plan:
    """A plan as it is read from its file."""

    key: str
    edits: list[Edit]  # by source, then kind, then number
    images: int  # in the pool
    drawn: Drawn
    """The kinds and classes of which there are edits."""
    classes: tuple[str, ...]
    settings: Generation
    fingerprints: Fingerprints

    @property
    def kinds(self) -> tuple[ImageKind, ...]:
        return tuple(self.drawn)

    def drawn_by(self, drawn: Drawn) -> list[Edit]:
        """Those of its edits that somebody may draw, in their order."""
        cells = {(kind, self.classes[label]) for kind in drawn for label in drawn[kind]}
        return [edit for edit in self.edits if (edit.kind, edit.class_name) in cells]

    def words_of(self, edits: Iterable[Edit]) -> list[str]:
        """The names of the learned words that these edits' prompts may hold, each once."""
        used = {edit.class_name for edit in edits}
        words = [self.fingerprints.word_of(i) for i, c in enumerate(self.classes) if c in used]
        return list(dict.fromkeys(word for word in words if word is not None))


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


class EditedImage(NamedTuple):
    """What a shard says of one image to whoever uses it."""

    key: str
    encoded: bytes  # PNG or JPEG
    reject: str | None


# Names and pixels


def shard_name(keys: Sequence[str]) -> str:
    """32 hex digits that name the file with exactly these keys, in this order."""
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:32]


def folder_name(class_name: str) -> str:
    """A class's name as that of a folder."""
    return re.sub(r"^\.+|[^\w. -]", "_", class_name)  # `..` is no name of a folder


def own_key(classes: Sequence[str], labels: Sequence[int], hashes: Sequence[str]) -> str:
    """The name of one's own generated images of these classes: `own-` and 28 hex digits of what
    they show, wherever they lie and whatever their files are called."""
    text = json.dumps([list(classes), list(labels), list(hashes)])
    return f"own-{hashlib.sha256(text.encode()).hexdigest()[:28]}"


def is_own(plan_key: str) -> bool:
    """Whether a run's plan is a folder of one's own images, and no table of edits."""
    return plan_key.startswith("own-")


def encode(image: Tensor, lossless: int = LOSSLESS) -> bytes:
    """A (1 or 3, h, w) uint8 image as PNG, or above `lossless` pixels a side as JPEG."""
    array = image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2] == 1 else array))
    buffer = io.BytesIO()
    if max(picture.size) <= lossless:
        picture.save(buffer, "PNG")
    else:
        picture.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def decode(data: bytes) -> Tensor:
    """The (c, h, w) uint8 image that `encode` was given; a JPEG brings it back nearly."""
    with Image.open(io.BytesIO(data)) as picture:
        array = np.array(picture)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


# Writing


def write_shard(
    path: Place,
    edits: Sequence[Edit],
    images: Sequence[Tensor],
    rejects: Sequence[str | None],
    settings: Generation,
    fingerprints: Fingerprints,
) -> None:
    """Writes images (c, h, w) uint8, one per edit; `rejects`: why not to use one, or None."""
    with ThreadPoolExecutor(4) as threads:  # a large JPEG takes as long as a third of its edit
        encoded = list(threads.map(encode, images))
    same = key_settings(settings, fingerprints)
    rows = []
    for edit, data, image, reject in zip(edits, encoded, images, rejects, strict=True):
        about: dict[str, Any] = dict(zip(("channels", "height", "width"), image.shape, strict=True))
        about |= {"image": data, "reject": reject, "checksum": hashlib.sha256(data).hexdigest()}
        rows.append(edit._asdict() | same | about)
    _write(path, rows, SHARD)


def write_captions(path: Place, captions: Sequence[Caption]) -> None:
    _write(path, [{"key": c.key, **c._asdict()} for c in captions], CAPTIONS)


def write_sources(path: Place, pool: Pool) -> None:
    images = zip(pool.hashes, pool.labels.tolist(), pool.images.cpu(), strict=True)
    rows = [
        {"position": i, "hash": key, "class_name": pool.classes[label], "image": encode(image)}
        for i, (key, label, image) in enumerate(images)
    ]
    _write(path, rows, SOURCES)


def write_plan(path: Place, plan: Plan) -> None:
    about = {
        "images": plan.images,
        "drawn": {kind: sorted(classes) for kind, classes in plan.drawn.items()},
        "classes": list(plan.classes),
        "settings": plan.settings.model_dump(mode="json"),
        "fingerprints": plan.fingerprints._asdict(),
    }
    schema = PLAN.with_metadata({"about": json.dumps(about)})
    _write(path, [edit._asdict() for edit in plan.edits], schema)


def write_own(
    path: Place,
    images: Tensor,
    labels: Sequence[int],
    hashes: Sequence[str],
    classes: Sequence[str],
) -> None:
    """Writes images (n, c, h, w) uint8 of one's own with their labels and content hashes."""
    side = max(images.shape[2:])
    with ThreadPoolExecutor(4) as threads:
        encoded = list(threads.map(lambda image: encode(image, lossless=side), images))
    rows = [
        {"label": label, "hash": content, "image": data}
        for label, content, data in zip(labels, hashes, encoded, strict=True)
    ]
    _write(path, rows, OWN.with_metadata({"classes": json.dumps(list(classes))}))


def _write(path: Place, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    """Writes a Parquet file, the same bytes for the same rows; images are compressed already.

    What a row holds beside the schema's columns is left out.
    """
    text = [name for name in schema.names if name != "image"]
    buffer = io.BytesIO()
    pq.write_table(
        pa.Table.from_pylist(rows, schema=schema),
        buffer,
        version="2.6",
        data_page_version="1.0",
        compression={name: "ZSTD" if name in text else "NONE" for name in schema.names},
        use_dictionary=text,
        write_statistics=False,
        write_page_checksum=True,
        row_group_size=1 << 20,
    )
    write_whole(path, buffer.getvalue())


# Reading


def read_keys(path: Place) -> list[str]:
    """The keys of a file of shards/ or captions/, in the order of its rows."""
    keys: list[str] = _read(path, ["key"])["key"].to_pylist()
    return keys


def read_images(path: Place) -> list[EditedImage]:
    """The images of a shard, in the order of its rows. Raises DamagedFile."""
    table = _read(path, ["key", "image", "reject", "checksum"])
    images = []
    for key, image, reject, checksum in zip(*(c.to_pylist() for c in table.columns), strict=True):
        with reading(path, AGAIN):
            if hashlib.sha256(image).hexdigest() != checksum:
                raise ValueError(f"the checksum of the image {key} is another")
        images.append(EditedImage(key, image, reject))
    return images


def read_continuations(path: Place) -> dict[str, str]:
    """What follows the prefix, by key, of a file of captions/."""
    table = _read(path, ["key", "continuation"])
    return dict(zip(*(table[c].to_pylist() for c in table.column_names), strict=True))


def read_plan(path: Place) -> Plan:
    table = _read(path)
    about = json.loads(table.schema.metadata[b"about"])
    if "drawn" not in about:  # of a time when a plan had edits of all classes
        about["drawn"] = of_all_classes(about["kinds"], len(about["classes"]))
    mark = Fingerprints(**about["fingerprints"])
    columns = [table[name].to_pylist() for name in PLAN.names]
    return Plan(
        key=path.stem,
        edits=[Edit(*row) for row in zip(*columns, strict=True)],
        images=about["images"],
        drawn=about["drawn"],
        classes=tuple(about["classes"]),
        settings=Generation.model_validate(about["settings"]),
        fingerprints=mark._replace(words=tuple(mark.words)),
    )


def read_sources(path: Place) -> list[dict[str, Any]]:
    """The pool's own images as rows of SOURCES, by position."""
    rows: list[dict[str, Any]] = _read(path).to_pylist()
    return rows


class OwnFile(NamedTuple):
    """A file of own/: its rows, in their order, by column."""

    classes: tuple[str, ...]
    labels: list[int]
    hashes: list[str]
    encoded: list[bytes]  # PNG


def read_own(path: Place) -> OwnFile:
    table = _read(path, OWN.names)
    classes = json.loads(table.schema.metadata[b"classes"])
    return OwnFile(tuple(classes), *(table[name].to_pylist() for name in OWN.names))


def _read(path: Place, columns: list[str] | None = None) -> pa.Table:
    # One file, not a dataset: its folder's other files are none of its business.
    with reading(path, AGAIN):
        file = pq.ParquetFile(opened(path), page_checksum_verification=True)
        return file.read(columns=columns, use_threads=False)


# Checking: what is wrong with a file, a sentence each; nothing if all is well


def check_shards(paths: Iterable[Place]) -> Iterator[str]:
    """Checks every image of these files, and that no key is in two of them."""
    place_of: dict[str, str] = {}
    for path in paths:
        rows, faults = _checked(path, SHARD)
        for fault in (*faults, *itertools.chain(*map(_check_image, rows))):
            yield f"shards/{path.name}: {fault}"
        for key in (row["key"] for row in rows):
            if key in place_of:
                yield f"shards/{path.name}: {key} is in {place_of[key]} too"
            place_of[key] = f"shards/{path.name}"


def check_captions(path: Place) -> Iterator[str]:
    rows, faults = _checked(path, CAPTIONS)
    yield from faults
    for row in rows:
        if Caption(*(row[name] for name in CAPTIONS.names[1:])).key != row["key"]:
            yield f"{row['key']}: its key does not follow from its row"


def check_plan(path: Place, sources_path: Place) -> Iterator[str]:
    try:
        plan, sources = read_plan(path), read_sources(sources_path)
        guard(plan.edits, [row["hash"] for row in sources])
    except (UserError, OSError, KeyError, ValueError) as error:
        yield str(error)
        return
    same = key_settings(plan.settings, plan.fingerprints)
    for e in plan.edits:
        key = edit_key(source_hash=e.source_hash, prompt=e.prompt, seed=e.seed, **same)
        if key != e.key:
            yield f"{e.kind} edit {e.number} of image {e.source}: its key is not its row's"


def check_own(path: Place) -> Iterator[str]:
    try:
        own = read_own(path)
        found = [content_hash(decode(data)) for data in own.encoded]
    except (OSError, KeyError, ValueError, SyntaxError) as error:
        yield f"cannot be read ({error})"
        return
    if bad := sum(a != b for a, b in zip(found, own.hashes, strict=True)):
        yield f"{bad} images are not what their hashes say"
    if own_key(own.classes, own.labels, own.hashes) != path.stem:
        yield "its name is not the hash of its images"


def check_tokens(path: Place) -> Iterator[str]:
    """A safetensors file has a header of JSON, and ends where the last tensor does."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
        ends = [t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"]
        whole = len(data) == 8 + length + max(ends, default=0)
    except ValueError:
        whole = False
    if not whole:
        yield "not a whole safetensors file"


def _check_image(row: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with one row of a shard."""
    if hashlib.sha256(row["image"]).hexdigest() != row["checksum"]:
        yield f"{row['key']}: the image's checksum is another"
        return
    shape = (row["channels"], row["height"], row["width"])
    if (found := tuple(decode(row["image"]).shape)) != shape:
        yield f"{row['key']}: the image is {found}, its row says {shape}"
    if edit_key(**{field: row[field] for field in KEYED}) != row["key"]:
        yield f"{row['key']}: its key does not follow from its row"


def _checked(path: Place, schema: pa.Schema) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of a file that is named by the hash of its keys, and what is wrong with the file."""
    try:
        rows: list[dict[str, Any]] = _read(path, schema.names).to_pylist()
    except (OSError, KeyError) as error:
        return [], [f"cannot be read ({error})"]
    except DamagedFile as error:
        return [], [f"cannot be read ({error.__cause__})"]
    if shard_name([row["key"] for row in rows]) != path.stem:
        return rows, ["its name is not the hash of its keys"]
    return rows, []
