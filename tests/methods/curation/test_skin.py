from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import ndimage
from skimage.color import lab2rgb

from methods.curation.skin import SkinConfig, cut_patches, draw_patches, find_skin

CONFIG = SkinConfig(side_px=70)
TONES = {  # ITA in degrees, b*, a*: Fitzpatrick I to VI
    "I": (55, 14, 9.0),
    "II": (45, 16, 9.5),
    "III": (33, 18, 10.5),
    "IV": (18, 19, 11.0),
    "V": (-10, 17, 11.0),
    "VI": (-50, 10, 8.5),
}
CLOTHS = {"blue": (0.05, 0.1, 0.35), "white": (0.75, 0.75, 0.73), "beige": (0.62, 0.5, 0.34), "black": (0.02, 0.02, 0.022)}  # linear light
WALLS = {"grey": (0.35, 0.35, 0.35), "blue": (0.2, 0.35, 0.55), "wood": (0.42, 0.24, 0.1), "white": (0.8, 0.8, 0.78)}


class Body(NamedTuple):
    photograph: np.ndarray
    skin: np.ndarray
    lesions: np.ndarray


def linear(srgb: np.ndarray) -> np.ndarray:
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def to_bytes(light: np.ndarray) -> np.ndarray:
    light = light.clip(0, 1)
    return (np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255).round().astype(np.uint8)


def skin_colour(tone: str) -> np.ndarray:
    ita, b, a = TONES[tone]
    return linear(lab2rgb(np.array([50 + b * np.tan(np.radians(ita)), a, b])))


def field(shape: tuple[int, int], sigma: tuple[float, float], amplitude: float, rng: np.random.Generator) -> np.ndarray:
    noise = ndimage.gaussian_filter(rng.normal(size=shape), sigma)
    return (1 + amplitude * noise / noise.std())[..., None]


def body(
    tone: str = "III",
    *,
    wall: str = "grey",
    cloth: str = "blue",
    light: tuple[float, float, float] = (1, 1, 1),
    exposure: float = 1.0,
) -> Body:
    """A back with arms, a strap, trousers, hair and three lesions, shaded like cylinders; (600, 420, 3)."""
    rng, shape = np.random.default_rng(0), (600, 420)
    v, u = np.mgrid[0:600, 0:420] / np.array([600, 420])[:, None, None] - np.array([0, 0.5])[:, None, None]
    half = np.interp(v, [0, 0.06, 0.14, 0.17, 0.22, 0.3, 0.55, 0.75, 1], [0, 0.09, 0.085, 0.1, 0.26, 0.27, 0.215, 0.25, 0.26])
    centre = 0.345 + 0.03 * np.maximum(v - 0.25, 0)
    trunk, arms = (np.abs(u) < half) & (v > 0.02), (np.abs(np.abs(u) - centre) < 0.052) & (v > 0.23)
    hair, clothed = trunk & (v < 0.1), trunk & ((v > 0.8) | (np.abs(v - 0.36) < 0.012))
    skin = (trunk | arms) & ~hair & ~clothed
    across = np.where(arms, (np.abs(u) - centre) / 0.056, u / np.maximum(half, 1e-3) * 0.95)
    shading = ((0.35 + 0.65 * np.sqrt((1 - across**2).clip(0.02))) * (0.85 + 0.3 * u))[..., None]

    albedo = skin_colour(tone) * field(shape, (12, 12), 0.05, rng) * field(shape, (1, 1), 0.02, rng)
    albedo[..., 1:2] *= field(shape, (25, 25), 0.04, rng)  # redness
    lesions = np.zeros(shape, bool)
    for y, x, radius, colour in (
        (0.42, -0.08, 0.035, (0.55, 0.35, 0.28)),
        (0.6, 0.1, 0.02, (0.35, 0.3, 0.3)),
        (0.5, 0.02, 0.045, (1, 0.62, 0.62)),
    ):
        inside = ((v - y) * 600 / 420) ** 2 + (u - x) ** 2 < radius**2
        albedo[inside] *= colour
        lesions |= inside
    weave = 1 + 0.18 * (np.sin(1.6 * 420 * u) * np.sin(1.6 * 600 * v))[..., None]
    grain = field(shape, (60, 2), 0.1, rng) if wall == "wood" else 1.0

    scene = np.array(WALLS[wall]) * grain * (1 - 0.25 * np.hypot(u, v - 0.5))[..., None]
    for mask, surface in ((skin, albedo), (clothed, (skin_colour(tone) if cloth == "nude" else np.array(CLOTHS[cloth])) * weave)):
        scene[mask] = (surface * shading)[mask]
    scene[hair] = 0.015
    scene = ndimage.gaussian_filter(scene, (0.6, 0.6, 0)) * np.array(light) * exposure
    return Body(to_bytes(scene + rng.normal(0, 0.004, scene.shape)), skin, lesions)


