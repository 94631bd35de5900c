"""The server against what its own notebooks cannot show well: schemathesis, the official client, and a real process."""

import json
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import numpy as np
import psutil
import pytest

import compress_lab as cl
from compress_lab.cli import main
from compress_lab.core.children import child_environment, python_command
from compress_lab.core.store import Store
from compress_lab.models.saving import Subject
from compress_lab.models.tiny import byte_tokenizer, tiny

pytest.importorskip("uvicorn", reason="the extra serve is not installed")
from compress_lab.deploy.app import listen, process
from compress_lab.deploy.dashboard import add_dashboard
from compress_lab.deploy.service import Bounds, Service

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

TEMPLATE = "{% for message in messages %}<{{ message.role }}> {{ message.content }}\n{% endfor %}<assistant>"


def subject(kind="writer", **more):
    model = {
        "writer": lambda: tiny("llama", vocab_size=258, max_position_embeddings=8192, **more),
        "classifier": lambda: tiny("bert", head="sequence_classification", vocab_size=258, pad_token_id=257),
        "encoder": lambda: tiny("bert", head="base", vocab_size=258, pad_token_id=257),
    }[kind]()
    if kind == "writer":
        model.generation_config.eos_token_id = None
    return Subject(model, byte_tokenizer(TEMPLATE))


@contextmanager
def running(service, token=""):
    "The address of a server that runs in a thread."
    bound, server = listen(port=0), process(service, token=token)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        until(lambda: server.started)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)
        bound.close()
        assert not thread.is_alive()


def until(condition, seconds=60):
    "Waits until the condition holds."
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)


# --- any request of the description, valid or not


@pytest.mark.parametrize("kind", ["writer", "classifier", "encoder"])
def test_no_request_makes_a_fault(kind):
    import schemathesis

    service = Service(subject(kind), "tiny", Bounds(context=64, answer=8, body=20_000))
    seen = set()
    with running(service) as address:
        for result in schemathesis.openapi.from_url(f"{address}/openapi.json").get_all_operations():
            operation = result.ok()
            ask_at_random(operation, schemathesis.GenerationMode.POSITIVE, address, seen)
            if operation.body:
                ask_at_random(operation, schemathesis.GenerationMode.NEGATIVE, address, seen)
        assert httpx.get(f"{address}/ready").status_code == 200
    answers = {"writer": "/v1/completions", "classifier": "/classify", "encoder": "/v1/embeddings"}[kind]
    assert {(answers, 200), (answers, 400)} <= seen


def ask_at_random(operation, mode, address, seen):
    from hypothesis import HealthCheck, given, settings

    @settings(max_examples=20, deadline=None, suppress_health_check=[*HealthCheck], derandomize=True)
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case):
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = "tiny"  # any other is answered by 404 before it is read
            if isinstance(case.body.get("max_tokens"), int):
                case.body["max_tokens"] %= 8
        response = case.call(base_url=address, timeout=60)
        seen.add((operation.path, response.status_code))
        assert response.status_code < 500, response.text

    ask()


# --- the official client


def test_the_client_of_openai_works_against_it():
    openai = pytest.importorskip("openai", reason="the client of OpenAI is not installed")
    token = "a-token-of-some-length"
    with running(Service(subject(), "tiny", Bounds(context=256)), token) as address:
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{address}/v1", api_key="wrong").models.list()
        client = openai.OpenAI(base_url=f"{address}/v1", api_key=token, max_retries=0)
        assert [model.id for model in client.models.list()] == ["tiny"] and client.models.retrieve("tiny").id == "tiny"
        greedy = {"model": "tiny", "temperature": 0, "max_tokens": 12}
        said = [{"role": "user", "content": "Hello"}]
        whole = client.completions.create(prompt="Once", logprobs=3, **greedy)
        stream = client.completions.create(prompt="Once", stream=True, **greedy)
        assert "".join(part.choices[0].text for part in stream) == whole.choices[0].text
        assert len(whole.choices[0].logprobs.token_logprobs) == 12 == whole.usage.completion_tokens
        chat = client.chat.completions.create(messages=said, logprobs=True, top_logprobs=2, **greedy)
        parts = client.chat.completions.create(
            messages=said, stream=True, stream_options={"include_usage": True}, **greedy
        )
        parts = list(parts)
        text = "".join(part.choices[0].delta.content for part in parts[:-1])
        assert text == chat.choices[0].message.content and parts[-1].usage == chat.usage
        assert len(chat.choices[0].logprobs.content[0].top_logprobs) == 2
        sampled = [
            client.completions.create(model="tiny", prompt="Once", seed=seed, max_tokens=12).choices[0].text
            for seed in (1, 1, 2)
        ]
        assert sampled[0] == sampled[1] != sampled[2]
        with pytest.raises(openai.NotFoundError, match="no such model"):
            client.completions.create(model="gpt", prompt="Once")
        with pytest.raises(openai.BadRequestError, match="does not support"):
            client.completions.create(prompt="Once", presence_penalty=1, **greedy)
    with running(Service(subject("encoder"), "tiny")) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        packed = client.embeddings.create(model="tiny", input=["a", "bcd"]).data  # asks for base64
        plain = client.embeddings.create(model="tiny", input=["a", "bcd"], encoding_format="float").data
        assert [each.embedding for each in packed] == [each.embedding for each in plain]


