"""The cost of an edited image: the package's editor beside a plain loop of diffusers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from scipy import stats
from torch import Tensor, nn

from autoaug_ray import data
from autoaug_ray.bench import DATASET, Outcome, device_of, now
from autoaug_ray.errors import UserError
from autoaug_ray.generate.settings import Generation
from autoaug_ray.store import meter as metering

if TYPE_CHECKING:
    from autoaug_ray.generate.img2img import Job

DAFUSION = {"solver": "pndm", "calls": 50, "strength": 0.5}
"""DAFusion's steps and strength; its guidance is 7.5."""
STRENGTH = 0.5  # of both
EPOCHS = 8  # of the judge


class Round(NamedTuple):
    """What one way did in one round."""

    seconds: float
    in_networks: float  # the seconds of them in a network
    images: list[Tensor]  # (C, H, W) uint8


def generate(
    *,
    sources: Annotated[int, "images that each round edits"] = 16,
    edits: Annotated[int, "of each of them"] = 4,
    rounds: Annotated[int, "of both, one after the other; each has sources of its own"] = 3,
    guidance: Annotated[float, "of both"] = 4.0,
    device: Annotated[str, "cpu or cuda"] = "cpu",
) -> Outcome:
    """Seconds per edited image, in batches and one by one, at what class consistency."""
    from autoaug_ray.generate import flops
    from autoaug_ray.generate.img2img import Editor, Job
    from autoaug_ray.generate.tiny.quality import Judge

    where = device_of(device)
    if guidance < 1:
        raise UserError(f"--guidance must be at least 1, got {guidance}.")
    splits = data.load(DATASET, val_fraction=None, device="cpu")
    if rounds * sources > len(splits.test):
        raise UserError(
            f"--rounds times --sources must be at most {len(splits.test)}, the test images."
        )
    pool, test = splits.train.load(), splits.test.load()
    judge = Judge(pool.images[:, 0].numpy(), pool.labels.numpy(), EPOCHS)
    ours = Generation(strength=STRENGTH, guidance=guidance)
    theirs = Generation.model_validate({**DAFUSION, "guidance": guidance})
    editor = Editor(ours, device=where, batch_size=sources * edits)
    plain = _Plain(theirs, where)
    ways = {"editor": _timed(editor.edit, editor._pipe), "plain": _timed(plain.edit, plain.pipe)}

    def jobs(first: int, count: int) -> list[Job]:
        return [
            Job(test.images[i], f"a photo of a {_name(splits, i)}", seed=edits * i + k)
            for i in range(first, first + count)
            for k in range(edits)
        ]

    for way in ways.values():
        way(jobs(len(splits.test) - 1, 1))  # the first call of everything
    rounds_of: dict[str, list[Round]] = {name: [] for name in ways}
    for r in range(rounds):
        for name, way in ways.items():
            rounds_of[name].append(way(jobs(r * sources, sources)))

    labels = splits.test.labels[: rounds * sources].numpy()
    n = sources * edits
    # A prompt per class; the plain loop encodes the source, its prompt and the empty one each time.
    prompts = round(len(splits.classes) / rounds)
    a100 = flops.DEVICES["A100"]
    gflop = {
        "editor": flops.forecast(ours, n, a100, sources=sources, prompts=prompts),
        "plain": flops.forecast(theirs, n, a100, prompts=2 * n),
    }
    rows = []
    for name, settings in (("editor", ours), ("plain", theirs)):
        images = torch.cat([torch.stack(one.images) for one in rounds_of[name]])
        right = judge.classes(images[:, 0].numpy()) == labels.repeat(edits)
        row = _speed(rounds_of[name], rounds_of["plain"], n, gflop[name].tflop_per_image * 1e3)
        rows.append(
            {
                "name": name,
                "calls": flops.unet_calls(settings),
                **row,
                "recognised": _share(int(right.sum()), len(right)),
            }
        )
    real = judge.classes(test.images[: rounds * sources, 0].numpy())
    figures = {
        "device": metering.device_name(where),
        "images": rounds * n,
        "sources": rounds * sources,
        "guidance": guidance,
        "strength": STRENGTH,
        "ways": rows,
        "sources_recognised": _share(int((real == labels).sum()), len(real)),
    }
    return Outcome(figures, [_table(figures)])


