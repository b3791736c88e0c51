"""A server behind a URL as the third writer: the same tokens, graded by the same graders, and what can go wrong."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import rqat
from rqat.errors import ModelError
from rqat.evals.harness import run_task
from rqat.generation.backend import open_served
from rqat.generation.server_writer import ServerWriter, api_url
from rqat.generation.transformers_writer import TransformersWriter
from rqat.keys import ModelKeys
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer


class Lengths(rqat.Task):
    """Problems graded by what was written, so that a verdict tells one text from another."""

    def problems(self):
        return [{"prompt": f"problem {index}", "answer": "e"} for index in range(5)]

    def grade(self, completion, answer, row):
        return "correct" if answer in completion else "wrong"


class Server:
    """As much of OpenAI's API as servers of models share, in front of a tiny model.

    Attributes:
        asked: bodies of the requests for completions.
        fails: status codes that are answered first.
        strict: refuses what OpenAI's own API does not know.
        models: names of those it serves.
    """

    def __init__(self):
        self.asked, self.fails, self.strict, self.models = [], [], False, ["tiny"]
        self.writer, self.tokenizer, self.lock = (
            TransformersWriter(tiny_model(3, hidden=64)),
            tiny_tokenizer(),
            threading.Lock(),
        )
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.reply(200, {"data": [{"id": name} for name in server.models]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    server.asked.append(body)
                    if server.fails:
                        return self.reply(server.fails.pop(0), {"error": "not now"})
                    if server.strict and "top_k" in body:
                        return self.reply(400, {"error": "unknown field top_k"})
                    [written] = server.writer.write([body["prompt"]], body["max_tokens"], ends=frozenset({1}))
                ended = written.tokens[-1:] == [1]
                text = server.tokenizer.decode(written.tokens, skip_special_tokens=True)
                usage = {"completion_tokens": len(written.tokens)}
                reason = "stop" if ended else "length"
                return self.reply(200, {"choices": [{"text": text, "finish_reason": reason}], "usage": usage})

            def reply(self, code, value):
                self.send_response(code)
                self.end_headers()
                self.wfile.write(json.dumps(value).encode())

            def log_message(self, *arguments): ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server():
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("rqat.generation.server_writer.time.sleep", lambda seconds: None)


def test_a_server_gives_the_samples_that_the_model_gives_here(server, tmp_path):
    save_tiny(tmp_path, 3, hidden=64)
    task = Lengths(rqat.TaskOptions(max_new_tokens=12))
    here = run_task(task, "lengths", tiny_model(3, hidden=64), tiny_tokenizer(), batch=2)
    model, tokenizer = open_served(ModelKeys(path=str(tmp_path)))
    there = run_task(task, "lengths", model, tokenizer, batch=2, writer=ServerWriter(server.url, tokenizer))
    assert there.samples == here.samples
    assert there.results["prompt_hash"] == here.results["prompt_hash"]
    assert (there.results["backend"], here.results["backend"]) == ("server", "transformers")
    body = server.asked[0]
    assert body["model"] == "tiny"
    assert body["max_tokens"] == 12
    assert (body["temperature"], body["top_k"], body["repetition_penalty"]) == (0.0, -1, 1.0)


def test_seeds_reach_the_server(server, tmp_path):
    save_tiny(tmp_path, 3, hidden=64)
    task = Lengths(rqat.TaskOptions(max_new_tokens=2, temperature=0.7, top_p=0.9, seeds=(1, 2)))
    model, tokenizer = open_served(ModelKeys(path=str(tmp_path)))
    for _ in range(2):
        run_task(task, "lengths", model, tokenizer, writer=ServerWriter(server.url, tokenizer, "tiny"))
    assert {(body["temperature"], body["top_p"]) for body in server.asked} == {(0.7, 0.9)}
    seeds = [body["seed"] for body in server.asked]
    assert len(set(seeds)) == 10
    assert sorted(seeds[:10]) == sorted(seeds[10:])


def test_a_busy_server_is_asked_again_and_a_strict_one_without_settings(server):
    writer = ServerWriter(server.url, tiny_tokenizer())
    server.fails = [503, 429]
    [first] = writer.write([[5, 6]], 4)
    server.strict = True
    assert writer.write([[5, 6]], 4) == [first]
    assert "top_k" in server.asked[-2]
    assert "top_k" not in server.asked[-1]
    writer.write([[5, 6]], 4)
    assert "top_k" not in server.asked[-1]


def test_what_is_wrong_with_a_server_is_one_line(server):
    tokenizer = tiny_tokenizer()
    server.fails = [404]
    with pytest.raises(ModelError, match=r'answers 404: {"error": "not now"}'):
        ServerWriter(server.url, tokenizer).write([[5]], 4)
    server.models = ["one", "two"]
    with pytest.raises(ModelError, match="serves 2 models: one, two") as caught:
        ServerWriter(server.url, tokenizer)
    assert "--served-as" in caught.value.hint
    with pytest.raises(ModelError, match="does not answer as a server"):
        ServerWriter("http://127.0.0.1:9", tokenizer)
    with pytest.raises(ModelError, match="'localhost:8000' is no address"):
        ServerWriter("localhost:8000", tokenizer)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("http://host:8000", "http://host:8000/v1"),
        ("http://host:8000/v1/", "http://host:8000/v1"),
        ("https://host/api/v1/completions", "https://host/api/v1"),
        ("http://host/v1/chat/completions", "http://host/v1"),
    ],
)
def test_the_address_of_the_api(given, meant):
    assert api_url(given) == meant