# --- clients that leave, crowds, and the end of a process


def test_a_client_that_leaves_frees_its_place():
    service = Service(subject(), "tiny", Bounds(context=2000, answer=1900, slots=1, waiting=0))
    ask = {"model": "tiny", "prompt": "Once", "max_tokens": 1900, "temperature": 0}
    with running(service) as address, httpx.Client(base_url=address, timeout=120) as client:
        for stream in (True, False):
            body = json.dumps(ask | {"stream": stream}).encode()
            head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
            with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as connection:
                connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
                if stream:
                    assert connection.recv(12) == b"HTTP/1.1 200"
                else:
                    until(lambda: service.admission.open == 1)
                assert client.post("/v1/completions", json=ask).status_code == 429
            until(lambda: service.admission.open == 0)
            assert client.post("/v1/completions", json=ask | {"max_tokens": 1}).status_code == 200
        until(lambda: not service.generator.choice.steps)


def test_each_of_a_crowd_is_answered_or_refused():
    service = Service(subject(), "tiny", Bounds(context=64, slots=4, waiting=12))
    ask = {"model": "tiny", "temperature": 0, "max_tokens": 8}
    with running(service) as address:

        def one(number):
            return client.post("/v1/completions", json=ask | {"prompt": f"Once {number % 7}"})

        limits = httpx.Limits(max_connections=48)
        with httpx.Client(base_url=address, timeout=60, limits=limits) as client, ThreadPoolExecutor(48) as pool:
            alone = {number: one(number).json()["choices"][0]["text"] for number in range(7)}
            answers = list(pool.map(one, range(300)))
    assert {answer.status_code for answer in answers} == {200, 429}
    assert all("retry-after" in answer.headers for answer in answers if answer.status_code == 429)
    for number, answer in enumerate(answers):
        if answer.status_code == 200:
            assert answer.json()["choices"][0]["text"] == alone[number % 7]


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_process_told_to_stop_answers_what_it_has_begun(tmp_path, stop):
    subject().save(tmp_path / "small")
    main = "import sys; from compress_lab.cli import main; sys.exit(main())"
    command = python_command("-c", main, "serve", "small", "--port", "0", "--context", "500")
    child = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=child_environment()
    )
    try:
        line = child.stdout.readline()
        address = line.rpartition(" ")[2].strip()
        assert address.startswith("http://127.0.0.1:"), line + child.stderr.read()
        until(lambda: answered(f"{address}/ready") == 200)
        ask = {"model": "small", "prompt": "a secret prompt", "max_tokens": 60}
        with ThreadPoolExecutor(50) as pool:
            asked = [pool.submit(answered, f"{address}/v1/completions", ask) for _ in range(50)]
            until(lambda: any(each.done() for each in asked))
            child.send_signal(stop)
            codes = [each.result() for each in asked]
        out, log = child.communicate(timeout=60)
    finally:
        child.kill()
    assert set(codes) <= {200, 503} and codes.count(200) > 1, codes
    lines = [json.loads(line) for line in log.splitlines()]
    assert child.returncode == 0 and "secret" not in log + out and all("time" in line for line in lines)


