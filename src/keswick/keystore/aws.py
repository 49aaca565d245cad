"""AWS Secrets Manager."""

from collections.abc import Mapping

from keswick.keystore.contract import KeyStore, KeyStoreError
from keswick.keystore.section import TEXT, Setting, Shape

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
    Setting("endpoint", "of the service", "host name", "secretsmanager.eu-central-1.amazonaws.com", needed=""),
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


def open(settings: Mapping[str, str]) -> KeyStore:
    raise KeyStoreError("this build has no key store of the kind 'aws.secretsmanager': use keystore.fs")
