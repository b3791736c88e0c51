"""The report in a browser: whatever its texts hold, nothing in them runs and nothing is asked for."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rqat.report.manifest import manifest_of
from rqat.report.page import document, page
from rqat.report.run_files import read_run
from rqat.report.summary import summary_of
from rqat.stage import WATCHED
from rqat.stages.export.told import licence_of, told
from tests.rqat.stages.test_card import CARD, PLAN, SUMMARY

from .test_report import job  # noqa: F401 (a fixture)

NAMES = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell", "chrome-headless-shell")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason=f"no browser: none of {', '.join(NAMES)} is installed"),
]

ATTACKS = (
    "<script>fetch('URL/script')</script>",
    "</title></style></script><script>fetch('URL/closed')</script>",
    "<img src='URL/image'><img src=x onerror=\"fetch('URL/onerror')\">",
    "\"'><img src=x onerror=\"fetch('URL/quoted')\">",
    "<svg onload=\"fetch('URL/svg')\"></svg>",
    "<iframe src='URL/frame'></iframe><iframe src=\"javascript:fetch('URL/javascript')\"></iframe>",
    "<link rel=stylesheet href='URL/sheet'><style>@import 'URL/import';</style>",
    "<object data='URL/object'></object><video src='URL/video' autoplay></video>",
    "<input autofocus onfocus=\"fetch('URL/focus')\"><details open ontoggle=\"fetch('URL/toggle')\">",
)

LEAVES = ("<a href=\"javascript:fetch('URL/link')\">x</a>", "<meta http-equiv=refresh content='0;url=URL/refresh'>")
"""Which no policy of a page forbids: escaping alone does."""


class Trap:
    """A server on this machine that writes down what is asked of it."""

    def __init__(self) -> None:
        asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_response(404)
                self.send_header("Access-Control-Allow-Origin", "*")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Nothing on the screen."""

        self.asked = asked
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def armed(self, texts: tuple[str, ...]) -> str:
        """Attacks that would ask this server."""
        return "".join(texts).replace("URL", f"http://127.0.0.1:{self._server.server_port}")

    def close(self) -> None:
        """Ends it."""
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def trap() -> Iterator[Trap]:
    made = Trap()
    yield made
    made.close()


