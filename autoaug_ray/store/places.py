"""Places: a folder on this machine, or a prefix of an object store that all machines see.

Both are used in the same few ways, pathlib's. What lies on an object store is written in one piece
and never changed in place, so that a reader, or a crash, never meets half a file there either.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from autoaug_ray.errors import StorageError, UserError

SCHEMES = ("s3", "gs", "abfs")
"""Amazon's, Google's and Microsoft's stores, by pyarrow's file systems."""
PATIENCE = 600.0
"""Seconds for which operations on a store that does not answer are repeated."""
READERS = 16
"""Files that are fetched at a time."""
HOPELESS = ("ACCESS_DENIED", "INVALID_ACCESS_KEY", "SIGNATURE", "NO_SUCH_BUCKET", "credentials")
"""Parts of messages of errors that waiting does not mend."""

T = TypeVar("T")

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import fs


class Remote:
    """A file or a prefix on an object store, as far as Path's ways are needed.

    An operation that fails is repeated for PATIENCE seconds, and then raises StorageError. What is
    not there raises FileNotFoundError at once, as with Path.
    """

    def __init__(self, scheme: str, path: str, query: str = "") -> None:
        """`path`: bucket/prefix; `query`: options of pyarrow's file system, as in its URIs."""
        self.scheme, self.path, self.query = scheme, path.strip("/"), query

    def __str__(self) -> str:
        """The URI, as `place` reads it."""
        return f"{self.scheme}://{self.path}" + (f"?{self.query}" if self.query else "")

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __truediv__(self, name: str) -> "Remote":
        return Remote(self.scheme, f"{self.path}/{name}", self.query)

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.path).stem

    @property
    def parent(self) -> "Remote":
        return Remote(self.scheme, str(PurePosixPath(self.path).parent), self.query)

    def resolve(self) -> "Remote":
        return self

    def exists(self) -> bool:
        return self._is("File", "Directory")

    def is_file(self) -> bool:
        return self._is("File")

    def is_dir(self) -> bool:
        return self._is("Directory")

    def glob(self, pattern: str) -> list["Remote"]:
        """The files directly below whose names match."""
        return [one for one in self._below("File") if fnmatchcase(one.name, pattern)]

    def folders(self) -> list["Remote"]:
        """The prefixes directly below."""
        return self._below("Directory")

    def read_bytes(self) -> bytes:
        def read() -> bytes:
            with self._system.open_input_file(self.path) as file:
                data: bytes = file.readall()
            return data

        return self._patiently(read)

    def read_text(self) -> str:
        return self.read_bytes().decode()

    def write_bytes(self, data: bytes) -> None:
        """The file is there when this returns, and whole as soon as it is there."""

        def write() -> None:
            with self._system.open_output_stream(self.path) as file:
                file.write(data)

        self._patiently(write)

    def unlink(self, missing_ok: bool = False) -> None:
        def delete() -> None:
            try:
                self._system.delete_file(self.path)
            except FileNotFoundError:
                if not missing_ok:
                    raise

        self._patiently(delete)

    def open_input(self) -> "pa.NativeFile":
        return self._patiently(lambda: self._system.open_input_file(self.path))

    def _below(self, kind: str) -> list["Remote"]:
        from pyarrow import fs

        selector = fs.FileSelector(self.path, allow_not_found=True)
        found = self._patiently(lambda: self._system.get_file_info(selector))
        return [self / info.base_name for info in found if info.type.name == kind]

    def _is(self, *kinds: str) -> bool:
        return self._patiently(lambda: self._system.get_file_info(self.path).type.name in kinds)

    @property
    def _system(self) -> "fs.FileSystem":
        return _system(self.scheme, self.path.split("/")[0], self.query)

    def _patiently(self, work: Callable[[], T]) -> T:
        begin, pause = time.monotonic(), 0.5
        while True:
            try:
                return work()
            except FileNotFoundError:
                raise
            except OSError as error:
                waited = time.monotonic() - begin
                if any(word in str(error) for word in HOPELESS):
                    raise StorageError(f"{self} cannot be used ({_brief(error)}).") from error
                if waited > PATIENCE:
                    raise StorageError(
                        f"{self}: the storage did not answer for {waited:.0f} s ({_brief(error)})."
                    ) from error
                time.sleep(pause)
                pause = min(2 * pause, 30.0)


