"""Reports: plots, pages, tables on the terminal."""
