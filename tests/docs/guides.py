"""Guides as tests follow them: their blocks in order, the pictures that they speak of, a person who does what they say.

A comment before a block says what it is besides its language: `file: NAME` and `edit: NAME` are written, `list: NAME` is how a generated
list begins, `more pictures: FOLDER COUNT` come before the commands, which end with 0, or as `exits with 1` or `until Ctrl-C` say; what is
`not run: WHY` is left out and `checked, not run: WHY` is only read. `text` is what the commands before it print, where `…` and numbers
with decimals vary.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from flows.config import load_config
from tests.command import NORMASCOPE

GUIDES = Path(__file__).parents[2] / "docs" / "guides"
_BLOCK = re.compile(r"(?:<!-- (?P<mark>.+?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)```", re.DOTALL)
_MEASURED = re.compile(r"\d+\\\.\d+")
_LIMIT_S = 300


class Block(NamedTuple):
    """What stands between two fences, and the comment before it."""

    mark: str
    language: str
    text: str


def read_blocks(guide: str) -> list[Block]:
    return [Block(found["mark"] or "", found["language"], found["text"]) for found in _BLOCK.finditer((GUIDES / guide).read_text())]


def marks_of(guide: str) -> list[str]:
    """Why blocks are not run."""
    return [block.mark.partition("not run: ")[2] for block in read_blocks(guide) if "not run: " in block.mark]


class Reader:
    """Somebody in a folder, with a home, who does what guides say."""

    def __init__(self, folder: Path, home: Path, **environment: str) -> None:
        self.folder = folder
        (programs := home / "bin").mkdir(parents=True, exist_ok=True)
        command = programs / "normascope"
        command.write_text(f'#!/bin/sh\nexec {shlex.join(NORMASCOPE)} "$@"\n')
        command.chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        path = os.pathsep.join((str(programs), str(Path(sys.executable).parent), kept["PATH"]))
        self.environment = {**kept, "PATH": path, "NORMASCOPE_HOME": str(home), **environment}

    def follow(self, guide: str) -> None:
        """Do all of it; each block that cannot be done as it says is an AssertionError."""
        said = ""
        for block in read_blocks(guide):
            kind, _, rest = block.mark.partition(": ")
            if kind == "not run":
                continue
            if kind == "checked, not run":
                (self.folder / "checked.yaml").write_text(block.text)
                load_config(self.folder / "checked.yaml")
            elif kind == "file":
                (self.folder / rest).write_text(block.text)
            elif kind == "edit":
                edit(self.folder / rest, block.text)
            elif kind == "list":
                assert (self.folder / rest).read_text().startswith(block.text), block
            elif block.language == "text":
                check(block.text, said)
            elif kind == "until Ctrl-C":
                self.look(block.text)
            elif block.language == "bash":
                if kind == "more pictures":
                    name, count = rest.split()
                    write_archive(self.folder / name, int(count))
                said = self.run(block.text, code=1 if kind == "exits with 1" else 0)
            else:
                assert (block.mark, block.language) == ("", ""), block
                assert "normascope " not in block.text, block

    def run(self, commands: str, *, code: int = 0) -> str:
        """What the commands print, on both channels."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_LIMIT_S,
        )
        assert done.returncode == code, f"{commands}\n{done.stdout}"
        return done.stdout

    def look(self, command: str) -> None:
        """Start what serves a page, open the page, press Ctrl-C."""
        process = subprocess.Popen(
            shlex.split(command),
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # children of tests in the background would ignore it
        )
        try:
            assert process.stdout is not None
            address = next(found[0] for line in process.stdout if (found := re.search(r"http://127\.0\.0\.1\S+", line)))
            with httpx.Client(follow_redirects=True, timeout=60, trust_env=False) as browser:  # the address gives it a cookie
                assert "<html" in browser.get(address).raise_for_status().text
            process.send_signal(signal.SIGINT)
            assert (code := process.wait(60)) == 130, f"{command} ended with {code} on Ctrl-C"  # as shells say of it
        finally:
            process.kill()


def check(expected: str, said: str) -> None:
    """Every line of a guide is printed, with the same whole numbers."""
    for line in expected.splitlines():
        pattern = _MEASURED.sub(r"[\\d.]+", re.escape(line)).replace("…", ".*")
        assert re.search(pattern, said), f"the guide promises: {line}\n{said}"


def edit(path: Path, changes: str) -> None:
    """Apply hunks that `@@` divides; each has its place once."""
    text = path.read_text()
    for hunk in changes.split("@@\n"):
        lines = hunk.splitlines()
        before, after = ("\n".join(line[1:] for line in lines if line[0] in kept) for kept in (" -", " +"))
        assert text.count(before) == 1, f"{path.name}: {before}"
        text = text.replace(before, after)
    path.write_text(text)


def write_pictures(folder: Path, *, persons: int) -> None:
    """Two pictures of each person, of every third the second one abnormal, with masks and the list."""
    lines = ["uri,subject_id,label,mask_uri"]
    for number in range(2 * persons):
        abnormal = number % 6 == 5
        save(folder, f"{number:04d}.png", number, abnormal=abnormal, mask=True)
        lines.append(f"images/{number:04d}.png,person-{number // 2:02d},{int(abnormal)},{f'masks/{number:04d}.png' if abnormal else ''}")
    (folder / "pictures.csv").write_text("\n".join(lines) + "\n")


def write_archive(folder: Path, count: int) -> None:
    """The first pictures of an archive that grows, without labels."""
    lines = ["uri,subject_id,split"]
    for number in range(count):
        save(folder, f"{number:04d}.jpg", 10**6 + number, abnormal=number % 6 == 5)
        lines.append(f"images/{number:04d}.jpg,visit-{number // 2:04d},archive")
    (folder / "archive.csv").write_text("\n".join(lines) + "\n")


def save(folder: Path, name: str, seed: int, *, abnormal: bool, mask: bool = False) -> None:
    picture, inside = draw(seed, abnormal=abnormal)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(folder / "images" / name)
    if mask and abnormal:
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(inside).save(folder / "masks" / name)


def draw(seed: int, *, abnormal: bool, size_px: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Skin-coloured clouds, none like another, and where abnormal a dark disc; the picture and where it is."""
    rng = np.random.default_rng(seed)
    clouds = 300 * gaussian_filter(rng.normal(size=(size_px, size_px)), 12, mode="wrap")
    grain = 20 * gaussian_filter(rng.normal(size=(size_px, size_px)), 1)
    picture = np.array([205, 150, 130]) + (clouds + grain)[..., None]
    inside = np.zeros((size_px, size_px), bool)
    if abnormal:
        y, x = rng.integers(size_px // 4, 3 * size_px // 4, 2)
        down, right = np.ogrid[:size_px, :size_px]
        inside = (down - y) ** 2 + (right - x) ** 2 < (size_px // 6) ** 2
        picture[inside] = np.array([70, 40, 50]) + grain[inside][:, None]
    return picture.clip(0, 255).astype(np.uint8), inside


def guides() -> Iterator[str]:
    return (path.name for path in sorted(GUIDES.glob("*.md")))
