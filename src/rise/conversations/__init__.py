"""Conversations: with `engine: temporal` on a binding each chat is one workflow of Temporal's that lives for months."""
