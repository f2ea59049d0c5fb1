"""Role ``capture``: change streams → feed topics, with markers; heartbeat messages into the sources."""
