"""Inputs made from what a file may hold, by hypothesis: recipes, `--set`, rows, problems, chat templates, manifests.

Where `mutate` changes good files a little, these are made anew, mostly of the right shape, so that they come further.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

from rqat.recipe_schema import json_schema
from rqat.yaml_lines import parse_value

from .kinds import RECIPE
from .mutate import ODD

SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20))
ODD_ONES = st.sampled_from([value for value in ODD if not isinstance(value, list | dict)])
VALUES = st.recursive(
    SCALARS | ODD_ONES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
"""Anything that JSON can say."""

DEEPEST = 7
"""References followed in a schema."""


def now_and_then(usual: st.SearchStrategy[Any], odd: st.SearchStrategy[Any] = VALUES) -> st.SearchStrategy[Any]:
    """`usual`, and one time of twelve `odd`."""
    return st.integers(0, 11).flatmap(lambda number: usual if number else odd)


# ------------------------------------------------------------------------------------------------------- recipes


def of_schema(schema: Mapping[str, Any], known: Mapping[str, Any], depth: int = 0) -> st.SearchStrategy[Any]:
    """Values of a JSON schema, as far as a recipe's goes; now and then others."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return of_schema(known[name], known, depth + 1) if depth < DEEPEST else SCALARS
    if "anyOf" in schema:
        return st.one_of([of_schema(one, known, depth) for one in schema["anyOf"]])
    if "const" in schema or "enum" in schema:
        return now_and_then(st.sampled_from(schema.get("enum") or [schema["const"]]))
    if "examples" in schema:
        return now_and_then(st.sampled_from(schema["examples"]))
    kind = schema.get("type")
    if kind == "object":
        own = {key: of_schema(one, known, depth + 1) for key, one in schema.get("properties", {}).items()}
        must = {key: own.pop(key) for key in schema.get("required", []) if key in own}
        whole = st.fixed_dictionaries(must, optional=own)
        for one in schema.get("allOf", []):  # of the parts that plugins offer, one and its options
            [(key, named)] = one["if"]["properties"].items()
            then = one["then"].get("properties", {})
            options = {name: of_schema(option, known, depth + 1) for name, option in then.items()}
            part = st.fixed_dictionaries({key: st.just(named["const"])}, optional=options)
            whole |= st.builds(dict.__or__, whole, part)
        return now_and_then(whole)
    if kind == "array":
        return now_and_then(st.lists(of_schema(schema.get("items", {}), known, depth + 1), max_size=3))
    plain: dict[Any, st.SearchStrategy[Any]] = {
        "integer": st.integers(-1, 600) | st.integers(),
        "number": st.floats(0, 1) | st.floats(),
        "boolean": st.booleans(),
        "null": st.none(),
        "string": st.text(max_size=12) | st.sampled_from(["arith", "w2g64", "gptq", "15m", "8", "*.down_proj"]),
    }
    return now_and_then(plain.get(kind, VALUES))


def recipes(model: str) -> st.SearchStrategy[bytes]:
    """The good recipe with some sections made anew."""
    schema = json_schema()
    good = parse_value(RECIPE.replace("MODEL", model), "recipe")
    sections = {
        key: of_schema(one, schema["$defs"]) for key, one in schema["properties"].items() if key not in ("extends",)
    }
    changed = st.sets(st.sampled_from(sorted(sections)), min_size=1, max_size=2)
    made = changed.flatmap(lambda keys: st.fixed_dictionaries({key: sections[key] for key in sorted(keys)}))
    return made.map(lambda values: _json({**good, **values}))


