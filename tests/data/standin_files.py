"""Small made-up datasets in published formats, for the tests of the readers."""

from autoaug_ray import data

PER_CLASS = 4
SMALL = {"bach": {"image_size": 32}, "imagenet": {"image_size": 64}}


def load(dataset, val_fraction=0.25):
    """The dataset as it is on disk now, whatever was read before."""
    data._read.cache_clear()
    return data.load(dataset, val_fraction=val_fraction, device="cpu")
