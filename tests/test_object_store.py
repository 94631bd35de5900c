"""A run folder on S3, behind a proxy that loses answers, so that clients repeat what was done already.

Skipped where s3fs and moto's server are not installed: pip install s3fs "moto[server]".
"""

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pandas as pd
import pytest

from compress_lab.core.leases import Leases
from compress_lab.core.store import Store

pytest.importorskip("s3fs")
pytest.importorskip("moto.server")
FRAME = pd.DataFrame({"item": range(50)})


class Loses(BaseHTTPRequestHandler):
    "Passes requests on; of every third that writes, the answer is lost."

    protocol_version, backend, writes, lost = "HTTP/1.1", None, 0, 0

    def pass_on(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        upstream = http.client.HTTPConnection("127.0.0.1", self.backend, timeout=30)
        upstream.request(self.command, self.path, body, dict(self.headers))
        answer = upstream.getresponse()
        content = answer.read()
        if self.command == "PUT":
            Loses.writes += 1
            if Loses.writes % 3 == 0:
                Loses.lost += 1
                self.close_connection = True
                return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "date", "server", "content-length"):
                self.send_header(name, value)
        length = answer.headers.get("Content-Length") if self.command == "HEAD" else len(content)
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(content if self.command != "HEAD" else b"")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on

    def log_message(self, *words):
        pass


@pytest.fixture
def bucket(monkeypatch):
    "The address of a bucket behind the proxy."
    from moto.server import ThreadedMotoServer

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    Loses.backend = server.get_host_and_port()[1]
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Loses)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{proxy.server_address[1]}"
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": address})
    fs = fsspec.filesystem("s3")
    fs.mkdir("runs") if not fs.exists("runs") else None
    yield "s3://runs/first"
    proxy.shutdown()
    server.stop()


def test_cells_and_leases_survive_lost_answers(bucket):
    store = Store(bucket)
    for number in range(6):
        store.put(f"cell-{number}", {"number": number}, FRAME)
        store.put(f"cell-{number}", {"number": -1}, FRAME)  # a second writer
    ours, theirs = Leases(store), Leases(Store(bucket))
    for number in range(1, 7):
        with ours.claim("arm") as lease:
            assert lease.number == number and theirs.claim("arm") is None
    assert Loses.lost > 6, "the proxy lost nothing"
    assert [store.get(key).result for key in store.keys()] == [{"number": number} for number in range(6)]
    assert all(store.get(key).frame.equals(FRAME) for key in store.keys())
