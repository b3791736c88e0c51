"""`rqat push`: an exported checkpoint and its card to the Hugging Face hub, in one commit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import RqatError, RunError
from ..figures import size
from ..stages.export.told import has_scores, scored, signed
from ..storage import read_json
from . import display
from .quantize import RECORD

CARD = "README.md"


@dataclass(frozen=True)
class Checkpoint:
    """What is pushed.

    Attributes:
        files: by their names in the repository, in order.
        card: text of its README.md.
    """

    folder: Path
    files: dict[str, Path]
    card: str

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of every file."""
        return {name: path.stat().st_size for name, path in self.files.items()} | {CARD: len(self.card.encode())}


def push(
    context: typer.Context,
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder that has exported, or an exported checkpoint's folder.")
    ],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME on the hub; made if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private, if it is made.")] = False,
    message: Annotated[str, typer.Option("--message", "-m", help="Of the commit.")] = "Upload by rqat",
    results: Annotated[
        list[Path] | None,
        typer.Option(
            "--results", metavar="FOLDER", help="Of `rqat eval` on this checkpoint, for its card; repeatable."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files and their bytes; send nothing.")] = False,
) -> None:
    """Push an exported model and its card to the Hugging Face hub. Log in before: hf auth login."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo, re.ASCII):
        raise RqatError(
            f"REPO '{repo}' is not OWNER/NAME.", hint="Write it as on the hub, e.g. someone/my-model-w2g128."
        )
    found = checkpoint(run, quantized_by=repo.partition("/")[0], results=results or ())
    for name, count in found.sizes.items():
        typer.echo(f"{count:>15,}  {display.harmless(name)}")
    total = sum(found.sizes.values())
    typer.echo(f"{total:>15,}  bytes in {len(found.sizes)} files: {size(total)}")
    if not has_scores(found.card):
        display.note(
            "The card has no scores: evaluate the checkpoint with `rqat eval`, and name the folder by --results."
        )
    if dry_run:
        display.note(f"Nothing was sent. Without --dry-run this goes to {repo}.")
        return
    if context.obj.offline:
        raise RqatError("--offline: nothing can be pushed.", hint="Leave --offline out, or add --dry-run.")
    display.note(f"Wrote {_send(found, repo, private=private, message=message)}")


def checkpoint(run: Path, *, quantized_by: str, results: Sequence[Path] = ()) -> Checkpoint:
    """The newest checkpoint of a run, or the one in the folder itself, with a card that says who quantized it.

    Args:
        results: folders of `rqat eval`, whose scores the card gives.

    Raises:
        RunError: there is none, or its files are not what was written; or results are of another model.
    """
    from ..run_folder import finished_steps, refuse_links

    refuse_links(run)
    folder = _exported(run, finished_steps(run))
    names = sorted(path for path in folder.rglob("*") if path.is_file())
    inside = {path.relative_to(folder).as_posix(): path for path in names}
    # Hidden files are of tools; the record beside a checkpoint of `rqat quantize` names folders of this machine.
    files = {name: path for name, path in inside.items() if not _is_hidden(name) and name not in (RECORD, CARD)}
    card = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else ""
    if not card or not any(path.suffix in (".safetensors", ".gguf") for path in files.values()):
        raise RunError(
            f"'{folder}' is no exported checkpoint: it lacks {'weights' if card else CARD}.",
            hint="Name a run whose recipe exports, or the folder that `rqat quantize -o` wrote.",
        )
    figures = _figures(results, folder)
    return Checkpoint(folder, files, signed(scored(card, figures) if figures else card, quantized_by))


def _exported(run: Path, steps: list[Path]) -> Path:
    """The folder of the checkpoint for others; where `run` is no run, itself.

    Raises:
        RunError: the run has none, or its files are not what was written.
    """
    from ..intact import read_manifest, verified
    from ..stages import stages

    if not run.is_dir():
        raise RunError(f"'{run}' does not exist.", hint="Name a run folder such as runs/quickstart.")
    ways = {name: stage.checkpoint for name, stage in stages().items() if stage.checkpoint}
    for step in reversed(steps):
        manifest = read_manifest(step)
        inside = ways.get(manifest["stage"]) if manifest else None
        if inside and (step / inside).is_dir():
            wrong = verified(step)
            if wrong:
                raise RunError(
                    f"'{step / wrong[0]}' changed since it was written; it is not pushed.",
                    hint="The command that made the run does the step again.",
                )
            return step / inside
    if steps:
        raise RunError(f"'{run}' has exported nothing.", hint="Run its recipe to the end, with `export`.")
    return run


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _figures(results: Sequence[Path], folder: Path) -> dict[str, Any]:
    """What evaluations of the checkpoint in `folder` have found, by task.

    Raises:
        RunError: there is no accuracy, or it is another model's.
    """
    found = {}
    for place in results:
        told = read_json(place / "results.json")
        if not isinstance(told, dict) or not isinstance(told.get("accuracy"), float):
            raise RunError(
                f"--results: '{place}' holds no evaluation on a task.", hint="Name what `rqat eval -o` wrote."
            )
        if Path(str(told.get("model"))).resolve() != folder.resolve():
            raise RunError(
                f"--results: '{place}' is of '{told.get('model')}', not of '{folder}'.",
                hint=f"rqat eval {told.get('task')} {folder} -o {place}",
            )
        found[str(told["task"])] = told
    return found


def _send(found: Checkpoint, repo: str, *, private: bool, message: str) -> str:
    """One commit with all files; the address of the model."""
    from huggingface_hub import CommitOperationAdd, HfApi

    operations = [CommitOperationAdd(name, path) for name, path in found.files.items()]
    operations.append(CommitOperationAdd(CARD, found.card.encode()))
    api = HfApi(library_name="rqat")
    with _explained(repo):
        # Nothing is said of visibility to a repository that is there already.
        url = api.create_repo(repo, private=private or None, exist_ok=True)
        api.create_commit(repo, operations, commit_message=message)
    return str(url)


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Turns the hub's refusals into one line."""
    from huggingface_hub import errors

    http: type[Exception] = errors.HfHubHTTPError.__mro__[
        1
    ]  # of the client that this release of the hub's package uses
    try:
        yield
    except (http, errors.HFValidationError, errors.LocalTokenNotFoundError, OSError) as error:
        response = getattr(error, "response", None)
        code = getattr(response, "status_code", None)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = "Check the network; the same command tries again."
        if code in (401, 403) or isinstance(error, errors.LocalTokenNotFoundError):
            hint = "Log in with a token that may write there: hf auth login"
        raise RqatError(f"The hub does not take '{repo}': {reason}", hint=hint) from error
