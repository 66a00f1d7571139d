"""Model families, one readable file each, and how their files are found, fetched and read."""
