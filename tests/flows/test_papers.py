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


def test_burgert_250_train_20_and_42_validate_76_and_148_are_tested_of_every_source(data: Path, tmp_path: Path) -> None:
    curated = _curate("skin-burgert-2025", data, tmp_path)
    assert (curated.count("train", 0), curated.count("validation", 0), curated.count("test", 0)) == (250, 20, 76)
    assert (curated.count("validation", 1), curated.count("test", 1)) == (42, 148)
    for split in ("train", "validation", "test"):
        sources = curated.of(split, 0)["dataset"].value_counts(normalize=True)
        assert sources["isic-archive"] == pytest.approx(160 / 335, abs=0.1), split  # the paper's, of all splits
        assert sources["arsenic-skin"] == pytest.approx(175 / 335, abs=0.1), split
    for split in ("validation", "test"):
        assert curated.of(split, 1)["dataset"].unique().tolist() == ["sd-198"]
        assert curated.of(split, 1)["finding"].nunique() == 9, split
    photographs = curated.rows[curated.rows["dataset"] == "isic-archive"]
    patches = photographs[photographs["width_px"] == 96]
    assert patches["excluded"].isna().sum() == pytest.approx(160, abs=40)
    assert (patches.loc[patches["excluded"].isna(), "tissue_share"] >= 0.98).all()  # of skin
    assert not curated.usable["finding"].str.contains("Onychomycosis").any()


def test_sano_four_fifths_without_jewels_train_no_person_is_in_two_splits_and_jewels_have_masks(data: Path, tmp_path: Path) -> None:
    curated = _curate("hands-sano-2022", data, tmp_path)
    assert curated.count("train", 1) == 0
    normal, abnormal = (curated.usable[curated.usable["label"] == label] for label in (0, 1))
    assert (len(normal), len(abnormal)) == pytest.approx((7682 / 40, 3179 / 40), rel=0.03)
    assert curated.count("train", 0) == pytest.approx(6146 / 40, rel=0.05)
    assert curated.count("validation", 0) + curated.count("test", 0) == pytest.approx(1536 / 40, rel=0.15)
    assert curated.count("validation", 1) == pytest.approx(curated.count("test", 1), rel=0.2)
    assert abnormal["mask_uri"].notna().all()
    assert set(abnormal["split"]) == {"validation", "test"}


def test_lu_xu_nevi_train_and_as_many_of_each_other_class_are_tested(data: Path, tmp_path: Path) -> None:
    curated = _curate("dermoscopy-lu-xu-2018", data, tmp_path)
    assert (curated.count("train", 0), curated.count("validation", 0), curated.count("test", 0)) == (255, 3, 10)  # 6,369, 86, 250
    for split, each in {"validation": 1, "test": 4}.items():  # 10, 100
        findings = curated.of(split, 1)["finding"].value_counts().to_dict()
        assert findings == dict.fromkeys(["MEL", "BCC", "AKIEC", "BKL", "DF", "VASC"], each)
    assert (curated.rows.groupby("lesion_id")["group_id"].nunique() <= 1).all()


def test_aggarwal_60_20_20_by_patient_with_malignant_in_each(data: Path, tmp_path: Path) -> None:
    curated = _curate("dermoscopy-aggarwal-2024", data, tmp_path)
    for split, stated in {"train": 19_875, "validation": 6_625, "test": 6_626}.items():
        assert curated.count(split, 0) + curated.count(split, 1) == pytest.approx(stated / 60, rel=0.15), split
        assert curated.count(split, 1) == pytest.approx(584 / 60 * stated / 33_126, abs=1), split
    assert curated.rows["excluded"].notna().sum() == 7  # the published duplicates


def test_tuluptceva_camelyon_few_tiles_a_slide_and_tumour_tiles_wholly_in_tumour(data: Path, tmp_path: Path) -> None:
    curated = _curate("pathology-tuluptceva-2020", data, tmp_path)
    by_slide = curated.usable.groupby("slide_id")
    assert by_slide["label"].apply(lambda labels: labels.eq(0).sum()).max() == 10
    assert curated.count("train", 0) == pytest.approx(7612 / 100, rel=0.15)
    assert (curated.count("test", 0), curated.count("test", 1)) == pytest.approx((4000 / 100, 817 / 100), rel=0.15)
    assert curated.count("validation", 1) == pytest.approx(200 / 100, abs=1)
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
    tested = curated.usable["split"].eq("test").mean()
    assert tested == pytest.approx(25_596 / 112_120, abs=0.12)  # the official list's
    development = curated.count("train", 0) + curated.count("validation", 0)
    assert curated.count("validation", 0) == pytest.approx(0.05 * development, abs=1)


@pytest.mark.parametrize("name", ["cifar10-one-class", "svhn-one-class"])
def test_one_class_trains_and_all_ten_are_tested(data: Path, tmp_path: Path, name: str) -> None:
    curated = _curate(name, data, tmp_path)
    assert curated.count("train", 1) == 0
    train, tested = {"cifar10-one-class": (300, 60), "svhn-one-class": (280, 100)}[name]  # in the ratio of the published files
    assert len(curated.rows) == train + tested
    assert (curated.count("test", 0), curated.count("test", 1)) == (tested // 10, tested * 9 // 10)
    frames = curated.usable.loc[curated.usable["split"] == "test", "frame"]
    assert np.unique(frames).size == tested
