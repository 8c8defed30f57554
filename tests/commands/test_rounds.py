"""Images for the seeds that are asked for, and no others: rounds of a study whose pools differ."""

from pathlib import Path

import pytest

from autoaug_ray.commands import run
from autoaug_ray.store.folder import Folder

HALF = {"identity": 0.5, "fixed": 0.5}


@pytest.mark.parametrize("redraw", [True, False])
def test_images_are_made_for_the_seeds_that_are_asked_for(tiny, monkeypatch, tmp_path, redraw):
    dataset = {"name": "fashion-mnist-mini", "imbalance": {"factor": 0.1}, "redraw": redraw}
    mix = {"method": "mix", "probabilities": HALF}
    study = tiny({"mix": mix}, dataset=dataset, seeds=5, eliminate=0.1)
    made: list[tuple[int, ...]] = []

    def fill(studies, bank, say):
        (asked,) = studies
        made.append(asked.seeds)
        plans = {asked.pool_name(seed, None): "plan" for seed in asked.seeds}
        return [asked.model_copy(update={"bank_plans": plans})]

    def wanted(study, folder):
        return {"none": study.seeds, "mix": study.seeds[:3]}

    monkeypatch.setattr(run, "fill_bank", fill)
    first = [{"none": (0, 1, 2), "mix": (0, 1, 2)}]
    (filled,) = run._with_images([study], first, tmp_path, print)
    assert filled.seeds == study.seeds and made == [(0, 1, 2)]
    now = run._with_plans(wanted)(filled, Folder(Path(tmp_path)))
    # Seeds that share one pool need no other round.
    assert now == {"none": (0, 1, 2) if redraw else study.seeds, "mix": (0, 1, 2)}
    (filled,) = run._with_images([filled], [wanted(filled, None)], tmp_path, print)
    assert run._with_plans(wanted)(filled, None) == wanted(filled, None)
    assert len(filled.bank_plans) == (5 if redraw else 1)
