"""From images to features and from features to numbers, file by file."""
