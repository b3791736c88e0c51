"""Recipes: what YAML means, what extends and --set do, and that every mistake is told with its line."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from rqat import RecipeError, RqatError, UnknownName
from rqat.problems import models_in
from rqat.recipe import LoadedRecipe, Recipe, built_recipe, find_recipe, load_recipe, shipped_recipes
from rqat.recipe_schema import json_schema
from rqat.registry import Registry
from rqat.yaml_lines import parse_value, read_yaml

WHOLE = """\
# a comment
name: whole
model: {path: some/model, dtype: float32}
scheme: w3g64
calibration:
  source: arith
  samples: 8
quantize:
  method: gptq
  damp: 0.02
compare: [rtn]
train:
  - objective: kd
    data: arith
    steps: 10
    lr: 1e-5
  - objective: grpo
    data:
      source: arith
      seed: 4
    task: arith
    steps: 2
    gate: {pass_rate: 0.2}
export: null
evaluate: [arith]
"""


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "whole.yaml"
    path.write_text(WHOLE)
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return caught.value.problems


def written(tmp_path: Path, text: str, name: str = "mine.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


# ------------------------------------------------------------------------------------------------------ reading


def test_a_whole_recipe(whole: Path):
    recipe = load_recipe(whole).recipe
    assert recipe.model.path == "some/model"
    assert recipe.quantize.options == {"damp": 0.02}
    assert recipe.compare[0].method == "rtn"
    assert recipe.train[0].lr == 1e-5
    assert recipe.train[0].data.source == "arith"
    assert recipe.train[1].gate.pass_rate == 0.2
    assert recipe.export is None
    assert recipe.evaluate[0].task == "arith"


def test_values_left_out_have_defaults(tmp_path: Path):
    recipe = load_recipe(written(tmp_path, "name: x\nmodel: m\nquantize: rtn\n")).recipe
    assert recipe == Recipe.model_validate({"name": "x", "model": {"path": "m"}, "quantize": {"method": "rtn"}})


def test_a_norm_without_end_clips_nothing(whole: Path):
    assert load_recipe(whole, ["train.0.max_grad_norm=.inf"]).recipe.train[0].max_grad_norm == math.inf


def test_places_are_lines(whole: Path):
    place = load_recipe(whole).place
    assert str(place.at("train", 0, "lr")) == f"{whole}:16 train.0.lr"
    assert str(place.at("train", 1, "data", "seed")) == f"{whole}:20 train.1.data.seed"
    assert str(place.at("compare", 0, "method")) == f"{whole}:11 compare.0.method"
    assert str(place.at("nothing")) == f"{whole} nothing"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("-2.5e-3", -2.5e-3),
        (".5", 0.5),
        ("3", 3),
        ("010", 10),
        ("true", True),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("null", None),
        ("", None),
        ("2026-01-02", "2026-01-02"),
        ("12:30", "12:30"),
        ("'1'", "1"),
        ("[1, 2e-1]", [1, 0.2]),
        ("{a: {b: no}}", {"a": {"b": "no"}}),
        ("w2g128", "w2g128"),
    ],
)
def test_values_follow_yaml_1_2(text: str, value: object):
    found = parse_value(text, "here")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", ": is empty."),
        ("# nothing\n", ": is empty."),
        ("- a\n", ":1: expected `key: value` lines"),
        ("words\n", ":1: expected `key: value` lines"),
        ("name: x\nmodel: [a\n", ":3: is not YAML"),
        ("name: x\n\tmodel: a\n", ":2: a tab; YAML is indented with spaces."),
        ("name: x\nmodel: a\nname: y\n", ":3 name: is written twice; first at {path}:1."),
        ("name: !!python/object:os.system x\n", ":1: the tag 'tag:yaml.org,2002:python/object:os.system' is not"),
        ("name: &a [*a]\n", ":1: nested deeper than 16 levels."),
        ("name: *nobody\n", ":1: is not YAML: found undefined alias"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, text: str, complaint: str):
    path = written(tmp_path, text)
    assert problems(path)[0].startswith(f"{path}{complaint.format(path=path)}")


def test_a_file_that_is_not_text(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "is not UTF-8" in problems(path)[0]


def test_every_mistake_is_told_at_once(tmp_path: Path):
    path = written(
        tmp_path,
        "name: x\nmodl: m\nmodel: m\nscheme: 7\nquantize: {metod: rtn}\ncalibration:\n  source: a\n  samples: many\n"
        "train:\n  - objective: kd\n    data: a\n    stesp: 3\n    gate: {action: stpo, promts: 3}\n",
    )
    assert problems(path) == [
        f"{path}:2 modl: 'modl' is not a key. Did you mean 'model'?",
        f"{path}:4 scheme: 7 is not text.",
        f"{path}:5 quantize.method: is missing. Did you mean it by 'metod'?",
        f"{path}:8 calibration.samples: 'many' is not a whole number.",
        f"{path}:10 train.0.steps: is missing. Did you mean it by 'stesp'?",
        f"{path}:13 train.0.gate.action: 'stpo' is not one of stop, skip, warn. Did you mean 'stop'?",
        f"{path}:13 train.0.gate.promts: 'promts' is not a key of train.0.gate. Did you mean 'prompts'?",
    ]


def test_a_string_or_number_where_a_mapping_belongs(tmp_path: Path):
    path = written(tmp_path, "name: x\nmodel: 3\nquantize: 7\ntrain: {objective: kd}\n")
    assert [line.split(": ")[0] for line in problems(path)] == [
        f"{path}:2 model",
        f"{path}:3 quantize",
        f"{path}:4 train",
    ]


# ------------------------------------------------------------------------------------------------------- finding


def test_shipped_recipes_are_found_by_name():
    assert "quickstart" in shipped_recipes()
    assert find_recipe("quickstart") == find_recipe("quickstart.yaml") == shipped_recipes()["quickstart"]


def test_a_file_comes_before_a_shipped_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "name: own", "quickstart.yaml")
    assert find_recipe("quickstart.yaml") == Path("quickstart.yaml")
    assert find_recipe("quickstart") == shipped_recipes()["quickstart"]


@pytest.mark.parametrize(("name", "hint"), [("quickstrat", "Did you mean 'quickstart'?"), ("no/such.yaml", "no file")])
def test_unknown_recipes(name: str, hint: str):
    with pytest.raises(UnknownName, match="is not a recipe") as caught:
        load_recipe(name)
    assert hint in caught.value.hint


# ------------------------------------------------------------------------------------------------------- extends


def extended(whole: Path, text: str) -> LoadedRecipe:
    return load_recipe(written(whole.parent, f"extends: whole.yaml\n{text}"))


def test_extending_merges_mappings_and_replaces_lists(whole: Path):
    loaded = extended(whole, "name: child\ncalibration: {samples: 99}\ncompare: [awq, rtn]\n")
    assert loaded.recipe.name == "child"
    assert loaded.recipe.calibration.source == "arith"
    assert loaded.recipe.calibration.samples == 99
    assert [keys.method for keys in loaded.recipe.compare] == ["awq", "rtn"]
    assert len(loaded.recipe.train) == 2


def test_places_of_an_extended_recipe_name_the_file_that_wrote_the_value(whole: Path):
    loaded = extended(whole, "calibration:\n  samples: 99\ncompare: [awq]\n")
    mine = whole.parent / "mine.yaml"
    assert str(loaded.place.at("calibration", "samples")) == f"{mine}:3 calibration.samples"
    assert str(loaded.place.at("calibration", "source")) == f"{whole}:6 calibration.source"
    assert str(loaded.place.at("compare", 0)) == f"{mine}:4 compare.0"


@pytest.mark.parametrize("entry", ["kd", "0"])
def test_one_entry_of_a_list_can_be_changed(whole: Path, entry: str):
    loaded = extended(whole, f"train:\n  {entry}:\n    lr: 3e-6\n")
    assert [keys.lr for keys in loaded.recipe.train] == [3e-6, 2e-5]
    assert loaded.recipe.train[0].steps == 10
    assert str(loaded.place.at("train", 0, "lr")) == f"{whole.parent / 'mine.yaml'}:4 train.0.lr"
    assert str(loaded.place.at("train", 0, "steps")) == f"{whole}:15 train.0.steps"


def test_a_teacher_is_a_model_by_name_or_with_keys(whole: Path):
    assert load_recipe(whole).recipe.train[0].teacher is None
    for text in ("some/teacher", "{path: some/teacher}"):
        for loaded in (
            extended(whole, f"train: {{kd: {{teacher: {text}}}}}\n"),
            extended(whole, f"train: [{{objective: kd, data: arith, steps: 3, teacher: {text}}}]\n"),
            load_recipe(whole, [f"train.kd.teacher={text}"]),
        ):
            teacher = loaded.recipe.train[0].teacher
            assert teacher is not None
            assert teacher.path == "some/teacher"


def test_an_entry_that_is_not_there(whole: Path):
    with pytest.raises(RecipeError, match=r"mine.yaml:3: 'train' has no entry 'sft'; write 0 to 1 or kd, grpo."):
        extended(whole, "train:\n  sft: {lr: 1}\n")
    for index in ("\u00b2", "9" * 5000, "-1"):  # digits of which Python makes no number among them
        with pytest.raises(RecipeError, match=r"'train' has no entry '.{1,59}'?; write 0 to 1 or kd, grpo\."):
            load_recipe(whole, [f"train.{index}.lr=1"])


def test_another_plugin_starts_with_its_own_options(whole: Path):
    loaded = extended(whole, "quantize: {method: rtn, clip: mse}\ncalibration: gsm8k\n")
    assert loaded.recipe.quantize.options == {"clip": "mse"}
    assert (loaded.recipe.calibration.source, loaded.recipe.calibration.samples) == ("gsm8k", 8)


def test_a_chain_and_a_circle(whole: Path):
    folder = whole.parent
    written(folder, "extends: b.yaml\nname: a\n", "a.yaml")
    written(folder, "extends: whole.yaml\nscheme: w2\n", "b.yaml")
    recipe = load_recipe(folder / "a.yaml").recipe
    assert (recipe.name, recipe.scheme) == ("a", "w2")
    written(folder, "extends: a.yaml\n", "b.yaml")
    assert problems(folder / "a.yaml") == [
        f"{folder / 'b.yaml'}:1 extends: recipes extend each other in a circle: a.yaml -> b.yaml -> a.yaml."
    ]


def test_extending_a_shipped_recipe_or_nothing(tmp_path: Path):
    loaded = load_recipe(written(tmp_path, "extends: quickstart\nname: own\n"))
    assert loaded.recipe.model.path == "builtin:tiny-reasoner"
    with pytest.raises(UnknownName, match=r"mine.yaml:1 extends: 'quick' is not a recipe"):
        load_recipe(written(tmp_path, "extends: quick\n"))
    assert "takes the name of one recipe" in problems(written(tmp_path, "extends: [a]\n"))[0]


# --------------------------------------------------------------------------------------------------------- --set


@pytest.mark.parametrize("key", ["train.0.lr", "train.kd.lr"])
def test_set_changes_a_value(whole: Path, key: str):
    loaded = load_recipe(whole, [f"{key}=3e-6"])
    assert loaded.recipe.train[0].lr == 3e-6
    assert str(loaded.place.at("train", 0, "lr")) == f"--set {key}"


def test_set_counts_the_entries_and_not_the_names_in_them(tmp_path: Path):
    """An objective names a task beside itself."""
    path = tmp_path / "three.yaml"
    path.write_text(
        "name: mine\nmodel: m\nquantize: rtn\ntrain:\n"
        "  - {objective: grpo, data: arith, task: arith, steps: 1, lr: 1.0}\n"
        "  - {objective: kd, data: arith, steps: 1, lr: 1.0}\n"
        "  - {objective: sft, data: arith, steps: 1, lr: 1.0}\n"
    )
    for index, name in enumerate(("grpo", "kd", "sft")):
        changed = load_recipe(path, [f"train.{name}.lr=0.5"]).recipe.train
        assert [entry.lr for entry in changed] == [0.5 if number == index else 1.0 for number in range(3)]
    with pytest.raises(RecipeError, match=r"'train' has no entry 'arith'; write 0 to 2 or grpo, kd, sft"):
        load_recipe(path, ["train.arith.lr=0.5"])


@pytest.mark.parametrize("text", [r'"a\ud800"', r'"a\0b"', r'{"\ud800": 1}'])
def test_what_is_no_text_is_refused(text: str):
    with pytest.raises(RecipeError, match="holds what is no text"):
        parse_value(text, "--set")


def test_set_takes_yaml(whole: Path):
    recipe = load_recipe(whole, ["quantize={method: awq, grid: 5}", "compare=[]", "export=gptq"]).recipe
    assert (recipe.quantize.method, recipe.quantize.options) == ("awq", {"grid": 5})
    assert recipe.compare == ()
    assert recipe.export.format == "gptq"


def test_set_another_plugin_drops_the_old_options(whole: Path):
    assert load_recipe(whole, ["quantize.method=rtn"]).recipe.quantize.options == {}
    assert load_recipe(whole, ["quantize.method=gptq"]).recipe.quantize.options == {"damp": 0.02}


def test_set_makes_mappings_that_are_not_there(tmp_path: Path):
    path = written(tmp_path, "name: x\nmodel: m\nquantize: rtn\n")
    recipe = load_recipe(path, ["calibration.source=arith", "calibration.steps=[1, 2]"]).recipe
    assert recipe.calibration.options == {"steps": [1, 2]}


def test_every_wrong_set_is_told(whole: Path):
    found = problems(
        whole, "scheme", "train.0.gate.promts=1", "modle.path=x", "train.7.lr=1", "name.first=x", "name={a"
    )
    assert [line.split(": ", 1)[1].split(";")[0] for line in found] == [
        "write it as key=value, e.g. --set train.0.lr=1e-5",
        "'promts' is not a key of train.0.gate. Did you mean 'prompts'?",
        "'modle' is not a key. Did you mean 'model'?",
        "'train' has no entry '7'",
        "'name' is 'whole'",
        "is not YAML: expected ',' or '}', but got '<stream end>' while parsing a flow mapping.",
    ]
    assert all(line.startswith("--set") for line in found)


# ------------------------------------------------------------------------------------------------- from commands


def test_a_recipe_built_by_a_command_names_its_flags():
    with pytest.raises(RecipeError) as caught:
        built_recipe({"name": "x", "model": "m", "quantize": "rtn", "scheme": 3}, {("scheme",): "--scheme"})
    assert caught.value.problems == ["--scheme: 3 is not text."]


def test_one_name_is_a_list_of_one(tmp_path: Path):
    path = written(tmp_path, "name: x\nmodel: m\nquantize: rtn\ncompare: gptq\nevaluate: arith\n")
    recipe = load_recipe(path).recipe
    assert [keys.method for keys in recipe.compare] == ["gptq"]
    assert [keys.task for keys in recipe.evaluate] == ["arith"]


def test_a_shipped_recipe_is_named_without_its_folder():
    assert re.fullmatch(r"quickstart\.yaml:\d+ model", str(load_recipe("quickstart").place.at("model")))


def test_building_changes_nothing_it_is_given():
    data = {"name": "x", "model": "m", "quantize": {"method": "rtn"}}
    built_recipe(data, {}, ["quantize.clip=mse"])
    assert data == {"name": "x", "model": "m", "quantize": {"method": "rtn"}}


# -------------------------------------------------------------------------------------------------------- schema


def test_the_json_schema_knows_every_option():
    schema = json_schema(Registry.discover())
    text = json.dumps(schema)
    for name in ("damp", "act_order", "temperature", "extends", "samples", "divergence"):
        assert f'"{name}"' in text
    refs = {part.split('"')[0] for part in text.split('"$ref": "#/$defs/')[1:]}
    assert refs <= set(schema["$defs"])


def test_shipped_recipes_fit_the_json_schema():
    jsonschema = pytest.importorskip("jsonschema")
    schema = json_schema(Registry.discover())
    for path in shipped_recipes().values():
        jsonschema.validate(read_yaml(path, path.name)[0], schema)
    for teacher in ("some/model", {"path": "some/model", "revision": "main"}, None):
        jsonschema.validate({"train": [{"objective": "kd", "teacher": teacher}]}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"train": [{"objective": "kd", "teacher": {"name": "some/model"}}]}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"quantize": {"method": "gptq", "damp": "much"}}, schema)


# ------------------------------------------------------------------------------------- merge keys, files, folders


MERGED = """\
name: merged
model: m
quantize: rtn
train:
  - &kd
    objective: kd
    data: arith
    steps: 4
  - <<: *kd
    steps: 8
  - <<: [{lr: 1e-4, steps: 9}, *kd]
