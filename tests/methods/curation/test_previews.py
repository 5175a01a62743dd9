import numpy as np
import pytest

from methods.curation.previews import draw_tiles

GREEN, ORANGE, YELLOW, BLUE, BLACK = (0, 150, 60), (213, 94, 0), (240, 228, 66), (0, 114, 178), (0, 0, 0)
UNKNOWN = float("nan")


def draw_all(
    boxes: list[list[float]],
    *,
    kept: list[bool],
    labels: list[float],
    tissue: np.ndarray | None = None,
    marks: np.ndarray | None = None,
    width_px: int = 100,
) -> tuple[np.ndarray, np.ndarray]:
    """The drawn thumbnail of 60 px height and the legend below it."""
    thumbnail = np.full((60, width_px, 3), 100, np.uint8)
    mask = np.ones((60, width_px), bool) if tissue is None else tissue
    values = np.array(boxes, float).reshape(-1, 4)
    picture = draw_tiles(thumbnail, mask, values, kept=np.array(kept, bool), labels=np.array(labels), marks=marks)
    height = 60 * (picture.shape[1] // width_px)
    return picture[:height], picture[height:]


def draw(boxes: list[list[float]], *, kept: list[bool], labels: list[float], tissue: np.ndarray | None = None) -> np.ndarray:
    return draw_all(boxes, kept=kept, labels=labels, tissue=tissue)[0]


def colours(picture: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(int(value) for value in colour) for colour in np.unique(picture.reshape(-1, 3), axis=0)}


def test_kept_tiles_are_green_abnormal_ones_orange_unknown_ones_yellow_and_the_others_not_drawn() -> None:
    boxes = [[0, 0, 20, 20], [20, 0, 40, 20], [40, 0, 60, 20], [0, 30, 20, 50]]
    picture = draw(boxes, kept=[True, True, False, True], labels=[0, 1, 0, UNKNOWN])
    scale = picture.shape[1] // 100
    assert colours(picture[30 * scale : 50 * scale, : 20 * scale]) == {YELLOW, (100, 100, 100)}
    assert colours(picture[: 20 * scale, : 20 * scale]) == {GREEN, (100, 100, 100)}
    assert colours(picture[: 20 * scale, 20 * scale : 40 * scale]) == {ORANGE, (100, 100, 100)}
    assert colours(picture[: 20 * scale, 40 * scale :]) == {(100, 100, 100)}


def test_what_is_marked_is_outlined_in_black_and_not_filled() -> None:
    marks = np.zeros((60, 100), bool)
    marks[20:40, 30:60] = True
    picture, _ = draw_all([], kept=[], labels=[], marks=marks)
    black = (picture == BLACK).all(-1)
    assert black[20, 30:60].all()
    assert black[20:40, 59].all()
    assert not black[24:36, 34:56].any()
    assert not black[:20].any()


@pytest.mark.parametrize("width_px", [100, 800])
def test_the_legend_has_the_colours_that_are_drawn_on_as_many_lines_as_it_takes(width_px: int) -> None:
    boxes, marks = [[0.0, 0, 20, 20]] * 2, np.ones((60, width_px), bool)
    _, legend = draw_all(boxes, kept=[True, True], labels=[1, UNKNOWN], marks=marks, width_px=width_px)
    assert {ORANGE, YELLOW, BLUE, BLACK} <= colours(legend)
    assert GREEN not in colours(legend)
    assert (legend.shape[0] > 24) == (width_px == 100)
    _, plain = draw_all(boxes, kept=[True, True], labels=[0, 0], width_px=width_px)
    assert {GREEN, BLUE} <= colours(plain)
    assert not {ORANGE, YELLOW} & colours(plain)


def test_a_frame_lies_inside_of_its_tile() -> None:
    picture = draw([[10, 20, 30, 40]], kept=[True], labels=[0])
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
    picture = draw([], kept=[], labels=[], tissue=tissue)
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
    picture = draw_tiles(thumbnail, np.ones(thumbnail.shape[:2], bool), boxes, kept=all_kept, labels=np.zeros(1))
    assert picture.shape == (side_px // 2 * scale + 24, side_px * scale, 3)
    assert picture.dtype == np.uint8


def test_a_slide_of_which_no_tile_is_kept_is_drawn_as_it_is() -> None:
    assert draw([[0, 0, 2, 2]], kept=[False], labels=[0]).shape == (60, 100, 3)


def test_neighbouring_frames_of_small_tiles_stay_apart() -> None:
    picture = draw([[0, 0, 12, 12], [12, 0, 24, 12]], kept=[True, True], labels=[0, 0])
    assert (picture[6, :24] == GREEN).all(-1).nonzero()[0].tolist() == [1, 10, 13, 22]
