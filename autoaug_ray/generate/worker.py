"""A worker of a bank: it holds the models and does one piece of work at a time, without Ray.

Every piece is one line of the ledger, from before its models are imported, so that loading them is
billed; but which piece happens to load them is chance, so that loading is warm-up, and no work of
the piece. A piece writes its file whole, and returns figures only.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from autoaug_ray.errors import RunError, UserError
from autoaug_ray.generate import prompts, weights
from autoaug_ray.generate.bank import Bank
from autoaug_ray.generate.bank_files import Caption, write_shard
from autoaug_ray.generate.plan import Edit, Fingerprints
from autoaug_ray.generate.settings import Generation, Workers
from autoaug_ray.store.meter import Meter, device_name
from autoaug_ray.store.places import place

if TYPE_CHECKING:
    from autoaug_ray.generate.any_pipeline import PipelineEditor
    from autoaug_ray.generate.captions import Captioner
    from autoaug_ray.generate.flops import Work
    from autoaug_ray.generate.img2img import Editor


T = TypeVar("T")


class PieceDone(NamedTuple):
    """The figures of a piece of work that is done."""

    value: Any = None
    items: int = 0  # images or captions that were made
    rejected: int = 0
    seconds: float = 0.0  # device-seconds in the model, of edits only
    tflop: float = 0.0  # computed in these seconds; 0: unknown
    device: str = ""
    rows: int = 0  # images per call, if the memory was too small for as many as were asked for


class Failure(NamedTuple):
    message: str
    fatal: type[UserError | RunError] | None  # set if every other piece would fail the same way


class Worker:
    def __init__(self, root: str, settings: Generation, workers: Workers) -> None:
        self.bank, self.settings, self.workers = Bank(place(root)), settings, workers
        # One thread, however many CPUs: sums of several threads end in other bits.
        torch.set_num_threads(1)
        self.device = torch.device("cuda" if workers.gpus > 0 else "cpu")
        if 0 < workers.gpus < 1:
            torch.cuda.set_per_process_memory_fraction(workers.gpus)
        self.share = workers.gpus if workers.gpus > 0 else workers.cpus
        self._captioner: Captioner | None = None
        self._editor: Editor | PipelineEditor | None = None
        self._words: tuple[str, ...] = ()
        self._work: Work | None = None
        self._meter = Meter()

    def work(
        self, what: str, name: str, phase: str, arguments: Sequence[Any]
    ) -> PieceDone | Failure:
        """Calls the method `what`, and charges it in the ledger to `name` and `phase`."""
        self._rows = 0
        try:
            with Meter(
                self.bank.ledger, key=name, about={"phase": phase}, device=self.device,
                share=self.share,
            ) as meter:  # fmt: skip
                self._meter = meter
                with meter.phase(phase):
                    done: PieceDone = getattr(self, what)(*arguments)
                if self._rows:
                    meter.note(rows=self._rows)
        except (UserError, RunError) as error:
            return Failure(str(error), type(error))
        except Exception as error:
            return Failure(f"{type(error).__name__}: {error}", None)
        return done._replace(device=device_name(self.device), rows=self._rows)

    def embed(self, names: Sequence[str]) -> PieceDone:
        """The neighbouring classes of every class, nearest first."""
        with self._loading("generate.embedder"):
            from autoaug_ray.generate.embeddings import class_embeddings

            model = weights.resolve(self.settings.model, "stable-diffusion")
            rows = class_embeddings(names, self.settings.embedder, model, self.device)
        return PieceDone(prompts.nearest(rows, self.settings.neighbours))

    def caption(
        self, images: list[np.ndarray], hashes: Sequence[str], names: Sequence[str], key: str
    ) -> PieceDone:
        """Captions images (c, h, w) uint8 of these classes; `key`: the captioner's fingerprint."""
        prefix = self.settings.prefix
        rows = [Caption(h, n, prefix, key, "") for h, n in zip(hashes, names, strict=True)]
        path = self.bank.caption_path([row.key for row in rows])
        if path.exists():
            return PieceDone()
        if self._captioner is None:
            with self._loading("generate.captioner"):
                from autoaug_ray.generate.captions import Captioner

                self._captioner = Captioner(
                    weights.resolve(self.settings.captioner, "blip"),
                    device=self.device,
                    precision=self.settings.precision,
                )
        captioner = self._captioner
        texts = self._fitting(
            captioner, lambda: captioner.continuations(_tensor(images), names, prefix)
        )
        self.bank.write_captions(
            [row._replace(continuation=text) for row, text in zip(rows, texts, strict=True)]
        )
        return PieceDone(items=len(rows))

    def count(self, texts: Sequence[str], words: tuple[str, ...]) -> PieceDone:
        """Counts the tokens that the text encoder sees in each text; `words` name learned ones."""
        return PieceDone([self._editor_with(words).count_tokens(text) for text in texts])

    def invert(
        self, images: np.ndarray, labels: np.ndarray, names: Sequence[str], tokens: str
    ) -> PieceDone:
        """Learns a word per class on images (n, c, h, w) uint8 of `labels` (n,)."""
        path = self.bank.tokens_path(tokens)
        if not path.exists():
            with self._loading("generate.tokens"):
                from autoaug_ray.generate import inversion
            learned = inversion.invert(
                self.settings, _tensor(images), torch.tensor(labels), names, device=self.device
            )
            inversion.save(path, learned)
        return PieceDone()

    def edit(
        self,
        edits: Sequence[Edit],
        images: list[np.ndarray],
        index: Sequence[int],
        fingerprints: Fingerprints,
        words: tuple[str, ...],
    ) -> PieceDone:
        """Makes one shard; `index` says which of `images`, (c, h, w) uint8, each edit is of.

        `words` name the learned words that the prompts may hold.
        """
        path = self.bank.shard_path([edit.key for edit in edits])
        if path.exists():
            return PieceDone()
        editor = self._editor_with(words)
        from autoaug_ray.generate.img2img import Job

        sources = [torch.tensor(image) for image in images]
        jobs = [Job(sources[i], e.prompt, e.seed) for i, e in zip(index, edits, strict=True)]
        begin = _now(self.device)
        edited = self._fitting(editor, lambda: editor.edit(jobs))
        seconds = _now(self.device) - begin
        rejects = [one.reject for one in edited]
        pictures = [one.image for one in edited]
        write_shard(path, edits, pictures, rejects, self.settings, fingerprints)
        return PieceDone(
            items=len(edits),
            rejected=sum(reject is not None for reject in rejects),
            seconds=seconds * self.share,
            tflop=self._tflop(len(edits), len(images), len({edit.prompt for edit in edits})),
        )

    @contextmanager
    def _loading(self, field: str) -> Iterator[None]:
        """Charges what is in here as warm-up.

        Its errors become a RunError: every shard would meet them, so that none is set aside.
        """
        try:
            with self._meter.phase("warm_up"):
                yield
        except UserError:
            raise
        except Exception as error:
            raise RunError(
                f"{field}: could not be loaded ({type(error).__name__}: {error})."
            ) from error

    def _fitting(self, model: "Captioner | Editor | PipelineEditor", make: Callable[[], T]) -> T:
        """Calls `make()`, with half as many images per call whenever memory is too small.

        Raises RunError if not even one image fits.
        """
        while True:
            try:
                return make()
            except torch.OutOfMemoryError:
                if model.rows == 1:
                    raise RunError(
                        f"generate: not even one image at a time fits in the memory of "
                        f"{device_name(self.device)}; set generate.size or generate.precision "
                        "lower, or workers.gpus higher."
                    ) from None
            # Out here nothing holds the tensors of the call that failed any more.
            torch.cuda.empty_cache()
            self._rows = model.rows = model.rows // 2

    def _tflop(self, edits: int, sources: int, prompts: int) -> float:
        """The TFLOP of so many edits; 0 for a model whose work cannot be counted."""
        from autoaug_ray.generate import flops

        try:
            if self._work is None:
                self._work = flops.of_model(self.settings)
            some = flops.Device(1, 1, 1)  # only its hours would depend on it
            return (
                1e6
                * flops.forecast(
                    self.settings, edits, some, sources=sources, prompts=prompts, work=self._work
                ).eflop
            )
        except Exception:  # the figure is only shown
            return 0.0

    def _editor_with(self, words: tuple[str, ...]) -> "Editor | PipelineEditor":
        """The editor that knows these words; loaded once, and again for other words."""
        if self._editor is None or self._words != words:
            self._captioner = self._editor = None  # their memory is needed
            with self._loading("generate.model"):
                from autoaug_ray.generate.any_pipeline import PipelineEditor
                from autoaug_ray.generate.img2img import Editor

                kind: type[Editor] | type[PipelineEditor] = Editor
                if self.settings.solver == "own":
                    kind = PipelineEditor
                self._editor = kind(
                    self.settings,
                    device=self.device,
                    batch_size=self.workers.batch_size,
                    compile=self.workers.compile,
                    tokens=[self.bank.tokens_path(word) for word in words],
                )
            self._words = words
        return self._editor


def _tensor(images: Sequence[np.ndarray] | np.ndarray) -> Tensor:
    """(n, c, h, w) uint8; a copy, since what Ray hands over cannot be written to."""
    return torch.from_numpy(np.stack(list(images)))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()
