"""`normascope view`: a page on this machine's loopback address that shows an archive's scores, pictures, maps and slides. It only reads.

What it guards against. Paths: addresses hold numbers, and what is opened is what the archive names. Other pages in the same browser: Host
and Sec-Fetch-Site are looked at, nothing is shared across origins, and scripts and styles come from here alone. Other users of the same
machine: the address that is printed holds a key, which becomes a cookie.
"""

import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi import Path as InPath
from fastapi import Query as InQuery
from fastapi.responses import PlainTextResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from storage import reports
from storage.archives import ArchiveError
from storage.heatmaps import HeatmapError
from storage.images import UnreadableImageError
from storage.scores import ScoreStoreError
from storage.tiff_levels import UnreadableSlideError
from tasks.samples import read_sample
from tasks.settings import load_settings
from tasks.view_pictures import as_halves, as_jpeg
from tasks.view_source import Source
from tasks.view_table import Query

_FOLDER = Path(reports.__file__).parent
_FILES = {
    "view.css": "text/css",
    "view.js": "text/javascript",
    "view_heat.js": "text/javascript",
    "view_slide.js": "text/javascript",
    "openseadragon.min.js": "text/javascript",
}
_LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
_PICTURE_PX = 1024
_SLIDES_LISTED = 1000
_COLOURS = np.round(255 * matplotlib.colormaps["viridis"](np.linspace(0, 1, 256))[:, :3]).astype(np.uint8)  # as in reports
_HEADERS = {
    # OpenSeadragon decodes tiles in a worker that it makes from a blob, and adds the style with this digest
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' "
    "'sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE='; img-src 'self' blob: data:; connect-src 'self'; "
    "worker-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",  # patients' pictures stay off the browser's disk; tomorrow another archive may be at this port
}

Number = Annotated[int, InPath(ge=0)]
Layered = Annotated[int, InQuery(ge=0)]
Pixels = Annotated[int, InQuery(ge=16, le=_PICTURE_PX)]


def serve(archive_uri: str, port: int | None, *, announce: Callable[[str], None]) -> None:
    """Serve the page until the process is interrupted.

    Args:
        archive_uri: an archive, or the score store of a pipeline.
        port: insist on it; otherwise the setting's (8321), or a free one.
        announce: told the address to open, once connections are accepted.

    Raises:
        ValueError: nothing to look at there.
        OSError: the port is taken.
    """
    key = secrets.token_urlsafe(16)
    app = make_app(Source(archive_uri), key=key)
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2)
    with _listen(port) as listening:
        announce(f"http://127.0.0.1:{listening.getsockname()[1]}/?key={key}")
        uvicorn.Server(config).run(sockets=[listening])


