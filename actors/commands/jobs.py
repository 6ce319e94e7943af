"""submit, status, scale, logs, stop, resume: of runs on this machine, or of jobs on a cluster."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from rlsys.errors import ConfigError

if TYPE_CHECKING:
    from actors.jobs.pack import Packed

app = typer.Typer()

Address = Annotated[
    str, typer.Option(help="Dashboard of the cluster, http://host:8265; without it: this machine.")
]
Run = Annotated[
    str, typer.Argument(help="Name or directory of a run; with --address also the id of a job.")
]


@app.command()
def submit(
    config: Annotated[Path, typer.Argument(help="A recipe, for example configs/demo.yaml.")],
    address: Annotated[str, typer.Option(help="Dashboard of the cluster, http://host:8265.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, dotted: stages.ppo.iterations=5")
    ] = None,
) -> None:
    """Run a recipe as a job of a Ray cluster. Only the resolved recipe is sent."""
    from actors.jobs.pack import make_absolute
    from rlsys.config.load import load_config

    _submit(make_absolute(load_config(config, overrides or [])), address, resume=False)


@app.command()
def status(
    run: Annotated[
        str | None, typer.Argument(help="Name or directory of a run, or a job; none: all.")
    ] = None,
    address: Address = "",
) -> None:
    """What a run does: stage, step, reward, cost, multiplier, and each of its processes."""
    from actors.jobs import show
    from rlsys.run_state import find_run, read_state, run_dirs

    console = Console()
    if address:
        from actors.jobs import client

        with client.jobs_of(address) as jobs:
            if run is None:
                console.print(show.jobs_table(client.rlsys_jobs(jobs)))
                return
            job = client.find_job(jobs, run)
        console.print(show.job_line(job))
        folder = client.run_dir_of(job)
        if folder is None:
            print(f"its run directory, in {job.metadata[client.RUNS_DIR_KEY]}, is not seen here")
            return
    elif run is None:
        console.print(show.runs_table([read_state(path) for path in run_dirs(Path("runs"))]))
        return
    else:
        folder = find_run(run)
    state = read_state(folder)
    console.print(show.headline(state))
    console.print(show.processes_table(state))


@app.command()
def scale(
    run: Run,
    rollout: Annotated[int, typer.Option(help="Rollout engines it should have.", min=1)],
) -> None:
    """Give a running run more rollout engines, or fewer; the run goes on meanwhile."""
    from actors.control import ask_scale, ray_of
    from rlsys.run_state import find_run

    folder = find_run(run)
    status = ask_scale(folder, ray_of(folder), rollout)
    engines = [p for p in status.get("processes", []) if "rollout" in p["roles"]]
    ready = sum(p["state"] == "ready" for p in engines)
    print(f"{folder.name}: {rollout} rollout engines requested; {ready} are ready now")


@app.command()
def logs(
    run: Run,
    role: Annotated[str, typer.Option(help="Only the ranks that host this role.")] = "",
    rank: Annotated[int | None, typer.Option(help="Only this rank of its group.", min=0)] = None,
    follow: Annotated[bool, typer.Option(help="Go on until the run ends.")] = False,
    address: Address = "",
) -> None:
    """Output of a run's processes; with --address and neither role nor rank, that of the job."""
    from actors.jobs.tail import print_logs
    from rlsys.run_state import find_run, log_files

    if not address:
        folder = find_run(run)
    else:
        from actors.jobs import client

        with client.jobs_of(address) as jobs:
            job = client.find_job(jobs, run)
            if not role and rank is None:
                if follow:
                    client.follow(jobs, job.submission_id)
                else:
                    print(jobs.get_job_logs(job.submission_id), end="")
                return
        found = client.run_dir_of(job)
        if found is None:
            where = job.metadata[client.RUNS_DIR_KEY]
            raise ConfigError(f"logs of ranks are in {where}, which is not seen here")
        folder = found
    print_logs(folder, log_files(folder, role, rank), follow=follow)


@app.command()
def stop(run: Run, address: Address = "") -> None:
    """End a run in order; `rlsys resume` goes on with it. Removes what dead runs left behind."""
    if address:
        from actors.jobs import client

        with client.jobs_of(address) as jobs:
            job = client.find_job(jobs, run).submission_id
            ended = client.stop_and_wait(jobs, job)
        print(f"{job}: {ended}")
        return
    from actors.jobs.local import clean, stop_run
    from rlsys.run_state import find_run

    folder = find_run(run)
    for line in stop_run(folder):
        print(line)
    for left in clean(folder.parent):
        print(f"removed {left}")


@app.command()
def resume(run: Run, address: Address = "") -> None:
    """Go on with a stopped run: its stored recipe, here or submitted again."""
    if address:
        from actors.jobs import client
        from actors.jobs.pack import make_absolute

        client.enable_token_auth()
        with client.jobs_of(address) as jobs:
            recipe = client.find_job(jobs, run).metadata[client.RECIPE_KEY]
        _submit(make_absolute(client.load_text(recipe)), address, resume=True)
        return
    from actors.jobs.local import resume_run
    from rlsys.run_state import find_run

    resume_run(find_run(run))


def _submit(packed: Packed, address: str, *, resume: bool) -> None:
    from actors.jobs import client

    console = Console()
    with client.jobs_of(address) as jobs:
        if client.is_plain_http(address) and os.environ.get("RAY_AUTH_MODE") == "token":
            console.print(
                "[yellow]warning[/yellow] the token travels unencrypted: use an SSH tunnel or https"
            )
        job = client.submit(jobs, packed.config, resume=resume)
    print(f"job {job}, run {packed.config.name}")
    for key, path in packed.shared.items():
        print(f"  {key}: {path}: every node must have this path; it is not copied")
    for what in ("status", "logs", "stop", "resume"):
        option = " --follow" if what == "logs" else ""
        console.print(
            f"  rlsys {what} {job}{option} --address {escape(address)}",
            highlight=False,
            soft_wrap=True,
        )
