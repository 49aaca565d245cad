"""The form of 2021, of the releases v0.6 to v0.14: the admin is `root`, and the key store stands under `keys`.

The releases up to v0.21 still took it.
"""

from keswick.config.stores import without_empty_stores
from keswick.config.translation import Form, table

GENERAL = {
    "address": "address",
    "root": "admin.identity",
    "tls.key": "tls.key",
    "tls.cert": "tls.cert",
    "tls.proxy.identities": "tls.proxy.identities",
    "tls.proxy.header.cert": "tls.proxy.header.cert",
    "policy.*.paths": "policy.*.allow",
    "policy.*.identities": "policy.*.identities",
    "cache.expiry.any": "cache.expiry.any",
    "cache.expiry.unused": "cache.expiry.unused",
    "log.error": "log.error",
    "log.audit": "log.audit",
}
STORES = (
    "fs.path",
    "vault.endpoint",
    "vault.engine",
    "vault.namespace",
    "vault.prefix",
    "vault.approle.engine",
    "vault.approle.id",
    "vault.approle.secret",
    "vault.approle.retry",
    "vault.kubernetes.engine",
    "vault.kubernetes.role",
    "vault.kubernetes.jwt",
    "vault.kubernetes.retry",
    "vault.tls.key",
    "vault.tls.cert",
    "vault.tls.ca",
    "vault.status.ping",
    "aws.secretsmanager.endpoint",
    "aws.secretsmanager.region",
    "aws.secretsmanager.kmskey",
    "aws.secretsmanager.credentials.accesskey",
    "aws.secretsmanager.credentials.secretkey",
    "aws.secretsmanager.credentials.token",
    "gemalto.keysecure.endpoint",
    "gemalto.keysecure.credentials.token",
    "gemalto.keysecure.credentials.domain",
    "gemalto.keysecure.credentials.retry",
    "gemalto.keysecure.tls.ca",
    "gcp.secretmanager.project_id",
    "gcp.secretmanager.endpoint",
    "gcp.secretmanager.credentials.client_email",
    "gcp.secretmanager.credentials.client_id",
    "gcp.secretmanager.credentials.private_key_id",
    "gcp.secretmanager.credentials.private_key",
)
"""The settings of stores, called so until today."""

FORM = Form(
    name="2021",
    dialect="2021",
    label="2021",
    keys=table(GENERAL | {f"keys.{key}": f"keystore.{key}" for key in STORES}),
    finish=without_empty_stores,
)
