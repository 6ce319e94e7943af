"""The plan as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rlsys.config.schema import RunConfig
from rlsys.plan.compute import Device, Iteration, stage_iteration
from rlsys.plan.fit import Devices, Fit, advice, fit, node_need, sequences_at_once
from rlsys.plan.load import GB, Lengths, ProcessMemory, RoleMemory, stage_memory

COLUMNS = (
    "group", "role", "parameters", "trained", "weights", "gradients", "master", "optimizer",
    "activations", "logits", "KV cache", "copies",
)  # fmt: skip
MOST_ADVICE = 4


def show_plan(
    config: RunConfig, lengths: Lengths, devices: Devices, device: Device, console: Console
) -> bool:
    """Print every stage. Returns: whether all of them fit."""
    console.print(
        f"[bold]{escape(config.name)}[/bold]: prompts of {lengths.prompt} tokens, "
        f"{lengths.images} of them visual, answers of at most {lengths.answer}; GB, of one rank; "
        "an estimate"
    )
    fine = True
    for name, stage in config.stages.items():
        processes = stage_memory(config, name, lengths)
        if not processes:
            continue
        fits = [fit(each, devices) for each in processes]
        console.print(_table(f"{name} ({stage.kind})", processes), soft_wrap=False)
        for each in fits:
            console.print(_verdict(config, name, lengths, each, devices), soft_wrap=True)
        console.print(_node(fits, devices), soft_wrap=True)
        console.print(_time(stage_iteration(config, name, lengths, device), device), soft_wrap=True)
        fine = fine and all(each.fits for each in fits) and not _host_missing(fits, devices)
    return fine


def _table(title: str, processes: list[ProcessMemory]) -> Table:
    table = Table(title=f"[bold]{escape(title)}[/bold]", title_justify="left", title_style="")
    for column in COLUMNS:
        right = column not in ("group", "role")
        table.add_column(column, justify="right" if right else "left", no_wrap=not right)
    for process in processes:
        settings = process.settings
        where = f"{settings.gpus:g} GPU" if settings.gpus else "CPU"
        for number, each in enumerate(process.roles):
            group = f"{process.group}: {settings.ranks} x {where}" if not number else ""
            table.add_row(escape(group), each.role.role, *_numbers(each))
        table.add_section()
    return table


def _numbers(each: RoleMemory) -> Iterator[str]:
    model, held = each.role.model, each.held
    yield _count(model.total)
    yield _count(model.trained)
    copies = max(held.gathered + held.update, each.sync) + each.ptx
    for value in (
        held.weights, held.gradients, held.master, held.optimizer, each.activations, each.logits,
        each.cache, copies,
    ):  # fmt: skip
        yield _gb(value)


def _verdict(config: RunConfig, name: str, lengths: Lengths, found: Fit, devices: Devices) -> str:
    process = found.process
    need = f"{process.group}: {_gb(found.need)} GB of {_gb(found.capacity)}"
    if not found.capacity:
        return f"  {process.group}: {_gb(found.need)} GB (the machine's memory is unknown)"
    if found.fits:
        more = ""
        if process.utilization and process.settings.gpus:
            more = f"; its cache holds {sequences_at_once(process, devices)} longest sequences"
        return f"  [green]fits[/green]  {need}{more}"
    lines = [f"  [red]does not fit[/red]  {need}" + f" ({found.why})" * bool(found.why)]
    for each in advice(config, name, lengths, found, devices)[:MOST_ADVICE]:
        then = "then it fits" if each.fits else "not enough alone"
        saved = f"saves {_gb(each.saves)} GB, " if each.saves > 0 else ""
        lines.append(f"      {escape(each.change)}: {saved}{then}")
    return "\n".join(lines)


def _node(fits: list[Fit], devices: Devices) -> str:
    gpu, host = node_need(fits)
    count = sum(each.process.settings.gpus * each.process.settings.ranks for each in fits)
    line = (
        f"  all ranks: {_gb(gpu)} GB on {count:g} GPUs of {_gb(devices.gpu)}, " if count else "  "
    )
    line += f"{_gb(host)} GB in the host's memory"
    if missing := _host_missing(fits, devices):
        line += f" [red]which has {_gb(devices.host)}: {_gb(missing)} GB are missing[/red]"
    return line


def _host_missing(fits: list[Fit], devices: Devices) -> float:
    return max(0.0, node_need(fits)[1] - devices.host) if devices.host else 0.0


def _time(iteration: Iteration, device: Device) -> str:
    parts = [f"{each.role} {each.phase} {each.seconds:.3g} s" for each in iteration.work]
    tokens = sum(each.tokens for each in iteration.work)
    sent = f", {_gb(iteration.sync)} GB sent" if iteration.sync else ""
    return (
        f"  an iteration or step: about {iteration.seconds:.3g} s on {device.name}"
        f" ({', '.join(parts)}{sent}; {tokens:,} tokens and {iteration.flops / 1e12:,.3g} TFLOP of "
        "the most loaded ranks)"
    )


def _gb(value: float) -> str:
    return f"{value / GB:.3g}" if value else "0"


def _count(value: int) -> str:
    if value >= 1e9:
        return f"{value / 1e9:.2f}B"
    return f"{value / 1e6:.1f}M" if value >= 1e5 else str(value)