def _speed(rounds: Sequence[Round], plain: Sequence[Round], n: int, gflop: float) -> dict[str, Any]:
    """The speed of a way in rounds of `n` edits, of `gflop` each, and relative to the plain way."""
    seconds = float(np.median([one.seconds / n for one in rounds]))
    total = sum(one.seconds for one in rounds)
    return {
        "seconds": seconds,
        "speedup": _quartiles(
            [theirs.seconds / one.seconds for theirs, one in zip(plain, rounds, strict=True)]
        ),
        "gflop": gflop,
        "gflops": gflop / seconds,
        "outside": 1 - sum(one.in_networks for one in rounds) / total,
    }


class _Plain:
    """A pipeline as it comes, called once per image: what DAFusion's code does."""

    def __init__(self, settings: Generation, device: torch.device) -> None:
        from autoaug_ray.generate import pipeline

        self.settings, self.pipe = settings, pipeline.load(settings, device)
        self.pipe.set_progress_bar_config(disable=True)
        self.side = pipeline.side(settings, self.pipe)

    def edit(self, jobs: "Sequence[Job]") -> "list[Any]":
        from autoaug_ray.generate import resize
        from autoaug_ray.generate.img2img import Edited

        edited = []
        for job in jobs:
            # DAFusion stretches; the model at hand was trained on padded images.
            image = self.pipe(
                prompt=job.prompt,
                image=resize.enlarge(job.image[None] / 255, self.side),
                strength=self.settings.strength,
                num_inference_steps=self.settings.calls,
                guidance_scale=self.settings.guidance,
                generator=torch.Generator().manual_seed(job.seed),
                output_type="pt",
            ).images.cpu()
            channels, height, width = job.image.shape
            back = resize.reduce(image, (channels, height, width))[0]
            edited.append(Edited((back * 255).round().to(torch.uint8), None))
        return edited


def _timed(edit: Callable[..., Any], pipe: Any) -> "Callable[[Sequence[Job]], Round]":
    networks = [pipe.unet, pipe.text_encoder, pipe.vae.encoder, pipe.vae.decoder]

    def once(jobs: "Sequence[Job]") -> Round:
        with _clock(networks, pipe.device) as inside:
            begin = now(pipe.device)
            edited = edit(jobs)
            seconds = now(pipe.device) - begin
        return Round(seconds, sum(inside), [one.image for one in edited])

    return once


@contextmanager
def _clock(networks: Sequence[nn.Module], device: torch.device) -> Iterator[list[float]]:
    """The seconds of every call of a network; on a GPU it waits for each, as a loop would not."""
    spent: list[float] = []
    began: list[float] = []
    hooks = []
    for network in networks:
        hooks.append(network.register_forward_pre_hook(lambda *_: began.append(now(device))))
        hooks.append(
            network.register_forward_hook(lambda *_: spent.append(now(device) - began.pop()))
        )
    try:
        yield spent
    finally:
        for hook in hooks:
            hook.remove()


