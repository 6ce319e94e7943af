"""``benchmark``: a published safety benchmark, answered by policies and graded."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING
from rich.markup import escape

from rlsys.config.keys import key
from rlsys.config.schema import RunConfig
from rlsys.data.fit import special_rows, unfit_rows
from rlsys.data.prepare import Datasets
from rlsys.data.rejections import labelled, reasons_text
from rlsys.data.rows import Prompt, Rows, ids_digest, rows_digest
from rlsys.drivers.sampling import generate_in_slices, sample_requests
from rlsys.errors import ConfigError, DataError
from rlsys.evaluation.benchmark_rows import BenchmarkRows
from rlsys.evaluation.benchmark_table import ALL, rates_table, tabulate_grades, warnings
from rlsys.evaluation.benchmarks.benchmark import PAIRWISE, Benchmark
from rlsys.evaluation.benchmarks.registry import BENCHMARKS
from rlsys.evaluation.grading import Answers, Graded, Items, answer_rows, compare, grade
from rlsys.judging.outcomes import count_metrics, outcome_label
from rlsys.judging.prompts import load_rubrics
from rlsys.models.load import load_processor, structure_tokens
from rlsys.report.benchmark import ANSWERS, TABLE, benchmark_section
from rlsys.report.section import KindReport
from rlsys.roles.rollout import ROLE as ROLLOUT
from rlsys.stages.answering import decode_samples
from rlsys.stages.context import Context
from rlsys.stages.judge import (
    JudgeStage,
    OpenJudge,
    draw_rows,
    judge_digest,
    judge_roles,
    open_judge_on,
)
from rlsys.stages.kind import Result, StageKind
from rlsys.stages.lengths import check_lengths
from rlsys.stages.rollout import rollout_on


@dataclass
class BenchmarkStage:
    """A published safety benchmark, answered by policies and graded by its rules and by a judge;
    never by a cost model, which policies may have been trained against.
    """

    kind: str = key("benchmark", "Kind of stage.", choices=("benchmark",))
    benchmark: str = key(MISSING, "Which one.", choices=tuple(BENCHMARKS))
    folder: str = key(
        MISSING, "A local folder with its data as published (docs/benchmarks.md); not downloaded."
    )
    policies: dict[str, str] = key(MISSING, "Name in the table -> stage or folder.", ref="policy")
    judge: str = key("", "A judge stage; empty: only what a rule grades.", ref="judge")
    baseline: str = key("", "The one of `policies` that a judge compares the others with.")
    rubrics: str = key("", "A folder of the judge's rubrics; empty: those shipped.")
    samples: int = key(1, "Answers per item, an odd number: the majority of their grades counts.",
                       ge=1)  # fmt: skip
    temperature: float = key(0.0, "Of the answers; 0: greedy.", ge=0)
    max_prompts: int = key(0, "Items to draw; 0: all.", ge=0)
    max_new_tokens: int = key(256, "Longest answer, tokens.", ge=1)

    def check(self) -> None:
        if not self.policies:
            raise ConfigError("policies: name at least one policy")
        if self.baseline and self.baseline not in self.policies:
            raise ConfigError(
                f"baseline: {self.baseline!r} is none of policies ({', '.join(self.policies)})"
            )
        if self.baseline and len(self.policies) == 1:
            raise ConfigError("policies: name another one to compare with the baseline")
        if not self.judge and (self.baseline or BENCHMARKS[self.benchmark].needs_judge):
            what = "the comparison with baseline" if self.baseline else self.benchmark
            raise ConfigError(f"judge: {what} has no rule to grade by; name a judge stage")
        if self.samples % 2 == 0:
            raise ConfigError(f"samples: an odd number has a majority, got {self.samples}")
        if self.samples > 1 and not self.temperature:
            raise ConfigError("temperature: 0 draws the same answer every time; raise it")


def run_benchmark(context: Context, name: str, stage: BenchmarkStage, folder: Path) -> Result:
    """Answers of every policy to the same items, and their grades."""
    benchmark, source = _measured(stage), _rows(context.config, stage)
    rows = source.load()
    source = replace(source, ids=ids_digest(rows))
    items, left_out = _items(context, name, stage, source, rows)
    answers: dict[str, Answers] = {}
    count = len(items) * stage.samples
    with context.display.bar(name, count * len(stage.policies)) as bar:
        for version, policy in enumerate(stage.policies):
            answers[policy] = _answers(context, stage, source, version, policy, items, bar.advance)
    with _opened_judge(context, stage, source, rows) as opened:
        graded = {
            policy: _graded(benchmark, stage, items, answers, policy, opened) for policy in answers
        }
        questions = 0 if opened is None else opened.judge.requested
    tables = {
        policy: tabulate_grades(benchmark, [item for _, item in items], each)
        for policy, each in graded.items()
    }
    table = _described(context, stage, benchmark, left_out, len(items)) | {"policies": tables}
    (folder / TABLE).write_text(json.dumps(table, indent=1, allow_nan=False))
    with (folder / ANSWERS).open("w", encoding="utf-8") as stream:
        for policy, each in graded.items():
            for row in answer_rows(policy, items, answers[policy], each):
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    outcomes = sum((each.outcomes for each in graded.values()), Counter[str]())
    context.display.console.print(rates_table(benchmark, tables))
    for line in warnings(benchmark, tables):
        context.display.message(f"    [yellow]warning[/yellow] {escape(line)}")
    if outcomes:
        counts = (f"{n} x {outcome_label(reply)}" for reply, n in outcomes.most_common(5))
        context.display.message(f"    replies of the judge not parsed: {', '.join(counts)}")
    result = {"items": len(items), "left_out": len(left_out), "questions": questions}
    rates = {
        f"{policy}/{metric}": cell["rate"]
        for policy, splits in tables.items()
        for metric, cell in splits[ALL].items()
        if cell["rate"] is not None
    }
    metrics = {**result, **rates, **count_metrics("parse_failures", outcomes)}
    context.log(name, stage.kind, 1, metrics)
    return result


def _measured(stage: BenchmarkStage) -> Benchmark:
    """The benchmark with the comparisons that are made: with a baseline and none of its own, Safe
    RLHF-V's.
    """
    benchmark = BENCHMARKS[stage.benchmark]
    if not stage.judge:
        return replace(benchmark, comparisons=())
    published = tuple(each for each in benchmark.comparisons if each.published)
    others = tuple(each for each in benchmark.comparisons if not each.published) or (PAIRWISE,)
    return replace(benchmark, comparisons=(*published, *(others if stage.baseline else ())))


def _rows(config: RunConfig, stage: BenchmarkStage) -> BenchmarkRows:
    data, folder = config.data, str(Path(stage.folder).resolve())
    return BenchmarkRows(
        stage.benchmark, folder, data.max_prompt_tokens, data.blank_images, data.max_pixels
    )


def _items(
    context: Context, name: str, stage: BenchmarkStage, source: BenchmarkRows, rows: Rows[Prompt]
) -> tuple[Items, dict[str, str]]:
    """The items to ask, and id -> reason of those that some policy's prompts cannot hold."""
    left_out: dict[str, str] = {}
    for policy in stage.policies.values():
        processor = load_processor(context.folder(policy))
        left_out |= special_rows(rows.without(left_out), structure_tokens(processor))
        left_out |= unfit_rows(processor, rows.without(left_out), source.max_prompt_tokens)
    usable = [number for number, row in enumerate(rows.rows) if row.id not in left_out]
    counts = reasons_text(Counter(left_out.values()))
    if not usable:
        raise DataError(f"stages.{name}: no item that every policy can read ({counts})")
    if left_out:
        context.display.message(
            f"    [yellow]warning[/yellow] {len(left_out)} of {len(rows)} items are left out, as "
            f"some policy cannot read them: {counts}"
        )
    drawn = draw_rows(rows.without(left_out), stage.max_prompts, context.config.seed)
    return [(usable[number], source.items[usable[number]]) for number in drawn], left_out


