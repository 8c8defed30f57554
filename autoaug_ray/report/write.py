"""The files that a report leaves in a study's folder: summary.parquet, figures, the page."""

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from autoaug_ray.report import case_figures, figures, html, mixes
from autoaug_ray.report.cases import Across
from autoaug_ray.report.compare import learned_mixes, told_apart_by_class
from autoaug_ray.report.results import StudyResults
from autoaug_ray.store.files import write_whole
from autoaug_ray.store.places import Place


def write(results: StudyResults) -> Place:
    """Write summary.parquet, the PNGs that have data, and report.html, whose path is returned."""
    buffer = pa.BufferOutputStream()
    pq.write_table(results.to_arrow(), buffer)
    write_whole(results.root / "summary.parquet", buffer.getvalue().to_pybytes())
    shift = results.study.dataset.shift
    # With a rotation or a zoom, the mean displacement depends on the size of the images.
    moved = shift.translate if shift.rotate == 0 and shift.zoom == 1 else 0
    pictures = draw(results, figures.true_displacement(moved) if moved else None)
    keep_pictures(results.root, pictures)
    path = results.root / "report.html"
    text = html.page(results, {**pictures, "sheet": results.sheet}, shifted=bool(moved))
    write_whole(path, text.encode())
    return path


def draw(results: StudyResults, true_displacement: float | None) -> dict[str, bytes | None]:
    """name -> PNG of each figure of a study; None where there is nothing to draw.

    `true_displacement` is how far, in pixels, the test images are moved in the mean.
    """
    entries, finals, classes = results.entries, results.finals, results.classes
    learned, chosen = learned_mixes(results), told_apart_by_class(results)
    drawn: dict[str, Figure | None] = {
        "accuracy_vs_cost": figures.accuracy_vs_cost(entries),
        "frequency": mixes.frequency(entries, finals, chosen, classes),
        "mixture": mixes.mixture(entries, finals, learned, classes),
        "trajectories": mixes.trajectories(results.searches, learned),
        "device_hours": mixes.device_hours(entries),
    }
    return {
        "strength": figures.strength(entries, finals, true_displacement),
        "hypergradient": figures.hypergradient(entries, finals),
        "samples": figures.samples(entries, finals),
        "classes": figures.classes(entries, finals, classes),
        **{name: figures.png(figure) if figure else None for name, figure in drawn.items()},
    }


def write_cases(found: Across, root: Place) -> Place:
    """Write the page over the cases and its figures below `root`; the path of the page."""
    drawn = {
        "ranks": None
        if found.ranking is None
        else mixes.critical_difference(found.ranking, figures.styles(found.entries)),
        "gain": case_figures.gain(found),
        "alpha": case_figures.alpha(found),
    }
    pictures = {k: figures.png(figure) if figure else None for k, figure in drawn.items()}
    keep_pictures(root, pictures)
    path = root / "report.html"
    write_whole(path, html.cases_page(found, pictures, root).encode())
    return path


def keep_pictures(root: Place, pictures: Mapping[str, bytes | None]) -> None:
    """NAME.png for each; one that has no data any more is removed."""
    for name, png in pictures.items():
        path = root / f"{name}.png"
        if png is None:
            path.unlink(missing_ok=True)  # of an earlier report
        else:
            write_whole(path, png)
