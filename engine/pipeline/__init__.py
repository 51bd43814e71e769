"""The way of a block: producer, transmission queue, lanes, commit."""
