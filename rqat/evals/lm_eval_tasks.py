"""Tasks that lm-evaluation-harness brings, by their own names: `gsm8k`, `hellaswag`, `mmlu`, ...

lm-eval's index of its 12,000 names takes ten seconds or more to build. Here the task's file is found by its name alone,
and only its own folder is indexed. Data that lies in files takes the place of the hub: lm-eval reads it through a YAML
of ours that includes the task's own.
"""

from __future__ import annotations

import copy
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import PackageNotFoundError, metadata, requires
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..contracts import TaskOptions
from ..errors import DataError, UnknownName, nearest
from ..generation.prompts import dated
from ..generation.sampling import foreign_settings, too_little_room
from ..quiet import hush
from .harness import Evaluation
from .lm_eval_results import results_of, samples_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import transformers
    from lm_eval.tasks import TaskManager

_NAMES = re.compile(rb"^(?:task|group|tag):[ \t]*[\"']?([\w.:/-]+)[\"']?[ \t]*(?:#.*)?\r?$", re.MULTILINE)

_NLTK_DATA = re.compile(r"nltk\.data\.find\(\s*[\"']([\w/]+)[\"']")
"""How a task's module looks for texts of nltk's, as it is imported, to fetch those that are missing."""

_NLTK_MISSING = re.compile(r"nltk\.download\('([\w-]+)'\)")
"""What nltk advises where such a text is missing."""


def run_lm_eval_task(
    name: str,
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    options: TaskOptions | None = None,
    *,
    limit: int | None = None,
    batch: int = 32,
    known: Iterable[str] = (),
) -> Evaluation:
    """Runs one task of lm-eval as lm-eval defines it: its prompts, its examples, its metrics.

    Args:
        options: only what is set explicitly counts: `data`, `max_new_tokens`, `temperature`, `top_p`, `chat`, the first
            of `seeds`. `data` is a file of the split that is evaluated, or a folder with one `<split>.jsonl` per split.
        limit: use the first `limit` problems only (of each subtask of a group).
        known: names of rqat's own tasks, for the error on an unknown one.

    Raises:
        UnknownName: lm-eval has no such task.
        DataError: the data is missing, or a prompt does not fit into the model's context.
    """
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    options = options or TaskOptions()
    given = {key: getattr(options, key) for key in options.model_fields_set}
    file = find_task(name, known)
    hush("lm_eval")
    # lm-eval asks git for the commit of the current folder, and git complains aloud where that is none.
    vars(evaluator)["get_git_commit_hash"] = lambda: None
    began = time.perf_counter()
    asked = copy.deepcopy(tokenizer)  # lm-eval gives it a pad token
    asked.chat_template = dated(tokenizer) if tokenizer.chat_template else None
    lm = _fitting(HFLM)(pretrained=model, tokenizer=asked, batch_size=batch)
    with _manager(name, file, given.get("data")) as manager, _explained(name, given.get("data")):
        found = evaluator.simple_evaluate(
            model=lm,
            tasks=[name],
            limit=limit,
            bootstrap_iters=0,
            gen_kwargs=_generation(given) or None,
            apply_chat_template=_chat(given, tokenizer),
            torch_random_seed=options.seeds[0] if options.seeds else 0,
            task_manager=manager,
        )
    assert found is not None
    results = results_of(name, found)
    metric = results["metric"] if "," in results["metric"] else None
    results["seconds"] = round(time.perf_counter() - began, 3)
    results["generation"] = {"batch": batch, "chat": _chat(given, tokenizer), **_generation(given)}
    results["notes"] = lm.notes
    if foreign := foreign_settings(model):
        results["notes"].append(f"lm-eval samples with the checkpoint's own settings where a task has none: {foreign}.")
    return Evaluation(results, samples_of(found, metric))


def find_task(name: str, known: Iterable[str] = ()) -> Path:
    """The YAML file that defines a task, a group or a tag of lm-eval; under a second once the files are in memory.

    Raises:
        UnknownName: there is none; the error names rqat's own tasks (`known`) and the nearest of lm-eval's.
    """
    root = _root()
    wanted = name.encode()
    names: set[str] = set()
    # The folder is often called like the task or its family.
    likely = [folder for folder in (root / name, root / name.split("_")[0]) if folder.is_dir()]
    for folder in [*dict.fromkeys(likely), root]:
        for parent, _, files in os.walk(folder):
            for file in files:
                if not file.endswith((".yaml", ".yml")):
                    continue
                path = Path(parent, file)
                found = _NAMES.findall(path.read_bytes())
                if wanted in found:
                    return path
                names.update(each.decode() for each in found)
    error = UnknownName(name, "task", known)
    # Comparing with all 12,000 takes seconds; nobody mistypes the first letter and the length.
    candidates = [each for each in names if each[:1] == name[:1] and abs(len(each) - len(name)) < 4]
    near = nearest(name, candidates)
    error.hint += f" lm-eval has {len(names)} tasks of its own" + (f", the nearest is '{near}'." if near else ".")
    raise error


