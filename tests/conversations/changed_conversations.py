"""The conversation as somebody might change it: in a file of its own, because the sandbox reads the file again."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow

from rise.conversations.workflow import WORKFLOW, Begin, Conversation

A_PAUSE = timedelta(seconds=1)


@workflow.defn(name=WORKFLOW)
class Changed(Conversation):
    """It pauses first, which no conversation did that has begun before."""

    @workflow.init
    def __init__(self, begin: Begin) -> None:
        super().__init__(begin)

    @workflow.run
    async def run(self, begin: Begin) -> None:
        await workflow.sleep(A_PAUSE)
        await super().run(begin)


@workflow.defn(name=WORKFLOW)
class ChangedBehindAPatch(Conversation):
    """It pauses first, but for those that have begun before."""

    @workflow.init
    def __init__(self, begin: Begin) -> None:
        super().__init__(begin)

    @workflow.run
    async def run(self, begin: Begin) -> None:
        if workflow.patched("a pause first"):
            await workflow.sleep(A_PAUSE)
        await super().run(begin)
