"""Fortanix SDKMS."""

from collections.abc import Mapping

from keswick.keystore.contract import KeyStore, KeyStoreError
from keswick.keystore.section import CA, CA_ONLY, TEXT, URL, Setting, Shape

SHAPE = Shape(
    required=("endpoint", "credentials"),
    optional=("group_id",),
    sections={"credentials": Shape(required=("key",)), "tls": CA_ONLY},
)

SETTINGS = (
    Setting("endpoint", "of the service", URL, "https://sdkms.fortanix.com", needed=""),
    Setting("group_id", "the group of new keys", TEXT, "ce08d547-2a82-411e-ae2d-83655a4b7617"),
    Setting("credentials.key", "API key of the application", TEXT, "${FORTANIX_API_KEY}", needed=""),
    CA,
)


def open(settings: Mapping[str, str]) -> KeyStore:
    raise KeyStoreError("this build has no key store of the kind 'fortanix.sdkms': use keystore.fs")
