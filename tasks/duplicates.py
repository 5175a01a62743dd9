"""Pictures that are there twice: candidates by perceptual hash, verified on their pixels; what was compared is remembered."""

import hashlib
import logging
from functools import lru_cache

import numpy as np
import pandas as pd

from methods.curation.duplicates import join_groups, semantic_candidates, verify_pair
from methods.curation.hamming import HammingIndex, near_pairs
from methods.curation.hashing import shrink_grey
from methods.curation.registration import count_inliers
from methods.curation.text_columns import is_among, places_in
from storage import filesystems
from storage.pictures import read_picture
from storage.slides import is_slide, open_slide
from tasks.curation import DuplicateConfig
from tasks.features import stack_features
from tasks.progress import show_progress

logger = logging.getLogger(__name__)

_COMPARED_PX = 64
_REGISTERED_PX = 256
_SLIDE_PX = 1024  # of the thumbnail that a slide is hashed and compared by


def find_duplicates(pictures: pd.DataFrame, *, config: DuplicateConfig | None, store: str) -> pd.DataFrame:
    """Which pictures show the same.

    What an earlier curation of this store compared is not compared again: only pictures that are new to it are matched, against all.

    Args:
        pictures: one row a picture: `key` (digest and frame), `phash` and `phash_turns` (hexadecimal), `features` (bytes), `uri`, `frame`,
            `sha256`.
        config: None finds none.
        store: where the book of comparisons is kept.

    Returns:
        `first`, `second`: keys of pictures that are the same. Not all pairs of a group, but enough to join it.
    """
    if config is None or pictures.empty:
        return pd.DataFrame({"first": [], "second": []}, dtype="string")
    folder = filesystems.join(store, "duplicates", hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:16])
    book, pairs_uri = filesystems.join(folder, "pictures.parquet"), filesystems.join(folder, "pairs.parquet")
    before = _read(book, ["key", "phash"])
    known, pairs = _forget_gone(before, _read(pairs_uri, ["first", "second"]), pictures["key"])
    new = np.flatnonzero(~is_among(pictures["key"], known["key"]))
    if len(new):
        there = places_in(known["key"], pictures["key"])
        learned = pictures if len(new) == len(pictures) else pictures.iloc[new]
        candidates = _candidates(known["phash"], pictures["features"].iloc[there], learned, config)
        found = _verify(pictures, np.concatenate([there, new])[candidates], config)
        pairs = pd.concat([pairs, found], ignore_index=True)
        # a kill at any point has pictures compared again, and loses no pair: who is in the book has its pairs written
        if len(known) < len(before):
            filesystems.write_table(book, known)
        filesystems.write_table(pairs_uri, pairs.drop_duplicates())
        filesystems.write_table(book, pd.concat([known, learned[["key", "phash"]]], ignore_index=True))
    return pairs.drop_duplicates().reset_index(drop=True)


