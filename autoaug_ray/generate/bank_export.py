"""The images of a plan as files that other programs read: a folder per class, or tar files."""

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from autoaug_ray.generate.bank import Bank
from autoaug_ray.generate.bank_files import folder_name
from autoaug_ray.generate.plan import Edit
from autoaug_ray.generate.settings import EDITS, ImageKind


def export_imagefolder(
    bank: Bank, plan_key: str, out: Path, kinds: Sequence[ImageKind] = EDITS, *,
    sources: bool = True,
) -> int:  # fmt: skip
    """Writes CLASS/SOURCE-KIND-NUMBER.png (or .jpg) below `out`; returns how many files.

    Rejected images are left out. The real images are written as the bank keeps them, which above
    64 pixels a side is JPEG.
    """
    written = 0
    for image in _images(bank, plan_key, kinds, sources=sources):
        folder = out / folder_name(image.class_name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{image.stem}.{_ending(image.encoded)}").write_bytes(image.encoded)
        written += 1
    return written


def export_webdataset(
    bank: Bank, plan_key: str, out: Path, kinds: Sequence[ImageKind] = EDITS, *,
    per_tar: int = 10_000, sources: bool = True,
) -> int:  # fmt: skip
    """Writes 000000.tar, ... with an image, its .cls (number of the class) and its .json (its row).

    Returns how many samples. Rejected images are left out, as in `export_imagefolder`.
    """
    classes = bank.read_plan(plan_key).classes
    out.mkdir(parents=True, exist_ok=True)
    written = 0
    with ExitStack() as stack:
        for image in _images(bank, plan_key, kinds, sources=sources):
            if written % per_tar == 0:
                stack.close()
                tar = stack.enter_context(tarfile.open(out / f"{written // per_tar:06d}.tar", "w"))
            for ending, content in (
                (_ending(image.encoded), image.encoded),
                ("cls", str(classes.index(image.class_name)).encode()),
                ("json", json.dumps(image.row).encode()),
            ):
                member = tarfile.TarInfo(f"{image.stem}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            written += 1
    return written


class _Image(NamedTuple):
    stem: str  # of its file's name
    class_name: str
    encoded: bytes  # PNG or JPEG
    row: dict[str, Any]


def _images(
    bank: Bank, plan_key: str, kinds: Sequence[ImageKind], *, sources: bool
) -> Iterator[_Image]:
    """All images that are exported: the sources first, if asked for, and then the edits."""
    plan = bank.read_plan(plan_key)
    if sources:
        for row in bank.sources(plan_key):
            name = row["class_name"]
            about = {"class": name, "kind": "identity", "source_hash": row["hash"]}
            yield _Image(f"{row['position']:06d}-identity", name, row["image"], about)
    by_key: dict[str, list[Edit]] = {}
    for edit in plan.edits:
        if edit.kind in kinds:
            by_key.setdefault(edit.key, []).append(edit)
    for key, encoded, reject in bank.encoded(by_key):
        for edit in by_key[key] if reject is None else ():
            stem = f"{edit.source:06d}-{edit.kind}-{edit.number:03d}"
            about = {
                "class": edit.class_name, "kind": edit.kind, "source_hash": edit.source_hash,
                "prompt": edit.prompt, "caption_of": edit.caption_of, "note": edit.note,
                "seed": edit.seed, "key": key, "plan": plan_key,
            }  # fmt: skip
            yield _Image(stem, edit.class_name, encoded, about)


def _ending(data: bytes) -> str:
    return "png" if data.startswith(b"\x89PNG") else "jpg"
