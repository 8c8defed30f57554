"""Memory: counted against sizes that are known, and told where it is too little."""

import torch
from hand import calibrated

from autoaug_ray.commands.calibrate import memory_lines
from autoaug_ray.schedule import calibrate as calibration
from autoaug_ray.schedule.calibrate import calibrate
from autoaug_ray.schedule.memory import Peak
from autoaug_ray.store.calibration import KindOfStep, Training

CPU = torch.device("cpu")
MB = 2**20


def test_a_peak_is_what_was_alive_at_a_time():
    held = torch.zeros(MB // 4)
    peak = Peak(CPU, [held, held.view(2, -1)])
    with peak.measured():
        x = torch.ones(MB // 2)  # 2 MB
        del x
        y = torch.ones(MB // 4)  # 1 MB
        z = y.view(-1, 2) + 1  # 1 MB, the view none
        del y, z
    assert peak.bytes == 3 * MB


def test_what_autograd_keeps_is_counted_until_it_is_let_go():
    w = torch.ones(MB // 4, requires_grad=True)

    def passes(n):
        peak = Peak(CPU, [w])
        with peak.measured():
            x = w
            for _ in range(n):
                x = x.sin()
            x.sum().backward()
        return peak.bytes / MB

    assert passes(8) - passes(4) == 4  # an input kept for each sine
    assert passes(4) == passes(4)


def test_parts_of_a_batch_need_less_in_every_entry(tiny):
    """A width at which activations outweigh weights."""
    found = [
        calibrate(tiny({"bilevel": {"controls": []}}, train={"epochs": 1, "batch_size": 64} | more))
        for more in ({}, {"accumulate": 4})
    ]
    for label in ("none", "bilevel"):
        whole, parts = (one.entry(label).final.memory for one in found)
        assert 0 < parts < 0.6 * whole
        assert found[0].entry(label).memory > whole
    assert found[0].entry("bilevel").final.memory > found[0].entry("none").final.memory


def test_an_entry_that_ran_out_of_memory_is_told(tiny, monkeypatch):
    def fails(self, turn):
        if self.first.label == "bilevel":
            raise torch.OutOfMemoryError("CUDA out of memory")

    study = tiny({"bilevel": {"controls": []}})
    monkeypatch.setattr(calibration._Turns, "take", fails)
    monkeypatch.setattr(calibration._Turns, "result", lambda self: _entry())
    found = calibrate(study)
    assert list(found.left_out) == ["bilevel"]
    assert "does not fit" in found.left_out["bilevel"]
    assert "set train.accumulate to 2 " in found.left_out["bilevel"]


def _entry():
    kind = KindOfStep(logged="train_loss", steps=1, in_run=1, q1=1, median=1, q3=1, gflop=None)
    return calibrated(none=(None, Training(kinds=(kind,), memory=2_000_000_000))).entries[0]


def test_too_little_memory_names_what_helps(tiny):
    study = tiny({}, train={"epochs": 1, "batch_size": 32, "accumulate": 2})
    enough = _entry().model_copy(update={"memory": 2_000_000_000})
    short = _entry().model_copy(update={"memory": 1_000_000_000})
    whole = calibrated(none=(None, Training(kinds=())))
    assert not list(memory_lines(study, whole.model_copy(update={"entries": (enough,)})))
    (line,) = memory_lines(study, whole.model_copy(update={"entries": (short,)}))
    assert line.startswith("none needs 2000 MB at a time, and its share of CPU has 1000: set ")
    assert "train.accumulate to 4" in line
