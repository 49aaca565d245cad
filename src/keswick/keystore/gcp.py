"""Google Cloud Secret Manager."""

from collections.abc import Mapping

from keswick.keystore.contract import KeyStore, KeyStoreError
from keswick.keystore.section import TEXT, Setting, Shape

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
        "of the service",
        "`HOST:PORT`",
        "secretmanager.europe-west3.rep.googleapis.com:443",
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


def open(settings: Mapping[str, str]) -> KeyStore:
    raise KeyStoreError("this build has no key store of the kind 'gcp.secretmanager': use keystore.fs")
