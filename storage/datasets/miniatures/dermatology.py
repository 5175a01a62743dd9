"""Miniatures of the dermatology data sets in the layout in which they are downloaded, with generated pictures that can be curated.

Every writer fills `folder` with a clean download and returns it; tests spoil it themselves. Equal seeds give equal files.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from storage.datasets.miniatures.files import write_jpeg, write_lines, write_table
from storage.datasets.miniatures.skin import (
    SKIN_TONES,
    Picture,
    body_photograph,
    hand_photograph,
    skin,
    skin_with_lesion,
    skin_with_rash,
)

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


def write_isic_archive(
    folder: Path,
    *,
    photographs: int = 3,
    of_patient: int = 2,
    abnormal: int = 1,
    dermoscopic: int = 3,
    newer_table: bool = True,
    width_px: int = 1600,
    seed: int = 0,
) -> Path:
    """`isic image download`: total body photographs (the last `abnormal` of them with a scar) and dermoscopic pictures, `of_patient` each.

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
        write_jpeg(folder / f"{name}.jpg", image)
        rows.append(_isic_row(name, number, number // of_patient, is_photograph, newer=newer_table))
    write_table(folder / "metadata.csv", list(rows[0]), [list(row.values()) for row in rows])
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
            write_jpeg(folder / "images" / paths[-1], skin_with_rash(rng, 150, 200)[0])
    class_of = [list(classes).index(path.split("/")[0]) for path in paths]
    write_lines(folder / "classes.txt", (f"{number} {name}" for number, name in enumerate(classes, start=1)))
    write_lines(folder / "images.txt", (f"{number} {path}" for number, path in enumerate(paths, start=1)))
    write_lines(folder / "image_class_labels.txt", (f"{number} {label + 1}" for number, label in enumerate(class_of, start=1)))
    held_out = {path for number, path in enumerate(paths) if number % 5 == 4}
    (folder / "8_2_split").mkdir()
    for file, part in (("train_0.txt", set(paths) - held_out), ("val_0.txt", held_out)):
        write_lines(folder / "8_2_split" / file, (f"{path} {label}" for path, label in zip(paths, class_of, strict=True) if path in part))
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
            write_jpeg(folder / "Original" / original / f"{name}.jpg", image)
            Image.fromarray(image[:, ::-1]).save(folder / "Augmented" / augmented / f"{name}_augmented_1.png")
    return folder


def write_isic2018(folder: Path, *, lesions: dict[str, int] | None = None, pictures_of_first: int = 2, seed: int = 0) -> Path:
    """Task 3, training: so many lesions a class (two of each where not said); of the first of a class `pictures_of_first` pictures."""
    pictures = folder / "ISIC2018_Task3_Training_Input"
    groupings: list[list[str]] = []
    truth: list[list[str]] = []
    pictures.mkdir(parents=True)
    for class_name, count in (lesions or dict.fromkeys(ISIC_2018_CLASSES, 2)).items():
        for number in range(count):
            for view in range(pictures_of_first if number == 0 else 1):
                name, lesion = f"ISIC_{24306 + len(truth):07d}", f"HAM_{ISIC_2018_CLASSES.index(class_name) * 1000 + number:07d}"
                rng = np.random.default_rng([seed, ISIC_2018_CLASSES.index(class_name), number])  # one lesion looks the same in every view
                image = np.roll(_lesion_of(rng, class_name), 3 * view, axis=1)
                write_jpeg(pictures / f"{name}.jpg", image)
                truth.append([name, *(f"{float(class_name == other)}" for other in ISIC_2018_CLASSES)])
                groupings.append([name, lesion, "histopathology" if class_name != "NV" else "serial imaging showing no change"])
    write_lines(pictures / "ATTRIBUTION.txt", ["HAM10000 dataset: (c) by ViDIR Group, Medical University of Vienna"])
    write_table(
        folder / "ISIC2018_Task3_Training_GroundTruth" / "ISIC2018_Task3_Training_GroundTruth.csv", ["image", *ISIC_2018_CLASSES], truth
    )
    write_table(folder / "ISIC2018_Task3_Training_LesionGroupings.csv", ["image", "lesion_id", "diagnosis_confirm_type"], groupings)
    return folder


def write_isic2020(folder: Path, *, patients: int = 4, pictures: int = 3, malignant: int = 1, duplicates: int = 1, seed: int = 0) -> Path:
    """Version 2 of the table: `pictures` of each patient, the first ones of `malignant` patients melanomas.

    The last `duplicates` pictures repeat the first ones.
    """
    (folder / "train").mkdir(parents=True)
    rows, names = [], [f"ISIC_{2637011 + number:07d}" for number in range(patients * pictures)]
    original_of = dict(zip(names[len(names) - duplicates :], names, strict=False))
    for number, name in enumerate(names):
        shown = names.index(original_of.get(name, name))
        rng = np.random.default_rng([seed, shown])
        is_malignant = shown % pictures == 0 and shown // pictures < malignant
        image = skin_with_lesion(rng, 144, 192, colour=(40, 36, 52) if is_malignant else None)[0]
        write_jpeg(folder / "train" / f"{name}.jpg", image, quality=80 if name in original_of else 92)
        diagnosis = "melanoma" if is_malignant else ("nevus", "unknown", "seborrheic keratosis")[number % 3]
        status = ("malignant", 1) if is_malignant else ("benign", 0)
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
    write_table(folder / "ISIC_2020_Training_GroundTruth_v2.csv", columns, rows)
    write_table(
        folder / "ISIC_2020_Training_Duplicates.csv", ["image_name_1", "image_name_2"], [[old, new] for new, old in original_of.items()]
    )
    return folder


def write_hands(folder: Path, *, people: int = 4, pictures: int = 4, wearing: int | None = None, jewels: int = 1, seed: int = 0) -> Path:
    """Every person's hands from both sides; the second person wears nail polish.

    The last `jewels` pictures of each of the last `wearing` persons (null: of all) are with jewellery and its mask.
    """
    (folder / "Hands").mkdir(parents=True)
    (folder / "masks").mkdir()
    rows = []
    for person in range(people):
        colour = ("very fair", "fair", "medium", "dark")[person % 4]
        for number in range(pictures):
            rng, name = np.random.default_rng([seed, person, number]), f"Hand_{person * 100 + number + 2:07d}"
            worn = number >= pictures - jewels and person >= people - (people if wearing is None else wearing)
            image, _, mask = hand_photograph(rng, tone=SKIN_TONES[(0, 1, 2, 4)[person % 4]], jewellery=worn)
            write_jpeg(folder / "Hands" / f"{name}.jpg", image)
            if worn:
                Image.fromarray(mask).save(folder / "masks" / f"{name}.png")
            aspect = ("dorsal right", "dorsal left", "palmar right", "palmar left")[number % 4]
            polish, irregular = int(person == 1), int(person == 2 and number == 0)
            rows.append([f"{person:07d}", 27 + person, "male", colour, int(worn), polish, aspect, f"{name}.jpg", irregular])
    columns = ["id", "age", "gender", "skinColor", "accessories", "nailPolish", "aspectOfHand", "imageName", "irregularities"]
    write_table(folder / "HandInfo.csv", columns, rows)
    return folder


def _isic_row(name: str, number: int, patient: int, is_photograph: bool, *, newer: bool) -> dict[str, object]:
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
    row |= {"lesion_id": "" if is_photograph else f"IL_{number:07d}", "patient_id": f"IP_{patient:07d}", "sex": "female"}
    return row


def _lesion_of(rng: np.random.Generator, class_name: str) -> Picture:
    colours = {"MEL": (44, 32, 36), "NV": (110, 70, 48), "BCC": (196, 120, 118), "AKIEC": (188, 128, 104), "BKL": (138, 96, 62)}
    colours |= {"DF": (150, 96, 84), "VASC": (150, 24, 40)}
    return skin_with_lesion(rng, 144, 192, tone=SKIN_TONES[rng.integers(3)], colour=colours[class_name])[0]
