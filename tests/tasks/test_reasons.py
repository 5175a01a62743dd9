"""Reasons without paths and numbers: what is one fault is one reason."""

import logging

import pytest

from tasks.failures import TooManyFailuresError, check_failures
from tasks.reasons import generalise, without_path


@pytest.mark.parametrize(
    ("reason", "uri", "general"),
    [
        ("unusable: /a b/c.png: file is truncated (12 bytes)", "/a b/c.png", "unusable: file is truncated (… bytes)"),
        ("unusable: cannot identify image file '/a/c.png'", "/a/c.png", "unusable: cannot identify image file"),
        ("unusable: nothing can be decoded: s3://bucket/c.svs", "s3://bucket/c.svs", "unusable: nothing can be decoded"),
        (
            "unusable: the mask /m/c.png has 20 × 10 px, its picture 64 × 64",
            "/a/c.jpg",
            "unusable: the mask … has … × … px, its picture … × …",
        ),
        ("duplicate of /a b/other.png", "/a/c.png", "duplicate of another"),
        ("37 % skin", "/a/c.png", "… % skin"),
        ("flagged blurred, near-constant", "/a/c.png", "flagged blurred, near-constant"),
        ("no row in Data_Entry.csv", "/a/c.png", "no row in Data_Entry.csv"),
    ],
)
def test_paths_and_numbers_are_left_out_and_words_stay(reason: str, uri: str, general: str) -> None:
    assert generalise(reason, uri) == general


def test_paths_that_nobody_named_are_found_by_their_look() -> None:
    assert generalise("OSError: /a/b.png is torn") == generalise("OSError: s3://c/d/e.png is torn") == "OSError: … is torn"
    assert generalise("7/8 of µm/px and/or so") == "…/… of µm/px and/or so"


def test_an_endless_reason_is_cut() -> None:
    assert len(generalise("unusable: " + "a long story " * 50)) == 160


def test_a_line_that_names_the_file_does_not_name_its_path_again() -> None:
    assert without_path("/a/b.png: torn", "/a/b.png") == "torn"
    assert without_path("cannot identify image file '/a/b.png'", "/a/b.png") == "cannot identify image file"
    assert without_path("of /a/b.png the half is torn", "/a/b.png") == "of b.png the half is torn"


def test_the_same_fault_of_many_files_is_one_reason(caplog: pytest.LogCaptureFixture) -> None:
    failed = [f"/data/{number}.png: file is truncated ({number} bytes)" for number in range(9)] + ["/data/x.png: not a picture"]
    counted = r"^10 of 20 pictures failed \(9 × file is truncated \(… bytes\); 1 × not a picture\); more"
    with pytest.raises(TooManyFailuresError, match=counted):
        check_failures(failed=failed, total=20, failed_share_max=0.05, what="pictures")
    with caplog.at_level(logging.WARNING):
        check_failures(failed=failed, total=20, failed_share_max=0.5, what="pictures")
    assert "9 × file is truncated" in caplog.text
    assert "/data" not in caplog.text