def assert_found(scene: Body, *, least_recall: float = 0.88, least_precision: float = 0.97) -> None:
    found = find_skin(scene.photograph, CONFIG)
    assert found.shape == scene.skin.shape
    assert (found & scene.skin).sum() / scene.skin.sum() > least_recall
    assert (found & scene.skin).sum() / found.sum() > least_precision
    assert found[scene.lesions].mean() > 0.99  # lesions are skin, whatever their colour


@pytest.mark.parametrize("tone", TONES)
@pytest.mark.parametrize(("wall", "cloth"), [("grey", "blue"), ("blue", "white"), ("wood", "black"), ("white", "beige"), ("wood", "beige")])
def test_skin_of_every_tone_is_found_with_its_lesions_and_without_cloth_and_wall(tone: str, wall: str, cloth: str) -> None:
    assert_found(body(tone, wall=wall, cloth=cloth))


@pytest.mark.parametrize(
    ("tone", "light", "exposure"),
    [
        ("I", (1.06, 1, 0.86), 1.1),
        ("II", (0.85, 1, 1.2), 1.2),
        ("IV", (1.15, 1, 0.75), 0.6),
        ("V", (0.85, 1, 1.2), 0.8),
        ("VI", (1.15, 1, 0.75), 0.45),
    ],
)
def test_skin_is_found_in_warm_and_cold_light_bright_or_dim(tone: str, light: tuple[float, float, float], exposure: float) -> None:
    assert_found(body(tone, light=light, exposure=exposure))


def test_cloth_of_the_very_colour_of_the_skin_is_taken_for_skin() -> None:
    scene = body("III", cloth="nude")  # known to fail: nothing but the source's word or a person can tell
    assert find_skin(scene.photograph, CONFIG)[~scene.skin].mean() > 0.1


@pytest.mark.parametrize("colour", [(128, 128, 128), (40, 60, 160), (250, 250, 250), (0, 0, 0)])
def test_a_photograph_without_skin_has_none(colour: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    photograph = (np.array(colour) + rng.normal(0, 3, (120, 90, 3))).clip(0, 255).astype(np.uint8)
    assert not find_skin(photograph, CONFIG).any()


def test_a_close_up_of_skin_alone_is_all_skin() -> None:
    close_up = np.ascontiguousarray(body("IV").photograph[275:460, 140:280])  # its red lesion is a twentieth of it
    assert find_skin(close_up, SkinConfig(largest_hole_share=0.1)).mean() > 0.99


def test_the_gap_between_arm_and_trunk_is_no_lesion() -> None:
    scene = body("III")
    photograph, gap = scene.photograph.copy(), np.zeros(scene.skin.shape, bool)
    gap[300:360, 195:235] = True  # as large as a large lesion, and the wall shows through
    photograph[gap] = photograph[100:160, 20:60].reshape(-1, 3)
    assert find_skin(photograph, CONFIG)[gap].mean() < 0.2  # its rim is blurred


def test_the_same_photograph_gives_the_same_skin() -> None:
    photograph = body().photograph
    np.testing.assert_array_equal(find_skin(photograph, CONFIG), find_skin(photograph, CONFIG))


@pytest.mark.parametrize(
    "photograph", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3)), np.zeros((0, 9, 3), np.uint8)]
)
def test_what_is_no_photograph_is_refused(photograph: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected a photograph"):
        find_skin(photograph, CONFIG)


def test_patches_lie_on_skin_and_rejected_ones_say_why() -> None:
    scene = body()
    patches = cut_patches(scene.skin, config=CONFIG)
    kept = [patch for patch in patches if patch.kept]
    assert len(kept) >= 9
    for patch in patches:
        inside = scene.skin[patch.y_px : patch.y_px + patch.height_px, patch.x_px : patch.x_px + patch.width_px]
        assert patch.skin_share == pytest.approx(inside.mean())
        assert patch.kept == (inside.shape == (70, 70) and inside.mean() >= CONFIG.least_skin_share)
    assert all(patch.reason.endswith("% skin") or patch.reason.startswith("at the edge") for patch in patches if patch.reason is not None)
    assert {patch.reason is None for patch in patches} == {True, False}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), side=st.integers(8, 40), overlap=st.sampled_from([0.0, 0.25, 0.5]))
def test_kept_patches_overlap_by_no_more_than_is_allowed_and_lie_inside(seed: int, side: int, overlap: float) -> None:
    mask = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(90, 120)), 12) > 0
    config = SkinConfig(side_px=side, overlap=overlap, least_skin_share=0.9)
    kept = [patch for patch in cut_patches(mask, config=config) if patch.kept]
    step = max(round(side * (1 - overlap)), 1)
    for i, a in enumerate(kept):
        assert (a.width_px, a.height_px) == (side, side)
        assert 0 <= a.x_px <= 120 - side
        assert 0 <= a.y_px <= 90 - side
        assert all(abs(a.x_px - b.x_px) >= step or abs(a.y_px - b.y_px) >= step for b in kept[:i])


