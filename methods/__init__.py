"""The science: arrays in, arrays out. Knows no Prefect, Dask, Zarr, and no path."""
