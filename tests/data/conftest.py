import pytest
from standin_files import PER_CLASS, SMALL

from autoaug_ray.data import Dataset
from autoaug_ray.data.standins.natural import WRITERS


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Writes a made-up dataset, once, and gives its settings: `stand_in("bach", image_size=16)`."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def make(name, **settings):
        root = tmp_path / (f"{name}.npz" if name == "npz" else name)
        if not root.exists():
            WRITERS[name](root, PER_CLASS, 0)
        return Dataset(name=name, root=str(root), **{**SMALL.get(name, {}), **settings})

    return make
