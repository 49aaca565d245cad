"""Google Cloud Secret Manager: a key is a secret of that name, its value the first version of the secret.

To create is two steps, a secret and then its version. Whoever adds version 1 has created the key, whoever made the
secret, so that one which was left between the steps does not block its name. Later versions mean nothing.
"""

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from keswick import roots
from keswick.keystore.contract import KeyExists, KeyNotFound, KeyStore, KeyStoreError, KeyStoreUnreachable
from keswick.keystore.section import TEXT, Setting, Shape
from keswick.names import is_stored_name

if TYPE_CHECKING:
    from google.api_core.exceptions import GoogleAPICallError

    from keswick.keystore.http import HttpService

SHAPE = Shape(
    required=("project_id",),
    defaults={"endpoint": "secretmanager.googleapis.com:443"},
    lists=("scopes",),
    sections={
        "credentials": Shape(
            optional=("client_email", "client_id", "private_key_id", "private_key"),
            together=("client_email", "client_id", "private_key_id", "private_key"),
        )
    },
)

SETTINGS = (
    Setting("project_id", "the project", TEXT, "my-project", needed=""),
    Setting(
        "endpoint",
        "of the service; a URL, beginning with `https://`, is called over REST instead of gRPC",
        "`HOST:PORT` or URL",
        "secretmanager-kes.p.googleapis.com:443",
        default="secretmanager.googleapis.com:443",
    ),
    Setting("scopes", "of the access token", "list of URLs", ("https://www.googleapis.com/auth/cloud-platform",)),
    Setting(
        "credentials.client_email",
        "of the service account",
        TEXT,
        "kes@my-project.iam.gserviceaccount.com",
        needed="credentials",
    ),
    Setting("credentials.client_id", "of the service account", TEXT, "113579024680", needed="credentials"),
    Setting("credentials.private_key_id", "of its key", TEXT, "${GCP_PRIVATE_KEY_ID}", needed="credentials"),
    Setting("credentials.private_key", "its key", "PEM text", "${GCP_PRIVATE_KEY}", needed="credentials"),
)


TRY_SECONDS = 5.0
"""For one of the tries that share the time of a call."""

_SERVICE = "the key store 'gcp.secretmanager'"
_CHANNEL = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.min_reconnect_backoff_ms", 5000),  # which is how long a connection may take to be made
    ("grpc.client_idle_timeout_ms", 240_000),  # before firewalls forget it
)

_RIGHTS = {
    "create_secret": "secretmanager.secrets.create",
    "add_secret_version": "secretmanager.versions.add",
    "access_secret_version": "secretmanager.versions.access",
    "delete_secret": "secretmanager.secrets.delete",
    "list_secrets": "secretmanager.secrets.list",
}
"""What has to be allowed, by the call."""

_FIELDS = {"name", "secrets", "payload", "nextPageToken", "totalSize"}
"""Of which every answer over REST has one, unless it is empty."""

_is_project = re.compile(r"[0-9A-Za-z.:-]+").fullmatch
_is_secret_name = re.compile(r"[0-9A-Za-z_-]{1,255}").fullmatch


def open(settings: Mapping[str, str]) -> KeyStore:
    return GCPStore(settings)


