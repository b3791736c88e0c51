"""Discovery of plugins: everything is found, failures have names, and one plugin's failure is nobody else's."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
import typer

import rqat
from rqat import Options, PluginError, RecipeError, UnknownName
from rqat.registry import BUILTIN, KINDS, Card, Registry
from tests.plugin_maker import QUANTIZER, write_metadata, write_plugin


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder on the path to install plugins into; what is imported from it is forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def acme(name: str = "acme", load: str = ":Acme") -> str:
    return QUANTIZER.format(name=name, load=load)


def errors(registry: Registry) -> str:
    return "\n".join(map(str, registry.broken))


# ------------------------------------------------------------------------------------------------- what is there


def test_every_built_in_is_found():
    registry = Registry.discover()
    assert not registry.broken
    assert not registry.clashes
    cards = [card for kind in KINDS for card in registry.cards(kind)]
    assert {card.module for card in cards} == set(BUILTIN)
    assert {card.owner for card in cards} == {"rqat"}
    assert {"rtn", "gptq", "awq"} <= {card.name for card in registry.cards("quantizer")}
    assert {"sft", "kd", "grpo"} <= {card.name for card in registry.cards("objective")}


@pytest.mark.slow
def test_every_built_in_class_loads_and_is_described():
    registry = Registry.discover()
    for kind in KINDS:
        for card in registry.cards(kind):
            assert registry.load_class(card)
            assert card.summary
            assert "\n" not in card.summary


def test_a_third_party_plugin_is_found_by_its_entry_point(site: Path):
    write_plugin(site, "rqat-acme-quant", acme())
    registry = Registry.discover()
    card = registry.card("quantizer", "acme")
    assert (card.owner, card.version, card.module) == ("rqat-acme-quant", "1.2", "rqat_acme_quant")
    made = registry.make(card, registry.options(card, {"strength": 1}))
    assert made.options.strength == 1.0


def test_a_class_in_a_submodule_is_imported_only_when_used(site: Path):
    package = site / "rqat_acme"
    package.mkdir()
    (package / "solver.py").write_text(
        "import rqat\nclass Acme(rqat.Quantizer):\n    def quantize_linear(self, weight, stats, scheme): ...\n"
    )
    (package / "__init__.py").write_text(acme(load=".solver:Acme"))
    write_metadata(site, "rqat-acme", "rqat_acme")
    registry = Registry.discover()
    assert "rqat_acme.solver" not in sys.modules
    assert registry.load_class(registry.card("quantizer", "acme")).__module__ == "rqat_acme.solver"


# ------------------------------------------------------------------------------------------------- what is wrong


def test_an_unknown_name_is_told_with_the_nearest():
    registry = Registry.discover()
    with pytest.raises(UnknownName) as caught:
        registry.card("quantizer", "gtpq", "mine.yaml:7 quantize.method")
    known = ", ".join(card.name for card in registry.cards("quantizer"))
    assert "awq, block-ap, gptq, " in known
    assert str(caught.value) == (
        f"mine.yaml:7 quantize.method: 'gtpq' is not a quantizer. Known: {known}. Did you mean 'gptq'?"
    )


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("import nowhere_to_be_found", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemError('out\\nof order')", "SystemError: out of order"),
        ("x = 1", "implements no hook"),
        (
            "import rqat\nclass Mine:\n    @rqat.hookimpl\n    def register_quantizers(self, register): ...",
            "its hooks are methods of 'Mine': write them as functions of the module",
        ),
        (acme().replace("register_quantizers", "register_quantizer"), "did you mean 'register_quantizers'?"),
        (acme().replace("(register)", "(registr)"), "registr"),
        (acme().replace("summary", "sumary"), "sumary"),
        (acme(name="Acme!"), "is not a name"),
        (acme().replace("@rqat.hookimpl", ""), "'register_quantizers' is not marked as a hook: forgot @rqat.hookimpl"),
        (acme().replace("summary", "rollouts=True, summary"), "register_quantizers: 'rollouts' is not a keyword of"),
        (acme().replace("summary", "rollouts=True, summary"), "; say writes=True, graded=True"),
        (acme().replace("summary", "refuses=str, summary"), "rqat.Options.check"),
        (acme().replace('load=":Acme", ', ""), "register_quantizers: 'acme' lacks load="),
        (acme().replace("options=Options", "Options"), "takes one name and then keywords (load, options, summary"),
        (acme().replace('summary="a test"', "summary=3"), "summary=3; it is text"),
        (acme().replace("summary", "needs='hessian', summary"), "write needs=('hessian',)"),
        (acme() + "RQAT_API = 2\n", "it needs plugin contract 2, and this rqat has 1; install a newer rqat"),
        (acme() + "RQAT_API = 0\n", "written for plugin contract 0, which this rqat no longer has"),
        (acme() + "RQAT_API = '1'\n", "RQAT_API = '1', which is not a whole number"),
        (acme(load="solver.Acme"), "write '.submodule:Class' or ':Class'"),
        (acme().replace("strength", "method"), "option 'method' of 'acme' is a key of the recipe itself"),
        (acme().replace("summary", "needs=['hesian'], summary"), "known statistics: hessian, absmean"),
        (acme().replace("class Options(rqat.Options)", "class Options"), "not a subclass of rqat.Options"),
    ],
)
def test_a_broken_plugin_is_reported_and_stops_nothing_else(site: Path, code: str, complaint: str):
    write_plugin(site, "rqat-broken", code)
    write_plugin(site, "rqat-whole", acme(name="whole"))
    registry = Registry.discover()
    assert [broken.name for broken in registry.broken] == ["rqat_broken"]
    assert registry.broken[0].owner == "rqat-broken"
    assert complaint in registry.broken[0].error
    assert "\n" not in registry.broken[0].error
    assert registry.card("quantizer", "whole")
    assert registry.card("quantizer", "gptq")
    with pytest.raises(UnknownName, match="rqat_broken"):
        registry.card("quantizer", "acme")


@pytest.mark.parametrize(
    ("teacher", "complaint"),
    [('("strength", "weight")', "names of options, not 'weight'"), ('"strength"', "write teacher=('strength',)")],
)
def test_a_teacher_that_an_option_asks_for(site: Path, teacher: str, complaint: str):
    objective = acme().replace("register_quantizers", "register_objectives")
    write_plugin(site, "rqat-acme", objective.replace("summary", 'teacher=("strength",), summary'))
    card = Registry.discover().card("objective", "acme")
    assert card.has_teacher(card.options(strength=1.0))
    assert not card.has_teacher(card.options(strength=0.0))
    write_plugin(site, "rqat-wrong", objective.replace("summary", f"teacher={teacher}, summary"))
    assert complaint in errors(Registry.discover())


def test_a_plugin_that_registers_a_name_twice(site: Path):
    write_plugin(site, "rqat-acme", acme() + "    register('acme', load=':Other')\n")
    registry = Registry.discover()
    assert "register_quantizers: 'acme' is registered twice" in errors(registry)
    assert registry.card("quantizer", "acme").load == ":Acme"


def test_a_plugin_may_say_which_contract_it_needs(site: Path):
    write_plugin(site, "rqat-acme", acme() + f"RQAT_API = {rqat.API}\n")
    assert Registry.discover().card("quantizer", "acme")


@pytest.mark.parametrize(
    "wrong",
    [
        'register("bad", load="nonsense")',
        'register("bad", lod=":Acme")',
        'register("bad")',
        'register("Bad name", load=":Acme")',
    ],
)
def test_a_broken_card_hides_no_other_part(site: Path, wrong: str):
    other = "\n@rqat.hookimpl\ndef register_sources(register):\n    register('rows', load=':Acme')\n"
    other += "\n@rqat.hookimpl\ndef register_nothing(register): ...\n"
    write_plugin(site, "rqat-acme", acme().replace("    register(", f"    {wrong}\n    register(") + other)
    registry = Registry.discover()
    assert registry.card("quantizer", "acme")
    assert registry.card("source", "rows")
    assert len(registry.broken) == 2


def test_where_a_plugin_failed_is_kept(site: Path):
    write_plugin(site, "rqat-broken", "def inner():\n    raise ValueError('no')\ninner()\n")
    write_plugin(site, "rqat-worse", acme().replace("    register(", "    1 / 0\n    register("))
    first, second = Registry.discover().broken
    assert "rqat_broken.py" in first.traceback
    assert "in inner" in first.traceback
    assert "ZeroDivisionError" in second.traceback


def test_a_plugin_that_ends_the_process_on_import_is_reported(site: Path):
    write_plugin(site, "rqat-broken", "raise SystemExit(3)")
    assert "SystemExit: 3" in errors(Registry.discover())


def test_an_entry_point_must_name_a_module(site: Path):
    write_plugin(site, "rqat-acme", acme(), entry="rqat_acme:Acme")
    assert "does not name a module" in errors(Registry.discover())


def test_a_name_two_third_parties_offer_fails_only_for_that_name(site: Path):
    write_plugin(site, "rqat-one", acme())
    write_plugin(site, "rqat-two", acme())
    registry = Registry.discover()
    assert registry.card("quantizer", "gptq")
    assert [{card.owner for card in clash} for clash in registry.clashes] == [{"rqat-one", "rqat-two"}]
    with pytest.raises(PluginError, match=r"rqat_one \(rqat-one 1.2\) and rqat_two \(rqat-two 1.2\)") as caught:
        registry.card("quantizer", "acme", "mine.yaml:3 quantize.method")
    assert str(caught.value).startswith("mine.yaml:3 quantize.method: the quantizer 'acme' is offered by")
    assert caught.value.hint == "Say whose: rqat_one:acme or rqat_two:acme."
    for plugin in ("rqat_one", "rqat-one"):
        assert registry.card("quantizer", f"{plugin}:acme").owner == "rqat-one"
    assert registry.card("quantizer", "rqat-two:acme").owner == "rqat-two"


def test_a_built_in_name_stays_the_built_ins(site: Path, caplog: pytest.LogCaptureFixture, monkeypatch):
    monkeypatch.setattr(logging.getLogger("rqat"), "propagate", True)
    write_plugin(site, "rqat-acme", acme(name="gptq"))
    registry = Registry.discover()
    assert not caplog.text
    assert registry.card("quantizer", "gptq").owner == "rqat"
    assert "quantizer 'gptq' is rqat's own; there is also rqat_acme:gptq (rqat-acme 1.2)" in caplog.text
    registry.card("quantizer", "gptq")
    assert len({id(record) for record in caplog.records}) == 1  # told once, whoever listens
    assert registry.card("quantizer", "rqat_acme:gptq").owner == registry.card("quantizer", "rqat-acme:gptq").owner
    assert registry.card("quantizer", "rqat_gptq:gptq").owner == "rqat"
    assert [(card.owner, own.owner) for card, own in registry.shadowed] == [("rqat-acme", "rqat")]
    assert registry.clashes == []
    modules = {card.module for card in registry.cards("quantizer")}
    assert "rqat_gptq" in modules
    assert "rqat_acme" not in modules


def test_an_unknown_plugin_or_part_of_one(site: Path):
    write_plugin(site, "rqat-acme", acme(name="gptq"))
    registry = Registry.discover()
    with pytest.raises(UnknownName, match=r"'rqat_acmee:gptq' is not a quantizer.*Did you mean 'rqat_acme:gptq'"):
        registry.card("quantizer", "rqat_acmee:gptq")
    with pytest.raises(UnknownName, match="'rqat_acme:gptqq' is not a quantizer"):
        registry.card("quantizer", "rqat_acme:gptqq")
    assert registry.has("quantizer", "rqat_acme:gptq")
    assert not registry.has("quantizer", "rqat_awq:gptq")


def test_a_built_in_module_cannot_be_claimed(site: Path):
    write_metadata(site, "impostor", "rqat_gptq")
    registry = Registry.discover()
    assert "reserved" in errors(registry)
    assert registry.card("quantizer", "gptq").owner == "rqat"


@pytest.mark.parametrize(
    ("load", "complaint"),
    [
        (":Acmee", "Did you mean 'Acme'?"),
        (":Options", "is not a rqat.Quantizer"),
        (".solver:Acme", "is a single file"),
    ],
)
def test_a_wrong_load_string_names_the_plugin(site: Path, load: str, complaint: str):
    write_plugin(site, "rqat-acme", acme(load=load))
    registry = Registry.discover()
    with pytest.raises(PluginError) as caught:
        registry.load_class(registry.card("quantizer", "acme"))
    assert complaint in str(caught.value)
    assert "rqat_acme, rqat-acme 1.2" in str(caught.value)


def test_a_class_that_does_not_import_keeps_its_cause(site: Path):
    package = site / "rqat_acme"
    package.mkdir()
    (package / "solver.py").write_text("import nowhere_to_be_found\n")
    (package / "__init__.py").write_text(acme(load=".solver:Acme"))
    write_metadata(site, "rqat-acme", "rqat_acme")
    registry = Registry.discover()
    with pytest.raises(PluginError, match="nowhere_to_be_found") as caught:
        registry.load_class(registry.card("quantizer", "acme"))
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_what_an_abstract_class_lacks_is_named(site: Path):
    write_plugin(site, "rqat-acme", acme().replace("def quantize_linear", "def quantise_linear"))
    registry = Registry.discover()
    with pytest.raises(PluginError, match="does not implement quantize_linear"):
        registry.load_class(registry.card("quantizer", "acme"))


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("def quantize_block(self, block, stats, scheme): ...", "(self, block, stats, scheme); it is called with"),
        ("def quantize_block(self, block): ...", "it is called with (self, block, stats)"),
        ("def quantize_block(self, block, stats, more=0, **rest): ...", ""),
        ("@staticmethod\n    def quantize_block(block, stats): ...", ""),
        ("def own_method(self, anything, at_all): ...", ""),
    ],
)
def test_a_method_must_take_what_it_is_called_with(site: Path, method: str, told: str):
    """Else it ends in a TypeError after hours of work: the contract may have changed since it was written."""
    write_plugin(site, "rqat-acme", acme().replace("    def quantize_linear", f"    {method}\n    def quantize_linear"))
    registry = Registry.discover()
    card = registry.card("quantizer", "acme")
    if not told:
        assert registry.load_class(card).__name__ == "Acme"
        return
    with pytest.raises(PluginError, match=r"'Acme\.quantize_block' takes") as caught:
        registry.load_class(card)
    assert told in caught.value.message
    assert caught.value.hint == "Give it the parameters of rqat.Quantizer.quantize_block."


def test_a_card_and_its_class_must_need_the_same(site: Path):
    write_plugin(site, "rqat-acme", acme().replace("summary", 'needs=["hessian"], summary'))
    registry = Registry.discover()
    with pytest.raises(PluginError, match=r"needs=\['hessian'\], but its class says \[\]"):
        registry.load_class(registry.card("quantizer", "acme"))


# ----------------------------------------------------------------------------------------------------- options


def test_every_wrong_option_is_told_at_once():
    registry = Registry.discover()
    with pytest.raises(RecipeError) as caught:
        registry.options(
            registry.card("quantizer", "gptq"), {"damp": -1, "clp": "mse", "clip": "mze"}, "--set quantize"
        )
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 3
    for expected in ("'clp' is not a key", "Did you mean 'clip'?", "'mze' is not one of minmax, mse", "damp: -1:"):
        assert expected in text


def test_a_source_of_sources_gets_its_parts_built():
    registry = Registry.discover()
    card = registry.card("source", "mix")
    parts = [{"source": "arith", "weight": 2, "steps": [1, 2]}, {"source": "mix", "parts": [{"source": "arith"}]}]
    made = registry.make(card, registry.options(card, {"parts": parts}))
    rows = [row for _, row in zip(range(20), made.rows("train", 0), strict=False)]
    assert len(rows) == 20


def test_wrong_options_of_a_part_are_told_with_its_place():
    registry = Registry.discover()
    card = registry.card("source", "mix")
    parts = [{"source": "arith", "stepps": [1, 2]}, {"source": "arit"}]
    with pytest.raises(RecipeError) as caught:
        registry.options(card, {"parts": parts}, "mine.yaml:4 calibration")
    assert "parts.0.stepps: 'stepps' is not a key of parts.0. Did you mean 'steps'?" in caught.value.problems[0]
    assert "parts.1.source: 'arit' is not a source" in caught.value.problems[1]


# --------------------------------------------------------------------------------------------------- environment


@pytest.mark.parametrize("named", ["rqat_acme", "rqat-acme", "RQAT.Acme , nothing"])
def test_plugins_can_be_left_out(site: Path, monkeypatch: pytest.MonkeyPatch, named: str):
    write_plugin(site, "rqat-acme", "raise RuntimeError")
    monkeypatch.setenv("RQAT_DISABLE_PLUGINS", f"rqat_awq,{named}")
    registry = Registry.discover()
    assert not registry.broken
    assert registry.disabled == ["rqat_awq", "rqat_acme"]
    with pytest.raises(UnknownName, match="Left out by RQAT_DISABLE_PLUGINS: rqat_awq, rqat_acme"):
        registry.card("quantizer", "awq")


def test_a_name_that_disables_nothing_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RQAT_DISABLE_PLUGINS", "rqat_awq,rqat-gtpq")
    assert Registry.discover().complaints == [
        "RQAT_DISABLE_PLUGINS: 'rqat-gtpq' is no plugin. Did you mean 'rqat-gptq'?"
    ]


def test_registrations_can_be_traced(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setenv("RQAT_TRACE_PLUGINS", "1")
    monkeypatch.setattr(logging.getLogger("rqat"), "propagate", True)
    Registry.discover()
    assert "quantizer 'gptq' (rqat_gptq, rqat" in caplog.text


def test_a_plugin_adds_commands_and_one_that_fails_does_no_harm(site: Path):
    hook = "import rqat\n@rqat.hookimpl\ndef register_commands(app):\n    "
    write_plugin(site, "rqat-bad", hook + "raise ValueError('no')")
    write_plugin(site, "rqat-good", hook + "app.command('hello')(lambda: None)")
    registry, app = Registry.discover(), typer.Typer()
    app.command("own")(lambda: None)
    registry.add_commands(app)
    assert [command.name for command in app.registered_commands] == ["own", "hello"]
    assert errors(registry) == "rqat_bad (rqat-bad): register_commands: ValueError: no"


def test_a_card_says_whose_it_is():
    card = Card("quantizer", "acme", Options, ":Acme", "rqat_acme", "rqat-acme", "1.2")
    assert str(card) == "quantizer 'acme' (rqat_acme, rqat-acme 1.2)"
