"""The cost of losing a machine, and of losing the driver; neither changes a result.

The machines are raylets on this one, a CPU each; a head without any holds no runs. The study is run
three times: undisturbed; while a raylet and its run are killed (SIGKILL) as soon as that is past a
checkpoint; and by a driver that is killed so, and then resumed. (A run may outlive its driver, and
end well.) The study has neither ASHA nor PBA, whose decisions depend on which trial is first.
"""

import contextlib
import math
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from autoaug_ray import config
from autoaug_ray.bench import DATASET, Outcome
from autoaug_ray.bench.tune import attempts, run_all
from autoaug_ray.config import Study
from autoaug_ray.errors import RunError, UserError
from autoaug_ray.report.results import collect
from autoaug_ray.store import meter as metering
from autoaug_ray.store.folder import Folder

SMALL = {"train_size": 640, "test_size": 200}  # images
STORE = 80 * 2**20  # bytes of each raylet's object store
PATIENCE = 300.0  # seconds until a fault must have found its moment


def _study(epochs: int) -> Study:
    tree = {
        "dataset": {**DATASET.model_dump(exclude_defaults=True), **SMALL},
        "train": {"epochs": epochs}, "seeds": 2,
        "methods": {"none": {}, "randaugment": {"magnitude": {"grid": [5, 9]}}},
    }  # fmt: skip
    return config.study(tree, name="bench-faults")


def faults(
    *,
    nodes: Annotated[int, "machines that hold a run each, besides the head"] = 2,
    epochs: Annotated[int, "of every run"] = 12,
) -> Outcome:
    """What the loss of a machine, and of the driver, costs a study; it changes no result."""
    if nodes < 2:
        raise UserError(f"--nodes must be at least 2, for one to be lost, got {nodes}.")
    if os.environ.get("RAY_ADDRESS", "local") != "local":
        raise UserError("RAY_ADDRESS is set, but faults kills machines of its own; unset it.")
    study = _study(epochs)
    with tempfile.TemporaryDirectory(prefix="faults-") as place, _cluster(nodes, place) as cluster:
        undisturbed, bereft, resumed = (Folder(Path(place, name)) for name in ("a", "b", "c"))
        _run(study, undisturbed)
        with meanwhile(lambda: _lose_machine(cluster, bereft)):
            _run(study, bereft)
        cluster.add()
        _lose_driver(study, resumed)
        _run(study, resumed)
        legs = {
            "undisturbed": _leg(study, undisturbed, nodes),
            f"1 of {nodes} machines lost": _leg(study, bereft, nodes),
            "driver lost, resumed": _leg(study, resumed, nodes),
        }
    results = [leg.pop("results") for leg in legs.values()]
    if any(found != results[0] for found in results):
        raise RunError(f"faults: the results differ: {results}.")
    figures = {
        "nodes": nodes, "epochs": epochs, "runs": len(results[0]), "legs": legs,
        "results": results[0],
    }  # fmt: skip
    return Outcome(figures, [_table(figures)])


class _Cluster:
    def __init__(self, nodes: int) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(nodes):
            self.add()
        self.address: str = self._cluster.address

    def add(self) -> None:
        self._cluster.add_node(num_cpus=1, object_store_memory=STORE)

    def kill(self, line: Mapping[str, Any]) -> None:
        """Kills the machine on which this attempt runs, and with it the attempt."""
        (node,) = (n for n in self._cluster.worker_nodes if n.node_id == line["node"])
        (raylet,) = node.all_processes["raylet"]
        for pid in (raylet.process.pid, line["pid"]):
            os.kill(pid, signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)

    def shutdown(self) -> None:
        self._cluster.shutdown()


@contextlib.contextmanager
def _cluster(nodes: int, place: str) -> Iterator[_Cluster]:
    """A cluster that this process, and those that it starts, have joined."""
    # Not where other programs look for a cluster to join.
    os.environ["RAY_TMPDIR"] = place
    from autoaug_ray.schedule import cluster

    started = _Cluster(nodes)
    before = os.environ.get("RAY_ADDRESS")
    os.environ["RAY_ADDRESS"] = started.address
    try:
        cluster.join()
        yield started
    finally:
        cluster.leave()
        started.shutdown()
        del os.environ["RAY_ADDRESS"], os.environ["RAY_TMPDIR"]
        if before is not None:
            os.environ["RAY_ADDRESS"] = before


