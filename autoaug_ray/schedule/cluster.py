"""The machines that the work runs on: the cluster around this process, or this machine alone."""

import contextlib
import logging
import math
import os
import re
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

# Before ray is imported: it reads them then. Our own rows and checkpoints carry a study over a
# crash, so Tune's snapshots and result files would only be written a second time.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "86400")
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # what is lost is said in a line
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C ends the command at once
# Tune asks a searcher that it does not know for one trial, and for the next when that one runs:
# machines would start one after the other, and the autoscaler never see what is wanted.
os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "200")

import ray
import torch
import yaml

from autoaug_ray.errors import UserError
from autoaug_ray.store.bill import ClusterState

HEAD = Path("/tmp/ray/ray_current_cluster")
"""`ray start` leaves the address of the cluster's head here, on each of its machines."""
LAUNCHED = Path("~/ray_bootstrap_config.yaml")
"""`ray up` leaves the cluster's YAML here, on the head."""
KUBERAY = "RAY_USAGE_STATS_KUBERAY_IN_USE"
"""KubeRay sets it in the pods of its clusters."""
LOCAL = "local"
HOST_AND_PORT = re.compile(r"(?<=//)[^/]+:\d+|^[^/]+:\d+$")
"""In a RAY_ADDRESS; "local" and "auto" have none."""
ANSWERS = 5.0
"""Seconds in which a cluster's head must answer."""
LONGEST_TMPDIR = 38
"""Characters: Ray's sockets lie 69 deeper, and a socket's path may have 107."""
TOKEN = Path("~/.ray/auth_token")
"""The file of the cluster's secret: its holder may run anything on the cluster."""


def join(cpus: int | None = None, say: Callable[[str], None] = lambda line: None) -> None:
    """Joins the cluster of `address`, or starts one of `cpus` on this machine; once a process.

    `say` is told which cluster was joined, if one was. Raises UserError if the one that RAY_ADDRESS
    names does not answer within ANSWERS seconds.
    """
    if ray.is_initialized():
        return
    where = address()
    if (head := HOST_AND_PORT.search(where)) and not _answers(head[0]):
        raise UserError(
            f"RAY_ADDRESS: no Ray cluster answers at {where}; give the host:port of one that runs, "
            "or local for this machine alone."
        )
    if where == LOCAL and len(tempfile.gettempdir()) > LONGEST_TMPDIR:
        os.environ.setdefault("RAY_TMPDIR", "/tmp")
    local: dict[str, Any] = {
        "num_cpus": cpus,
        "include_dashboard": False,
        "object_store_memory": 128 * 2**20,  # bytes; trials exchange settings and figures only
    }
    terminated = signal.getsignal(signal.SIGTERM)
    # Ray reads its token only for a cluster that it finds itself, which then is the one found here.
    named = where == LOCAL or os.environ.get("RAY_ADDRESS")
    try:
        ray.init(
            address=where if named else "auto",
            log_to_driver=False,
            logging_level=logging.ERROR,
            **(local if where == LOCAL else {}),
        )
    except ConnectionError as error:
        raise UserError(f"cannot join the Ray cluster at {where}: {error}") from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminated)  # Ray's own handler ends in a C++ stack
    if where == LOCAL and (node := ray._private.worker._global_node) is not None:
        # Tune hands AWS's keys to its workers, and a log in there that all may read keeps them.
        Path(node.get_session_dir_path()).chmod(0o700)
    with contextlib.suppress(OSError):  # Ray leaves its token for all users of the machine to read
        TOKEN.expanduser().chmod(0o600)
    if where != LOCAL:  # its launcher sets OMP_NUM_THREADS=1 for all processes
        torch.set_num_threads(os.cpu_count() or 1)
        has = {kind: sum(m.get(kind, 0.0) for m in machines()) for kind in ("CPU", "GPU")}
        say(
            f"on the Ray cluster at {where}: {len(machines())} machine(s), {has['CPU']:g} CPUs, "
            f"{has['GPU']:g} GPUs; RAY_ADDRESS=local would use this machine alone"
        )


def leave() -> None:
    """Leaves the cluster, or ends the one that this process started."""
    ray.shutdown()


@contextlib.contextmanager
def left_as_found() -> Iterator[None]:
    """What is joined or started within this context is left or ended; a Ray that this process used
    before goes on."""
    before = ray.is_initialized()
    try:
        yield
    finally:
        if not before:
            leave()


