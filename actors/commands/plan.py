"""plan: what a recipe needs before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rlsys.errors import ConfigError

app = typer.Typer()


@app.command()
def plan(
    config: Annotated[Path, typer.Argument(help="A recipe, for example configs/demo.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, dotted: stages.ppo.iterations=5")
    ] = None,
    gpu_memory: Annotated[
        float, typer.Option(help="GB of a GPU; 0: of the one in this machine, else 80.")
    ] = 0.0,
    host_memory: Annotated[
        float, typer.Option(help="GB of a machine's memory; 0: not checked where GPUs are used.")
    ] = 0.0,
    device: Annotated[
        str, typer.Option(help="a100, h100, h200, a10, l4, 4090 or cpu, for the estimate of time.")
    ] = "",
    tflops: Annotated[
        float, typer.Option(help="Peak of another device, TFLOP/s in bfloat16.")
    ] = 0.0,
    prompt_tokens: Annotated[
        int, typer.Option(help="Tokens of a prompt; 0: data.max_prompt_tokens.")
    ] = 0,
    answer_tokens: Annotated[
        int, typer.Option(help="Most tokens of an answer; 0: as far as the recipe limits them.")
    ] = 0,
    image_tokens: Annotated[
        int, typer.Option(help="Visual tokens of a prompt; 0: all of its tokens.")
    ] = 0,
) -> None:
    """Memory of every process and time of an iteration, from the models' configurations alone; what
    to change where it does not fit. Exit code 1: something does not fit.
    """
    import torch

    from rlsys.config.load import load_config
    from rlsys.plan.compute import DEVICES, Device, measured_cpu
    from rlsys.plan.fit import Devices
    from rlsys.plan.load import GB, default_lengths
    from rlsys.plan.show import show_plan

    loaded = load_config(config, overrides or [])
    gpus = any(group.gpus for group in loaded.groups.values())
    known = {*DEVICES, "cpu", ""}
    if device not in known:
        raise ConfigError(f"--device: must be one of {', '.join(sorted(known - {''}))}")
    if tflops:
        chosen = Device(f"{tflops:g} TFLOP/s", tflops * 1e12, tflops * 6.4e9)
    elif device == "cpu" or not (device or gpus):
        chosen = measured_cpu(loaded.dtype)
    else:
        chosen = DEVICES[device or "a100"]
    found = (
        torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 80 * GB
    )
    host = host_memory * GB or (0 if gpus else _memory_here())
    devices = Devices(gpu_memory * GB or found, host)
    lengths = default_lengths(loaded, prompt_tokens, answer_tokens, image_tokens)
    if not show_plan(loaded, lengths, devices, chosen, Console()):
        raise typer.Exit(1)


def _memory_here() -> float:
    import psutil

    return float(psutil.virtual_memory().total)
