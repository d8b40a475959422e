"""A server of embeddings that loads an artifact: no code of the model, no transformers, no compiler.

python examples/serve.py export encoder.smelt       where the model's code is
python examples/serve.py serve encoder.smelt        where it is not: POST /embed {"input_ids": [[5, 17, 4]]}
python examples/serve.py load-test encoder.smelt    starts a server and asks it, on 8 connections at once
"""

import argparse
import contextlib
import http.client
import json
import random
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

import smelt

MOST_BYTES = 1 << 20  # of a request
MOST_TOKENS = 8192
VOCABULARY = 1000


# --- where the model's code is ----------------------------------------------------------------------------------------


def export(path: str, layers: int, width: int) -> None:
    """Write an encoder of random weights, which stands for one that was trained."""
    from torch import Tensor, nn

    class Encoder(nn.Module):
        """Token ids [B, S] to embeddings [B, width] of length 1: the mean over all tokens."""

        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(VOCABULARY, width)
            layer = nn.TransformerEncoderLayer(width, width // 32, 4 * width, batch_first=True, norm_first=True)
            self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

        def forward(self, input_ids: Tensor) -> Tensor:
            return nn.functional.normalize(self.layers(self.tokens(input_ids)).mean(1), dim=-1)

    torch.manual_seed(0)
    model = Encoder().eval()
    ids = torch.randint(VOCABULARY, (2, 16))
    digest = smelt.export(model, (ids,), target=("auto", "x86-64-v3")).save(path)
    print(f"{path}: digest {digest}")


# --- where it is not --------------------------------------------------------------------------------------------------


class Embedder(BaseHTTPRequestHandler):
    """Answers requests, each connection in a thread of its own; all of them call one artifact."""

    protocol_version = "HTTP/1.1"  # connections are kept
    disable_nagle_algorithm = True
    model: Any

    def do_POST(self) -> None:
        """``{"input_ids": [[int]]}``, rows of one length, becomes ``{"embeddings": [[float]]}``."""
        if self.path != "/embed":
            return self.answer(404, {"error": "ask /embed"})
        size = self.headers.get("Content-Length", "")
        if not size.isdigit() or int(size) > MOST_BYTES:
            self.close_connection = True
            return self.answer(413, {"error": f"give a body of {MOST_BYTES} bytes at most"})
        try:
            ids = torch.tensor(json.loads(self.rfile.read(int(size)))["input_ids"], dtype=torch.int64)
            if ids.numel() > MOST_TOKENS:
                raise ValueError(f"more than {MOST_TOKENS} tokens")
            embeddings = self.model(ids)
        except (ValueError, KeyError, TypeError, IndexError, RuntimeError, RecursionError) as error:
            return self.answer(400, {"error": f"{type(error).__name__}: {error}"})
        return self.answer(200, {"embeddings": embeddings.tolist()})

    def answer(self, code: int, data: dict[str, Any]) -> None:
        """Send JSON."""
        body = json.dumps(data).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing is logged."""


class Server(ThreadingHTTPServer):
    """A server that ends with its connections."""

    daemon_threads = True
    request_queue_size = 64


def serve(path: str, port: int, threads: int | None) -> None:
    """Answer requests on the loopback interface until interrupted."""
    start = time.perf_counter()
    with smelt.load(path, threads=threads) as model:
        Embedder.model = staticmethod(model)
        with Server(("127.0.0.1", port), Embedder) as server:
            seconds = time.perf_counter() - start
            print(f"ready after {seconds:.2f} s on port {server.server_address[1]}", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                server.serve_forever()


# --- the load test ----------------------------------------------------------------------------------------------------


def load_test(path: str, requests: int, connections: int, threads: int | None) -> int:
    """Ask a server in another process; the number of wrong answers."""
    draw = random.Random(0)
    lengths = (4, 8, 16, 24, 32)
    asked = [[[draw.randrange(VOCABULARY) for _ in range(length)]] for length in lengths for _ in range(20)]
    with smelt.load(path, threads=threads) as model:
        expected = [model(torch.tensor(ids)).tolist() for ids in asked]
    options = ["--threads", str(threads)] if threads else []
    command = [sys.executable, __file__, "serve", path, "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline().strip()
            print(line)
            clients = [Client(int(line.rpartition(" ")[2]), asked, expected, i) for i in range(connections)]
            shares = [requests // connections + (i < requests % connections) for i in range(connections)]
            start = time.perf_counter()
            workers = [threading.Thread(target=c.ask, args=(n,)) for c, n in zip(clients, shares, strict=True)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            return report(clients, time.perf_counter() - start)
        finally:
            server.terminate()


class Client:
    """One connection: what it asked, how long each answer took, and how many were wrong."""

    def __init__(self, port: int, asked: list[Any], expected: list[Any], seed: int) -> None:
        self.port, self.asked, self.expected, self.draw = port, asked, expected, random.Random(seed)
        self.seconds: list[float] = []
        self.wrong = 0

    def ask(self, count: int) -> None:
        """Send requests, one after another."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(count):
            number = self.draw.randrange(len(self.asked))
            body = json.dumps({"input_ids": self.asked[number]})
            start = time.perf_counter()
            connection.request("POST", "/embed", body)
            response = connection.getresponse()
            data = response.read()
            self.seconds.append(time.perf_counter() - start)
            right = response.status == 200 and json.loads(data)["embeddings"] == self.expected[number]
            self.wrong += not right
        connection.close()


def report(clients: list[Client], seconds: float) -> int:
    """Print what the clients saw; the number of wrong answers."""
    times = sorted(one for client in clients for one in client.seconds)
    wrong = sum(client.wrong for client in clients)
    print(
        f"{len(times)} requests on {len(clients)} connections in {seconds:.1f} s: {len(times) / seconds:.0f} a second"
    )
    at = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
    shown = [f"{name} {1e3 * times[int(part * (len(times) - 1))]:.1f}" for name, part in at.items()]
    print(f"latency in ms: {', '.join(shown)}, worst {1e3 * times[-1]:.1f}")
    print(f"wrong answers: {wrong}")
    return wrong


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("export", "serve", "load-test"))
    parser.add_argument("file")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    given = parser.parse_args()
    if given.command == "export":
        export(given.file, given.layers, given.width)
    elif given.command == "serve":
        serve(given.file, given.port, given.threads)
    elif load_test(given.file, given.requests, given.connections, given.threads):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
