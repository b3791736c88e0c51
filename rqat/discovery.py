"""Finds the modules of plugins: built-ins by name, third parties by entry point, and files given by their path.

A plugin that does not import is reported in `Discovery.broken` and stops nothing else.

    RQAT_PLUGINS=my_quant.py:other/plugin    files or packages to load beside those that are installed
    RQAT_DISABLE_PLUGINS=rqat_gptq,acme-quant    leaves plugins out, by module or distribution
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from pathlib import Path
from types import ModuleType
from typing import Any

from .cards import spelled
from .errors import PluginError, nearest
from .hookspecs import API, OLDEST_API

GROUP = "rqat"
"""Entry-point group of third-party plugins."""

OWN = ("rqat", "rqat_kernels")
"""Packages whose faults are rqat's own."""

PATHS = "RQAT_PLUGINS"
DISABLED = "RQAT_DISABLE_PLUGINS"


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin, or a part of one, that could not be used.

    Attributes:
        name: its module, or the path it was given by.
        owner: its distribution.
        error: what went wrong, in one line.
        traceback: where, for `rqat -v plugins`; empty when the line says all.
        by_path: it was given by its path, so whoever started the command wants it.
    """

    name: str
    owner: str
    error: str
    traceback: str = ""
    by_path: bool = False

    @classmethod
    def of(
        cls, name: str, owner: str, error: str | BaseException, text: str = "", *, by_path: bool = False
    ) -> BrokenPlugin:
        """From what went wrong, in words or as an exception; `text` is the line to show in place of its own."""
        if isinstance(error, str):
            return cls(name, owner, error, by_path=by_path)
        trace = "" if isinstance(error, PluginError) else "".join(traceback.format_exception(error))
        return cls(name, owner, text or one_line(error), trace, by_path)

    def __str__(self) -> str:
        return f"{self.name} ({self.owner}): {self.error}"


@dataclass(frozen=True)
class Plugin:
    """A plugin's light module, imported.

    Attributes:
        owner: distribution it came with; "rqat" for built-ins, the file's name for one given by its path.
        version: of that distribution, or what a file given by its path says as `__version__`.
    """

    module: ModuleType
    owner: str
    version: str
    by_path: bool = False


@dataclass
class Discovery:
    """One look round.

    Attributes:
        builtin: modules of the plugins that come with rqat.
        broken: plugins that could not be imported.
        disabled: modules left out by RQAT_DISABLE_PLUGINS.
        complaints: what of the environment means nothing, one line each.
    """

    builtin: Sequence[str]
    broken: list[BrokenPlugin] = field(default_factory=list)
    disabled: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def plugins(self) -> Iterator[Plugin]:
        """Every plugin that imports, is not disabled, and fits this contract."""
        unwanted = [name.strip() for name in os.environ.get(DISABLED, "").split(",") if name.strip()]
        entries = sorted(entry_points(group=GROUP), key=lambda entry: (entry.value, entry.name))
        names = {spelled(name) for name in self.builtin}
        found = [*self._builtin(), *self._by_path(entries), *self._installed(entries)]
        meant: set[str] = set()
        for known_as, owner, release, load, by_path in found:
            names |= {spelled(name) for name in known_as}
            left_out = {spelled(name) for name in known_as} & {spelled(name) for name in unwanted}
            if left_out:
                meant |= left_out
                self.disabled.append(known_as[0])
                continue
            module = self._import(known_as[0], owner, load, by_path)
            if module is not None:
                yield Plugin(module, owner, release or str(getattr(module, "__version__", "0")), by_path)
        for name in unwanted:
            if spelled(name) not in meant:
                near = nearest(spelled(name), names)
                self.complaints.append(
                    f"{DISABLED}: '{name}' is no plugin.{f' Did you mean {near!r}?' if near else ''}"
                )

    def report(self, name: str, owner: str, error: str | BaseException, *, by_path: bool = False) -> None:
        """Notes a plugin, or a part of one, that cannot be used."""
        self.broken.append(BrokenPlugin.of(name, owner, error, by_path=by_path))

    def _builtin(self) -> Iterator[Any]:
        release = importlib.import_module("rqat").__version__
        for name in self.builtin:
            yield (name,), "rqat", release, lambda name=name: importlib.import_module(name), False

    def _by_path(self, entries: Sequence[EntryPoint]) -> Iterator[Any]:
        """Plugins given by their path. One that is installed as well is read from there, not from its installation."""
        self._seen = set(self.builtin)
        installed = {entry.value for entry in entries}
        for text in filter(None, os.environ.get(PATHS, "").split(os.pathsep)):
            path = Path(text).expanduser().absolute()
            name = path.stem if path.suffix == ".py" else path.name
            if name in self._seen and name not in self.builtin:
                continue
            self._seen.add(name)
            yield (name, path.name), path.name, "", self._loader(path, name, name in installed), True

    def _installed(self, entries: Sequence[EntryPoint]) -> Iterator[Any]:
        for entry in entries:
            owner, release = _owner(entry)
            if entry.value not in self._seen:
                self._seen.add(entry.value)
                yield (entry.module, owner, entry.name), owner, release, entry.load, False
            elif entry.value in self.builtin and spelled(owner) != "rqat":
                self.report(entry.value, owner, "this module name is reserved for a plugin that comes with rqat")

    def _loader(self, path: Path, name: str, installed: bool) -> Callable[[], ModuleType]:
        """Imports the plugin at a path under the name `name`, which no other module may have."""

        def load() -> ModuleType:
            file = path / "__init__.py" if path.is_dir() else path
            if not file.is_file():
                raise PluginError(f"there is no file {file}")
            if (path.suffix != ".py" and not path.is_dir()) or not name.isidentifier():
                raise PluginError("a plugin is a .py file, or a folder with __init__.py, whose name Python can import")
            if name in self.builtin:
                raise PluginError("this module name is reserved for a plugin that comes with rqat; rename the file")
            there = sys.modules.get(name)
            if there is not None and _same(there.__file__, file):
                return there
            spec = None if installed else importlib.util.find_spec(name)
            if there is not None or (spec is not None and not _same(spec.origin, file)):
                raise PluginError(f"there is another module '{name}'; rename the file")
            return _load(file, name)

        return load

    def _import(self, name: str, owner: str, load: Callable[[], Any], by_path: bool) -> ModuleType | None:
        try:
            module = load()
            if not isinstance(module, ModuleType):
                raise PluginError("its entry point does not name a module")
            _check_contract(module)
        except (Exception, SystemExit) as error:
            self.report(name, owner, error, by_path=by_path)
            return None
        return module


def add_paths(paths: Sequence[str]) -> None:
    """Has plugins loaded from files or packages, here and in the processes it starts."""
    absolute = [str(Path(path).expanduser().absolute()) for path in paths]
    before = [path for path in os.environ.get(PATHS, "").split(os.pathsep) if path]
    if absolute:
        os.environ[PATHS] = os.pathsep.join(dict.fromkeys([*before, *absolute]))


def module_called(name: str) -> str:
    """The module behind an entry point of this name, in any spelling; `name` itself where there is none."""
    modules = {spelled(entry.name): entry.module for entry in entry_points(group=GROUP)}
    return modules.get(spelled(name), name)


def one_line(error: BaseException) -> str:
    """Type and message of an exception, on one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, PluginError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def fault_of(error: BaseException, plugins: Mapping[str, str]) -> PluginError | None:
    """The line for an exception that a third party's code has raised itself; None where rqat's own, or nobody's, has.

    Libraries that the code has called in between do not count: what they refuse is told by whoever called them.

    Args:
        plugins: owners of third parties' plugins, by their modules.
    """
    for frame, line in reversed([*traceback.walk_tb(error.__traceback__)]):
        name = str(frame.f_globals.get("__name__", ""))
        module = next((known for known in plugins if f"{name}.".startswith(f"{known}.")), None)
        if module is not None:
            place = f"{frame.f_code.co_filename}:{line}, in {frame.f_code.co_name}"
            found = PluginError(
                f"The plugin '{module}' ({plugins[module]}) failed: {one_line(error)} ({place}).",
                hint="Tell whoever wrote it. The same command with -v shows the whole traceback.",
            )
            found.__cause__ = error
            return found
        if name.partition(".")[0] in OWN:
            return None
    return None