def test_no_fixed_grid_holds_more_patches_in_rows_over_a_staircase_of_skin() -> None:
    mask = np.zeros((200, 260), bool)
    for row in range(4):
        mask[3 + 50 * row : 47 + 50 * row, 13 + 9 * row : 213 + 9 * row] = True  # each row a bit to the right, gaps between
    config = SkinConfig(side_px=40, least_skin_share=1.0)
    grids = [
        sum(
            mask[y : y + 40, x : x + 40].mean() == 1 and y + 40 <= 200 and x + 40 <= 260
            for y in range(dy, 200, 40)
            for x in range(dx, 260, 40)
        )
        for dy in range(40)
        for dx in range(40)
    ]
    found = sum(patch.kept for patch in cut_patches(mask, config=config))
    assert found == 20 > max(grids)


def test_a_known_scale_gives_patches_of_one_physical_size() -> None:
    mask = np.ones((400, 400), bool)
    config = SkinConfig(side_mm=50)
    sides = [{patch.width_px for patch in cut_patches(mask, config=config, mm_per_px=scale) if patch.kept} for scale in (0.5, 1.0)]
    assert sides == [{100}, {50}]


def test_patches_keep_away_from_the_edge_when_asked() -> None:
    mask = np.ones((300, 300), bool)
    kept = [patch for patch in cut_patches(mask, config=SkinConfig(side_px=100, edge_share=0.2)) if patch.kept]
    assert kept
    assert all(min(p.x_px, p.y_px, 200 - p.x_px, 200 - p.y_px) >= 20 for p in kept)


def test_a_blurred_patch_is_rejected_where_sharpness_is_asked_for() -> None:
    rng = np.random.default_rng(0)
    photograph = rng.integers(0, 255, (100, 200, 3)).astype(np.uint8)
    photograph[:, 100:] = ndimage.gaussian_filter(photograph[:, 100:].astype(float), (4, 4, 0)).astype(np.uint8)
    config = SkinConfig(side_px=100, least_sharpness=0.5)
    patches = cut_patches(np.ones((100, 200), bool), config=config, photograph=photograph)
    assert [patch.reason for patch in patches] == [None, "blurred"]
    with pytest.raises(ValueError, match="needs the photograph"):
        cut_patches(np.ones((100, 200), bool), config=config)


def test_no_skin_gives_no_patches_and_a_small_photograph_says_so() -> None:
    assert cut_patches(np.zeros((300, 300), bool), config=CONFIG) == ()
    assert cut_patches(np.zeros((30, 30), bool), config=CONFIG) == ()
    (patch,) = cut_patches(np.ones((30, 300), bool), config=CONFIG)
    assert patch.reason == "the photograph is smaller than a patch of 70 px"


def test_a_wrong_mask_or_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a mask"):
        cut_patches(np.ones((9, 9)), config=CONFIG)
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="scale"):
            cut_patches(np.ones((9, 9), bool), config=CONFIG, mm_per_px=scale)


def test_the_preview_shows_kept_patches_green_rejected_ones_red_and_the_rest_as_it_was() -> None:
    scene = body()
    patches = cut_patches(scene.skin, config=CONFIG)
    preview = draw_patches(scene.photograph, scene.skin, patches)
    assert preview.shape == scene.photograph.shape
    kept = next(patch for patch in patches if patch.kept)
    rejected = [patch for patch in patches if not patch.kept]
    assert tuple(preview[kept.y_px, kept.x_px]) == (0, 200, 0)
    assert (preview == (225, 40, 40)).all(axis=-1).sum() > 20 * len(rejected)
    far = ~scene.skin & (preview == scene.photograph).all(axis=-1)
    assert far[:40, :60].all()


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(ValidationError, match="side"):
        SkinConfig(side=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("site", "word"),
    [
        ("head/neck", "head"),
        ("Head and neck:Face", "head, face"),
        ("HAND", "hand"),
        ("palms/soles", "palms, soles"),
        ("Lower extremity:Left foot", "foot"),
    ],
)
def test_head_hands_and_feet_are_left_out_in_any_words_of_a_source(site: str, word: str) -> None:
    assert SkinConfig().leave_out(site) == f"site left out: {site} (curation.skin.sites_left_out: {word})"


@pytest.mark.parametrize("site", [None, "", "posterior torso", "Trunk:Posterior trunk", "forehead", "handle", "footprint"])
def test_other_sites_are_cut_and_words_count_whole(site: str | None) -> None:
    assert SkinConfig().leave_out(site) is None


def test_sites_of_several_words_are_left_out_where_they_stand_together() -> None:
    config = SkinConfig(sites_left_out=("Lower leg",))
    assert config.leave_out("left lower leg") is not None
    assert config.leave_out("lower back:leg") is None
