"""Equality saturation: all that follows from the equations of a region at once, and the cheapest of it taken out."""
