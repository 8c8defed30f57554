"""W&B's offline files as they are on disk, and a stand-in for its server on loopback."""

import contextlib
import json
import re
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 32768


def records(path):
    """All records of a .wandb file: a LevelDB log after 7 bytes of header."""
    data, at, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at < len(data):
        if BLOCK - at % BLOCK < 7:  # no header fits: the rest of the block is padding
            at += BLOCK - at % BLOCK
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            yield Record.FromString(parts)
            parts = b""


def runs(folder):
    """Every offline run of a study's folder, by id."""
    out = {}
    for path in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb")):
        run = SimpleNamespace(history=[], metrics={}, summary={}, artifacts=[], config={})
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                run.about = record.run
                run.config |= {
                    i.key: json.loads(i.value_json)
                    for i in record.run.config.update
                    if i.key != "_wandb"
                }
            elif kind == "history":
                items = record.history.item
                run.history.append(
                    {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
                )
            elif kind == "metric":
                run.metrics[record.metric.name or record.metric.glob_name] = (
                    record.metric.step_metric
                )
            elif kind == "summary":
                items = record.summary.update
                run.summary |= {
                    i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items
                }
            elif kind == "artifact":
                run.artifacts.append(record.artifact)
        assert run.about.run_id not in out, "two files of one run"
        out[run.about.run_id] = run
    return out


@contextlib.contextmanager
def server():
    """Answers what wandb asks when a run is sent or a report saved; keeps both.

    `steps`: id of a run -> the steps that it was sent, which it then knows of when asked.
    """
    kept = SimpleNamespace(steps={}, reports=[], unknown=[], url="")
    me = {"id": "u", "entity": "me", "username": "me", "name": "me", "email": "me@localhost",
          "admin": False, "deletedAt": None, "flags": "{}",
          "teams": {"edges": []}, "apiKeys": {"edges": []}}  # fmt: skip
    project = {"id": "1", "internalId": "1", "name": "autoaug_ray", "entityName": "me",
               "createdAt": "2026-01-01T00:00:00", "isBenchmark": False, "user": me,
               "entity": {"id": "e", "name": "me"}}  # fmt: skip

    def bucket(name):
        steps = kept.steps.get(name, [])
        tail = json.dumps([json.dumps({"_step": steps[-1]})] if steps else [])
        return {
            "id": "b", "name": name, "displayName": name, "description": "", "config": "{}",
            "sweepName": None, "project": project, "historyLineCount": len(steps),
            "eventsLineCount": 0, "logLineCount": 0, "historyTail": tail, "eventsTail": "[]",
            "summaryMetrics": "{}", "wandbConfig": json.dumps({"t": 1}), "tags": [],
        }  # fmt: skip

    def answer(operation, asked):
        if operation == "UpsertBucket":
            return {"upsertBucket": {"bucket": bucket(asked["name"]), "inserted": True}}
        if operation == "RunResumeStatus":
            known = bucket(asked["name"]) if asked["name"] in kept.steps else None
            return {"model": {**project, "bucket": known}}
        if operation == "CreateRunFiles":
            files = [{"name": f, "uploadUrl": f"{kept.url}/up"} for f in asked["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if operation == "GetProjects":
            page = {"endCursor": "a", "hasNextPage": False}
            edges = [{"node": project, "cursor": "a"}]
            return {"models": {"edges": edges, "pageInfo": page}}
        if operation == "upsertView":
            kept.reports.append(asked)
            view = {"id": "v", "name": asked["name"], "displayName": asked["displayName"],
                    "description": "", "type": "runs", "spec": asked["spec"], "project": project,
                    "createdAt": "2026-01-01T00:00:00", "updatedAt": "2026-01-01T00:00:00",
                    "user": me}  # fmt: skip
            return {"upsertView": {"view": view, "inserted": True}}
        if operation in ("Viewer", "GetDefaultEntity"):
            return {"viewer": me}
        if operation == "ProjectInternalId":
            return {"project": project}
        kept.unknown.append(operation)
        return {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            out = {}
            if self.path.endswith("graphql"):
                asked = json.loads(body)
                name = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"]).group(1)
                out = {"data": answer(name, asked.get("variables") or {})}
            elif self.path.endswith("file_stream"):
                key = self.path.split("/")[-2]
                files = json.loads(body).get("files", {})
                lines = files.get("wandb-history.jsonl", {}).get("content", [])
                kept.steps.setdefault(key, []).extend(json.loads(x)["_step"] for x in lines)
            data = json.dumps(out).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_PUT = do_GET = do_POST

        def log_message(self, *_): ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.handle_error = lambda *_: None  # wandb hangs up as it likes
    kept.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield kept
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