def _root() -> Path:
    import importlib.util

    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "tasks"


def prepare_task(name: str, options: TaskOptions | None = None, known: Iterable[str] = ()) -> None:
    """Finds a task and everything it needs, its data among it, without a model.

    Raises:
        UnknownName, DataError: see `run_lm_eval_task`.
    """
    given = (options or TaskOptions()).data
    hush("lm_eval")
    file = find_task(name, known)
    # What modules of tasks print as they are imported is no result.
    with redirect_stdout(sys.stderr), _manager(name, file, given) as manager, _explained(name, given):
        manager.load([name])
        _find_nltk_data(name, file.parent)


def _find_nltk_data(name: str, folder: Path) -> None:
    """Looks for texts of nltk's that the modules of a task in `folder` read once all answers are written.

    Modules fetch them as they are imported, and nltk raises nothing where that fails.

    Raises:
        DataError: they are not here.
    """
    wanted = {found for path in folder.glob("*.py") for found in _NLTK_DATA.findall(path.read_text(encoding="utf-8"))}
    if not wanted:
        return
    import nltk

    for text in sorted(wanted):
        try:
            nltk.data.find(text)
        except LookupError as error:
            raise _without_nltk_data(name, text.rpartition("/")[2]) from error


def _without_nltk_data(name: str, text: str) -> DataError:
    return DataError(
        f"'{name}' needs nltk's data '{text}', which is neither on this machine nor reachable.",
        hint=f"Where there is a network: python -m nltk.downloader {text}; then copy ~/nltk_data here.",
    )


@contextmanager
def _manager(name: str, file: Path, data: str | None) -> Iterator[TaskManager]:
    """A task manager that knows one family of tasks; with `data`, one task that reads files."""
    from lm_eval.tasks import TaskManager

    _refuse_programs(name, file)
    if data is None:
        family = _root() / file.relative_to(_root()).parts[0]
        manager = TaskManager(include_path=str(family), include_defaults=False)
        with _explained(name):
            try:
                manager.load([name])
            except (KeyError, TypeError):  # a group whose tasks lie in other folders, which are then nowhere or None
                manager = TaskManager()
        yield manager
        return
    with tempfile.TemporaryDirectory(prefix="rqat-") as folder:
        Path(folder, "task.yaml").write_text(_override(name, file, Path(data).expanduser()), encoding="utf-8")
        yield TaskManager(include_path=folder, include_defaults=False)


def _refuse_programs(name: str, file: Path) -> None:
    """lm-eval runs what a model has written in its own process, if it is told to.

    Raises:
        DataError: the task in `file` is such a one.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    if load_yaml(file, resolve_func=False).get("unsafe_code"):
        raise DataError(
            f"'{name}' runs programs that a model has written, which rqat does only in a sandbox that you name.",
            hint="`rqat eval livecodebench` has one. lm_eval --confirm_run_unsafe_code runs it without.",
        )


def _override(name: str, file: Path, data: Path) -> str:
    """YAML of a task like the one in `file`, that reads its splits from `data`."""
    import yaml
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(file, resolve_func=False)
    if "group" in config or config.get("task") != name:
        raise DataError(f"'{name}' is a group of tasks; data can be given for one task.", hint="Name one of its tasks.")
    evaluated = config.get("test_split") or config.get("validation_split")
    if evaluated is None:
        raise DataError(f"'{name}' does not say which split it evaluates.", hint="Leave --data out.")
    shots = int(config.get("num_fewshot") or 0)
    others = {config.get("fewshot_split") or config.get("training_split")} if shots else set()
    wanted = [evaluated, *sorted(others - {None, evaluated})]
    # lm-eval reads every split that a task names, so those that are not needed are taken off.
    splits: dict[str, str | None] = dict.fromkeys(("training_split", "validation_split", "test_split", "fewshot_split"))
    splits["test_split"] = evaluated
    if others - {None}:
        splits["fewshot_split"] = wanted[-1]
    override = {
        "include": str(file),
        "task": name,
        "tag": None,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(_split_file(name, split, wanted, data)) for split in wanted}},
        **splits,
    }
    return yaml.safe_dump(override, sort_keys=False)


def _split_file(name: str, split: str, wanted: list[str], data: Path) -> Path:
    if data.is_file():
        if len(wanted) > 1:
            raise DataError(
                f"'{name}' puts solved examples into its prompts and needs the splits {' and '.join(wanted)}; "
                f"'{data}' is one file.",
                hint=f"Give a folder with {' and '.join(f'{each}.jsonl' for each in wanted)}.",
            )
        return data.resolve()
    for ending in (".jsonl", ".jsonl.gz", ".json"):
        if (data / f"{split}{ending}").is_file():
            return (data / f"{split}{ending}").resolve()
    what = "lacks" if data.is_dir() else "is no file or folder; it should be one with"
    raise DataError(f"'{data}' {what} the split {split}.jsonl for '{name}'.", hint="Check --data.")


def _fitting(base: type) -> Any:
    """lm-eval's Hugging Face model, which cuts long prompts, made to refuse them, or to note where it rates answers."""

    class Fitting(base):
        notes: list[str]

        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self.notes = []

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            longest = max(len(self.tok_encode(request.args[0])) for request in requests)
            room = self.max_length - longest
            if room < 1:
                raise DataError(
                    f"The longest prompt has {longest} tokens; the model's context holds {self.max_length}.",
                    hint="Use a model with a longer context, or fewer problems (`limit`).",
                )
            for request in requests:
                prompt, settings = request.args
                asked = int(settings.get("max_gen_toks", self.max_gen_toks))
                if less := too_little_room(room, asked):
                    request.arguments = (prompt, {**settings, "max_gen_toks": room})
                    note = f"The model's context holds {self.max_length} tokens: {less}"
                    if note not in self.notes:
                        self.notes.append(note)
            return super().generate_until(requests, disable_tqdm=disable_tqdm)

        def _loglikelihood_tokens(self, requests: Any, *more: Any, **named: Any) -> Any:
            # As lm-eval alone does, which says so in its log.
            cut = sum(len(asked) + len(answer) > self.max_length + 1 for _, asked, answer in requests)
            if cut:
                self.notes.append(
                    f"{cut} of {len(requests)} prompts with an answer to be rated are longer than the context of "
                    f"{self.max_length} tokens; they lose their beginning."
                )
            return super()._loglikelihood_tokens(requests, *more, **named)

    return Fitting


