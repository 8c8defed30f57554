import json
import shutil
import sys

import pytest
import tiny_blip2
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from autoaug_ray import data
from autoaug_ray.errors import UserError
from autoaug_ray.generate import captions, prompts, weights
from autoaug_ray.generate.captions import Captioner
from autoaug_ray.generate.tiny import attributes

CPU = torch.device("cpu")
PREFIX = "a photo of a {name} which"
NAMES = ["cat", "dog", "ankle boot", "cat", "t-shirt", "cat", "dog"]
KINDS = {
    "blip2": tiny_blip2.save_blip2,
    "blip": tiny_blip2.save_blip,
    "git": tiny_blip2.save_git,
    "llava": tiny_blip2.save_llava,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("captioners")
    return {kind: save(root / kind) for kind, save in KINDS.items()}


@pytest.fixture(scope="module")
def blip2(folders):
    return Captioner(str(folders["blip2"]), device=CPU)


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    size = (len(NAMES), 3, tiny_blip2.SIDE, tiny_blip2.SIDE)
    return torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)


def singly(captioner, images, names):
    return [
        captioner.continuations(images[i : i + 1], [name], PREFIX)[0]
        for i, name in enumerate(names)
    ]


@torch.no_grad()
def by_hand(folder, kind, image, name):
    """The most probable token after the prompt, again and again, from the logits alone."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    text = ("<image>" if kind == "llava" else "") + PREFIX.format(name=name)
    inputs = processor(images=[image], text=[text], return_tensors="pt")
    ids = inputs["input_ids"]
    if kind in ("blip", "git"):
        ids = ids[:, :-1]  # the separator, which would end the caption before it begins
    if kind == "blip":
        ids[:, 0] = processor.tokenizer.convert_tokens_to_ids("[DEC]")
    start = ids.shape[1]
    stop = processor.tokenizer.sep_token_id or processor.tokenizer.eos_token_id
    for _ in range(captions.MAX_NEW_TOKENS):
        out = model(
            pixel_values=inputs["pixel_values"],
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
        )
        ids = torch.cat([ids, out.logits[:, -1:].argmax(-1)], dim=1)
        if ids[0, -1] == stop:
            break
    text = processor.tokenizer.decode(ids[0, start:], skip_special_tokens=True)
    return prompts.clean(text.strip().partition("\n")[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_continuation_is_what_greedy_choice_by_hand_says_after_the_prompt(folders, kind, images):
    texts = Captioner(str(folders[kind]), device=CPU).continuations(images[:4], NAMES[:4], PREFIX)
    assert texts == [
        by_hand(folders[kind], kind, image, name)
        for image, name in zip(images[:4], NAMES[:4], strict=True)
    ]
    assert len(set(texts)) == 4, "the image, too, decides"


@pytest.mark.parametrize("kind", KINDS)
def test_a_caption_does_not_depend_on_the_batch_it_was_made_in(folders, kind, images, monkeypatch):
    captioner = Captioner(str(folders[kind]), device=CPU)
    together = captioner.continuations(images, NAMES, PREFIX)
    assert together == singly(captioner, images, NAMES)
    backwards = captioner.continuations(images.flip(0), NAMES[::-1], PREFIX)
    assert together == backwards[::-1]
    monkeypatch.setattr(captions, "BATCH", 2)
    assert together == captioner.continuations(images, NAMES, PREFIX)


def test_what_side_a_tokenizer_pads_is_no_matter(tmp_path, blip2, images):
    right = tiny_blip2.save_blip2(tmp_path, padding_side="right")
    texts = Captioner(str(right), device=CPU).continuations(images, NAMES, PREFIX)
    assert texts == blip2.continuations(images, NAMES, PREFIX)


@pytest.mark.parametrize("kind", KINDS)
def test_the_image_is_seen(folders, kind, images):
    captioner = Captioner(str(folders[kind]), device=CPU)
    assert len(set(captioner.continuations(images, ["cat"] * len(images), PREFIX))) > 1
    ids = [captioner._inputs(images[:1], ["a photo of"])["input_ids"]]
    if kind == "blip2":
        image_token = captioner._model.config.image_token_index
        assert (ids[0] == image_token).sum() == tiny_blip2.QUERIES


@pytest.mark.parametrize("queries", [None, 2])
def test_a_processor_that_hides_the_image_is_refused_in_one_sentence(tmp_path, queries):
    folder = tiny_blip2.save_blip2(tmp_path, queries=queries)
    with pytest.raises(UserError, match="set num_query_tokens to 4") as caught:
        Captioner(str(folder), device=CPU)
    assert "\n" not in str(caught.value)


def test_a_model_that_says_the_same_of_any_image_is_refused(tmp_path, folders):
    model = AutoModelForImageTextToText.from_pretrained(folders["blip2"])
    with torch.no_grad():
        model.language_projection.weight.zero_()
    folder = shutil.copytree(folders["blip2"], tmp_path / "blind")
    model.save_pretrained(folder)
    with pytest.raises(UserError, match="does not see"):
        Captioner(str(folder), device=CPU)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoints_own_way_to_decode_is_not_used(tmp_path, folders, kind, images):
    folder = shutil.copytree(folders[kind], tmp_path / kind)
    tokens = json.loads((folder / "generation_config.json").read_text())
    GenerationConfig(
        **{k: v for k, v in tokens.items() if k.endswith("_token_id")},
        do_sample=True, temperature=9.0, num_beams=3, max_length=5, min_length=4,
        repetition_penalty=5.0,
    ).save_pretrained(folder)  # fmt: skip
    texts = [
        Captioner(str(f), device=CPU).continuations(images, NAMES, PREFIX)
        for f in (folders[kind], folder)
    ]
    assert texts[0] == texts[1]


def test_grey_images_are_seen_as_their_copies_in_three_channels(blip2, images):
    for grey in (images[:, :1], images[:, :1, :20, :24]):
        coloured = grey.repeat(1, 3, 1, 1)
        texts = blip2.continuations(grey, NAMES, PREFIX)
        assert texts == blip2.continuations(coloured, NAMES, PREFIX)


def test_images_that_nearly_fit_are_padded_with_black_and_others_resized(blip2, images):
    small = images[:, :, 2:30, 2:30]
    padded = torch.zeros_like(images)
    padded[:, :, 2:30, 2:30] = small
    pixels, same = (blip2._inputs(x, ["a photo"] * len(x))["pixel_values"] for x in (small, padded))
    assert torch.equal(pixels, same)
    black = blip2._inputs(torch.zeros_like(images), ["a photo"] * len(images))["pixel_values"]
    assert torch.equal(pixels[:, :, :2], black[:, :, :2])
    resized = blip2._inputs(images[:, :, :20, :20], ["a photo"] * len(images))["pixel_values"]
    assert resized.shape == black.shape and not torch.equal(resized[:, :, :2], black[:, :, :2])


def test_on_a_cpu_the_model_is_fp32_and_a_fingerprint_names_the_weights(folders, blip2):
    half = Captioner(str(folders["blip2"]), device=CPU, precision="bf16")
    assert {p.dtype for p in half._model.parameters()} == {torch.float32}
    assert half.fingerprint == blip2.fingerprint == weights.fingerprint(str(folders["blip2"]))


def test_loading_and_captioning_print_nothing(folders, images, capfd):
    Captioner(str(folders["blip2"]), device=CPU).continuations(images, NAMES, PREFIX)
    assert capfd.readouterr() == ("", "")


def test_without_transformers_it_says_what_to_install(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="pip install"):
        Captioner(str(folders["blip2"]), device=CPU)


def test_no_images_have_no_captions(blip2, images):
    assert blip2.continuations(images[:0], [], PREFIX) == []


def test_a_folder_that_holds_no_captioner_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(UserError, match="generate.captioner: cannot load") as caught:
        Captioner(str(tmp_path), device=CPU)
    assert "\n" not in str(caught.value)


def test_the_shipped_captioner_says_what_is_measured_of_clothes_it_never_saw():
    splits = data.load(data.Dataset(name="fashion-mnist-mini"), val_fraction=None, device="cpu")
    images = splits.test.images[:150]
    names = prompts.prompt_names(splits.classes)
    names = [names[label] for label in splits.test.labels[:150].tolist()]
    captioner = Captioner(weights.resolve("embedded", "blip"), device=CPU)
    texts = captioner.continuations(images, names, PREFIX)
    assert texts[:10] == singly(captioner, images[:10], names[:10])
    for text, name in zip(texts, names, strict=True):
        assert text.startswith("is ") and "[" not in text and name not in text
        caption = prompts.rebuild(PREFIX, name, text)
        assert prompts.lint(caption, name, lambda c: len(c.split()) + 2) is None
    true = [set(words) for words in attributes.words(images[:, 0].numpy())]

    def right(texts):
        pairs = zip(texts, true, strict=True)
        return sum(len(words & set(attributes.parse(t).values())) for t, words in pairs) / len(true)

    assert right(texts) / 4 > 0.8
    # And not because it knows what such clothes look like: another image of the class says less.
    of_name = {name: [i for i, n in enumerate(names) if n == name] for name in names}
    other = [of_name[n][(of_name[n].index(i) + 1) % len(of_name[n])] for i, n in enumerate(names)]
    assert right([texts[i] for i in other]) / 4 < 0.7


def test_the_shipped_captioner_spells_names_that_it_does_not_know():
    """It reads 32 tokens, with the caption, and refuses more in one sentence."""
    captioner = Captioner(weights.resolve("embedded", "blip"), device=CPU)
    image = torch.randint(256, (1, 3, 48, 40), dtype=torch.uint8)
    (text,) = captioner.continuations(image, ["dining table and chairs"], PREFIX)
    assert len(text.split()) <= 32
    with pytest.raises(UserError, match="reads at most 32 tokens, and the prompt .* use another"):
        captioner.continuations(image, ["an extraordinarily long name of something"], PREFIX)
