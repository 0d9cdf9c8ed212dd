"""The theory held against measurements, and pictures of minima; no part of the package. See README.md beside this."""
