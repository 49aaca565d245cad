"""The part of a Kubernetes API server that OpenBao asks: whether the token of a service account is good.

with FakeKubernetes(tmp_path) as kubernetes:
    token = kubernetes.token("kes")
    kubernetes.revoke(token)

Written from the public description of the TokenReview API.
"""

import base64
import json
import secrets
import ssl
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from support.certificates import make

REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"


class FakeKubernetes:
    """Listens on a free port of 127.0.0.1, with a certificate of its own in `folder`, which is also its `ca_file`."""

    def __init__(self, folder: Path) -> None:
        self.reviews = 0
        """How often it was asked."""
        self.away = False
        """Whether it answers only that it cannot."""
        self._good: dict[str, dict[str, Any]] = {}
        kubernetes = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.close_connection = True
                review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if kubernetes.away:
                    return self.send_error(503)
                if self.path != REVIEWS or not self.headers.get("Authorization", "").startswith("Bearer "):
                    return self.send_error(401)
                kubernetes.reviews += 1
                known = kubernetes._good.get(review["spec"]["token"])
                status = {"authenticated": True, **known} if known else {"error": "invalid bearer token"}
                body = json.dumps({**review, "status": status}).encode()
                self.send_response(201)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                return None

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.ca_file, key_file = make(ca=True, sans=["127.0.0.1"]).write(folder, "kubernetes")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.ca_file, key_file)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.endpoint = f"https://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> "FakeKubernetes":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def token(self, account: str, namespace: str = "default") -> str:
        """A new token of that service account. Nobody can verify its signature; the review says whether it is good."""
        uid = str(uuid.uuid4())
        now = int(time.time())
        claims = {
            "aud": ["https://kubernetes.default.svc"],
            "iss": "https://kubernetes.default.svc",
            "sub": f"system:serviceaccount:{namespace}:{account}",
            "iat": now,
            "nbf": now,
            "exp": now + 3600,
            "jti": str(uuid.uuid4()),
            "kubernetes.io": {"namespace": namespace, "serviceaccount": {"name": account, "uid": uid}},
        }
        parts = [
            json.dumps({"alg": "RS256", "typ": "JWT"}).encode(),
            json.dumps(claims).encode(),
            secrets.token_bytes(256),
        ]
        token = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)
        self._good[token] = {
            "user": {
                "username": claims["sub"],
                "uid": uid,
                "groups": ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"],
            },
            "audiences": claims["aud"],
        }
        return token

    def revoke(self, token: str) -> None:
        """As when the token expired, or its Pod is gone."""
        del self._good[token]
