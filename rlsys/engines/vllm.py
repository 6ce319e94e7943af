"""A vLLM engine inside the calling process, stepped by the calls that wait for it.

The engine lives in this process (``VLLM_ENABLE_V1_MULTIPROCESSING=0``). Calls may come from several
threads: each waiting call steps the engine for all of them, under one lock, so requests of
different calls are decoded together and a call returns as soon as its own are done.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from itertools import count
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from rlsys.config.engine import EngineConfig
from rlsys.config.engine_arguments import check_arguments
from rlsys.engines.loading import load_counted, plain_linears
from rlsys.engines.transports.base import WeightReader
from rlsys.engines.weights import Phases, WeightUpdate
from rlsys.errors import SyncError


class SteppedEngine:
    """``lock`` guards the engine; hold it to call ``submit`` or to change weights.

    Args: images: most of them in a prompt; reloads: whether the weights will change.
    """

    def __init__(
        self,
        model: str,
        config: EngineConfig,
        dtype: str,
        *,
        cpu: bool,
        images: int,
        reloads: bool = False,
    ) -> None:
        from vllm import LLM

        settings = engine_settings(model, config, dtype, cpu=cpu, images=images)
        if reloads:
            from rlsys.engines import receiving

            settings |= receiving.settings()
        check_arguments(config.extra, settings, "engine.extra")
        with plain_linears() if cpu and reloads else nullcontext():
            self.llm = LLM(**settings, **config.extra)
        self.max_model_len = config.max_model_len
        self.lock = threading.Lock()
        self._finished: dict[str, Any] = {}
        self._names = count()

    def close(self) -> None:
        """Frees its memory, for another engine in this process."""
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def busy(self) -> bool:
        return bool(self.llm.llm_engine.has_unfinished_requests())

    def submit(self, requests: Sequence[tuple[dict[str, Any], Any]]) -> list[str]:
        """Add (prompt, sampling parameters); the lock must be held. Returns: names to wait for."""
        names = []
        for prompt, params in requests:
            name = str(next(self._names))
            self.llm.llm_engine.add_request(name, prompt, params)
            names.append(name)
        return names

    def wait(self, names: Sequence[str]) -> list[Any]:
        """The finished outputs, in the order of ``names``; the lock must not be held."""
        mine = set(names)
        while True:
            with self.lock:
                if mine <= self._finished.keys():
                    return [self._finished.pop(name) for name in names]
                if not self.busy:
                    lost = sorted(mine - self._finished.keys())
                    raise RuntimeError(f"the engine is idle and never answered requests {lost}")
                for output in self.llm.llm_engine.step():
                    if output.finished:
                        self._finished[output.request_id] = output

    def load_weights(self, tensors: Sequence[tuple[str, Tensor]]) -> None:
        """Take tensors by their checkpoint names; call ``drop_caches`` after the last. The lock
        must be held. Raises: SyncError naming a tensor that the model does not know.
        """
        self.llm.llm_engine.apply_model(partial(load_counted, tensors=tensors))

    def load_update(self, update: WeightUpdate, reader: WeightReader) -> Phases:
        """Take an update through vLLM's weight-transfer API, bucket by bucket; call ``drop_caches``
        afterwards. The lock must be held. Returns: what it took. Raises: SyncError.
        """
        phases = Phases()
        self.llm.init_weight_transfer_engine({"init_info": {"reader": reader}})
        self.llm.start_weight_update()
        for number in range(len(update.buckets)):
            bucket = {"update": update, "number": number, "phases": phases}
            self.llm.update_weights({"update_info": bucket})
        self.llm.finish_weight_update(str(update.version))
        return phases

    def drop_caches(self) -> None:
        """Clear the caches of prefixes, processed images and encoded images.
        Raises: SyncError naming a cache that is not empty.
        """
        engine = self.llm.llm_engine
        cleared = engine.reset_prefix_cache()
        engine.reset_mm_cache()
        engine.reset_encoder_cache()
        if not cleared:
            raise SyncError("caches: prefixes are in use, their cache was not cleared")
        if held := sum(engine.collective_rpc(_encoded_images)):
            raise SyncError(f"caches: {held} encoded images of other weights are still cached")


def engine_settings(
    model: str, config: EngineConfig, dtype: str, *, cpu: bool, images: int
) -> dict[str, Any]:
    """The arguments of ``vllm.LLM`` that ``config.extra`` cannot set."""
    sizes: dict[str, Any] = (
        {"enforce_eager": True, "kv_cache_memory_bytes": config.kv_cache_mib << 20}
        if cpu
        else {"gpu_memory_utilization": config.gpu_memory_utilization}
    )
    return sizes | {
        "model": model,
        "dtype": dtype,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "seed": 0,
        "limit_mm_per_prompt": {"image": max(images, 1), "video": 0},
        "mm_processor_cache_gb": 0.25,
        "logprobs_mode": "processed_logprobs",
        "disable_log_stats": True,
        "trust_remote_code": False,
    }


def _encoded_images(worker: Any) -> int:
    """How many a worker keeps."""
    return len(worker.model_runner.encoder_cache)


def multi_modal(images: Sequence[Image.Image], name: str) -> dict[str, Any]:
    """The images of a prompt. Args: name: of the row; the engine caches its images by it."""
    names = [f"{name}/{number}" for number in range(len(images))]
    return {"multi_modal_data": {"image": list(images)}, "multi_modal_uuids": {"image": names}}
