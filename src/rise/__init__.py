"""Rise: the durable front door of a chat bot.

For bots, this is all there is to know:

    import rise

    @rise.workflow("greeter", channels=["telegram", "webchat", "http"])
    async def greeter(turn: rise.Turn) -> None:
        await turn.reply(f"You said: {turn.text}")
"""

from rise.errors import RiseError, WaitsForDependency
from rise.workflows.definition import workflow
from rise.workflows.functions import function
from rise.workflows.turn import Turn

__all__ = ["RiseError", "Turn", "WaitsForDependency", "__version__", "function", "workflow"]
__version__ = "0.1.0"
