"""Puts the `rqat` command together; the way in is `main`.

Everything a user can put right is an `RqatError`: one message, no traceback, exit code 2, or 3 where the disk is full
or failing. Ctrl-C is 130, SIGTERM 143, SIGHUP 129. A bug keeps its traceback and is 1. Commands
import what they need when they run, so that `rqat --help` needs no torch.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from ..discovery import add_paths, fault_of
from ..errors import PluginError, RqatError
from ..model.memory import importing
from ..processes import WorkerFailed, work_alone
from ..quiet import quiet_imports
from ..storage import unusable
from . import (
    compare,
    doctor,
    evaluate,
    generate,
    grade,
    plan,
    plugins,
    push,
    qat,
    quantize,
    recipes,
    report,
    runs,
    sweep,
    tasks,
    traces,
)
from .display import harmless

if TYPE_CHECKING:
    from ..discovery import BrokenPlugin
    from ..registry import Registry

RESUMABLE = frozenset({"qat", "quantize", "sweep", "eval", "traces"})
"""Commands that resume where they stopped when they are given again."""


ANYWHERE = frozenset({"--offline", "-v", "-vv", "--verbose"})
"""Options of `rqat` itself that may stand behind a command."""

PLUGIN = "--plugin"
"""Another such option, with a value."""


@dataclass
class Invocation:
    """What every command can read as `context.obj`.

    Attributes:
        registry: every plugin there is.
        verbose: how many times `-v` was given: 1 shows rqat's log, 2 the libraries' as well.
        offline: nothing may be fetched.
    """

    registry: Registry
    verbose: int = 0
    offline: bool = False


class Commands(TyperGroup):
    """The command group, with rqat's way of reporting what went wrong."""

    registry: Registry | None = None

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Lets the options of `rqat` itself stand behind the command as well: `rqat qat --recipe mine --offline`."""
        own, rest = _own_options(args)
        return super().parse_args(ctx, own + rest)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Finds the command; where there is none, says which plugins could not add theirs."""
        silent = [b for b in self.registry.broken if "register_commands" in b.error] if self.registry else []
        if silent and args and self.get_command(ctx, args[0]) is None:
            raise SystemExit(_report(_no_command(args[0], silent)))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Runs a command; errors a user can put right end it with their exit code."""
        try:
            return super().invoke(ctx)
        except RqatError as error:
            raise typer.Exit(_report(error, verbose=bool(getattr(ctx.obj, "verbose", 0)))) from error
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")  # pydantic's words for who found it
            raise
        except Exception as error:
            if (refused := _refused(error, self.registry)) is None:
                raise
            raise typer.Exit(_report(refused, verbose=bool(getattr(ctx.obj, "verbose", 0)))) from error
        except KeyboardInterrupt as interrupt:  # or another signal: see `_end_by_signals`
            resumes = ctx.invoked_subcommand in RESUMABLE
            typer.echo(f"\nInterrupted.{' The same command resumes from here.' if resumes else ''}", err=True)
            _forget_interrupt()
            raise typer.Exit(_code(interrupt)) from interrupt


def main() -> None:
    """Entry point of the `rqat` script."""
    own, _ = _own_options(sys.argv[1:])
    _prepare_environment(offline="--offline" in own, verbose=bool(ANYWHERE & {*own} - {"--offline"}))
    add_paths(_paths(own))
    sys.unraisablehook = _raise_again
    _end_by_signals()
    try:
        work_alone()
        with importing():
            commands = build()
        commands(prog_name="rqat")
    except RqatError as error:
        _report(error)
        raise SystemExit(error.exit_code) from None
    except WorkerFailed as failed:  # it has a traceback of its own
        typer.echo(harmless(str(failed)), err=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt as interrupt:  # before the command was reached, while modules were being imported
        _forget_interrupt()
        raise SystemExit(_code(interrupt)) from None


def build() -> typer.Typer:
    """The command line with the built-in commands and those that plugins bring."""
    from ..registry import Registry

    registry = Registry.discover()
    app = typer.Typer(
        cls=type("Commands", (Commands,), {"registry": registry}),
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
        help="Quantization-aware training for reasoning language models at 2 and 3 bits.",
        epilog="Start with: rqat recipes ls",
    )

    @app.callback()
    def options(
        context: typer.Context,
        version: Annotated[
            bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
        ] = False,
        verbose: Annotated[
            int, typer.Option("--verbose", "-v", count=True, show_default=False, help="Show the log; twice: more.")
        ] = 0,
        offline: Annotated[
            bool, typer.Option("--offline", help="Fetch nothing; fail at once if something is missing.")
        ] = False,
        plugin: Annotated[
            list[str] | None,
            typer.Option(PLUGIN, metavar="FILE", help="Load a plugin from a file or a package; may be repeated."),
        ] = None,
    ) -> None:
        context.obj = Invocation(registry, verbose, offline)
        if offline:
            _go_offline()
        _start_logging(verbose)
        _tell_about_plugins(context)

    app.command("quantize")(quantize.quantize)
    app.command("qat")(qat.qat)
    app.command("sweep")(sweep.sweep)
    app.command("eval")(evaluate.evaluate)
    app.command("compare")(compare.compare)
    app.command("report")(report.report)
    app.command("push")(push.push)
    app.command("tasks")(tasks.tasks)
    app.command("grade")(grade.grade)
    app.command("traces")(traces.traces)
    app.command("generate")(generate.generate)
    app.command("plan")(plan.plan)
    app.add_typer(recipes.app(), name="recipes")
    app.add_typer(runs.app(), name="runs")
    app.add_typer(plugins.app(), name="plugins")
    app.command("doctor")(doctor.doctor)
    registry.add_commands(app)
    return app


def _refused(error: Exception, registry: Registry | None) -> RqatError | None:
    """What a user can put right of an exception, or tell the author of a plugin; None of a bug of rqat."""
    if type(error).__module__.partition(".")[0] in ("click", "typer"):  # a command's own way to end
        return None
    refused = unusable(error) if isinstance(error, OSError | RuntimeError) else None
    offered: list[Any] = [*registry.all_cards(), *registry.commands] if registry else []
    return refused or fault_of(error, {one.module: one.owner for one in offered if one.owner != "rqat"})


def _own_options(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options of `rqat` itself, which may stand anywhere before a `--`, and all that remains."""
    own: list[str] = []
    rest: list[str] = []
    words = iter(args)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word == PLUGIN:
            own += [word, *islice(words, 1)]
        else:
            (own if word in ANYWHERE or word.startswith(f"{PLUGIN}=") else rest).append(word)
    return own, rest


