"""Secrets come from the environment and stay there: a planted one is in nothing that a run writes or says."""

import base64
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from storage import filesystems
from storage.housekeeping import list_everything
from tests.archives import write_archive_pictures, write_manifest_of, write_small_bundle
from tests.command import Workplace
from tests.servers import S3Server, s3_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[S3Server]:
    with s3_server(tmp_path / "s3") as server:
        yield server


def forms(secret: str) -> dict[str, bytes]:
    """The ways in which it could be written."""
    return {
        "as it is": secret.encode(),
        "in a URL": quote(secret, safe="").encode(),
        "in a header": base64.b64encode(secret.encode()).rstrip(b"="),
    }


def test_no_secret_is_in_a_store_an_archive_the_history_a_log_or_the_output(tmp_path: Path, bucket: S3Server) -> None:
    folder = tmp_path / "workplace"
    (folder / "tmp").mkdir(parents=True)
    manifest, other = (
        write_manifest_of(write_archive_pictures(folder / name, 12, first=first), into=f"{bucket.bucket}/{name}")[0]
        for name, first in (("pictures", 0), ("others", 100))
    )
    write_small_bundle(folder / "model")
    password = f"someone:{secrets.token_hex(16)}"
    place = Workplace(folder)
    place.environment = bucket.environment(place.environment) | {
        "PREFECT_SERVER_API_AUTH_STRING": password,
        "PREFECT_API_AUTH_STRING": password,
        "PREFECT_LOGGING_LEVEL": "DEBUG",
        "TMPDIR": str(folder / "tmp"),
    }
    into = f"{bucket.bucket}/scored"
    options = ("--model", "model", "--into", into, "--execution", "process", "--batch-size", "4")
    try:
        called = [place.call("score", uri, *options) for uri in (manifest, other)]
        assert [answer.returncode for answer in called] == [0, 1], called  # the second fails in the flow, whose traceback is kept
    finally:
        place.call("ui", "--stop")
    written = {f"output {number}": (answer.stdout + answer.stderr).encode() for number, answer in enumerate(called)}
    written |= {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    written |= {uri: filesystems.read_bytes(uri) for uri in (f"{into}/{file.path}" for file in list_everything(into))}
    found = [
        f"{name} holds {what} {how}"
        for name, content in written.items()
        for what, secret in (("the secret key", bucket.secret_key), ("the password", password), ("the password", password.split(":")[1]))
        for how, form in forms(secret).items()
        if form in content
    ]
    assert not found
    for searched in ("prefect.db", "archive.json"):  # the search finds what is there
        assert any(manifest.encode() in content for name, content in written.items() if searched in name), searched
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == bucket.secret_key
