from collections import Counter

import pytest
import torch

from autoaug_ray.errors import UserError
from autoaug_ray.generate import plan
from autoaug_ray.generate.plan import Fingerprints, Pool
from autoaug_ray.generate.settings import EDITS, Generation, Tokens, of_all_classes

CLASSES = ("cat", "dog", "red fox", "owl")
NEAR = ((1, 2), (0, 2), (1, 0), (0, 1))
MARK = Fingerprints("sd", "blip-fp32", "pipeline")
SETTINGS = Generation(per_class=1, per_source=2)


def pool(counts, seed=0):
    """Different images; the first of each class are the same whatever the counts."""
    images, labels = [], []
    for label, count in enumerate(counts):
        stream = torch.Generator().manual_seed(100 * seed + label)
        images += [
            torch.randint(256, (1, 6, 5), generator=stream).to(torch.uint8) for _ in range(count)
        ]
        labels += [label] * count
    return Pool(torch.stack(images), torch.tensor(labels), CLASSES)


def table(some, settings=SETTINGS, mark=MARK, kinds=EDITS, tail="that is wet", tokens=len):
    draws = plan.draw(some, NEAR, settings, of_all_classes(kinds, len(CLASSES)))
    continuations = {i: f"{tail} {'x' * i}" for i in plan.captioned(draws)}
    return plan.build(some, draws, continuations, settings, mark, tokens)


def sources_of(some, settings=SETTINGS):
    """The caption that each edit draws, by what the edit is."""
    return {
        (some.hashes[d.source], d.kind, d.number): some.hashes[d.caption_of]
        for d in plan.draw(some, NEAR, settings)
        if d.caption_of is not None
    }


def test_an_image_is_its_shape_and_its_bytes():
    image = torch.arange(24, dtype=torch.uint8).reshape(1, 4, 6)
    others = [image.reshape(1, 6, 4), image.reshape(2, 2, 6), image + 1]
    assert len({plan.content_hash(x) for x in [image, *others]}) == 4
    assert plan.content_hash(image.clone()) == plan.content_hash(image)
    # a view that is not contiguous is the image that it shows
    assert plan.content_hash(image.mT) == plan.content_hash(image.mT.contiguous())


def test_rare_classes_get_more_edits_per_image():
    settings = Generation(per_class=7, per_source=2)
    edits = table(pool([9, 3, 2, 1]), settings)
    number = Counter((e.class_name, e.kind) for e in edits)
    for kind in EDITS:
        assert [number[name, kind] for name in CLASSES] == [18, 9, 8, 7]
    per_source = Counter((e.source, e.kind) for e in edits)
    assert per_source[0, "local"] == 2 and per_source[14, "transfer"] == 7


def test_captions_come_from_where_the_kind_says():
    some = pool([5, 4, 3, 1])
    label = dict(zip(some.hashes, some.labels.tolist(), strict=True))
    for e in table(some):
        own = CLASSES.index(e.class_name)
        if e.kind == "fixed":
            assert e.caption_of is None and e.prompt == f"a photo of a {e.class_name}"
        elif e.kind == "local":
            assert label[e.caption_of] == own
            alone = e.class_name == "owl"
            assert (e.caption_of == e.source_hash) == alone
        else:
            assert label[e.caption_of] in NEAR[own]
            position = some.hashes.index(e.caption_of)
            assert (
                e.prompt
                == f"a photo of a {e.class_name} which that is wet {'x' * position}".strip()
            )


def test_all_captions_of_the_neighbours_are_about_as_likely():
    some = pool([30, 6, 2, 40])
    drawn = Counter(
        caption for (_, kind, _), caption in sources_of(some, Generation(per_source=40)).items()
        if kind == "transfer" and caption in some.hashes[:30]
    )  # fmt: skip
    # 48 images draw 40 times among 32, 36 or 38 captions: about 55 each of the 30
    assert len(drawn) == 30 and 25 < min(drawn.values()) and max(drawn.values()) < 90


def test_a_subset_shares_what_it_can():
    big, small = sources_of(pool([40, 30, 20, 8])), sources_of(pool([20, 15, 10, 4]))
    kept = set(pool([20, 15, 10, 4]).hashes)
    assert small.keys() < big.keys()
    for edit, caption in small.items():
        if big[edit] in kept:
            assert caption == big[edit]
        else:
            assert caption != big[edit]


