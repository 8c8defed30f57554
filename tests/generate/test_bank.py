import io
import json
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from planted_bank import CLASSES, MARK, SETTINGS, SHAPE, edited, make_plan, make_pool, of, write

from autoaug_ray.commands import main
from autoaug_ray.errors import UserError
from autoaug_ray.generate import bank_files, plan
from autoaug_ray.generate.bank import Bank
from autoaug_ray.generate.bank_export import export_imagefolder, export_webdataset
from autoaug_ray.generate.bank_files import Caption, decode, encode, shard_name
from autoaug_ray.generate.settings import EDITS
from autoaug_ray.store.meter import Meter


@pytest.fixture
def filled(tmp_path):
    """A bank with one plan of 4 images in two shards; its plan key and edits."""
    bank = Bank(tmp_path / "bank")
    key, edits = make_plan(bank, make_pool())
    write(bank, edits[:10])
    write(bank, edits[10:])
    return bank, key, edits


@pytest.mark.parametrize("channels", [1, 3])
def test_small_images_come_back_bit_by_bit(channels):
    stream = torch.Generator().manual_seed(0)
    for height, width in [(28, 28), (64, 40), (1, 64)]:
        image = torch.randint(256, (channels, height, width), generator=stream).to(torch.uint8)
        assert torch.equal(decode(encode(image)), image)
        assert encode(image).startswith(b"\x89PNG")


@pytest.mark.parametrize("channels", [1, 3])
def test_large_images_are_good_jpegs(channels):
    down, across = torch.linspace(0, 1, 65)[:, None], torch.linspace(0, 1, 80)
    image = torch.stack([200 * down * across, 99 * (down + across), 255 - 200 * down * across])
    image = image[:channels].to(torch.uint8)
    data = encode(image)
    assert data.startswith(b"\xff\xd8")
    back = decode(data)
    assert back.shape == image.shape
    assert (back.float() - image.float()).abs().max() <= 6
    if channels == 3:  # colour at full resolution: 4:4:4
        with Image.open(io.BytesIO(data)) as picture:
            assert {sampling[1:3] for sampling in picture.layer} == {(1, 1)}


def test_a_shard_is_the_same_file_whenever_it_is_written(filled, tmp_path):
    bank, _, edits = filled
    other = Bank(tmp_path / "other")
    path = write(other, edits[:10])
    assert path.name == f"{shard_name([e.key for e in edits[:10]])}.parquet"
    assert path.read_bytes() == (bank.shards_folder / path.name).read_bytes()
    row = pq.read_table(path).to_pylist()[3]
    assert row["prompt"] == edits[3].prompt and row["solver"] == "dpm++" and row["size"] is None
    assert torch.equal(decode(row["image"]), edited(edits[3]))


def test_what_is_missing(filled):
    bank, _, edits = filled
    keys = [e.key for e in edits]
    assert keys[0] in bank.index() and "0" * 32 not in bank.index()
    assert bank.missing(["b", keys[0], "a", "b", keys[-1]]) == ["b", "a"]
    assert not Bank(bank.root / "nowhere").missing([])


def test_a_plan_comes_back_as_it_was(filled):
    bank, key, edits = filled
    back = bank.read_plan(key)
    assert back.edits == edits
    assert (back.images, back.classes, back.kinds) == (4, CLASSES, EDITS)
    assert (back.settings, back.fingerprints) == (SETTINGS, MARK)
    assert bank.plans() == [key]
    pool = make_pool()
    for row in bank.sources(key):
        assert torch.equal(decode(row["image"]), pool.images[row["position"]])
    with pytest.raises(UserError, match=f"no plan nope; known: {key}"):
        bank.read_plan("nope")


def test_a_plan_of_another_pool_is_not_written(tmp_path):
    bank, other = Bank(tmp_path), make_pool(seed=1)
    _, edits = make_plan(bank, make_pool())
    with pytest.raises(UserError, match="another pool"):
        bank.write_plan("key", edits, other, of(*EDITS), SETTINGS, MARK)
    assert "key" not in bank.plans()


