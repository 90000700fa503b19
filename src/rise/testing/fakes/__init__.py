"""The stores and the bus as plain Python: a few dicts that keep the promises of the ports and nothing else.

They are the model that backends are compared with, and what a simulation runs on. So they are written from
the ports' words, one obvious step at a time, and are as slow as that makes them. A state is the store;
whoever opens it is a process. The same calls at the same times give the same answers, ids and order.
"""
