"""Camelyon16 in both published layouts: labels, outlines, official test part, published exclusions."""

from pathlib import Path

import pytest

from storage.annotations import rasterise, read_asap
from storage.datasets.camelyon16 import EXCLUSIONS, NOT_EXHAUSTIVELY_ANNOTATED, Camelyon16Source, list_camelyon16
from storage.datasets.miniatures.pathology import write_asap, write_camelyon16
from storage.datasets.source import SourceError, SourceItem
from storage.slides import open_slide


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_camelyon16(tmp_path_factory.mktemp("camelyon16"), size_px=256)


def touch(root: Path, *names: str) -> Path:
    """Slides and outlines by name alone, which is all that listing looks at."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def listed(root: Path, **options: object) -> dict[str, SourceItem]:
    items = list_camelyon16(Camelyon16Source.model_validate({"path": str(root), **options}))
    assert len({item.subject_id for item in items}) == len(items)
    return {item.subject_id: item for item in items}


def test_slides_are_listed_with_labels_outlines_and_the_official_test_part(miniature: Path) -> None:
    items = listed(miniature)
    assert list(items) == ["normal_001", "normal_002", "normal_027", "tumor_001", "tumor_002", "test_001", "test_002"]
    assert [item.label for item in items.values()] == [0, 0, 0, 1, 1, 1, 0]
    assert [item.split for item in items.values()] == [None] * 5 + ["test"] * 2
    assert items["tumor_001"].uri == str(miniature / "training/tumor/tumor_001.tif")
    assert items["tumor_001"].annotation_uri == str(miniature / "training/lesion_annotations/tumor_001.xml")
    assert items["test_001"].annotation_uri == str(miniature / "testing/lesion_annotations/test_001.xml")
    assert (items["test_002"].annotation_uri, items["test_002"].finding) == (None, None)
    assert {(item.dataset, item.slide_id == item.subject_id) for item in items.values()} == {("camelyon16", True)}
    assert items["tumor_002"].finding == "metastasis"


def test_the_listed_files_open_as_slides_with_a_spacing_and_outlines_inside_them(miniature: Path) -> None:
    for item in listed(miniature).values():
        with open_slide(item.uri) as slide:
            assert slide.spacing_um == pytest.approx(0.243, rel=1e-3)
            if item.annotation_uri:
                width_px, height_px = slide.width_px, slide.height_px
                mask = rasterise(read_asap(item.annotation_uri), width_px=width_px // 4, height_px=height_px // 4, downsample=4)
                assert 0.05 < mask.mean() < 0.2


def test_the_buckets_flat_layout_gives_the_same_items(miniature: Path, tmp_path: Path) -> None:
    flat, nested = listed(write_camelyon16(tmp_path, layout="flat", size_px=256)), listed(miniature)
    assert [(item.subject_id, item.label, item.split, item.excluded) for item in flat.values()] == [
        (item.subject_id, item.label, item.split, item.excluded) for item in nested.values()
    ]
    assert flat["test_001"].uri == str(tmp_path / "images/test_001.tif")
    assert flat["test_001"].annotation_uri == str(tmp_path / "annotations/test_001.xml")


def test_published_exclusions_are_marked_and_can_be_kept(tmp_path: Path) -> None:
    numbers = (27, 45, 86, 108, 144, 150, 158, 1)
    root = touch(tmp_path, *(f"training/normal/normal_{number:03d}.tif" for number in numbers))
    touch(root, "testing/images/test_049.tif", "testing/images/test_114.tif")
    (root / "testing/reference.csv").write_text("test_049,Tumor\ntest_114,Tumor\n")
    items = listed(root)
    assert {name for name, item in items.items() if item.excluded} == set(EXCLUSIONS) == set(items) - {"normal_001"}
    assert not any(item.excluded for item in listed(root, exclusions="kept").values())


def test_a_part_can_be_listed_alone(miniature: Path) -> None:
    assert set(listed(miniature, parts=("testing",))) == {"test_001", "test_002"}
    assert set(listed(miniature, parts=("training",))) == {"normal_001", "normal_002", "normal_027", "tumor_001", "tumor_002"}


def test_slides_that_only_a_row_or_an_outline_names_are_listed_where_they_should_be(tmp_path: Path) -> None:
    root = touch(tmp_path, "training/tumor/tumor_001.tif", "testing/images/test_001.tif")
    for name in ("tumor_001", "tumor_007"):
        write_asap(touch(root, f"training/lesion_annotations/{name}.xml") / f"training/lesion_annotations/{name}.xml", [])
    (root / "testing/reference.csv").write_text("test_001,Normal,None\ntest_002,Tumor,IDC\n")
    items = listed(root)
    assert items["tumor_007"].uri == str(root / "training/tumor/tumor_007.tif")
    assert (items["test_002"].uri, items["test_002"].label) == (str(root / "testing/images/test_002.tif"), 1)


def test_a_test_slide_without_a_row_is_excluded(tmp_path: Path) -> None:
    root = touch(tmp_path, "testing/images/test_001.tif", "testing/images/test_002.tif")
    (root / "testing/reference.csv").write_text("test_001,Normal\n")
    items = listed(root)
    assert (items["test_002"].label, items["test_002"].excluded) == (None, "no row in reference.csv")
    assert items["test_001"].excluded is None


def test_early_spellings_are_read_and_masks_passed_over(tmp_path: Path) -> None:
    root = touch(tmp_path, "training/tumor/Tumor_001.tif", "training/lesion_annotations/Tumor_001.xml", "masks/tumor_001_mask.tif")
    items = listed(root)
    assert list(items) == ["tumor_001"]
    assert items["tumor_001"].uri.endswith("Tumor_001.tif")
    assert items["tumor_001"].annotation_uri is not None


def test_slides_known_to_hold_more_than_is_outlined_are_the_readmes() -> None:
    assert len(NOT_EXHAUSTIVELY_ANNOTATED) == 21
    assert {"tumor_010", "tumor_110", "test_114"} <= NOT_EXHAUSTIVELY_ANNOTATED


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ((), r"no slides in it; expected training/normal/normal_001\.tif"),
        (("elsewhere/a.tif",), "no slides"),
        (("training/tumor/tumor_001.tif",), "unpack lesion_annotations.zip"),
        (("training/normal/normal_001.tif", "copy/normal_001.tif"), "two files are named normal_001"),
        (("testing/images/test_001.tif",), "expected one reference.csv for the test slides, found 0"),
        (("testing/images/test_001.tif", "a/reference.csv", "b/reference.csv"), "found 2"),
        (("testing/images/test_001.tif", "testing/reference.csv"), "rows like test_001,Tumor; found none"),
    ],
)
def test_another_folder_is_refused_saying_what_is_expected(tmp_path: Path, names: tuple[str, ...], told: str) -> None:
    with pytest.raises(SourceError, match=told):
        listed(touch(tmp_path, *names))


def test_an_unknown_class_in_the_reference_is_refused(tmp_path: Path) -> None:
    root = touch(tmp_path, "testing/images/test_001.tif")
    (root / "testing/reference.csv").write_text("test_001,Tumour\n")
    with pytest.raises(SourceError, match="test_001 is of class 'Tumour'"):
        listed(root)