def opened(html: str, folder: Path, *flags: str) -> str:
    """What a page has become after three seconds of its own time in a browser, that had nothing to complain of."""
    path = folder / "page.html"
    path.write_text(html, encoding="utf-8")
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += ["--disable-background-networking", "--virtual-time-budget=3000", "--enable-logging=stderr", *flags]
    done = subprocess.run([*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    if flags:
        assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout


MEASURE = """<script>
const wide = (one) => one.scrollWidth > one.clientWidth + 1;
const whole = document.documentElement;
const found = {page: wide(whole) ? [whole.scrollWidth] : [], bare: [], hidden: []};
for (const details of document.querySelectorAll("details")) details.open = true;
for (const one of document.querySelectorAll("body *")) {
  if (one.closest("svg")) continue;
  if (one.matches(".scroll") && wide(one)) found.hidden.push(one.innerText.slice(0, 40));
  const place = one.getBoundingClientRect();
  if (place.right > innerWidth + 1 && !one.closest(".scroll")) found.bare.push(one.outerHTML.slice(0, 90));
}
document.body.innerHTML = "";
document.body.append(JSON.stringify(found));
</script>"""
"""What is too wide: the page; anything outside the frames that show that they hold more; what such frames hide."""


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_clipped_without_a_hint(job: Any, tmp_path: Path, width: int, scheme: str) -> None:  # noqa: F811
    run = read_run(job)
    html = page(run, summary_of(run), manifest_of(run))
    policy = html[html.index('<meta http-equiv="Content-Security-Policy"') :].partition("\n")[0]
    measured = html.replace(policy, "").replace("</body>", f"{MEASURE}</body>")
    flags = (f"--window-size={width},900", f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}")
    shown = opened(measured, tmp_path, *flags)
    found = json.loads(unescape(shown[shown.index("<body>") + 6 : shown.rindex("</body>")]))
    assert found["page"] == []
    assert found["bare"] == []
    # On a laptop every column of the tables of figures is seen; on a phone their frames have a shadow and a bar.
    assert not found["hidden"] or width == 400


def poisoned(value: Any, poison: str) -> Any:
    """The same with an attack behind every text that decides nothing."""
    if isinstance(value, dict):
        return {key: inner if key == "stage" else poisoned(inner, poison) for key, inner in value.items()}
    if isinstance(value, list):
        return [poisoned(inner, poison) for inner in value]
    return f"{value}{poison}" if isinstance(value, str) and value not in ("correct", "wrong") else value


def test_the_trap_springs_where_nothing_protects(trap: Trap, tmp_path: Path) -> None:
    opened(f"<!doctype html><title>x</title><body>{trap.armed(ATTACKS)}</body>", tmp_path)
    expected = {"/script", "/closed", "/onerror", "/quoted", "/svg", "/javascript", "/image", "/sheet", "/frame"}
    assert expected <= set(trap.asked)


def test_the_pages_policy_alone_stops_what_is_not_escaped(trap: Trap, tmp_path: Path) -> None:
    assert "<section>" in opened(document("x", [f"<section>{trap.armed(ATTACKS)}</section>"]), tmp_path)
    assert not trap.asked


def test_a_report_with_scripts_in_every_text_runs_and_fetches_nothing(
    job: Any,  # noqa: F811
    trap: Trap,
    tmp_path: Path,
) -> None:
    poison = trap.armed(ATTACKS + LEAVES)
    for path in [*job.folder.glob("*/*.jsonl"), *job.folder.glob("*/layers.json")]:
        many = path.suffix == ".jsonl"
        rows = poisoned([json.loads(line) for line in path.read_text().splitlines()] if many else [], poison)
        if path.name == "training.jsonl":
            rows = [{**row, f"{WATCHED}{poison}": 0.5} for row in rows]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        path.write_text(text if many else json.dumps(poisoned(json.loads(path.read_text()), poison)))
    run = read_run(job)
    assert len(run.steps) > 10
    run.steps = [
        replace(
            step,
            variant=poisoned(step.variant, poison),
            facts=poisoned(step.facts, poison),
            results=poisoned(step.results, poison),
            manifest=poisoned(step.manifest | {"told": ["told"], "versions": {"torch": "1"}}, poison),
        )
        for step in run.steps
    ]
    plan = poisoned(run.plan, poison)
    run = replace(run, name=poison, scheme=poison, device=poison, recipe=poisoned(run.recipe, poison), plan=plan)
    manifest = poisoned(manifest_of(run), poison)
    html = page(run, summary_of(run), manifest)
    assert html.count("&lt;script&gt;") > 100
    shown = opened(html, tmp_path)
    assert shown.count("&lt;script&gt;") > 100
    assert not trap.asked


def test_a_model_card_with_scripts_in_every_text_runs_and_fetches_nothing(trap: Trap, tmp_path: Path) -> None:
    """As a reader makes a page of it that lets all HTML through, its front matter too."""
    from markdown_it import MarkdownIt

    poison = trap.armed((*ATTACKS, "![x](URL/markdown)", "\n\n<script>fetch('URL/behind')</script>\n\n```\n", *LEAVES))
    (tmp_path / "README.md").write_text(
        f"---\nlicense: {json.dumps(poison)}\nlicense_name: {json.dumps(poison)}\n"
        f"license_link: {json.dumps(trap.armed(LEAVES))}\n---\n"
    )
    licence = licence_of(tmp_path)
    assert {*licence} == {"license", "license_name"}
    summary = {
        "tasks": {
            f"{task}{poison}": {"kd": found["kd"] | {"backend": poison}} for task, found in SUMMARY["tasks"].items()
        },
        "paired": poisoned(SUMMARY["paired"], poison),
    }
    plan = poisoned(PLAN, poison) | {"recipe": {poison: [poison, {"a": poison}]}}
    text = told(CARD, variant="kd", summary=summary, plan=plan, licence=licence)
    assert "script_" in text
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    shown = opened(f"<!doctype html><body>{page}</body>", tmp_path)
    assert "How it was made" in shown
    assert not trap.asked


FILTER = """<script>
const seen = {};
for (const kind of ["all", "changed", "lost", "gained"]) {
  document.getElementById("filter-" + kind).checked = true;
  seen[kind] = [...document.querySelectorAll(".problem")].filter((one) => one.offsetParent !== null).length;
}
document.body.innerHTML = JSON.stringify(seen);
</script>"""


def test_the_filter_needs_no_script(job: Any, tmp_path: Path) -> None:  # noqa: F811
    run = read_run(job)
    html = page(run, summary_of(run), manifest_of(run))
    policy = html[html.index('<meta http-equiv="Content-Security-Policy"') :].partition("\n")[0]
    shown = opened(html.replace(policy, "").replace("</body>", f"{FILTER}</body>"), tmp_path, "--window-size=1280,900")
    seen = json.loads(unescape(shown[shown.index("<body>") + 6 : shown.rindex("</body>")]))
    assert seen["lost"] == 2
    assert seen["gained"] == 0
    assert seen["all"] > seen["changed"] > seen["lost"]
