"""What a worker makes of a shard: the same bits however it is done, each picture decoded once, what is known copied, what is bad failed."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from storage.archives import append_manifest
from storage.scores import FAILED, SCORED, ScoreStore, create_store, open_store
from tasks import samples, score_shard
from tasks.arithmetic import Arithmetic, Scorer
from tasks.references import ModelReference, RowsReference
from tasks.score_shard import Limits, ShardJob, Target, fill_shard
from tests.archives import CONFIGS, write_archive_pictures, write_manifest_of, write_small_bundle

COUNT, SHARD_ROWS = 20, 8


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelReference]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: write_small_bundle(folder / kind, kind) for kind in CONFIGS}


class Archive:
    """Pictures and their manifest; stores are made as asked for."""

    def __init__(self, folder: Path, models: dict[str, ModelReference]) -> None:
        self.folder, self.models = folder, models
        self.pictures = write_archive_pictures(folder / "pictures", COUNT)
        self.refer()

    def refer(self) -> None:
        uri, digest = write_manifest_of(self.pictures)
        self.rows = RowsReference(uri=uri, digest=digest)

    def store(self, name: str, kind: str = "ae", *, rows: int = COUNT, **notes: str) -> ScoreStore:
        size = CONFIGS[kind].map_size_px
        attributes = {"arithmetic": Arithmetic(batch_size=4).model_dump()}
        return create_store(str(self.folder / name), rows=rows, map_size_px=size, shard_rows=SHARD_ROWS, attributes=attributes, notes=notes)

    def job(self, shard: int, *stores: ScoreStore, donors: tuple[str, ...] = (), **limits: int) -> ShardJob:
        kinds = {CONFIGS[kind].map_size_px: kind for kind in CONFIGS}
        targets = [Target(store_uri=store.uri, model=self.models[kinds[store.map_size_px]], donors=list(donors)) for store in stores]
        return ShardJob(rows=self.rows, shard=shard, targets=targets, isolate=False, limits=Limits(**limits))

    def score(self, *stores: ScoreStore, **options: object) -> list[list[dict]]:
        """All shards; the outcomes of their targets."""
        return [score_shard.score_shard(self.job(shard, *stores, **options))["targets"] for shard in stores[0].pending_shards()]  # type: ignore[arg-type]


@pytest.fixture
def archive(tmp_path: Path, models: dict[str, ModelReference]) -> Archive:
    return Archive(tmp_path, models)


def assert_same(one: ScoreStore, other: ScoreStore) -> None:
    np.testing.assert_array_equal(one.status(), other.status())
    np.testing.assert_array_equal(one.image_scores(), other.image_scores())
    np.testing.assert_array_equal(one.read_maps(range(one.rows)), other.read_maps(range(other.rows)))


def count_decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    decoded: list[str] = []
    decode = samples.decode_picture
    monkeypatch.setattr(samples, "decode_picture", lambda uri, **options: decoded.append(uri) or decode(uri, **options))
    return decoded


def test_two_models_share_one_reading_and_score_as_each_does_alone(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [archive.store(f"{kind}-alone", kind) for kind in CONFIGS]
    for store in alone:
        archive.score(store)
    together = [archive.store(kind, kind) for kind in CONFIGS]
    decoded = count_decoded(monkeypatch)
    outcomes = archive.score(*together)
    assert sorted(decoded) == sorted(map(str, archive.pictures.iterdir()))
    assert [[target["scored"] for target in shard] for shard in outcomes] == [[8, 8], [8, 8], [4, 4]]
    for one, other in zip(alone, together, strict=True):
        assert (one.status() == SCORED).all()
        assert len(np.unique(one.image_scores())) == COUNT
        assert_same(one, other)


@pytest.mark.parametrize("how", ["one reader", "no room ahead", "one at a time", "from an archive"])
def test_the_bits_are_the_same_however_a_shard_is_done(archive: Archive, how: str) -> None:
    plain, other = archive.store("plain"), archive.store("other")
    archive.score(plain)
    if how == "from an archive":
        kept = append_manifest(str(archive.folder / "archive"), archive.rows["uri"], archive.rows["digest"])
        archive.rows = RowsReference(uri=kept.uri, digest=kept.digest)
    for shard in range(other.shard_count):
        if how == "one at a time":
            steps: list[tuple[str, list[int]]] = []
            fill_shard(archive.job(shard, other), take=lambda step, positions, steps=steps: steps.append((step, positions)), alone={1})
            assert steps[:5] == [("read", [0]), ("read", [1]), ("scored", [1]), ("read", [2]), ("read", [3])]
        else:
            score_shard.score_shard(archive.job(shard, other, readers=1 if how == "one reader" else 4, ahead_mb=1))
    assert_same(plain, other)


def test_two_shards_at_once_in_a_process_give_the_same_bits_from_one_model(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, other = archive.store("plain"), archive.store("other")
    archive.score(plain)
    score_shard._scorer.cache_clear()
    loaded, load, computing, score = [], score_shard.load_detector, threading.Lock(), Scorer.score

    def score_alone(scorer: Scorer, images: object) -> object:
        assert computing.acquire(blocking=False)
        try:
            return score(scorer, images)  # type: ignore[arg-type]
        finally:
            computing.release()

    monkeypatch.setattr(score_shard, "load_detector", lambda model: loaded.append(model) or load(model))
    monkeypatch.setattr(Scorer, "score", score_alone)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(score_shard.score_shard, [archive.job(shard, other) for shard in range(3)]))
    assert len(loaded) == 1
    assert_same(plain, other)


def test_a_damaged_picture_fails_with_its_reason_and_its_neighbours_keep_their_bits(archive: Archive) -> None:
    plain, other = archive.store("plain"), archive.store("other")
    archive.score(plain)
    damaged = sorted(archive.pictures.iterdir())[2]
    damaged.write_bytes(damaged.read_bytes()[:300])
    first = archive.score(other)[0][0]
    assert (first["scored"], len(first["failed"])) == (7, 1)
    (failure,) = open_store(other.uri).failures().to_dict("records")
    assert failure["row"] == 2
    assert damaged.name in failure["reason"]
    kept = np.delete(np.arange(COUNT), 2)
    np.testing.assert_array_equal(other.image_scores()[kept], plain.image_scores()[kept])
    np.testing.assert_array_equal(other.read_maps(kept), plain.read_maps(kept))


@pytest.mark.parametrize("what", ["score", "map"])
def test_a_score_or_map_that_is_not_finite_fails_its_sample_alone(archive: Archive, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    score = Scorer.score

    def spoiled(scorer: Scorer, images: object) -> tuple[np.ndarray, np.ndarray | None]:
        image, maps = score(scorer, images)  # type: ignore[arg-type]
        assert maps is not None
        image, maps = image.copy(), maps.copy()
        if what == "score":
            image[1] = np.nan
        else:
            maps[1, 3, 3] = np.inf
        return image, maps

    monkeypatch.setattr(Scorer, "score", spoiled)
    store = archive.store("store")
    archive.score(store)
    assert np.flatnonzero(store.status() == FAILED).tolist() == [1, 5, 9, 13, 17]
    assert store.failures()["reason"].str.contains("not finite").all()


def test_what_was_final_before_a_store_grew_is_copied_and_not_computed(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive_pictures(archive.pictures, 7, first=COUNT)
    longer = write_manifest_of(archive.pictures)
    damaged = sorted(archive.pictures.iterdir())[17]
    damaged.write_bytes(damaged.read_bytes()[:300])
    grown = archive.store("grown")
    archive.score(grown)
    append_manifest(str(archive.folder / "archive"), archive.rows["uri"], archive.rows["digest"])
    kept = append_manifest(str(archive.folder / "archive"), *longer)
    archive.rows = RowsReference(uri=kept.uri, digest=kept.digest)
    grown.grow(27)
    decoded = count_decoded(monkeypatch)
    (tail, last) = archive.score(grown)
    assert len(decoded) == 7
    assert (tail[0]["copied"], tail[0]["scored"], len(tail[0]["failed"])) == (3, 4, 1)
    assert (last[0]["copied"], last[0]["scored"]) == (0, 3)
    whole = archive.store("whole", rows=27)
    archive.score(whole)
    assert_same(open_store(grown.uri), whole)


def test_the_same_pixels_are_copied_from_a_store_of_the_same_model(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    donor = archive.store("donor", manifest_uri=archive.rows["uri"], manifest_digest=archive.rows["digest"])
    archive.score(donor)
    first = sorted(archive.pictures.iterdir())[0]
    first.unlink()
    write_archive_pictures(archive.pictures, 1, first=COUNT)
    archive.refer()
    store, whole = archive.store("store"), archive.store("whole")
    decoded = count_decoded(monkeypatch)
    outcomes = archive.score(store, donors=(donor.uri,))
    assert [shard[0]["copied"] for shard in outcomes] == [8, 8, 3]
    assert len(decoded) == 1
    archive.score(whole)
    assert_same(store, whole)
