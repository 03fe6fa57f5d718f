"""Where a command writes, refused before the work starts if it would destroy something."""

from __future__ import annotations

from pathlib import Path

from foretaste.errors import DataError, PlanError
from foretaste.files import refuse_foreign_directory
from foretaste.record import Record

__all__ = ["partial_of", "refuse_page", "refuse_place"]


def refuse_place(out: Path, kind: str, *models: str | None) -> None:
    """Raise PlanError if `out` is no place for an artefact of this kind that stands on `models` (None: not given)."""
    if out.name in ("", ".."):
        raise PlanError(f"{out} cannot be replaced; name a directory inside it.")
    for model in models:
        if model is None or not Path(model).is_dir():
            continue
        base, place = Path(model).resolve(), out.resolve()
        if place == base or base in place.parents:
            raise PlanError(f"{out} lies in the checkpoint {model}, which must stay as it is; choose another place.")
    refuse_foreign_directory(out, kind)
    refuse_foreign_directory(partial_of(out))


def refuse_page(path: Path) -> None:
    """Raise PlanError if the page, or the record beside it, could not be written or would replace something else."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise PlanError(f"{path} is a page; give it a name that ends in .html.")
    if path.is_dir():
        raise PlanError(f"{path} is a directory; give the name of a page.")
    if (path.parent / "foretaste.json").exists():
        raise PlanError(f"{path} lies in an artefact, which an added file would spoil; choose another directory.")
    refuse_foreign_directory(path.parent / f"{path.name}.d")  # never made; it stands for anything new in there
    record = path.with_suffix(".json")
    if record.exists() and not _is_of_a_page(record):
        raise PlanError(f"{record}, where the page's record goes, holds something else; rename the page.")


def partial_of(out: Path) -> Path:
    """Where an interrupted training waits to be continued, beside its result."""
    return out.parent / f"{out.name}.partial"


def _is_of_a_page(path: Path) -> bool:
    try:
        return Record.read(path).kind in ("evaluate", "audit", "cleanse", "demo")
    except DataError:
        return False
