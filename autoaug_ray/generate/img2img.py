"""Edits of real images by a prompt: noise them to a level, denoise them towards the text (SDEdit).

Notation (AutoGenDA, section 3.2; DDPM):

    x0          latents of the source image: the mode of the VAE's posterior, not a sample of it
    abar_t      share of signal at timestep t of T = 1000
    lambda_t    log-SNR / 2 = log sqrt(abar_t / (1 - abar_t)); falls with t
    t0          timestep at which an edit starts: x_t0 = sqrt(abar_t0) x0 + sqrt(1 - abar_t0) noise

**Strength is a noise level here**: t0 = round(T * strength) - 1, and `calls` counts UNet calls. In
diffusers it is neither: `strength` keeps int(steps * strength) steps of the schedule, and where
that begins depends on the scheduler and its spacing. The solver `dpm++` is DPM-Solver++ (2M) at
`calls` timesteps whose lambda is uniform between t0 and 0. The solver `pndm` is what DAFusion runs:
plain diffusers with its strength and its PNDM. On the embedded model (strength 0.6, guidance 4, 32
images) 10 calls of dpm++ end 0.0024 from what 300 calls give (root mean square, of 1), 6 calls
0.006, and the 31 calls of 50 PNDM steps 0.012.

**What an image depends on**: its job, the settings and the weights. Not the other jobs of a call,
their order or `batch_size`. A generator per job draws the noise, on the CPU. And because a kernel
may add up in another order when its input has another shape, every call of a network has the same
number of rows: the last ones are filled up. Found with torch 2.14 on a CPU, float32: between batch
sizes a UNet's rows differ by 3e-6, which flips one uint8 in some 50,000; in batches of one shape
they are the same bits, whatever their place and their neighbours. So on a CPU calls have ROWS rows
and the bytes are the same for every `batch_size`. They are not for another processor, version of
torch or number of threads (1 or 2: one value in 35,000 differs). On a GPU calls have `batch_size`
rows, and images of different batch sizes agree up to rounding only.
"""

import hashlib
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from diffusers import DPMSolverMultistepScheduler, PNDMScheduler
from torch import Tensor

from autoaug_ray.errors import UserError
from autoaug_ray.generate import inversion, pipeline, resize, weights
from autoaug_ray.generate.pipeline import ROWS, Pipeline
from autoaug_ray.generate.settings import Generation
from autoaug_ray.store.places import Place

CACHED = 2048
"""Sources and prompts whose latents and embeddings are kept: at 512 pixels 32 and 118 KB each."""
FLAT = 2
"""An image whose pixels span no more than this, of 255, shows nothing."""

T = TypeVar("T")


class Job(NamedTuple):
    image: Tensor  # (C, H, W) uint8, C 1 or 3
    prompt: str
    seed: int


class Edited(NamedTuple):
    image: Tensor  # (C, H, W) uint8, the source's shape; black if not finite
    reject: str | None
    """None, "not finite" or "flat": why this image must not train anything."""


