"""DREAM's stages as a user runs them, and a run killed while it judges."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file

from rlsys.data.llava import load_conversations
from tests.endpoint_server import Server, serving
from tests.integration.helpers import RLSYS, artifact, metric_rows, rows_of, wait_until

RECIPE = str(Path(__file__).with_name("feedback.yaml"))
# Whichever test comes first waits for the runs of the fixtures.
pytestmark = pytest.mark.timeout(1200)


class Killed(NamedTuple):
    """What a run whose judge was killed in the middle of round 2 left.

    Attributes:
        runs: its ``runs_dir``, for whoever goes on from there.
        undisturbed: a copy of ``runs`` from before the round.
        error: what the run said on stderr.
        known: the judgements it had made.
    """

    runs: Path
    undisturbed: Path
    error: str
    known: list[tuple[str, str]]


class Finished(NamedTuple):
    """A run that ended well, and all judgements in its ``runs_dir`` at its end."""

    run: Path
    judgements: list[tuple[str, str]]


def command(runs: Path, *overrides: str) -> list[str]:
    return [RLSYS, "run", RECIPE, f"runs_dir={runs}", *overrides]


def judgements(runs: Path) -> list[tuple[str, str]]:
    files = sorted((runs / "judgements").glob("*/*.jsonl"), key=lambda path: path.stat().st_mtime)
    return [tuple(json.loads(line)) for file in files for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    runs = tmp_path_factory.mktemp("feedback") / "runs"
    with subprocess.Popen(
        command(runs, "name=killed"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        run = runs / "killed"
        try:
            wait_until(lambda: (run / "stages.json").exists() and "distilled" in
                       (run / "stages.json").read_text(), process, 300)  # fmt: skip
            undisturbed = runs.with_name("undisturbed")
            shutil.copytree(runs, undisturbed, ignore=shutil.ignore_patterns(".*", "killed"))
            drawn = (
                ".rlaif-*.partial/progress/rollouts/version-1-*/*.pt"  # with the weights of round 1
            )
            wait_until(lambda: len(list((runs / "artifacts").glob(drawn))) > 2, process, 200)
            description = json.loads((run / "run.json").read_text())
            os.kill(description["groups"]["judge"][0]["pid"], signal.SIGKILL)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == os.EX_TEMPFAIL, out + err
    return Killed(runs, undisturbed, err, judgements(runs))


def finish(runs: Path, name: str) -> Finished:
    """Without Ray, which starts sooner and gives the same numbers."""
    done = subprocess.run(
        command(runs, f"name={name}", "--in-process"),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Finished(runs / name, judgements(runs))


@pytest.fixture(scope="module")
def resumed(killed: Killed) -> Finished:
    """The same recipe again, from what the killed run left."""
    return finish(killed.runs, "resumed")


@pytest.fixture(scope="module")
def whole(killed: Killed) -> Finished:
    """The same recipe, its rounds undisturbed."""
    return finish(killed.undisturbed, "whole")


def test_a_killed_judge_ends_the_run_naming_its_role(killed: Killed) -> None:
    assert "role 'judge' failed" in " ".join(killed.error.split())
    assert len(rows_of(killed.runs / "killed", "rlaif")) == 1, "it was in round 2"


def test_a_resumed_run_judges_nothing_twice(
    killed: Killed, resumed: Finished, whole: Finished
) -> None:
    after = resumed.judgements
    assert set(killed.known) <= set(after)
    assert len({key for key, _ in after}) == len(after), "nothing was judged twice"
    assert sorted(after) == sorted(whole.judgements)


def test_a_resumed_run_ends_the_same(resumed: Finished, whole: Finished) -> None:
    rounds = [
        [row for row in metric_rows(run) if row["stage"] == "rlaif"]
        for run in (resumed.run, whole.run)
    ]
    assert rounds[0] == rounds[1]
    assert len(rounds[0]) == 3
    assert all(row["pairs/pair"] > 0 for row in rounds[0])
    for part in ("round-1", "round-2", "round-3", "."):
        weights = [
            load_file(artifact(run, "rlaif") / part / "model.safetensors")
            for run in (resumed.run, whole.run)
        ]
        assert weights[0].keys() == weights[1].keys()
        for name, tensor in weights[0].items():
            assert tensor.equal(weights[1][name]), (part, name)
    assert not list(artifact(resumed.run, "rlaif").glob("progress"))


def test_cost_model_and_guard_have_their_say_and_ppo_goes_on_from_there(
    resumed: Finished,
) -> None:
    """By the recipe alone."""
    (extra,) = rows_of(resumed.run, "extra")
    outcomes = {k: v for k, v in extra.items() if k.startswith("pairs/")}
    assert sum(outcomes.values()) == 12 * (1 - extra["unobserved_prompts"])
    (iteration,) = rows_of(resumed.run, "ppo")
    assert iteration["gap/max"] < 1e-4


def test_a_teachers_conversations_are_what_a_reader_expects(resumed: Finished) -> None:
    folder = artifact(resumed.run, "teacher")
    found = load_conversations(folder / "conversations.jsonl")
    assert not found.rejected
    metrics = json.loads((folder / "artifact.json").read_text())["metrics"]
    assert len(found.rows) == metrics["distill/distilled"]
    assert sum(v for k, v in metrics.items() if k.startswith("distill/left_out/")) == 48 - len(
        found.rows
    )
    for row in found.rows:
        (turn,) = row.turns
        assert "observe" not in turn.question
        (image,) = row.images
        assert Path(image).exists()


def test_who_is_told_no_risk_answers_as_if_nobody_had_looked(
    resumed: Finished, tmp_path: Path
) -> None:
    """The disentangled stage against plain answers of the same policy; and on the command line."""
    run = resumed.run
    samples = [json.loads(x) for x in (run / "samples.jsonl").read_text().splitlines()]
    plain = {s["id"]: s["answer"] for s in samples if s["policy"] == "distilled"}
    conditioned = {s["id"]: s["answer"] for s in samples if s["policy"] == "conditioned"}
    prompts = tmp_path / "prompts.jsonl"
    data = artifact_data(run)
    rows = [json.loads(x) for x in (data / "evaluation.jsonl").read_text().splitlines()][:8]
    prompts.write_text(
        "".join(
            json.dumps({"id": r["id"], "image": str(data / r["image"]), "question": r["question"]})
            + "\n"
            for r in rows
        )
    )
    asked = [RLSYS, "generate", str(artifact(run, "distilled")), "--prompts", str(prompts)]
    asked += ["--max-new-tokens", "16", "--disentangle", str(artifact(run, "judge_model"))]
    asked += ["--judge-prompts", "riskworld"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["id"] for answer in answers] == [row["id"] for row in rows]
    for answer in answers:
        if not answer["observations"]:
            assert answer["answer"] == plain[answer["id"]]
        assert answer["answer"] == conditioned[answer["id"]]


def artifact_data(run: Path) -> Path:
    (folder,) = (run.parent / "artifacts").glob("data-*")
    return folder


ENDPOINT_RECIPE = """
name: endpoint
data: {{source: riskworld, sizes: {{train: 60, validation: 20, evaluation: 20}}}}
groups: {{rollout: {{roles: [rollout]}}}}
engine: {{max_model_len: 640}}
tracker: {{wandb: disabled}}
stages:
  judge:
    kind: judge
    endpoint: {{url: "{url}", model: m, max_backoff: 0.2, per_second: 500}}
    max_prompts: 4
  teacher: {{kind: observe, judge: judge, max_prompts: 40}}
  conditioned: {{kind: disentangled, policy: {policy}, judge: judge}}
  evaluation: {{kind: evaluate, policies: {{plain: {policy}}}}}
