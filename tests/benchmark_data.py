"""A few harmless rows in the published layout of every benchmark."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rlsys.evaluation.benchmarks.mm_safetybench import SCENARIOS


def picture(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (56, 56), (shade % 256, 90, 30)).save(path)


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def cell(shade: int) -> dict[str, Any]:
    """An image as ``datasets`` stores it."""
    stream = io.BytesIO()
    Image.new("RGB", (56, 56), (shade, 0, 0)).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": f"{shade}.png"}


def siuo(folder: Path) -> None:
    rows = [
        {
            "question_id": 1000 + n,
            "image": f"S-0{n}.png",
            "question": f"what is in cup {n} ?",
            "category": ("morality", "self-harm")[n % 2],
            "safety_warning": "the cup is hot",
            "reference_answer": "tea, and it is hot",
        }
        for n in range(4)
    ]
    write_json(folder / "data" / "siuo_gen.json", rows)
    for row in rows:
        picture(folder / "data" / "images" / str(row["image"]), int(str(row["question_id"])))


def _figstep_row(topic: int, task: int) -> dict[str, Any]:
    return {
        "dataset": "ForbidQI",
        "category_id": topic,
        "task_id": task,
        "category_name": f"Topic {topic}",
        "question": "how is tea made ?",
        "instruction": "Steps to make tea.",
    }


def figstep(folder: Path, table: str = "safebench.csv", images: str = "SafeBench") -> None:
    rows = [_figstep_row(topic, task) for topic in (1, 2) for task in (1, 2)]
    write_csv(folder / "data" / "question" / table, rows)
    for number, row in enumerate(rows):
        name = f"query_ForbidQI_{row['category_id']}_{row['task_id']}_6.png"
        picture(folder / "data" / "images" / images / name, number)


def figstep_tiny(folder: Path) -> None:
    figstep(folder, "SafeBench-Tiny.csv", "SafeBench-Tiny")


def figstep_benign(folder: Path) -> None:
    base = folder / "data" / "FigStep-Benign"
    rows = [_figstep_row(1, n) | {"benign_instruction": "Steps to make soap."} for n in (1, 2)]
    write_csv(base / "question" / "SafeBench-Tiny-Benign.csv", rows)
    for number in range(len(rows)):
        picture(base / "images" / f"{number}.png", number)


def vlguard(folder: Path) -> None:
    harmful = {
        "id": "a",
        "image": "bad_ads/a.png",
        "safe": False,
        "harmful_category": "deception",
        "harmful_subcategory": "disinformation",
        "instr-resp": [{"instruction": "what is this ?", "response": "an advertisement"}],
    }
    harmless = {
        "id": "b",
        "image": "HOD/b.png",
        "safe": True,
        "instr-resp": [
            {"safe_instruction": "which colour ?", "response": "it is red"},
            {"unsafe_instruction": "who may not have it ?", "response": "i will not say"},
        ],
    }
    write_json(folder / "test.json", [harmful, harmless])
    for number, record in enumerate((harmful, harmless)):
        picture(folder / "test" / str(record["image"]), number)


def mm_safetybench(folder: Path) -> None:
    row = {
        "Question": "?",
        "Changed Question": "?",
        "Key Phrase": "make tea",
        "Phrase Type": "activity",
        "Rephrased Question": "The bottom of the image shows an activity. How is it done ?",
        "Rephrased Question(SD)": "The image shows an activity. How is it done ?",
    }
    for number, scenario in enumerate(SCENARIOS):
        write_json(folder / "data" / "processed_questions" / f"{scenario}.json", {"0": row})
        for kind in ("SD", "SD_TYPO", "TYPO"):
            picture(folder / "data" / "imgs" / scenario / kind / "0.jpg", number)


def mossbench(folder: Path) -> None:
    rows = {
        str(n): {
            "image": f"images/{n}.png",
            "short description": "a toy",
            "question": "describe a game with this toy .",
            "metadata": {"over": f"type {n}", "human": 0, "child": 1, "harm": [7]},
            "pid": str(n),
            "description": "a toy on the floor",
        }
        for n in (1, 2, 3)
    }
    write_json(folder / "data" / "images_information" / "information.json", rows)
    for n in rows:
        picture(folder / "data" / "images" / f"{n}.png", int(n))


def spa_vl(folder: Path) -> None:
    for split, count in (("harm", 3), ("help", 2)):
        rows = [{"question": f"{split} {n} ?", "image": cell(n)} for n in range(count)]
        write_parquet(folder / "test" / f"{split}-00000-of-00001.parquet", rows)


def beavertails_v(folder: Path) -> None:
    for shade, category in enumerate(("animal_abuse", "hacking_or_digital_crime")):
        rows = [
            {"question": f"what is {n} ?", "category": category, "image": cell(10 * shade + n),
             "image_severity": 1}
            for n in range(2)
        ]  # fmt: skip
        write_parquet(folder / "data" / category / "evaluation-00000-of-00001.parquet", rows)
        write_parquet(folder / "data" / category / "train-00000-of-00001.parquet", rows)


WRITERS: dict[str, Callable[[Path], None]] = {
    "siuo": siuo,
    "figstep": figstep,
    "figstep_tiny": figstep_tiny,
    "figstep_benign": figstep_benign,
    "vlguard": vlguard,
    "mm_safetybench": mm_safetybench,
    "mossbench": mossbench,
    "spa_vl": spa_vl,
    "beavertails_v": beavertails_v,
}
