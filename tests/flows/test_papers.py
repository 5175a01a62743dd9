"""The configuration of each paper over a generated miniature of its data set: it curates to the paper's counts, in proportion."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage import data

from flows.config import RunConfig, load_config
from flows.curate import curate
from methods.curation.splits import CountConfig, check_splits
from storage.manifest import read_manifest
from tests.miniatures import CHESTXRAY_ROWS, write_camelyon16, write_chestxray14, write_cifar10
from tests.miniatures_skin import (
    BURGERT_CLASSES,
    write_arsenic_skin,
    write_hands,
    write_isic2018,
    write_isic2020,
    write_isic_archive,
    write_sd198,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

_CONFIGS = Path(__file__).parents[2] / "deploy" / "configs" / "papers"


@dataclass(frozen=True)
class Curated:
    """A miniature's manifest, and the rows of it that may be used."""

    rows: pd.DataFrame

    @property
    def usable(self) -> pd.DataFrame:
        return self.rows[self.rows["excluded"].isna()]

    def count(self, split: str, label: int) -> int:
        return int(((self.usable["split"] == split) & (self.usable["label"] == label)).sum())


def _curate(name: str, folder: Path, *, fraction: float = 1.0, change: Callable[[RunConfig], RunConfig] = lambda config: config) -> Curated:
    """The paper's own file, with its folders moved under `folder` and its counts taken down."""
    text = (_CONFIGS / f"{name}.yaml").read_text().replace("../../../data", str(folder / "data"))
    (folder / "run.yaml").write_text(text.replace("../../../normascope-store", str(folder / "store")))
    config = change(load_config(folder / "run.yaml"))
    if config.split.counts is not None:
        counts = {split: _reduced(count, fraction) for split, count in config.split.counts.items()}
        config = config.model_copy(update={"split": config.split.model_copy(update={"counts": counts})})
    manifest = curate(config)
    curated = Curated(read_manifest(manifest["uri"], digest=manifest["digest"]))
    assert check_splits(curated.rows) == []
    assert set(curated.usable.loc[curated.usable["split"] == "train", "label"]) <= {0} or config.split.train_on == "both"
    return curated


def _reduced(count: CountConfig, fraction: float) -> CountConfig:
    assert not isinstance(count.abnormal, dict)
    names = ("normal", "abnormal", "abnormal_each")
    return CountConfig(**{name: round(getattr(count, name) * fraction) for name in names})


