"""What files of a dataset are called: the endings of pictures that are read, and of captions."""

from __future__ import annotations

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".avif", ".heic", ".heif")
CAPTION_SUFFIXES = (".txt", ".caption")
FORMATS = "PNG, JPEG, WebP or AVIF"
