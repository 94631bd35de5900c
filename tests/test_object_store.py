"""A run folder on S3, behind a proxy that doubles writes and loses answers, so that clients repeat what was done.

Skipped where s3fs and moto's server are not installed: pip install s3fs "moto[server]".
"""

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pandas as pd
import pytest
from study_tiny import Distance, Zeros, subject

import compress_lab as cl
from compress_lab.core.leases import Leases
from compress_lab.core.store import Store, different
from compress_lab.study import Study

pytest.importorskip("s3fs")
pytest.importorskip("moto.server")
FRAME = pd.DataFrame({"item": range(50)})


class Unreliable(BaseHTTPRequestHandler):
    "Passes requests on; every fifth write is sent twice, and of every third the answer is lost."

    protocol_version, backend, writes, lost, doubled = "HTTP/1.1", None, 0, 0, 0

    def forwarded(self, body):
        upstream = http.client.HTTPConnection("127.0.0.1", self.backend, timeout=30)
        upstream.request(self.command, self.path, body, dict(self.headers))
        answer = upstream.getresponse()
        return answer, answer.read()

    def pass_on(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer, content = self.forwarded(body)
        if self.command == "PUT":
            Unreliable.writes += 1
            if Unreliable.writes % 5 == 0:
                Unreliable.doubled += 1
                answer, content = self.forwarded(body)
            if Unreliable.writes % 3 == 0:
                Unreliable.lost += 1
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
def bucket(monkeypatch, request):
    "The address of a run folder in a bucket behind the proxy; servers in one process share their buckets."
    from moto.server import ThreadedMotoServer

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    Unreliable.writes = Unreliable.lost = Unreliable.doubled = 0
    Unreliable.backend = server.get_host_and_port()[1]
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Unreliable)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{proxy.server_address[1]}"
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": address})
    fs = fsspec.filesystem("s3")
    fs.mkdir("runs") if not fs.exists("runs") else None
    yield f"s3://runs/{request.node.name}"
    proxy.shutdown()
    server.stop()


def test_cells_and_leases_survive_lost_and_doubled_writes(bucket):
    store = Store(bucket)
    for number in range(6):
        store.put(f"cell-{number}", {"number": number}, FRAME)
        store.put(f"cell-{number}", {"number": -1}, FRAME)  # a second writer
    ours, theirs = Leases(store), Leases(Store(bucket))
    for number in range(1, 7):
        with ours.claim("arm") as lease:
            assert lease.number == number and theirs.claim("arm") is None
    assert Unreliable.lost > 6 and Unreliable.doubled > 4, "the proxy was reliable"
    assert [store.get(key).result for key in store.keys()] == [{"number": number} for number in range(6)]
    assert all(store.get(key).frame.equals(FRAME) for key in store.keys())


def test_a_study_is_stored_as_in_a_local_folder(bucket, tmp_path):
    recipes = {"a": cl.Magnitude(sparsity=0.2), "b": cl.Magnitude(sparsity=0.4)}  # the probes ask for their sparsity
    study = Study("tiny llama", recipes, [Zeros(), Zeros(1), Distance()])
    for root in (bucket, tmp_path / "local"):
        study.run(root, subject=subject())
    assert Unreliable.lost > 9 and Unreliable.doubled > 5, "the proxy was reliable"
    there, here = Store(bucket), Store(tmp_path / "local")
    assert there.keys() == here.keys() and len(here.keys()) == 8 and there.expected() == here.expected()
    assert {key: different(there.get(key), here.get(key)) for key in here.keys()} == dict.fromkeys(here.keys(), "")
    assert {there.peek(key)["status"] for key in there.keys()} == {"measured"}
    seconds = {key: there.peek(key)["seconds"] for key in there.keys()}
    study.run(bucket, subject=subject())
    assert {key: there.peek(key)["seconds"] for key in there.keys()} == seconds, "nothing is measured again"