class Editor:
    """A Stable Diffusion on one device, and what it has already encoded."""

    def __init__(
        self,
        settings: Generation,
        *,
        device: torch.device,
        batch_size: int,
        compile: bool = False,
        tokens: Sequence[Place] = (),
    ) -> None:
        """`tokens`: files of `inversion.save`. Raises UserError for what cannot work."""
        self._settings, self._tokens = settings, tokens
        self._pipe = pipe = pipeline.stable_diffusion(settings, device, f"solver {settings.solver}")
        self.side = pipeline.side(settings, pipe)
        pipe.scheduler = _solver(settings, pipe)
        self._timesteps: list[int] = []
        if settings.solver == "dpm++":
            abar = pipe.scheduler.alphas_cumprod
            self._timesteps = timesteps(abar, settings.strength, settings.calls)
        self.rows = ROWS if device.type == "cpu" else batch_size
        inversion.add_learned(pipe, tokens)
        if device.type == "cuda":
            for network in (pipe.unet, pipe.vae):
                network.to(memory_format=torch.channels_last)
        if compile:
            pipe.unet.compile()
            pipe.vae.decoder.compile()
        self._latents = _Cache(self._encode_images)
        self._embeddings = _Cache(self._encode_prompts)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of weights, learned tokens, precision, size, solver and timesteps.

        The hub is asked for the revision of a hub id.
        """
        settings, tokens = self._settings, self._tokens
        about = (
            weights.fingerprint(weights.resolve(settings.model, "stable-diffusion")),
            "".join(hashlib.sha256(file.read_bytes()).hexdigest() for file in tokens),
            settings.precision, str(self.side), settings.solver, str(self._timesteps),
        )  # fmt: skip
        return hashlib.sha256("\n".join(about).encode()).hexdigest()[:16]

    def count_tokens(self, text: str) -> int:
        """How many tokens the text has, with start and end.

        Stable Diffusion's text encoder reads 77 and drops what follows.
        """
        pipe = self._pipe
        return len(pipe.tokenizer(pipe.maybe_convert_prompt(text, pipe.tokenizer)).input_ids)

    def edit(self, jobs: Sequence[Job]) -> list[Edited]:
        """One edited image per job, in their order."""
        if not jobs:
            return []
        # A caller's autocast would change what is made.
        with torch.inference_mode(), torch.autocast(self._pipe.device.type, enabled=False):
            latents = self._latents.get({_key(job.image): job.image for job in jobs})
            embeddings = self._embeddings.get({job.prompt: job.prompt for job in jobs} | {"": ""})
            edited: list[Edited] = []
            for some, filled in calls_of(jobs, self.rows):
                denoised = self._denoise(
                    torch.stack([latents[_key(job.image)] for job in filled]),
                    torch.stack([embeddings[job.prompt] for job in filled]),
                    torch.stack([embeddings[""]] * len(filled)),
                    [job.seed for job in filled],
                )
                images = self._decode(denoised)
                edited += [finish(x, job.image) for x, job in zip(images, some, strict=False)]
        return edited

    def _denoise(self, x0: Tensor, prompts: Tensor, empty: Tensor, seeds: Sequence[int]) -> Tensor:
        """Edits latents (n, 4, h, w) towards embeddings (n, tokens, width).

        Latents are float32 between calls of the UNet, whatever its precision.
        """
        unet, scheduler, guidance = self._pipe.unet, self._pipe.scheduler, self._settings.guidance
        text = torch.cat([empty, prompts]) if guidance > 1 else prompts
        noise = [torch.randn(x0.shape[1:], generator=_generator(seed)) for seed in seeds]
        at = self._start()
        x: Tensor = scheduler.add_noise(x0, torch.stack(noise).to(x0), at[:1].repeat(len(x0)))
        for t in at:
            rows = torch.cat([x, x]) if guidance > 1 else x
            predicted = unet(rows.to(unet.dtype), t, encoder_hidden_states=text).sample.float()
            if guidance > 1:
                without, with_text = predicted.chunk(2)
                predicted = without + guidance * (with_text - without)
            x = scheduler.step(predicted, t, x).prev_sample
        return x

    def _start(self) -> Tensor:
        """Sets the solver back to its start; returns the timesteps that it will go through."""
        pipe, settings = self._pipe, self._settings
        if settings.solver == "pndm":
            pipe.scheduler.set_timesteps(settings.calls, device=pipe.device)
            at: Tensor = pipe.get_timesteps(settings.calls, settings.strength, pipe.device)[0]
            return at
        with warnings.catch_warnings():  # by DPMSolverMultistepScheduler with numpy 2.4
            warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
            pipe.scheduler.set_timesteps(timesteps=self._timesteps, device=pipe.device)
        at = pipe.scheduler.timesteps
        return at

    def _decode(self, latents: Tensor) -> Tensor:
        """(n, 4, h, w) -> images (n, 3, side, side), about [0, 1], not finite where that failed."""
        vae = self._pipe.vae
        scaled = (latents / vae.config.scaling_factor).to(vae.dtype)
        decoded: Tensor = vae.decode(scaled).sample
        return (decoded.float() / 2 + 0.5).cpu()

    def _encode_images(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Images (C, H, W) uint8 of any shapes -> latents (4, h, w)."""
        latents: list[Tensor] = []
        for some, filled in calls_of(images, self.rows):
            x = torch.cat([resize.enlarge(image[None] / 255, self.side) for image in filled])
            latents += list(pipeline.encode(self._pipe, x)[: len(some)])
        return latents

    def _encode_prompts(self, prompts: Sequence[str]) -> list[Tensor]:
        """Prompts -> embeddings (tokens, width)."""
        embeddings: list[Tensor] = []
        for some, filled in calls_of(prompts, self.rows):
            found, _ = self._pipe.encode_prompt(list(filled), self._pipe.device, 1, False)
            embeddings += list(found[: len(some)])
        return embeddings


