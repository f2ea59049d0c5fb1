"""OpenSearch as a target: reads by key and shard by shard, guarded writes, the ``_seq_no`` tail, acks, preflight.

Nothing is imported here: the driver is slow to import, and an indexer that only sends acks does not need it.
"""