Place = Path | Remote


def place(text: str | Path | Remote) -> Place:
    """The place that a text names: s3://bucket/prefix, or a path on this machine.

    Raises UserError for a store that is not known, and for credentials in the URI, which would
    stand in rows and logs.
    """
    if not isinstance(text, str) or "://" not in text:
        return text if isinstance(text, Remote) else Path(text)
    parts = urlsplit(text)
    if parts.scheme == "file":
        return Path(parts.path)
    if parts.scheme not in SCHEMES:
        raise UserError(
            f"storage {text}: unknown kind {parts.scheme!r}; allowed: a path on this machine, "
            f"{', '.join(f'{scheme}://bucket/prefix' for scheme in SCHEMES)}."
        )
    if "@" in parts.netloc or "_key" in parts.query:
        raise UserError(
            f"storage {parts.scheme}://...: it holds credentials, which belong into the "
            "environment, a profile or the machine's role."
        )
    if not parts.netloc:
        raise UserError(f"storage {text}: no bucket; expected {parts.scheme}://bucket/prefix.")
    return Remote(parts.scheme, parts.netloc + parts.path, parts.query)


def check(root: Place) -> None:
    """Raises UserError if the place cannot be written and read."""
    if isinstance(root, Path):
        return
    from pyarrow import ArrowException

    probe = root / "probe"
    try:
        with probe._system.open_output_stream(probe.path) as file:
            file.write(b"probe")
        with probe._system.open_input_file(probe.path) as file:
            same = file.readall() == b"probe"
        probe._system.delete_file(probe.path)
    except (OSError, ArrowException) as error:
        raise UserError(f"storage {root}: cannot be used ({_brief(error)}).") from None
    if not same:
        raise UserError(f"storage {root}: it does not give back what was written.")


def opened(file: Place) -> "Path | pa.NativeFile":
    """The file for readers that read only parts of it, as pyarrow's do."""
    return file.open_input() if isinstance(file, Remote) else file


def read_all(places: Iterable[Place]) -> Iterator[bytes]:
    """The contents of many files, in their order; from a store, several at a time."""
    places = list(places)
    if not any(isinstance(one, Remote) for one in places):
        yield from (one.read_bytes() for one in places)
        return
    with ThreadPoolExecutor(READERS) as threads:
        yield from threads.map(lambda one: one.read_bytes(), places)


def size(file: Place) -> int:
    """The file's size in bytes."""
    if isinstance(file, Remote):
        return int(file._patiently(lambda: file._system.get_file_info(file.path).size))
    return file.stat().st_size


def listed(folder: Place, pattern: str) -> list[Place]:
    """Files directly below whose names match, by name; none if the folder is not there."""
    found: list[Place] = [*folder.glob(pattern)]
    return sorted(found, key=str)


def folders(folder: Place) -> list[Place]:
    """Folders directly below, by name."""
    if isinstance(folder, Remote):
        return sorted(folder.folders(), key=str)
    found = folder.iterdir() if folder.is_dir() else ()
    return [*sorted(path for path in found if path.is_dir())]


def relative(file: Place, folder: Place) -> str:
    """The path of a file from a folder in the same storage, for links in pages of the folder."""
    paths = [one.path if isinstance(one, Remote) else str(one) for one in (file, folder)]
    return Path(os.path.relpath(*paths)).as_posix()


@lru_cache(maxsize=8)
def _system(scheme: str, bucket: str, query: str) -> "fs.FileSystem":
    from pyarrow import fs  # not above: it starts threads, also where all is on this machine

    uri = f"{scheme}://{bucket}" + (f"?{query}" if query else "")
    system, _ = fs.FileSystem.from_uri(uri)
    return system


def _brief(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else repr(error)
