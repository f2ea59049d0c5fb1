"""What a fleet beyond this machine would do, from costs measured on this one: ``make simulate-scale``."""
