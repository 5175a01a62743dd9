import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter
from pydantic import ValidationError
from skimage import data
from skimage.color import lab2rgb, rgb2lab

from methods.curation.ink import ink_mask
from methods.curation.quality import (
    PHOTOGRAPH_CHECKS,
    RADIOGRAPH_CHECKS,
    TILE_CHECKS,
    QualityConfig,
    flags,
    measure_ita,
    measure_quality,
    near_constant,
    pen_share,
    sharpness,
    skin_tone,
)
from methods.painting import paint_anomalies

CONFIG = QualityConfig()
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


def photograph(name: str = "chelsea", size_px: tuple[int, int] | None = None) -> np.ndarray:
    picture = Image.fromarray(getattr(data, name)()).convert("RGB")
    return np.asarray(picture.resize(size_px, Image.Resampling.BICUBIC) if size_px else picture)


def blurred(image: np.ndarray, sigma_px: float) -> np.ndarray:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma_px)))


def raised(image: np.ndarray, **changes: object) -> tuple[str, ...]:
    return flags(measure_quality(image), QualityConfig(**changes))


def screenshot() -> np.ndarray:
    screen = Image.new("RGB", (900, 600), (240, 241, 245))
    draw = ImageDraw.Draw(screen)
    draw.rectangle((0, 0, 900, 40), fill=(60, 90, 160))
    draw.rectangle((0, 41, 180, 600), fill=(225, 228, 232))
    for y in (70, 96, 140, 150, 200, 260, 290):
        draw.text((10, y), f"patient {y * y}", fill=(30, 30, 30))
    screen.paste(Image.fromarray(photograph("astronaut", (500, 420))), (260, 100))
    return np.asarray(screen)


def with_ruler(image: np.ndarray, *, angle_deg: float, upright: bool = False) -> np.ndarray:
    picture = Image.fromarray(image).resize((1024, 768))
    ruler = Image.new("RGBA", (1000, 90), (235, 235, 225, 255))
    draw = ImageDraw.Draw(ruler)
    for tick, x in enumerate(range(10, 990, 20)):
        draw.line((x, 0, x, 40 if tick % 10 == 0 else 28 if tick % 5 == 0 else 18), fill=(20, 20, 20), width=2)
    ruler = ruler.rotate(angle_deg, expand=True)
    picture.paste(ruler, (10, 640), ruler)
    return np.asarray(picture.rotate(90, expand=True) if upright else picture)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_good_photographs_raise_no_flag(name: str) -> None:
    assert raised(photograph(name)) == ()


@pytest.mark.parametrize("name", PHOTOGRAPHS[:3])
def test_sharpness_falls_with_blur_and_a_blurred_photograph_is_flagged(name: str) -> None:
    image = photograph(name, (512, 512))
    values = [sharpness(image), *(sharpness(blurred(image, sigma)) for sigma in (0.7, 1.5, 3))]
    assert values == sorted(values, reverse=True)
    assert raised(blurred(image, 3)) == ("blurred",)


@pytest.mark.parametrize("sigma_px", [1.5, 2, 4])
def test_sharpness_does_not_depend_on_the_resolution(sigma_px: float) -> None:
    image = blurred(photograph("astronaut"), sigma_px)
    enlarged = np.asarray(Image.fromarray(image).resize((1400, 1400), Image.Resampling.BICUBIC))
    assert sharpness(enlarged) == pytest.approx(sharpness(image), rel=0.15, abs=0.001)


def test_sharpness_does_not_depend_on_contrast_and_shading() -> None:
    image = photograph("astronaut").astype(float)
    shade = np.linspace(-40, 40, 512)[None, :, None]
    assert sharpness((image * 0.4 + 60 + shade).astype(np.uint8)) == pytest.approx(sharpness(image.astype(np.uint8)), rel=0.1)


def test_sharpness_is_the_ratio_that_its_definition_says() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(128, 20, (160, 160)).round().clip(0, 255).astype(np.uint8)
    assert sharpness(np.stack([noise] * 3, axis=-1)) == pytest.approx(20, rel=0.05)  # 4² + 4·1² times the variance


