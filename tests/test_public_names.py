"""The public surface: what each module offers is listed, sorted and there."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import foretaste

SOURCE = Path(foretaste.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in SOURCE.rglob("*.py")
)


def _order(name: str) -> tuple[int, str]:
    """Constants, then classes, then the rest: the order ruff keeps (RUF022)."""
    if name.isupper():
        return 0, name
    return (1, name) if name[0].isupper() else (2, name)


def test_the_names_users_need_are_these() -> None:
    assert foretaste.__all__ == [
        "Corpus",
        "ForetasteError",
        "GuardedClassifier",
        "Psim",
        "__version__",
        "load_corpus",
        "load_guard",
        "load_victim",
    ]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_lists_its_names_sorted_and_all_are_there(name: str) -> None:
    module = importlib.import_module(name)
    is_package = module.__file__ is not None and Path(module.__file__).name == "__init__.py"
    names = getattr(module, "__all__", [] if is_package else None)
    assert names is not None, f"{name} has no __all__"
    assert names == sorted(set(names), key=_order)
    for public in names:
        assert getattr(module, public) is not None


@pytest.mark.parametrize("name", foretaste.__all__)
def test_a_public_name_is_listed_by_dir(name: str) -> None:
    assert name in dir(foretaste)


def test_a_public_class_is_the_one_of_its_room() -> None:
    from foretaste.data.corpus import Corpus
    from foretaste.errors import ForetasteError

    assert foretaste.Corpus is Corpus
    assert foretaste.ForetasteError is ForetasteError


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'psim_'"):
        foretaste.psim_  # noqa: B018
    assert not hasattr(foretaste, "anything")


def test_importing_the_package_loads_nothing_it_does_not_need() -> None:
    code = (
        "import sys, foretaste\n"
        "rooms = [name for name in sys.modules if name.startswith('foretaste.')]\n"
        "assert not rooms, rooms\n"
        "foretaste.load_corpus\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
