-- Purpose: the kept images that the teacher was least sure of.
-- Inputs:  kept (a manifest's rows).
-- Grain:   one row per image, the least confident first; ties go to the lower image_id.
-- Parameters: $most (how many).
select image_id, uri, shard, byte_offset, byte_length, source, class_name, confidence, copies, weight
from kept
order by confidence, image_id
limit $most;
