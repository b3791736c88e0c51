"""Cuts some parts of a plugin out of its code, for a copy that offers those alone.

Works on source text, so that comments and layout of what stays are as they were.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

Lines = tuple[int, int]
"""First and last line of a piece of code, counted from 1."""


def files_of(package: Path, loads: Collection[str]) -> set[str]:
    """Modules of a package that the submodules behind `loads` (".solver:Class") are made of, `__init__` left out."""
    waiting = [load.partition(":")[0].lstrip(".") for load in loads]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        file = package / f"{name.replace('.', '/')}.py"
        if not name or name in found or not file.is_file():
            continue
        found.add(name)
        waiting += [name for name, _ in _relative_imports(file.read_text(encoding="utf-8"))]
    return found


def data_of_others(package: Path, modules: Collection[str]) -> list[Path]:
    """Files of a package, Python's left out, whose name stands in the code of other modules than these alone."""
    kept, others = "", ""
    for file in package.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if ".".join(file.relative_to(package).with_suffix("").parts) in {*modules, "__init__"}:
            kept += text
        else:
            others += text
    data = (file for file in package.rglob("*") if file.is_file() and file.suffix != ".py")
    return [file for file in data if file.name in others and file.name not in kept]


def imported_from_card(package: Path, modules: Collection[str]) -> set[str]:
    """Names that modules of a package import from its `__init__`."""
    texts = [(package / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8") for name in modules]
    return {imported for text in texts for _, names in _relative_imports(text) for imported in names}


def keep_parts(code: str, kept: Collection[tuple[str, str]], needed: Collection[str] = ()) -> str:
    """The code of a card's module with the `register(...)` calls of other parts gone, and whatever only those used.

    Args:
        kept: hook and name of every part that stays.
        needed: names that other modules import.
    """
    code = _without(code, list(_other_cards(ast.parse(code), kept)))
    while unused := list(_unused(ast.parse(code), {*needed})):
        code = _without(code, unused)
    return _without_unused_imports(code, {*needed})


def with_docstring(code: str, text: str) -> str:
    """The code with another docstring of its module."""
    first = ast.parse(code).body[0]
    lines = code.splitlines(keepends=True)
    if ast.get_docstring(ast.parse(code)) is not None:
        del lines[first.lineno - 1 : first.end_lineno]
    return f'"""{text}"""\n' + ("" if lines[:1] == ["\n"] else "\n") + "".join(lines)


def with_names_in_docstrings(code: str, names: Mapping[str, str]) -> str:
    """The code with parts called by other names in the docstrings of its classes and functions, between backticks."""
    lines = code.splitlines(keepends=True)
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            text = node.body[0]
            for number in range(text.lineno - 1, text.end_lineno or text.lineno):
                lines[number] = re.sub(r"`([^`]+)`", lambda m: f"`{names.get(m[1], m[1])}`", lines[number])
    return "".join(lines)


def without_future_annotations(code: str) -> str:
    """The code without `from __future__ import annotations`, under which Typer cannot read a nested command.

    Annotations of functions that name what is not there when they are read become text.
    """
    tree = ast.parse(code)
    future = [n for n in tree.body if isinstance(n, ast.ImportFrom) and n.module == "__future__"]
    if not future:
        return code
    there = {name for node in tree.body for name in _bound(node)} | set(dir(builtins))
    encoded = [line.encode() for line in code.splitlines(keepends=True)]
    for note in sorted(_annotations(tree), key=lambda note: (note.lineno, note.col_offset), reverse=True):
        if note.lineno == note.end_lineno and not (_names(note) <= _there_at(tree, note.lineno, there)):
            line = encoded[note.lineno - 1]
            text = line[note.col_offset : note.end_col_offset]
            encoded[note.lineno - 1] = line[: note.col_offset] + b'"' + text + b'"' + line[note.end_col_offset :]
    blank = [not line.strip() for line in encoded] + [False]
    ends = [(node.lineno, node.end_lineno or node.lineno) for node in future]
    return _without(b"".join(encoded).decode(), [(start, end + blank[end]) for start, end in ends])


def _relative_imports(code: str) -> Iterator[tuple[str, list[str]]]:
    """Submodule ("" for the package itself) and names of every relative import."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield node.module or "", [alias.name for alias in node.names]


def _other_cards(tree: ast.Module, kept: Collection[tuple[str, str]]) -> Iterator[Lines]:
    for hook in tree.body:
        if not (isinstance(hook, ast.FunctionDef) and hook.name.startswith("register_")):
            continue
        gone = [node for node in hook.body if (name := _registered(node)) and (hook.name, name) not in kept]
        rest = [node for node in hook.body if node not in gone and not _is_text(node)]
        if gone and not rest:
            yield hook.decorator_list[0].lineno if hook.decorator_list else hook.lineno, hook.end_lineno or hook.lineno
        else:
            yield from ((node.lineno, node.end_lineno or node.lineno) for node in gone)


def _registered(node: ast.stmt) -> str:
    """The name that a statement `register("name", ...)` registers, or ""."""
    call = node.value if isinstance(node, ast.Expr) else None
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "register" and call.args:
        first = call.args[0]
        return str(first.value) if isinstance(first, ast.Constant) else ""
    return ""


def _unused(tree: ast.Module, needed: set[str]) -> Iterator[Lines]:
    """Classes, functions and constants of a module that nothing names; hooks and names with two underscores stay."""
    body = tree.body
    for number, node in enumerate(body):
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.If)):
            continue
        own = set(_bound(node))
        others = set().union(*(_names(other) for other in body if other is not node))
        stays = any(name.startswith(("__", "register_")) or name == "RQAT_API" for name in own)
        if own and not stays and not own & (others | needed):
            start = min(first.lineno for first in [node, *getattr(node, "decorator_list", ())])
            after = body[number + 1] if number + 1 < len(body) else None
            end = after if after is not None and _is_text(after) else node
            yield start, end.end_lineno or end.lineno


def _without_unused_imports(code: str, needed: set[str]) -> str:
    tree = ast.parse(code)
    named = set().union(*(_names(node) for node in tree.body if not isinstance(node, (ast.Import, ast.ImportFrom))))
    lines = code.splitlines(keepends=True)
    for node in reversed(tree.body):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and getattr(node, "module", "") != "__future__":
            stays = [a for a in node.names if (a.asname or a.name).partition(".")[0] in named | needed]
            if len(stays) < len(node.names):
                node.names = stays
                lines[node.lineno - 1 : node.end_lineno] = [f"{ast.unparse(node)}\n"] if stays else []
    return _tidy("".join(lines))


def _without(code: str, pieces: Collection[Lines]) -> str:
    lines = code.splitlines(keepends=True)
    for start, end in sorted(pieces, reverse=True):
        while start > 1 and lines[start - 2].startswith("#"):  # a comment above goes with it
            start -= 1
        del lines[start - 1 : end]
    return _tidy("".join(lines))


def _tidy(code: str) -> str:
    return re.sub(r"\n{4,}", "\n\n\n", code).rstrip("\n") + "\n"


def _bound(node: ast.stmt) -> list[str]:
    """Names that a statement of a module gives a meaning to; those of `if TYPE_CHECKING:` have none."""
    if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
        return [node.name]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [(alias.asname or alias.name).partition(".")[0] for alias in node.names]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _there_at(tree: ast.Module, line: int, all_names: set[str]) -> set[str]:
    """Names that mean something when the module is run up to a line."""
    later = {name for node in tree.body if (node.end_lineno or node.lineno) >= line for name in _bound(node)}
    return all_names - later


def _annotations(tree: ast.Module) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.annotation is not None:
            yield node.annotation
        elif isinstance(node, ast.FunctionDef) and node.returns is not None:
            yield node.returns


def _names(node: ast.AST) -> set[str]:
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