def _same(one: str | None, other: Path) -> bool:
    return one is not None and Path(one).resolve() == other.resolve()


def _load(file: Path, name: str) -> ModuleType:
    """Runs a module's file. Processes that this one spawns import by name, so its folder goes on the path."""
    package = file.name == "__init__.py"
    folder = str(file.parent.parent if package else file.parent)
    if folder not in sys.path:
        sys.path.append(folder)
    inside = [str(file.parent)] if package else None
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=inside)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _check_contract(module: ModuleType) -> None:
    """Refuses a plugin written for a contract that this rqat does not have."""
    wanted = getattr(module, "RQAT_API", API)
    if not isinstance(wanted, int) or isinstance(wanted, bool):
        raise PluginError(f"it says RQAT_API = {wanted!r}, which is not a whole number")
    if wanted > API:
        raise PluginError(f"it needs plugin contract {wanted}, and this rqat has {API}; install a newer rqat")
    if wanted < OLDEST_API:
        raise PluginError(
            f"it is written for plugin contract {wanted}, which this rqat no longer has (it has {API}); "
            "install a newer release of the plugin"
        )


def _owner(entry: EntryPoint) -> tuple[str, str]:
    """Distribution and version behind an entry point."""
    if entry.dist is None:
        return "unknown", "0"
    try:
        return entry.dist.name, version(entry.dist.name)
    except PackageNotFoundError:
        return entry.dist.name, "0"
