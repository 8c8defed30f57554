"""Provisional."""

from collections.abc import Mapping
from typing import Any

from autoaug_ray.store.places import Place


class Calibration:
    def seconds(self, label: str, row: Mapping[str, Any]) -> float | None:
        return None

    def gflop(self, label: str, row: Mapping[str, Any]) -> float | None:
        return None


def read(file: Place) -> Calibration | None:
    return None
