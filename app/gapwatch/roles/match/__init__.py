"""Role ``match``: the Faust app that drives ``core/matching``."""