def forecast(
    *,
    images: Annotated[int, "to make"] = 45_420,
    per_source: Annotated[int, "edits of each source"] = 20,
    size: Annotated[int, "pixels a side"] = 512,
) -> Outcome:
    """Stable Diffusion v1.4 on GPUs: arithmetic, and assumed shares of their peak."""
    from autoaug_ray.generate import flops

    if size % 8:
        raise UserError(f"--size must be a multiple of 8, got {size}.")
    base = Generation(model=flops.SD14, size=size, guidance=7.5)
    recipes = {
        "editor": (base, True),
        "loop": (base.model_copy(update=DAFUSION), False),
        "batches": (base.model_copy(update=DAFUSION), True),
    }
    counted, rows = flops.of_model(base), []
    for device, figures in flops.DEVICES.items():
        for name, (settings, batched) in recipes.items():
            # A loop keeps nothing: source, prompt and empty prompt are encoded each time.
            found = flops.forecast(
                settings, images, figures, work=counted, batched=batched,
                sources=images // per_source if batched else images,
                prompts=images // per_source if batched else 2 * images,
            )  # fmt: skip
            rows.append(
                {
                    "device": device,
                    "recipe": name,
                    "share": figures.batched if batched else figures.single,
                    "calls": flops.unet_calls(settings),
                    "images_per_hour": images / found.device_hours,
                    **found._asdict(),
                }
            )
    out = {"images": images, "size": size, "unet_gflop": counted.unet, "rows": rows}
    return Outcome(out, [_forecast_table(out)])


def _forecast_table(f: dict[str, Any]) -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        title=f"Stable Diffusion v1.4, {f['images']:,} edits at {f['size']} pixels",
        caption=f"{f['unet_gflop']:.0f} GFLOP per call of the UNet, counted; guidance doubles it. "
        "Loop: DAFusion's recipe (50 PNDM steps at strength 0.5), one image per call; batches: the "
        "same in batches. TFLOP: per image; EFLOP, hours and GB: of all. The share of peak is an "
        "assumption, no measurement; generate/flops.py says where it is from.",
    )
    table.add_column("device", no_wrap=True)
    table.add_column("recipe", no_wrap=True)
    for column in ("calls", "TFLOP", "EFLOP", "% peak", "images/h", "hours", "GB"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in f["rows"]:
        table.add_row(
            row["device"], row["recipe"], str(row["calls"]), f"{row['tflop_per_image']:.1f}",
            f"{row['eflop']:.2f}", f"{100 * row['share']:.0f}",
            f"{row['images_per_hour']:,.0f}", f"{row['device_hours']:.1f}",
            f"{row['gigabytes']:.1f}",
        )  # fmt: skip
    return table


def _table(f: dict[str, Any]) -> Table:
    editor, plain = f["ways"]
    table = Table(
        box=SIMPLE_HEAD,
        title=f"{f['images']} edits of {f['sources']} test images on {f['device']}, "
        f"the embedded model, strength {f['strength']:g}, guidance {f['guidance']:g}",
        caption="Plain: one call of diffusers' pipeline per image, 50 PNDM steps. Times faster: "
        "median over rounds that alternate, and quartiles. Outside: share of the time that no "
        "network runs. Recognised, in %: a small CNN trained on the pool sees the source's class; "
        "95 % Wilson intervals, as if edits of one source were "
        f"independent (the sources themselves: {_percent(f['sources_recognised'])}).",
    )
    for column in ("", "calls", "s/image", "faster", "GFLOP/s", "outside", "recognised"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for row in (editor, plain):
        low, middle, high = row["speedup"]
        table.add_row(
            row["name"], str(row["calls"]), f"{row['seconds']:.4f}",
            f"{middle:.1f} ({low:.1f}-{high:.1f})", f"{row['gflops']:.1f}",
            f"{100 * row['outside']:.1f} %",
            _percent(row["recognised"]),
        )  # fmt: skip
    return table


def _share(hits: int, n: int) -> tuple[float, float, float]:
    """The estimate of a probability, and its 95 % Wilson interval."""
    interval = stats.binomtest(hits, n).proportion_ci(method="wilson")
    return hits / n, float(interval.low), float(interval.high)


def _percent(share: Sequence[float]) -> str:
    value, low, high = (100 * s for s in share)
    return f"{value:.1f} ({low:.1f}-{high:.1f})"


def _quartiles(values: Sequence[float]) -> list[float]:
    out: list[float] = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return out


def _name(splits: data.Splits, i: int) -> str:
    return splits.classes[int(splits.test.labels[i])]
