"""CipherTrust Manager, as far as its API for secrets was observed: written from the description of its exchanges, not
from the product. It is strict: what is not exactly such an exchange is refused."""

import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from support.certificates import Pair
from support.rest_service import Reply, Request, RestService

NOT_FOUND = Reply(404, {"code": 11, "codeDesc": "NCERRNotFound: Resource not found"})


@dataclass
class Domain:
    secrets: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name."""
    denied: set[str] = field(default_factory=set)
    """What its users may not do: `create`, `export`, `delete`, `list`."""


class FakeKeySecure(RestService):
    def __init__(self, tls: Pair | None = None, *, duration: float = 300) -> None:
        self.duration = duration
        """Seconds that a token is valid."""
        self.refresh_tokens: dict[str, str] = {}
        """With the domain of each."""
        self.domains: dict[str, Domain] = {}
        self._tokens: dict[str, tuple[str, float]] = {}
        super().__init__(tls)

    def new_user(self, domain: str = "") -> str:
        """A refresh token for that domain."""
        self.domains.setdefault(domain, Domain())
        token = secrets.token_urlsafe(32)
        self.refresh_tokens[token] = domain
        return token

    def forget_tokens(self) -> None:
        """As if all that were given had ended."""
        self._tokens.clear()

    def handle(self, request: Request) -> Reply:
        if (request.method, request.target) == ("POST", "/api/v1/auth/tokens"):
            return self._log_in(request)
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        name, end = self._tokens.get(token, ("", 0.0))
        if kind != "Bearer" or time.monotonic() >= end:
            return Reply(401, {"code": 5, "codeDesc": "NCERRUnauthorized: Authentication failed or invalid token"})
        domain = self.domains[name]
        match request.method, request.segments, request.query:
            case "POST", ("api", "v1", "vault", "secrets"), {**query} if not query:
                return _create(domain, request)
            case "POST", ("api", "v1", "vault", "secrets", name, "export"), {"type": "name"} if not request.body:
                if "export" in domain.denied or name not in domain.secrets:
                    return NOT_FOUND
                return Reply(200, domain.secrets[name])
            case "DELETE", ("api", "v1", "vault", "secrets", name), {"type": "name"} if not request.body:
                if "delete" in domain.denied or name not in domain.secrets:
                    return NOT_FOUND
                del domain.secrets[name]
                return Reply(204)
            case "GET", ("api", "v1", "vault", "secrets"), {"limit": limit, "skip": skip}:
                return _list(domain, int(skip), int(limit))
        return NOT_FOUND

    def _log_in(self, request: Request) -> Reply:
        if request.headers.get("Content-Type") != "application/json":
            return Reply(415, b"unsupported media type", "text/plain")
        match request.json:
            case {"grant_type": "refresh_token", "refresh_token": str(token), "domain": str(domain), **rest} if (
                not rest
            ):
                if self.refresh_tokens.get(token) != domain:
                    return Reply(401, {"code": 7, "codeDesc": "NCERRAuthFailure: Authentication failed"})
                jwt = secrets.token_urlsafe(24)
                self._tokens[jwt] = (domain, time.monotonic() + self.duration)
                return Reply(200, {"jwt": jwt, "duration": self.duration, "token_type": "Bearer"})
        return Reply(400, {"code": 3, "codeDesc": "NCERRBadRequest: Bad HTTP request"})


def _create(domain: Domain, request: Request) -> Reply:
    if request.headers.get("Content-Type") != "application/json":
        return Reply(415, b"unsupported media type", "text/plain")
    match request.json:
        case {"dataType": "seed", "material": str(material), "name": str(name), **rest} if material and not rest:
            if "create" in domain.denied:
                return Reply(403, {"code": 6, "codeDesc": "NCERRForbidden: Insufficient permissions"})
            if name in domain.secrets:
                return Reply(409, {"code": 36, "codeDesc": "NCERRConflict: Resource already exists"})
            made = {"id": secrets.token_hex(16), "name": name, "dataType": "seed", "objectType": "Secret Data"}
            domain.secrets[name] = {**made, "material": material}
            return Reply(201, made)
    return Reply(400, {"code": 3, "codeDesc": "NCERRBadRequest: Bad HTTP request"})


def _list(domain: Domain, skip: int, limit: int) -> Reply:
    if "list" in domain.denied:
        return Reply(403, {"code": 6, "codeDesc": "NCERRForbidden: Insufficient permissions"})
    told = [{key: value for key, value in secret.items() if key != "material"} for secret in domain.secrets.values()]
    page = told[skip : skip + limit]
    return Reply(200, {"skip": skip, "limit": limit, "total": len(told), "resources": page})
