"""The bank of edited images: a folder that any study may read and add to (see bank_files).

What is held, what a training draws from it, and what it cost. Reading needs neither Ray nor a
generative model.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from autoaug_ray.data import Edits
from autoaug_ray.errors import UserError
from autoaug_ray.generate import bank_files, own
from autoaug_ray.generate.bank_files import Caption, EditedImage, Plan, decode, shard_name
from autoaug_ray.generate.plan import (
    Edit,
    Fingerprints,
    Pool,
    content_hash,
    guard,
    neighbours_name,
)
from autoaug_ray.generate.settings import Drawn, Generation, ImageKind
from autoaug_ray.store import meter
from autoaug_ray.store.files import read_lines
from autoaug_ray.store.folder import append_line
from autoaug_ray.store.places import Place, listed, place


@dataclass(frozen=True)
class Variants(Edits):
    """The edited images that a training draws from, and what they lack."""

    missing: dict[ImageKind, int]
    """Edits that were never made because their shard is in quarantine."""
    rejected: dict[ImageKind, int]
    duplicate: dict[ImageKind, int]
    """Edits that equal their source, or another edit of the same source and kind."""


class Bank:
    """The places of one bank, and what was read from them.

    Other processes may add to the bank at any time. Files that never change are read once: plans,
    shards, captions, and the ledger of attempts that have ended. Which files there are, the ledger
    of attempts under way and the quarantine are looked up whenever they are asked for.
    """

    def __init__(self, root: Place) -> None:
        self.root = root
        self.shards_folder, self.captions_folder = root / "shards", root / "captions"
        self.plans_folder, self.tokens_folder = root / "plans", root / "tokens"
        self.own_folder = root / "own"
        self.ledger, self.quarantine_file = root / "ledger", root / "quarantine.jsonl"
        self._keys: dict[Place, list[str]] = {}
        self._plans: dict[str, Plan] = {}
        self._ended: dict[Place, dict[str, Any]] = {}

    # Shards

    def shards(self) -> list[Place]:
        return listed(self.shards_folder, "*.parquet")

    def index(self) -> dict[str, Place]:
        """The shard of every image, by key."""
        return {key: path for path in self.shards() for key in self._keys_of(path)}

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys that no shard holds, once each, in the order given."""
        index = self.index()
        return [key for key in dict.fromkeys(keys) if key not in index]

    def shard_path(self, keys: Sequence[str]) -> Place:
        return self.shards_folder / f"{shard_name(keys)}.parquet"

    def encoded(self, keys: Iterable[str]) -> Iterator[EditedImage]:
        """The images with these keys that the bank holds, shard by shard."""
        wanted, index = set(keys), self.index()
        for path in sorted({index[key] for key in wanted if key in index}, key=str):
            yield from (one for one in bank_files.read_images(path) if one.key in wanted)

    # Captions

    def captions(self) -> dict[str, str]:
        """Every continuation that the bank holds, by key."""
        out: dict[str, str] = {}
        for path in self._caption_files():
            out |= bank_files.read_continuations(path)
        return out

    def caption_path(self, keys: Sequence[str]) -> Place:
        return self.captions_folder / f"{shard_name(keys)}.parquet"

    def write_captions(self, captions: Sequence[Caption]) -> Place:
        path = self.caption_path([c.key for c in captions])
        bank_files.write_captions(path, captions)
        return path

    # Plans and learned words

    def plans(self) -> list[str]:
        return sorted(p.stem for p in listed(self.plans_folder, "*.parquet") if "-" not in p.stem)

    def plan_path(self, plan_key: str) -> Place:
        return self.plans_folder / f"{plan_key}.parquet"

    def write_plan(
        self,
        plan_key: str,
        edits: Sequence[Edit],
        pool: Pool,
        drawn: Drawn,
        settings: Generation,
        fingerprints: Fingerprints,
    ) -> None:
        """Writes the table and the pool's own images; `drawn`: of which kinds and classes it is.

        Raises UserError for an edit of an image outside the pool.
        """
        guard(edits, pool.hashes)
        # The sources first: where a plan stands, all that belongs to it does.
        bank_files.write_sources(self._sources_path(plan_key), pool)
        plan = Plan(
            plan_key, list(edits), len(pool.hashes), drawn, pool.classes, settings,
            fingerprints,
        )  # fmt: skip
        bank_files.write_plan(self.plan_path(plan_key), plan)

    def read_plan(self, plan_key: str) -> Plan:
        """Raises UserError if the bank has no such plan."""
        if plan_key not in self._plans:
            if plan_key not in self.plans():  # nor is a path a key
                known = ", ".join(self.plans()) or "none"
                raise UserError(f"bank {self.root}: no plan {plan_key}; known: {known}.")
            self._plans[plan_key] = bank_files.read_plan(self.plan_path(plan_key))
        return self._plans[plan_key]

    def sources(self, plan_key: str) -> list[dict[str, Any]]:
        """The pool's own images as rows of bank_files.SOURCES, by position."""
        return bank_files.read_sources(self._sources_path(plan_key))

    def tokens_path(self, fingerprint: str) -> Place:
        return self.tokens_folder / f"{fingerprint}.safetensors"

    # Images of one's own

    def own_files(self) -> list[Place]:
        return listed(self.own_folder, "*.parquet")

    def own_path(self, key: str) -> Place:
        return self.own_folder / f"{key}.parquet"

    def write_own(self, images: own.OwnImages) -> None:
        path = self.own_path(images.key)
        if not path.is_file():
            labels = images.labels.tolist()
            bank_files.write_own(path, images.images, labels, images.hashes, images.classes)

    # Quarantine

    def quarantine(self, name: str, keys: Sequence[str], error: str) -> None:
        append_line(self.quarantine_file, {"shard": name, "keys": list(keys), "error": error})

    def quarantined(self) -> dict[str, dict[str, Any]]:
        """The shards that are set aside, by name: each one's `keys` and its `error`."""
        return {line["shard"]: line for line in read_lines(self.quarantine_file)}

    def quarantined_keys(self) -> set[str]:
        """The keys of all images that are set aside."""
        return {key for line in self.quarantined().values() for key in line["keys"]}

    # Use

    def variants(
        self,
        plan_key: str,
        drawn: Drawn,
        shape: tuple[int, int, int],
        hashes: Sequence[str] | None = None,
        labels: Tensor | None = None,
    ) -> Edits:
        """The images that a training may draw; `shape`: (channels, height, width) of each.

        `hashes` are those of the images that the training may see, in its order, and `labels` (n,)
        their classes, which images of one's own go by. Raises UserError for a plan that does not
        belong to exactly these, and for one whose images are not all made or set aside. Edits are
        `Variants`.
        """
        if bank_files.is_own(plan_key):
            assert labels is not None
            return own.variants(self.own_path(plan_key), drawn, shape, labels)
        if hashes is not None:
            plan = self.read_plan(plan_key)
            guard(plan.edits, hashes)
            if plan.images != len(hashes):
                raise UserError(
                    f"plan {plan_key} is of {plan.images} images, the pool has {len(hashes)}."
                )
        cells = tuple((kind, frozenset(classes)) for kind, classes in drawn.items())
        return _variants(self, plan_key, cells, tuple(shape))

    def cost(self, plan_key: str, drawn: Drawn | None = None) -> dict[str, float]:
        """Device-seconds by phase that the images which a training may draw are billed.

        `drawn` None: all images of the plan. All attempts at a shard count, divided among its
        images: who needs half of a shard pays for half of it, whoever made it. A word that a class
        learned alone costs those who draw edits of the class; words that were learned together, for
        this pool, cost all of it. What images of one's own cost is the study's to say.
        """
        if bank_files.is_own(plan_key):
            return {}
        return self._divided(plan_key, drawn, self.spent())

    def work(self, plan_key: str, drawn: Drawn | None = None) -> dict[str, float]:
        """Device-seconds of work by phase that these images took, divided like their `cost`.

        Loading models is no part of it, nor is an attempt that was made again.
        """
        if bank_files.is_own(plan_key):
            return {}
        pieces: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for line in self.attempts():
            pieces[line["run"]].append(line)
        done = {name: meter.work(lines, meter.BANK) for name, lines in pieces.items()}
        return self._divided(plan_key, drawn, {k: w for k, w in done.items() if w is not None})

    def _divided(
        self, plan_key: str, drawn: Drawn | None, spent: Mapping[str, float]
    ) -> dict[str, float]:
        """The part of what was spent, by name in the ledger, that falls to these images."""
        plan = self.read_plan(plan_key)
        edits = plan.edits if drawn is None else plan.drawn_by(drawn)

        def share_of(needed: set[str], files: Mapping[str, Sequence[str]]) -> float:
            """Device-seconds of the files with these keys, as far as their keys are needed."""
            return sum(
                spent.get(name, 0.0) * len(needed.intersection(keys)) / len(keys)
                for name, keys in files.items()
                if keys
            )

        shards: dict[str, Sequence[str]] = {p.stem: self._keys_of(p) for p in self.shards()}
        shards |= {name: line["keys"] for name, line in self.quarantined().items()}
        captions = {e.caption for e in edits if e.caption is not None}
        out = dict.fromkeys(meter.BANK, 0.0)
        out["generate"] = share_of({e.key for e in edits}, shards)
        texts = {p.stem: self._keys_of(p) for p in self._caption_files()}
        out["caption"] = share_of(captions, texts)
        if captions:  # what the linter counted, and which classes are near
            out["caption"] += spent.get(plan_key, 0.0)
        if any(e.kind == "transfer" for e in edits):
            name = neighbours_name(plan.classes, plan.fingerprints)
            out["caption"] += spent.get(name, 0.0)
        out["invert"] = sum(spent.get(name, 0.0) for name in plan.words_of(edits))
        return out

    def attempts(self) -> list[dict[str, Any]]:
        """The ledger's last line of every attempt at a piece of work."""
        return meter.read(self.ledger, ended=self._ended)

    def spent(self) -> dict[str, float]:
        """Device-seconds of every name in the ledger, all attempts."""
        out: defaultdict[str, float] = defaultdict(float)
        for line in self.attempts():
            out[line["run"]] += meter.spent(line)
        return dict(out)

    def faults(self, plan_key: str) -> list[str]:
        """What went wrong while the plan's edits were made, a sentence each."""
        needed = {edit.key for edit in self.read_plan(plan_key).edits}
        aside = {
            name: line
            for name, line in self.quarantined().items()
            if needed.intersection(line["keys"])
        }
        names = {path.stem for path in self.shards() if needed.intersection(self._keys_of(path))}
        lines = [line for line in self.attempts() if line["run"] in names | aside.keys()]
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

    def verify(self) -> list[str]:
        """What is wrong in this folder, a sentence each; all files are read anew."""
        problems = list(bank_files.check_shards(self.shards()))
        for path in self._caption_files():
            problems += [f"captions/{path.name}: {p}" for p in bank_files.check_captions(path)]
        for key in self.plans():
            found = bank_files.check_plan(self.plan_path(key), self._sources_path(key))
            problems += [f"plans/{key}.parquet: {p}" for p in found]
        for path in listed(self.tokens_folder, "*.safetensors"):
            problems += [f"tokens/{path.name}: {p}" for p in bank_files.check_tokens(path)]
        for path in self.own_files():
            problems += [f"own/{path.name}: {p}" for p in bank_files.check_own(path)]
        return problems

    def _caption_files(self) -> list[Place]:
        return listed(self.captions_folder, "*.parquet")

    def _sources_path(self, plan_key: str) -> Place:
        return self.plans_folder / f"{plan_key}-sources.parquet"

    def _keys_of(self, path: Place) -> list[str]:
        if path not in self._keys:
            self._keys[path] = bank_files.read_keys(path)
        return self._keys[path]


