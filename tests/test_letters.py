"""The datasets of search_spaces/harm.yaml."""

import importlib.util

import pytest
import torch
from PIL import Image
from rooms import ROOT

from autoaug_ray.commands.flips import decide, measure
from autoaug_ray.settings.dataset import Dataset

FILE = ROOT.parent / "search_spaces" / "letters.py"


@pytest.fixture(scope="module")
def letters():
    spec = importlib.util.spec_from_file_location("letters", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name, channels, changed, becomes",
    [
        ("bdpq", 1, lambda x: x.flip(-1), "dbqp"),
        ("six_nine", 1, lambda x: x.flip((-1, -2)), "96"),
        ("lamps", 3, lambda x: x[:, [1, 0, 2]], ["green", "amber", "red"]),
    ],
)
def test_a_transformation_makes_of_one_class_another(letters, name, channels, changed, becomes):
    """Mirrored letters, digits half a turn on, and lamps whose red and green change places."""
    source = getattr(letters, name)(Dataset(name="own:x"))
    images, labels = source.pool.images.float(), source.pool.labels
    assert images.shape[1:] == (channels, 28, 28) and len(source.classes) == int(labels.max()) + 1
    means = torch.stack([images[labels == c].mean(0) for c in range(len(source.classes))])
    distance = (changed(means)[:, None] - means[None]).square().mean((2, 3, 4))
    assert [source.classes[i] for i in distance.argmin(dim=1)] == list(becomes)


@pytest.mark.nightly
@pytest.mark.parametrize(
    "name, fixed, learned", [("bdpq", "none", "none"), ("six_nine", "any", "learned")]
)
def test_a_flip_is_measured_to_be_harmful_where_it_makes_another_letter(
    letters, tmp_path, name, fixed, learned
):
    source = getattr(letters, name)(Dataset(name="own:x"))
    for i, (image, label) in enumerate(zip(source.pool.images, source.pool.labels, strict=True)):
        place = tmp_path / source.classes[label] / f"{i}.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(image[0].numpy()).save(place)
    dataset = Dataset(
        name="folder", root=str(tmp_path), test_fraction=0.2, image_size=28, channels=1
    )
    flips = decide(measure(dataset))
    assert flips.learned == learned and fixed in (flips.fixed, "any")


def test_pool_and_test_set_share_no_font(letters):
    assert not set(letters.POOL_FONTS) & set(letters.TEST_FONTS)
