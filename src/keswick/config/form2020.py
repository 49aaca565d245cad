"""The form of 2020, of the releases v0.2 to v0.8: YAML or TOML, with logs that go to files.

Until v0.2 `fs` and `vault` stood at the top.
"""

from dataclasses import replace

import yaml

from keswick.config.document import Section
from keswick.config.stores import without_empty_stores
from keswick.config.translation import Form, table

_STORES = {
    "fs.path": "fs.path",
    "vault.address": "vault.endpoint",
    "vault.name": "vault.prefix",
    "vault.approle.id": "vault.approle.id",
    "vault.approle.secret": "vault.approle.secret",
    "vault.approle.retry": "vault.approle.retry",
    "vault.tls.key": "vault.tls.key",
    "vault.tls.cert": "vault.tls.cert",
    "vault.tls.ca": "vault.tls.ca",
    "vault.status.ping": "vault.status.ping",
}
_AWS = {
    "address": "endpoint",
    "region": "region",
    "kms_key_id": "kmskey",
    "credentials.access_key": "credentials.accesskey",
    "credentials.secret_key": "credentials.secretkey",
    "credentials.session_token": "credentials.token",
}
_CONSOLES = {
    "error": ("the error log goes to standard error", "/dev/stderr"),
    "audit": ("the audit log goes to standard output", "/dev/stdout"),
}


def _finished(document: Section) -> Section:
    """The logs become switches: without a file, errors were logged and audits were not. There are no log files now."""
    log = document.section("log")
    switches = {}
    for key, entry in log.entries().items():
        files = [file for file in log.values(key, blank=True) if file.text]
        sentence, console = _CONSOLES[key]
        for file in files:
            if file.text != console:
                file.source.warn(file.line, f"{sentence}, not to a file: {file.shown} in {file.key!r} is ignored")
        is_on = key == "error" or bool(files)
        switches[key] = replace(entry, node=yaml.ScalarNode("tag:yaml.org,2002:str", "on" if is_on else "off"))
    if switches:
        entry = document.entries()["log"]
        document = document.with_entries({**document.entries(), "log": replace(entry, node=log.with_entries(switches))})
    return without_empty_stores(document)


FORM = Form(
    name="2020",
    dialect="2021",
    label="2020",
    keys=table(
        {
            "address": "address",
            "root": "admin.identity",
            "tls.key": "tls.key",
            "tls.cert": "tls.cert",
            "tls.proxy.identities": "tls.proxy.identities",
            "tls.proxy.header.cert": "tls.proxy.header.cert",
            "policy.*.paths": "policy.*.allow",
            "policy.*.identities": "policy.*.identities",
            "cache.expiry.all": "cache.expiry.any",
            "cache.expiry.unused": "cache.expiry.unused",
            "log.error.file": "log.error",
            "log.audit.file": "log.audit",
        }
        | {written: f"keystore.{today}" for written, today in _STORES.items()}
        | {f"keystore.{written}": f"keystore.{today}" for written, today in _STORES.items()}
        | {
            f"keystore.aws.secrets_manager.{written}": f"keystore.aws.secretsmanager.{today}"
            for written, today in _AWS.items()
        }
    ),
    finish=_finished,
)