def look() -> ClusterState:
    """The state of the cluster that was joined, for its bill."""
    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    return ClusterState(nodes, ray.available_resources())


def address() -> str:
    """The address of the cluster that this process is on: host:port, or "local" for none.

    It is RAY_ADDRESS (in which "local" asks for this machine alone), else the running cluster
    that `ray start` began or joined on this machine. Raises UserError on the head of a launched
    cluster and in a Kubernetes pod if Ray doesn't run there: this machine alone isn't what was
    meant.
    """
    if named := os.environ.get("RAY_ADDRESS"):
        return named
    if _ours(HEAD) and _answers(found := HEAD.read_text().strip()):
        return found
    why = None
    if LAUNCHED.expanduser().exists():
        why = f"{LAUNCHED} says that this machine is the head of a cluster"
    elif KUBERAY in os.environ:
        why = "this is a pod of KubeRay"
    if why is not None:
        raise UserError(
            f"{why}, but no Ray answers here; start it (ray up), or set RAY_ADDRESS to the "
            "cluster's host:port, or to local for this machine alone."
        )
    return LOCAL


def most(kind: str) -> float:
    """The most "CPU" or "GPU" that one machine has, or one that may be started; inf: unknown."""
    return max([n.get(kind, 0.0) for n in (*machines(), *_to_come())], default=0.0)


def machines() -> list[dict[str, float]]:
    """The resources of every machine of the cluster that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def check_alone(folder: str) -> None:
    """Raise UserError if there is, or may come, a machine to which `folder` is another one."""
    if LAUNCHED.expanduser().exists() and may_grow() or len(machines()) > 1:
        raise UserError(
            f"--storage is missing: on a cluster, what goes to {folder}/ stays on the machine "
            "that wrote it; give a place that all machines share, such as s3://BUCKET/runs or a "
            "mounted folder."
        )


def room_to_come(cpus: float, gpus: float) -> int:
    """How many tasks of this size fit on all machines that the cluster's YAML lets come.

    A machine of a type that the YAML leaves for the cloud to describe is taken to hold one. 0 where
    there is no YAML of `ray up`.
    """
    if (launched := _launched()) is None or not may_grow():
        return 0
    needs = [(kind, need) for kind, need in (("CPU", cpus), ("GPU", gpus)) if need > 0]
    most, room = launched.get("max_workers", 10_000), 0
    workers = []
    for node in _worker_types(launched):
        has = node["resources"]
        each = min(int(has.get(kind, 0.0) / need + 1e-6) for kind, need in needs) if has else 1
        workers.append((each, node.get("max_workers", most)))
    for each, count in sorted(workers, reverse=True):
        room += each * min(count, most)
        most -= min(count, most)
    return room


def may_grow() -> bool:
    """True if the cluster may start more machines."""
    return address() != LOCAL


def _launched() -> dict[str, Any] | None:
    """What `ray up` was given; None on a cluster that it did not make."""
    path = LAUNCHED.expanduser()
    return yaml.safe_load(path.read_text()) if path.exists() else None


def _worker_types(launched: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The node types besides the head's."""
    types = launched["available_node_types"].items()
    return [node for name, node in types if name != launched["head_node_type"]]


def _to_come() -> Iterator[Mapping[str, float]]:
    """The resources of one machine of each type that the cluster may start."""
    if not may_grow():
        return
    unknown = {"CPU": math.inf, "GPU": math.inf}
    if (launched := _launched()) is None:
        yield unknown
        return
    for node in _worker_types(launched):
        if node.get("max_workers", 1) > 0:
            yield node["resources"] or unknown
    if launched["provider"]["type"] == LOCAL:  # one type, of machines that are as they are
        yield unknown


def _ours(file: Path) -> bool:
    """Whether the file, and the folder it is in, were made by this user or by root.

    All may write where Ray leaves the address of its head, and whoever is named there is sent the
    cluster's token.
    """
    try:
        return {file.stat().st_uid, file.parent.stat().st_uid} <= {os.getuid(), 0}
    except OSError:
        return False


def _answers(head: str) -> bool:
    host, _, port = head.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWERS):
            return True
    except (OSError, ValueError):
        return False
