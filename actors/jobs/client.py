"""Jobs of a Ray cluster, through its jobs API."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import requests

from actors.jobs.entry import RECIPE, STOP_SECONDS
from rlsys.errors import ConfigError, RlsysError
from rlsys.run_state import JOB_VARIABLE, run_of_job

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

    from rlsys.config.schema import RunConfig

# Metadata of a job; the recipe is what `resume` submits again.
RUN_KEY, RUNS_DIR_KEY, RECIPE_KEY = "rlsys_run", "rlsys_runs_dir", "rlsys_recipe"
ENTRYPOINT = "python -m actors.jobs.entry"  # of the environment that the head was started in


def enable_token_auth() -> None:
    """Ray's clients send no token by default, though its clusters require one by default."""
    variables = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    if (
        any(os.environ.get(name) for name in variables)
        or Path("~/.ray/auth_token").expanduser().exists()
    ):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def is_plain_http(address: str) -> bool:
    """Whether the token would travel unencrypted over a network."""
    parts = urlsplit(address)
    try:
        local = ip_address(parts.hostname or "").is_loopback
    except ValueError:
        local = parts.hostname == "localhost"
    return parts.scheme == "http" and not local


@contextmanager
def jobs_of(address: str) -> Iterator[JobSubmissionClient]:
    """The cluster's jobs. Raises: ConfigError where it cannot be reached, refuses the token or the
    request.
    """
    if urlsplit(address).scheme not in ("http", "https"):
        raise ConfigError(f"--address: {address!r}: the dashboard's is needed, http://host:8265")
    enable_token_auth()  # Ray reads the variable once, when it is imported
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.WARNING)
    try:
        yield JobSubmissionClient(address)
    except (ConnectionError, requests.RequestException) as error:
        raise ConfigError(f"--address: {address}: no answer: {error}") from error
    except AuthenticationError as error:
        raise ConfigError(
            f"--address: {address} refuses the token ({str(error).splitlines()[0]}); name the "
            "cluster's token file in RAY_AUTH_TOKEN_PATH"
        ) from error
    except RuntimeError as error:  # what the client raises for every other answer
        raise ConfigError(f"--address: {address}: {error}") from error


def submit(client: JobSubmissionClient, config: RunConfig, *, resume: bool) -> str:
    """Submit a recipe with absolute paths. Returns: the job's id."""
    from actors.jobs.pack import pack

    job = f"{config.name}-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory() as folder:
        pack(config, Path(folder))
        return client.submit_job(
            entrypoint=ENTRYPOINT + " --resume" * resume,
            submission_id=job,
            runtime_env={
                "working_dir": folder,
                "env_vars": {JOB_VARIABLE: job, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)},
            },
            metadata={
                RUN_KEY: config.name,
                RUNS_DIR_KEY: config.runs_dir,
                RECIPE_KEY: (Path(folder) / RECIPE).read_text(),
            },
        )


def load_text(recipe: str) -> RunConfig:
    """The recipe in a job's metadata. Raises: ConfigError."""
    from rlsys.config.load import load_config

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / RECIPE
        path.write_text(recipe)
        return load_config(path)


def rlsys_jobs(client: JobSubmissionClient) -> list[JobDetails]:
    """Those that ``rlsys submit`` made, oldest first."""
    jobs = [job for job in client.list_jobs() if RUN_KEY in (job.metadata or {})]
    return sorted(jobs, key=lambda job: job.start_time or 0)


def find_job(client: JobSubmissionClient, run: str) -> JobDetails:
    """The job of this id, or the newest of the run of this name. Raises: ConfigError."""
    jobs = rlsys_jobs(client)
    for job in reversed(jobs):
        if run in (job.submission_id, job.metadata[RUN_KEY]):
            return job
    known = ", ".join(str(job.submission_id) for job in jobs) or "none"
    raise ConfigError(f"{run!r} is no job of this cluster and no run of one ({known})")


def run_dir_of(job: JobDetails) -> Path | None:
    """The run directory of a job, where this machine sees it."""
    return run_of_job(Path(job.metadata[RUNS_DIR_KEY]), str(job.submission_id))


def stop_and_wait(client: JobSubmissionClient, job: str) -> str:
    """Stop a job and wait for its end. Returns: its last status.

    Raises: RlsysError when it has not ended by the time Ray kills it.
    """
    client.stop_job(job)
    deadline = time.monotonic() + STOP_SECONDS + 10
    while not (status := client.get_job_status(job)).is_terminal():
        if time.monotonic() > deadline:
            raise RlsysError(f"{job} is still {status.value.lower()} {STOP_SECONDS + 10} s later")
        time.sleep(0.5)
    return str(status.value.lower())


def follow(client: JobSubmissionClient, job: str) -> None:
    """Print a job's output until the job ends."""

    async def tail() -> None:
        async for text in client.tail_job_logs(job):
            print(text, end="", flush=True)

    asyncio.run(tail())
