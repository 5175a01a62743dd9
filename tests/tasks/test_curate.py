from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from storage.datasets.folder import FolderSource
from storage.slides import write_pyramid
from tasks.curate import TooManyFailuresError, check_failures, tabulate_batch
from tasks.curation import CurationConfig, TilingConfig
from tasks.survey import deal_batches, survey


def tabulate(folder: Path, name: str, *, curation: CurationConfig = CurationConfig(), **tiling: object) -> tuple[pd.DataFrame, str]:
    store = str(folder.parent / "store")
    items = [item for item in survey([FolderSource(path=str(folder))], store=store) if Path(item["uri"]).name == name]
    [batch] = deal_batches(items, store=store)
    reference = tabulate_batch(batch, TilingConfig.model_validate(tiling), curation, None, store)
    return pd.read_parquet(reference["uri"]), reference["note"]


def test_a_mask_of_another_size_excludes_its_picture_and_names_both_sizes(pictures: Path) -> None:
    Image.fromarray(np.ones((10, 20), bool)).save(pictures / "masks" / "picture-012.png")
    rows, note = tabulate(pictures, "picture-012.png")
    assert "20 × 10 px" in note
    assert "64 × 64" in note
    assert rows["excluded"].notna().all()


def test_an_unreadable_picture_becomes_one_excluded_row_with_the_reason(pictures: Path) -> None:
    (pictures / "normal" / "picture-000.png").write_bytes(b"no picture")
    rows, _ = tabulate(pictures, "picture-000.png")
    assert len(rows) == 1
    assert "unusable" in rows["excluded"][0]


def test_a_truncated_slide_becomes_one_excluded_row(tmp_path: Path) -> None:
    slide = tmp_path / "slides" / "normal" / "slide.tif"
    write_pyramid(slide, np.random.default_rng(0).integers(0, 255, (2048, 2048, 3), np.uint8), spacing_um=0.5)
    slide.write_bytes(slide.read_bytes()[: slide.stat().st_size // 3])
    rows, _ = tabulate(tmp_path / "slides", "slide.tif")
    assert len(rows) == 1
    assert rows["excluded"].notna().all()


def test_tiles_are_labelled_by_their_share_of_the_mask(tmp_path: Path) -> None:
    for name in ("abnormal", "masks"):
        (tmp_path / "p" / name).mkdir(parents=True)
    Image.fromarray(np.full((64, 128, 3), 99, np.uint8)).save(tmp_path / "p" / "abnormal" / "a.png")
    mask = np.zeros((64, 128), bool)
    mask[:32, 64:] = True
    mask[0, 31] = True  # one pixel of 1,024: neither normal nor enough to be abnormal
    Image.fromarray(mask).save(tmp_path / "p" / "masks" / "a.png")
    rows, _ = tabulate(tmp_path / "p", "a.png", pictures="tiled", size_px=32)
    labels = {(row.x_px, row.y_px): row.label for row in rows.itertuples()}
    assert labels[(64, 0)] == labels[(96, 0)] == 1
    assert labels[(32, 0)] == labels[(64, 32)] == 0
    assert pd.isna(labels[(0, 0)])


def test_a_changed_file_has_another_digest_and_a_touched_one_has_not(pictures: Path) -> None:
    def digests() -> dict[str, str | None]:
        return {item["uri"]: item["sha256"] for item in survey([FolderSource(path=str(pictures))], store=str(pictures.parent / "store"))}

    first = digests()
    (pictures / "normal" / "picture-000.png").touch()
    assert digests() == first
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(pictures / "normal" / "picture-001.png")
    changed = {Path(uri).name for uri, digest in digests().items() if first[uri] != digest}
    assert changed == {"picture-001.png"}


def test_failures_stop_the_run_only_above_the_allowed_share() -> None:
    check_failures(failed=["bad"], total=20, failed_share_max=0.05, what="pictures")
    with pytest.raises(TooManyFailuresError, match=r"2 of 20 pictures failed.*bad"):
        check_failures(failed=["bad", "bad"], total=20, failed_share_max=0.05, what="pictures")
