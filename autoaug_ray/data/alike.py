"""Images that look the same: one picture scaled, recompressed or brightened, or a frame later.

As perceptual hashes do (Krawetz's dHash, Zauner's pHash), an image is shrunk to a few grey levels.
They are compared as they are, by their correlation: cut to bits, and to 64 of them, thousands of
small pictures of single things in the middle have the same hash.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

SIDE = 16
"""Images are compared at this many pixels in each direction."""
ALIKE = 0.98
"""The least correlation of images that look the same."""
FLAT = 2.0
"""Images whose grey levels, of 255, deviate less have nothing to compare."""
MOST = 50_000
"""More images are not compared: the time grows with the square of their number."""
BLOCK = 1024
"""Images that are compared with all before them at once."""


def thumbnail(image: Image.Image) -> np.ndarray:
    """(SIDE * SIDE,) float32: grey levels of mean 0 and norm 1; all 0 for an image that is flat."""
    grey = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    levels = np.asarray(grey, dtype=np.float32).reshape(-1)
    levels = levels - levels.mean()
    if levels.std() < FLAT:
        return np.zeros_like(levels)
    unit: np.ndarray = levels / np.linalg.norm(levels)
    return unit


def look_alike(thumbnails: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """Pairs of (the first image that looks the same, image), for every image that has one."""
    if not thumbnails:
        return []
    table = np.stack(thumbnails)
    pairs = []
    for start in range(0, len(table), BLOCK):
        rows = table[start : start + BLOCK]
        same = rows @ table[: start + len(rows)].T >= ALIKE
        same = np.tril(same, k=start - 1)  # each image with those before it
        first = same.argmax(axis=1)
        pairs += [(int(first[i]), start + int(i)) for i in np.flatnonzero(same.any(axis=1))]
    return pairs
