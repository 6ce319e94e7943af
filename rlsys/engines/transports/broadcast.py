"""Broadcast groups: the trainers' rank 0 and the engines in one process group of their own.

For engines on other nodes: a bucket goes through the group once, over gloo, or over NCCL where each
member has a GPU to itself. The group is torch's, since the backends that vLLM brings for its
weight-transfer API are for GPUs and load what arrives unchecked; buckets are received and verified
inside that API all the same, as those of every transport (``rlsys.engines.receiving``).

An engine that wants the last update asks for it, through a store that the trainer holds; a thread
of the trainer makes a group of those that ask, and sends them its copy of the buckets. A group
stays as long as the same engines ask. When one of them dies or hangs, the group fails after a
quarter of the timeout; the others ask again and get a new one without it.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

from rlsys.config.engine import BROADCAST
from rlsys.engines.fingerprints import Bytes
from rlsys.engines.transports.base import Fill
from rlsys.engines.transports.broadcast_group import (
    Assignment,
    Group,
    Request,
    backend_of,
    connect,
    own_gpu,
)
from rlsys.engines.weights import WeightUpdate, bucket_size
from rlsys.errors import SyncError
from rlsys.runtime.process_group import open_store

NAME = BROADCAST
GATHER_SECONDS = 0.5  # a group waits so long for engines that may ask too
POLL_SECONDS = 0.005
YEAR = 365 * 86400.0
REQUESTS = "requests"  # a queue of the store
SUPERSEDED = "another version of the weights has replaced it"


class BroadcastWriter:
    """Keeps a copy of the last update, and sends it to those who ask, from a thread of its own."""

    def __init__(self, address: str, timeout: float) -> None:
        self._limit = timeout / 4
        self._store = open_store(address)
        self._address = (address, self._store.port)
        self._serial = 0  # of the update
        self._buckets: list[Bytes] = []
        self._closed = threading.Event()
        self._changing = threading.Lock()  # held while buckets change, and while one is sent
        self._group: Group | None = None
        self._members: tuple[str, ...] = ()  # of the group
        self._served: tuple[int, frozenset[str]] = (0, frozenset())  # serial, who has taken it
        self._thread = threading.Thread(target=self._run, name=NAME, daemon=True)
        self._thread.start()

    def publish(self, sizes: Sequence[int], fill: Fill) -> tuple[str, int, int]:
        with self._changing:
            self._serial += 1
            if [len(bucket) for bucket in self._buckets] != list(sizes):
                self._buckets = [np.empty(size, dtype=np.uint8) for size in sizes]
            for number, bucket in enumerate(self._buckets):
                fill(number, bucket)
        return (*self._address, self._serial)

    def close(self) -> None:
        """Ends the thread. Engines lose their group."""
        self._closed.set()
        self._store.queue_push(REQUESTS, "")
        self._thread.join(self._limit + 2 * GATHER_SECONDS)

    def _run(self) -> None:
        inbox = connect(*self._address, YEAR)
        while not self._closed.is_set():
            if requests := self._gather(inbox.queue_pop(REQUESTS)):
                self._serve(requests)
        self._group = None

    def _gather(self, message: bytes) -> list[Request]:
        """Those that ask, until all that took the update before do, or no time is left."""
        requests: dict[str, Request] = {}
        end = time.monotonic() + GATHER_SECONDS
        expected = self._served[1]
        while message:
            request = Request(**json.loads(message))
            if request.serial == self._serial:
                requests[request.member] = request
            else:
                self._answer(request, Assignment(refused=SUPERSEDED))
            while not self._store.queue_len(REQUESTS):
                if time.monotonic() > end or (expected and expected <= requests.keys()):
                    return [requests[member] for member in sorted(requests)]
                time.sleep(POLL_SECONDS)
            message = self._store.queue_pop(REQUESTS)
        return []  # closed

    def _answer(self, request: Request, assignment: Assignment) -> None:
        self._store.set(f"assignment/{request.id}", json.dumps(asdict(assignment)))

    def _serve(self, requests: Sequence[Request]) -> None:
        """Send the update to a group of those that requested it."""
        serial = requests[0].serial
        first = min(request.first for request in requests)
        try:
            group = self._grouped(requests, first)
            for number in range(first, len(self._buckets)):
                self._send(group, serial, number)
        except RuntimeError as error:  # of the group
            self._group = None
            self._served = (0, frozenset())
            for request in requests:
                self._store.set(f"failed/{request.id}", f"{self._late(requests)} ({_line(error)})")
            return
        earlier = self._served[1] if self._served[0] == serial else frozenset()
        self._served = (serial, earlier | set(self._members))

    def _grouped(self, requests: Sequence[Request], first: int) -> Group:
        """The group as it was, if it has exactly the members that request one, or a new one."""
        members = tuple(request.member for request in requests)
        current = self._group
        if current and (self._members != members or {r.group for r in requests} != {current.name}):
            current = self._group = None  # the old one ends before
        gpus = [own_gpu(), *(request.gpu for request in requests)]
        backend = backend_of(gpus)
        name = current.name if current else uuid.uuid4().hex
        for rank, request in enumerate(requests, 1):
            self._answer(request, Assignment(name, rank, len(gpus), backend, first))
        if current is None:
            assignment = Assignment(name, 0, len(gpus), backend, first)
            current = Group(connect(*self._address, self._limit), assignment, self._limit)
        self._group, self._members = current, members
        return current

    def _send(self, group: Group, serial: int, number: int) -> None:
        with self._changing:
            if serial != self._serial:
                raise RuntimeError(SUPERSEDED)
            bucket = torch.from_numpy(self._buckets[number]).to(group.device)
            group.finish(group.start(bucket))

    def _late(self, requests: Sequence[Request]) -> str:
        """Those that have taken the least, as text."""
        taken = dict.fromkeys(requests, -1)
        for each in requests:
            if self._store.check([f"taken/{each.member}"]):
                id, count = self._store.get(f"taken/{each.member}").decode().split()
                taken[each] = int(count) if id == each.id else -1
        least = min(taken.values())
        names = ", ".join(each.process for each, count in taken.items() if count == least)
        took = f"took {least} of {len(self._buckets)} buckets"
        return f"{names} {took if least >= 0 else 'did not join the group'}"


class BroadcastReader:
    """An engine's membership. A bucket is received while the one before it is loaded, so that two
    buffers are in use.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._member, self._request = uuid.uuid4().hex, ""
        self._process = f"process {os.getpid()} on host {socket.gethostname()}"
        self._address = ("", 0)
        self._store: TCPStore | None = None
        self._group: Group | None = None
        self._buffers: list[Tensor] = []
        self._incoming: tuple[int, int, Any] | None = None  # serial, number and work of a bucket

    def read(self, update: WeightUpdate, number: int) -> Bytes | Tensor:
        end = time.monotonic() + self.timeout
        while True:
            try:
                return self._receive(update, number, end)
            except RuntimeError as error:  # of the group, or of the store
                reason = self._reason(error)
                self._group = self._incoming = self._store = None
                if isinstance(error, SyncError) or time.monotonic() >= end:
                    raise SyncError(
                        f"weights version {update.version}: read: bucket {number} of "
                        f"{len(update.buckets)} did not arrive on host {socket.gethostname()} "
                        f"from {update.handle[0]}: {reason}"
                    ) from error

    def close(self) -> None:
        """End the membership. A transfer under way fails for the whole group."""
        self._group = self._incoming = self._store = None

    def _receive(self, update: WeightUpdate, number: int, end: float) -> Bytes | Tensor:
        serial, sizes = update.handle[2], [bucket_size(bucket) for bucket in update.buckets]
        if self._incoming is None or self._incoming[:2] != (serial, number):
            if self._incoming is not None:  # in the middle of something else
                self._group = self._incoming = None
            self._post(serial, self._join(update, number, end), sizes)
        while True:
            assert self._group is not None, "joined above"
            assert self._store is not None, "joined above"
            assert self._incoming is not None, "posted above"
            arrived, work = self._incoming[1:]
            self._group.finish(work)
            self._store.set(f"taken/{self._member}", f"{self._request} {arrived + 1}")
            self._incoming = None
            if arrived + 1 < len(sizes):
                self._post(serial, arrived + 1, sizes)
            if arrived == number:
                bucket = self._buffers[number % 2][: sizes[number]]
                return bucket if bucket.is_cuda else bucket.numpy()

    def _post(self, serial: int, number: int, sizes: Sequence[int]) -> None:
        """Receive a bucket in the background, where the one before the last was."""
        assert self._group is not None, "posted by members"
        if not self._buffers or len(self._buffers[0]) < max(sizes):
            shape, device = (2, max(sizes)), self._group.device
            self._buffers = list(torch.empty(shape, dtype=torch.uint8, device=device))
        work = self._group.start(self._buffers[number % 2][: sizes[number]])
        self._incoming = (serial, number, work)

    def _join(self, update: WeightUpdate, number: int, end: float) -> int:
        """Ask for an update. Returns: the first bucket that comes."""
        left = timedelta(seconds=max(end - time.monotonic(), 0.01))
        address, port, serial = update.handle
        if self._store is None or self._address != (address, port):
            self._group = None
            self._store = connect(address, port, left.total_seconds())
            self._address = (address, port)
        self._request = uuid.uuid4().hex
        group = self._group.name if self._group else ""
        request = Request(
            self._request, self._member, serial, number, group, own_gpu(), self._process
        )
        self._store.queue_push(REQUESTS, json.dumps(asdict(request)))
        key = f"assignment/{self._request}"
        self._store.wait([key], left)
        assignment = Assignment(**json.loads(self._store.get(key)))
        self._store.delete_key(key)
        if assignment.refused:
            raise SyncError(assignment.refused)
        self._store.set(f"taken/{self._member}", f"{self._request} {assignment.first}")
        if assignment.group != group:
            self._group, self._buffers = None, []  # the old one ends before
            limit = self.timeout / 4
            self._group = Group(connect(address, port, limit), assignment, limit)
        return assignment.first

    def _reason(self, error: RuntimeError) -> str:
        """Why the group failed, as the trainer saw it if it has."""
        key, reason = f"failed/{self._request}", _line(error)
        if self._store is not None and not isinstance(error, SyncError):
            with suppress(RuntimeError):  # the trainer has not noticed, or is gone
                self._store.wait([key], timedelta(seconds=1))
                reason = self._store.get(key).decode()
        return reason


class Broadcast:
    """Transport through broadcast groups."""

    def writer(self, token: str, timeout: float, address: str = "127.0.0.1") -> BroadcastWriter:
        return BroadcastWriter(address, timeout)

    def reader(self, timeout: float) -> BroadcastReader:
        return BroadcastReader(timeout)


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
