"""Adds a connection with the web form of Airflow 2, edits it as a browser does, and prints the results."""

from __future__ import annotations

import json
import re
from html import unescape
from typing import Any

from airflow.models import Connection  # this runs in Airflow 2
from airflow.utils.session import create_session
from airflow.www.app import create_app

FIELD = re.compile(r"<(?:input|textarea)\b[^>]*?\bname=\"([^\"]+)\"[^>]*?(?:\bvalue=\"([^\"]*)\"[^>]*)?>([^<]*)")


def stored() -> dict[str, Any]:
    with create_session() as session:
        (connection,) = session.query(Connection).filter_by(conn_id="by_form")  # noqa: AIR311 - this is Airflow 2
        return {"id": connection.id, "password": connection.password, "extra": connection.extra_dejson}


def main() -> None:
    client = create_app().test_client()
    typed = {
        "conn_id": "by_form",
        "conn_type": "bankconnect",
        "password": "HASH-OF-THE-FORM",
        "extra__bankconnect__api_key": "KEY-OF-THE-FORM",
        "extra__bankconnect__timeout": "10",
    }
    client.post("/connection/add", data=typed)
    added = stored()
    address = f"/connection/edit/{added['id']}"
    page = client.get(address).get_data(as_text=True)
    # A browser sends back what the page shows.
    shown = {name: unescape(value or text).strip() for name, value, text in FIELD.findall(page)}
    shown = {name: value for name, value in shown.items() if name in typed or name.startswith("extra")}
    client.post(address, data=shown | {"conn_type": "bankconnect", "extra__bankconnect__timezone": "Asia/Kolkata"})
    print(json.dumps({"added": added, "page": page, "shown": shown, "edited": stored()}))


if __name__ == "__main__":
    main()
