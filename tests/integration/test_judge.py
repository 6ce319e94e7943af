"""The judge's engine: real vLLM, an untrained model, and constraints that hold all the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlsys.config.engine import EngineConfig
from rlsys.data.slice import DataSlice
from rlsys.judging.cache import CachedJudge
from rlsys.judging.judge import Candidate, JudgedPrompt, Question, disentangle, score
from rlsys.judging.outcomes import ParseReason
from rlsys.judging.parse import Observed, ParseFailure, parse_observations
from rlsys.judging.prompts import FIELDS, load_prompts
from rlsys.judging.reply_schemas import SCORES
from rlsys.roles.judge import JudgeHandle, JudgeSpec
from rlsys.runtime.group import Runtime

WAIT = 120.0


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short ones: the shipped texts are long for a model of four thousand bytes of context."""
    folder = tmp_path_factory.mktemp("prompts")
    for name, fields in FIELDS.items():
        text = " ".join([name, *(f"{{{{{field}}}}}" for field in sorted(fields))])
        (folder / f"{name}.txt").write_text(text)
    return folder


@pytest.fixture(scope="module")
def judge(cluster: Runtime, model: str, data: DataSlice, prompts: Path) -> JudgeHandle:
    handle = JudgeHandle(cluster.group("judge"))
    engine = EngineConfig(max_model_len=512, max_num_seqs=16)
    texts = load_prompts(prompts)
    spec = JudgeSpec(model, data, engine, "float32", texts, max_new_tokens=160)
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
    feedback = score(kept, candidates, WAIT)
    assert all(isinstance(each.overall, float) for each in feedback)
    requested = kept.requested
    again = disentangle(kept, prompts, joint=False, timeout=WAIT)
    assert [each.observations for each in again] == [each.observations for each in found]
    assert score(kept, candidates, WAIT) == feedback
    unread = sum(each.outcomes["observe_image/truncated"] for each in found)
    unread += sum(each.outcomes["observe_text/truncated"] for each in found)
    assert kept.requested - requested <= unread, "only what had no reply is asked again"
    kept.close()
