import numpy as np
import pytest

from methods.curation.previews import draw_tiles

GREEN, ORANGE, BLUE = (0, 150, 60), (213, 94, 0), (0, 114, 178)


def draw(boxes: list[list[float]], *, kept: list[bool], abnormal: list[bool], tissue: np.ndarray | None = None) -> np.ndarray:
    thumbnail = np.full((60, 100, 3), 100, np.uint8)
    mask = np.ones((60, 100), bool) if tissue is None else tissue
    values = np.array(boxes, float).reshape(-1, 4)
    return draw_tiles(thumbnail, mask, values, kept=np.array(kept, bool), abnormal=np.array(abnormal, bool))


def colours(picture: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(int(value) for value in colour) for colour in np.unique(picture.reshape(-1, 3), axis=0)}


def test_kept_tiles_are_green_abnormal_ones_orange_and_the_others_not_drawn() -> None:
    boxes = [[0, 0, 20, 20], [20, 0, 40, 20], [40, 0, 60, 20]]
    picture = draw(boxes, kept=[True, True, False], abnormal=[False, True, False])
    scale = picture.shape[1] // 100
    assert colours(picture[: 20 * scale, : 20 * scale]) == {GREEN, (100, 100, 100)}
    assert colours(picture[: 20 * scale, 20 * scale : 40 * scale]) == {ORANGE, (100, 100, 100)}
    assert colours(picture[: 20 * scale, 40 * scale :]) == {(100, 100, 100)}


def test_a_frame_lies_inside_of_its_tile() -> None:
    picture = draw([[10, 20, 30, 40]], kept=[True], abnormal=[False])
    scale = picture.shape[1] // 100
    y, x = np.nonzero((picture == GREEN).all(-1))
    assert x.min() == pytest.approx(10 * scale, abs=2)
    assert x.max() == pytest.approx(30 * scale, abs=3)
    assert y.min() == pytest.approx(20 * scale, abs=2)
    assert y.max() == pytest.approx(40 * scale, abs=3)
    assert (picture[25 * scale, 20 * scale] == 100).all()


def test_glass_is_paled_and_tissue_outlined() -> None:
    tissue = np.zeros((60, 100), bool)
    tissue[:, :50] = True
    picture = draw([], kept=[], abnormal=[], tissue=tissue)
    scale = picture.shape[1] // 100
    assert (picture[:, : 50 * scale] == 100).all()
    assert tuple(picture[0, 50 * scale + scale // 2]) == BLUE
    assert (picture[:, 60 * scale :] == 177).all()


@pytest.mark.parametrize(
    ("tile_px", "side_px", "scale"), [(12, 1024, 1), (11, 1024, 2), (5, 1024, 2), (5, 500, 3), (1, 500, 4), (1, 2049, 1)]
)
def test_thumbnails_are_enlarged_by_a_whole_factor_where_tiles_are_small(tile_px: int, side_px: int, scale: int) -> None:
    thumbnail = np.zeros((side_px // 2, side_px, 3), np.uint8)
    boxes, all_kept = np.array([[0, 0, tile_px, tile_px]]), np.ones(1, bool)
    picture = draw_tiles(thumbnail, np.ones(thumbnail.shape[:2], bool), boxes, kept=all_kept, abnormal=~all_kept)
    assert picture.shape == (side_px // 2 * scale, side_px * scale, 3)
    assert picture.dtype == np.uint8


def test_a_slide_of_which_no_tile_is_kept_is_drawn_as_it_is() -> None:
    assert draw([[0, 0, 2, 2]], kept=[False], abnormal=[False]).shape == (60, 100, 3)


def test_neighbouring_frames_of_small_tiles_stay_apart() -> None:
    picture = draw([[0, 0, 12, 12], [12, 0, 24, 12]], kept=[True, True], abnormal=[False, False])
    assert (picture[6, :24] == GREEN).all(-1).nonzero()[0].tolist() == [1, 10, 13, 22]
