"""Image transforms: augmentations, the views of each paper, and the evaluation view."""
