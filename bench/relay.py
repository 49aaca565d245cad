"""A network between a server and its key store: a TCP relay on 127.0.0.1 that delays whatever passes.

Usage: relay.py PORT TARGET_PORT SECONDS. SECONDS is the delay of each direction.
"""

import asyncio
import sys
from contextlib import suppress


async def main() -> None:
    port, target, delay = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(carry(reader, far_writer, delay), carry(far_reader, writer, delay))

    server = await asyncio.start_server(relay, "127.0.0.1", port, backlog=256)
    await server.serve_forever()


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    """What came together arrives together, later; nothing overtakes."""
    loop = asyncio.get_running_loop()
    with suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            loop.call_later(delay, writer.write, data)
    loop.call_later(delay, writer.close)


if __name__ == "__main__":
    asyncio.run(main())
