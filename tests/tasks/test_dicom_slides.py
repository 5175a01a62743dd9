from pathlib import Path

import pytest

from storage.datasets.folder import FolderSource
from storage.manifest import read_rows
from tasks.curation import CurationConfig, TilingConfig
from tasks.survey import deal_batches, survey
from tasks.tabulate_batch import tabulate_batch
from tests.scanners import write_dicom_slide


def test_the_tiles_of_a_dicom_slide_reach_the_manifest_and_no_name_does(tmp_path: Path) -> None:
    path = write_dicom_slide(tmp_path / "slides" / "normal")
    store = str(tmp_path / "store")
    (batch,) = deal_batches(survey([FolderSource(path=str(tmp_path / "slides"))], store=store), store=store)
    tiling = TilingConfig(size_px=128, spacing_um=1.0, tissue_share=0)
    reference = tabulate_batch(batch, tiling, CurationConfig(), None, store)
    rows = read_rows(reference["uri"]).to_pandas()
    assert rows["excluded"].isna().all()
    assert set(rows["uri"]) == {str(path)}
    assert set(rows["level"]) == {1}
    assert len(rows) == 3 * 2  # of 450 × 350 px at 1 µm
    assert rows["spacing_um"].tolist() == pytest.approx([1.0] * len(rows), rel=0.01)
    assert not any(name in rows.to_csv() for name in ("Doe", "Jane", "P17"))