def _generation(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a task's generation that the user changed, in lm-eval's words."""
    settings: dict[str, Any] = {}
    if "max_new_tokens" in given:
        settings["max_gen_toks"] = given["max_new_tokens"]
    if given.get("temperature"):
        settings |= {
            "do_sample": True,
            "temperature": given["temperature"],
            "top_p": given.get("top_p", 1.0),
            "top_k": 0,
        }
    elif "temperature" in given:  # 0, whatever a task says
        settings |= {"do_sample": False, "temperature": 0.0}
    return settings


def _chat(given: Mapping[str, Any], tokenizer: transformers.PreTrainedTokenizerBase) -> bool:
    """lm-eval's default is no chat template; it is used when asked for."""
    return given.get("chat") == "yes" or (given.get("chat") == "auto" and bool(tokenizer.chat_template))


@contextmanager
def _explained(name: str, data: str | None = None) -> Iterator[None]:
    from jinja2 import UndefinedError

    try:
        yield
    except (UndefinedError, KeyError) as error:
        if data is None:  # then the rows are the task's own
            raise
        hint = f"Give rows with the fields that those of '{name}' have."
        raise DataError(f"'{data}': a row lacks a field that '{name}' asks with: {error}.", hint=hint) from error
    except _fetching_errors() as error:
        raise _missing(name, error) from error
    except ImportError as error:
        raise _without_package(name, error) from error
    except LookupError as error:  # nltk's own is no KeyError or IndexError, but this one itself
        if not (missing := _NLTK_MISSING.search(str(error))):
            raise
        raise _without_nltk_data(name, missing[1]) from error


def _without_package(name: str, error: ImportError) -> DataError:
    """A task of lm-eval's may need packages that only an extra of lm-eval brings, or one of rqat of the same name."""
    module = _missing_module(error)
    lines = [line.partition(";") for line in requires("lm_eval") or ()]
    extras = {
        found[1]: re.match(r"[\w.-]+", package.strip())[0]  # type: ignore[index]
        for package, _, condition in lines
        if (found := re.search(r"extra == ['\"]([\w-]+)['\"]", condition))
        and re.match(r"[\w.-]+", package.strip())[0].lower().replace("-", "_") == module.lower()  # type: ignore[index]
    }
    told = module or " ".join(str(error).split())
    hint = f"Install it: pip install {told}"
    if extras:
        ours = extras.keys() & _own_extras()
        hint = f"pip install 'rqat[{min(ours)}]'" if ours else f"pip install 'lm_eval[{min(extras)}]'"
    return DataError(f"'{name}' needs the package '{told}', which is not installed.", hint=hint)


def _missing_module(error: BaseException | None) -> str:
    """The package that an import lacks; some tasks say it in a text of theirs, behind which is the error that knows."""
    while error is not None and not getattr(error, "name", None):
        error = error.__cause__ or error.__context__
    return str(getattr(error, "name", "")).partition(".")[0]


def _own_extras() -> set[str]:
    try:
        return set(metadata("rqat").get_all("Provides-Extra") or ())
    except PackageNotFoundError:  # used from its source
        return set()


def _fetching_errors() -> tuple[type[Exception], ...]:
    import datasets

    return (ConnectionError, FileNotFoundError, datasets.exceptions.DatasetsError)


def _missing(name: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:200]
    return DataError(
        f"The data of '{name}' is neither in the cache nor reachable: {reason}",
        hint="Give its file, or a folder with one <split>.jsonl per split, with --data.",
    )
