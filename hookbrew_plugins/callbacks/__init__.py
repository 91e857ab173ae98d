"""Callbacks of the standard pack: each watches a run, or writes what it leaves behind."""