def _run(study: Study, folder: Folder) -> None:
    from autoaug_ray.schedule import cluster

    cluster.join()
    run_all(study, folder)


def _under_way(folder: Folder) -> Mapping[str, Any] | None:
    """An attempt that is past a checkpoint, after some run has finished."""
    if not folder.finished():
        return None
    lines = metering.read(folder.ledger)
    return next((line for line in lines if line["open"] and line["kept"] > 0), None)


@contextlib.contextmanager
def meanwhile(act: Callable[[], bool | None]) -> Iterator[None]:
    """Calls `act` again and again, until it returns True or the block ends; raises its error."""
    stop, errors = threading.Event(), []

    def work() -> None:
        try:
            while not stop.wait(0.02) and not act():
                pass
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if errors:
        raise errors[0]


def _lose_machine(cluster: _Cluster, folder: Folder) -> bool:
    """Kills the machine of an attempt if one is under way; returns whether it did."""
    if (line := _under_way(folder)) is None:
        return False
    cluster.kill(line)
    return True


def _lose_driver(study: Study, folder: Folder) -> None:
    """Runs the study in a driver of its own, and kills that once an attempt is under way."""
    driver = multiprocessing.get_context("spawn").Process(target=_run, args=(study, folder))
    driver.start()
    limit = time.monotonic() + PATIENCE
    while _under_way(folder) is None:
        if not driver.is_alive() or time.monotonic() > limit:
            raise RunError("faults: the driver ended before it could be killed.")
        time.sleep(0.05)
    driver.kill()
    driver.join()


def _leg(study: Study, folder: Folder, nodes: int) -> dict[str, Any]:
    """The figures of one of the three times. Raises RunError if its ledger is not right."""
    lines, spans = metering.read(folder.ledger), attempts(folder.ledger)
    wall = max(a.ended for a in spans) - min(a.began for a in spans)
    entries = collect(study, folder).entries
    spent = math.fsum(map(metering.spent, lines))
    charged = 3600 * math.fsum(entry.total_device_hours for entry in entries)
    finished = [line["run"] for line in folder.read_outcomes()]
    if len(finished) != len(set(finished)):
        raise RunError("faults: a run has finished twice.")
    if abs(charged - spent) > 1e-6 * spent or spent > nodes * wall:
        raise RunError(
            f"faults: {charged} device-seconds are charged, {spent} are in the ledger, and "
            f"{nodes} machines had {nodes * wall}."
        )
    return {
        "results": {
            key: row["test_accuracy"] if row["phase"] == "final" else row["val_accuracy"]
            for key, row in sorted(folder.finished().items())
        },
        "attempts": len(lines), "wall_seconds": wall, "device_seconds": spent,
        "lost_attempts": sum(entry.lost_attempts for entry in entries),
        "vain_seconds": 3600 * math.fsum(entry.lost_device_hours for entry in entries),
    }  # fmt: skip


def _table(f: Mapping[str, Any]) -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        title=f"{f['runs']} runs of {f['epochs']} epochs on {f['nodes']} machines, a CPU each",
        caption="Every run ended with the same accuracy, to the last bit, and none twice; the "
        "ledger's attempts add up to what is charged. Wall-clock: from the beginning of the first "
        "attempt to the end of the last.",
    )
    table.add_column("")
    for name in ("attempts", "lost", "wall s", "CPU-s charged", "of them in vain"):
        table.add_column(name, justify="right")
    for name, leg in f["legs"].items():
        table.add_row(
            name, str(leg["attempts"]), str(leg["lost_attempts"]), f"{leg['wall_seconds']:.1f}",
            f"{leg['device_seconds']:.1f}", f"{leg['vain_seconds']:.1f}",
        )  # fmt: skip
    return table