def test_fewer_edits_are_a_prefix_of_more():
    few = {e.key for e in table(pool([3, 3, 3, 3]), Generation(per_class=1, per_source=2))}
    more = table(pool([3, 3, 3, 3]), Generation(per_class=1, per_source=5))
    assert few == {e.key for e in more if e.number < 2}


def test_nothing_depends_on_the_order_of_the_pool():
    some = pool([5, 4, 3, 1])
    order = torch.randperm(13, generator=torch.Generator().manual_seed(0))
    other = Pool(some.images[order], some.labels[order], CLASSES)
    tails = {h: f"that is {i}" for i, h in enumerate(some.hashes)}

    def keys(of):
        draws = plan.draw(of, NEAR, SETTINGS)
        text = {i: tails[of.hashes[i]] for i in range(13)}
        return {e.key for e in plan.build(of, draws, text, SETTINGS, MARK, len)}

    assert keys(some) == keys(other)
    assert some.fingerprint == other.fingerprint


def test_more_captions_than_are_ranked(monkeypatch):
    whole = sources_of(pool([40, 30, 20, 8]))
    monkeypatch.setattr(plan, "RANKED", 8)
    some = sources_of(pool([40, 30, 20, 8]))
    assert len(set(some.values())) > 80  # not the same eight for everybody
    assert all(h != caption for (h, kind, _), caption in some.items() if kind == "local")
    small = sources_of(pool([36, 27, 18, 8]))
    shared = sum(some[edit] == caption for edit, caption in small.items())
    assert shared > 0.7 * len(small)
    assert some != whole


def test_equal_images_are_one_caption():
    some = pool([3, 1, 1, 1])
    twice = Pool(some.images[[0, 0, 0, 3, 4, 5]], some.labels, CLASSES)
    local = [e for e in table(twice) if e.kind == "local" and e.class_name == "cat"]
    assert {e.caption_of for e in local} == {twice.hashes[0]}  # there is no other
    assert len({e.key for e in local}) == 2  # and the copies share their edits


def test_a_key_names_all_that_an_image_depends_on():
    fields = dict(
        generator="g", tokens=None, source_hash="s", prompt="p", strength=0.5, guidance=4.0,
        calls=10, solver="dpm++", size=None, precision="fp32", seed=0,
    )  # fmt: skip
    other = dict(
        generator="h", tokens="t", source_hash="r", prompt="q", strength=0.6, guidance=5.0,
        calls=11, solver="pndm", size=64, precision="bf16", seed=1,
    )  # fmt: skip
    keys = {plan.edit_key(**fields)} | {plan.edit_key(**{**fields, f: other[f]}) for f in fields}
    assert len(keys) == 12
    # fields do not run into each other
    assert plan.edit_key(**{**fields, "prompt": "p1", "seed": 2}) != plan.edit_key(
        **{**fields, "prompt": "p", "seed": 12}
    )


def test_edits_of_one_source_have_their_own_noise():
    edits = table(pool([2, 2, 2, 2]))
    assert len({e.seed for e in edits}) == len(edits)
    assert all(0 <= e.seed < 2**63 for e in edits)
    again = table(pool([2, 2, 2, 2]), SETTINGS.model_copy(update={"seed": 1}))
    assert not {e.seed for e in edits} & {e.seed for e in again}


def test_what_the_linter_rejects_is_the_fixed_prompt_with_the_reason():
    edits = table(pool([3, 2, 2, 2]), tokens=lambda text: 78 if "dog" in text else 20)
    for e in edits:
        if e.class_name == "dog" and e.kind != "fixed":
            assert (e.prompt, e.note) == ("a photo of a dog", "too long")
            assert e.caption_of is not None
        else:
            assert e.note is None
    # the same prompt, and still another image than the fixed one's
    assert len({e.key for e in edits}) == len(edits)
    assert plan.lint_counts(edits) == {"dog": Counter({"too long": 8})}


def test_learned_words_take_the_place_of_names_everywhere():
    mark = MARK._replace(tokens="words")
    some = pool([2, 2, 2, 2])
    for e in table(some, mark=mark, tail="is a cat, not a dog"):
        if e.kind == "fixed":
            assert e.prompt == f"a photo of a <{e.class_name.replace(' ', '_')}>"
        else:
            origin = CLASSES[some.labels[some.hashes.index(e.caption_of)]]
            word = f"<{e.class_name.replace(' ', '_')}>"
            assert e.prompt.startswith(f"a photo of a {word} which is a")
            assert (f"{word}, not" in e.prompt) == (origin == "cat")
    plain = {e.key for e in table(some, kinds=["fixed"])}
    assert not plain & {e.key for e in table(some, mark=mark, kinds=["fixed"])}


