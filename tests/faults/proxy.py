"""A proxy in front of an S3 server that disturbs a share of the requests, and counts all of them by method and key.

One connection carries one request, so that nothing of HTTP is to be understood but the first line: what client and server say is passed
on byte by byte. AWS signature v4 signs the Host header, which names the proxy: the server sees it unchanged.
"""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

_BLOCK_BYTES = 1 << 16
_HEAD_BYTES = 1 << 18
_DRAIN_S = 2
_REASON = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate</Message></Error>"
_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/xml\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (
    len(_REASON),
    _REASON,
)


@dataclass(frozen=True)
class Faults:
    """Shares of the requests, each in [0, 1], that meet a fault.

    Attributes:
        unavailable: the proxy answers 503; the server never hears of the request.
        stalled: the server does what was asked; its answer is held back for `stall_s` and then lost.
        cut: the server does what was asked; the connection breaks in the middle of its answer.
        refused: the connection is closed at once.
    """

    unavailable: float = 0.0
    stalled: float = 0.0
    cut: float = 0.0
    refused: float = 0.0
    stall_s: float = 30.0


class Proxy:
    """A running proxy.

    Attributes:
        endpoint: http://127.0.0.1:port.
        faults: what the requests that come from now on meet; may be replaced at any time.
        asked: requests by (method, path of bucket and key).
        met: faults by name.
    """

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname, parts.port)
        self.faults = Faults()
        self.asked: Counter[tuple[str, str]] = Counter()
        self.met: Counter[str] = Counter()
        self.endpoint = ""
        self._rng = random.Random(0)

    async def serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        async with await asyncio.start_server(self._handle, "127.0.0.1", 0, limit=_HEAD_BYTES) as server:
            self.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            ready.set()
            await stop.wait()
            open_now = asyncio.all_tasks() - {asyncio.current_task()}
            for task in open_now:
                task.cancel()
            await asyncio.gather(*open_now, return_exceptions=True)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = await reader.readuntil(b"\r\n\r\n")
            method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
            self.asked[method, unquote(urlsplit(path).path)] += 1
            fate = self._draw()
            if fate == "refused":
                writer.transport.abort()
            elif fate == "unavailable":
                await _refuse(reader, writer)
            else:
                await self._forward(head, reader, writer, fate)

    def _draw(self) -> str | None:
        faults = self.faults
        names = ("refused", "unavailable", "stalled", "cut")
        weights = [getattr(faults, name) for name in names]
        (fate,) = self._rng.choices([*names, None], [*weights, 1 - sum(weights)])
        if fate is not None:
            self.met[fate] += 1
        return fate

    async def _forward(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fate: str | None) -> None:
        there, to_there = await asyncio.open_connection(*self._upstream)
        with closing(to_there):
            lines = [line for line in head[:-4].split(b"\r\n") if not line.lower().startswith(b"connection:")]
            to_there.write(b"\r\n".join([*lines, b"Connection: close", b"", b""]))
            up = asyncio.ensure_future(_copy(reader, to_there))
            try:
                if fate is None:
                    await _copy(there, writer)
                else:
                    await self._lose(there, writer, fate)
            finally:
                up.cancel()

    async def _lose(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter, fate: str) -> None:
        """Let the server answer, and keep the answer or half of it from the client."""
        head = await there.readuntil(b"\r\n\r\n")
        if head.startswith(b"HTTP/1.1 100"):  # the client waits for it before it sends the body
            writer.write(head)
            head = await there.readuntil(b"\r\n\r\n")
        answer = head + await there.read(-1)
        if fate == "stalled":
            await asyncio.sleep(self.faults.stall_s)
        else:
            writer.write(answer[: len(answer) // 2])
            await writer.drain()
        writer.transport.abort()


@contextmanager
def disturbing_proxy(upstream: str) -> Iterator[Proxy]:
    """A proxy before the server at `upstream`, on a free port of loopback, in a thread of this process."""
    proxy, ready, stop = Proxy(upstream), threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=[proxy.serve(ready, stop)], daemon=True)
    thread.start()
    if not ready.wait(10):
        raise RuntimeError("the proxy did not start")
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while block := await source.read(_BLOCK_BYTES):
        target.write(block)
        await target.drain()


async def _refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer, then read what the client still sends: a connection closed upon unread bytes is reset, and the answer lost with it."""
    writer.write(_BUSY)
    await writer.drain()
    writer.write_eof()
    with suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_S):
            while await reader.read(_BLOCK_BYTES):
                pass
