"""The forms between those of 2021 and of today: still `root`, but already `keystore`.

Those of v0.14 had the rules of policies as `paths`, those from v0.15 to v0.17.1 as `allow` and `deny`.
"""

from keswick.config.form2021 import GENERAL, STORES
from keswick.config.stores import without_empty_stores
from keswick.config.translation import Form, table

_MORE_STORES = (
    "vault.version",
    "azure.keyvault.endpoint",
    "azure.keyvault.credentials.tenant_id",
    "azure.keyvault.credentials.client_id",
    "azure.keyvault.credentials.client_secret",
    "azure.keyvault.managed_identity.client_id",
    "fortanix.sdkms.endpoint",
    "fortanix.sdkms.group_id",
    "fortanix.sdkms.credentials.key",
    "fortanix.sdkms.tls.ca",
    "generic.endpoint",
    "generic.tls.key",
    "generic.tls.cert",
    "generic.tls.ca",
)

_PATHS = (
    GENERAL
    | {"tls.password": "tls.password", "keys": "keys"}
    | {f"keystore.{key}": f"keystore.{key}" for key in (*STORES, *_MORE_STORES)}
)
_RULES = {written: today for written, today in _PATHS.items() if today != "policy.*.allow"} | {
    "policy.*.allow": "policy.*.allow",
    "policy.*.deny": "policy.*.deny",
}

WITH_PATHS = Form("transitional", "2022", "v0.14", table(_PATHS), without_empty_stores)
WITH_RULES = Form("transitional", "2022", "v0.17", table(_RULES), without_empty_stores)
