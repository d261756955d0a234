-- Purpose: rows of a manifest as JSON text, every column under its own name.
-- Inputs:  rows (rows of a manifest, in order).
-- Grain:   one line per row, in the order of the rows.
select to_json(rows)::varchar as line from rows;
