"""The recipes; they ship as data of the curator package."""
