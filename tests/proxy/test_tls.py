"""TLS in front of the hub and towards servers."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from marimohub.proxy import EnvoyProxy
from tests.hub import free_port
from tests.proxy import http2
from tests.proxy.conftest import Hubs, Upstream, raw
from tests.proxy.tap import HANDSHAKE, Tap

Start = Callable[..., Upstream]


def make_certificate(folder: Path, name: str) -> tuple[str, str]:
    """A self-signed pair for localhost whose subject is `name`."""
    certificate, key = str(folder / "public.pem"), str(folder / "public.key")
    subprocess.run(
        [
            *["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"],
            *["-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
            *["-keyout", key, "-out", certificate],
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


async def request(proxy: EnvoyProxy, certificate: str) -> tuple[dict, str]:
    """(answer, subject of the certificate shown) of one request over TLS."""
    port = int(proxy.public_url.rsplit(":", 1)[1].strip("/"))
    context = ssl.create_default_context(cafile=certificate)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
    shown = writer.get_extra_info("peercert")["subject"][0][0][1]
    writer.write(b"GET /hub/ HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    body = (await reader.read()).partition(b"\r\n\r\n")[2]
    writer.close()
    return json.loads(body), shown


async def test_certificate_is_served_and_renewed_without_restart(hubs: Hubs, upstream: Start, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "first")
    url = f"https://127.0.0.1:{free_port()}/"
    proxy = hubs.proxy(public_url=url, ssl_cert=certificate, ssl_key=key)
    await proxy.start()
    await proxy.add_route("/", upstream("hub").url, {"hub": True})
    answer, shown = await request(proxy, certificate)
    assert (answer["headers"]["x-forwarded-proto"], shown) == (["https"], "first")
    identity = proxy._process.identity  # type: ignore[union-attr]

    Path(certificate).write_text("half a renewal")
    await asyncio.sleep(0.5)
    assert any("Serving the earlier one" in line for line in hubs.records.lines)
    make_certificate(tmp_path, "second")
    for _ in range(50):
        await asyncio.sleep(0.1)
        try:
            if (await request(proxy, certificate))[1] == "second":
                break
        except ssl.SSLError:
            continue
    else:
        pytest.fail("the renewed certificate was not served")
    assert proxy._process.identity == identity  # type: ignore[union-attr]


async def test_http2_is_offered_to_browsers(hubs: Hubs, upstream: Start, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "h2")
    proxy = hubs.proxy(public_url=f"https://127.0.0.1:{free_port()}/", ssl_cert=certificate, ssl_key=key)
    await proxy.start()
    await proxy.add_route("/", upstream("hub").url, {"hub": True})
    done = await asyncio.create_subprocess_exec(
        *["curl", "-s", "--http2", "--cacert", certificate, "-w", "\n%{http_version}"],
        proxy.public_url.replace("127.0.0.1", "localhost") + "hub/",
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await done.communicate()
    assert out.decode().splitlines()[-1] == "2"


async def test_https_targets_are_verified(
    hubs: Hubs, upstream: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = make_certificate(tmp_path, "server")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    server = upstream("secure", ssl_options=context)
    monkeypatch.setattr("marimohub.proxy.listen.system_authorities", lambda: certificate)
    proxy = hubs.proxy()
    await proxy.start()
    await proxy.add_route("/user/named/", f"https://localhost:{server.port}", {"user": "a"})
    await proxy.add_route("/user/address/", f"https://127.0.0.1:{server.port}", {"user": "a"})
    assert (await raw(proxy, "/user/named/")).server == "secure"
    assert (await raw(proxy, "/user/address/")).server == "secure"

    monkeypatch.undo()
    await hubs.kill(proxy)
    strict = hubs.proxy(public_url=proxy.public_url)
    await strict.start()
    assert (await raw(strict, "/user/named/")).status == 503, "a certificate nobody vouches for"
    await hubs.kill(strict)
    trusting = hubs.proxy(public_url=proxy.public_url, verify_upstream=False)
    await trusting.start()
    assert (await raw(trusting, "/user/named/")).server == "secure"


async def test_hosts_are_told_apart_over_every_protocol(hubs: Hubs, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "hosts")
    url = f"https://127.0.0.1:{free_port()}/"
    proxy = hubs.proxy(public_url=url, ssl_cert=certificate, ssl_key=key, host_routing=True)
    await proxy.start()
    taps = {name: await Tap(name).start() for name in ("hub", "ann", "bob", "zoe")}
    await proxy.add_route("hub.tld/", taps["hub"].url, {"hub": True})
    for name, host in (("ann", "ann.hub.tld"), ("bob", "bob.hub.tld"), ("zoe", "xn--zo-uka.hub.tld")):
        await proxy.add_route(f"{host}/user/{name}/", taps[name].url, {"user": name})
    port = int(url.rsplit(":", 1)[1].strip("/"))
    context = ssl.create_default_context(cafile=certificate)
    for host, path, owner in (
        ("ann.hub.tld", "/user/ann/", "ann"),
        ("ANN.Hub.TLD:8443", "/user/ann/", "ann"),
        ("xn--zo-uka.hub.tld", "/user/zoe/", "zoe"),
        ("hub.tld", "/hub/", "hub"),
        # a space belongs to its host: one user's origin never shows another's server
        ("bob.hub.tld", "/user/ann/", None),
        ("hub.tld", "/user/ann/", "hub"),
        ("ann.hub.tld.evil", "/user/ann/", None),
        ("evil-ann.hub.tld", "/user/ann/", None),
        ("ann.hub.tld.", "/user/ann/", None),
    ):
        found = []
        for headers in ((), HANDSHAKE):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
            head = (f"GET {path} HTTP/1.1", f"Host: {host}", "Connection: close" if not headers else "", *headers)
            writer.write(("\r\n".join(filter(None, head)) + "\r\n\r\n").encode())
            await reader.readuntil(b"\r\n\r\n")
            found.append({name for name, tap in taps.items() if tap.asked})
            writer.close()
            for tap in taps.values():
                tap.forget()
        connection = await http2.Connection.open(port, certificate)
        answer = await connection.ask(*http2.request(path.encode(), host=host.encode()))
        assert answer is not None
        connection.close()
        found.append({name for name, tap in taps.items() if tap.asked})
        for tap in taps.values():
            tap.forget()
        assert found == [{owner} - {None}] * 3, (host, path)
    for tap in taps.values():
        await tap.close()