def _forget_gone(known: pd.DataFrame, pairs: pd.DataFrame, here: pd.Series) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The book without pictures that are gone, and without those that were joined through them: they are compared anew.

    Only pairs that join a group are kept; a picture that is gone may have been all that held two others together.
    """
    ends = np.stack([places_in(pairs[name], known["key"]) for name in ("first", "second")], axis=1)
    written = (ends >= 0).all(axis=1)  # after a kill there may be pairs of pictures that are not in the book yet
    groups = join_groups(len(known), ends[written])
    torn = np.isin(groups, groups[~is_among(known["key"], here)])
    return known[~torn].reset_index(drop=True), pairs[written & ~torn[ends].any(axis=1)] if len(known) else pairs[:0]


def _read(uri: str, columns: list[str]) -> pd.DataFrame:
    return filesystems.read_table(uri) if filesystems.exists(uri) else pd.DataFrame({name: pd.array([], "string") for name in columns})


def _candidates(old: pd.Series, old_features: pd.Series, new: pd.DataFrame, config: DuplicateConfig) -> np.ndarray:
    """(m, 2) positions in `old`, the hashes of pictures that are known, followed by `new`; the second of each pair is new."""
    old_hashes, new_hashes = _hashes(old), _hashes(new["phash"])
    variants = _variants(new["phash_turns"]) if config.turned else None
    # of many pictures with one hash each is compared with the first alone: identical hashes of different pictures are rare
    _, first, bucket = np.unique(new_hashes, return_index=True, return_inverse=True)
    copies = np.stack([first[bucket], np.arange(len(new))], axis=1)
    near = near_pairs(new_hashes[first], radius=config.radius_bits, variants=None if variants is None else variants[first])
    among = np.concatenate([copies[copies[:, 0] != copies[:, 1]], first[near]]) + len(old)
    matched = HammingIndex(old_hashes, radius=config.radius_bits).match(
        new_hashes[first], variants=None if variants is None else variants[first]
    )
    across = np.stack([matched[:, 1], first[matched[:, 0]] + len(old)], axis=1)
    near_in_meaning = _semantic_candidates(old_features, new["features"], config)
    return np.concatenate([across, np.sort(among, axis=1), near_in_meaning])


def _semantic_candidates(there: pd.Series, new: pd.Series, config: DuplicateConfig) -> np.ndarray:
    """(m, 2) positions of pictures with near features, the second of them new; none unless asked."""
    if config.semantic_cosine is None:
        return np.empty((0, 2), np.int64)
    features = stack_features([*there, *new])
    pairs = semantic_candidates(features, k=config.semantic_neighbours, least_cosine=config.semantic_cosine)
    return pairs[pairs[:, 1] >= len(there)]


def _verify(pictures: pd.DataFrame, candidates: np.ndarray, config: DuplicateConfig) -> pd.DataFrame:
    """The candidates whose pixels agree; those whose ends are joined already are not read."""
    parent = list(range(len(pictures)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    read = lru_cache(maxsize=1024)(lambda i, side_px: _small_grey(pictures.iloc[int(i)], side_px))

    def is_same(i: int, j: int) -> bool:
        if verify_pair(read(i, _COMPARED_PX), read(j, _COMPARED_PX), turns=config.turned) >= config.least_similarity:
            return True
        if config.semantic_cosine is None:
            return False
        return count_inliers(read(i, _REGISTERED_PX), read(j, _REGISTERED_PX), rng=np.random.default_rng(0)) >= config.least_inliers

    found = []
    with show_progress("compare duplicates", len(candidates)) as bar:
        for i, j in candidates.tolist():
            bar.advance()
            if root(i) != root(j) and is_same(i, j):
                parent[root(i)] = root(j)
                found.append((pictures["key"].iat[i], pictures["key"].iat[j]))
    return pd.DataFrame(found, columns=["first", "second"], dtype="string")


def _small_grey(picture: pd.Series, side_px: int) -> np.ndarray:
    frame = None if pd.isna(picture["frame"]) else str(picture["frame"])
    return shrink_grey(read_overview(str(picture["uri"]), frame, str(picture["sha256"])), side_px=side_px)


def read_overview(uri: str, frame: str | None, sha256: str) -> np.ndarray:
    """What a picture or slide is hashed and compared by: the picture, or the slide's thumbnail; (H, W, 3) uint8."""
    if frame is None and is_slide(uri):
        with open_slide(uri) as slide:
            return slide.thumbnail(_SLIDE_PX)
    return read_picture(uri, frame=frame, sha256=sha256)


def _hashes(texts: pd.Series) -> np.ndarray:
    return np.frombuffer(bytes.fromhex("".join(texts)), ">u8").astype(np.uint64)  # 16 digits each


def _variants(texts: pd.Series) -> np.ndarray:
    return np.frombuffer(bytes.fromhex("".join(texts)), ">u8").astype(np.uint64).reshape(-1, 8)  # fromhex passes over blanks