def _paths(own: Sequence[str]) -> list[str]:
    """What was given with `--plugin`."""
    joined = [word.partition("=")[2] for word in own if word.startswith(f"{PLUGIN}=")]
    return joined + [path for word, path in pairwise(own) if word == PLUGIN]


def _tell_about_plugins(context: typer.Context) -> None:
    """Warns of what was asked about plugins in vain; one that was given by its path has to offer something."""
    registry: Registry = context.obj.registry
    for complaint in registry.complaints:
        logging.getLogger("rqat").warning(complaint)
    if context.invoked_subcommand in ("plugins", "doctor"):
        return
    offering = {card.module for card in registry.all_cards()} | {command.module for command in registry.commands}
    for broken in (broken for broken in registry.broken if broken.by_path):
        if broken.name not in offering:
            raise PluginError(f"--plugin {broken.owner}: {broken.error}.", hint="`rqat -v plugins` shows where.")
        logging.getLogger("rqat").warning("%s", broken)


def _no_command(name: str, silent: Sequence[BrokenPlugin]) -> RqatError:
    return PluginError(
        f"There is no command '{name}', and plugins failed to add theirs: {'; '.join(map(str, silent))}.",
        hint="`rqat --help` lists the commands; `rqat -v plugins` shows where the plugins failed.",
    )


class _Lines(logging.Handler):
    """Writes to what stderr is at that moment, so that a line does not run through a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(f"{record.levelname.capitalize()}: {harmless(self.format(record))}", err=True)


def _end_by_signals() -> None:
    """Has SIGTERM, and SIGHUP unless `nohup` ignores it, end a command as Ctrl-C does, with an exit code of its own."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _interrupt)


def _interrupt(number: int, _: Any) -> None:
    raise KeyboardInterrupt(number)


def _code(interrupt: KeyboardInterrupt) -> int:
    """Exit code of a process that a signal has ended; without its number it is Ctrl-C's."""
    return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)


def _forget_interrupt() -> None:
    """Lets an interrupted process end with its own exit code.

    CPython 3.11 notes an interrupt that leaves code made from a string, such as that of a named tuple, and at the end
    kills itself by SIGINT even if the interrupt was dealt with. The next code made from a string clears the note.
    """
    eval("0")


def _raise_again(lost: Any) -> None:
    """Gives a signal another try when it came within a finalizer or a callback, where Python drops every exception."""
    if issubclass(lost.exc_type, KeyboardInterrupt):
        import threading

        number = _code(lost.exc_value or KeyboardInterrupt()) - 128
        # To the main thread itself: a signal is what wakes it where it waits.
        again = threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, number))
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(lost)


def _version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(f"rqat {__version__}")
        raise typer.Exit


def _report(error: RqatError, *, verbose: bool = False) -> int:
    """Writes a user's mistake to stderr: the message, and what to do on a line of its own; returns the exit code.

    With `-v` also where a plugin failed that is the cause.
    """
    if verbose and isinstance(error, PluginError) and error.__cause__ is not None:
        typer.echo(harmless("".join(traceback.format_exception(error.__cause__))), err=True)
    typer.echo(f"{typer.style('Error', fg='red', bold=True)}: {harmless(error.message)}", err=True)
    if error.hint:
        typer.echo(f"{typer.style('Hint', fg='cyan')}: {harmless(error.hint)}", err=True)
    return error.exit_code


def _prepare_environment(*, offline: bool, verbose: bool) -> None:
    """Sets what libraries read when they are imported; whatever the user has set stays."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if offline:
        _go_offline()
    if not verbose:
        quiet_imports()


def _go_offline() -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ[name] = "1"


def _start_logging(verbose: int) -> None:
    """Sends rqat's log to stderr: warnings always, the rest with `-v`; then other libraries' warnings come too."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    log = logging.getLogger("rqat")
    log.handlers = [_Lines()]
    log.propagate = False
    log.setLevel(level)
    if verbose:
        logging.basicConfig(level=logging.WARNING if verbose == 1 else logging.INFO)
    elif not logging.root.handlers:
        logging.root.addHandler(logging.NullHandler())  # else Python prints warnings that nobody handles
