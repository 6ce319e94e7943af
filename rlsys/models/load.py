"""Loading checkpoints: safetensors only, no remote code, nothing missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlsys.config.schema import DTYPES
from rlsys.errors import ModelError
from rlsys.models.families.registry import family_of_processor, family_of_type
from rlsys.models.families.text import TextProcessor
from rlsys.models.family import Family
from rlsys.models.vision import speed_up_vision

HEAD_FILE = "score_head.safetensors"
_TORCH_DTYPES = {name: getattr(torch, name) for name in DTYPES}


def load_policy(folder: str, dtype: str) -> Any:
    """The model with its language-model head. Raises: ModelError."""
    if load_head(folder) is not None:
        raise ModelError(f"{folder}: this is a reward or cost model, not a policy")
    import transformers  # here: its models take seconds to import

    auto = getattr(transformers, checkpoint_family(folder).auto_class)
    return _checked(auto, folder, dtype, allow_head_missing=False)


def load_trunk(folder: str, dtype: str) -> Any:
    """The model without its language-model head, from a policy's or a scorer's checkpoint."""
    from transformers import AutoModel

    checkpoint_family(folder)
    return _checked(AutoModel, folder, dtype, allow_head_missing=True)


def load_processor(folder: str) -> Any:
    """Tokenizer and image processor of a checkpoint. The tokenizer's end of sequence is what the
    chat template puts behind an answer, and it has a padding token.

    Raises: ModelError.
    """
    from transformers import AutoProcessor, PreTrainedTokenizerBase

    family = checkpoint_family(folder)
    try:
        loaded = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    except ImportError as error:  # of a library that only this processor wants
        raise ModelError(f"{folder}: {error}") from error
    processor = TextProcessor(loaded) if isinstance(loaded, PreTrainedTokenizerBase) else loaded
    if processor.chat_template is None:
        raise ModelError(f"{folder}: its tokenizer has no chat template")
    if family.processor != type(processor).__name__:
        raise ModelError(
            f"{folder}: {family.name} needs the processor {family.processor}, not "
            f"{type(processor).__name__}"
        )
    family.check(processor)
    tokenizer = processor.tokenizer
    if (end := _end_of_turn(processor)) is not None:
        tokenizer.eos_token = end
    if tokenizer.eos_token is None:
        raise ModelError(f"{folder}: its tokenizer has no token that ends an answer")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return processor


def _end_of_turn(processor: Any) -> str | None:
    """The special token right behind an answer in a rendered conversation, if there is one: of
    chat models it often is not the tokenizer's end of sequence.
    """
    answer = "yes"
    turns = [("user", "no"), ("assistant", answer)]
    messages = [{"role": role, "content": [{"type": "text", "text": said}]} for role, said in turns]
    rendered = str(processor.apply_chat_template(messages, tokenize=False))
    behind = rendered[rendered.rindex(answer) + len(answer) :].lstrip()
    special = [token for token in added_special_tokens(processor.tokenizer) if token]
    fitting = [token for token in special if behind.startswith(token)]
    return max(fitting, key=len, default=None)


def added_special_tokens(tokenizer: Any) -> list[str]:
    """Every token that the tokenizer treats as special, also those it has no name for."""
    added = tokenizer.added_tokens_decoder.values()
    named = [token.content for token in added if token.special]
    return sorted({*tokenizer.all_special_tokens, *named})


def structure_tokens(processor: Any) -> list[str]:
    """Tokens that users must not spell and policies must not sample, save the end of an answer."""
    family = family_of_processor(processor)
    known = {*added_special_tokens(processor.tokenizer), *family.structure(processor)}
    return sorted(known)


def forbidden_ids(processor: Any, config: Any) -> list[int]:
    """Ids that a policy must not sample: a sampled placeholder has no image, which breaks the next
    forward pass; a sampled turn marker breaks the chat format. Args: config: of the model.
    """
    tokenizer = processor.tokenizer
    vocabulary = tokenizer.get_vocab()
    ids = {vocabulary[token] for token in structure_tokens(processor) if token in vocabulary}
    known = range(config.get_text_config().vocab_size)
    return sorted(each for each in ids - {tokenizer.eos_token_id} if each in known)


def processor_behaviour(processor: Any) -> dict[str, Any]:
    """What decides about ids and pixels, as plain containers: the tokenizer's algorithm,
    vocabulary and special tokens, the chat template, and the image processor's settings. Files do
    not say: saving a published checkpoint writes the same settings into other files.
    """
    tokenizer = processor.tokenizer
    algorithm = json.loads(tokenizer.backend_tokenizer.to_str())
    ends = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    images = getattr(processor, "image_processor", None)
    return {
        "algorithm": {k: v for k, v in algorithm.items() if k not in ("padding", "truncation")},
        "ends": ends,
        "chat_template": processor.chat_template,
        "images": {} if images is None else _plain_settings(images.to_dict()),
        "processor": _plain_settings(vars(processor)),
    }


def _plain_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Those that are numbers, texts, or lists and mappings of them; not names of classes."""
    records = ("processor_class", "image_processor_type", "feature_extractor_type", "_auto_class")
    kept = {}
    for key, value in settings.items():
        if key in records or not isinstance(value, bool | int | float | str | list | dict | tuple):
            continue
        kept[key] = json.loads(json.dumps(value, default=str))
    return kept