def test_variants_are_the_edits_of_each_image_and_kind(filled):
    bank, key, edits = filled
    kinds = ("transfer", "fixed")
    found = bank.variants(key, of(*kinds), SHAPE, make_pool().hashes)
    assert found.images.dtype == torch.uint8 and len(found.images) == 4 * 2 * 2
    for source in range(4):
        for k, kind in enumerate(kinds):
            start, count = int(found.start[source, k]), int(found.count[source, k])
            expected = [edited(e) for e in edits if (e.source, e.kind) == (source, kind)]
            assert count == 2
            assert torch.equal(found.images[start : start + count], torch.stack(expected))
    assert found.missing == found.rejected == found.duplicate == {"transfer": 0, "fixed": 0}


def test_variants_leave_out_what_must_not_or_need_not_be_used(tmp_path):
    bank, some = Bank(tmp_path), make_pool()
    key, edits = make_plan(bank, some)
    edit_at = {(e.source, e.kind, e.number): e for e in edits}
    source, twin = edit_at[0, "fixed", 0], edit_at[1, "local", 1]
    other_kind = edit_at[2, "transfer", 0]
    change = {
        source.key: some.images[0],
        twin.key: edited(edit_at[1, "local", 0]),
        other_kind.key: edited(edit_at[2, "local", 0]),  # of another kind: not a duplicate
    }
    bad = edit_at[3, "local", 0]
    write(bank, edits, change, {bad.key: "flat"})
    found = bank.variants(key, of(*EDITS), SHAPE)
    assert found.duplicate == {"fixed": 1, "local": 1, "transfer": 0}
    assert found.rejected == {"fixed": 0, "local": 1, "transfer": 0}
    assert len(found.images) == 24 - 3
    assert found.count.tolist() == [[1, 2, 2], [2, 1, 2], [2, 2, 2], [2, 1, 2]]
    start = int(found.start[3, 1])
    assert torch.equal(found.images[start], edited(edit_at[3, "local", 1]))


def test_variants_of_a_plan_that_is_not_filled(tmp_path):
    bank = Bank(tmp_path)
    key, edits = make_plan(bank, make_pool())
    fixed = [e for e in edits if e.kind == "fixed"]
    write(bank, fixed)
    assert len(bank.variants(key, of("fixed"), SHAPE).images) == 8
    with pytest.raises(UserError, match="8 of the 16 images .* not made yet"):
        bank.variants(key, of("fixed", "local"), SHAPE)
    local = [e.key for e in edits if e.kind == "local"]
    bank.quarantine("a shard", local[:6], "out of memory")
    with pytest.raises(UserError, match="2 of the 16"):
        bank.variants(key, of("fixed", "local"), SHAPE)
    bank.quarantine("another shard", local[6:], "out of memory")
    found = bank.variants(key, of("fixed", "local"), SHAPE)
    assert found.missing == {"fixed": 0, "local": 8} and len(found.images) == 8


def test_variants_for_the_wrong_training(filled, tmp_path):
    bank, key, _ = filled
    with pytest.raises(UserError, match="3x8x6.*1x8x6"):
        bank.variants(key, of(*EDITS), (1, 8, 6))
    with pytest.raises(UserError, match="another pool"):
        bank.variants(key, of(*EDITS), SHAPE, make_pool(seed=1).hashes)
    with pytest.raises(UserError, match="is of 4 images, the pool has 5"):
        bank.variants(key, of(*EDITS), SHAPE, [*make_pool().hashes, "another"])
    fixed, _ = make_plan(bank, make_pool(), drawn=of("fixed"))
    with pytest.raises(UserError, match="no local edits; it was made for fixed"):
        bank.variants(fixed, of("local"), SHAPE)


def spend(bank, name, phase, seconds, share=1.0):
    now = [0.0]
    with Meter(
        bank.ledger, key=name, about={"phase": phase}, share=share, clock=lambda: now[0]
    ) as meter:
        with meter.phase(phase):
            now[0] += seconds
        now[0] += 1  # after the phase: it held the device all the same