def test_brightness_contrast_and_clipped_shares() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    image[:, :30], image[:, 30:50] = 255, 128
    quality = measure_quality(image)
    assert (quality.overexposed, quality.underexposed) == (pytest.approx(0.3), pytest.approx(0.5))
    assert quality.brightness == pytest.approx(0.3 + 0.2 * 128 / 255)
    assert quality.contrast == pytest.approx(1)
    assert (quality.width_px, quality.height_px) == (100, 100)


@pytest.mark.parametrize(("factor", "offset", "flag"), [(0.1, 0, "underexposed"), (0.3, 220, "overexposed")])
def test_wrong_exposure_is_flagged(factor: float, offset: float, flag: str) -> None:
    assert flag in raised((photograph().astype(float) * factor + offset).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("level", [3, 128, 250])
def test_a_picture_of_nothing_is_near_constant_and_not_called_blurred(level: int) -> None:
    image = np.random.default_rng(0).normal(level, 0.8, (100, 120, 3)).clip(0, 255).astype(np.uint8)
    assert near_constant(measure_quality(image), CONFIG)
    assert {"near-constant"} <= set(raised(image)) <= {"near-constant", "underexposed", "overexposed"}


def test_a_small_picture_is_flagged() -> None:
    assert raised(photograph(size_px=(200, 50))) == ("small",)
    assert "small" in raised(np.zeros((1, 1, 3), np.uint8))


@pytest.mark.parametrize("quality", [None, 90, 70])
def test_a_screenshot_is_flagged_as_it_is_and_as_jpeg(quality: int | None, tmp_path) -> None:
    picture = screenshot()
    if quality:
        Image.fromarray(picture).save(tmp_path / "screen.jpg", quality=quality)
        picture = np.asarray(Image.open(tmp_path / "screen.jpg"))
    assert "screenshot" in raised(picture)


@pytest.mark.parametrize("name", PHOTOGRAPHS[:3])
@pytest.mark.parametrize("angle_deg", [0, 2, -2])
@pytest.mark.parametrize("upright", [False, True])
def test_a_ruler_is_found_along_both_sides_and_slightly_askew(name: str, angle_deg: float, upright: bool) -> None:
    assert "ruler" in raised(with_ruler(photograph(name), angle_deg=angle_deg, upright=upright))


@pytest.mark.parametrize("name", ["brick", "grass", "gravel"])
def test_a_texture_is_no_ruler(name: str) -> None:
    assert "ruler" not in raised(photograph(name))


def test_a_striped_cloth_is_no_ruler() -> None:
    stripes = (128 + 60 * np.sin(np.arange(512) / 2)).astype(np.uint8)
    assert measure_quality(np.broadcast_to(stripes[:, None], (512, 512, 3)).swapaxes(0, 1).copy()).ruler == 0


@pytest.mark.parametrize(
    ("ita_deg", "tone"),
    [(70, "very light"), (55, "light"), (42, "light"), (41, "intermediate"), (20, "tan"), (0, "brown"), (-30, "dark"), (-60, "dark")],
)
def test_skin_tones_by_chardons_bounds(ita_deg: float, tone: str) -> None:
    assert skin_tone(ita_deg) == tone


@pytest.mark.parametrize("ita_deg", [55, 33, 10, -10, -50])
def test_the_angle_of_a_known_colour_is_found_and_only_of_the_pixels_meant(ita_deg: float) -> None:
    image = np.full((200, 300, 3), (20, 60, 200), np.uint8)
    skin = np.zeros((200, 300), bool)
    skin[50:150, 100:200] = True
    image[skin] = (lab2rgb([50 + 15 * np.tan(np.radians(ita_deg)), 10, 15]) * 255).round()
    assert measure_ita(image, skin) == pytest.approx(ita_deg, abs=1)
    assert measure_quality(image, skin=skin).ita_deg == pytest.approx(ita_deg, abs=1)


def test_the_angle_is_that_of_scikit_images_lab() -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3)).astype(np.uint8)
    lightness, _, yellow = np.moveaxis(rgb2lab(image), -1, 0)
    usable = yellow > 0.5
    expected = np.degrees(np.median(np.arctan((lightness[usable] - 50) / yellow[usable])))
    assert measure_ita(image) == pytest.approx(expected, abs=0.01)


def test_a_picture_without_yellow_has_no_angle_and_no_tone() -> None:
    grey = np.full((20, 20, 3), 90, np.uint8)
    assert np.isnan(measure_ita(grey))
    assert np.isnan(measure_ita(grey, np.zeros((20, 20), bool)))
    assert skin_tone(measure_ita(grey)) is None


