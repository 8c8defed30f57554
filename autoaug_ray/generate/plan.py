"""The table of edits: which image is edited by which prompt, with which noise.

A table is a function of the pool, the captions and the settings, and of nothing else. What an edit
looks like follows from its key alone, so that whoever needs an edit with this key shares it: other
methods, seeds, subsets and studies.

Which caption edits an image is drawn by rendezvous hashing: every edit ranks the captions by a hash
of itself with each of them and takes the first. An image keeps its caption as long as that caption
is there, so that nested subsets share most of their edits; and edit number j does not depend on how
many there are, so that a smaller number of edits is a prefix of a larger one.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from autoaug_ray.errors import UserError
from autoaug_ray.generate import prompts, weights
from autoaug_ray.generate.settings import (
    EDITS,
    OF_FOLDER,
    Drawn,
    Generation,
    ImageKind,
    of_all_classes,
)

RANKED = 4096
"""Captions that one edit ranks at most. If there are more, it ranks those that follow it on a ring
of hashes."""

KEYED = (
    "generator", "tokens", "source_hash", "prompt", "strength", "guidance", "calls", "solver",
    "size", "precision", "seed",
)  # fmt: skip
"""What an edited image depends on, in the order in which its key hashes it."""


@dataclass(frozen=True)
class Pool:
    """The images that train something: what may be edited, and whose captions may be used."""

    images: Tensor  # (n, channels, height, width) uint8
    labels: Tensor  # (n,) int64, of `classes`
    classes: tuple[str, ...]  # as the dataset calls them

    @cached_property
    def hashes(self) -> tuple[str, ...]:
        """The identity of every image, (n,)."""
        return tuple(content_hash(image) for image in self.images.cpu())

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The classes as prompts say them."""
        return prompts.prompt_names(self.classes)

    @cached_property
    def fingerprint(self) -> str:
        """The identity of the images with their classes, in any order: what tokens learn from."""
        labels = self.labels.tolist()
        pairs = zip(self.hashes, (self.classes[label] for label in labels), strict=True)
        return _digest(sorted(pairs))


class Fingerprints(NamedTuple):
    """Exactly which models make a bank's content."""

    generator: str
    captioner: str | None = None  # None, None: no kind needs captions
    embedder: str | None = None
    tokens: str | None = None  # None: no textual inversion
    words: tuple[str, ...] = ()
    """For each class the name of what it learned alone; empty: all learned together, as `tokens`,
    or nothing is learned."""

    def word_of(self, label: int) -> str | None:
        """The name of the file that holds the class's learned word, if it has one."""
        return self.words[label] if self.words else self.tokens


class Draw(NamedTuple):
    """An edit whose prompt is not known yet."""

    source: int  # position in the pool
    kind: ImageKind
    number: int  # 0.. of this source and kind
    caption_of: int | None  # position in the pool
    seed: int  # of the noise, [0, 2**63)


class Edit(NamedTuple):
    """One image of the bank, as a plan asks for it."""

    source: int  # position in the pool
    source_hash: str
    class_name: str  # as the dataset calls it
    kind: ImageKind
    number: int
    prompt: str
    caption_of: str | None  # hash of the image whose caption was drawn
    caption: str | None  # key of that caption
    note: str | None  # why the fixed prompt took the caption's place
    seed: int
    key: str


