"""Bytes that a role needs, as pure functions of counts. ``benchmarks/plan.py`` measures them.

P parameters, T of them trained, R ranks, b bytes of the run's dtype, h hidden size, q width of the
queries, i width of the MLP, V vocabulary, n tokens of a micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlsys.plan.model import Shape

FP32 = 4
LIVE = 1_000_000_000
"""Parameters that ZeRO-3 keeps gathered (DeepSpeed's stage3_max_live_parameters)."""
SUB_GROUP = 100_000_000
"""Parameters that ZeRO-3 updates together (sub_group_size of ``deepspeed_config``)."""


@dataclass(frozen=True)
class Held:
    """Bytes on the device of one rank. weights, master and optimizer stay; gradients are there in
    backward passes, update in a step, gathered in both. host: in the host's memory.
    """

    weights: float = 0
    gradients: float = 0
    master: float = 0
    optimizer: float = 0
    gathered: float = 0
    update: float = 0
    host: float = 0

    @property
    def resident(self) -> float:
        """Between two calls."""
        return self.weights + self.master + self.optimizer


def trained_state(
    total: int,
    trained: int,
    *,
    ranks: int,
    itemsize: int,
    engine: str,
    zero_stage: int = 0,
    offload: str = "none",
) -> Held:
    """Weights, gradients, master weights and AdamW's two moments (ZeRO, arXiv 1910.02054, fig. 1).

    DeepSpeed keeps master weights at stages 1 to 3, in float32 runs too. update: what a step takes
    beside: gradients in float32 and two temporaries of AdamW's denominator, of all parameters of a
    rank at stages 1 and 2, of a sub-group at stage 3, of the largest tensor without ZeRO (not
    counted).
    """
    if engine == "torch" or zero_stage == 0:
        return Held(total * itemsize, trained * itemsize, 0, 2 * trained * itemsize)
    own = trained / ranks
    third = zero_stage == 3
    shard = own if zero_stage >= 2 else trained
    weights = total * itemsize / (ranks if third else 1)
    moved = min(own, SUB_GROUP) if third else own
    held = Held(
        weights=weights,
        gradients=shard * itemsize,
        master=own * FP32,
        optimizer=2 * own * FP32,
        gathered=min(total, LIVE) * itemsize if third else 0,
        update=3 * moved * FP32,
    )
    if offload == "none":
        return held
    on_host = held.master + held.optimizer + own * (itemsize if third else FP32)
    if offload == "optimizer":
        return Held(weights, own * itemsize, gathered=held.gathered, host=on_host)
    return Held(0, 0, gathered=held.gathered, host=on_host + weights)


def frozen_state(total: int, *, ranks: int, itemsize: int, frozen: str = "whole") -> Held:
    """Weights of a role that only runs forward."""
    if frozen == "whole":
        return Held(weights=total * itemsize)
    live = min(total, LIVE) * itemsize
    shard = total * itemsize / ranks
    return Held(0, gathered=live, host=shard) if frozen == "offload" else Held(shard, gathered=live)


def layer_bytes(shape: Shape, itemsize: int, *, adapters: bool) -> float:
    """Bytes per token that autograd keeps of one decoder layer.

    Both norms: a float32 copy of the input (in float32 runs the input and its normalised form), the
    normalised form before its weight, and the output; attention: queries, keys and values after the
    rotary embedding, the two last repeated to the number of query heads, its output and the copy
    that the output projection reads; MLP: gate, its activation, up, and their product. With
    adapters the frozen matrices need no inputs, apart from those under an adapter, which are
    taken to be q, k, v and o.
    """
    h, q, i, b = shape.hidden, shape.query, shape.intermediate, itemsize
    norms = 2 * (FP32 * h + b * h + b * h)
    if adapters:
        norms = 2 * FP32 * h + b * h
    return norms + 5 * b * q + (3 if adapters else 4) * b * i


def tower_bytes(shape: Shape, itemsize: int) -> float:
    """Bytes per patch that autograd keeps of one layer of the vision tower: two norms with their
    outputs, queries, keys, values, attention's output and its copy, the MLP before and after its
    activation.
    """
    return itemsize * (
        4 * shape.tower_hidden + 5 * shape.tower_hidden + 2 * shape.tower_intermediate
    )


def activation_bytes(
    shape: Shape, itemsize: int, tokens: int, *, adapters: bool = False, checkpointing: bool = False
) -> float:
    """Of the language model in a training pass. With checkpointing (arXiv 1604.06174) the input of
    every layer, and one layer whole.
    """
    layer = layer_bytes(shape, itemsize, adapters=adapters)
    if checkpointing:
        return tokens * (shape.layers * itemsize * shape.hidden + layer)
    return tokens * (shape.layers * layer + 2 * itemsize * shape.hidden)


def tower_activation_bytes(
    shape: Shape, itemsize: int, patches: int, *, checkpointing: bool = False
) -> float:
    """Of a trained vision tower."""
    layer = tower_bytes(shape, itemsize)
    if checkpointing:
        return patches * (shape.tower_layers * itemsize * shape.tower_hidden + layer)
    return patches * shape.tower_layers * layer


def forward_bytes(shape: Shape, itemsize: int, tokens: int, patches: int) -> float:
    """At the widest place of a pass without gradients: gate, up and their product, two hidden
    states, and a norm's float32 copy; in the vision tower the MLP and attention's inputs.
    """
    language = tokens * (
        itemsize * (3 * shape.intermediate + 2 * shape.hidden) + FP32 * shape.hidden
    )
    wide = 2 * shape.tower_intermediate + 5 * shape.tower_hidden
    return max(language, patches * itemsize * wide)


def logit_bytes(vocab: int, itemsize: int, answers: int, *, training: bool) -> float:
    """Of the log-probabilities of as many answer tokens: logits, logits without the forbidden ids,
    their float32 copy, logsumexp's temporary; backward three more in float32 (of the picked logits,
    of logsumexp, and their sum).
    """
    forward = 2 * itemsize + (FP32 if itemsize < FP32 else 0) + FP32
    return answers * vocab * (forward + (2 * FP32 if training else 0))


def cache_bytes(shape: Shape, itemsize: int, tokens: int) -> float:
    """Keys and values of as many tokens in all layers."""
    return 2 * shape.layers * shape.key_value * itemsize * tokens


def bucket_bytes(largest: int, itemsize: int, bucket: int, *, adapters: bool = False) -> float:
    """A bucket of a weight sync, or a larger tensor alone; with adapters two float32 copies of the
    layer that they are merged into. Args: largest: of the tensors sent.
    """
    return max(bucket, largest * itemsize) + (2 * FP32 * largest if adapters else 0)
