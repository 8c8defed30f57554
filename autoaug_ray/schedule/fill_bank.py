"""Filling a bank with Ray actors: captions, neighbours, words, plans and edits that it lacks.

What has to be made is cut into pieces of fixed size and order, and an actor takes one piece at a
time and writes its file itself. Who makes a piece, when, and how often it was tried before changes
nothing in the file, so that a restart simply makes the files that are not there.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from autoaug_ray.schedule import cluster  # before ray: it sets what ray reads when it is imported

# isort: split
import numpy as np
import ray

from autoaug_ray.errors import RunError, UserError
from autoaug_ray.generate import plan
from autoaug_ray.generate.bank import Bank
from autoaug_ray.generate.bank_files import Plan, shard_name
from autoaug_ray.generate.flops import PEAKS
from autoaug_ray.generate.plan import Fingerprints, Pool
from autoaug_ray.generate.settings import Drawn, Generation, Workers
from autoaug_ray.generate.worker import Failure, PieceDone, Worker

HOPELESS = 3
"""If so many shards fail before any works, none will."""
REPORT_SECONDS = 10.0

Watch = Callable[[str], None]
T = TypeVar("T")


def fill(
    bank: Bank,
    pools: Sequence[Pool],
    settings: Generation,
    workers: Workers,
    drawn: Sequence[Drawn],
    watch: Watch = print,
) -> list[str]:
    """Makes all edits that the bank lacks of those that are drawn; returns each pool's plan key.

    `drawn`: for every pool, the kinds and classes whose edits some method may draw. `watch` gets
    lines of progress. A shard that fails again and again is set aside (see `Bank.quarantined`); any
    other failure raises UserError or RunError. Ray is not started if the bank lacks nothing.
    """
    pools = [replace(pool, images=pool.images.cpu(), labels=pool.labels.cpu()) for pool in pools]
    with _Crew(bank, settings, workers, watch) as crew:
        plans = _plans(pools, drawn, crew)
        _edit(pools, plans, crew)
        if crew.started:
            for p in plans:
                seconds = bank.cost(p.key)
                spent = ", ".join(f"{phase} {s:.3g}" for phase, s in seconds.items() if s)
                watch(f"plan {p.key}: device-seconds: {spent}")
    return [p.key for p in plans]


@dataclass
class _Piece:
    """What an actor does at a time: `Worker.work` of the first four fields."""

    what: str
    name: str  # in the ledger, and of the file, if it makes one
    phase: str
    arguments: Sequence[Any]
    keys: Sequence[str] = ()  # of the images or captions that it makes
    attempts: int = 0


class _Crew:
    """The actors, which start with the first piece of work and end with the `with`."""

    def __init__(self, bank: Bank, settings: Generation, workers: Workers, watch: Watch) -> None:
        self.bank, self.settings, self.workers, self.watch = bank, settings, workers, watch
        self._actors: list[Any | None] = []
        """None: to be started when there is work for it."""
        self._lost = False

    def __enter__(self) -> "_Crew":
        return self

    def __exit__(self, *_: object) -> None:
        self._dismiss(range(len(self._actors)))

    @property
    def started(self) -> bool:
        return bool(self._actors)

    def run(self, pieces: Sequence[_Piece], *, set_aside: bool = False) -> list[PieceDone | None]:
        """Does all pieces, each on the actor that is free first; returns their figures, in order.

        A piece that fails has `workers.retries` more attempts. After the last it is set aside and
        its figures are None, or, without `set_aside`, RunError is raised. An error that every piece
        would meet is raised at once.
        """
        if not pieces:
            return []
        most = min(len(pieces), self._most())
        self._actors.sort(key=lambda actor: actor is None)
        self._actors += [None] * (most - len(self._actors))
        done: list[PieceDone | None] = [None] * len(pieces)
        waiting = deque(range(len(pieces)))
        free = deque(range(most))
        busy: dict[Any, tuple[int, int]] = {}  # result -> (actor, piece)
        failures: list[tuple[_Piece, str]] = []
        progress = _Progress(self.watch, pieces)
        while waiting or busy:
            while waiting and free:
                who, which = free.popleft(), waiting.popleft()
                piece = pieces[which]
                piece.attempts += 1
                actor = self._actors[who] = self._actors[who] or self._hire()
                result = actor.work.remote(piece.what, piece.name, piece.phase, piece.arguments)
                busy[result] = who, which
            (result,), _ = ray.wait(list(busy))
            who, which = busy.pop(result)
            outcome = _outcome(result)
            piece = pieces[which]
            if isinstance(outcome, PieceDone):
                done[which] = outcome
                progress.add(piece, outcome)
                if outcome.rows:
                    self.watch(
                        f"  shard {piece.name}: out of memory; {outcome.rows} images at a time "
                        f"fit on {outcome.device}"
                    )
            elif outcome.fatal is not None:
                raise outcome.fatal(outcome.message)
            else:
                # After an error of its device, or out of memory, a process may be of no more use.
                self._lost = True
                self._dismiss([who])
                if piece.attempts <= self.workers.retries:
                    self.watch(f"  shard {piece.name}: {outcome.message}; trying again")
                    waiting.append(which)
                elif not set_aside:
                    raise RunError(f"generate: {piece.what} failed: {outcome.message}")
                else:
                    failures.append((piece, outcome.message))
                    self.watch(f"  shard {piece.name} is set aside: {outcome.message}")
            free.append(who)
            if self._lost and not waiting:
                # Its machine may be gone: a new actor only starts where an idle one makes room.
                working = {who for who, _ in busy.values()}
                self._dismiss(who for who in range(len(self._actors)) if who not in working)
            if progress.done:  # then it is these shards, and not all of them
                self._quarantine(failures)
            elif len(failures) >= HOPELESS:
                break
        if len(failures) >= HOPELESS or failures and not self.bank.shards():
            raise RunError(f"generate: no shard could be made ({failures[0][1]}).")
        self._quarantine(failures)
        progress.report()
        return done

    def _dismiss(self, actors: Iterable[int]) -> None:
        for who in actors:
            if (actor := self._actors[who]) is not None:
                ray.kill(actor)
                self._actors[who] = None

    def _quarantine(self, failures: list[tuple[_Piece, str]]) -> None:
        while failures:
            piece, message = failures.pop()
            self.bank.quarantine(piece.name, piece.keys, message)

    def _hire(self) -> Any:
        resources = {"num_cpus": self.workers.cpus, "num_gpus": self.workers.gpus}
        actor = ray.remote(Worker).options(**resources)
        return actor.remote(str(self.bank.root.resolve()), self.settings, self.workers)

    def _most(self) -> int:
        """How many actors may run: as many as there is, or may come, room for, or as were asked for
        if fewer.

        Actors that wait make a cluster grow. One that does not say how far it can is asked for what
        fits on the machines that are there.
        """
        cluster.join()
        room = 0
        for node in cluster.machines():
            room += min(
                int(node.get(kind, 0.0) / share + 1e-6)
                for kind, share in (("CPU", self.workers.cpus), ("GPU", self.workers.gpus))
                if share > 0
            )
        if cluster.may_grow():  # a number that was asked for is waited for
            come = cluster.room_to_come(self.workers.cpus, self.workers.gpus)
            return self.workers.actors or max(room, come, 1)
        if room == 0:
            raise UserError(
                f"generate: an actor asks for {self.workers.cpus:g} CPU and "
                f"{self.workers.gpus:g} GPU, which no machine here has."
            )
        return min(self.workers.actors or 10_000, room)


class _Progress:
    """Reports on a round of pieces in lines, now and then and at the end."""

    def __init__(self, watch: Watch, pieces: Sequence[_Piece]) -> None:
        self._watch, self._pieces = watch, pieces
        self._begin = self._reported = time.monotonic()
        self.done = self._reported_done = self._items = self._rejected = 0
        self._seconds = self._tflop = 0.0
        self._device = ""

    def add(self, piece: _Piece, done: PieceDone) -> None:
        self.done += 1
        self._items += done.items
        self._rejected += done.rejected
        self._seconds += done.seconds
        self._tflop += done.tflop
        self._device = done.device
        if time.monotonic() - self._reported > REPORT_SECONDS:
            self.report()

    def report(self) -> None:
        if not self._items or self._reported_done == self.done:
            return
        self._reported, self._reported_done = time.monotonic(), self.done
        thing = "captions" if self._pieces[0].phase == "caption" else "edits"
        line = f"  {self.done}/{len(self._pieces)} shards, {self._items} {thing}"
        line += f", {self._items / (self._reported - self._begin):.3g} a second"
        if self._rejected:
            line += f", {self._rejected} rejected"
        if self._tflop and self._seconds:
            speed = self._tflop / self._seconds
            line += f"; {speed:.3g} TFLOP/s per {self._device}"
            peaks = (tflops for part, tflops in PEAKS.items() if part in self._device)
            if peak := next(peaks, None):
                line += f", {100 * speed / peak:.0f} % of its peak"
        self._watch(line)


def _outcome(result: Any) -> PieceDone | Failure:
    try:
        outcome: PieceDone | Failure = ray.get(result)
    except ray.exceptions.RayActorError as error:
        if "creation task" in str(error):  # it never began; nor would another
            reason = str(error).strip().splitlines()[-1]
            return Failure(f"generate: an actor could not start ({reason}).", fatal=RunError)
        return Failure("its process died", fatal=None)
    except ray.exceptions.RayError as error:
        return Failure(str(error).strip().splitlines()[-1], fatal=None)
    return outcome


def _plans(pools: Sequence[Pool], drawn: Sequence[Drawn], crew: _Crew) -> list[Plan]:
    """Every pool's plan, read from the bank, or made now and written to it."""
    bank, settings = crew.bank, crew.settings
    marks = [
        plan.fingerprints(pool, settings, [kind for kind in which if which[kind]])
        for pool, which in zip(pools, drawn, strict=True)
    ]
    asked = list(zip(pools, marks, drawn, strict=True))
    named = [plan.plan_key(pool, settings, mark, which) for pool, mark, which in asked]
    new = {
        key: one for key, one in zip(named, asked, strict=True) if not bank.plan_path(key).exists()
    }
    if new:
        near = _neighbours([one[:2] for one in new.values() if one[2].get("transfer")], crew)
        draws = {
            key: plan.draw(pool, near.get(pool.classes, ()), settings, which)
            for key, (pool, _, which) in new.items()
        }
        captions = _captions([(*new[key][:2], draws[key]) for key in new], crew)
        continuations = dict(zip(new, captions, strict=True))
        _invert([(*new[key][:2], draws[key]) for key in new], crew)
        for key, (pool, mark, which) in new.items():
            _write_plan(key, pool, mark, draws[key], continuations[key], which, crew)
    return [bank.read_plan(key) for key in named]