def test_who_needs_half_of_a_shard_pays_for_half_of_all_its_attempts(tmp_path):
    bank = Bank(tmp_path)
    key, edits = make_plan(bank, make_pool())
    by_kind = {kind: [e for e in edits if e.kind == kind] for kind in EDITS}
    mixed = by_kind["fixed"][:4] + by_kind["local"][:4]
    spend(bank, write(bank, mixed).stem, "generate", 9, share=2)
    spend(bank, write(bank, mixed).stem, "generate", 19, share=2)  # had been interrupted
    spend(bank, write(bank, by_kind["fixed"][4:]).stem, "generate", 6)
    bank.quarantine("bad", [e.key for e in by_kind["local"][4:]], "out of memory")
    spend(bank, "bad", "generate", 99)
    spend(bank, "of another plan", "generate", 1000)
    assert bank.cost(key, of("fixed")) == {"caption": 0, "invert": 0, "generate": 30 + 7}
    assert bank.cost(key, of("local"))["generate"] == 30 + 100
    assert bank.cost(key, of("fixed", "local"))["generate"] == 60 + 7 + 100
    assert bank.cost(key, of())["generate"] == 0

    some, captions = make_pool(), []
    for i in range(4):
        name = some.names[some.labels[i]]
        captions.append(Caption(some.hashes[i], name, SETTINGS.prefix, "blip", f"that is {i}"))
    spend(bank, bank.write_captions(captions).stem, "caption", 3)
    spend(bank, key, "caption", 1)
    used = {e.caption for e in by_kind["local"]}
    assert bank.cost(key, of("local"))["caption"] == 4 * len(used) / 4 + 2
    spend(bank, plan.neighbours_name(CLASSES, MARK), "caption", 4)
    used = {e.caption for e in by_kind["transfer"]}
    assert bank.cost(key, of("transfer"))["caption"] == 4 * len(used) / 4 + 2 + 5
    assert bank.cost(key, of("fixed"))["caption"] == 0


def test_the_cost_reads_what_never_changes_once_and_sees_what_other_processes_add(
    tmp_path, monkeypatch
):
    bank, elsewhere = Bank(tmp_path), Bank(tmp_path)
    key, edits = make_plan(bank, make_pool())
    fixed = [e for e in edits if e.kind == "fixed"]
    spend(bank, write(bank, fixed[:4]).stem, "generate", 9)
    assert bank.cost(key, of("fixed"))["generate"] == 10

    read = []
    parquet, whole = pq.ParquetFile, Path.read_bytes
    monkeypatch.setattr(pq, "ParquetFile", lambda file, **how: read.append(file) or parquet(file))
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or whole(path))
    assert bank.cost(key, of("fixed"))["generate"] == 10
    assert read == []

    now = [0.0]
    shard = write(elsewhere, fixed[4:])
    with Meter(bank.ledger, key=shard.stem, clock=lambda: now[0], heartbeat=1e6) as meter:
        for seconds in (5, 8):  # under way
            now[0] = seconds
            meter.keep()
            assert bank.cost(key, of("fixed"))["generate"] == 10 + seconds
        now[0] = 20
    assert bank.cost(key, of("fixed"))["generate"] == 10 + 20
    elsewhere.quarantine("bad", [fixed[0].key], "out of memory")
    spend(elsewhere, "bad", "generate", 99)
    assert bank.cost(key, of("fixed"))["generate"] == 30 + 100
    assert bank.cost(key, of("fixed")) == Bank(tmp_path).cost(key, of("fixed"))


def test_learned_words_cost_all_that_they_took(tmp_path):
    bank, mark = Bank(tmp_path), MARK._replace(tokens="words")
    key, _ = make_plan(bank, make_pool(), mark=mark)
    spend(bank, "words", "invert", 9)
    for kinds in (["fixed"], EDITS):
        assert bank.cost(key, of(*kinds))["invert"] == 10
    assert bank.cost(make_plan(bank, make_pool())[0])["invert"] == 0


