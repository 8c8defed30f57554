"""Trained weights are found where the libraries keep them, or on a server that is fast enough."""

import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from torchvision import models as torchvision_models

from autoaug_ray.models import at_hand
from autoaug_ray.models.at_hand import first_at_hand, is_kept, url_of
from autoaug_ray.settings.classifier import Classifier

SMALL = Classifier(name="torchvision:mobilenet_v3_small", weights="imagenet")
ON_HUB = Classifier(name="timm:mobilenetv3_small_100.lamb_in1k")
SHAPE = (3, 64, 64)


@pytest.fixture(autouse=True)
def nothing_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def keep(classifier, state):
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(state, folder / url_of(classifier).rpartition("/")[2])


@pytest.fixture
def server(monkeypatch):
    """Makes a server at which the weights of SMALL are said to be: it sends `sent` of `size` bytes,
    after a while."""
    running = []

    def start(size, sent=b"", wait=0.0):
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self):
                time.sleep(wait)
                self.send_response(200)
                self.send_header("Content-Length", str(size))
                self.end_headers()
                self.wfile.write(sent)

            def log_message(self, *_):
                pass

        running.append(HTTPServer(("127.0.0.1", 0), Answer))
        threading.Thread(target=running[-1].serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{running[-1].server_port}/small.pth"
        monkeypatch.setattr(at_hand, "url_of", lambda classifier: url)

    yield start
    for one in running:
        one.shutdown()
        one.server_close()


def test_what_torchvision_keeps_is_taken_without_a_network(monkeypatch):
    monkeypatch.setattr(at_hand, "urlopen", None)
    assert not is_kept(SMALL)
    keep(SMALL, torchvision_models.mobilenet_v3_small().state_dict())
    assert is_kept(SMALL)
    other = Classifier(name="torchvision:resnet50", weights="imagenet")
    found, why = first_at_hand([other, SMALL], 3, SHAPE)
    assert (found, why) == (SMALL, "weights that are kept here")


def test_what_is_kept_and_broken_is_not_taken():
    keep(SMALL, {"no": torch.zeros(1)})
    found, why = first_at_hand([SMALL], 3, SHAPE)
    assert found is None and why.startswith("model.weights: imagenet is no state dict of")


def test_what_the_hub_keeps_is_found(tmp_path):
    assert url_of(ON_HUB).endswith(
        "/timm/mobilenetv3_small_100.lamb_in1k/resolve/main/model.safetensors"
    )
    assert not is_kept(ON_HUB)
    repository = tmp_path / "hub/models--timm--mobilenetv3_small_100.lamb_in1k"
    for name, text in (("refs/main", "abc"), ("snapshots/abc/model.safetensors", "")):
        (repository / name).parent.mkdir(parents=True)
        (repository / name).write_text(text)
    assert is_kept(ON_HUB)


def test_a_slow_server_is_not_waited_for(server, monkeypatch):
    monkeypatch.setattr(at_hand, "TRIED", 1000)
    monkeypatch.setattr(at_hand, "check", lambda *_: None)
    server(10**6, bytes(1000))
    assert first_at_hand([SMALL], 3, SHAPE) == (SMALL, "weights fetched just now")
    server(10**6, bytes(1000), wait=0.1)  # 100 seconds for all of it
    found, why = first_at_hand([SMALL], 3, SHAPE)
    assert found is None and why.startswith("127.0.0.1 would take about 1")


def test_a_server_that_does_not_answer_is_not_waited_for(server, monkeypatch):
    monkeypatch.setattr(at_hand, "WAIT", 0.1)
    server(10, wait=0.4)
    begin = time.monotonic()
    found, why = first_at_hand([SMALL], 3, SHAPE)
    assert found is None and why == "127.0.0.1 cannot be reached (timed out)"
    assert time.monotonic() - begin < 0.35
