"""Edits of inverted images: requests, masks, and the editor that makes the images."""
