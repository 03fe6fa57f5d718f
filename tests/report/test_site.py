"""The site of a store, from records written by hand: what it says, what it leaves empty, and its other forms."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.report.conftest import cell_at, rates, write_store

from foretaste.errors import DataError, PlanError
from foretaste.experiment.store import save_arrays
from foretaste.record import Record
from foretaste.report.cells import as_csv
from foretaste.report.printed import printed_value
from foretaste.report.site import write_site
from foretaste.report.tables import groups_of, read_sheets
from foretaste.spec import values_of


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Table 1 in part: BadNet on two of three seeds, PSIM on one; P-tuning v1 was not run."""
    write_store(
        tmp_path / "store",
        [
            (cell_at("none"), rates(0.9)),
            (cell_at("badnet", seed=0), rates(0.88, 1.0)),
            (cell_at("badnet", seed=1), rates(0.92, 0.98)),
            (cell_at("badnet", seed=2), None),
            (cell_at("badnet", "psim", seed=0), rates(0.88, 1.0, (0.87, 0.01))),
            (cell_at("badnet", "psim", seed=1), None),
            (cell_at("badnet", "psim", seed=2), None),
            (cell_at("badnet", strategy="p_tuning_v1"), None),
        ],
        name="table1",
        title="One & <two>",
        table=1,
        beside={"minilm": "bert-large"},
    )
    return tmp_path / "store"


def test_ours_stand_beside_the_printed_values(store: Path) -> None:
    (sheet,) = read_sheets(store)
    records = {path.stem: Record.read(path) for path in (store / "cells").glob("*.json")}
    (group,) = groups_of(sheet, records)
    assert group.strategies == ["lora", "p_tuning_v1"]
    rows = {(row.attack, row.label): row.entries for row in group.rows}
    attacked, never_run = rows["badnet", "none"]
    assert attacked is not None
    assert attacked.clean_accuracy.ours is not None
    assert attacked.clean_accuracy.ours.mean == pytest.approx(0.9)
    assert attacked.clean_accuracy.ours.low == 0.88
    assert (attacked.seeds, attacked.wanted, attacked.clean_accuracy.is_doubtful) == (2, 3, False)
    assert [share.printed for share in attacked.shares] == [0.92, 0.997]  # table 1: 92.00, 99.70
    assert never_run is not None
    assert (never_run.seeds, never_run.clean_accuracy.ours) == (0, None)
    behind, no_cell = rows["badnet", "psim"]
    assert behind is not None
    assert behind.attack_success_rate.ours is not None
    assert behind.attack_success_rate.ours.mean == 0.01  # behind the guard, not without it
    assert no_cell is None


def test_what_a_plan_calls_otherwise_stands_beside_no_printed_value(tmp_path: Path) -> None:
    cells = [(cell_at("badnet", name), rates(0.9, 1.0, (0.9, 0.0))) for name in ("psim", "psim_mine", "ours")]
    printed: dict[str, Any] = {"table": 1, "beside": {"minilm": "bert-large"}}
    defences = {"psim": {"psim": {}}, "psim_mine": {"rival": {"method": "strip"}}, "ours": {"psim": {}}}

    def beside(altered: list[str]) -> list[bool]:
        (group,) = groups_of(*write_store(tmp_path, cells, defences=defences, altered=altered, **printed))
        return [row.entries[0] is not None and row.entries[0].clean_accuracy.printed is not None for row in group.rows]

    assert beside([]) == [True, False, True]
    assert beside(["psim"]) == [False, False, True]
    assert beside(["lora"]) == beside(["badnet"]) == [False, False, False]