def answered(url, ask=None):
    "The status of an answer; 0 if nothing listens there."
    try:
        return (httpx.post(url, json=ask, timeout=60) if ask else httpx.get(url)).status_code
    except httpx.ConnectError:
        return 0


# --- an address as a side of a comparison, and an original in the shadow


def test_an_address_is_a_side_of_a_dossier(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = subject()
    small.save("small")
    (tmp_path / "text.txt").write_text("\n\n".join(f"{number} times {7 * number} is that" for number in range(600)))
    text = {"text": "text.txt", "n": 8, "context": 48}
    probes = ({"probe": "perplexity", **text}, {"probe": "answers", "length": 6, **text}, "size")
    with running(Service(small, "small", Bounds(context=256))) as address:
        dossier = cl.Study("small", {}, probes, copies={"server": f"{address}/v1"}).run("run")
        assert main(["compare", "small", f"{address}/v1", "--suite", "size", "--out", "again"]) == 0
        fingerprint = cl.load(f"{address}/v1?model=small").fingerprint
        swapped = cl.Study(f"{address}/v1", {}, probes[:2], copies={"ours": "small"}).run("swapped").table()
    assert swapped.index.tolist() == ["original", "ours"] and swapped.loc["ours"].notna().any()
    said = capsys.readouterr().out
    assert "the contexts are 8192 and 256 tokens" in said and "The weights of the model lie elsewhere." in said
    store, cells = Store("run"), {}
    for key in store.keys():
        result = store.get(key).result
        cells[result["recipe"], result["probe"]] = result
    assert cells["server", "size"]["status"] == "not measured" and cells["server", "size"]["fingerprint"] == fingerprint
    values = [cells[arm, "perplexity"]["values"]["perplexity"]["value"] for arm in ("original", "server")]
    assert abs(values[0] / values[1] - 1) < 1e-4
    assert cells["server", "answers"]["values"]["changed_answers"]["value"] == 0
    dossier.to_html("page.html")
    assert "The weights of the model lie elsewhere." in (tmp_path / "page.html").read_text()


def test_a_served_copy_has_its_original_in_the_shadow(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    subject().save("original")
    cl.RTN(3, 32).apply(subject()).save("copy")
    assert main(["serve", "copy", "--port", "0", "--shadow", "original"]) == 2
    assert "--promised-flips" in capsys.readouterr().err
    shadow = ["--shadow", "original", "--shadow-share", "1", "--promised-flips", "0.02", "--context", "500"]
    run = "import sys; from compress_lab.cli import main; sys.exit(main())"
    command = python_command("-c", run, "serve", "copy", "--port", "0", *shadow)
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=child_environment()
    )
    try:
        address = child.stdout.readline().rpartition(" ")[2].strip()
        assert address.startswith("http://127.0.0.1:"), child.stderr.read()
        [beside] = psutil.Process(child.pid).children()
        assert beside.nice() == 19
        until(lambda: answered(f"{address}/ready") == 200)
        for number in range(20):
            ask = {"model": "copy", "prompt": f"a secret prompt {number}", "max_tokens": 6, "temperature": 0}
            assert answered(f"{address}/v1/completions", ask) == 200
        until(lambda: shadowed(address) == 20, seconds=300)
        child.send_signal(signal.SIGTERM)
        out, log = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 0 and "secret" not in out + log and not beside.is_running()
    told = [json.loads(line) for line in log.splitlines()]
    [summary] = [line["shadow"] for line in told if "shadow" in line]
    assert summary["same"] + summary["changed"] == 20 and summary["changed"] > 10
    assert [line for line in told if line.get("alarm") == "agreement"] and summary["alarm"] <= 20


def shadowed(address):
    "The number of requests whose answers were compared, by the metrics of a server."
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    counts = {line.partition(" ")[0]: line.rpartition(" ")[2] for line in lines if "shadow_requests{" in line}
    return sum(float(counts[f'compress_lab_shadow_requests{{outcome="{outcome}"}}']) for outcome in ("same", "changed"))


# --- a monitor, its page and the way back


def command(*arguments):
    "A command of compress-lab, as a list."
    return python_command("-c", "import sys; from compress_lab.cli import main; sys.exit(main())", *arguments)


@contextmanager
def served(*options):
    "The address of a server in a process of its own, and what it has logged when it has ended."
    child, log = (
        subprocess.Popen(
            command("serve", *options, "--port", "0"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=child_environment(),
        ),
        [],
    )
    try:
        address = child.stdout.readline().rpartition(" ")[2].strip()
        assert address.startswith("http://127.0.0.1:"), child.stderr.read()
        until(lambda: answered(f"{address}/ready") == 200)
        yield address, log
        child.send_signal(signal.SIGTERM)
        out, said = child.communicate(timeout=60)
        log += [*out.splitlines(), *said.splitlines()]
        assert child.returncode == 0, said
    finally:
        child.kill()


def words(letters, count, seed):
    "Requests of words of some letters."
    random = np.random.default_rng(seed)
    return ["secret " + " ".join("".join(random.choice([*letters], 4)) for _ in range(6)) for _ in range(count)]


def asked_each(address, texts):
    for start in range(0, len(texts), 10):
        ask = {"model": "copy", "input": texts[start : start + 10]}
        assert answered(f"{address}/classify", ask) == 200


def test_a_monitor_rolls_a_drifting_copy_back(tmp_path, monkeypatch, capsys):
    pytest.importorskip("river")
    monkeypatch.chdir(tmp_path)
    original = subject("classifier")
    original.save("original")
    cl.RTN(3, 32).apply(original).save("copy")
    with served("copy", "--record", "good.jsonl") as (address, _):
        asked_each(address, words("abcdefgh", 320, 0))
    assert main(["calibrate", "good.jsonl", "--out", "reference", "--window", "20", "--level", "0.01"]) == 0
    back = shlex.join(command("rollback", "{address}")).replace("'{address}'", "{address}")
    monitor = ["--monitor", "watch", "--reference", "reference", "--original", "original"]
    with served("copy", *monitor, "--alarm-command", back, "--alarm-on", "drift") as (address, log):
        before = httpx.get(f"{address}/v1/models").json()["data"][0]["fingerprint"]
        asked_each(address, words("abcdefgh", 40, 1))
        page = httpx.get(f"{address}/dashboard")
        asked_each(address, words("stuvwxyz", 60, 2))
        until(lambda: httpx.get(f"{address}/v1/models").json()["data"][0]["fingerprint"] != before)
        asked_each(address, words("stuvwxyz", 20, 3))
        until(lambda: "Rolled back" in httpx.get(f"{address}/dashboard").text)
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "watch/alarms.jsonl").read_text().splitlines()]
    assert kinds[0] == "drift" and sorted(kinds[1:3]) == ["command", "rollback"]
    written = "".join(path.read_text() for path in (tmp_path / "watch").iterdir())
    assert "secret" not in written + "".join(log) + page.text + (tmp_path / "good.jsonl").read_text()
    assert "copy" in page.text and 'role="status"' in page.text
    capsys.readouterr()