@lru_cache(maxsize=2)
def shared_bank(root: str) -> Bank:
    """The bank at this place, one object per process: all trials of a study read its files once."""
    return Bank(place(root))


@lru_cache(maxsize=2)
def _variants(
    bank: Bank,
    plan_key: str,
    cells: tuple[tuple[ImageKind, frozenset[int]], ...],
    shape: tuple[int, int, int],
) -> Variants:
    """Cached: a process that runs many trials of one study decodes its images once.

    `cells`: the items of what is drawn.
    """
    plan, drawn = bank.read_plan(plan_key), dict(cells)
    for kind, classes in cells:
        if kind not in plan.kinds:
            raise UserError(
                f"plan {plan_key} has no {kind} edits; it was made for {', '.join(plan.kinds)}."
            )
        if lacking := classes - set(plan.drawn[kind]):
            raise UserError(
                f"plan {plan_key} has no {kind} edits of class {plan.classes[min(lacking)]!r}; "
                "no method of its study drew any."
            )
    kinds = tuple(drawn)
    column = {kind: k for k, kind in enumerate(kinds)}
    edits = plan.drawn_by(drawn)
    images = {image.key: image for image in bank.encoded(e.key for e in edits)}
    if lost := len({e.key for e in edits} - images.keys() - bank.quarantined_keys()):
        raise UserError(
            f"bank {bank.root}: {lost} of the {len({e.key for e in edits})} images of plan "
            f"{plan_key} are not made yet; start the study again to make them."
        )
    missing, rejected, duplicate = (dict.fromkeys(kinds, 0) for _ in range(3))
    used: list[Tensor] = []
    start = torch.zeros(plan.images, len(kinds), dtype=torch.int64)
    count = torch.zeros_like(start)
    seen: set[tuple[int, ImageKind, str]] = set()
    for e in edits:  # edits of one source and kind follow each other
        if e.key not in images:
            missing[e.kind] += 1
            continue
        if images[e.key].reject is not None:
            rejected[e.kind] += 1
            continue
        image = decode(images[e.key].encoded)
        if tuple(image.shape) != shape:
            raise UserError(
                f"bank {bank.root}: image {e.key} is {'x'.join(map(str, image.shape))}, the "
                f"training's are {'x'.join(map(str, shape))} (channels x height x width)."
            )
        pixels = content_hash(image)
        if pixels == e.source_hash or (e.source, e.kind, pixels) in seen:
            duplicate[e.kind] += 1
            continue
        seen.add((e.source, e.kind, pixels))
        cell = e.source, column[e.kind]
        if count[cell] == 0:
            start[cell] = len(used)
        count[cell] += 1
        used.append(image)
    return Variants(
        images=torch.stack(used) if used else torch.zeros((0, *shape), dtype=torch.uint8),
        start=start,
        count=count,
        missing=missing,
        rejected=rejected,
        duplicate=duplicate,
    )
