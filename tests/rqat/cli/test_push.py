"""`rqat push` against a hub of a few lines, that speaks the real one's protocol and keeps what it is sent."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants
from typer.testing import CliRunner, Result

from rqat.cli.app import build
from rqat.intact import sealed
from rqat.storage import write_json

TOKEN = "hf_" + "x" * 34
LARGE = 1000
"""Bytes from which the fake hub wants a file by way of its large-file store."""


class Hub:
    """Repositories by name, files by path; what was asked is written down."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.tokens: set[str | None] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self._answer(*hub.post(self.path, self._body(), self.headers.get("Authorization")))

            def do_PUT(self) -> None:
                hub.blobs[self.path.rpartition("/")[2]] = self._body()
                self._answer(200, {})

            def do_GET(self) -> None:
                hub.asked.append(f"GET {self.path}")
                self._answer(404, {"error": "no such thing"})

            def _body(self) -> bytes:
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def _answer(self, code: int, value: Any) -> None:
                text = json.dumps(value).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                """Nothing on the screen."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def post(self, path: str, body: bytes, token: str | None) -> tuple[int, Any]:
        """The answer to a request."""
        self.asked.append(f"POST {path}")
        self.tokens.add(token)
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given['organization']}/{given['name']}"
            if name in self.repos:
                return 409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"}
            self.repos[name] = {}
            # Which of the two is sent depends on the release of huggingface_hub.
            self.private[name] = given.get("visibility") == "private" or given.get("private") is True
            return 200, {"url": f"{self.url}/{name}"}
        if path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            modes = {file["path"]: "lfs" if file["size"] >= LARGE else "regular" for file in files}
            return 200, {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]}
        if path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            sent = [{**one, "actions": {"upload": {"href": f"{self.url}/blob/{one['oid']}"}}} for one in objects]
            return 200, {"transfer": "basic", "objects": sent}
        if "/commit/" in path:
            self._commit(path.removeprefix("/api/models/").partition("/commit/")[0], body)
            return 200, {"success": True, "commitUrl": f"{self.url}/me/tiny/commit/{'0' * 40}", "commitOid": "0" * 40}
        return 404, {"error": f"unknown: {path}"}

    def _commit(self, repo: str, body: bytes) -> None:
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.repos[repo][value["path"]] = self.blobs[value["oid"]]

    def close(self) -> None:
        """Ends it."""
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    made = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", made.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield made
    made.close()


FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 20, "tokenizer.json": b"{1}"}
CARD = "---\nbase_model: some/one\nquantized_by: rqat\nmodel-index:\n- name: x\n  results: []\n---\n\n# tiny\n\ntext\n"


def write_checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run with an export step."""
    step = tmp_path / "run" / "01-export"
    write_checkpoint(step / "model")
    about = {"step": "01-export", "stage": "export", "variant": "kd", "fingerprint": "f", "facts": {}, "results": {}}
    write_json(step / "manifest.json", {**about, "seconds": 1.0, **sealed(step, without={"model/README.md"})})
    return tmp_path / "run"