def _answers(
    context: Context,
    stage: BenchmarkStage,
    source: BenchmarkRows,
    version: int,
    policy: str,
    items: Items,
    advance: Any,
) -> Answers:
    model = context.folder(stage.policies[policy])
    greedy, limit = stage.temperature == 0, context.config.timeouts.call
    drawn = (stage.max_new_tokens, stage.temperature or 1.0)
    rollout = rollout_on(context, model, version, source, *drawn)
    numbers = [number for number, _ in items]
    requests = sample_requests(numbers, stage.samples, seed=context.config.seed, iteration=0)
    tokenizer = load_processor(model).tokenizer
    texts: dict[tuple[int, int], str] = {}
    for chunk in generate_in_slices(rollout, requests, limit, greedy=greedy):
        texts |= decode_samples(tokenizer, chunk)
        advance(policy, by=len(chunk))
    return [[texts[number, sample] for sample in range(stage.samples)] for number in numbers]


@contextmanager
def _opened_judge(
    context: Context, stage: BenchmarkStage, source: BenchmarkRows, rows: Rows[Prompt]
) -> Iterator[OpenJudge | None]:
    if not stage.judge:
        yield None
        return
    rubrics = load_rubrics(stage.rubrics)
    with open_judge_on(context, stage.judge, rows, source, rubrics) as opened:
        yield opened


