"""What edits cost, against figures measured elsewhere and against a model's own calls."""

import json

import pytest
import tiny_sd
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from autoaug_ray.bench import __main__ as command
from autoaug_ray.bench import generate
from autoaug_ray.errors import UserError
from autoaug_ray.generate import flops, img2img
from autoaug_ray.generate.img2img import Editor, Job
from autoaug_ray.generate.settings import Generation

SD14 = Generation(model=flops.SD14)
DAFUSION = SD14.model_copy(update={"solver": "pndm", "calls": 50, "strength": 0.5, "guidance": 7.5})


@pytest.fixture(scope="module")
def sd14():
    return flops.of_model(SD14)


def test_stable_diffusion(sd14):
    """803 GFLOP and 859.5 M parameters are the literature's."""
    assert sd14.side == 512
    assert sd14.unet == pytest.approx(803, rel=0.01)
    assert sd14.encode == pytest.approx(1117, rel=0.01)
    assert sd14.decode == pytest.approx(2515, rel=0.01)
    assert sd14.text == pytest.approx(13, rel=0.03)
    assert sd14.parameters == pytest.approx(859.5e6 + 83.7e6 + 123.1e6, rel=1e-3)
    smaller = flops.of_model(SD14.model_copy(update={"size": 256}))
    assert smaller.side == 256 and smaller.unet == pytest.approx(180, rel=0.01)


def test_what_an_edit_does_is_what_was_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(img2img, "ROWS", 8)
    settings = Generation(model=str(tiny_sd.save(tmp_path / "tiny")), calls=3, size=32)
    expected = flops.forecast(settings, 8, flops.DEVICES["A100"], prompts=9)
    editor = Editor(settings, device=torch.device("cpu"), batch_size=8)
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    jobs = [Job(image, f"a photo of {i}", i) for i, image in enumerate(images)]
    # Fused attention on a CPU is not counted.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        editor.edit(jobs[:1])  # the empty prompt and one more: a call with all its rows
        before = counter.get_total_flops()
        editor.edit(jobs)
        counted = counter.get_total_flops() - before
    # 7 sources and 7 prompts are new, encoded in 8 rows each; the forecast says 8 and 9.
    text = flops.of_model(settings).text * 1e9
    assert counted + text == pytest.approx(expected.tflop_per_image * 8e12, rel=1e-9)


def test_calls():
    assert flops.unet_calls(SD14) == 10
    assert flops.unet_calls(DAFUSION) == 26


def test_forecast(sd14):
    h100 = flops.DEVICES["H100"]
    theirs = flops.forecast(DAFUSION, 1000, h100, work=sd14, batched=False)
    assert theirs.tflop_per_image == pytest.approx(45.4, rel=0.01)
    ours = flops.forecast(
        SD14.model_copy(update={"guidance": 7.5}), 1000, h100, sources=0, prompts=0, work=sd14
    )
    assert ours.tflop_per_image == pytest.approx(18.6, rel=0.01)
    assert ours.eflop == pytest.approx(0.0186, rel=0.01)
    assert ours.device_hours == pytest.approx(18.6e3 / (989 * h100.batched) / 3600, rel=0.01)
    unguided = flops.forecast(
        SD14.model_copy(update={"guidance": 1.0}), 10, h100, sources=0, prompts=0, work=sd14
    )
    assert unguided.tflop_per_image == pytest.approx(10 * 0.803 + 2.515, rel=0.01)
    twice = flops.forecast(SD14, 2000, h100, sources=0, work=sd14)
    assert twice.device_hours > 1.9 * ours.device_hours


def test_gigabytes(sd14):
    def stored(shape):
        return flops.forecast(SD14, 10**6, flops.DEVICES["H100"], work=sd14, shape=shape).gigabytes

    assert stored((1, 28, 28)) == pytest.approx(0.5, rel=0.1)  # 505 bytes each
    assert 100 < stored(None) < 150  # JPEG of 512 pixels, quality 95


def test_a_model_without_configs(tmp_path):
    with pytest.raises(UserError, match="generate.model: cannot load the configs"):
        flops.of_model(Generation(model=str(tmp_path)))


def test_bench_generate(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(generate, "EPOCHS", 1)
    out = tmp_path / "g.json"
    arguments = "generate --sources 2 --edits 2 --rounds 1 --json".split()
    assert command.main([*arguments, str(out)]) == 0
    figures, printed = json.loads(out.read_text()), capsys.readouterr().out
    editor, plain = figures["ways"]
    assert (editor["name"], plain["name"]) == ("editor", "plain") and "editor" in printed
    assert (editor["calls"], plain["calls"]) == (10, 26) and figures["images"] == 4
    assert plain["speedup"] == [1, 1, 1] and plain["gflop"] > 2 * editor["gflop"] > 0
    for row in figures["ways"]:
        assert 0 < row["outside"] < 1 and row["gflops"] > 0
        share, low, high = row["recognised"]
        assert 0 <= low <= share <= high <= 1


def test_bench_forecast(capsys):
    assert command.main(["forecast", "--images", "1000"]) == 0
    printed = capsys.readouterr().out
    assert all(text in printed for text in (*flops.DEVICES, "18.6", "45.4"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "--guidance", "0.5"], "--guidance must be at least 1"),
        (["generate", "--rounds", "1000"], "--rounds times --sources must be at most"),
        (["generate", "--device", "tpu"], "--device must be cpu or cuda"),
        (["forecast", "--size", "100"], "--size must be a multiple of 8"),
    ],
)
def test_bench_errors(arguments, words, capsys):
    assert command.main(arguments) == 2
    printed = capsys.readouterr().err
    assert words in printed and printed.count("\n") == 1
