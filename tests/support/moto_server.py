"""AWS, as far as moto imitates it, in a process of its own.

with start_moto() as port:
    open({"endpoint": f"http://127.0.0.1:{port}", "region": "any-name", ...})

Each region is an account that is empty at first. moto looks and then writes, so that its calls are made one by one, as
if they were atomic, which those of AWS are.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TESTS = str(Path(__file__).parents[1])
CREDENTIALS = {"credentials.accesskey": "AKIAEXAMPLE", "credentials.secretkey": "hush-hush"}
"""moto takes any."""


@contextmanager
def start_moto() -> Iterator[int]:
    """The port of 127.0.0.1 that it listens on."""
    environment = {**os.environ, "PYTHONPATH": TESTS, "MOTO_ALLOW_NONEXISTENT_REGION": "true"}
    command = [sys.executable, "-m", "support.moto_server"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout
            yield int(process.stdout.readline())
        finally:
            process.kill()


def serve() -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    aws = DomainDispatcherApplication(create_backend_app)
    one_by_one = threading.Lock()

    def application(environment: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        with one_by_one:
            return list(aws(environment, start_response))

    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Handler)
    print(server.port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    serve()