def _neighbours(
    new: Iterable[tuple[Pool, Fingerprints]], crew: _Crew
) -> dict[tuple[str, ...], list[tuple[int, ...]]]:
    """The nearest other classes of each class, by the tuple of a pool's classes."""
    asked = {pool.classes: (pool.names, mark) for pool, mark in new}
    pieces = [
        _Piece("embed", plan.neighbours_name(classes, mark), "caption", (names,))
        for classes, (names, mark) in asked.items()
    ]
    return dict(zip(asked, (done.value for done in crew.run(pieces) if done), strict=True))


def _captions(
    new: Sequence[tuple[Pool, Fingerprints, list[plan.Draw]]], crew: _Crew
) -> list[dict[int, str]]:
    """The continuations of the drawn images of every pool, by position.

    Captions that the bank lacks are made.
    """
    known = set(crew.bank.captions())
    pieces, wanted = [], []
    for pool, mark, draws in new:
        name_of = [pool.names[label] for label in pool.labels.tolist()]
        keys = {
            i: plan.caption_key(
                pool.hashes[i], name_of[i], crew.settings.prefix, str(mark.captioner)
            )
            for i in plan.captioned(draws)
        }
        wanted.append(keys)
        lacking = {key: i for i, key in keys.items() if key not in known}
        known |= lacking.keys()
        for part in _cut(list(lacking), crew.workers.shard_size):
            places = [lacking[key] for key in part]
            arguments = (
                [pool.images[i].numpy() for i in places],
                [pool.hashes[i] for i in places],
                [name_of[i] for i in places],
                mark.captioner,
            )
            pieces.append(_Piece("caption", shard_name(part), "caption", arguments, part))
    if pieces:
        crew.watch(f"{sum(len(piece.keys) for piece in pieces)} captions to make")
        crew.run(pieces)
    continuations = crew.bank.captions()
    return [{i: continuations[key] for i, key in keys.items()} for keys in wanted]


