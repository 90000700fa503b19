"""A workflow that says what it was told: in a file of its own, because Temporal's sandbox reads the file again."""

from __future__ import annotations

from datetime import timedelta

from temporalio import activity, workflow


@activity.defn
async def answer(text: str) -> str:
    return f"echo {text}"


@workflow.defn
class Echo:
    @workflow.run
    async def run(self, text: str) -> str:
        return await workflow.execute_activity(answer, text, start_to_close_timeout=timedelta(seconds=10))