def test_a_class_that_is_not_drawn_costs_nothing(tmp_path):
    mark = MARK._replace(tokens="both", words=("word of cat", "word of dog"))
    bank, some = Bank(tmp_path), make_pool()
    key, edits = make_plan(bank, some, mark=mark)
    fixed = [e for e in edits if e.kind == "fixed"]  # by source: cat, dog, cat, dog; two of each
    spend(bank, write(bank, fixed[:3]).stem, "generate", 11)  # 12 s: two of a cat, one of a dog
    spend(bank, write(bank, fixed[3:]).stem, "generate", 9)  # 10 s: two of a cat, three of dogs
    write(bank, [e for e in edits if e.kind == "local"])
    spend(bank, "word of cat", "invert", 2)
    spend(bank, "word of dog", "invert", 4)
    cats = {"fixed": [0]}
    assert bank.cost(key, cats) == {"caption": 0, "invert": 3, "generate": 8 + 4}
    assert bank.cost(key, {"fixed": [1]}) == {"caption": 0, "invert": 5, "generate": 4 + 6}
    assert bank.cost(key, of("fixed")) == {"caption": 0, "invert": 8, "generate": 22}
    assert bank.cost(key, {"fixed": []}) == {"caption": 0, "invert": 0, "generate": 0}

    found = bank.variants(key, {"fixed": [0], "local": [0, 1]}, SHAPE, some.hashes)
    assert found.count.tolist() == [[2, 2], [0, 2], [2, 2], [0, 2]]
    whole = bank.variants(key, of("fixed"), SHAPE, some.hashes)
    for source in (0, 2):  # what is drawn is drawn from the same images
        part = [slice(int(v.start[source, 0]), int(v.start[source, 0]) + 2) for v in (found, whole)]
        assert torch.equal(found.images[part[0]], whole.images[part[1]])


def test_a_plan_has_what_somebody_draws_and_no_more(tmp_path):
    bank, some = Bank(tmp_path), make_pool()
    key, edits = make_plan(bank, some, {"fixed": [1], "transfer": []})
    whole = make_plan(bank, some, of("fixed", "transfer"))
    assert key != whole[0]
    assert edits == [e for e in whole[1] if (e.kind, e.class_name) == ("fixed", "dog/wolf")]
    write(bank, edits)
    plan = bank.read_plan(key)
    assert plan.drawn == {"fixed": [1], "transfer": []} and plan.kinds == ("fixed", "transfer")
    assert bank.variants(key, {"fixed": [1]}, SHAPE).count.tolist() == [[0], [2], [0], [2]]
    nothing = bank.variants(key, {"fixed": []}, SHAPE)
    assert len(nothing.images) == 0 and nothing.count.sum() == 0
    with pytest.raises(UserError, match="no fixed edits of class 'cat'"):
        bank.variants(key, of("fixed"), SHAPE)


def test_captions_come_back(tmp_path):
    bank = Bank(tmp_path)
    first = Caption("a", "cat", "a {name} which", "blip", "sleeps")
    empty = Caption("b", "", "", "", "")
    bank.write_captions([first, empty])
    assert bank.captions() == {first.key: "sleeps", empty.key: ""}
    others = [first._replace(**{f: "x"}) for f in ("image_hash", "name", "prefix", "captioner")]
    assert len({c.key for c in (first, *others)}) == 5


def rewritten(path, change):
    rows = pq.read_table(path).to_pylist()
    change(rows)
    table = bank_files.pa.Table.from_pylist(rows, schema=pq.read_schema(path))
    pq.write_table(table, path)


