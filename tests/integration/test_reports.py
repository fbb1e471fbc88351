"""Reports, PDFs and analyses are written to an object storage whole, with no link and no password in sight."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import stat
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from airflow.providers.common.compat.sdk import ObjectStoragePath
from hostile import Hostile
from hostile_cases import OK, always, whole

from airflow_provider_bankconnect import api
from airflow_provider_bankconnect.hooks import links
from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook
from airflow_provider_bankconnect.hooks.links import Links
from airflow_provider_bankconnect.operators.bankconnect import BankConnectReportToStorageOperator
from airflow_provider_bankconnect.sandbox import Fault, Statement
from airflow_provider_bankconnect.sandbox.files import pdf, workbook
from airflow_provider_bankconnect.storage import Pdf, Workbook, file_name

PASSWORD = "planted-password-5e8a"
CONTEXT = {"ti": SimpleNamespace(dag_id="d", run_id="r", task_id="keep", map_index=-1)}
pytestmark = pytest.mark.usefixtures("connection")


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    """Try again without a pause."""
    monkeypatch.setattr(api, "MAX_BACKOFF", 0.0)


@pytest.fixture
def customer(box):
    """An entity with a statement from net banking, and a PDF with a password."""
    box.play(Statement(link_id="l", entity_id="e1", statement_id="s1", after=-10))
    box.play(Statement(entity_id="e1", statement_id="s2", mode="pdf", after=-5, pdf_password=PASSWORD))
    return box


def operator(path, **more):
    return BankConnectReportToStorageOperator(task_id="keep", entity_id="e1", path=f"file://{path}", **more)


def write(path, **more):
    return operator(path, **more).execute(CONTEXT)


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def raw(box, call):
    keys = {"x-api-key": box.api_key, "server-hash": box.server_hash}
    return requests.get(f"{box.url}/entity/e1/{call}/", headers=keys, verify=box.ca_file, timeout=60)


def test_everything_is_written_and_listed(customer, tmp_path):
    rows = write(tmp_path, what=["xlsx", "pdf"], analyses=["transactions", "identity"])

    account = raw(customer, "accounts").json()["accounts"][0]["account_id"]
    found = files(tmp_path)
    assert {row["path"].removeprefix(f"file://{tmp_path}/"): row["what"] for row in rows} == {
        "e1/transactions.json": "transactions",
        "e1/identity.json": "identity",
        f"e1/report-{account}.xlsx": "xlsx",
        "e1/statement-s1.pdf": "pdf",
        "e1/statement-s2.pdf": "pdf",
    }
    assert [list(row) for row in rows] == [["what", "account_id", "statement_id", "path", "bytes", "sha256"]] * 5
    for row in rows:
        content = found.pop(row["path"].removeprefix(f"file://{tmp_path}/"))
        assert (row["bytes"], row["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert not found
    assert [(row["account_id"], row["statement_id"]) for row in rows] == [
        (None, None),
        (None, None),
        (account, None),
        (account, "s1"),
        (account, "s2"),
    ]


def test_an_analysis_is_written_byte_for_byte(customer, tmp_path):
    write(tmp_path, what=[], analyses="top_credits_debits")
    assert files(tmp_path) == {"e1/top_credits_debits.json": raw(customer, "top_credits_debits").content}


@pytest.mark.usefixtures("customer")
def test_a_second_run_writes_the_same_files(tmp_path):
    first = write(tmp_path, what=["xlsx", "pdf"], analyses=["transactions"])
    before = files(tmp_path)
    assert write(tmp_path, what=["xlsx", "pdf"], analyses=["transactions"]) == first
    assert files(tmp_path) == before


@pytest.mark.usefixtures("customer")
def test_without_overwrite_an_existing_file_is_refused_and_nothing_is_written(tmp_path):
    (row,) = write(tmp_path)
    Path(row["path"].removeprefix("file://")).write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=rf"{re.escape(row['path'])} exists already, and overwrite is False"):
        write(tmp_path, analyses=["transactions"], overwrite=False)
    assert list(files(tmp_path).values()) == [b"mine"]


def test_one_account_only(customer, tmp_path):
    account = raw(customer, "accounts").json()["accounts"][0]["account_id"]
    rows = write(tmp_path, what=["xlsx", "pdf"], analyses=["transactions"], account_id=account)
    assert [row["path"].rpartition("/")[2] for row in rows] == [
        f"transactions-{account}.json",
        f"report-{account}.xlsx",
        "statement-s1.pdf",
        "statement-s2.pdf",
    ]
    with pytest.raises(api.BankConnectNotFoundError, match="no file of account_id 'another', but 1 of other"):
        write(tmp_path, what=["xlsx", "pdf"], account_id="another")


@pytest.mark.usefixtures("customer")
def test_passwords_are_written_only_as_sidecars(tmp_path):
    rows = write(tmp_path / "without", what="pdf")
    assert PASSWORD.encode() not in b"".join(files(tmp_path / "without").values())

    assert [{**row, "path": None} for row in write(tmp_path / "with", what="pdf", pdf_passwords="sidecar")] == [
        {**row, "path": None} for row in rows
    ]
    sidecar = tmp_path / "with" / "e1" / "statement-s2.password.json"
    assert json.loads(sidecar.read_text()) == {"statement_id": "s2", "pdf_password": PASSWORD}
    assert stat.S_IMODE(sidecar.stat().st_mode) == 0o600
    assert sorted(path.name for path in sidecar.parent.iterdir()) == [
        "statement-s1.pdf",
        "statement-s2.password.json",
        "statement-s2.pdf",
    ]


@pytest.mark.usefixtures("customer")
def test_passwords_are_masked_as_soon_as_they_are_read(monkeypatch):
    masked = []
    monkeypatch.setattr("airflow_provider_bankconnect.hooks.bankconnect.mask_secret", masked.append)
    with BankConnectHook() as hook:
        found = hook.get_pdfs("e1")
    assert PASSWORD in masked
    assert [one.password for one in found] == [None, PASSWORD]
    assert PASSWORD not in repr(found)
    assert not any(one.link in repr(found) for one in found)


def test_neither_links_nor_passwords_are_in_the_log_or_in_the_result(customer, tmp_path, log, caplog):
    caplog.set_level(logging.DEBUG)
    customer.fault(Fault(kind="status", call="file", status=503, times=1))
    customer.fault(Fault(kind="reset", call="file", times=1, after=0))
    rows = write(tmp_path, what=["xlsx", "pdf"])
    customer.fault(Fault(kind="status", call="file", status=403, times=9))
    with pytest.raises(api.BankConnectLinkError) as refused:
        write(tmp_path, what=["xlsx", "pdf"])

    shown = f"{log()} {caplog.text} {rows} {refused.value!r} {vars(refused.value)}"
    assert "trying again in" in shown
    assert PASSWORD not in shown
    # The signed part of each link that was used.
    tokens = [record.path.rpartition("/")[2] for record in customer.calls("file")]
    assert len(tokens) > 4
    assert not [token for token in tokens if token[:40] in shown]


# What is not ready, or no longer there


def test_reports_that_are_not_ready_are_tried_again_by_the_task(box, tmp_path):
    box.play(Statement(entity_id="e1", statement_id="s1", mode="pdf", after=-5, later={"xlsx_report": 900}))
    with pytest.raises(api.BankConnectNotReadyError, match="xlsx_report: HTTP 200: 1 of 1 statements are still being"):
        write(tmp_path, analyses=["transactions"])
    assert not files(tmp_path)


def test_an_entity_whose_statements_all_failed_has_no_report(box, tmp_path):
    box.play(Statement(entity_id="e1", statement_id="s1", mode="pdf", after=-5, progress="failed"))
    with pytest.raises(api.BankConnectNotReadyError, match="its list 'reports' is still empty; no statement is"):
        write(tmp_path)


def test_an_unknown_entity_is_an_error(tmp_path):
    with pytest.raises(api.BankConnectNotFoundError, match="get_pdfs: HTTP 404"):
        write(tmp_path, what="pdf")


def test_a_pdf_that_bankconnect_no_longer_keeps_has_a_row_without_a_path(customer, tmp_path, log):
    month = 31 * 86_400
    customer.play(Statement(entity_id="e1", statement_id="old", mode="pdf", begins=-month, after=-month + 60))
    rows = write(tmp_path, what="pdf")
    assert [row for row in rows if row["statement_id"] == "old"] == [
        {**rows[-1], "statement_id": "old", "path": None, "bytes": None, "sha256": None}
    ]
    assert len(files(tmp_path)) == 2
    assert "There is no link to the PDF of statement 'old': BankConnect keeps a PDF for 30 days" in log()


@pytest.mark.parametrize("status", [400, 403, 404])
def test_a_link_that_has_expired_is_fetched_anew_once(customer, tmp_path, status):
    customer.fault(Fault(kind="status", call="file", status=status, times=1))
    assert len(write(tmp_path, what="xlsx")) == 1
    assert len(customer.calls("xlsx_report")) == 2

    customer.fault(Fault(kind="status", call="file", status=status))
    with pytest.raises(api.BankConnectLinkError, match=rf"HTTP {status}: the link is refused, or has expired"):
        write(tmp_path / "again", what="xlsx")
    assert len(customer.calls("file")) == 4
    assert not files(tmp_path / "again")


@pytest.mark.parametrize("fault", [{"kind": "reset"}, {"kind": "half"}, {"kind": "status", "status": 429}])
def test_a_fetch_that_fails_on_the_way_is_tried_again(customer, tmp_path, fault):
    customer.fault(Fault(**fault, call="file", times=2))
    (row,) = write(tmp_path)
    assert files(tmp_path)[row["path"].removeprefix(f"file://{tmp_path}/")].startswith(b"PK")


# What a link may lead to


def fetched(behave, tmp_path, monkeypatch, *, link=None, max_bytes=2**20, call="xlsx_report"):
    """Fetch a link that leads to this server."""
    found = []
    with Hostile(behave) as server:
        monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", server.connection(tmp_path, timeout=2))
        with BankConnectHook() as hook:
            fetching = Links("bankconnect_default", hook.settings, max_bytes)
            try:
                fetching.fetch(call, link or f"{server.url}/secret-path?secret-query", found.append)
            finally:
                fetching.close()
                for request in server.requests:
                    assert b"planted" not in request.lower()
    return b"".join(found)


def redirect(url):
    return always(b"HTTP/1.1 302 X\r\nContent-Length: 0\r\nLocation: " + url.encode() + b"\r\n\r\n")


XLSX = workbook([])


@pytest.mark.parametrize(
    ("behave", "says"),
    [
        (redirect("https://127.0.0.1:9/"), "redirects to '127.0.0.1', which is private"),
        (redirect("https://169.254.169.254/latest"), "redirects to '169.254.169.254', which is private"),
        (redirect("https://localhost:9/"), "redirects to 'localhost', which is private"),
        (redirect("https://[::ffff:10.0.0.1]/"), "which is private"),
        (redirect("http://files.example.com/"), "a redirect of the link must be an https:// URL"),
        (redirect("https://[::1/"), "a redirect of the link is not a URL"),
        (redirect("/again"), "redirects to '127.0.0.1', which is private"),
        (always(whole(XLSX, b"HTTP/1.1 206 X\r\n")), "HTTP 206: expected 200"),
        (always(OK + b"Connection: close\r\n\r\n" + XLSX), "the answer has no length"),
        (always(OK + b"Content-Length: many\r\n\r\n" + XLSX), "the answer has no length"),
        (redirect("https://127.0.0.1\\@files.example.com/"), "must be an https:// URL"),
        (redirect("https://[fec0::1]/"), "which is private"),
        (always(OK + b"Content-Length: 2000000\r\n\r\n"), r"larger than 1 MiB \(max_file_bytes\)"),
        (
            always(OK + b"Transfer-Encoding: chunked\r\n\r\n" + (b"40000\r\n" + b"x" * 0x40000 + b"\r\n") * 8),
            r"larger than 1 MiB \(max_file_bytes\)",
        ),
    ],
)
def test_a_link_that_may_not_be_followed_is_an_error(behave, says, tmp_path, monkeypatch):
    with pytest.raises(api.BankConnectLinkError, match=says) as refused:
        fetched(behave, tmp_path, monkeypatch)
    assert "secret" not in f"{refused.value!r} {refused.value.__cause__} {refused.value.__context__}"


def test_a_redirect_to_a_name_with_a_private_address_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(links, "is_private_host", lambda _: False)
    with pytest.raises(api.BankConnectLinkError, match="redirects to 'localhost', which is private"):
        fetched(redirect("https://localhost:9/"), tmp_path, monkeypatch)


@pytest.mark.parametrize("link", ["http://127.0.0.1/f", "ftp://x/f", "nothing", "https://"])
def test_a_link_that_is_no_https_url_is_an_error(link, tmp_path, monkeypatch):
    with pytest.raises(api.BankConnectLinkError, match="the link must be an https:// URL, and is none"):
        fetched(always(b""), tmp_path, monkeypatch, link=link)


def test_too_many_redirects_end(tmp_path, monkeypatch):
    monkeypatch.setattr(links, "is_private_host", lambda _: False)
    monkeypatch.setattr("airflow_provider_bankconnect.hooks.addresses.refuse_private", lambda _: None)
    with pytest.raises(api.BankConnectLinkError, match="the link leads to more than 3 redirects"):
        fetched(redirect("/again"), tmp_path, monkeypatch)


def test_a_file_that_stops_arriving_is_given_up(tmp_path, monkeypatch):
    def stopping(peer):
        peer.read_request()
        peer.send(OK + b"Content-Length: 1000\r\n\r\n" + XLSX[:100])
        peer.stay_silent()

    with pytest.raises(api.BankConnectConnectionError, match=r"xlsx_report file from 127.0.0.1: no answer in time"):
        fetched(stopping, tmp_path, monkeypatch)


def reports_are(box, *reports):
    """Have BankConnect answer these reports, once."""
    progress = [{"statement_id": "s", "status": "completed"}]
    body = json.dumps({"entity_id": "e1", "progress": progress, "reports": reports})
    box.fault(Fault(kind="status", call="xlsx_report", status=200, body=body, times=1))


def test_what_is_no_report_is_not_kept(customer, tmp_path, monkeypatch):
    for number, body in enumerate([b"<html>", b"PK\x03\x04 no workbook", pdf([]), b"", XLSX[:-30]]):
        with Hostile(always(whole(body))) as server:
            reports_are(customer, {"account_id": "a", "link": f"{server.url}/f"})
            ca_file = tmp_path / f"{number}.pem"
            server._ca.write_to_path(str(ca_file))
            ca_file.write_bytes(ca_file.read_bytes() + Path(customer.ca_file).read_bytes())
            connection = json.dumps(customer.connection_with(str(ca_file)))
            monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", connection)
            with pytest.raises(api.BankConnectLinkError, match="it is no Excel workbook, or not a whole one"):
                write(tmp_path / "kept")
            ca_file.unlink()
    assert not files(tmp_path / "kept")


@pytest.mark.parametrize(
    ("start", "is_pdf"), [(b"%PDF-1.7 ...", True), (b"\xef\xbb\xbf\n%PDF-1.4", True), (b"PK", False)]
)
def test_a_pdf_begins_as_one(start, is_pdf):
    content = Pdf()
    for byte in start:
        content.feed(bytes([byte]))
    assert content.problem() == (None if is_pdf else "it is no PDF")


@pytest.mark.parametrize("size", [1, 1000, 2**20])
def test_a_workbook_is_known_by_its_end_in_pieces_of_any_size(size):
    content, book = Workbook(), workbook([])
    for start in range(0, len(book), size):
        content.feed(book[start : start + size])
    assert content.problem() is None


def test_a_report_that_is_listed_twice_is_an_error(customer, tmp_path):
    reports_are(customer, *({"account_id": "a", "link": f"{customer.url}/{number}"} for number in range(2)))
    with pytest.raises(api.BankConnectResponseError, match="xlsx_report: two files of the same account"):
        write(tmp_path)


def test_a_pdf_of_the_account_does_not_stand_for_its_report(customer, tmp_path):
    account = raw(customer, "accounts").json()["accounts"][0]["account_id"]
    reports_are(customer, {"account_id": "another", "link": f"{customer.url}/x"})
    with pytest.raises(api.BankConnectNotFoundError, match="xlsx_report: no file of account_id"):
        write(tmp_path, what=["xlsx", "pdf"], account_id=account)


def test_a_strange_header_of_the_host_does_not_log_the_link(tmp_path, monkeypatch, log, caplog):
    caplog.set_level(logging.DEBUG)
    head = OK + b"Content-Length: %d\r\nno colon in here\r\n\r\n" % len(XLSX)
    behave = always(head + XLSX)
    assert fetched(behave, tmp_path, monkeypatch) == XLSX
    assert "secret" not in f"{log()} {caplog.text}"


# The end of a task


@pytest.mark.parametrize("has_answered", [False, True])
def test_a_task_that_is_ended_does_not_wait_for_a_silent_host(customer, tmp_path, has_answered, monkeypatch):
    def silent(peer):
        peer.read_request()
        if has_answered:
            peer.send(OK + b"Content-Length: 1000\r\n\r\n" + XLSX[:100])
        task.on_kill()
        peer.stay_silent()

    with Hostile(silent) as server:
        reports_are(customer, {"account_id": "a", "link": f"{server.url}/f"})
        ca_file = tmp_path / "both.pem"
        server._ca.write_to_path(str(ca_file))
        ca_file.write_bytes(ca_file.read_bytes() + Path(customer.ca_file).read_bytes())
        monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", json.dumps(customer.connection_with(str(ca_file))))
        task = operator(tmp_path / "kept")
        began = time.monotonic()
        with pytest.raises(links.CancelledError, match="the task ends, so the rest of the files is not fetched"):
            task.execute(CONTEXT)
        # The connection's timeout is 30 s, for each of four attempts.
        assert time.monotonic() - began < 20
        assert len(server.requests) == 1
    assert not files(tmp_path / "kept")


def test_links_that_cannot_be_renewed_are_asked_for_once(customer, tmp_path):
    for number in range(8):
        customer.play(Statement(entity_id="e1", statement_id=f"more-{number}", mode="pdf", after=-5))
    customer.fault(Fault(kind="status", call="file", status=403))
    customer.fault(Fault(kind="status", call="get_pdfs", status=503, after=0.0))
    with pytest.raises(api.BankConnectServerError):
        write(tmp_path, what="pdf")
    customer.clear_faults()
    asked = len(customer.calls("get_pdfs"))

    links_of = BankConnectHook.get_pdfs

    def with_a_fault(hook, entity_id):
        found = links_of(hook, entity_id)
        customer.fault(Fault(kind="status", call="file", status=403))
        customer.fault(Fault(kind="status", call="get_pdfs", status=503))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BankConnectHook, "get_pdfs", with_a_fault)
        with pytest.raises(api.BankConnectServerError):
            write(tmp_path, what="pdf")
    # The first call, and one renewal with its three retries.
    assert len(customer.calls("get_pdfs")) - asked == 5


# The storage


@pytest.mark.usefixtures("customer")
def test_a_full_disk_leaves_nothing_and_a_retry_writes_whole_files(tmp_path, monkeypatch):
    write(tmp_path, what="pdf")
    before = files(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("fsspec.implementations.local.LocalFileOpener.write", failing_write(), raising=False)
        with pytest.raises(OSError, match="No space left on device"):
            write(tmp_path, what=["xlsx", "pdf"], analyses=["transactions"])
    assert files(tmp_path) == before
    rows = write(tmp_path, what=["xlsx", "pdf"], analyses=["transactions"])
    assert len(files(tmp_path)) == len(rows) == 4


def failing_write():
    """Return a write() that fails from the third file on."""
    seen = set()

    def failing(self, data):
        seen.add(self.path)
        if len(seen) > 2:
            raise OSError(28, "No space left on device")
        return self.f.write(data)

    return failing


@pytest.mark.usefixtures("customer")
def test_a_folder_without_the_right_to_write_keeps_nothing(tmp_path):
    (tmp_path / "e1").write_text("a file, and no folder")
    with pytest.raises(OSError, match="e1"):
        write(tmp_path)
    assert list(files(tmp_path)) == ["e1"]


@pytest.mark.usefixtures("customer")
def test_a_killed_try_leaves_temporary_names_that_the_next_one_removes(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            "airflow_provider_bankconnect.storage.Folder.commit", lambda self, *_, **__: self._temporary.clear()
        )
        write(tmp_path)
    (left,) = files(tmp_path)
    assert re.fullmatch(r"e1/\.report-.*\.xlsx\.[0-9a-f]{12}-[0-9a-f]{8}\.part", left)
    (tmp_path / "e1" / ".of-another-task.xlsx.0123456789ab-01234567.part").touch()
    (row,) = write(tmp_path)
    assert sorted(files(tmp_path)) == [
        "e1/.of-another-task.xlsx.0123456789ab-01234567.part",
        row["path"].removeprefix(f"file://{tmp_path}/"),
    ]


@pytest.mark.usefixtures("customer")
@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("ftps://x/y", "path: there is no filesystem for ftps://"),
        ("gs://bucket/reports", r"path: there is no filesystem for gs:// .*: install apache-airflow-providers-google "),
    ],
)
def test_a_storage_without_its_provider_names_the_package(path, says):
    with pytest.raises(ValueError, match=says):
        BankConnectReportToStorageOperator(task_id="keep", entity_id="e1", path=path).execute(CONTEXT)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"what": ["xls"]}, "what must be one or more of xlsx, pdf, not 'xls'"),
        ({"what": 7}, "what must be a list of words, not 7"),
        ({"what": []}, "what and analyses are both empty"),
        ({"analyses": ["xlsx_report"]}, r"give what=\('xlsx',\) instead"),
        ({"analyses": ["income"]}, "analysis must be one of transactions, "),
        ({"analyses": ["identity"], "account_id": "a"}, "account_id cannot be given for identity"),
        ({"pdf_passwords": "yes"}, "pdf_passwords must be 'sidecar' or None, not 'yes'"),
        ({"max_file_bytes": 0}, "max_file_bytes must be a whole number of bytes from 1, not 0"),
        ({"overwrite": "no"}, "overwrite must be True or False, not 'no'"),
        ({"path": "reports"}, "path must be a URL or an absolute path, not 'reports'"),
        ({"path": " "}, "path must not be blank"),
        ({"entity_id": ""}, "entity_id must not be blank"),
        ({"bankconnect_conn_id": 5}, "bankconnect_conn_id must be text"),
    ],
)
def test_known_mistakes_are_refused_at_parsing(arguments, says):
    given = {"entity_id": "e1", "path": "file:///reports", **arguments}
    with pytest.raises(ValueError, match=says):
        BankConnectReportToStorageOperator(task_id="keep", **given)


def test_ids_become_names_of_files_that_no_other_id_has():
    ids = ["a", "A b", "A_b", "../a", "..", ".", "a/b", "ऋ" * 300, "ऋ" * 301, "x" * 500, "x" * 501, "a%2Fb"]
    names = [file_name(one) for one in ids]
    assert len({name.lower() for name in names}) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]{1,120}", name) and name.strip(".") for name in names)
    assert file_name("2f1b7c9e-8d0a-4b6e-9f35-1c2d3e4f5a6b") == "2f1b7c9e-8d0a-4b6e-9f35-1c2d3e4f5a6b"


def test_a_mapped_task_is_shown_by_its_entity():
    from test_map_index import shown  # noqa: PLC0415

    assert shown(operator("/x")) == "entity e1"


# Other storages


def listed(rows, url):
    return {row["path"].removeprefix(url): (row["bytes"], row["sha256"]) for row in rows}


def written(path, **more):
    given = {"entity_id": "e1", "what": ["xlsx", "pdf"], "analyses": ["transactions"], **more}
    return BankConnectReportToStorageOperator(task_id="keep", path=path, **given).execute(CONTEXT)


@pytest.mark.usefixtures("customer")
def test_s3_gets_whole_files_under_their_names_only(s3, tmp_path):
    local = listed(written(f"file://{tmp_path}"), f"file://{tmp_path}/")
    rows = written(f"{s3.url}reports")

    assert listed(rows, f"{s3.url}reports/") == local
    found = {key: s3.read(key) for key in s3.keys()}  # noqa: SIM118 - no dict
    assert found == {f"reports/{name}": content for name, content in files(tmp_path).items()}
    for row in rows:
        assert ObjectStoragePath(row["path"]).read_bytes() == found[row["path"].removeprefix(s3.url)]
    assert written(f"{s3.url}reports") == rows
    with pytest.raises(FileExistsError, match=r"s3://s3_store@bucket-\d+/reports/e1/.*exists already"):
        written(f"{s3.url}reports", overwrite=False)


def test_a_file_of_several_parts_reaches_s3_whole(box, s3):
    box.play(Statement(entity_id="e1", statement_id="s1", mode="pdf", after=-5, file_bytes=11 * 2**20))
    (row,) = written(s3.url, what="pdf", analyses=[])
    assert row["path"] == f"{s3.url}e1/statement-s1.pdf"
    content = s3.read("e1/statement-s1.pdf")
    assert (row["bytes"], row["sha256"]) == (11 * 2**20, hashlib.sha256(content).hexdigest())


def test_a_failed_task_leaves_nothing_on_s3(customer, s3):
    customer.play(Statement(entity_id="e1", statement_id="s3", mode="pdf", after=-5, file_bytes=11 * 2**20))
    customer.fault(Fault(kind="half", call="file", times=99))
    with pytest.raises(api.BankConnectConnectionError, match="no whole answer"):
        written(s3.url)
    assert s3.keys() == s3.unfinished_uploads() == []


@pytest.mark.usefixtures("customer")
def test_memory_gets_the_files(memory, tmp_path):
    local = listed(written(f"file://{tmp_path}"), f"file://{tmp_path}/")
    assert listed(written("memory://kept/here"), "memory://kept/here/") == local
    assert {path.removeprefix("/kept/here/"): memory.cat(path) for path in memory.find("/")} == files(tmp_path)


@pytest.mark.usefixtures("customer")
def test_a_path_object_is_a_path_too(tmp_path):
    assert written(ObjectStoragePath(f"file://{tmp_path}")) == written(str(tmp_path))
    assert written(ObjectStoragePath(str(tmp_path))) == written(str(tmp_path))


@pytest.mark.usefixtures("customer")
@pytest.mark.parametrize("folder", ["a*b", "a?b", "a[1]"])
def test_a_folder_named_like_a_pattern_is_a_folder(folder, memory):
    rows = written(f"memory://kept/{folder}", what="pdf", analyses=[])
    assert sorted(memory.store) == sorted(row["path"].removeprefix("memory:/") for row in rows)


@pytest.mark.usefixtures("customer")
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_rename_that_fails_leaves_no_file_if_none_may_be_replaced(tmp_path, monkeypatch, overwrite):
    usual = Path.replace

    def failing(path, target):
        if str(target).endswith("statement-s2.pdf"):
            raise PermissionError(13, "denied", str(target))
        return usual(path, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(PermissionError, match="denied"):
        write(tmp_path, what="pdf", overwrite=overwrite)
    assert list(files(tmp_path)) == (["e1/statement-s1.pdf"] if overwrite else [])


@pytest.mark.usefixtures("customer")
def test_without_overwrite_a_sidecar_is_refused_too(tmp_path):
    sidecar = tmp_path / "e1" / "statement-s2.password.json"
    sidecar.parent.mkdir()
    sidecar.touch()
    with pytest.raises(FileExistsError, match=r"statement-s2\.password\.json exists already"):
        write(tmp_path, what="pdf", pdf_passwords="sidecar", overwrite=False)
    assert len(write(tmp_path, what="pdf", overwrite=False)) == 2


def test_each_account_has_its_own_report(box, tmp_path):
    for number in range(3):
        box.play(Statement(entity_id="e1", statement_id=f"s{number}", mode="pdf", after=-5, account=number))
    accounts = [one["account_id"] for one in raw(box, "accounts").json()["accounts"]]
    rows = write(tmp_path)
    assert [row["account_id"] for row in rows] == accounts
    assert len({row["sha256"] for row in rows}) == 3
    (row,) = write(tmp_path / "one", account_id=accounts[1], analyses=["transactions"], what="xlsx")[1:]
    assert row["account_id"] == accounts[1]
    only = json.loads((tmp_path / "one" / "e1" / f"transactions-{accounts[1]}.json").read_bytes())
    assert {one["account_id"] for one in only["transactions"]} == {accounts[1]}
