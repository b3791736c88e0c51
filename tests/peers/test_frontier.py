"""The page of bytes against accuracy says what was measured."""

from __future__ import annotations

from .frontier import PAGE, PLOTS, as_table, measurements, with_table


def test_the_page_and_its_plots_are_those_of_the_measurements() -> None:
    rows = measurements()
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page, as_table(rows)) == page
    for name, plot in PLOTS.items():
        assert f"]({name})" in page
        assert PAGE.with_name(name).read_text(encoding="utf-8") == plot(rows)


def test_files_are_listed_by_size_with_their_interval() -> None:
    row = {"model": "1.5B", "maker": "rqat", "file": "w2g128", "stage": "gptq", "bytes": "472216160", "date": "d"}
    row |= {"kl_domain": "0.0310", "kl_elsewhere": ""}
    small = row | {"bytes": "1000000", "correct": "1", "problems": "4", "stage": ""}
    lines = as_table([row | {"correct": "306", "problems": "1319"}, small]).splitlines()[2:]
    assert lines[0].startswith("| 1 | 1.5B | rqat w2g128 | 25.0 % (4.6 to 69.9) |")
    assert lines[1] == "| 472 | 1.5B | rqat w2g128 (gptq) | 23.2 % (21.0 to 25.6) | .0310 |  | d |"
