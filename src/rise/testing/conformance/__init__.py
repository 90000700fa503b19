"""One suite per port, for every backend: subclass it, say how to set the stage, and run it with pytest.

A backend that passes keeps the port's promises. The suites use the marks `req` and `failure`, which a
project with strict markers has to register.
"""

import pytest

pytest.register_assert_rewrite(*(f"{__name__}.{port}" for port in ("queue", "ledger", "bus", "channel")))
