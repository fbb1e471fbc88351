"""Links that expire, and the files behind them: workbooks of transactions, and PDFs of statements."""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import json
import secrets
import zipfile
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal
from xml.sax.saxutils import escape

from starlette.responses import Response

from .answers import Bodies, accounts_in
from .padding import PADDING_TYPE, Content, FileResponse, padded_pdf, padded_workbook

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .clock import Clock
    from .world import World

Kind = Literal["xlsx", "pdf"]

# Where the links point to, below the sandbox's own address.
PREFIX: Final = "/sandbox/files/"
_VALID_FOR: Final = timedelta(hours=1)
_MEDIA_TYPES: Final[dict[Kind, str]] = {
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "pdf": "application/pdf",
}
_COLUMNS: Final = (
    "date",
    "transaction_note",
    "transaction_type",
    "transaction_channel",
    "category",
    "amount",
    "balance",
)
_XML: Final = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
_OOXML: Final = "http://schemas.openxmlformats.org"
_CONTENT: Final = "application/vnd.openxmlformats-officedocument.spreadsheetml"


@dataclass(frozen=True)
class File:
    """What a link points to: the report of an account, by its number, or the PDF of a statement, by its id."""

    kind: Kind
    entity_id: str
    subject: str


class Links:
    """Makes and reads links. They are signed and not stored, so they need no memory and cannot be guessed."""

    def __init__(self, clock: Clock, origin: Callable[[], str]) -> None:
        self._clock = clock
        self.origin = origin
        self._secret = secrets.token_bytes(32)

    def make(self, kind: Kind, entity_id: str, subject: str) -> str:
        """Return a new link, valid for one hour on the sandbox's clock."""
        expires = (self._clock() + _VALID_FOR).timestamp()
        # The random part makes each link a new one, also within one moment of a simulated clock.
        claims = json.dumps([kind, entity_id, subject, expires, secrets.token_hex(8)]).encode()
        return f"{self.origin()}{PREFIX}{_text(claims)}.{_text(self._sign(claims))}.{kind}"

    def read(self, token: str) -> File | None:
        """Return what the link of this token points to, or None for an invalid or expired one."""
        try:
            claims, signature, extension = (part.encode("ascii") for part in token.split("."))
            plain = base64.urlsafe_b64decode(claims + b"==")
            signed = base64.urlsafe_b64decode(signature + b"==")
        except ValueError:
            return None
        if not hmac.compare_digest(signed, self._sign(plain)):
            return None
        kind, entity_id, subject, expires, _ = json.loads(plain)
        is_valid = self._clock().timestamp() < expires and extension.decode() == kind
        return File(kind, entity_id, subject) if is_valid else None

    def _sign(self, claims: bytes) -> bytes:
        return hmac.digest(self._secret, claims, hashlib.sha256)


class Files:
    """Answers the fetches of files, which need no keys."""

    def __init__(self, world: World, links: Links, bodies: Bodies) -> None:
        self._world = world
        self._links = links
        self._bodies = bodies

    def respond(self, token: str, headers: dict[str, str]) -> Response:
        """Return the file of a token; as an object store does, answer 403 with XML for a link that is not valid."""
        file = self._links.read(token)
        if file is None:
            return _refuse(403, "AccessDenied", "This link is not valid, or it has expired.", headers)
        content = self._report(file) if file.kind == "xlsx" else self._pdf(file)
        if content is None:
            return _refuse(404, "NoSuchKey", "There is no such file.", headers)
        return FileResponse(content, headers, _MEDIA_TYPES[file.kind])

    def _report(self, file: File) -> Content | None:
        state = self._world.state(file.entity_id, "xlsx_report", only=int(file.subject))
        accounts = [] if state is None else accounts_in(state)
        if not accounts:
            return None
        (account,) = accounts
        size = max(statement.file_bytes or 0 for statement in account.shape.statements)
        # Kept without its padding.
        archive = self._bodies.get(("workbook", state), lambda: workbook(account.rows, padded=size > 0))
        return padded_workbook(archive, size) if size else Content(archive)

    def _pdf(self, file: File) -> Content | None:
        statement = self._world.pdf(file.entity_id, file.subject)
        if statement is None:
            return None
        lines = ["INVENTED BANK STATEMENT", f"Statement {file.subject}", f"Entity {file.entity_id}"]
        return padded_pdf(pdf(lines), statement.file_bytes or 0)


def workbook(rows: Sequence[dict[str, Any]], *, padded: bool = False) -> bytes:
    """Return a workbook with one sheet: a header, and one row for each transaction.

    :param padded: declare the part that :func:`~.padding.padded_workbook` adds.
    """
    lines = [_sheet_row(_COLUMNS), *(_sheet_row([row[name] for name in _COLUMNS]) for row in rows)]
    main = f"{_OOXML}/spreadsheetml/2006/main"
    office = f"{_OOXML}/officeDocument/2006/relationships"
    package = f"{_OOXML}/package/2006"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f"{PADDING_TYPE if padded else ''}"
        f'<Override PartName="/xl/workbook.xml" ContentType="{_CONTENT}.sheet.main+xml"/>'
        f'<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{_CONTENT}.worksheet+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships">'
        f'<Relationship Id="rId1" Type="{office}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{office}">'
        '<sheets><sheet name="Transactions" sheetId="1" r:id="rId1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{package}/relationships">'
        f'<Relationship Id="rId1" Type="{office}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{main}"><sheetData>{"".join(lines)}</sheetData></worksheet>',
    }
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, part in parts.items():
            archive.writestr(name, _XML + part)
    return file.getvalue()


def pdf(lines: Sequence[str]) -> bytes:
    """Return a PDF of one page with these lines. It is not encrypted."""
    shown = " ".join(f"({_pdf_text(line)}) Tj T*" for line in lines)
    content = f"BT /F1 12 Tf 16 TL 72 770 Td {shown} ET".encode("ascii")
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R /Resources 6 0 R >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        b"<< /Font << /F1 5 0 R >> >>",
    ]
    file = b"%PDF-1.4\n"
    offsets = []
    for number, one in enumerate(objects, 1):
        offsets.append(len(file))
        file += b"%d 0 obj\n%s\nendobj\n" % (number, one)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    start = len(file)
    file += b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(objects) + 1, table)
    return file + b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)


def _refuse(status: int, code: str, message: str, headers: dict[str, str]) -> Response:
    body = f"{_XML}<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Response(body, status, headers=headers, media_type="application/xml")


def _sheet_row(values: Sequence[object]) -> str:
    return f"<row>{''.join(map(_cell, values))}</row>"


def _cell(value: object) -> str:
    if isinstance(value, int | float):
        return f"<c><v>{value}</v></c>"
    return f'<c t="inlineStr"><is><t>{escape(str(value))}</t></is></c>'


def _pdf_text(line: str) -> str:
    visible = "".join(letter if " " <= letter <= "~" else "?" for letter in line)
    return visible.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")


def _text(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode("ascii")