def test_the_site_needs_no_torch_and_is_the_same_twice(store: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from foretaste.report.site import write_site; "
        f"write_site(Path({str(store)!r}), Path({str(tmp_path / 'one')!r})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    write_site(store, tmp_path / "two")
    written = sorted(path for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert written
    for path in written:
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def test_what_the_files_say(store: Path, tmp_path: Path) -> None:
    files = {path.name: path.read_text(encoding="utf-8") for path in write_site(store, tmp_path / "site")}
    own = {"table1.html", "table1.csv", "table1.tex", "summary-1.csv"}
    assert set(files) == {"index.html", "results.md", "cells.csv", "targets.csv", *own}
    page = files["table1.html"]
    assert "One &amp; &lt;two&gt;" in page
    assert "4 of 8 cells were run" in page
    assert "seeds 0 1 of 3" in page
    assert "this store keeps records alone" in page
    assert page.count("<svg") == 1
    assert "<script" not in page
    assert "(92.00) -2.0" in page
    lines = list(csv.DictReader(files["table1.csv"].splitlines()))
    psim = next(line for line in lines if line["row"] == "psim")
    assert (psim["attack_success_rate"], psim["attack_success_rate_printed"]) == ("0.01", "0.0792")
    assert psim["attack_success_rate_difference"] == "-6.9"
    assert r"badnet & psim & 87.00\textsuperscript{1} & 1.00\textsuperscript{1} & -- & -- \\" in files["table1.tex"]
    assert "\n &  & (92.00) $-2.0$ & (99.70) $-0.7$ & (" in files["table1.tex"]
    assert "\n &  & \\scriptsize 88.0--92.0 & " in files["table1.tex"]
    assert "p\\_tuning\\_v1" in files["table1.tex"]
    assert "| badnet | none | 90.0 / 99.0<br>" in files["results.md"]
    assert "(92.00 / 99.70) -2.0 / -0.7<br>2 of 3 seeds | – / –<br>(" in files["results.md"]
    assert "## One & two" not in files["results.md"]
    assert r"## One & \<two\>" in files["results.md"]
    assert "| badnet | psim | table1 | 1.0 (1.45) | 1 |" in files["results.md"]
    cells = list(csv.DictReader(files["cells.csv"].splitlines()))
    assert len(cells) == 4
    assert {line["undefended_attack_success_rate"] for line in cells} == {"", "1.0"}
    assert {(line["threshold"], line["guard_threshold"]) for line in cells} == {("", ""), ("", "0.5")}


def test_a_plan_none_of_whose_cells_is_finished_has_a_page(tmp_path: Path) -> None:
    write_store(
        tmp_path / "store", [(cell_at("badnet", "psim"), None)], name="table1", table=1, beside={"minilm": "bert-large"}
    )
    files = {path.name: path.read_text(encoding="utf-8") for path in write_site(tmp_path / "store", tmp_path / "site")}
    assert "0 of 1 cells were run" in files["table1.html"]
    (line,) = csv.DictReader(files["table1.csv"].splitlines())
    assert (line["seeds"], line["clean_accuracy"], line["clean_accuracy_printed"]) == ("0", "", "0.9002")


def test_printed_values_are_all_there_and_told_apart() -> None:
    cell = values_of(cell_at("badnet", "psim"))
    by_strategy = [
        printed_value(3, "bert", {**cell, "psim_strategy": name}) for name in ("full", "lora", "p_tuning_v2")
    ]
    assert len({each.attack_success_rate for each in by_strategy if each is not None}) == 3
    rates = [printed_value(13, "bert", {**cell, "reset_rate": rate}) for rate in (0.4, 1.0)]
    assert None not in rates
    assert rates[0] != rates[1]
    assert printed_value(1, "bert-large", {**cell, "defence": "strip"}) is None
    assert printed_value(1, "bert-large", {**cell, "defence": "psim+onion"}) is None
    assert printed_value(1, "bert-large", {**cell, "knowledge": "full_data"}) is None  # that is table 2
    mixed = printed_value(9, "bert", {**cell, "attack": "mixed"})
    assert mixed is not None


@pytest.mark.parametrize("text", ["[]", "{}", '{"title": 1, "table": 1, "beside": {}, "cells": [1]}', "no JSON"])
def test_sheets_that_foretaste_did_not_write(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match="holds no plan"):
        read_sheets(tmp_path)
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="was not written by"):
        read_sheets(tmp_path)


def test_somebody_elses_directory_is_left_alone_and_an_older_site_replaced_whole(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "index.html").write_text("my thesis", encoding="utf-8")
    for place in (out, store, store / "cells"):
        with pytest.raises(PlanError, match="was not written by Foretaste"):
            write_site(store, place)
    assert (out / "index.html").read_text(encoding="utf-8") == "my thesis"
    for name, there in (("victim", "a victim"), ("audit", "a record")):
        place = tmp_path / name
        place.mkdir()
        (place / ("record.json" if name == "audit" else "foretaste.json")).write_text('{"kind": "victim"}', "utf-8")
        with pytest.raises(PlanError, match=f"holds {there}, which a site would replace"):
            write_site(store, place)
        assert any(place.iterdir())
    write_site(store, tmp_path / "site")
    (store / "plans" / "table1.json").rename(store / "plans" / "other.json")
    write_site(store, tmp_path / "site")
    assert (tmp_path / "site" / "other.html").is_file()
    assert not (tmp_path / "site" / "table1.html").exists()


@pytest.mark.parametrize(
    ("where", "change", "message"),
    [
        ("cells/key1.json", {"outcome": {}}, "outcome.clean_accuracy: Field required"),
        ("cells/key1.json", {"outcome": {"clean_accuracy": 7.0}}, "outcome.clean_accuracy: Input should be less"),
        ("cells/key1.json", {"outcome": {"clean_accuracy": "x"}}, "outcome.clean_accuracy: Input should be a valid"),
        ("cells/key1.json", {"outcome": {"clean_accuracy": 0.5, "floors": 3}}, "outcome.floors: "),
        ("cells/key1.json", {"outcome": {"clean_accuracy": 0.5, "guarded": 5}}, "outcome.guarded: "),
        ("cells/key1.json", {"outcome": rates(0.5)}, "of triggered texts, but without an attack success rate"),
        (
            "cells/key4.json",
            {"outcome": rates(0.9, 1.0) | {"guarded": {"clean_accuracy": 0.9, "threshold": 1.0}}},
            "of triggered texts, but without an attack success rate",
        ),
        ("cells/key0.json", {"outcome": rates(0.9) | {"intervals": {}}}, "intervals.clean_accuracy: Field required"),
        (
            "cells/key0.json",
            {"outcome": rates(0.9) | {"intervals": {"clean_accuracy": {"low": 0.95, "high": 0.85}}}},
            "clean_accuracy does not lie in its interval",
        ),
        (
            "cells/key0.json",
            {"outcome": rates(0.9) | {"intervals": {"clean_accuracy": {"low": -3, "high": 7}}}},
            "intervals.clean_accuracy.low: Input should be greater",
        ),
        (
            "cells/key0.json",
            {"outcome": rates(0.9) | {"intervals": {"clean_accuracy": {"count": 3, "n": 100, "low": 0, "high": 1}}}},
            "clean_accuracy is not 3 of 100",
        ),
        ("cells/key0.json", {"outcome": rates(0.9) | {"n_cut": "x"}}, "outcome.n_cut: Input should be a valid integer"),
        ("cells/key0.json", {"outcome": rates(0.9) | {"n_cut": 5, "n_poisoned": 4}}, "5 of 4 triggered texts are cut"),
        ("cells/key0.json", {"outcome": rates(0.9) | {"target": 2}}, "target 2 is none of 2 labels"),
        ("cells/key0.json", {"data": [{"name": "x", "digest": "0", "rows": 0}]}, "of no texts"),
        ("cells/key0.json", {"data": []}, "of no texts"),
        ("cells/key1.json", {"command": "\ud800"}, "surrogates not allowed"),
        ("plans/table1.json", {"title": "\ud800"}, "surrogates not allowed"),
        ("plans/table1.json", {"defences": {"psim": {"psim": "x"}}}, "was not written by `foretaste run`"),
        ("plans/table1.json", {"title": 5}, "was not written by `foretaste run`"),
        ("plans/table1.json", {"beside": None}, "was not written by `foretaste run`"),
        ("plans/table1.json", {"strategies": []}, "was not written by `foretaste run`"),
        ("plans/table1.json", {"cells": [{"strategy": ["lora"], "key": "key1"}]}, "was not written by `foretaste run`"),
    ],
)
def test_contents_that_are_no_results_are_refused(
    store: Path, tmp_path: Path, where: str, change: dict[str, Any], message: str
) -> None:
    path = store / where
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | change), encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        write_site(store, tmp_path / "site")
    assert path.name in str(caught.value)
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize("where", ["cells/key1.json", "plans/table1.json"])
def test_json_that_is_nested_beyond_reading_is_refused(store: Path, tmp_path: Path, where: str) -> None:
    (store / where).write_text("[" * 200_000, encoding="utf-8")
    with pytest.raises(DataError, match="nested too deeply"):
        write_site(store, tmp_path / "site")