def _invert(new: Iterable[tuple[Pool, Fingerprints, Sequence[plan.Draw]]], crew: _Crew) -> None:
    """Learns the words of the edited classes, on the images of their own pool only."""
    pieces = {}
    for pool, mark, draws in new:
        # Sorted by hash, since the same images in another order are the same pool.
        order = np.array(sorted(range(len(pool.hashes)), key=pool.hashes.__getitem__))
        labels = pool.labels.numpy()[order]
        for label in sorted({int(pool.labels[draw.source]) for draw in draws}):
            word = mark.word_of(label)
            if word is None or word in pieces or crew.bank.tokens_path(word).exists():
                continue
            index, names, own = order, pool.names, labels
            if mark.words:  # it learns alone
                index, names, own = order[labels == label], (pool.names[label],), 0 * labels
            arguments = (pool.images[index].numpy(), own[: len(index)], names, word)
            pieces[word] = _Piece("invert", word, "invert", arguments)
    if pieces:
        alone = crew.settings.tokens is not None and crew.settings.tokens.per_class
        crew.watch(f"{len(pieces)} {'words' if alone else 'sets of words'} to learn")
        crew.run(list(pieces.values()))


def _write_plan(
    key: str,
    pool: Pool,
    mark: Fingerprints,
    draws: Sequence[plan.Draw],
    continuations: dict[int, str],
    drawn: Drawn,
    crew: _Crew,
) -> None:
    """Writes a pool's plan, and tells which captions the linter replaced."""
    tokens: dict[str, int] = {}  # of the texts that the linter asks about, which an actor counts

    def build(count_tokens: Callable[[str], int]) -> list[plan.Edit]:
        return plan.build(pool, draws, continuations, crew.settings, mark, count_tokens)

    build(lambda text: tokens.setdefault(text, 0))
    if tokens:
        labels = sorted({int(pool.labels[draw.source]) for draw in draws})
        words = tuple(w for w in dict.fromkeys(map(mark.word_of, labels)) if w is not None)
        (counted,) = crew.run([_Piece("count", key, "caption", (list(tokens), words))])
        assert counted is not None
        tokens = dict(zip(tokens, counted.value, strict=True))
    edits = build(tokens.__getitem__)
    crew.bank.write_plan(key, edits, pool, drawn, crew.settings, mark)
    crew.watch(f"plan {key}: {len(edits)} edits of {len(pool.labels)} images")
    for name, reasons in plan.lint_counts(edits).items():
        why = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common())
        crew.watch(f"  {name}: the fixed prompt for {reasons.total()} captions ({why})")


