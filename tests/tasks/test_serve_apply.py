from unittest.mock import Mock
from uuid import uuid4

import pytest
from prefect.events.actions import SendNotification
from prefect.exceptions import ObjectNotFound

from tasks.serve_apply import ApplyError, tell_of_failed


def test_failed_runs_are_sent_to_the_block_that_the_file_names() -> None:
    block = uuid4()
    client = Mock()
    client.read_block_document_by_name.return_value.id = block
    automation = tell_of_failed(client, "slack-webhook/alerts")
    assert automation is not None
    client.read_block_document_by_name.assert_called_once_with("alerts", "slack-webhook")
    [action] = automation.actions
    assert isinstance(action, SendNotification)
    assert action.block_document_id == block
    assert "prefect.flow-run.Paused" in automation.trigger.expect  # somebody is asked


def test_without_a_block_nobody_is_told_and_a_missing_one_is_named() -> None:
    client = Mock()
    assert tell_of_failed(client, None) is None
    client.read_block_document_by_name.side_effect = ObjectNotFound(http_exc=Exception())
    with pytest.raises(ApplyError, match=r"no block slack-webhook/alerts .*`notify`"):
        tell_of_failed(client, "slack-webhook/alerts")