def test_stained_tissue_is_no_ink() -> None:
    assert pen_share(data.immunohistochemistry()) < 0.01
    haematoxylin, eosin = np.array([0.65, 0.70, 0.29]), np.array([0.07, 0.99, 0.11])
    h = np.random.default_rng(0).uniform(0, 1.2, (128, 128, 2))
    stained = (255 * 10 ** -(h[..., :1] * haematoxylin + h[..., 1:] * eosin)).astype(np.uint8)
    assert pen_share(stained) < 0.01


@pytest.mark.parametrize("seed", range(6))  # the ink is blue, green or black
def test_ink_over_tissue_is_found_by_its_area(seed: int) -> None:
    tissue = data.immunohistochemistry()
    painted = paint_anomalies(
        tissue,
        np.ones(tissue.shape[:2], bool),
        findings=["pen"],
        size_px=(200, 300),
        rng=np.random.default_rng(seed),
        foreign=data.brick(),
    )
    assert pen_share(painted.image) == pytest.approx(painted.mask.mean(), rel=0.35)


@pytest.mark.parametrize("ink", [(40, 70, 180), (30, 130, 70), (25, 25, 28), (215, 40, 45)])
def test_ink_on_glass_is_found_in_four_colours(ink: tuple[int, int, int]) -> None:
    tile = np.full((256, 256, 3), 243, np.uint8)
    tile[:128] = ink
    assert pen_share(tile) == pytest.approx(0.5)
    assert "pen" in raised(tile, checks=TILE_CHECKS)


def test_only_the_checks_that_are_asked_for_are_raised() -> None:
    worst = dataclasses.replace(
        measure_quality(photograph()),
        width_px=3,
        contrast=0.5,
        sharpness=0,
        brightness=0,
        overexposed=1,
        flat_share=1,
        line_share=1,
        ruler=1,
        pen_share=1,
    )
    assert flags(worst, CONFIG) == ("small", "blurred", "underexposed", "overexposed", "screenshot", "ruler")
    assert flags(worst, QualityConfig(checks=TILE_CHECKS)) == ("small", "blurred", "pen")
    assert flags(worst, QualityConfig(checks=RADIOGRAPH_CHECKS)) == ("small",)
    assert flags(worst, QualityConfig(checks=())) == ()
    assert "pen" not in PHOTOGRAPH_CHECKS


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (400, 1), (2, 2), (17, 300), (600, 3)])
def test_odd_shapes_are_measured_without_complaint(shape: tuple[int, int]) -> None:
    quality = measure_quality(np.full((*shape, 3), 100, np.uint8))
    assert (quality.height_px, quality.width_px) == shape
    assert quality.contrast == 0


@pytest.mark.parametrize(
    "image", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3)), np.zeros((0, 9, 3), np.uint8), np.zeros((9, 9, 4), np.uint8)]
)
def test_what_is_no_picture_is_refused(image: np.ndarray) -> None:
    for measure in (measure_quality, sharpness, measure_ita, pen_share):
        with pytest.raises(ValueError, match="expected a picture"):
            measure(image)


def test_a_skin_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="skin mask"):
        measure_quality(photograph(), skin=np.ones((3, 3), bool))


def test_an_unknown_key_or_check_is_refused() -> None:
    with pytest.raises(ValidationError, match="sharpness"):
        QualityConfig(sharpness=1)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="checks"):
        QualityConfig(checks=("ugly",))  # type: ignore[arg-type]


def test_ink_is_told_as_by_numpy_in_single_precision() -> None:
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), -1)
    densities = -np.log((np.moveaxis(colours, -1, 0).astype(np.float32) + 1) / 256)
    total = densities.sum(axis=0)
    red, green, blue = densities / np.maximum(total, 1e-6)
    evenness = np.ptp([red, green, blue], axis=0)
    tinted = ((red > 1.2 * green) & (total > 1.0)) | ((red > green) & (total > 2.5)) | ((red < 0.12) & (blue > 0.36) & (total > 1.8))
    wanted = tinted | ((evenness < 0.08) & (total > 3.2)) | ((evenness < 0.125) & (total > 4))
    assert (ink_mask(colours) == wanted).mean() > 0.9999  # but for rounding
    assert 0.1 < wanted.mean() < 0.9
