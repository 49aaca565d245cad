"""A key store plugin, written from the protocol of 2021 to 2023 and as strict as a plugin may be."""

import json
from base64 import b64decode, b64encode
from urllib.parse import quote

from support.certificates import Pair
from support.rest_service import Reply, Request, RestService


class FakePlugin(RestService):
    def __init__(self, tls: Pair | None = None, *, clients: Pair | None = None) -> None:
        self.values: dict[str, bytes] = {}
        self.deletes_anything = False
        """Whether a delete of what is not there is answered as one that worked."""
        super().__init__(tls, clients=clients)

    def handle(self, request: Request) -> Reply:
        match request.method, request.segments:
            case "GET", ("v1", "key"):
                return self._list()
            case _, ("v1", "key", name) if request.target == f"/v1/key/{quote(name, safe='')}":
                return self._key(name, request)
        return Reply(404, {"message": "not found"})

    def _key(self, name: str, request: Request) -> Reply:
        match request.method:
            case "POST":
                return self._create(name, request)
            case "GET" if name in self.values:
                return Reply(200, {"bytes": b64encode(self.values[name]).decode()})
            case "DELETE" if name in self.values or self.deletes_anything:
                self.values.pop(name, None)
                return Reply(200)
            case "GET" | "DELETE":
                return Reply(404, {"message": "key does not exist"})
        return Reply(405, {"message": "method not allowed"})

    def _create(self, name: str, request: Request) -> Reply:
        if request.headers.get("Content-Type") != "application/json":
            return Reply(415, {"message": "unsupported media type"})
        if list(request.json) != ["bytes"]:
            return Reply(400, {"message": "invalid body"})
        if name in self.values:
            return Reply(400, {"message": "key already exists"})
        self.values[name] = b64decode(request.json["bytes"], validate=True)
        return Reply(201)

    def _list(self) -> Reply:
        names = list(self.values) or [""]
        lines = [json.dumps({"name": name, "last": number == len(names)}) for number, name in enumerate(names, 1)]
        return Reply(200, "\n".join([*lines, ""]).encode(), "application/x-ndjson")
