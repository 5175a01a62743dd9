"""The data sets of a paper in miniature: each in its own folder, marked as generated, there whole or not at all."""

import fcntl
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from PIL import Image
from skimage import data

from storage.datasets.miniatures.dermatology import (
    write_arsenic_skin,
    write_hands,
    write_isic2018,
    write_isic2020,
    write_isic_archive,
    write_sd198,
)
from storage.datasets.miniatures.one_class import write_cifar10, write_svhn
from storage.datasets.miniatures.pathology import write_camelyon16
from storage.datasets.miniatures.radiology import plan_chestxray14, write_chestxray14

MARKER = "GENERATED.txt"
_VERSION = 2  # of what is drawn: raised whenever that changes


class MiniatureError(ValueError):
    """A miniature that cannot be written; the message says what to do."""


def write_miniature(paper: str, folder: Path) -> Path:
    """Fill `folder` with the paper's data sets in miniature, under the names that the configurations of the papers have for their folders.

    A data set of this version of the generator that is there already stays; one of another version is replaced. Each appears whole: it
    is written beside its place and renamed, and what a killed call left is written anew. Its folder has a file GENERATED.txt that says
    what it is. Each call gives the same bytes. Of two calls at a time the second waits for the first.

    Args:
        paper: skin (Burgert et al. 2025), hands (González-Jiménez et al. 2022), dermoscopy (Lu and Xu 2018), melanoma (Aggarwal et al.
            2024) or perceptual (Tuluptceva et al. 2020).
        folder: a local one, made where it is not there; of what is in it only these data sets are touched.

    Returns:
        `folder`.

    Raises:
        MiniatureError: no such paper; what stands in a data set's place was not generated.
    """
    if paper not in _WRITERS:
        raise MiniatureError(f"there is no miniature of {paper!r}; expected {', '.join(_WRITERS)}")
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        for name, write in _WRITERS[paper].items():
            _provide(folder / name, write)
        if paper == "perceptual":
            _provide_stain_target(folder / "stain-target.png")
    return folder


def _write_chestxray14(folder: Path) -> None:
    rows, tested = plan_chestxray14(192)
    write_chestxray14(folder, rows=rows, test=tested, size_px=96)


# What the papers state, divided by one factor each, with as many subjects as give every split several of both kinds: what
# `flows.miniatures.shrink` makes of the papers' configurations finds its counts in them.
_WRITERS: Mapping[str, Mapping[str, Callable[[Path], object]]] = {
    # 36 photographs of about 160 patches, 175 pictures of healthy skin and 190 of lesions, those from the web among them
    "skin": {
        "isic": partial(write_isic_archive, photographs=36, of_patient=1, abnormal=0, width_px=560),
        "ArsenicSkinImageBD": partial(write_arsenic_skin, not_infected=175, infected=2),
        "sd-198": partial(write_sd198, pictures=22),
    },
    # A fortieth of 7,682 pictures without and of 3,179 with jewellery. Who wears some has a picture without, too: a bootstrap over persons
    # that is not stratified must miss neither kind.
    "hands": {"11k-hands": partial(write_hands, people=54, pictures=5, wearing=20, jewels=4)},
    # a twenty-fifth of 6,705 nevi and of the 110 of each other class that are held out
    "dermoscopy": {
        "isic-2018": partial(write_isic2018, lesions={"NV": 272, **dict.fromkeys(("MEL", "BCC", "AKIEC", "BKL", "DF", "VASC"), 6)})
    },
    # a sixtieth of 33,126 pictures of 2,056 patients, 584 of them malignant, 425 of them twice
    "melanoma": {"isic-2020": partial(write_isic2020, patients=34, pictures=16, malignant=10, duplicates=7)},
    "perceptual": {
        # with a fifth of the tiles of a slide a hundredth of 7,612 that train, of 200 of tumour that validate, of 4,000 and 817 that are
        # tested
        "CAMELYON16": partial(
            write_camelyon16,
            normal=(*range(1, 9), 27),
            tumor=(1, 10),
            test={1: "Tumor", 2: "Normal", 3: "Tumor", 4: "Normal"},
            size_px=2048,
            radius_shares=(0.13, 0.155),
        ),
        "nih-chestxray14": _write_chestxray14,
        "cifar-10": partial(write_cifar10, per_batch=60),  # 50,000 and 10,000
        "svhn": partial(write_svhn, train=280, test=100),  # 73,257 and 26,032
    },
}


def _provide(place: Path, write: Callable[[Path], object]) -> None:
    """The data set in its place: left there, replaced or written."""
    old, new = place.with_name(f".{place.name}.old"), place.with_name(f".{place.name}.new")
    for left_over in (old, new):
        shutil.rmtree(left_over, ignore_errors=True)
    notice = (
        f"GENERATED, not the data set {place.name}: drawn by normascope's miniatures, version {_VERSION}, in the layout in which that data "
        "set is downloaded.\nNothing here was taken of a patient. Figures from it say that the machine works; they say nothing else.\n"
    )
    if place.exists():
        found = (place / MARKER).read_text() if (place / MARKER).exists() else ""
        if not found.startswith("GENERATED"):
            raise MiniatureError(f"{place} was not generated and is not overwritten: choose another folder for the miniature")
        if found == notice:
            return
        place.rename(old)  # not removed where it is: killed half way, it would look like data that were not generated
    write(new)
    (new / MARKER).write_text(notice)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def _provide_stain_target(path: Path) -> None:
    """A real picture of stained tissue that scikit-image ships; another that stands there is left."""
    if not path.exists():
        new = path.with_name(f".{path.name}.new")
        Image.fromarray(data.immunohistochemistry()).save(new, format="png")
        new.rename(path)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / ".miniature.lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # goes with the file, also when the process is killed
        yield
