"""The SQL ledger."""
