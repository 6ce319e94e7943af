"""The rollout engines: vLLM samples responses, and loads new weights without a restart."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from rlsys.batch import Rollouts, SampleRequest
from rlsys.config.engine import EngineConfig
from rlsys.data.encoder import PromptEncoder
from rlsys.engines.transports.base import WeightReader
from rlsys.engines.vllm import SteppedEngine, multi_modal
from rlsys.engines.weights import Loaded, WeightUpdate, check_follows
from rlsys.errors import SyncError
from rlsys.models.load import checkpoint_tensors, forbidden_ids
from rlsys.roles.factory import RowSource, WorkerFactory, architecture_hash
from rlsys.roles.role import Role
from rlsys.runtime.group import RankGroup, RoleHandle
from rlsys.runtime.pending import Pending

ROLE = Role("rollout", "vLLM engines that draw responses", exclusive=True, elastic=True)
# Far below any real logit, so that the sampler never draws it; -inf upsets vLLM's bookkeeping.
FORBIDDEN_BIAS = -100.0


class Rollout(Protocol):
    """N engines that sample responses, as a driver sees them."""

    def generate(
        self, requests: Sequence[SampleRequest], *, greedy: bool = False
    ) -> list[Pending[Rollouts]]:
        """One Pending per chunk. Engines must hold the current weights, verified."""
        ...

    def load(self, update: WeightUpdate) -> Pending[Loaded]:
        """Every engine loads and verifies the weights. Returns: the version, and how long the
        slowest took.
        """
        ...


@dataclass(frozen=True)
class RolloutSpec:
    """model: folder of the engine's architecture, tokenizer and initial weights."""

    model: str
    data: RowSource
    engine: EngineConfig
    dtype: str

    def build(self, factory: WorkerFactory) -> RolloutWorker:
        """A cached engine of the same architecture is reused with this model's weights."""
        encoder = factory.encoder(self.model, self.data)
        images = encoder.records.most_images

        def start() -> RolloutWorker:
            engine = SteppedEngine(
                self.model,
                self.engine,
                self.dtype,
                cpu=factory.cpu,
                images=images,
                reloads=True,
            )
            return RolloutWorker(engine, self.model, encoder, factory.reader())

        key = (architecture_hash(self.model), repr(self.engine), self.dtype, images)
        worker: RolloutWorker = factory.engine(ROLE.name, key, start)
        worker.reset(self.model, encoder)
        return worker


class RolloutWorker:
    """One engine. It serves requests only while it holds verified weights of their version.

    It draws one chunk at a time, with empty caches: what is computed together, and with it rounding
    errors, depends on the chunk alone, so that any engine gives the same response.
    """

    def __init__(
        self, engine: SteppedEngine, model: str, encoder: PromptEncoder, reader: WeightReader
    ) -> None:
        self.engine, self.model = engine, model
        self.encoder, self.reader = encoder, reader
        self.version: int | None = None  # None: no verified weights
        self._last: WeightUpdate | None = None
        hf_config = self.engine.llm.model_config.hf_config
        forbidden = forbidden_ids(encoder.processor, hf_config)
        self.bias = dict.fromkeys(forbidden, FORBIDDEN_BIAS)
        self._preparing, self._drawing = threading.Lock(), threading.Lock()

    def close(self) -> None:
        self.engine.close()

    def reset(self, model: str, encoder: PromptEncoder) -> None:
        """Use another encoder, and count the current weights as stale until new ones are loaded.
        The base weights of another model are loaded, since a sync sends only trained tensors.
        """
        with self.engine.lock:
            self.encoder, self.version, self._last = encoder, None, None
            if model != self.model:
                self.engine.load_weights(checkpoint_tensors(model))
                self.model = model
            self.engine.drop_caches()

    def draw(
        self,
        requests: Sequence[SampleRequest],
        version: int,
        max_new_tokens: int,
        temperature: float,
    ) -> Rollouts:
        """The responses to one chunk. ``temperature`` 0 is greedy. The next chunk is prepared while
        one is decoded.

        Raises: SyncError when the engine does not hold weights ``version``.
        """
        with self._preparing:
            params = self._requests(requests, max_new_tokens, temperature)
        with self._drawing:
            with self.engine.lock:
                if self.version is None or version != self.version:
                    held = "no verified weights" if self.version is None else f"{self.version}"
                    raise SyncError(f"requests for weights {version}, the engine holds {held}")
                self.engine.drop_caches()
                names = self.engine.submit(params)
            outputs = self.engine.wait(names)
        return _rollouts(requests, outputs, version, max_new_tokens, temperature)

    def load(self, update: WeightUpdate) -> Loaded:
        """Load a version of the weights, bucket by bucket: read, verify, load; clear all caches.

        Raises: SyncError naming version, phase and tensor when something is not as it was sent, the
        update is older than the last or has other tensors, or requests are still running.
        """
        with self.engine.lock:
            if self.engine.busy:
                raise SyncError("weights cannot change while requests are running")
            self.version = None  # stale until proved otherwise
            if self._last is not None:
                check_follows(update, self._last)
            phases = self.engine.load_update(update, self.reader)
            self.engine.drop_caches()
            self.model = ""  # holds trained weights now
            self._last, self.version = update, update.version
            return Loaded(update.version, socket.gethostname(), dict(phases))

    def load_checkpoint(self, folder: str, version: int) -> Loaded:
        """Load the weights of a checkpoint of the same architecture."""
        with self.engine.lock:
            self.version, self._last = None, None
            self.engine.load_weights(checkpoint_tensors(folder))
            self.engine.drop_caches()
            self.model = folder
            self.version = version
            return Loaded(version, socket.gethostname())

    def _requests(
        self, requests: Sequence[SampleRequest], max_new_tokens: int, temperature: float
    ) -> list[tuple[dict[str, Any], Any]]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        indices = [request.prompt_index for request in requests]
        prompts = self.encoder.prompts(indices, [request.hint for request in requests])
        records = {index: self.encoder.records[index] for index in indices}
        images = {index: record.open_images() for index, record in records.items()}
        result = []
        for request, prompt in zip(requests, prompts, strict=True):
            params = SamplingParams(
                max_tokens=max_new_tokens,
                temperature=temperature,
                seed=request.seed,
                logprobs=0,
                logit_bias=self.bias,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
                stop_token_ids=[self.encoder.tokenizer.eos_token_id],
            )
            engine_prompt: dict[str, Any] = {"prompt_token_ids": prompt.collapsed}
            if shown := images[request.prompt_index]:
                engine_prompt |= multi_modal(shown, records[request.prompt_index].id)
            result.append((engine_prompt, params))
        return result


