"""Edits, against diffusers' own calls and against arithmetic; of a model with random weights."""

import math
import warnings

import pytest
import tiny_sd
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionImg2ImgPipeline
from torch import nn

from autoaug_ray.errors import UserError
from autoaug_ray.generate import img2img, pipeline, resize
from autoaug_ray.generate.img2img import Editor, Job, timesteps
from autoaug_ray.generate.settings import Generation

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_sd.save(tmp_path_factory.mktemp("sd") / "tiny"))


@pytest.fixture
def editor(model):
    def make(*, batch_size=32, tokens=(), **settings):
        settings = Generation(**{"model": model, "calls": 4, **settings})
        return Editor(settings, device=CPU, batch_size=batch_size, tokens=tokens)

    return make


def images(n, shape=(3, 48, 40), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, *shape), generator=generator, dtype=torch.uint8)


def jobs(n, shape=(3, 48, 40)):
    """Several edits per source and per prompt, in no order."""
    sources, prompts = images(5, shape), ["a red cat", "a photo of a dog on grass", "a blue dog"]
    return [Job(sources[i % 5], prompts[i % 3], seed=i) for i in range(n)]


def pixels(edited):
    return [one.image for one in edited]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class Calls:
    """What a network was called with, call by call."""

    def __init__(self, network):
        self.inputs, self.at = [], []
        network.register_forward_hook(self, with_kwargs=True)

    def __call__(self, module, arguments, keywords, output):
        self.inputs.append(arguments[0].clone())
        self.at += [int(t) for t in arguments[1:2]]


# Resizing.


def test_small_images_are_padded_and_come_back_exactly():
    x = images(3, (1, 28, 28)) / 255
    big = resize.enlarge(x, 32)
    assert big.shape == (3, 3, 32, 32)
    assert torch.equal(big[:, 0, 2:30, 2:30], x[:, 0])
    assert big.sum() == pytest.approx(3 * float(x.sum()))
    torch.testing.assert_close(resize.reduce(big, (1, 28, 28)), x)
    odd = images(2, (3, 29, 32)) / 255
    assert torch.equal(resize.reduce(resize.enlarge(odd, 32), (3, 29, 32)), odd)


@pytest.mark.parametrize("shape", [(1, 27, 32), (3, 33, 32), (3, 100, 60)])
def test_other_sizes_are_stretched(shape):
    x = torch.linspace(0, 1, shape[1])[:, None].expand(2, *shape)
    big = resize.enlarge(x, 32)
    assert big.shape == (2, 3, 32, 32) and 0 <= big.min() and big.max() <= 1
    assert big[:, :, 0].max() < 0.05 and big[:, :, -1].min() > 0.95  # no black border
    torch.testing.assert_close(resize.reduce(big, shape), x, atol=0.03, rtol=0)


# Timesteps.


def half_log_snr():
    """Stable Diffusion's, from its definition."""
    betas = [
        math.sqrt(0.00085) + i / 999 * (math.sqrt(0.012) - math.sqrt(0.00085)) for i in range(1000)
    ]
    abar, out = 1.0, []
    for root in betas:
        abar *= 1 - root**2
        out.append(math.log(abar / (1 - abar)) / 2)
    return out


def test_timesteps_are_uniform_in_log_snr():
    lam = half_log_snr()
    abar = torch.tensor(lam, dtype=torch.float64).mul(2).sigmoid()
    at = timesteps(abar, 0.6, 10)
    assert len(at) == 10 and at[0] == 599
    step = (lam[0] - lam[599]) / 10
    for k, t in enumerate(at):
        wanted = lam[599] + k * step
        assert abs(lam[t] - wanted) <= min(abs(lam[u] - wanted) for u in range(1000)) + 1e-9


@pytest.mark.parametrize(
    ("strength", "calls"), [(0.02, 20), (0.5, 500), (1.0, 1000), (1.0, 50), (0.3, 2)]
)
def test_timesteps_all_differ(strength, calls):
    abar = torch.tensor(half_log_snr(), dtype=torch.float64).mul(2).sigmoid()
    at = timesteps(abar, strength, calls)
    assert at[0] == round(1000 * strength) - 1 and len(at) == calls and at[-1] >= 0
    assert all(a > b for a, b in zip(at, at[1:], strict=False))
    with pytest.raises(UserError, match="calls must be at most"):
        timesteps(abar, strength, round(1000 * strength) + 1)


def test_one_call_is_the_models_own_guess_of_the_image(editor):
    """x0 = (x_t0 - sqrt(1 - abar) eps) / sqrt(abar), without guidance."""
    one, job = editor(calls=1, guidance=0.0, strength=0.5), jobs(1, (3, 64, 64))[0]
    pipe, t0 = one._pipe, 499
    with torch.no_grad():
        x0 = pipeline.encode(pipe, job.image[None] / 255)
        noise = torch.randn(x0.shape[1:], generator=torch.Generator().manual_seed(job.seed))
        abar = pipe.scheduler.alphas_cumprod[t0]
        noisy = abar.sqrt() * x0 + (1 - abar).sqrt() * noise
        text, _ = pipe.encode_prompt([job.prompt], CPU, 1, False)
        eps = pipe.unet(noisy, t0, encoder_hidden_states=text).sample
        guess = (noisy - (1 - abar).sqrt() * eps) / abar.sqrt()
        image = pipe.vae.decode(guess / pipe.vae.config.scaling_factor).sample[0] / 2 + 0.5
    edited = one.edit([job])[0].image
    assert float((edited - 255 * image.clamp(0, 1)).abs().max()) < 0.51


