"""The formats of `kmax prepare FORMAT`: each is a module with `parse` and `main`, as a verb."""
