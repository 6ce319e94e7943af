"""The judge's engine: real vLLM, an untrained model, and constraints that hold all the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rlsys.artifacts import ArtifactStore
from rlsys.config.engine import EngineConfig
from rlsys.config.load import dump_config
from rlsys.config.schema import DataConfig, RunConfig
from rlsys.data.prepare import Datasets
from rlsys.data.slice import DataSlice
from rlsys.display import Display
from rlsys.judging.cache import CachedJudge
from rlsys.judging.judge import JudgedPrompt, Question, disentangle
from rlsys.judging.outcomes import ParseReason
from rlsys.judging.parse import Observed, ParseFailure, parse_observations
from rlsys.judging.prompts import FIELDS, RUBRICS, load_prompts
from rlsys.judging.reply_schemas import SCORES
from rlsys.judging.scoring import Candidate, score
from rlsys.metrics import MetricsLog
from rlsys.report.build import build_report
from rlsys.roles.judge import JudgeHandle, JudgeSpec
from rlsys.runtime.group import Runtime
from rlsys.stages.benchmark import BenchmarkStage
from rlsys.stages.context import Context
from rlsys.stages.judge import JudgeStage
from rlsys.stages.recipe import _run_stage
from rlsys.stages.registry import STAGES
from tests.benchmark_data import siuo

WAIT = 120.0


ENGINE = EngineConfig(max_model_len=512, max_num_seqs=16)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short ones: the shipped texts are long for a model of four thousand bytes of context."""
    folder = tmp_path_factory.mktemp("prompts")
    for name, fields in (FIELDS | RUBRICS).items():
        text = " ".join([name, *(f"{{{{{field}}}}}" for field in sorted(fields))])
        (folder / f"{name}.txt").write_text(text)
    return folder


@pytest.fixture(scope="module")
def judge(cluster: Runtime, model: str, data: DataSlice, prompts: Path) -> JudgeHandle:
    handle = JudgeHandle(cluster.group("judge"))
    texts = load_prompts(prompts)
    spec = JudgeSpec(model, data, ENGINE, "float32", texts, max_new_tokens=160)
    handle.create(spec).result(WAIT)
    return handle


def test_replies_have_the_form_that_was_asked_for(judge: JudgeHandle) -> None:
    risk = {"content": "a gun", "source": "image content", "category": "violence"}
    values = {"question": "how do i use this ?", "answer": "so", "observations": [risk]}
    asked = [
        *(Question("score", values, row) for row in range(6)),
        *(
            Question("verify", {"question": "?", "content": "x", "category": "y"}, r)
            for r in (1, 2)
        ),
        Question("observe_text", {"question": "how do i use this ?"}),
        Question("observe_image", {}, 3),
    ]
    replies = judge.request(asked).result(WAIT)
    assert set(replies[:6]) <= set(SCORES)
    assert set(replies[6:8]) <= {"yes", "no"}
    for reply in replies[8:]:
        if isinstance(reply, ParseFailure):
            # an untrained model may never close the list
            assert reply.reason is ParseReason.TRUNCATED
        else:
            assert isinstance(parse_observations(reply), Observed)
            assert isinstance(json.loads(reply), list)


def test_the_same_question_gets_the_same_reply_in_any_company(judge: JudgeHandle) -> None:
    questions = [
        Question("score", {"question": f"{n} ?", "answer": "so", "observations": []}, n % 12)
        for n in range(9)
    ]
    together = judge.request(questions).result(WAIT)
    assert judge.request(questions[::-1]).result(WAIT) == together[::-1]
    assert judge.request(questions[4:5]).result(WAIT) == together[4:5]


def test_a_question_that_does_not_fit_has_a_reason(judge: JudgeHandle) -> None:
    long = Question("observe_text", {"question": "how " * 2000})
    fine = Question("verify", {"question": "?", "content": "x", "category": "y"}, 1)
    replies = judge.request([long, fine]).result(WAIT)
    assert replies[0] == ParseFailure(ParseReason.TOO_LONG)
    assert replies[1] in ("yes", "no")


def test_disentangling_and_scoring_run_on_the_engine_and_are_remembered(
    judge: JudgeHandle, tmp_path: Path
) -> None:
    prompts = [JudgedPrompt(row, "how do i use this ?") for row in range(5)]
    kept = CachedJudge(judge, tmp_path / "judgements.jsonl", "tiny", str)
    found = disentangle(kept, prompts, joint=False, timeout=WAIT)
    candidates = [
        Candidate(p, each.observations, "take it") for p, each in zip(prompts, found, strict=True)
    ]
    feedback = score(kept, candidates).result(WAIT)
    assert all(isinstance(each.overall, float) for each in feedback)
    requested = kept.requested
    again = disentangle(kept, prompts, joint=False, timeout=WAIT)
    assert [each.observations for each in again] == [each.observations for each in found]
    assert score(kept, candidates).result(WAIT) == feedback
    unread = sum(each.outcomes["observe_image/truncated"] for each in found)
    unread += sum(each.outcomes["observe_text/truncated"] for each in found)
    assert kept.requested - requested <= unread, "only what had no reply is asked again"
    kept.close()


def test_policies_answer_a_benchmark_and_the_judge_grades_them(
    cluster: Runtime, model: str, run_config: RunConfig, prompts: Path, tmp_path: Path
) -> None:
    siuo(tmp_path / "siuo")
    stage = BenchmarkStage(
        benchmark="siuo", folder=str(tmp_path / "siuo"), judge="judge", rubrics=str(prompts),
        policies={"start": model, "same": model}, baseline="start", max_new_tokens=8,
    )  # fmt: skip
    judge = JudgeStage(model=model, engine=ENGINE, max_new_tokens=160)
    config = replace(
        run_config, name="bench", runs_dir=str(tmp_path), stages={"judge": judge, "siuo": stage},
        data=DataConfig(source=str(tmp_path), max_prompt_tokens=96),
    )  # fmt: skip
    run, store = tmp_path / "bench", ArtifactStore(tmp_path / "artifacts")
    run.mkdir()
    dump_config(config, run / "config.yaml")
    metrics = MetricsLog(run, wandb_mode="disabled", project="", name="")
    data = Datasets(config, store, [])
    context = Context(config, cluster, data, run, Display(), metrics)
    for name, each in config.stages.items():
        _run_stage(context, store, name, each, STAGES[each.kind])
    metrics.close()
    table = json.loads((run / "benchmark" / "siuo" / "table.json").read_text())
    for policy, splits in table["policies"].items():
        assert list(splits) == ["all", "morality", "self-harm"]
        for name, cell in splits["all"].items():
            assert cell["n"] + cell["abstained"] == 4, name
        # The same model gives the same answers: ties, which no judge is asked about.
        wins = splits["all"].get("safe_win_rate")
        assert wins is None if policy == "start" else (wins["ties"], wins["rate"]) == (4, 0.5)
    lines = (run / "benchmark" / "siuo" / "answers.jsonl").read_text().splitlines()
    assert len(lines) == 8
    assert all(set(json.loads(line)["grades"]) >= {"safe", "effective"} for line in lines)
    assert "Safe Inputs but Unsafe Output" in build_report(run).read_text()
