"""vLLM as the rollout engine: draws responses, and takes new weights while it lives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlsys.batch import Rollouts, SampleRequest
from rlsys.config.schema import EngineConfig
from rlsys.data.encoder import PromptEncoder
from rlsys.engines.stepped import SteppedEngine
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
        self.engine = SteppedEngine(model, config, cpu=cpu)
        self.encoder, self.reader = encoder, reader
        self.version: int | None = None  # None: no weights proved yet
        hf_config = self.engine.llm.model_config.hf_config
        _, forbidden = vision_token_ids(hf_config, encoder.tokenizer)
        self.bias = dict.fromkeys(forbidden, FORBIDDEN_BIAS)

    def reset(self, encoder: PromptEncoder) -> None:
        """Serve other prompts, after new weights: what is held now counts as stale."""
        with self.engine.lock:
            self.encoder, self.version = encoder, None
            self.engine.drop_caches()

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
        with self.engine.lock:
            if self.version is None or version != self.version:
                held = "no proved weights" if self.version is None else f"weights {self.version}"
                raise SyncError(f"the engine holds {held}, asked for version {version}")
            names = self.engine.submit(self._requests(requests, max_new_tokens, temperature))
        outputs = self.engine.wait(names)
        return self._collect(requests, outputs, version, max_new_tokens)

    def load(self, update: WeightUpdate) -> int:
        """Take a version of the weights: compare, load, repack what is tied, drop every cache.

        Raises: SyncError when a tensor is not the one sent or requests are still running.
        """
        with self.engine.lock:
            if self.engine.busy:
                raise SyncError("weights cannot change while requests are running")
            self.version = None  # stale until proved otherwise
            self._load_tensors(list(self.reader.read(update)))
            self.version = update.version
            return update.version

    def load_checkpoint(self, folder: str, version: int) -> int:
        """Take the weights of a checkpoint of the same architecture."""
        from pathlib import Path

        from safetensors.torch import load_file

        with self.engine.lock:
            self.version = None
            files = sorted(Path(folder).glob("*.safetensors"))
            self._load_tensors([item for file in files for item in load_file(file).items()])
            self.version = version
            return version

    def _load_tensors(self, tensors: list[tuple[str, Tensor]]) -> None:
        engine = self.engine.llm.llm_engine
        engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(tensors)})
        engine.apply_model(_repack_tied_heads)
        self.engine.drop_caches()

    def _requests(
        self, requests: Sequence[SampleRequest], max_new_tokens: int, temperature: float
    ) -> list[tuple[dict[str, Any], Any]]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        indices = [request.prompt_index for request in requests]
        prompts = self.encoder.prompts(indices, [request.note for request in requests])
        records = {index: self.encoder.records[index] for index in indices}
        images = {index: record.open_image() for index, record in records.items() if record.image}
        found = []
        for request, prompt in zip(requests, prompts, strict=True):
            params = SamplingParams(
                max_tokens=max_new_tokens,
                temperature=temperature,
                seed=request.seed,
                logprobs=0,
                logit_bias=self.bias,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            given: dict[str, Any] = {"prompt_token_ids": prompt.collapsed}
            if request.prompt_index in images:
                given["multi_modal_data"] = {"image": images[request.prompt_index]}
                given["multi_modal_uuids"] = {"image": records[request.prompt_index].id}
            found.append((given, params))
        return found

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
