"""A task that keeps the reports of a customer: Excel reports, PDFs and analyses, in an object storage."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_bankconnect import api
from airflow_provider_bankconnect.arguments import check_analysis, check_conn_id, check_id, is_literal
from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook, retries
from airflow_provider_bankconnect.hooks.links import ExpiredLinkError, Links
from airflow_provider_bankconnect.lineage import report_lineage
from airflow_provider_bankconnect.map_index import NamedByCustomer
from airflow_provider_bankconnect.storage import Content, Folder, Pdf, Workbook, file_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import tenacity
    from airflow.providers.common.compat.sdk import Context, ObjectStoragePath, XComArg

    from airflow_provider_bankconnect.api import Analysis
    from airflow_provider_bankconnect.storage import File, Written

What: TypeAlias = Literal["xlsx", "pdf"]
WHAT: Final[tuple[What, ...]] = get_args(What)
_CALLS: Final[dict[What, str]] = {"xlsx": "xlsx_report", "pdf": "get_pdfs"}
# Seconds between two lines of the log about the progress.
_LOG_EVERY: Final = 30.0
_MIB: Final = 2**20


@dataclass(frozen=True)
class _Wanted:
    """A file to write: an analysis, or what a link leads to. Without a link there is no such file any more."""

    what: What | Analysis
    name: str
    account_id: str | None = None
    statement_id: str | None = None
    link: str = field(default="", repr=False)
    password: str | None = field(default=None, repr=False)

    @property
    def sidecar(self) -> str:
        """The name of the file with the password of a PDF."""
        return f"{self.name.removesuffix('.pdf')}.password.json"

    def names(self, pdf_passwords: str | None) -> list[str]:
        """Return the names of the files that will be written for it."""
        if self.what in WHAT and not self.link:
            return []
        return [self.name, self.sidecar] if self.password and pdf_passwords else [self.name]

    def row(self, written: Written | None) -> dict[str, Any]:
        """Return what the task pushes for this file."""
        ids = {"what": self.what, "account_id": self.account_id, "statement_id": self.statement_id}
        return {**ids, **(written._asdict() if written else {"path": None, "bytes": None, "sha256": None})}


class BankConnectReportToStorageOperator(NamedByCustomer, BaseOperator):
    """Writes the Excel reports, the PDFs and any analyses of an entity to an object storage.

    The files are ``<path>/<entity_id>/report-<account_id>.xlsx``, ``.../statement-<statement_id>.pdf`` and
    ``.../<analysis>.json``, the latter as BankConnect sent it, byte for byte. The links to reports and PDFs are valid
    for one hour: the task fetches them, uses them, and fetches them once more if they have expired. All files are
    written under temporary names first and get their names when all of them are whole. A second run writes the same
    files.

    Sources: the vendor's REST API pages on Excel reports and on the PDFs of statements.

    Pushes a list with a dict for each file to XCom: ``{what, account_id, statement_id, path, bytes, sha256}``. ``path``
    has the storage's connection in it, as ``s3://aws_default@bucket/...``. If BankConnect no longer has a PDF (30 days
    after its upload), its ``path``, ``bytes`` and ``sha256`` are None. No link and no password is pushed or logged.

    :param entity_id: the customer, for instance of a gate's row. (templated)
    :param path: the folder: an ``ObjectStoragePath`` or its URL, such as ``s3://aws_default@bucket/reports``.
        (templated)
    :param what: ``"xlsx"``, ``"pdf"``, or both. (templated)
    :param analyses: the analyses to write: any of :data:`~airflow_provider_bankconnect.api.ANALYSES` except
        ``xlsx_report``, whose answer is links. (templated)
    :param account_id: only the files of this account. Refused with an analysis that BankConnect does not filter.
        (templated)
    :param overwrite: False: fail where a file exists, and write nothing.
    :param pdf_passwords: ``"sidecar"`` writes each password, in clear, to ``statement-<statement_id>.password.json``
        beside its PDF; None writes it nowhere.
    :param max_file_bytes: the largest report or PDF that is read. Default: 200 MiB.
    :param bankconnect_conn_id: the connection with both keys. Its ``max_concurrency`` is how many files are fetched at
        once. (templated)
    :raises ValueError: an argument is invalid, or there is no filesystem for ``path``; names the package to install.
    :raises BankConnectNotReadyError: a report is not ready, or its list is empty. The task's retries try again.
    :raises BankConnectNotFoundError: BankConnect does not know the entity, or the account.
    :raises BankConnectLinkError: a link leads to no such file, or may not be followed.
    :raises FileExistsError: a file exists and ``overwrite`` is False.
    """

    _links: Links | None = None
    template_fields: Sequence[str] = ("entity_id", "path", "what", "analyses", "account_id", "bankconnect_conn_id")
    ui_color = "#d8e6f3"

    def __init__(
        self,
        *,
        entity_id: str | int | XComArg,
        path: ObjectStoragePath | str | XComArg,
        what: Sequence[What] | XComArg | str = ("xlsx",),
        analyses: Sequence[Analysis] | XComArg | str = (),
        account_id: str | int | XComArg | None = None,
        overwrite: bool = True,
        pdf_passwords: Literal["sidecar"] | None = None,
        max_file_bytes: int = 200 * _MIB,
        bankconnect_conn_id: str = BankConnectHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.entity_id = entity_id
        self.path = path
        self.what = what
        self.analyses = analyses
        self.account_id = account_id
        self.overwrite = overwrite
        self.pdf_passwords = pdf_passwords
        self.max_file_bytes = max_file_bytes
        self.bankconnect_conn_id = bankconnect_conn_id
        self._refuse_known_mistakes()

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Write all files, and return a row for each."""
        entity_id = check_id("entity_id", self.entity_id)
        folder = Folder(self._path(), entity_id, mark=_mark(context))
        with BankConnectHook(self.bankconnect_conn_id) as hook:
            wanted = self._wanted(hook, entity_id)
            if not self.overwrite:
                folder.refuse_existing(name for file in wanted for name in file.names(self.pdf_passwords))
            folder.remove_leftovers()
            self._links = links = Links(self.bankconnect_conn_id, hook.settings, self.max_file_bytes)
            try:
                written = _Writing(self, hook, entity_id, folder, links).write(wanted)
            finally:
                links.close()
                folder.discard()
        rows = [file.row(written.get(file)) for file in wanted]
        paths = [one.path for one in written.values()]
        report_lineage(self, entities=[entity_id], conn_id=self.bankconnect_conn_id, outputs=paths)
        total = sum(row["bytes"] or 0 for row in rows)
        self.log.info("Wrote %d files (%.1f MiB) to %s", len(written), total / _MIB, folder.url(""))
        return rows

    def on_kill(self) -> None:
        """End the fetches: the task then fails, and removes its temporary files."""
        if self._links is not None:
            self._links.close()

    def _wanted(self, hook: BankConnectHook, entity_id: str) -> list[_Wanted]:
        what, analyses, account_id = self._what(), self._analyses(), self._account()
        of_account = f"-{file_name(account_id)}" if account_id is not None else ""
        wanted = [_Wanted(analysis, f"{analysis}{of_account}.json", account_id) for analysis in analyses]
        if "xlsx" in what:
            wanted += self._of_account(_of_reports(hook.get_reports(entity_id)))
        if "pdf" in what:
            wanted += self._of_account(_of_pdfs(hook.get_pdfs(entity_id)))
        return wanted

    def _of_account(self, found: list[_Wanted]) -> list[_Wanted]:
        """Return the files of the account that is asked for, each with a name of its own."""
        account_id, call = self._account(), _CALLS[found[0].what]  # type: ignore[index] # these have links
        chosen = [file for file in found if account_id in {None, file.account_id}]
        if not chosen:
            problem = f"no file of account_id {account_id!r}, but {len(found)} of other accounts"
            raise api.BankConnectNotFoundError(f"{call}: {problem}")
        if len({file.name for file in chosen}) < len(chosen):
            raise api.BankConnectResponseError(f"{call}: two files of the same account or statement")
        return chosen

    def _refuse_known_mistakes(self) -> None:
        check_conn_id(self.bankconnect_conn_id)
        if self.pdf_passwords not in {None, "sidecar"}:
            raise ValueError(f"pdf_passwords must be 'sidecar' or None, not {self.pdf_passwords!r}")
        if isinstance(self.max_file_bytes, bool) or not isinstance(self.max_file_bytes, int) or self.max_file_bytes < 1:
            raise ValueError(f"max_file_bytes must be a whole number of bytes from 1, not {self.max_file_bytes!r}")
        if not isinstance(self.overwrite, bool):
            raise ValueError(f"overwrite must be True or False, not {self.overwrite!r}")
        if is_literal(self.entity_id):
            check_id("entity_id", self.entity_id)
        if is_literal(self.path):
            self._path()
        if is_literal(self.what) and is_literal(self.analyses):
            self._what()
            if is_literal(self.account_id):
                self._analyses()

    def _path(self) -> Any:
        path: Any = self.path
        if isinstance(path, str) and not path.strip():
            raise ValueError("path must not be blank: did its template find nothing?")
        if path is None or isinstance(path, int | float):
            raise ValueError(f"path must be an ObjectStoragePath or a URL, not {path!r}")
        if "://" not in str(path) and not str(path).startswith("/"):
            raise ValueError(f"path must be a URL or an absolute path, not {str(path)!r}: a worker may run anywhere")
        return path

    def _account(self) -> str | None:
        return None if self.account_id is None else check_id("account_id", self.account_id)

    def _what(self) -> list[What]:
        what = _words("what", self.what)
        if unknown := [word for word in what if word not in WHAT]:
            raise ValueError(f"what must be one or more of {', '.join(WHAT)}, not {unknown[0]!r}")
        if not what and not _words("analyses", self.analyses):
            raise ValueError("what and analyses are both empty: there would be no file to write")
        return what  # type: ignore[return-value] # checked above

    def _analyses(self) -> list[Analysis]:
        analyses = [check_analysis(word) for word in _words("analyses", self.analyses)]
        for analysis in analyses:
            if analysis == "xlsx_report":
                raise ValueError(
                    "analyses: the answer to xlsx_report is links for an hour; give what=('xlsx',) instead"
                )
            if self._account() is not None:
                api.check_by_account(analysis)
        return analyses


