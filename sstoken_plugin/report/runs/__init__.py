"""Finished runs: found on disk, drawn again, and side by side on one page."""
