"""The recipe by which generated images are made: nothing of another model is inherited unsaid."""

from pathlib import Path

import pytest

from autoaug_ray import config
from autoaug_ray.errors import UserError
from autoaug_ray.generate import flops
from autoaug_ray.generate.plan import edits_per_source
from autoaug_ray.generate.prompts import TEMPLATES
from autoaug_ray.generate.settings import OF_EMBEDDED, Generation, Tokens

SPACES = Path(__file__).parents[2] / "search_spaces"
PAPERS = [path for path in sorted(SPACES.glob("*.yaml")) if "stable-diffusion" in path.read_text()]
PINNED = {*OF_EMBEDDED, "captioner", "embedder", "precision", "solver", "tokens"}
MIXING = {"local": {"method": "mix", "probabilities": {"identity": 0.5, "local": 0.5}}}


def study(methods=MIXING, **generate):
    tree = {"dataset": {"name": "fashion-mnist-mini"}, "generate": generate}
    return config.study({**tree, "methods": {"none": {}, **methods}}, name="recipe").generate


@pytest.mark.parametrize("path", PAPERS, ids=lambda p: p.stem)
def test_a_paper_study_says_all_of_its_recipe(path):
    """DAFusion's, which AutoGenDA follows: strength, guidance, edits, and 1,000 steps per class."""
    for case in config.load(path):
        how = case.generate
        assert PINNED <= how.model_fields_set
        assert (how.strength, how.guidance, how.per_source) == (0.5, 7.5, 10)
        assert [edits_per_source(count, how) for count in (1, 2, 500)] == [10, 10, 10]
        assert how.tokens is not None
        assert how.tokens.model_fields_set == {"steps", "batch_size", "per_class", "flip"}
        assert how.tokens == Tokens(steps=1000, batch_size=4, lr=2e-3, per_class=True, flip=True)
        calls = {"dpm++": 10, "pndm": 26}
        assert flops.unet_calls(how) == calls[how.solver]


def test_there_are_six_of_them_and_one_has_the_papers_solver():
    assert len(PAPERS) == 6
    assert {s.generate.solver for path in PAPERS for s in config.load(path)} == {"dpm++", "pndm"}


@pytest.mark.parametrize("key", [*OF_EMBEDDED, "captioner"])
def test_a_study_of_another_model_inherits_nothing_of_the_embedded_ones(key):
    whole = {
        "model": "CompVis/stable-diffusion-v1-4", "captioner": "Salesforce/blip2-opt-2.7b",
        "strength": 0.5, "guidance": 7.5, "calls": 10, "per_source": 10, "per_class": 1,
    }  # fmt: skip
    assert study(**whole).guidance == 7.5
    less = {k: v for k, v in whole.items() if k != key}
    with pytest.raises(UserError, match=f"^generate.{key} is missing: .* CompVis/stable-diff"):
        study(**less)
    assert study({}, **less).model == whole["model"]  # nothing is generated
    assert study(**{k: v for k, v in less.items() if k != "model"}).model == "embedded"
    fixed = {"dafusion": {"method": "mix", "probabilities": {"identity": 0.5, "fixed": 0.5}}}
    if key == "captioner":
        assert study(fixed, **less).captioner == "embedded"  # no caption is made


def test_few_steps_without_guidance_are_allowed():
    assert Generation(solver="own", guidance=0, calls=1, strength=1).calls == 1


def test_the_templates_of_textual_inversion():
    assert len(set(TEMPLATES)) == 27 and all(t.count("{}") == 1 for t in TEMPLATES)
