"""The exit codes, and who restarts a command that ended with which."""

from nanochat import errors
from nanochat.cloud.workload import FINAL_CODES


def test_every_code_is_restarted_by_somebody_or_final_for_all() -> None:
    """75 alone is final where it happened and retried elsewhere."""
    kinds = {kind.exit_code for kind in (errors.NanochatError, *errors.NanochatError.__subclasses__())}
    final, retried = set(errors.LAUNCHER_FINAL_CODES), set(errors.ORCHESTRATOR_RETRIED_CODES)
    assert kinds == {1, 2, 3, 4, 5, 6, 7, 75} == final | retried
    assert final & retried == {errors.Preempted.exit_code} == {75}
    assert FINAL_CODES == (2, 3, 4, 5, 6)
