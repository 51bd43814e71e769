"""The cache's own upkeep: verification, when it is due, what it says of the cache, stamps and trimming."""