"""
RISK = {"malicious_content": "x", "source": "image", "risk_category": "Privacy"}


def test_a_judge_behind_an_endpoint_that_is_away_for_a_while(
    resumed: Finished, tmp_path: Path
) -> None:
    """The stages ask over the wire, and an outage loses nothing; a policy is told what is found."""
    away = (60, 90)  # these requests meet an outage

    def respond(number: int, body: dict[str, Any]) -> tuple[int, str]:
        text = body["messages"][0]["content"][-1]["text"]
        if away[0] <= number < away[1]:
            return 503, "down"
        if "JSON list" in text:
            found = [RISK] if "this ?" in text else []
            return 200, f"```json\n{json.dumps(found)}\n```"
        return (
            200,
            "Yes." if "yes or no" in text else "8/10" if "0 to 10" in text else "of course .",
        )

    recipe = tmp_path / "endpoint.yaml"
    server = Server(respond)
    with serving(server) as url:
        policy = artifact(resumed.run, "distilled")
        recipe.write_text(ENDPOINT_RECIPE.format(url=url, policy=policy))
        asked = [RLSYS, "run", str(recipe), f"runs_dir={tmp_path / 'runs'}"]
        environment = {name: value for name, value in os.environ.items() if "OPENAI" not in name}
        keyless = subprocess.run(
            asked, capture_output=True, text=True, timeout=60, check=False, env=environment
        )
        assert "stages.judge.endpoint.key_variable" in keyless.stderr
        done = subprocess.run(
            asked, capture_output=True, text=True, timeout=200, check=False,
            env=environment | {"OPENAI_API_KEY": "anything"},
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(server.requests) > away[1]
    (run,) = (tmp_path / "runs").glob("endpoint*")
    stages = {s["name"]: s["metrics"] for s in json.loads((run / "stages.json").read_text())}
    assert stages["judge"]["agreement/score_n"] == 8
    assert stages["teacher"]["distill/distilled"] == 40
    found = load_conversations(artifact(run, "teacher") / "conversations.jsonl")
    turns = [turn for row in found.rows for turn in row.turns]
    assert {turn.answer for turn in turns} == {"of course ."}
    for turn in turns:
        assert bool(turn.observations) == ("this ?" in turn.question)
    samples = [json.loads(x) for x in (run / "samples.jsonl").read_text().splitlines()]
    by = {
        name: {s["id"]: s for s in samples if s["policy"] == name}
        for name in ("plain", "conditioned")
    }
    risky = {name for name, s in by["plain"].items() if "this ?" in s["question"]}
    assert 0 < stages["conditioned"]["conditioned"] == len(risky) < len(by["plain"])
    changed = {n for n, s in by["plain"].items() if by["conditioned"][n]["answer"] != s["answer"]}
    assert changed, "what is told must matter"
    assert changed <= risky
