"""AWS Secrets Manager: a key is a secret of that name, its value the secret's text.

All secrets of the account and region are one space of names, so that those of others show up in lists. A secret that is
deleted is gone at once; one that somebody else deleted with a time to think it over is no key, but keeps its name.
"""

import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import keswick
from keswick.keystore.contract import KeyExists, KeyNotFound, KeyStore, KeyStoreError, KeyStoreUnreachable, NotAKey
from keswick.keystore.section import TEXT, Setting, Shape
from keswick.names import is_stored_name

if TYPE_CHECKING:
    from botocore.awsrequest import AWSResponse
    from botocore.exceptions import ClientError

SHAPE = Shape(
    required=("endpoint", "region"),
    optional=("kmskey",),
    sections={
        "credentials": Shape(
            optional=("accesskey", "secretkey", "token"),
            together=("accesskey", "secretkey"),
        )
    },
)

SETTINGS = (
    Setting("endpoint", "of the service", "host name or URL", "secretsmanager.eu-central-1.amazonaws.com", needed=""),
    Setting("region", "of the service", "name", "eu-central-1", needed=""),
    Setting("kmskey", "ID of the AWS KMS key that encrypts the secrets", TEXT, "alias/kes"),
    Setting(
        "credentials.accesskey",
        "access key; without one that of the environment, the shared file or the role of the machine is used",
        TEXT,
        "${AWS_ACCESS_KEY_ID}",
        needed="credentials.secretkey",
    ),
    Setting(
        "credentials.secretkey",
        "its secret",
        TEXT,
        "${AWS_SECRET_ACCESS_KEY}",
        needed="credentials.accesskey",
    ),
    Setting("credentials.token", "token of a session", TEXT, "${AWS_SESSION_TOKEN}"),
)

TRIES = 3
TRY_SECONDS = 3.5
"""For one of the tries that share the time of a call."""
FREED_SECONDS = 5.0
"""How long a name may stay taken after its secret was deleted: AWS deletes in the background."""

_SERVICE = "the key store 'aws.secretsmanager'"
_PAGE = 100
"""Names in an answer to ListSecrets, the most that it allows."""

_DENIED = frozenset({"AccessDeniedException", "AccessDenied", "NotAuthorized"})
"""What AWS says to whom it knows, but who may not."""
_THROTTLED = frozenset({"ThrottlingException", "Throttling", "TooManyRequestsException", "RequestLimitExceeded"})

_is_secret_name = re.compile(r"[0-9A-Za-z_+=.@-]{1,255}").fullmatch
"""What a secret can be called. With a colon it might be read as the ARN of another one."""


def open(settings: Mapping[str, str]) -> KeyStore:
    return AWSStore(settings)


