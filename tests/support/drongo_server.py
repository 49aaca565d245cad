"""Google Cloud, as far as drongo imitates it over REST, in a process of its own.

with start_drongo() as port:
    open({"endpoint": f"http://127.0.0.1:{port}", "project_id": "any-name"})

Each project is empty at first. Of what the real Secret Manager has, it lacks pages and permissions.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path

TESTS = str(Path(__file__).parents[1])


@contextmanager
def start_drongo() -> Iterator[int]:
    """The port of 127.0.0.1 that it listens on."""
    command = [sys.executable, "-m", "support.drongo_server"]
    environment = {**os.environ, "PYTHONPATH": TESTS}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout
            yield int(process.stdout.readline())
        finally:
            process.kill()


def serve() -> None:
    from drongo.server import DrongoHTTPRequestHandler, create_server

    DrongoHTTPRequestHandler.wbufsize = -1  # else each answer is two packets, of which the second waits for the first
    ThreadingHTTPServer.request_queue_size = 128
    server = create_server("127.0.0.1", 0)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    serve()
