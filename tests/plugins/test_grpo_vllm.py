"""GRPO with completions of a vLLM server: TRL's own client, against a small server that speaks vLLM's protocol.

Neither vLLM nor NCCL is here. What TRL takes from vLLM, and the way of the weights over NCCL, are stood in for; every
HTTP request is TRL's own.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from trl.generation import vllm_client, vllm_generation

from rqat import RqatError
from rqat.contracts import Context
from rqat.generation.engine import Engine
from rqat_grpo import Options
from rqat_grpo.objective import Grpo
from tests.plugins.test_grpo import training
from tests.tiny import tiny_model


class Server(ThreadingHTTPServer):
    """Writes with a model of its own, whose weights it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.model = tiny_model(5)
        self.asked: list[tuple[str, Any]] = []
        self.mode = "processed_logprobs"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, path: str, sent: Any) -> Any:
        self.asked.append((path, sent))
        if path == "/v1/models":
            return {"data": [{"id": "tiny"}]}
        if path.startswith("/server_info"):
            config = {"backend": "nccl"}
            return {"vllm_config": {"weight_transfer_config": config, "model_config": {"logprobs_mode": self.mode}}}
        if path == "/get_world_size":
            return {"world_size": 1}
        if path == "/v1/completions":
            return {"choices": [choice for prompt in sent["prompt"] for choice in self.write(prompt, sent)]}
        return {"success": True}

    def write(self, prompt: list[int], sent: Any) -> Iterator[dict[str, Any]]:
        settings = {"temperature": sent["temperature"], "ends": frozenset({1}), "logprobs": True}
        for tokens, logprobs in Engine(self.model).write([prompt] * sent["n"], sent["max_tokens"], **settings):
            names = [f"token_id:{token}" for token in tokens]
            said = {"tokens": names, "token_logprobs": logprobs, "top_logprobs": None}
            assert logprobs is not None
            said["top_logprobs"] = [{name: value} for name, value in zip(names, logprobs, strict=True)]
            yield {"prompt_token_ids": prompt, "token_ids": tokens, "logprobs": said}


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.reply(None)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.reply(json.loads(self.rfile.read(length)) if length else None)

    def reply(self, sent: Any) -> None:
        body = json.dumps(self.server.answer(self.path, sent)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()

    def connected(self: Any, device: Any) -> None:
        self._post(f"{self.base_url}/init_weight_transfer_engine", json={"init_info": {}})
        self.communicator = "the group"

    def sent(iterator: Any, group: str, src: int, post_iter_func: Any) -> None:
        assert (group, src) == ("the group", 0)
        weights = {item[0]: post_iter_func(item).clone() for item in iterator}
        made.model.load_state_dict(weights, strict=False)
        made.asked.append(("weights", sorted(weights)))

    for module in (vllm_client, vllm_generation):
        monkeypatch.setattr(module, "is_vllm_available", lambda *_, **__: True)
    for name, value in {
        "_HAS_STATEFUL_TRAINER_ENGINE": True, "_HAS_RESET_PREFIX_CACHE_SUCCESS": True,
        "packed_nccl_broadcast_producer": sent,
    }.items():  # fmt: skip
        monkeypatch.setattr(vllm_client, name, value, raising=False)
    monkeypatch.setattr(vllm_client.VLLMClient, "init_communicator", connected)
    monkeypatch.setattr(vllm_client.VLLMClient, "close_communicator", lambda self: None)
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def trainer_for(url: str, folder: Path) -> tuple[Any, Any]:
    def score(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [float(sum(ids) % 2) for ids in completion_ids]

    given = training(rewards=[score], reward_weights=[1.0], max_completion_tokens=7)
    given.rows = given.rows.select([row for row in range(2) for _ in range(4)])
    given.rollouts = None
    given.arguments |= {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": "none", "max_steps": 2,
        "logging_steps": 1, "disable_tqdm": True, "save_strategy": "no", "train_sampling_strategy": "sequential",
    }  # fmt: skip
    given.optimizer = torch.optim.SGD(given.model.parameters(), lr=0.5)
    given.scheduler = torch.optim.lr_scheduler.ConstantLR(given.optimizer, 1.0)
    return given, Grpo(Options(generations=4, rollouts={"engine": "vllm", "url": url})).build_trainer(given)


def test_completions_come_from_the_server_with_the_weights_as_they_are(server: Server, tmp_path: Path) -> None:
    given, trainer = trainer_for(server.url, tmp_path)
    trainer.train()
    paths = [path for path, _ in server.asked]
    assert paths.count("weights") == paths.count("/v1/completions") == 2
    assert paths.index("weights") < paths.index("/v1/completions")
    names = [name for name, _ in given.model.named_parameters()]
    assert dict(server.asked)["weights"] == sorted(names)
    [first, _] = [sent for path, sent in server.asked if path == "/v1/completions"]
    asked = {(4, 1.0, 1.0, 7)}
    assert {(first["n"], first["temperature"], first["top_p"], first["max_tokens"])} == asked
    assert first["prompt"][0] in given.rows["prompt_ids"]
    # The server holds the weights before the last step, which the trainer's log-probabilities of both steps agree with.
    lines = [line for line in trainer.state.log_history if "reward" in line]
    assert len(lines) == 2
    assert all(line["sampling/sampling_logp_difference/p95"] < 1e-3 for line in lines)


def test_a_server_that_is_not_there_is_told(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_client.VLLMClient, "check_server", refused)
    with pytest.raises(
        RqatError, match=r"the vLLM server at http://127.0.0.1:9 cannot write the completions: no answer"
    ):
        trainer_for("http://127.0.0.1:9", tmp_path)


def refused(self: Any, *_: Any) -> None:
    raise ConnectionError("no answer")


def test_what_a_server_needs_is_told_before_any_work() -> None:
    options = Options(rollouts={"engine": "vllm", "url": "http://localhost:8000"})
    found = [problem.text for problem in options.check(Context({"batch": 8, "max_tokens": 64}, device="cpu"))]
    assert found == [
        "vllm is not installed, whose server is to write the completions.",
        "a vLLM server gets its weights over NCCL, from a GPU; this trains on cpu.",
    ]


@pytest.mark.parametrize(
    ("rollouts", "says"),
    [
        ({"engine": "vllm"}, "needs a server; write {engine: vllm, url: http://localhost:8000}."),
        ({"engine": "rqat", "url": "http://a"}, "`url` goes with `engine: vllm`"),
        ({"engine": "vllm", "url": "localhost:8000"}, "'localhost:8000' is no address; write one like http://"),
        ({"engine": "vllm", "url": "http://me:secret@a"}, "holds a name or a password"),
        ("vlm", "Input should be"),
    ],
)
def test_rollouts_that_cannot_be(rollouts: Any, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        Options(rollouts=rollouts)