def make_app(source: Source, *, key: str) -> ASGIApp:
    """The page, its files and what they ask for, behind the guard."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _add_page(app, source)
    _add_rows(app, source)
    _add_slides(app, source)
    for kind in (IndexError, OSError, UnreadableImageError, UnreadableSlideError, ArchiveError, ScoreStoreError, HeatmapError):
        app.add_exception_handler(kind, lambda _, error: PlainTextResponse(str(error), 404))
    return Guard(app, key=key)


def _add_page(app: FastAPI, source: Source) -> None:
    environment = Environment(loader=FileSystemLoader(_FOLDER), undefined=StrictUndefined, autoescape=True)
    page = environment.get_template("view.html.j2").render(title=source.name)

    @app.get("/")
    def open_page() -> Response:
        source.refresh()
        return Response(page, media_type="text/html")

    def give(name: str, media_type: str) -> Callable[[], Response]:
        return lambda: Response((_FOLDER / name).read_bytes(), media_type=media_type)

    for name, media_type in _FILES.items():
        app.add_api_route(f"/{name}", give(name, media_type), response_class=Response)


def _add_rows(app: FastAPI, source: Source) -> None:
    @app.get("/archive")
    def describe_archive() -> dict[str, Any]:
        return {"name": source.name, "colours": _COLOURS.tobytes().hex(), **source.table.summarise()}

    @app.get("/table")
    def page_of_table(query: Annotated[Query, InQuery()]) -> dict[str, Any]:
        matching, rows = source.table.page(query)
        return {"matching": matching, "rows": rows}

    @app.get("/slides")
    def list_slides(layer: Layered = 0) -> dict[str, Any]:
        slides = source.table.slides(layer)
        return {"slides": len(slides), "highest": slides[:_SLIDES_LISTED]}

    @app.get("/row/{row}")
    def describe_row(row: Number) -> dict[str, Any]:
        return source.describe_row(row)

    @app.get("/picture/{row}")
    def picture(row: Number, size: Pixels) -> Response:
        return Response(as_jpeg(read_sample(source.sample(row), size_px=size)), media_type="image/jpeg")

    @app.get("/map/{layer}/{row}")
    def anomaly_map(layer: Number, row: Number, size: Pixels) -> Response:
        return _halves(source.table.read_map(layer, row), size_px=size)


def _add_slides(app: FastAPI, source: Source) -> None:
    @app.get("/slide/{row}")
    def describe_slide(row: Number) -> dict[str, Any]:
        return {**source.slide(row).describe(), "box": source.slide(row).box(row)}

    @app.get("/slide/{row}/tile/{level}/{x}/{y}")
    def tile(row: Number, level: Number, x: Number, y: Number) -> Response:
        return Response(as_jpeg(source.slide(row).pixels.tile(level, x, y)), media_type="image/jpeg")

    @app.get("/slide/{row}/heat/{layer}/{level}/{x}/{y}")
    def heat(row: Number, layer: Number, level: Number, x: Number, y: Number) -> Response:
        return _halves(source.slide(row).heat(layer).tile(level, x, y))

    @app.get("/slide/{row}/layer/{layer}")
    def describe_layer(row: Number, layer: Number) -> dict[str, Any]:
        slide = source.slide(row)
        return {"heat": slide.heat(layer).describe(), "regions": slide.regions(layer)}


class Guard:
    """Lets through what asks with the key, by a loopback name, from this page, to read; and sends what browsers need to keep it so."""

    def __init__(self, app: ASGIApp, *, key: str) -> None:
        self._app = app
        self._key = key
        self._cookie = f"normascope-{key[:6]}"  # of its own, because cookies of all ports are one jar

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await (self._refuse(Request(scope)) or self._app)(scope, receive, send_guarded)

    def _refuse(self, request: Request) -> Response | None:
        host = request.headers.get("host", "")
        name, _, port = host.rpartition(":")
        if host not in _LOOPBACK_NAMES and not (name in _LOOPBACK_NAMES and port.isdecimal()):
            return PlainTextResponse("this page answers to 127.0.0.1 and localhost only", 421)
        if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return PlainTextResponse("this page answers no other page: paste its address into the address bar", 403)
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("this page only reads", 405, {"Allow": "GET, HEAD"})
        if request.scope["path"] == "/" and self._is_key(request.query_params.get("key", "")):
            entered = RedirectResponse("/", 303)
            entered.set_cookie(self._cookie, self._key, httponly=True, samesite="strict")
            return entered
        if not self._is_key(request.cookies.get(self._cookie, "")):
            return PlainTextResponse("open the whole address that `normascope view` printed, with its key", 403)
        return None

    def _is_key(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self._key.encode())


def _halves(values: np.ndarray, *, size_px: int | None = None) -> Response:
    """Scores as they are: the page colours them. Of the shape the page needs the width alone."""
    width = values.shape[1] if size_px is None else min(size_px, values.shape[1])
    return Response(as_halves(values, size_px=size_px), media_type="application/octet-stream", headers={"X-Width": str(width)})


def _listen(port: int | None) -> socket.socket:
    """A socket on the loopback address: the port asked for, else the usual one, else any."""
    for candidate in (port,) if port is not None else (load_settings().view_port, 0):
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", candidate))
            listening.listen()
        except OSError:
            listening.close()
            if candidate == 0 or port is not None:
                raise
        else:
            return listening
    raise AssertionError("the last candidate is bound or raises")
