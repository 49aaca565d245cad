"""Files that the sections `tls` of key stores name, as Python's library takes them."""

import ssl

from keswick.keystore.contract import KeyStoreError


def load_pair(context: ssl.SSLContext, service: str, cert: str, key: str) -> None:
    """Have the client's certificate and key shown, PEM files. Raises KeyStoreError, which names the service."""
    try:
        context.load_cert_chain(cert, key, _no_password)
    except (OSError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else error
        raise KeyStoreError(f"{service}: tls.cert '{cert}' and tls.key '{key}' cannot be used: {words}") from error


def _no_password() -> str:
    raise ValueError("the private key is encrypted, which is not supported here")
