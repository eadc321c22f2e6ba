"""Where the work runs: local processes, a Dask cluster."""
