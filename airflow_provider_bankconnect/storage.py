"""Whole files in an object storage: written under temporary names, checked, and renamed when all of them are whole."""

from __future__ import annotations

import hashlib
import io
import re
import secrets
import zipfile
from concurrent.futures import wait
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_bankconnect import api

if TYPE_CHECKING:
    from collections.abc import Iterable
    from concurrent.futures import Executor

# A part of an upload to an object store, in bytes: s3fs alone would keep 50 MiB of each file in memory.
_BLOCK_BYTES: Final = 5 * 2**20
# The central directory of a workbook is at its end. One of a thousand sheets is smaller.
_TAIL_BYTES: Final = 128 * 1024
_PDF_START_BYTES: Final = 1024
_LONGEST_NAME: Final = 100
_PACKAGES: Final = {
    "s3": "apache-airflow-providers-amazon[s3fs]",
    "s3a": "apache-airflow-providers-amazon[s3fs]",
    "s3n": "apache-airflow-providers-amazon[s3fs]",
    "gs": "apache-airflow-providers-google",
    "gcs": "apache-airflow-providers-google",
    "abfs": "apache-airflow-providers-microsoft-azure",
    "abfss": "apache-airflow-providers-microsoft-azure",
    "adl": "apache-airflow-providers-microsoft-azure",
    "sftp": "apache-airflow-providers-sftp[sshfs]",
    "ssh": "apache-airflow-providers-sftp[sshfs]",
    "hdfs": "apache-airflow-providers-apache-hdfs",
}


class Written(NamedTuple):
    """A file that is whole: its address, its size, and the hash of its content in hexadecimal digits."""

    path: str
    bytes: int
    sha256: str


class Folder:
    """A folder of an object storage, and the files that one task writes into it.

    :param path: the folder: Airflow's ``ObjectStoragePath``, or its URL.
    :param parts: ids that name folders below it.
    :param mark: makes the temporary names those of one task. Each try of it has others.
    :raises ValueError: there is no filesystem for the URL; names the package to install.
    """

    def __init__(self, path: ObjectStoragePath | str, *parts: str, mark: str) -> None:
        given, self._fs = filesystem("path", path)
        # Before Airflow 3.2 a path has no conn_id of its own.
        found = getattr(given, "conn_id", None) or given.storage_options.get("conn_id")
        conn_id = f"{found}@" if found else ""
        scheme, _, rest = str(given).rpartition("://")
        rest = rest.removeprefix(conn_id).rstrip("/")
        below = "/".join(file_name(part) for part in parts)
        # With the connection in it, so that whoever gets the path can open it.
        self._url = f"{scheme or 'file'}://{conn_id}{rest}/{below}"
        self._root = f"{given.path.rstrip('/')}/{below}"
        self._mark = mark
        self._try = secrets.token_hex(4)
        self._temporary: dict[str, str] = {}

    @property
    def _is_local(self) -> bool:
        return "file" in self._fs.protocol

    def url(self, name: str) -> str:
        """Return the address of a file."""
        return f"{self._url}/{name}"

    def refuse_existing(self, names: Iterable[str]) -> None:
        """Refuse to write where a file exists.

        :raises FileExistsError: names the first one.
        """
        for name in names:
            if self._fs.exists(f"{self._root}/{name}"):
                raise FileExistsError(f"{self.url(name)} exists already, and overwrite is False: nothing was written")

    def begin(self, name: str, content: Content, *, is_private: bool = False) -> File:
        """Open a new file under its temporary name.

        :param is_private: on a local filesystem, only its owner may read it.
        """
        temporary = f"{self._root}/.{name}.{self._mark}-{self._try}.part"
        self._temporary[temporary] = f"{self._root}/{name}"
        try:
            opened = self._fs.open(temporary, "wb", block_size=_BLOCK_BYTES)
        except FileNotFoundError:
            # Object stores have no folders: only here it is known that this storage has them.
            self._fs.makedirs(self._root, exist_ok=True)
            opened = self._fs.open(temporary, "wb", block_size=_BLOCK_BYTES)
        if is_private and self._is_local:
            Path(temporary).chmod(0o600)
        return File(opened, self.url(name), content)

    def remove_leftovers(self) -> None:
        """Remove the temporary files of tries of this task that were killed."""
        try:
            found = self._fs.ls(self._root, detail=False)
        except FileNotFoundError:
            return
        for path in found:
            if re.fullmatch(rf"\..*\.{self._mark}-[0-9a-f]+\.part", str(path).rpartition("/")[2]):
                self._remove(path)

    def commit(self, threads: Executor, *, undo: bool) -> None:
        """Give all files their names.

        :param threads: on an object store, a rename is a copy, and takes its time.
        :param undo: remove the renamed files if one rename fails.
        """
        renames = {threads.submit(self._rename, *names): names for names in self._temporary.items()}
        wait(renames)
        for done, (temporary, _) in renames.items():
            if done.exception() is None:
                del self._temporary[temporary]
        if not all(done.exception() is None for done in renames):
            if undo:
                for done, (_, final) in renames.items():
                    if done.exception() is None:
                        self._remove(final)
            for done in renames:
                done.result()

    def _rename(self, temporary: str, final: str) -> None:
        if self._is_local:
            Path(temporary).replace(final)
            return
        try:
            # Not mv(): in most filesystems it takes * ? [ in a path for a pattern.
            self._fs.cp_file(temporary, final)
        except NotImplementedError:
            self._fs.mv(temporary, final)
        else:
            self._fs.rm_file(temporary)

    def discard(self) -> None:
        """Remove what has no final name."""
        for temporary in self._temporary:
            self._remove(temporary)
        self._temporary.clear()

    def _remove(self, path: str) -> None:
        # The error that led here is the one to show.
        with suppress(Exception):
            self._fs.rm_file(path)


