"""What a healthy model shows on a few images, and what is wrong with one that does not."""
