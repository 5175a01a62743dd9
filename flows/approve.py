"""Evidence → a person's answer, in a run of its own that is paused."""

from prefect import flow

from tasks.retrain_decision import Approval, wait_for_answer


@flow(name="approve", flow_run_name="{question}")
def approve(question: str, evidence: str, *, recommended: bool, answer_within_h: float) -> Approval:
    """Show the evidence in the UI and wait for an answer.

    A run of its own, because the server takes a paused run's slot of its deployment's limit away, and five minutes later Prefect ends
    a run without its slot. So it is this one that is paused, and the retraining goes on running, in its slot.

    Args:
        question: as the run's name in the UI.
        evidence: Markdown.
        recommended: what the form begins with.
        answer_within_h: hours.

    Raises:
        prefect.exceptions.FlowPauseTimeout: nobody answered in time; the run has failed by then.
    """
    return wait_for_answer(question, evidence, recommended=recommended, answer_within_h=answer_within_h)
