"""Deferred waits use the proxy of the environment, as the worker's calls do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket

import pytest

from airflow_provider_bankconnect.hooks.bankconnect import BankConnectAsyncHook, BankConnectHook

pytestmark = pytest.mark.usefixtures("connection")


@pytest.fixture
async def proxy(monkeypatch):
    """A proxy that records its requests, in place of the machine's own settings."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    asked, pipes = [], set()

    async def copy(source, target):
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
        target.close()

    async def serve(reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        asked.append(head)
        host, _, port = head[0].split()[1].rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        for pipe in (copy(reader, far_writer), copy(far_reader, writer)):
            task = asyncio.create_task(pipe)
            pipes.add(task)
            task.add_done_callback(pipes.discard)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    monkeypatch.setenv("https_proxy", f"http://user:word@127.0.0.1:{server.sockets[0].getsockname()[1]}")
    yield asked
    server.close()
    await asyncio.gather(*pipes)


def ask_in_sync():
    with BankConnectHook() as hook:
        return hook.get_webhook_payloads("l")


async def ask():
    async with BankConnectAsyncHook() as hook:
        return await hook.get_webhook_payloads("l")


async def test_both_hooks_use_the_proxy_with_its_user_and_it_sees_no_keys(proxy, box):
    assert await asyncio.to_thread(ask_in_sync) == await ask() == []
    assert [head[0].rpartition(" ")[0] for head in proxy] == [f"CONNECT localhost:{box.port}"] * 2
    for head in proxy:
        assert any(line.lower().startswith("proxy-authorization: basic") for line in head)
        assert not any(box.api_key in line or box.server_hash in line for line in head)


async def test_both_hooks_find_the_address_of_the_proxy_that_answers(proxy, names, monkeypatch):
    where = int(os.environ["https_proxy"].rpartition(":")[2])
    with socket.create_server(("127.0.0.1", 0), backlog=50) as silent:
        names[where] = [silent.getsockname(), ("127.0.0.1", 1), ("127.0.0.1", where)]
        monkeypatch.setenv("https_proxy", f"http://user:word@localhost:{where}")
        quick = json.loads(os.environ["AIRFLOW_CONN_BANKCONNECT_DEFAULT"])
        quick["extra"]["timeout"] = 4.5
        monkeypatch.setenv("AIRFLOW_CONN_BANKCONNECT_DEFAULT", json.dumps(quick))
        assert await asyncio.to_thread(ask_in_sync) == await ask() == []
    assert len(proxy) == 2


async def test_neither_hook_uses_the_proxy_for_hosts_in_no_proxy(proxy, monkeypatch):
    monkeypatch.setenv("no_proxy", "localhost")
    assert await asyncio.to_thread(ask_in_sync) == await ask() == []
    assert proxy == []


@pytest.mark.parametrize("kind", ["https", "socks5"])
async def test_proxy_that_aiohttp_cannot_use_is_logged_and_ignored(proxy, monkeypatch, caplog, kind):
    monkeypatch.setenv("https_proxy", f"{kind}://user:word@127.0.0.1:1")
    assert await ask() == []
    assert "without the environment's proxy" in caplog.text
    assert "word" not in caplog.text
    assert proxy == []


async def test_netrc_adds_nothing_to_a_poll(proxy, box, tmp_path, monkeypatch):
    monkeypatch.delenv("https_proxy")
    (tmp_path / "netrc").write_text("machine localhost login someone password else\n", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    await asyncio.to_thread(ask_in_sync)
    await ask()
    assert not proxy
    assert all("authorization" not in request.headers for request in box.requests)