def _of_reports(reports: list[api.Report]) -> list[_Wanted]:
    return [
        _Wanted("xlsx", f"report-{file_name(one.account_id)}.xlsx", one.account_id, link=one.link) for one in reports
    ]


def _of_pdfs(pdfs: list[api.StatementPdf]) -> list[_Wanted]:
    return [
        _Wanted(
            "pdf", f"statement-{file_name(one.statement_id)}.pdf", one.account_id, one.statement_id, one.link,
            one.password,
        )
        for one in pdfs
    ]  # fmt: skip


class _Writing:
    """Fetches and writes the files of one task, several at once."""

    def __init__(
        self,
        task: BankConnectReportToStorageOperator,
        hook: BankConnectHook,
        entity_id: str,
        folder: Folder,
        links: Links,
    ) -> None:
        self._task = task
        self._hook = hook
        self._entity_id = entity_id
        self._folder = folder
        self._links = links
        self._renewing = Lock()
        self._newest: dict[str, str] = {}
        self._renewal_error: BaseException | None = None

    def write(self, wanted: list[_Wanted]) -> dict[_Wanted, Written]:
        """Write all files under temporary names, and then give them their own."""
        linked = [file for file in wanted if file.what in WHAT]
        written = {file: self._write_analysis(file) for file in wanted if file.what not in WHAT}
        for file in linked:
            if not file.link:
                why = "BankConnect keeps a PDF for 30 days after its upload"
                self._task.log.warning("There is no link to the PDF of statement %r: %s", file.statement_id, why)
        there = [file for file in linked if file.link]
        self._newest = {file.name: file.link for file in there}
        logged = time.monotonic()
        with ThreadPoolExecutor(self._hook.settings.max_concurrency, thread_name_prefix="bankconnect-file") as threads:
            try:
                fetches = {threads.submit(self._write_file, file): file for file in there}
                for done in as_completed(fetches):
                    written[fetches[done]] = done.result()
                    if time.monotonic() - logged >= _LOG_EVERY:
                        logged = time.monotonic()
                        size = sum(one.bytes for one in written.values()) / _MIB
                        self._task.log.info("Fetched %d of %d files, %.1f MiB", len(written), len(wanted), size)
                self._links.check_going_on()
                self._folder.commit(threads, undo=not self._task.overwrite)
            except BaseException:
                self._links.close()
                threads.shutdown(wait=False, cancel_futures=True)
                if self._renewal_error is not None:
                    # The threads that it has stopped may have ended before the one that failed.
                    raise self._renewal_error from None
                raise
        return written

    def _write_analysis(self, wanted: _Wanted) -> Written:
        call = api.get_analysis_body(self._entity_id, wanted.what, wanted.account_id)  # type: ignore[arg-type]
        body = self._hook.run(call)
        return self._keep(self._folder.begin(wanted.name, Content()), wanted.what, lambda write: write(body))

    @staticmethod
    def _keep(file: File, call: str, fill: Callable[[Callable[[bytes], None]], object]) -> Written:
        """Have ``fill`` write a file that has just been opened, and close it."""
        try:
            fill(file.write)
            return file.end(call)
        except BaseException:
            file.abandon()
            raise

    def _write_file(self, wanted: _Wanted) -> Written:
        link = self._newest[wanted.name]
        try:
            written = self._fetch(wanted, link)
        except ExpiredLinkError:
            written = self._fetch(wanted, self._renewed(wanted, link))
        if wanted.password and self._task.pdf_passwords == "sidecar":
            body = json.dumps({"statement_id": wanted.statement_id, "pdf_password": wanted.password}).encode()
            sidecar = self._folder.begin(wanted.sidecar, Content(), is_private=True)
            self._keep(sidecar, "get_pdfs", lambda write: write(body))
        return written

    def _fetch(self, wanted: _Wanted, link: str) -> Written:
        retrying = retries(api.MAX_RETRIES, self._log_retry, self._sleep)
        return retrying(self._fetch_once, wanted, link)

    def _fetch_once(self, wanted: _Wanted, link: str) -> Written:
        call = _CALLS[wanted.what]  # type: ignore[index] # only these have links
        file = self._folder.begin(wanted.name, Workbook() if wanted.what == "xlsx" else Pdf())
        return self._keep(file, call, lambda write: self._links.fetch(call, link, write))

    def _renewed(self, wanted: _Wanted, used: str) -> str:
        """Return a new link in place of one that has expired. All links of its kind are made anew together."""
        with self._renewing:
            self._links.check_going_on()
            if self._newest[wanted.name] == used:
                self._task.log.info("A link has expired: fetching the links of %s again", wanted.what)
                try:
                    self._newest |= {file.name: file.link for file in self._links_anew(wanted)}
                except BaseException as error:
                    # The other threads must not try it again, one after another.
                    self._renewal_error = error
                    self._links.stopping.set()
                    raise
            link = self._newest[wanted.name]
        if link in {"", used}:
            raise api.BankConnectLinkError(f"{_CALLS[wanted.what]}: a link has expired, and there is no new one")  # type: ignore[index]
        return link

    def _links_anew(self, wanted: _Wanted) -> list[_Wanted]:
        # Not by get_pdfs() of the hook: Airflow masks secrets in the main thread only.
        if wanted.what == "xlsx":
            return _of_reports(self._hook.run(api.get_reports(self._entity_id), sleep=self._sleep))
        return _of_pdfs(self._hook.run(api.get_pdfs(self._entity_id), sleep=self._sleep))

    def _sleep(self, seconds: float) -> None:
        self._links.stopping.wait(seconds)

    def _log_retry(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        pause = state.next_action.sleep if state.next_action else 0
        self._task.log.warning("%s; trying again in %.1f s", error, pause)


def _words(name: str, value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, Iterable) or isinstance(value, dict | bytes):
        raise ValueError(f"{name} must be a list of words, not {value!r}")
    return list(dict.fromkeys(value))


def _mark(context: Context) -> str:
    """Return what a task instance adds to temporary names: the same in each of its tries, and no other's."""
    ti: Any = context["ti"]
    key = [ti.dag_id, ti.run_id, ti.task_id, ti.map_index]
    return hashlib.sha256(json.dumps(key, default=str).encode()).hexdigest()[:12]
