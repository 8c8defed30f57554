"""A bank of four sources of two classes, whose images are noise: edits without any model."""

import torch

from autoaug_ray.generate import plan
from autoaug_ray.generate.bank_files import write_shard
from autoaug_ray.generate.plan import Fingerprints, Pool
from autoaug_ray.generate.settings import EDITS, Generation, of_all_classes

CLASSES = ("cat", "dog/wolf")
NEAR = ((1,), (0,))
SETTINGS = Generation(per_class=1, per_source=2)
MARK = Fingerprints("sd", "blip", "pipeline")
SHAPE = (3, 8, 6)


def make_pool(seed=0):
    stream = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (4, *SHAPE), generator=stream).to(torch.uint8)
    return Pool(images, torch.tensor([0, 1, 0, 1]), CLASSES)


def of(*kinds):
    return of_all_classes(kinds, len(CLASSES))


def make_plan(bank, some, drawn=None, settings=SETTINGS, mark=MARK):
    drawn = of(*EDITS) if drawn is None else drawn
    draws = plan.draw(some, NEAR, settings, drawn)
    continuations = {i: f"that is number {i}" for i in plan.captioned(draws)}
    edits = plan.build(some, draws, continuations, settings, mark, len)
    key = plan.plan_key(some, settings, mark, drawn)
    bank.write_plan(key, edits, some, drawn, settings, mark)
    return key, edits


def edited(edit):
    stream = torch.Generator().manual_seed(edit.seed)
    return torch.randint(256, SHAPE, generator=stream).to(torch.uint8)


def write(bank, edits, change=None, rejects=None):
    images = [(change or {}).get(e.key, edited(e)) for e in edits]
    rejects = [(rejects or {}).get(e.key) for e in edits]
    path = bank.shard_path([e.key for e in edits])
    write_shard(path, edits, images, rejects, SETTINGS, MARK)
    return path