def _graded(
    benchmark: Benchmark,
    stage: BenchmarkStage,
    items: Items,
    answers: Mapping[str, Answers],
    policy: str,
    opened: OpenJudge | None,
) -> Graded:
    if opened is None:
        return grade(benchmark, items, answers[policy], None, 0.0)
    graded = grade(benchmark, items, answers[policy], opened.judge, opened.timeout)
    for comparison in benchmark.comparisons:
        if comparison.published:
            theirs = [item.reference for _, item in items]
        elif policy == stage.baseline:
            continue
        else:
            theirs = [samples[0] for samples in answers[stage.baseline]]
        compare(comparison, items, answers[policy], theirs, opened.judge, opened.timeout, graded)
    return graded


def _described(
    context: Context,
    stage: BenchmarkStage,
    benchmark: Benchmark,
    left_out: Mapping[str, str],
    count: int,
) -> dict[str, Any]:
    """What the rates of a table are of."""
    graded_by = "rules alone"
    if stage.judge:
        judge: JudgeStage = context.config.stages[stage.judge]
        model = judge.model or f"{judge.endpoint.model} at {judge.endpoint.url}"
        digest = load_rubrics(stage.rubrics).digest[:12]
        graded_by = f"the judge {stage.judge} ({model}), rubrics {digest}"
    return {
        "title": benchmark.title,
        "source": benchmark.source,
        "graded_by": graded_by,
        "baseline": stage.baseline,
        "items": count,
        "left_out": labelled(Counter(left_out.values())),
        "metrics": {
            metric.name: {"label": metric.label, "lower": metric.lower}
            for metric in benchmark.headings
        },
    }


def _roles(stage: BenchmarkStage, earlier: Mapping[str, Any]) -> Sequence[str]:
    return (ROLLOUT.name, *judge_roles(stage, earlier))


def _check(config: RunConfig, name: str, stage: BenchmarkStage) -> None:
    check_lengths(config, f"stages.{name}", stage.max_new_tokens)
    load_rubrics(stage.rubrics)


def _check_data(name: str, stage: BenchmarkStage, data: Datasets) -> None:
    """Reads the items before any process starts."""
    _rows(data.config, stage).load()


def _inputs(context: Context, name: str, stage: BenchmarkStage) -> dict[str, str]:
    inputs = {"items": rows_digest([_rows(context.config, stage).load()])}
    if stage.judge:
        inputs["judge"] = judge_digest(context, stage.judge, load_rubrics(stage.rubrics))
    return inputs


BENCHMARK = StageKind(
    "benchmark",
    BenchmarkStage,
    run_benchmark,
    _roles,
    check=_check,
    check_data=_check_data,
    inputs=_inputs,
    samples=True,
    keeps=(TABLE, ANSWERS),
    report=KindReport(
        heading="Benchmarks",
        anchor="benchmarks",
        nav="Benchmarks",
        order=5,
        section=benchmark_section,
    ),
)
