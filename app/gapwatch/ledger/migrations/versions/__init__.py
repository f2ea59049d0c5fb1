"""One module per step. A published step is never changed; a new one is added, and ``tables.HEAD`` names the newest."""
