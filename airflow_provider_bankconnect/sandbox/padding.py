"""Files of a given size: bytes that cannot be compressed fill them up. They are made once, and sent in pieces."""

from __future__ import annotations

import random
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from starlette.responses import Response

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import Receive, Scope, Send

# The part of a padded workbook that nothing refers to, and the line of [Content_Types].xml that declares it.
PADDING_PART: Final = "docProps/padding.bin"
PADDING_TYPE: Final = '<Default Extension="bin" ContentType="application/octet-stream"/>'
# More than deflate looks back, so that no repetition is found.
_BLOCK: Final = 256 * 1024
_LINE: Final = 128
_PDF_END: Final = b"%%EOF\n"
# Of a zip archive: the header of a file, its entry in the directory, and the end of the directory.
_HEADER: Final = struct.Struct("<4s5H3L2H")
_ENTRY: Final = struct.Struct("<4s6H3L5H2L")
_END: Final = struct.Struct("<4s4H2LH")
_VERSION: Final = 20
_FIRST_OF_1980: Final = (0, 0x21)


@dataclass(frozen=True)
class Content:
    """The bytes of a file: its head, some padding and its tail."""

    head: bytes
    padding: int = 0
    tail: bytes = b""

    def __len__(self) -> int:
        """Return the size in bytes."""
        return len(self.head) + self.padding + len(self.tail)

    def pieces(self, most: int | None = None) -> Iterator[bytes]:
        """Yield all the bytes in pieces, or the first ``most`` of them."""
        left = len(self) if most is None else most
        for piece in (self.head, *_repeated(self.padding), self.tail):
            if piece and left:
                yield piece[:left]
                left -= len(piece[:left])


class FileResponse(Response):
    """An answer with a file, which is never whole in memory."""

    def __init__(self, content: Content, headers: dict[str, str], media_type: str) -> None:
        super().__init__(None, 200, {**headers, "content-length": str(len(content))}, media_type)
        self.content = content

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Send the file."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for piece in self.content.pieces():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def padded_pdf(file: bytes, size: int) -> Content:
    """Return a PDF of this size, with comments in front of its table of offsets; a larger one as it is."""
    if size < len(file) + _LINE:
        # Too little for a longer offset: blank lines in front of %%EOF.
        return Content(file[: -len(_PDF_END)] + b"\n" * (size - len(file)) + _PDF_END)
    start = file.rindex(b"\nxref\n") + 1
    table = file[start : file.rindex(b"startxref\n")]
    # The offset has as many digits as the size, so that they do not depend on the padding.
    digits = len(str(size))
    tail = b"\n%bstartxref\n%0*d\n%b"
    padding = size - start - len(tail % (table, digits, 0, _PDF_END))
    return Content(file[:start], padding, tail % (table, digits, start + padding + 1, _PDF_END))


def padded_workbook(archive: bytes, size: int) -> Content:
    """Return a workbook of this size: the archive, which has no comment, with one more part; a larger one as it is."""
    name = PADDING_PART.encode("ascii")
    padding = size - len(archive) - _HEADER.size - _ENTRY.size - 2 * len(name)
    signature, disk, start_disk, _, count, length, offset, _ = _END.unpack(archive[-_END.size :])
    if padding < 0:
        comment = _block()[: max(0, size - len(archive))]
        end = _END.pack(signature, disk, start_disk, count, count, length, offset, len(comment))
        return Content(archive[: -_END.size] + end + comment)
    described = (*_FIRST_OF_1980, _checksum(padding), padding, padding, len(name), 0)
    header = _HEADER.pack(b"PK\3\4", _VERSION, 0, 0, *described) + name
    entry = _ENTRY.pack(b"PK\1\2", _VERSION, _VERSION, 0, 0, *described, 0, 0, 0, 0, offset) + name
    moved = offset + len(header) + padding
    end = _END.pack(signature, disk, start_disk, count + 1, count + 1, length + len(entry), moved, 0)
    return Content(archive[:offset] + header, padding, archive[offset : -_END.size] + entry + end)


@lru_cache(maxsize=1)
def _block() -> bytes:
    # Lines of random bytes, each of which is a comment in a PDF.
    width = _LINE - len(b"%\n")
    random_bytes = random.Random(0).randbytes(_BLOCK // _LINE * width).translate(_WITHOUT_LINE_ENDS)
    return b"".join(b"%%%b\n" % random_bytes[at : at + width] for at in range(0, len(random_bytes), width))


def _repeated(size: int) -> Iterator[bytes]:
    block = _block()
    for _ in range(size // _BLOCK):
        yield block
    yield block[: size % _BLOCK]


@lru_cache(maxsize=1024)
def _checksum(size: int) -> int:
    checksum = 0
    for piece in _repeated(size):
        checksum = zlib.crc32(piece, checksum)
    return checksum


_WITHOUT_LINE_ENDS: Final = bytes.maketrans(b"\r\n", b"\f\v")
