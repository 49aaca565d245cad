"""Azure as far as a key store meets it: a key vault, Microsoft Entra ID, which gives tokens, and the endpoint that does
so for managed identities. Written from their public documentation and from published answers; as strict as they are.

with FakeEntra(pair) as entra, FakeVault(entra.tokens, pair) as vault:
    ... vault.endpoint, entra.endpoint ...
"""

import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from support.certificates import Pair
from support.rest_service import Reply, Request, RestService

TENANT = "11111111-2222-3333-4444-555555555555"
APPLICATION = "66666666-7777-8888-9999-000000000000"
APPLICATION_SECRET = "a~secret.of-the_application"
RIGHTS = frozenset({"get", "list", "set", "delete", "purge"})


class Tokens:
    """Those that were given, with the audience that each is for."""

    def __init__(self) -> None:
        self.audiences: dict[str, str] = {}
        self.ends: dict[str, float] = {}

    def new(self, audience: str, seconds: float) -> str:
        token = secrets.token_urlsafe(32)
        self.audiences[token] = audience
        self.ends[token] = time.monotonic() + seconds
        return token

    def revoke_all(self) -> None:
        self.audiences.clear()


class FakeEntra(RestService):
    """Gives tokens to one application of one tenant."""

    def __init__(self, tls: Pair | None = None) -> None:
        self.tokens = Tokens()
        self.secret = APPLICATION_SECRET
        self.seconds = 3599.0
        """How long a token is good."""
        super().__init__(tls)

    def handle(self, request: Request) -> Reply:
        base = f"https://{request.headers['Host']}"
        match request.method, request.segments:
            case "GET", ("common", "discovery", "instance"):
                host = request.headers["Host"]
                cloud = {"preferred_network": host, "preferred_cache": host, "aliases": [host]}
                where = f"{base}/{TENANT}/v2.0/.well-known/openid-configuration"
                return Reply(200, {"tenant_discovery_endpoint": where, "metadata": [cloud]})
            case "GET", (tenant, "v2.0", ".well-known", "openid-configuration"):
                if tenant != TENANT:
                    return _refused(400, "invalid_tenant", f"AADSTS90002: Tenant '{tenant}' not found.")
                return Reply(
                    200,
                    {
                        "issuer": f"{base}/{tenant}/v2.0",
                        "authorization_endpoint": f"{base}/{tenant}/oauth2/v2.0/authorize",
                        "token_endpoint": f"{base}/{tenant}/oauth2/v2.0/token",
                    },
                )
            case "POST", (tenant, "oauth2", "v2.0", "token") if tenant == TENANT:
                return self._token(dict(parse_qsl(request.body.decode())))
        return Reply(404)

    def _token(self, form: Mapping[str, str]) -> Reply:
        scope = form.get("scope", "")
        if form.get("grant_type") != "client_credentials" or not scope.endswith("/.default"):
            return _refused(400, "invalid_request", "AADSTS90014: the request is not as it should be.")
        if form.get("client_id") != APPLICATION:
            words = f"AADSTS700016: Application with identifier '{form.get('client_id')}' was not found."
            return _refused(400, "unauthorized_client", words)
        if form.get("client_secret") != self.secret:
            words = "AADSTS7000215: Invalid client secret provided. Ensure it is the value, not the ID."
            return _refused(401, "invalid_client", words)
        token = self.tokens.new(scope.removesuffix("/.default"), self.seconds)
        return Reply(200, {"token_type": "Bearer", "expires_in": int(self.seconds), "access_token": token})


def _refused(status: int, error: str, description: str) -> Reply:
    return Reply(status, {"error": error, "error_description": f"{description} Trace ID: 0 Timestamp: 0"})


class FakeIdentityEndpoint(RestService):
    """What App Service, which sets IDENTITY_ENDPOINT and IDENTITY_HEADER, and virtual machines have for managed
    identities."""

    header = "of-this-container"

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens
        super().__init__()

    def handle(self, request: Request) -> Reply:
        query = request.query
        match request.method, request.segments, query.get("api-version"):
            case "GET", ("msi", "token"), "2019-08-01":
                allowed = request.headers.get("X-IDENTITY-HEADER") == self.header
            case "GET", ("metadata", "identity", "oauth2", "token"), "2018-02-01":
                allowed = request.headers.get("Metadata") == "true"
            case _:
                return Reply(404)
        if not allowed:
            return Reply(401, {"statusCode": 401, "message": "the header is missing"})
        if query.get("client_id") not in (None, APPLICATION):
            return Reply(400, {"error": "invalid_request", "error_description": "Identity not found"})
        token = self.tokens.new(query["resource"], 86400)
        times = {"expires_on": str(int(time.time()) + 86400), "expires_in": "86400"}
        return Reply(200, {"access_token": token, "resource": query["resource"], "token_type": "Bearer", **times})