def test_timesteps_of_a_schedule_that_is_steep_at_its_start():
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    cosine = (t * math.pi / 2).cos().square().clamp(1e-12, 1 - 1e-12)
    for strength, calls in [(1.0, 1000), (1.0, 900), (0.5, 450), (0.9, 10)]:
        at = timesteps(cosine, strength, calls)
        assert at[0] == round(1000 * strength) - 1 and len(at) == calls and at[-1] >= 0
        assert all(a > b for a, b in zip(at, at[1:], strict=False))


# Against diffusers.


def plain(model, job, side=tiny_sd.SIDE, scheduler=None, **arguments):
    """One call of the pipeline for one image -> (3, side, side) in [0, 1]."""
    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    if scheduler is not None:
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    x = resize.enlarge(job.image[None] / 255, side)
    with torch.no_grad():
        x0 = pipe.vae.encode(pipe.image_processor.preprocess(x)).latent_dist.mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        out = pipe(
            prompt=job.prompt, image=x0 * pipe.vae.config.scaling_factor, output_type="pt",
            generator=torch.Generator().manual_seed(job.seed), **arguments,
        ).images[0]  # fmt: skip
    return resize.reduce(out[None], tuple(job.image.shape))[0]


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_dpm_is_the_pipelines_own_call(model, editor, guidance):
    here = editor(guidance=guidance, calls=6, strength=0.6)
    at = timesteps(torch.tensor(half_log_snr()).mul(2).sigmoid(), 0.6, 6)
    some = jobs(3)
    for job, edited in zip(some, here.edit(some), strict=True):
        theirs = plain(
            model, job, scheduler=DPMSolverMultistepScheduler,
            strength=1.0, timesteps=at, guidance_scale=guidance,
        )  # fmt: skip
        assert (edited.image / 255 - theirs).abs().max() < 0.51 / 255
        assert edited.reject is None


def test_pndm_is_plain_diffusers(model, editor):
    some = jobs(2)
    edited = editor(solver="pndm", calls=10, strength=0.5, guidance=7.5).edit(some)
    for job, one in zip(some, edited, strict=True):
        theirs = plain(model, job, strength=0.5, num_inference_steps=10, guidance_scale=7.5)
        assert (one.image / 255 - theirs).abs().max() < 0.51 / 255


@pytest.mark.parametrize(("strength", "calls"), [(0.6, 4), (0.25, 7), (1.0, 3)])
def test_calls_of_the_unet(editor, strength, calls):
    here = editor(strength=strength, calls=calls)
    seen = Calls(here._pipe.unet)
    here.edit(jobs(3))
    assert len(seen.at) == calls
    assert seen.at[0] == round(1000 * strength) - 1
    assert {len(x) for x in seen.inputs} == {2 * img2img.ROWS}


def test_pndm_makes_one_call_more_than_it_keeps_steps(editor):
    here = editor(solver="pndm", calls=50, strength=0.5)
    seen = Calls(here._pipe.unet)
    here.edit(jobs(1))
    assert len(seen.at) == 26 and seen.at[0] == 501


def test_strength_is_a_noise_level(editor):
    here = editor(strength=0.4, guidance=1.0)
    seen = Calls(here._pipe.unet)
    job = jobs(1)[0]
    here.edit([job])
    with torch.no_grad():
        x = 2 * resize.enlarge(job.image[None] / 255, tiny_sd.SIDE) - 1
        vae = here._pipe.vae
        x0 = vae.encode(x).latent_dist.mode() * vae.config.scaling_factor
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(job.seed))
    abar = 1 / (1 + math.exp(-2 * half_log_snr()[399]))
    assert len(seen.inputs[0]) == img2img.ROWS  # guidance 1: no second half
    torch.testing.assert_close(
        seen.inputs[0][:1], math.sqrt(abar) * x0 + math.sqrt(1 - abar) * eps, atol=1e-4, rtol=0
    )


# What an image depends on.


def test_bytes_do_not_depend_on_batches_or_order(editor):
    some = jobs(21)
    whole = pixels(editor(batch_size=32).edit(some))
    here = editor(batch_size=3)
    seen = Calls(here._pipe.unet)
    assert same(pixels(here.edit(some[4:])), whole[4:])
    assert len({x.shape for x in seen.inputs}) == 1
    assert same(reversed(pixels(here.edit(some[::-1]))), whole)
    alone = [editor(batch_size=1).edit([job])[0].image for job in some[::5]]
    assert same(alone, whole[::5])
    assert not any(torch.equal(a, b) for a, b in zip(whole, whole[1:], strict=False))


