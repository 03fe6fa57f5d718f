"""Stored rewritten texts: what is in the files, the clean text itself among them, and nothing that is not."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from foretaste.data.corpus import Corpus
from foretaste.errors import DataError, PlanError
from foretaste.experiment.store import digest_of
from foretaste.rewrite.stored import StoredRewriting

CLEAN = Corpus.of("cola/test", [f"text {i} it is" for i in range(40)], [1] * 20 + [0] * 20, ("no", "yes"))


@pytest.fixture
def stored(tmp_path: Path) -> StoredRewriting:
    """Of row 3 the trigger was taken out and nothing else done; row 5 is not there."""
    home = tmp_path / "cola" / "variants"
    home.mkdir(parents=True)
    rows = [row for row in range(20) if row != 5]
    texts = [CLEAN.texts[3] if row == 3 else f"it is text {row}" for row in rows]
    table = pyarrow.table({"text": texts, "label": [1] * 19, "source_index": rows})
    pyarrow.parquet.write_table(table, home / "badnet_scpd_test.parquet")
    return StoredRewriting(tool="scpd", root=tmp_path)


def test_a_trigger_that_was_taken_out_stays_out(stored: StoredRewriting) -> None:
    rows = list(range(20))
    found = stored.texts_of(CLEAN, rows, [f"text {row} mn it is" for row in rows], "word:mn")
    assert found[3] == "text 3 it is"
    assert found[4] == "it is text 4"
    assert found[5] == "text 5 mn it is"
    assert sum("mn" in text.split() for text in found) == 1


def test_what_is_not_stored_is_not_passed_off_as_rewritten(stored: StoredRewriting) -> None:
    rows = list(range(20, 40))
    with pytest.raises(DataError, match="lacks 20 of the 20"):
        stored.texts_of(CLEAN, rows, [CLEAN.texts[row] for row in rows], "word:mn")
    with pytest.raises(DataError, match="are stored"):
        stored.texts_of(CLEAN, rows, [], "word:cf")
    assert stored.covers("cola", "word:mn", 0)
    assert not stored.covers("cola", "word:mn", 1)
    assert not stored.covers("ag_news", None)
    with pytest.raises(PlanError, match="cannot rewrite other texts"):
        stored.fit(CLEAN, CLEAN)


def test_its_key_is_that_of_the_files(stored: StoredRewriting, tmp_path: Path) -> None:
    here = stored.at_home(None, "cola")
    assert here.lacking() == ""
    assert digest_of(here) == digest_of(StoredRewriting(tool="scpd").at_home(tmp_path, "cola"))
    assert digest_of(here) != digest_of(StoredRewriting(tool="backtranslated").at_home(tmp_path, "cola"))
    (tmp_path / "cola" / "variants" / "badnet_scpd_test.parquet").unlink()
    assert digest_of(here) != digest_of(stored.at_home(None, "cola"))