class GCPStore(KeyStore):
    """Keys in Secret Manager, by SETTINGS.

    Raises KeyStoreError when a setting is wrong or there are no credentials, KeyStoreUnreachable when the endpoint
    does not answer.
    """

    atomic_create = True

    def __init__(self, settings: Mapping[str, str]) -> None:
        from keswick.keystore.http import HttpService

        project, endpoint = settings["project_id"], settings["endpoint"]
        self.description = f"GCP SecretManager: Project={project}"
        if not _is_project(project):
            raise KeyStoreError(f"{_SERVICE}: 'project_id' is '{project}', which no project can have as its ID")
        self._project = f"projects/{project}"
        over_rest = "://" in endpoint
        self._http = HttpService(
            _SERVICE,
            endpoint if over_rest else f"https://{endpoint}",
            ca_setting="SSL_CERT_FILE",
            should_retry=lambda status: False,
        )
        self._where = f"{_SERVICE} at {endpoint}"
        self._credentials = (
            "the service account 'credentials.client_email'"
            if "credentials.private_key" in settings
            else "the application default credentials"
        )
        self._http.call("GET", "/")  # any answer will do: wrong credentials are a warning
        self._client = (_rest if over_rest else _grpc)(self._http, settings)

    def status(self) -> float:
        """Google is asked for one name, so that credentials which are over or unknown are told. Who may not list is
        told so, and not before its credentials were looked at: that is an answer, as is one to who asks too often."""
        begin = time.perf_counter()
        try:
            self._probe()
        except _Refused as refusal:
            if refusal.status not in (403, 429):
                raise
        return time.perf_counter() - begin

    def create(self, name: str, value: bytes) -> None:
        if not _is_secret_name(name):
            raise KeyStoreError(f"{name!r} cannot be the name of a secret in Google's Secret Manager")
        until = self._http.deadline()
        if not self._make_secret(name, until) and self._has_value(name, until):
            raise KeyExists(name)
        # Somebody else may be here, too, with the same secret: Google numbers the versions.
        secret = f"{self._project}/secrets/{name}"
        version, retried = self._call("add_secret_version", until, parent=secret, payload={"data": value})
        path, _, number = version.name.rpartition("/versions/")
        if not path.endswith(f"/secrets/{name}") or not number.isdecimal():
            raise self._strange()
        if number != "1" and not (retried and self._is_value(name, value, until)):
            raise KeyExists(name)

    def get(self, name: str) -> bytes:
        return self._get(name, self._http.deadline())

    def _get(self, name: str, until: float) -> bytes:
        if not _is_secret_name(name):
            raise KeyNotFound(name)
        first = f"/secrets/{name}/versions/1"
        try:
            found, _ = self._call("access_secret_version", until, name=self._project + first)
        except _Refused as refusal:
            if refusal.status == 404:
                raise KeyNotFound(name) from None
            raise
        if not found.name.endswith(first):
            raise self._strange()
        return bytes(found.payload.data)

    def delete(self, name: str) -> None:
        if not _is_secret_name(name):
            raise KeyNotFound(name)
        try:
            self._call("delete_secret", self._http.deadline(), name=f"{self._project}/secrets/{name}")
        except _Refused as refusal:
            if refusal.status != 404:
                raise
            if not refusal.retried:
                raise KeyNotFound(name) from None

    def list(self, prefix: str) -> Iterable[str]:
        names: set[str] = set()
        tokens: set[str] = set()
        token = ""
        while True:
            page, _ = self._call("list_secrets", self._http.deadline(), parent=self._project, page_token=token)
            names.update(secret.name.rpartition("/")[2] for secret in page.secrets)
            if not page.next_page_token:
                return [name for name in names if name.startswith(prefix) and is_stored_name(name)]
            token = page.next_page_token
            if token in tokens:
                raise self._strange()
            tokens.add(token)

    def warnings(self) -> Sequence[str]:
        """What a first call shows, since the endpoint answers whoever asks."""
        try:
            self._probe()
        except KeyStoreError as error:
            return [str(error)]
        return []

    def close(self) -> None:
        self._client.transport.close()
        self._http.close()

    def _probe(self) -> None:
        self._call("list_secrets", self._http.deadline(), parent=self._project, page_size=1)

    def _make_secret(self, name: str, until: float) -> bool:
        """False if there is one of that name."""
        secret: dict[str, Any] = {"replication": {"automatic": {}}}
        try:
            made, _ = self._call("create_secret", until, parent=self._project, secret_id=name, secret=secret)
        except _Refused as refusal:
            if refusal.status == 409:
                return False
            raise
        if not made.name.endswith(f"/secrets/{name}"):
            raise self._strange()
        return True

    def _has_value(self, name: str, until: float) -> bool:
        try:
            self._get(name, until)
        except KeyNotFound:
            return False
        except _Refused as refusal:
            if refusal.status != 400:  # it is disabled or destroyed
                raise
        return True

    def _is_value(self, name: str, value: bytes, until: float) -> bool:
        try:
            return self._get(name, until) == value
        except KeyNotFound:
            return False

    def _call(self, method: str, until: float, **request: Any) -> tuple[Any, bool]:
        """The answer to one call, such as `list_secrets`, and whether an earlier try may have been carried out.

        Raises _Refused, or another KeyStoreError.
        """
        from google.api_core.exceptions import Aborted, GoogleAPICallError, ServerError
        from google.auth.exceptions import GoogleAuthError, TransportError
        from google.protobuf.json_format import ParseError

        from keswick.keystore import http

        for left in range(http.RETRIES, -1, -1):
            retried = left < http.RETRIES
            seconds = min(TRY_SECONDS, max(0.001, until - time.monotonic()))
            failure: KeyStoreError
            try:
                return getattr(self._client, method)(request=request, retry=None, timeout=seconds), retried
            except (ServerError, Aborted) as error:
                failure = self._failure(error, method, retried)
            except GoogleAPICallError as error:
                raise self._failure(error, method, retried) from None
            except TransportError as error:
                words = http.printable(str(error))
                failure = KeyStoreUnreachable(f"{_SERVICE}: whoever gives access tokens cannot be reached: {words}")
            except GoogleAuthError as error:
                words = http.printable(str(error))
                raise KeyStoreError(f"{_SERVICE}: there is no access token for {self._credentials}: {words}") from None
            except KeyStoreUnreachable as error:  # over REST
                failure = error
            except (ParseError, AttributeError, TypeError, ValueError):  # the library checks little of an answer
                raise self._strange() from None
            if not left or not self._http.wait(until):
                raise failure
        raise AssertionError("the last try returns or raises")

    def _failure(self, error: "GoogleAPICallError", method: str, retried: bool) -> KeyStoreError:
        from keswick.keystore.http import printable

        status = int(error.code or 0)
        text = printable(re.sub(r"^[A-Z]+ https?://\S+: ", "", error.message))  # over REST the URL comes first
        if "Getting metadata from plugin failed" in text:
            return KeyStoreError(f"{_SERVICE}: there is no access token for {self._credentials}: {text}")
        if status in (502, 503, 504):
            return KeyStoreUnreachable(f"{self._where} is not available now ({status}: {text})")
        match status:
            case 400 if method == "access_secret_version":
                advice = "enable version 1 of the secret if it is disabled; if it is destroyed, the key is lost"
            case 401:
                advice = f"look at {self._credentials}"
            case 403:
                advice = f"allow {_RIGHTS[method]} for {self._credentials}"
            case 404:
                advice = "look at 'project_id'"
            case 429:
                advice = "try again later, or let Google raise the quota"
            case _:
                advice = ""
        words = f"{self._where} refused {method} ({status}: {text}){advice and f': {advice}'}"
        return _Refused(words, status, retried)

    def _strange(self) -> KeyStoreError:
        return KeyStoreError(f"{self._where} answered with what Secret Manager does not: is the endpoint right?")


