"""The reader of CIFAR's pickles: against torchvision, as Python 2 wrote them, and harmful ones."""

import os
import pickle
import struct

import numpy as np
import pytest
import torch
import torchvision
from standin_files import PER_CLASS, load

from autoaug_ray.errors import UserError


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_what_torchvision_reads(stand_in, name, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    dataset = stand_in(name)
    splits = load(dataset, None)
    oracle = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}
    for is_train, split in ((True, splits.train), (False, splits.test)):
        wanted = oracle[name](dataset.root, train=is_train)
        assert np.array_equal(split.images.permute(0, 2, 3, 1), wanted.data)
        assert split.labels.tolist() == wanted.targets
        assert list(splits.classes) == wanted.classes


def python2_batch(raw, labels):
    """A batch in the opcodes of Python 2's cPickle, protocol 2, as the publisher's are."""

    def text(s):
        return b"U" + bytes([len(s)]) + s

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        + b"M" + struct.pack("<H", len(labels)) + b"M\x00\x0c\x86"
        + b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        + b"K\x00tb\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    )  # fmt: skip
    listed = b"](" + b"".join(b"K" + bytes([c]) for c in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + listed + b"u."


def test_cifar_batches_as_python_2_wrote_them(stand_in):
    dataset = stand_in("cifar10")
    wanted = load(dataset, None)
    pixels = wanted.test.images.numpy().tobytes()
    written = python2_batch(pixels, wanted.test.labels.tolist())
    assert np.array_equal(
        pickle.loads(written, encoding="latin1")["data"], wanted.test.images.flatten(1)
    )
    with open(f"{dataset.root}/cifar-10-batches-py/test_batch", "wb") as file:
        file.write(written)
    again = load(dataset, None)
    assert torch.equal(again.test.images, wanted.test.images)
    assert torch.equal(again.test.labels, wanted.test.labels)


class Harmful:
    def __init__(self, at):
        self.at = at

    def __reduce__(self):
        return os.mkdir, (self.at,)


def test_a_pickle_that_would_run_something_is_refused(stand_in, tmp_path):
    dataset = stand_in("cifar10")
    path = tmp_path / "cifar10/cifar-10-batches-py/data_batch_2"
    path.write_bytes(pickle.dumps({"data": Harmful(str(tmp_path / "harm"))}))
    with pytest.raises(UserError, match="data_batch_2 is not a whole batch.*mkdir"):
        load(dataset)
    assert not (tmp_path / "harm").exists()


def test_cifar10_lt_keeps_the_counts_of_ldam(stand_in):
    """Cao et al. 2019: class c of C keeps int(n f^(c / (C-1))) images, class 0 most."""
    dataset = stand_in("cifar10", imbalance={"factor": 0.5, "order": "index"})
    counts = torch.bincount(load(dataset, None).train.labels).tolist()
    assert counts == [int(PER_CLASS * 0.5 ** (c / 9)) for c in range(10)]
