"""Loading vision-language checkpoints: safetensors only, no remote code, nothing missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlsys.errors import ModelError

HEAD_FILE = "score_head.safetensors"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_policy(folder: str, dtype: str) -> Any:
    """The conditional-generation model of a checkpoint. Raises: ModelError."""
    if load_head(folder) is not None:
        raise ModelError(f"{folder}: this is a reward or cost model, not a policy")
    from transformers import AutoModelForImageTextToText  # here: it takes seconds to import

    return _checked(AutoModelForImageTextToText, folder, dtype, allow_head_missing=False)


def load_trunk(folder: str, dtype: str) -> Any:
    """The model without its language-model head, from a policy's or a scorer's checkpoint."""
    from transformers import AutoModel

    return _checked(AutoModel, folder, dtype, allow_head_missing=True)


def load_processor(folder: str) -> Any:
    """Tokenizer and image processor of a checkpoint."""
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(folder, trust_remote_code=False)


def checkpoint_tensors(folder: str) -> list[tuple[str, Tensor]]:
    """Every tensor of a checkpoint under its name in the file."""
    files = sorted(path for path in Path(folder).glob("*.safetensors") if path.name != HEAD_FILE)
    return [item for file in files for item in load_file(file).items()]


def _checked(auto: Any, folder: str, dtype: str, *, allow_head_missing: bool) -> Any:
    if not (Path(folder) / "config.json").exists():
        raise ModelError(f"{folder}: no model there (config.json is missing)")
    model, report = auto.from_pretrained(
        folder,
        dtype=DTYPES[dtype],
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
    )
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(f"{folder}: weights are missing, first of {len(missing)}: {missing[0]}")
    unexpected = [k for k in report["unexpected_keys"] if not k.startswith("lm_head")]
    if unexpected or (report["unexpected_keys"] and not allow_head_missing):
        raise ModelError(
            f"{folder}: unknown weights, first: {sorted(report['unexpected_keys'])[0]}"
        )
    return model


def vision_token_ids(config: Any, tokenizer: Any) -> tuple[int, list[int]]:
    """The image placeholder's id, and the ids that a policy must not sample.

    A sampled placeholder has no image, which breaks the next forward pass; a sampled turn marker
    breaks the chat format.
    """
    image = getattr(config, "image_token_id", None)
    if image is None:
        raise ModelError(f"{type(config).__name__} has no image_token_id")
    special = set(tokenizer.all_special_ids) | {image}
    video = getattr(config, "video_token_id", None)
    if video is not None:
        special.add(video)
    return image, sorted(special - {tokenizer.eos_token_id})


def load_head(folder: str) -> Tensor | None:
    """The score head's weight [1, hidden], or None when the folder holds none."""
    path = Path(folder) / HEAD_FILE
    return load_file(path)["weight"] if path.exists() else None


def save_head(folder: Path, weight: Tensor) -> None:
    save_file({"weight": weight.detach().contiguous()}, folder / HEAD_FILE)
