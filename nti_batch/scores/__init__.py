"""Scores of images and of edits."""
