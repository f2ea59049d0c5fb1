"""The story of gapwatch demo."""
