"""Plain torch data parallel: the reference for the other training engines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlsys.engines.gradients import Gradients, measured
from rlsys.engines.trained_state import load_trained, trained_state
from rlsys.runtime.pending import Metrics
from rlsys.runtime.process_group import Rank


class TorchEngine:
    """Plain data parallel: gradients are summed over ranks. The reference for the others."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LambdaLR,
        grad_clip: float,
        rank: Rank,
    ) -> None:
        self.module, self.optimizer, self.scheduler = module, optimizer, scheduler
        self.grad_clip, self.rank = grad_clip, rank

    def forward(self, *args: Any) -> Tensor:
        return self.module(*args)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def measured(self) -> AbstractContextManager[Gradients]:
        return measured(self.module, self.rank)

    def step(self) -> Metrics:
        trained = [p for p in self.module.parameters() if p.requires_grad]
        if self.rank.world > 1:
            for parameter in trained:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)
        norm = nn.utils.clip_grad_norm_(trained, self.grad_clip)
        lr = float(self.scheduler.get_last_lr()[0])
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"grad_norm": float(norm), "lr": lr}

    def full_params(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.module.named_parameters():
            yield name, parameter.detach()

    def gathered(self, parameters: Sequence[nn.Parameter]) -> AbstractContextManager[Any]:
        return nullcontext()

    def save(self, folder: Path, tag: str) -> None:
        if self.rank.rank == 0:
            (folder / tag).mkdir(parents=True, exist_ok=True)
            state = {
                "module": trained_state(self.module),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
            }
            torch.save(state, folder / tag / "state.pt")

    def load(self, folder: Path, tag: str) -> None:
        state = torch.load(folder / tag / "state.pt", weights_only=True)
        load_trained(state["module"], self.module)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