def forms(schema: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """What a schema allows, one by one, where it names others or several."""
    if "$ref" in schema:
        yield from forms(known[schema["$ref"].rpartition("/")[2]], known)
    elif "anyOf" in schema:
        for one in schema["anyOf"]:
            yield from forms(one, known)
    else:
        yield schema


def settable(
    schema: Mapping[str, Any], value: Any, known: Mapping[str, Any], key: str = ""
) -> Iterator[tuple[str, st.SearchStrategy[Any]]]:
    """Dotted keys that a recipe has or could have, with values for each that is neither a mapping nor a list.

    Args:
        value: of the recipe, or what it holds at `key`: options are those of the part that is named there.
    """
    for form in forms(schema, known):
        if isinstance(value, list) and form.get("type") == "array":
            for index, inner in enumerate(value):
                yield from settable(form["items"], inner, known, f"{key}{index}.")
        elif isinstance(value, dict) and form.get("type") == "object":
            fields = dict(form.get("properties", {}))
            for one in form.get("allOf", []):
                [(name, named)] = one["if"]["properties"].items()
                if value.get(name) == named["const"]:
                    fields |= one["then"].get("properties", {})
            for name, field in fields.items():
                if isinstance(value.get(name), dict | list):
                    yield from settable(field, value[name], known, f"{key}{name}.")
                else:
                    found = (bounded(one) for one in forms(field, known))
                    yield from ((f"{key}{name}", values) for values in found if values is not None)


def bounded(schema: Mapping[str, Any]) -> st.SearchStrategy[Any] | None:
    """Plain values within the bounds of a schema; None where it says too little of what is good."""
    if "const" in schema or "enum" in schema or "examples" in schema:
        return st.sampled_from(schema.get("enum") or schema.get("examples") or [schema["const"]])
    kind = schema.get("type")
    if kind in ("integer", "number"):
        low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
        high = schema.get("maximum", schema.get("exclusiveMaximum", low + (16 if kind == "integer" else 1)))
        if kind == "integer":
            return st.integers(low + ("exclusiveMinimum" in schema), high - ("exclusiveMaximum" in schema))
        ends = {f"exclude_{end}": f"exclusive{long}imum" in schema for end, long in (("min", "Min"), ("max", "Max"))}
        return st.floats(low, high, **ends)
    return {"boolean": st.booleans(), "null": st.none()}.get(kind or "")


def changes(model: str) -> st.SearchStrategy[bytes]:
    """What follows `--set`: two of three are keys of the good recipe with values within bounds; others are anything."""
    schema = json_schema()
    places = list(settable(schema, parse_value(RECIPE.replace("MODEL", model), "recipe"), schema["$defs"]))
    good = st.sampled_from(places).flatmap(lambda place: place[1].map(lambda value: f"{place[0]}={json.dumps(value)}"))
    words = ["train", "kd", "grpo", "0", "1", "9", "lr", "data", "rewards", "correct", "evaluate", "arith", "model", ""]
    words += [
        "path",
        "calibration",
        "samples",
        "scheme",
        "default",
        "export",
        "format",
        "quantize",
        "damp",
        "name",
        "*",
    ]
    key = st.lists(st.sampled_from(words) | st.text(max_size=4), min_size=1, max_size=4).map(".".join)
    value = VALUES.map(json.dumps) | st.text(max_size=30) | st.floats(0, 1).map(str)
    mark = now_and_then(st.just("=")).map(str)
    odd = st.builds(lambda left, mark, right: f"{left}{mark}{right}", key, mark, value)
    return st.one_of(good, good, odd).map(_bytes)


# ---------------------------------------------------------------------------------------------------------- rows


def rows(keys: tuple[str, ...], more: tuple[str, ...]) -> st.SearchStrategy[bytes]:
    """JSON lines whose rows have `keys`, and some of `more`, as texts or chats for the most part."""
    content = st.text(max_size=40) | st.sampled_from(["1+1=", "\\frac{1}{2}", "2", "<think>", "\\boxed{", "½"])
    message = st.fixed_dictionaries(
        {
            "role": now_and_then(st.sampled_from(["user", "assistant", "system", "tool"])),
            "content": now_and_then(content),
        }
    )
    value = now_and_then(content | content | st.lists(message, min_size=1, max_size=3))
    given = st.fixed_dictionaries(dict.fromkeys(keys, now_and_then(content)), optional=dict.fromkeys(more, value))
    row = now_and_then(given, st.dictionaries(st.sampled_from(keys + more), value, min_size=1, max_size=4))
    lines = st.lists(now_and_then(row).map(json.dumps), min_size=1, max_size=4)
    return st.builds(str.join, st.sampled_from(["\n", "\r\n", "\n\n"]), lines).map(_bytes)


def results() -> st.SearchStrategy[bytes]:
    """JSON lines of what evaluations and trainings leave."""
    number = now_and_then(st.integers(0, 5) | st.floats())
    text = now_and_then(st.text(max_size=20))
    fields = dict.fromkeys(("index", "seed", "step", "loss", "tokens", "reward", "lr", "seconds"), number)
    fields |= dict.fromkeys(("prompt", "completion", "answer"), text)
    fields["verdict"] = now_and_then(st.sampled_from(["correct", "wrong", "unverifiable"]))
    row = st.fixed_dictionaries({}, optional=fields)
    return st.lists(now_and_then(row).map(json.dumps), max_size=5).map("\n".join).map(_bytes)


def manifests() -> st.SearchStrategy[bytes]:
    """What a finished step says of itself."""
    part = st.dictionaries(st.sampled_from(["source", "quantizer", "name", "options", "path"]), VALUES, max_size=3)
    file = st.sampled_from(["a.json", "../a", "/etc/passwd", "a/../../b", "", "model.safetensors"]) | st.text(
        max_size=9
    )
    digest = now_and_then(st.just("0" * 64))
    stamp = st.fixed_dictionaries({"bytes": now_and_then(st.integers(0, 9)), "modified_ns": SCALARS, "head": digest})
    named: dict[str, st.SearchStrategy[Any]] = {
        "fingerprint": now_and_then(st.text(max_size=9)),
        "facts": now_and_then(st.dictionaries(st.sampled_from(["settings", "parts", "model", "stage"]), part | VALUES)),
        "files": now_and_then(st.dictionaries(file, digest, max_size=3)),
        "stamps": now_and_then(st.dictionaries(file, now_and_then(stamp), max_size=3)),
        "results": VALUES,
        "versions": now_and_then(st.dictionaries(st.sampled_from(["torch", "trl"]), SCALARS)),
        "seconds": SCALARS,
        **dict.fromkeys(("step", "stage", "variant"), now_and_then(st.text(max_size=9))),
    }
    return now_and_then(st.fixed_dictionaries({}, optional=named)).map(_json)


# ----------------------------------------------------------------------------------------------------- templates


def templates() -> st.SearchStrategy[bytes]:
    """Chat templates: blocks within blocks, of expressions that may or may not hold."""
    names = ("messages", "messages[0]", "m", "m.content", "m['role']", "m.content[:3]", "x", "loop.index0", "y")
    names += ("add_generation_prompt", "tools", "messages|length", "''.__class__", "range(9)", "1", "'a'", "none")
    atom = st.sampled_from(names)
    filters = ("trim", "upper", "tojson", "length", "join", "list", "first", "int", "items", "default('x')", "select")
    operators = ("+", "-", "~", "==", "in", "and", "%", "*", "is", "is not", "/")
    expression = st.recursive(
        atom,
        lambda inner: st.one_of(
            st.builds("{} | {}".format, inner, st.sampled_from(filters)),
            st.builds("({} {} {})".format, inner, st.sampled_from(operators), inner),
            st.builds(
                "{}({})".format, st.sampled_from(["strftime_now", "raise_exception", "range", "namespace"]), inner
            ),
        ),
        max_leaves=4,
    )
    leaf = st.one_of(st.text(max_size=9), st.builds("{{{{ {} }}}}".format, expression))
    blocks = st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.builds("{{% for m in {} %}}{}{{% endfor %}}".format, expression, inner),
            st.builds("{{% if {} %}}{}{{% else %}}{}{{% endif %}}".format, expression, inner, inner),
            st.builds("{{% set x = {} %}}{}".format, expression, inner),
            st.builds("{{% macro f(m) %}}{}{{% endmacro %}}{{{{ f({}) }}}}".format, inner, expression),
            st.builds("{{% generation %}}{}{{% endgeneration %}}".format, inner),
            st.lists(inner, min_size=2, max_size=4).map("".join),
        ),
        max_leaves=6,
    )
    # Most of them within a loop that writes what was asked, else all would be refused for losing it.
    around = "{{% set x = 'x' %}}{{% for m in messages %}}{{{{ m.content }}}}{}{{% endfor %}}"
    return now_and_then(st.builds(around.format, blocks), blocks).map(_bytes)


# ---------------------------------------------------------------------------------------------------------- all


def strategies(model: str) -> dict[str, st.SearchStrategy[bytes]]:
    """What makes inputs, by the name of their kind.

    Args:
        model: folder of one that recipes may name.
    """
    return {
        "recipe": recipes(model),
        "set": changes(model),
        "jsonl": rows(("prompt",), ("completion", "answer", "text", "messages", "system", "id")),
        "problems": rows(("problem", "answer"), ("question", "solution", "level", "unique_id")),
        "template": templates(),
        "manifest": manifests(),
        "step": manifests(),
        "results": results(),
    }


def each(strategy: st.SearchStrategy[bytes], number: int, count: int, take: Callable[[bytes], None]) -> None:
    """Hands `count` inputs to `take`, the same ones for the same `number`; fewer where a strategy has no more."""
    quiet = [
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.large_base_example,
        HealthCheck.filter_too_much,
    ]

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=quiet,
        verbosity=Verbosity.quiet,
    )
    @given(strategy)
    def one(data: bytes) -> None:
        take(data)

    one()


def _json(value: Any) -> bytes:
    return _bytes(json.dumps(value, default=str))


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")
