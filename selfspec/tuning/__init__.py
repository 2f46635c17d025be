"""Choosing exit layer and draft length from measurements."""
