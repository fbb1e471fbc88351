"""The one TLS recipe of both hooks, so that all modes of a sensor trust the same servers."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import requests
from requests.utils import DEFAULT_CA_BUNDLE_PATH

if TYPE_CHECKING:
    from airflow_provider_bankconnect.api import ConnectionSettings


def ssl_context(conn_id: str, settings: ConnectionSettings) -> ssl.SSLContext:
    """Make a context that trusts the connection's authorities, or those that ``requests`` trusts.

    :raises ValueError: the CA bundle cannot be read; names the connection.
    """
    bundle = usual_bundle(settings)
    try:
        return context_for(bundle)
    except (OSError, ssl.SSLError):
        where = "extra 'verify'" if settings.verify else "the environment"
        problem = f"{bundle!r} of {where} is no readable bundle of certificates"
        raise ValueError(f"Connection {conn_id!r}: {problem}") from None


def usual_bundle(settings: ConnectionSettings) -> str:
    """Return the path of the CA bundle of a connection: its own, that of the environment, or that of ``requests``."""
    if settings.verify:
        return settings.verify
    usual = requests.Session().merge_environment_settings(settings.base_url, {}, None, None, None)["verify"]
    return usual if isinstance(usual, str) else DEFAULT_CA_BUNDLE_PATH


def context_for(bundle: str) -> ssl.SSLContext:
    """Make the context of both hooks for the authorities in this file or folder.

    Its rules are those of this Python: from 3.13 on ``VERIFY_X509_STRICT`` is one of them. Those of ``urllib3`` differ
    from one of its versions to the next.
    """
    is_folder = Path(bundle).is_dir()
    context = ssl.create_default_context(cafile=None if is_folder else bundle, capath=bundle if is_folder else None)
    context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)
    # A name belongs in subjectAltName: urllib3 takes it from nowhere else.
    context.hostname_checks_common_name = False
    context.set_alpn_protocols(["http/1.1"])
    return context
