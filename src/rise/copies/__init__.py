"""The durable places that hold a message besides the queue, until it is finished."""
