-- Purpose: the generations that have labels, the newest first.
-- Inputs:  stored_labels.
-- Grain:   one row per generation.
select distinct generation::INT as generation
from stored_labels
order by generation desc;
