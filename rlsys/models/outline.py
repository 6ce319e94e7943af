"""A model without its weights: its parts by name and size, and whether keys name any of them."""

from __future__ import annotations

from typing import Any

import torch

from rlsys.config.schema import TinyConfig, TrainConfig
from rlsys.errors import ModelError
from rlsys.models.adapters import check_targets
from rlsys.models.families.registry import family_of
from rlsys.models.heads import PolicyModule, ScorerModule, freeze
from rlsys.models.hub import model_config


def check_trained(train: TrainConfig, model: str | TinyConfig, *, scorer: bool) -> None:
    """Check that ``freeze`` and ``lora_targets`` name parts of a model.

    Args: model: a folder, a name on the hub, or the sizes of one that is made from scratch; scorer:
    it has a linear head in place of the language model's. Raises: ModelError naming the key.
    """
    if not (train.lora_rank or train.freeze):
        return
    written = repr(model) if isinstance(model, TinyConfig) else model_config(model).read_text()
    key = (written, scorer, repr((train.lora_rank, train.lora_targets, train.freeze)))
    if key in _checked:  # a recipe's stages often train the same model in the same way
        return
    module = outline(configuration(model), scorer=scorer)
    if train.lora_rank:
        trunk = module.trunk if isinstance(module, ScorerModule) else module.vlm
        check_targets(trunk, train.lora_targets)
    else:
        freeze(module, train.freeze)
    _checked.add(key)


_checked: set[tuple[str, bool, str]] = set()


def outline(config: Any, *, scorer: bool, outputs: int = 1) -> PolicyModule | ScorerModule:
    """On the meta device: it has parameters and no memory. Args: outputs: of a scorer's head."""
    import transformers
    from transformers.initialization import no_init_weights

    with torch.device("meta"), no_init_weights():
        model = getattr(transformers, family_of(config).auto_class).from_config(config)
        model.tie_weights()  # left out without initial values
        return ScorerModule(model.base_model, outputs) if scorer else PolicyModule(model, ())


def configuration(model: str | TinyConfig) -> Any:
    """Of a folder, a name on the hub, or a model made from scratch, with the largest vocabulary it
    may get. Raises: ModelError.
    """
    if isinstance(model, TinyConfig):
        from rlsys.models.tiny import SPECIAL_TOKENS, tiny_configuration

        ids = {token: number for number, token in enumerate(SPECIAL_TOKENS)}
        return tiny_configuration(ids, model.vocab, model)
    from transformers import AutoConfig

    folder = str(model_config(model).parent)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"{model}: {' '.join(str(error).split())}") from error
