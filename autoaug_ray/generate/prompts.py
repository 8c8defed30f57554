"""Text of prompts: names of classes, captions moved from one class to another, what is no caption.

Section 3.1 of AutoGenDA completes "a photo of a <y> which" by a captioner; section 3.2 says the
caption k of an image of a neighbouring class of y about an image of y: r(k; y), eq. (2).

A prompt's prefix is a template that says "a" before whatever name, as everybody's templates do, and
models are tuned on it so. Captions are therefore kept as what follows the prefix: a local prompt is
`rebuild(prefix, y, tail)`, a transferred one `rebuild(prefix, y, replace_class(tail, source, y,
names))`, and the two begin with the same words.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

from torch import Tensor
from torch.nn import functional as F

from autoaug_ray.errors import UserError

TEMPLATES = (
    "a photo of a {}", "a rendering of a {}", "a cropped photo of the {}", "the photo of a {}",
    "a photo of a clean {}", "a photo of a dirty {}", "a dark photo of the {}", "a photo of my {}",
    "a photo of the cool {}", "a close-up photo of a {}", "a bright photo of the {}",
    "a cropped photo of a {}", "a photo of the {}", "a good photo of the {}", "a photo of one {}",
    "a close-up photo of the {}", "a rendition of the {}", "a photo of the clean {}",
    "a rendition of a {}", "a photo of a nice {}", "a good photo of a {}", "a photo of the nice {}",
    "a photo of the small {}", "a photo of the weird {}", "a photo of the large {}",
    "a photo of a cool {}", "a photo of a small {}",
)  # fmt: skip
"""Around a word while it is learned: imagenet_templates_small of Gal et al.'s textual_inversion."""


def prompt_name(class_name: str) -> str:
    """The name of a class in a prompt: "bat_(animal)" -> "bat", "T-shirt/top" -> "t-shirt"."""
    return _spaced(re.sub(r"\([^)]*\)", " ", class_name).split("/")[0])


def prompt_names(classes: Sequence[str]) -> tuple[str, ...]:
    """`prompt_name` of all classes; namesakes keep their sense as words: "bat animal".

    Raises UserError for a class without a name and for two that would be called the same.
    """
    names = [prompt_name(c) for c in classes]
    count = Counter(names)
    names = [
        n if count[n] == 1 else _spaced(re.sub(r"[()]", " ", c).split("/")[0])
        for n, c in zip(names, classes, strict=True)
    ]
    class_of: dict[str, str] = {}
    for name, class_name in zip(names, classes, strict=True):
        if not re.search(r"\w", name):
            raise UserError(f"generate: class {class_name!r} has no name that a prompt could say.")
        if name in class_of:
            raise UserError(
                f"generate: classes {class_of[name]!r} and {class_name!r} would both be called "
                f"{name!r} in prompts; rename one."
            )
        class_of[name] = class_name
    return tuple(names)


def token_name(name: str) -> str:
    """Textual inversion's placeholder: "ankle boot" -> "<ankle_boot>"."""
    return f"<{name.replace(' ', '_')}>"


def rebuild(prefix: str, name: str, continuation: str) -> str:
    """A caption: `prefix` with the name, word for word as given, and what a captioner added."""
    return f"{prefix.format(name=name).strip()} {clean(continuation)}".strip()


def clean(text: str) -> str:
    """One line without the spaces that tokenisers leave at punctuation, and without a full stop."""
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r" ([,.;:!?])", r"\1", text)
    text = re.sub(r"(?<=\w) ?' ?(s|t|re|ve|ll|d|m)\b", r"'\1", text)
    return text.strip(" .,;:")


def replace_class(caption: str, source: str, target: str, names: Sequence[str]) -> str:
    """r(k; y) of eq. (2): the caption of an image of class `source`, said of class `target`.

    Whole words in any case, plurals by plurals, "a" and "an" right before the name with it. Where
    several of `names`, all classes' prompt names, would match, the longest is meant: "shirt" is not
    replaced in "t-shirt", nor "boot" in "ankle boot". A name is also found as tokenisers rewrite
    it, "t - shirt". A caption that does not name the source comes back as it is.
    """
    mention, forms = _mentions(tuple(dict.fromkeys((*names, source))))

    def said_of_target(match: re.Match[str]) -> str:
        name, is_plural = forms[_squeezed(match["name"])]
        if name != source:
            return match[0]
        word = plural(target) if is_plural else target
        article = match["article"]
        if article is None:
            return word
        return f"{_article(word, capital=article[0] == 'A')} {word}"

    return mention.sub(said_of_target, caption)


def lint(caption: str, name: str, tokens: Callable[[str], int], limit: int = 77) -> str | None:
    """Why a caption cannot be a prompt about `name`, or None if it can.

    `tokens` counts the text encoder's tokens with its start and end; beyond `limit` it would read a
    caption's beginning only. "empty" is a caption of which no word that says anything follows the
    first mention of the name.
    """
    if not caption.strip():
        return "empty"
    mention, _ = _mentions((name,))
    _, *after = mention.split(caption)[::3]
    if not after:
        return "class word missing"
    if not set(_words(" ".join(after))) - _SAYS_NOTHING:
        return "empty"
    if _repeats(_words(caption)):
        return "repetitive"
    return "too long" if tokens(caption) > limit else None


