"""Sealing files and streams with a server: who asks it for the data key, reads, writes, and gives a file its name.

`envelope.py` is the format. Everything here blocks; the asynchronous client runs it in a thread.
"""

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from keswick import files
from keswick.client import envelope
from keswick.client.errors import DecryptionFailed
from keswick.client.results import DataKey

SUFFIX = ".sealed"


class BinaryReader(Protocol):
    """A file that is open for reading bytes, or anything with its `read`."""

    def read(self, size: int, /) -> bytes: ...


class BinaryWriter(Protocol):
    """A file that is open for writing bytes, or anything with its `write`."""

    def write(self, data: bytes | memoryview, /) -> int | None: ...


class Sealing(NamedTuple):
    """`generate_key` and `decrypt` are the calls of a client. `check` is called before each piece and before a file
    gets its name; what it raises ends the work."""

    generate_key: Callable[[str, bytes], DataKey]
    decrypt: Callable[[str, bytes, bytes], bytes]
    check: Callable[[], None] = lambda: None

    def seal(
        self,
        source: str | Path,
        target: str | Path | None,
        *,
        key: str,
        context: bytes,
        chunk_size: int,
        overwrite: bool,
    ) -> Path:
        source = Path(source)
        with open(source, "rb", buffering=0) as reader:
            target = source.with_name(source.name + SUFFIX) if target is None else Path(target)
            # What was nobody else's business before does not become it now; and nothing sealed is to be executed.
            mode = os.fstat(reader.fileno()).st_mode & 0o666 | files.PRIVATE
            with files.new_file(target, mode=mode, overwrite=overwrite) as writer:
                self.seal_stream(reader, writer, key=key, context=context, chunk_size=chunk_size)
                self.check()
        return target

    def unseal(self, source: str | Path, target: str | Path | None, *, context: bytes, overwrite: bool) -> Path:
        source = Path(source)
        if target is None:
            name = source.name.removesuffix(SUFFIX)
            if name in ("", source.name):
                raise ValueError(f"the name of '{source}' does not end in '{SUFFIX}': name a file for what is in it")
            target = source.with_name(name)
        target = Path(target)
        with open(source, "rb", buffering=0) as reader, files.new_file(target, overwrite=overwrite) as writer:
            self.unseal_stream(reader, writer, context=context)
            self.check()
        return target

    def seal_stream(
        self, reader: BinaryReader, writer: BinaryWriter, *, key: str, context: bytes, chunk_size: int
    ) -> None:
        envelope.check_chunk_size(chunk_size)
        header, payload_key = self._new_file(key, context, chunk_size)
        for piece in envelope.seal(reader.read, header, payload_key):
            self.check()
            _write_all(writer, piece)

    def unseal_stream(self, reader: BinaryReader, writer: BinaryWriter, *, context: bytes) -> None:
        header, tag = envelope.Header.read(reader.read)
        payload_key = self._payload_key(header, context)
        payload_key.check(tag)
        for piece in envelope.unseal(reader.read, header, payload_key):
            self.check()
            _write_all(writer, piece)

    # The data key lives no longer than these two functions.

    def _new_file(self, key: str, context: bytes, chunk_size: int) -> tuple[envelope.Header, envelope.PayloadKey]:
        data_key = self.generate_key(key, context)
        header = envelope.Header.new(key, data_key.ciphertext, chunk_size)
        return header, envelope.PayloadKey(header, data_key.plaintext)

    def _payload_key(self, header: envelope.Header, context: bytes) -> envelope.PayloadKey:
        try:
            return envelope.PayloadKey(header, self.decrypt(header.key_name, header.sealed_key, context))
        except DecryptionFailed as refusal:
            raise envelope.DataKeyRefused(header.key_name) from refusal


def _write_all(writer: BinaryWriter, data: bytes) -> None:
    """Also to what takes less than it is given, as files without a buffer do. Whatever else says nothing takes all."""
    rest = memoryview(data)
    while rest:
        taken = writer.write(rest)
        if taken is None and not isinstance(writer, io.RawIOBase):
            return
        if not taken:
            raise BlockingIOError(errno.EAGAIN, "what is written to takes nothing now, and does not wait")
        rest = rest[taken:]
