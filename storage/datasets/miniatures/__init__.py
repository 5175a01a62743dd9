"""Miniatures of the data sets, generated in the layout in which they are downloaded: for tests, and for trying a paper's table."""