def content_hash(image: Tensor) -> str:
    """32 hex digits for a (c, h, w) uint8 image: its identity in every bank."""
    digest = hashlib.sha256(f"{tuple(image.shape)}".encode())
    digest.update(image.contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def edit_key(**fields: Any) -> str:
    """32 hex digits of all that an edited image depends on: the fields KEYED, no more, no fewer.

    Its kind is only a label.
    """
    assert fields.keys() == set(KEYED), f"fields of a key: {', '.join(KEYED)}"
    return _digest([fields[name] for name in KEYED])


def key_settings(settings: Generation, fingerprints: Fingerprints) -> dict[str, Any]:
    """The arguments of `edit_key` that are the same in a whole plan."""
    return {
        "generator": fingerprints.generator, "tokens": fingerprints.tokens,
        "strength": settings.strength, "guidance": settings.guidance, "calls": settings.calls,
        "solver": settings.solver, "size": settings.size, "precision": settings.precision,
    }  # fmt: skip


def caption_key(image_hash: str, name: str, prefix: str, captioner: str) -> str:
    """32 hex digits of all that a caption depends on; `captioner` is its fingerprint."""
    return _digest([image_hash, name, prefix, captioner])


def neighbours_name(classes: Sequence[str], fingerprints: Fingerprints) -> str:
    """The name under which the ledger has the work of comparing classes."""
    return _digest([classes, fingerprints.generator, fingerprints.embedder])


def token_fingerprints(
    pool: Pool, settings: Generation, generator: str
) -> tuple[str | None, tuple[str, ...]]:
    """`Fingerprints.tokens` and `Fingerprints.words` of exactly these images.

    A word that was learned on more images can therefore never edit fewer. Where each class learns
    alone, its word has the same name in every pool with the same images of the class.
    """
    if settings.tokens is None:
        return None, ()
    recipe = [settings.tokens.model_dump(), prompts.TEMPLATES, settings.size, settings.precision]
    if not settings.tokens.per_class:
        return _digest([generator, pool.fingerprint, pool.names, *recipe]), ()
    labels = pool.labels.tolist()
    images: list[list[str]] = [[] for _ in pool.names]
    for image, label in zip(pool.hashes, labels, strict=True):
        images[label].append(image)
    words = tuple(
        _digest([generator, sorted(own), name, *recipe])
        for name, own in zip(pool.names, images, strict=True)
    )
    return _digest(words), words


def fingerprints(
    pool: Pool, settings: Generation, kinds: Iterable[ImageKind] = EDITS
) -> Fingerprints:
    """Fingerprints of the models that edits of these kinds need, without loading any.

    Raises UserError for a model folder that is not there.
    """
    kinds = set(kinds)
    generator = weights.fingerprint(weights.resolve(settings.model, "stable-diffusion"))
    captioner = embedder = None
    if kinds - {"fixed"}:
        model = weights.resolve(settings.captioner, "blip")
        captioner = f"{weights.fingerprint(model)}-{settings.precision}"
    if "transfer" in kinds:
        own = settings.embedder == "pipeline"
        embedder = "pipeline" if own else weights.fingerprint(settings.embedder)
    return Fingerprints(
        generator, captioner, embedder, *token_fingerprints(pool, settings, generator)
    )


def plan_key(
    pool: Pool,
    settings: Generation,
    fingerprints: Fingerprints,
    drawn: Drawn | None = None,
) -> str:
    """The name of the plan's file: 32 hex digits of all that its table depends on.

    `drawn`: the edits that the plan has; None: of every kind and class.
    """
    drawn = of_all_classes(EDITS, len(pool.classes)) if drawn is None else drawn
    chosen = settings.model_dump(exclude={"model", "captioner", "embedder", "tokens", *OF_FOLDER})
    models = fingerprints[:4]  # the fourth follows from the others
    which: list[Any] = sorted(drawn)
    if any(set(classes) != set(range(len(pool.classes))) for classes in drawn.values()):
        which = [[kind, sorted(drawn[kind])] for kind in sorted(drawn)]
    return _digest([pool.hashes, pool.labels.tolist(), pool.classes, chosen, models, which])


def edits_per_source(count: int, settings: Generation) -> int:
    """M, the number of edits of each kind of every image of a class with `count` images."""
    return max(settings.per_source, -(-settings.per_class // count))


def draw(
    pool: Pool,
    neighbours: Sequence[Sequence[int]],
    settings: Generation,
    drawn: Drawn | None = None,
) -> list[Draw]:
    """Draws all edits, by source, then kind, then number; `neighbours[c]` are the classes near c.

    `drawn`: the kinds and classes of which there are edits; None: all of them. What an edit is does
    not depend on which others there are.

    A local edit gets the caption of another image of the class (its own if there is no other), a
    transfer edit that of any image of the neighbouring classes, each as likely as another.
    """
    labels = pool.labels.numpy()
    words = np.array([int(h[:16], 16) for h in pool.hashes], dtype=np.uint64)
    rows: list[Draw] = []
    drawn = of_all_classes(EDITS, len(pool.classes)) if drawn is None else drawn
    for c in range(len(pool.classes)):
        members = np.flatnonzero(labels == c)
        if len(members) == 0:
            continue
        count = edits_per_source(len(members), settings)
        for kind in (k for k in EDITS if c in drawn.get(k, ())):
            asked = [(i, j) for i in members.tolist() for j in range(count)]
            # One hash per edit: half of it draws the caption, half is the noise's seed.
            hashed = [
                hashlib.sha256(f"{pool.hashes[i]}/{kind}/{j}/{settings.seed}".encode()).digest()
                for i, j in asked
            ]
            seeds = [int.from_bytes(h[8:16], "big") >> 1 for h in hashed]
            captions: Sequence[int | None] = [None] * len(asked)
            if kind != "fixed":
                near = [c] if kind == "local" else list(neighbours[c])
                candidates = np.flatnonzero(np.isin(labels, near))
                if len(candidates) == 0:
                    continue
                ranks = np.array([int.from_bytes(h[:8], "big") for h in hashed], dtype=np.uint64)
                own = words[np.array([i for i, _ in asked])]
                captions = _choose(ranks, own, words, candidates).tolist()
            rows += [
                Draw(i, kind, j, caption, seed)
                for (i, j), caption, seed in zip(asked, captions, seeds, strict=True)
            ]
    order = {kind: number for number, kind in enumerate(EDITS)}
    return sorted(rows, key=lambda row: (row.source, order[row.kind], row.number))


def captioned(draws: Iterable[Draw]) -> list[int]:
    """Positions of the images whose captions the edits use, ascending."""
    return sorted({row.caption_of for row in draws if row.caption_of is not None})


def build(
    pool: Pool,
    draws: Iterable[Draw],
    continuations: Mapping[int, str],
    settings: Generation,
    fingerprints: Fingerprints,
    count_tokens: Callable[[str], int],
) -> list[Edit]:
    """The plan: every draw with its prompt. `continuations`: texts after the prefix, by position.

    A caption that the linter rejects leaves its place to the fixed prompt, with the reason.
    """
    names, labels = pool.names, pool.labels.tolist()
    words = names
    if fingerprints.tokens is not None:
        words = tuple(prompts.token_name(name) for name in names)
    same = key_settings(settings, fingerprints)
    written: dict[tuple[int, int], tuple[str, str | None]] = {}

    def prompt_of(caption_of: int, target: int) -> tuple[str, str | None]:
        """The prompt, and why it is not the caption."""
        origin, tail = names[labels[caption_of]], continuations[caption_of]
        if words[target] != origin:
            tail = prompts.replace_class(tail, origin, words[target], names)
        caption = prompts.rebuild(settings.prefix, words[target], tail)
        note = prompts.lint(caption, words[target], count_tokens)
        return (caption if note is None else fixed(target)), note

    def fixed(target: int) -> str:
        return settings.fixed_prompt.format(name=words[target])

    out = []
    for row in draws:
        target, source_hash = labels[row.source], pool.hashes[row.source]
        prompt, note, caption_of, caption = fixed(target), None, None, None
        if row.caption_of is not None:
            assert fingerprints.captioner is not None
            place = (row.caption_of, target)
            if place not in written:
                written[place] = prompt_of(*place)
            prompt, note = written[place]
            caption_of = pool.hashes[row.caption_of]
            caption = caption_key(
                caption_of, names[labels[row.caption_of]], settings.prefix, fingerprints.captioner
            )
        key = edit_key(source_hash=source_hash, prompt=prompt, seed=row.seed, **same)
        out.append(
            Edit(row.source, source_hash, pool.classes[target], row.kind, row.number, prompt,
                 caption_of, caption, note, row.seed, key)
        )  # fmt: skip
    return out


def lint_counts(edits: Iterable[Edit]) -> dict[str, Counter[str]]:
    """How many edits fell back to the fixed prompt, by class and by reason."""
    out: dict[str, Counter[str]] = {}
    for edit in edits:
        if edit.note is not None:
            out.setdefault(edit.class_name, Counter())[edit.note] += 1
    return out


def guard(edits: Iterable[Edit], hashes: Sequence[str]) -> None:
    """Raises UserError if an edit's source or caption is not among the images of the pool.

    `hashes`, in the pool's order, name the images that a training may see: an edit of another
    image, or by another image's caption, would show it what it must not know.
    """
    known = set(hashes)
    for edit in edits:
        if edit.source >= len(hashes) or hashes[edit.source] != edit.source_hash:
            raise UserError(
                f"plan: {edit.kind} edit {edit.number} of image {edit.source} of class "
                f"{edit.class_name!r} is of an image that is not in that place of the training "
                "pool; the plan belongs to another pool."
            )
        if edit.caption_of is not None and edit.caption_of not in known:
            raise UserError(
                f"plan: {edit.kind} edit {edit.number} of image {edit.source} of class "
                f"{edit.class_name!r} uses the caption of an image outside the training pool."
            )


def _choose(
    ranks: np.ndarray, own: np.ndarray, words: np.ndarray, candidates: np.ndarray
) -> np.ndarray:
    """The candidate (a position) with the smallest hash for each edit, (m,) int64.

    `ranks`, `own`: (m,) uint64, the edit's hash and its source's word; `words`: (n,) uint64 of the
    pool. Of equal images the first counts; an edit takes its own source only if there is no other.
    """
    ring, first = np.unique(words[candidates], return_index=True)  # ascending
    width = min(RANKED, len(ring))
    start = np.searchsorted(ring, ranks) if width < len(ring) else np.zeros(len(ranks), np.int64)
    out = np.empty(len(ranks), np.int64)
    step = max(1, 2**20 // width)
    for begin in range(0, len(ranks), step):
        part = slice(begin, begin + step)
        index = (start[part, None] + np.arange(width)) % len(ring)
        word = ring[index]
        scores = _mix(word ^ ranks[part, None])
        scores[word == own[part, None]] = np.iinfo(np.uint64).max
        out[part] = np.take_along_axis(index, scores.argmin(1)[:, None], 1)[:, 0]
    chosen: np.ndarray = candidates[first[out]]
    return chosen


def _mix(x: np.ndarray) -> np.ndarray:
    """A bijection of uint64 that spreads every bit (the finaliser of splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]
