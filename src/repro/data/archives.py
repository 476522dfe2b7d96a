"""Read single members of .deb, .tar and .whl archives into memory.

Nothing is ever written under a name that an archive chose, and links are never followed, so that a crafted archive
cannot reach outside; one that tries (an absolute or upward name) is refused whole.
"""

import gzip
import io
import lzma
import shutil
import struct
import subprocess
import tarfile
import tempfile
import zipfile
import zlib
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import IO

LIMIT = 1 << 31  # no archive here unpacks to more than 2 GiB
# What the readers raise where an archive is damaged, encrypted or made to mislead them.
BROKEN = (
    OSError,
    EOFError,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ValueError,
    RuntimeError,
    MemoryError,
    OverflowError,
    IndexError,
    KeyError,
    AttributeError,
    TypeError,
)


class Unusable(Exception):
    """A source that cannot be used; the next one is tried."""


class Archive:
    """The regular files of one archive, by name without a leading "./"."""

    def __init__(self, path: Path):
        self.path = path
        self._zip: zipfile.ZipFile | None = None
        self._members: dict = {}
        with ExitStack() as stack:
            try:
                members = self._open(stack)
            except BROKEN as error:
                raise Unusable(f"{path.name}: cannot be unpacked: {error or 'truncated'}") from error
            for name, member in members.items():
                pure = PurePosixPath(name)
                if pure.is_absolute() or ".." in pure.parts or "\\" in name:
                    raise Unusable(f"{path.name}: refused, it names a file outside itself: {name!r}")
                self._members[str(pure)] = member
            self._stack = stack.pop_all()

    def _open(self, stack: ExitStack) -> dict:
        if zipfile.is_zipfile(self.path):
            self._zip = stack.enter_context(zipfile.ZipFile(self.path))
            return {i.filename: i for i in self._zip.infolist() if not i.is_dir()}
        with self.path.open("rb") as stream:
            is_deb = stream.read(8) == b"!<arch>\n"
        data = stack.enter_context(_deb_data(self.path) if is_deb else _plain(gzip.open(self.path)))
        self._tar = stack.enter_context(tarfile.open(fileobj=data, mode="r:"))  # unpacked already, within the limit
        return {m.name: m for m in self._tar.getmembers() if m.isreg()}

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def names(self, prefix: str = "") -> list[str]:
        """The names that start with `prefix`, sorted."""
        return sorted(n for n in self._members if n.startswith(prefix))

    def read(self, name: str) -> bytes:
        """The content of one regular file."""
        member = self._members.get(name)
        if member is None:
            raise Unusable(f"{self.path.name}: has no regular file {name}")
        try:
            if self._zip is not None:
                with self._zip.open(member) as stream:
                    return _bounded(stream)
            if member.size > LIMIT:  # a sparse file, which takes no room in the archive
                raise ValueError("unpacks to more than 2 GiB")
            return self._tar.extractfile(member).read()
        except BROKEN as error:
            raise Unusable(f"{self.path.name}: {name}: {error or 'truncated'}") from error

    def content(self) -> bytes:
        """The archive itself."""
        return self.path.read_bytes()


def gunzip(content: bytes) -> bytes:
    """Unpack one gzip file, within the limit."""
    try:
        with gzip.open(io.BytesIO(content)) as stream:
            return _bounded(stream)
    except BROKEN as error:
        raise Unusable(f"damaged gzip file: {error or 'truncated'}") from error


def _bounded(stream: IO[bytes]) -> bytes:
    content = stream.read(LIMIT + 1)
    if len(content) > LIMIT:
        raise ValueError("unpacks to more than 2 GiB")
    return content


def _plain(stream: IO[bytes]) -> IO[bytes]:
    """Unpack a whole stream into an unnamed temporary file, which tarfile can seek in."""
    out = tempfile.TemporaryFile()
    try:
        with stream:
            while block := stream.read(1 << 20):
                if out.tell() + len(block) > LIMIT:
                    raise ValueError("unpacks to more than 2 GiB")
                out.write(block)
        out.seek(0)
    except BaseException:
        out.close()
        raise
    return out


def _deb_data(path: Path) -> IO[bytes]:
    """The tar inside a .deb: an `ar` archive of debian-binary, control.tar.* and data.tar.*, with 60-byte heads."""
    with path.open("rb") as stream:
        stream.seek(8)
        while len(head := stream.read(60)) == 60:
            if head[58:60] != b"`\n":
                raise ValueError("not an ar archive")
            name, size = head[:16].decode("ascii").strip().rstrip("/"), int(head[48:58])
            if size < 0:
                raise ValueError("not an ar archive")
            if name.startswith("data.tar"):
                if size > LIMIT or len(body := stream.read(size)) != size:
                    raise ValueError("truncated")
                openers = {"data.tar.xz": lzma.open, "data.tar.gz": gzip.open, "data.tar": lambda raw: raw}
                if name in openers:
                    return _plain(openers[name](io.BytesIO(body)))
                if shutil.which("dpkg-deb"):  # zstd, which Python reads only from 3.14 on
                    words = ["dpkg-deb", "--fsys-tarfile", str(path)]
                    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
                        try:
                            unpacked = _plain(process.stdout)
                        except BaseException:
                            process.kill()
                            raise
                    if process.returncode == 0:
                        return unpacked
                    unpacked.close()
                    raise ValueError(f"{name}: dpkg-deb cannot unpack it")
                raise ValueError(f"{name}: needs dpkg-deb")
            stream.seek(size + size % 2, io.SEEK_CUR)
    raise ValueError("no data.tar in it")