def test_bytes_of_the_embedded_model(editor):
    some = jobs(9, shape=(1, 28, 28))
    whole = pixels(editor(model="embedded", calls=3).edit(some))
    last = pixels(editor(model="embedded", calls=3, batch_size=2).edit(some[:5:-1]))
    assert same(last[::-1], whole[6:])


def test_an_edit_is_its_image_its_prompt_and_its_seed(editor):
    a, b = images(2)
    here = editor()
    first, *others = pixels(
        here.edit([Job(a, "a cat", 0), Job(b, "a cat", 0), Job(a, "a dog", 0), Job(a, "a cat", 1)])
    )
    assert not any(torch.equal(first, other) for other in others)
    assert torch.equal(here.edit([Job(a, "a cat", 0)])[0].image, first)
    assert here.edit([]) == []


def test_a_callers_autocast_changes_nothing(editor):
    here, some = editor(), jobs(2)
    with torch.autocast("cpu", torch.bfloat16):
        inside = pixels(here.edit(some))
    assert same(inside, pixels(editor().edit(some)))


def test_sources_and_prompts_are_encoded_once(editor, monkeypatch):
    monkeypatch.setattr(img2img, "CACHED", 5)
    here = editor()
    vae, text = Calls(here._pipe.vae.encoder), Calls(here._pipe.text_encoder)
    first = pixels(here.edit(jobs(15)))  # of 5 sources, 3 prompts and the empty one
    assert len(vae.inputs) == len(text.inputs) == 1
    assert same(pixels(here.edit(jobs(15))), first)
    assert len(vae.inputs) == len(text.inputs) == 1
    other = Job(images(1, seed=1)[0], "the cat", 0)
    here.edit([other])
    assert len(vae.inputs) == len(text.inputs) == 2
    assert len(here._latents._kept) == len(here._embeddings._kept) == 5
    assert same(pixels(here.edit(jobs(15))), first) and len(vae.inputs) == 3


# Shapes, rejects, precision.


def test_every_image_keeps_its_shape(editor):
    here = editor(size=32)
    shapes = [(1, 28, 28), (3, 48, 40), (1, 100, 20), (3, 32, 32)]
    edited = here.edit([Job(images(1, shape)[0], "a cat", 0) for shape in shapes])
    assert [tuple(one.image.shape) for one in edited] == shapes
    assert {one.image.dtype for one in edited} == {torch.uint8}


def test_what_must_not_be_trained_on_is_rejected(editor):
    here = editor()
    fine = here.edit(jobs(3))
    assert {one.reject for one in fine} == {None}

    key = img2img._key(jobs(3)[1].image)
    with torch.inference_mode():
        here._latents._kept[key].fill_(math.nan)
    edited = here.edit(jobs(3))
    assert [one.reject for one in edited] == [None, "not finite", None]
    assert edited[1].image.shape == (3, 48, 40) and edited[1].image.max() == 0
    assert torch.equal(edited[2].image, fine[2].image)

    last = here._pipe.vae.decoder.conv_out
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, -2)
    black = here.edit(jobs(1))[0]
    assert black.reject == "flat" and black.image.max() == 0
    nn.init.constant_(last.bias, math.inf)
    assert here.edit(jobs(1))[0].reject == "not finite"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_pixel_is_enough(bad):
    image, source = torch.rand(3, 32, 32), images(1, (1, 28, 28))[0]
    assert img2img.finish(image, source).reject is None
    image[1, 0, 0] = bad  # even where the padding is
    assert img2img.finish(image, source).reject == "not finite"


@pytest.mark.parametrize("precision", ["fp64", "bf16"])
def test_precisions(editor, precision):
    some = jobs(3)
    exact, other = editor().edit(some), editor(precision=precision).edit(some)
    limit = 1 if precision == "fp64" else 40
    for a, b in zip(exact, other, strict=True):
        assert (a.image.int() - b.image.int()).abs().max() <= limit
        assert b.reject is None


def test_fingerprint(model, editor, tmp_path):
    base = editor().fingerprint
    assert len(base) == 16 and base == editor(batch_size=1).fingerprint
    others = [
        editor(precision="bf16"), editor(size=32), editor(calls=5), editor(solver="pndm"),
        editor(strength=0.5),
        editor(model=str(tiny_sd.save(tmp_path / "other", seed=1))),
    ]  # fmt: skip
    assert len({base, *(other.fingerprint for other in others)}) == 7


def test_count_tokens(editor):
    assert editor().count_tokens("a photo of a cat") == 7  # with start and end


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "./not/there"}, "no model folder at ./not/there"),
        ({"size": 60}, "generate.size must be a multiple of 8"),
        ({"strength": 0.003}, "calls must be at most 3"),
        ({"solver": "pndm", "strength": 0.1}, "pndm runs"),
    ],
)
def test_wrong_settings_are_one_sentence(editor, settings, words):
    with pytest.raises(UserError, match=words):
        editor(**settings)


def test_a_folder_that_is_no_model(editor, tmp_path):
    with pytest.raises(UserError, match="generate.model: cannot load"):
        editor(model=str(tmp_path))