@pytest.mark.parametrize("name", ["index", "cells", "a b"])
def test_a_plan_cannot_take_the_place_of_another_page(store: Path, tmp_path: Path, name: str) -> None:
    (store / "plans" / "table1.json").rename(store / "plans" / f"{name}.json")
    with pytest.raises(DataError, match="a plan's page cannot be called so"):
        write_site(store, tmp_path / "site")


def test_a_record_that_its_page_cannot_be_drawn_from_is_named(store: Path, tmp_path: Path) -> None:
    path = store / "cells" / "key1.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["settings"]["parts"] = {"clean": "read", "triggered": "read"}
    path.write_text(json.dumps(content), encoding="utf-8")
    save_arrays(store / "answers" / "read.npz", {"labels": np.zeros(2, int), "predicted": np.zeros(2, int)})
    with pytest.raises(DataError, match=r"The record of model=minilm data=sst2 .*: This is not an outcome"):
        write_site(store, tmp_path / "site")


def test_no_name_is_a_formula(tmp_path: Path) -> None:
    _, records = write_store(tmp_path, [(cell_at("=HYPERLINK(1)"), rates(0.5, 0.5))])
    (line,) = csv.DictReader(as_csv(records).splitlines())
    assert line["attack"] == "'=HYPERLINK(1)"


def test_all_damaged_records_are_named(store: Path, tmp_path: Path) -> None:
    for name in ("key0", "key2"):
        (store / "cells" / f"{name}.json").write_text("{", encoding="utf-8")
    with pytest.raises(
        DataError, match=r"(?s)key0\.json is not a Foretaste record.*key2\.json is not a Foretaste record"
    ):
        write_site(store, tmp_path / "site")


def test_a_record_of_another_cell_is_refused(store: Path, tmp_path: Path) -> None:
    (store / "cells" / "key1.json").write_bytes((store / "cells" / "key4.json").read_bytes())
    with pytest.raises(DataError, match=r"key1.json is of another cell than table1 asked for: .*defence=psim"):
        write_site(store, tmp_path / "site")