class AWSStore(KeyStore):
    """Keys in Secrets Manager, by SETTINGS.

    Raises KeyStoreError when a setting is wrong or there are no credentials, KeyStoreUnreachable when the endpoint
    does not answer.
    """

    atomic_create = True

    def __init__(self, settings: Mapping[str, str]) -> None:
        import botocore.session
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        from keswick.keystore.http import HttpService

        endpoint = settings["endpoint"]
        self.description = f"AWS SecretsManager: {endpoint}"
        self._http = HttpService(
            _SERVICE,
            endpoint if "://" in endpoint else f"https://{endpoint}",
            ca=os.environ.get("AWS_CA_BUNDLE"),
            only_ca=True,
            ca_setting="AWS_CA_BUNDLE",
            should_retry=lambda status: False,
        )
        self._where = f"{_SERVICE} at {self._http.endpoint}"
        self._key = {"KmsKeyId": settings["kmskey"]} if settings.get("kmskey") else {}
        if settings.get("credentials.token") and not settings.get("credentials.accesskey"):
            raise KeyStoreError(
                f"{_SERVICE}: 'credentials.token' belongs to an access key: set 'credentials.accesskey' and "
                "'credentials.secretkey', too"
            )
        self._http.call("GET", "/")  # any answer will do: wrong credentials are a warning
        session = botocore.session.Session()
        session.set_config_variable("config_file", os.devnull)  # as with the original, only the shared credentials
        session.set_default_client_config(  # for the services that give credentials, too
            Config(
                connect_timeout=TRY_SECONDS,
                read_timeout=TRY_SECONDS,
                retries={"mode": "standard", "total_max_attempts": TRIES},
                user_agent_extra=f"keswick/{keswick.__version__}",
            )
        )
        try:
            self._credentials = self._whose_credentials(session, settings)
            self._client = session.create_client(
                "secretsmanager",
                region_name=settings["region"],
                endpoint_url=self._http.endpoint,
                aws_access_key_id=settings.get("credentials.accesskey"),
                aws_secret_access_key=settings.get("credentials.secretkey"),
                aws_session_token=settings.get("credentials.token"),
            )
        except BotoCoreError as error:
            raise KeyStoreError(f"{_SERVICE}: {error}") from error
        self._client.meta.events.register("before-send.secrets-manager", self._send)
        self._thread = threading.local()
        """`until`: when the call that a thread makes has to be over, by `time.monotonic`."""

    def status(self) -> float:
        """AWS is asked for one name, so that credentials which are over or unknown are told. Who may not list is told
        so, and not before its credentials were looked at: that is an answer, as is one to who asks too often."""
        begin = time.perf_counter()
        try:
            self._probe()
        except _Refused as refusal:
            if refusal.code not in _DENIED | _THROTTLED:
                raise
        return time.perf_counter() - begin

    def create(self, name: str, value: bytes) -> None:
        if not _is_secret_name(name):
            raise KeyStoreError(f"{name!r} cannot be the name of a secret in AWS")
        try:
            text = value.decode()
        except UnicodeDecodeError:
            raise KeyStoreError(f"{name!r} cannot be created: its value is no text") from None
        until, freed = self._http.deadline(), time.monotonic() + FREED_SECONDS
        while True:
            try:
                # With a token of its own, which all tries share, so that AWS knows them as one.
                made = self._call("create_secret", until, Name=name, SecretString=text, **self._key)
            except _Refused as refusal:
                if refusal.code == "ResourceExistsException":
                    with suppress(KeyNotFound):
                        if refusal.retried and self._get(name, until) == value:
                            return
                    raise KeyExists(name) from None
                if not refusal.deleted or time.monotonic() > freed:
                    raise
                time.sleep(0.5)
            else:
                if made.get("Name") != name:
                    raise self._strange()
                return

    def get(self, name: str) -> bytes:
        return self._get(name, self._http.deadline())

    def _get(self, name: str, until: float) -> bytes:
        if not _is_secret_name(name):
            raise KeyNotFound(name)
        try:
            found = self._call("get_secret_value", until, SecretId=name)
        except _Refused as refusal:
            if refusal.absent:
                raise KeyNotFound(name) from None
            if refusal.empty:
                raise NotAKey(
                    f"{self._where}: the secret '{name}' is no key, for it has no value: move it away"
                ) from None
            raise
        match found:
            case {"Name": str(found_name), "SecretString": str(text)} if found_name == name:
                return text.encode()
            case {"Name": str(found_name), "SecretBinary": bytes(value)} if found_name == name:
                return value
        raise self._strange()

    def delete(self, name: str) -> None:
        # AWS calls it a success to force the deletion of what is not there.
        until = self._http.deadline()
        try:
            self._get(name, until)
        except NotAKey:
            pass  # it can be deleted all the same
        except _Refused as refusal:
            if not refusal.there:
                raise
        self._call("delete_secret", until, SecretId=name, ForceDeleteWithoutRecovery=True)

    def list(self, prefix: str) -> Iterable[str]:
        names: set[str] = set()
        tokens: set[str] = set()
        asked: dict[str, Any] = {"MaxResults": _PAGE}
        if _is_secret_name(prefix):
            asked["Filters"] = [{"Key": "name", "Values": [prefix]}]
        while True:
            match self._call("list_secrets", self._http.deadline(), **asked):
                case {"SecretList": [*secrets], **rest}:
                    names.update(secret.get("Name", "") for secret in secrets)
                case _:
                    raise self._strange()
            following = rest.get("NextToken")
            if not following:
                return [name for name in names if name.startswith(prefix) and is_stored_name(name)]
            if following in tokens:
                raise self._strange()
            tokens.add(following)
            asked["NextToken"] = following

    def warnings(self) -> Sequence[str]:
        """What a first call shows, since the endpoint answers whoever asks."""
        try:
            self._probe()
        except KeyStoreError as error:
            return [str(error)]
        return []

    def close(self) -> None:
        self._client.close()
        self._http.close()

    def _probe(self) -> None:
        self._call("list_secrets", self._http.deadline(), MaxResults=1)

    def _whose_credentials(self, session: Any, settings: Mapping[str, str]) -> str:
        """In words, for errors. Raises KeyStoreError when there are none."""
        if settings.get("credentials.accesskey"):
            token = " and 'credentials.token'" if settings.get("credentials.token") else ""
            return f"'credentials.accesskey', 'credentials.secretkey'{token}"
        if (found := session.get_credentials()) is None:
            raise KeyStoreError(
                f"{_SERVICE}: there are no credentials: set 'credentials.accesskey' and 'credentials.secretkey', or "
                "give this process some of AWS's own ways, such as AWS_ACCESS_KEY_ID or a role of the machine"
            )
        return f"the credentials of AWS's own way '{found.method}'"

    def _call(self, operation: str, until: float, **parameters: Any) -> dict[str, Any]:
        """The answer to one call, such as `list_secrets`. Raises _Refused, or another KeyStoreError."""
        from botocore import exceptions as aws

        from keswick.keystore.http import printable

        self._thread.until = until
        try:
            answer: dict[str, Any] = getattr(self._client, operation)(**parameters)
            return answer
        except aws.ClientError as error:
            raise self._refusal(error) from None  # whose context would show the request
        except (aws.ConnectionError, aws.HTTPClientError) as error:
            if isinstance(cause := error.__cause__, KeyStoreUnreachable):
                raise KeyStoreUnreachable(str(cause)) from cause.__cause__
            raise KeyStoreUnreachable(
                f"{_SERVICE}: whoever gives {self._credentials} cannot be reached ({type(error).__name__})"
            ) from error
        except (aws.CredentialRetrievalError, aws.NoCredentialsError, RuntimeError) as error:
            # The last is for those that are over, although they were just renewed.
            words = printable(str(error))
            raise KeyStoreError(f"{_SERVICE}: {self._credentials} cannot be had any more: {words}") from error
        except aws.BotoCoreError as error:
            raise KeyStoreError(f"{self._where}: {operation} failed ({type(error).__name__})") from error
        except (AttributeError, TypeError, ValueError):  # over which the library stumbles that checks no answer
            raise self._strange() from None

    def _send(self, request: Any, **_: Any) -> "AWSResponse":
        """What the library would send over connections of its own, and in no time of ours."""
        from botocore.awsrequest import AWSResponse
        from botocore.exceptions import HTTPClientError

        seconds = min(TRY_SECONDS, self._thread.until - time.monotonic())
        path = "/" if urlsplit(request.url).path == "/" else ""  # that of the endpoint, which needs none more
        try:
            answer = self._http.call(
                request.method, path, body=request.body, headers=dict(request.headers), retries=0, seconds=seconds
            )
        except KeyStoreUnreachable as error:
            if seconds < TRY_SECONDS:
                raise  # there is no time for another try
            raise HTTPClientError(error=error) from error  # after which the library tries again
        return AWSResponse(request.url, answer.status, answer.headers, _Body(answer.body))

    def _refusal(self, error: "ClientError") -> KeyStoreError:
        from keswick.keystore.http import printable

        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = str(error.response.get("Error", {}).get("Code", ""))
        text = printable(str(error.response.get("Error", {}).get("Message", "")))
        if status in (502, 503, 504):
            return KeyStoreUnreachable(f"{self._where} is not available now (HTTP {status})")
        if code == "ValidationException":
            text = ""  # it quotes what was sent
        advice = self._advice(code, text, error.operation_name, status)
        words = f"{self._where} refused {error.operation_name} ({code}{text and f': {text}'}){advice and f': {advice}'}"
        retried = error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0) > 0
        return _Refused(words, code, text, retried)

    def _advice(self, code: str, text: str, operation: str, status: int) -> str:
        match code:
            case "UnrecognizedClientException" | "InvalidClientTokenId" | "MissingAuthenticationTokenException":
                return f"AWS does not know the access key: look at {self._credentials}, and at the region"
            case "InvalidSignatureException" | "SignatureDoesNotMatch" | "IncompleteSignatureException":
                if "scoped" in text:
                    return "'region' and 'endpoint' have to name the same region"
                if "expired" in text or "yet" in text:
                    return "set the clock of this machine"
                return f"the access key and its secret do not belong together: look at {self._credentials}"
            case "ExpiredTokenException" | "ExpiredToken":
                return f"renew {self._credentials}"
            case "LimitExceededException":
                return "delete secrets, or let AWS raise the quota"
            case _ if code in _THROTTLED:
                return "others use up the account's rate of calls: try again later, or let AWS raise the quota"
            case "InvalidRequestException" if _is_deleted(text):
                return (
                    "the name stays taken until the secret is gone: wait, restore it, or delete it for good with "
                    "'aws secretsmanager delete-secret --force-delete-without-recovery'"
                )
            case "DecryptionFailure" | "EncryptionFailure":
                return "look at the KMS key, 'kmskey' if it is set: is it enabled, and may it be used?"
        if _is_about_kms(code, text):
            return "allow kms:Decrypt and kms:GenerateDataKey for the KMS key, 'kmskey' if it is set"
        if code in _DENIED or status == 403:
            return f"allow secretsmanager:{operation} for {self._credentials}"
        return ""

    def _strange(self) -> KeyStoreError:
        return KeyStoreError(
            f"{self._where} answered with what is none of Secrets Manager's answers: is it the right one?"
        )


class _Body(BytesIO):
    """Of an answer, as the library reads it."""

    def stream(self) -> Iterator[bytes]:
        yield self.getvalue()


class _Refused(KeyStoreError):
    """What AWS answered with instead of what was asked for."""

    def __init__(self, words: str, code: str, text: str, retried: bool) -> None:
        super().__init__(words)
        self.code = code
        self.retried = retried
        """Whether an earlier try of the same call may have been carried out."""
        self.deleted = code == "InvalidRequestException" and _is_deleted(text)
        """The secret was deleted, but is not gone yet."""
        self.empty = code == "ResourceNotFoundException" and "staging label" in text
        """The secret has no value."""
        self.absent = code == "ResourceNotFoundException" and not self.empty
        self.there = self.deleted or _is_about_kms(code, text)
        """It is about a secret that exists, although it cannot be read."""


def _is_deleted(text: str) -> bool:
    return "deletion" in text or "marked deleted" in text


def _is_about_kms(code: str, text: str) -> bool:
    return code in ("DecryptionFailure", "EncryptionFailure") or code.startswith("KMS") or "Access to KMS" in text
