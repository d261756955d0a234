-- Purpose: the images that went from one class to another between two generations, those that both teachers were surest
--          of first, see sql/changes.sql.
-- Inputs:  stored_changes.
-- Grain:   one row per image.
-- Parameters: $generation, $split, $before, $after (class indexes), $limit, $offset.
select image_id, uri, shard, byte_offset, byte_length, confidence_before, confidence_after
from stored_changes
where generation = $generation and split = $split and label_before = $before and label_after = $after
order by severity desc, image_id
limit $limit offset $offset;
