"""A token of SoftHSM, which does in software what an HSM does: one for all tests of a process and their servers.

Its library reads the environment once, when it is loaded, so that there can be no other.
"""

import atexit
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from keswick.keystore.seals.pkcs11 import in_own_thread

MODULES = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm.so")


class Token(NamedTuple):
    module: str
    label: str
    pin: str

    def section(self, key: str, **changes: str) -> dict[str, str]:
        """A section `pkcs11` of a configuration, with that key."""
        return {"module": self.module, "token": self.label, "key": key, "pin": self.pin, **changes}


@cache
def token() -> Token:
    """Initialized when it is first asked for."""
    folder = Path(tempfile.mkdtemp(prefix="softhsm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tokens = folder / "tokens"
    tokens.mkdir()
    config = folder / "softhsm2.conf"
    config.write_text(f"directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n")
    os.environ["SOFTHSM2_CONF"] = str(config)
    made = Token(next(path for path in MODULES if os.path.exists(path)), "kes", "4711")
    initialize = ["--init-token", "--free", "--label", made.label, "--pin", made.pin, "--so-pin", "0815"]
    subprocess.run(["softhsm2-util", *initialize], check=True, capture_output=True, timeout=30)
    return made


def new_key(label: str, bits: int = 256, **options: Any) -> None:
    """A new AES key on the token; `options`: as of python-pkcs11."""

    def make() -> None:
        import pkcs11

        with _session() as session:
            session.generate_key(pkcs11.KeyType.AES, bits, label=label, store=True, **options)

    in_own_thread(make)


def import_key(label: str, key: bytes) -> None:
    """An AES key that is known. `softhsm2-util` cuts keys at a zero byte."""

    def make() -> None:
        from pkcs11 import Attribute, KeyType, ObjectClass

        with _session() as session:
            session.create_object(
                {
                    Attribute.CLASS: ObjectClass.SECRET_KEY,
                    Attribute.KEY_TYPE: KeyType.AES,
                    Attribute.TOKEN: True,
                    Attribute.LABEL: label,
                    Attribute.VALUE: key,
                    Attribute.ENCRYPT: True,
                    Attribute.DECRYPT: True,
                }
            )

    in_own_thread(make)


def _session() -> Any:
    import pkcs11

    used = token()
    return pkcs11.lib(used.module).get_token(token_label=used.label).open(rw=True, user_pin=used.pin)
