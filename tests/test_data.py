import dataclasses
import gzip
import hashlib
import io
import json
import lzma
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

import repro.data
from repro.data import digits, fashion_mnist, gguf, idx, mnist, mnist1d, original, shakespeare, sources, translation
from repro.data.archives import Archive, Unusable
from repro.data.keel import stratified
from repro.data.kinds import Images, Pairs, Tabular, Vocabulary, corpus, sentences
from repro.data.sources import Dataset, File, Source
from repro.data.text import osis, plain, sword, web, without_repeats
from repro.errors import ReproError

MEMBER = "usr/share/datasets/toy/toy.bin"
CONTENT = bytes(range(256)) * 16


def tar(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in members.items():
            head = tarfile.TarInfo(name)
            head.size = len(content)
            archive.addfile(head, io.BytesIO(content))
        for name, target in (links or {}).items():
            head = tarfile.TarInfo(name)
            head.type, head.linkname = tarfile.SYMTYPE, target
            archive.addfile(head)
    return out.getvalue()


def deb(path: Path, data: bytes, kind: str = "data.tar.xz") -> Path:
    packed = {"data.tar.xz": lzma.compress, "data.tar.gz": gzip.compress, "data.tar": bytes}[kind](data)
    out = b"!<arch>\n"
    for name, body in (("debian-binary", b"2.0\n"), ("control.tar.gz", b"odd"), (kind, packed)):
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(body):<10}`\n".encode() + body + b"\n" * (len(body) % 2)
    path.write_bytes(out)
    return path


def toy(content: bytes = CONTENT, *extra: Source) -> Dataset:
    def make(archive):
        return {"toy.bin": archive.read(MEMBER)}

    file = File("toy.bin", len(content), hashlib.sha256(content).hexdigest())
    given = (Source("debian", ("dataset-toy",), ("toy.bin",), make), *extra)
    return Dataset("toy", "a toy", "one", "none", (file,), given)


@pytest.fixture
def debian(monkeypatch, tmp_path):
    """An apt-get that hands out a hand-made package; counts its downloads."""
    calls = []

    def command(arguments, folder, timeout=0.0):
        calls.append(arguments)
        if "download" in arguments:
            deb(folder / "dataset-toy_1.0_all.deb", tar({f"./{MEMBER}": CONTENT}))

    monkeypatch.setattr(sources, "command", command)
    return calls


# Archives


@pytest.mark.parametrize("kind", ["data.tar.xz", "data.tar.gz", "data.tar"])
def test_deb_is_read_without_dpkg(tmp_path, kind):
    with Archive(deb(tmp_path / "a_1_all.deb", tar({f"./{MEMBER}": CONTENT, "./usr/b": b""}), kind)) as archive:
        assert archive.read(MEMBER) == CONTENT
        assert archive.names("usr/share") == [MEMBER]


def test_wheel_and_sdist_are_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("a/b.csv", "1,2\n")
    (tmp_path / "a-1.tar.gz").write_bytes(gzip.compress(tar({"a-1/b.csv": b"1,2\n"})))
    for name, member in (("a-1-py3-none-any.whl", "a/b.csv"), ("a-1.tar.gz", "a-1/b.csv")):
        with Archive(tmp_path / name) as archive:
            assert archive.read(member) == b"1,2\n"


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "usr/../../evil", "usr\\..\\evil"])
def test_archive_that_names_a_file_outside_itself_is_refused(tmp_path, name):
    with pytest.raises(Unusable, match="outside itself"):
        Archive(deb(tmp_path / "evil_1_all.deb", tar({name: b"x"})))
    with zipfile.ZipFile(tmp_path / "evil.whl", "w") as wheel:
        wheel.writestr(name, "x")
    with pytest.raises(Unusable, match="outside itself"):
        Archive(tmp_path / "evil.whl")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evil.whl", "evil_1_all.deb"]


def test_links_are_not_followed(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    with Archive(deb(tmp_path / "a_1_all.deb", tar({"./x": b"x"}, {f"./{MEMBER}": str(secret)}))) as archive:
        with pytest.raises(Unusable, match="no regular file"):
            archive.read(MEMBER)


@pytest.mark.parametrize("keep", [0, 7, 40, 100, 200, 400])
def test_truncated_deb_is_refused(tmp_path, keep):
    path = deb(tmp_path / "a_1_all.deb", tar({f"./{MEMBER}": os.urandom(4096)}))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(Unusable, match="a_1_all.deb"):
        Archive(path)


# Cache and checksums


def test_fetch_then_load(debian, tmp_path):
    data = toy()
    assert data.info(tmp_path)["cached"] is False
    assert bytes(data.read(tmp_path)["toy.bin"].numpy()) == CONTENT  # fetched by the first read
    assert data.info(tmp_path)["cached"] is True
    downloads = len(debian)
    data.read(tmp_path)
    assert sources.fetch(data, tmp_path) == tmp_path / "toy"
    assert len(debian) == downloads
    assert sorted(p.name for p in (tmp_path / "toy").iterdir() if not p.name.startswith(".lock")) == ["toy.bin"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "longer", "empty"])
def test_damaged_file_is_refused_on_load_and_replaced_on_fetch(debian, tmp_path, damage):
    data = toy()
    path = sources.fetch(data, tmp_path) / "toy.bin"
    flipped = bytearray(CONTENT)
    flipped[100] ^= 1
    bad = {"truncated": CONTENT[:-1], "flipped": bytes(flipped), "longer": CONTENT + b"\0", "empty": b""}[damage]
    path.write_bytes(bad)
    with pytest.raises(ReproError) as error:
        data.read(tmp_path)
    said = str(error.value)
    for part in (str(path), hashlib.sha256(bad).hexdigest(), data.files[0].sha256, "repro data fetch toy"):
        assert part in said
    assert "\n" not in said
    assert path.read_bytes() == bad  # load never repairs in silence
    sources.fetch(data, tmp_path)
    assert path.read_bytes() == CONTENT


def test_a_source_with_other_content_is_not_used(debian, tmp_path):
    with pytest.raises(ReproError, match="toy.bin has sha256") as error:
        sources.fetch(toy(b"something else"), tmp_path)
    assert hashlib.sha256(CONTENT).hexdigest() in str(error.value)
    assert not (tmp_path / "toy" / "toy.bin").exists()


def test_next_source_is_tried(monkeypatch, tmp_path):
    def unreachable(arguments, folder, timeout=0.0):
        raise Unusable("no network")

    monkeypatch.setattr(sources, "command", unreachable)
    second = Source("installed", ("numpy",), ("toy.bin",), lambda _: {"toy.bin": CONTENT})
    assert sources.fetch(toy(CONTENT, second), tmp_path).joinpath("toy.bin").read_bytes() == CONTENT


def test_no_network_is_told_in_one_line(monkeypatch, tmp_path):
    def unreachable(arguments, folder, timeout=0.0):
        raise Unusable(f"{Path(arguments[0]).name} cannot connect")

    def offline(*_, **__):
        raise Unusable("no connection and not in its cache")

    monkeypatch.setattr(sources, "command", unreachable)
    monkeypatch.setattr("repro.data.hub.from_hub", offline)
    with pytest.raises(ReproError) as error:
        fashion_mnist.official(tmp_path)
    said = str(error.value)
    assert "\n" not in said
    for part in (
        "fashion_mnist",
        "Debian dataset-fashion-mnist (apt-get cannot connect)",
        "Hugging Face zalando-datasets/fashion_mnist (no connection",
        "`repro data fetch fashion_mnist`",
        "train-images-idx3-ubyte",
        fashion_mnist.FILES[0].sha256,
        "dataset-fashion-mnist_*.deb",
        str(tmp_path / "fashion_mnist"),
    ):
        assert part in said
    assert not [p for p in (tmp_path / "fashion_mnist").iterdir() if p.name != ".lock"]


def test_missing_client_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ReproError, match=r"Debian dataset-toy \(apt-get not found\)"):
        sources.fetch(toy(), tmp_path)


def test_client_failure_keeps_its_last_words_without_addresses(tmp_path):
    script = "import sys; sys.stderr.write('noise\\nERROR: no match at scheme://host/path\\n'); sys.exit(3)"
    with pytest.raises(Unusable, match=r"^ERROR: no match at the registry$"):
        sources.command([sys.executable, "-c", script], tmp_path)


def test_files_put_there_by_hand_are_used(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "")
    folder = tmp_path / "a" / "toy"
    folder.mkdir(parents=True)
    (folder / "toy.bin.gz").write_bytes(gzip.compress(CONTENT))
    assert (sources.fetch(toy(), tmp_path / "a") / "toy.bin").read_bytes() == CONTENT
    folder = tmp_path / "b" / "toy"
    folder.mkdir(parents=True)
    deb(folder / "dataset-toy_2_all.deb", tar({f"./{MEMBER}": CONTENT}))
    assert (sources.fetch(toy(), tmp_path / "b") / "toy.bin").read_bytes() == CONTENT


def test_pinned_archive_is_checked_before_it_is_opened(tmp_path):
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "toy-1.tar.gz").write_bytes(gzip.compress(tar({"toy-1/toy.bin": CONTENT})))
    opened = []
    source = Source("pypi", ("toy==1",), ("toy.bin",), lambda a: opened.append(a) or {}, sha256="0" * 64)
    data = dataclasses.replace(toy(), sources=(source,))
    with pytest.raises(ReproError, match="toy-1.tar.gz has sha256"):
        sources.fetch(data, tmp_path)
    assert not opened


def test_concurrent_fetches_do_no_harm(debian, tmp_path):
    data, failures = toy(), []

    def work():
        try:
            assert bytes(data.read(tmp_path)["toy.bin"].numpy()) == CONTENT
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures
    assert (tmp_path / "toy" / "toy.bin").read_bytes() == CONTENT


def test_unwritable_cache_is_told(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ReproError, match="cannot write"):
        sources.fetch(toy(), tmp_path / "file")


def test_cache_lies_in_the_checkout_whatever_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    root = Path(repro.data.__file__).resolve().parents[3]
    if (root / "params.yaml").is_file():
        assert sources.cache_root() == root / ".repro" / "data"
    assert sources.cache_root(tmp_path / "x") == tmp_path / "x"


def test_registry():
    for name in repro.data.names():
        info = repro.data.info(name)
        assert info["name"] == name and info["bytes"] > 0 and info["licence"] and info["sources"]
        assert all(len(f["sha256"]) == 64 and f["bytes"] > 0 for f in info["files"])
        assert set(sum((s.files for s in repro.data._dataset(name).sources), ())) == {f["name"] for f in info["files"]}
        assert repro.data.digest(name).startswith("sha256:")
        json.dumps(info)
    with pytest.raises(ReproError, match="fashion_mnist"):
        repro.data.info("mnist_fashion")


def test_core_imports_only_torch_and_numpy():
    code = (
        "import sys, repro.data.original, repro.data.mnist\n"
        "from repro.data import names, info\n"
        "[info(n) for n in names()]\n"
        "print([m for m in ('datasets', 'huggingface_hub', 'pandas', 'PIL', 'pyarrow', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Readers


def test_text_readers():
    assert plain("a\u00e9 \r\nb\r\n".encode("latin-1")) == "a\u00e9\nb"
    assert plain(b"\xef\xbb\xbfa\n") == "a"
    blocks = [b"<w lemma='x'>In</w> the", b"<note>a<b/>side</note> <title>T</title>beginning &amp; end"]
    packed = [zlib.compress(b) for b in blocks]
    index = b"".join(
        np.array([at, len(p), len(b)], dtype="<u4").tobytes()
        for at, p, b in zip((0, len(packed[0])), packed, blocks, strict=True)
    )
    assert osis(sword(index, b"".join(packed))) == "In the\nT\nbeginning & end"
    with pytest.raises(Unusable, match="damaged"):
        sword(index, b"".join(packed)[:-6])
    page = "<head><title>x</title></head><p>One <b>two</b>\n three</p><pre>code</pre><p>four</p><!-- five -->"
    assert web(page) == "One two three\nfour"
    line = "a line that is long enough to be noticed as a repeat"
    assert without_repeats(f"{line}\nshort\nshort\n{line}\nend") == f"{line}\nshort\nshort\nend"


def test_corpus_is_cut_90_5_5_without_loss():
    texts = {"a": torch.arange(200, dtype=torch.uint8), "b": torch.arange(101, dtype=torch.uint8)}
    whole = corpus(texts, "cpu")
    for name, text in texts.items():
        part = whole.part(name)
        assert torch.equal(torch.cat((part.train, part.valid, part.test)), text)
        assert len(part.train) == len(text) * 90 // 100
    assert len(whole.train) + len(whole.valid) + len(whole.test) == 301
    assert torch.equal(whole.valid[:10], texts["a"][180:190])


# Sets; the two that experiments lean on, and the smallest, are read from the cache or fetched


def loaded(module):
    try:
        return module.load()
    except ReproError as error:
        if "is not here; tried" not in str(error):  # a damaged file must fail
            raise
        pytest.skip(str(error))


def test_fashion_mnist():
    data = loaded(fashion_mnist)
    assert data is fashion_mnist.load(torch.device("cpu"))
    x, y, test_x, test_y = fashion_mnist.official()
    assert torch.equal(torch.cat((data.train_x, data.valid_x)), x)
    assert torch.equal(data.valid_y, y[-5_000:])
    assert torch.equal(data.test_x, test_x) and torch.equal(data.test_y, test_y)
    assert y.bincount().tolist() == [6_000] * 10 and test_y.bincount().tolist() == [1_000] * 10
    assert data.train_x.shape == (55_000, 1, 28, 28) and data.train_x.dtype == torch.uint8
    digests = {}
    for split in ("train", "valid", "test"):
        images = data.split(split)[0].numpy()
        digests[split] = {hashlib.md5(i.tobytes()).digest() for i in images}
        assert len(digests[split]) == len(images)
    assert not digests["train"] & digests["valid"] and not (digests["train"] | digests["valid"]) & digests["test"]
    normal = data.normalised(x[:20_000])
    assert abs(normal.mean()) < 0.01 and abs(normal.std() - 1) < 0.01
    assert data.flat(x[:3]).shape == (3, 784)
    assert data.binarised(x[:9]).unique().tolist() == [0.0, 1.0]
    draws = [data.binarised(x[:999], torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert abs(draws[0].mean() - data.unit(x[:999]).mean()) < 0.005
    assert len(data.take(100).train_y) == 100 and len(data.take(100).test_y) == 10_000


def test_fashion_mnist_from_hub_rows_is_byte_for_byte_the_same(monkeypatch, tmp_path):
    """What the Hub serves are pictures; they must become the very IDX files that are pinned."""
    from PIL import Image

    x, y, test_x, test_y = fashion_mnist.official() if loaded(fashion_mnist) else ()

    def load(split):
        images, labels = (x, y) if split == "train" else (test_x, test_y)
        for image, label in zip(images.numpy(), labels.tolist(), strict=True):
            yield {"image": Image.fromarray(image[0]), "label": label}

    made = idx.from_hub(load)
    found = {name: hashlib.sha256(content).hexdigest() for name, content in made.items()}
    assert found == {f.name: f.sha256 for f in fashion_mnist.FILES}


def test_shakespeare():
    data = loaded(shakespeare)
    assert len(data.train) == 4_548_585 and len(data.valid) == 252_699 and len(data.test) == 252_700
    assert int(data.train.max()) < 128
    text = bytes(torch.cat((data.train, data.valid, data.test)).numpy())
    assert hashlib.sha256(text).hexdigest() == shakespeare.TEXT_SHA256
    assert text.count(b"\nHAMLET, PRINCE OF DENMARK") == 1


def test_digits():
    data = loaded(digits)
    assert (len(data.train_y), len(data.valid_y), len(data.test_y)) == (1_297, 250, 250)
    assert int(data.train_x.max()) == 16 and data.train_x.shape[1:] == (1, 8, 8)
    every = data.normalised(torch.cat((data.train_x, data.valid_x, data.test_x)))
    assert abs(every.mean()) < 1e-3 and abs(every.std() - 1) < 1e-3


def test_folds_are_stratified_and_fixed():
    y = torch.tensor([0] * 23 + [1] * 52 + [2] * 6)
    folds = stratified(y)
    for c in range(3):
        counts = folds[y == c].bincount(minlength=5)
        assert counts.max() - counts.min() <= 1
    assert folds.bincount().max() - folds.bincount().min() <= 1
    assert torch.equal(folds, stratified(y)) and not torch.equal(folds, stratified(y, seed=1))


def test_tabular_split_uses_training_rows_only():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 5 + 2
    x[:, 2] = 7.0
    x[3, 0] = float("nan")
    y = torch.arange(50) % 2
    folds = torch.arange(50) % 5
    table = Tabular("t", x, y, folds, classes=2)
    train_x, train_y, test_x, test_y = table.split(0)
    assert len(train_y) == 40 and len(test_y) == 10
    assert train_x.mean(0).abs().max() < 1e-6 and (train_x[:, 1].std(correction=0) - 1).abs() < 1e-5
    assert (train_x[:, 2] == 0).all() and (test_x[:, 2] == 0).all()
    assert train_x.isfinite().all() and train_x[2, 0] == 0  # row 3 is the third training row
    moved = dataclasses.replace(table, x=torch.where((folds == 0)[:, None], x + 100, x))
    assert torch.equal(moved.split(0)[0], train_x)


def test_translation_splits_hold_nothing_in_common(tmp_path):
    pages = [f"p{i}.html" for i in range(60)]
    rng = np.random.default_rng(0)

    def package(language, words):
        members = {}
        for page in pages:
            ids = range(6)
            body = "".join(f'<p id="par_id{i}" class="x">{words(page, i)}</p>' for i in ids)
            members[f"./{translation.HELP}{language}/text/{page}"] = f"<html>{body}</html>".encode()
        return Archive(deb(tmp_path / f"{language}_1_all.deb", tar(members)))

    pick = {(p, i): int(rng.integers(80)) for p in pages for i in range(6)}
    with (
        package("en-US", lambda p, i: f"the <b>sentence</b> &amp; number {pick[p, i]} is here") as english,
        package("de", lambda p, i: f"der Satz &amp; Nummer {pick[p, i]} {'steht' if i % 2 else 'ist'} hier") as german,
    ):
        rows = [line.split("\t") for line in translation._pairs(english, german)["en-de.tsv"].decode().splitlines()]
    assert {r[0] for r in rows} == {"train", "valid", "test"}
    assert all("&" in r[1] and "<" not in r[1] for r in rows)
    assert len({tuple(r[1:]) for r in rows}) == len(rows)
    for side in (1, 2):
        train, valid, test = ({r[side] for r in rows if r[0] == s} for s in ("train", "valid", "test"))
        assert not train & (valid | test) and not valid & test


def test_pairs_and_vocabulary():
    lines = ["Der Hund bellt.", "Der Hund schl\u00e4ft, der Hund!"]
    side = sentences([line.encode() for line in lines], "cpu")
    pairs = Pairs({"train": side}, {"train": side})
    assert pairs.source["train"].lines() == lines and len(side) == 2
    vocabulary = Vocabulary(lines, size=6)
    assert vocabulary.words[4:] == ["der", "hund"]
    assert side.tokens(vocabulary, 6).tolist() == [[1, 4, 5, 3, 3, 2], [1, 4, 5, 3, 3, 2]]
    assert side.tokens(None, 20)[0].tolist() == [1, *(b + 4 for b in lines[0].encode()), 2, 0, 0, 0]


def idx_pickle(monkeypatch) -> bytes:
    """A small MNIST in the package's form, whose md5 the module then asks for."""
    rng = np.random.default_rng(0)
    parts = [(rng.integers(0, 256, (n, 784), dtype=np.uint8), rng.integers(0, 10, n)) for n in (5, 2, 3)]
    x, y = (np.concatenate([parts[0][i], parts[1][i]]) for i in (0, 1))
    files = [idx.head(7, 28, 28) + x.tobytes(), idx.head(7) + y.astype(np.uint8).tobytes()]
    files += [idx.head(3, 28, 28) + parts[2][0].tobytes(), idx.head(3) + parts[2][1].astype(np.uint8).tobytes()]
    sums = {n: hashlib.md5(f).hexdigest() for n, f in zip(idx.NAMES, files, strict=True)}
    monkeypatch.setattr(mnist, "MD5", sums)
    return pickle.dumps([(p.astype(np.float32) / 256, labels) for p, labels in parts], protocol=2)


def wheel(path: Path, member: str, content: bytes) -> Archive:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
    return Archive(path)


def test_mnist_is_rebuilt_from_its_pickle_and_held_to_its_md5(monkeypatch, tmp_path):
    packed = gzip.compress(idx_pickle(monkeypatch))
    with wheel(tmp_path / "a.whl", mnist.MEMBER, packed) as archive:
        made = mnist._from_pickle(archive)
        raw = {name: torch.frombuffer(bytearray(content), dtype=torch.uint8) for name, content in made.items()}
        x, y, test_x, test_y = idx.tensors(raw, idx.NAMES)
        assert x.shape == (7, 1, 28, 28) and len(y) == 7 and len(test_x) == len(test_y) == 3
        monkeypatch.setitem(mnist.MD5, idx.NAMES[1], "0" * 32)
        with pytest.raises(Unusable, match="not the 0000"):
            mnist._from_pickle(archive)


@pytest.mark.parametrize("evil", [os.system, np.load, Path, getattr])
def test_a_pickle_that_names_more_than_arrays_is_refused(evil):
    class Bomb:
        def __reduce__(self):
            return evil, ("touch /tmp/never",)

    with pytest.raises(Unusable, match="not part of an array"):
        mnist.arrays(pickle.dumps([Bomb()]))


def test_mnist1d_is_the_set_of_its_authors(tmp_path):
    """The first and the last signal as the authors' code makes them (mnist1d 0.0.2.post1, seed 42), and its sums."""
    x, y = mnist1d.generate()
    assert x.shape == (5_000, 40) and abs(x.mean()) < 1e-12 and abs(x.std() - 1) < 1e-12
    assert y[:8].tolist() == [2, 6, 4, 5, 6, 6, 6, 0] and np.bincount(y).tolist() == [500] * 10
    assert np.allclose(
        x[0, :4], [-0.3320056674, -0.4719103657, -0.7786970763, -1.0097408265], atol=1e-9
    ) and np.allclose(x[-1, -4:], [0.4472328851, 0.6598756471, 0.8777343498, 1.1931518368], atol=1e-9)
    data = mnist1d.load(cache=tmp_path)
    assert (len(data.train_y), len(data.valid_y), len(data.test_y)) == (3_600, 400, 1_000)
    assert torch.equal(data.test_x[-1, 0], torch.from_numpy(x[-1]).float())


def packed_gguf(settings: dict, tensors: dict[str, tuple[int, list[int], bytes]]) -> torch.Tensor:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def setting(value) -> bytes:
        if isinstance(value, str):
            return struct.pack("<I", 8) + text(value)
        if isinstance(value, list):
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
        return struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value)

    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(settings))
    out += b"".join(text(name) + setting(value) for name, value in settings.items())
    body = b""
    for name, (kind, shape, raw) in tensors.items():
        out += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, len(body))
        body += raw + bytes(-len(raw) % 32)
    return torch.frombuffer(bytearray(out + bytes(-len(out) % 32) + body), dtype=torch.uint8)


def test_gguf_is_read_as_its_blocks_say():
    half = struct.Struct("<e")
    q4 = half.pack(0.5) + half.pack(-3.0) + bytes(i | (15 - i) << 4 for i in range(16))
    q8 = half.pack(0.25) + struct.pack("<32b", *range(-16, 16))
    content = packed_gguf(
        {"a.name": "x\u00e9", "a.list": ["b", "cc"], "a.count": 7, "a.eps": 0.5},
        {
            "plain": (0, [2, 3], struct.pack("<6f", *range(6))),
            "half": (1, [2], half.pack(1.5) + half.pack(-2.0)),
            "four": (3, [1, 32], q4),
            "eight": (8, [2, 16], q8),
        },
    )
    settings, tensors = gguf.read(content)
    assert settings == {"a.name": "x\u00e9", "a.list": ["b", "cc"], "a.count": 7, "a.eps": 0.5}
    assert tensors["plain"].tolist() == [[0, 1, 2], [3, 4, 5]] and tensors["half"].tolist() == [1.5, -2]
    low = [0.5 * i - 3 for i in range(16)]
    assert tensors["four"].tolist() == [low + low[::-1]]
    assert tensors["eight"].flatten().tolist() == [0.25 * i for i in range(-16, 16)]
    with pytest.raises(ReproError, match="fetch it again"):
        gguf.read(content[:200])
    with pytest.raises(ReproError, match="begin with GGUF"):
        gguf.read(torch.zeros(64, dtype=torch.uint8))


def test_a_set_is_loaded_once_however_it_is_asked_for():
    calls = []

    @sources.resident
    def load(name, device="cpu", cache=None):
        calls.append((name, device, cache))
        return object()

    assert load("a") is load("a", torch.device("cpu")) is load("a", device="cpu", cache=None)
    assert load("b") is not load("a") and load("a", cache=Path("c")) is load("a", "cpu", "c")
    assert calls == [("a", "cpu", None), ("b", "cpu", None), ("a", "cpu", "c")]


# Original sets, from small parquet files


def parquet(path: Path, columns: dict) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(pa.table(columns), path)


def pictures(count: int, mode: str, size: tuple[int, int], seed: int) -> tuple[list[np.ndarray], list[dict]]:
    from PIL import Image

    rng = np.random.default_rng(seed)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    arrays = [rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(count)]
    packed = []
    for array in arrays:
        out = io.BytesIO()
        Image.fromarray(array).save(out, "png")
        packed.append({"bytes": out.getvalue(), "path": None})
    return arrays, packed


def test_original_images_from_local_parquet(tmp_path):
    arrays, packed = pictures(30, "RGB", (32, 32), 0)
    parquet(tmp_path / "train-00000-of-00002.parquet", {"img": packed[:20], "label": list(range(20))})
    parquet(tmp_path / "train-00001-of-00002.parquet", {"img": packed[20:], "label": list(range(20, 30))})
    parquet(tmp_path / "test-00000-of-00001.parquet", {"img": packed[:4], "label": [3, 2, 1, 0]})
    data = original.load("cifar10", path=tmp_path)
    assert isinstance(data, Images) and data.train_x.shape == (27, 3, 32, 32) and data.valid_y.tolist() == [27, 28, 29]
    assert np.array_equal(data.train_x[5].permute(1, 2, 0).numpy(), arrays[5])
    assert data.test_y.tolist() == [3, 2, 1, 0]
    small = original.load("cifar10", path=tmp_path, size=8, limit=3)
    assert small.test_x.shape == (3, 3, 8, 8)


def test_original_grey_and_large_images(tmp_path):
    arrays, packed = pictures(3, "L", (28, 28), 1)
    for split in ("train", "test"):
        parquet(tmp_path / "mnist" / split / "0000.parquet", {"image": packed, "label": [0, 1, 2]})
    data = original.load("mnist", path=tmp_path / "mnist")
    assert np.array_equal(data.test_x[2, 0].numpy(), arrays[2])
    _, packed = pictures(3, "RGB", (50, 30), 2)
    for split in ("train", "validation"):
        parquet(tmp_path / "imagenet-1k" / f"{split}.parquet", {"image": packed, "label": [7, 8, 9]})
    data = original.images("imagenet-1k", cache=tmp_path, size=24, limit=2)  # found in the cache, without path=
    assert data.train_x.shape == (2, 3, 24, 24) and data.test_y.tolist() == [7, 8]


def test_original_text(tmp_path):
    for split in ("train", "validation", "test"):
        parquet(tmp_path / "w" / f"{split}-00000-of-00001.parquet", {"text": ["", " = Title = \n", f"{split} text"]})
    data = original.load("wikitext-103", path=tmp_path / "w")
    assert bytes(data.valid.numpy()) == b"\n = Title = \nvalidation text\n"
    assert bytes(original.load("wikitext-103", path=tmp_path / "w", limit=8).test.numpy()) == b"\n = Title"[:8]
    for split in ("train", "validation"):
        parquet(tmp_path / "c" / f"{split}.parquet", {"text": ["abc", "def"]})
    data = original.load("c4", path=tmp_path / "c", limit=100)
    assert bytes(data.valid.numpy()) == b"abc\n" and bytes(data.test.numpy()) == b"def\n"


def test_original_text_of_one_split_is_cut(tmp_path):
    parquet(tmp_path / "o" / "train.parquet", {"text": [f"document {i}" for i in range(30)]})
    data = original.load("openwebtext", path=tmp_path / "o", limit=10_000)
    assert bytes(data.valid.numpy()).split() == b"document 27 document 28 document 29".split()
    assert bytes(data.test.numpy()).startswith(b"document 24") and bytes(data.train.numpy()).endswith(b"document 23\n")
    with pytest.raises(ReproError, match="no text in the split"):
        original.load("openwebtext", path=tmp_path / "o", limit=15)


def test_original_ptb_and_faces_and_hundred_classes(tmp_path):
    for split in ("train", "validation", "test"):
        parquet(tmp_path / "ptb" / f"{split}.parquet", {"sentence": ["no it was n't <unk> monday", split]})
    assert bytes(original.load("ptb", cache=tmp_path).test.numpy()) == b"no it was n't <unk> monday\ntest\n"
    arrays, packed = pictures(20, "RGB", (178, 218), 3)
    parquet(tmp_path / "celeba" / "train.parquet", {"image": packed})
    faces = original.load("celeba", path=tmp_path / "celeba", size=16)
    assert (len(faces.train_y), len(faces.valid_y), len(faces.test_y)) == (17, 1, 2)
    assert faces.train_x.shape[1:] == (3, 16, 16) and faces.classes == 1
    _, packed = pictures(4, "RGB", (32, 32), 4)
    for split in ("train", "test"):
        columns = {"img": packed, "fine_label": [99, 1, 2, 3], "coarse_label": [0, 0, 1, 1]}
        parquet(tmp_path / "cifar100" / f"{split}.parquet", columns)
    assert original.load("cifar100", path=tmp_path / "cifar100").test_y.tolist() == [99, 1, 2, 3]


def test_original_pairs(tmp_path):
    for split in ("train", "validation", "test"):
        rows = [{"de": f"guten tag {split}", "en": "good day"}, {"de": "nein .", "en": "no ."}]
        parquet(tmp_path / f"{split}.parquet", {"translation": rows})
    data = original.load("iwslt14-de-en", path=tmp_path)
    assert data.source["valid"].lines() == ["guten tag validation", "nein ."]
    assert data.target["test"].lines() == ["good day", "no ."] and len(data.source["train"]) == 2
    assert len(original.load("iwslt14-de-en", path=tmp_path, limit=1).target["train"]) == 1
    with pytest.raises(ReproError, match="call original.pairs"):
        original.text("iwslt14-de-en", path=tmp_path)
    parquet(tmp_path / "odd" / "train.parquet", {"translation": [{"fr": "a", "en": "b"}]})
    with pytest.raises(ReproError, match="row 0 of train has no de and en"):
        original.load("iwslt14-de-en", path=tmp_path / "odd")


def test_a_set_that_was_a_script_is_read_from_the_parquet_of_its_configuration(monkeypatch, tmp_path):
    hub, datasets = pytest.importorskip("repro.data.hub"), pytest.importorskip("datasets")
    calls = []
    monkeypatch.setattr(hub, "_connected", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **o: calls.append((a, o)) or [{"sentence": "a"}])
    original.load("ptb", cache=tmp_path)
    assert calls[0][0] == ("ptb-text-only/ptb_text_only",)
    assert calls[0][1]["data_dir"] == "penn_treebank" and calls[0][1]["revision"] == "refs/convert/parquet"


def test_original_errors(monkeypatch, tmp_path):
    def offline(*_, **__):
        raise Unusable("no connection and not in its cache")

    monkeypatch.setattr(original, "from_hub", offline)
    with pytest.raises(ReproError, match=r"mnist is not here; tried Hugging Face ylecun/mnist \(no connection"):
        original.load("mnist", cache=tmp_path)
    with pytest.raises(ReproError, match="no parquet file for the split 'train'"):
        original.load("mnist", path=tmp_path)
    with pytest.raises(ReproError, match="write one of mnist"):
        original.load("mnits")
    with pytest.raises(ReproError, match="limit="):
        original.load("c4")


def test_hub_fails_in_seconds_without_network(monkeypatch, tmp_path):
    hub = pytest.importorskip("repro.data.hub")
    datasets = pytest.importorskip("datasets")

    def refuse(*_, **__):
        assert datasets.config.HF_HUB_OFFLINE  # no retries over the network once it is known to be away
        raise ConnectionError("Couldn't reach it (OfflineModeIsEnabled)")

    before = datasets.config.HF_HUB_OFFLINE
    monkeypatch.setattr(hub, "_connected", lambda: False)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(Unusable, match="no connection and not in its cache"):
        hub.from_hub("owner/name", None, "train")
    assert datasets.config.HF_HUB_OFFLINE == before


# Every set, fetched for real


@pytest.mark.slow
@pytest.mark.parametrize("name", ["keel", "fashion_mnist_m", "prose", "translation", "mnist", "smollm2", "minilm"])
def test_fetched_set(name):
    folder = repro.data.fetch(name)
    assert repro.data.info(name)["cached"] and folder.name == name
    if name == "keel":
        from repro.data import keel

        assert len(keel.TABLES) == 43 and len(keel.LARGE) == 16
        for table in ("zoo", "iris", "chess", "soybean", "heart-cleveland", "haberman", "musk-1"):
            data = keel.load(table)
            train_x, train_y, test_x, _ = data.split(4)
            assert train_x.isfinite().all() and test_x.isfinite().all()
            assert train_x.mean(0).abs().max() < 1e-4
            assert train_y.unique().numel() == data.classes
    elif name == "fashion_mnist_m":
        from repro.data import fashion_mnist_m

        data = fashion_mnist_m.load()
        assert data.train_x.shape == (55_000, 3, 32, 32)
        assert torch.equal(data.test_y, fashion_mnist.load().test_y)
        normal = data.normalised(data.train_x[:10_000])
        assert abs(normal.mean()) < 0.02 and abs(normal.std() - 1) < 0.02
        digest = hashlib.sha256(data.test_x.numpy().tobytes()).hexdigest()
        assert digest.startswith("59d3c4f380d09c2f")
    elif name == "mnist":
        data = mnist.load()
        assert data.train_x.shape == (55_000, 1, 28, 28) and len(data.test_y) == 10_000
        assert abs(data.normalised(data.train_x).mean()) < 1e-3 and abs(data.normalised(data.train_x).std() - 1) < 1e-3
    elif name == "smollm2":
        from repro.data import smollm2

        settings, tensors = smollm2.load()
        assert len(tensors) == 272 and settings["llama.block_count"] == 30
    elif name == "minilm":
        from repro.data import minilm

        pieces, tensors = minilm.load()
        assert len(pieces) == 30_522 and len(tensors) == 104
    elif name == "prose":
        from repro.data import prose

        data = prose.load()
        assert len(data.train) == 41_824_492 and len(data.parts) == 8
        assert b"truth universally acknowledged" in bytes(data.part("austen").train.numpy())
        assert torch.equal(data.part("shakespeare").test, shakespeare.load().test)
    else:
        data = translation.load()
        assert {s: len(v) for s, v in data.source.items()} == {"train": 24_084, "valid": 1_408, "test": 2_317}
        for side in (data.source, data.target):
            train = set(side["train"].lines())
            assert not train & set(side["valid"].lines() + side["test"].lines())
