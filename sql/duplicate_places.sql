-- Purpose: where the two pictures of each pair are; those of a group follow each other, so that each is read once.
-- Inputs:  candidates (see duplicate_candidates.sql), groups (image_id, group_id), stored_images.
-- Grain:   one row per pair.
select
    c.node, c.other, c.kind, c.distance,
    {'uri': i.uri, 'shard': i.shard, 'byte_offset': i.byte_offset, 'byte_length': i.byte_length} as here,
    {'uri': j.uri, 'shard': j.shard, 'byte_offset': j.byte_offset, 'byte_length': j.byte_length} as there
from candidates as c
join groups as g on g.image_id = c.node
join stored_images as i on i.image_id = c.node
join stored_images as j on j.image_id = c.other
order by g.group_id, c.node, c.other;
