"""11k Hands: people, sides, skin colours, and jewellery that a mask outlines."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest

from storage.datasets.hands import HandsSource, list_hands
from storage.datasets.miniatures.dermatology import write_hands
from storage.datasets.source import SourceError
from storage.images import picture_size, read_mask


@pytest.fixture
def hands(tmp_path: Path) -> Path:
    return write_hands(tmp_path / "11k", people=3, pictures=3)


def test_hands_without_jewellery_are_normal_and_outlined_ones_abnormal(hands: Path) -> None:
    items = list_hands(HandsSource(path=str(hands)))
    assert [(item.label, item.finding) for item in items] == [(0, None), (0, None), (1, "jewellery")] * 3
    assert Counter(item.subject_id for item in items) == {"0000000": 3, "0000001": 3, "0000002": 3}
    assert [item.site for item in items[:3]] == ["dorsal right", "dorsal left", "palmar right"]
    assert [item.skin_tone for item in items[::3]] == ["very fair", "fair", "medium"]
    assert not any(item.excluded for item in items)


def test_age_and_gender_are_not_carried(hands: Path) -> None:
    carried = {value for item in list_hands(HandsSource(path=str(hands))) for value in asdict(item).values()}
    assert not carried & {"27", "28", "29", "male"}


def test_a_mask_fits_its_picture_and_shows_something(hands: Path) -> None:
    item = list_hands(HandsSource(path=str(hands)))[2]
    assert item.mask_uri == str(hands / "masks/Hand_0000004.png")
    with Path(item.uri).open("rb") as picture, Path(item.mask_uri).open("rb") as file:
        mask = read_mask(file)
        assert mask.shape[::-1] == picture_size(picture)
    assert 0 < mask.mean() < 0.1


def test_accessories_that_no_mask_outlines_are_unknown_or_abnormal_by_choice(hands: Path) -> None:
    (hands / "masks/Hand_0000004.png").unlink()
    assert list_hands(HandsSource(path=str(hands)))[2].label is None
    item = list_hands(HandsSource(path=str(hands), unmasked_accessories="abnormal"))[2]
    assert (item.label, item.finding, item.mask_uri) == (1, "jewellery", None)


def test_a_mask_decides_where_the_table_says_otherwise(hands: Path) -> None:
    table = hands / "HandInfo.csv"
    table.write_text(table.read_text().replace("very fair,1,0", "very fair,0,0"))
    assert list_hands(HandsSource(path=str(hands)))[2].label == 1


def test_nail_polish_and_irregularities_are_what_the_configuration_says(hands: Path) -> None:
    excluded = list_hands(HandsSource(path=str(hands), nail_polish="excluded"))
    assert [item.excluded for item in excluded] == [None] * 3 + ["nail polish (left out by choice)"] * 3 + [None] * 3
    abnormal = list_hands(HandsSource(path=str(hands), nail_polish="abnormal", irregularities="abnormal"))
    assert [item.finding for item in abnormal[3:]] == ["nail polish", "nail polish", "jewellery", "irregularity", None, "jewellery"]
    assert [item.label for item in abnormal] == [0, 0, 1, 1, 1, 1, 1, 0, 1]


def test_an_indicator_that_is_not_known_makes_no_normal_hand(hands: Path) -> None:
    table = hands / "HandInfo.csv"
    table.write_text(table.read_text().replace("male,very fair,0,0,dorsal right", "male,very fair,,0,dorsal right"))
    assert list_hands(HandsSource(path=str(hands)))[0].label is None
    table.write_text(table.read_text().replace("male,very fair,,0,dorsal right", "male,very fair,0,,dorsal right"))
    assert list_hands(HandsSource(path=str(hands)))[0].label == 0
    assert list_hands(HandsSource(path=str(hands), nail_polish="abnormal"))[0].label is None
    table.write_text(table.read_text().replace("male,very fair,0,,dorsal right", "male,very fair,two,0,dorsal right"))
    with pytest.raises(SourceError, match=r"Hand_0000002\.jpg has accessories 'two'; expected 0 or 1"):
        list_hands(HandsSource(path=str(hands)))


def test_without_masks_no_jewellery_is_known(hands: Path) -> None:
    items = list_hands(HandsSource(path=str(hands), masks=None))
    assert Counter(item.label for item in items) == {0: 6, None: 3}
    with pytest.raises(SourceError, match="there is no outlines/ with jewellery masks"):
        list_hands(HandsSource(path=str(hands), masks="outlines"))


def test_masks_of_other_names_are_refused_and_single_ones_counted(hands: Path) -> None:
    (hands / "masks/Hand_0000004.png").rename(hands / "masks/Hand_7777777.png")
    stray = list_hands(HandsSource(path=str(hands)))[-1]
    assert (Path(stray.uri).name, stray.excluded, stray.label) == ("Hand_7777777.png", "no row in HandInfo.csv", None)
    for number, mask in enumerate(sorted((hands / "masks").iterdir())):
        mask.rename(hands / "masks" / f"{number}.png")
    with pytest.raises(SourceError, match=r"no mask is named like a picture, e\.g\. 0; expected Hand_0000002"):
        list_hands(HandsSource(path=str(hands)))


def test_a_row_without_a_file_is_listed_and_a_file_without_a_row_is_excluded(hands: Path) -> None:
    (hands / "Hands/Hand_0000003.jpg").rename(hands / "Hands/Hand_0009999.jpg")
    items = list_hands(HandsSource(path=str(hands)))
    assert (items[1].uri, items[1].label) == (str(hands / "Hands/Hand_0000003.jpg"), 0)
    assert (items[-1].uri, items[-1].excluded) == (str(hands / "Hands/Hand_0009999.jpg"), "no row in HandInfo.csv")


def test_another_folder_is_refused_with_the_expected_layout(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"expected Hands/Hand_\*\.jpg and HandInfo\.csv"):
        list_hands(HandsSource(path=str(tmp_path)))