class Content:
    """What the content of a file has to be. Any content will do."""

    def feed(self, piece: bytes) -> None:
        """Look at a piece."""

    def problem(self) -> str | None:
        """Return what is wrong with the whole content, or None."""
        return None


class Workbook(Content):
    """An Excel workbook: a ZIP with the parts of one."""

    def __init__(self) -> None:
        self._start = self._tail = b""

    def feed(self, piece: bytes) -> None:
        """Keep the start and the end."""
        self._start = (self._start + piece[:4])[:4]
        self._tail = (self._tail + piece[-_TAIL_BYTES:])[-_TAIL_BYTES:]

    def problem(self) -> str | None:
        """Return that it is no workbook, or None."""
        names: set[str] = set()
        if self._start.startswith(b"PK\x03\x04"):
            # A damaged directory can raise anything.
            with suppress(Exception), zipfile.ZipFile(io.BytesIO(self._tail)) as archive:
                names = set(archive.namelist())
        is_workbook = "[Content_Types].xml" in names and any(name.startswith("xl/workbook.") for name in names)
        return None if is_workbook else "it is no Excel workbook, or not a whole one"


class Pdf(Content):
    """A PDF."""

    def __init__(self) -> None:
        self._start = b""

    def feed(self, piece: bytes) -> None:
        """Keep the start."""
        self._start = (self._start + piece[:_PDF_START_BYTES])[:_PDF_START_BYTES]

    def problem(self) -> str | None:
        """Return that it is no PDF, or None."""
        return None if b"%PDF-" in self._start else "it is no PDF"


class File:
    """An open file under its temporary name."""

    def __init__(self, opened: Any, url: str, content: Content) -> None:  # noqa: ANN401 - a file of any filesystem
        self._opened = opened
        self._url = url
        self._content = content
        self._hash = hashlib.sha256()
        self._bytes = 0

    def write(self, piece: bytes) -> None:
        """Write a piece."""
        self._content.feed(piece)
        self._hash.update(piece)
        self._bytes += len(piece)
        self._opened.write(piece)

    def end(self, call: str) -> Written:
        """Close the file, and return what was written.

        :raises BankConnectLinkError: the content is another than it has to be; names ``call``.
        """
        self._opened.close()
        if problem := self._content.problem():
            raise api.BankConnectLinkError(f"{call}: what the link leads to was not kept: {problem}")
        return Written(self._url, self._bytes, self._hash.hexdigest())

    def abandon(self) -> None:
        """Close the file after an error."""
        with suppress(Exception):
            self._opened.close()


def file_name(name: str) -> str:
    """Return a name that every storage takes, and that no other id has."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:_LONGEST_NAME]
    if plain == name and name.strip("."):
        return name
    return f"{plain.strip('.')}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def filesystem(name: str, path: ObjectStoragePath | str) -> tuple[ObjectStoragePath, Any]:
    """Return a path and its filesystem.

    :param name: the argument that has the path, for messages.
    :raises ValueError: there is no filesystem for the URL; names the package to install.
    """
    try:
        given = path if isinstance(path, ObjectStoragePath) else ObjectStoragePath(path)
        fs: Any = given.fs
    except (ImportError, ValueError) as error:
        # The two messages for an unknown one are of Airflow and of universal-pathlib.
        if isinstance(error, ValueError) and "filesystem" not in str(error):
            raise
        raise ValueError(_no_filesystem(name, path, error)) from error
    return given, fs


def _no_filesystem(name: str, path: object, error: Exception) -> str:
    scheme = str(path).partition("://")[0] if "://" in str(path) else "file"
    package = _PACKAGES.get(scheme)
    cure = f"install {package}" if package else "install the provider of that storage"
    if scheme == "file":
        cure = "install apache-airflow-providers-common-io"
    return f"{name}: there is no filesystem for {scheme}:// ({type(error).__name__}): {cure} where the task runs"