"""


def test_a_merge_key_stands_in_for_what_a_mapping_leaves_out(tmp_path: Path):
    path = written(tmp_path, MERGED)
    first, second, third = load_recipe(path).recipe.train
    assert (second.objective, second.data, second.steps) == (first.objective, first.data, 8)
    assert (third.objective, third.lr, third.steps) == ("kd", 1e-4, 9)  # of several the first counts
    place = load_recipe(path).place
    assert str(place.at("train", 1, "data")) == f"{path}:7 train.1.data"
    assert str(place.at("train", 1, "steps")) == f"{path}:10 train.1.steps"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: x\nmodel: &m {<<: *m, path: y}\n", ":2: merges too many mappings, or itself."),
        ("name: x\nmodel: {<<: 3}\n", ":2: '<<' takes a mapping, or a list of such: <<: *name."),
    ],
)
def test_what_cannot_be_merged_is_told(tmp_path: Path, text: str, told: str):
    path = written(tmp_path, text)
    assert f"{path}{told}" in problems(path)


def test_merging_without_bound_is_refused(tmp_path: Path):
    levels = "\n".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 40)}]}}" for n in range(1, 8))
    assert "merges too many mappings" in problems(written(tmp_path, f"a0: &a0 {{x: 1}}\n{levels}\n"))[0]


def test_a_quoted_merge_key_is_a_key(tmp_path: Path):
    assert parse_value("{'<<': {a: 1}}", "x") == {"<<": {"a": 1}}


def test_a_file_that_is_not_utf8_is_told_with_its_line(tmp_path: Path):
    path = tmp_path / "latin.yaml"
    path.write_bytes("name: x\nmodel: m # \xe9t\xe9\n".encode("latin-1"))
    assert problems(path) == [f"{path}:2: is not UTF-8 (byte 0xe9); save the file as UTF-8."]


def test_a_folder_is_told_as_one_with_the_recipes_in_it(tmp_path: Path):
    with pytest.raises(RqatError) as caught:
        find_recipe(tmp_path)
    assert str(caught.value).startswith(f"'{tmp_path}' is a folder, not a recipe. It holds no .yaml file;")
    written(tmp_path, "name: x\n", "b.yaml")
    written(tmp_path, "name: x\n", "a.yml")
    with pytest.raises(RqatError, match=r"Name a file in it: a\.yml, b\.yaml"):
        find_recipe(tmp_path)
    path = written(tmp_path, f"extends: {tmp_path}\n", "c.yaml")
    with pytest.raises(RqatError, match=rf"{path}:1 extends: '{tmp_path}' is a folder"):
        load_recipe(path)


# --------------------------------------------------------------------------------------- dropping what is inherited


@pytest.mark.parametrize("change", ["train: {kd: null}", "train: -kd", "train: [-kd]", "train: {0: null}"])
def test_an_inherited_entry_can_be_dropped(tmp_path: Path, whole: Path, change: str):
    path = written(tmp_path, f"extends: {whole.name}\nname: mine\n{change}\n")
    loaded = load_recipe(path)
    assert [keys.objective for keys in loaded.recipe.train] == ["grpo"]
    assert str(loaded.place.at("train", 0, "data", "seed")) == f"{whole}:20 train.0.data.seed"


@pytest.mark.parametrize("change", ["train.kd=null", "train=-kd", "train.0=null"])
def test_an_entry_can_be_dropped_on_the_command_line(whole: Path, change: str):
    assert [keys.objective for keys in load_recipe(whole, [change]).recipe.train] == ["grpo"]


@pytest.mark.parametrize("section", ["train", "evaluate", "compare", "log", "export"])
def test_null_leaves_a_section_out(tmp_path: Path, whole: Path, section: str):
    path = written(tmp_path, f"extends: {whole.name}\n{section}: null\n")
    assert not getattr(load_recipe(path).recipe, section)
    assert not getattr(load_recipe(whole, [f"{section}=null"]).recipe, section)


def test_one_entry_can_go_while_another_changes(tmp_path: Path, whole: Path):
    path = written(tmp_path, f"extends: {whole.name}\ntrain: {{kd: null, grpo: {{steps: 7}}}}\n")
    loaded = load_recipe(path)
    assert [(keys.objective, keys.steps) for keys in loaded.recipe.train] == [("grpo", 7)]
    assert str(loaded.place.at("train", 0, "steps")) == f"{path}:2 train.0.steps"
    assert load_recipe(whole, ["train=[-kd, -grpo]"]).recipe.train == ()


def test_a_minus_drops_an_entry_beside_another_that_changes(tmp_path: Path, whole: Path):
    path = written(tmp_path, f"extends: {whole.name}\ntrain:\n  -kd:\n  grpo: {{steps: 7}}\n")
    assert [(keys.objective, keys.steps) for keys in load_recipe(path).recipe.train] == [("grpo", 7)]


@pytest.mark.parametrize("key", ["grpo: null", "-grpo:"])
def test_an_entry_beside_its_section_is_told_where_it_belongs(tmp_path: Path, whole: Path, key: str):
    path = written(tmp_path, f"extends: {whole.name}\n{key}\n")
    told = "stands under 'train': `train: {grpo: null}` drops it, `train: {grpo: {lr: 1e-5}}` changes a key of it."
    assert problems(path) == [f"{path}:2 {key.split(':')[0]}: {told}"]


def test_a_name_that_is_not_inherited_cannot_be_dropped(tmp_path: Path, whole: Path):
    path = written(tmp_path, f"extends: {whole.name}\ntrain: -sft\n")
    assert problems(path) == [f"{path}:2: 'train' has no entry 'sft'; write 0 to 1 or kd, grpo."]


# ------------------------------------------------------------------------------------------- files where a source is


@pytest.mark.parametrize(
    ("name", "source"),
    [("a.jsonl", "jsonl"), ("b.JSON", "jsonl"), ("c.csv", "table"), ("d.parquet", "table"), ("e.txt.gz", "text")],
)
def test_a_path_may_stand_where_a_source_is_expected(whole: Path, name: str, source: str):
    data = load_recipe(whole, [f"train.0.data={name}", f"train.1.data.source=x/{name}"]).recipe.train
    assert (data[0].data.source, data[0].data.options) == (source, {"path": name})
    assert (data[1].data.source, data[1].data.options, data[1].data.seed) == (source, {"path": f"x/{name}"}, 4)


def test_the_schema_says_what_every_key_means():
    schema = json_schema(Registry.discover())
    mapping = schema["$defs"]["TrainKeys"]["anyOf"][1]
    assert mapping["properties"]["lr"]["description"].startswith("learning rate of the latent weights. None: ")
    assert schema["properties"]["train"]["description"] == "objectives, in order."
    kd = next(each["then"] for each in mapping["allOf"] if each["if"]["properties"]["objective"]["const"] == "kd")
    assert all(kd["properties"][name].get("description") for name in kd["properties"])
    for model in models_in(Recipe):
        found = schema if model is Recipe else schema["$defs"][model.__name__]
        keys = next((each for each in found.get("anyOf", [found]) if "properties" in each), found)["properties"]
        assert [name for name, key in keys.items() if not key.get("description")] == [], model.__name__
