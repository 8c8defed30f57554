"""Learned words: what learns, what stays, and what is kept."""

import pytest
import tiny_sd
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file

from autoaug_ray.errors import UserError
from autoaug_ray.generate import inversion, pipeline
from autoaug_ray.generate.img2img import Editor, Job
from autoaug_ray.generate.settings import Generation, Tokens

CPU = torch.device("cpu")
NAMES = ["cat", "ankle boot"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_sd.save(tmp_path_factory.mktemp("sd") / "tiny"))


def settings(model, **tokens):
    tokens = {"steps": 5, "batch_size": 2, "vectors": 2, **tokens}
    return Generation(model=model, calls=3, size=32, tokens=Tokens(**tokens))


def pool():
    """Two classes that look different: (6, 1, 28, 28), dark and light."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 60, (6, 1, 28, 28), generator=generator, dtype=torch.uint8)
    images[3:] += 190
    return images, torch.tensor([0, 0, 0, 1, 1, 1])


def test_one_word_per_class(model):
    learned = inversion.invert(settings(model), *pool(), NAMES, device=CPU)
    assert list(learned) == ["<cat>", "<ankle_boot>"]
    assert {(v.shape, v.dtype) for v in learned.values()} == {((2, 32), torch.float32)}
    again = inversion.invert(settings(model), *pool(), NAMES, device=CPU)
    assert all(torch.equal(learned[k], again[k]) for k in learned)
    other = inversion.invert(settings(model, seed=1), *pool(), NAMES, device=CPU)
    assert not any(torch.equal(learned[k], other[k]) for k in learned)


def test_only_the_words_learn(model, monkeypatch):
    pipes = []

    def load(*arguments):
        pipes.append(pipeline_load(*arguments))
        return pipes[-1]

    pipeline_load = pipeline.load
    monkeypatch.setattr(pipeline, "load", load)
    learned = inversion.invert(settings(model), *pool(), NAMES, device=CPU)
    (pipe,), fresh = pipes, pipeline_load(settings(model), CPU)
    for part in ("unet", "vae", "text_encoder"):
        theirs = getattr(fresh, part).state_dict()
        for name, weight in getattr(pipe, part).state_dict().items():
            assert torch.equal(weight[: len(theirs[name])] if weight.ndim else weight, theirs[name])
            assert not weight.requires_grad
    the = fresh.tokenizer("the", add_special_tokens=False).input_ids
    start = fresh.text_encoder.get_input_embeddings().weight[the]
    for vectors in learned.values():
        assert 1e-4 < (vectors - start).abs().max() < 0.1
    table = pipe.text_encoder.get_input_embeddings()
    assert not table._forward_hooks


def test_a_class_that_is_not_drawn_keeps_its_word(model):
    one = settings(model, steps=1, batch_size=1, vectors=1, lr=0.1)
    learned = inversion.invert(one, *pool(), NAMES, device=CPU)
    pipe = pipeline.load(one, CPU)
    the = pipe.tokenizer("the", add_special_tokens=False).input_ids
    start = pipe.text_encoder.get_input_embeddings().weight[the]
    moved = [float((vectors - start).abs().max()) for vectors in learned.values()]
    assert sorted(m > 0.05 for m in moved) == [False, True]


@pytest.mark.parametrize("flip, shown", [(False, 1), (True, 2)])
def test_an_image_is_seen_in_its_mirror_if_asked(model, monkeypatch, flip, shown):
    how = settings(model, steps=12, batch_size=1, flip=flip)
    images, _ = pool()
    seen = []
    loss = inversion.denoising_loss
    monkeypatch.setattr(inversion, "denoising_loss", lambda *a: seen.append(a[2]) or loss(*a))
    inversion.invert(how, images[:1], torch.tensor([0]), ["cat"], device=CPU)
    pipe = pipeline.load(how, CPU)
    known = [inversion._encode(pipe, x, 32)[0] for x in (images[:1], images[:1].flip(-1))]
    which = {
        next(i for i, latents in enumerate(known) if torch.allclose(x0[0], latents, atol=1e-4))
        for x0 in seen
    }
    assert len(seen) == 12 and which == set(range(shown))


def test_the_loss_of_a_planted_class_falls(model):
    """Its word starts as "the"; noise and timesteps are the same before and after."""
    how = settings(model, steps=60, batch_size=4, vectors=1, lr=0.1)
    images, labels = pool()
    learned = inversion.invert(how, images, labels, NAMES, device=CPU)

    def loss(tokens):
        pipe = pipeline.load(how, CPU)
        inversion.add(pipe, tokens)
        noising = DDPMScheduler(**pipeline.noise_levels(pipe))
        generator = torch.Generator().manual_seed(1)
        x0 = inversion._encode(pipe, images[3:], 32).repeat(20, 1, 1, 1)
        t = torch.randint(1000, (60,), generator=generator)
        eps = torch.randn(x0.shape, generator=generator)
        with torch.no_grad():
            text = ["a photo of a <ankle_boot>"] * 60
            return float(inversion.denoising_loss(pipe, noising, x0, text, t, eps))

    pipe = pipeline.load(how, CPU)
    the = inversion._embedding_of("the", pipe)[None]
    before, after = loss(dict.fromkeys(learned, the)), loss(learned)
    assert after < before - 1e-3


@pytest.mark.parametrize("vectors", [1, 3])
def test_words_that_were_kept_edit_alike(model, tmp_path, vectors):
    path, how = tmp_path / "tokens.safetensors", settings(model, vectors=vectors)
    learned = inversion.invert(how, *pool(), NAMES, device=CPU)
    inversion.save(path, learned)
    assert all(torch.equal(v, learned[k]) for k, v in inversion.load(path).items())

    jobs = [Job(pool()[0][0], f"a photo of a {word}", 0) for word in ("<ankle_boot>", "<cat>")]
    editor = Editor(how, device=CPU, batch_size=2, tokens=[path])
    edits = [one.image for one in editor.edit(jobs)]
    pipe = editor._pipe
    assert editor.count_tokens("a photo of a <cat>") == 6 + vectors
    table = pipe.text_encoder.get_input_embeddings().weight
    ids = pipe.tokenizer.convert_tokens_to_ids(["<cat>", "<cat>_1", "<cat>_2"][:vectors])
    torch.testing.assert_close(table[ids], load_file(path)["<cat>"])

    again = Editor(how, device=CPU, batch_size=1, tokens=[path])
    assert all(torch.equal(a, b.image) for a, b in zip(edits, again.edit(jobs), strict=True))
    without = Editor(how, device=CPU, batch_size=2)
    assert without.fingerprint != editor.fingerprint == again.fingerprint
    inversion.save(path, {k: -v for k, v in learned.items()})
    changed = Editor(how, device=CPU, batch_size=2, tokens=[path])
    assert changed.fingerprint != editor.fingerprint
    assert not torch.equal(changed.edit(jobs)[0].image, edits[0])


def test_what_cannot_be_learned_or_read(model, tmp_path):
    images, labels = pool()
    with pytest.raises(UserError, match="class 'dog' has no images"):
        inversion.invert(settings(model), images, labels, [*NAMES, "dog"], device=CPU)
    with pytest.raises(UserError, match="must be one token .* 'xyz' is 3"):
        inversion.invert(settings(model, initializer="xyz"), images, labels, NAMES, device=CPU)
    path = tmp_path / "tokens.safetensors"
    with pytest.raises(UserError, match="cannot be read"):
        inversion.load(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match="cannot be read"):
        inversion.load(path)
    inversion.save(path, {"<cat>": torch.zeros(1, 7)})
    with pytest.raises(UserError, match="<cat> was learned for .* width 7, this one's have 32"):
        Editor(settings(model), device=CPU, batch_size=1, tokens=[path])
