"""The models that ship with the package: they load, see, draw, and have not seen the pool."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autoaug_ray import data
from autoaug_ray.data import arrays
from autoaug_ray.generate.tiny import attributes, excerpt
from autoaug_ray.generate.weights import EMBEDDED

MINI = Path(data.__file__).with_name("fashion-mnist-mini.npz")
NAMES = arrays.FASHION_MNIST_CLASSES


@pytest.fixture(scope="module")
def mini():
    with np.load(MINI) as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import StableDiffusionImg2ImgPipeline

    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(
        EMBEDDED / "stable-diffusion", dtype=torch.float32
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_they_are_small():
    sizes = [f.stat().st_size for f in EMBEDDED.rglob("*") if f.is_file()]
    assert max(sizes) < 2.5e6 and sum(sizes) < 4e6


def test_the_pool_is_not_in_the_half_that_they_were_trained_on(mini):
    root = Path("/usr/share/datasets/fashion-mnist")
    if not root.is_dir():
        pytest.skip("the full Fashion-MNIST is not installed")
    images, labels = arrays.read_fashion_mnist(root, train=True)
    assert (images[mini["pool_index"]] == mini["pool_images"]).all()
    trained_on, experiments = excerpt.halves(labels)
    assert not np.isin(mini["pool_index"], trained_on).any()
    assert np.isin(mini["pool_index"], experiments).all()


def test_every_word_of_a_caption_is_one_token(pipeline):
    tokenizer = pipeline.tokenizer
    for name in NAMES:
        for k in range(3):
            words = [choices[k % len(choices)] for choices in attributes.WORDS.values()]
            text = attributes.caption(name, words)
            words = text.replace("-", " - ").replace(",", " , ").split()
            assert tokenizer.tokenize(text) == [f"{w}</w>" for w in words]
            assert len(tokenizer(text).input_ids) <= tokenizer.model_max_length
    other = tokenizer("Zebra & Ünicorn #7").input_ids
    assert tokenizer.unk_token_id not in other[:-1]
    assert tokenizer.decode(other, skip_special_tokens=True).strip() == "zebra & ünicorn # 7"


def test_text_decides_what_is_drawn(pipeline, mini):
    # From the same noise and almost without the source, which is a bag.
    bag = mini["test_images"][mini["test_labels"] == NAMES.index("bag")][0]
    image = torch.tensor(np.pad(bag, 2)).expand(6, 3, 32, 32) / 255
    edited = pipeline(
        prompt=[
            f"a photo of a {name} which is {word}"
            for name in ("trouser", "sneaker", "pullover")
            for word in ("dark", "bright")
        ],
        image=image, strength=1.0, num_inference_steps=12, guidance_scale=4.0, output_type="pt",
        generator=[torch.Generator().manual_seed(0) for _ in range(6)],
    ).images  # fmt: skip
    assert edited.shape == (6, 3, 32, 32)
    gray = (edited.mean(1)[:, 2:30, 2:30].clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    measured = attributes.measure(gray)
    assert (measured["brightness"][1::2] > measured["brightness"][::2]).all()
    trouser, sneaker, pullover = measured["width"].reshape(3, 2).mean(1)
    assert trouser < pullover and trouser < sneaker


def test_captions_of_held_out_images_say_how_bright_they_are(mini):
    from transformers import BlipForConditionalGeneration, BlipProcessor

    blip = BlipForConditionalGeneration.from_pretrained(EMBEDDED / "blip", dtype=torch.float32)
    processor = BlipProcessor.from_pretrained(EMBEDDED / "blip")
    images, labels = mini["test_images"][:200], mini["test_labels"][:200]
    right = []
    # Class by class: BLIP cuts the last token of a prompt off, which padding must not be.
    for c, name in enumerate(NAMES):
        of_class = images[labels == c]
        prompt = f"a photo of a {name} which"
        inputs = processor(
            images=[Image.fromarray(np.pad(image, 2)).convert("RGB") for image in of_class],
            text=[prompt] * len(of_class),
            return_tensors="pt",
        )
        texts = processor.batch_decode(
            blip.generate(**inputs, max_new_tokens=16), skip_special_tokens=True
        )
        assert all(text.startswith(prompt.replace("-", " - ")) for text in texts)
        for text, true in zip(texts, attributes.words(of_class), strict=True):
            found = attributes.parse(text)
            assert list(found) == list(attributes.WORDS), f"no whole caption: {text}"
            right.append(found["brightness"] == true[0])
    assert len(right) == 200 and np.mean(right) >= 0.8


def test_automatic_classes_load_the_captioner():
    from transformers import (
        AutoModelForImageTextToText,
        AutoProcessor,
        BlipForConditionalGeneration,
        BlipProcessor,
    )

    assert isinstance(AutoProcessor.from_pretrained(EMBEDDED / "blip"), BlipProcessor)
    model = AutoModelForImageTextToText.from_pretrained(EMBEDDED / "blip")
    assert isinstance(model, BlipForConditionalGeneration)


def test_loading_says_nothing():
    code = (
        "import sys, warnings; warnings.simplefilter('error')\n"
        "import diffusers, transformers\n"
        "for library in (diffusers, transformers):\n"
        "    library.utils.logging.disable_progress_bar()\n"
        "folder = sys.argv[1]\n"
        "diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(folder + '/stable-diffusion')\n"
        "transformers.BlipForConditionalGeneration.from_pretrained(folder + '/blip')\n"
        "transformers.BlipProcessor.from_pretrained(folder + '/blip')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, EMBEDDED], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def drawn(*, level=200, rows=slice(4, 24), columns=slice(4, 24)):
    image = np.zeros((28, 28), np.uint8)
    image[rows, columns] = level
    return image


def test_words_of_constructed_images():
    plain = drawn()
    dark = drawn(level=60)
    narrow = drawn(columns=slice(10, 18))
    wide = drawn(columns=slice(0, 28))
    striped = drawn(level=90)
    striped[4:24:4, 4:24] = striped[5:24:4, 4:24] = 250
    patterned = striped.T.copy()
    lopsided = np.tril(plain)
    words = attributes.words(np.stack([plain, dark, narrow, wide, striped, patterned, lopsided]))
    brightness, width, texture, symmetry = zip(*words, strict=True)
    assert brightness[:2] == ("bright", "dark")
    assert (width[0], width[2], width[3]) == ("narrow", "narrow", "wide")
    assert (texture[0], texture[4], texture[5]) == ("plain", "striped", "patterned")
    assert symmetry[:5] == ("symmetric",) * 5 and symmetry[6] == "lopsided"


def test_a_blank_image_has_words_too():
    assert attributes.words(np.zeros((1, 28, 28), np.uint8)) == [
        ["dark", "narrow", "plain", "lopsided"]
    ]


def test_captions_are_read_back():
    words = ["dark", "wide", "striped", "symmetric"]
    text = attributes.caption("ankle boot", words)
    assert text == "a photo of a ankle boot which is dark, wide, striped and symmetric"
    assert list(attributes.parse(text).values()) == words
    assert attributes.caption("bag", []) == "a photo of a bag"
    assert attributes.parse("a bag which is dark, bright and wide") == {"width": "wide"}


def test_thresholds_split_the_classes_of_the_excerpt(mini):
    # They were set on the other half of the training images; here each word is true of many too.
    words = np.array(attributes.words(mini["pool_images"]))
    for k, choices in enumerate(attributes.WORDS.values()):
        shares = [(words[:, k] == word).mean() for word in choices]
        assert min(shares) > 0.1, dict(zip(choices, shares, strict=True))
