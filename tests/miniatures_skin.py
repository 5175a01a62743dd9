"""Miniatures of the dermatology data sets in the layout in which they are downloaded, with generated pictures that can be curated.

Every writer fills `folder` with a clean download and returns it; tests spoil it themselves. Equal seeds give equal files.
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom

Picture = NDArray[np.uint8]  # (H, W, 3) RGB
Mask = NDArray[np.bool_]  # (H, W)

SKIN_TONES = ((243, 214, 197), (232, 190, 167), (208, 158, 128), (172, 120, 90), (121, 80, 58), (86, 56, 42))
ISIC_2018_CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
BURGERT_CLASSES = (
    "Acne_Vulgaris",
    "Allergic_Contact_Dermatitis",
    "Eczema",
    "Erythema_Annulare_Centrifigum",  # the data set's own spelling
    "Erythema_Multiforme",
    "Factitial_Dermatitis",
    "Guttate_Psoriasis",
    "Psoriasis",
    "Tinea_Corporis",
)


def skin(rng: np.random.Generator, height_px: int, width_px: int, *, tone: Sequence[int] | None = None) -> Picture:
    """Bare skin: a tone, uneven light, mottling, fine relief and the camera's noise."""
    base = np.asarray(SKIN_TONES[rng.integers(len(SKIN_TONES))] if tone is None else tone, float)
    y, x = np.mgrid[-1 : 1 : height_px * 1j, -1 : 1 : width_px * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 + rng.uniform(0.04, 0.12) * (x * np.cos(angle) + y * np.sin(angle)) - 0.05 * (x**2 + y**2)
    mottling = 0.035 * _noise(rng, height_px, width_px, grain_px=max(min(height_px, width_px) / 12, 2))
    relief = 0.02 * _noise(rng, height_px, width_px, grain_px=2)
    image = base * (light + mottling + relief)[..., None] * (1 + 0.2 * mottling[..., None] * np.array((1, -1, -1)))
    return _as_bytes(image + rng.normal(0, 1.5, image.shape))


def skin_with_lesion(
    rng: np.random.Generator, height_px: int, width_px: int, *, tone: Sequence[int] | None = None, colour: Sequence[int] | None = None
) -> tuple[Picture, Mask]:
    """Skin with one lesion, an ellipse with an uneven rim, in the middle; and where it is."""
    image = skin(rng, height_px, width_px, tone=tone)
    size = min(height_px, width_px)
    mask = _ellipse(
        rng,
        height_px,
        width_px,
        centre=(height_px * rng.uniform(0.42, 0.58), width_px * rng.uniform(0.42, 0.58)),
        axes=(size * rng.uniform(0.16, 0.28), size * rng.uniform(0.2, 0.34)),
    )
    return _paint(rng, image, mask, colour or (96, 58, 44)), mask


def skin_with_rash(rng: np.random.Generator, height_px: int, width_px: int) -> tuple[Picture, Mask]:
    """Skin with several red plaques, some of them scaly; and where they are."""
    image, mask = skin(rng, height_px, width_px, tone=SKIN_TONES[rng.integers(4)]), np.zeros((height_px, width_px), bool)
    size = min(height_px, width_px)
    for _ in range(rng.integers(3, 9)):
        plaque = _ellipse(
            rng,
            height_px,
            width_px,
            centre=(rng.uniform(0.1, 0.9) * height_px, rng.uniform(0.1, 0.9) * width_px),
            axes=(size * rng.uniform(0.05, 0.16), size * rng.uniform(0.05, 0.16)),
        )
        image, mask = _paint(rng, image, plaque, (190 - rng.integers(40), 80, 78)), mask | plaque
    scales = mask & (_noise(rng, height_px, width_px, grain_px=2) > 1.6)
    image[scales] = (232, 220, 214)
    return image, mask


def body_photograph(
    rng: np.random.Generator, *, height_px: int = 1200, width_px: int = 1600, abnormal: bool = False
) -> tuple[Picture, Mask, Mask]:
    """A total body photograph of a posterior torso: picture, bare skin, and what is abnormal on it (a scar and the print of a strap).

    The back, arms hanging down and neck stand before a plain wall; hair is at the top, trousers at the bottom, moles on the back. Clothing,
    hair and wall are not skin.
    """
    v, u = np.mgrid[0 : 1 : height_px * 1j, -0.5 * width_px / height_px : 0.5 * width_px / height_px : width_px * 1j]  # both in heights
    wall = np.asarray(((150, 160, 172), (96, 112, 130), (188, 190, 186))[rng.integers(3)], float)
    image = _as_bytes(wall * (1 + 0.06 * u[..., None] - 0.05 * v[..., None]) + rng.normal(0, 1.5, (height_px, width_px, 3)))
    waist, shoulders = rng.uniform(0.22, 0.26), rng.uniform(0.36, 0.42)
    half_width = np.interp(v, (0.16, 0.24, 0.3, 0.75, 1), (0.1, shoulders * 0.8, shoulders, waist, waist * 1.15))
    torso = (np.abs(u) < half_width) & (v > 0.16)
    arms = (np.abs(np.abs(u) - np.interp(v, (0.25, 0.95), (shoulders - 0.02, shoulders + 0.1))) < 0.06) & (v > 0.25) & (v < 0.95)
    neck, head = (np.abs(u) < 0.075) & (v > 0.08) & (v < 0.2), (u / 0.12) ** 2 + ((v - 0.02) / 0.13) ** 2 < 1
    trousers = (np.abs(u) < half_width + 0.015) & (v > rng.uniform(0.84, 0.9) + 0.01 * np.sin(9 * u))
    bare = (torso | arms | neck) & ~head & ~trousers
    bare_image = skin(rng, height_px, width_px, tone=SKIN_TONES[rng.integers(4)])
    image[bare] = bare_image[bare]
    spine = bare & (np.abs(u - 0.004 * np.sin(20 * v)) < 0.012) & torso
    image[spine] = _as_bytes(image[spine] * 0.94)
    image[head] = _as_bytes(np.array((52, 40, 34)) * (1 + 0.15 * _noise(rng, height_px, width_px, grain_px=3)[head, None]))
    image[trousers] = _as_bytes(
        np.array(((38, 48, 84), (40, 42, 46), (70, 84, 70))[rng.integers(3)])
        * (1 + 0.1 * _noise(rng, height_px, width_px, grain_px=4)[trousers, None])
    )
    inner = bare & torso & (v > 0.3) & (v < 0.8) & (np.abs(u) < waist * 0.85)
    image = _with_moles(rng, image, inner)
    return _with_marks(rng, image, bare, inner, u, v, abnormal=abnormal)


def hand_photograph(
    rng: np.random.Generator, *, height_px: int = 240, width_px: int = 320, tone: Sequence[int] | None = None, jewellery: bool = False
) -> tuple[Picture, Mask, Mask]:
    """A hand with spread fingers on white: picture, hand, and where a ring (and sometimes a bracelet) is."""
    v, u = np.mgrid[0 : 1 : height_px * 1j, -0.5 * width_px / height_px : 0.5 * width_px / height_px : width_px * 1j]
    hand = ((u / 0.17) ** 2 + ((v - 0.66) / 0.2) ** 2 < 1) | ((np.abs(u) < 0.11) & (v > 0.7))
    fingers = []
    for angle, length in zip(np.radians((-58, -20, -4, 12, 30)) + rng.normal(0, 0.03, 5), (0.3, 0.42, 0.46, 0.42, 0.34), strict=True):
        along, across = u * np.sin(angle) - (v - 0.62) * np.cos(angle), u * np.cos(angle) + (v - 0.62) * np.sin(angle)
        fingers.append((along, (np.abs(across) < 0.036 - 0.01 * along / length) & (along > 0.1) & (along < length)))
        hand |= fingers[-1][1]
    image = _as_bytes(246 - 6 * v[..., None] + rng.normal(0, 1.2, (height_px, width_px, 3)))
    image[hand] = skin(rng, height_px, width_px, tone=tone or SKIN_TONES[rng.integers(5)])[hand]
    jewels = np.zeros_like(hand)
    if jewellery:
        along, finger = fingers[rng.integers(1, 5)]
        jewels |= finger & (np.abs(along - 0.24) < 0.014)
        if rng.random() < 0.4:
            jewels |= hand & (np.abs(v - 0.9) < 0.02)
        metal = np.asarray(((212, 175, 70), (190, 192, 198))[rng.integers(2)], float)
        image[jewels] = _as_bytes(metal * rng.uniform(0.75, 1.2, (int(jewels.sum()), 1)))
    return image, hand, jewels


def write_isic_archive(
    folder: Path,
    *,
    photographs: int = 3,
    abnormal: int = 1,
    dermoscopic: int = 3,
    newer_table: bool = True,
    width_px: int = 1600,
    seed: int = 0,
) -> Path:
    """`isic image download`: total body photographs (the last `abnormal` of them with a scar) and dermoscopic pictures of two patients.

    `newer_table`: diagnosis_1 … 5 and anatom_site_1 … 5, else benign_malignant, diagnosis, anatom_site_general and anatom_site_special.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(photographs + dermoscopic):
        rng, name, is_photograph = np.random.default_rng([seed, number]), f"ISIC_{number + 9000000:07d}", number < photographs
        if is_photograph:
            image = body_photograph(rng, height_px=width_px * 3 // 4, width_px=width_px, abnormal=number >= photographs - abnormal)[0]
        else:
            image = skin_with_lesion(rng, 144, 192)[0]
        _write_jpeg(folder / f"{name}.jpg", image)
        rows.append(_isic_row(name, number, is_photograph, newer=newer_table))
    _write_csv(folder / "metadata.csv", list(rows[0]), [list(row.values()) for row in rows])
    (folder / "attribution.txt").write_text("ViDIR Group, Department of Dermatology, Medical University of Vienna")
    (folder / "licenses").mkdir()
    (folder / "licenses" / "CC-BY.txt").write_text("Creative Commons Attribution 4.0 International\n")
    return folder


def write_sd198(folder: Path, *, classes: Sequence[str] = (*BURGERT_CLASSES, "Onychomycosis"), pictures: int = 2, seed: int = 0) -> Path:
    """`pictures` photographs of each class, the lists of the archive and one fold of the published 80:20 split."""
    paths = []
    for label, class_name in enumerate(classes):
        (folder / "images" / class_name).mkdir(parents=True)
        for number in range(pictures):
            rng = np.random.default_rng([seed, label, number])
            paths.append(f"{class_name}/{label:03d}{number:03d}VB.jpg")
            _write_jpeg(folder / "images" / paths[-1], skin_with_rash(rng, 150, 200)[0])
    class_of = [list(classes).index(path.split("/")[0]) for path in paths]
    _write_lines(folder / "classes.txt", (f"{number} {name}" for number, name in enumerate(classes, start=1)))
    _write_lines(folder / "images.txt", (f"{number} {path}" for number, path in enumerate(paths, start=1)))
    _write_lines(folder / "image_class_labels.txt", (f"{number} {label + 1}" for number, label in enumerate(class_of, start=1)))
    held_out = {path for number, path in enumerate(paths) if number % 5 == 4}
    (folder / "8_2_split").mkdir()
    for file, part in (("train_0.txt", set(paths) - held_out), ("val_0.txt", held_out)):
        _write_lines(folder / "8_2_split" / file, (f"{path} {label}" for path, label in zip(paths, class_of, strict=True) if path in part))
    return folder


def write_arsenic_skin(folder: Path, *, not_infected: int = 4, infected: int = 4, seed: int = 0) -> Path:
    """The originals in folders spelt as they are published, and one augmented copy of each."""
    for label, (original, augmented, count) in enumerate(
        (("not_infacted", "not_infected", not_infected), ("infacted", "infected", infected))
    ):
        (folder / "Original" / original).mkdir(parents=True)
        (folder / "Augmented" / augmented).mkdir(parents=True)
        for number in range(count):
            rng, name = np.random.default_rng([seed, label, number]), f"IMG_{1180 + number}"
            tone = SKIN_TONES[rng.integers(2, 5)]
            image = skin_with_rash(rng, 200, 150)[0] if label else skin(rng, 200, 150, tone=tone)
            _write_jpeg(folder / "Original" / original / f"{name}.jpg", image)
            Image.fromarray(image[:, ::-1]).save(folder / "Augmented" / augmented / f"{name}_augmented_1.png")
    return folder


def write_isic2018(folder: Path, *, lesions: dict[str, int] | None = None, pictures_of_first: int = 2, seed: int = 0) -> Path:
    """Task 3, training: so many lesions a class (two of each where not said); of the first of a class `pictures_of_first` pictures."""
    pictures, groupings, truth = folder / "ISIC2018_Task3_Training_Input", [], []
    pictures.mkdir(parents=True)
    for class_name, count in (lesions or dict.fromkeys(ISIC_2018_CLASSES, 2)).items():
        for number in range(count):
            for view in range(pictures_of_first if number == 0 else 1):
                name, lesion = f"ISIC_{24306 + len(truth):07d}", f"HAM_{ISIC_2018_CLASSES.index(class_name) * 1000 + number:07d}"
                rng = np.random.default_rng([seed, ISIC_2018_CLASSES.index(class_name), number])  # one lesion looks the same in every view
                image = np.roll(_lesion_of(rng, class_name), 3 * view, axis=1)
                _write_jpeg(pictures / f"{name}.jpg", image)
                truth.append([name, *(f"{float(class_name == other)}" for other in ISIC_2018_CLASSES)])
                groupings.append([name, lesion, "histopathology" if class_name != "NV" else "serial imaging showing no change"])
    _write_lines(pictures / "ATTRIBUTION.txt", ["HAM10000 dataset: (c) by ViDIR Group, Medical University of Vienna"])
    _write_csv(
        folder / "ISIC2018_Task3_Training_GroundTruth" / "ISIC2018_Task3_Training_GroundTruth.csv", ["image", *ISIC_2018_CLASSES], truth
    )
    _write_csv(folder / "ISIC2018_Task3_Training_LesionGroupings.csv", ["image", "lesion_id", "diagnosis_confirm_type"], groupings)
    return folder


def write_isic2020(folder: Path, *, patients: int = 4, pictures: int = 3, malignant: int = 1, duplicates: int = 1, seed: int = 0) -> Path:
    """Version 2 of the table: `pictures` of each patient, the first `malignant` melanomas; the last `duplicates` repeat the first ones."""
    (folder / "train").mkdir(parents=True)
    rows, names = [], [f"ISIC_{2637011 + number:07d}" for number in range(patients * pictures)]
    original_of = dict(zip(names[len(names) - duplicates :], names, strict=False))
    for number, name in enumerate(names):
        shown = names.index(original_of.get(name, name))
        rng = np.random.default_rng([seed, shown])
        image = skin_with_lesion(rng, 144, 192, colour=(60, 40, 42) if shown < malignant else None)[0]
        _write_jpeg(folder / "train" / f"{name}.jpg", image, quality=80 if name in original_of else 92)
        diagnosis = "melanoma" if shown < malignant else ("nevus", "unknown", "seborrheic keratosis")[number % 3]
        status = ("malignant", 1) if shown < malignant else ("benign", 0)
        patient = shown // pictures
        site = ("torso", "lower extremity", "")[number % 3]
        rows.append(
            [name, f"IP_{7279968 + patient}", f"IL_{shown + 2084000}", "male" if patient % 2 else "female", 45, site, diagnosis, *status]
        )
    columns = [
        "image_name",
        "patient_id",
        "lesion_id",
        "sex",
        "age_approx",
        "anatom_site_general_challenge",
        "diagnosis",
        "benign_malignant",
        "target",
    ]
    _write_csv(folder / "ISIC_2020_Training_GroundTruth_v2.csv", columns, rows)
    _write_csv(
        folder / "ISIC_2020_Training_Duplicates.csv", ["image_name_1", "image_name_2"], [[old, new] for new, old in original_of.items()]
    )
    return folder


def write_hands(folder: Path, *, people: int = 4, pictures: int = 4, seed: int = 0) -> Path:
    """Every person's hands from both sides; the last picture of each with jewellery and its mask; the second person wears nail polish."""
    (folder / "Hands").mkdir(parents=True)
    (folder / "masks").mkdir()
    rows = []
    for person in range(people):
        colour = ("very fair", "fair", "medium", "dark")[person % 4]
        for number in range(pictures):
            rng, name = np.random.default_rng([seed, person, number]), f"Hand_{person * 100 + number + 2:07d}"
            jewels = number == pictures - 1
            image, _, mask = hand_photograph(rng, tone=SKIN_TONES[(0, 1, 2, 4)[person % 4]], jewellery=jewels)
            _write_jpeg(folder / "Hands" / f"{name}.jpg", image)
            if jewels:
                Image.fromarray(mask).save(folder / "masks" / f"{name}.png")
            aspect = ("dorsal right", "dorsal left", "palmar right", "palmar left")[number % 4]
            polish, irregular = int(person == 1), int(person == 2 and number == 0)
            rows.append([f"{person:07d}", 27 + person, "male", colour, int(jewels), polish, aspect, f"{name}.jpg", irregular])
    columns = ["id", "age", "gender", "skinColor", "accessories", "nailPolish", "aspectOfHand", "imageName", "irregularities"]
    _write_csv(folder / "HandInfo.csv", columns, rows)
    return folder


def _isic_row(name: str, number: int, is_photograph: bool, *, newer: bool) -> dict[str, object]:
    malignant = not is_photograph and number % 3 == 0
    row: dict[str, object] = {"isic_id": name, "attribution": "ViDIR Group", "copyright_license": "CC-BY", "age_approx": 55}
    if newer:
        trunk = ("Trunk", "Posterior trunk", "" if is_photograph else "Upper back", "", "")
        row |= {f"anatom_site_{level}": site for level, site in enumerate(trunk, start=1)}
        names = ("Malignant", "Malignant melanocytic proliferations (Melanoma)", "Melanoma, NOS", "", "")
        names = names if malignant else ("Benign", "Benign melanocytic proliferations", "Nevus", "", "")
        row |= {f"diagnosis_{level}": "" if is_photograph else diagnosis for level, diagnosis in enumerate(names, start=1)}
    else:
        row |= {"anatom_site_general": "posterior torso", "anatom_site_special": ""}
        row |= {"benign_malignant": "" if is_photograph else "malignant" if malignant else "benign"}
        row |= {"diagnosis": "" if is_photograph else "melanoma" if malignant else "nevus"}
    row |= {"fitzpatrick_skin_type": "II", "image_type": "TBP tile: overview" if is_photograph else "dermoscopic"}
    row |= {"lesion_id": "" if is_photograph else f"IL_{number:07d}", "patient_id": f"IP_{number // 2:07d}", "sex": "female"}
    return row


def _lesion_of(rng: np.random.Generator, class_name: str) -> Picture:
    colours = {"MEL": (44, 32, 36), "NV": (110, 70, 48), "BCC": (196, 120, 118), "AKIEC": (188, 128, 104), "BKL": (138, 96, 62)}
    colours |= {"DF": (150, 96, 84), "VASC": (150, 24, 40)}
    return skin_with_lesion(rng, 144, 192, tone=SKIN_TONES[rng.integers(3)], colour=colours[class_name])[0]


def _with_marks(
    rng: np.random.Generator, image: Picture, bare: Mask, inner: Mask, u: NDArray[np.float64], v: NDArray[np.float64], *, abnormal: bool
) -> tuple[Picture, Mask, Mask]:
    marks = np.zeros_like(bare)
    if abnormal:
        slope, height = rng.uniform(-0.8, 0.8), rng.uniform(0.45, 0.65)
        scar = inner & (np.abs(v - height - slope * u - 0.01 * np.sin(60 * u)) < 0.008) & (np.abs(u) < 0.13)
        strap = inner & (np.abs(v - 0.36) < 0.006)
        for mark, colour in ((scar, (206, 150, 146)), (strap, (168, 92, 84))):
            image, marks = _paint(rng, image, mark, colour), marks | mark
    return image, bare, marks


def _with_moles(rng: np.random.Generator, image: Picture, where: Mask) -> Picture:
    y, x = np.nonzero(where)
    for _ in range(rng.integers(4, 12)):
        place, radius = rng.integers(len(y)), max(image.shape[0] * rng.uniform(0.002, 0.005), 1)
        mole = _ellipse(rng, *image.shape[:2], centre=(y[place], x[place]), axes=(radius, radius * rng.uniform(1, 1.5)))
        image = _paint(rng, image, mole & where, (104, 66, 50))
    return image


def _ellipse(rng: np.random.Generator, height_px: int, width_px: int, *, centre: tuple[float, float], axes: tuple[float, float]) -> Mask:
    """An ellipse with an uneven rim; only its surroundings are computed."""
    reach = 1.2 * max(axes) + 1
    top, left = (max(int(middle - reach), 0) for middle in centre)
    y, x = np.mgrid[top : min(int(centre[0] + reach) + 1, height_px), left : min(int(centre[1] + reach) + 1, width_px)]
    direction = rng.uniform(0, np.pi)
    along = (x - centre[1]) * np.cos(direction) + (y - centre[0]) * np.sin(direction)
    across = (y - centre[0]) * np.cos(direction) - (x - centre[1]) * np.sin(direction)
    angle = np.arctan2(across, along)
    rim = 1 + 0.08 * np.sin(3 * angle + rng.uniform(0, 6)) + 0.05 * np.sin(7 * angle + rng.uniform(0, 6))
    mask = np.zeros((height_px, width_px), bool)
    mask[top : top + y.shape[0], left : left + y.shape[1]] = (along / axes[1]) ** 2 + (across / axes[0]) ** 2 < rim**2
    return mask


def _paint(rng: np.random.Generator, image: Picture, mask: Mask, colour: Sequence[int]) -> Picture:
    """A coloured patch with a soft rim and uneven pigment; only its surroundings are computed."""
    if not mask.any():
        return image
    (top, left), (bottom, right) = (np.argwhere(mask).min(0) - 8).clip(0), np.argwhere(mask).max(0) + 9
    part = image[top:bottom, left:right].astype(float)
    opacity = gaussian_filter(mask[top:bottom, left:right].astype(float), 1.2)[..., None] * 0.85
    pigment = 1 + 0.12 * _noise(rng, *part.shape[:2], grain_px=3)[..., None]
    painted = image.copy()
    painted[top:bottom, left:right] = _as_bytes(part * (1 - opacity) + np.asarray(colour, float) * pigment * opacity)
    return painted


def _noise(rng: np.random.Generator, height_px: int, width_px: int, *, grain_px: float) -> NDArray[np.float64]:
    """Smooth noise of mean 0 and standard deviation about 1, drawn coarse and enlarged."""
    coarse = rng.normal(size=(int(height_px / grain_px) + 3, int(width_px / grain_px) + 3))
    noise = zoom(gaussian_filter(coarse, 0.6), grain_px * 1.05, order=1)[:height_px, :width_px]
    return (noise - noise.mean()) / max(noise.std(), 1e-6)


def _as_bytes(image: NDArray[np.floating]) -> Picture:
    return image.clip(0, 255).astype(np.uint8)


def _write_jpeg(path: Path, image: Picture, *, quality: int = 92) -> None:
    Image.fromarray(image).save(path, quality=quality)


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))
