"""The commands that do plans and show what came out, each with its options."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from foretaste.cli import options as o
from foretaste.cli.output import answering, given, standing
from foretaste.errors import PlanError

__all__ = ["report", "run"]

STORE = Path("runs/lab")


def run(
    plan: Annotated[Path, typer.Argument(help="A plan: a TOML file (plans/ holds one per table of the paper).")],
    store: Annotated[
        Path, typer.Option("--store", help="Directory of all that is made; several runners may share it.")
    ] = STORE,
    dry: Annotated[bool, typer.Option("--dry-run", help="Say how many trainings and how long; make nothing.")] = False,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Only these cells, as in --only strategy=lora --only seed=0.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Runners; they share the processor's cores.")] = 1,
    processes: Annotated[
        int, typer.Option("--processes", min=1, help="Processes of each training, with a GPU each where there are any.")
    ] = 1,
    engine: Annotated[
        Literal["local", "ray"], typer.Option("--engine", help="Where the plan is done: here, or on a Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None, typer.Option("--address", help="Ray: HOST:PORT of a cluster; without it, one on this machine.")
    ] = None,
    cpus: Annotated[int | None, typer.Option("--cpus-per-task", help="Ray: threads of a task (default 1).")] = None,
    gpus: Annotated[
        float | None,
        typer.Option("--gpus-per-task", help="Ray: GPUs of a task, as in 0.25 (default: one a process, if any)."),
    ] = None,
    retries: Annotated[
        int | None,
        typer.Option("--retries", help="Ray: how often a task whose worker died is tried again (default 3)."),
    ] = None,
    data_root: o.DataRoot = None,
    as_json: o.Json = False,
) -> None:
    """Do the cells of a plan that are not in the store yet; a run that was killed goes on where it was."""
    with answering(as_json) as answer:
        from foretaste.cli import running
        from foretaste.experiment.cluster import Cluster
        from foretaste.spec import build

        fields = given(address=address, cpus=cpus, gpus=gpus, retries=retries)
        if engine == "local" and fields:
            raise PlanError("--address, --cpus-per-task, --gpus-per-task and --retries go with --engine ray.")
        if engine == "ray" and jobs > 1:
            raise PlanError("--jobs are runners on this machine; on a Ray cluster --cpus-per-task says how many fit.")
        cluster = build(Cluster, fields) if engine == "ray" else None
        if dry:
            found = running.dry_run(plan, store, only=only or (), data_root=data_root)
            answer(found, _forecast(found))
            return
        found = running.run(
            plan, store, only=only or (), jobs=jobs, processes=processes, cluster=cluster, data_root=data_root
        )
        answer(found, _summary(found))
    if found["failed"] or not found["done"]:
        raise typer.Exit(1)


def report(
    store: Annotated[Path, typer.Argument(help="The store of `foretaste run`.")] = STORE,
    out: Annotated[Path, typer.Option("-o", "--out", help="Directory to write the site to.")] = Path("site"),
    as_json: o.Json = False,
) -> None:
    """Write the site of a store: each plan's table beside the printed one, as HTML, CSV, LaTeX and Markdown."""
    with answering(as_json) as answer:
        from foretaste.report.site import write_site

        files = write_site(store, out, processes=os.cpu_count() or 1, say=partial(typer.echo, err=True))
        answer({"files": [str(path) for path in files]}, f"{out / 'index.html'} and {len(files) - 1} more files")


def _forecast(found: dict[str, Any]) -> str:
    took = "unknown: nothing like it was done yet" if found["seconds"] is None else _time(found["seconds"])
    if found["seconds"] is not None and found["untold"]:
        took = f"more than {took}: of {found['untold']} steps nothing like them was done yet"
    others = " for the others" if found["missing"] else ""
    lines = [
        *standing(found["title"], found["cells"], found["done"], found["missing"]),
        f"{found['trainings']} trainings{others}, {found['made']} made (one per cell and model: {found['per_cell']})",
        f"time of one runner by past records: {took}",
    ]
    return "\n".join(lines)


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _and_more(cells: list[str]) -> str:
    return f" and {len(cells) - 1} more" if len(cells) > 1 else ""


def _summary(found: dict[str, Any]) -> str:
    lines = [f"{found['title']}: {found['done']} of {found['cells']} cells in {found['store']}"]
    cells: dict[str, list[str]] = {}
    for cell, reason in found["missing"].items():
        cells.setdefault(reason, []).append(cell)
    lines += [f"not run: {own[0]}{_and_more(own)}: {reason}" for reason, own in cells.items()]
    return "\n".join(lines + [f"failed: {cell}: {reason}" for cell, reason in found["failed"].items()])
