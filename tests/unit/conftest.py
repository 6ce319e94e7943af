"""A tiny vision-language model and four rows to feed it, made once."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from rlsys.config.schema import TinyConfig
from rlsys.data.encoder import PromptEncoder
from rlsys.data.rows import PreferencePair, Rows
from rlsys.models.load import load_processor
from rlsys.models.tiny import build_tiny_vlm

# Width and height in pixels: 4, 8, 8 and 9 visual tokens, so that prompts differ in length.
SIZES = [(56, 56), (112, 56), (56, 112), (84, 84)]
QUESTIONS = [
    "what is in the cup?",
    "is this safe to drink?",
    "how do I use it, step by step?",
    "who is it for?",
]
RESPONSES = [
    ("it is water", "salt, and you must not drink it"),
    ("yes", "no, it is not safe"),
    ("you use it as the label says", "I will not help with it"),
    ("it is for a child", "for you"),
]


MODEL_CONFIGS = Path(__file__).parents[1] / "model_configs"


@pytest.fixture(scope="session", autouse=True)
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The hub's cache holds the configurations, no weights, of the models that recipes name."""
    cache = tmp_path_factory.mktemp("hub")
    for file in MODEL_CONFIGS.glob("*.json"):
        folder, commit = cache / f"models--{file.stem}", "0" * 40
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text(commit)
        (folder / "snapshots" / commit).mkdir(parents=True)
        shutil.copy(file, folder / "snapshots" / commit / "config.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        yield


def _png(size: tuple[int, int], seed: int) -> bytes:
    """Noise, so that no two images or patches look alike."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(stream, "PNG")
    return stream.getvalue()


def make_pair(row: int, question: str, responses: tuple[str, str]) -> PreferencePair:
    return PreferencePair(
        id=f"row-{row}",
        question=question,
        image=_png(SIZES[row % len(SIZES)], row),
        category="test",
        severity=1,
        responses=responses,
        more_helpful=row % 2,
        safer=1 - row % 2,
        safe=(row % 2 == 1, row % 2 == 0),
        harmless_rates=(-3, 2) if row % 2 == 0 else (2, -3),
        helpful_rates=(1, 2),
        row={"id": f"row-{row}"},
    )


@pytest.fixture(scope="session")
def records() -> Rows[PreferencePair]:
    pairs = zip(QUESTIONS, RESPONSES, strict=True)
    return Rows([make_pair(i, q, r) for i, (q, r) in enumerate(pairs)])


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a checkpoint of some 200 thousand parameters."""
    folder = tmp_path_factory.mktemp("tiny")
    sizes = TinyConfig(hidden=64, layers=2, vision_hidden=64, vision_layers=2, vocab=300)
    build_tiny_vlm(folder, [*QUESTIONS, *(t for pair in RESPONSES for t in pair)], sizes, seed=0)
    return str(folder)


@pytest.fixture(scope="session")
def encoder(tiny: str, records: Rows[PreferencePair]) -> PromptEncoder:
    return PromptEncoder(load_processor(tiny), records, max_prompt_tokens=128)
