"""The configuration of each paper over the generated miniature of its data set: it curates as the paper says, at miniature size."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flows.config import load_config
from flows.curate import curate
from flows.miniatures import shrink
from methods.curation.leaks import check_splits
from storage.datasets.miniatures.papers import write_miniature
from storage.manifest import read_manifest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

_CONFIGS = Path(__file__).parents[2] / "deploy" / "configs" / "papers"
_PAPERS = {
    "skin-burgert": "skin",
    "hands-sano": "hands",
    "dermoscopy-lu-xu": "dermoscopy",
    "dermoscopy-aggarwal": "melanoma",
    "pathology-tuluptceva": "perceptual",
    "chest": "perceptual",
    "cifar10": "perceptual",
    "svhn": "perceptual",
}


@dataclass(frozen=True)
class Curated:
    """A miniature's manifest, and the rows of it that may be used."""

    rows: pd.DataFrame

    @property
    def usable(self) -> pd.DataFrame:
        return self.rows[self.rows["excluded"].isna()]

    def of(self, split: str, label: int) -> pd.DataFrame:
        return self.usable[(self.usable["split"] == split) & (self.usable["label"] == label)]

    def count(self, split: str, label: int) -> int:
        return len(self.of(split, label))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("miniatures")


def _curate(name: str, data: Path, folder: Path) -> Curated:
    """The paper's own file at miniature size, over a miniature that is written where it is not there yet."""
    write_miniature(next(paper for start, paper in _PAPERS.items() if name.startswith(start)), data)
    text = (_CONFIGS / f"{name}.yaml").read_text().replace("../../../data", str(data))
    (folder / "run.yaml").write_text(text.replace("../../../normascope-store", str(folder / "store")))
    config = shrink(load_config(folder / "run.yaml"))
    manifest = curate(config)
    curated = Curated(read_manifest(manifest["uri"], digest=manifest["digest"]))
    assert check_splits(curated.rows) == []
    assert set(curated.usable.loc[curated.usable["split"] == "train", "label"]) <= {0} or config.split.train_on == "both"
    _check_subjects(curated)
    return curated


def _check_subjects(curated: Curated) -> None:
    """Several of both kinds are held out, so that there are intervals."""
    found = {(split, label): curated.of(split, label)["subject_id"].nunique() for split in ("validation", "test") for label in (0, 1)}
    assert min(found.values()) >= 2, found
    test = curated.usable[curated.usable["split"] == "test"]
    carriers = test.groupby("subject_id")["label"].max()
    assert (carriers.value_counts() >= 2).all(), carriers
    assert curated.count("train", 0) >= 16


def test_burgert_normal_train_and_both_kinds_are_held_out(data: Path, tmp_path: Path) -> None:
    curated = _curate("skin-burgert-2025", data, tmp_path)
    assert (curated.count("train", 0), curated.count("validation", 0), curated.count("test", 0)) == (24, 6, 6)
    assert (curated.count("validation", 1), curated.count("test", 1)) == (12, 12)
    photographs = curated.rows[curated.rows["dataset"] == "isic-archive"]
    patches = photographs[photographs["width_px"] == 96]
    assert patches["excluded"].isna().sum() >= 10
    assert (patches.loc[patches["excluded"].isna(), "tissue_share"] >= 0.98).all()  # of skin
    assert not curated.usable["finding"].str.contains("Onychomycosis").any()


def test_sano_no_person_is_in_two_splits_and_jewels_have_masks(data: Path, tmp_path: Path) -> None:
    curated = _curate("hands-sano-2022", data, tmp_path)
    assert curated.count("train", 1) == 0
    abnormal = curated.usable[curated.usable["label"] == 1]
    assert len(abnormal) == 16, curated.rows[["uri", "label", "excluded", "group_id"]].to_string()
    assert abnormal["mask_uri"].notna().all()
    assert set(abnormal["split"]) == {"validation", "test"}


def test_lu_xu_nevi_train_and_as_many_of_each_other_class_are_tested(data: Path, tmp_path: Path) -> None:
    curated = _curate("dermoscopy-lu-xu-2018", data, tmp_path)
    assert (curated.count("train", 0), curated.count("validation", 0), curated.count("test", 0)) == (24, 6, 6)
    for split in ("validation", "test"):
        findings = curated.of(split, 1)["finding"].value_counts().to_dict()
        assert findings == dict.fromkeys(["MEL", "BCC", "AKIEC", "BKL", "DF", "VASC"], 2)
    assert (curated.rows.groupby("lesion_id")["group_id"].nunique() <= 1).all()


def test_aggarwal_60_20_20_by_patient_with_malignant_in_each(data: Path, tmp_path: Path) -> None:
    curated = _curate("dermoscopy-aggarwal-2024", data, tmp_path)
    shares = curated.usable["split"].value_counts(normalize=True)
    assert shares["train"] == pytest.approx(0.6, abs=0.06)
    assert all(curated.count(split, 1) for split in ("train", "validation", "test"))
    assert curated.rows["excluded"].notna().sum() == 2  # the published duplicates


def test_tuluptceva_camelyon_few_tiles_a_slide_and_tumour_tiles_wholly_in_tumour(data: Path, tmp_path: Path) -> None:
    curated = _curate("pathology-tuluptceva-2020", data, tmp_path)
    by_slide = curated.usable.groupby("slide_id")
    assert by_slide["label"].apply(lambda labels: labels.eq(0).sum()).max() <= 12
    assert (curated.usable.loc[curated.usable["label"] == 1, "abnormal_share"] == 1).all()
    partly = curated.usable[curated.usable["slide_id"] == "tumor_010"]
    assert set(partly["label"].dropna()) <= {1}  # not exhaustively outlined: the rest is unknown
    assert curated.rows.loc[curated.rows["slide_id"] == "normal_027", "excluded"].notna().all()
    assert curated.usable["transform"].str.contains("vahadane").all()


@pytest.mark.parametrize(("name", "projection"), [("chest-tuluptceva-2020", "PA"), ("chest-ap-tuluptceva-2020", "AP")])
def test_tuluptceva_chest_one_projection_official_list_three_quarter_crop(data: Path, tmp_path: Path, name: str, projection: str) -> None:
    curated = _curate(name, data, tmp_path)
    assert set(curated.usable["projection"]) == {projection}
    assert (curated.usable["width_px"] == 72).all()  # of 96
    assert curated.usable["transform"].str.contains("equalise").all()
    assert set(curated.usable["split"].dropna()) == {"train", "validation", "test"}


@pytest.mark.parametrize("name", ["cifar10-one-class", "svhn-one-class"])
def test_one_class_trains_and_all_ten_are_tested(data: Path, tmp_path: Path, name: str) -> None:
    curated = _curate(name, data, tmp_path)
    assert curated.count("train", 1) == 0
    assert (curated.count("test", 0), curated.count("test", 1)) == (6, 54)
    tested = curated.usable[curated.usable["split"] == "test"]
    assert np.unique(tested["frame"]).size == 60
