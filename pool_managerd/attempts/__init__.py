"""Attempts on engines: what is ordered, what runs, and what it puts out."""