def test_burgert_250_normal_train_and_both_kinds_are_held_out(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_isic_archive(root / "isic", photographs=4, abnormal=1, width_px=800)
    write_arsenic_skin(root / "ArsenicSkinImageBD", not_infected=36, infected=2)
    write_sd198(root / "sd-198", classes=(*BURGERT_CLASSES, "Onychomycosis"), pictures=4)
    curated = _curate("skin-burgert-2025", tmp_path, fraction=0.1, change=lambda config: _patches_of(config, 96))
    assert (curated.count("train", 0), curated.count("validation", 0), curated.count("test", 0)) == (25, 2, 8)
    assert (curated.count("validation", 1), curated.count("test", 1)) == (4, 15)
    photographs = curated.rows[curated.rows["dataset"] == "isic-archive"]
    patches = photographs[photographs["width_px"] == 96]
    assert patches["excluded"].isna().sum() >= 10
    assert (patches.loc[patches["excluded"].isna(), "tissue_share"] >= 0.98).all()  # of skin
    assert not curated.usable["finding"].str.contains("Onychomycosis").any()


def _patches_of(config: RunConfig, side_px: int) -> RunConfig:
    skin = config.curation.skin.model_copy(update={"side_px": side_px})
    return config.model_copy(update={"curation": config.curation.model_copy(update={"skin": skin})})


def test_sano_no_person_is_in_two_splits_and_jewels_have_masks(tmp_path: Path) -> None:
    write_hands(tmp_path / "data" / "11k-hands", people=12, pictures=4)
    table = tmp_path / "data" / "11k-hands" / "HandInfo.csv"
    rows = pd.read_csv(table)
    rows.loc[rows["id"] < 8, "accessories"] = 0  # most persons wear nothing, as in the paper's training
    rows.to_csv(table, index=False)
    for mask in (tmp_path / "data" / "11k-hands" / "masks").iterdir():
        if int(mask.stem.removeprefix("Hand_")) < 800:
            mask.unlink()
    curated = _curate("hands-sano-2022", tmp_path)
    assert curated.count("train", 1) == 0
    assert curated.count("train", 0) >= 3 * (curated.count("validation", 0) + curated.count("test", 0) - 12)
    abnormal = curated.usable[curated.usable["label"] == 1]
    assert len(abnormal) == 4, curated.rows[["uri", "label", "excluded", "group_id"]].to_string()
    assert abnormal["mask_uri"].notna().all()
    assert set(abnormal["split"]) == {"validation", "test"}


def test_lu_xu_6369_nevi_train_and_100_of_each_other_class_are_tested(tmp_path: Path) -> None:
    lesions = {"MEL": 6, "NV": 80, "BCC": 6, "AKIEC": 6, "BKL": 6, "DF": 6, "VASC": 6}
    write_isic2018(tmp_path / "data" / "isic-2018", lesions=lesions, pictures_of_first=4)
    curated = _curate("dermoscopy-lu-xu-2018", tmp_path, fraction=0.01)
    assert (curated.count("train", 0), curated.count("test", 0)) == (64, 2)
    tested = curated.usable[(curated.usable["split"] == "test") & (curated.usable["label"] == 1)]
    assert tested["finding"].value_counts().to_dict() == dict.fromkeys(["MEL", "BCC", "AKIEC", "BKL", "DF", "VASC"], 1)
    assert (curated.rows.groupby("lesion_id")["group_id"].nunique() <= 1).all()


def test_aggarwal_60_20_20_by_patient_with_malignant_in_each(tmp_path: Path) -> None:
    write_isic2020(tmp_path / "data" / "isic-2020", patients=30, pictures=3, malignant=12, duplicates=2)
    curated = _curate("dermoscopy-aggarwal-2024", tmp_path)
    shares = curated.usable["split"].value_counts(normalize=True)
    assert shares.to_dict() == pytest.approx({"train": 0.6, "validation": 0.2, "test": 0.2}, abs=0.05)
    assert all(curated.count(split, 1) for split in ("train", "validation", "test"))
    assert curated.rows["excluded"].notna().sum() == 2  # the published duplicates


def test_tuluptceva_camelyon_at_most_50_tiles_a_slide_and_tumour_tiles_wholly_in_tumour(tmp_path: Path) -> None:
    target = Image.fromarray(data.immunohistochemistry())
    write_camelyon16(tmp_path / "data" / "CAMELYON16", normal=(1, 2, 3, 27), tumor=(1, 10), test={1: "Tumor", 2: "Normal"})
    target.save(tmp_path / "data" / "stain-target.png")
    curated = _curate("pathology-tuluptceva-2020", tmp_path, change=lambda config: _tiles_of(config, 192))
    by_slide = curated.usable.groupby("slide_id")
    assert by_slide["label"].apply(lambda labels: labels.eq(0).sum()).max() <= 50
    assert (curated.usable.loc[curated.usable["label"] == 1, "abnormal_share"] == 1).all()
    assert curated.count("validation", 1) > 0
    assert curated.count("test", 1) > 0
    partly = curated.usable[curated.usable["slide_id"] == "tumor_010"]
    assert set(partly["label"].dropna()) <= {1}  # not exhaustively outlined: the rest is unknown
    assert curated.rows.loc[curated.rows["slide_id"] == "normal_027", "excluded"].notna().all()
    assert curated.usable["transform"].str.contains("vahadane").all()


def _tiles_of(config: RunConfig, size_px: int) -> RunConfig:
    return config.model_copy(update={"tiling": config.tiling.model_copy(update={"size_px": size_px})})


def test_tuluptceva_chest_pa_alone_official_test_list_three_quarter_crop(tmp_path: Path) -> None:
    write_chestxray14(tmp_path / "data" / "nih-chestxray14")
    curated = _curate("chest-tuluptceva-2020", tmp_path)
    assert set(curated.usable["projection"]) == {"PA"}
    assert (curated.usable["width_px"] == 48).all()  # of 64
    assert curated.usable["transform"].str.contains("equalise").all()
    assert len(curated.rows) <= len(CHESTXRAY_ROWS)
    assert set(curated.usable["split"]) >= {"train", "test"}


def test_cifar10_one_class_trains_and_all_ten_are_tested(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "data" / "cifar-10", per_batch=40)
    curated = _curate("cifar10-one-class", tmp_path)
    assert curated.count("train", 1) == 0
    assert (curated.count("test", 0), curated.count("test", 1)) == (4, 36)
    tested = curated.usable[curated.usable["split"] == "test"]
    assert np.unique(tested["frame"]).size == 40
