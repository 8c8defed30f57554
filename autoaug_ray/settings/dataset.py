"""What a study's `dataset:` may say."""

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from autoaug_ray.own_code import is_own
from autoaug_ray.settings import Settings

Fit = Literal["stretch", "crop", "letterbox"]


class Shift(Settings):
    """How the target domain differs; every image draws its own values, uniformly and once."""

    translate: float = Field(0.0, ge=0, le=1000)
    """Largest translation in x and in y, in pixels."""
    rotate: float = Field(0.0, ge=0, le=180)
    """Largest rotation, in degrees."""
    zoom: float = Field(1.0, ge=1, le=10)
    """Images are zoomed by factors between 1/zoom and zoom, log-uniformly."""
    brightness: float = Field(0.0, ge=0, le=1)
    """Images are multiplied by factors between 1 - brightness and 1 + brightness."""
    hue: float = Field(0.0, ge=0, le=0.5)
    """Largest turn of the hue, in turns of the colour circle; grey images stay as they are."""


class Imbalance(Settings):
    """A long tail: the class of rank r (0..C-1) keeps max(2, int(largest * factor ** (r / (C-1)))).

    Cao et al. 2019 (LDAM) with AutoGenDA's least count of 2 (section 4.1), which for small classes
    decides the ratio: every row says the nominal and the effective one.
    """

    factor: float = Field(gt=0, le=1)
    """Nominal ratio of the smallest to the largest class."""
    largest: int | None = Field(None, ge=2)
    """Number of images of the largest class; None: that of the whole pool's smallest class."""
    order: Literal["seeded", "index"] = "seeded"
    """Which class has which rank: a permutation by the seed, or class 0 first as in CIFAR-10-LT."""


_OBJECTS = frozenset({"image_size", "fit", "protocol", "min_class_count", "group_by"})
OPTIONS: dict[str, frozenset[str]] = {
    "fashion-mnist-mini": frozenset({"image_size"}),
    "fashion-mnist": frozenset({"download", "image_size"}),
    "cifar10": frozenset({"download", "image_size"}),
    "cifar100": frozenset({"download", "image_size"}),
    "tiny-imagenet": frozenset({"image_size", "group_by"}),
    "imagenet": frozenset({"image_size", "fit", "group_by"}),
    "bach": frozenset({"image_size"}),
    "caltech101": _OBJECTS,
    "voc2012": _OBJECTS,
    "coco2017": _OBJECTS,
    "lvis": _OBJECTS | {"frequencies"},
    "npz": frozenset({"image_size"}),
    "hub": frozenset({"image_size", "channels", "fit"}),
    "folder": frozenset(
        {"image_size", "channels", "fit", "test_fraction", "unreadable", "group_by"}
    ),
}
"""The datasets, and the fields that each understands, besides those that all understand."""
SOME_ONLY = frozenset().union(*OPTIONS.values())
"""The fields that not all datasets understand."""


class Dataset(Settings):
    """What a study's `dataset:` may say."""

    name: str
    """A key of OPTIONS, or a function of the user's own (`own_code`), which may read any option."""
    root: str = "data"
    """The folder, or for npz the file, in which the dataset is as its publisher gives it."""
    download: bool = False
    train_size: int | None = Field(None, ge=4)
    """Keep this many images of the pool, class-balanced as the pool is."""
    test_size: int | None = Field(None, ge=2)
    image_size: int | None = Field(None, ge=8, le=2048)
    """Side in pixels to which images are resized, bilinearly and antialiased (default: as they are
    for arrays and tiny-imagenet, 32 for folder and hub, 256 for the others); for bach, the side of
    the patches that train (512)."""
    channels: Literal[1, 3] | None = None
    """3 (default), or 1 to read images as grey."""
    fit: Fit | None = None
    """How files get that size: stretch (default) scales both sides to it; crop (default for
    imagenet) scales the shorter side to it, and keeps the middle of the longer one; letterbox
    scales the longer side to it, and fills what is left beside the shorter one with mid-grey."""
    protocol: Literal["clean", "dafusion"] | None = None
    """How classes are made from objects: clean (default) as each dataset's reader says, or with the
    choices of DAFusion's public code, which AutoGenDA follows."""
    min_class_count: int | None = Field(None, ge=1)
    """Classes made from objects are dropped, and named, if they have fewer training images
    (default: 32 for coco2017, 20 for lvis, else 1)."""
    frequencies: tuple[Literal["r", "c", "f"], ...] | None = None
    """The classes of lvis to use: rare, common, frequent (default: common, AutoGenDA's tail)."""
    test_fraction: float | None = Field(None, gt=0, lt=1)
    """For a folder without train/ and test/: the test set is this share of every class, the same on
    every machine; files of the same bytes are on one side."""
    unreadable: Literal["error", "skip"] | None = None
    """What to do about images in a folder that cannot be read (default error)."""
    group_by: str | None = None
    """A regular expression, searched in each file's path below the root: files in which its group
    1, or the whole match if it has none, is the same stay on one side of each split, the one
    between train and meta included. Files without a match are each by themselves."""
    closed_test: bool = False
    """No run sees the test set: a fifth of the pool stands in for it, so that what is decided
    before the whole study is not decided by its test set."""
    memory_gb: float = Field(4.0, ge=0, le=1024)
    """Images are decoded, or resized, once and kept if they take no more gigabytes; else whenever
    they are drawn, on as many threads as a trial holds CPUs."""
    shift: Shift = Shift()
    imbalance: Imbalance | None = None
    shots: int | None = Field(None, ge=1)
    """The pool keeps this many images of every class."""
    redraw: bool = True
    """Every seed has its own class order and images in an imbalanced or low-shot pool; False: all
    seeds share those of seed 0, and one bank of generated images."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in OPTIONS and not is_own(name):
            raise ValueError(
                f"unknown dataset; known: {', '.join(OPTIONS)}, and path/to/file.py:function of "
                "your own"
            )
        return name

    @field_validator("group_by")
    @classmethod
    def _is_regex(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression ({error})") from None
        return pattern

    @model_validator(mode="after")
    def _one_subset(self) -> "Dataset":
        given = [k for k in ("train_size", "imbalance", "shots") if getattr(self, k) is not None]
        if len(given) > 1:
            raise ValueError(f"only one of {' and '.join(given)} can be set")
        return self

    @model_validator(mode="after")
    def _options(self) -> "Dataset":
        for field in sorted(self.model_fields_set & SOME_ONLY - OPTIONS.get(self.name, SOME_ONLY)):
            if getattr(self, field) != type(self).model_fields[field].default:
                able = [name for name, options in OPTIONS.items() if field in options]
                raise ValueError(f"{field} can be set for name: {', '.join(able)} only")
        return self
