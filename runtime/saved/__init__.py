"""Captures with their plans, kept between processes and found again without running the model's Python."""
