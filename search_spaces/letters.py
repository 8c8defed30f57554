"""Pictures whose class is a matter of direction or of colour: datasets of `harm.yaml`.

Characters in the fonts that come with matplotlib, larger or smaller, tilted, off the middle. Half
of the fonts are in the pool, the others in the test set.
"""

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from autoaug_ray.data.arrays import as_split
from autoaug_ray.data.splits import Source
from autoaug_ray.settings.dataset import Dataset

POOL_FONTS = (
    "DejaVuSans", "DejaVuSans-BoldOblique", "DejaVuSansMono-Oblique", "DejaVuSerif-Bold",
    "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBolIta", "cmr10", "cmss10",
)  # fmt: skip
TEST_FONTS = (
    "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-BoldOblique",
    "DejaVuSerif", "DejaVuSerif-BoldItalic", "STIXGeneralBol", "STIXGeneralItalic", "cmb10",
)  # fmt: skip
SIDE, TILT, SHIFT = 28, 8.0, 2.0  # pixels, degrees, pixels
PER_CLASS = 200
"""Images of a class, in the pool and in the test set alike."""
LAMPS = {"red": "#e02020", "amber": "#e0a020", "green": "#20b040"}


def bdpq(dataset: Dataset) -> Source:
    """Four letters of one shape: mirrored, b is d and p is q; upside down, b is q."""
    return _source({c: (c, "white") for c in "bdpq"}, colour=False)


def six_nine(dataset: Dataset) -> Source:
    """Two digits of one shape, half a turn apart."""
    return _source({c: (c, "white") for c in "69"}, colour=False)


def lamps(dataset: Dataset) -> Source:
    """Rings that differ in nothing but their colour, (n, 3, 28, 28)."""
    return _source({name: ("O", ink) for name, ink in LAMPS.items()}, colour=True)


def _source(classes: dict[str, tuple[str, str]], *, colour: bool) -> Source:
    """`classes` has for each name a character and its ink."""
    pool, test = (
        _images(list(classes.values()), fonts, colour, seed)
        for seed, fonts in enumerate((POOL_FONTS, TEST_FONTS))
    )
    labels = np.repeat(np.arange(len(classes)), PER_CLASS)
    return Source(as_split(pool, labels), None, as_split(test, labels), tuple(classes))


def _images(
    classes: list[tuple[str, str]], fonts: tuple[str, ...], colour: bool, seed: int
) -> np.ndarray:
    rng = np.random.default_rng(seed)
    drawn = [
        _image(character, ink, fonts[rng.integers(len(fonts))], rng)
        for character, ink in classes
        for _ in range(PER_CLASS)
    ]
    images = np.stack(drawn)
    return images if colour else images[..., :1]


def _image(character: str, ink: str, font: str, rng: np.random.Generator) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8, the character on a dark ground that is never quite black."""
    face = _font(font, int(rng.integers(18, 25)))
    ground = int(rng.integers(0, 40))
    image = Image.new("RGB", (SIDE, SIDE), (ground,) * 3)
    light = rng.uniform(0.6, 1.0)
    fill = tuple(round(light * value) for value in ImageColor.getrgb(ink)[:3])
    middle = SIDE / 2 + rng.uniform(-SHIFT, SHIFT, 2)
    ImageDraw.Draw(image).text(tuple(middle), character, fill, face, anchor="mm")
    turned = image.rotate(
        rng.uniform(-TILT, TILT), Image.Resampling.BILINEAR, fillcolor=(ground,) * 3
    )
    noise = rng.normal(0, 8, (SIDE, SIDE, 1))
    return np.clip(np.asarray(turned) + noise, 0, 255).astype(np.uint8)


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(folder / f"{name}.ttf", size)
