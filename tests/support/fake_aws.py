"""AWS Secrets Manager where moto is more lenient than AWS, written from its public description.

with FakeSecretsManager() as aws:
    store = open({"endpoint": aws.endpoint, "region": aws.region, **aws.credentials})
    with aws.refusing("GetSecretValue", "DecryptionFailure"):
        ...

It checks signatures, deletes in the background, and lists in short pages.
"""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from support.certificates import Pair
from support.rest_service import Reply, Request, RestService

PAGE = 20
DELETED = "a secret with this name is already scheduled for deletion."


class _Refusal(Exception):
    def __init__(self, code: str, message: str, status: int = 400) -> None:
        self.reply = Reply(status, {"__type": code, "Message": message}, "application/x-amz-json-1.1")


class FakeSecretsManager(RestService):
    region = "eu-test-1"

    def __init__(self, tls: Pair | None = None) -> None:
        self.access_key, self.secret_key, self.token = "AKIAKESWICK", "hush-hush-secret-key", ""
        self.expired = False
        """Whether the token is."""
        self.secrets: dict[str, str | bytes | None] = {}
        """By name; None is one without a value."""
        self.leaving: dict[str, int] = {}
        """Names that are taken by secrets that were deleted, and how many more times that will be said."""
        self.times_to_leave = 0
        """The same for those that are deleted from now on."""
        super().__init__(tls)

    @property
    def credentials(self) -> dict[str, str]:
        found = {"accesskey": self.access_key, "secretkey": self.secret_key, "token": self.token}
        return {f"credentials.{name}": value for name, value in found.items() if value}

    @property
    def calls(self) -> list[tuple[str, dict[str, Any]]]:
        """Operations and what they were asked with."""
        return [(_operation(request), request.json) for request in self.requests.copy() if request.method == "POST"]

    def handle(self, request: Request) -> Reply:
        if request.method == "GET":
            return Reply(404, b"<UnknownOperationException/>\n", "application/xml")
        try:
            self._check(request)
            match _operation(request):
                case "CreateSecret":
                    answer = self._create(**request.json)
                case "GetSecretValue":
                    answer = self._get(**request.json)
                case "DeleteSecret":
                    answer = self._delete(**request.json)
                case "ListSecrets":
                    answer = self._list(**request.json)
                case operation:
                    raise _Refusal("UnknownOperationException", operation)
        except _Refusal as refusal:
            return refusal.reply
        return Reply(200, answer, "application/x-amz-json-1.1")

    @contextmanager
    def refusing(self, operation: str, code: str, message: str = "no", status: int = 400) -> Iterator[None]:
        reply = _Refusal(code, message, status).reply
        with self.instead(lambda request: reply if _operation(request) == operation else None):
            yield

    def _check(self, request: Request) -> None:
        if request.target != "/" or request.headers["Content-Type"] != "application/x-amz-json-1.1":
            raise _Refusal("SerializationException", "malformed")
        scheme, _, rest = request.headers.get("Authorization", "").partition(" ")
        parts = dict(part.split("=", 1) for part in rest.split(", ")) if rest else {}
        if scheme != "AWS4-HMAC-SHA256":
            raise _Refusal("MissingAuthenticationTokenException", "Missing Authentication Token")
        access_key, _, region, service, _ = parts["Credential"].split("/")
        if access_key != self.access_key:
            raise _Refusal("UnrecognizedClientException", "The security token included in the request is invalid.")
        if (region, service) != (self.region, "secretsmanager"):
            raise _Refusal("InvalidSignatureException", "Credential should be scoped to a valid region.")
        if request.headers.get("X-Amz-Security-Token", "") != self.token:
            raise _Refusal("UnrecognizedClientException", "The security token included in the request is invalid.")
        if self.expired:
            raise _Refusal("ExpiredTokenException", "The security token included in the request is expired")
        signed = {name: request.headers[name] for name in parts["SignedHeaders"].split(";")}
        as_sent = AWSRequest("POST", f"{self.endpoint}/", signed, request.body)
        as_sent.context["timestamp"] = request.headers["X-Amz-Date"]
        auth = SigV4Auth(Credentials(access_key, self.secret_key), service, region)
        if parts["Signature"] != auth.signature(auth.string_to_sign(as_sent, auth.canonical_request(as_sent)), as_sent):
            raise _Refusal(
                "InvalidSignatureException", "The request signature we calculated does not match the one you provided."
            )

    def _create(self, Name: str, SecretString: str, ClientRequestToken: str, KmsKeyId: str = "") -> dict[str, Any]:
        if len(ClientRequestToken) < 32 or not 1 <= len(SecretString) <= 65536:
            raise _Refusal("InvalidParameterException", "malformed")
        if self.leaving.get(Name, 0):
            self.leaving[Name] -= 1
            raise _Refusal("InvalidRequestException", f"You can't create this secret because {DELETED}")
        if Name in self.secrets:
            raise _Refusal("ResourceExistsException", f"The operation failed because the secret {Name} already exists.")
        self.secrets[Name] = SecretString
        return {"ARN": _arn(Name), "Name": Name, "VersionId": ClientRequestToken}

    def _get(self, SecretId: str) -> dict[str, Any]:
        if self.leaving.get(SecretId, 0):
            message = "You can't perform this operation on the secret because it was marked for deletion."
            raise _Refusal("InvalidRequestException", message)
        if SecretId not in self.secrets:
            raise _Refusal("ResourceNotFoundException", "Secrets Manager can't find the specified secret.")
        value = self.secrets[SecretId]
        if value is None:
            message = "Secrets Manager can't find the specified secret value for staging label: AWSCURRENT"
            raise _Refusal("ResourceNotFoundException", message)
        field = (
            {"SecretString": value} if isinstance(value, str) else {"SecretBinary": base64.b64encode(value).decode()}
        )
        return {"ARN": _arn(SecretId), "Name": SecretId, **field}

    def _delete(self, SecretId: str, ForceDeleteWithoutRecovery: bool) -> dict[str, Any]:
        assert ForceDeleteWithoutRecovery
        if SecretId in self.secrets:
            del self.secrets[SecretId]
            self.leaving[SecretId] = self.times_to_leave
        return {"ARN": _arn(SecretId), "Name": SecretId}

    def _list(self, MaxResults: int, NextToken: str = "0", Filters: Any = ()) -> dict[str, Any]:
        names = sorted(self.secrets)
        for wanted in Filters:
            assert wanted["Key"] == "name"
            (prefix,) = wanted["Values"]
            names = [name for name in names if name.lower().startswith(prefix.lower())]
        end = int(NextToken) + min(MaxResults, PAGE)
        page = [{"ARN": _arn(name), "Name": name} for name in names[int(NextToken) : end]]
        return {"SecretList": page, **({"NextToken": str(end)} if end < len(names) else {})}


def _operation(request: Request) -> str:
    return request.headers.get("X-Amz-Target", "").removeprefix("secretsmanager.")


def _arn(name: str) -> str:
    return f"arn:aws:secretsmanager:eu-test-1:123456789012:secret:{name}-AbCdEf"


def policy_actions(page: str) -> set[str]:
    """What the IAM policy allows that a page shows."""
    _, _, rest = page.partition("```json\n")
    statement = json.loads(rest.partition("```")[0])["Statement"][0]
    return set(statement["Action"])
