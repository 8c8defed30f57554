"""Words for what can be measured in a picture of one garment, and the captions made of them.

The embedded captioner learns to say these words and the embedded diffusion model to draw them, so
for both there is a right answer. Nothing else in the package uses them: a real BLIP says what it
likes.
"""

import numpy as np

WORDS = {
    "brightness": ("dark", "grey", "bright"),
    "width": ("narrow", "regular", "wide"),
    "texture": ("plain", "patterned", "striped"),
    "symmetry": ("lopsided", "symmetric"),
}

# np.quantile(measure(images)[k], (1/3, 2/3)), and (1/2,) for edges and symmetry, of the 30,000
# images of the pre-training half of Fashion-MNIST. Width has 14 values only, and its terciles 10/14
# and 1 are two of them; half a step beside them they make three classes of 38, 26 and 36 %.
THRESHOLDS = {
    "brightness": (0.5045, 0.6533),
    "width": (0.75, 0.964),
    "edges": (0.1917,),
    "symmetry": (0.8673,),
}
FOREGROUND = 0.12  # grey level in [0, 1] above which a pixel is garment; the background is 0


def measure(images: np.ndarray) -> dict[str, np.ndarray]:
    """Six measures, each (n,) float32, of images (n, H, W) uint8 with even H and W.

    All are taken on the means of 2x2 pixels, which removes most of the noise of weave and scan.
    """
    n, height, width = images.shape
    x = images.reshape(n, height // 2, 2, width // 2, 2).mean((2, 4), dtype=np.float32) / 255
    garment = x > FOREGROUND
    area = garment.sum((1, 2)).clip(1)
    columns = garment.any(1)
    extent = columns.shape[1] - columns[:, ::-1].argmax(1) - columns.argmax(1)
    # Edges inside the garment only; its outline says nothing about its texture.
    across = np.abs(np.diff(x, axis=2)) * (garment[:, :, 1:] & garment[:, :, :-1])
    down = np.abs(np.diff(x, axis=1)) * (garment[:, 1:] & garment[:, :-1])
    centred = x - x.mean((1, 2), keepdims=True)
    overlap = (centred * centred[:, :, ::-1]).sum((1, 2))
    return {
        "brightness": (x * garment).sum((1, 2)) / area,
        "width": np.where(columns.any(1), extent, 0).astype(np.float32) / columns.shape[1],
        "across": across.sum((1, 2)) / area,
        "down": down.sum((1, 2)) / area,
        "edges": (across.sum((1, 2)) + down.sum((1, 2))) / area,
        "symmetry": overlap / (centred**2).sum((1, 2)).clip(1e-6),
    }


def words(images: np.ndarray) -> list[list[str]]:
    """The word for each attribute, in the order of WORDS, of each image of (n, H, W) uint8."""
    measured = measure(images)
    level = {k: np.searchsorted(cuts, measured[k]) for k, cuts in THRESHOLDS.items()}
    stripes = np.where(measured["down"] > measured["across"], 2, 1)
    level["texture"] = np.where(level.pop("edges") == 0, 0, stripes)
    return [[choices[level[k][i]] for k, choices in WORDS.items()] for i in range(len(images))]


def continuation(words: list[str]) -> str:
    """`["dark", "wide", "plain"]` -> `is dark, wide and plain`; words must not be empty."""
    return "is " + (f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0])


def caption(name: str, words: list[str]) -> str:
    """`a photo of a dress which is dark and wide`, or without the clause if there are no words."""
    return f"a photo of a {name}" + (f" which {continuation(words)}" if words else "")


def parse(text: str) -> dict[str, str]:
    """The word for each attribute in a text; attributes with none or several words are left out."""
    spoken = set(text.replace(",", " ").split())
    found = {k: [w for w in choices if w in spoken] for k, choices in WORDS.items()}
    return {k: hits[0] for k, hits in found.items() if len(hits) == 1}
