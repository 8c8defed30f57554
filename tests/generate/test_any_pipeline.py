"""SDXL, SD-Turbo, SD3 and FLUX, with random weights, against diffusers' own call of one image."""

import json
import shutil

import pytest
import tiny_pipelines
import torch
from diffusers import AutoPipelineForImage2Image
from torchvision.transforms.functional import to_pil_image

from autoaug_ray.errors import UserError
from autoaug_ray.generate import flops, inversion
from autoaug_ray.generate.any_pipeline import PipelineEditor
from autoaug_ray.generate.img2img import Editor, Job
from autoaug_ray.generate.settings import Generation, Tokens, Workers
from autoaug_ray.generate.worker import Worker

# By Euler's schedulers of diffusers with numpy 2.4.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
CPU = torch.device("cpu")
FAMILIES = {
    "turbo": (tiny_pipelines.save_turbo, {"calls": 2, "guidance": 0.0}),
    "sdxl": (tiny_pipelines.save_sdxl, {"calls": 4, "guidance": 5.0}),
    "sd3": (tiny_pipelines.save_sd3, {"calls": 4, "guidance": 5.0}),
    "flux": (tiny_pipelines.save_flux, {"calls": 4, "guidance": 3.5}),
}
SIDE = tiny_pipelines.SIDE


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    return {name: save(root / name) for name, (save, _) in FAMILIES.items()}


def settings(folders, family, **more):
    _, own = FAMILIES[family]
    recipe = {"strength": 0.5, "size": SIDE, "solver": "own", **own, **more}
    return Generation(model=str(folders[family]), **recipe)


def jobs(shape=(3, SIDE, SIDE)):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, *shape), generator=generator, dtype=torch.uint8)
    prompts = ["a photo of a cat", "a red dog on grass", "a photo of a cat", "a blue dog"]
    return [Job(images[i % 2], prompt, seed=i // 2) for i, prompt in enumerate(prompts)]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_is_the_pipelines_own_whatever_the_batch(folders, family):
    how = settings(folders, family)
    editor = PipelineEditor(how, device=CPU, batch_size=8)
    edited = [one.image for one in editor.edit(jobs())]
    assert [one.reject for one in editor.edit(jobs())] == [None] * 4
    assert all(not torch.equal(a, b) for a, b in zip(edited, edited[1:], strict=False))

    pipe = AutoPipelineForImage2Image.from_pretrained(folders[family])
    pipe.set_progress_bar_config(disable=True)
    size = {"height": SIDE, "width": SIDE} if family in ("sd3", "flux") else {}
    for job, image in zip(jobs(), edited, strict=True):
        (own,) = pipe(
            job.prompt, image=to_pil_image(job.image), strength=how.strength,
            num_inference_steps=how.calls, guidance_scale=how.guidance,
            generator=torch.Generator().manual_seed(job.seed), output_type="pt", **size,
        ).images  # fmt: skip
        assert float((image / 255 - own).abs().max()) < 1.5 / 255

    few = PipelineEditor(how, device=CPU, batch_size=1).edit(jobs()[::-1][:3])
    assert all(torch.equal(a.image, b) for a, b in zip(few, edited[::-1], strict=False))


def test_an_edit_comes_back_in_its_sources_shape(folders):
    editor = PipelineEditor(settings(folders, "turbo"), device=CPU, batch_size=8)
    assert {one.image.shape for one in editor.edit(jobs((1, 28, 28)))} == {(1, 28, 28)}
    assert editor.edit([]) == []
    assert editor.count_tokens("a photo of a cat") == 7  # with start and end


def test_a_pipeline_knows_its_size_or_is_told(folders):
    trained = settings(folders, "sdxl", size=None)
    assert PipelineEditor(trained, device=CPU, batch_size=1).side == SIDE
    with pytest.raises(UserError, match="generate.size must be a multiple of 4"):
        PipelineEditor(settings(folders, "flux", size=30), device=CPU, batch_size=1)


def test_words_are_learned_and_used_by_a_stable_diffusion_only(folders, tmp_path):
    how = settings(folders, "turbo", tokens=Tokens(steps=1, batch_size=1, lr=1.0))
    images = torch.stack([job.image for job in jobs()])
    learned = inversion.invert(how, images, torch.zeros(4).long(), ["cat"], device=CPU)
    inversion.save(tmp_path / "words", learned)
    editor = PipelineEditor(how, device=CPU, batch_size=1, tokens=[tmp_path / "words"])
    image = jobs()[0].image
    one, other = editor.edit([Job(image, f"a photo of a {w}", 0) for w in ("<cat>", "the")])
    assert not torch.equal(one.image, other.image)
    with pytest.raises(
        UserError, match="generate.tokens is for Stable Diffusion, .* StableDiffusionXLImg2Img"
    ):
        sdxl = settings(folders, "sdxl", tokens=Tokens())
        inversion.invert(sdxl, images, torch.zeros(4).long(), ["cat"], device=CPU)


def test_what_cannot_work_is_one_sentence(folders, tmp_path):
    with pytest.raises(UserError, match="solver dpm.. is for Stable Diffusion, .*use solver: own"):
        Editor(settings(folders, "sdxl", solver="dpm++"), device=CPU, batch_size=1)
    with pytest.raises(UserError, match="which is 0 for 2 and 0.4"):
        PipelineEditor(settings(folders, "turbo", strength=0.4), device=CPU, batch_size=1)
    with pytest.raises(UserError, match="work of solver own cannot be counted"):
        flops.of_model(settings(folders, "sdxl"))
    kontext = shutil.copytree(folders["flux"], tmp_path / "kontext")
    index = json.loads((kontext / "model_index.json").read_text())
    index["_class_name"] = "FluxKontextPipeline"
    (kontext / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="is a FluxKontextPipeline, which takes no strength"):
        how = settings(folders, "flux").model_copy(update={"model": str(kontext)})
        PipelineEditor(how, device=CPU, batch_size=1)


def test_a_worker_takes_the_editor_of_the_solver(folders, tmp_path):
    worker = Worker(str(tmp_path), settings(folders, "turbo"), Workers())
    assert type(worker._editor_with(())) is PipelineEditor
