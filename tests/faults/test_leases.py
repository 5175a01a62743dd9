"""Two runs on one archive: one wins, the other says who holds it; a dead holder is seen, or its lease runs out."""

import time
from typing import Any

import pytest

from storage import filesystems
from storage.scores import ScoreStore
from tests.faults.harness import SHARDS_IN_FLIGHT, Cost, Scene, Scoring, assert_same_arrays, kill, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

LEFT_S = 5


@pytest.mark.parametrize("scoring", ["local", "S3"], indirect=True)
def test_of_two_runs_one_wins_and_the_other_names_it_until_it_is_dead(scoring: Scoring, undisturbed: ScoreStore, costs: list[Cost]) -> None:
    runs = [scoring.start(), scoring.start()]
    wait_until(lambda: any(run.poll() is not None for run in runs), what="one of two runs gives up")
    (winner,) = (run for run in runs if run.poll() is None)
    (loser,) = (run for run in runs if run is not winner)
    assert loser.returncode == 1
    said = scoring.said(1 + runs.index(loser))
    assert f"held by process {winner.pid} on " in said
    assert "Traceback" not in said
    scoring.wait_for("wrote", count=4, process=winner)
    fault_s = kill(winner)
    scoring.finish()
    costs.append(scoring.cost("two runs at once, the holder killed", fault_s=fault_s))
    scoring.verify()
    assert_same_arrays(scoring.scores(), undisturbed)
    assert scoring.shards_begun_again() <= scoring.in_flight(fault_s)
    assert len(scoring.in_flight(fault_s)) <= SHARDS_IN_FLIGHT


def test_a_holder_elsewhere_that_is_dead_holds_until_its_lease_runs_out(scene: Scene, undisturbed: ScoreStore, costs: list[Cost]) -> None:
    scoring = Scoring(scene, "elsewhere")
    kill(scoring.start_and_wait())
    change_lease(scoring, host="elsewhere", space="elsewhere")  # as if it had been killed on another machine
    refused = scoring.start()
    assert refused.wait(timeout=60) == 1
    assert "on elsewhere" in scoring.said()
    change_lease(scoring, expires_at=time.time() + LEFT_S)
    time.sleep(LEFT_S)
    fault_s = time.time()
    scoring.finish()
    costs.append(scoring.cost("the holder killed on another machine", fault_s=fault_s))
    scoring.verify()
    assert_same_arrays(scoring.scores(), undisturbed)


def change_lease(scoring: Scoring, **changes: Any) -> None:
    uri = filesystems.join(scoring.archive, "lease.json")
    filesystems.write_json(uri, {**filesystems.read_json(uri), **changes})
