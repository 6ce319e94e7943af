"""One private Ray with one engine and two training ranks, started once for all tests here."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image

from actors.cluster import open_cluster
from rlsys.config.engine import RolloutEngineConfig
from rlsys.config.schema import GroupConfig, RunConfig, TinyConfig
from rlsys.data.slice import DataSlice, RowKind
from rlsys.data.source import load_pairs
from rlsys.models.tiny import build_tiny_vlm
from rlsys.runtime.group import Runtime
from rlsys.stages.run_dir import CONFIG
from tests.helpers import write_rows

TRAINED = ["policy", "reference", "reward", "cost", "reward_critic", "cost_critic"]
TINY = TinyConfig(hidden=64, layers=2, vision_hidden=64, vision_layers=2, vocab=320)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "integration" in str(item.path):
            item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSlice:
    """Twelve prompts of different lengths, each with its own picture."""
    folder = tmp_path_factory.mktemp("data")
    generator = random.Random(0)
    images = [
        Image.new("RGB", (56, 28 * (1 + i % 3)), tuple(generator.choices(range(256), k=3)))
        for i in range(12)
    ]
    write_rows(folder, "train", images)
    return DataSlice(str(folder), "train", RowKind.PAIRS, 96)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, data: DataSlice) -> str:
    """An untrained tiny policy."""
    folder = tmp_path_factory.mktemp("model")
    texts = [text for row in load_pairs(data.source, data.split).rows for text in row.texts]
    build_tiny_vlm(folder, texts, TINY, seed=0)
    return str(folder)


@pytest.fixture(scope="session")
def run_config() -> RunConfig:
    return RunConfig(
        name="tests",
        groups={
            "rollout": GroupConfig(roles=["rollout"], ranks=1, cpus=0.5),
            "judge": GroupConfig(roles=["judge"], ranks=1, cpus=0.5),
            "train": GroupConfig(roles=TRAINED, ranks=2, cpus=0.5),
        },
        engine=RolloutEngineConfig(max_model_len=128, max_num_seqs=16),
        stages={},
    )


@pytest.fixture(scope="session")
def cluster(run_config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    run_dir: Path = tmp_path_factory.mktemp("run")
    (run_dir / "logs").mkdir()
    (run_dir / CONFIG).touch()  # every process looks for it
    with open_cluster(run_config, run_dir) as cluster:
        yield cluster


def free_ports(count: int) -> list[int]:
    """Below the ephemeral range and above the ports Ray gives its workers."""
    found: list[int] = []
    for port in random.sample(range(20000, 32000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
    return found[:count]


@pytest.fixture(scope="module")
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A local head with a job server, as `ray start --head` gives it; ended by its own pid."""

    # The agent's default port is an ephemeral one: any connection of the machine may hold it.
    port, agent_port = free_ports(2)
    token = tmp_path_factory.mktemp("head") / "token"
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    temp = tempfile.mkdtemp(prefix="rlt-")  # short: Ray puts sockets under it
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
    }
    with subprocess.Popen(
        [
            "ray", "start", "--head", "--block", "--num-cpus=3", "--port=0",
            "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}",
            f"--dashboard-agent-listen-port={agent_port}", "--temp-dir", temp,
            "--disable-usage-stats",
        ],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as head:  # fmt: skip
        try:
            address = f"http://127.0.0.1:{port}"
            yield environment | {"RAY_API_SERVER_ADDRESS": address, "RAY_TEST_TEMP": temp}
        finally:
            family = psutil.Process(head.pid).children(recursive=True)
            head.terminate()
            _, alive = psutil.wait_procs(family, timeout=15)
            for process in alive:
                process.kill()
            shutil.rmtree(temp, ignore_errors=True)