def calls_of(items: Sequence[T], rows: int) -> Iterator[tuple[Sequence[T], list[T]]]:
    """For each call of a network: its items, and these filled up to its number of rows."""
    for i in range(0, len(items), rows):
        some = items[i : i + rows]
        yield some, [*some, *[some[-1]] * (rows - len(some))]


def timesteps(abar: Tensor, strength: float, calls: int) -> list[int]:
    """`calls` different timesteps from t0 down, their lambda as uniform as integers allow.

    `abar`: (T,), falling. From t0 to 0 there are `calls` intervals, and the last one is the step to
    the image itself. Raises UserError if there are not so many timesteps.
    """
    t0 = max(round(len(abar) * strength) - 1, 0)
    if calls > t0 + 1:
        raise UserError(
            f"generate.calls must be at most {t0 + 1} at strength {strength}, got {calls}."
        )
    half_log_snr = (abar.double() / (1 - abar.double())).log() / 2
    grid = torch.linspace(float(half_log_snr[t0]), float(half_log_snr[0]), calls + 1)[:-1]
    nearest = (half_log_snr[None] - grid.double()[:, None]).abs().argmin(1).tolist()
    # Near 0 lambda changes so much per timestep that neighbours may fall together.
    for k in reversed(range(calls - 1)):
        nearest[k] = max(nearest[k], nearest[k + 1] + 1)
    return [min(t, t0 - k) for k, t in enumerate(nearest)]


def _solver(settings: Generation, pipe: Pipeline) -> Any:
    """The scheduler of diffusers that `settings.solver` names, for the model's noise levels."""
    if settings.solver == "dpm++":
        return DPMSolverMultistepScheduler(**pipeline.noise_levels(pipe))
    if int(settings.calls * settings.strength) < 1:
        raise UserError(
            f"generate.calls: pndm runs int(calls * strength) steps, which is 0 for "
            f"{settings.calls} and {settings.strength}."
        )
    return PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def finish(image: Tensor, source: Tensor) -> Edited:
    """(3, side, side), about [0, 1] -> uint8 of the source's shape."""
    if not bool(image.isfinite().all()):
        return Edited(torch.zeros_like(source), "not finite")
    channels, height, width = source.shape
    x = resize.reduce(image[None].clamp(0, 1), (channels, height, width))[0]
    edited = (x * 255).round().to(torch.uint8)
    span = int(edited.max()) - int(edited.min())
    return Edited(edited, "flat" if span <= FLAT else None)


def _key(image: Tensor) -> Hashable:
    content = image.cpu().contiguous().numpy()
    return tuple(image.shape), hashlib.blake2b(content.tobytes(), digest_size=16).digest()


class _Cache(Generic[T]):
    """Results of `compute`, of the CACHED most recently used items (of more within one get)."""

    def __init__(self, compute: Callable[[Sequence[T]], list[Tensor]]) -> None:
        self._compute = compute
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()

    def get(self, items: Mapping[Any, T]) -> dict[Any, Tensor]:
        missing = {key: item for key, item in items.items() if key not in self._kept}
        computed = self._compute(list(missing.values()))
        self._kept.update(zip(missing, computed, strict=True))
        for key in items:
            self._kept.move_to_end(key)
        found = {key: self._kept[key] for key in items}
        while len(self._kept) > CACHED:
            self._kept.popitem(last=False)
        return found
