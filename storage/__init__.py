"""Bytes to arrays and back: file systems, manifest, images, slides, scores, models, data sets, reports."""
