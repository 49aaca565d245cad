"""Fortanix SDKMS, as far as its API for opaque objects was observed: written from the description of its exchanges and
its public reference, not from the product. It is strict: what is not exactly such an exchange is refused."""

import secrets
import uuid
from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from typing import Any

from support.certificates import Pair
from support.rest_service import Reply, Request, RestService


@dataclass
class Account:
    sobjects: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name."""
    groups: set[str] = field(default_factory=lambda: {str(uuid.uuid4())})
    denied: set[str] = field(default_factory=set)
    """What its applications may not do: `create`, `export`, `delete`, `list`."""


class FakeFortanix(RestService):
    def __init__(self, tls: Pair | None = None, *, json_errors: bool = False, inclusive: bool = True) -> None:
        self.accounts: dict[str, Account] = {}
        """By the API key of their application."""
        self.json_errors = json_errors
        self.inclusive = inclusive
        """Whether a page begins with the name that it is to start at."""
        self.healthy = True
        self.sessions: dict[str, str] = {}
        """API keys by the token of a session that was not terminated."""
        super().__init__(tls)

    def new_app(self) -> str:
        """The API key of an application with an account of its own."""
        key = b64encode(f"{uuid.uuid4()}:{secrets.token_urlsafe(32)}".encode()).decode()
        self.accounts[key] = Account()
        return key

    def handle(self, request: Request) -> Reply:
        if (request.method, request.target) == ("GET", "/sys/v1/health"):
            return Reply(204 if self.healthy else 503)
        kind, _, credential = request.headers.get("Authorization", "").partition(" ")
        if (request.method, request.target) == ("POST", "/sys/v1/session/terminate"):
            if kind != "Bearer" or self.sessions.pop(credential, None) is None:
                return self._error(401, "session is not valid")
            return Reply(204)
        account = self.accounts.get(credential)
        if kind != "Basic" or account is None:
            return self._error(401, "invalid credentials")
        if (request.method, request.target) == ("POST", "/sys/v1/session/auth"):
            token = secrets.token_urlsafe(24)
            self.sessions[token] = credential
            return Reply(200, {"token_type": "Bearer", "expires_in": 600, "access_token": token})
        if request.body and request.headers.get("Content-Type") != "application/json":
            return self._error(415, "unsupported media type")
        match request.method, request.segments:
            case "PUT", ("crypto", "v1", "keys"):
                return self._import(account, request.json)
            case "POST", ("crypto", "v1", "keys", "export"):
                return self._export(account, request.json)
            case "DELETE", ("crypto", "v1", "keys", kid):
                return self._delete(account, kid)
            case "GET", ("crypto", "v1", "keys"):
                return self._list(account, **request.query)
        return self._error(404, "no such endpoint")

    def _import(self, account: Account, sobject: dict[str, Any]) -> Reply:
        if "create" in account.denied:
            return self._error(403, "app does not have sufficient permissions")
        match sobject:
            case {
                "obj_type": "OPAQUE",
                "name": str(name),
                "key_ops": ["EXPORT", "APPMANAGEABLE"],
                "value": str(value),
                "enabled": True,
                **rest,
            } if name.strip() and "\n" not in name and len(name) <= 4096 and rest.keys() <= {"group_id"}:
                b64decode(value, validate=True)
                if rest and rest["group_id"] not in account.groups:
                    return self._error(404, "group does not exist")
                if name in account.sobjects:
                    return self._error(409, "sobject already exists")
                made = {**sobject, "kid": str(uuid.uuid4()), "group_id": rest.get("group_id", min(account.groups))}
                account.sobjects[name] = made
                return Reply(201, _without_value(made))
        return self._error(400, "invalid request")

    def _export(self, account: Account, wanted: dict[str, Any]) -> Reply:
        if "export" in account.denied:
            return self._error(403, "operation not permitted")
        if wanted.keys() != {"name"}:
            return self._error(400, "invalid request")
        if wanted["name"] not in account.sobjects:
            return self._error(404, "sobject does not exist")
        return Reply(200, account.sobjects[wanted["name"]])

    def _delete(self, account: Account, kid: str) -> Reply:
        if "delete" in account.denied:
            return self._error(403, "app does not have sufficient permissions")
        for name, sobject in account.sobjects.items():
            if sobject["kid"] == kid:
                del account.sobjects[name]
                return Reply(204)
        return self._error(404, "sobject does not exist")

    def _list(self, account: Account, *, sort: str, limit: str, start: str = "") -> Reply:
        if "list" in account.denied:
            return self._error(403, "operation not permitted")
        if sort != "name:asc" or not 0 < int(limit) <= 1001:
            return self._error(400, "invalid request")
        names = sorted(account.sobjects)
        names = [name for name in names if name > start or (self.inclusive and name == start)]
        return Reply(200, [_without_value(account.sobjects[name]) for name in names[: int(limit)]])

    def _error(self, status: int, text: str) -> Reply:
        return Reply(status, {"message": text}) if self.json_errors else Reply(status, text.encode(), "text/plain")


def _without_value(sobject: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in sobject.items() if key != "value"}