@pytest.mark.parametrize(
    "options, said",
    [
        (["--monitor", "watch"], "compress-lab calibrate"),
        (["--reference", "reference"], "--monitor FOLDER"),
        (["--original", "http://127.0.0.1:1"], "behind an address"),
        (["--original", "other"], "tokenizer differs"),
        (["--record", "nowhere/good.jsonl"], "nowhere"),
    ],
)
def test_what_a_server_cannot_have_beside_it_is_refused(tmp_path, monkeypatch, capsys, options, said):
    monkeypatch.chdir(tmp_path)
    subject().save("copy")
    other = byte_tokenizer(TEMPLATE)
    other.add_tokens(["whole"])
    Subject(subject().model, other).save("other")
    assert main(["serve", "copy", "--port", "0", *options]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_browser_keeps_the_page_up_to_date(tmp_path):
    server_page, service = [], Service(subject("classifier"), "<b>copy</b>")
    bound, server = listen(port=0), process(service)
    server_page.append(add_dashboard(server))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        until(lambda: server.started)
        address = f"http://127.0.0.1:{bound.getsockname()[1]}"
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--timeout=4000"]
        shown = subprocess.run(
            [BROWSER, *options, "--dump-dom", f"{address}/dashboard"], capture_output=True, text=True, timeout=120
        ).stdout
    finally:
        server.should_exit = True
        thread.join(30)
        bound.close()
    assert "Live; last change" in shown and "&lt;b&gt;copy&lt;/b&gt;" in shown and "<b>copy" not in shown