def rqat(*arguments: object) -> Result:
    result = CliRunner().invoke(build(), [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_a_dry_run_lists_files_and_bytes_and_asks_nobody(run_folder: Path, hub: Hub) -> None:
    done = rqat("--offline", "push", run_folder, "me/tiny", "--dry-run")
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["5,120", "model.safetensors"] in lines
    assert [name for _, name, *_ in lines[:-1]] == [*FILES, "README.md"]
    assert lines[-1][1:5] == ["bytes", "in", "4", "files:"]
    assert "Nothing was sent" in done.stderr
    assert hub.asked == []


def test_a_run_is_pushed_whole(run_folder: Path, hub: Hub) -> None:
    done = rqat("push", run_folder, "me/tiny", "--private")
    assert done.exit_code == 0, done.output
    sent = hub.repos["me/tiny"]
    assert {name: sent[name] for name in FILES} == FILES
    assert hashlib.sha256(FILES["model.safetensors"]).hexdigest() in hub.blobs
    card = ModelCard(sent["README.md"].decode())
    assert card.data["quantized_by"] == "me"
    assert card.data["base_model"] == "some/one"
    assert card.text.strip() == "# tiny\n\ntext"
    assert hub.private["me/tiny"]
    assert f"Wrote {hub.url}/me/tiny" in done.stderr
    assert TOKEN not in done.output
    # Once more into what is there.
    assert rqat("push", run_folder, "me/tiny").exit_code == 0


def test_a_folder_of_quantize_goes_without_its_record(tmp_path: Path, hub: Hub) -> None:
    folder = write_checkpoint(tmp_path / "out")
    (folder / "rqat.json").write_text(json.dumps({"model": "/home/me/secret"}))
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x").write_text("secret")
    assert rqat("push", folder, "me/tiny").exit_code == 0
    assert set(hub.repos["me/tiny"]) == {*FILES, "README.md"}


def test_scores_of_an_evaluation_stand_in_the_card(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a checkpoint that no run has evaluated."""
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "out")
    figures = {"task": "math500", "model": "out", "n": 40, "accuracy": 0.75, "low": 0.6, "high": 0.86, "seeds": [1]}
    (tmp_path / "r").mkdir()
    write_json(tmp_path / "r" / "results.json", figures)
    assert "no scores" in rqat("push", "out", "me/tiny", "--dry-run").stderr
    done = rqat("push", "out", "me/tiny", "--results", "r")
    assert done.exit_code == 0
    assert "no scores" not in done.stderr
    card = ModelCard(hub.repos["me/tiny"]["README.md"].decode())
    assert card.data.eval_results[0].metric_value == 75.0
    assert "| math500 | 40 |  | 75.0 (60.0 to 86.0) |  |" in card.text
    write_json(tmp_path / "r" / "results.json", figures | {"model": "another"})
    other = rqat("push", "out", "me/tiny", "--results", "r")
    assert other.exit_code == 2
    assert "--results: 'r' is of 'another', not of 'out'" in other.stderr


def test_a_changed_file_is_not_pushed(run_folder: Path, hub: Hub) -> None:
    (run_folder / "01-export" / "model" / "config.json").write_text("{ }")
    done = rqat("push", run_folder, "me/tiny")
    assert done.exit_code == 2
    assert "config.json' changed since it was written" in done.stderr
    assert hub.asked == []


def test_what_the_hub_refuses_is_one_line(run_folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "y" * 34)
    done = rqat("push", run_folder, "me/tiny")
    assert done.exit_code == 2
    assert "Error: The hub does not take 'me/tiny': " in done.stderr
    assert "401" in done.stderr
    assert "hf auth login" in done.stderr
    assert "y" * 34 not in done.output


def test_no_network_is_one_line(run_folder: Path, hub: Hub) -> None:
    hub.close()
    done = rqat("push", run_folder, "me/tiny")
    assert done.exit_code == 2
    assert "The hub does not take 'me/tiny'" in done.stderr


@pytest.mark.parametrize(
    ("repo", "says"), [("tiny", "is not OWNER/NAME"), ("a/b/c", "is not OWNER/NAME"), ("../x", "is not OWNER/NAME")]
)
def test_a_repository_has_an_owner(run_folder: Path, repo: str, says: str) -> None:
    done = rqat("push", run_folder, repo, "--dry-run")
    assert done.exit_code == 2
    assert says in done.stderr


def test_what_cannot_be_pushed_says_why(tmp_path: Path, run_folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    bare = write_checkpoint(tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    (run_folder / "01-export" / "model").rename(tmp_path / "away")
    for folder, says in (
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path / "empty", "lacks README.md"),
        (bare, "lacks weights"),
        (run_folder, "has exported nothing"),
    ):
        done = rqat("push", folder, "me/tiny", "--dry-run")
        assert done.exit_code == 2
        assert says in done.stderr
    offline = rqat("--offline", "push", tmp_path / "away", "me/tiny")
    assert "--offline: nothing can be pushed" in offline.stderr