def checkpoint_family(folder: str) -> Family:
    """The family of the model in a folder. Raises: ModelError."""
    try:
        return family_of_type(str(_config(folder).get("model_type")))
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from error


def checkpoint_dtype(folder: str) -> str:
    """The dtype that a model was saved in, by its configuration. Raises: ModelError."""
    config = _config(folder)
    name = config.get("dtype") or config.get("torch_dtype")  # as transformers wrote it before 5.0
    if name not in DTYPES:
        raise ModelError(
            f"{folder}: config.json has the dtype {name!r}, not {' or '.join(DTYPES)}; give one"
        )
    return str(name)


def _config(folder: str) -> dict[str, Any]:
    path = Path(folder) / "config.json"
    if not path.exists():
        raise ModelError(f"{folder}: no model there (config.json is missing)")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ModelError(f"{path}: no JSON object: {error}") from error


def checkpoint_names(model: Any) -> dict[str, str]:
    """Names of the parameters in memory -> names in the checkpoint that the model was loaded from,
    which the rollout engine reads: transformers renames the weights of many families.
    """
    from transformers.core_model_loading import revert_weight_conversion

    names = {}
    for name, parameter in model.named_parameters():
        empty = torch.empty(0, dtype=parameter.dtype)
        (names[name],) = revert_weight_conversion(model, {name: empty})
    return names


def checkpoint_tensors(folder: str) -> list[tuple[str, Tensor]]:
    """Every tensor of a checkpoint under its name in the file."""
    files = sorted(path for path in Path(folder).glob("*.safetensors") if path.name != HEAD_FILE)
    return [item for file in files for item in load_file(file).items()]


def _checked(auto: Any, folder: str, dtype: str, *, allow_head_missing: bool) -> Any:
    model, report = auto.from_pretrained(
        folder,
        dtype=_TORCH_DTYPES[dtype],
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
    )
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(f"{folder}: weights are missing, first of {len(missing)}: {missing[0]}")
    unknown = sorted(report["unexpected_keys"])
    if allow_head_missing:
        unknown = [name for name in unknown if "lm_head" not in name.split(".")]
    if unknown:
        raise ModelError(f"{folder}: unknown weights, first: {unknown[0]}")
    speed_up_vision(model, packs_images=checkpoint_family(folder).packs_images)
    return model


def load_head(folder: str) -> Tensor | None:
    """The score head's weight [1, hidden], or None when the folder holds none."""
    path = Path(folder) / HEAD_FILE
    return load_file(path)["weight"] if path.exists() else None


def save_head(folder: Path, weight: Tensor) -> None:
    save_file({"weight": weight.detach().contiguous()}, folder / HEAD_FILE)
