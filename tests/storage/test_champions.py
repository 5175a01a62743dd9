"""The champion of a store: replaced only by who has read it, and put back by one call."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from storage.champions import (
    Champion,
    ChampionConflictError,
    ChampionError,
    Pointer,
    describe,
    find_champion,
    promote,
    read_champion,
    roll_back,
    was_rolled_back,
)
from storage.models import Bundle, write_bundle
from tests.servers import S3Server, s3_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(params=["local", pytest.param("bucket", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "store")
    return f"{request.getfixturevalue('server').bucket}/{tmp_path.name}"


def make_model(store: str, number: int) -> Champion:
    """A bundle that is one, and what champion.json would say of it."""
    uri = f"{store}/models/ae-{number}"
    digest = write_bundle(uri, Bundle(tensors={"w": np.full(2, number, np.float32)}, config={"kind": "ae"}, card={}))
    return Champion(
        uri=uri, digest=digest, kind="ae", manifest={"uri": "m.parquet"}, by="evidence", evidence={"reason": f"number {number}"}
    )


def test_a_store_has_no_champion_until_one_is_promoted_and_remembers_those_before(store: str) -> None:
    assert find_champion(store) is None
    with pytest.raises(ChampionError, match="no model is in use"):
        read_champion(store)
    first, second = make_model(store, 1), make_model(store, 2)
    promote(store, first, over=None)
    with pytest.raises(ChampionError, match="nothing to go back to"):
        roll_back(store)
    promote(store, second, over=find_champion(store))
    found = read_champion(store)
    assert (found.champion, found.previous, found.history) == (second, first, (second, first))
    assert [line.split()[0] for line in describe(found, history=True)] == ["in", "bundle:", "before:"]


def test_a_rollback_puts_the_one_before_back_and_a_second_one_undoes_it(store: str) -> None:
    first, second = make_model(store, 1), make_model(store, 2)
    promote(store, first, over=None)
    promote(store, second, over=find_champion(store))
    back = roll_back(store)
    assert (back.champion.digest, back.champion.by, back.previous) == (first.digest, "rollback", second)
    assert was_rolled_back(back, second.digest)
    assert not was_rolled_back(back, first.digest)
    again = roll_back(store)
    assert again.champion.digest == second.digest
    assert not was_rolled_back(again, second.digest)
    assert len(again.history) == 4


def test_who_promotes_over_what_is_not_there_any_more_is_told_and_changes_nothing(store: str) -> None:
    first, second, third = (make_model(store, number) for number in (1, 2, 3))
    promote(store, first, over=None)
    with pytest.raises(ChampionConflictError, match="was replaced by somebody else"):
        promote(store, second, over=None)
    seen = find_champion(store)
    promote(store, second, over=seen)
    with pytest.raises(ChampionConflictError, match=f"in use is ae {second.digest[:12]}"):
        promote(store, third, over=seen)
    assert read_champion(store).champion == second


def test_of_several_at_once_exactly_one_is_promoted(store: str) -> None:
    promote(store, make_model(store, 0), over=None)
    seen, together = find_champion(store), threading.Barrier(6)
    won: list[Pointer] = []
    told: list[ChampionConflictError] = []

    def compete(model: Champion) -> None:
        together.wait()
        try:
            won.append(promote(store, model, over=seen))
        except ChampionConflictError as error:
            told.append(error)

    threads = [threading.Thread(target=compete, args=(make_model(store, number),)) for number in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(told)) == (1, 5)
    assert read_champion(store) == won[0]


def test_nothing_is_rolled_back_to_a_bundle_that_was_changed_or_is_gone(tmp_path: Path) -> None:
    store = str(tmp_path)
    first, second = make_model(store, 1), make_model(store, 2)
    promote(store, first, over=None)
    promote(store, second, over=find_champion(store))
    card = Path(first.uri) / "card.json"
    card.write_text("{}")
    with pytest.raises(ChampionError, match="gone or was changed"):
        roll_back(store)
    card.unlink()
    with pytest.raises(ChampionError, match="is missing"):
        roll_back(store)
    assert read_champion(store).champion == second


def test_a_file_that_names_no_model_is_an_error_that_says_what_lacks(tmp_path: Path) -> None:
    (tmp_path / "champion.json").write_text('{"schema_version": 2}')
    with pytest.raises(ChampionError, match="does not say which model is in use: schema_version"):
        find_champion(str(tmp_path))
