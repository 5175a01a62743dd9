"""A sample that kills its worker each time, or never comes back: found, marked failed, its neighbours scored."""

import numpy as np
import pytest

from storage.scores import FAILED, SCORED, ScoreStore
from tests.faults.harness import SHARD_ROWS, Cost, Scene, Scoring

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

POISON_ROW, READ_S = 100, 5


@pytest.mark.parametrize("how", ["segfault", "hang", "hang_holding_gil"])
def test_a_sample_that_kills_its_worker_is_failed_and_its_neighbours_are_scored(
    how: str, scene: Scene, undisturbed: ScoreStore, costs: list[Cost]
) -> None:
    faults = {"poison": f"picture-{POISON_ROW:07d}", "how": how, "read_s": READ_S}
    scoring = Scoring(scene, how, faults=faults)
    scoring.finish()
    broken_s = min(event.time_s for event in scoring.events() if event.name == "break")
    costs.append(scoring.cost(f"a sample: {how.replace('_', ' ')}", fault_s=broken_s))
    scoring.verify()
    scores = scoring.scores()
    assert scores.status().tolist() == [FAILED if row == POISON_ROW else SCORED for row in range(scores.rows)]
    (failure,) = scores.failures().to_dict("records")
    assert failure["row"] == POISON_ROW
    others = np.delete(np.arange(scores.rows), POISON_ROW)
    np.testing.assert_array_equal(scores.image_scores()[others], undisturbed.image_scores()[others])
    np.testing.assert_array_equal(scores.read_maps(others), undisturbed.read_maps(others))
    (broken,) = {event.what for event in scoring.events() if event.name == "break"}
    assert scene.places[broken] == POISON_ROW
    assert POISON_ROW // SHARD_ROWS in scoring.shards_begun_again()