def _rollouts(
    requests: Sequence[SampleRequest],
    outputs: Sequence[Any],
    version: int,
    width: int,
    temperature: float,
) -> Rollouts:
    rows = len(outputs)
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
        temperature=temperature,
    )


class RolloutHandle(RoleHandle[RolloutSpec]):
    """Implements ``Rollout``. Requests are queued for the version that all engines have verified.

    chunk_prompts: prompts, with all their samples, per chunk.
    """

    def __init__(
        self, group: RankGroup, *, max_new_tokens: int, temperature: float, chunk_prompts: int
    ) -> None:
        super().__init__(group, ROLE.name)
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        self.chunk_prompts = chunk_prompts
        self.version = -1

    def generate(
        self, requests: Sequence[SampleRequest], *, greedy: bool = False
    ) -> list[Pending[Rollouts]]:
        """Chunks of whole prompts, so that a prompt's samples share one engine's caches. The next
        engine that is ready draws the next chunk, and another one a chunk whose engine died.
        """
        temperature = 0.0 if greedy else self.temperature
        return [
            self._any(RolloutWorker.draw, chunk, self.version, self.max_new_tokens, temperature)
            for chunk in self.chunks(requests)
        ]

    def chunks(self, requests: Sequence[SampleRequest]) -> list[list[SampleRequest]]:
        """Requests that are drawn together, and by no other engine."""
        return _chunks(requests, self.chunk_prompts)

    def load(self, update: WeightUpdate) -> Pending[Loaded]:
        loaded = self._install(RolloutWorker.load, update)
        return self._acknowledged(loaded, update.version)

    def load_checkpoint(self, folder: str, version: int) -> Pending[Loaded]:
        """Every engine loads the weights of a checkpoint."""
        loaded = self._install_whole(RolloutWorker.load_checkpoint, folder, version)
        return self._acknowledged(loaded, version)

    def _acknowledged(self, answers: Pending[list[Loaded]], version: int) -> Pending[Loaded]:
        """Set the group's version once every engine has returned it."""

        def agree(loaded: list[Loaded]) -> Loaded:
            for rank, each in enumerate(loaded):
                if each.version != version:
                    raise SyncError(
                        f"weights version {version}: acknowledge: engine {rank} on host "
                        f"{each.host} holds version {each.version}"
                    )
            self.version = version
            return max(loaded, key=lambda each: sum(each.seconds.values()))

        self.version = -1
        return answers.map(agree)


def _chunks(requests: Sequence[SampleRequest], prompts: int) -> list[list[SampleRequest]]:
    chunks: list[list[SampleRequest]] = []
    seen: set[int] = set()
    for request in requests:
        if not chunks or (request.prompt_index not in seen and len(seen) == prompts):
            chunks.append([])
            seen = set()
        seen.add(request.prompt_index)
        chunks[-1].append(request)
    return chunks
