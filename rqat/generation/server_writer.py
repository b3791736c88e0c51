"""Writes completions by a server with OpenAI's API: vLLM, llama.cpp, SGLang and others.

The server gets tokens, not messages: the same ones that a model in this process gets, so that what it writes is graded
and compared as if it were written here. Its own settings of sampling are switched off by name.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..errors import ModelError
from .writer import REPORT_SECONDS, Written, limits_of

if TYPE_CHECKING:
    import torch
    import transformers

ATTEMPTS = 4
"""How often a request is made that the server is too busy for."""

TIMEOUT_S = 3600.0
"""How long one completion may take."""

NEUTRAL = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "repeat_penalty": 1.0}
"""What switches off the settings a server would take from the checkpoint or from itself; the names of several."""

BUSY = (429, 500, 502, 503, 504)

log = logging.getLogger("rqat")


@dataclass(frozen=True)
class ServedModel:
    """What has to be known of a model that a server runs; its weights are not.

    Attributes:
        config: its context is read from it.
        generation_config: its end tokens.
        device: where random numbers are drawn.
    """

    config: transformers.PretrainedConfig
    generation_config: transformers.GenerationConfig | None
    device: torch.device


class ServerWriter:
    """A `Writer` around a server's `/completions`, one request per prompt, all of a batch at the same time.

    Args:
        url: of the API, such as `http://localhost:8000/v1`.
        tokenizer: of the model that is served.
        model: what the server calls the model; None is the only one it has.

    Raises:
        ModelError: the server does not answer, or has no such model.
    """

    name = "server"
    at_once = 0

    def __init__(self, url: str, tokenizer: transformers.PreTrainedTokenizerBase, model: str | None = None) -> None:
        self.url, self.tokenizer = api_url(url), tokenizer
        self.model = model or self._only_model()
        self._neutral = dict(NEUTRAL)

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int | Sequence[int],
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        ends: frozenset[int] = frozenset(),
        seeds: Sequence[int] | None = None,
        logprobs: bool = False,
        tell: Callable[[int, int], None] | None = None,
        stream: Callable[[list[int]], None] | None = None,
    ) -> list[Written]:
        """See `Writer`.

        Raises:
            ModelError: the server refuses a prompt, or no longer answers.
        """
        import torch

        assert not logprobs, "a server's logprobs are not those of the sampler"
        seeds = torch.randint(2**31, (len(prompts),)).tolist() if seeds is None else seeds
        bodies = [
            {
                "model": self.model,
                "prompt": list(prompt),
                "max_tokens": limit,
                "temperature": temperature,
                "top_p": top_p,
                "seed": seed % 2**31,
            }
            for prompt, limit, seed in zip(prompts, limits_of(prompts, max_new_tokens), seeds, strict=True)
        ]
        answers = self._together(bodies, tell)
        return [Written(self._tokens(answer, ends)) for answer in answers]

    def _tokens(self, answer: Any, ends: frozenset[int]) -> list[int]:
        """Tokens of an answer; those of its text where the server does not name them."""
        try:
            choice = answer["choices"][0]
            text, reason = choice["text"], choice.get("finish_reason")
        except (KeyError, IndexError, TypeError) as error:
            raise ModelError(
                f"{self.url}/completions answers with {str(answer)[:100]!r}.", hint="Is it a server with OpenAI's API?"
            ) from error
        tokens = list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        if reason == "stop" and ends and tokens[-1:] not in [[end] for end in ends]:
            own = self.tokenizer.eos_token_id
            tokens.append(own if own in ends else min(ends))
        return tokens

    def _together(self, bodies: Sequence[dict[str, Any]], tell: Callable[[int, int], None] | None) -> list[Any]:
        """Answers to several requests at the same time."""
        answers: list[Any] = [None] * len(bodies)
        failed: list[BaseException] = []

        def ask(place: int) -> None:
            try:
                answers[place] = self._completion(bodies[place])
            except BaseException as error:
                failed.append(error)

        # Daemons: an interrupted run must not wait for completions that nobody reads.
        work = [threading.Thread(target=ask, args=(place,), daemon=True) for place in range(len(bodies))]
        for each in work:
            each.start()
        told = time.perf_counter()
        for each in work:
            while each.is_alive() and not failed:
                each.join(0.1)
                if tell and time.perf_counter() - told >= REPORT_SECONDS:
                    told = time.perf_counter()
                    there = [answer for answer in answers if answer is not None]
                    tell(len(there), sum(_count(answer) for answer in there))
        if failed:
            raise failed[0]
        return answers

    def _completion(self, body: dict[str, Any]) -> Any:
        try:
            return self._post("/completions", body | self._neutral)
        except ModelError as error:
            cause = error.__cause__
            refused = isinstance(cause, urllib.error.HTTPError) and cause.code in (400, 422)
            if not (refused and self._neutral):
                raise
        # Some take OpenAI's own settings only.
        answer = self._post("/completions", body)
        if self._neutral:
            self._neutral = {}
            log.warning("The server refuses %s; what it sets itself stays.", ", ".join(NEUTRAL))
        return answer

    def _only_model(self) -> str:
        found = self._post("/models", None)
        names = [str(each.get("id")) for each in found.get("data", [])] if isinstance(found, dict) else []
        if len(names) != 1:
            raise ModelError(
                f"{self.url} serves {len(names) or 'no'} models{': ' if names else ''}{', '.join(names[:10])}.",
                hint="Name one with --served-as.",
            )
        return names[0]

    def _post(self, path: str, body: dict[str, Any] | None) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        for attempt in range(1, ATTEMPTS + 1):
            try:
                request = urllib.request.Request(self.url + path, data, headers)
                with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                said = " ".join(error.read(500).decode(errors="replace").split())[:200]
                if error.code not in BUSY or attempt == ATTEMPTS:
                    raise ModelError(
                        f"{self.url}{path} answers {error.code}: {said or error.reason}",
                        hint="Its log may say more. The same command goes on with what is finished.",
                    ) from error
            except (OSError, ValueError) as error:
                refused = isinstance(getattr(error, "reason", error), ConnectionRefusedError)
                if refused or isinstance(error, ValueError) or attempt == ATTEMPTS:
                    raise ModelError(
                        f"{self.url}{path} does not answer as a server with OpenAI's API: {error}",
                        hint="Start the server, or mend --base-url. The same command goes on with what is finished.",
                    ) from error
            time.sleep(2 ** (attempt - 1))
        raise AssertionError


def api_url(url: str) -> str:
    """The address of the API; `/v1` where only a host is named.

    Raises:
        ModelError: it is no address.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ModelError(f"--base-url: '{url}' is no address.", hint="Write one like http://localhost:8000/v1.")
    plain = url.rstrip("/").removesuffix("/chat/completions").removesuffix("/completions")
    return f"{plain}/v1" if parts.path in ("", "/") else plain


def _count(answer: Any) -> int:
    usage = answer.get("usage") if isinstance(answer, dict) else None
    return int((usage or {}).get("completion_tokens") or 0)
