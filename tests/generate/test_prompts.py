import pytest
import torch

from autoaug_ray.errors import UserError
from autoaug_ray.generate import prompts

CLOTHES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
    "ankle boot",
)  # fmt: skip
PREFIX = "a photo of a {name} which"


@pytest.mark.parametrize(
    "class_name, name",
    [
        ("Ankle boot", "ankle boot"),
        ("T-shirt/top", "t-shirt"),
        ("bat_(animal)", "bat"),
        ("trousers_(US)_long", "trousers long"),
        ("diningtable", "diningtable"),
        ("  potted__plant ", "potted plant"),
    ],
)
def test_a_class_is_said_as_one_would_say_it(class_name, name):
    assert prompts.prompt_name(class_name) == name


def test_namesakes_keep_their_sense_and_others_lose_it():
    classes = ["bat_(animal)", "Bat_(sports_equipment)", "cat_(animal)"]
    assert prompts.prompt_names(classes) == ("bat animal", "bat sports equipment", "cat")
    assert prompts.prompt_names(["bat", "bat_(animal)"]) == ("bat", "bat animal")


@pytest.mark.parametrize("classes", [["Dog", "dog"], ["shirt/a", "shirt/b"], ["a b", "a_b", "c"]])
def test_two_classes_of_one_name_are_refused_by_name(classes):
    with pytest.raises(UserError, match=f"'{classes[0]}' and '{classes[1]}'"):
        prompts.prompt_names(classes)


@pytest.mark.parametrize("class_name", ["", "/top", "(animal)", "_", "-"])
def test_a_class_without_a_name_is_refused(class_name):
    with pytest.raises(UserError, match="no name"):
        prompts.prompt_names(["cat", class_name])


def test_placeholders_are_those_of_textual_inversion():
    assert prompts.token_name("ankle boot") == "<ankle_boot>"
    assert prompts.token_name("t-shirt") == "<t-shirt>"


def test_a_caption_is_its_prefix_to_the_letter_and_a_clean_tail():
    caption = prompts.rebuild(PREFIX, "ankle boot", " is dark ,  wide\nand plain . ")
    assert caption == "a photo of a ankle boot which is dark, wide and plain"
    assert prompts.clean("is a woman ' s , isn ' t it ?") == "is a woman's, isn't it?"
    assert prompts.rebuild("a photo of a {name}", "cat", "") == "a photo of a cat"


@pytest.mark.parametrize(
    "caption, source, target, transferred",
    [
        ("a photo of a cat which sleeps", "cat", "dog", "a photo of a dog which sleeps"),
        ("a Cat and two cats", "cat", "dog", "a dog and two dogs"),
        ("a t-shirt over a shirt", "shirt", "dress", "a t-shirt over a dress"),
        ("a t - shirt over a shirt", "shirt", "coat", "a t - shirt over a coat"),
        ("a t - shirt and tshirts", "t-shirt", "coat", "a coat and coats"),
        ("a T-Shirt", "t-shirt", "ankle boot", "an ankle boot"),
        ("an ankle boot", "ankle boot", "t-shirt", "a t-shirt"),
        ("An  ankle boot", "ankle boot", "bag", "A bag"),
        ("two dresses", "dress", "ankle boot", "two ankle boots"),
        ("ankle boots", "ankle boot", "dress", "dresses"),
        ("ankle-boots", "ankle boot", "bag", "bags"),
        ("a red cat", "cat", "elephant", "a red elephant"),
        ("catalogue of scattered cats' toys", "cat", "dog", "catalogue of scattered dogs' toys"),
        ("a cat's tail", "cat", "dog", "a dog's tail"),
        ("a cat-like toy", "cat", "dog", "a cat-like toy"),
        ("a <cat> here", "cat", "dog", "a <cat> here"),
        ("a cat", "cat", "<ankle_boot>", "an <ankle_boot>"),
        ("two cats", "cat", "<ankle_boot>", "two <ankle_boot>"),
        ("nothing of it", "cat", "dog", "nothing of it"),
        ("a cat with a dog", "cat", "dog", "a dog with a dog"),
    ],
)
def test_the_class_of_a_caption_is_replaced_and_nothing_else(caption, source, target, transferred):
    names = (*CLOTHES, "cat", "dog")
    assert prompts.replace_class(caption, source, target, names) == transferred


def test_a_name_inside_another_classes_longer_name_is_not_that_class():
    names = ("boot", "ankle boot", "ankle boot lace")
    caption = "a boot, an ankle boot and an ankle boot lace, boots, ankle boots"
    assert prompts.replace_class(caption, "boot", "bag", names) == (
        "a bag, an ankle boot and an ankle boot lace, bags, ankle boots"
    )
    assert prompts.replace_class(caption, "ankle boot", "bag", names) == (
        "a boot, a bag and an ankle boot lace, boots, bags"
    )


