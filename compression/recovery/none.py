"""No recovery: the pruned weights are the result."""

from __future__ import annotations

from pydantic import BaseModel

from compression.recovery.registry import NoOptions, recoveries
from compression.recovery.types import RecoveryContext, RecoveryResult


@recoveries.register
class NoRecovery:
    """Leaves the pruned model as it is."""

    name = "none"
    title = "No recovery"
    summary = "The pruned weights are the result; nothing is trained."
    options: type[BaseModel] = NoOptions

    def recover(self, context: RecoveryContext) -> RecoveryResult:
        return RecoveryResult(self.name)
