"""Runs a recipe: data, stages in order with artefacts reused by hash, then the report."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path
from typing import Any

from rich.markup import escape

from rlsys.artifacts import ArtifactStore
from rlsys.config.keys import result_settings
from rlsys.config.references import references
from rlsys.config.schema import RunConfig
from rlsys.data.prepare import prepare
from rlsys.data.worlds import WORLDS
from rlsys.display import Display
from rlsys.evaluation.stats import save_evaluation
from rlsys.metrics import MetricsLog
from rlsys.report.budget import budget_lines
from rlsys.report.build import build_report
from rlsys.report.load import load_run
from rlsys.runtime.group import Runtime
from rlsys.runtime.trace import span
from rlsys.stages.abandoned import needed_by_runs, stage_settings
from rlsys.stages.checkpoints import check_ranks
from rlsys.stages.context import Context
from rlsys.stages.data_check import check_data
from rlsys.stages.failure import FailurePage, with_restarts
from rlsys.stages.kind import StageKind
from rlsys.stages.registry import STAGES
from rlsys.stages.run_dir import RunDir, open_run_dir
from rlsys.stages.trace import TraceFile

OpenRuntime = Callable[[RunConfig, Path], AbstractContextManager[Runtime]]


def run_recipe(
    config: RunConfig,
    display: Display,
    open_runtime: OpenRuntime,
    *,
    resume: bool = False,
    trace: bool = False,
) -> Path:
    """Run a recipe, from data to report. When a process dies that cannot be replaced, all are
    started again and the stage goes on from its last checkpoint. Returns: the run directory.

    Args: open_runtime: starts the processes of the groups; resume: continue the last run of this
    name; trace: write what ran when to ``trace.json``. Raises: ConfigError when there is no run to
    resume or it has another recipe.
    """
    runs = Path(config.runs_dir).resolve()
    with open_run_dir(config, runs, resume=resume) as run:
        display.message(
            f"[bold]{config.name}[/bold]  {escape(str(run.path))}" + "  (resumed)" * run.resumed
        )
        store = ArtifactStore(runs / "artifacts")
        store.sweep(needed_by_runs(runs))
        reads = [(n, r) for n, each in config.stages.items() for r in STAGES[each.kind].reads(each)]
        source = config.data.source
        if source not in WORLDS and not Path(source).exists():
            display.message(f"  data: {escape(source)} is not here; from the hub, or its cache")
        with span("data"):
            data = prepare(config, store, reads)
            check_data(data)
        if data.summary:
            display.message(f"  data: {data.summary}")
        metrics = MetricsLog(
            run.path,
            wandb_mode=config.tracker.wandb,
            project=config.tracker.project,
            name=config.name,
        )

        traced = TraceFile(run.path) if trace else None

        def attempt() -> None:
            with ExitStack() as stack:
                with span("processes"):
                    runtime = stack.enter_context(open_runtime(config, run.path))
                run.describe(runtime)
                context = Context(config, runtime, data, run.path, display, metrics)
                _run_stages(context, store, run, traced)

        with closing(metrics), FailurePage(run.path, config.groups, display.message):
            with_restarts(attempt, config.failure.max_restarts, display.message)
        report = build_report(run.path)
        run.finish()
    for line in budget_lines(load_run(run.path)):
        display.message(escape(line.text))
    if traced:
        display.message(f"trace: {escape(str(traced.path))} (opens in Perfetto)" + traced.lost)
    display.message(f"report: {escape(str(report))}")
    return run.path


def _run_stages(
    context: Context, store: ArtifactStore, run: RunDir, traced: TraceFile | None
) -> None:
    entries: list[dict[str, Any]] = []
    for name, stage in context.config.stages.items():
        entries.append(_run_stage(context, store, name, stage, STAGES[stage.kind]))
        run.write("stages.json", entries)
        if traced:
            traced.collect(context.config, context.runtime)


def _run_stage(
    context: Context, store: ArtifactStore, name: str, stage: Any, kind: StageKind[Any]
) -> dict[str, Any]:
    started = time.perf_counter()
    context.runtime.monitor.row(name, 0, {})
    context.restart_rows(name, [])

    def make(folder: Path) -> dict[str, Any]:
        check_ranks(context.runtime, folder)
        with span(f"stage {name}"):
            metrics = kind.run(context, name, stage, folder)
        (folder / "rows.json").write_text(json.dumps(context.rows))
        return metrics

    def restarts(changes: list[str]) -> None:
        what = escape("; ".join(changes))
        context.display.message(
            f"    [yellow]{name} starts again[/yellow], not from its checkpoints, since this has "
            f"changed: {what}"
        )

    artifact = store.get_or_make(
        kind.name,
        stage_settings(stage),
        _inputs(context, name, stage, kind),
        make,
        resumable=kind.trains,
        owner=str(context.run_dir),
        stage=f"{context.config.name}/{name}",
        restarts=restarts,
    )
    if artifact.reused:
        rows = json.loads((artifact.folder / "rows.json").read_text())
        context.restart_rows(name, [(kind_name, step, row) for kind_name, step, row in rows])
    if kind.evaluates:
        _show_results(artifact.folder, context.run_dir, first=kind.report.self_evaluated)
    for file in kind.keeps:
        kept = context.run_dir / kind.name / name
        kept.mkdir(parents=True, exist_ok=True)
        shutil.copy(artifact.folder / file, kept)
    context.made[name] = artifact
    seconds = time.perf_counter() - started
    how = "reused" if artifact.reused else f"{seconds:.0f} s"
    context.display.message(f"[green]done[/green] {name} ({kind.name}) {how}")
    return {
        "name": name,
        "kind": kind.name,
        "seconds": seconds,
        "reused": artifact.reused,
        "hash": artifact.digest[:16],
        "metrics": artifact.metrics,
    }


def _inputs(context: Context, name: str, stage: Any, kind: StageKind[Any]) -> dict[str, str]:
    """Hashes of what a stage's result depends on besides its own keys."""
    config = context.config
    inputs = {key: context.digest(source) for key, source in references(stage).items()}
    inputs |= {
        "data": context.data.digest,
        "splits": f"{config.data.validation_split} {config.data.evaluation_split}",
        "seed": str(config.seed),
        "dtype": config.dtype,
    }
    if kind.samples:
        engine = json.dumps(result_settings(config.engine), sort_keys=True)
        inputs["engine"] = hashlib.sha256(engine.encode()).hexdigest()
    return inputs | kind.inputs(context, name, stage)


def _show_results(folder: Path, run_dir: Path, *, first: bool) -> None:
    """Merge a stage's evaluation files into those of the run directory.

    Args: first: keep an evaluation_meta.json that is already there.
    """
    tables = json.loads((folder / "evaluation.json").read_text())
    target = run_dir / "evaluation.json"
    if target.exists():
        tables = json.loads(target.read_text()) | tables
    save_evaluation(target, tables)
    if not first or not (run_dir / "evaluation_meta.json").exists():
        shutil.copy(folder / "evaluation_meta.json", run_dir)
    shutil.copytree(folder / "images", run_dir / "images", dirs_exist_ok=True)
    new = (folder / "samples.jsonl").read_text()
    policies = {json.loads(line)["policy"] for line in new.splitlines()}
    samples = run_dir / "samples.jsonl"
    old = samples.read_text().splitlines(keepends=True) if samples.exists() else []
    others = [line for line in old if json.loads(line)["policy"] not in policies]
    samples.write_text("".join(others) + new)
