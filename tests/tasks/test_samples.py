"""Rows lead back to pixels and masks: of slides at a level, of pictures, of frames."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage import data

from storage.datasets.miniatures.one_class import small_pictures
from storage.datasets.miniatures.pathology import write_asap
from storage.manifest import TEXT_COLUMNS
from storage.slides import write_pyramid
from tasks.curation import CurationConfig, StainNormalisation, TilingConfig
from tasks.references import ItemReference
from tasks.rows import to_table
from tasks.samples import SampleDataset, read_sample, read_sample_mask, read_whole_mask
from tasks.slide_rows import tabulate_slide
from tasks.transforms import apply_transform, stain_target

SIDE_PX = 2048  # levels of 2048, 1024 and 512 px
BLOB = [[200, 300], [900, 300], [900, 1100], [200, 1100]]  # x, y of what is abnormal


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slide")
    picture = np.tile(data.immunohistochemistry(), (SIDE_PX // 512, SIDE_PX // 512, 1))
    write_pyramid(folder / "slide.tif", picture, spacing_um=0.25, quality=95)
    mask = np.zeros((SIDE_PX, SIDE_PX), bool)
    mask[300:1100, 200:900] = True
    Image.fromarray(mask).save(folder / "mask.png")
    write_asap(folder / "mask.xml", [("Tumor", BLOB)])
    return folder / "slide.tif"


def rows_of(slide: Path, *, stain: str | None = None, mask: str | None = None, **tiling: Any) -> pd.DataFrame:
    values = {"uri": str(slide), "sha256": "ab" * 32, "dataset": "d", "subject_id": "s", "label": 1 if mask else 0}
    if mask is not None:
        values |= {"mask_uri": str(slide.parent / mask), "mask_sha256": mask}
    item = ItemReference(**(dict.fromkeys(ItemReference.__annotations__) | values))  # type: ignore[typeddict-item]
    found = tabulate_slide(item, TilingConfig.model_validate(tiling), CurationConfig(), stain=stain)
    rows = to_table([found]).to_pandas()
    return rows.astype({name: "string" for name in TEXT_COLUMNS if name in rows} | {"label": "Int8"})  # as the manifest has them


def pixels_of(slide: Path) -> np.ndarray:
    return np.tile(data.immunohistochemistry(), (SIDE_PX // 512, SIDE_PX // 512, 1))


@pytest.mark.parametrize(("spacing_um", "level", "scale"), [(None, 0, 1), (0.5, 1, 2), (1.0, 2, 4), (0.75, 1, 3)])
def test_a_tile_shows_its_part_of_the_slide_at_the_asked_spacing(slide: Path, spacing_um: float | None, level: int, scale: int) -> None:
    rows = rows_of(slide, size_px=128, spacing_um=spacing_um, tissue_share=0)
    row = rows.iloc[len(rows) // 2]
    assert row["level"] == level
    side = 128 * scale  # in pixels of level 0
    x, y = (int(row[name]) * 2**level for name in ("x_px", "y_px"))
    wanted = Image.fromarray(pixels_of(slide)[y : y + side, x : x + side]).resize((128, 128), Image.Resampling.BOX)
    seen = read_sample(row, size_px=128)
    assert seen.shape == (128, 128, 3)
    difference = np.abs(seen.astype(float) - np.asarray(wanted, float)).mean()
    assert difference < (4 if spacing_um != 0.75 else 8)  # JPEG; the bilinear resize of 0.75 is softer than a box


def test_a_tile_is_resized_to_what_the_detector_takes(slide: Path) -> None:
    row = rows_of(slide, size_px=256).iloc[0]
    assert read_sample(row, size_px=64).shape == (64, 64, 3)


def test_what_is_returned_may_be_written_to(slide: Path) -> None:
    row = rows_of(slide, size_px=128).iloc[0]
    first = read_sample(row, size_px=128)
    before = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(read_sample(row, size_px=128), before)


def test_the_transform_of_the_row_is_applied_to_the_pixels_as_scanned(slide: Path) -> None:
    target = np.roll(data.immunohistochemistry()[:200, :200], 1, axis=2)
    Image.fromarray(target).save(slide.parent / "target.png")
    stain = stain_target(StainNormalisation(target=str(slide.parent / "target.png"), kind="macenko"))
    plain, stained = rows_of(slide, size_px=128).iloc[3], rows_of(slide, size_px=128, stain=stain).iloc[3]
    assert plain["sample_id"] == stained["sample_id"]
    seen = read_sample(stained, size_px=128)
    np.testing.assert_array_equal(seen, apply_transform(read_sample(plain, size_px=128), stained["transform"]))
    assert np.abs(seen.astype(int) - read_sample(plain, size_px=128)).mean() > 5


@pytest.mark.parametrize("mask", ["mask.png", "mask.xml"])
@pytest.mark.parametrize("spacing_um", [0.25, 0.75, 1.0])
def test_a_samples_mask_is_its_part_of_the_slides_at_every_level(slide: Path, mask: str, spacing_um: float) -> None:
    rows = rows_of(slide, size_px=128, spacing_um=spacing_um, tissue_share=0, abnormal_tissue_share=0, mask=mask)
    truth = np.zeros((SIDE_PX, SIDE_PX), bool)
    truth[300:1100, 200:900] = True
    checked = 0
    for _, row in rows[rows["abnormal_share"].between(0.05, 0.95)].iterrows():
        x, y, side = (round(int(row[name]) * 2 ** int(row["level"])) for name in ("x_px", "y_px", "width_px"))
        seen = read_sample_mask(row, size_px=64)
        assert seen is not None
        wanted = np.asarray(Image.fromarray(truth[y : y + side, x : x + side]).convert("L").resize((64, 64), Image.Resampling.BOX)) >= 128
        assert (seen != wanted).mean() < 0.03
        assert seen.mean() == pytest.approx(row["abnormal_share"], abs=0.05)
        checked += 1
    assert checked >= 3


def test_the_whole_mask_is_reduced_alike_from_a_picture_and_from_outlines(slide: Path) -> None:
    masks = [read_whole_mask(rows_of(slide, mask=name).iloc[0], max_px=256) for name in ("mask.png", "mask.xml")]
    for mask in masks:
        assert mask is not None
        assert mask.shape == (256, 256)
        assert mask.mean() == pytest.approx(700 * 800 / SIDE_PX**2, rel=0.05)
    assert read_whole_mask(rows_of(slide).iloc[0], max_px=256) is None


def row_of_picture(path: Path, **known: Any) -> pd.Series:
    box = {"level": 0, "x_px": 0, "y_px": 0, "width_px": 64, "height_px": 64}
    values = {"uri": str(path), "sha256": str(path), "frame": None, "mask_uri": None, "mask_sha256": None, "transform": None, "label": 0}
    return pd.Series({**values, **box, **known}, dtype=object)


@pytest.mark.parametrize(("label", "wanted"), [(0, 0.0), (1, None), (pd.NA, None), (None, None)])
def test_without_a_mask_file_a_normal_samples_mask_is_empty_and_any_others_unknown(
    tmp_path: Path, label: Any, wanted: float | None
) -> None:
    mask = read_sample_mask(row_of_picture(tmp_path / "a.png", label=label), size_px=16)
    assert (None if mask is None else mask.mean()) == wanted


def test_a_frame_and_its_neighbour_are_told_apart(tmp_path: Path) -> None:
    pictures = small_pictures([0, 1], size_px=64)
    np.savez(tmp_path / "two.npz", train_images=pictures)
    for index in (0, 1):
        row = row_of_picture(tmp_path / "two.npz", frame=f"train_images:{index}")
        np.testing.assert_array_equal(read_sample(row, size_px=64), pictures[index])


def test_a_file_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for shade in (10, 200):
        Image.fromarray(np.full((64, 64, 3), shade, np.uint8)).save(path)
        assert read_sample(row_of_picture(path, sha256=str(shade)), size_px=64).mean() == shade


def test_a_dataset_gives_images_in_zero_to_one_however_often_it_is_asked(tmp_path: Path) -> None:
    picture = small_pictures([3], size_px=64)[0]
    Image.fromarray(picture).save(tmp_path / "a.png")
    rows = pd.DataFrame([row_of_picture(tmp_path / "a.png")])
    dataset = SampleDataset(rows, size_px=64)
    for _ in range(2):
        np.testing.assert_allclose(dataset[0].numpy(), picture.transpose(2, 0, 1) / 255, atol=1e-6)


def test_rows_are_plain_values_that_survive_json(slide: Path) -> None:
    row = rows_of(slide, size_px=128).iloc[0]
    again = json.loads(row.to_json())
    np.testing.assert_array_equal(read_sample(again, size_px=128), read_sample(row, size_px=128))
