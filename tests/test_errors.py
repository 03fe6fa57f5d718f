"""Errors that cross from one process to another."""

from __future__ import annotations

import pickle

import pytest

from foretaste.errors import DataError, ForetasteError, GuardError, ModelError


@pytest.mark.parametrize("error", [DataError("no such file"), ModelError("a", code="b"), GuardError("c", code="d")])
def test_another_process_is_told_all_of_it(error: ForetasteError) -> None:
    told = pickle.loads(pickle.dumps(error))
    assert (type(told), str(told), vars(told)) == (type(error), str(error), vars(error))
