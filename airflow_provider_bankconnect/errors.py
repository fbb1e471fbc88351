"""The errors of BankConnect's API. Import them from :mod:`airflow_provider_bankconnect.api`."""

from __future__ import annotations

__all__ = [
    "BankConnectAuthError", "BankConnectCertificateError", "BankConnectConnectionError", "BankConnectError",
    "BankConnectForbiddenError", "BankConnectHostError", "BankConnectLimitError", "BankConnectLinkError",
    "BankConnectNotFoundError", "BankConnectNotReadyError", "BankConnectRateLimitError", "BankConnectResponseError",
    "BankConnectServerError", "BankConnectSettingsError", "BankConnectTimezoneError", "BankConnectTransientError",
]  # fmt: skip


class BankConnectError(Exception):
    """A call to BankConnect failed.

    It is no ``AirflowException``: after a deferral ``soft_fail`` turns every ``AirflowException`` into a skip, and
    wrong keys must not skip a task. Messages contain the call and the status, and never a key or a body.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class BankConnectAuthError(BankConnectError):
    """The keys are wrong (HTTP 401, 402), or wrong or not enabled for this call (HTTP 403)."""


class BankConnectNotFoundError(BankConnectError):
    """BankConnect does not know the id, or has no data for it yet: HTTP 404."""


class BankConnectTransientError(BankConnectError):
    """A later attempt may succeed. ``retry_after`` is the answer's ``Retry-After`` in seconds, or None."""

    def __init__(self, message: str, *, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message, status=status)
        self.retry_after = retry_after


class BankConnectRateLimitError(BankConnectTransientError):
    """Too many calls: HTTP 429."""


class BankConnectServerError(BankConnectTransientError):
    """BankConnect failed, or was too slow or not ready for the request: HTTP 5xx, 408 or 425."""


class BankConnectForbiddenError(BankConnectTransientError):
    """A 403 that is not of BankConnect's form: a firewall or a proxy on the way may have sent it."""


class BankConnectConnectionError(BankConnectTransientError):
    """No complete answer: refused, reset, timed out, cut off, or a TLS failure."""


class BankConnectCertificateError(BankConnectConnectionError):
    """The server's certificate does not verify. Nothing was sent."""


class BankConnectHostError(BankConnectConnectionError):
    """The host of the connection cannot be resolved. Nothing was sent."""


class BankConnectLimitError(BankConnectError):
    """A link has more entities than a gate can ask for."""


class BankConnectLinkError(BankConnectError):
    """A link of BankConnect does not lead to the file: it has expired, is not safe to follow, or leads to another."""


class BankConnectSettingsError(BankConnectError):
    """The triggerer cannot read the connection of a deferred wait, or a field of it is invalid."""


class BankConnectResponseError(BankConnectError):
    """The answer is not as documented: another status, not JSON, or other fields."""


class BankConnectNotReadyError(BankConnectError):
    """The data was read while statements are still being processed."""


class BankConnectTimezoneError(BankConnectError):
    """A payload has a time in the future: the connection's ``timezone`` is not BankConnect's."""
