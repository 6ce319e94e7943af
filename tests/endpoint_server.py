"""An OpenAI-compatible endpoint that says, and fails, what its test wants."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Server:
    """``respond(number, request)`` gives (status, reply) of the n-th request, from 0."""

    respond: Callable[[int, dict[str, Any]], tuple[int, str | None]]
    reason: str = "stop"
    requests: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def serving(server: Server) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                number = len(server.requests)
                server.requests.append(body)
                server.times.append(time.monotonic())
            status, reply = server.respond(number, body)
            choice = {"index": 0, "message": {"content": reply}, "finish_reason": server.reason}
            choices = [] if reply is None else [choice]
            payload = json.dumps({"choices": choices, "error": {"message": "trouble"}}).encode()
            if reply is not None and reply.startswith("raw "):
                payload = reply.removeprefix("raw ").encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_port}/v1"
    finally:
        http.shutdown()
        http.server_close()