def nearest(embeddings: Tensor, m: int) -> list[tuple[int, ...]]:
    """neigh(y), section 3.2: the m classes nearest to each of C by cosine, nearest first.

    `embeddings` (C, d); fewer than m where there are no more. Ties go to the lower index.
    """
    unit = F.normalize(embeddings.double().cpu(), dim=1)
    # Rounded: equal embeddings give cosines that differ in their last bits, and differently on
    # each machine.
    cosine = (unit @ unit.T * 1e6).round()
    order = cosine.argsort(dim=1, descending=True, stable=True).tolist()
    return [tuple(c for c in row if c != own)[:m] for own, row in enumerate(order)]


def plural(name: str) -> str:
    """ "ankle boot" -> "ankle boots", "dress" -> "dresses"; "trousers" and "sheep" stay."""
    last = re.search(r"[^\W\d_]+$", name)
    return name if last is None else name[: last.start()] + _plural_word(last[0])


_IRREGULAR = {
    "man": "men", "woman": "women", "person": "people", "child": "children", "foot": "feet",
    "tooth": "teeth", "goose": "geese", "mouse": "mice", "ox": "oxen", "knife": "knives",
    "wolf": "wolves", "leaf": "leaves", "loaf": "loaves", "shelf": "shelves", "calf": "calves",
    "scarf": "scarves", "tomato": "tomatoes", "potato": "potatoes", "lens": "lenses",
    "gas": "gases", "canvas": "canvases", "atlas": "atlases", "rhinoceros": "rhinoceroses",
}  # fmt: skip
_UNCHANGED = {"sheep", "deer", "fish", "aircraft", "bison", "moose", "squid", "series", "species"}
_SAYS_NOTHING = frozenset(
    "which that who is are was were be being has have it its this these there a an the and or but "
    "of in on at to by for from with as".split()
)
_THRICE = 3  # a word or two said so often in a row is a captioner that is stuck; of more, twice is


def _plural_word(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    # Names that end in s, as trousers, jeans and glasses, are plurals; dress, bus and iris are not.
    if word in _UNCHANGED or re.search(r"(?<!s)(?<!u)(?<!i)s$", word):
        return word
    if re.search(r"(s|x|z|ch|sh)$", word):
        return word + "es"
    return re.sub(r"(?<=[^aeiou])y$", "ie", word) + "s"


@lru_cache(maxsize=4096)
def _mentions(names: tuple[str, ...]) -> tuple[re.Pattern[str], dict[str, tuple[str, bool]]]:
    """A pattern that finds names, and for each squeezed form its name and whether it is the plural.

    The pattern finds the longest name or plural that fits, with an article before it.

    Hyphens join words: there is no "shirt" in "t-shirt", nor in a tokeniser's "t - shirt".
    """
    plurals = {plural(n): (n, True) for n in names}
    forms = plurals | {n: (n, False) for n in names}  # a class "glasses" is no plural of "glass"
    found = "|".join(_tolerant(f) for f in sorted(forms, key=len, reverse=True))
    article = r"(?:(?<![\w-])(?P<article>an?)\s+)?"
    pattern = rf"{article}(?<![\w<-])(?<!\w - )(?P<name>{found})(?![\w>-])"
    return re.compile(pattern, re.IGNORECASE), {_squeezed(f): forms[f] for f in forms}


def _squeezed(form: str) -> str:
    return re.sub(r"[\s-]", "", form).lower()


def _tolerant(name: str) -> str:
    """A pattern for the name's words and signs, however the spaces around its signs are."""
    pattern = ""
    for part in re.findall(r"\w+|\s+|[^\w\s]", name):
        if part.isspace():
            pattern += r"[\s-]+"
        elif part == "-":
            pattern += r"\s*-?\s*"
        elif re.match(r"\w", part):
            pattern += re.escape(part)
        else:
            pattern += rf"\s*{re.escape(part)}\s*"
    return pattern.removeprefix(r"\s*").removesuffix(r"\s*")


def _article(word: str, *, capital: bool) -> str:
    """The article, by spelling: an hour, an x-ray, a unicorn; a placeholder is read as its word."""
    letters = word.lstrip("<").lower()
    sounds_open = re.match(r"[aeiou]|hour|hono|heir|[fhlmnrsx]-", letters) is not None
    sounds_closed = re.match(r"uni[cfqtv]|us[ae]|ut[ei]|eu|ewe|one\b|once|u-", letters) is not None
    article = "an" if sounds_open and not sounds_closed else "a"
    return article.capitalize() if capital else article


def _repeats(words: list[str]) -> bool:
    for n in range(1, len(words) // 2 + 1):
        times = _THRICE if n < 3 else 2
        for start in range(len(words) - times * n + 1):
            gram = words[start : start + n]
            if words[start : start + times * n] == gram * times:
                return True
    return False


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _spaced(text: str) -> str:
    return " ".join(text.replace("_", " ").lower().split())
