"""Runs a recipe: data, stages in order, artefacts reused by hash, report at the end."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from actors.cluster import Cluster, open_cluster
from actors.display import Display
from rlsys.artifacts import Artifact, ArtifactStore, path_hash
from rlsys.config.check import NEEDED, references
from rlsys.config.feedback import JudgeStage
from rlsys.config.load import dump_config, to_plain
from rlsys.config.schema import RunConfig
from rlsys.data.prepare import Datasets, prepare
from rlsys.data.worlds import prompts_folder
from rlsys.evaluation.stats import save_evaluation
from rlsys.judging.prompts import load_prompts
from rlsys.metrics import MetricsLog
from rlsys.report.build import build_report


@dataclass
class Context:
    """What a stage may use."""

    config: RunConfig
    cluster: Cluster
    data: Datasets
    run_dir: Path
    display: Display
    metrics: MetricsLog
    made: dict[str, Artifact] = field(default_factory=dict)
    rows: list[tuple[str, int, dict[str, float]]] = field(default_factory=list)

    def folder(self, source: str) -> str:
        """What a stage made (``stage`` or a part of it, ``stage/round-1``), or a path."""
        name, _, part = source.partition("/")
        made = self.made.get(name)
        return str(made.folder / part if made else Path(source).resolve())

    def digest(self, source: str) -> str:
        """Changes with what ``folder`` names."""
        name, _, part = source.partition("/")
        made = self.made.get(name)
        if made is None:
            return _hash_on_disk(source)
        return f"{made.digest}/{part}" if part else made.digest

    def replies_of(self, judge: JudgeStage) -> str:
        """Changes with what decides a judge's replies, its prompts apart: not with how patiently,
        or on how many prompts, it is asked.
        """
        if judge.endpoint.url:
            model = [judge.endpoint.url, judge.endpoint.model]
        else:
            model = [self.digest(judge.model), judge.engine.dtype, repr(judge.engine.extra)]
        return hashlib.sha256(json.dumps([model, judge.max_new_tokens]).encode()).hexdigest()

    def log(self, stage: str, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        """To the run, and kept with the artefact so that a reused stage shows its curves again."""
        self.metrics.log(stage, kind, step, metrics)
        self.rows.append((kind, step, dict(metrics)))


@cache
def _hash_on_disk(source: str) -> str:
    """Once per run: a model may be large, and several stages may name it."""
    return path_hash(Path(source))


EVALUATING = ("evaluate", "guarded", "disentangled")
RESUMABLE = ("rlaif",)
StageFunction = Callable[..., dict[str, Any]]


def run_recipe(config: RunConfig, display: Display) -> Path:
    """Everything, from data to report. Returns: the run directory."""
    from actors.stages import RUNNERS
    from actors.stages.judge import check_judge

    for name, stage in config.stages.items():
        if isinstance(stage, JudgeStage):
            check_judge(name, stage)
    runs = Path(config.runs_dir).resolve()
    run_dir = new_run_dir(runs, config.name)
    dump_config(config, run_dir / "config.yaml")
    display.say(f"[bold]{config.name}[/bold]  {run_dir}")
    here = Path(__file__).parent
    store = ArtifactStore(runs / "artifacts", (here / "stages", here / "proxies.py"))
    data = prepare(config, store)
    display.say(f"  data: {data.summary}")
    metrics = MetricsLog(
        run_dir,
        wandb_mode=config.tracker.wandb,
        project=config.tracker.project,
        name=config.name,
    )
    with open_cluster(config, run_dir) as cluster:
        _describe_run(run_dir, cluster)
        context = Context(config, cluster, data, run_dir, display, metrics)
        stages: list[dict[str, Any]] = []
        for name, stage in config.stages.items():
            stages.append(_run_stage(context, store, name, stage, RUNNERS[stage.kind]))
            (run_dir / "stages.json").write_text(json.dumps(stages, indent=1))
    metrics.close()
    report = build_report(run_dir)
    display.say(f"report: {report}")
    return run_dir


def _run_stage(
    context: Context, store: ArtifactStore, name: str, stage: Any, runner: StageFunction
) -> dict[str, Any]:
    started = time.perf_counter()
    context.rows = []
    named = {key: context.digest(source) for key, source in references(stage).items()}
    if "judge" in named:  # its replies count, not how it was measured or how patiently it is asked
        judge = context.config.stages[stage.judge]
        wording = load_prompts(prompts_folder(judge.prompts)).digest
        named["judge"] = f"{context.replies_of(judge)} {wording}"
    inputs = named | _surroundings(context, name, stage)

    def make(folder: Path) -> dict[str, Any]:
        metrics = runner(context, name, stage, folder)
        (folder / "rows.json").write_text(json.dumps(context.rows))
        return metrics

    config = to_plain(stage)
    for key in references(stage):
        config.pop(key.split(".")[0], None)  # what a name points at counts, not the name
    artifact = store.get_or_make(
        stage.kind, config, inputs, make, resumable=stage.kind in RESUMABLE
    )
    if artifact.reused:
        for kind, step, metrics in json.loads((artifact.folder / "rows.json").read_text()):
            context.metrics.log(name, kind, step, metrics)
    if stage.kind in EVALUATING:
        _show_results(stage.kind, artifact.folder, context.run_dir)
    context.made[name] = artifact
    seconds = time.perf_counter() - started
    how = "reused" if artifact.reused else f"{seconds:.0f} s"
    context.display.say(f"[green]done[/green] {name} ({stage.kind}) {how}")
    return {
        "name": name,
        "kind": stage.kind,
        "seconds": seconds,
        "reused": artifact.reused,
        "hash": artifact.digest[:16],
        "metrics": artifact.metrics,
    }


def _surroundings(context: Context, name: str, stage: Any) -> dict[str, str]:
    """What a stage depends on beside its own keys and the artefacts it names."""
    config = context.config
    found = {
        "data": context.data.digest,
        "splits": f"{config.data.validation_split} {config.data.evaluation_split}",
        "seed": str(config.seed),
    }
    if isinstance(stage, JudgeStage):
        found["prompts"] = load_prompts(prompts_folder(stage.prompts)).digest
    if "rollout" in NEEDED[stage.kind]:
        found["engine"] = json.dumps(to_plain(config.engine), sort_keys=True)
    if stage.kind in EVALUATING and stage.kind != "evaluate":
        found["name"] = name  # its results carry it
    if stage.kind == "sft" and stage.init == "tiny":
        learned = context.data.learned  # its tokenizer learns from all of them
        found["texts"] = " ".join(
            f"{split}:{kind.value}:{target}" for split, kind, target in learned
        )
    if stage.kind == "sft" and stage.conversations:
        found["held_out"] = str(context.data.held_out is not None)
    return found


def _show_results(kind: str, folder: Path, run_dir: Path) -> None:
    """The run directory shows the evaluation files of all its stages together."""
    tables = json.loads((folder / "evaluation.json").read_text())
    target = run_dir / "evaluation.json"
    if target.exists():
        tables = json.loads(target.read_text()) | tables
    save_evaluation(target, tables)
    if kind == "evaluate" or not (run_dir / "evaluation_meta.json").exists():
        shutil.copy(folder / "evaluation_meta.json", run_dir)
    shutil.copytree(folder / "images", run_dir / "images", dirs_exist_ok=True)
    with (run_dir / "samples.jsonl").open("a") as samples:
        samples.write((folder / "samples.jsonl").read_text())


def new_run_dir(runs: Path, name: str) -> Path:
    """runs/name, or runs/name-2, ... : a run never overwrites another."""
    number = 1
    while True:
        folder = runs / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            (folder / "logs").mkdir()
            return folder
        except FileExistsError:
            number += 1


def _describe_run(run_dir: Path, cluster: Cluster) -> None:
    import ray

    processes = {
        name: [{"ip": h.ip, "host": h.host, "pid": h.pid} for h in group.hosts]
        for name, group in cluster.groups.items()
    }
    description = {
        "ray": ray.get_runtime_context().gcs_address,
        "driver_pid": os.getpid(),
        "started": time.time(),
        "groups": processes,
    }
    (run_dir / "run.json").write_text(json.dumps(description, indent=1))
