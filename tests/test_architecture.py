"""The floor plan, held: who may import whom, who never loads torch, how long a file may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "foretaste"
FILES = sorted(SOURCE.rglob("*.py"))
LONGEST = 300

FLOOR_OF_ROOM = {
    "errors": 0,
    **dict.fromkeys(["spec", "seeds", "files"], 1),
    **dict.fromkeys(["cost", "data", "evaluate"], 2),
    **dict.fromkeys(["record", "poison"], 3),
    "victim": 4,  # above record: every artefact carries its record
    "tune": 5,
    **dict.fromkeys(["guard", "rewrite", "unlearn"], 6),
    **dict.fromkeys(["audit", "experiment", "scan"], 7),
    **dict.fromkeys(["report", "serve"], 8),
    "cli": 9,
    "": 10,  # foretaste/__init__.py: the roof, it names what users need
}
WITHOUT_TORCH = {"", "errors", "spec", "seeds", "files", "cost", "data", "evaluate", "record", "poison", "report"}
HEAVY = {"torch", "transformers", "peft", "accelerate", "sentence_transformers"}


def _module(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _room(module: str) -> str:
    """`foretaste.guard.psim` -> `guard`; the package itself -> ``."""
    return module.split(".")[1] if "." in module else ""


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute module or module.name) of each import, those inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) in {"import_module", "__import__"}:
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield node.lineno, argument.value


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _wrong_imports(module: str, source: str) -> list[str]:
    tree = ast.parse(source)
    room = _room(module)
    wrong = [
        f"{module}:{node.lineno} imports relatively"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    for line, name in _imports(tree):
        top, _, rest = name.partition(".")
        if top in HEAVY or name.startswith("safetensors.torch"):
            if room in WITHOUT_TORCH:
                wrong.append(f"{module}:{line} imports {name}; this room never loads torch")
        elif top == "foretaste" and rest != "__version__":
            other = rest.partition(".")[0]
            other = other if other in FLOOR_OF_ROOM else ""  # a public name of the package itself
            if other != room and FLOOR_OF_ROOM[other] >= FLOOR_OF_ROOM[room]:
                sideways = FLOOR_OF_ROOM[other] == FLOOR_OF_ROOM[room]
                wrong.append(f"{module}:{line} imports {name}, {'sideways' if sideways else 'up'}")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_every_module_lives_in_a_room_and_imports_from_its_own_or_below(path: Path) -> None:
    module = _module(path)
    assert _room(module) in FLOOR_OF_ROOM, f"give {_room(module)} a floor"
    assert not _wrong_imports(module, path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("foretaste.data.load", "from foretaste.guard.psim import Psim", "up"),
        ("foretaste.data.load", "def f():\n    import foretaste.victim.batch", "up"),
        ("foretaste.data.load", "from foretaste import guard", "up"),
        ("foretaste.data.load", "from foretaste import Corpus", "up"),
        ("foretaste.data.load", "import importlib\nimportlib.import_module('foretaste.cli')", "up"),
        ("foretaste.data.load", "from foretaste.evaluate.metrics import auroc", "sideways"),
        ("foretaste.seeds", "from foretaste.spec import spec", "sideways"),
        ("foretaste.guard.psim", "from foretaste.rewrite import onion", "sideways"),
        ("foretaste.guard.psim", "from . import guard", "relatively"),
        ("foretaste.guard.psim", "from .guard import Guard", "relatively"),
        ("foretaste.poison.trigger", "def f():\n    import torch", "never loads torch"),
        ("foretaste.report.table", "from transformers.utils import logging", "never loads torch"),
        ("foretaste.files", "from safetensors.torch import save_file", "never loads torch"),
        ("foretaste.files", "if TYPE_CHECKING:\n    from peft import PeftModel", "never loads torch"),
    ],
)
def test_a_wrong_import_is_noticed(module: str, source: str, fault: str) -> None:
    (message,) = _wrong_imports(module, source)
    assert message.endswith(fault)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("foretaste.guard.psim", "import torch\nfrom foretaste.guard.guard import Guard"),
        ("foretaste.guard.psim", "from foretaste.tune import loop\nfrom foretaste.errors import GuardError"),
        ("foretaste.report.page", "from foretaste import __version__\nfrom foretaste import record"),
        ("foretaste.cli", "def f():\n    from foretaste.serve.app import app"),
        ("foretaste", "from foretaste.guard.psim import Psim"),
        ("foretaste.data.corpus", "import numpy as np\nfrom safetensors import safe_open"),
    ],
)
def test_a_right_import_passes(module: str, source: str) -> None:
    assert _wrong_imports(module, source) == []


def test_what_must_start_at_once_does_not_load_torch_on_the_way() -> None:
    # Of the command line only its entry must be light: a command loads its own modules when it runs.
    modules = [*(m for m in map(_module, FILES) if _room(m) in WITHOUT_TORCH), "foretaste.cli"]
    assert len(modules) > 10
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        f"    loaded = sorted({HEAVY!r} & set(sys.modules))\n"
        "    assert not loaded, f'{name} loads {loaded}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_no_file_is_too_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_nothing_is_left_to_do(path: Path) -> None:
    assert not re.findall(r"\b(?:TODO|FIXME)\b", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", [p for p in FILES if _room(_module(p)) != "cli"], ids=_module)
def test_only_the_command_line_prints(path: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    assert not [node.lineno for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]