def test_a_plural_that_is_a_class_of_its_own_is_that_class():
    for names in (("glass", "glasses", "cup"), ("glasses", "glass", "cup")):
        moved = prompts.replace_class("a glass by glasses", "glass", "cup", names)
        assert moved == "a cup by glasses"


def test_hyphens_make_another_word_though_it_is_no_class():
    for caption in ("a t-shirt", "a t - shirt", "a shirt-dress", "t-shirts"):
        assert prompts.replace_class(caption, "shirt", "coat", ["shirt", "coat"]) == caption


@pytest.mark.parametrize("source", CLOTHES)
@pytest.mark.parametrize("target", CLOTHES)
def test_moving_a_caption_there_and_back_changes_nothing(source, target):
    tail = f"is dark, by a {source} and three {prompts.plural(source)}"
    moved = prompts.replace_class(tail, source, target, CLOTHES)
    back = prompts.replace_class(moved, target, source, CLOTHES)
    assert back == prompts.replace_class(tail, source, source, CLOTHES)
    assert (source == target) == (moved == back)


@pytest.mark.parametrize(
    "article, words",
    [
        ("an", ("apple", "umbrella", "x-ray", "hourglass", "unimportant sign", "<owl>")),
        ("a", ("unicycle", "one-piece", "european bison", "u-boat", "t-shirt", "utility pole")),
    ],
)
def test_the_article_is_as_the_name_sounds(article, words):
    other = {"a": "an", "an": "a"}[article]
    for word in words:
        assert prompts.replace_class(f"{other} cat", "cat", word, ["cat"]) == f"{article} {word}"


def test_plurals():
    some = "dress box bus city toy knife person sheep trousers glasses church iris ankle-boot lens"
    many = "dresses boxes buses cities toys knives people sheep trousers glasses churches irises"
    many += " ankle-boots lenses"
    assert [prompts.plural(n) for n in some.split()] == many.split()


def count_words(caption):
    return len(caption.split()) + 2


@pytest.mark.parametrize(
    "caption, reason",
    [
        ("a photo of a t-shirt which is dark, narrow, plain and symmetric", None),
        ("a photo of a t - shirt which hangs", None),
        ("two t-shirts outdoors", None),
        ("", "empty"),
        ("a photo of a t-shirt which", "empty"),
        ("a photo of a t-shirt which is a t-shirt", "empty"),
        ("a photo of a shirt which hangs", "class word missing"),
        ("a t-shirt which is very very dark", None),
        ("a t-shirt which is very very very dark", "repetitive"),
        ("a t-shirt on a bed on a bed on a chair", "repetitive"),
        ("a t-shirt which is dark dark, dark dark, dark", "repetitive"),
        ("a t-shirt of " + " ".join(map(str, range(90))), "too long"),
    ],
)
def test_lint_names_the_reason(caption, reason):
    assert prompts.lint(caption, "t-shirt", count_words) == reason


def test_a_caption_of_exactly_the_limit_is_not_too_long():
    caption = "a cat on grass"
    assert prompts.lint(caption, "cat", count_words, limit=6) is None
    assert prompts.lint(caption, "cat", count_words, limit=5) == "too long"


def test_neighbours_are_the_others_by_cosine_nearest_first():
    rows = torch.tensor([[1.0, 0.0], [10.0, 1.0], [0.0, 1.0], [-1.0, 0.0]])
    # Cosine, not distance: row 1 is far from row 0 in length and nearest to it in direction.
    assert prompts.nearest(rows, 2) == [(1, 2), (0, 2), (1, 0), (2, 1)]


def test_equal_neighbours_come_by_index_and_small_sets_give_all_others():
    rows = torch.randn(1, 384, generator=torch.Generator().manual_seed(0)).expand(4, -1)
    rows = rows * torch.tensor([[1.0], [3.0], [0.1], [7.0]])
    assert prompts.nearest(rows, 9) == [(1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2)]
    assert prompts.nearest(rows[:1], 3) == [()]
    assert prompts.nearest(torch.ones(500, 2), 3)[100] == (0, 1, 2)


@pytest.mark.parametrize("name", ["<ankle_boot>", "<t-shirt>"])
def test_captions_of_placeholders_are_linted_as_those_of_names(name):
    assert prompts.lint(f"a photo of a {name} which is dark", name, count_words) is None
    assert prompts.lint(f"a photo of a {name} which is", name, count_words) == "empty"
    assert prompts.lint("a photo of a boot which hangs", name, count_words) == "class word missing"
