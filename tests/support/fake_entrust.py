"""Entrust KeyControl's vault for secrets, as far as its API was observed: written from the description of its
exchanges, not from the product. It is strict: what is not exactly such an exchange is refused."""

import json
import secrets
import time
import uuid
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from support.certificates import Pair
from support.rest_service import Reply, Request, RestService

ABSENT = Reply(404, {"error": "Secret not found"})


@dataclass
class Box:
    secrets: dict[str, str] = field(default_factory=dict)
    """The data of each, in base64, by name."""
    denied: set[str] = field(default_factory=set)
    """Actions, such as `CheckoutSecret`, that no policy allows."""


class FakeEntrust(RestService):
    def __init__(self, tls: Pair | None = None, *, life: float = 3600, tell_life: bool = True) -> None:
        self.life = life
        """Seconds that a token is valid."""
        self.tell_life = tell_life
        self.renewable = True
        """Whether tokens can be renewed."""
        self.vault = str(uuid.uuid4())
        self.username, self.password = "kes", secrets.token_urlsafe(16)
        self.boxes: dict[str, Box] = {}
        self._tokens: dict[str, float] = {}
        super().__init__(tls)

    def new_box(self) -> str:
        box = str(uuid.uuid4())
        self.boxes[box] = Box()
        return box

    def forget_tokens(self) -> None:
        """As if all that were given had ended."""
        self._tokens.clear()

    def handle(self, request: Request) -> Reply:
        match request.method, request.segments:
            case "POST", ("vault", "1.0", "Login", vault, ""):
                return self._log_in(vault, request)
            case "POST", ("vault", "1.0", action, ""):
                if time.monotonic() >= self._tokens.get(request.headers.get("X-Vault-Auth", ""), 0.0):
                    return Reply(401, {"error": "Invalid or expired token"})
                if action == "Renew":
                    return (
                        self._new_token()
                        if self.renewable and not request.body
                        else Reply(400, {"error": "No renewal"})
                    )
                return self._act(action, request.json)
        return Reply(404, b"<html>Not Found</html>", "text/html")

    def _log_in(self, vault: str, request: Request) -> Reply:
        if request.headers.get("Content-Type") != "application/json":
            return Reply(415, {"error": "Content-Type must be application/json"})
        if vault != self.vault:
            return Reply(404, {"error": "Vault not found"})
        if request.json != {"username": self.username, "password": self.password}:
            return Reply(401, {"error": "Invalid username or password"})
        return self._new_token()

    def _new_token(self) -> Reply:
        token = secrets.token_urlsafe(24)
        self._tokens[token] = time.monotonic() + self.life
        end = datetime.now(UTC) + timedelta(seconds=self.life)
        told = {"expires_at": end.isoformat().replace("+00:00", "Z")} if self.tell_life else {}
        return Reply(200, {"access_token": token, **told})

    def _act(self, action: str, arguments: dict[str, Any]) -> Reply:
        known: dict[str, Callable[[str, Box, dict[str, Any]], Reply]] = {
            "GetBox": _get_box,
            "CreateSecret": _create,
            "CheckoutSecret": _check_out,
            "DeleteSecret": _delete,
            "ListSecretIds": _list,
        }
        if action not in known:
            return Reply(404, b"<html>Not Found</html>", "text/html")
        box = self.boxes.get(arguments.get("box_id", ""))
        if box is None:
            return Reply(404, {"error": "Box not found"})
        if action in box.denied:
            return Reply(403, {"error": "Access denied"})
        return known[action](arguments.pop("box_id"), box, arguments)


def _get_box(box_id: str, box: Box, arguments: dict[str, Any]) -> Reply:
    return Reply(400, {"error": "Bad request"}) if arguments else Reply(200, {"box_id": box_id, "name": "keys"})


def _create(box_id: str, box: Box, arguments: dict[str, Any]) -> Reply:
    match arguments:
        case {"name": str(name), "secret_data": str(data), **rest} if name and not rest:
            b64decode(data, validate=True)
            if name in box.secrets:
                return Reply(409, {"error": "Secret already exists"})
            box.secrets[name] = data
            return Reply(200, {"secret_id": name})
    return Reply(400, {"error": "Bad request"})


def _check_out(box_id: str, box: Box, arguments: dict[str, Any]) -> Reply:
    if arguments.keys() != {"secret_id"}:
        return Reply(400, {"error": "Bad request"})
    if (name := arguments["secret_id"]) not in box.secrets:
        return ABSENT
    return Reply(200, {"secret_data": box.secrets[name]})


def _delete(box_id: str, box: Box, arguments: dict[str, Any]) -> Reply:
    if arguments.keys() != {"secret_id"}:
        return Reply(400, {"error": "Bad request"})
    return Reply(200, {}) if box.secrets.pop(arguments["secret_id"], None) is not None else ABSENT


def _list(box_id: str, box: Box, arguments: dict[str, Any]) -> Reply:
    match arguments:
        case {"max_items": int(most), **rest} if most <= 256 and rest.keys() <= {"next_token"}:
            start = ""
            if rest:
                place = json.loads(b64decode(rest["next_token"], validate=True))
                if place.keys() != {"box_id", "next_ctx"} or place["box_id"] != box_id:
                    return Reply(400, {"error": "Invalid next_token"})
                start = place["next_ctx"]
            names = [name for name in sorted(box.secrets) if name >= start]
            more = json.dumps({"box_id": box_id, "next_ctx": names[most]}).encode() if len(names) > most else b""
            page = [{"name": name, "expired": False} for name in names[:most]]
            return Reply(200, {"Secrets": page, "next_token": b64encode(more).decode()})
    return Reply(400, {"error": "Bad request"})
