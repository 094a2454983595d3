"""Text transforms: augmentations of sentences, and their views."""