def test_a_plan_is_named_by_all_that_it_depends_on():
    def key(of=None, settings=SETTINGS, mark=MARK, kinds=EDITS):
        return plan.plan_key(
            pool([2, 2, 2, 2]) if of is None else of,
            settings,
            mark,
            of_all_classes(kinds, len(CLASSES)),
        )

    some = pool([2, 2, 2, 2])
    relabelled = Pool(some.images, some.labels.flip(0), CLASSES)
    renamed = Pool(some.images, some.labels, ("cat", "dog", "red fox", "eagle"))
    different = [
        key(pool([3, 2, 2, 2])), key(relabelled), key(renamed),
        key(settings=SETTINGS.model_copy(update={"strength": 0.5})),
        key(settings=SETTINGS.model_copy(update={"per_class": 9})),
        key(mark=MARK._replace(generator="other")), key(mark=MARK._replace(captioner="other")),
        key(mark=MARK._replace(tokens="other")), key(kinds=("fixed",)),
    ]  # fmt: skip
    assert len({key(), *different}) == 10
    assert key() == key(kinds=tuple(reversed(EDITS)))
    # where the weights are does not matter, only what they are
    assert key() == key(settings=SETTINGS.model_copy(update={"model": "elsewhere"}))


def test_words_are_named_by_the_images_they_were_learned_on():
    settings = Generation(tokens=Tokens())
    some = pool([3, 3, 3, 3])
    own = plan.token_fingerprints(some, settings, "sd")
    assert own[1] == () and own != plan.token_fingerprints(pool([2, 3, 3, 3]), settings, "sd")
    assert own != plan.token_fingerprints(some, settings, "another sd")
    shorter = Generation(tokens=Tokens(steps=10))
    assert own != plan.token_fingerprints(some, shorter, "sd")
    assert plan.token_fingerprints(some, Generation(), "sd") == (None, ())


def test_a_word_that_is_learned_alone_is_named_by_the_images_of_its_class():
    settings = Generation(tokens=Tokens(per_class=True))
    whole, words = plan.token_fingerprints(pool([3, 3, 3, 3]), settings, "sd")
    other, fewer = plan.token_fingerprints(pool([2, 3, 3, 3]), settings, "sd")
    assert len(set(words)) == 4 and whole != other
    assert [a == b for a, b in zip(words, fewer, strict=True)] == [False, True, True, True]


def test_an_edit_does_not_depend_on_which_others_are_made():
    some = pool([3, 2, 2, 2])
    whole = plan.draw(some, NEAR, SETTINGS)
    drawn = {"fixed": [1, 3], "transfer": [3]}
    cells = {("fixed", 1), ("fixed", 3), ("transfer", 3)}
    labels = some.labels.tolist()
    assert plan.draw(some, NEAR, SETTINGS, drawn) == [
        d for d in whole if (d.kind, labels[d.source]) in cells
    ]


def test_a_plan_of_other_images_is_refused():
    some, other = pool([3, 2, 2, 2]), pool([3, 2, 2, 2], seed=1)
    edits = table(some)
    plan.guard(edits, some.hashes)
    with pytest.raises(UserError, match="not in that place of the training pool"):
        plan.guard(edits, other.hashes)
    with pytest.raises(UserError, match="outside the training pool|not in that place"):
        plan.guard(edits, some.hashes[:-1])
    foreign = [e._replace(caption_of=other.hashes[0]) if e.kind == "local" else e for e in edits]
    with pytest.raises(UserError, match="local edit 0 .* outside the training pool"):
        plan.guard(foreign, some.hashes)


def test_fingerprints_ask_only_for_the_models_that_are_needed(tmp_path):
    some = pool([2, 2, 2, 2])
    for name in ("sd", "blip"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
    settings = Generation(model=str(tmp_path / "sd"), captioner=str(tmp_path / "blip"))
    mark = plan.fingerprints(some, settings)
    assert None not in mark[:3] and mark.tokens is None
    assert plan.fingerprints(some, settings, ["fixed"])[1:4] == (None, None, None)
    assert plan.fingerprints(some, settings, ["local"]).embedder is None
    missing = Generation(model=str(tmp_path / "sd"), captioner=str(tmp_path / "nowhere"))
    plan.fingerprints(some, missing, ["fixed"])
    with pytest.raises(UserError, match="no model folder"):
        plan.fingerprints(some, missing)