def _edit(pools: Sequence[Pool], plans: Sequence[Plan], crew: _Crew) -> None:
    """Makes all edits that are neither in the bank nor set aside."""
    edits = {
        edit.key: (edit, pool, p) for p, pool in zip(plans, pools, strict=True) for edit in p.edits
    }
    words = {p.key: tuple(p.words_of(p.edits)) for p in plans}
    set_aside = crew.bank.quarantined_keys()
    lacking = crew.bank.missing(edits)
    missing = [key for key in lacking if key not in set_aside]
    crew.watch(f"{len(edits)} edits, {len(missing)} to make")
    if len(lacking) > len(missing):
        crew.watch(
            f"  {len(lacking) - len(missing)} are set aside since their shards failed; delete "
            f"{crew.bank.quarantine_file} to try them again"
        )
    by_words: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for key in missing:
        by_words[words[edits[key][2].key]].append(key)
    pieces = [
        _shard([edits[key] for key in part], some)
        for some, keys_of_words in by_words.items()
        for part in _cut(keys_of_words, crew.workers.shard_size)
    ]
    crew.run(pieces, set_aside=True)


def _shard(rows: Sequence[tuple[plan.Edit, Pool, Plan]], words: tuple[str, ...]) -> _Piece:
    """The piece of work that makes a shard of these edits, with each source image once.

    `words` name the learned words that an actor needs for it.
    """
    images: dict[str, np.ndarray] = {}
    for edit, pool, _ in rows:
        images.setdefault(edit.source_hash, pool.images[edit.source].numpy())
    place = {source_hash: i for i, source_hash in enumerate(images)}
    edits = [edit for edit, _, _ in rows]
    keys = [edit.key for edit in edits]
    index = [place[edit.source_hash] for edit in edits]
    arguments = (edits, list(images.values()), index, rows[0][2].fingerprints, words)
    return _Piece("edit", shard_name(keys), "generate", arguments, keys)


def _cut(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]