class _Refused(KeyStoreError):
    """What Google answered with instead of what was asked for."""

    def __init__(self, words: str, status: int, retried: bool) -> None:
        super().__init__(words)
        self.status = status
        """Of HTTP; what gRPC has more than that does not matter here."""
        self.retried = retried
        """Whether an earlier try of the same call may have been carried out."""


def _grpc(service: "HttpService", settings: Mapping[str, str]) -> Any:
    """A client that calls over gRPC, all at once through one connection."""
    import ssl

    import grpc
    from google.cloud.secretmanager_v1 import SecretManagerServiceClient
    from google.cloud.secretmanager_v1.services.secret_manager_service.transports import (
        SecretManagerServiceGrpcTransport as Transport,
    )

    def channel(host: str, **options: Any) -> Any:
        return Transport.create_channel(host, **{**options, "options": (*options["options"], *_CHANNEL)})

    trusted = "".join(map(ssl.DER_cert_to_PEM_cert, roots.system()))
    transport = Transport(
        host=urlsplit(service.endpoint).netloc,
        credentials=_credentials(settings),
        channel=channel,
        ssl_channel_credentials=grpc.ssl_channel_credentials(trusted.encode() or None),
        always_use_jwt_access=True,
    )
    return SecretManagerServiceClient(transport=transport)


