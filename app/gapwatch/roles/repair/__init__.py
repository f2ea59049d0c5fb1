"""Role ``repair``: confirm suspects, sweep, backfill, verify, publish, watch the streams."""
