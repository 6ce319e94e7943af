"""vLLM as the rollout engine: requests are added, the engine is stepped, weights are swapped.

The engine lives in the calling process (``VLLM_ENABLE_V1_MULTIPROCESSING=0``). Calls may come from
several threads: each waiting call steps the engine for all of them, under one lock, so requests of
different chunks are decoded together and a call returns as soon as its own are done.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor

from rlsys.batch import Rollouts, SampleRequest
from rlsys.config.schema import EngineConfig
from rlsys.data.encoder import PromptEncoder
from rlsys.errors import SyncError
from rlsys.models.load import vision_token_ids
from rlsys.weights import WeightReader, WeightUpdate

# Far below any real logit, so that the sampler never draws it; -inf upsets vLLM's bookkeeping.
FORBIDDEN_BIAS = -100.0


class RolloutWorker:
    """One engine. It serves no prompt until it has proved that it holds the asked-for weights."""

    def __init__(
        self,
        model: str,
        config: EngineConfig,
        encoder: PromptEncoder,
        reader: WeightReader,
        *,
        cpu: bool,
    ) -> None:
        from vllm import LLM

        sizes: dict[str, Any] = (
            {"enforce_eager": True, "kv_cache_memory_bytes": config.kv_cache_mib << 20}
            if cpu
            else {"gpu_memory_utilization": config.gpu_memory_utilization}
        )
        self.llm = LLM(
            model=model,
            dtype=config.dtype,
            max_model_len=config.max_model_len,
            max_num_seqs=config.max_num_seqs,
            seed=0,
            limit_mm_per_prompt={"image": 1, "video": 0},
            mm_processor_cache_gb=0.25,
            logprobs_mode="processed_logprobs",
            disable_log_stats=True,
            trust_remote_code=False,
            **(sizes | config.extra),
        )
        self.encoder, self.reader = encoder, reader
        self.version: int | None = None  # None: no weights proved yet
        hf_config = self.llm.model_config.hf_config
        _, forbidden = vision_token_ids(hf_config, encoder.tokenizer)
        self.bias = dict.fromkeys(forbidden, FORBIDDEN_BIAS)
        self._lock = threading.Lock()
        self._finished: dict[str, Any] = {}
        self._names = count()

    def reset(self, encoder: PromptEncoder) -> None:
        """Serve other prompts, after new weights: what is held now counts as stale."""
        with self._lock:
            self.encoder, self.version = encoder, None
            self._drop_caches()

    def generate(
        self,
        requests: Sequence[SampleRequest],
        version: int,
        max_new_tokens: int,
        temperature: float,
    ) -> Rollouts:
        """Draw every request. ``temperature`` 0 is greedy.

        Raises: SyncError when the engine does not hold weights ``version``.
        """
        with self._lock:
            if self.version is None or version != self.version:
                held = "no proved weights" if self.version is None else f"weights {self.version}"
                raise SyncError(f"the engine holds {held}, asked for version {version}")
            names = self._add(requests, max_new_tokens, temperature)
        mine = set(names)
        while True:
            with self._lock:
                if mine <= self._finished.keys():
                    outputs = [self._finished.pop(name) for name in names]
                    break
                if not self.llm.llm_engine.has_unfinished_requests():
                    lost = sorted(mine - self._finished.keys())
                    raise RuntimeError(f"the engine is idle and never answered requests {lost}")
                for output in self.llm.llm_engine.step():
                    if output.finished:
                        self._finished[output.request_id] = output
        return self._collect(requests, outputs, version, max_new_tokens)

    def load(self, update: WeightUpdate) -> int:
        """Take a version of the weights: compare, load, repack what is tied, drop every cache.

        Raises: SyncError when a tensor is not the one sent or requests are still running.
        """
        with self._lock:
            if self.llm.llm_engine.has_unfinished_requests():
                raise SyncError("weights cannot change while requests are running")
            self.version = None  # stale until proved otherwise
            self._load_tensors(list(self.reader.read(update)))
            self.version = update.version
            return update.version

    def load_checkpoint(self, folder: str, version: int) -> int:
        """Take the weights of a checkpoint of the same architecture."""
        from pathlib import Path

        from safetensors.torch import load_file

        with self._lock:
            self.version = None
            files = sorted(Path(folder).glob("*.safetensors"))
            self._load_tensors([item for file in files for item in load_file(file).items()])
            self.version = version
            return version

    def _load_tensors(self, tensors: list[tuple[str, Tensor]]) -> None:
        engine = self.llm.llm_engine
        engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(tensors)})
        engine.apply_model(_repack_tied_heads)
        self._drop_caches()

    def _drop_caches(self) -> None:
        """Keys and values, processed images, encoded images: all belong to the old weights."""
        engine = self.llm.llm_engine
        engine.reset_prefix_cache()
        engine.reset_mm_cache()
        engine.reset_encoder_cache()

    def _add(
        self, requests: Sequence[SampleRequest], max_new_tokens: int, temperature: float
    ) -> list[str]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        indices = [request.prompt_index for request in requests]
        prompts = self.encoder.prompts(indices, [request.note for request in requests])
        records = {index: self.encoder.records[index] for index in indices}
        images = {index: record.open_image() for index, record in records.items()}
        names = []
        for request, prompt in zip(requests, prompts, strict=True):
            record = records[request.prompt_index]
            params = SamplingParams(
                max_tokens=max_new_tokens,
                temperature=temperature,
                seed=request.seed,
                logprobs=0,
                logit_bias=self.bias,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            name = str(next(self._names))
            self.llm.llm_engine.add_request(
                name,
                {
                    "prompt_token_ids": prompt.collapsed,
                    "multi_modal_data": {"image": images[request.prompt_index]},
                    "multi_modal_uuids": {"image": record.id},
                },
                params,
            )
            names.append(name)
        return names

    def _collect(
        self, requests: Sequence[SampleRequest], outputs: list[Any], version: int, width: int
    ) -> Rollouts:
        rows = len(requests)
        response_ids = torch.zeros(rows, width, dtype=torch.long)
        logprobs = torch.zeros(rows, width)
        lengths = torch.zeros(rows, dtype=torch.long)
        finished = torch.zeros(rows, dtype=torch.bool)
        for row, output in enumerate(outputs):
            answer = output.outputs[0]
            ids = list(answer.token_ids)
            lengths[row] = len(ids)
            response_ids[row, : len(ids)] = torch.tensor(ids)
            logprobs[row, : len(ids)] = torch.tensor(
                [step[token].logprob for step, token in zip(answer.logprobs, ids, strict=True)]
            )
            finished[row] = answer.finish_reason == "stop"
        return Rollouts(
            prompt_index=torch.tensor([r.prompt_index for r in requests]),
            sample_index=torch.tensor([r.sample_index for r in requests]),
            prompt_ids=[torch.tensor(output.prompt_token_ids) for output in outputs],
            response_ids=response_ids,
            lengths=lengths,
            engine_logprobs=logprobs,
            finished=finished,
            version=version,
        )


def _repack_tied_heads(model: Any) -> None:
    """A head tied to the embeddings keeps a packed copy on CPU that no loaded tensor refreshes."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
