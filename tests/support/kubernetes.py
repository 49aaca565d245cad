"""The part of a Kubernetes API server that OpenBao asks: whether the token of a service account is good.

with FakeKubernetes(tmp_path) as kubernetes:
    token = kubernetes.token("kes")
    kubernetes.revoke(token)

Written from the public description of the TokenReview API.
"""

import base64
import json
import secrets
import time
import uuid
from pathlib import Path
from typing import Any

from support.certificates import make
from support.rest_service import Reply, Request, RestService

REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"


class FakeKubernetes(RestService):
    """With a certificate of its own in `folder`, which is also its `ca_file`."""

    def __init__(self, folder: Path) -> None:
        self.away = False
        """Whether it answers only that it cannot."""
        self._good: dict[str, dict[str, Any]] = {}
        pair = make(ca=True, sans=["127.0.0.1"])
        self.ca_file, _ = pair.write(folder, "kubernetes")
        super().__init__(pair)

    def handle(self, request: Request) -> Reply:
        if self.away:
            return Reply(503)
        if request.target != REVIEWS or not request.headers.get("Authorization", "").startswith("Bearer "):
            return Reply(401)
        known = self._good.get(request.json["spec"]["token"])
        status = {"authenticated": True, **known} if known else {"error": "invalid bearer token"}
        return Reply(201, {**request.json, "status": status})

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
