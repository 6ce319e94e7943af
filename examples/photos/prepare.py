"""Write a folder in BeaverTails-V columns from photographs that ship inside scikit-image.

    .venv/bin/python examples/photos/prepare.py runs/photos-data
    .venv/bin/rlsys run examples/photos/recipe.yaml data.source=runs/photos-data

The questions and answers are in rows.jsonl beside this file. Your own data goes the same way: one
<split>.jsonl per split, image paths relative to the folder.
"""

import json
import shutil
import sys
from pathlib import Path

import skimage.data


def prepare(folder: Path) -> None:
    """Fill ``folder`` with train, validation and evaluation.jsonl and images/."""
    photos = Path(skimage.data.__file__).parent
    (folder / "images").mkdir(parents=True, exist_ok=True)
    splits: dict[str, list[str]] = {}
    rows = (Path(__file__).parent / "rows.jsonl").read_text().splitlines()
    for number, line in enumerate(rows):
        row = json.loads(line)
        shutil.copy(photos / row["photo"], folder / "images")
        splits.setdefault(row["split"], []).append(json.dumps(_columns(number, row)))
    for split, lines in splits.items():
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


def _columns(number: int, row: dict) -> dict:
    helpful, harmless = row["helpful"], row["harmless"]
    return {
        "id": f"photo-{number:02d}",
        "image": f"images/{row['photo']}",
        "question": row["question"],
        "category": row["category"],
        "image_severity": row["severity"],
        "response_1": row["answers"][0],
        "response_2": row["answers"][1],
        "response_1_from": "by hand",
        "response_2_from": "by hand",
        "more_helpful_response_id": "1" if helpful[0] > helpful[1] else "2",
        "safer_response_id": "1" if harmless[0] > harmless[1] else "2",
        "is_response_1_safe": "yes" if harmless[0] >= 0 else "no",
        "is_response_2_safe": "yes" if harmless[1] >= 0 else "no",
        "response_1_harmless_rate": harmless[0],
        "response_2_harmless_rate": harmless[1],
        "response_1_helpful_rate": helpful[0],
        "response_2_helpful_rate": helpful[1],
    }


if __name__ == "__main__":
    prepare(Path(sys.argv[1]))
