"""Reports and PDFs: links that expire and need no keys, and the files behind them."""

from __future__ import annotations

import base64
import io
import json
import re
import tracemalloc
import zipfile
import zlib
from xml.etree import ElementTree as ET

import pytest
import requests

from airflow_provider_bankconnect.sandbox import Fault, Statement
from airflow_provider_bankconnect.sandbox.files import pdf, workbook
from airflow_provider_bankconnect.sandbox.padding import padded_pdf, padded_workbook

MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
HOUR = 3600
DAY = 86400


def report_link(client):
    (report,) = client.analysis("e", "xlsx_report")["reports"]
    return report["link"]


def statements(client):
    return client.analysis("e", "get_pdfs")["statements"]


def fetch(client, link):
    """Fetch without keys."""
    with requests.Session() as session:
        session.trust_env = False
        return session.get(link, verify=client.box.ca_file, timeout=60)


def sheet(content):
    """Return the rows of the workbook's only sheet."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        for name in archive.namelist():
            ET.fromstring(archive.read(name))  # noqa: S314 - made here
        root = ET.fromstring(archive.read("xl/worksheets/sheet1.xml"))  # noqa: S314 - made here
    return [
        [cell.findtext(f".//{MAIN}t") or cell.findtext(f"{MAIN}v") for cell in row] for row in root.iter(f"{MAIN}row")
    ]


@pytest.fixture
def customer(client):
    """A client whose entity ``e`` has a net banking statement and a PDF."""
    client.box.play(Statement(link_id="l", entity_id="e", statement_id="s", transactions=5))
    client.box.play(Statement(entity_id="e", statement_id="t", mode="pdf", pdf_password="open sesame", transactions=5))
    return client


def test_a_report_is_a_workbook_with_the_transactions(customer):
    answer = fetch(customer, report_link(customer))
    assert answer.headers["content-type"] == "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
    header, *rows = sheet(answer.content)
    transactions = customer.analysis("e")["transactions"]
    assert len(rows) == len(transactions) == 10
    for row, transaction in zip(rows, transactions, strict=True):
        assert row == [str(transaction[name]) for name in header]


def test_a_workbook_holds_special_characters():
    row = dict.fromkeys(
        ("date", "transaction_note", "transaction_type", "transaction_channel", "category", "amount", "balance"),
        '<a & "b"> ü 界',
    )
    assert sheet(workbook([row]))[1] == [*row.values()]


def test_get_pdfs_lists_each_uploaded_statement_with_its_password(customer, clock):
    customer.box.play(Statement(entity_id="e", statement_id="failed", mode="pdf", progress="failed"))
    customer.box.play(Statement(entity_id="e", statement_id="later", begins=5, after=10))
    account_id = customer.analysis("e")["accounts"][0]["account_id"]
    found = statements(customer)
    assert [(one["statement_id"], one["pdf_password"]) for one in found] == [
        ("s", None), ("t", "open sesame"), ("failed", None)
    ]  # fmt: skip
    for one in found:
        assert one.keys() == {"statement_id", "account_id", "bank_name", "pdf_url", "pdf_password"}
        assert (one["account_id"], one["bank_name"]) == (account_id, "sandbox_bank")
    clock.advance(5)
    assert [one["statement_id"] for one in statements(customer)][-1] == "later"


def test_an_entity_without_statements_has_no_pdfs(client):
    client.box.play(Statement(link_id="l", entity_id="e", statement_id="", progress="failed"))
    assert client.analysis("e", "get_pdfs") == {"statements": []}


def test_a_pdf_has_one_page_and_correct_offsets(customer):
    answer = fetch(customer, statements(customer)[1]["pdf_url"])
    assert answer.headers["content-type"] == "application/pdf"
    content = answer.content
    assert content.count(b"/Type /Page ") == 1
    assert b"(Statement t)" in content
    check_pdf(content)


def check_pdf(content):
    assert content.startswith(b"%PDF-1.")
    assert content.endswith(b"%%EOF\n")
    assert [content.count(word) for word in (b"%%EOF", b"startxref")] == [1, 1]
    start = int(re.search(rb"startxref\n(\d+)", content)[1])
    assert content[start:].startswith(b"xref\n")
    for number, offset in enumerate(re.findall(rb"(\d{10}) 00000 n", content), 1):
        assert content[int(offset) :].startswith(b"%d 0 obj" % number)


def test_a_pdf_escapes_its_text():
    assert rb"(\(a\\b\) ?) Tj" in pdf([r"(a\b) ü"])


def test_each_answer_has_a_new_link_and_all_of_them_work(customer):
    links = [report_link(customer) for _ in range(3)] + [statements(customer)[0]["pdf_url"] for _ in range(3)]
    assert len(set(links)) == 6
    assert all(link.startswith(f"https://localhost:{customer.box.port}/sandbox/files/") for link in links)
    assert [fetch(customer, link).status_code for link in links] == [200] * 6


@pytest.mark.parametrize("kind", ["xlsx", "pdf"])
def test_a_link_expires_after_one_hour(customer, clock, kind):
    def link():
        return report_link(customer) if kind == "xlsx" else statements(customer)[0]["pdf_url"]

    old = link()
    clock.advance(HOUR - 1)
    assert fetch(customer, old).status_code == 200
    clock.advance(1)
    expired = fetch(customer, old)
    assert (expired.status_code, expired.headers["content-type"]) == (403, "application/xml")
    assert "<Code>AccessDenied</Code>" in expired.text
    assert fetch(customer, link()).status_code == 200


def forged(link):
    """Yield changes of a link that its signature does not cover."""
    base, _, token = link.rpartition("/")
    claims, signature, extension = token.split(".")
    kind, entity_id, subject, expires, nonce = json.loads(base64.urlsafe_b64decode(claims + "=="))
    for values in ([kind, "other", subject, expires, nonce], [kind, entity_id, subject, expires + HOUR, nonce]):
        changed = base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")
        yield f"{base}/{changed}.{signature}.{extension}"
    yield f"{base}/{claims}.{'A' * len(signature)}.{extension}"
    yield f"{base}/{claims}.{signature}.pdf"
    yield f"{base}/{claims}.{signature}"
    yield f"{base}/%C3%BC.{signature}.{extension}"
    yield f"{base}/{claims}"
    yield f"{base}/"


def test_a_changed_link_is_refused(customer):
    assert {fetch(customer, link).status_code for link in forged(report_link(customer))} == {403}


def test_a_link_of_another_sandbox_is_refused(customer, serve):
    with serve(statements=[Statement(entity_id="e")]) as other:
        link = report_link(other).replace(str(other.box.port), str(customer.box.port))
    assert fetch(customer, link).status_code == 403


def test_the_pdf_url_is_blank_thirty_days_after_the_upload(customer, clock):
    customer.box.play(Statement(entity_id="e", statement_id="old", after=-40 * DAY))
    clock.advance(30 * DAY - 1)
    last = statements(customer)[0]["pdf_url"]
    clock.advance(1)
    assert [one["pdf_url"] for one in statements(customer)] == ["", "", ""]
    assert statements(customer)[1]["pdf_password"] == "open sesame"
    assert fetch(customer, last).status_code == 404


def test_the_file_of_a_report_without_transactions_is_a_404(customer):
    link = report_link(customer)
    customer.box.progress("e", [], analysis="xlsx_report")
    assert fetch(customer, link).status_code == 404


def test_fetches_are_logged_without_keys_even_if_a_client_sends_them(customer):
    customer.session.get(report_link(customer), timeout=60)
    fetch(customer, report_link(customer))
    with_keys, without = customer.box.calls("file")
    assert with_keys.headers["x-api-key"] == with_keys.headers["server-hash"] == "***"
    assert "x-api-key" not in without.headers


def test_the_event_log_holds_neither_links_nor_passwords_nor_keys(serve):
    lines = []
    statement = Statement(entity_id="e", mode="pdf", pdf_password="open sesame")
    with serve(on_event=lines.append, statements=[statement]) as client:
        (found,) = statements(client)
        fetch(client, found["pdf_url"])
        secrets = ("open sesame", found["pdf_url"].rpartition("/")[2], client.box.api_key, client.box.server_hash)
    text = "\n".join(lines)
    assert "GET file answered 200" in text
    assert not [secret for secret in secrets if secret in text]
    assert "open sesame" not in repr(statement)


def test_faults_apply_to_files(customer):
    customer.box.fault(Fault(kind="status", call="file", status=503, times=1))
    link = report_link(customer)
    assert [fetch(customer, link).status_code for _ in range(2)] == [503, 200]
    customer.box.fault(Fault(kind="half", call="file"))
    with pytest.raises(requests.RequestException):
        fetch(customer, link)


def test_an_entity_of_special_characters_has_files(client):
    client.box.play(Statement(entity_id="ü/界 (e)", statement_id="s)\\", transactions=3))
    (found,) = client.get("entity/%C3%BC%2F%E7%95%8C%20(e)/get_pdfs/").json()["statements"]
    assert fetch(client, found["pdf_url"]).status_code == 200
    (report,) = client.get("entity/%C3%BC%2F%E7%95%8C%20(e)/xlsx_report/").json()["reports"]
    assert len(sheet(fetch(client, report["link"]).content)) == 4


def test_the_report_of_an_account_holds_its_transactions_only(client):
    for number in range(3):
        client.box.play(Statement(entity_id="e", statement_id=f"s{number}", account=number, transactions=number + 3))
    accounts = client.analysis("e", "accounts")["accounts"]
    for one, report in zip(accounts, client.analysis("e", "xlsx_report")["reports"], strict=True):
        header, *rows = sheet(fetch(client, report["link"]).content)
        answer = client.get(f"entity/e/transactions/?account_id={one['account_id']}").json()
        assert rows == [[str(row[name]) for name in header] for row in answer["transactions"]]
    assert [one["account_id"] for one in statements(client)] == [one["account_id"] for one in accounts]


@pytest.fixture
def padded(client):
    """A client whose entity ``e`` has an account with statements of 100,000, 300,000 and 10 bytes."""
    for number, size in enumerate((100_000, 300_000, 10)):
        client.box.play(Statement(entity_id="e", statement_id=f"s{number}", file_bytes=size, transactions=5))
    return client


def test_files_have_the_size_of_their_statement_and_workbooks_the_largest(padded):
    report = fetch(padded, report_link(padded))
    assert len(report.content) == int(report.headers["content-length"]) == 300_000
    assert len(sheet_of_padded(report.content)) == 16
    *large, small = (fetch(padded, one["pdf_url"]).content for one in statements(padded))
    assert [len(content) for content in large] == [100_000, 300_000]
    assert 10 < len(small) < 1_000
    for content in (*large, small):
        check_pdf(content)
    for content in (report.content, *large):
        assert len(zlib.compress(content)) > 0.97 * len(content)


def sheet_of_padded(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        types = archive.read("[Content_Types].xml").decode()
        (part,) = (one for one in archive.infolist() if not one.filename.endswith((".xml", ".rels")))
        assert part.compress_type == zipfile.ZIP_STORED
        assert f'Extension="{part.filename.rpartition(".")[2]}"' in types
        return list(ET.fromstring(archive.read("xl/worksheets/sheet1.xml")).iter(f"{MAIN}row"))  # noqa: S314 - made here


def test_only_a_padded_workbook_declares_padding():
    assert b"bin" not in zipfile.ZipFile(io.BytesIO(workbook([]))).read("[Content_Types].xml")


@pytest.mark.parametrize("more", [-1, 0, 1, 2, 100, 127, 128, 129, 130, 200, 262_144])
def test_padding_fills_any_gap(more):
    file, archive = pdf(["a"]), workbook([], padded=True)
    content = b"".join(padded_pdf(file, len(file) + more).pieces())
    assert len(content) == len(file) + max(0, more)
    check_pdf(content)
    content = b"".join(padded_workbook(archive, len(archive) + more).pieces())
    assert len(content) == len(archive) + max(0, more)
    assert zipfile.ZipFile(io.BytesIO(content)).testzip() is None


def test_large_files_need_little_memory():
    size = 64 * 2**20
    list(padded_pdf(pdf([]), size).pieces(1))
    tracemalloc.start()
    try:
        for content in (padded_pdf(pdf([]), size), padded_workbook(workbook([], padded=True), size)):
            assert sum(map(len, content.pieces())) == size
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_the_fault_half_sends_the_first_half_of_a_padded_file(padded):
    link = report_link(padded)
    whole = fetch(padded, link).content
    padded.box.fault(Fault(kind="half", call="file"))
    pieces = []
    with padded.session.get(link, stream=True, timeout=60) as answer, pytest.raises(requests.RequestException):
        pieces.extend(answer.iter_content(10_000))
    received = b"".join(pieces)
    assert received == whole[: len(received)]
    assert len(received) > 140_000