def test_verify_finds_what_is_broken(filled):
    bank, key, edits = filled
    bank.write_captions([Caption("a", "cat", "a {name} which", "blip", "sleeps")])
    assert bank.verify() == []
    first, second = bank.shards()
    whole = first.read_bytes()

    def broken(change):
        rewritten(first, change)
        problems = bank.verify()
        first.write_bytes(whole)
        return problems

    (problem,) = broken(lambda rows: rows[2].update(image=rows[3]["image"]))
    assert problem.startswith(f"shards/{first.name}: ") and "checksum" in problem
    (problem,) = broken(lambda rows: rows[2].update(prompt="another"))
    assert "does not follow from its row" in problem
    (problem,) = broken(lambda rows: rows[2].update(height=9))
    assert "its row says (3, 9, 6)" in problem
    (problem,) = broken(lambda rows: rows.pop())
    assert "not the hash of its keys" in problem

    first.write_bytes(whole[: len(whole) // 2])
    (problem,) = bank.verify()
    assert problem.startswith(f"shards/{first.name}: cannot be read")
    first.write_bytes(whole)

    twice = write(bank, edits[:3])
    assert sum("is in shards/" in problem for problem in bank.verify()) == 3
    twice.unlink()

    (captions,) = bank.captions_folder.glob("*.parquet")
    rewritten(captions, lambda rows: rows[0].update(name="dog"))
    (problem,) = bank.verify()
    assert problem.startswith(f"captions/{captions.name}: ")
    captions.unlink()

    good = bank.plan_path(key).read_bytes()
    rewritten(bank.plan_path(key), lambda rows: rows[0].update(seed=1))
    (problem,) = bank.verify()
    assert problem.startswith(f"plans/{key}.parquet: fixed edit 0 of image 0")
    rewritten(bank.plan_path(key), lambda rows: rows[0].update(source_hash="not in the pool"))
    (problem,) = bank.verify()
    assert "another pool" in problem
    bank.plan_path(key).write_bytes(good)

    words = bank.tokens_path("words")
    words.parent.mkdir()
    header = json.dumps({"<cat>": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    words.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert bank.verify() == []
    words.write_bytes(words.read_bytes()[:-1])
    (problem,) = bank.verify()
    assert problem == "tokens/words.safetensors: not a whole safetensors file"


def test_export_imagefolder(filled, tmp_path):
    bank, key, edits = filled
    out = tmp_path / "out"
    assert export_imagefolder(bank, key, out) == 4 + 24
    assert {p.name for p in out.iterdir()} == {"cat", "dog_wolf"}
    edit = edits[-1]
    path = out / "dog_wolf" / f"{edit.source:06d}-{edit.kind}-{edit.number:03d}.png"
    assert torch.equal(decode(path.read_bytes()), edited(edit))
    assert export_imagefolder(bank, key, tmp_path / "some", ["local"], sources=False) == 8


def test_what_was_rejected_is_not_exported(tmp_path):
    bank = Bank(tmp_path)
    key, edits = make_plan(bank, make_pool())
    write(bank, edits, rejects={edits[0].key: "flat", edits[5].key: "not finite"})
    assert export_imagefolder(bank, key, tmp_path / "a", sources=False) == 22
    assert export_webdataset(bank, key, tmp_path / "b", sources=False) == 22


def test_export_webdataset(filled, tmp_path):
    bank, key, edits = filled
    assert export_webdataset(bank, key, tmp_path / "a", per_tar=20) == 28
    assert export_webdataset(bank, key, tmp_path / "b", per_tar=20) == 28
    tars = sorted((tmp_path / "a").iterdir())
    assert [p.name for p in tars] == ["000000.tar", "000001.tar"]
    assert tars[0].read_bytes() == (tmp_path / "b" / tars[0].name).read_bytes()
    found = {}
    for path in tars:
        with tarfile.open(path) as tar:
            for member in tar:
                found[member.name] = tar.extractfile(member).read()
    edit = edits[-1]
    stem = f"{edit.source:06d}-{edit.kind}-{edit.number:03d}"
    assert found[f"{stem}.cls"] == b"1"
    assert json.loads(found[f"{stem}.json"])["prompt"] == edit.prompt
    assert torch.equal(decode(found[f"{stem}.png"]), edited(edit))
    assert len(found) == 3 * 28


def test_the_command(filled, tmp_path, capsys):
    bank, key, edits = filled
    bank.quarantine("bad shard", ["x"], "out of memory")

    def run(*arguments):
        status = main(["bank", "--bank", str(bank.root), *map(str, arguments)])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    status, out, _ = run("ls", "--classes")
    assert status == 0 and f"plan {key}" in out and "2 shards, 24 images" in out
    assert "dog/wolf: fixed 4/4, local 4/4, transfer 4/4" in out
    assert "quarantined: shard bad shard, 1 images: out of memory" in out
    assert run("verify")[0] == 0
    path = tmp_path / "cat.png"
    assert run("sheet", key[:6], "--class", "cat", "--out", path)[0] == 0
    with Image.open(path) as page:
        assert page.width > 1000 and page.height > 400
    assert run("sheet", key, "--out", tmp_path / "all")[0] == 0
    assert {p.name for p in (tmp_path / "all").iterdir()} == {"cat.png", "dog_wolf.png"}
    status, out, _ = run("export", key, "--out", tmp_path / "x", "--kind", "local", "--no-sources")
    assert status == 0 and out.startswith("8 images")
    status, _, err = run("sheet", key, "--class", "owl", "--out", path)
    assert (
        status == 2
        and err == f"error: plan {key} has no class 'owl'; its classes: cat, dog/wolf.\n"
    )
    assert run("export", "nope", "--out", tmp_path)[0] == 2
    bank.shards()[0].write_bytes(b"PAR1")
    status, out, _ = run("verify")
    assert status == 1 and bank.shards()[0].name in out
    assert main(["bank", "--bank", str(tmp_path / "no"), "ls"]) == 2
