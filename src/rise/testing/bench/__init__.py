"""How fast, and beside what: `rise bench`.

Every figure is a ratio between contenders that took turns in one run on one machine; a bare time says more
about the machine than about the program. Each contender is a process of its own, and so is who asks.
"""
