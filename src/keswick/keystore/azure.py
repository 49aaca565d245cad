"""Azure Key Vault."""

from collections.abc import Mapping

from keswick.keystore.contract import KeyStore, KeyStoreError
from keswick.keystore.section import TEXT, URL, Setting, Shape

SHAPE = Shape(
    required=("endpoint",),
    sections={
        "credentials": Shape(required=("tenant_id", "client_id", "client_secret")),
        "managed_identity": Shape(required=("client_id",)),
    },
    methods=("credentials", "managed_identity"),
)

SETTINGS = (
    Setting("endpoint", "of the vault", URL, "https://my-vault.vault.azure.net", needed=""),
    Setting("credentials.tenant_id", "the tenant", TEXT, "${AZURE_TENANT_ID}", needed="credentials"),
    Setting("credentials.client_id", "the application", TEXT, "${AZURE_CLIENT_ID}", needed="credentials"),
    Setting("credentials.client_secret", "its secret", TEXT, "${AZURE_CLIENT_SECRET}", needed="credentials"),
    Setting(
        "managed_identity.client_id",
        "the managed identity; not together with `credentials`",
        TEXT,
        "${AZURE_CLIENT_ID}",
        needed="managed_identity",
    ),
)


def open(settings: Mapping[str, str]) -> KeyStore:
    raise KeyStoreError("this build has no key store of the kind 'azure.keyvault': use keystore.fs")
