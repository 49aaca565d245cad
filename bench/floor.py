"""The native transport with a fixed reply: what is left of Keswick when Python decides nothing.

Usage: floor.py PORT CERTIFICATE KEY (PEM files). Serves on 127.0.0.1 until it is terminated.
"""

import signal
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from keswick import _native

REPLY_BODY = b'{"plaintext":"%s","ciphertext":"%s"}' % (b"p" * 44, b"c" * 112)
"""As long as the answer to a generate request."""

REPLY = (200, _native.Headers([("Content-Type", "application/json")]), REPLY_BODY)


def main() -> None:
    port, certificate, key = sys.argv[1:]
    server = _native.Server(
        lambda request: REPLY,
        host="127.0.0.1",
        port=int(port),
        tls=_native.Tls(
            certificates=[x509.load_pem_x509_certificate(Path(certificate).read_bytes()).public_bytes(Encoding.DER)],
            key=load_pem_private_key(Path(key).read_bytes(), password=None).private_bytes(
                Encoding.DER, PrivateFormat.PKCS8, NoEncryption()
            ),
        ),
        body_limits=[("/", 1 << 20)],
    )
    server.start()
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    server.close()


if __name__ == "__main__":
    main()