@dataclass
class _Secret:
    name: str
    versions: list[dict[str, Any]] = field(default_factory=list)
    """As the vault describes them, with the value."""
    busy: int = 0
    """How many more answers say that it is still being deleted, or purged."""


class FakeVault(RestService):
    """`tick`: how long a second takes in which versions are made; a short one makes tests of races short."""

    def __init__(self, tokens: Tokens, tls: Pair | None = None, *, tick: float = 1.0, audience: str = "") -> None:
        self.tokens = tokens
        self.tick = tick
        self.audience = audience
        self.rights = RIGHTS
        self.recoverable = True
        """Whether what is deleted goes to the bin."""
        self.purge_protection = False
        self.echoes_case = False
        """Whether a secret is named as it was asked for, instead of as it was made."""
        self.deleting = self.purging = 0
        """How many answers to what follows say that it still goes on."""
        self.secrets: dict[str, _Secret] = {}
        self.bin: dict[str, _Secret] = {}
        self.purged: dict[str, int] = {}
        super().__init__(tls)

    def clear(self) -> None:
        self.secrets.clear()
        self.bin.clear()
        self.purged.clear()

    def put(self, name: str, value: str, **attributes: Any) -> dict[str, Any]:
        """Add a version, as somebody might by hand; it."""
        now = 1_700_000_000 + int(time.monotonic() / self.tick)
        version = {
            "version": secrets.token_hex(16),
            "value": value,
            "attributes": {
                "enabled": True,
                "created": now,
                "updated": now,
                "recoveryLevel": "Recoverable+Purgeable",
                "recoverableDays": 90,
                **attributes,
            },
        }
        self.secrets.setdefault(name.lower(), _Secret(name)).versions.append(version)
        return version

    def handle(self, request: Request) -> Reply:
        host = f"https://{request.headers['Host']}"
        audience = self.audience or host
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or self.tokens.audiences.get(token) != audience:
            return self._challenge(audience, "AKV10000: Request is missing a Bearer or PoP token.")
        if time.monotonic() >= self.tokens.ends[token]:
            return self._challenge(audience, "AKV10046: Unable to resolve the key used for signature validation.")
        if not re.fullmatch(r"7\.\d|20\d\d-\d\d-\d\d", request.query.get("api-version", "")):
            return _error(400, "BadParameter", "api-version must be specified")
        match request.method, request.segments:
            case "GET", ("secrets",):
                return self._page(request, host, [self._described(s, s.versions[-1], host, "") for s in self._sorted()])
            case "GET", ("secrets", name, "versions"):
                found = self.secrets.get(name.lower())
                versions = [self._described(found, v, host, name) for v in found.versions] if found else []
                return self._page(request, host, sorted(versions, key=lambda version: str(version["id"])))
            case "GET", ("secrets", name, version):
                return self._get(name, version, host)
            case "PUT", ("secrets", name):
                return self._set(name, request, host)
            case "DELETE", ("secrets", name):
                return self._delete(name, host)
            case "GET", ("deletedsecrets", name):
                return self._deleted(name, host)
            case "DELETE", ("deletedsecrets", name):
                return self._purge(name)
        return _error(404, "NotFound", "there is no such call")

    def _challenge(self, audience: str, words: str) -> Reply:
        header = f'Bearer authorization="https://login.microsoftonline.com/{TENANT}", resource="{audience}"'
        return Reply(401, {"error": {"code": "Unauthorized", "message": words}}, headers={"WWW-Authenticate": header})

    def _page(self, request: Request, host: str, items: list[dict[str, Any]]) -> Reply:
        if "list" not in self.rights:
            return _denied("list")
        most = int(request.query.get("maxresults", 25))
        if not 1 <= most <= 25:
            return _error(400, "BadParameter", "maxresults is out of range")
        begin = int(request.query.get("$skiptoken", 0))
        link = None
        if begin + most < len(items):
            query = {**request.query, "$skiptoken": str(begin + most)}
            link = f"{host}{urlsplit(request.target).path}?{urlencode(query)}"
        return Reply(200, {"value": items[begin : begin + most], "nextLink": link})

    def _get(self, name: str, version: str, host: str) -> Reply:
        if "get" not in self.rights:
            return _denied("get")
        found = self.secrets.get(name.lower())
        for kept in found.versions if found else []:
            if found and kept["version"] == (version or found.versions[-1]["version"]):
                if not kept["attributes"]["enabled"]:
                    words = "Operation get is not allowed on a disabled secret."
                    return _error(403, "Forbidden", words, "SecretDisabled")
                return Reply(200, {"value": kept["value"], **self._described(found, kept, host, name)})
        return _absent(name)

    def _set(self, name: str, request: Request, host: str) -> Reply:
        if "set" not in self.rights:
            return _denied("set")
        if not re.fullmatch(r"[0-9a-zA-Z-]{1,127}", name):
            return _error(400, "BadParameter", f"The request URI contains an invalid name: {name}")
        body = request.json if request.headers.get("Content-Type", "").startswith("application/json") else None
        if not isinstance(body, dict) or not body.keys() <= {"value", "tags", "contentType", "attributes"}:
            return _error(400, "BadParameter", "The body is not as it should be")
        if not isinstance(body.get("value"), str) or len(body["value"].encode()) > 25_600:
            return _error(400, "BadParameter", "Secret value has a length greater than maximum")
        if (deleted := self.bin.get(name.lower())) is not None:
            if deleted.busy:
                deleted.busy -= 1
                return _conflict(name, "ObjectIsBeingDeleted")
            return _conflict(name, "ObjectIsDeletedButRecoverable")
        if self.purged.get(name.lower()):
            self.purged[name.lower()] -= 1
            return _conflict(name, "ObjectIsBeingDeleted")
        made = self.put(name, body["value"])
        made["tags"] = body.get("tags", {})
        return Reply(200, {"value": body["value"], **self._described(self.secrets[name.lower()], made, host, name)})

    def _delete(self, name: str, host: str) -> Reply:
        if "delete" not in self.rights:
            return _denied("delete")
        deleted = self.bin.get(name.lower())
        if deleted is not None and deleted.busy:
            return _conflict(name, "ObjectIsBeingDeleted")
        found = self.secrets.pop(name.lower(), None)
        if found is None:
            return _absent(name)
        if not self.recoverable:
            return Reply(200, self._described(found, found.versions[-1], host, name))
        found.busy = self.deleting
        self.bin[name.lower()] = found
        return Reply(200, self._in_bin(found, host))

    def _deleted(self, name: str, host: str) -> Reply:
        found = self.bin.get(name.lower())
        if found is None or found.busy:
            return _absent(name)
        return Reply(200, self._in_bin(found, host))

    def _in_bin(self, found: _Secret, host: str) -> dict[str, Any]:
        return {
            **self._described(found, found.versions[-1], host, found.name),
            "recoveryId": f"{host}/deletedsecrets/{found.name}",
            "deletedDate": 1_700_000_000,
            "scheduledPurgeDate": 1_707_776_000,
        }

    def _purge(self, name: str) -> Reply:
        if "purge" not in self.rights:
            return _error(403, "Forbidden", 'Operation "purge" is not allowed.', "ForbiddenByPolicy")
        deleted = self.bin.get(name.lower())
        if deleted is None:
            return _absent(name)
        if deleted.busy:
            deleted.busy -= 1
            return _conflict(name, "ObjectIsBeingDeleted")
        if self.purge_protection:
            words = 'Operation "purge" is not allowed because purge protection is enabled for this vault.'
            return _error(403, "Forbidden", words, "ForbiddenByPolicy")
        del self.bin[name.lower()]
        self.purged[name.lower()] = self.purging
        return Reply(204)

    def _sorted(self) -> list[_Secret]:
        return [self.secrets[name] for name in sorted(self.secrets)]

    def _described(self, secret: _Secret, version: Mapping[str, Any], host: str, asked: str) -> dict[str, Any]:
        """With the identifier of the version, if a secret was `asked` for."""
        name = asked if asked and self.echoes_case else secret.name
        described = {key: value for key, value in version.items() if key not in ("version", "value")}
        return {"id": f"{host}/secrets/{name}{'/' + version['version'] if asked else ''}", **described}


def _error(status: int, code: str, message: str, inner: str = "") -> Reply:
    error: dict[str, Any] = {"code": code, "message": message}
    if inner:
        error["innererror"] = {"code": inner}
    return Reply(status, {"error": error})


def _denied(operation: str) -> Reply:
    words = f"Caller is not authorized to perform action on resource. Action: 'secrets/{operation}'"
    return _error(403, "Forbidden", words, "ForbiddenByRbac")


def _absent(name: str) -> Reply:
    return _error(404, "SecretNotFound", f"A secret with (name/id) {name} was not found in this key vault.")


def _conflict(name: str, inner: str) -> Reply:
    return _error(409, "Conflict", f"Secret {name} cannot be used now.", inner)