def _rest(service: "HttpService", settings: Mapping[str, str]) -> Any:
    """A client that calls over HTTP. Without TLS, as emulators are called, nobody is shown credentials."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud.secretmanager_v1 import SecretManagerServiceClient
    from google.cloud.secretmanager_v1.services.secret_manager_service.transports import (
        SecretManagerServiceRestTransport as Transport,
    )
    from requests import Response
    from requests.adapters import BaseAdapter

    base = urlsplit(service.endpoint).path

    class Adapter(BaseAdapter):
        """Sends what the library would send over connections of its own, with another trust and in no time of ours."""

        def send(self, request: Any, *_: Any, **options: Any) -> Response:
            answer = service.call(
                request.method,
                request.path_url.removeprefix(base),
                body=request.body.encode() if request.body else None,
                headers=request.headers,
                retries=0,
                seconds=options["timeout"],
            )
            if answer.status in range(201, 400) or (answer.status == 200 and not _is_answer(answer.json())):
                # What is not Secret Manager's would pass for the empty answer to a deletion, or lead elsewhere.
                raise KeyStoreError(
                    f"{_SERVICE} at {service.endpoint} answered {answer.reason}, but not as Secret Manager does: is "
                    "the endpoint right?"
                )
            response = Response()
            response.status_code, response.request, response.url = answer.status, request, request.url
            response.headers.update(answer.headers)
            response._content = answer.body
            return response

        def close(self) -> None:
            """They are the store's."""

    transport = Transport(
        host=service.endpoint,
        credentials=_credentials(settings) if service.tls else AnonymousCredentials(),
        always_use_jwt_access=True,
    )
    for scheme in ("https://", "http://"):
        transport._session.mount(scheme, Adapter())
    return SecretManagerServiceClient(transport=transport)


def _is_answer(body: object) -> bool:
    return isinstance(body, dict) and (not body or not body.keys().isdisjoint(_FIELDS))


def _credentials(settings: Mapping[str, str]) -> Any:
    import google.auth
    from google.auth.exceptions import GoogleAuthError
    from google.cloud.secretmanager_v1.services.secret_manager_service.transports import SecretManagerServiceTransport
    from google.oauth2.service_account import Credentials

    scopes = {
        "scopes": settings.get("scopes", "").split() or None,
        "default_scopes": SecretManagerServiceTransport.AUTH_SCOPES,
    }
    if "credentials.private_key" not in settings:
        try:
            found, _ = google.auth.default(**scopes)
        except GoogleAuthError as error:
            raise KeyStoreError(
                f"{_SERVICE}: there are no application default credentials: set 'credentials', or "
                f"GOOGLE_APPLICATION_CREDENTIALS ({error})"
            ) from error
        return found
    account = {
        "type": "service_account",
        "client_email": settings["credentials.client_email"],
        "client_id": settings["credentials.client_id"],
        "private_key_id": settings["credentials.private_key_id"],
        "private_key": settings["credentials.private_key"].replace("\\n", "\n"),
        "token_uri": "https://oauth2.googleapis.com/token",
    }
    try:
        return Credentials.from_service_account_info(account, **scopes)
    except (ValueError, TypeError, GoogleAuthError):
        raise KeyStoreError(
            f"{_SERVICE}: 'credentials.private_key' is no private key in PEM form, as 'private_key' is in the file of "
            "a service account"
        ) from None
