"""Structures and labels on disk."""
